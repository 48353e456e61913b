"""Answers as tables: predictions, scores of each subject, learning curves, confusions.

Knows no model: takes tables of examples and arrays of answers. `subject` is the unit of the splits everywhere: the
subject, or the run where there is one subject only.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from deeplight_core.analysis.measures import group_value

__all__ = [
    "COLUMNS",
    "at_the_end",
    "common_steps",
    "confusion",
    "constant_answer",
    "group_scores",
    "number_predictions",
    "outcome_predictions",
    "phenotype_predictions",
    "recalls",
    "state_predictions",
    "subject_scores",
]

COLUMNS = (
    "dataset", "route", "encoder", "variant", "fraction", "n_subjects", "seed", "fold", "task", "target", "subject",
    "level", "measure", "score", "n", "seen_volumes", "seconds",
)  # fmt: skip
_WHERE = ["dataset", "subject", "session", "task", "run"]  # with `block`, these name a block


def state_predictions(table: pd.DataFrame, answers: np.ndarray, states: list[tuple[str, str]]) -> pd.DataFrame:
    """One row per example, with the decoded state and the answer for each state.

    Columns `dataset, subject, session, task, run, frame, block, state, predicted_task, predicted_state`, then
    `<task>: <state>` of every state: its probability (for an SVM, its distance).

    Parameters
    ----------
    table : one row per example, as `training.examples` gives it
    answers : (N, S)
    """
    found, names = answers.argmax(axis=1), pd.MultiIndex.from_tuples(states)
    own = _described(table).assign(
        state=table["state"].to_numpy(), predicted_task=names.get_level_values(0)[found],
        predicted_state=names.get_level_values(1)[found],
    )  # fmt: skip
    columns = pd.Index([f"{task}: {state}" for task, state in states])
    return own.join(pd.DataFrame(answers.astype(np.float32), columns=columns))


def number_predictions(
    table: pd.DataFrame, numbers: np.ndarray, answers: np.ndarray, columns: list[str]
) -> pd.DataFrame:
    """One row per example: `dataset, subject, session, task, run, frame, block`, and the numbers in their own units.

    The numbers are `true <column>` and `predicted <column>` of every column; `numbers` and `answers` are (N, K).
    """
    values: dict[str, np.ndarray] = {}
    for i, column in enumerate(columns):
        values |= {f"true {column}": numbers[:, i], f"predicted {column}": answers[:, i]}
    return _described(table).join(pd.DataFrame(values))


def outcome_predictions(table: pd.DataFrame, score: np.ndarray, targets: list[str]) -> pd.DataFrame:
    """One row per example of a head that answers neither states nor numbers, with `score of <target>`.

    Parameters
    ----------
    score : (N, K) the head's measure
    """
    values = {f"score of {target}": score[:, i] for i, target in enumerate(targets)}
    return _described(table).join(pd.DataFrame(values))


def phenotype_predictions(
    table: pd.DataFrame, truth: np.ndarray, answers: np.ndarray, targets: list[dict[str, Any]]
) -> pd.DataFrame:
    """One row per example, with `true <column>`, `predicted <column>` and `score of <column>` of every column.

    Of columns with levels these are places of levels; for classes there is `<column> = <level>`, its probability, and
    the score is right or wrong. Other scores are absolute errors. Missing values are NaN.

    Parameters
    ----------
    truth : (N, K); answers : (N, A), for each target the probabilities of its classes, or one number
    targets : `{"column", "kind", "levels"}` of each (see `preparation.ColumnTarget.described`)
    """
    values: dict[str, np.ndarray] = {}
    place = 0
    for i, target in enumerate(targets):
        column, known = target["column"], np.isfinite(truth[:, i])
        n = len(target["levels"]) if target["kind"] == "classes" else 1
        own, place = answers[:, place : place + n], place + n
        found = own.argmax(axis=1) if n > 1 else own[:, 0]
        score = (found == truth[:, i]).astype(float) if n > 1 else np.abs(found - truth[:, i])
        values |= {f"true {column}": truth[:, i], f"predicted {column}": found}
        values[f"score of {column}"] = np.where(known, score, np.nan)
        values |= {f"{column} = {level}": own[:, j] for j, level in enumerate(target["levels"] if n > 1 else [])}
    return _described(table).join(pd.DataFrame(values))


def _classes(predictions: pd.DataFrame, column: str) -> list[str]:
    """The columns with the probabilities of a phenotype's classes; none if it is a number."""
    return [str(c) for c in predictions if str(c).startswith(f"{column} = ")]


