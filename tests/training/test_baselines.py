from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orth
from sklearn.linear_model import LogisticRegression
from test_inference import TINY_STATES

from deeplight_core.data.store import Store
from deeplight_core.training.baselines import _components, _voxels, linear_answers
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
