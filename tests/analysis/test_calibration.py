import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from deeplight_core.analysis.calibration import fit_temperature, quality, reliability, with_temperature


def drawn(temperature: float, n: int = 4000, n_states: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from what they are at another temperature."""
    random = np.random.default_rng(0)
    probabilities = with_temperature(np.exp(2 * random.normal(size=(n, n_states))), 1.0)
    chances = with_temperature(probabilities, temperature).cumsum(axis=1)
    return probabilities, (random.random((n, 1)) > chances).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    probabilities, labels = drawn(temperature)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.08)
    mended = with_temperature(probabilities, fit_temperature(probabilities, labels))
    assert quality(mended, labels)["ece"] < 0.03
    assert quality(probabilities, labels)["ece"] > 0.1 or temperature == 1
    np.testing.assert_array_equal(mended.argmax(axis=1), probabilities.argmax(axis=1))


def test_temperature_scaling_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    x, labels = random.normal(size=(600, 5)), random.integers(0, 3, 600)
    x[:, 0] += labels
    model = LogisticRegression(C=1e4).fit(x[:60], labels[:60])  # too sure of itself
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[60:], labels[60:])
    answers = model.predict_proba(x[60:])
    found = with_temperature(answers, fit_temperature(answers, labels[60:]))
    np.testing.assert_allclose(found, theirs.predict_proba(x[60:]), atol=2e-3)


def test_quality_is_that_of_scikit_learn() -> None:
    probabilities, labels = drawn(2.0)
    found = quality(probabilities, labels)
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probabilities, scale_by_half=False))
    bins = reliability(probabilities, labels)
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    np.testing.assert_allclose(bins["accuracy"], accuracy)
    np.testing.assert_allclose(bins["confidence"], confidence)
    assert found["ece"] == pytest.approx(np.average(abs(accuracy - confidence), weights=bins["n"]))
    assert bins["n"].sum() == found["n"] == 4000


def test_certainty_is_in_the_last_bin() -> None:
    bins = reliability(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]))
    assert bins[["low", "high", "n", "accuracy"]].to_numpy().tolist() == [[0.5, 0.6, 1, 0], [0.9, 1.0, 1, 1]]


def test_a_higher_temperature_is_less_sure() -> None:
    np.testing.assert_allclose(with_temperature(np.array([[0.8, 0.2]]), 2.0), [[2 / 3, 1 / 3]])
