from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests

from deeplight_core.analysis import statistics
from deeplight_core.analysis.crossed import seed_model
from deeplight_core.analysis.statistics import (
    against_chance,
    compare,
    compare_cells,
    compare_changes,
    compare_fold_values,
    compare_folds,
    fold_intervals,
    mean_intervals,
    only,
    subject_means,
    subjects_saved,
)


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
        rows, columns=["route", "variant", "fraction", "n_subjects", "seed", "task", "subject", "score", "n"]
    )


def test_t_tests_equal_scipy():
    table = results({0.1: 0.2, 0.5: 0.02, 1.0: 0.0})
    comparison = compare(table).set_index("fraction")
    for fraction, group in table.groupby("fraction"):
        a, b = (
            group[group["variant"] == v].sort_values("subject")["score"].to_numpy() for v in ("pretrained", "scratch")
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
            "subject": ["a", "b", "c"] * 2, "score": [0.6, 0.7, 0.8, 0.5, 0.5, 0.5],
        }
    )  # fmt: skip
    row = compare(table).iloc[0]
    assert row["difference"] == pytest.approx(0.2)
    assert row["t"] == pytest.approx(2 * np.sqrt(3))
    assert row["dof"] == 2
    assert row["d"] == pytest.approx(2.0)


@pytest.mark.parametrize(("method", "flag"), [("bonferroni", "significant"), ("holm", "significant_holm")])
def test_corrections_equal_those_computed_by_hand(method, flag):
    comparison = compare(results({0.1: 0.2, 0.2: 0.05, 0.5: 0.035, 1.0: 0.0}))
    p, n = comparison["p"].to_numpy(), len(comparison)
    expected = np.minimum(p * n, 1)
    if method == "holm":
        highest = 0.0
        for rank, i in enumerate(np.argsort(p)):
            highest = max(highest, min(p[i] * (n - rank), 1))
            expected[i] = highest
    assert comparison[f"p_{method}"].to_numpy() == pytest.approx(expected)
    assert comparison[flag].tolist() == [value < 0.05 for value in expected]
    assert comparison[flag].any()
    assert not comparison[flag].all()


def test_fractions_of_one_variant_only_are_left_out():
    table = results({0.1: 0.2, 1.0: 0.1})
    comparison = compare(table[(table["fraction"] == 0.1) | (table["variant"] == "scratch")])
    assert comparison["fraction"].tolist() == [0.1]
    assert compare(table[(table["fraction"] == 0.1) == (table["variant"] == "scratch")]).empty


def test_permutation_p_equals_all_signs_counted():
    table = results({1.0: 0.04}, n=8)
    wide = table.pivot(index="subject", columns="variant", values="score")
    difference = (wide["pretrained"] - wide["scratch"]).to_numpy()
    means = np.array([abs((difference * signs).mean()) for signs in product([-1, 1], repeat=8)])
    assert compare(table).iloc[0]["p_permutation"] == pytest.approx((means >= abs(difference.mean()) - 1e-12).mean())


def test_bayes_factor_equals_its_integral():
    """JZS: the likelihood of t under d ~ Cauchy(0, √2/2), integrated, over that under d = 0 (Rouder et al. 2009)."""
    row = compare(results({1.0: 0.04})).iloc[0]
    n, t = row["n"], row["t"]
    prior = stats.cauchy(scale=np.sqrt(2) / 2).pdf
    likelihood, _ = integrate.quad(lambda d: prior(d) * stats.nct.pdf(t, n - 1, d * np.sqrt(n)), -4, 4, limit=200)
    assert row["bf10"] == pytest.approx(likelihood / stats.t.pdf(t, n - 1), rel=0.01)


def test_any_two_cells_can_be_compared():
    table = results({0.4: 0.2, 1.0: 0.0})
    a = table[(table["variant"] == "pretrained") & (table["fraction"] == 0.4)]["score"]
    b = table[(table["variant"] == "scratch") & (table["fraction"] == 1.0)]["score"]
    test = compare_cells(table, ("pretrained", 0.4), ("scratch", 1.0))
    assert test["t"] == pytest.approx(stats.ttest_rel(a, b).statistic)
    with pytest.raises(ValueError, match="no results of linear at 40%"):
        compare_cells(table, ("linear", 0.4), ("scratch", 1.0))


