"""DeepLight (Thomas, Müller & Samek 2019, section 2.2; Thomas et al. 2018): slices → convolutions → bi-LSTM → softmax.

What the paper leaves open, and what is done here:
- where the 50% dropout of the LSTM and of the output layer acts: here on the slice features that enter the LSTM, and on
  the 128 features that enter the output layer;
- the LSTM's initialisation: Glorot normal like all weights, over TensorFlow's one (inputs + units) × 4·units kernel;
  forget-gate bias 1 (TensorFlow's default), other biases 0.
PyTorch's LSTM has two bias vectors where TensorFlow's has one; the second, initially 0, is simply added.

Axis letters: B batch, Z slices (bottom to top), Y, X; C channels, H, W rows and columns of a feature map, S states.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.convolution import ConvTranspose2d
from deeplight_core.models.heads import Classes
from deeplight_core.models.noise import dropout, uniform
from deeplight_core.models.protocol import Encoder, Mirror, Model
from deeplight_core.routes import DeepLightSettings, ReadoutSettings

__all__ = ["DeepLight", "Layer", "SliceEncoder", "SliceMirror", "same_padding"]

STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
KERNEL = 3
LSTM_UNITS = 64


class Layer(NamedTuple):
    """One layer, with its work for one volume.

    name : of the module
    kind : "convolution", "lstm" or "linear"
    output_shape : (Z, C, H, W) of a convolution; (2, units), the last states up and down, of the LSTM; (S,)
    n_parameters : weights and biases
    flops : 2 × multiply-adds of one forward pass, all slices; biases and element-wise functions are not counted
    kernel, stride : edge of a convolution's kernel and its step, in voxels of its input
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    n_parameters: int
    flops: int
    kernel: int | None = None
    stride: int | None = None


def same_padding(n: int, stride: int, kernel: int = KERNEL) -> tuple[int, int]:
    """TensorFlow's SAME padding of an axis of length n: (before, after); an odd voxel comes after."""
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


class _ReluAndDropout(torch.autograd.Function):
    """ReLU and whole-channel dropout, in place: the gradient needs only the result and the scale.

    The incoming gradient, which nothing else uses, is overwritten, too: this saves reading and writing each map once.
    Only training does so; elsewhere gradients may be inspected.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kept: Tensor | None, scale: float) -> Tensor:
        """Maps (N, C, H, W); kept (N, C, 1, 1), 0 or the scale of the channels that stay."""
        maps.relu_()
        if kept is not None:
            maps.mul_(kept)
        ctx.mark_dirty(maps)
        ctx.save_for_backward(maps)
        ctx.scale = torch.tensor(scale, dtype=maps.dtype).item()  # as rounded as in `kept`
        return maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient where the result is not zero."""
        (maps,) = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward.grad_input(gradient, maps, 0, grad_input=gradient)
        return gradient if ctx.scale == 1 else gradient.mul_(ctx.scale), None, None


def _window(n: int, stride: int) -> tuple[slice, int]:
    """The part of the kernel used along a mirrored axis of length n, and the padding on both sides.

    On a mirrored axis, SAME's odd voxel of padding comes first. No step reaches one more voxel at the end, so equal
    padding on both sides gives the same result, without a padded copy of the maps. Where the result is one voxel long,
    the outer part of the kernel meets only padding and is left out. (This also avoids oneDNN's bfloat16 gradient of
    padded maps of width 1, which is wrong at stride 2.)
    """
    before = same_padding(n, stride)[1]
    return (slice(before, before + n), 0) if n <= stride else (slice(None), before)


