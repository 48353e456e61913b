import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deeplight_core.config import FinetuningSettings, Profile
from deeplight_core.report import findings

SUBJECTS = ["s1", "s2", "s3"]


def table(rows: list[tuple[str, str, float, int, int, float]]) -> pd.DataFrame:
    """Results of three subjects each, around a mean score."""
    columns = ["change", "variant", "fraction", "n_subjects", "seed", "score"]
    means = pd.DataFrame(rows, columns=columns)
    each = [means.assign(subject=s, score=means["score"] + d) for s, d in zip(SUBJECTS, (-0.1, 0, 0.1), strict=True)]
    return pd.concat(each, ignore_index=True)


@pytest.fixture
def lengths() -> pd.DataFrame:
    return table(
        [
            ("", "pretrained", 0.1, 3, 1, 0.70), ("x3", "pretrained", 0.1, 3, 1, 0.71),
            ("", "scratch", 0.1, 3, 1, 0.40), ("x3", "scratch", 0.1, 3, 1, 0.45),
            ("", "scratch", 1.0, 30, 1, 0.60),  # not trained for longer yet
            ("constant", "scratch", 0.1, 3, 1, 0.99),
        ]
    )  # fmt: skip


def test_cells_that_longer_training_changes_are_named(lengths: pd.DataFrame) -> None:
    said = findings.length_note(lengths)
    assert said == (
        "With 3 times the steps, 2 cells change by 3.0% on average; "
        "by 2% or more: DeepLight, from scratch with 3 (+5.0%). "
        "The gain from pre-training, averaged over fractions, goes from +30.0% to +26.0%."
    )
    small = lengths[lengths["variant"] == "pretrained"]
    assert "by 2% or more: none." in findings.length_note(small)
    assert findings.length_note(lengths[lengths["change"] == ""]) == "No decoder has been trained for longer yet."


def test_decoders_that_longer_training_changes_on_average_are_told_with_an_interval() -> None:
    planned, longer = (0.4, 0.5, 0.6), (0.43, 0.54, 0.65)
    rows = [("", "scratch", f, 3, 1, score) for f, score in zip((0.1, 0.4, 1.0), planned, strict=True)]
    rows += [("x3", "scratch", f, 3, 1, score) for f, score in zip((0.1, 0.4, 1.0), longer, strict=True)]
    change = np.subtract(longer, planned)
    reach = stats.t.ppf(0.975, 2) * stats.sem(change)
    said = findings.length_note(table(rows))
    expected = f"DeepLight, from scratch by +4.0% [{0.04 - reach:+.1%}, {0.04 + reach:+.1%}]."
    assert said.endswith(f" Averaged over fractions (95% interval over them): {expected}")


def test_cells_that_change_are_held_against_trainings_with_another_seed(lengths: pd.DataFrame) -> None:
    """Seeds are 1, 2 and 3 points apart; one training has no other beside it; one of another length does not count."""
    rows = [("", "pretrained", 0.1, 3, seed, score) for seed, score in ((1, 0.70), (2, 0.71), (3, 0.7301))]
    rows += [("", "scratch", 0.1, 3, 1, 0.5), ("x3", "scratch", 0.1, 3, 2, 0.9)]
    assert ": 67% of pairs that differ only in the seed are" in findings.length_note(lengths, table(rows))
    assert findings.length_note(lengths, table(rows[-2:])) == findings.length_note(lengths)
    small = lengths[lengths["variant"] == "pretrained"]  # changes by less, so that chance need not explain it
    assert findings.length_note(small, table(rows)) == findings.length_note(small)


def test_the_gain_is_compared_where_all_four_trainings_are_there() -> None:
    """At 10% and 40%; at 100% the decoder from scratch has not been trained for longer yet."""
    scores = {("", "pretrained"): (0.7, 0.8, 0.9), ("", "scratch"): (0.4, 0.6, 0.9)}
    scores |= {("x3", "pretrained"): (0.7, 0.82, 0.1), ("x3", "scratch"): (0.45, 0.63)}
    rows = [(c, v, f, 3, 1, s) for (c, v), own in scores.items() for f, s in zip((0.1, 0.4, 1.0), own, strict=False)]
    said = findings.length_note(table(rows))
    change = np.array([-0.05, -0.01])
    reach = stats.t.ppf(0.975, 1) * stats.sem(change)
    assert said.endswith(
        "goes from +25.0% to +22.0%, a change of "
        f"{change.mean():+.1%} [{change.mean() - reach:+.1%}, {change.mean() + reach:+.1%}]."
    )
    none = [row for row in rows if row[:2] != ("x3", "scratch")]
    assert "gain from pre-training" not in findings.length_note(table(none))


def test_the_table_of_lengths_has_a_row_for_each_cell(lengths: pd.DataFrame) -> None:
    assert findings.length_table(lengths[lengths["change"] == ""]) is None
    shown = findings.length_table(lengths).data  # type: ignore[union-attr]
    assert shown["decoder"].tolist() == ["DeepLight, pre-trained", "DeepLight, from scratch"]
    assert shown["subjects"].tolist() == ["3 (10%)"] * 2
    assert shown["as planned"].tolist() == pytest.approx([0.70, 0.40])
    assert shown["3 times the steps"].tolist() == pytest.approx([0.71, 0.45])
    assert shown["difference"].tolist() == pytest.approx([0.01, 0.05])


