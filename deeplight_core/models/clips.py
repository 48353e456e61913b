"""Encoder of clips in the manner of Wang et al. (2020, ustc-bmec/Whole-Brain-Conv @fd8e2bd; layers only, no code).

Time is the channels of the first convolution; residual 3D stages follow, and a convolution as large as what they leave.
At 75 × 93 × 81 voxels, 27 frames and 7 classes with a hidden layer of 64 it has the original's 3,982,177 weights. The
grid may be any from 1 voxel on, since the last convolution takes what is left of it.

Letters: B batch, T frames, Z, Y, X; C channels; D, H, W axes of a feature map.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.convolution import Conv3d, convolved
from deeplight_core.models.protocol import Encoder
from deeplight_core.routes import ClipEncoderSettings

__all__ = ["ClipEncoder"]

_STRIDES = (1, 2, 2, 2)  # of the first block of each stage


class _Normalised(nn.Sequential):
    """A convolution with SAME padding, and batch normalisation.

    The normalisation takes the convolution's bias away again, so that its gradient would be rounding alone, which Adam
    makes as large as any other. It is kept, since the original counts it, and gets no gradient.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(Conv3d(n_in, n_out, kernel, stride, kernel // 2), BatchNorm(n_out))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', …)."""
        convolution, norm = self
        assert isinstance(convolution, nn.Conv3d)
        assert convolution.bias is not None
        bias = convolution.bias.detach() + 0 * convolution.bias  # a gradient of 0, which processes wait for
        padding = convolution.padding
        assert not isinstance(padding, str)
        weight, stride = convolution.weight, convolution.stride
        result: Tensor = norm(
            convolved(maps, convolution.kernel_size, lambda exact: F.conv3d(exact, weight, bias, stride, padding))
        )
        return result


class _Block(nn.Module):
    """Two convolutions with a shortcut around them (He et al. 2016, basic block)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _Normalised(n_in, n_out, 3, stride), _Normalised(n_out, n_out, 3)
        self.shortcut = None if (n_in, stride) == (n_out, 1) else _Normalised(n_in, n_out, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', …)."""
        around = maps if self.shortcut is None else self.shortcut(maps)
        return F.relu(self.second(F.relu(self.first(maps))) + around)


class ClipEncoder(Encoder):
    """Clip of T frames → 64 features. Several clips of an example give the mean of their features."""

    name = "clip"
    Settings = ClipEncoderSettings

    def __init__(self, shape: tuple[int, int, int], settings: ClipEncoderSettings) -> None:
        super().__init__(shape, settings)
        narrow, first, *stages = settings.widths
        left = [-(-n // 2) for n in reversed(shape)]  # z, y, x after the first convolution
        for stride in _STRIDES[: len(stages)]:
            left = [-(-n // stride) for n in left]
        self.mix = _Normalised(settings.frames, narrow, 1)
        self.first = _Normalised(narrow, first, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(*in_out, stride), _Block(in_out[1], in_out[1], 1))
            for in_out, stride in zip(pairwise((first, *stages)), _STRIDES, strict=True)
        )
        self.last = Conv3d(stages[-1], settings.features, left)  # type: ignore[arg-type]
        self.output_shape = (settings.features,)
        for weight in self.parameters():  # CPUs convolve several times faster in this order
            if weight.dim() == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def blocks(self) -> list[str]:
        """The first two convolutions, the stages, and the last convolution."""
        return ["mix", "first", *(f"stages.{i}" for i in range(len(self.stages))), "last"]

    @torch.no_grad()
    def initialise(self) -> None:
        """He's normal weights; biases 0; the normalisation starts as the identity."""
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                assert part.bias is not None
                nn.init.zeros_(part.bias)
            elif isinstance(part, BatchNorm):
                part.reset_parameters()

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, T, Z, Y, X) → (B, features).

        Raises
        ------
        ValueError
            If examples are not clips of as many frames as the settings say.
        """
        frames = self.settings.frames
        if volumes.dim() < 5 or volumes.shape[-4] != frames:
            found = f"clips of {volumes.shape[-4]} frames" if volumes.dim() > 4 else "single volumes"
            raise ValueError(f"encoder clip takes clips of {frames} frames, got {found}; set encoder.frames to theirs")
        if volumes.dim() > 5:
            clips: Tensor = self(volumes.flatten(0, -5))
            return clips.view(len(volumes), -1, *self.output_shape).mean(dim=1)
        maps = F.relu(self.first(F.relu(self.mix(volumes))))
        for stage in self.stages:
            maps = stage(maps)
        features: Tensor = self.last(maps)
        return features.flatten(1)