class SameConv2d(nn.Conv2d):
    """3×3 convolution with TensorFlow's SAME padding, ReLU and whole-channel dropout, of maps mirrored in y and x."""

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride)
        self.dropout = dropout

    def forward(self, maps: Tensor, kept: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, C', ⌈H/stride⌉, ⌈W/stride⌉); `kept` (N, C') says which channels stay in training."""
        stride = self.stride[0]
        (rows, above), (columns, left) = (_window(n, stride) for n in maps.shape[2:])
        weight = self.weight.flip(2, 3)[:, :, rows, columns]
        maps = F.conv2d(maps, weight, self.bias, stride, (above, left))
        if not self.training or torch.compiler.is_compiling():  # a compiler fuses plain functions by itself
            maps = F.relu(maps)
            return maps if kept is None else maps * kept[:, :, None, None]
        scale = 1.0 if kept is None else 1 / (1 - self.dropout)
        result: Tensor = _ReluAndDropout.apply(maps, kept if kept is None else kept[:, :, None, None], scale)
        return result


class Convolutions(nn.Sequential):
    """The convolution layers; between them, maps are mirrored in y and x."""

    def forward(self, maps: Tensor, kept: list[Tensor | None] | None = None) -> Tensor:
        """(N, 1, Y, X) → (N, C, H, W); `kept` says for each layer which channels stay in training, (N, C) or None."""
        maps = maps.flip(2, 3).contiguous(memory_format=torch.channels_last)
        for convolution, its_kept in zip(self, kept or [None] * len(self), strict=True):
            maps = convolution(maps, its_kept)
        return maps.flip(2, 3)


class SliceEncoder(Encoder):
    """Volume → 128 features: convolutions on every slice, then an LSTM up and one down the slices.

    A clip's features are the mean over its frames'.
    """

    name = "deeplight"
    Settings = DeepLightSettings

    def __init__(self, shape: tuple[int, int, int], settings: DeepLightSettings) -> None:
        super().__init__(shape, settings)
        dropout = [p for p in settings.conv_dropout for _ in range(4)]
        layers = zip(pairwise((1, *settings.widths)), STRIDES, dropout, strict=True)
        self.convolutions = Convolutions(*(SameConv2d(*in_out, stride, p) for in_out, stride, p in layers))
        height, width = shape[1], shape[0]  # Y, X
        for stride in STRIDES:
            height, width = -(-height // stride), -(-width // stride)
        self.slice_features = height * width * settings.widths[-1]
        self.lstm = nn.LSTM(self.slice_features, LSTM_UNITS, batch_first=True, bidirectional=True)
        self.lstm_dropout = settings.lstm_dropout
        self.output_shape = (2 * LSTM_UNITS,)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs

    @property
    def blocks(self) -> list[str]:
        """The convolutions and the LSTM."""
        return [*(f"convolutions.{i}" for i in range(len(self.convolutions))), "lstm"]

    def mirror(self) -> "SliceMirror":
        """An LSTM up and one down the slices, then transposed convolutions on every slice."""
        return SliceMirror(self.shape, self.settings.widths)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew: normal with Glorot's variance; He's for the convolutions if the settings say so."""
        for module in self.convolutions:
            assert isinstance(module, SameConv2d)
            if self.settings.initialisation == "he":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
        for name, weight in self.lstm.named_parameters():
            if name.startswith("weight"):
                fan_in, fan_out = self.slice_features + LSTM_UNITS, 4 * LSTM_UNITS
                nn.init.normal_(weight, std=math.sqrt(2 / (fan_in + fan_out)))
            else:
                nn.init.zeros_(weight)
                if name.startswith("bias_ih"):
                    weight[LSTM_UNITS : 2 * LSTM_UNITS] = 1  # PyTorch's gate order: input, forget, cell, output

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the convolutions; the LSTM is a kernel of cuDNN or oneDNN already."""
        self.convolutions.compile(*args, **kwargs)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → (B, 128)."""
        if volumes.dim() > 4:
            frames = self(volumes.flatten(0, -4))
            return frames.view(len(volumes), -1, *self.output_shape).mean(dim=1)
        b, z, y, x = volumes.shape
        maps = self.convolutions(volumes.reshape(b * z, 1, y, x), self._kept_channels(volumes))
        slices = maps.permute(0, 2, 3, 1).reshape(b, z, self.slice_features)  # y, x, channel: TensorFlow's order
        with torch.autocast(volumes.device.type, enabled=False):  # the recurrence stays in float32
            slices = dropout(slices.float(), self.lstm_dropout, self.training)
            last: Tensor = self.lstm(slices)[1][0]  # (2, B, 64): state after the top slice, and after the bottom one
            return torch.cat([last[0], last[1]], dim=1)

    def _kept_channels(self, volumes: Tensor) -> list[Tensor | None]:
        """For each convolution (B·Z, C): 1 / (1 - p) for a channel that stays, 0 for one that is dropped; or None."""
        dropping = [c for c in self.convolutions if isinstance(c, SameConv2d) and c.training and c.dropout]
        b, z = volumes.shape[:2]
        sizes = [c.out_channels for c in dropping]
        if not dropping:
            return [None] * len(self.convolutions)
        p = torch.cat([volumes.new_full((c.out_channels,), c.dropout) for c in dropping])
        drawn = uniform(b, z, sum(sizes), device=volumes.device).view(b * z, sum(sizes))  # one draw for all layers
        kept = (drawn >= p) / (1 - p)
        if torch.is_autocast_enabled(volumes.device.type):
            kept = kept.to(torch.get_autocast_dtype(volumes.device.type))
        of_layer: dict[nn.Module, Tensor] = dict(zip(dropping, kept.split(sizes, dim=1), strict=True))
        return [of_layer.get(c) for c in self.convolutions]


