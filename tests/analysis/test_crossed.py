"""Subjects and seeds as crossed random effects."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.anova import anova_lm

from deeplight_core.analysis.crossed import (
    best_shares,
    complete_variants,
    crossed_means,
    effects,
    of_complete_seeds,
    pairs,
    seed_model,
)
from deeplight_core.analysis.statistics import compare_folds, fold_intervals, mean_intervals


def crossed(random, subjects=10, seeds=5, sd_subject=0.05, sd_seed=0.03, noise=0.03, effect=0.1):
    """Results whose differences are effect + subject + seed + noise."""
    difference = effect + sd_subject * random.normal(size=(subjects, 1)) + sd_seed * random.normal(size=(1, seeds))
    difference = difference + noise * random.normal(size=(subjects, seeds))
    rows = [
        (variant, 1.0, 30, seed, "WM", f"s{subject}", 0.5 + (variant == "pretrained") * difference[subject, seed])
        for subject in range(subjects) for seed in range(seeds) for variant in ("pretrained", "scratch")
    ]  # fmt: skip
    columns = ["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"]
    return pd.DataFrame(rows, columns=columns), difference


def test_mixed_model_equals_the_analysis_of_variance():
    """On balanced data REML gives the variances of the two-way table's mean squares."""
    table, difference = crossed(np.random.default_rng(1))
    n, seeds = difference.shape
    long = pd.DataFrame(difference).melt(ignore_index=False, var_name="seed").rename_axis("subject").reset_index()
    anova = anova_lm(ols("value ~ C(subject) + C(seed)", long).fit())["mean_sq"]
    subject, seed, rest = anova["C(subject)"], anova["C(seed)"], anova["Residual"]
    row = seed_model(table).iloc[0]
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["sd_rest"] == pytest.approx(np.sqrt(rest))
    assert row["sd_subject"] == pytest.approx(np.sqrt((subject - rest) / seeds))
    assert row["sd_seed"] == pytest.approx(np.sqrt((seed - rest) / n))
    total = subject + seed - rest
    dof = total**2 / (subject**2 / (n - 1) + seed**2 / (seeds - 1) + rest**2 / ((n - 1) * (seeds - 1)))
    half = stats.t.ppf(0.975, dof) * np.sqrt(total / (n * seeds))
    assert (row["low"], row["high"]) == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert row["p"] == pytest.approx(2 * stats.t.sf(difference.mean() / np.sqrt(total / (n * seeds)), dof))


@pytest.mark.parametrize("spread", [(0.05, 0.03), (0.05, 0.0), (0.0, 0.03), (0.0, 0.0)])
def test_mixed_model_is_as_likely_as_that_of_statsmodels(spread):
    """Its restricted likelihood is the highest, on the boundary, too; statsmodels' iteration comes close to it."""
    random, n, seeds = np.random.default_rng(6), 6, 4
    mean, z_subject, z_seed = (
        np.ones((n * seeds, 1)),
        np.kron(np.eye(n), np.ones((seeds, 1))),
        np.tile(np.eye(seeds), n).T,
    )

    def minus_log_likelihood(y, subject, seed, rest):
        cov = subject * z_subject @ z_subject.T + seed * z_seed @ z_seed.T + rest * np.eye(len(y))
        inverse = np.linalg.inv(cov)
        information = mean.T @ inverse @ mean
        error = y - (mean @ np.linalg.solve(information, mean.T @ inverse @ y))
        return np.linalg.slogdet(cov)[1] + np.linalg.slogdet(information)[1] + error @ inverse @ error

    for _ in range(8):
        table, difference = crossed(random, n, seeds, *spread)
        row = seed_model(table).iloc[0]
        ours = minus_log_likelihood(
            difference.ravel(), *(row[f"sd_{name}"] ** 2 for name in ("subject", "seed", "rest"))
        )
        long = pd.DataFrame(
            {"y": 20 * difference.ravel(), "subject": np.repeat(range(n), seeds), "seed": [*range(seeds)] * n}
        )
        effects = {"subject": "0 + C(subject)", "seed": "0 + C(seed)"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance of zero lies on the boundary, of which it warns
            fit = MixedLM.from_formula("y ~ 1", long, groups=np.ones(len(long)), vc_formula=effects).fit(reml=True)
        found = dict(zip(fit.model.exog_vc.names, fit.vcomp / 400, strict=True)) | {"rest": fit.scale / 400}
        theirs = minus_log_likelihood(difference.ravel(), **found)
        assert theirs - 1 < ours < theirs + 1e-6


@pytest.mark.parametrize(("subjects", "seeds"), [(10, 5), (4, 3)])
def test_mixed_model_covers_where_the_t_test_of_one_seed_does_not(subjects, seeds):
    random, covered, alone, n = np.random.default_rng(2), 0, 0, 400
    for _ in range(n):
        table, difference = crossed(random, subjects, seeds)
        row = seed_model(table).iloc[0]
        covered += row["low"] <= 0.1 <= row["high"]
        low, high = stats.ttest_1samp(difference[:, 0], 0).confidence_interval(0.95)
        alone += low <= 0.1 <= high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / n) < covered / n < 0.995
    assert alone / n < 0.95 - 3 * np.sqrt(0.95 * 0.05 / n)


