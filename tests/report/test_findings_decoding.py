import numpy as np
import pandas as pd
import pytest
from pandas.io.formats.style import Styler
from scipy import stats

from deeplight_core.analysis import statistics
from deeplight_core.config import Profile
from deeplight_core.preparation import DataSettings, SimulationSettings
from deeplight_core.report import findings

PROFILE = Profile(name="tiny", simulation=SimulationSettings())
HALVES = Profile(name="tiny", sweep={"fractions": [0.1, 0.5]}, simulation=SimulationSettings())
"""Two fractions, four target states."""


def results(levels: dict[tuple[str, float], float], n: int = 6, noise: float = 0.02) -> pd.DataFrame:
    """The results table of decoders (variant, fraction) at these mean accuracies, exactly."""
    random, tables = np.random.default_rng(0), []
    for (variant, fraction), level in levels.items():
        scores = random.normal(0, noise, n)
        tables.append(
            pd.DataFrame(
                {"variant": variant, "fraction": fraction, "n_subjects": int(10 * fraction), "seed": 1, "task": "WM",
                 "subject": [f"s{i}" for i in range(n)], "score": scores - scores.mean() + level}
            )
        )  # fmt: skip
    columns = ["variant", "fraction", "n_subjects", "seed", "task", "subject", "score"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


SWEEP = {("pretrained", 0.1): 0.6, ("scratch", 0.1): 0.3, ("linear", 0.1): 0.5,
         ("pretrained", 0.5): 0.7, ("scratch", 0.5): 0.7, ("linear", 0.5): 0.5}  # fmt: skip


def cells(table: Styler | None) -> pd.DataFrame:
    assert table is not None
    return table.data


def test_a_note_names_what_is_missing_and_how_to_run_it() -> None:
    note = findings.missing_note(PROFILE, "seeds", ["scratch-0.1-seed2"])
    assert note.startswith("**1 of the 30 trainings needed here has not been run**")
    assert "`make controls PROFILE=tiny`" in note
    assert "`scratch-0.1-seed2`" in note
    assert "`make reproduce PROFILE=tiny`" in findings.missing_note(PROFILE, "sweep", ["linear-1-seed1"])
    of_images = PROFILE.model_copy(update={"part": "images"})
    assert "`make images PROFILE=tiny`" in findings.missing_note(of_images, "sweep", ["linear-1-seed1"])
    many = findings.missing_note(PROFILE, "seeds", [f"run{i}" for i in range(12)])
    assert "`run9` and 2 more." in many
    assert "`run10`" not in many
    assert "the page shows the others" in many
    none = findings.missing_note(PROFILE, "seeds", [f"run{i}" for i in range(30)])
    assert none.startswith(
        "**30 of the 30 trainings needed here have not been run**. `make controls PROFILE=tiny` runs"
    )
    assert findings.missing_note(PROFILE, "seeds", []) == "All 30 trainings needed here have been run."
    one_task = PROFILE.model_copy(
        update={"data": DataSettings(source={"a": {"x": ["x"], "y": ["y"]}}, target={"a": {"z": ["z"], "w": ["w"]}})}
    )
    assert findings.missing_note(one_task, "tasks", []) == "This profile has none of these trainings."


def test_what_folds_say_is_the_tables() -> None:
    row = {"fraction": 0.5, "n_subjects": 3, "difference": 0.1, "low": -0.02, "high": 0.22, "t": 2.5, "dof": 4.0,
           "p": 0.067, "p_bonferroni": 0.13}  # fmt: skip
    profile = Profile(sweep={"folds": 5, "repeats": 2})
    note = findings.fold_note(profile, pd.DataFrame([row, {**row, "fraction": 1.0, "t": np.nan}]))
    assert "5 folds of the subjects, drawn 2 times." in note
    assert "- 3 subjects (50%): +10.0% [-2.0%, +22.0%], t(4) = 2.50, p = 0.067 (Bonferroni 0.13)\n" in note
    assert "- 3 subjects (100%): +10.0% [-2.0%, +22.0%], no variance, no test\n" in note


def test_folds_judge_where_there_are_folds() -> None:
    """Differences that subjects make clear and folds do not are not called significant."""
    profile = HALVES.overridden({"sweep": {"folds": 3}})
    shifts, people = {1: 0.3, 2: 0.0, 3: -0.05}, results(SWEEP)
    folded = pd.concat([
        people.assign(fold=fold, subject=people["subject"] + f"-{fold}", n=9, seconds=1.0, seen_volumes=9,
                      score=people["score"].where(people["variant"] != "pretrained", 0.4 + shift))
        for fold, shift in shifts.items()
    ])  # fmt: skip
    folds = findings.fold_tests(profile, folded)
    expected = statistics.compare_folds(folded, n_tests=2)
    pd.testing.assert_frame_equal(folds.drop(columns="significant"), expected)
    assert folds["significant"].tolist() == (expected["p_bonferroni"] < 0.05).tolist() == [False, False]
    half = findings.fold_tests(profile, folded[folded["fraction"] == 0.1])
    assert half["p_bonferroni"].tolist() == pytest.approx([min(1, 2 * half["p"].iloc[0])])
    tests = findings.planned_tests(profile, statistics.out_of_fold(folded))
    assert tests["significant"].any()
    said = findings.headline(profile, tests, folds)
    assert "significantly at 0 of 2 fractions" in said
    assert f"95% interval {expected['low'].iloc[0]:+.1%} to {expected['high'].iloc[0]:+.1%}" in said
    assert findings.fold_tests(HALVES, people) is None
    assert findings.fold_tests(profile, folded[:0]) is None
    assert findings.fold_tests(profile, folded[folded["variant"] != "scratch"]) is None


def test_tests_are_corrected_for_what_is_planned() -> None:
    half = results({cell: level for cell, level in SWEEP.items() if cell[1] == 0.1})
    tests = findings.planned_tests(HALVES, half)
    assert tests["p_bonferroni"].tolist() == pytest.approx((2 * tests["p"]).tolist())
    assert findings.planned_tests(HALVES, half[half["variant"] == "scratch"]).empty
    apart = results({("pretrained", 0.1): 0.6, ("scratch", 0.5): 0.3})
    assert findings.planned_tests(HALVES, apart).empty


def test_the_headline_has_both_ends_and_a_verdict() -> None:
    text = findings.headline(HALVES, findings.planned_tests(HALVES, results(SWEEP)))
    assert text.startswith(HALVES.provenance)
    assert "on 1 subject, the pre-trained decoder is right for **60.0%** of the held-out volumes" in text
    assert "from scratch for **30.0%** (difference +30.0%, 95% interval +2" in text
    assert (
        "on 5: 70.0% and 70.0%. Pre-training changes accuracy significantly at 1 of 2 fractions (1 up, 0 down)." in text
    )
    assert text.endswith("Chance is 25%.")


def test_a_headline_without_a_benefit_says_so() -> None:
    harmed = results({**SWEEP, ("pretrained", 0.1): 0.1})
    text = findings.headline(HALVES, findings.planned_tests(HALVES, harmed))
    assert "at 1 of 2 fractions (0 up, 1 down). **No benefit of transfer can be shown here.**" in text
    assert "cannot be compared yet" in findings.headline(HALVES, pd.DataFrame())
    alone = Profile(name="tiny", sweep={"variants": ["scratch", "linear"]}, simulation=SimulationSettings())
    assert "The sweep has no pre-trained decoder" in findings.headline(alone, pd.DataFrame())


def test_linear_models_are_counted_where_they_are_better_and_worse() -> None:
    tests = findings.linear_tests(HALVES, results(SWEEP))
    assert tests["decoder"].tolist() == ["pretrained", "scratch"]
    assert tests[["n", "better", "worse"]].to_numpy().tolist() == [[2, 2, 0], [2, 1, 1]]
    assert tests["lead"].tolist() == pytest.approx([0.2, 0.2])
    assert tests["lag"].tolist() == pytest.approx([0.1, -0.2])
    note = findings.linear_note(tests)
    assert (
        "Against logistic regression on the same volumes, the pre-trained decoder is significantly better at 2" in note
    )
    assert "the one from scratch is significantly better at 1 and worse at 1 of 2 fractions" in note
    deep = results({cell: level for cell, level in SWEEP.items() if cell[0] != "linear"})
    assert findings.linear_note(findings.linear_tests(HALVES, deep)) == ""
    assert note.removesuffix(" The page *Linear baselines* has the details.") == findings.linear_note(
        tests, details=False
    )


def curves(steps: dict[float, list[int]]) -> pd.DataFrame:
    """Metrics of two variants and two seeds at these steps (per fraction): the second seed takes two steps more."""
    reached = {"pretrained": [0.3, 0.6, 0.65], "scratch": [0.25, 0.3, 0.45]}
    return pd.DataFrame(
        [
            (variant, fraction, seed, f"{variant}{fraction}{seed}", epoch, step + 2 * (seed - 1), "validation",
             "s0", score)
            for fraction, of_fraction in steps.items() for variant, scores in reached.items() for seed in (1, 2)
            for epoch, (step, score) in enumerate(zip(of_fraction, scores, strict=True), start=1)
        ],
        columns=["variant", "fraction", "seed", "training", "epoch", "step", "split", "subject", "score"],
    )  # fmt: skip


def test_steps_are_counted_until_halfway_from_chance() -> None:
    """From 25% to 65% halfway is 45%, reached at the second point; from 25% to 45% it is 35%, at the third."""
    note = findings.steps_note(HALVES, curves({0.1: [100, 200, 300], 0.5: [1000, 2000, 3000]}))
    assert (
        "on 10% of the training data, the pre-trained decoder after 201 of 301 steps and the one from scratch" in note
    )
    assert "after 301 of 301 steps; on 50%" in note
    assert "on 50% of the training data, the pre-trained decoder after 2,001 of 3,001 steps" in note


def test_a_decoder_at_chance_is_never_halfway() -> None:
    table = curves({0.1: [100, 200, 300]})
    lost = table.assign(score=table["score"].where(table["variant"] == "pretrained", 0.2))
    assert "the one from scratch never (it ends at chance after 301 steps)." in findings.steps_note(HALVES, lost)


def test_steps_need_both_decoders() -> None:
    table = curves({0.1: [100, 200, 300], 0.5: [1000, 2000, 3000]})
    note = findings.steps_note(HALVES, table[(table["fraction"] == 0.1) | (table["variant"] == "scratch")])
    assert "10% of" in note
    assert "50% of" not in note
    assert findings.steps_note(HALVES, table[table["variant"] == "scratch"]) == ""
    assert findings.steps_note(HALVES, table[:0]) == ""


def test_trainings_that_learnt_nothing_are_told() -> None:
    """Four states; three folds on five subjects, of which two end at chance in training, whatever they began with."""
    rows = [
        {"training": f"{variant}{fold}", "variant": variant, "change": "", "n_subjects": 5, "split": split,
         "subject": subject, "step": step,
         "score": score if (step, split) == (20, "train") else 0.9 if step == 10 else 0.1}
        for variant, ends in {"pretrained": (0.8, 0.5, 0.31), "scratch": (0.29, 0.26, 0.7)}.items()
        for fold, score in enumerate(ends) for split in ("train", "validation") for subject in ("a", "b")
        for step in (10, 20)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    note = findings.not_learnt_note(HALVES, table)
    assert note.startswith("**Not learnt:** 2 of 3 trainings from scratch on 5 subjects ended with less than 30% right")
    assert "pre-trained" not in note
    assert findings.not_learnt_note(HALVES, table[table["variant"] == "pretrained"]) == ""
    assert findings.not_learnt_note(HALVES, table[:0]) == ""
    ages = HALVES.overridden({"data": {"target": {"column": "age", "tasks": ["WM"]}}})
    assert findings.not_learnt_note(ages, table) == ""
    other = table.assign(change=table["variant"].map({"pretrained": "", "scratch": "raw"}))
    note = findings.not_learnt_note(HALVES, other, {"raw": "not filtered"})
    assert note.startswith("**Not learnt:** 2 of 3 trainings from scratch on 5 subjects (not filtered) ended with")


def test_the_largest_difference_is_named() -> None:
    note = findings.difference_note(findings.planned_tests(HALVES, results(SWEEP)))
    assert "largest at 10% of the training data (+30.0%). Pre-training changes" in note


def test_tables_of_tests_have_the_values_of_scipy() -> None:
    table = results(SWEEP)
    tests = findings.planned_tests(HALVES, table)
    wide = table.pivot(index="subject", columns=["variant", "fraction"], values="score")
    expected = stats.ttest_rel(wide["pretrained", 0.1], wide["scratch", 0.1])
    shown = cells(findings.tests_table(HALVES, tests))
    assert shown["subjects"].tolist() == ["1 (10%)", "5 (50%)"]
    assert shown["t(5)"].iloc[0] == f"{expected.statistic:.2f}"
    assert shown["p"].iloc[0] == f"{expected.pvalue:.2g}"
    assert shown["Bonferroni"].str.endswith("★").tolist() == [True, False]
    low, high = expected.confidence_interval(0.95)
    assert shown["difference [95% interval]"].iloc[0] == f"+30.0% [{low:+.1%}, {high:+.1%}]"
    effects = cells(findings.effects_table(HALVES, tests))
    assert effects["p, permutation"].iloc[0] == f"{2 / 2**6:.2g}"
    assert effects["d"].iloc[0] == f"{expected.statistic / np.sqrt(6):.2f}"


def test_what_has_no_test_is_a_dash() -> None:
    tests = findings.planned_tests(HALVES, results(SWEEP, noise=0.0))
    assert cells(findings.tests_table(HALVES, tests)).iloc[0].tolist()[2:] == ["–"] * 4
    assert cells(findings.effects_table(HALVES, tests)).iloc[0].tolist()[1:] == ["–"] * 5
    one = findings.planned_tests(HALVES, results(SWEEP, n=1))
    assert "(difference +30.0%); on 5" in findings.headline(HALVES, one)
    assert cells(findings.tests_table(HALVES, one))["difference [95% interval]"].iloc[0] == "+30.0%"
    for of in (findings.tests_table, findings.effects_table):
        assert of(HALVES, pd.DataFrame()) is None


def test_the_note_on_tests_counts_and_warns_of_few_subjects() -> None:
    tests = findings.planned_tests(HALVES, results(SWEEP))
    note = findings.tests_note(HALVES, tests)
    assert (
        "Holm finds 1 of 2 fractions significant, Bonferroni 1. The t-test and the permutation test agree at every"
        in note
    )
    assert "With 6 held-out subjects no permutation test can give less than p = 0.031." in note
    assert "With 6 subjects the bootstrap interval" in note
    differing = tests.assign(p_permutation=[0.2, 0.9], n=60)
    note = findings.tests_note(HALVES, differing)
    assert "agree at all fractions but 10% (uncorrected" in note
    assert "no permutation test" not in note
    assert "bootstrap interval" not in note
    assert findings.tests_note(HALVES, pd.DataFrame()) == ""


def test_means_have_their_intervals_and_gaps_say_so() -> None:
    table = results({cell: level for cell, level in SWEEP.items() if cell != ("linear", 0.5)})
    shown = cells(findings.means_table(HALVES, table))
    assert list(shown) == ["subjects", "pre-trained", "from scratch", "logistic regression"]
    scores = table.loc[(table["variant"] == "scratch") & (table["fraction"] == 0.1), "score"]
    low, high = stats.t.interval(0.95, 5, scores.mean(), stats.sem(scores))
    assert shown["from scratch"].iloc[0] == f"30.0% [{low:.1%}, {high:.1%}]"
    assert shown["logistic regression"].iloc[1] == "missing"
    assert findings.means_table(HALVES, table[:0]) is None


def test_saved_subjects_are_bounded_where_no_size_reaches() -> None:
    saved = pd.DataFrame(
        {"n_subjects": [1, 3, 30], "equivalent": [9.0, 1.0, np.inf], "low": [5.0, 1.0, 25.0],
         "high": [14.0, np.inf, np.inf], "at_most": [False, True, False]}
    )  # fmt: skip
    assert findings.saved_note(PROFILE, saved) == (
        "In subjects: 1 pre-trained equals 9.0 from scratch (95% interval 5.0 to 14.0); "
        "3 pre-trained equal at most 1.0 from scratch (95% interval 1.0 to more than 30); "
        "30 pre-trained equal more than 30 from scratch."
    )


def test_the_most_frequent_answer_is_counted_per_decoder() -> None:
    answers = ["body"] * 3 + ["face"] + ["tool"] * 2 + ["face"] * 2
    predictions = pd.DataFrame({"variant": ["scratch"] * 4 + ["linear"] * 4, "predicted_state": answers})
    note = findings.answers_note(PROFILE, predictions)
    assert (
        "makes up 75% of the answers of *DeepLight, from scratch* and 50% of the answers of *logistic regression*"
        in note
    )
    third = predictions[:1].assign(variant="pretrained")
    assert "scratch*, 50% of the" in findings.answers_note(PROFILE, pd.concat([predictions, third]))
    assert "about 25% each" in note
    assert (
        findings.answers_note(PROFILE, predictions[:0]) == "No decoder has been trained on the smallest fraction yet."
    )


def test_runs_are_counted_where_runs_are_the_units() -> None:
    runs = HALVES.model_copy(update={"data": DataSettings(split_unit="run")})
    assert "Trained on 1 run, " in findings.headline(runs, statistics.compare(results(SWEEP)))
    assert "runs" in cells(findings.means_table(runs, results(SWEEP)))
