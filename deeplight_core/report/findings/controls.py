"""Sentences and tables of the pages about controls."""

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import crossed, statistics
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import (
    change,
    counted,
    interval,
    listed,
    number,
    short_title,
    sizes,
    starred,
    table,
)
from deeplight_core.report.findings.decoding import make_command
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import planned

__all__ = [
    "baselines_note",
    "baselines_table",
    "chance_note",
    "chance_table",
    "initialisation_note",
    "leads_table",
    "repeated_note",
    "seeds_complete_note",
    "seeds_note",
    "seeds_table",
    "start_note",
    "trainings_table",
    "transfer_note",
    "transfer_table",
    "transfer_tests",
]


# ---- linear baselines


def baselines_table(tests: pd.DataFrame) -> Styler | None:
    """DeepLight against every linear model (`decoding.linear_tests`); None where there is nothing to compare."""
    if tests.empty:
        return None
    return table(
        {
            "DeepLight": [short_title(v) for v in tests["decoder"]],
            "against": [VARIANTS[v].title for v in tests["baseline"]],
            "fractions compared": tests["n"].tolist(),
            "better": tests["better"].tolist(),
            "worse": tests["worse"].tolist(),
            "largest lead": [number(v, "+.1%") for v in tests["lead"]],
            "largest lag": [number(v, "+.1%") for v in tests["lag"]],
        }
    )


def baselines_note(tests: pd.DataFrame) -> str:
    """Who wins, DeepLight or linear models, for each DeepLight decoder (`decoding.linear_tests`)."""
    said = []
    for decoder, (better, worse, n) in tests.groupby("decoder", sort=False)[["better", "worse", "n"]].sum().iterrows():
        winner = "linear models win" if worse > better else "DeepLight wins" if better > worse else ""
        said.append(
            f"*{short_title(str(decoder)).capitalize()}*: **{winner or 'no winner can be shown'}**; DeepLight is "
            f"significantly better in {better} and worse in {worse} of {n} comparisons."
        )
    if not said:
        return ""
    said.append(
        "Linear models that are not pre-trained make no use of the other tasks: they are the benchmark that "
        "pre-training has to beat, not competitors in transfer."
    )
    return " ".join(said)


# ---- initialisation


def start_note(profile: Profile) -> str:
    """How the decoder from scratch is initialised."""
    own = profile.routes.supervised.encoder.initialisation.capitalize()
    return f"*DeepLight, from scratch* is initialised by {own}'s rule in this profile."


def leads_table(profile: Profile, results: pd.DataFrame) -> Styler | None:
    """How far the pre-trained decoder is ahead of every other start; None where there is nothing to compare."""
    there = set(results["variant"]) if "pretrained" in set(results["variant"]) else set()
    starts = [v for v in VARIANTS if v in there - {"pretrained"}]
    if not starts:
        return None
    n_tests = len(planned(profile, "initialisation")) - len(profile.sweep.fractions)
    compared = {v: statistics.compare(results, "pretrained", v, n_tests=n_tests) for v in starts}
    tests = pd.concat([test.assign(variant=v) for v, test in compared.items()])
    tests["cell"] = [f"{r['difference']:+.1%}{' ★' if r['significant'] else ''}" for r in tests.to_dict("records")]
    wide = tests.pivot(index=["fraction", "n_subjects"], columns="variant", values="cell").fillna("missing")
    cells = {short_title(v): wide[v].tolist() for v in starts if v in wide}
    return table({**sizes(profile, wide.index.to_frame()), **cells})


def initialisation_note(profile: Profile, results: pd.DataFrame) -> str:
    """How much of transfer is conditioning and how much features; accuracies of a frozen encoder and other starts."""
    means = results.groupby(["fraction", "variant"])["score"].mean().unstack("variant")
    said = [_parts_note(profile, results, means), _frozen_note(means), *_starts_notes(profile, means)]
    return " ".join(filter(None, said)) or "Nothing can be compared yet."


