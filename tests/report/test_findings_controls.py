import numpy as np
import pandas as pd
import pytest
from pandas.io.formats.style import Styler
from scipy import stats

from deeplight_core.analysis import crossed, statistics
from deeplight_core.config import Profile
from deeplight_core.preparation import DataSettings
from deeplight_core.report import findings
from deeplight_core.routes import VARIANTS

PROFILE = Profile(name="tiny", sweep={"fractions": [0.1, 0.5]}, controls={"fractions": [0.1, 0.5], "seeds": [1, 2, 3]})
Level = dict[str, float]


def results(levels: dict[float, Level], seeds: tuple[int, ...] = (1,), task: str = "WM", n: int = 7) -> pd.DataFrame:
    """The results table of decoders (fraction → variant → mean accuracy, exactly)."""
    random, tables = np.random.default_rng(0), []
    for fraction, of_fraction in levels.items():
        for variant, level in of_fraction.items():
            for seed in seeds:
                scores = random.normal(0, 0.02, n)
                table = {
                    "variant": variant, "fraction": fraction, "n_subjects": int(10 * fraction), "seed": seed,
                    "task": task, "subject": [f"s{i}" for i in range(n)], "score": scores - scores.mean() + level,
                }  # fmt: skip
                tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def cells(table: Styler | None) -> pd.DataFrame:
    assert table is not None
    return table.data


NOTHING = results({0.1: {"scratch": 0.3}})[:0]


# ---- linear baselines


def test_who_wins_follows_from_the_counts() -> None:
    levels = {f: {"pretrained": 0.7, "scratch": 0.3, "linear": 0.5, "svm": 0.5} for f in (0.1, 0.5)}
    tests = findings.linear_tests(PROFILE, results(levels))
    shown = cells(findings.baselines_table(tests))
    assert shown["against"].tolist() == ["logistic regression", "linear SVM"] * 2
    assert shown.iloc[0].tolist() == ["pre-trained", "logistic regression", 2, 2, 0, "+20.0%", "+20.0%"]
    note = findings.baselines_note(tests)
    assert "*Pre-trained*: **DeepLight wins**; DeepLight is significantly better in 4 and worse in 0 of 4" in note
    assert "*From scratch*: **linear models win**; DeepLight is significantly better in 0 and worse in 4 of 4" in note
    same = findings.linear_tests(PROFILE, results({0.1: {"pretrained": 0.5, "linear": 0.5}}))
    assert "**no winner can be shown**" in findings.baselines_note(same)


def test_no_baseline_says_nothing() -> None:
    tests = findings.linear_tests(PROFILE, NOTHING)
    assert findings.baselines_table(tests) is None
    assert findings.baselines_note(tests) == ""


# ---- initialisation


def test_leads_of_the_pretrained_decoder() -> None:
    table = results({0.1: {"pretrained": 0.6, "scratch": 0.4, "frozen": 0.6}, 0.5: {"pretrained": 0.6, "scratch": 0.5}})
    shown = cells(findings.leads_table(PROFILE, table))
    assert shown["subjects"].tolist() == ["1 (10%)", "5 (50%)"]
    assert shown["from scratch"].tolist() == ["+20.0% ★", "+10.0% ★"]
    assert shown["pre-trained, encoder frozen"].str.replace("-", "+").tolist() == ["+0.0%", "missing"]
    assert findings.leads_table(PROFILE, table[table["variant"] == "scratch"]) is None
    assert findings.leads_table(PROFILE, NOTHING) is None


@pytest.mark.parametrize(
    ("pretrained", "shuffled", "verdict"),
    [
        (0.8, 0.6, "Both conditioning and features help here."),
        (0.6, 0.6, "Conditioning helps here; no benefit of features can be shown."),
        (0.8, 0.4, "Features help here; no benefit of conditioning can be shown."),
        (0.4, 0.4, "No benefit of conditioning or of features can be shown here."),
    ],
)
def test_transfer_is_the_sum_of_conditioning_and_features(pretrained: float, shuffled: float, verdict: str) -> None:
    level = {"pretrained": pretrained, "shuffled": shuffled, "scratch": 0.4}
    note = findings.initialisation_note(PROFILE, results({0.1: level, 0.5: level, 1.0: {"pretrained": 0.9}}))
    assert note.startswith("Averaged over 10% and 50% of the data")
    for difference in (pretrained - 0.4, shuffled - 0.4, pretrained - shuffled):
        assert f"{difference:+.1%} [" in note.replace("-0.0%", "+0.0%")
    assert f"**{verdict}**" in note


def test_frozen_encoders_and_other_starts_are_compared_where_both_are() -> None:
    levels = {0.1: {"pretrained": 0.6, "frozen": 0.5, "scratch": 0.4}, 0.5: {"pretrained": 0.7, "frozen": 0.4},
              1.0: {"scratch": 0.6, "scratch-he": 0.65}}  # fmt: skip
    note = findings.initialisation_note(PROFILE, results(levels))
    assert (
        "Freezing the encoder changes accuracy by -10.0% at 10% of the data and by -30.0% at 50% of the data." in note
    )
    assert "On 100% of the data, He's start from scratch reaches 65.0%, Glorot's 60.0% (chance 25%)." in note
    assert "initialised by Glorot's rule" in findings.start_note(PROFILE)
    assert findings.initialisation_note(PROFILE, NOTHING) == "Nothing can be compared yet."


# ---- permuted labels


