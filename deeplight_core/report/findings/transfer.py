"""Sentences and tables of the pages about transfer between cohorts, and about why the report's did not converge."""

import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.measures import MEASURES
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import interval, listed, short_title, sizes, table
from deeplight_core.routes import VARIANTS

__all__ = [
    "blocks_table",
    "decoders_note",
    "decoders_table",
    "decoders_tests",
    "evaluation_note",
    "fault_tests",
    "faults_note",
    "faults_table",
    "main_values",
    "transfer_title",
    "transfers_note",
]

_BRIEF = {"cae-scratch": "scratch", "images-scratch": "scratch"}  # in the heads of tables
_MAIN = ("auc", "r")  # what decoders of classes and of numbers are compared by
_BESIDE = ("balanced_accuracy", "absolute_error")


def main_values(values: pd.DataFrame) -> pd.DataFrame:
    """The rows of `collect.fold_values` by which decoders are compared: AUC of classes, correlation of numbers."""
    return values[values["measure"].isin(_MAIN)]


def decoders_tests(values: pd.DataFrame, against: str = "cae-scratch") -> pd.DataFrame:
    """Every variant against one variant over the folds, corrected over all tests of the table.

    Parameters
    ----------
    values : as `main_values` gives them
    """
    others = [v for v in VARIANTS if v in set(values["variant"]) - {against}]
    if against not in set(values["variant"]) or not others:
        return pd.DataFrame()
    n_tests = len(others) * values["fraction"].nunique()
    compared = {v: statistics.compare_fold_values(values, v, against, n_tests) for v in others}
    return pd.concat([tests.assign(variant=v) for v, tests in compared.items()], ignore_index=True)


def _title(values: pd.DataFrame) -> str:
    """The name of the values' measure at the head of a column."""
    title = MEASURES[values["measure"].iloc[0]].title
    return f"mean {title}" if title == "absolute error" else title


def decoders_table(profile: Profile, values: pd.DataFrame, against: str = "cae-scratch") -> Styler | None:
    """What every variant reaches, with intervals, and its lead over one variant; None without results.

    Parameters
    ----------
    values : as `collect.fold_values` gives them
    """
    if values.empty:
        return None
    main, beside = main_values(values), values[values["measure"].isin(_BESIDE)]
    form = ".1f" if beside["measure"].iloc[0] == "absolute_error" else ".0%"
    leads = {
        (row["variant"], row["fraction"]): interval(row["difference"], row["low"], row["high"], "+.2f")
        + (" ★" if row["p_bonferroni"] < 0.05 else "")
        for row in decoders_tests(main, against).to_dict("records")
    }
    order = statistics.fold_intervals(main).sort_values(["fraction", "mean"], ascending=[True, False])
    means = statistics.fold_intervals(beside).set_index(["variant", "fraction"]).to_dict("index")
    rows, which = order.to_dict("records"), list(zip(order["variant"], order["fraction"], strict=True))
    columns = {
        **sizes(profile, order),
        "decoder": [short_title(variant) for variant, _ in which],
        _title(main): [interval(row["mean"], row["low"], row["high"], ".2f") for row in rows],
        _title(beside): [interval(means[k]["mean"], means[k]["low"], means[k]["high"], form) for k in which],
    }
    if leads:
        columns[f"lead over {_BRIEF.get(against, against)}"] = [leads.get(key, "–") for key in which]
    return table(columns, wrapped=True)


def _linear_beside_deep(main: pd.DataFrame, linear: pd.Series, reached: str, deep: pd.Series) -> str:
    """Whether the best linear model with all subjects is as good as the best network."""
    tests = statistics.compare_fold_values(main, str(linear["variant"]), str(deep["variant"])).set_index("fraction")
    test = tests.loc[linear["fraction"]]
    said = "**cannot be told apart from**"
    if test["low"] > 0 or test["high"] < 0:
        said = "is **better than**" if test["better"] else "is **not as good as**"
    difference = interval(test["difference"], test["low"], test["high"], "+.2f")
    return (
        f"With all {linear['n_subjects']:.0f}, the best linear model ({reached}) {said} the best network "
        f"({short_title(str(deep['variant']))}, {deep['mean']:.2f}; difference {difference})."
    )


def decoders_note(values: pd.DataFrame, against: str = "cae-scratch") -> str:
    """Whether pre-training helps, and whether a linear model is as good.

    Parameters
    ----------
    values : as `collect.fold_values` gives them
    """
    main = main_values(values)
    if main.empty:
        return "Nothing has been run yet."
    means, tests, said = statistics.fold_intervals(main), decoders_tests(main, against), []
    if len(tests):
        deep = tests[[VARIANTS[v].start == "checkpoint" and VARIANTS[v].learner == "deep" for v in tests["variant"]]]
        helped = deep[(deep["p_bonferroni"] < 0.05) & deep["better"]]
        names = f" ({listed(sorted({short_title(v) for v in helped['variant']}))})" if len(helped) else ""
        said.append(f"Pre-training helps significantly in {len(helped)} of {len(deep)} comparisons{names}.")
    largest = means[means["fraction"] == means["fraction"].max()].sort_values("mean", ascending=False)
    learners = largest["variant"].map(lambda v: VARIANTS[v].learner)
    linear, deep = largest[learners.isin(("voxels", "regional"))], largest[learners == "deep"]
    if len(linear):
        best = linear.iloc[0]
        reached = f"{short_title(best['variant'])}, {_title(main)} {best['mean']:.2f}"
        if len(deep):
            said.append(_linear_beside_deep(main, best, reached, deep.iloc[0]))
        else:
            said.append(f"No network is trained here; the best is a {reached}.")
    return " ".join(said) or "Nothing can be compared yet."