def _of_all(means: pd.DataFrame, *variants: str) -> pd.DataFrame:
    """The rows (fractions) that have all of some variants."""
    return means.reindex(columns=list(variants)).dropna()


def _parts_note(profile: Profile, results: pd.DataFrame, means: pd.DataFrame) -> str:
    fractions = _of_all(means, "pretrained", "scratch", "shuffled").index
    if fractions.empty:
        return ""
    pooled = results[results["fraction"].isin(fractions)].assign(fraction=1.0)  # one cell per variant
    pairs = [("pretrained", "scratch"), ("shuffled", "scratch"), ("pretrained", "shuffled")]
    tests = [statistics.compare_cells(pooled, (a, 1.0), (b, 1.0)) for a, b in pairs]
    gain, kept, rest = (change(test) for test in tests)
    conditioning, features = (test["low"] > 0 for test in tests[1:])
    verdict = {
        (True, True): "Both conditioning and features help here.",
        (True, False): "Conditioning helps here; no benefit of features can be shown.",
        (False, True): "Features help here; no benefit of conditioning can be shown.",
        (False, False): "No benefit of conditioning or of features can be shown here.",
    }[bool(conditioning), bool(features)]
    return (
        f"Averaged over {listed([f'{100 * f:g}%' for f in fractions])} of the data (95% intervals over held-out "
        f"{profile.data.split_unit}s), pre-training gains {gain} over from scratch. This is the sum of two parts: the "
        f"gain from its weights in random order, {kept}, and the gain from their order, {rest}. **{verdict}**"
    )


def _frozen_note(means: pd.DataFrame) -> str:
    both = _of_all(means, "pretrained", "frozen")
    if both.empty:
        return ""
    differs = both["frozen"] - both["pretrained"]
    each = [f"by {differs[f]:+.1%} at {100 * f:g}% of the data" for f in dict.fromkeys(both.index[[0, -1]])]
    return f"Freezing the encoder changes accuracy {listed(each)}."


def _starts_notes(profile: Profile, means: pd.DataFrame) -> list[str]:
    own, said = profile.routes.supervised.encoder.initialisation.capitalize(), []
    for variant in ("scratch-glorot", "scratch-he"):
        both = _of_all(means, variant, "scratch")
        if len(both):
            other = VARIANTS[variant].title.split(", ")[1]
            reached = both.iloc[-1]
            said.append(
                f"On {100 * both.index[-1]:g}% of the data, {other}'s start from scratch reaches "
                f"{reached[variant]:.1%}, {own}'s {reached['scratch']:.1%} (chance "
                f"{1 / len(profile.data.states('target')):.0%})."
            )
    return said


# ---- permuted labels


def chance_table(profile: Profile, tests: pd.DataFrame) -> Styler | None:
    """Each decoder's accuracy and test (of `statistics.against_chance`); None where there is none."""
    if tests.empty:
        return None
    return table(
        {
            "decoder": [_true_title(v) for v in tests["variant"]],
            **sizes(profile, tests),
            "accuracy [95% interval]": [interval(r["mean"], r["low"], r["high"]) for r in tests.to_dict("records")],
            "p": [number(p) for p in tests["p"]],
            "Bonferroni": [number(p) for p in tests["p_bonferroni"]],
        }
    )


def chance_note(profile: Profile, tests: pd.DataFrame, constant: float) -> str:
    """Which decoders trained on permuted labels differ from chance.

    Parameters
    ----------
    tests : of `statistics.against_chance`
    constant : accuracy of the best constant answer, which they were tested against
    """
    if tests.empty:
        return ""
    away, unit = tests[tests["p_bonferroni"] < 0.05], profile.data.split_unit
    sides = {"above": away[away["mean"] > constant], "below": away[away["mean"] < constant]}
    counts = [f"**{len(rows)} of the {len(tests)} decoders significantly {side} it**" for side, rows in sides.items()]
    said = [
        f"The best constant answer is right for {constant:.0%}: {'; '.join(counts)} (two-sided t-tests over held-out "
        f"{unit}s, Bonferroni)."
    ]
    said += [f"{side.capitalize()}: {_named(rows)}." for side, rows in sides.items() if len(rows)]
    if len(away):
        said.append(
            f"A permutation of few labels agrees or disagrees with the true ones by luck, alike for all held-out "
            f"{unit}s: this test counts {unit}s, not permutations. A leak of information would lift all decoders, and "
            "more so with more data."
        )
    if len(untested := tests[tests["p"].isna()]):
        said.append(f"Not tested, because every {unit} has the same score: {_named(untested)}.")
    return " ".join(said)


