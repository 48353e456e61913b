"""How alike two encoders are."""

import numpy as np

__all__ = ["linear_cka"]


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
