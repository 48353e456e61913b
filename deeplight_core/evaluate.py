"""Predictions → accuracy per subject; the linear baseline on the same volumes and splits."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from deeplight_core.loader import Volumes

__all__ = ["confusion", "linear_predictions", "predict", "predictions_table", "subject_accuracy"]

RESULT_KEYS = ["route", "variant", "fraction", "n_subjects", "seed"]


@torch.inference_mode()
def predict(
    model: Callable[[torch.Tensor], torch.Tensor], data: Volumes, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted labels (N,) and cross-entropy (N,) of all volumes, in their order."""
    order = (np.arange(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size))
    labels, losses = [], []
    for _, batch in data.batches(order):
        logits = model(batch["volumes"]).float()
        labels.append(logits.argmax(dim=1).cpu())
        losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none").cpu())
    return torch.cat(labels).numpy(), torch.cat(losses).numpy()


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


def subject_accuracy(predictions: pd.DataFrame, **key: str | float) -> pd.DataFrame:
    """The tidy results table: the `RESULT_KEYS` (given as `key`), then `task, subject, accuracy, n_volumes`."""
    right_task = predictions["task"] == predictions["predicted_task"]
    correct = right_task & (predictions["state"] == predictions["predicted_state"])
    by_subject = correct.groupby([predictions["task"], predictions["subject"]])
    table = by_subject.agg(accuracy="mean", n_volumes="size").reset_index()
    return table.assign(**key)[[*RESULT_KEYS, "task", "subject", "accuracy", "n_volumes"]]


def confusion(predictions: pd.DataFrame, states: list[tuple[str, str]]) -> pd.DataFrame:
    """Share of each true state's volumes (rows) that are decoded as each state (columns); rows sum to 1."""
    names = pd.MultiIndex.from_tuples(states, names=["task", "state"])
    true = pd.MultiIndex.from_frame(predictions[["task", "state"]])
    decoded = pd.MultiIndex.from_frame(predictions[["predicted_task", "predicted_state"]])
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (names.get_indexer(true), names.get_indexer(decoded)), 1)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(counts / counts.sum(axis=1, keepdims=True), index=names, columns=names)


def linear_predictions(train: Volumes, validation: Volumes) -> np.ndarray:
    """Labels (N,) from L2-regularised multinomial logistic regression (scikit-learn, C = 1) on the in-mask voxels.

    Volumes are scaled so that a training volume's norm is about 10, and C means the same on every grid.
    """
    from sklearn.linear_model import LogisticRegression

    x, x_new = (d.masked(np.arange(len(d))).float().cpu().numpy() for d in (train, validation))
    scale = 10 / (x.std() * np.sqrt(x.shape[1]))
    model = LogisticRegression(C=1.0, max_iter=1000).fit(x * scale, train.labels.cpu().numpy())
    return np.asarray(model.predict(x_new * scale))