def _named(rows: pd.DataFrame) -> str:
    named = rows.to_dict("records")
    return listed([f"{VARIANTS[r['variant']].title} at {100 * r['fraction']:g}% ({r['mean']:.1%})" for r in named])


def _true_title(variant: str) -> str:
    return VARIANTS[variant].title.removesuffix("; labels permuted")


# ---- every task as the target


def transfer_tests(profile: Profile, results: pd.DataFrame) -> pd.DataFrame:
    """Pre-trained against from scratch for every task as the target, Bonferroni over all planned tests.

    The columns of `statistics.compare` and `task`, without Holm's, whose steps would go over all rows. Empty if no task
    has both decoders.
    """
    n_tests = len(planned(profile, "tasks")) // 2
    tests = [
        statistics.compare(of_task, n_tests=n_tests).assign(task=task)
        for task, of_task in results.groupby("task", sort=False)
        if {"pretrained", "scratch"} <= set(of_task["variant"])
    ]
    return pd.concat(tests, ignore_index=True).drop(columns=["p_holm", "significant_holm"]) if tests else pd.DataFrame()


def transfer_table(profile: Profile, tests: pd.DataFrame) -> Styler | None:
    """Both decoders and their difference for every task as the target (of `transfer_tests`); None without any."""
    if tests.empty:
        return None
    states = [task for which in ("source", "target") for task, _ in profile.data.states(which)]
    rows = tests.to_dict("records")
    return table(
        {
            "target": tests["task"].tolist(),
            **sizes(profile, tests),
            "pre-trained": [f"{r['mean_a']:.1%}" for r in rows],
            "from scratch": [f"{r['mean_b']:.1%}" for r in rows],
            "chance": [f"{1 / states.count(r['task']):.0%}" for r in rows],
            "difference [95% interval]": [change(r) for r in rows],
            "p, Bonferroni": [starred(r["p_bonferroni"], r["significant"]) for r in rows],
        }
    )


def transfer_note(profile: Profile, tests: pd.DataFrame) -> str:
    """For which tasks pre-training helps or harms (of `transfer_tests`)."""
    if not profile.tasks_to_leave_out:
        return (
            "This profile has no task that could be the target while all others are the source: it has too few tasks, "
            "or a task is both."
        )
    if tests.empty:
        return ""
    mean = tests.groupby("task", sort=False)["difference"].mean().sort_values()
    clear = tests[tests["significant"]]
    helped, harmed = (list(dict.fromkeys(clear.loc[s * clear["difference"] > 0, "task"])) for s in (1, -1))
    return (
        f"Pre-training helps significantly at one fraction or more for {len(helped)} of {len(mean)} targets"
        f"{_named_if_any(helped)} and harms {len(harmed)}{_named_if_any(harmed)}. Averaged over the fractions it gains "
        f"most for {mean.index[-1]} ({mean.iloc[-1]:+.1%}) and least for {mean.index[0]} ({mean.iloc[0]:+.1%})."
    )


def _named_if_any(names: list[str]) -> str:
    return f" ({listed(names)})" if names else ""


# ---- repeated trainings


def seeds_complete_note(results: pd.DataFrame) -> str:
    """Which seeds are complete (the rows of `crossed.of_complete_seeds`)."""
    seeds = sorted(results["seed"].unique())
    said = f"Complete seeds: {listed([str(seed) for seed in seeds]) or 'none'}."
    return said if len(seeds) > 1 else f"{said} With fewer than two there is nothing to compare."