def test_equal_differences_have_no_mixed_model_test():
    table, _ = crossed(np.random.default_rng(1), sd_subject=0, sd_seed=0, noise=0)
    row = seed_model(table).iloc[0]
    assert row["difference"] == pytest.approx(0.1)
    assert np.isnan(row["p"])
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.1))


def test_one_seed_has_no_mixed_model_and_gaps_are_named():
    table, _ = crossed(np.random.default_rng(3), seeds=1)
    assert seed_model(table).empty
    table, _ = crossed(np.random.default_rng(3), seeds=3)
    gap = (table["seed"] == 2) & (table["subject"] == "s4") & (table["variant"] == "scratch")
    with pytest.raises(ValueError, match=r"pretrained and scratch at 100%: seeds \[2\] lack"):
        seed_model(table[~gap])


def ways(random, ways=("pretrained", "contrast", "scratch"), sizes=3, subjects=6, seeds=3, way=0.0, way_by_seed=0.02):
    """Scores of ways × sizes × subjects × seeds, all of whose random parts are shared by the cells they belong to."""
    shape = (len(ways), sizes, subjects, seeds)
    score = 0.6 + 0.05 * np.arange(sizes)[None, :, None, None] + way * np.arange(len(ways))[:, None, None, None]
    parts = {(2,): 0.1, (3,): 0.02, (0, 2): 0.03, (0, 3): way_by_seed, (1, 3): 0.02, (0, 1, 2, 3): 0.03}
    for axes, sd in parts.items():
        score = score + sd * random.normal(size=[n if axis in axes else 1 for axis, n in enumerate(shape)])
    rows = [
        (ways[w], (1 + f) / sizes, 10 * (1 + f), seed + 1, "WM", f"s{subject}", score[w, f, subject, seed])
        for w, f, subject, seed in np.ndindex(*shape)
    ]
    columns = ["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"]
    return pd.DataFrame(rows, columns=columns), score


def test_complete_seeds_have_both_variants_at_every_fraction():
    table = ways(np.random.default_rng(0), ("pretrained", "scratch"))[0].replace({"fraction": {1 / 3: 0.1, 2 / 3: 0.5}})
    lacks = (table["seed"] == 2) & (table["fraction"] == 0.5) & (table["variant"] == "scratch")
    complete = of_complete_seeds(pd.concat([table[~lacks], table.assign(variant="linear")]), [0.1, 0.5])
    assert set(complete["seed"]) == {1, 3}
    assert set(complete["fraction"]) == {0.1, 0.5}
    assert set(complete["variant"]) == {"pretrained", "scratch"}
    assert set(of_complete_seeds(table[~lacks], [0.1])["seed"]) == {1, 2, 3}
    assert of_complete_seeds(table[:0], [0.1]).empty