def blocks_table(values: pd.DataFrame) -> Styler | None:
    """AUC (of numbers: correlation) by the number of the encoder's first blocks that are transferred.

    Parameters
    ----------
    values : as `collect.transfer_values` gives them for the control `blocks`; None without any
    """
    if values.empty:
        return None
    main, whole = main_values(values), values["fraction"].max()
    names = {change: change.removeprefix("blocks") or "all" for change in values["change"].unique()}
    rows: dict[str, list[str]] = {"blocks": sorted(names.values())}
    for transfer, of_transfer in main[main["fraction"] == whole].groupby("transfer", sort=False):
        cells = {}
        for change, own in of_transfer.groupby("change"):
            row = statistics.fold_intervals(own).iloc[0]
            cells[names[str(change)]] = interval(row["mean"], row["low"], row["high"], ".2f")
        rows[f"{transfer}: {_title(of_transfer)}"] = [cells.get(name, "missing") for name in rows["blocks"]]
    return table(rows)


# ---- faults

_KINDS = {"seen": "fact: seen in their code", "suspected": "hypothesis", "remedy": "possible remedy"}


def fault_tests(profile: Profile, values: pd.DataFrame) -> pd.DataFrame:
    """Every planted fault against the decoder without any, by AUC over the folds: `fault` and the tests' columns.

    Parameters
    ----------
    values : as `collect.fold_values` gives them for the control `faults`
    """
    main, faults = main_values(values), profile.controls.faults
    base = main[main["change"] == ""].assign(variant="none", fraction=1.0)
    planted = {name: main[main["change"] == f"fault-{name}"] for name in faults}
    planted = {name: rows.assign(variant=name, fraction=1.0) for name, rows in planted.items() if len(rows)}
    if base.empty or not planted:
        return pd.DataFrame(columns=["fault"])
    tests = [
        statistics.compare_fold_values(pd.concat([base, rows]), name, "none", len(planted)).assign(fault=name)
        for name, rows in planted.items()
    ]
    return pd.concat(tests, ignore_index=True)


def faults_table(profile: Profile, values: pd.DataFrame) -> Styler | None:
    """AUC of the decoder with each fault, and the change that it makes; None without results."""
    tests = fault_tests(profile, values).set_index("fault")
    if tests.empty:
        return None
    faults, main = profile.controls.faults, main_values(values)
    columns: dict[str, list[str]] = {"fault": [], "kind": [], _title(main): [], "change": []}
    for name in ("", *tests.index):
        own = main[main["change"] == (f"fault-{name}" if name else "")]
        row = statistics.fold_intervals(own).iloc[0]
        columns["fault"].append(faults[name].title if name else "none")
        columns["kind"].append(_KINDS[faults[name].kind] if name else "–")
        columns[_title(main)].append(interval(row["mean"], row["low"], row["high"], ".2f"))
        test = tests.loc[name] if name else None
        star = " ★" if test is not None and test["p_bonferroni"] < 0.05 else ""
        columns["change"].append(
            "–" if test is None else interval(test["difference"], test["low"], test["high"], "+.2f") + star
        )
    return table(columns, wrapped=True)


def faults_note(profile: Profile, values: pd.DataFrame) -> str:
    """Which faults alone make the decoder significantly worse or better."""
    tests, faults = fault_tests(profile, values), profile.controls.faults
    if tests.empty:
        return "**The faults have not been planted yet.**"
    real = tests[tests["p_bonferroni"] < 0.05]
    of = {
        better: [faults[name].title for name in real.loc[real["better"] == better, "fault"]] for better in (False, True)
    }
    none = sorted(set(tests["fault"]) - set(real["fault"]))
    said = [
        f"Significantly worse, alone: **{listed(of[False]) or 'none'}**.",
        f"Significantly better, alone: **{listed(of[True]) or 'none'}**.",
        f"Of the other {len(none)} no effect can be shown on {tests['n_folds'].max():.0f} folds; that is no proof that "
        "they have none."
        if none
        else "",
    ]
    return " ".join(filter(None, said))


def evaluation_note(values: pd.DataFrame) -> str:
    """What two faults of the evaluation do to the accuracy of one and the same decoder.

    Parameters
    ----------
    values : as `collect.evaluation_values` gives them
    """
    if values.empty:
        return "**The decoder has not been trained yet.**"
    means = values.groupby("variant")["value"].mean()
    return (
        f"The decoder without faults has an accuracy of {means['last']:.0%}. Compared with shuffled labels it seems to "
        f"have {means['shuffled']:.0%}; where each fold takes the epoch that is best on its own test images, "
        f"{means['best']:.0%}."
    )


# ---- what is there


def transfers_note(transfers: dict[str, Profile], missing: dict[str, list[str]]) -> str:
    """What is missing of the transfers; nothing if nothing is."""
    said = []
    for name, lacking in missing.items():
        more = [f"{len(lacking) - 5} more"] if len(lacking) > 5 else []
        said.append(f"*{transfer_title(transfers[name])}*: {listed([*lacking[:5], *more])}")
    return f"**Not all has been run.** Missing are {'; '.join(said)}." if said else ""


def transfer_title(profile: Profile) -> str:
    """From which dataset and image to which, and what is decoded."""
    data, origin = profile.data, profile.origin

    def name(of: Profile) -> str:
        return of.cohort.dataset if of.cohort else of.data.root.rstrip("/").rpartition("/")[2]

    states = [state for _, state in data.states("target")]
    what = " or ".join(states or data.columns("target"))
    source, target = (" and ".join(of) for of in (origin.data.tasks("source"), data.tasks("target")))
    return f"{name(origin)} {source} → {name(profile)} {target}: {what}"
