"""What was answered, as tables: predictions, accuracy per subject, confusions."""

import numpy as np
import pandas as pd

__all__ = ["RESULT_KEYS", "confusion", "constant_answer", "predictions_table", "subject_scores"]


RESULT_KEYS = ["route", "variant", "fraction", "n_subjects", "seed"]


def predictions_table(rows: pd.DataFrame, predicted: np.ndarray, states: list[tuple[str, str]]) -> pd.DataFrame:
    """One row per volume: `subject, run, frame, task, state, predicted_task, predicted_state`.

    `subject` is the unit of the splits: the subject, or the run where there is one subject only.
    """
    tasks, names = np.array([t for t, _ in states]), np.array([s for _, s in states])
    return pd.DataFrame(
        {
            "subject": rows["unit"], "run": rows["run"], "frame": rows["frame"], "task": rows["task"],
            "state": rows["state"], "predicted_task": tasks[predicted], "predicted_state": names[predicted],
        }
    ).reset_index(drop=True)  # fmt: skip


def subject_scores(predictions: pd.DataFrame, **key: str | float) -> pd.DataFrame:
    """The tidy results table: the `RESULT_KEYS` (given as `key`), then `task, subject, score, n`."""
    right_task = predictions["task"] == predictions["predicted_task"]
    correct = right_task & (predictions["state"] == predictions["predicted_state"])
    by_subject = correct.groupby([predictions["task"], predictions["subject"]])
    table = by_subject.agg(score="mean", n="size").reset_index()
    return table.assign(**key)[[*RESULT_KEYS, "task", "subject", "score", "n"]]


def constant_answer(rows: pd.DataFrame) -> float:
    """Accuracy of the best constant answer: over tasks, then over units, as accuracies are.

    Above one over the number of states where these are not equally frequent.

    Parameters
    ----------
    rows : `task, state, unit`, one row per volume, as `select_rows` gives them
    """
    shares = rows.groupby(["unit", "task"])["state"].value_counts(normalize=True)
    n_tasks = rows.groupby("unit")["task"].nunique()
    by_unit = shares / n_tasks.reindex(shares.index.get_level_values("unit")).to_numpy()
    return float(by_unit.groupby(["task", "state"]).sum().max() / len(n_tasks))


def confusion(predictions: pd.DataFrame, states: list[tuple[str, str]]) -> pd.DataFrame:
    """Share of each true state's volumes (rows) that are decoded as each state (columns); rows sum to 1."""
    names = pd.MultiIndex.from_tuples(states, names=["task", "state"])
    true = pd.MultiIndex.from_frame(predictions[["task", "state"]])
    decoded = pd.MultiIndex.from_frame(predictions[["predicted_task", "predicted_state"]])
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (names.get_indexer(true), names.get_indexer(decoded)), 1)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(counts / counts.sum(axis=1, keepdims=True), index=names, columns=names)
