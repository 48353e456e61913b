"""MedicalNet's ResNet-18 and SFCN against plain functions of weights with the published names and shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight_core.models.medical import SFCN, MedicalNet, SimpleNetwork
from deeplight_core.models.natural import ResNet
from deeplight_core.routes import MedicalNetSettings, SFCNSettings, WeightsSettings
from deeplight_core.training.published import LAYOUTS, read_weights

State = dict[str, Tensor]
MEDICAL, SIMPLE = MedicalNetSettings().widths, SFCNSettings().widths

# ---- the originals, from their authors' descriptions


def normalisation(name: str, n: int) -> dict[str, tuple[int, ...]]:
    own: dict[str, tuple[int, ...]] = {f"{name}.{part}": (n,) for part in ("weight", "bias")}
    return own | {f"{name}.running_mean": (n,), f"{name}.running_var": (n,), f"{name}.num_batches_tracked": ()}


def medicalnet_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """`resnet_18`: a stem, four layers of two blocks, no weights in shortcuts; a head that segments."""
    shapes = {"conv1.weight": (widths[0], 1, 7, 7, 7)} | normalisation("bn1", widths[0])
    n_in = widths[0]
    for layer, n in enumerate(widths, 1):
        for block in (0, 1):
            for part in (1, 2):
                name = f"layer{layer}.{block}"
                shapes |= {f"{name}.conv{part}.weight": (n, n_in, 3, 3, 3)} | normalisation(f"{name}.bn{part}", n)
                n_in = n
    return shapes | {"conv_seg.0.weight": (widths[-1], 2, 2, 2, 2), "conv_seg.0.bias": (2,)}


def sfcn_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Convolutions 0 to 5 and their normalisations; a classifier of forty bins."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n) in enumerate(zip((1, *widths), widths, strict=False)):
        name, k = f"feature_extractor.conv_{i}", 1 if i == 5 else 3
        shapes |= {f"{name}.0.weight": (n, n_in, k, k, k), f"{name}.0.bias": (n,)} | normalisation(f"{name}.1", n)
    return shapes | {"classifier.conv_6.weight": (40, widths[-1], 1, 1, 1), "classifier.conv_6.bias": (40,)}


def seeded(shapes: dict[str, tuple[int, ...]]) -> State:
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=random) / max(1, np.prod(shape[1:])) ** 0.5
        positive = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
        state[name] = tensor.abs() + 0.5 if positive else tensor
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    return state


def normed(state: State, name: str, x: Tensor) -> Tensor:
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts, training=False, eps=1e-5)


def medicalnet(state: State, x: Tensor) -> Tensor:
    """Strides 2, 2 (pooling), 1, 2, 1, 1; the last two layers are dilated by 2 and 4."""
    x = F.relu(normed(state, "bn1", F.conv3d(x, state["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool3d(x, kernel_size=3, stride=2, padding=1)
    for layer, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4)), 1):
        for block in (0, 1):
            name, first = f"layer{layer}.{block}", stride if block == 0 else 1
            w1, w2 = (state[f"{name}.conv{part}.weight"] for part in (1, 2))
            y = F.relu(normed(state, f"{name}.bn1", F.conv3d(x, w1, None, first, dilation, dilation)))
            y = normed(state, f"{name}.bn2", F.conv3d(y, w2, None, 1, dilation, dilation))
            around = F.avg_pool3d(x, kernel_size=1, stride=first)
            zeros = torch.zeros(len(x), y.shape[1] - x.shape[1], *around.shape[2:])
            x = F.relu(y + torch.cat([around, zeros], dim=1))
    return x


def sfcn(state: State, x: Tensor) -> Tensor:
    for i in range(6):
        name = f"feature_extractor.conv_{i}"
        x = F.conv3d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=0 if i == 5 else 1)
        x = normed(state, f"{name}.1", x)
        x = F.relu(F.max_pool3d(x, 2, stride=2) if i < 5 else x)
    return x


# ---- ours beside them


@pytest.mark.parametrize(
    ("encoder", "network", "shapes", "n_parameters"),
    [
        ("medicalnet", lambda: ResNet(MEDICAL, kind="medical"), medicalnet_shapes(MEDICAL), 32_986_176),  # "32.99 M"
        ("sfcn", lambda: SimpleNetwork(SIMPLE), sfcn_shapes(SIMPLE), 2_950_336),
    ],
)
def test_published_widths_give_the_published_shapes(
    encoder: str, network: Callable[[], Any], shapes: dict[str, tuple[int, ...]], n_parameters: int
) -> None:
    ((name_of, classifier),) = LAYOUTS[encoder].values()
    with torch.device("meta"):
        ours = network()
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(classifier)}
    assert {name_of(name): tuple(t.shape) for name, t in ours.state_dict().items()} == kept
    assert sum(parameter.numel() for parameter in ours.parameters()) == n_parameters
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(int(np.prod(shape)) for name, shape in kept.items() if not name.endswith(buffers)) == n_parameters


def as_published(state: State, path: Path) -> WeightsSettings:
    """As both were written: from many GPUs, MedicalNet's within a checkpoint."""
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": named} if "conv1.weight" in state else named, path)
    return WeightsSettings(source=str(path), licence="MIT")


