"""Sentences and tables of the page that puts the paper and a run side by side."""

import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import number, table

__all__ = [
    "data_note",
    "data_origin",
    "durations_note",
    "durations_table",
    "facts_table",
]


def data_note(profile: Profile, index: pd.DataFrame, shape: tuple[int, ...], n_train: int) -> str:
    """Numbers of units and grids, of the paper and of this run.

    Parameters
    ----------
    index : the store's index
    shape : of the store's grid
    n_train : the paper's number of training subjects
    """
    units = index.groupby("split")["unit"].nunique()
    return (
        f"The paper's numbers come from {n_train} + 100 subjects of the Human Connectome Project on a grid of "
        f"91 × 109 × 91; this run's from {units.get('train', 0)} + {units.get('validation', 0)} "
        f"{profile.data.split_unit}s on {' × '.join(map(str, shape))}."
    )


def data_origin(profile: Profile) -> str:
    """The name of this run's data in a column's header."""
    return "simulated" if profile.simulated else str(profile.data_root.name)


def durations_table(profile: Profile, durations: pd.DataFrame) -> Styler:
    """Table 1 (`paper.table1`) for reading; without this run's column where its tasks are not the paper's."""
    seconds = {name: durations[name] for name in ("paper", "label rule", "this run")}
    if profile.data.layout != "hcp":
        del seconds["this run"]
    return table(
        {
            "task": durations.index.tolist(),
            "targets": [number(n, ".0f") for n in durations["targets"]],
            "paper": [f"{s:.0f} s" for s in seconds.pop("paper")],
            "formula": durations["formula"].tolist(),
            **{name: [number(s, ".0f") + " s" * (s == s) for s in column] for name, column in seconds.items()},
        }
    )


def durations_note(profile: Profile, durations: pd.DataFrame, index: pd.DataFrame, tr_s: float) -> str:
    """Reasons for the differences in Table 1, and how this run counts, in Markdown.

    Parameters
    ----------
    durations : of `paper.table1`
    index : the store's index
    tr_s : its repetition time
    """
    why = durations["why"][durations["why"] != ""]
    reasons = "\n".join(f"- {task}: {reason}." for task, reason in why.items())
    if profile.data.layout == "hcp":
        by_task = index.groupby("task")
        runs = (by_task["file"].nunique() / by_task["unit"].nunique()).mean()
        each, lag_s = "run" if runs == 1 else "runs", profile.preprocessing.lag_s
        here = (
            f"In this run a {profile.data.split_unit} has {runs:.3g} {each} of each task at TR {tr_s:g} s; labels are "
            f"shifted by {lag_s:g} s (paper: 0 s), so the last labels of a run can fall past its end."
        )
    else:
        here = "**This run's data have none of these tasks**; the page *Data* counts its own volumes."
    return f"Why the seconds differ:\n\n{reasons}\n\n{here}"


def facts_table(facts: pd.DataFrame) -> Styler:
    """A table of long texts (`paper.decoder_facts`), whose lines break."""
    return facts.style.hide(axis="index").set_table_attributes('class="wrapped"')
