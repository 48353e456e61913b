"""What a score means: its unit, its chance level, which way is better; and the values of a whole group.

A measure of examples (accuracy, an error) is averaged per subject, and statistics count subjects. A measure of
a group (R², r, AUC, balanced accuracy) has one value for all subjects together, with a bootstrap over them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["ACCURACY", "MEASURES", "Measure", "group_value"]

_Value = Callable[[np.ndarray], float]  # of a sample's examples with these numbers


@dataclass(frozen=True)
class Measure:
    """What a score means.

    name : in tables
    title : in sentences and figures, as in "difference in …"
    higher_is_better : the direction
    guess : the value of guessing: a number, one over the number of states, or None where no value is chance
    unit : "share" (of 1, written in percent), empty (a plain number), or a column's unit, filled in by
        `dataclasses.replace(MEASURES["absolute_error"], unit="years")`
    axis : the title of an axis of such values, if not `title`
    bounds : between which all values lie, infinite where there are none
    of_group : truths and answers of a sample → the value of any of its examples; None for a measure of examples
    """

    name: str
    title: str
    higher_is_better: bool
    guess: float | Literal["1/states"] | None
    unit: str = ""
    axis: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    of_group: Callable[[np.ndarray, np.ndarray], _Value] | None = None

    def chance(self, n_states: int = 0) -> float | None:
        """The value of guessing among `n_states`; None where no value is chance.

        Raises
        ------
        ValueError
            If it depends on the number of states and there are none.
        """
        if self.guess != "1/states":
            return self.guess
        if n_states < 1:
            raise ValueError(
                f"chance of {self.name} is one over the number of states, got {n_states}; a head that learns other "
                "classes than states needs a measure with a guess of its own"
            )
        return 1 / n_states

    def format(self, value: float, decimals: int | None = None) -> str:
        """A value with its unit; without `decimals`, shares have one and others three significant digits."""
        if math.isnan(value):
            return "–"
        if self.unit == "share":
            return f"{value:.{1 if decimals is None else decimals}%}"
        return f"{value:{'.3g' if decimals is None else f'.{decimals}f'}} {self.unit}".rstrip()


def group_value(
    name: str, truth: ArrayLike, answer: ArrayLike, subjects: ArrayLike, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The value of a measure of a group, with its 95% percentile bootstrap over subjects: value, low, high.

    Whole subjects are resampled, with all their examples. A resample that lacks a class of the sample, or in which all
    truths (for r, or all answers) are equal, has no value and is left out. Without resamples the interval is NaN.

    Parameters
    ----------
    truth : (N,) numbers or labels; of `auc`: the number of the class, from 0. Examples without one are left out
    answer : (N,) numbers or labels; of `auc`: (N, S) a score of each class, or (N,) that of class 1 of two
    subjects : (N,) the subject of each example

    Returns
    -------
    NaN if the sample has no value; an interval of NaN if no resample has one, or there is a single subject. The AUC of
    several classes is the mean over those of the sample, each against the rest.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}; known are {', '.join(MEASURES)}")
    of_group = MEASURES[name].of_group
    if of_group is None:
        known = ", ".join(measure.name for measure in MEASURES.values() if measure.of_group)
        raise ValueError(f"{name} is a mean of examples; values of a group are {known}")
    truth, answer, subjects = np.asarray(truth), np.asarray(answer), np.asarray(subjects)
    if not len(truth) == len(answer) == len(subjects):
        raise ValueError(
            f"a group needs one row per example, got {len(truth)} truths, {len(answer)} answers and {len(subjects)} "
            "subjects"
        )
    there = pd.notna(truth)
    value_of = of_group(truth[there], answer[there])
    rows = list(pd.DataFrame({"subject": subjects[there]}).groupby("subject").indices.values())
    value, n = value_of(np.arange(there.sum())), len(rows)
    if n < 2 or n_resamples == 0:
        return value, np.nan, np.nan
    draws = np.random.default_rng(seed).integers(0, n, (n_resamples, n))
    values = np.array([value_of(np.concatenate([rows[subject] for subject in draw])) for draw in draws])
    if np.isnan(values).all():
        return value, np.nan, np.nan
    low, high = np.nanquantile(values, [0.025, 0.975])
    return value, float(low), float(high)


# scikit-learn's take milliseconds each: minutes for a page's resamples. Tests hold these against them


def _balanced_accuracy(truth: np.ndarray, answer: np.ndarray) -> _Value:
    right, (codes, names) = truth == answer, pd.factorize(truth)

    def value(rows: np.ndarray) -> float:
        n = np.bincount(codes[rows], minlength=len(names))
        return float((np.bincount(codes[rows], right[rows]) / n).mean()) if n.all() and len(n) else np.nan

    return value


def _auc(truth: np.ndarray, answer: np.ndarray) -> _Value:
    scores = np.stack([-answer, answer], axis=1) if answer.ndim == 1 else answer
    if wrong := sorted(set(truth.tolist()) - set(range(scores.shape[1]))):
        raise ValueError(f"a truth of auc is the number of a class, 0 to {scores.shape[1] - 1}, got {wrong}")
    classes = np.unique(truth).astype(int)

    def value(rows: np.ndarray) -> float:
        each = [_share_of_pairs(scores[rows, k], truth[rows] == k) for k in classes]
        return float(np.mean(each)) if each else np.nan

    return value


def _share_of_pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs in which the positive one has the higher score, ties half: Mann & Whitney's U by its ranks."""
    n = int(positive.sum())
    if n in (0, len(positive)):
        return np.nan
    return float((pd.Series(scores).rank().to_numpy()[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def _r2(truth: np.ndarray, answer: np.ndarray) -> _Value:
    def value(rows: np.ndarray) -> float:
        if not _varies(truth[rows]):
            return np.nan
        return float(1 - ((truth[rows] - answer[rows]) ** 2).mean() / truth[rows].var())

    return value


def _r(truth: np.ndarray, answer: np.ndarray) -> _Value:
    def value(rows: np.ndarray) -> float:
        if not (_varies(truth[rows]) and _varies(answer[rows])):
            return np.nan
        return float(np.corrcoef(truth[rows], answer[rows])[0, 1])

    return value


def _varies(values: np.ndarray) -> bool:
    return len(values) > 0 and bool((values != values[0]).any())


ACCURACY = Measure("accuracy", "accuracy", True, "1/states", "share", axis="decoding accuracy", bounds=(0, 1))
MEASURES = {
    measure.name: measure
    for measure in (
        ACCURACY,
        Measure(
            "balanced_accuracy",
            "balanced accuracy",
            True,
            "1/states",
            "share",
            bounds=(0, 1),
            of_group=_balanced_accuracy,
        ),
        Measure("contrast_accuracy", "contrast accuracy", True, 0.5, "share", bounds=(0, 1)),
        Measure("absolute_error", "absolute error", False, None, bounds=(0, math.inf)),
        Measure("reconstruction_error", "reconstruction error", False, None, bounds=(0, math.inf)),
        Measure("r2", "R²", True, 0.0, bounds=(-math.inf, 1), of_group=_r2),
        Measure("r", "correlation", True, 0.0, bounds=(-1, 1), of_group=_r),
        Measure("auc", "AUC", True, 0.5, bounds=(0, 1), of_group=_auc),
    )
}
"""By name; one target is scored by one measure of examples."""
