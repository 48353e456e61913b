import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge

from deeplight_core.analysis import separation

WHO, FOLDS = np.arange(12) % 2 == 1, np.arange(12) // 4


def vectors(effect: float, seed: int = 0, n: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, 30)) + effect * (np.arange(n) % 2 == 1)[:, None] + 3


def test_people_held_out_have_the_values_of_a_ridge_regression() -> None:
    x = vectors(0.4)
    found = separation.separation(x, WHO, FOLDS, n_permutations=3)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    for fold in range(3):
        out = fold == FOLDS
        model = Ridge(alpha=30.0).fit(x[~out], np.where(WHO[~out], 1.0, -1.0))  # as many as there are values
        np.testing.assert_allclose(found.held_out[out], model.predict(x[out]), rtol=1e-8)
    assert found.accuracy == ((found.held_out > 0) == WHO).mean()


def test_groups_that_differ_are_told_apart_and_others_are_not() -> None:
    clear = separation.separation(vectors(1.5), WHO, FOLDS)
    assert (clear.accuracy, clear.auc, clear.high) == (1.0, 1.0, pytest.approx(1.0))
    assert clear.low == pytest.approx(12 / (12 + 1.959964**2))  # Wilson (1927) for n of n
    assert 0.5 / 6**3 < clear.p < 4 / 6**3  # 6 ways to divide each fold's four people, of which some tell as well
    ps = np.array([separation.separation(vectors(0.0, seed), WHO, FOLDS, 99).p for seed in range(100)])
    assert (ps <= 0.2).mean() < 0.3
    assert (ps <= 0.5).mean() > 0.3


def test_what_people_of_a_fold_share_tells_nothing() -> None:
    """Each fold's vectors have a large offset of their own, as the relevance of different decoders has."""
    accuracies = []
    for seed in range(30):
        offset = 20 * np.random.default_rng([seed, 1]).normal(size=(3, 30))
        accuracies.append(separation.separation(vectors(0.0, seed) + offset[FOLDS], WHO, FOLDS, 0).accuracy)
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.08)


def test_two_classifiers_are_compared_by_whom_only_one_gets_right() -> None:
    one = separation.separation(vectors(1.5), WHO, FOLDS, n_permutations=0)
    other = one._replace(held_out=np.where(np.arange(12) < 5, -one.held_out, one.held_out))
    assert separation.which_is_better(one, other, WHO) == pytest.approx(2 * 0.5**5)
    assert separation.which_is_better(other, one, WHO) == pytest.approx(2 * 0.5**5)
    assert separation.which_is_better(one, one, WHO) == 1.0


@pytest.mark.parametrize("n", [12, 24, 40])
def test_the_least_accuracy_is_the_first_that_a_coin_rarely_reaches(n: int) -> None:
    least = round(separation.least_accuracy(n) * n)
    assert binom.sf(least - 1, n, 0.5) <= 0.05 < binom.sf(least - 2, n, 0.5)


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="all people outside fold 0 are of one group"):
        separation.separation(vectors(1.0), np.arange(12) < 4, FOLDS)
    missing = vectors(1.0)
    missing[3, 4] = np.nan
    with pytest.raises(ValueError, match="values that are missing"):
        separation.separation(missing, WHO, FOLDS)
