"""Ways to pre-train, side by side: which is worth what, how sure that is, and what it costs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.crossed import best_shares, complete_variants, crossed_means
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import change as changed_by
from deeplight_core.report.findings.cells import (
    counted,
    fine_tuned,
    interval,
    listed,
    number,
    short_title,
    starred,
    table,
    trained_on,
)
from deeplight_core.routes import ROUTES, VARIANTS, ConvEncoderSettings

__all__ = [
    "as_published",
    "best_ways_note",
    "conditions",
    "conditions_note",
    "conditions_table",
    "costs_table",
    "effects_note",
    "features_note",
    "fine_tuned_ways",
    "frozen_features",
    "frozen_table",
    "maps_note",
    "paired_note",
    "pairs_note",
    "pairs_table",
    "published_note",
    "saved_by_ways_table",
    "similarity_note",
    "sizes_table",
    "tuned_note",
    "verdict_note",
    "ways_to_pretrain",
]


_CEILING = 0.95  # of the blocks
_Named = Callable[[str, list[dict[str, Any]]], str]  # a way, with the sizes of its tests


def fine_tuned_ways(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main comparison: without readouts of frozen encoders that are also fine-tuned."""
    variants = list(results["variant"].unique())
    tuned = {VARIANTS[v].route for v in fine_tuned(variants)}
    probes = [v for v in variants if VARIANTS[v].learner == "probe"]
    left_out = {v for v in probes if VARIANTS[v].route in tuned or VARIANTS[v].start == "random"}
    return results[~results["variant"].isin(left_out)]


