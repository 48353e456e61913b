"""From one tidy table of subject accuracies to tests, intervals and effect sizes. Subjects are the unit.

Knows no files and no models: reads `variant, fraction, n_subjects, seed, task, subject, accuracy`, gives tables.
"""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

__all__ = [
    "against_chance",
    "compare",
    "compare_cells",
    "mean_intervals",
    "seed_model",
    "subject_means",
    "subjects_saved",
]

_RESAMPLES = 9999


def subject_means(results: pd.DataFrame) -> pd.DataFrame:
    """One accuracy per variant, fraction and subject: the mean over seeds and tasks."""
    keys = ["variant", "fraction", "subject"]
    return results.groupby(keys, as_index=False).agg(accuracy=("accuracy", "mean"), n_subjects=("n_subjects", "first"))


def mean_intervals(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean accuracy over subjects with its t interval, per variant and fraction.

    Returns
    -------
    `variant, fraction, n_subjects, n, mean, low, high` (n: held-out subjects; n_subjects: those trained on)
    """
    rows = []
    for (variant, fraction), group in subject_means(results).groupby(["variant", "fraction"], sort=False):
        low, high = _t_interval(group["accuracy"].to_numpy(), confidence)
        rows.append((variant, fraction, group["n_subjects"].iloc[0], len(group), group["accuracy"].mean(), low, high))
    return pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "n", "mean", "low", "high"])


def against_chance(results: pd.DataFrame, chance: float) -> pd.DataFrame:
    """Two-sided t-tests of the mean accuracy against chance, per variant and fraction, Bonferroni over all rows.

    Returns
    -------
    the columns of `mean_intervals`, then `t, p, p_bonferroni`
    """
    table = mean_intervals(results)
    tests = []
    for row in table.itertuples():
        own = (results["variant"] == row.variant) & (results["fraction"] == row.fraction)
        tests.append(_t_test(subject_means(results[own])["accuracy"].to_numpy() - chance))
    table["t"], table["p"] = zip(*tests, strict=True) if tests else ([], [])
    table["p_bonferroni"] = np.minimum(1.0, table["p"] * len(table))
    return table


def compare(results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", alpha: float = 0.05) -> pd.DataFrame:
    """Paired t-tests of two variants over the same held-out subjects, one per fraction that both have.

    Parameters
    ----------
    results : the results table; several seeds are averaged per subject first
    a, b : the variants; a positive difference means that `a` is better
    alpha : family-wise error rate; a fraction is significant if p < alpha / number of fractions (Bonferroni, the
        paper's rule)

    Returns
    -------
    `fraction, n_subjects, n, mean_a, mean_b, difference, low, high` (95% t interval of the difference), `t, dof, p`;
    `p_permutation`: two-sided, over the signs of the differences (all of them up to 13 subjects, else 9,999 random
    ones); `bf10`: Bayes factor of a difference against none (JZS, Cauchy prior of scale √2/2, Rouder et al. 2009);
    `d`: standardised mean difference (mean over SD of the paired differences), with `d_low, d_high`, its 95% bootstrap
    interval (BCa, Efron 1987; too narrow for few subjects: for ten it covers 86 to 96%), and `d_normal_low,
    d_normal_high`, from the standard error √(1/n + d²/2n) (Hedges & Olkin 1985, as pingouin has it); `p_bonferroni`,
    `p_holm` (Holm 1979), `significant`, `significant_holm`. Where all differences are equal there is no test: NaN.

    Raises
    ------
    ValueError
        If a variant is absent, or the two were not tested on the same subjects.
    """
    import pingouin as pg

    means = subject_means(results)
    if absent := [v for v in (a, b) if v not in set(means["variant"])]:
        there = ", ".join(means["variant"].unique()) or "none"
        raise ValueError(f"no results of variant {', '.join(absent)}; there are {there}")
    rows = []
    for fraction in sorted(set.intersection(*(set(means.loc[means["variant"] == v, "fraction"]) for v in (a, b)))):
        rows.append({"fraction": fraction, **_paired(means, (a, fraction), (b, fraction))})
    columns = ["fraction", *_COLUMNS, "p_bonferroni", "p_holm", "significant", "significant_holm"]
    table = pd.DataFrame(rows, columns=columns)
    for method in ("bonferroni", "holm"):  # a fraction without a test counts as one that asks
        corrected = pg.multicomp(table["p"].fillna(1).to_numpy(), method=method)[1] if len(table) else np.nan
        table[f"p_{method}"] = np.where(table["p"].isna(), np.nan, corrected)
    table["significant"] = table["p_bonferroni"] < alpha
    table["significant_holm"] = table["p_holm"] < alpha
    return table


_COLUMNS = (
    "n_subjects", "n", "mean_a", "mean_b", "difference", "low", "high", "t", "dof", "p", "p_permutation", "bf10", "d",
    "d_low", "d_high", "d_normal_low", "d_normal_high",
)  # fmt: skip


def compare_cells(results: pd.DataFrame, a: tuple[str, float], b: tuple[str, float]) -> dict[str, float]:
    """One paired test between any two (variant, fraction), as `compare` describes it; `n_subjects` is that of `a`.

    Raises
    ------
    ValueError
        If one is absent, or the two were not tested on the same subjects.
    """
    return _paired(subject_means(results), a, b)


def _paired(means: pd.DataFrame, a: tuple[str, float], b: tuple[str, float]) -> dict[str, float]:
    import pingouin as pg

    chosen = [means[(means["variant"] == v) & (means["fraction"] == f)].set_index("subject") for v, f in (a, b)]
    if absent := [f"{v} at {100 * f:g}%" for (v, f), one in zip((a, b), chosen, strict=True) if one.empty]:
        raise ValueError(f"no results of {' and '.join(absent)}")
    if unpaired := sorted(set(chosen[0].index) ^ set(chosen[1].index)):
        raise ValueError(f"{a[0]} and {b[0]} were not tested on the same subjects: {unpaired}")
    first, second = (one["accuracy"].sort_index().to_numpy() for one in chosen)
    difference = first - second
    n = len(difference)
    t, p = _t_test(difference)
    low, high = _t_interval(difference, 0.95)
    row = {
        "n_subjects": int(chosen[0]["n_subjects"].iloc[0]), "n": n, "mean_a": first.mean(), "mean_b": second.mean(),
        "difference": difference.mean(), "low": low, "high": high, "t": t, "dof": n - 1, "p": p,
    }  # fmt: skip
    if np.isnan(t):
        return {name: row.get(name, np.nan) for name in _COLUMNS}
    signs = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES, vectorized=True, rng=0
    )
    d_low, d_high = _bootstrap_d(difference)
    normal_low, normal_high = pg.compute_esci(stat=t / np.sqrt(n), nx=n, paired=True, decimals=12)
    return row | {
        "p_permutation": float(signs.pvalue), "bf10": float(pg.bayesfactor_ttest(t, n, paired=True)),
        "d": t / np.sqrt(n), "d_low": d_low, "d_high": d_high, "d_normal_low": normal_low, "d_normal_high": normal_high,
    }  # fmt: skip


def seed_model(results: pd.DataFrame, a: str = "pretrained", b: str = "scratch") -> pd.DataFrame:
    """The difference between two variants with subjects and seeds as crossed random effects, per fraction.

    A t-test over the subjects of one trained pair asks what another subject would give; this asks what another subject
    *and* another training would: difference = mean + subject + seed + rest, fitted by REML (statsmodels' MixedLM). The
    interval is mean ± t·SE with Satterthwaite's degrees of freedom (1946), since a few seeds are few.

    Returns
    -------
    `fraction, n_subjects, n_seeds, n, difference, low, high, dof, p, sd_subject, sd_seed, sd_rest`; fractions with one
    seed only are left out

    Raises
    ------
    ValueError
        If a seed has results of one variant only, or on other subjects.
    """
    rows = []
    for fraction in sorted(results["fraction"].unique().tolist()):
        group = results[results["variant"].isin([a, b]) & (results["fraction"] == fraction)]
        means = group.groupby(["subject", "seed", "variant"])["accuracy"].mean().unstack()
        if set(means.columns) < {a, b} or group["seed"].nunique() < 2:
            continue
        wide = (means[a] - means[b]).unstack("seed")
        if wide.isna().any(axis=None):
            bad = wide.columns[wide.isna().any()].tolist()
            raise ValueError(f"{a} and {b} at {100 * fraction:g}%: seeds {bad} lack results of a variant or a subject")
        variances = _crossed_variances(wide)
        n, seeds = wide.shape
        squares = {
            "subject": (seeds * variances["subject"] + variances["rest"], n - 1),
            "seed": (n * variances["seed"] + variances["rest"], seeds - 1),
            "rest": (-variances["rest"], (n - 1) * (seeds - 1)),
        }
        total = sum(square for square, _ in squares.values())
        dof = total**2 / sum(square**2 / k for square, k in squares.values()) if total > 0 else np.nan
        mean, error = wide.to_numpy().mean(), np.sqrt(total / (n * seeds))
        half = stats.t.ppf(0.975, dof) * error
        p = 2 * stats.t.sf(abs(mean) / error, dof) if total > 0 else np.nan
        sd = {f"sd_{name}": np.sqrt(variance) for name, variance in variances.items()}
        rows.append(
            {"fraction": fraction, "n_subjects": group["n_subjects"].iloc[0], "n_seeds": seeds, "n": n,
             "difference": mean, "low": mean - half, "high": mean + half, "dof": dof, "p": p, **sd}
        )  # fmt: skip
    names = ["fraction", "n_subjects", "n_seeds", "n", "difference", "low", "high", "dof", "p"]
    return pd.DataFrame(rows, columns=[*names, "sd_subject", "sd_seed", "sd_rest"])


def _crossed_variances(wide: pd.DataFrame) -> dict[str, float]:
    """REML variances of subject, seed and rest of a table subjects × seeds."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    long = wide.reset_index().melt("subject", var_name="seed", value_name="difference")
    scale = long["difference"].std() or 1.0
    long["difference"] /= scale  # so that the optimiser's tolerances fit
    effects = {"subject": "0 + C(subject)", "seed": "0 + C(seed)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of zero lies on the boundary, of which statsmodels warns
        model = MixedLM.from_formula("difference ~ 1", long, groups=np.ones(len(long)), vc_formula=effects)
        fit = model.fit(reml=True)
    found = dict(zip(model.exog_vc.names, fit.vcomp, strict=True))
    return {name: scale**2 * float(v) for name, v in (*found.items(), ("rest", fit.scale))}


def subjects_saved(
    results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", n_resamples: int = 2000
) -> pd.DataFrame:
    """How many training subjects `b` needs to be as good as `a` is with n: what pre-training is worth, in subjects.

    The mean accuracy of `b` is interpolated linearly in log n between the sizes of the sweep; the smallest size that
    reaches the accuracy counts. Intervals are 95% percentile bootstraps over the held-out subjects.

    Returns
    -------
    `n_subjects, accuracy, equivalent, low, high, saved`: equivalent is the number of subjects of `b`; infinite where
    `b` never reaches the accuracy, and the smallest size of the sweep where that one reaches it already
    """
    means = subject_means(results).groupby(["variant", "n_subjects", "subject"])["accuracy"].mean()
    curves = [means[v].unstack("subject").sort_index(axis=1) for v in (a, b)]
    if unpaired := sorted(set(curves[0].columns) ^ set(curves[1].columns)):
        raise ValueError(f"{a} and {b} were not tested on the same subjects: {unpaired}")
    sizes = curves[1].index.to_numpy(float)
    draws = np.random.default_rng(0).integers(0, curves[0].shape[1], (n_resamples, curves[0].shape[1]))
    draws = np.vstack([np.arange(curves[0].shape[1]), draws])  # the first is the sample itself
    targets, reached = (curve.to_numpy()[:, draws].mean(axis=2) for curve in curves)  # (sizes, resamples)
    rows = []
    for n, accuracy in zip(curves[0].index, targets, strict=True):
        equivalent = np.array([_first_reached(y, goal, sizes) for y, goal in zip(reached.T, accuracy, strict=True)])
        low, high = np.quantile(equivalent[1:], [0.025, 0.975], method="inverted_cdf")
        rows.append((n, accuracy[0], equivalent[0], low, high, equivalent[0] - n))
    return pd.DataFrame(rows, columns=["n_subjects", "accuracy", "equivalent", "low", "high", "saved"])


def _first_reached(curve: np.ndarray, goal: float, sizes: np.ndarray) -> float:
    """The smallest size at which a curve, linear in log size, reaches the goal."""
    above = np.flatnonzero(curve >= goal)
    if len(above) == 0:
        return np.inf
    i = above[0]
    if i == 0:
        return float(sizes[0])
    share = (goal - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(np.exp(np.log(sizes[i - 1]) + share * np.log(sizes[i] / sizes[i - 1])))


def _t_test(difference: np.ndarray) -> tuple[float, float]:
    """t and two-sided p of a mean against zero; NaN where there is no variance."""
    import pingouin as pg

    if len(difference) < 2 or np.ptp(difference) < 1e-12:
        return np.nan, np.nan
    test = pg.ttest(difference, 0.0)
    return float(test["T"].iloc[0]), float(test["p_val"].iloc[0])


def _t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _bootstrap_d(difference: np.ndarray) -> tuple[float, float]:
    def d(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sample.mean(axis=axis) / sample.std(axis=axis, ddof=1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with two or three subjects some resamples have no variance: NaN
        interval = stats.bootstrap((difference,), d, n_resamples=_RESAMPLES, method="BCa", rng=0).confidence_interval
    return float(interval.low), float(interval.high)
