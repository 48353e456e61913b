from dataclasses import replace

import numpy as np
import pytest
from test_inference import TINY_STATES

from deeplight_core.data.store import Store
from deeplight_core.training.baselines import linear_answers
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes


@pytest.mark.parametrize("learner", ["logistic", "svm", "decoder"])
def test_linear_baseline_separates_what_is_separable(learner: str, store: Store) -> None:
    train, held_out = (Volumes(store, of_states(store.index, TINY_STATES, split)) for split in ("train", "validation"))
    answers = linear_answers(learner, train, held_out, len(TINY_STATES))
    assert answers.shape == (len(held_out), len(TINY_STATES))
    assert (answers.argmax(axis=1) == held_out.examples.targets).mean() > 0.9


def test_linear_baseline_is_at_chance_without_information(store: Store) -> None:
    train, held_out = (of_states(store.index, TINY_STATES, split) for split in ("train", "validation"))
    accuracies = []
    for seed in range(10):
        shuffled = replace(train, targets=np.random.default_rng(seed).permutation(train.targets))
        answers = linear_answers("logistic", Volumes(store, shuffled), Volumes(store, held_out), len(TINY_STATES))
        accuracies.append((answers.argmax(axis=1) == held_out.targets).mean())
    # one permutation's SD is 0.06, so that of the mean is 0.02
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.08)
