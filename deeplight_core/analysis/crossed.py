"""Comparisons with subjects and seeds as crossed random effects: about other people and about other trainings.

A t-test over the subjects of one trained pair generalises to other subjects; these also generalise to other trainings.
Tables must be complete (every seed on the same subjects), so that mean squares give the estimates of restricted maximum
likelihood, which statistical packages approach by iteration. Degrees of freedom are Satterthwaite's (1946), because
seeds are few.
"""

from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy import stats

from deeplight_core.analysis.statistics import (
    compare_folds,
    corrected,
    fixed_split,
    fold_intervals,
    is_better,
    t_interval,
)

__all__ = ["best_shares", "complete_variants", "crossed_means", "effects", "of_complete_seeds", "pairs", "seed_model"]


def seed_model(results: pd.DataFrame, a: str = "pretrained", b: str = "scratch") -> pd.DataFrame:
    """The difference between two variants, per fraction: mean + subject + seed + rest.

    Returns
    -------
    `fraction, n_subjects, n_seeds, n, difference, low, high, better, dof, p, sd_subject, sd_seed, sd_rest`; low and
    high are mean ± t·SE (95%); fractions with one seed or one subject only are left out. Where all differences are
    equal there is no test: p is NaN.

    Raises
    ------
    ValueError
        If a seed has results of one variant only, or on other subjects.
    """
    (results, measure), rows = fixed_split(results), []
    for fraction in sorted(results["fraction"].unique().tolist()):
        group = results[results["variant"].isin([a, b]) & (results["fraction"] == fraction)]
        means = group.groupby(["subject", "seed", "variant"])["score"].mean().unstack()
        if set(means.columns) < {a, b} or min(group["seed"].nunique(), group["subject"].nunique()) < 2:
            continue
        wide = (means[a] - means[b]).unstack("seed")
        if wide.isna().any(axis=None):
            bad = wide.columns[wide.isna().any()].tolist()
            raise ValueError(f"{a} and {b} at {100 * fraction:g}%: seeds {bad} lack results of a variant or a subject")
        found = _mean(wide.to_numpy())
        mean, half = found.pop("mean"), found.pop("half")
        rows.append(
            {"fraction": fraction, "n_subjects": group["n_subjects"].iloc[0], "n_seeds": wide.shape[1], "n": len(wide),
             "difference": mean, "low": mean - half, "high": mean + half, "better": is_better(measure, mean), **found}
        )  # fmt: skip
    names = ["fraction", "n_subjects", "n_seeds", "n", "difference", "low", "high", "better", "dof", "p"]
    return pd.DataFrame(rows, columns=[*names, "sd_subject", "sd_seed", "sd_rest"])


def _mean(table: np.ndarray) -> dict[str, float]:
    """The mean of a complete table (subjects, seeds), half its 95% interval, its test against 0, and the deviations."""
    n, seeds = table.shape
    variances = _crossed_variances(table)
    squares = {
        "subject": (seeds * variances["subject"] + variances["rest"], n - 1),
        "seed": (n * variances["seed"] + variances["rest"], seeds - 1),
        "rest": (-variances["rest"], (n - 1) * (seeds - 1)),
    }
    total = sum(square for square, _ in squares.values())
    mean, dof, half, p = table.mean(), np.nan, 0.0, np.nan
    if np.ptp(table) > 1e-12:
        dof = total**2 / sum(square**2 / k for square, k in squares.values())
        error = np.sqrt(total / (n * seeds))
        half, p = stats.t.ppf(0.975, dof) * error, 2 * stats.t.sf(abs(mean) / error, dof)
    sd = {f"sd_{name}": np.sqrt(variance) for name, variance in variances.items()}
    return {"mean": mean, "half": half, "dof": dof, "p": p, **sd}


def of_complete_seeds(
    results: pd.DataFrame, fractions: list[float], a: str = "pretrained", b: str = "scratch"
) -> pd.DataFrame:
    """The rows of two variants, some fractions, and those seeds that have both variants at all of these fractions."""
    chosen = results[results["variant"].isin([a, b]) & results["fraction"].isin(fractions)]
    cells = chosen[["seed", "variant", "fraction"]].drop_duplicates().groupby("seed").size()
    return chosen[chosen["seed"].isin(cells.index[cells == 2 * len(fractions)])]


