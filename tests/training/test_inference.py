import numpy as np
import pytest
import torch

from deeplight_core.data.store import Store
from deeplight_core.training.examples import select_rows
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes

TINY_STATES = [("EMOTION", "neutral"), ("SOCIAL", "interaction"), ("EMOTION", "fear"), ("SOCIAL", "no interaction")]


@pytest.mark.parametrize("in_memory", [True, False])
def test_predictions_equal_single_forward_passes(
    store: Store, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Volumes(store, select_rows(store.index, TINY_STATES, "validation"), in_memory=in_memory)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7 * 8 * 9, 4))
    monkeypatch.setattr("deeplight_core.training.inference._LARGEST_BATCH", 50)  # of 72: the last batch is smaller
    labels, losses = predict(model, data)
    assert len(labels) == len(losses) == len(data) == 72
    for i in range(72):
        batch = data.batch(np.array([i]))
        logits = model(batch["volumes"])[0].detach().double()
        assert labels[i] == logits.argmax()
        expected = -torch.log(torch.exp(logits)[batch["labels"][0]] / torch.exp(logits).sum())
        assert losses[i] == pytest.approx(expected.item(), abs=1e-5)
    assert len(set(labels)) > 1
