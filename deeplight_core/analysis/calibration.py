"""Whether probabilities mean what they say, and a temperature that mends them (Guo et al. 2017).

A decoder is calibrated if, of all volumes to whose state it gives 80%, 80% are in that state.
Letters: N examples, S states.
"""

from typing import Any

import numpy as np
import pandas as pd

__all__ = ["fit_temperature", "quality", "reliability", "with_temperature"]

_BOUNDS = (0.05, 20.0)  # of a temperature
_LEAST = 1e-12  # probabilities below it count as it


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, S) at another temperature: above 1 they are less sure, below 1 surer; their order stays."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), _LEAST)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature between 0.05 and 20 with the least mean negative log-likelihood.

    Parameters
    ----------
    probabilities : (N, S); labels : (N,) positions of the true states
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return _log_loss(with_temperature(probabilities, np.exp(log_temperature)), labels)

    found = minimize_scalar(loss, bounds=tuple(np.log(_BOUNDS)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def reliability(probabilities: np.ndarray, labels: np.ndarray, n_bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy: `low, high, n, confidence, accuracy`, one row per bin of equal width that has any.

    The confidence of an example is its highest probability.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    table = pd.DataFrame({"number": number, "confidence": confidence, "accuracy": right})
    rows = table.groupby("number").agg(
        n=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    places = rows.index.to_numpy()
    rows.insert(0, "low", places / n_bins)
    rows.insert(1, "high", (places + 1) / n_bins)
    return rows.reset_index(drop=True)


def quality(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`n`, `accuracy`, mean `confidence`, `ece`, `log_loss` and `brier` of probabilities.

    `ece`, the expected calibration error, is the mean distance of confidence from accuracy over ten bins, weighted by
    their examples (Naeini et al. 2015); `brier` is the mean squared error summed over states.
    """
    bins = reliability(probabilities, labels)
    truth = np.eye(probabilities.shape[1])[labels]
    return {
        "n": len(labels),
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "confidence": float(probabilities.max(axis=1).mean()),
        "ece": float(((bins["confidence"] - bins["accuracy"]).abs() * bins["n"]).sum() / len(labels)),
        "log_loss": _log_loss(probabilities, labels),
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
    }


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    of_truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_truth, _LEAST)).mean())
