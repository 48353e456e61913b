"""Convolutions that are right, and fast, in bfloat16 on a CPU, too.

Of maps that are no longer than the kernel on some axis, oneDNN 3.12 (in PyTorch 2.13) computes wrong values in
bfloat16: in 3D forward, with AMX instructions, and in 2D the gradient of weights at stride 2, on all CPUs with bfloat16
instructions. They are off by any amount, or not finite. Such maps are little work, so they stay in float32.

So do depthwise convolutions, which filter each channel on its own: at stride 2, oneDNN takes 10 to 20 times as long for
their gradients in bfloat16 as in float32, which made a step of EfficientNet-Lite0 twice as long.

In 2D training, maps of many channels that give at most twice as many places as the kernel has are unfolded into
patches, which one matrix product filters: on ResNet-18's last maps, of 2 × 2 pixels, that is two to five times as fast,
and right in bfloat16. Outside training a convolution stays one: rules of explanations tell it from a linear layer, and
features do not depend on the batch, not even by a rounding.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d", "convolved"]

_MANY = 64  # channels: with fewer, unfolding gains nothing


def convolved(
    maps: Tensor, kernel: Sequence[int], convolve: Callable[[Tensor], Tensor], depthwise: bool = False
) -> Tensor:
    """`convolve(maps)`; in float32, without autocast, if depthwise or if an axis is no longer than the kernel."""
    device = maps.device.type
    small = any(1 < k >= n for n, k in zip(maps.shape[2:], kernel, strict=True))
    if not ((small or depthwise) and device == "cpu" and torch.is_autocast_enabled(device)):
        return convolve(maps)
    with torch.autocast(device, enabled=False):
        return convolve(maps.float())


class _Exact(nn.modules.conv._ConvNd):
    def forward(self, maps: Tensor, *rest: object, **named: object) -> Tensor:
        """As the class beside this one, in float32 where maps are small or each channel is filtered on its own."""
        forward, depthwise = super().forward, self.groups == self.in_channels > 1
        return convolved(maps, self.kernel_size, lambda exact: forward(exact, *rest, **named), depthwise)


class Conv2d(_Exact, nn.Conv2d):
    """`torch.nn.Conv2d`, right in bfloat16, and fast on small maps in training."""

    def forward(self, maps: Tensor, *rest: object, **named: object) -> Tensor:  # type: ignore[override]
        """(N, C, H, W) → (N, C', H', W')."""
        many = self.in_channels >= _MANY and self.groups == 1
        zeros = self.padding_mode == "zeros"
        if self.training and many and zeros and maps.device.type == "cpu" and not isinstance(self.padding, str):
            axes = list(zip(maps.shape[2:], self.padding, self.kernel_size, self.stride, self.dilation, strict=True))
            n_places = math.prod(len(range(0, n + 2 * p - d * (k - 1), s)) for n, p, k, s, d in axes)
            if 0 < n_places <= 2 * math.prod(self.kernel_size) > 2:
                rows, columns = (
                    [slice(i * d, n + 2 * p - d * (k - 1 - i), s) for i in range(k)] for n, p, k, s, d in axes
                )
                padded = F.pad(maps, [p for p in reversed(self.padding) for _ in range(2)]).movedim(1, 3)
                patches = torch.cat([padded[:, row, column] for row in rows for column in columns], dim=3)
                return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).movedim(3, 1)
        found: Tensor = super().forward(maps, *rest, **named)
        return found


class Conv3d(_Exact, nn.Conv3d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.Conv3d`, right in bfloat16."""


class ConvTranspose2d(_Exact, nn.ConvTranspose2d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.ConvTranspose2d`, right in bfloat16."""


class ConvTranspose3d(_Exact, nn.ConvTranspose3d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.ConvTranspose3d`, right in bfloat16."""
