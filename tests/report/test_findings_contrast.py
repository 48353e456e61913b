"""What the page on temporal contrast says, from tables made by hand."""

import numpy as np
import pandas as pd
import pytest

from deeplight_core.analysis.statistics import compare, recalled
from deeplight_core.config import Profile
from deeplight_core.models.contrast import Quality
from deeplight_core.report import findings, plots


def scores(learnt: float, shortcut: float) -> pd.DataFrame:
    """Ten subjects who differ a little."""
    rows = []
    for i in range(10):
        for way, score in (("learnt", learnt), ("shortcut", shortcut), ("voxels", 0.6)):
            rows.append({"way": way, "subject": f"s{i}", "score": score + 0.01 * (i % 3)})
    return pd.DataFrame(rows)


def test_a_window_is_told_in_seconds_and_frames() -> None:
    profile = Profile.model_validate(
        {"routes": {"contrast": {"example": {"length_s": 13, "gap_s": 4, "step_s": 6, "frames": 3}}}}
    )
    said = findings.windows_note(profile, 1200, 300, 2.0)
    assert "three windows of 12.0 s, 4 s apart, and 3 frames of each" in said
    assert "1,200 series to learn from and 300" in said
    assert "choices made here" in said
    margin = profile.overridden({"routes": {"contrast": {"head": {"margin": 0.4, "negatives": "batch"}}}})
    said = findings.windows_note(margin, 1, 1, 2.0)
    assert "all windows of other series (margin 0.4)" in said


def test_whether_more_than_the_shortcut_was_learnt_follows_the_interval() -> None:
    assert "+20.0%" in findings.shortcut_note(scores(0.8, 0.6))
    varied = scores(0.62, 0.6)
    varied.loc[varied["way"] == "learnt", "score"] += np.linspace(-0.2, 0.2, 10)
    assert "It cannot be shown to have learnt more" in findings.shortcut_note(varied)
    varied.loc[varied["way"] == "learnt", "score"] += 0.3
    assert "It has learnt more" in findings.shortcut_note(varied)
    table = findings.ways_table(scores(0.8, 0.6)).data
    assert table.iloc[0, 1].startswith("80.9% [")
    assert len(table) == 3


@pytest.mark.parametrize(
    ("learnt", "said"), [(0.4, "than what was learnt.**"), (0.8, "finds +20.0% [+20.0%, +20.0%].")]
)
def test_likeness_without_learning_is_beside_what_was_learnt(learnt: float, said: str) -> None:
    assert findings.shortcut_note(scores(learnt, 0.5)).endswith(said)


def test_a_collapse_is_said() -> None:
    assert "collapsed" not in findings.quality_note(Quality(0.4, -2.0, 0.3, 7.0))
    assert "**They have collapsed" in findings.quality_note(Quality(0.0, 0.0, 0.999, 1.0))


def results(**means: list[float]) -> pd.DataFrame:
    """Six held-out subjects; every variant with 1, 4 and 12 subjects."""
    rows = []
    for variant, of_sizes in means.items():
        for (n, fraction), mean in zip(((1, 0.01), (4, 0.04), (12, 0.12)), of_sizes, strict=True):
            for i in range(6):
                rows.append(
                    {"dataset": "x", "variant": variant, "fraction": fraction, "n_subjects": n, "seed": 1, "fold": 0,
                     "task": "WM", "target": "state", "subject": f"s{i}", "level": "volume", "measure": "accuracy",
                     "score": mean + 0.01 * (i - 2.5)}
                )  # fmt: skip
    return pd.DataFrame(rows)


ROWS = pd.DataFrame({"task": "WM", "state": ["a", "b", "c", "c"] * 3, "unit": [f"s{i // 4}" for i in range(12)]})


