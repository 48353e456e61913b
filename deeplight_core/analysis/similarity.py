"""How alike two encoders are, and how many dimensions their features fill."""

import numpy as np

__all__ = ["effective_dimensions", "linear_cka"]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of features of the same examples, from 0 to 1 (Kornblith et al. 2019, section 3).

    1 where one is the other turned, mirrored or scaled; NaN where one does not vary.

    Parameters
    ----------
    x, y : features (N, F), (N, G) of the same N examples
    """
    x, y = (of - of.mean(axis=0) for of in (x.astype(np.float64), y.astype(np.float64)))
    norms = [np.linalg.norm(of.T @ of) for of in (x, y)]
    return float(np.linalg.norm(y.T @ x) ** 2 / np.prod(norms)) if min(norms) > 0 else np.nan


def effective_dimensions(x: np.ndarray) -> float:
    """How many dimensions features fill: the participation ratio (Σλ)² / Σλ² of their covariance's eigenvalues λ.

    1 where all vary along one line, F where they vary alike in all directions (Gao et al. 2017,
    doi:10.1101/214262); NaN where they do not vary.

    Parameters
    ----------
    x : features (N, F)
    """
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    variance, norm = np.sum(centred**2), np.linalg.norm(centred.T @ centred)
    return float((variance / norm) ** 2) if norm > 0 else np.nan