def test_decoders_off_chance_are_named() -> None:
    table = results({0.1: {"scratch-permuted": 0.3, "linear-permuted": 0.25}, 0.5: {"scratch-permuted": 0.2}})
    tests = statistics.against_chance(table, 0.25)
    shown = cells(findings.chance_table(PROFILE, tests))
    assert shown["decoder"].tolist() == ["logistic regression", "DeepLight, from scratch", "DeepLight, from scratch"]
    scores = table.loc[(table["fraction"] == 0.5), "score"]
    assert shown["p"].iloc[2] == f"{stats.ttest_1samp(scores, 0.25).pvalue:.2g}"
    note = findings.chance_note(PROFILE, tests, 0.25)
    assert "The best constant answer is right for 25%: **1 of the 3 decoders significantly above it**" in note
    assert f"Above: {VARIANTS['scratch-permuted'].title} at 10% (30.0%)." in note
    assert f"Below: {VARIANTS['scratch-permuted'].title} at 50% (20.0%)." in note
    assert "Not tested" not in note


def test_what_cannot_be_tested_against_chance_is_named() -> None:
    table = results({0.1: {"scratch-permuted": 0.25}}).assign(score=0.25)
    tests = statistics.against_chance(table, 0.25)
    note = findings.chance_note(PROFILE, tests, 0.25)
    assert note.endswith(
        "because every subject has the same score: DeepLight, from scratch; labels permuted at 10% (25.0%)."
    )
    assert "by luck" not in note
    assert cells(findings.chance_table(PROFILE, tests))["Bonferroni"].tolist() == ["–"]
    none = statistics.against_chance(NOTHING, 0.25)
    assert findings.chance_table(PROFILE, none) is None
    assert findings.chance_note(PROFILE, none, 0.25) == ""


# ---- every task as the target


def test_targets_that_transfer_helps_are_named() -> None:
    tables = [
        results({0.1: {"pretrained": 0.5 + gain, "scratch": 0.5}}, task=task)
        for task, gain in (("WM", 0.2), ("MOTOR", -0.1), ("SOCIAL", 0.0))
    ]
    lone = results({0.1: {"scratch": 0.5}}, task="EMOTION")
    tests = findings.transfer_tests(PROFILE, pd.concat([*tables, lone]))
    assert tests["task"].tolist() == ["WM", "MOTOR", "SOCIAL"]
    assert tests["p_bonferroni"].iloc[0] == pytest.approx(14 * tests["p"].iloc[0])  # seven tasks, two fractions
    assert "p_holm" not in tests
    shown = cells(findings.transfer_table(PROFILE, tests))
    assert shown["chance"].tolist() == ["25%", "20%", "50%"]
    assert shown["p, Bonferroni"].str.endswith("★").tolist() == [True, True, False]
    note = findings.transfer_note(PROFILE, tests)
    assert "for 1 of 3 targets (WM) and harms 1 (MOTOR)" in note
    assert "most for WM (+20.0%) and least for MOTOR (-10.0%)" in note


def test_nothing_to_transfer_says_why() -> None:
    tests = findings.transfer_tests(PROFILE, NOTHING)
    assert findings.transfer_table(PROFILE, tests) is None
    assert findings.transfer_note(PROFILE, tests) == ""
    one_task = DataSettings(source={"a": {"x": ["x"], "y": ["y"]}}, target={"a": {"z": ["z"], "w": ["w"]}})
    alone = PROFILE.model_copy(update={"data": one_task})
    assert findings.transfer_note(alone, tests).startswith("This profile has no task that could be the target")


# ---- repeated trainings


def repeated(seeds: tuple[int, ...] = (1, 2, 3)) -> pd.DataFrame:
    level = {"pretrained": 0.6, "scratch": 0.5}
    table = results({0.1: level, 0.5: level}, seeds=seeds)
    return table.assign(score=table["score"] + 0.02 * table["seed"] * (table["variant"] == "pretrained"))


def test_one_training_stands_beside_all() -> None:
    table = repeated()
    model = crossed.seed_model(table)
    shown = cells(findings.seeds_table(PROFILE, table, model))
    first = statistics.compare(table[table["seed"] == 1]).iloc[0]
    assert shown["seed 1 alone, t-test"].iloc[0] == f"+12.0% [{first['low']:+.1%}, {first['high']:+.1%}]"
    row = model.iloc[0]
    assert shown["mixed model, 3 seeds"].iloc[0] == f"+14.0% [{row['low']:+.1%}, {row['high']:+.1%}]"
    assert shown["SD of seeds"].iloc[0] == f"{row['sd_seed']:.1%}"
    note = findings.seeds_note(PROFILE, table, model)
    helped = sum(model["p"] < 0.05 / 2)
    assert f"pre-training helps significantly at {helped} of 2 fractions (Bonferroni)" in note
    wider = (model["high"] - model["low"]).to_numpy() / (
        statistics.compare(table[table["seed"] == 1]).eval("high - low").to_numpy()
    )
    assert f"is {wider.min():.1f} to {wider.max():.1f} times as wide as that of seed 1 alone" in note


def test_every_training_has_its_cell() -> None:
    shown = cells(findings.trainings_table(repeated()))
    assert shown["decoder"].tolist() == [f"{d}, {f}%" for f in (10, 50) for d in ("pre-trained", "from scratch")]
    assert shown["seed 2"].tolist() == ["64.0%", "50.0%"] * 2
    assert findings.trainings_table(NOTHING) is None


def test_too_few_seeds_say_so() -> None:
    one = repeated((2,))
    assert findings.seeds_complete_note(one) == "Complete seeds: 2. With fewer than two there is nothing to compare."
    assert findings.seeds_complete_note(repeated()) == "Complete seeds: 1, 2 and 3."
    assert findings.seeds_complete_note(NOTHING).startswith("Complete seeds: none.")
    for table in (one, NOTHING):
        model = crossed.seed_model(table)
        assert findings.seeds_table(PROFILE, table, model) is None
        assert findings.seeds_note(PROFILE, table, model) == ""