def seeds_table(profile: Profile, results: pd.DataFrame, model: pd.DataFrame) -> Styler | None:
    """The difference in one training and over all, and how much each source varies; None without a model.

    Parameters
    ----------
    results : of `crossed.of_complete_seeds`
    model : of `crossed.seed_model`
    """
    if model.empty:
        return None
    seed, single, rows = results["seed"].min(), _of_first_seed(results, model), model.to_dict("records")
    return table(
        {
            **sizes(profile, model),
            f"seed {seed} alone, t-test": [change(r) for r in single],
            f"mixed model, {results['seed'].nunique()} seeds": [change(r) for r in rows],
            "p": [number(r["p"]) for r in rows],
            f"SD of {profile.data.split_unit}s": [f"{r['sd_subject']:.1%}" for r in rows],
            "SD of seeds": [f"{r['sd_seed']:.1%}" for r in rows],
            "rest": [f"{r['sd_rest']:.1%}" for r in rows],
        }
    )


def seeds_note(profile: Profile, results: pd.DataFrame, model: pd.DataFrame) -> str:
    """Whether pre-training helps over units and trainings, and how much both vary; see `seeds_table`."""
    if model.empty:
        return ""
    unit = profile.data.split_unit
    one, all_of_them = (
        np.array([r["high"] - r["low"] for r in rows])
        for rows in (_of_first_seed(results, model), model.to_dict("records"))
    )
    wider = all_of_them[one > 0] / one[one > 0]
    holds = model[(model["p"] < 0.05 / len(profile.controls.fractions)) & (model["difference"] > 0)]
    said = [
        f"Over {unit}s and trainings, pre-training helps significantly at {len(holds)} of {len(model)} fractions "
        "(Bonferroni)."
    ]
    if len(wider):
        said.append(
            f"The interval over both is {wider.min():.1f} to {wider.max():.1f} times as wide as that of seed "
            f"{results['seed'].min()} alone."
        )
    of_trainings, of_units = (
        " to ".join(dict.fromkeys(f"{sd:.1%}" for sd in (model[name].min(), model[name].max())))
        for name in ("sd_seed", "sd_subject")
    )
    said.append(f"The SD from training to training is {of_trainings}, that of {unit}s {of_units}.")
    return " ".join(said)


def repeated_note(profile: Profile, trainings: pd.DataFrame) -> str:
    """What repeated trainings say beside the headline, which is about one training of each decoder.

    Parameters
    ----------
    trainings : results of the control `seeds`; may be empty
    """
    model = pd.DataFrame()
    if len(trainings):
        results = statistics.out_of_fold(statistics.only(trainings))
        model = crossed.seed_model(crossed.of_complete_seeds(results, profile.controls.fractions))
    if model.empty:
        command = make_command("controls", profile.name)
        return f"This is one training of each; others can end points away (`{command}` repeats them)."
    unit, said = profile.data.split_unit, []
    for row in model.to_dict("records"):
        size = counted(row["n_subjects"], unit)
        said.append(f"{row['difference']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}] on {size}")
    n = model["n_seeds"].max()
    return f"Over {n} trainings of each, the pre-trained decoder differs from the one from scratch by {listed(said)}."


def _of_first_seed(results: pd.DataFrame, model: pd.DataFrame) -> list[dict[str, float]]:
    tests = statistics.compare(results[results["seed"] == results["seed"].min()]).set_index("fraction")
    return [dict(tests.loc[fraction]) for fraction in model["fraction"]]


def trainings_table(results: pd.DataFrame) -> Styler | None:
    """Mean accuracy of both decoders in every training, one column per seed; None where there are none."""
    if results.empty:
        return None
    means = results.groupby(["fraction", "variant", "seed"])["score"].mean().unstack("seed")
    columns = {"decoder": [f"{short_title(v)}, {100 * fraction:g}%" for fraction, v in means.index]}
    return table(columns | {f"seed {seed}": [number(m, ".1%") for m in means[seed]] for seed in means})
