"""Sentences and tables of the page about networks for photographs, and phenotypes (after Malik & Bzdok 2022)."""

from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.config import Profile
from deeplight_core.preparation import ColumnTarget
from deeplight_core.report.findings.cells import counted, interval, listed, short_title, table
from deeplight_core.report.findings.transfer import decoders_tests, main_values
from deeplight_core.routes import VARIANTS

__all__ = [
    "conditioning_note",
    "conditioning_table",
    "features_leads",
    "is_of_features",
    "listed_leads",
    "phenotypes_note",
    "phenotypes_table",
    "photographs_gains",
    "photographs_note",
    "weights_note",
]

_PLANTED = {"sex": "strong", "age": "strong", "fluid": "weak", "smoking": "weak"}  # in simulated people
_KINDS = {"number": "number", "classes": "classes", "ordered": "ordered, decoded as a place", "bins": "number, in bins"}


def weights_note(record: dict[str, Any]) -> str:
    """Where the published weights of a checkpoint come from, and how a volume is shown to them.

    Parameters
    ----------
    record : as `training.checkpoint.read_record` gives it
    """
    weights, settings = record["weights"], record["architecture"]["encoder"]["settings"]
    shown = f"{counted(settings['slices'] * len(settings['planes']), 'slice')} ({listed(settings['planes'])})"
    if settings["inflated"]:
        shown = "the whole volume, by kernels that are inflated to 3D"
    size = f", resized to {settings['size']} pixels" if settings["size"] else ""
    return (
        f"Encoder `{record['architecture']['encoder']['name']}` has the weights of **{weights['origin']}**, licence "
        f"{weights['licence']}, sha256 `{weights['sha256'][:12]}…`. It sees {shown}{size}, in one channel: the first "
        "convolution is summed over colours. **It has seen photographs only.** The paper states none of these choices."
    )


def phenotypes_table(profile: Profile, people: pd.DataFrame) -> Styler | None:
    """What is decoded: its kind, what is known of it, and in simulated people what is planted; None for states.

    Parameters
    ----------
    people : a row for each unit, with the decoded columns
    """
    target = profile.data.target
    if not isinstance(target, ColumnTarget):
        return None
    rows: dict[str, list[str]] = {"phenotype": [], "kind": [], "known for": [], "values": []}
    for described in target.described():
        texts = people[described["column"]].astype(str)
        known = texts[~texts.isin(["", "n/a", "nan"])]
        counts = known.value_counts()
        numbers = pd.to_numeric(known, errors="coerce")
        levels = described["levels"] if described["kind"] in ("classes", "ordered") else None
        rows["phenotype"].append(described["column"])
        rows["kind"].append(_KINDS[described["kind"]])
        rows["known for"].append(f"{len(known)} of {len(people)}")
        said = ", ".join(f"{level}: {counts.get(level, 0)}" for level in levels or [])
        rows["values"].append(said or f"{numbers.mean():.1f} ± {numbers.std():.1f}")
    if profile.cohort is not None:
        rows["planted effect"] = [_PLANTED.get(name, "none") for name in rows["phenotype"]]
    return table(rows, wrapped=True)


def phenotypes_note(values: pd.DataFrame) -> str:
    """Which phenotypes can be decoded at all: for which the best decoder's interval lies above chance.

    Parameters
    ----------
    values : as `collect.fold_values` gives them
    """
    decoded: list[str] = []
    not_decoded: list[str] = []
    for target, own in main_values(values).groupby("target", sort=False):
        largest = own[own["fraction"] == own["fraction"].max()]
        best = statistics.fold_intervals(largest).sort_values("mean").iloc[-1]
        chance = 0.5 if largest["measure"].iloc[0] == "auc" else 0.0
        name = f"{target} ({short_title(best['variant'])}, {best['mean']:.2f})"
        (decoded if best["low"] > chance else not_decoded).append(name)
    if not decoded and not not_decoded:
        return "Nothing has been run yet."
    said = [f"Decoded (the whole interval lies above chance): {listed(decoded) or 'none'}."]
    if not_decoded:
        said.append(f"Not decoded, even by the best decoder: {listed(not_decoded)}.")
    return " ".join(said)


def photographs_gains(values: pd.DataFrame, pretrained: str = "images") -> pd.DataFrame:
    """The lead of a fine-tuned network over the same from scratch, for every phenotype and number of people.

    Parameters
    ----------
    values : as `collect.fold_values` gives them
    pretrained : the variant; `<pretrained>-scratch` is the same from scratch

    Returns
    -------
    the tests' columns (`decoders_tests`, corrected over each phenotype's sizes), `target` and `helped`: significantly
    better
    """
    pair, found = [pretrained, f"{pretrained}-scratch"], []
    for target, own in main_values(values).groupby("target", sort=False):
        tests = decoders_tests(own[own["variant"].isin(pair)], pair[1])
        found += [tests.assign(target=target)] if len(tests) else []
    if not found:
        return pd.DataFrame(columns=["target", "fraction", "n_subjects", "p", "helped"])
    gains = pd.concat(found, ignore_index=True)
    return gains.assign(helped=(gains["p_bonferroni"] < 0.05) & gains["better"])


