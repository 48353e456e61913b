import numpy as np
import pytest
import torch
from conftest import SHAPE

from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.routes import DeepLightSettings
from deeplight_core.training.examples import of_states
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes

TINY_STATES = [("EMOTION", "neutral"), ("SOCIAL", "interaction"), ("EMOTION", "fear"), ("SOCIAL", "no interaction")]


@pytest.mark.parametrize("in_memory", [True, False])
def test_predictions_equal_single_forward_passes(
    store: Store, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Volumes(store, of_states(store.index, TINY_STATES, "validation"), in_memory=in_memory)
    torch.manual_seed(0)
    model = DeepLight(SHAPE, len(TINY_STATES), DeepLightSettings(initialisation="he"))
    with torch.no_grad():
        model.head.weight.mul_(1000)  # so that an untrained decoder's answers differ
        model.head.bias.copy_(
            -model.head.weight @ model.eval().encoder(data.batch(np.arange(72))["volumes"]).mean(dim=0)
        )
        model.train()
    monkeypatch.setattr("deeplight_core.training.inference._LARGEST_BATCH", 50)  # of 72: the last batch is smaller
    answers = predict(model, data)
    assert len(data) == 72
    assert answers.each.shape == (72,)
    assert answers.score.shape == (72, 1)
    assert answers.answer.shape == (72, 4)
    assert model.training  # as it was
    model.eval()
    for i in range(72):
        batch = data.batch(np.array([i]))
        logits = model(batch["volumes"])[0].detach().double()
        label = batch["targets"][0]
        assert answers.score[i, 0] == (logits.argmax() == label)
        probabilities = torch.exp(logits) / torch.exp(logits).sum()
        np.testing.assert_allclose(answers.answer[i], probabilities, atol=1e-5)  # float32, other sizes of a batch
        assert answers.each[i] == pytest.approx(-torch.log(probabilities[label]).item(), abs=1e-5)
    assert len(set(answers.answer.argmax(axis=1))) > 1
