import numpy as np
import pytest
from test_inference import TINY_STATES

from deeplight_core.data.store import Store
from deeplight_core.training.baselines import linear_predictions
from deeplight_core.training.examples import select_rows
from deeplight_core.training.loader import Volumes


@pytest.mark.parametrize("learner", ["logistic", "svm", "decoder"])
def test_linear_baseline_separates_what_is_separable(learner: str, store: Store) -> None:
    train, held_out = (
        Volumes(store, select_rows(store.index, TINY_STATES, split)) for split in ("train", "validation")
    )
    predicted = linear_predictions(learner, train, held_out)
    assert (predicted == held_out.rows["label"]).mean() > 0.9


def test_linear_baseline_is_at_chance_without_information(store: Store) -> None:
    rows, held_out = (select_rows(store.index, TINY_STATES, split) for split in ("train", "validation"))
    accuracies = []
    for seed in range(10):
        label = np.random.default_rng(seed).permutation(rows["label"])
        predicted = linear_predictions("logistic", Volumes(store, rows.assign(label=label)), Volumes(store, held_out))
        accuracies.append((predicted == held_out["label"]).mean())
    # one permutation's SD is 0.06, so that of the mean is 0.02
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.08)
