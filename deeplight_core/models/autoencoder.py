"""Encoders of volumes that can be mirrored (Atanaszov & Ritter 2019, section 2.2): volume → code → volume.

Where report and code (ben0it8/trans-MRI @ec273bb) differ, or leave something open, and what is done here:
- the convolutional encoder has ReLU as in the report (the code: ELU), the residual one ELU as in the code; each can be
  set. The report gives the residual model around 60% fewer parameters; its code has 91,688, 46% more than 62,769;
- the activation follows the pooling, which gives the same numbers with an eighth of the work, and full-size maps need
  not be kept (with ELU, two values that its rounding makes equal may be placed differently);
- the residual decoder ends at exactly the volume's size; the code adds a voxel where one grid needs it, and stretches
  the result to other grids;
- batch normalisation, of which there is none, goes between convolution and activation, and replaces the bias.

The convolutional decoder un-pools at the places where the encoder found its maxima, so it knows more than the code.

Axis letters: B batch, Z, Y, X; C channels; D, H, W axes of a feature map.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.convolution import Conv3d, ConvTranspose3d
from deeplight_core.models.noise import uniform
from deeplight_core.models.protocol import Encoder, Mirror
from deeplight_core.routes import ConvEncoderSettings, ResidualEncoderSettings

__all__ = ["ConvEncoder", "ResidualEncoder", "pool", "unpool"]

Size = Sequence[int]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": F.elu}


# ---- pooling that remembers, and its reverse


class _Pool(torch.autograd.Function):
    """Torch's own pooling, whose gradient on GPUs varies in its last bits, with a gradient that does not."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
        values, places = F.max_pool3d(maps, 2, return_indices=True)
        ctx.save_for_backward(places)
        ctx.size = maps.shape[2:]
        ctx.mark_non_differentiable(places)
        return values, places

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        return unpool(gradient, places, ctx.size)