def test_chance_is_tested_as_scipy_does():
    table = results({0.1: 0.2, 1.0: 0.1})
    rows = against_chance(table, 0.45)
    assert len(rows) == 4
    for row in rows.itertuples():
        chosen = table[(table["variant"] == row.variant) & (table["fraction"] == row.fraction)]["score"]
        expected = stats.ttest_1samp(chosen, 0.45)
        assert (row.t, row.p) == pytest.approx((expected.statistic, expected.pvalue))
        assert row.p_bonferroni == pytest.approx(min(1, 4 * expected.pvalue))


def test_chance_is_tested_over_the_seeds_that_the_means_are_of():
    table = results({0.1: 0.1}, seeds=(1, 2))
    table.loc[table["seed"] == 2, "score"] += 0.2
    unfinished = table[(table["seed"] == 1) | (table["variant"] == "scratch")]
    columns = ["variant", "mean", "low", "high", "t", "p"]
    assert against_chance(unfinished, 0.5)[columns].equals(against_chance(table[table["seed"] == 1], 0.5)[columns])


# ---- subjects saved


def curves(pretrained, scratch, random=None, sizes=(1, 3, 10, 30), subjects=30):
    """Results on two given curves; each subject is off by a little of its own at every size if `random` is given."""
    rows = [
        (v, n / 30, n, 1, "WM", f"s{i}", mean + (random.normal(0, 0.05) if random else 0))
        for v, means in (("pretrained", pretrained), ("scratch", scratch))
        for n, mean in zip(sizes, means, strict=True) for i in range(subjects)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"])


def test_saved_subjects_of_a_case_computed_by_hand():
    """0.5 lies half-way between 0.4 at 3 and 0.6 at 10: √30 subjects. 0.2 is below the curve, 0.9 above it."""
    table = subjects_saved(curves([0.2, 0.5, 0.6, 0.9], [0.3, 0.4, 0.6, 0.8])).set_index("n_subjects")
    assert table["equivalent"].tolist() == pytest.approx([1, np.sqrt(30), 10, np.inf])
    assert table["saved"].tolist() == pytest.approx([0, np.sqrt(30) - 3, 0, np.inf])
    assert table["low"].to_numpy() == pytest.approx(table["equivalent"].to_numpy())  # no variance between subjects
    assert table["at_most"].tolist() == [True, False, False, False]


def test_interval_of_saved_subjects_is_over_trainings_too():
    """Without variance between subjects, the interval is from the worse training alone to the better one alone."""
    low, high = curves([0.5] * 4, [0.4, 0.6, 0.7, 0.8]), curves([0.7] * 4, [0.3, 0.4, 0.6, 0.8]).assign(seed=2)
    each = [subjects_saved(table)["equivalent"].iloc[0] for table in (low, high)]
    both = subjects_saved(pd.concat([low, high])).iloc[0]
    assert both[["low", "high"]].tolist() == pytest.approx(each)
    assert each[0] < both["equivalent"] < each[1]
    lacking = pd.concat([low, high[high["n_subjects"] != 30]])  # the largest size has one training: all are averaged
    row = subjects_saved(lacking).iloc[0]
    assert row[["low", "equivalent", "high"]].tolist() == pytest.approx([both["equivalent"]] * 3)


def test_a_curve_that_falls_counts_where_it_is_first_reached():
    assert subjects_saved(curves([0.5] * 4, [0.3, 0.6, 0.2, 0.9]))["equivalent"].to_numpy() == pytest.approx(
        np.exp(np.log(3) * 2 / 3)
    )


def test_interval_of_saved_subjects_covers():
    random, n, covered = np.random.default_rng(4), 300, 0
    for _ in range(n):
        row = subjects_saved(curves([0.5, 0.6, 0.7, 0.8], [0.3, 0.4, 0.6, 0.8], random), n_resamples=300).iloc[0]
        covered += row["low"] <= np.sqrt(30) <= row["high"]
    assert covered / n == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / n))