def _described(table: pd.DataFrame) -> pd.DataFrame:
    named = table.rename(columns={"subject": "person"}).rename(columns={"unit": "subject"})
    return named[[*_WHERE, "frame", "block"]].reset_index(drop=True)


def subject_scores(predictions: pd.DataFrame, measure: str = "", **key: str | float) -> pd.DataFrame:
    """The results table of one training, with the columns of `COLUMNS`: each subject's score in each task.

    Level `volume` counts every example by itself; level `block` counts blocks, whose answer is the mean of their
    examples' answers.

    Parameters
    ----------
    predictions : of `state_predictions` (measure `accuracy` of target `state`), `number_predictions` (measure
        `absolute_error` of every column), `phenotype_predictions` (both) or `outcome_predictions`; the last two have no
        blocks
    measure : that of `outcome_predictions`
    key : the columns that name the training: `route, encoder, variant, fraction, n_subjects, seed, fold,
        seen_volumes, seconds`
    """
    if own := [str(c).removeprefix("score of ") for c in predictions if str(c).startswith("score of ")]:
        found = {name: "accuracy" if _classes(predictions, name) else "absolute_error" for name in own}
        tables = [_means(predictions[f"score of {name}"], predictions, name, measure or found[name]) for name in own]
        levels = {"volume": pd.concat(tables, ignore_index=True)}
    else:
        score = _accuracies if "state" in predictions else _errors
        levels = {"volume": score(predictions), "block": score(_blocks(predictions[predictions["block"] >= 0]))}
    table = pd.concat([rows.assign(level=level) for level, rows in levels.items()], ignore_index=True)
    return table.assign(**key)[list(COLUMNS)]


def group_scores(predictions: pd.DataFrame, n_resamples: int = 2000) -> pd.DataFrame:
    """Values of all subjects together: `target, measure, value, low, high`, with a 95% bootstrap over subjects.

    States and classes have balanced accuracy and AUC, numbers have R² and r, other outcomes none.
    """
    rows: list[tuple[str, str, float, float, float]] = []

    def of_group(name: str, truth: ArrayLike, answer: ArrayLike) -> tuple[float, float, float]:
        return group_value(name, truth, answer, predictions["subject"], n_resamples)

    if "state" in predictions:
        answers = predictions[[c for c in predictions if ": " in str(c)]]
        found = np.array([f"{t}: {s}" for t, s in zip(predictions["task"], predictions["state"], strict=True)])
        labels = answers.columns.get_indexer(pd.Index(found))
        decoded = answers.to_numpy().argmax(axis=1)
        rows.append(("state", "balanced_accuracy", *of_group("balanced_accuracy", labels, decoded)))
        rows.append(("state", "auc", *of_group("auc", labels, answers.to_numpy())))
    for column in (str(c).removeprefix("true ") for c in predictions if str(c).startswith("true ")):
        truth, answer = predictions[f"true {column}"], predictions[f"predicted {column}"]
        if classes := _classes(predictions, column):
            rows.append((column, "balanced_accuracy", *of_group("balanced_accuracy", truth, answer)))
            rows.append((column, "auc", *of_group("auc", truth, predictions[classes].to_numpy())))
            continue
        rows += [(column, name, *of_group(name, truth, answer)) for name in ("r2", "r")]
    return pd.DataFrame(rows, columns=["target", "measure", "value", "low", "high"])


