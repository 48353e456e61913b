import numpy as np
import pytest

from deeplight_core.analysis.similarity import effective_dimensions, linear_cka


def test_equals_the_alignment_of_centred_kernels() -> None:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of the two linear kernels."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 7)) + 3, random.normal(size=(20, 30))
    centre = np.eye(20) - 1 / 20
    one, other = (centre @ (of @ of.T) @ centre for of in (x, y))
    expected = np.trace(one @ other) / np.sqrt(np.trace(one @ one) * np.trace(other @ other))
    assert linear_cka(x, y) == pytest.approx(expected)
    assert 0 < expected < 1


def test_does_not_change_when_features_are_turned_scaled_or_shifted() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(15, 4)).astype(np.float32)
    turned, _ = np.linalg.qr(random.normal(size=(4, 4)))
    assert linear_cka(x, 3 * x @ turned + 5) == pytest.approx(1, abs=1e-5)
    assert np.isnan(linear_cka(x, np.ones((15, 2))))


def test_dimensions_are_those_of_the_eigenvalues_of_the_covariance() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(40, 6)) * [9, 4, 1, 1, 1, 1] + 7
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert effective_dimensions(x.astype(np.float32)) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert effective_dimensions(np.outer(np.arange(5), [1, 2, 3])) == pytest.approx(1)
    assert effective_dimensions(np.vstack([np.eye(3), -np.eye(3)])) == pytest.approx(3)
    assert np.isnan(effective_dimensions(np.ones((4, 2))))
