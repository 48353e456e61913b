"""Predictions → accuracy per subject; the linear baseline on the same volumes and splits."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn

from deeplight_core.training.loader import Volumes

__all__ = [
    "RESULT_KEYS",
    "batch_size",
    "confusion",
    "constant_answer",
    "linear_predictions",
    "predict",
    "predictions_table",
    "subject_accuracy",
]

# A batch of predictions, in voxels (the full grid's largest maps take 60 MB per volume), and the most volumes. On a
# processor, larger ones leave the caches; a GPU wants much to do at a time.
_VOXELS_AT_A_TIME, _LARGEST_BATCH = {"cpu": 2**22, "cuda": 2**25}, 256
RESULT_KEYS = ["route", "variant", "fraction", "n_subjects", "seed"]


def batch_size(shape: tuple[int, int, int], device: str) -> int:
    """Volumes that are decoded at a time, on a grid of this shape, on a kind of device."""
    return max(1, min(_LARGEST_BATCH, _VOXELS_AT_A_TIME.get(device, 2**22) // math.prod(shape)))


@torch.inference_mode()
def predict(model: nn.Module, data: Volumes, fabric: Fabric | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Predicted labels (N,) and cross-entropy (N,) of all volumes, in their order.

    Parameters
    ----------
    fabric : computes in its precision; its processes share the volumes, and each is given the results of all
    """
    was_training = [part for part in model.modules() if part.training]
    model.eval()
    size = batch_size(data.shape, data.device.type)
    rank, n_ranks = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    starts = range(rank * size, len(data), n_ranks * size)
    results = torch.zeros(2, len(data), device=data.device)
    for _, batch in data.batches(np.arange(start, min(start + size, len(data))) for start in starts):
        with fabric.autocast() if fabric else nullcontext():
            logits = model(batch["volumes"]).float()
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        results[:, batch["numbers"]] = torch.stack([logits.argmax(dim=1).float(), losses])
    if fabric:  # each process has filled its own columns
        fabric.all_reduce(results, reduce_op="sum")
    for part in was_training:
        part.training = True
    labels, losses = results.cpu().numpy()
    return labels.astype(int), losses


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


def linear_predictions(learner: str, train: Volumes, validation: Volumes) -> np.ndarray:
    """Labels (N,) of the validation volumes from a linear model of the in-mask voxels.

    Parameters
    ----------
    learner : "logistic" (L2-regularised multinomial logistic regression, C = 1) or "svm" (one-vs-rest, squared hinge,
        C = 1), both scikit-learn's on volumes scaled so that a training volume's norm is about 10 and C means the same
        on every grid; or "decoder" (nilearn's Decoder: the fifth of the voxels with the largest F value, linear
        SVMs averaged over up to five folds of the training units, or of the volumes of a single one, which also choose
        C by accuracy; its volumes are z-scored already, so it does not standardise them again)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    labels = train.labels.cpu().numpy()
    if learner == "decoder":
        return _nilearn_predictions(train, labels, validation)
    x, x_new = (d.masked(np.arange(len(d))).float().cpu().numpy() for d in (train, validation))
    scale = 10 / (x.std() * np.sqrt(x.shape[1]))
    models = {"logistic": LogisticRegression(C=1.0, max_iter=1000), "svm": LinearSVC(C=1.0, random_state=0)}
    return np.asarray(models[learner].fit(x * scale, labels).predict(x_new * scale))


def _nilearn_predictions(train: Volumes, labels: np.ndarray, validation: Volumes) -> np.ndarray:
    import nibabel as nib
    from nilearn.decoding import Decoder
    from nilearn.exceptions import MaskWarning
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    store = train.store
    images = []
    for data in (train, validation):
        volumes = np.zeros((len(data), *store.mask.shape[::-1]), np.float32)
        volumes[:, store.mask.T] = data.masked(np.arange(len(data))).float().cpu().numpy()
        images.append(nib.Nifti1Image(volumes.T, store.affine))
    units = train.rows["unit"].to_numpy()
    n_units = len(set(units))
    folds = GroupKFold(min(5, n_units)) if n_units > 1 else StratifiedKFold(5)  # one unit: no other to choose C on
    mask = nib.Nifti1Image(store.mask.astype(np.uint8), store.affine)
    decoder = Decoder(mask=mask, cv=folds, standardize=False, scoring="accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)  # a mask that covers a part of the brain is meant to,
        warnings.filterwarnings("ignore", "screening_percentile set to '100'")  # and is then used whole
        decoder.fit(images[0], labels, groups=units if n_units > 1 else None)
    return np.asarray(decoder.predict(images[1]))