def _blocks(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per block, whose answers are the means of its examples'."""
    grouped = predictions.groupby([*_WHERE, "block"], sort=False)
    answers = [str(c) for c in predictions if str(c).startswith("predicted ") or ": " in str(c)]
    table = grouped.first().drop(columns=answers).join(grouped[answers].mean()).reset_index()
    if "state" in table:
        found = table[answers].to_numpy().argmax(axis=1) if len(table) else np.empty(0, int)
        names = np.array([answer.split(": ", 1) for answer in answers])
        table["predicted_task"], table["predicted_state"] = names[found].T
    return table


def _accuracies(predictions: pd.DataFrame) -> pd.DataFrame:
    right = predictions["task"] == predictions["predicted_task"]
    right &= predictions["state"] == predictions["predicted_state"]
    return _means(right, predictions, "state", "accuracy")


def _errors(predictions: pd.DataFrame) -> pd.DataFrame:
    tables = []
    for column in (str(c).removeprefix("true ") for c in predictions if str(c).startswith("true ")):
        error = (predictions[f"predicted {column}"] - predictions[f"true {column}"]).abs()
        tables.append(_means(error, predictions, column, "absolute_error"))
    return pd.concat(tables, ignore_index=True)


def _means(score: pd.Series, predictions: pd.DataFrame, target: str, measure: str) -> pd.DataFrame:
    """The mean of a score over each subject's examples of each task, NaN left out."""
    by_subject = score.groupby([predictions[c] for c in ("dataset", "task", "subject")])
    table = by_subject.agg(score="mean", n="count").reset_index()
    return table[table["n"] > 0].assign(target=target, measure=measure)


def at_the_end(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of each training's last measurement.

    Parameters
    ----------
    metrics : `epoch` and what tells trainings apart, of `training, variant, fraction, seed`; one training needs none
    """
    named = _trainings(metrics)
    last = metrics.groupby(named)["epoch"].transform("max") if named else metrics["epoch"].max()
    return metrics[metrics["epoch"] == last]


def common_steps(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics with one `step` for the first measurement of all seeds and folds, one for the second, and so on.

    Their subjects can have more or fewer volumes, and so a few steps more or less to an epoch; the mean takes their
    place, for each variant and fraction.

    Parameters
    ----------
    metrics : `variant, fraction, step`, and what else tells trainings apart, of `training, seed`
    """
    turn = metrics.groupby(_trainings(metrics))["step"].rank("dense")
    step = metrics.groupby([metrics["variant"], metrics["fraction"], turn])["step"].transform("mean")
    return metrics.assign(step=step)


def _trainings(metrics: pd.DataFrame) -> list[str]:
    return [column for column in ("training", "variant", "fraction", "seed") if column in metrics]


def constant_answer(rows: pd.DataFrame) -> float:
    """Accuracy of always giving the single best answer, averaged over tasks, then units.

    It exceeds 1/n_states where states are unbalanced.

    Parameters
    ----------
    rows : `task, state, unit`, one row per volume, as in a store's index
    """
    shares = rows.groupby(["unit", "task"])["state"].value_counts(normalize=True)
    n_tasks = rows.groupby("unit")["task"].nunique()
    by_unit = shares / n_tasks.reindex(shares.index.get_level_values("unit")).to_numpy()
    return float(by_unit.groupby(["task", "state"]).sum().max() / len(n_tasks))


def recalls(predictions: pd.DataFrame) -> pd.DataFrame:
    """Share of each state's volumes that are decoded as it, in each held-out subject: `task, state, subject, score`."""
    right = (predictions[["task", "state"]].to_numpy() == predictions[["predicted_task", "predicted_state"]]).all(
        axis=1
    )
    shares = right.groupby([predictions[key] for key in ("task", "state", "subject")], sort=False).mean()
    return shares.rename("score").reset_index()


def confusion(predictions: pd.DataFrame, states: list[tuple[str, str]]) -> pd.DataFrame:
    """Share of each true state's volumes (rows) that are decoded as each state (columns); rows sum to 1."""
    names = pd.MultiIndex.from_tuples(states, names=["task", "state"])
    true = pd.MultiIndex.from_frame(predictions[["task", "state"]])
    decoded = pd.MultiIndex.from_frame(predictions[["predicted_task", "predicted_state"]])
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (names.get_indexer(true), names.get_indexer(decoded)), 1)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(counts / counts.sum(axis=1, keepdims=True), index=names, columns=names)
