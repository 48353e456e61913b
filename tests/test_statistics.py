import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from deeplight_core.statistics import compare, mean_intervals, subject_means


def results(
    effects: dict[float, float], n: int = 12, seeds: tuple[int, ...] = (1,), noise: float = 0.05
) -> pd.DataFrame:
    random = np.random.default_rng(3)
    rows = []
    for fraction, effect in effects.items():
        for subject in range(n):
            base = random.normal(0.5, 0.1)
            for seed in seeds:
                for variant, shift in (("pretrained", effect), ("scratch", 0.0)):
                    accuracy = base + shift + random.normal(0, noise)
                    rows.append(
                        ("supervised", variant, fraction, int(30 * fraction), seed, "WM", f"s{subject}", accuracy, 90)
                    )
    return pd.DataFrame(
        rows, columns=["route", "variant", "fraction", "n_subjects", "seed", "task", "subject", "accuracy", "n_volumes"]
    )


def test_t_tests_equal_scipy():
    table = results({0.1: 0.2, 0.5: 0.02, 1.0: 0.0})
    comparison = compare(table).set_index("fraction")
    for fraction, group in table.groupby("fraction"):
        a, b = (
            group[group["variant"] == v].sort_values("subject")["accuracy"].to_numpy()
            for v in ("pretrained", "scratch")
        )
        expected = stats.ttest_rel(a, b)
        row = comparison.loc[fraction]
        assert row["t"] == pytest.approx(expected.statistic, rel=1e-6)
        assert row["p"] == pytest.approx(expected.pvalue, rel=1e-6)
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)
        assert row["d"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1), rel=1e-6)
        assert row["d_low"] < row["d"] < row["d_high"]


def test_a_case_computed_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, SD 0.1, t = 0.2 / (0.1 / √3) = 2√3, two degrees of freedom."""
    table = pd.DataFrame(
        {
            "variant": ["pretrained"] * 3 + ["scratch"] * 3, "fraction": 1.0, "n_subjects": 3, "seed": 1, "task": "WM",
            "subject": ["a", "b", "c"] * 2, "accuracy": [0.6, 0.7, 0.8, 0.5, 0.5, 0.5],
        }
    )  # fmt: skip
    row = compare(table).iloc[0]
    assert row["difference"] == pytest.approx(0.2)
    assert row["t"] == pytest.approx(2 * np.sqrt(3))
    assert row["dof"] == 2
    assert row["d"] == pytest.approx(2.0)


def test_bonferroni_equals_statsmodels():
    comparison = compare(results({0.1: 0.2, 0.2: 0.05, 0.5: 0.03, 1.0: 0.0}))
    reject, corrected, *_ = multipletests(comparison["p"], alpha=0.05, method="bonferroni")
    assert comparison["p_bonferroni"].to_numpy() == pytest.approx(corrected)
    assert comparison["significant"].tolist() == reject.tolist()
    assert comparison["significant"].any()
    assert not comparison["significant"].all()


def test_seeds_are_averaged_before_the_test():
    table = results({0.1: 0.1}, seeds=(1, 2, 3))
    averaged = table.groupby(["variant", "fraction", "n_subjects", "subject"], as_index=False)["accuracy"].mean()
    row = compare(table).iloc[0]
    assert row["n"] == 12
    assert row["t"] == pytest.approx(compare(averaged.assign(seed=0)).iloc[0]["t"])
    assert len(subject_means(table)) == 24


def test_the_interval_of_the_mean_equals_scipy():
    table = results({0.1: 0.2})
    row = mean_intervals(table).set_index("variant").loc["scratch"]
    accuracy = table[table["variant"] == "scratch"]["accuracy"]
    low, high = stats.t.interval(0.95, len(accuracy) - 1, accuracy.mean(), stats.sem(accuracy))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((accuracy.mean(), low, high))


def test_intervals_cover_and_the_test_keeps_its_level():
    """400 experiments without an effect: 95% intervals cover 0, and no more than 5% (+3 SE) reject."""
    random = np.random.default_rng(0)
    covered = rejected = 0
    for _ in range(400):
        accuracy = random.normal(0.5, 0.1, (2, 8))
        table = pd.DataFrame(
            {"variant": np.repeat(["pretrained", "scratch"], 8), "fraction": 1.0, "n_subjects": 1, "seed": 1,
             "subject": [*"abcdefgh"] * 2, "accuracy": accuracy.ravel()}
        )  # fmt: skip
        row = compare(table).iloc[0]
        covered += row["low"] <= 0 <= row["high"]
        rejected += row["significant"]
    assert 0.95 - 3 * 0.011 < covered / 400 < 0.95 + 3 * 0.011
    assert rejected / 400 < 0.05 + 3 * 0.011


def test_equal_variants_are_not_significant_and_do_not_fail():
    table = results({1.0: 0.0}, noise=0.0)
    row = compare(table).iloc[0]
    assert row["difference"] == 0
    assert np.isnan(row["t"])
    assert not row["significant"]


def test_an_absent_variant_is_named():
    with pytest.raises(ValueError, match="no results of variant linear"):
        compare(results({1.0: 0.1}), "pretrained", "linear")


def test_unpaired_subjects_are_refused():
    table = results({1.0: 0.1})
    with pytest.raises(ValueError, match=r"same subjects.*s3"):
        compare(table[~((table["subject"] == "s3") & (table["variant"] == "scratch"))])
