"""From one tidy table of subject accuracies to paired tests. Subjects are the unit.

Knows no files and no models: reads `variant, fraction, n_subjects, seed, subject, accuracy`, gives tables.
"""

import numpy as np
import pandas as pd
from scipy import stats

__all__ = ["compare", "mean_intervals", "subject_means"]


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
        rows.append(
            {"variant": variant, "fraction": fraction, "n_subjects": group["n_subjects"].iloc[0], "n": len(group),
             "mean": group["accuracy"].mean(), "low": low, "high": high}
        )  # fmt: skip
    return pd.DataFrame(rows)


def compare(results: pd.DataFrame, a: str = "pretrained", b: str = "scratch", alpha: float = 0.05) -> pd.DataFrame:
    """Paired t-tests of two variants over the same held-out subjects, one per fraction, Bonferroni over the fractions.

    Parameters
    ----------
    results : the results table; several seeds are averaged per subject first
    a, b : the variants; a positive difference means that `a` is better
    alpha : family-wise error rate; a fraction is significant if p < alpha / number of fractions

    Returns
    -------
    `fraction, n_subjects, n, mean_a, mean_b, difference, low, high` (95% t interval of the difference), `t, dof, p,
    p_bonferroni, d, d_low, d_high` (standardised mean difference d_z = t/√n with its 95% interval from the large-sample
    standard error √(1/n + d²/2n), Hedges & Olkin 1985, as pingouin has it), `significant`

    Raises
    ------
    ValueError
        If a variant is absent, or the two were not tested on the same subjects.
    """
    import pingouin as pg

    means = subject_means(results)
    wide = means.pivot(index=["fraction", "subject"], columns="variant", values="accuracy")
    if absent := [v for v in (a, b) if v not in wide.columns]:
        raise ValueError(f"no results of variant {', '.join(absent)}; there are {', '.join(wide.columns)}")
    pairs = wide[[a, b]].dropna(how="all")
    if pairs.isna().any(axis=None):
        unpaired = pairs[pairs.isna().any(axis=1)].index.tolist()
        raise ValueError(f"{a} and {b} were not tested on the same subjects: {unpaired}")
    trained_on = means.groupby("fraction")["n_subjects"].first().to_dict()
    n_tests = pairs.index.get_level_values("fraction").nunique()
    rows = []
    for fraction, group in pairs.groupby(level="fraction"):
        difference = (group[a] - group[b]).to_numpy()
        n = len(difference)
        if n < 2 or np.ptp(difference) == 0:  # no variance: no test
            t = p = np.nan
        else:
            test = pg.ttest(group[a], group[b], paired=True)
            t, p = float(test["T"].iloc[0]), float(test["p_val"].iloc[0])
        low, high = _t_interval(difference, 0.95)
        d = t / np.sqrt(n)
        d_low, d_high = pg.compute_esci(stat=d, nx=n, paired=True, decimals=12) if np.isfinite(d) else (np.nan, np.nan)
        rows.append(
            {"fraction": fraction, "n_subjects": int(trained_on[fraction]), "n": n, "mean_a": group[a].mean(),
             "mean_b": group[b].mean(), "difference": difference.mean(), "low": low, "high": high, "t": t, "dof": n - 1,
             "p": p, "p_bonferroni": min(1.0, p * n_tests) if np.isfinite(p) else np.nan,
             "d": d, "d_low": d_low, "d_high": d_high, "significant": bool(p < alpha / n_tests)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)