def test_variants_that_lack_a_training_are_left_out():
    table, _ = ways(np.random.default_rng(0))
    lacks = (table["variant"] == "contrast") & (table["seed"] == 2) & (table["fraction"] == 1.0)
    assert set(complete_variants(table[~lacks])["variant"]) == {"pretrained", "scratch"}
    assert set(complete_variants(table)["variant"]) == {"pretrained", "contrast", "scratch"}
    folds = pd.concat([table.assign(fold=1), table[table["variant"] != "contrast"].assign(fold=2)])
    assert set(complete_variants(folds)["variant"]) == {"pretrained", "scratch"}


def test_effects_are_those_of_the_mean_squares_of_statsmodels():
    table, _ = ways(np.random.default_rng(4), way=0.03)
    model = "score ~ (C(variant) + C(fraction) + C(subject) + C(seed))**3"  # the rest is the interaction of all four
    squares = anova_lm(ols(model, table).fit())["mean_sq"]

    def of(*names):
        term = ":".join(f"C({name})" for name in ("variant", "fraction", "subject", "seed") if name in names)
        return squares[term if len(names) < 4 else "Residual"]

    found = effects(table).set_index("effect")
    for effect, names in (("way", ["variant"]), ("size", ["fraction"]), ("way × size", ["variant", "fraction"])):
        above = of(*names) + of(*names, "subject", "seed")
        below = of(*names, "subject") + of(*names, "seed")
        assert found.loc[effect, "f"] == pytest.approx(above / below)
        k = 2 ** len(names)  # of the effect; times 5 with subjects, times 2 with seeds
        dof = above**2 / (of(*names) ** 2 / k + of(*names, "subject", "seed") ** 2 / (10 * k))
        assert found.loc[effect, "dof_effect"] == pytest.approx(dof)
        dof = below**2 / (of(*names, "subject") ** 2 / (5 * k) + of(*names, "seed") ** 2 / (2 * k))
        assert found.loc[effect, "dof_error"] == pytest.approx(dof)
        p = stats.f.sf(above / below, *found.loc[effect, ["dof_effect", "dof_error"]])
        assert found.loc[effect, "p"] == pytest.approx(p)
    assert found.loc["size", "p"] < 0.05


def test_effects_keep_their_level_where_trainings_differ():
    """Tests over subjects alone take the luck of a training for a way's merit."""
    random, n = np.random.default_rng(7), 300
    p, alone = [], []
    for _ in range(n):
        table, score = ways(random)
        p.append(effects(table).set_index("effect").loc["way", "p"])
        first = score[:, :, :, 0].mean(axis=1)
        alone.append(stats.ttest_rel(first[0], first[1]).pvalue)
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)
    assert np.mean(np.array(alone) < 0.05) > 0.1


def test_an_incomplete_table_has_no_effects():
    table, _ = ways(np.random.default_rng(0))
    with pytest.raises(ValueError, match="the table is not complete"):
        effects(table.iloc[1:])
    assert effects(table[table["seed"] == 1]).empty


def test_pairs_are_corrected_over_all_of_them():
    table, _ = ways(np.random.default_rng(1), way=0.2)
    found = pairs(table)
    assert len(found) == 3 * 3
    assert set(zip(found["a"], found["b"], strict=True)) == {
        ("pretrained", "contrast"), ("pretrained", "scratch"), ("contrast", "scratch")
    }  # fmt: skip
    one = found.query("a == 'pretrained' and b == 'scratch' and fraction == 1.0").iloc[0]
    assert one["difference"] == pytest.approx(
        seed_model(table, "pretrained", "scratch").query("fraction == 1.0").iloc[0]["difference"]
    )
    assert one["p_bonferroni"] == pytest.approx(min(1, 9 * one["p"]))
    assert found["differ"].equals(found["p_holm"] < 0.05)
    assert one["differ"]
    assert pairs(table[table["seed"] == 1]).empty
    assert pairs(table[table["variant"] == "scratch"]).empty
    with pytest.raises(ValueError, match="the table is not complete"):
        pairs(table.iloc[1:])


