"""Comparisons with subjects and seeds as crossed random effects: about other people and about other trainings.

A t-test over the subjects of one trained pair generalises to other subjects; these also generalise to other trainings.
Tables must be complete (every seed on the same subjects), so that mean squares give the estimates of restricted maximum
likelihood, which statistical packages approach by iteration. Degrees of freedom are Satterthwaite's (1946), because
seeds are few.
"""

from itertools import combinations, product
from typing import Any

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
    variances, dofs = _crossed_variances(table[None], 1)
    mean = table.mean()
    error, dof = _error(variances, dofs, table.shape)
    half, p = _tested(mean, error, dof) if np.ptp(table) > 1e-12 else (0.0, np.nan)
    sd = {f"sd_{name}": np.sqrt(variance) for name, variance in variances.items()}
    return {"mean": mean, "half": half, "dof": dof if np.isfinite(p) else np.nan, "p": p, **sd}


def _error(variances: dict[str, float], dofs: dict[str, int], shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard error of the mean of a table (subjects, seeds), and Satterthwaite's degrees of freedom."""
    n, seeds = shape
    rest = variances["rest"]
    squares = {"subject": seeds * variances["subject"] + rest, "seed": n * variances["seed"] + rest, "rest": -rest}
    total = sum(squares.values())
    below = sum(square**2 / dofs[name] for name, square in squares.items())
    return float(np.sqrt(total / (n * seeds))), float(total**2 / below) if below > 0 else np.nan


def _tested(mean: float, error: float, dof: float) -> tuple[float, float]:
    """Half the 95% interval, and p against 0."""
    return float(stats.t.ppf(0.975, dof) * error), float(2 * stats.t.sf(abs(mean) / error, dof))


def of_complete_seeds(
    results: pd.DataFrame, fractions: list[float], a: str = "pretrained", b: str = "scratch"
) -> pd.DataFrame:
    """The rows of two variants, some fractions, and those seeds that have both variants at all of these fractions."""
    chosen = results[results["variant"].isin([a, b]) & results["fraction"].isin(fractions)]
    cells = chosen[["seed", "variant", "fraction"]].drop_duplicates().groupby("seed").size()
    return chosen[chosen["seed"].isin(cells.index[cells == 2 * len(fractions)])]


def _crossed_variances(tables: np.ndarray, k: int) -> tuple[dict[str, float], dict[str, int]]:
    """REML variances of subject, seed and rest of complete tables (subjects, seeds), and degrees of freedom.

    Inside the boundary they follow from the mean squares (Searle, Casella & McCulloch 1992, chapter 4); where a mean
    square is smaller than the rest's, that variance is zero and the two are pooled (Thompson 1962).

    Parameters
    ----------
    tables : (tables, subjects, seeds)
    k : how many of the tables are independent: one less than there are if they sum to zero
    """
    n, seeds = tables.shape[1:]
    means, by_subject, by_seed = tables.mean(axis=(1, 2)), tables.mean(axis=2), tables.mean(axis=1)
    rest = tables - by_subject[:, :, None] - by_seed[:, None] + means[:, None, None]
    dof = {"subject": k * (n - 1), "seed": k * (seeds - 1), "rest": k * (n - 1) * (seeds - 1)}
    square = {
        "subject": seeds * ((by_subject - means[:, None]) ** 2).sum() / dof["subject"],
        "seed": n * ((by_seed - means[:, None]) ** 2).sum() / dof["seed"],
        "rest": (rest**2).sum() / dof["rest"],
    }
    pooled, weight = square["rest"], dof["rest"]
    for name in sorted(("subject", "seed"), key=lambda name: square[name]):
        if square[name] < pooled:
            pooled = (weight * pooled + dof[name] * square[name]) / (weight + dof[name])
            weight += dof[name]
    each = {"subject": seeds, "seed": n}
    return {name: max(0.0, square[name] - pooled) / m for name, m in each.items()} | {"rest": pooled}, dof


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
    """Tests of every pair of variants at every fraction, corrected over all of them.

    With three seeds, a pair's own few numbers say little about the luck of trainings, and small p come too often. So
    luck is estimated twice: from all variants at this fraction, and from this pair at all fractions. The larger p
    counts, because variants and fractions may differ in their luck. Results of a cross-validation have `compare_folds`
    instead, since folds share training subjects.

    Returns
    -------
    `a, b, fraction, n_subjects, n_seeds, n, difference, low, high, better, dof, p` (or the columns of `compare_folds`),
    `p_bonferroni, p_holm`, `differ` (p_holm < alpha); no rows with one seed or subject only

    Raises
    ------
    ValueError
        If a variant lacks a fraction, seed or subject.
    """
    if _is_cross_validation(results):
        variants = list(results["variant"].unique())
        tables = [compare_folds(results, a, b).assign(a=a, b=b) for a, b in combinations(variants, 2)]
        table = pd.concat(tables, ignore_index=True) if tables else _pair_tests(results.iloc[:0])
    else:
        table = _pair_tests(results)
    table = corrected(table[["a", "b", *table.columns.drop(["a", "b"])]], len(table))
    return table.assign(differ=table["p_holm"] < alpha)


def _pair_tests(results: pd.DataFrame) -> pd.DataFrame:
    """The tests of `pairs` for a fixed split."""
    (results, measure), rows = fixed_split(results), []
    scores, levels = _complete(results)
    if min(len(scores), *scores.shape[2:]) > 1:
        of_fractions = [_crossed_variances(of - of.mean(axis=0), len(of) - 1) for of in np.moveaxis(scores, 1, 0)]
        sizes, variants = results.groupby("fraction")["n_subjects"].first(), list(results["variant"].unique())
        for a, b in combinations(variants, 2):
            difference = scores[levels[0].index(a)] - scores[levels[0].index(b)]  # (fractions, subjects, seeds)
            of_pair = _error(*_crossed_variances(difference, len(difference)), difference.shape[1:])
            for fraction, table, of_fraction in zip(levels[1], difference, of_fractions, strict=True):
                error, dof = _error(*of_fraction, table.shape)
                errors = [each for each in ((np.sqrt(2) * error, dof), of_pair) if each[0] > 1e-12]
                mean = table.mean()
                tests = [(*_tested(mean, *each), each[1]) for each in errors] or [(0.0, np.nan, np.nan)]
                half, p, dof = max(tests, key=lambda test: test[1])
                own = a, b, fraction, sizes[fraction], *table.shape[::-1], mean, mean - half, mean + half
                rows.append((*own, is_better(measure, mean), dof, p))
    names = ["a", "b", "fraction", "n_subjects", "n_seeds", "n", "difference", "low", "high", "better", "dof", "p"]
    return pd.DataFrame(rows, columns=names)


def _complete(results: pd.DataFrame) -> tuple[np.ndarray, list[list[Any]]]:
    """Mean scores (variants, fractions, subjects, seeds), and the names along each axis."""
    order = ["variant", "fraction", "subject", "seed"]
    means = results.groupby(order)["score"].mean()
    levels = [means.index.unique(level).tolist() for level in order]
    shape = [len(level) for level in levels]
    if len(means) != np.prod(shape):
        raise ValueError("the table is not complete: take the variants that have all fractions and seeds")
    return means.to_numpy().reshape(shape), levels


def effects(results: pd.DataFrame) -> pd.DataFrame:
    """Analysis of variance of way × size with subjects and seeds as crossed random effects.

    A fixed effect W is tested by the quasi-F ratio (MS_W + MS_WSR) / (MS_WS + MS_WR) for subjects S and seeds R
    (Cochran 1951; Clark 1973), which has approximately an F distribution.

    Returns
    -------
    `effect` (way, size, way × size), `f, dof_effect, dof_error, p` (NaN where nothing differs); no rows with one seed,
    subject, way or size only, or of a cross-validation, whose subjects are not independent
    """
    columns, rows = ["effect", "f", "dof_effect", "dof_error", "p"], []
    if _is_cross_validation(results):
        return pd.DataFrame(columns=columns)
    table, _ = _complete(fixed_split(results)[0])
    if min(table.shape) < 2:
        return pd.DataFrame(columns=columns)
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
