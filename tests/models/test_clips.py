"""The encoder of clips: sizes of the original, time as channels, wrong clips."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core import models
from deeplight_core.models.clips import ClipEncoder
from deeplight_core.routes import ClipEncoderSettings


def n_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_it_has_the_original_number_of_weights() -> None:
    """Wang et al. (2020): 3,982,177 at 75 × 93 × 81 voxels, 27 frames, 7 classes."""
    states = [["", str(i)] for i in range(7)]
    model = models.build(
        {
            "encoder": {"name": "clip", "shape": [75, 93, 81], "settings": {}},
            "head": {"name": "classes", "targets": states, "settings": {"hidden": 64}},
        }
    )
    assert n_weights(model) == 3_982_177
    assert model.encoder.last.kernel_size == (6, 6, 5)  # z, y, x


def test_it_computes_what_its_layers_say() -> None:
    """Against the plain functions, in evaluation."""
    torch.manual_seed(0)
    encoder = ClipEncoder((9, 12, 17), ClipEncoderSettings(frames=4, widths=(2, 3, 4, 5, 5, 6), features=7))
    encoder.initialise()
    for part in encoder.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    clip = torch.randn(2, 4, 17, 12, 9)
    weights = encoder.state_dict()

    def normalised(maps: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]
        maps = F.conv3d(maps, weight, bias, stride, weight.shape[-1] // 2)
        numbers = [weights[f"{name}.1.{what}"] for what in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(maps, *numbers)

    maps = F.relu(normalised(F.relu(normalised(clip, "mix")), "first", 2))
    for i, stride in enumerate((1, 2, 2, 2)):
        for j in range(2):
            name, step = f"stages.{i}.{j}", stride if j == 0 else 1
            around = normalised(maps, f"{name}.shortcut", step) if f"{name}.shortcut.0.weight" in weights else maps
            inner = F.relu(normalised(maps, f"{name}.first", step))
            maps = F.relu(normalised(inner, f"{name}.second") + around)
    expected = F.conv3d(maps, weights["last.weight"], weights["last.bias"]).flatten(1)
    assert expected.shape == (2, 7)
    torch.testing.assert_close(encoder.eval()(clip), expected, rtol=1e-4, atol=1e-5)


def test_wrong_clips_are_refused() -> None:
    encoder = ClipEncoder((7, 8, 9), ClipEncoderSettings(frames=3))
    with pytest.raises(ValueError, match="encoder clip takes clips of 3 frames, got clips of 2 frames"):
        encoder(torch.zeros(2, 2, 9, 8, 7))
    with pytest.raises(ValueError, match=r"got single volumes; set encoder\.frames"):
        encoder(torch.zeros(2, 9, 8, 7))
