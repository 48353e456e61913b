from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from deeplight_core.analysis.measures import MEASURES, group_value


def test_every_measure_knows_its_chance_its_direction_and_its_kind() -> None:
    chance = {"accuracy": 1 / 5, "balanced_accuracy": 1 / 5, "contrast_accuracy": 0.5, "auc": 0.5, "r": 0.0, "r2": 0.0}
    lower = {"absolute_error", "reconstruction_error"}
    assert set(MEASURES) == {*chance, *lower}
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert measure.chance(5) == chance.get(name)
        assert measure.higher_is_better == (name not in lower)
        assert (measure.of_group is not None) == (name in {"balanced_accuracy", "r2", "r", "auc"})


def test_chance_without_states_is_refused_where_it_depends_on_them() -> None:
    assert MEASURES["contrast_accuracy"].chance() == 0.5
    assert MEASURES["absolute_error"].chance() is None
    with pytest.raises(ValueError, match="chance of accuracy is one over the number of states, got 0"):
        MEASURES["accuracy"].chance()


def test_values_are_written_with_their_unit() -> None:
    assert MEASURES["accuracy"].format(0.4512) == "45.1%"
    assert MEASURES["accuracy"].format(0.4512, decimals=0) == "45%"
    assert MEASURES["absolute_error"].format(4.5234) == "4.52"
    in_years = replace(MEASURES["absolute_error"], unit="years")
    assert in_years.format(4.5234) == "4.52 years"
    assert in_years.format(12.3456, decimals=0) == "12 years"
    assert MEASURES["reconstruction_error"].format(0.001234) == "0.00123"
    assert MEASURES["r"].format(-0.5) == "-0.5"
    assert in_years.format(np.nan) == MEASURES["auc"].format(np.nan) == "–"


# ---- values of a group

CLASSES = ("balanced_accuracy", "auc", "auc, three classes")
NUMBERS = ("r2", "r")


