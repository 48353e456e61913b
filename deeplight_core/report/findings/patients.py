"""Sentences and tables of the page *Your twelve patients*: a small clinical study."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.separation import Separation, least_accuracy, which_is_better
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import interval, listed, number, table

__all__ = [
    "by_group_note",
    "change_note",
    "groups_note",
    "groups_rows",
    "groups_table",
    "people_note",
    "study_note",
    "times_note",
]

_WAYS = {
    "voxels": "voxels, a linear model",
    "features": "features of the given decoder",
    "relevance": "relevance to the right answers",
}


def study_note(profile: Profile) -> str:
    """What was planted in a simulated study, and what makes it hard; empty for real data."""
    made = profile.simulation
    if made is None or made.patients is None or made.subjects is None:
        return ""
    changes = [
        f"their whole response to *{state}* is {abs(change):.0%} {'weaker' if change < 0 else 'stronger'}"
        for state, change in made.patients.changes.items()
    ]
    return (
        f"Nobody was scanned. {made.patients.n} simulated patients differ from {_others(profile)} simulated controls "
        f"in one way: {listed(changes)}. A volume takes {made.subjects.tr_s:g} s, voxels measure "
        f"{made.resolution_mm:g} mm, the largest responses {made.contrast:g}% of the baseline, and noise is "
        f"{made.patients.noise:g} times that of the simulated data in the other parts of this book."
    )


def _others(profile: Profile) -> int:
    made = profile.simulation
    assert made is not None
    assert made.subjects is not None
    assert made.patients is not None
    return made.subjects.train + made.subjects.validation - made.patients.n


def people_note(groups: pd.Series, differences: Sequence[str]) -> str:
    """How many people of each group, and what differs from the data that the given decoder was trained on.

    Parameters
    ----------
    groups : everybody's group
    differences : of `checkpoint.check_data`
    """
    counts = listed([f"{n} of group *{name}*" for name, n in groups.value_counts().sort_index().items()])
    said = f"{len(groups)} people: {counts}. "
    if not differences:
        return said + "Nothing but the grid differs from the data that the given decoder was trained on."
    return said + f"Beyond the grid, these differ from the given decoder's training data: {'; '.join(differences)}."


def by_group_note(results: pd.DataFrame, groups: Mapping[str, str]) -> str:
    """Accuracy of the pre-trained decoder on the most people, by group; empty without it.

    Parameters
    ----------
    results : of `statistics.out_of_fold`
    groups : subject → group
    """
    of = results[results["variant"] == "pretrained"]
    of = of[of["fraction"] == of["fraction"].max()]
    if of.empty:
        return ""
    told = []
    for name, rows in of.groupby(of["subject"].map(groups)):
        values = rows["score"].to_numpy()
        told.append(f"{interval(values.mean(), *statistics.t_interval(values, 0.95))} in group *{name}*")
    return f"Trained on {of['n_subjects'].iloc[0]} people, the pre-trained decoder is right for {listed(told)}."


def groups_rows(found: Mapping[str, Separation], second: np.ndarray) -> pd.DataFrame:
    """A row for each way: people told correctly with interval, AUC, p, and whether others than with voxels are right.

    Parameters
    ----------
    found : way → of `analysis.separation.separation`
    second : (N,) who is in the second group
    """
    rows = []
    for way, one in found.items():
        against = number(which_is_better(one, found["voxels"], second)) if way != "voxels" else "–"
        right = round(one.accuracy * len(second))
        rows.append({
            "told from": _WAYS[way], "people right": f"{right} of {len(second)}",
            "accuracy [95% interval]": interval(one.accuracy, one.low, one.high, ".0%"),
            "AUC": number(one.auc, ".2f"), "p, permutation": number(one.p), "p, against voxels": against,
        })  # fmt: skip
    return pd.DataFrame(rows)


def groups_table(found: Mapping[str, Separation], second: np.ndarray) -> Styler:
    """The rows of `groups_rows` as a page shows them."""
    return table({str(name): values.to_list() for name, values in groups_rows(found, second).items()}, wrapped=True)


def groups_note(found: Mapping[str, Separation], second: np.ndarray) -> str:
    """What so few people can tell: how wide the intervals are, and what a coin would reach."""
    least = least_accuracy(len(second))
    ways = listed([_WAYS[way] for way, one in found.items() if one.p < 0.05]) or "none of these"
    widest = max(one.high - one.low for one in found.values())
    best = max(found.values(), key=lambda one: one.accuracy)
    differ = [way for way in found if way != "voxels" and which_is_better(found[way], found["voxels"], second) < 0.05]
    network = (
        f"The network's views that differ from the linear model of voxels: {listed([_WAYS[way] for way in differ])}."
        if differ
        else "No view of the network differs from the linear model of voxels by more than chance."
    )
    return (
        f"**The interval is the message.** With {(~second).sum()} people in one group and "
        f"{second.sum()} in the other, an accuracy's interval is up to {100 * widest:.0f} points wide, and a coin "
        f"reaches {least:.0%} in one of twenty studies. Groups are told apart better than by chance (p < 0.05, not "
        f"corrected) by {ways}; the best accuracy, {best.accuracy:.0%}, could be anything from {best.low:.0%} to "
        f"{best.high:.0%} in people who were not seen. {network}"
    )


def change_note(scores: pd.DataFrame) -> str:
    """How well the maps of the difference between groups find where it was planted; empty where that is unknown."""
    told = [
        f"{'responses' if row['way'] == 'voxels' else 'relevance'} to *{row['state']}*: AUC "
        f"{number(row['auc'], '.2f')}, largest voxel {'inside' if row['pointing'] else 'outside'}"
        for row in scores.to_dict("records")
    ]
    if not told:
        return ""
    return f"Where the groups differ most, against where it was planted (chance is an AUC of 0.5): {'; '.join(told)}."


def times_note(results: pd.DataFrame) -> str:
    """How long trainings took by their own records."""
    each = results.drop_duplicates(["variant", "fraction", "seed", "fold"])
    minutes = each["seconds"].sum() / 60
    return (
        f"By their records, {len(each)} trainings took {minutes:.1f} min of one core. `make help` says how long "
        "everything took together, pauses between interrupted attempts left out."
    )
