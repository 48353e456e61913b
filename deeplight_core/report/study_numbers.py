"""What a study's report says of decoders that tell numbers, such as age."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deeplight_core.analysis.measures import MEASURES, group_value
from deeplight_core.analysis.statistics import t_interval
from deeplight_core.report import plots
from deeplight_core.report.html import Part

__all__ = ["PERMUTATIONS", "Quality", "number_parts", "number_quality", "number_sentence", "subject_numbers"]

PERMUTATIONS = 2000


class Quality(NamedTuple):
    """How well a number is told.

    error, low, high, p : mean absolute error over subjects, its t interval, and how often chance has none larger
    guess : the error of giving everybody the mean of these subjects
    r, r_low, r_high, r_p : correlation, its bootstrap over subjects, and how often chance has none smaller
    """

    error: float
    low: float
    high: float
    p: float
    guess: float
    r: float
    r_low: float
    r_high: float
    r_p: float


def subject_numbers(predictions: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each subject's truth and answer, means over what was measured of it: `subject, fold, n, true, predicted, error`.

    Parameters
    ----------
    predictions : `subject, fold, true <column>, predicted <column>`; rows without a truth are left out
    """
    names = {f"true {column}": "true", f"predicted {column}": "predicted"}
    known = predictions.rename(columns=names)[["subject", "fold", *names.values()]].dropna(subset="true")
    table = known.groupby("subject", as_index=False).agg(
        fold=("fold", "first"), n=("true", "size"), true=("true", "mean"), predicted=("predicted", "mean")
    )
    return table.assign(error=(table["predicted"] - table["true"]).abs())


def number_quality(table: pd.DataFrame, seed: int = 0) -> Quality:
    """How well a number is told, of `subject_numbers`.

    In a permutation test, truths are exchanged among the subjects of a fold (where each fold has a single one: of all).
    """
    true, told, fold = (table[name].to_numpy() for name in ("true", "predicted", "fold"))
    if pd.Series(fold).value_counts().max() == 1:
        fold = np.zeros(len(fold), int)
    random, order = np.random.default_rng([seed, 0x5EED]), np.argsort(fold, kind="stable")
    shuffled = np.empty((PERMUTATIONS, len(true)))
    for row in shuffled:
        row[order] = true[np.lexsort([random.random(len(fold)), fold])]
    error, r = table["error"].mean(), group_value("r", true, told, table["subject"])
    p = (1 + (np.abs(told - shuffled).mean(axis=1) <= error + 1e-12).sum()) / (1 + PERMUTATIONS)
    r_p = np.nan
    if np.isfinite(r[0]):  # truths keep their mean and SD, so that products alone tell
        product = (told - told.mean()) @ true
        r_p = (1 + (shuffled @ (told - told.mean()) >= product - 1e-9 * abs(product)).sum()) / (1 + PERMUTATIONS)
    low, high = t_interval(table["error"].to_numpy(), 0.95) if len(table) > 1 else (np.nan, np.nan)
    guess = np.abs(true - true.mean()).mean()
    return Quality(float(error), float(low), float(high), float(p), float(guess), *r, float(r_p))


def number_sentence(decoder: str, unit: str, predictions: pd.DataFrame, column: str) -> str:
    """How well a decoder tells a number, in one sentence."""
    table = subject_numbers(predictions, column)
    found, of = number_quality(table), MEASURES["absolute_error"]
    return (
        f"{decoder}, tells {column} of {len(table)} {unit}{'s' * (len(table) != 1)} that it was not trained on with a "
        f"mean absolute error of {of.format(found.error)}{_interval(found.low, found.high)}; permutation test p = "
        f"{found.p:.2g}; giving everybody the mean of these {unit}s has {of.format(found.guess)}. The correlation is "
        f"{_number(found.r)}{_interval(found.r_low, found.r_high)}; p = {_number(found.r_p)}."
    )


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f" (95% interval {low:.3g} to {high:.3g})"


def number_parts(predictions: pd.DataFrame, columns: list[str]) -> list[Part]:
    """Everybody's numbers, and a figure of them, for each column."""
    parts = []
    for column in columns:
        table = subject_numbers(predictions, column)
        figure: Any = plots.told_numbers(table, column)
        shown = pd.DataFrame({
            "subject": table["subject"], "measured": table["n"],
            **{name: table[name].map("{:.3g}".format) for name in ("true", "predicted", "error")},
        })  # fmt: skip
        text = (
            f"Truth and answer, means over what was measured of everybody; the error is absolute, in units of {column}."
        )
        parts += [
            Part(f"{column} of every subject", [text], table=shown),
            Part(
                f"{column}, told and true",
                figures={"A point per subject; on the dashed line the answer is right.": figure},
            ),
        ]
    return parts
