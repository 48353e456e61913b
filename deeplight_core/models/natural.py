"""Networks for photographs and video that read brain volumes (after Malik & Bzdok 2022).

Only the paper's abstract is available: 2D and 3D ResNet-18, pre-trained on ImageNet and Kinetics. Planes, slices, how
they are put together, sizes and scaling are choices made here. Layers are those of torchvision (`resnet18`, `r3d_18`;
BSD-3) and of EfficientNet-Lite0, so that published weights fit (see `training.published`); they are written out here
because batch statistics are shared over processes, and because they then need nothing beyond torch.

A volume has one channel, and the first convolution is the sum of the original's over colours: a grey photograph gives
what it gives in colour. Grey values are scaled as the weights expect, by the mean over colours. Classifiers are left
out; features are means over places. In 3D a network for photographs is inflated (Carreira & Zisserman 2017): kernels
are repeated along the third axis and divided by their number.

Letters: B batch, Z, Y, X; N images, S slices, C channels, H, W; F features.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.convolution import Conv2d, Conv3d
from deeplight_core.models.deeplight import same_padding
from deeplight_core.models.protocol import Encoder
from deeplight_core.routes import EfficientNetLite0Settings, R3D18Settings, ResNet18Settings

__all__ = ["R3D18", "EfficientNet", "EfficientNetLite0", "Natural", "ResNet", "ResNet18"]

LSTM_UNITS = 64  # in each direction, as in DeepLight
_AXES = {"axial": 1, "coronal": 2, "sagittal": 3}  # of (B, Z, Y, X)


# ---- layers


class Unit(nn.Sequential):
    """A convolution without bias in 2 or 3 dimensions, and batch normalisation.

    Padding is half the (dilated) kernel on both sides; with `same`, TensorFlow's, where an odd voxel comes last.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        groups: int = 1,
        eps: float = 1e-5,
        same: bool = False,
        dilation: int = 1,
    ) -> None:
        padding = [0 if same else k // 2 * dilation for k in kernel]
        convolution: Any = Conv2d if len(kernel) == 2 else Conv3d
        super().__init__(
            convolution(n_in, n_out, tuple(kernel), tuple(stride), padding, dilation, groups, bias=False),
            BatchNorm(n_out, eps=eps),
        )
        self.same, self.kernel, self.stride = same, kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, …) → (N, C', …)."""
        if self.same:
            sides = zip(maps.shape[2:], self.stride, self.kernel, strict=True)
            padding = [n for axis in reversed([same_padding(*side) for side in sides]) for n in axis]
            maps = F.pad(maps, padding) if any(padding) else maps
        return super().forward(maps)


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """He's normal weights by a convolution's outputs, as in the originals; normalisation starts as the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            fan_out = part.out_channels // part.groups * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(part, BatchNorm):
            part.reset_parameters()


def _channels_last(module: nn.Module) -> None:
    """Keep weights in the order in which CPUs and GPUs convolve several times faster."""
    for weight in module.parameters():
        if weight.dim() > 3:
            order = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=order)


def _one_channel(images: Tensor) -> Tensor:
    """(N, …) → (N, 1, …), for torch in that order, which `contiguous` does not bring about with one channel."""
    return images[..., None].movedim(-1, 1)


# ---- networks


class Kind(NamedTuple):
    """A kind of ResNet-18.

    kernel, stride : of the first convolution
    pooled : whether pooling (3, stride 2) follows
    strides, dilations : of the four stages; the stride is its first convolution's
    padded : shortcuts have no weights (He et al. 2016, option A): every stride-th place, and zeros in new channels
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pooled: bool
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    padded: bool = False


KINDS = {
    "2d": Kind((7, 7), (2, 2), pooled=True),
    "inflated": Kind((7, 7, 7), (2, 2, 2), pooled=True),
    "video": Kind((3, 7, 7), (1, 2, 2), pooled=False),
    "medical": Kind((7, 7, 7), (2, 2, 2), pooled=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), padded=True),
}