# ---- what else the reported numbers promise


@pytest.mark.parametrize(("n", "effect"), [(100, 0.8), (10, 0.8), (10, 3.0), (4, 1.0)])
def test_intervals_of_d_cover(n, effect, monkeypatch):
    """That of the noncentral t always; the bootstrap with 100 subjects, and less with few, as its docstring says."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 300)
    random, covered, repeats = np.random.default_rng(5), np.zeros(2), 200
    for _ in range(repeats):
        table = pd.DataFrame(
            {"variant": np.repeat(["pretrained", "scratch"], n), "fraction": 1.0, "n_subjects": 1, "seed": 1,
             "task": "WM", "subject": np.tile(np.arange(n), 2),
             "score": np.r_[random.normal(effect, 1, n), np.zeros(n)]}
        )  # fmt: skip
        row = compare(table).iloc[0]
        covered += [row["d_low"] <= effect <= row["d_high"], row["d_t_low"] <= effect <= row["d_t_high"]]
    bootstrap, exact = covered / repeats
    error = 3 * np.sqrt(0.95 * 0.05 / repeats)
    assert exact == pytest.approx(0.95, abs=error)
    assert 0.5 < bootstrap < 0.95 + error
    if n == 100:
        assert bootstrap > 0.95 - error


@pytest.mark.parametrize(("t", "n"), [(2.0, 10), (-2.0, 10), (50.0, 100), (520.0, 10), (12.0, 2), (-3.0, 4), (1e6, 4)])
def test_the_interval_of_d_has_the_t_value_at_its_percentiles(t, n):
    low, high = statistics._noncentral_d(t, n)
    assert low < t / np.sqrt(n) < high
    for d, share in ((low, 0.975), (high, 0.025)):
        draws = np.random.default_rng(0).normal(d * np.sqrt(n), 1, 200_000)
        draws /= np.sqrt(np.random.default_rng(1).chisquare(n - 1, 200_000) / (n - 1))
        assert (draws < t).mean() == pytest.approx(share, abs=0.003)


def test_variants_are_compared_over_the_seeds_that_both_have():
    """Another seed trains on other subjects; a difference between seeds must not look like one between variants."""
    table = results({0.1: 0.0, 1.0: 0.0}, seeds=(1, 2))
    table.loc[table["seed"] == 2, "score"] += 0.2
    unfinished = table[~((table["seed"] == 2) & (table["variant"] == "scratch") & (table["fraction"] == 0.1))]
    one_seed = table[(table["seed"] == 1) & (table["fraction"] == 0.1)]
    rows = compare(unfinished).set_index("fraction")
    assert rows["n_seeds"].tolist() == [1, 2]
    assert rows.loc[0.1, "t"] == pytest.approx(compare(one_seed).iloc[0]["t"])
    means = mean_intervals(unfinished)
    assert means.loc[means["fraction"] == 0.1, "mean"].max() < 0.6
    across = compare_cells(unfinished, ("pretrained", 1.0), ("scratch", 0.1))
    assert across["n_seeds"] == 1
    assert abs(across["difference"]) < 0.1
    disjoint = table[(table["seed"] == 1) == (table["variant"] == "scratch")]
    assert compare(disjoint).empty
    with pytest.raises(ValueError, match="no seed in common"):
        compare_cells(disjoint, ("pretrained", 1.0), ("scratch", 0.1))


def test_an_unfinished_grid_is_corrected_for_the_tests_that_were_planned():
    table = results({0.1: 0.2, 0.2: 0.04, 0.5: 0.0})
    whole = compare(table).set_index("fraction")
    part = compare(table[table["fraction"] < 0.5], n_tests=3).set_index("fraction")
    assert part["p_bonferroni"].to_numpy() == pytest.approx(whole["p_bonferroni"][:2].to_numpy())
    assert part["p_holm"].to_numpy() == pytest.approx(np.minimum(1, whole["p"][:2].to_numpy() * [3, 2]))


def test_seeds_are_averaged_before_the_test():
    table = results({0.1: 0.1}, seeds=(1, 2, 3))
    averaged = table.groupby(["variant", "fraction", "n_subjects", "task", "subject"], as_index=False)["score"].mean()
    row = compare(table).iloc[0]
    assert row["n"] == 12
    assert row["t"] == pytest.approx(compare(averaged.assign(seed=0)).iloc[0]["t"])
    assert len(subject_means(table)) == 24


def test_the_interval_of_the_mean_equals_scipy():
    table = results({0.1: 0.2})
    row = mean_intervals(table).set_index("variant").loc["scratch"]
    accuracy = table[table["variant"] == "scratch"]["score"]
    low, high = stats.t.interval(0.95, len(accuracy) - 1, accuracy.mean(), stats.sem(accuracy))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((accuracy.mean(), low, high))


def test_intervals_cover_and_corrected_tests_keep_their_level(monkeypatch):
    """Experiments without an effect, three fractions on the same subjects: each interval covers 0 in 95% of them, and
    no more than 5% of them reject anywhere."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 50)
    random, n = np.random.default_rng(0), 200
    covered, rejected = [], {"significant": 0, "significant_holm": 0}
    for _ in range(n):
        subject = random.normal(0, 0.1, (2, 1, 8))  # fractions share the subjects, so their tests are correlated
        accuracy = 0.5 + subject + random.normal(0, 0.1, (2, 3, 8))
        table = pd.DataFrame(
            {"variant": np.repeat(["pretrained", "scratch"], 24), "fraction": np.tile(np.repeat([0.1, 0.5, 1.0], 8), 2),
             "n_subjects": 1, "seed": 1, "task": "WM", "subject": [*"abcdefgh"] * 6, "score": accuracy.ravel()}
        )  # fmt: skip
        rows = compare(table)
        covered += ((rows["low"] <= 0) & (rows["high"] >= 0)).tolist()
        for rule in rejected:
            rejected[rule] += rows[rule].any()
    error = np.sqrt(0.95 * 0.05 / n)
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * error)
    assert all(0 < count / n < 0.05 + 3 * error for count in rejected.values())


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