def test_the_pace_is_when_a_curve_is_near_its_top() -> None:
    rising = {10: 0.3, 20: 0.5, 30: 0.69, 40: 0.70}
    curves = pd.DataFrame(
        [("scratch", 0.1, step, split, s, score) for step, score in rising.items() for s in SUBJECTS
         for split in ("train", "validation")],
        columns=["variant", "fraction", "step", "split", "subject", "score"],
    )  # fmt: skip
    curves.loc[curves["split"] == "train", "score"] = 1.0  # of no interest
    assert "DeepLight, from scratch on 10%: 30 (70.0%)." in findings.pace_note(curves)
    assert findings.pace_note(curves[:0]) == "No decoder has been trained at a constant learning rate yet."


@pytest.fixture
def rates() -> pd.DataFrame:
    """The pre-trained decoder is best at the middle rate, the one from scratch at the highest."""
    scores = {"pretrained": (0.5, 0.7, 0.6), "scratch": (0.3, 0.4, 0.5)}
    return table(
        [
            (f"people-rate{rate}", variant, fraction, 3, seed, score + 0.1 * fraction)
            for variant, of in scores.items() for rate, score in zip(("0.0003", "0.001", "0.003"), of, strict=True)
            for fraction in (0.1, 0.4) for seed in (1, 2)
        ]
    )  # fmt: skip


def test_every_decoder_has_its_own_best_rate(rates: pd.DataFrame) -> None:
    assert findings.best_rates(rates) == {"pretrained": 0.001, "scratch": 0.003}
    assert findings.rates_table(rates[:0]) is None
    shown = findings.rates_table(rates).data  # type: ignore[union-attr]
    assert list(shown.columns) == ["0.0003", "0.001", "0.003"]
    assert shown.loc["DeepLight, from scratch"].tolist() == pytest.approx([0.325, 0.425, 0.525])


def test_a_rate_that_lacks_a_training_is_not_compared(rates: pd.DataFrame) -> None:
    """The highest rate's lower score, that of the smaller fraction, is not there yet."""
    unfinished = rates[(rates["change"] != "people-rate0.003") | (rates["fraction"] != 0.1)]
    assert findings.best_rates(unfinished) == {"pretrained": 0.001, "scratch": 0.001}
    used = Profile(finetuning=FinetuningSettings(learning_rate=0.003))
    assert "for DeepLight, pre-trained (0.003, not tried yet), DeepLight, from scratch (0.003, not tried yet)." in (
        findings.rates_note(used, unfinished)
    )
    mixed = unfinished[(unfinished["change"] != "people-rate0.0003") | (unfinished["variant"] != "scratch")]
    with_more = pd.concat([mixed, rates[(rates["variant"] == "scratch") & (rates["change"] == "people-rate0.003")]])
    assert ">–</td>" in findings.rates_table(with_more).to_html()  # type: ignore[union-attr]
    single = rates[rates["change"] == "people-rate0.001"]
    assert findings.rates_note(Profile(), single) == "No learning rates have been tried yet."


def test_a_profile_that_uses_other_rates_is_told_so(rates: pd.DataFrame) -> None:
    tuned = Profile(finetuning=FinetuningSettings(learning_rate=0.001, learning_rates={"scratch": 0.003}))
    said = findings.rates_note(tuned, rates)
    assert "DeepLight, pre-trained: 0.001; DeepLight, from scratch: 0.003. The profile uses these." in said
    assert said.endswith("At the edge of the grid: DeepLight, from scratch.")
    other = findings.rates_note(Profile(finetuning=FinetuningSettings(learning_rate=0.001)), rates)
    assert "**The profile uses others** for DeepLight, from scratch (0.001, whose score is 0.100 lower)." in other
    assert findings.rates_note(tuned, rates[:0]) == "No learning rates have been tried yet."


@pytest.fixture
def grid() -> pd.DataFrame:
    scores = {("contrast1", "scratch"): 0.3, ("contrast1-n3", "pretrained"): 0.2, ("contrast1-n30", "pretrained"): 0.4,
              ("contrast2.5", "scratch"): 0.5, ("contrast2.5-n3", "pretrained"): 0.6,
              ("contrast2.5-n30", "pretrained"): 0.9, ("contrast1", "linear"): 0.45}  # fmt: skip
    return table([(change, variant, 0.1, 3, 1, score) for (change, variant), score in scores.items()])


def test_the_gain_is_over_the_decoder_from_scratch_on_the_same_data(grid: pd.DataFrame) -> None:
    gain = findings.transfer_gain(grid)
    assert len(gain) == 4 * len(SUBJECTS)
    means = gain.groupby(["contrast", "n_pretraining"])["gain"].mean()
    assert means.to_dict() == pytest.approx({(1.0, 3): -0.1, (1.0, 30): 0.1, (2.5, 3): 0.1, (2.5, 30): 0.4})
    assert findings.gain_note(gain) == (
        "The gain is largest with 30 subjects to pre-train on, 3 to fine-tune on and a contrast of 2.5% (+40.0%) and "
        "smallest with 3 subjects to pre-train on, 3 to fine-tune on and a contrast of 1% (-10.0%); it is below zero "
        "in 1 of 4 cases."
    )
    assert "it is below zero in 0 of 1 cases." in findings.gain_note(gain[gain["gain"].round(2) == 0.4])
    assert findings.transfer_gain(grid[:0]).empty
    assert findings.gain_note(gain[:0]) == "No training of this control has been run yet."


def test_the_table_of_the_grid_has_every_decoder(grid: pd.DataFrame) -> None:
    assert findings.gain_table(grid[:0]) is None
    shown = findings.gain_table(grid).data  # type: ignore[union-attr]
    linear = shown[shown["decoder"] == "logistic regression"].iloc[0]
    assert (linear["contrast"], linear["subjects pre-trained on"]) == ("1%", "–")
    assert linear["on 3"] == pytest.approx(0.45)
    assert len(shown) == 7
    assert np.isfinite(shown["on 3"]).all()