def test_pairs_have_the_larger_p_of_two_mixed_models():
    """Of all decoders at the size, and of the pair at all sizes: mean squares by statsmodels."""
    table, score = ways(np.random.default_rng(11), way=0.02, way_by_seed=0.04)
    n, seeds, found = 6, 3, pairs(table)

    def p(difference, subject, seed, rest, dofs, factor):
        parts = np.array([subject, seed, -rest])
        assert min(subject, seed) > rest  # inside the boundary
        dof = parts.sum() ** 2 / (parts**2 / dofs).sum()
        return 2 * stats.t.sf(abs(difference) / np.sqrt(factor * parts.sum() / (n * seeds)), dof)

    larger = set()
    for row in found.to_dict("records"):
        of_size = table[table["fraction"] == row["fraction"]]
        model = "score ~ (C(variant) + C(subject) + C(seed))**2"  # the rest is the interaction of all three
        squares = anova_lm(ols(model, of_size).fit())["mean_sq"]
        named = ["C(variant):C(subject)", "C(variant):C(seed)", "Residual"]
        a, b = (list(table["variant"].unique()).index(row[name]) for name in ("a", "b"))
        difference = score[a] - score[b]
        means = [
            anova_lm(ols("value ~ C(subject) + C(seed)", pd.DataFrame(
                [(i, j, of[i, j]) for i, j in np.ndindex(*of.shape)], columns=["subject", "seed", "value"]
            )).fit())["mean_sq"].to_numpy() for of in difference
        ]  # fmt: skip
        every = p(row["difference"], *squares[named], np.array([10, 4, 20]), 2)
        own = p(row["difference"], *np.mean(means, axis=0), 3 * np.array([5, 2, 10]), 1)
        assert row["p"] == pytest.approx(max(every, own))
        larger.add(every > own)
    assert larger == {True, False}


@pytest.mark.parametrize("lucky", [4, 8])
def test_a_table_without_differences_has_few_stars_whatever_the_luck_of_trainings(lucky):
    """Some decoders have luck, most where people to train on are few, and part of it is that of a pre-training."""
    random, n, shape = np.random.default_rng(lucky), 120, (8, 4, 10, 3)
    sd = 0.06 * (np.arange(8) < lucky)[:, None, None, None] * np.array([1.6, 1.2, 0.8, 0.4])[:, None, None]
    levels = [list("abcdefgh"), [0.1, 0.2, 0.4, 1.0], range(10), range(3)]
    index = pd.MultiIndex.from_product(levels, names=["variant", "fraction", "subject", "seed"])
    table, false = index.to_frame(index=False).assign(task="WM", n_subjects=1), 0
    for _ in range(n):
        luck = (random.normal(size=(8, 1, 1, 3)) + random.normal(size=(8, 4, 1, 3))) / np.sqrt(2)
        score = 0.5 + sd * luck + 0.02 * random.normal(size=shape)
        for axes in ((1, 1, 10, 1), (8, 1, 10, 1), (8, 4, 10, 1)):
            score = score + 0.03 * random.normal(size=axes)
        false += pairs(table.assign(score=score.ravel()))["differ"].any()
    assert false / n < 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)


def test_pairs_of_a_cross_validation_are_tested_over_its_folds():
    table, _ = ways(np.random.default_rng(1), way=0.2)
    table["fold"] = table["subject"].map({f"s{i}": 1 + i % 3 for i in range(6)})
    found = pairs(table)
    alone = compare_folds(table, "pretrained", "scratch")
    one = found.query("a == 'pretrained' and b == 'scratch'")
    assert one["p"].to_numpy() == pytest.approx(alone["p"].to_numpy())
    assert (one["n_folds"] == 3).all()