# ---- one measure, level and target; the fixed split


def measured(table: pd.DataFrame, measure="accuracy", level="volume", target="state", fold=0) -> pd.DataFrame:
    return table.assign(measure=measure, level=level, target=target, fold=fold)


def as_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The same results as an error: what was high is low."""
    return measured(table.assign(score=10 * (1 - table["score"])), "absolute_error", target="age")


def test_only_takes_one_measure_level_and_target():
    table = results({1.0: 0.1})
    blocks, errors = measured(table, level="block"), as_errors(table)
    everything = pd.concat([measured(table), blocks, errors], ignore_index=True)
    assert only(everything).equals(everything[:24])
    assert only(everything, level="block")["score"].tolist() == blocks["score"].tolist()
    assert only(everything, "absolute_error")["score"].tolist() == errors["score"].tolist()
    assert only(everything, "absolute_error", target="age")["score"].tolist() == errors["score"].tolist()
    assert only(everything[:0]).empty  # nothing has been trained yet


def test_only_names_what_is_there():
    table = results({1.0: 0.1})
    everything = pd.concat([measured(table), as_errors(table)])
    there = r"there are accuracy, volume, state; absolute_error, volume, age"
    for asked in ({"level": "block"}, {"measure": "r2"}, {"target": "age"}):
        with pytest.raises(ValueError, match=there):
            only(everything, **asked)
    two = pd.concat([as_errors(table), as_errors(table).assign(target="weight")])
    with pytest.raises(ValueError, match=r"targets age, weight: name one of them"):
        only(two, "absolute_error")


def test_tables_of_several_measures_levels_or_targets_are_refused():
    table = results({1.0: 0.1}, seeds=(1, 2))
    mixed = pd.concat([measured(table), measured(table, level="block")])
    for use in (subject_means, compare, seed_model, subjects_saved):
        with pytest.raises(ValueError, match=r"several levels \(volume, block\): take one with `only`"):
            use(mixed)
    with pytest.raises(ValueError, match=r"measures \(accuracy, absolute_error\) and several targets \(state, age\)"):
        compare_cells(pd.concat([measured(table), as_errors(table)]), ("pretrained", 1.0), ("scratch", 1.0))


def test_of_an_error_less_is_better():
    """Every number of 10 × (1 − accuracy) follows from that of the accuracy; `better` stays as it is."""
    table = results({0.1: 0.2, 0.5: -0.1, 1.0: 0.0}, seeds=(1, 2, 3))
    for test in (compare, seed_model):
        high, low = test(measured(table)), test(as_errors(table))
        assert low["better"].tolist() == high["better"].tolist() == (high["difference"] > 0).tolist()
        assert low["better"].nunique() == 2
        assert low["difference"].to_numpy() == pytest.approx(-10 * high["difference"].to_numpy())
        assert low["low"].to_numpy() == pytest.approx(-10 * high["high"].to_numpy())
        assert low["p"].to_numpy() == pytest.approx(high["p"].to_numpy())
    guessed, wrong = against_chance(measured(table), 0.5), against_chance(as_errors(table), 5)
    assert wrong["better"].tolist() == guessed["better"].tolist() == (guessed["mean"] > 0.5).tolist()
    assert wrong["better"].nunique() == 2
    assert wrong["t"].to_numpy() == pytest.approx(-guessed["t"].to_numpy())


def test_subjects_are_saved_of_an_error_too():
    table = curves([0.2, 0.5, 0.6, 0.9], [0.3, 0.4, 0.6, 0.8], np.random.default_rng(3))
    high, low = subjects_saved(measured(table)), subjects_saved(as_errors(table))
    assert low["score"].to_numpy() == pytest.approx(10 * (1 - high["score"].to_numpy()))
    columns = ["n_subjects", "equivalent", "low", "high", "saved", "at_most"]
    assert low[columns].to_numpy(float) == pytest.approx(high[columns].to_numpy(float))


def test_the_fixed_split_is_not_mixed_with_folds():
    table = results({0.1: 0.2, 1.0: 0.1}, seeds=(1, 2))
    fixed = measured(table)
    with_folds = pd.concat([fixed, *(measured(table.assign(score=0.0), fold=fold) for fold in (1, 2))])
    for use in (subject_means, mean_intervals, compare, seed_model, subjects_saved):
        assert use(with_folds).equals(use(fixed)), use.__name__
    cells = ("pretrained", 0.1), ("scratch", 1.0)
    assert compare_cells(with_folds, *cells) == compare_cells(fixed, *cells)
    with pytest.raises(ValueError, match=r"folds 1, 2 .*`compare_folds`"):
        compare(with_folds[with_folds["fold"] > 0])


# ---- cross-validation


def cross_validated(differences: list[float], seeds=(1, 2), fraction=1.0, n_subjects=4) -> pd.DataFrame:
    """Two subjects per fold, which lie 0.1 above and below its difference, as do the seeds."""
    rows = [
        (variant, fraction, n_subjects, seed, fold, "WM", f"s{2 * fold + i}",
         0.4 + (variant == "pretrained") * (difference + 0.1 * (-1) ** i + 0.1 * (-1) ** seed))
        for fold, difference in enumerate(differences, start=1) for i in (0, 1) for seed in seeds
        for variant in ("pretrained", "scratch")
    ]  # fmt: skip
    columns = ["variant", "fraction", "n_subjects", "seed", "fold", "task", "subject", "score"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(measure="accuracy", level="volume", target="state")


def test_folds_of_a_case_computed_by_hand():
    """Differences 0.1 … 0.4: mean 0.25, variance 1/60; (1/4 + 2/4) / 60 = 1/80, so t = 0.25 √80 = √5, three dof."""
    table = pd.concat([cross_validated([0.1, 0.2, 0.3, 0.4]), cross_validated([0.3, -0.1], fraction=0.5, n_subjects=2)])
    half, whole = compare_folds(table).to_dict("records")
    assert (whole["n_subjects"], whole["n_folds"], whole["dof"], whole["better"]) == (4, 4, 3, True)
    assert whole["difference"] == pytest.approx(0.25)
    assert whole["t"] == pytest.approx(np.sqrt(5))
    assert whole["p"] == pytest.approx(2 * stats.t.sf(np.sqrt(5), 3))
    reach = stats.t.ppf(0.975, 3) / np.sqrt(80)
    assert (whole["low"], whole["high"]) == pytest.approx((0.25 - reach, 0.25 + reach))
    assert half["t"] == pytest.approx(0.1 / np.sqrt((1 / 2 + 2 / 2) * 0.08))
    assert whole["p_bonferroni"] == pytest.approx(2 * whole["p"])
    assert (half["p_holm"], whole["p_holm"]) == pytest.approx((max(half["p"], 2 * whole["p"]), 2 * whole["p"]))
    assert compare_folds(table, n_tests=5)["p_bonferroni"].iloc[1] == pytest.approx(5 * whole["p"])
    others = [table.assign(fold=0, score=0.0), table[table["variant"] == "scratch"].assign(fraction=0.1)]
    assert compare_folds(pd.concat([table, *others])).equals(compare_folds(table))


def test_folds_of_an_error_have_the_other_sign():
    table = cross_validated([0.1, 0.2, 0.3, 0.4])
    high, low = compare_folds(table).iloc[0], compare_folds(as_errors(table).assign(fold=table["fold"])).iloc[0]
    assert (low["difference"], low["t"], low["better"]) == pytest.approx((-10 * high["difference"], -high["t"], True))


def test_folds_that_cannot_be_compared_are_named():
    table = cross_validated([0.1, 0.2, 0.3])
    scratch = table["variant"] == "scratch"
    with pytest.raises(ValueError, match=r"seed in common .* none in fold 2 at 100%, fold 3 at 100%$"):
        compare_folds(table[~(scratch & (table["fold"] > 1))])
    with pytest.raises(ValueError, match=r"seed in common .* none in fold 2 at 100%$"):
        compare_folds(table[(table["fold"] != 2) | (scratch == (table["seed"] == 1))])
    with pytest.raises(ValueError, match=r"not tested on the same subjects: s5 \(fold 2 at 100%\)"):
        compare_folds(table[~(scratch & (table["subject"] == "s5"))])
    with pytest.raises(ValueError, match="no results of variant linear"):
        compare_folds(table, "linear")
    with pytest.raises(ValueError, match="no results of folds"):
        compare_folds(table.assign(fold=0))


def test_seeds_that_a_fold_has_of_one_variant_only_are_left_out():
    table = cross_validated([0.1, 0.2, 0.3, 0.4])
    unfinished = table[(table["fold"] != 2) | (table["seed"] == 1) | (table["variant"] == "scratch")]
    assert compare_folds(unfinished)["difference"].iloc[0] == pytest.approx((0.1 + 0.1 + 0.3 + 0.4) / 4)


def test_one_fold_or_equal_folds_have_no_test():
    row = compare_folds(cross_validated([0.2])).iloc[0]
    assert row["difference"] == pytest.approx(0.2)
    assert np.isnan(row[["low", "high", "t", "p", "p_holm"]].to_numpy(float)).all()
    row = compare_folds(cross_validated([0.2, 0.2, 0.2])).iloc[0]
    assert np.isnan(row[["t", "p"]].to_numpy(float)).all()
    assert (row["low"], row["high"]) == pytest.approx((0.2, 0.2))


def test_folds_keep_the_level_where_the_plain_test_does_not():
    """Two ridge regressions of equal worth: one sees half of the predictors, one the other half. Each study, at a
    "fraction" of its own, has 40 subjects in five folds, four times."""
    random, n, n_studies = np.random.default_rng(0), 40, 400
    rows = []
    for study in range(1, n_studies + 1):
        x = random.normal(size=(n, 8))
        y = x.mean(axis=1) * np.sqrt(8) + random.normal(size=n)
        folds = np.concatenate([repeat * 5 + random.permutation(np.arange(n) % 5) for repeat in range(4)]).reshape(4, n)
        for fold in range(20):
            held_out = folds[fold // 5] == fold
            for variant, half in (("pretrained", x[:, :4]), ("scratch", x[:, 4:])):
                seen = half[~held_out]
                weights = np.linalg.solve(seen.T @ seen + np.eye(4), seen.T @ y[~held_out])
                errors = np.abs(y[held_out] - half[held_out] @ weights)
                rows += [
                    (variant, study, fold + 1, s, e) for s, e in zip(np.flatnonzero(held_out), errors, strict=True)
                ]
    table = pd.DataFrame(rows, columns=["variant", "fraction", "fold", "subject", "score"])
    table = table.assign(n_subjects=32, seed=1, task="", measure="absolute_error", level="volume", target="age")
    corrected = compare_folds(table)
    error = np.sqrt(0.05 * 0.95 / n_studies)
    assert corrected["n_folds"].tolist() == [20] * n_studies
    assert (corrected["p"] < 0.05).mean() == pytest.approx(0.05, abs=3 * error)
    means = table.groupby(["fraction", "fold", "variant"])["score"].mean().unstack()
    plain = stats.ttest_1samp((means["pretrained"] - means["scratch"]).to_numpy().reshape(n_studies, 20), 0, axis=1)
    assert (plain.pvalue < 0.05).mean() > 0.2


def test_out_of_fold_scores_are_those_of_the_folds_that_held_a_subject_out() -> None:
    key = {
        "dataset": "d", "route": "supervised", "encoder": "deeplight", "fraction": 1.0, "seed": 1, "task": "WM",
        "target": "state", "level": "volume", "measure": "accuracy", "n": 10, "seen_volumes": 100, "seconds": 1.0,
    }  # fmt: skip
    rows = [
        {**key, "variant": variant, "subject": subject, "fold": fold, "score": score, "n_subjects": n}
        for variant, shift in (("pretrained", 0.1), ("scratch", 0.0))
        for subject, fold, score, n in [("a", 1, 0.5 + shift, 2), ("b", 1, 0.6, 2), ("c", 2, 0.4, 3), ("a", 3, 0.7, 2),
                                        ("c", 3, 0.8, 2), ("b", 4, 0.2, 3)]
    ]  # fmt: skip
    results = pd.DataFrame(rows)
    found = statistics.out_of_fold(results)
    assert list(found) == list(results)
    assert set(found["fold"]) == {0}
    assert set(found["n_subjects"]) == {2}  # the mean is 2.33
    of = found.set_index(["variant", "subject"])["score"]
    assert of.loc["pretrained"].to_dict() == pytest.approx({"a": 0.65, "b": 0.4, "c": 0.6})
    assert of.loc["scratch"].to_dict() == pytest.approx({"a": 0.6, "b": 0.4, "c": 0.6})
    fixed = results[results["fold"] == 1].assign(fold=0)
    pd.testing.assert_frame_equal(statistics.out_of_fold(fixed), fixed)


def test_folds_that_a_variant_lacks_are_left_out() -> None:
    rows = [
        {"variant": v, "fraction": f, "seed": 1, "fold": k, "subject": f"s{k}", "score": 0.5}
        for v in ("pretrained", "scratch") for f in (0.5, 1.0) for k in (1, 2, 3)
        if (v, f, k) != ("scratch", 0.5, 2)
    ]  # fmt: skip
    kept = statistics.shared_folds(pd.DataFrame(rows))
    assert len(kept) == 4 + 6
    assert set(kept.loc[kept["fraction"] == 0.5, "fold"]) == {1, 3}


# ---- measures of a group in each fold


def of_group(differences: list[float], fraction: float = 1.0, n_subjects: int = 4) -> pd.DataFrame:
    """The AUC of each fold, two seeds that lie 0.1 above and below it; two subjects are tested."""
    rows = [
        (variant, fraction, fold, seed, "auc", 0.5 + (variant == "a") * (value + 0.1 * (-1) ** seed), n_subjects, 2)
        for fold, value in enumerate(differences, start=1) for seed in (1, 2) for variant in ("a", "b")
    ]  # fmt: skip
    columns = ["variant", "fraction", "fold", "seed", "measure", "value", "n_subjects", "n_test"]
    return pd.DataFrame(rows, columns=columns)


def test_values_of_folds_are_tested_as_scores_are():
    values = pd.concat([of_group([0.1, 0.2, 0.3, 0.4]), of_group([0.3, -0.1], 0.5, 2)])
    scores = pd.concat(
        [cross_validated([0.1, 0.2, 0.3, 0.4]), cross_validated([0.3, -0.1], fraction=0.5, n_subjects=2)]
    )
    pd.testing.assert_frame_equal(compare_fold_values(values, "a", "b", 5), compare_folds(scores, n_tests=5))
    lacking = values.assign(value=values["value"].where((values["variant"] == "b") | (values["fold"] != 4)))
    assert compare_fold_values(lacking, "a", "b")["n_folds"].tolist() == [2, 3]
    with pytest.raises(ValueError, match="no results of variant c; there are a, b"):
        compare_fold_values(values, "a", "c")
    with pytest.raises(ValueError, match="a and b have no fold in common"):
        compare_fold_values(values[(values["variant"] == "a") == (values["fold"] == 1)], "a", "b")


def test_intervals_over_folds_count_what_folds_share():
    """Values 0.6 … 0.9: variance 1/60, so that the error is √(1/80), as in the case computed by hand."""
    found = fold_intervals(of_group([0.1, 0.2, 0.3, 0.4])).set_index("variant")
    reach = stats.t.ppf(0.975, 3) / np.sqrt(80)
    row = found.loc["a"]
    assert (row["mean"], row["low"], row["high"], row["n_folds"]) == pytest.approx((0.75, 0.75 - reach, 1, 4))
    assert 0.75 + reach > 1
    assert found.loc["b", ["low", "high"]].tolist() == pytest.approx([0.5, 0.5])
    assert np.isnan(fold_intervals(of_group([0.1]))["low"]).all()


def test_states_are_recalled_above_chance_by_scipys_one_sided_test():
    random = np.random.default_rng(0)
    means = {"a": 0.4, "b": 0.26, "c": 0.1}
    rows = [("T", s, f"s{i}", m + random.normal(0, 0.1)) for s, m in means.items() for i in range(8)]
    rows += [("T", "always", f"s{i}", 1.0) for i in range(8)] + [("T", "never", f"s{i}", 0.0) for i in range(8)]
    table = pd.DataFrame(rows, columns=["task", "state", "subject", "score"])
    found = statistics.recalled(table, 0.2).set_index("state")
    expected = [
        stats.ttest_1samp(table.loc[table["state"] == s, "score"], 0.2, alternative="greater").pvalue for s in means
    ]
    np.testing.assert_allclose(found.loc[list(means), "p"], expected)
    holm = multipletests([*expected, 1, 1], method="holm")[1][:3]
    np.testing.assert_allclose(found.loc[list(means), "p_holm"], holm)
    assert found["above"].to_dict() == {
        "a": True,
        "b": bool(holm[1] < 0.05),
        "c": False,
        "always": True,
        "never": False,
    }


def test_changes_are_tested_against_the_same_decoder_without_them():
    same = results({1.0: 0.2}).assign(change="")
    worse = same.assign(change="sensitivity-raw", score=same["score"] - 0.1 * (same["variant"] == "scratch"))
    worse["score"] += np.random.default_rng(0).normal(0, 0.02, len(worse))
    alone = same[same["variant"] == "scratch"].assign(variant="linear", change="sensitivity-raw")  # has no counterpart
    found = compare_changes(pd.concat([same, worse, alone])).set_index("variant")
    assert set(found.index) == {"pretrained", "scratch"}
    untouched = same.assign(change="sensitivity-raw")
    assert compare_changes(pd.concat([same, untouched])).empty
    scores = [table[table["variant"] == "scratch"].sort_values("subject")["score"] for table in (worse, same)]
    expected = stats.ttest_rel(*scores)
    assert found.loc["scratch", "p"] == pytest.approx(expected.pvalue)
    assert found.loc["scratch", "difference"] == pytest.approx(scores[0].mean() - scores[1].mean())
    assert found.loc["scratch", "p_bonferroni"] == pytest.approx(min(1, 2 * expected.pvalue))
    assert list(found.loc[["pretrained", "scratch"], "differ"]) == [False, True]
    assert compare_changes(same.iloc[:0]).empty
