"""Convolutions that are right, and fast, in bfloat16 on a CPU, too.

Of maps that are no longer than the kernel on some axis, oneDNN 3.12 (in PyTorch 2.13) computes wrong values in
bfloat16: in 3D forward, with AMX instructions, and in 2D the gradient of weights at stride 2, on all CPUs with bfloat16
instructions. They are off by any amount, or not finite. Such maps are little work, so they stay in float32.

So do depthwise convolutions, which filter each channel on its own: at stride 2, oneDNN takes 10 to 20 times as long for
their gradients in bfloat16 as in float32, which made a step of EfficientNet-Lite0 twice as long.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d", "convolved"]


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


class Conv2d(_Exact, nn.Conv2d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.Conv2d`, right in bfloat16."""


class Conv3d(_Exact, nn.Conv3d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.Conv3d`, right in bfloat16."""


class ConvTranspose2d(_Exact, nn.ConvTranspose2d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.ConvTranspose2d`, right in bfloat16."""


class ConvTranspose3d(_Exact, nn.ConvTranspose3d):  # type: ignore[misc]  # its `forward` has fewer names
    """`torch.nn.ConvTranspose3d`, right in bfloat16."""