def test_means_of_all_seeds_have_wider_intervals_than_over_subjects_alone():
    table, score = ways(np.random.default_rng(2), way_by_seed=0.3)
    table["score"] = 0.4 + 0.1 * table["score"]  # far from the ends of the scale
    found = crossed_means(table).set_index(["variant", "fraction"])
    over_subjects = mean_intervals(table).set_index(["variant", "fraction"])
    assert found.loc[("contrast", 1.0), "mean"] == pytest.approx(0.4 + 0.1 * score[1, 2].mean())
    assert (found["n_seeds"] == 3).all()
    assert (found["n"] == 6).all()
    width, other = ((of["high"] - of["low"]) for of in (found, over_subjects))
    wider = width > other.loc[width.index]
    assert wider.all()
    one = table[table["seed"] == 1]
    pd.testing.assert_series_equal(
        crossed_means(one).set_index(["variant", "fraction"])["low"].sort_index(),
        mean_intervals(one).set_index(["variant", "fraction"])["low"].sort_index(),
    )


def test_means_of_a_cross_validation_are_those_of_its_folds():
    """They count what folds share; folds, whose subjects are not independent, have no effects and no resamples."""
    table, _ = ways(np.random.default_rng(1))
    table["fold"] = table["subject"].map({f"s{i}": 1 + i % 3 for i in range(6)})
    cell = ["variant", "fraction", "fold"]
    values = table.groupby([*cell, "n_subjects"])["score"].mean().rename("value").reset_index().assign(n_test=2)
    keys = ["variant", "fraction"]
    expected = fold_intervals(values).set_index(keys).sort_index()
    pd.testing.assert_frame_equal(crossed_means(table).set_index(keys).sort_index(), expected)
    assert effects(table).empty
    assert best_shares(table).empty


def test_one_subject_has_an_interval_over_seeds():
    table, score = ways(np.random.default_rng(1), subjects=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = crossed_means(table).set_index(["variant", "fraction"]).loc[("scratch", 1.0)]
    half = stats.t.ppf(0.975, 2) * score[2, 2, 0].std(ddof=1) / np.sqrt(3)
    assert found["high"] - found["mean"] == pytest.approx(half)


def test_shares_of_being_best_follow_the_means():
    table, _ = ways(np.random.default_rng(3), way=0.5)
    shares = best_shares(table, 200)
    assert shares.groupby("fraction")["share"].sum().to_numpy() == pytest.approx(1)
    assert (shares.query("variant == 'scratch'")["share"] == 1).all()
    errors = table.assign(measure="absolute_error")  # the smallest is best
    assert (best_shares(errors, 200).query("variant == 'pretrained'")["share"] == 1).all()
    # A is best where only the first subject is drawn, twice of two times: a quarter, whatever the seeds
    score = {("a", "s0"): 1.0, ("a", "s1"): 0.0, ("b", "s0"): 0.0, ("b", "s1"): 1.5}
    rows = [(v, 1.0, 10, seed, "WM", s, x) for (v, s), x in score.items() for seed in (1, 2, 3)]
    found = best_shares(pd.DataFrame(rows, columns=table.columns), 4000).set_index("variant")["share"]
    assert found["a"] == pytest.approx(0.25, abs=0.03)
    same = pd.concat([table.query("variant == 'scratch'").assign(variant=v) for v in ("a", "b")])
    assert best_shares(same, 50)["share"].to_numpy() == pytest.approx(0.5)
    alike, _ = ways(np.random.default_rng(5), ("pretrained", "scratch"))
    found = best_shares(alike, 500)["share"]
    assert ((found > 0) & (found < 1)).any()