def _crossed_variances(table: np.ndarray) -> dict[str, float]:
    """REML variances of subject, seed and rest of a complete table (subjects, seeds).

    Inside the boundary they follow from the mean squares (Searle, Casella & McCulloch 1992, chapter 4); where a mean
    square is smaller than the rest's, that variance is zero and the two are pooled (Thompson 1962).
    """
    n, seeds = table.shape
    by_subject, by_seed = table.mean(axis=1), table.mean(axis=0)
    rest = table - by_subject[:, None] - by_seed + table.mean()
    dof = {"subject": n - 1, "seed": seeds - 1, "rest": (n - 1) * (seeds - 1)}
    square = {
        "subject": seeds * by_subject.var(ddof=1), "seed": n * by_seed.var(ddof=1),
        "rest": (rest**2).sum() / dof["rest"],
    }  # fmt: skip
    pooled, weight = square["rest"], dof["rest"]
    for name in sorted(("subject", "seed"), key=lambda name: square[name]):
        if square[name] < pooled:
            pooled = (weight * pooled + dof[name] * square[name]) / (weight + dof[name])
            weight += dof[name]
    each = {"subject": seeds, "seed": n}
    return {name: max(0.0, square[name] - pooled) / k for name, k in each.items()} | {"rest": pooled}