def ways_to_pretrain(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of networks that start from a pre-training and are fine-tuned."""
    return results[results["variant"].isin(fine_tuned(list(results["variant"].unique())))]


def frozen_features(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of linear readouts of frozen encoders."""
    return results[results["variant"].isin([v for v in VARIANTS if VARIANTS[v].learner == "probe"])]


def sizes_table(means: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """Mean scores with their intervals (of `crossed.crossed_means`): a row per way, a column per size."""
    if means.empty:
        return None
    columns: dict[str, list[str]] = {"decoder": [VARIANTS[v].title for v in means["variant"].unique()]}
    for n, of_size in means.sort_values("n_subjects").groupby("n_subjects"):
        own = of_size.set_index("variant")
        cells = [
            interval(*own.loc[v, ["mean", "low", "high"]]) if v in own.index else "–" for v in means["variant"].unique()
        ]
        columns[counted(float(n), unit)] = cells  # type: ignore[arg-type]
    return table(columns, wrapped=True)


def effects_note(effects: pd.DataFrame) -> str:
    """Whether ways to pre-train differ, and differ by size (of `crossed.effects`)."""
    if effects.empty:
        return (
            "No analysis of variance of the ways to pre-train: it takes two or more of them (fine-tuned networks), of "
            "the sizes, of the seeds, and of people whom no training has seen."
        )
    said = [
        f"{row['effect']}: F({row['dof_effect']:.1f}, {row['dof_error']:.1f}) = {row['f']:.2f}, p = {number(row['p'])}"
        if np.isfinite(row["f"])
        else f"{row['effect']}: no test, since nothing differs"
        for row in effects.to_dict("records")
    ]
    return (
        "Analysis of variance of the ways to pre-train (fine-tuned networks), subjects and seeds being random effects: "
        f"{'; '.join(said)}."
    )


def pairs_note(pairs: pd.DataFrame, unit: str = "subject") -> str:
    """How many pairs of decoders differ (of `crossed.pairs`), by size."""
    if pairs.empty:
        return ""
    of_sizes = pairs.groupby("n_subjects")["differ"].sum()
    by_size = listed([f"{n} with {counted(size, unit)}" for size, n in of_sizes.items()])  # type: ignore[arg-type]
    n = int(pairs["differ"].sum())
    return f"{n} of {len(pairs)} tests tell two decoders apart ({by_size}; Holm over all pairs and sizes)."


def paired_note(results: pd.DataFrame, unit: str = "subject") -> str:
    """What the first paper's test says of the ways to pre-train: paired over subjects, of these very trainings."""
    variants, said = list(results["variant"].unique()), []
    for way, base in ((way, _baseline(way, variants)) for way in fine_tuned(variants)):
        tests = statistics.compare(results, way, base) if base else pd.DataFrame({"significant": []})
        shown = tests[tests["significant"]].to_dict("records")
        for word, won in (("better", True), ("worse", False)):
            rows: list[dict[str, Any]] = [row for row in shown if row["better"] == won]  # type: ignore[misc]
            said += [f"{trained_on(way)} {word} ({_sizes(rows, unit)})"] if rows else []
    if not said:
        return ""
    return (
        f"The first paper's test, paired over held-out {unit}s and corrected over sizes (Bonferroni), asks about these "
        f"very trainings and not about others. Against from scratch it calls {listed(said)}."
    )


def pairs_table(pairs: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """The tests behind the stars (of `crossed.pairs`): a row per pair and size."""
    if pairs.empty:
        return None
    rows = pairs.to_dict("records")
    return table(
        {
            "decoder": [short_title(r["a"]) for r in rows],
            "minus": [short_title(r["b"]) for r in rows],
            f"{unit}s": [f"{r['n_subjects']:.0f}" for r in rows],
            "difference [95% interval]": [changed_by(r) for r in rows],
            "p": [number(r["p"]) for r in rows],
            "p (Holm)": [starred(r["p_holm"], r["differ"]) for r in rows],
        },
        wrapped=True,
    )


def _way(variant: str) -> str:
    """A way to pre-train; of an encoder that stays frozen, its features."""
    way = trained_on(variant)
    return f"features of {way}" if VARIANTS[variant].learner == "probe" else way


def verdict_note(
    pairs: pd.DataFrame,
    means: pd.DataFrame,
    unit: str = "subject",
    details: bool = True,
    title: Callable[[str], str] = _way,
    compared: str = "ways to pre-train",
) -> str:
    """What the comparison shows, computed from its intervals: also that nothing can be shown, or that linear wins.

    Ways are compared as fine-tuned networks. Features of frozen ones, which are another kind of decoder, stand beside
    linear models only.

    Parameters
    ----------
    details : with the sizes at which a difference is shown
    title : what a way is called
    compared : what ways together are called
    """

    def named(way: str, rows: list[dict[str, Any]]) -> str:
        return f"{title(way)} ({_sizes(rows, unit)})" if details else title(way)

    if pairs.empty or means.empty:
        return ""
    variants = list(means["variant"].unique())
    started = [v for v in variants if v in {*pairs["a"], *pairs["b"]} and VARIANTS[v].start == "checkpoint"]
    ways, linear = fine_tuned(started), [v for v in variants if VARIANTS[v].learner not in ("deep", "probe")]
    said = []
    if among := _among(pairs, ways, named, title):
        said.append(f"**{compared.capitalize()} differ**: {among}.")
    elif len(ways) > 1:
        said.append(f"**No difference between the {compared} can be shown.**")
    bases = {way: _baseline(way, variants) for way in ways}
    said += _beside(pairs, bases, "no pre-training", named, title)
    if linear and started:
        told_apart = {
            w: [row for model in linear for row in _against(pairs, w, model) if row["differ"]] for w in started
        }
        better, worse = (
            {way: chosen for way, rows in told_apart.items()
             if (chosen := [row for row in rows if row["first_better"] == won])}
            for won in (True, False)
        )  # fmt: skip
        if wins := not better and len(worse) == len(started):
            shared = set.intersection(*({row["n_subjects"] for row in rows} for rows in worse.values()))
            all_worse = f"; all are worse with {_sizes([{'n_subjects': n} for n in shared], unit)}" if shared else ""
            said.append(f"**A linear model wins**: no way to pre-train is shown to be better than one{all_worse}.")
        each = {word: [named(*of) for of in which.items()] for word, which in (("Better", better), ("Worse", worse))}
        said += [f"Better than a linear model: {listed(each['Better'])}."] if better else []
        said += [f"Worse than a linear model: {listed(each['Worse'])}."] if worse and (details or not wins) else []
        if not better and not worse:
            said.append("No way to pre-train can be told apart from the linear models.")
    return " ".join(said)


def features_note(pairs: pd.DataFrame, unit: str = "subject") -> str:
    """What frozen features are worth: whose are better, and whether they are better than random weights' are.

    Parameters
    ----------
    pairs : of `crossed.pairs` of `frozen_features`
    """

    def named(way: str, rows: list[dict[str, Any]]) -> str:
        return f"{trained_on(way)} ({_sizes(rows, unit)})"

    variants = list(dict.fromkeys([*pairs["a"], *pairs["b"]])) if len(pairs) else []
    ways = [v for v in variants if VARIANTS[v].start == "checkpoint"]
    if not ways:
        return ""
    among = _among(pairs, ways, named, trained_on)
    bases = {way: _baseline(way, variants, "probe") for way in ways}
    said = [f"*Features, read out linearly*: {among or 'no difference between the ways can be shown'}."]
    said += _beside(pairs, bases, "random weights", named, trained_on)
    return " ".join([*said, "Tests are corrected among features alone (Holm)."])


def _among(pairs: pd.DataFrame, ways: list[str], named: _Named, title: Callable[[str], str]) -> str:
    """Which ways are shown to be better than which; empty if none is."""
    among = pairs[pairs["a"].isin(ways) & pairs["b"].isin(ways) & pairs["differ"]]
    return _order(among, ways, named, title)


def _beside(
    pairs: pd.DataFrame, bases: Mapping[str, str], begin: str, named: _Named, title: Callable[[str], str]
) -> list[str]:
    """Sentences on ways that are better than their decoder without them, worse, or not told apart from it."""
    better_than, worse_than, like = (f"{word} {begin}" for word in ("Better than", "Worse than", "Not told apart from"))
    told: dict[str, list[str]] = {better_than: [], worse_than: [], like: []}
    for way, base in bases.items():
        tests = _against(pairs, way, base)
        differ = [row for row in tests if row["differ"]]
        for word, won in ((better_than, True), (worse_than, False)):
            if chosen := [row for row in differ if row["first_better"] == won]:
                told[word].append(named(way, chosen))
        if base and not differ:
            told[like].append(f"{title(way)} ({_differences(tests)})")
    return [f"{word}: {listed(named)}." for word, named in told.items() if named]


def _order(differ: pd.DataFrame, ways: list[str], named: _Named, title: Callable[[str], str]) -> str:
    """Which ways are better than which, at which sizes, as in "a and b better than c (3 subjects); d better …"."""
    winners: dict[str, list[str]] = {}
    for way in ways:
        won = {w: [row for row in _against(differ, way, w) if row["first_better"]] for w in ways if w != way}
        beaten = [named(other, rows) for other, rows in won.items() if rows]
        if beaten:
            winners.setdefault(listed(beaten), []).append(title(way))
    return "; ".join(f"{listed(better)} better than {beaten}" for beaten, better in winners.items())


def _differences(tests: list[dict[str, Any]]) -> str:
    """The range of differences over sizes, as in "+2 to +13 points"."""
    points = [100 * row["difference"] for row in tests]
    least, most = f"{round(min(points)):+d}", f"{round(max(points)):+d}"
    return f"{least} to {most} points" if least != most else f"{most} points"


def _sizes(rows: list[dict[str, Any]], unit: str) -> str:
    """Sizes as in "3 and 12 subjects"."""
    sizes = sorted({int(row["n_subjects"]) for row in rows})
    return f"{listed([str(n) for n in sizes])} {unit}{'' if sizes == [1] else 's'}"


def _baseline(way: str, variants: list[str], learner: str = "deep") -> str:
    """The decoder from random weights beside a way: the same encoder's, else DeepLight's; empty without one."""
    untrained = [v for v in variants if VARIANTS[v].learner == learner and VARIANTS[v].start == "random"]
    same = [v for v in untrained if _encoder(v) == _encoder(way)]
    return next(iter([*same, *[v for v in untrained if _encoder(v) == "deeplight"]]), "")


def _encoder(variant: str) -> str:
    return ROUTES[VARIANTS[variant].route].encoder


def _against(pairs: pd.DataFrame, first: str, other: str) -> list[dict[str, Any]]:
    """The tests of two decoders, one per size: `n_subjects, difference` (first − other), `differ, first_better`."""
    rows = pairs[(pairs["a"] == first) & (pairs["b"] == other)].assign(first_better=lambda t: t["better"])
    turned = pairs[(pairs["a"] == other) & (pairs["b"] == first)].assign(
        difference=lambda t: -t["difference"], first_better=lambda t: ~t["better"].astype(bool)
    )
    return pd.concat([rows, turned]).sort_values("n_subjects").to_dict("records")  # type: ignore[return-value]


def best_ways_note(results: pd.DataFrame, unit: str = "subject") -> str:
    """How often each decoder is the best one at each size (`crossed.best_shares`); again of the pre-trained ones."""
    if results.empty:
        return ""
    shares, alone = best_shares(results), best_shares(ways_to_pretrain(results))
    if shares.empty:
        return "Nothing is drawn again: in a cross-validation, held-out people are not independent."
    drawn = f"{unit}s and seeds" if shares["n_seeds"].max() > 1 else f"{unit}s"
    said = f"Share of resamples of {drawn} in which each is best, {_best(shares, unit)}."
    several = len(set(alone["variant"])) > 1
    return f"{said} Of the ways to pre-train alone, {_best(alone, unit)}." if several else said


def _best(shares: pd.DataFrame, unit: str) -> str:
    said = []
    for n, of_size in shares.groupby("n_subjects"):
        likely = of_size[of_size["share"] >= 0.05].sort_values("share", ascending=False)
        named = [
            f"{VARIANTS[v].title} {share:.0%}" for v, share in zip(likely["variant"], likely["share"], strict=True)
        ]
        said.append(f"with {counted(float(n), unit)}: {', '.join(named)}")  # type: ignore[arg-type]
    return "; ".join(said)


def saved_by_ways_table(results: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """How many subjects from scratch each way's smallest sizes are worth (`statistics.subjects_saved`)."""
    variants = list(results["variant"].unique())
    ways = [v for v in variants if VARIANTS[v].learner in ("deep", "probe") and v != "scratch"]
    if "scratch" not in variants or not ways:
        return None
    rows = {v: statistics.subjects_saved(results, v, "scratch") for v in ways}
    columns: dict[str, list[str]] = {"decoder": [VARIANTS[v].title for v in ways]}
    for i, n in enumerate(next(iter(rows.values()))["n_subjects"]):
        columns[f"{counted(n, unit)}: worth from scratch"] = [
            _equivalent(rows[v].iloc[i], results["n_subjects"]) for v in ways
        ]
    return table(columns, wrapped=True)


def _equivalent(row: pd.Series, sizes: pd.Series) -> str:
    """A number of subjects and its interval, which may reach beyond the sizes there are."""
    least, most = sizes.min(), sizes.max()
    here, low, high = (
        f"≤ {least}" if value <= least else f"> {most}" if np.isinf(value) else f"{value:.1f}"
        for value in row[["equivalent", "low", "high"]]
    )
    return f"{here} [{low}, {high}]"


def frozen_table(means: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """Linear readouts of frozen encoders beside the same encoders fine-tuned: means by size."""
    variants = list(means["variant"].unique())
    probes = [v for v in variants if VARIANTS[v].learner == "probe"]
    of_route = {VARIANTS[v].route: v for v in fine_tuned(variants)}
    if not probes:
        return None
    tuned = {
        p: of_route.get(VARIANTS[p].route, "") if VARIANTS[p].start == "checkpoint" else _baseline(p, variants)
        for p in probes
    }
    own = means.set_index(["variant", "n_subjects"])["mean"]
    columns: dict[str, list[str]] = {"pre-trained": [trained_on(v) for v in probes]}
    for n in sorted(means["n_subjects"].unique()):
        both = [(own.get((p, n), np.nan), own.get((tuned[p], n), np.nan)) for p in probes]
        columns[f"{counted(n, unit)}: frozen / fine-tuned"] = [
            " / ".join(number(value, ".1%") for value in pair) for pair in both
        ]
    return table(columns, wrapped=True)


def costs_table(costs: pd.DataFrame, means: pd.DataFrame) -> Styler | None:
    """What each decoder cost (of `comparisons.costs`) and what it is worth at the largest size (of `crossed_means`)."""
    if costs.empty:
        return None
    rows = costs.to_dict("records")
    worth = means[means["n_subjects"] == means["n_subjects"].max()].set_index("variant")["mean"]
    return table(
        {
            "decoder": [VARIANTS[r["variant"]].title for r in rows],
            "encoder's parameters": [number(r["n_parameters"], ",.0f") for r in rows],
            "volumes seen, pre-training": [number(r["pretraining_volumes"], ",.0f") for r in rows],
            "volumes seen, target": [f"{r['finetuning_volumes']:,.0f}" for r in rows],
            "seconds, pre-training": [number(r["pretraining_s"], ",.0f") for r in rows],
            "seconds, target": [f"{r['finetuning_s']:,.0f}" for r in rows],
            "accuracy": [number(worth.get(r["variant"], np.nan), ".1%") for r in rows],
        },
        wrapped=True,
    )


def conditions_table(profile: Profile, tests: pd.DataFrame) -> Styler | None:
    """Scores under other conditions, and what they change (of `statistics.compare_changes`): a row per decoder."""
    if tests.empty:
        return None
    variants, titles = list(tests["variant"].unique()), conditions(profile)
    own = tests.set_index(["variant", "change"])
    first = tests.drop_duplicates("variant").set_index("variant")["mean_b"]
    columns: dict[str, list[str]] = {"decoder": [VARIANTS[v].title for v in variants]}
    columns["unchanged"] = [f"{first[v]:.1%}" for v in variants]
    for name in tests["change"].unique():
        rows = [own.loc[(v, name)] if (v, name) in own.index else None for v in variants]
        columns[titles[name]] = [
            "–" if row is None else f"{row['mean_a']:.1%}, {changed_by(row)}{' ★' if row['differ'] else ''}"
            for row in rows
        ]
    return table(columns, wrapped=True)


def conditions(profile: Profile) -> dict[str, str]:
    """The titles of the profile's other conditions, by the names of their changes."""
    return {f"sensitivity-{name}": condition.title for name, condition in profile.controls.sensitivity.items()}


def conditions_note(profile: Profile, tests: pd.DataFrame) -> str:
    """What each way to pre-train is sensitive to, judged by the tests."""
    if not profile.controls.sensitivity:
        return ""
    if tests.empty:
        return f"Other conditions have not been tried: `make controls PROFILE={profile.name}`."
    titles, said = conditions(profile), []
    for name, own in tests.groupby("change", sort=False):
        worse = [VARIANTS[r["variant"]].title for r in own.to_dict("records") if r["differ"] and not r["better"]]
        better = [VARIANTS[r["variant"]].title for r in own.to_dict("records") if r["differ"] and r["better"]]
        found = [f"worse {listed(worse)}"] * bool(worse) + [f"better {listed(better)}"] * bool(better)
        said.append(f"*{titles[str(name)]}*: {'; '.join(found) or 'no decoder is shown to change'}")
    n = counted(tests["n_subjects"].iloc[0], profile.data.split_unit)
    return (
        f"With {n} to train on (paired t-tests over held-out {profile.data.split_unit}s, Holm over all cells; "
        f"{counted(tests['n_seeds'].max(), 'seed')}, so another training may end differently): {'. '.join(said)}."
    )


def as_published(swept: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Block scores of decoders with each paper's own architecture and of the sweep's main comparison, in one table.

    Those that lack a training are left out; without any of the first, there are no rows.
    """
    both = pd.concat([rows for rows in (published, swept) if len(rows)] or [published])
    blocks = statistics.only(both, level="block")
    own = complete_variants(fine_tuned_ways(blocks))
    return own if set(published["variant"]) & set(own["variant"]) else own.iloc[:0]


def published_note(profile: Profile, pairs: pd.DataFrame, means: pd.DataFrame) -> str:
    """How decoders with each paper's own architecture compare, and what is not the papers'.

    Parameters
    ----------
    pairs, means : of `crossed.pairs` and `crossed.crossed_means` of `as_published`
    """
    if not profile.controls.published:
        return ""
    if pairs.empty:
        return f"Not trained yet, or only some of it: `make comparison-as-published PROFILE={profile.name}`."
    unit = profile.data.split_unit
    networks = [v for v in means["variant"].unique() if VARIANTS[v].learner == "deep" and VARIANTS[v].start == "random"]
    among = pairs[pairs["a"].isin(networks) & pairs["b"].isin(networks)]
    better = _order(among[among["differ"]], networks, lambda v, rows: f"{_network(v)} ({_sizes(rows, unit)})", _network)
    median = means.groupby("n_subjects")["mean"].median()
    full = [{"n_subjects": n} for n in median.index[median >= _CEILING]]
    said = [
        "A block's answer is its volumes' mean probability, or its clips'. Heads, budgets and learning rates are this "
        "project's, as for all decoders.",
        _not_the_papers(profile),
        pairs_note(pairs, unit),
        f"With {_sizes(full, unit)}, half of the decoders are right on {_CEILING:.0%} of the blocks or more, which "
        "leaves little to tell them apart by."
        if full
        else "",
        f"**Before any pre-training**: {better or 'no network is shown to be better than another one'}."
        if len(among)
        else "",
        verdict_note(pairs, means, unit, True, lambda v: f"*{VARIANTS[v].title}*", "pre-trained networks"),
    ]
    return " ".join(filter(None, said))


def _not_the_papers(profile: Profile) -> str:
    """What of the networks differs from the papers'."""
    networks, said = {ROUTES[VARIANTS[v].route].encoder for v in profile.controls.published}, []
    layers, own = len(profile.routes.autoencoder.encoder.widths), len(ConvEncoderSettings().widths)
    if "cae" in networks and layers != own:
        said.append(f"the convolutional encoder has {layers} layers instead of {own}, which the grid is too coarse for")
    if "clip" in networks:
        said.append("the encoder of clips is that of Wang et al. (2020), since Shi et al.'s is not described")
    if "efficientnet_lite0" in networks:
        look = profile.routes.images.encoder
        seen = counted(look.slices * len(look.planes), "slice")
        said.append(f"EfficientNet-Lite0 takes the place of ResNet-18 for photographs, and sees {seen} of a volume")
    return f"Not the papers': {'; '.join(said)}." if said else ""


def tuned_note(results: pd.DataFrame, published: pd.DataFrame, unit: str = "subject") -> str:
    """What encoders whose features alone are compared are worth when they are fine-tuned, if that has been run."""
    tuned = complete_variants(statistics.only(published))
    deep = {VARIANTS[v].route: v for v in fine_tuned(list(tuned["variant"].unique()))}
    compared = frozen_features(fine_tuned_ways(results))["variant"].unique()
    said = []
    for way in (v for v in compared if VARIANTS[v].route in deep):
        means = crossed_means(tuned[tuned["variant"] == deep[VARIANTS[way].route]]).sort_values("n_subjects")
        least, most = (
            f"{interval(row['mean'], row['low'], row['high'])} with {counted(row['n_subjects'], unit)}"
            for row in (means.iloc[0], means.iloc[-1])
        )
        said.append(
            f"Of {trained_on(way)} only features are compared here; the whole network, fine-tuned, has "
            f"{least} and {most}."
        )
    return " ".join(said)


def _network(variant: str) -> str:
    """An encoder's name, without how it began."""
    return VARIANTS[variant].title.partition(", ")[0]


def similarity_note(similar: pd.DataFrame) -> str:
    """How alike encoders are (of `comparisons.similarity`), beside those of one way that differ in their seed only."""
    same = similar[(similar["a"] == similar["b"]) & (similar["seed_a"] < similar["seed_b"])]
    same = same[same["cka"] < 1 - 1e-6]  # seeds of published weights have the same ones
    others, titles = similar[similar["a"] < similar["b"]], {v: trained_on(v) for v in similar["a"]}
    if others.empty:
        return ""
    pairs = sorted(others.groupby(["a", "b"])["cka"], key=lambda group: float(group[1].mean()))
    (least, most) = (f"{listed([titles[v] for v in ways])} (CKA {_ranged(of)})" for ways, of in (pairs[0], pairs[-1]))
    said = f"Over all seeds, most alike are {most}, least {least}." if len(pairs) > 1 else f"Over all seeds: {most}."
    if len(same):
        named = [f"{titles[v]} {_ranged(of)}" for v, of in same.groupby("a", sort=False)["cka"]]
        said += f" Two seeds of one way: {'; '.join(named)}."
    filled = [f"{titles[v]} {of.mean():.1f}" for v, of in similar.groupby("a", sort=False)["dimensions_a"]]
    return f"{said} Participation ratios: {', '.join(filled)}."


def _ranged(values: pd.Series) -> str:
    """A mean, and from where to where values go if there are several."""
    several = f", {values.min():.2f} to {values.max():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{several}"


def maps_note(state: str, images: Mapping[str, Any]) -> str:
    """Of which state the maps are, and why of this one."""
    if not images:
        return ""
    why = ", whose planted places are the largest" if "planted" in images else ""
    return f"The maps are of *{state}*{why}."