class _Block(nn.Module):
    """Two convolutions with a shortcut around them (He et al. 2016, basic block)."""

    def __init__(self, n_in: int, n_out: int, stride: int, dims: int, dilation: int, padded: bool) -> None:
        super().__init__()
        self.first = Unit(n_in, n_out, [3] * dims, [stride] * dims, dilation=dilation)
        self.second = Unit(n_out, n_out, [3] * dims, [1] * dims, dilation=dilation)
        changes = (n_in, stride) != (n_out, 1)
        self.shortcut = Unit(n_in, n_out, [1] * dims, [stride] * dims) if changes and not padded else None
        self.places: Any = (..., *[slice(None, None, stride)] * dims)
        self.new_channels = n_out - n_in if padded else 0

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, …) → (N, C', …)."""
        around = maps[self.places] if self.shortcut is None else self.shortcut(maps)
        if self.new_channels:
            around = F.pad(around, [0, 0] * (maps.dim() - 2) + [0, self.new_channels])
        return F.relu(self.second(F.relu(self.first(maps), inplace=True)) + around, inplace=True)


class ResNet(nn.Module):
    """ResNet-18 without its classifier, in 2D, inflated to 3D, for video, or for medical volumes (`KINDS`).

    Parameters
    ----------
    widths : channels of the four stages; the stem has those of the first
    channels : of its input: 3, or 1 for grey images
    """

    def __init__(self, widths: Sequence[int], channels: int = 1, kind: str = "2d") -> None:
        super().__init__()
        own = KINDS[kind]
        dims, self.n_features, self.pooled = len(own.kernel), widths[-1], own.pooled
        self.stem = Unit(channels, widths[0], own.kernel, own.stride)
        stages = zip(pairwise((widths[0], *widths)), own.strides, own.dilations, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Block(n_in, n_out, stride, dims, dilation, own.padded),
                _Block(n_out, n_out, 1, dims, dilation, own.padded),
            )
            for (n_in, n_out), stride, dilation in stages
        )
        _channels_last(self)

    @property
    def blocks(self) -> list[str]:
        """The stem and the stages."""
        return ["stem", *(f"stages.{i}" for i in range(len(self.stages)))]

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, …) → (N, F)."""
        maps = F.relu(self.stem(images), inplace=True)
        if self.pooled:
            pool = F.max_pool2d if maps.dim() == 4 else F.max_pool3d
            maps = pool(maps, 3, 2, 1)
        for stage in self.stages:
            maps = stage(maps)
        return maps.flatten(2).mean(dim=2)


# EfficientNet-Lite0's stages: blocks, kernel, stride of the first block, factor by which a block widens inside
_STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))


class _Inverted(nn.Module):
    """Widen, filter each channel, narrow (Sandler et al. 2018); a shortcut where the shape stays."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, factor: int, dims: int) -> None:
        super().__init__()
        n, one, same = n_in * factor, [1] * dims, {"eps": 1e-3, "same": True}
        self.expand = Unit(n_in, n, one, one, eps=1e-3) if factor > 1 else None
        self.depthwise = Unit(n, n, [kernel] * dims, [stride] * dims, groups=n, **same)  # type: ignore[arg-type]
        self.project = Unit(n, n_out, one, one, eps=1e-3)
        # All that reads its shift normalises it away again, so its gradient is rounding, which Adam would make large.
        shift = self.project[1].bias
        assert isinstance(shift, Tensor)
        shift.register_hook(torch.zeros_like)
        self.around = (n_in, stride) == (n_out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, …) → (N, C', …)."""
        inner = maps if self.expand is None else F.relu6(self.expand(maps))
        narrow: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return narrow + maps if self.around else narrow


class EfficientNet(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019; Lite: no squeeze-and-excitation, ReLU6) without its classifier.

    Parameters
    ----------
    widths : channels of the stem, the seven stages, and the last convolution
    channels : of its input: 3, or 1 for grey images
    dims : 2, or 3 for an inflated network
    """

    def __init__(self, widths: Sequence[int], channels: int = 1, dims: int = 2) -> None:
        super().__init__()
        first, *stages, last = widths
        self.n_features = last
        self.stem = Unit(channels, first, [3] * dims, [2] * dims, eps=1e-3, same=True)
        self.inverted = nn.ModuleList()
        n_in = first
        for n_out, (n_blocks, kernel, stride, factor) in zip(stages, _STAGES, strict=True):
            for i in range(n_blocks):
                self.inverted.append(_Inverted(n_in, n_out, kernel, 1 if i else stride, factor, dims))
                n_in = n_out
        self.last = Unit(n_in, last, [1] * dims, [1] * dims, eps=1e-3)
        _channels_last(self)

    @property
    def blocks(self) -> list[str]:
        """The stem, the blocks, and the last convolution."""
        return ["stem", *(f"inverted.{i}" for i in range(len(self.inverted))), "last"]

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, …) → (N, F)."""
        maps = F.relu6(self.stem(images))
        for block in self.inverted:
            maps = block(maps)
        return F.relu6(self.last(maps)).flatten(2).mean(dim=2)


# ---- slices put together


class _Attention(nn.Module):
    """A weighted mean over slices; the weights are a softmax of a small network's (Ilse et al. 2018)."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_features, LSTM_UNITS)
        self.weight_of = nn.Linear(LSTM_UNITS, 1, bias=False)  # the softmax would take it away again

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, F) → (B, F)."""
        weights = self.weight_of(torch.tanh(self.hidden(features))).softmax(dim=1)
        return (weights * features).sum(dim=1)


class _Recurrent(nn.LSTM):
    """DeepLight's: the last states of an LSTM up the slices and of one down."""

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, LSTM_UNITS, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """(B, S, F) → (B, 2 · units)."""
        last: Tensor = super().forward(features)[1][0]
        return torch.cat([last[0], last[1]], dim=1)


# ---- encoders


class Natural(Encoder):
    """What networks for photographs and for video have in common: how values become grey, and frames a mean."""

    settings: Any
    needs_grid = False
    scaling: ClassVar[tuple[float, float]]
    """Mean and SD of grey values (0 to 1) in the photographs that the original was trained on, over colours."""
    network: Any
    """(N, 1, …) → (N, F), with the names of its `blocks`."""

    @property
    def blocks(self) -> list[str]:
        """Those of the network, and what puts slices together, if it has weights."""
        together = [name for name, part in self.named_children() if name != "network" and part.state_dict()]
        return [*(f"network.{block}" for block in self.network.blocks), *together]

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew; see `_draw`."""
        _draw(self.network)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → (B, F); several frames of an example give the mean of their features."""
        features = self.encoded(volumes.flatten(0, -4))
        return features if volumes.dim() == 4 else features.view(len(volumes), -1, features.shape[1]).mean(dim=1)

    def encoded(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, F)."""
        raise NotImplementedError

    def _shown(self, images: Tensor) -> Tensor:
        """Values from black, 0, to white, 1."""
        black, white = self.settings.window or (0.0, 1.0)
        return ((images - black) / (white - black)).clamp(0, 1)

    def _scaled(self, images: Tensor) -> Tensor:
        """Values as the network's weights expect grey ones."""
        mean, sd = self.scaling
        return (self._shown(images) - mean) / sd

    def _new_size(self, shape: Sequence[int]) -> list[int]:
        """A volume's axes after resizing: the longest as long as the settings say, the others in proportion."""
        factor = (self.settings.size or max(shape)) / max(shape)
        return [max(1, round(n * factor)) for n in shape]

    def _resized(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, 1, Z', Y', X'), scaled."""
        if self.settings.size is not None:
            volumes = F.interpolate(volumes[:, None], self._new_size(volumes.shape[1:]), mode="trilinear")[:, 0]
        return _one_channel(self._scaled(volumes))


class _OfSlices(Natural):
    """Slices of chosen planes, each through one network for photographs, put together; or a network inflated to 3D."""

    def _put_together(self) -> None:
        """Build what turns slices' features into a volume's."""
        self.output_shape = (self.network.n_features,)
        self.together: nn.Module = nn.Identity()
        if self.settings.inflated or self.settings.together == "mean":
            return
        if self.settings.together == "attention":
            self.together = _Attention(self.network.n_features)
        else:
            self.together = _Recurrent(self.network.n_features)
            self.output_shape = (2 * LSTM_UNITS,)

    @torch.no_grad()
    def initialise(self) -> None:
        """The network's; Glorot's normal weights of what puts slices together, biases 0, an LSTM's forget gate 1."""
        super().initialise()
        for name, weight in self.together.named_parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
            else:
                nn.init.zeros_(weight)
                if name.startswith("bias_ih"):
                    weight[LSTM_UNITS : 2 * LSTM_UNITS] = 1

    def encoded(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, F)."""
        if self.settings.inflated:
            return self.network(self._resized(volumes)).float()
        images = self.images(volumes)
        b, s = images.shape[:2]
        features = self.network(_one_channel(images.flatten(0, 1))).view(b, s, -1)
        with torch.autocast(volumes.device.type, enabled=False):
            if isinstance(self.together, nn.Identity):
                return features.float().mean(dim=1)
            found: Tensor = self.together(features.float())
            return found

    def images(self, volumes: Tensor) -> Tensor:
        """Slices of volumes (B, Z, Y, X), upright, square and scaled: (B, S, H, W).

        In each plane they are evenly spaced; up is superior, or anterior. What is added to make them square is zero,
        as all that is outside the mask.
        """
        edge = max(volumes.shape[1:])
        found = []
        for plane in self.settings.planes:
            axis, s = _AXES[plane], self.settings.slices
            n = volumes.shape[axis]
            places = (torch.arange(s, device=volumes.device) * n + n // 2) // s
            slices = volumes.index_select(axis, places).movedim(axis, 1).flip(2)
            height, width = slices.shape[2:]
            above, left = (edge - height) // 2, (edge - width) // 2
            found.append(F.pad(slices, (left, edge - width - left, above, edge - height - above)))
        images = torch.cat(found, dim=1)
        if self.settings.size is not None:
            images = F.interpolate(images, [self.settings.size] * 2, mode="bilinear")
        return self._scaled(images)


class ResNet18(_OfSlices):
    """ResNet-18 (He et al. 2016) on slices, or inflated to 3D."""

    name = "resnet18"
    Settings = ResNet18Settings
    scaling = (0.449, 0.226)  # ImageNet's (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)

    def __init__(self, shape: tuple[int, int, int], settings: ResNet18Settings) -> None:
        super().__init__(shape, settings)
        self.network = ResNet(settings.widths, kind="inflated" if settings.inflated else "2d")
        self._put_together()


class EfficientNetLite0(_OfSlices):
    """EfficientNet-Lite0 on slices, or inflated to 3D."""

    name = "efficientnet_lite0"
    Settings = EfficientNetLite0Settings
    scaling = (0.5, 0.5)

    def __init__(self, shape: tuple[int, int, int], settings: EfficientNetLite0Settings) -> None:
        super().__init__(shape, settings)
        self.network = EfficientNet(settings.widths, dims=3 if settings.inflated else 2)
        self._put_together()


class R3D18(Natural):
    """3D ResNet-18 for video (Tran et al. 2018) on whole volumes; axial slices take the place of frames."""

    name = "r3d_18"
    Settings = R3D18Settings
    scaling = (0.401, 0.222)  # Kinetics' (0.43216, 0.394666, 0.37645) and (0.22803, 0.22145, 0.216989)

    def __init__(self, shape: tuple[int, int, int], settings: R3D18Settings) -> None:
        super().__init__(shape, settings)
        self.network = ResNet(settings.widths, kind="video")
        self.output_shape = (settings.widths[-1],)

    def encoded(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, F)."""
        return self.network(self._resized(volumes.flip(2))).float()
