"""Can two groups of people be told apart? One linear classifier for vectors of any kind, and how sure one can be.

With a dozen people in each group chance alone gives large accuracies, so none comes without its interval and its p.
Letters: N people, P values of each.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, binomtest
from statsmodels.stats.proportion import proportion_confint

__all__ = ["Separation", "least_accuracy", "separation", "which_is_better"]

_RIDGE = 1.0  # in units of a person's mean squared z-score


class Separation(NamedTuple):
    """How well two groups are told apart.

    held_out : (N,) the classifier's value of everybody when held out; above zero means the second group
    accuracy, low, high : share of people told correctly, with Wilson's 95% interval
    auc : chance that somebody of the second group has the larger value
    p : of the accuracy, from permuted groups
    """

    held_out: np.ndarray
    accuracy: float
    low: float
    high: float
    auc: float
    p: float


def separation(
    vectors: np.ndarray, groups: np.ndarray, folds: np.ndarray, n_permutations: int = 5000, seed: int = 0
) -> Separation:
    """Tell people who are held out, fold by fold, apart by ridge regression on the groups.

    Values are z-scored over everybody, whatever the group; the penalty is fixed, so nothing is chosen on these people.
    In the permutation test groups are exchanged within folds, which keeps every fold's proportions.

    Parameters
    ----------
    vectors : (N, P); groups : (N,) bool, true for the second one
    folds : (N,) each one's fold; whoever shares something that differs between folds, such as a decoder, shares a fold

    Raises
    ------
    ValueError
        If all people outside a fold are of one group, or a value is missing.
    """
    from sklearn.metrics import roc_auc_score

    for fold in np.unique(folds):
        if len(np.unique(groups[folds != fold])) < 2:
            raise ValueError(f"all people outside fold {fold} are of one group; take more people, or other folds")
    if not np.isfinite(vectors).all():
        raise ValueError("somebody's vector has values that are missing")
    spread = vectors.std(axis=0)
    scores = (vectors - vectors.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    random, order = np.random.default_rng([seed, 0x96]), np.argsort(folds, kind="stable")
    tried = np.tile(groups[:, None], 1 + n_permutations)  # the first is the truth
    for column in tried.T[1:]:
        column[order] = groups[np.lexsort([random.random(len(folds)), folds])]
    values = _held_out(scores @ scores.T / max(1, scores.shape[1]), np.where(tried, 1.0, -1.0), folds)
    right = ((values > 0) == tried).mean(axis=0)
    p = (right >= right[0] - 1e-12).mean()
    low, high = proportion_confint(round(right[0] * len(groups)), len(groups), method="wilson")
    auc = roc_auc_score(groups, values[:, 0])
    return Separation(values[:, 0], float(right[0]), float(low), float(high), float(auc), float(p))


def _held_out(products: np.ndarray, signs: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Values (N, M) of people who were held out, for M ways to group them (N, M), from their products (N, N)."""
    values = np.empty_like(signs)
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        within, mean = products[np.ix_(rest, rest)], signs[rest].mean(axis=0)
        across = products[np.ix_(out, rest)] - within.mean(axis=0)
        within = within - within.mean(axis=0)
        within, across = (of - of.mean(axis=1, keepdims=True) for of in (within, across))
        weights = np.linalg.solve(within + _RIDGE * np.eye(len(within)), signs[rest] - mean)
        values[out] = across @ weights + mean
    return values


def which_is_better(one: Separation, other: Separation, groups: np.ndarray) -> float:
    """The exact p of McNemar's test that two classifiers are right for equally many of the same people."""
    right = ((one.held_out > 0) == groups, (other.held_out > 0) == groups)
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    return float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


def least_accuracy(n: int, alpha: float = 0.05) -> float:
    """The least share of n people that a coin reaches in at most this share of cases."""
    return float((binom.isf(alpha, n, 0.5) + 1) / n)