def photographs_note(values: pd.DataFrame) -> str:
    """For which phenotypes, and how many people, photographs help a fine-tuned network; the paper's claim beside it."""
    gains = photographs_gains(values)
    n, better = len(gains), gains[gains["helped"].astype(bool)].to_dict("records")
    helped = [f"{row['target']} with {row['n_subjects']:.0f} people" for row in better]
    if n == 0:
        return "No network has been fine-tuned yet."
    verdict = f"a significant gain in {len(helped)}" if helped else "no significant gain"
    named = f" ({listed(helped)})" if helped else ""
    return (
        f"Of {n} comparisons with the same network from scratch, {verdict}{named}. The paper reports gains for several "
        "phenotypes, the largest for sex and age, and with small samples."
    )


# ---- controls

_LOOKS = {"inflated": "inflated to 3D"}


def _look(change: str) -> str:
    """The name of a changed look at the volume."""
    for start, unit, where in (("size", "pixel", ""), ("slices", "slice", " in each plane")):
        if change.startswith(start):
            return f"photographs' features, {counted(float(change.removeprefix(start)), unit)}{where}"
    return f"photographs' features, {_LOOKS[change]}" if change else ""


def _rows(values: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(variant, change) of a control's values, in a fixed order, with their rows."""
    keys = values[["variant", "change"]].drop_duplicates().itertuples(index=False)
    order = sorted(((str(v), str(c)) for v, c in keys), key=lambda k: (k[1] != "", [*VARIANTS].index(k[0]), k[1]))
    return [(v, c, values[(values["variant"] == v) & (values["change"] == c)]) for v, c in order]


def conditioning_table(values: pd.DataFrame) -> Styler | None:
    """What the frozen features reach for every phenotype, as they are and in each control; None without results.

    Parameters
    ----------
    values : as `collect.fold_values` gives them for the control `conditioning`
    """
    main = main_values(values)
    if main.empty:
        return None
    targets = list(dict.fromkeys(main["target"]))
    rows: dict[str, list[str]] = {"features": [], **{target: [] for target in targets}}
    for variant, change, own in _rows(main):
        rows["features"].append(_look(change) or VARIANTS[variant].title.removesuffix(" linear").removesuffix(","))
        for target in targets:
            found = statistics.fold_intervals(own[own["target"] == target])
            first = found.iloc[0] if len(found) else None
            rows[target].append("–" if first is None else interval(first["mean"], first["low"], first["high"], ".2f"))
    return table(rows, wrapped=True)


_OTHER_WEIGHTS = {
    "images-random-frozen": "random weights",
    "images-shuffled-frozen": "weights shuffled within layers",
    "images-statistics-frozen": "statistics only",
}


def features_leads(values: pd.DataFrame) -> pd.DataFrame:
    """The lead of photographs' frozen features over those of other weights, averaged over the phenotypes.

    Parameters
    ----------
    values : as `collect.fold_values` gives them for the control `conditioning`

    Returns
    -------
    `over` (the other weights) and the columns of `statistics.compare_fold_values`, in AUC and correlation
    """
    own, found = main_values(values[values["change"] == ""]).dropna(subset=["value"]), []
    for variant, title in _OTHER_WEIGHTS.items():
        both = own[own["variant"].isin(["images-frozen", variant])]
        cells = both.groupby(["fraction", "fold", "target"])["variant"]
        both = both[cells.transform("nunique") == 2]  # an answer that is constant has no correlation
        means = both.groupby(["variant", "fraction", "fold"])[["value", "n_subjects", "n_test"]].mean().reset_index()
        if len(means):
            means = means.assign(measure="auc", seed=1)
            found.append(statistics.compare_fold_values(means, "images-frozen", variant).assign(over=title))
    return pd.concat(found) if found else pd.DataFrame(columns=["over", "difference", "low", "high"])


def is_of_features(leads: pd.DataFrame) -> bool | None:
    """Whether all `features_leads` have intervals above 0, and no control leaves half of the lead over random weights.

    None without intervals, or without the controls.
    """
    tested = leads.dropna(subset=["low"]).set_index("over")
    if {*tested.index} != {*_OTHER_WEIGHTS.values()}:
        return None
    leads_over = tested["difference"].to_dict()
    return bool((tested["low"] > 0).all()) and min(leads_over.values()) > 0.5 * leads_over["random weights"]


def listed_leads(leads: pd.DataFrame) -> str:
    """Each of `features_leads` with its interval."""
    rows = leads.to_dict("records")
    return listed([f"{interval(r['difference'], r['low'], r['high'], '+.2f')} over {r['over']}" for r in rows])


def conditioning_note(values: pd.DataFrame) -> str:
    """By how much photographs' features lead those of random, shuffled and statistics' weights, and what that says."""
    leads = features_leads(values)
    if leads.empty:
        return "The controls have not been run yet."
    verdicts = {
        None: "",
        True: " **Most of the lead is features, not conditioning.**",
        False: " **The lead cannot be attributed to features.**",
    }
    said = f"Averaged over the phenotypes, photographs' features lead by {listed_leads(leads)}."
    return said + verdicts[is_of_features(leads)]