class SliceMirror(Mirror):
    """128 features → volume: the encoder's layers in reverse. The paper has no decoder; this one is ours.

    The LSTMs read the features at every slice, with a learnt vector added that tells the slices apart; their 2 × 64
    states become the slice's features, and transposed convolutions undo each stride. No dropout. ELU, not ReLU: before
    features tell volumes apart, learning the mean volume pushes units below zero, where those of ReLU stay for good.
    """

    def __init__(self, shape: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        width, height, n_slices = shape
        sizes = [(height, width)]
        for stride in STRIDES:
            sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
        self.first_maps = (widths[-1], *sizes[-1])
        self.places = nn.Parameter(torch.empty(n_slices, 2 * LSTM_UNITS))
        self.lstm = nn.LSTM(2 * LSTM_UNITS, LSTM_UNITS, batch_first=True, bidirectional=True)
        self.slice_features = nn.Linear(2 * LSTM_UNITS, math.prod(self.first_maps))
        layers = zip(pairwise((1, *widths)), STRIDES, sizes[:-1], strict=True)
        mirrored = [
            ConvTranspose2d(*in_out[::-1], KERNEL, stride, 1, (_missing(y, stride), _missing(x, stride)))
            for in_out, stride, (y, x) in layers
        ]
        self.convolutions = nn.Sequential(*reversed(mirrored))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs

    @torch.no_grad()
    def initialise(self) -> None:
        """He's normal weights of convolutions, by the inputs that meet in a voxel; Glorot's elsewhere; biases 0."""
        for module in self.convolutions:
            assert isinstance(module, nn.ConvTranspose2d)
            fan_in = module.in_channels * (KERNEL / module.stride[0]) ** 2
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.startswith(("lstm.weight", "slice_features.weight", "places")):
                nn.init.xavier_normal_(weight)
            elif name.startswith(("lstm", "slice_features")):
                nn.init.zeros_(weight)

    def forward(self, features: Tensor, context: None = None) -> Tensor:
        """(B, 128) → (B, Z, Y, X)."""
        b, z = len(features), len(self.places)
        with torch.autocast(features.device.type, enabled=False):  # the recurrence stays in float32, as in the encoder
            states = self.lstm(features.float()[:, None] + self.places)[0]  # (B, Z, 128)
        maps = F.elu(self.slice_features(states)).view(b * z, *self.first_maps)
        maps = maps.contiguous(memory_format=torch.channels_last)
        for i, convolution in enumerate(self.convolutions, 1):
            maps = convolution(maps)
            if i < len(self.convolutions):
                maps = F.elu(maps, inplace=True)
        return maps.view(b, z, *maps.shape[2:])


class DeepLight(Model):
    """The paper's decoder: slices → convolutions → LSTM → output layer, with one output neuron per state.

    Parameters
    ----------
    shape : (X, Y, Z) of the grid, as in NIfTI
    n_states : output neurons
    settings, readout : initialisation and dropout; the default is the paper's
    """

    encoder: SliceEncoder

    def __init__(
        self,
        shape: tuple[int, int, int] = (91, 109, 91),
        n_states: int = 16,
        settings: DeepLightSettings | None = None,
        readout: ReadoutSettings | None = None,
    ) -> None:
        encoder = SliceEncoder(shape, settings or DeepLightSettings())
        targets = [["", str(i)] for i in range(n_states)]
        super().__init__(encoder, Classes(encoder, targets, readout or ReadoutSettings()))

    def layers(self) -> list[Layer]:
        """The layers in order, with their work for one volume; nothing is computed."""
        convolutions, lstm, head = self.encoder.convolutions, self.encoder.lstm, self.head
        assert isinstance(head, Classes)
        layers = []
        width, height, n_slices = self.encoder.shape
        for i, conv in enumerate(convolutions):
            assert isinstance(conv, SameConv2d)
            height, width = (-(-n // stride) for n, stride in zip((height, width), conv.stride, strict=True))
            shape = (n_slices, conv.out_channels, height, width)
            flops = 2 * conv.weight[0].numel() * math.prod(shape)  # each output is a sum over channels and kernel
            name, n = f"encoder.convolutions.{i}", _n_parameters(conv)
            layers.append(Layer(name, "convolution", shape, n, flops, conv.kernel_size[0], conv.stride[0]))
        n_weights = sum(w.numel() for name, w in lstm.named_parameters() if name.startswith("weight"))
        states = (2, lstm.hidden_size)
        layers.append(Layer("encoder.lstm", "lstm", states, _n_parameters(lstm), 2 * n_weights * n_slices))
        flops = 2 * head.weight.numel()
        layers.append(Layer("head", "linear", (head.out_features,), _n_parameters(head), flops))
        return layers


def _missing(n: int, stride: int) -> int:
    """Voxels that a transposed convolution with padding 1 leaves short of an axis of length n."""
    return int(stride == 2 and n % 2 == 0)


def _n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
