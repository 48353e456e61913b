"""Does a decoder's score depend on how much people move?"""

import numpy as np
import pandas as pd

from deeplight_core.analysis.statistics import subject_means

__all__ = ["motion_correlations", "scores_and_motion"]

_LEAST = 4  # subjects for a correlation with an interval


def scores_and_motion(results: pd.DataFrame, motion: pd.DataFrame) -> pd.DataFrame:
    """Each held-out subject's score at the largest fraction of each variant, beside the subject's motion.

    Parameters
    ----------
    results : results of one measure, as `statistics.only` gives them
    motion : `unit, mean_fd_mm`, a row for each unit whose motion is known

    Returns
    -------
    `variant, fraction, subject, score, n_subjects, mean_fd_mm`
    """
    if results.empty or motion.empty:
        return pd.DataFrame(columns=["variant", "fraction", "subject", "score", "n_subjects", "mean_fd_mm"])
    means = subject_means(results)
    largest = means[means["fraction"] == means.groupby("variant")["fraction"].transform("max")]
    known = motion.set_index("unit")["mean_fd_mm"]
    return largest.assign(mean_fd_mm=largest["subject"].map(known)).dropna(subset="mean_fd_mm").reset_index(drop=True)


def motion_correlations(scored: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of score and framewise displacement over subjects: `variant, n, r, low, high, p`.

    The interval is 95%, by Fisher's transformation. All are NaN where fewer than four subjects are known, or all have
    the same score or displacement.

    Parameters
    ----------
    scored : as `scores_and_motion` gives it
    """
    from pingouin import corr

    rows = []
    for variant, of_variant in scored.groupby("variant", sort=False):
        score, fd = of_variant["score"], of_variant["mean_fd_mm"]
        values = (np.nan,) * 4
        if len(of_variant) >= _LEAST and min(np.ptp(score), np.ptp(fd)) > 0:
            found = corr(fd, score, method="spearman").iloc[0]
            values = (found["r"], *found["CI95"], found["p_val"])
        rows.append((variant, len(of_variant), *map(float, values)))
    return pd.DataFrame(rows, columns=["variant", "n", "r", "low", "high", "p"])
