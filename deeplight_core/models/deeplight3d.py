"""3D-DeepLight (Thomas et al. 2021, athms/evaluating-deeplight-transfer @4a8eeaa; layers only, no code).

Twelve times: 3×3×3 convolution with TensorFlow's SAME padding, ReLU, whole-channel dropout, batch normalisation. Its
head is `Classes` with `pooling: scores`. With 16 states both have 890,280 trained weights.

What its code does, and what is done here:
- its scores cannot be negative, and it is trained by cross-entropy on their shares of their sum, though it calls them
  logits. `probabilities: shares` does the same; the default, softmax, is our choice;
- dropout of a state's map before the mean over places is dropout of that mean.

Letters: B batch, Z, Y, X; C channels; D, H, W axes of a feature map.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.convolution import Conv3d
from deeplight_core.models.deeplight import STRIDES, same_padding
from deeplight_core.models.noise import uniform
from deeplight_core.models.protocol import Encoder
from deeplight_core.routes import DeepLight3dSettings

__all__ = ["VolumeEncoder"]


class _Layer(nn.Module):
    """Convolution, ReLU, dropout, normalisation."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.convolution = Conv3d(n_in, n_out, 3, stride)
        self.norm = BatchNorm(n_out, eps=1e-3, momentum=0.01)  # Keras's defaults; its momentum is 1 minus torch's
        self.dropout = dropout

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', ⌈D/stride⌉, …)."""
        paddings = [same_padding(n, self.convolution.stride[0]) for n in reversed(maps.shape[2:])]
        maps = F.relu(self.convolution(F.pad(maps, [n for padding in paddings for n in padding])))
        if self.training and self.dropout:
            kept = uniform(*maps.shape[:2], device=maps.device) >= self.dropout
            maps = maps * (kept / (1 - self.dropout)).to(maps.dtype)[:, :, None, None, None]
        result: Tensor = self.norm(maps)
        return result


class VolumeEncoder(Encoder):
    """Volume → maps (C, z, y, x). Several frames of an example give the mean of their maps."""

    name = "deeplight3d"
    Settings = DeepLight3dSettings
    needs_grid = False

    def __init__(self, shape: tuple[int, int, int], settings: DeepLight3dSettings) -> None:
        super().__init__(shape, settings)
        left = list(reversed(shape))
        for stride in STRIDES:
            left = [-(-n // stride) for n in left]
        self.output_shape = (settings.widths[-1], *left)
        layers = zip(pairwise((1, *settings.widths)), STRIDES, strict=True)
        self.layers = nn.ModuleList(_Layer(*in_out, stride, settings.dropout) for in_out, stride in layers)
        for weight in self.parameters():  # CPUs convolve several times faster in this order
            if weight.dim() == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    @property
    def blocks(self) -> list[str]:
        """The convolutions, each with its normalisation."""
        return [f"layers.{i}" for i in range(len(self.layers))]

    @torch.no_grad()
    def initialise(self) -> None:
        """Glorot's uniform weights, Keras's default; biases 0; the normalisation starts as the identity."""
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.xavier_uniform_(part.weight)
                assert part.bias is not None
                nn.init.zeros_(part.bias)
            elif isinstance(part, BatchNorm):
                part.reset_parameters()

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → (B, C, z, y, x)."""
        maps = volumes.flatten(0, -4)[:, None]
        for layer in self.layers:
            maps = layer(maps)
        return maps if volumes.dim() == 4 else maps.view(len(volumes), -1, *maps.shape[1:]).mean(dim=1)