def pool(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima of 2×2×2 voxels, (B, C, D, H, W) → (B, C, ⌊D/2⌋, …), and their places in each flattened map."""
    values, places = _Pool.apply(maps)
    return values, places


def unpool(values: Tensor, places: Tensor, size: Size) -> Tensor:
    """Maps (B, C, *size) of zeros, with values (B, C, …) at their places in each flattened map.

    Equals `torch.nn.functional.max_unpool3d`, which refuses to run where results must be reproducible. All places of a
    map differ, so the order of writing does not matter.
    """
    b, c = values.shape[:2]
    maps = values.new_zeros(b, math.prod(size), c)  # channels last in memory, like the maps that come in
    maps = maps.scatter_(1, _rows(places), _rows(values))
    return maps.view(b, *size, c).movedim(-1, 1)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, D, H, W) → (B, D·H·W, C)."""
    return maps.movedim(1, -1).flatten(1, -2)


# ---- what both architectures share


class _Convolutional(nn.Module):
    """Layers in a row: blocks of an encoder or of its mirror."""

    layers: nn.ModuleList

    def _set_layers(self, layers: Iterable[nn.Module]) -> None:
        """Keep them, with weights in the order in which CPUs convolve several times faster."""
        self.layers = nn.ModuleList(layers)
        for weight in self.layers.parameters():
            if weight.dim() == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def initialise(self) -> None:
        """He's normal weights (of transposed convolutions by their outputs, as in the code); biases 0."""
        for part in self.modules():
            if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


class _ConvolutionalEncoder(_Convolutional, Encoder):
    """Volume → code (C, z, y, x). Several frames of an example give the mean of their codes."""

    needs_grid = False

    def _set_output_shape(self, width: int, code: list[int], least: int) -> None:
        if min(code) < 1:
            raise ValueError(
                f"a grid of {' × '.join(map(str, self.shape))} voxels is too small for encoder {self.name} with widths "
                f"{', '.join(map(str, self.settings.widths))}, which needs {least} on each axis; set fewer widths, or "
                "prepare a finer grid"
            )
        self.output_shape = (width, *code)

    @property
    def blocks(self) -> list[str]:
        """The convolutions, or blocks of them."""
        return [f"layers.{i}" for i in range(len(self.layers))]

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → (B, C, z, y, x)."""
        code = self.trace(volumes.flatten(0, -4))[0]
        return code if volumes.dim() == 4 else code.view(len(volumes), -1, *code.shape[1:]).mean(dim=1)


# ---- convolutional


class ConvEncoder(_ConvolutionalEncoder):
    """Convolutions 3×3×3, each followed by pooling but the last, which has no padding."""

    name = "cae"
    Settings = ConvEncoderSettings

    def __init__(self, shape: tuple[int, int, int], settings: ConvEncoderSettings) -> None:
        super().__init__(shape, settings)
        n_poolings = len(settings.widths) - 1
        code = [n // 2**n_poolings - 2 for n in reversed(shape)]
        self._set_output_shape(settings.widths[-1], code, 3 * 2**n_poolings)
        pairs, paddings = pairwise((1, *settings.widths)), [1] * n_poolings + [0]
        self._set_layers(
            _normalised(Conv3d(*in_out, 3, padding=padding, bias=settings.normalisation == "none"), settings)
            for in_out, padding in zip(pairs, paddings, strict=True)
        )

    def trace(self, volumes: Tensor) -> tuple[Tensor, list[tuple[Tensor, Size]]]:
        """(B, Z, Y, X) → features, and the places of the maxima with the size before each pooling."""
        activation, maps = ACTIVATIONS[self.settings.activation], volumes[:, None]
        kept: list[tuple[Tensor, Size]] = []
        for layer in self.layers[:-1]:
            maps = layer(maps)
            size = maps.shape[2:]
            maps, places = pool(maps)
            if self.settings.activation == "relu":  # where it makes all eight voxels 0, the first one counts
                places = torch.where(maps > 0, places, _first_places(maps.shape[2:], size, maps.device))
            maps = activation(maps)
            kept.append((places, size))
        return activation(self.layers[-1](maps)), kept

    def mirror(self) -> "ConvMirror":
        """Transposed convolutions and un-pooling."""
        return ConvMirror(self.settings)


class ConvMirror(_Convolutional, Mirror):
    """Decoder of the convolutional autoencoder."""

    def __init__(self, settings: ConvEncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        bias, (last, *pairs) = settings.normalisation == "none", pairwise((1, *settings.widths))
        inner = [ConvTranspose3d(*out_in[::-1], 3, padding=1, bias=bias) for out_in in reversed(pairs)]
        inner[0].padding = (0, 0, 0)
        outer = ConvTranspose3d(*last[::-1], 3, padding=1)
        self._set_layers([*(_normalised(layer, settings) for layer in inner), outer])

    def forward(self, features: Tensor, context: list[tuple[Tensor, Size]]) -> Tensor:
        """(B, C, z, y, x) → (B, Z, Y, X)."""
        activation, maps = ACTIVATIONS[self.settings.activation], features
        for layer, (places, size) in zip(self.layers[:-1], reversed(context), strict=True):
            maps = unpool(activation(layer(maps)), places, size)
        volumes: Tensor = self.layers[-1](maps)[:, 0]
        return volumes


def _normalised(convolution: nn.Conv3d | nn.ConvTranspose3d, settings: ConvEncoderSettings) -> nn.Sequential:
    norm = [BatchNorm(convolution.out_channels)] if settings.normalisation == "batch" else []
    return nn.Sequential(convolution, *norm)


def _first_places(n_pooled: Size, size: Size, device: torch.device) -> Tensor:
    """The place, in a flattened map of this size, of the first voxel of each 2×2×2."""
    z, y, x = (2 * torch.arange(n, device=device) for n in n_pooled)
    return (z[:, None, None] * size[1] + y[:, None]) * size[2] + x


# ---- strided residual


class ResidualEncoder(_ConvolutionalEncoder):
    """Blocks of a convolution, whose result is put beside its input, and a convolution of stride 2."""

    name = "srcae"
    Settings = ResidualEncoderSettings

    def __init__(self, shape: tuple[int, int, int], settings: ResidualEncoderSettings) -> None:
        super().__init__(shape, settings)
        code, least = list(reversed(shape)), 1
        for _ in settings.widths:
            code, least = [(n - 4) // 2 + 1 for n in code], 2 * (least - 1) + 4
        self._set_output_shape(settings.widths[-1], code, least)
        pairs = pairwise((1, *settings.widths))
        self._set_layers(ResidualBlock(*in_out, settings, transposed=False) for in_out in pairs)

    def trace(self, volumes: Tensor) -> tuple[Tensor, list[Size]]:
        """(B, Z, Y, X) → features, and the size before each block."""
        maps, sizes = volumes[:, None], list[Size]()
        for layer in self.layers:
            sizes.append(maps.shape[2:])
            maps = layer(maps)
        return maps, sizes

    def mirror(self) -> "ResidualMirror":
        """Blocks with transposed convolutions."""
        return ResidualMirror(self.settings)


class ResidualMirror(_Convolutional, Mirror):
    """Decoder of the strided residual autoencoder."""

    def __init__(self, settings: ResidualEncoderSettings) -> None:
        super().__init__()
        pairs = pairwise((*reversed(settings.widths), 1))
        self._set_layers(ResidualBlock(*in_out, settings, transposed=True) for in_out in pairs)

    def forward(self, features: Tensor, context: list[Size]) -> Tensor:
        """(B, C, z, y, x) → (B, Z, Y, X)."""
        maps = features
        for i, (layer, size) in enumerate(zip(self.layers, reversed(context), strict=True), 1):
            maps = layer(maps, size, last=i == len(self.layers))
        return maps[:, 0]


class ResidualBlock(nn.Module):
    """One block: half the size on each axis or, transposed and without dropout, twice the size."""

    def __init__(self, c_in: int, c_out: int, settings: ResidualEncoderSettings, transposed: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[settings.activation]
        self.dropout = 0.0 if transposed else settings.dropout
        self.inner = Conv3d(c_in, settings.hidden, 3, padding=1)
        self.strided = (ConvTranspose3d if transposed else Conv3d)(settings.hidden + c_in, c_out, 4, stride=2)

    def forward(self, maps: Tensor, size: Size | None = None, last: bool = False) -> Tensor:
        """(B, C, D, H, W) → (B, C', D', H', W'): transposed of the given size; the last one has no activation."""
        hidden = self.activation(self.inner(maps))
        if self.training and self.dropout:
            kept = uniform(*hidden.shape[:2], device=hidden.device) >= self.dropout  # whole channels
            hidden = hidden * (kept / (1 - self.dropout)).to(hidden.dtype)[:, :, None, None, None]
        maps = torch.cat([hidden, maps.to(hidden.dtype)], dim=1)
        maps = self.strided(maps) if size is None else self.strided(maps, output_size=list(size))
        return maps if last else self.activation(maps)
