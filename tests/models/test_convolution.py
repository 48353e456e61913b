import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deeplight_core.models
from deeplight_core.models.convolution import Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d, convolved

KINDS = {Conv2d: nn.Conv2d, Conv3d: nn.Conv3d, ConvTranspose2d: nn.ConvTranspose2d, ConvTranspose3d: nn.ConvTranspose3d}


def passed(kind: type, stride: int, shape: tuple[int, ...], low: bool) -> tuple[Tensor, Tensor]:
    """Result, and gradient of the weights, of a convolution with 3 voxels on each axis and padding."""
    torch.manual_seed(0)
    layer = kind(24, 16, 3, stride, 1).train()
    maps = torch.randn(8, 24, *shape).contiguous(
        memory_format=torch.channels_last if len(shape) == 2 else torch.channels_last_3d
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        result = layer(maps)
    result.float().square().mean().backward()
    return result, layer.weight.grad


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_small_maps_are_right_in_bfloat16(kind: type, shape: tuple[int, ...], stride: int) -> None:
    """Bfloat16 has 8 bits of precision, and sums of squares halve it."""
    shape = (*shape, 2) if "3d" in kind.__name__ else shape
    exact, low = passed(kind, stride, shape, low=False), passed(kind, stride, shape, low=True)
    own = passed(KINDS[kind], stride, shape, low=False)
    for found, right, expected in zip(low, exact, own, strict=True):
        assert torch.equal(right, expected)  # without autocast it is torch's own
        assert (found.float() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "shape"),
    [
        (3, 2, 1, 1, (4, 5)),
        ((3, 2), (1, 2), (1, 0), 1, (2, 3)),
        (3, 1, 2, 2, (2, 3)),
        (5, 2, 2, 1, (9, 10)),
        (3, 1, 0, 1, (3, 3)),
        (2, (1, 2), 1, (2, 1), (3, 4)),
    ],
)
def test_small_maps_of_many_channels_are_convolved_as_in_float64(
    kernel: Any, stride: Any, padding: Any, dilation: Any, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer: Any = Conv2d(64, 5, kernel, stride, padding, dilation)
    maps = torch.randn(2, 64, *shape, requires_grad=True)
    inputs = (maps, layer.weight, layer.bias)
    exact = [one.double() for one in inputs]
    expected = F.conv2d(exact[0], exact[1], exact[2], stride, padding, dilation)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(maps)
    found, given = layer(maps), torch.randn_like(expected)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert low.dtype == torch.bfloat16  # which a convolution of maps that the kernel covers would leave
    wanted = torch.autograd.grad(expected, inputs, given)
    gradients, coarse = (torch.autograd.grad(result, inputs, given.to(result.dtype)) for result in (found, low))
    for one, other, right in zip(gradients, coarse, wanted, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-5)
        assert (other - right).norm() < 0.02 * right.norm()
    assert torch.equal(layer.eval()(maps), F.conv2d(*inputs, stride, padding, dilation))  # one to be explained


def test_padding_that_is_not_zeros_is_torchs() -> None:
    torch.manual_seed(0)
    own, other = (kind(64, 5, 3, padding=1, padding_mode="reflect") for kind in (Conv2d, nn.Conv2d))
    other.load_state_dict(own.state_dict())
    maps = torch.randn(2, 64, 3, 4)
    assert torch.equal(own(maps), other(maps))


def test_depthwise_convolutions_and_maps_that_a_kernel_covers_leave_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv2d(1, 1, 3, padding=1)(torch.ones(1, 1, 4, 3)).dtype == torch.float32
        assert Conv2d(1, 1, 3, padding=1)(torch.ones(1, 1, 4, 4)).dtype == torch.bfloat16
        assert Conv2d(4, 4, 3, padding=1, groups=2)(torch.ones(1, 4, 9, 9)).dtype == torch.bfloat16
        assert Conv2d(4, 4, 3, padding=1, groups=4)(torch.ones(1, 4, 9, 9)).dtype == torch.float32
        assert Conv3d(1, 1, 1)(torch.ones(1, 1, 1, 1, 1)).dtype == torch.bfloat16
        assert ConvTranspose3d(1, 1, 2)(torch.ones(1, 1, 2, 9, 9)).dtype == torch.float32
        halves = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
        weight = torch.ones(1, 1, 3, 3)
        assert convolved(halves, (3, 3), lambda maps: F.conv2d(maps, weight, padding=1)).dtype == torch.float32
    assert Conv2d(1, 1, 3, padding=1)(torch.ones(1, 1, 3, 3)).dtype == torch.float32


def test_no_model_convolves_in_another_way() -> None:
    """`deeplight.SameConv2d`, a class of its own, leaves out what of a kernel meets only padding."""
    for file in Path(deeplight_core.models.__file__).parent.glob("*.py"):
        code = file.read_text(encoding="utf-8")
        made = re.findall(r"(?<!isinstance\(part, )(?<!class )\bnn\.Conv(?:Transpose)?\dd\(", code)
        assert not made, f"{file.name}: take the class of models.convolution"