def test_convergence_is_above_the_best_constant_answer_and_near_the_end() -> None:
    found = findings.convergence(results(contrast=[0.45, 0.79, 0.8], scratch=[0.3, 0.5, 0.7]), ROWS)
    assert found["constant"].unique().tolist() == [0.5]
    converged = found.groupby("variant")["converged"].apply(list).to_dict()
    assert converged == {"contrast": [False, True, True], "scratch": [False, False, True]}
    table = findings.convergence_table(found).data
    assert table["4 subjects"].tolist() == ["50.0%", "79.0% ✓"]  # in the order of all variants: scratch first
    said = findings.convergence_note(found)
    assert (
        "converge with 4 subjects: pre-trained by temporal contrast; only with all 12: from scratch. With all" in said
    )
    assert "**The claim holds here.**" in said


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ({"contrast": [0.45, 0.6, 0.8], "scratch": [0.3, 0.5, 0.7]}, "does not hold"),
        ({"contrast": [0.3, 0.3, 0.3], "scratch": [0.3, 0.3, 0.3]}, "does not hold"),
        ({"contrast": [0.8, 0.8, 0.8], "scratch": [0.3, 0.3, 0.3]}, "The claim holds"),
    ],
)
def test_the_verdict_compares_where_both_converge(means: dict[str, list[float]], verdict: str) -> None:
    assert verdict in findings.convergence_note(findings.convergence(results(**means), ROWS))


def test_what_contrast_adds_is_tested_at_every_size() -> None:
    random = np.random.default_rng(0)
    table = results(contrast=[0.6, 0.7, 0.8], scratch=[0.4, 0.7, 0.9], pretrained=[0.7, 0.7, 0.8])
    table["score"] += 0.002 * random.normal(size=len(table))
    gains = findings.contrast_gains(table)
    assert (
        list(zip(gains["a"], gains["b"], strict=True))
        == [("contrast", "scratch")] * 3 + [("contrast", "pretrained")] * 3
    )
    pd.testing.assert_frame_equal(gains[:3].drop(columns=["a", "b"]), compare(table, "contrast", "scratch", n_tests=6))
    said = findings.contrast_gains_note(gains)
    assert "pre-trained by temporal contrast against from scratch: better at 1 of 3 sizes, worse at 1;" in said
    assert "against pre-trained: better at 0 of 3 sizes, worse at 1." in said
    shown = findings.contrast_gains_table(gains).data
    assert shown["difference"].tolist() == [
        "pre-trained by temporal contrast − from scratch", "pre-trained by temporal contrast − pre-trained",
    ]  # fmt: skip
    assert shown["1 subject"][0].startswith("+19.9% [")
    assert [cell.endswith("★") for cell in shown["1 subject"]] == [True, True]
    assert [cell.endswith("★") for cell in shown["4 subjects"]] == [False, False]
    nothing = findings.contrast_gains(table[table["variant"] == "scratch"])
    assert findings.contrast_gains_note(nothing) == ""
    assert findings.contrast_gains_table(nothing) is None


def test_without_trainings_there_is_a_sentence() -> None:
    assert findings.convergence_note(pd.DataFrame()) == "No decoder has been trained yet."
    assert findings.shortcuts_table(pd.DataFrame(columns=["change", "contrast", "shortcut", "probe"])) is None


def test_controls_have_their_sentences() -> None:
    values = pd.DataFrame(
        [("", 0.8, 0.6, 0.5), ("shortcut-order", 0.5, 0.51, 0.3), ("shortcut-drift", 0.95, 0.9, 0.35)],
        columns=["change", "contrast", "shortcut", "probe"],
    )
    said = findings.shortcuts_note(values)
    assert "50.0% are found (chance 50%)" in said
    assert "the shortcut alone finds 90.0%, and contrast 95.0%" in said
    assert "best from this encoder: *as it is* (50.0%)" in said
    assert findings.shortcuts_table(values).data["contrast"].tolist() == [
        "as it is", "windows in random order", "drift left in",
    ]  # fmt: skip
    assert "have not been run" in findings.shortcuts_note(values[:1])
    untrained = pd.DataFrame([("random", np.nan, np.nan, 0.6)], columns=values.columns)
    assert "have not been run" in findings.shortcuts_note(pd.concat([values[:1], untrained]))
    both = pd.concat([values, untrained])
    assert findings.shortcuts_note(both).endswith("as it is* (50.0%); from random weights it decodes 60.0%.")
    assert findings.shortcuts_table(both).data.iloc[-1].tolist() == ["no contrast, random weights", "–", "–", "60.0%"]


