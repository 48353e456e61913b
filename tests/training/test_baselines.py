from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orth
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from test_inference import TINY_STATES

from deeplight_core.data.store import Store
from deeplight_core.training.baselines import _components, _voxels, linear_answers, readout_answers
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes


@pytest.mark.parametrize("learner", ["logistic", "svm", "decoder"])
def test_linear_baseline_separates_what_is_separable(learner: str, store: Store) -> None:
    train, held_out = (Volumes(store, of_states(store.index, TINY_STATES, split)) for split in ("train", "validation"))
    answers = linear_answers(learner, train, held_out, len(TINY_STATES))
    assert answers.shape == (len(held_out), len(TINY_STATES))
    assert (answers.argmax(axis=1) == held_out.examples.targets).mean() > 0.9


def test_components_are_the_maps_of_the_sources_states_in_its_units(store: Store) -> None:
    """Held against scipy's orthonormal basis of the same maps, and used in the place of voxels."""
    source = Volumes(store, of_states(store.index, TINY_STATES[:2], "train"))
    found = _components(source)
    values, table = _voxels(source).astype(np.float64), source.examples.table
    maps = []
    for unit in sorted(set(table["unit"])):
        own = (table["unit"] == unit).to_numpy()
        two = [values[own & (source.examples.targets == k)].mean(axis=0) for k in (0, 1)]
        maps += [two[0] - np.mean(two, axis=0), two[1] - np.mean(two, axis=0)]
    expected = orth(np.array(maps).T)
    assert found.shape == expected.shape == (values.shape[1], 4)  # two states without their mean: one map per unit
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)

    target, held_out = (Volumes(store, of_states(store.index, TINY_STATES, s)) for s in ("train", "validation"))
    answers = linear_answers("components", target, held_out, len(TINY_STATES), source)
    x, x_new = _voxels(target), _voxels(held_out)
    scale = 10 / (x.std() * np.sqrt(x.shape[1]))
    model = LogisticRegression(max_iter=1000).fit(x @ found * scale, target.examples.targets)
    np.testing.assert_allclose(answers, model.predict_proba(x_new @ found * scale), atol=1e-6)


def test_linear_baseline_is_at_chance_without_information(store: Store) -> None:
    train, held_out = (of_states(store.index, TINY_STATES, split) for split in ("train", "validation"))
    accuracies = []
    for seed in range(10):
        shuffled = replace(train, targets=np.random.default_rng(seed).permutation(train.targets))
        answers = linear_answers("logistic", Volumes(store, shuffled), Volumes(store, held_out), len(TINY_STATES))
        accuracies.append((answers.argmax(axis=1) == held_out.targets).mean())
    # one permutation's SD is 0.06, so that of the mean is 0.02
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.08)


def test_readouts_equal_scikit_learns_of_the_features_themselves() -> None:
    """More features than examples are rotated first, which changes no answer of a model with an L2 penalty."""
    random = np.random.default_rng(0)
    units = np.repeat([f"u{i}" for i in range(15)], 2)
    labels = np.repeat(random.permutation([0] * 6 + [1] * 9), 2)
    x, x_new = random.normal(3, 1, (30, 80)), random.normal(3, 1, (7, 80))
    x[:, :5] += 2 * labels[:, None]
    centred, scale = x - x.mean(axis=0), 10 / np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())
    found = readout_answers(x, x_new, labels, units, 3)
    assert found[:, 2].tolist() == [0] * 7  # a state that was not trained on
    model = LogisticRegressionCV(
        Cs=np.logspace(-4, 2, 7), cv=list(StratifiedGroupKFold(5).split(x, labels, units)), scoring="neg_log_loss",
        class_weight="balanced", max_iter=5000, tol=1e-7, l1_ratios=(0,), use_legacy_attributes=False,
    ).fit(centred * scale, labels)  # fmt: skip
    np.testing.assert_allclose(found[:, :2], model.predict_proba((x_new - x.mean(axis=0)) * scale), atol=2e-3)

    ages = np.stack([labels * 10.0 + random.normal(40, 1, 30), np.full(30, np.nan)], axis=1)[:, :1]
    answers = readout_answers(x, x + 0, ages, units)
    assert np.corrcoef(answers[:, 0], ages[:, 0])[0, 1] > 0.9
    few, of_two = x[:4], np.array([0, 0, 1, 1])  # one unit of each state: no folds
    scale = 10 / np.sqrt(((few - few.mean(axis=0)) ** 2).sum(axis=1).mean())
    fixed = LogisticRegression(tol=1e-7, max_iter=5000).fit((few - few.mean(axis=0)) * scale, of_two)
    expected = fixed.predict_proba((x_new - few.mean(axis=0)) * scale)
    np.testing.assert_allclose(readout_answers(few, x_new, of_two, units[:4], 2), expected, atol=1e-4)