def test_features_are_those_of_the_original_medicalnet(tmp_path: Path) -> None:
    widths = (4, 5, 7, 8)
    state = seeded(medicalnet_shapes(widths))
    encoder = MedicalNet((19, 29, 23), MedicalNetSettings(widths=widths, window=(-1.0, 3.0))).eval()
    record = read_weights(as_published(state, tmp_path / "resnet_18.pth"), "medicalnet", encoder.network)
    assert (record["licence"], record["left_out"]) == ("MIT", ["conv_seg.0.bias", "conv_seg.0.weight"])
    volumes = torch.randn(2, 23, 29, 19, generator=torch.Generator().manual_seed(1))
    shown = ((volumes.numpy() + 1) / 4).clip(0, 1)
    scaled = [np.where(v > 0, (v - v[v > 0].mean()) / v[v > 0].std(), 0) for v in shown]
    with torch.inference_mode():
        maps = medicalnet(state, torch.tensor(np.array(scaled))[:, None])
        assert maps.shape[1:] == (8, 3, 4, 3)  # an eighth of the grid
        torch.testing.assert_close(encoder(volumes), maps.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
        assert maps.std() > 0.01


def test_features_are_those_of_the_original_sfcn(tmp_path: Path) -> None:
    """Divided by the mean, the middle cut out, x first; 64 voxels of 67 begin at the second."""
    widths = (4, 3, 5, 6, 5, 7)
    state = seeded(sfcn_shapes(widths))
    encoder = SFCN((33, 67, 40), SFCNSettings(widths=widths, crop=(32, 64, 32))).eval()
    record = read_weights(as_published(state, tmp_path / "age.p"), "sfcn", encoder.network)
    assert record["left_out"] == ["classifier.conv_6.bias", "classifier.conv_6.weight"]
    volumes = torch.rand(2, 40, 67, 33, generator=torch.Generator().manual_seed(1))
    data = volumes.numpy().transpose(0, 3, 2, 1)  # as nibabel has them
    data = np.array([v / v.mean() for v in data])[:, :32, 1:65, 4:36]
    with torch.inference_mode():
        maps = sfcn(state, torch.tensor(data)[:, None])
        assert maps.shape[1:] == (7, 1, 2, 1)
        torch.testing.assert_close(encoder(volumes), maps.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)
        assert maps.std() > 0.01


def test_empty_volumes_are_features_too_and_the_middle_lies_in_the_grid() -> None:
    for encoder in (
        MedicalNet((8, 9, 7), MedicalNetSettings(widths=(4,) * 4)),
        SFCN((8, 9, 7), SFCNSettings(widths=(4,) * 6)),
    ):
        assert encoder(torch.zeros(2, *encoder.shape[::-1])).isfinite().all()
    with pytest.raises(
        ValueError, match=r"the middle \(32, 41, 32\) of a grid of \(80, 40, 40\) voxels, which is smaller"
    ):
        SFCN((8, 4, 4), SFCNSettings(size=80, crop=(32, 41, 32)))


def test_a_resnet_with_weights_in_its_shortcuts_is_another(tmp_path: Path) -> None:
    state = seeded(medicalnet_shapes((4, 4, 6, 6))) | {"layer3.0.downsample.0.weight": torch.zeros(6, 4, 1, 1, 1)}
    weights = as_published(state, tmp_path / "resnet_18B.pth")
    with pytest.raises(ValueError, match=r"weights of medicalnet .*: 1 unknown, e.g. layer3.0.downsample.0.weight"):
        read_weights(weights, "medicalnet", ResNet((4, 4, 6, 6), kind="medical"))