def test_the_ways_are_drawn_with_chance() -> None:
    figure = plots.way_bars(scores(0.8, 0.6))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.809, 0.609, 0.609])
    assert any(line.get_ydata()[0] == 0.5 for line in axes.lines)


def test_networks_are_compared_with_the_whole_brain() -> None:
    rows = []
    for network, mean in (("", 0.8), ("Visual", 0.8), ("Limbic", 0.3)):
        for i in range(8):
            for variant in ("contrast", "linear"):
                score = mean + 0.02 * (i % 4) + (0.01 * (i % 2) if network else 0)
                rows.append({"variant": variant, "network": network, "subject": f"s{i}", "score": score})
    found = pd.DataFrame(rows)
    said = findings.networks_note(found)
    assert said.startswith("Of 2 networks, Visual cannot be told apart from the whole brain (83.0%)")
    assert "worst Limbic" in said
    assert "none is as good" in findings.networks_note(found[found["network"] != "Visual"])
    table = findings.networks_table(found).data
    assert table["input"].tolist() == ["Visual", "whole brain", "Limbic"]
    assert findings.networks_table(found.iloc[:0]) is None
    assert "make controls PROFILE=contrast" in findings.networks_note(found[found["network"] == ""])


RAW = Profile.model_validate({"simulation": {"scanner": {"pose_mm": 6}}})


def test_the_claim_on_unprepared_data_needs_one_above_and_one_at_a_constant_answer() -> None:
    for means, verdict in (
        ({"contrast": [0.5, 0.6, 0.8], "scratch": [0.3, 0.4, 0.45]}, "**That claim holds here.**"),
        ({"contrast": [0.5, 0.6, 0.8], "scratch": [0.3, 0.4, 0.75]}, "**That claim does not hold here.**"),
        ({"contrast": [0.3, 0.3, 0.3], "scratch": [0.3, 0.3, 0.3]}, "**That claim does not hold here.**"),
        # Above and not above a constant answer, and yet no difference between the two:
        ({"contrast": [0.5, 0.6, 0.53], "scratch": [0.3, 0.4, 0.51]}, "**That claim does not hold here.**"),
    ):
        table = results(**means).query("fraction == 0.12")
        table.loc[table["variant"] == "scratch", "score"] += np.linspace(-0.05, 0.05, 6)[[3, 0, 5, 1, 4, 2]]
        tests = compare(table, "contrast", "scratch")
        said = findings.unprepared_note(RAW, findings.convergence(table, ROWS), tests)
        assert verdict in said
        assert "Heads lie 6 mm" in said
        assert f"{means['contrast'][2] - means['scratch'][2]:+.1%}" in said
        assert "at most 50.0%" in said


def test_classified_tasks_are_counted() -> None:
    shares = {"x": 0.9, "y": 0.5, "z": 0.34}
    rows = [("T", s, f"s{i}", m + 0.02 * (i % 3 - 1)) for s, m in shares.items() for i in range(9)]
    table = pd.DataFrame(rows, columns=["task", "state", "subject", "score"])
    tests = {"contrast": recalled(table, 1 / 3), "scratch": recalled(table.assign(score=table["score"] - 0.3), 1 / 3)}
    said = findings.recalls_note(tests)
    assert "Of 3 tasks, each decoder classifies: from scratch 1 and" in said
    assert "contrast 2" in said
    shown = findings.recalls_table(tests).data
    assert shown["task"].tolist() == ["x", "y", "z"]
    assert shown.iloc[:, 2].tolist() == ["90.0% ✓", "50.0% ✓", "34.0%"]
    figure = plots.recall_dots(tests)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y", "z"]


def test_seen_volumes_are_listed() -> None:
    assert "402,444 and" in findings.seen_note({"contrast": 402_444, "pretrained": 403_200})
    assert findings.seen_note({}) == ""
