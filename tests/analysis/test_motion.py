import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deeplight_core.analysis.motion import motion_correlations, scores_and_motion

N = 12


def results() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of two variants and fractions; pre-trained scores fall with motion, but only at the largest fraction."""
    random = np.random.default_rng(0)
    fd = pd.Series(random.exponential(0.2, N), index=[f"s{i:02d}" for i in range(N)])
    rows = [
        (variant, fraction, 10 * fraction, seed, "WM", subject,
         0.8 - 0.5 * moved * (fraction == 1 and variant == "pretrained") + 0.02 * random.normal())
        for variant in ("pretrained", "scratch") for fraction in (0.5, 1.0) for seed in (1, 2)
        for subject, moved in fd.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"])
    return table, fd.rename_axis("unit").reset_index(name="mean_fd_mm")


def test_scores_at_the_largest_fraction_stand_beside_motion() -> None:
    table, motion = results()
    scored = scores_and_motion(table, motion[1:])
    assert len(scored) == 2 * (N - 1)  # whose motion is known
    assert set(scored["fraction"]) == {1.0}
    known = motion.set_index("unit")["mean_fd_mm"]
    for row in scored.to_dict("records"):
        cell = table[
            (table["variant"] == row["variant"]) & (table["fraction"] == 1) & (table["subject"] == row["subject"])
        ]
        assert row["score"] == pytest.approx(cell["score"].mean())
        assert row["mean_fd_mm"] == known[row["subject"]]


def test_correlations_are_spearmans() -> None:
    scored = scores_and_motion(*results())
    found = motion_correlations(scored).set_index("variant")
    for variant, rows in scored.groupby("variant"):
        expected = stats.spearmanr(rows["mean_fd_mm"], rows["score"])
        assert found.loc[variant, "r"] == pytest.approx(expected.statistic, abs=1e-9)
        assert found.loc[variant, "p"] == pytest.approx(expected.pvalue, abs=1e-9)
        half = stats.norm.ppf(0.975) / np.sqrt(N - 3)
        limits = np.tanh(np.arctanh(expected.statistic) + np.array([-half, half]))
        np.testing.assert_allclose(found.loc[variant, ["low", "high"]].astype(float), limits, atol=0.006)  # 2 places
    assert found.loc["pretrained", "high"] < 0
    assert found.loc["scratch", "low"] < 0 < found.loc["scratch", "high"]


def test_few_or_equal_subjects_have_no_correlation() -> None:
    scored = scores_and_motion(*results())
    assert motion_correlations(scored.groupby("variant").head(3))["r"].isna().all()
    assert motion_correlations(scored.assign(mean_fd_mm=0.1))["r"].isna().all()
    assert motion_correlations(scored.assign(score=0.5))["p"].isna().all()
    table, motion = results()
    assert scores_and_motion(table, motion[:0]).empty
    assert motion_correlations(scores_and_motion(table, motion[:0])).empty