def sample(kind: str, n_subjects: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truths, answers and subjects of one to four examples of every subject, in random order."""
    random = np.random.default_rng(seed)
    subjects = random.permutation(np.repeat([f"s{i}" for i in range(n_subjects)], 1 + np.arange(n_subjects) % 4))
    if kind in NUMBERS:
        truth = random.normal(50, 10, len(subjects))
        return truth, truth + random.normal(3, 8, len(subjects)), subjects
    truth = random.integers(0, 3 if kind.endswith("three classes") else 2, len(subjects))
    if kind == "auc":
        return truth, (truth + random.normal(0, 1, len(subjects))).round(), subjects  # rounded, so that some are tied
    if kind == "auc, three classes":
        logits = (np.eye(3)[truth] + random.normal(0, 1, (len(subjects), 3))).round()
        return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), subjects
    names = np.array(["face", "place"])
    return names[truth], names[np.where(random.random(len(truth)) < 0.3, 1 - truth, truth)], subjects


def independent(kind: str, truth: np.ndarray, answer: np.ndarray) -> float:
    """The value by hand, or by another way of the same library."""
    match kind:
        case "balanced_accuracy":
            return float(np.mean([np.mean(answer[truth == name] == name) for name in ("face", "place")]))
        case "r2":
            return 1 - ((truth - answer) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        case "r":
            return float(np.corrcoef(truth, answer)[0, 1])
        case "auc":  # the share of pairs in which the positive has the higher score, ties half
            pairs = np.sign(answer[truth == 1][:, None] - answer[truth == 0])
            return float((pairs + 1).mean() / 2)
    return float(metrics.roc_auc_score(truth, answer, multi_class="ovr"))


@pytest.mark.parametrize("kind", [*CLASSES, *NUMBERS])
def test_group_values_and_their_bootstrap_equal_a_plain_loop(kind: str) -> None:
    truth, answer, subjects = sample(kind)
    value, low, high = group_value(kind.split(",")[0], truth, answer, subjects, n_resamples=200, seed=4)
    assert value == pytest.approx(independent(kind, truth, answer))
    names, values = np.unique(subjects), []
    for draw in np.random.default_rng(4).integers(0, len(names), (200, len(names))):
        rows = [row for number in draw for row in range(len(truth)) if subjects[row] == names[number]]
        if kind in NUMBERS or len(np.unique(truth[rows])) == len(np.unique(truth)):
            values.append(independent(kind, truth[rows], answer[rows]))
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert low < value < high


def test_group_values_are_those_of_scikit_learn_and_scipy() -> None:
    for kind, value in (
        ("balanced_accuracy", metrics.balanced_accuracy_score), ("r2", metrics.r2_score),
        ("r", lambda truth, answer: stats.pearsonr(truth, answer).statistic), ("auc", metrics.roc_auc_score),
    ):  # fmt: skip
        truth, answer, subjects = sample(kind)
        assert group_value(kind, truth, answer, subjects, 1)[0] == pytest.approx(value(truth, answer)), kind


@pytest.mark.parametrize("kind", [*CLASSES, *NUMBERS])
def test_columns_of_a_table_are_taken_by_place_not_by_label(kind: str) -> None:
    truth, answer, subjects = sample(kind)
    labels = np.random.default_rng(9).permutation(len(truth))
    column = pd.DataFrame if answer.ndim > 1 else pd.Series
    given = pd.Series(truth, labels), column(answer, labels), pd.Series(subjects, labels)
    name = kind.split(",")[0]
    assert group_value(name, *given, 50) == group_value(name, truth, answer, subjects, 50)


def test_whole_subjects_are_resampled() -> None:
    """Ten copies of every example are no new evidence: the interval stays as wide."""
    truth, answer, subjects = sample("r")
    once = group_value("r", truth, answer, subjects, 300)
    assert group_value("r", *(np.repeat(x, 10) for x in (truth, answer, subjects)), 300) == pytest.approx(once)
    alone = group_value("r", *(np.repeat(x, 10) for x in (truth, answer)), np.arange(10 * len(truth)), 300)
    assert alone[2] - alone[1] < 0.6 * (once[2] - once[1])


def test_the_interval_of_a_correlation_covers() -> None:
    """Subjects of two examples with a common part, so that their rows are not independent."""
    random, covered, n = np.random.default_rng(1), 0, 120
    for _ in range(n):
        truth = (np.repeat(random.normal(size=60), 2) + random.normal(size=120)) / np.sqrt(2)
        answer = 0.6 * truth + 0.8 * np.repeat(random.normal(size=60), 2)
        _, low, high = group_value("r", truth, answer, np.repeat(np.arange(60), 2), 200)
        covered += low <= 0.6 <= high
    assert covered / n == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / n))


def test_missing_truths_are_left_out() -> None:
    for kind in (*CLASSES, *NUMBERS):
        truth, answer, subjects = sample(kind)
        name, gone = kind.split(",")[0], subjects == "s3"
        gone[:2] = True
        expected = group_value(name, truth[~gone], answer[~gone], subjects[~gone], 100)
        lacking = truth.astype(object if kind == "balanced_accuracy" else float)
        lacking[gone] = np.nan
        assert group_value(name, lacking, answer, subjects, 100) == pytest.approx(expected), kind


def test_resamples_without_a_class_or_without_variance_are_left_out() -> None:
    """One subject has all of a class: a third of the resamples lacks it. One truth throughout has no correlation."""
    truth, answer = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.6, 0.5])
    value, low, high = group_value("auc", truth, answer, np.arange(4), 200)
    assert value == pytest.approx(2 / 3)
    assert 0 <= low <= value <= high <= 1
    _, low, high = group_value("balanced_accuracy", np.array([0, 1]), np.array([0, 2]), np.arange(2), 50)
    assert (low, high) == (0.5, 0.5)  # those with both subjects
    for name in ("r", "r2"):
        assert np.isfinite(group_value(name, answer, answer[::-1], np.arange(4), 100)).all()
        assert np.isnan(group_value(name, np.ones(4), answer, np.arange(4), 10)).all()
    assert np.isnan(group_value("r", answer, np.ones(4), np.arange(4), 10)).all()
    assert np.isnan(group_value("auc", np.ones(4), answer, np.arange(4), 10)).all()


def test_one_subject_has_a_value_but_no_interval() -> None:
    truth, answer, _ = sample("r")
    value, low, high = group_value("r", truth, answer, np.zeros(len(truth)), 20)
    assert value == pytest.approx(np.corrcoef(truth, answer)[0, 1])
    assert np.isnan([low, high]).all()


def test_what_cannot_be_a_groups_value_is_refused() -> None:
    truth, answer, subjects = sample("r")
    with pytest.raises(
        ValueError, match="accuracy is a mean of examples; values of a group are balanced_accuracy, r2, r, auc"
    ):
        group_value("accuracy", truth, answer, subjects)
    with pytest.raises(ValueError, match="unknown measure 'mse'; known are accuracy, "):
        group_value("mse", truth, answer, subjects)
    with pytest.raises(ValueError, match=r"a truth of auc is the number of a class, 0 to 1, got \[2\.5\]"):
        group_value("auc", np.array([0, 1, 2.5]), np.array([0.1, 0.2, 0.3]), np.arange(3))
    with pytest.raises(ValueError, match="got 3 truths, 2 answers and 3 subjects"):
        group_value("r", truth[:3], answer[:2], subjects[:3])