def complete_variants(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the variants that have every fraction, seed and fold; in an unfinished sweep, some do not."""
    cell = [name for name in ("fraction", "seed", "fold") if name in results]
    cells = results[["variant", *cell]].drop_duplicates().groupby("variant").size()
    n = len(results[cell].drop_duplicates())
    return results[results["variant"].isin(cells.index[cells == n])]


def crossed_means(results: pd.DataFrame) -> pd.DataFrame:
    """Mean score per variant and fraction, with its 95% interval over subjects and seeds, which ends where scores do.

    Results of a cross-validation have `fold_intervals` instead, since folds share training subjects.

    Returns
    -------
    `variant, fraction, n_subjects, n_seeds, n, mean, low, high`, or as `fold_intervals`; with a single seed (subject)
    the interval is over subjects (seeds) only
    """
    if _is_cross_validation(results):
        return _fold_means(results)
    (results, measure), rows = fixed_split(results), []
    for (variant, fraction), group in results.groupby(["variant", "fraction"], sort=False):
        table = group.groupby(["subject", "seed"])["score"].mean().unstack().to_numpy()
        if min(table.shape) == 1:
            low, high = t_interval(table.ravel(), 0.95)
        else:
            half = _mean(table)["half"]
            low, high = table.mean() - half, table.mean() + half
        low, high = np.clip([low, high], *measure.bounds)
        rows.append((variant, fraction, group["n_subjects"].iloc[0], *table.shape[::-1], table.mean(), low, high))
    return pd.DataFrame(
        rows, columns=["variant", "fraction", "n_subjects", "n_seeds", "n", "mean", "low", "high"]
    )  # fmt: skip


def _is_cross_validation(results: pd.DataFrame) -> bool:
    return len(results) > 0 and "fold" in results and bool((results["fold"] > 0).all())


def _fold_means(results: pd.DataFrame) -> pd.DataFrame:
    """`fold_intervals` of the folds' means over subjects, each of which is a mean over seeds."""
    cell = ["variant", "fraction", "fold"]
    subjects = results.groupby([*cell, "subject"], sort=False)[["score", "n_subjects"]].mean().reset_index()
    folds = subjects.groupby(cell, sort=False).agg(
        value=("score", "mean"), n_subjects=("n_subjects", "mean"), n_test=("subject", "size")
    )
    if "measure" in results:
        folds["measure"] = results["measure"].iloc[0]
    return fold_intervals(folds.reset_index())


def pairs(results: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """`seed_model` of every pair of variants, corrected over all pairs and fractions.

    Results of a cross-validation have `compare_folds` in its place: folds share training subjects.

    Returns
    -------
    `a, b`, the columns of `seed_model` or `compare_folds`, `p_bonferroni, p_holm`, `differ` (p_holm < alpha)
    """
    variants = list(results["variant"].unique())
    tested = compare_folds if _is_cross_validation(results) else seed_model
    tables = [tested(results, a, b).assign(a=a, b=b) for a, b in combinations(variants, 2)]
    table = pd.concat(tables, ignore_index=True) if tables else seed_model(results).assign(a="", b="")
    table = corrected(table[["a", "b", *table.columns.drop(["a", "b"])]], len(table))
    return table.assign(differ=table["p_holm"] < alpha)


def effects(results: pd.DataFrame) -> pd.DataFrame:
    """Analysis of variance of way × size with subjects and seeds as crossed random effects.

    A fixed effect W is tested by the quasi-F ratio (MS_W + MS_WSR) / (MS_WS + MS_WR) for subjects S and seeds R
    (Cochran 1951; Clark 1973), which has approximately an F distribution.

    Returns
    -------
    `effect` (way, size, way × size), `f, dof_effect, dof_error, p` (NaN where nothing differs); no rows with one seed,
    subject, way or size only, or of a cross-validation, whose subjects are not independent
    """
    order = ["variant", "fraction", "subject", "seed"]
    columns = ["effect", "f", "dof_effect", "dof_error", "p"]
    if _is_cross_validation(results):
        return pd.DataFrame(columns=columns)
    means = fixed_split(results)[0].groupby(order)["score"].mean()
    shape = [len(means.index.unique(level)) for level in order]
    if min(shape, default=0) < 2:
        return pd.DataFrame(columns=columns)
    if len(means) != np.prod(shape):
        raise ValueError("the table is not complete: take the variants that have all fractions and seeds")
    table, rows = means.to_numpy().reshape(shape), []
    for name, axes in (("way", (0,)), ("size", (1,)), ("way × size", (0, 1))):
        parts = [_mean_square(table, (*axes, *random)) for random in ((), (2,), (3,), (2, 3))]
        (effect, k), (of_subjects, k_subjects), (of_seeds, k_seeds), (rest, k_rest) = parts
        above, below = effect + rest, of_subjects + of_seeds
        if min(above, below) < 1e-24:  # all scores are equal
            rows.append((name, *[np.nan] * 4))
            continue
        dof = (
            above**2 / (effect**2 / k + rest**2 / k_rest),
            below**2 / (of_subjects**2 / k_subjects + of_seeds**2 / k_seeds),
        )
        rows.append((name, above / below, *dof, stats.f.sf(above / below, *dof)))
    return pd.DataFrame(rows, columns=columns)


def _mean_square(table: np.ndarray, axes: tuple[int, ...]) -> tuple[float, int]:
    """Mean square and degrees of freedom of the interaction of some axes of a complete table."""
    effect = np.zeros([n if axis in axes else 1 for axis, n in enumerate(table.shape)])
    for chosen in product([False, True], repeat=len(axes)):
        kept = [axis for axis, taken in zip(axes, chosen, strict=True) if taken]
        others = tuple(axis for axis in range(table.ndim) if axis not in kept)
        effect = effect + (-1) ** (len(axes) - len(kept)) * table.mean(axis=others, keepdims=True)
    dof = int(np.prod([table.shape[axis] - 1 for axis in axes]))
    return float((effect**2).sum() * table.size / effect.size / dof), dof


def best_shares(results: pd.DataFrame, n_resamples: int = 2000) -> pd.DataFrame:
    """How often each variant has the best mean score when subjects and seeds are drawn again, with replacement.

    Returns
    -------
    `fraction, n_subjects, n_seeds, variant, share`; shares of a fraction sum to 1, and equally good variants share; no
    rows of a cross-validation, whose subjects are not independent
    """
    columns, rows = ["fraction", "n_subjects", "n_seeds", "variant", "share"], []
    if _is_cross_validation(results):
        return pd.DataFrame(columns=columns)
    (results, measure), random = fixed_split(results), np.random.default_rng(0)
    for fraction, group in results.groupby("fraction"):
        wide = group.groupby(["variant", "subject", "seed"])["score"].mean().unstack(["subject", "seed"])
        n, seeds = group["subject"].nunique(), group["seed"].nunique()
        table = wide.to_numpy().reshape(len(wide), n, seeds) * (1 if measure.higher_is_better else -1)
        subjects, drawn = random.integers(0, n, (n_resamples, n)), random.integers(0, seeds, (n_resamples, seeds))
        means = np.array([table[:, s][:, :, r].mean(axis=(1, 2)) for s, r in zip(subjects, drawn, strict=True)])
        best = means >= means.max(axis=1, keepdims=True) - 1e-12
        shares = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
        cell = fraction, group["n_subjects"].iloc[0], seeds
        rows += [(*cell, variant, share) for variant, share in zip(wide.index, shares, strict=True)]
    return pd.DataFrame(rows, columns=columns)
