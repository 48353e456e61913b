"""An encoder and two heads, as somebody would add them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models import Batch, Encoder, Head, Mirror, Outcome
from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.heads import pooled
from deeplight_core.models.noise import normal, uniform
from deeplight_core.routes import Section


class TinySettings(Section):
    noise: float = 0.1
    """SD of what is added to the volumes while training."""


class TinyEncoder(Encoder):
    """Volumes or clips → 6 features: two convolutions, the mean over all places, the mean over frames.

    Fully convolutional, with batch normalisation and noise on its input.
    """

    name = "tiny"
    Settings = TinySettings
    needs_grid = False

    def __init__(self, shape: tuple[int, int, int], settings: TinySettings) -> None:
        super().__init__(shape, settings)
        self.output_shape = (6,)
        self.first = nn.Conv3d(1, 4, 3, padding=1, bias=False)  # a bias before the normalisation would do nothing
        self.second = nn.Conv3d(4, 6, 3, padding=1)
        self.norm = BatchNorm(4)

    def initialise(self) -> None:
        for convolution in (self.first, self.second):
            nn.init.kaiming_normal_(convolution.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, volumes: Tensor) -> Tensor:
        frames = volumes.flatten(0, -4)[:, None]
        if self.training:
            frames = frames + self.settings.noise * normal(*frames.shape, device=frames.device)
        maps = F.relu(self.norm(self.first(frames)))
        features = torch.tanh(self.second(maps)).mean(dim=(2, 3, 4))
        return features.view(len(volumes), -1, 6).mean(dim=1)

    def mirror(self) -> "TinyMirror":
        return TinyMirror(self.shape)


class TinyMirror(Mirror):
    """One linear layer."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(6, math.prod(shape))

    def initialise(self) -> None:
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, context: None) -> Tensor:
        return self.linear(features).view(-1, *self.shape[::-1])


class _OneNumber(Head):
    """One linear layer on features, (B, F) → (B,)."""

    answer_shape = (1,)
    n_parts = 1

    def __init__(self, encoder: Encoder, targets: list[Any], settings: Any) -> None:
        super().__init__()
        self.targets, self.settings = targets, settings
        self.read = nn.Linear(self.n_parts * encoder.output_shape[0], 1)

    def initialise(self) -> None:
        nn.init.xavier_normal_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.read(features)[:, 0]


class OrderSettings(Section):
    swapped_every: int = 2
    """Every so many-th window has its middle and end exchanged."""


class Order(_OneNumber):
    """Were the middle and the end of a window exchanged? No label is needed."""

    name = "order"
    Settings = OrderSettings
    measure = "contrast_accuracy"
    scored = ["order"]  # noqa: RUF012  # never changed
    n_parts = 3

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        swapped = batch["numbers"] % self.settings.swapped_every == 0
        parts = pooled(encoder(batch["volumes"].flatten(0, 1))).view(
            len(swapped), 3, -1
        )  # each window is encoded by itself
        parts = torch.where(swapped[:, None, None], parts[:, [0, 2, 1]], parts)
        logits = self(parts.flatten(1))
        each = F.binary_cross_entropy_with_logits(logits, swapped.float(), reduction="none")
        right = ((logits > 0) == swapped).float()[:, None]
        return Outcome(each.mean(), each.detach(), right, logits.detach().sigmoid()[:, None])


class MeanSettings(Section):
    masked: float = 0.2
    """Share of the volumes that a training does not count."""


class Mean(_OneNumber):
    """Features → the mean of the volume. Nothing is answered; the error is scored. Draws a mask while training."""

    name = "mean"
    Settings = MeanSettings
    measure = "reconstruction_error"
    scored = ["volume"]  # noqa: RUF012  # never changed
    answer_shape = (0,)

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        error = self(pooled(encoder(batch["volumes"]))) - 10 * batch["volumes"].flatten(1).mean(dim=1)
        each = error.square()
        if self.training and self.settings.masked:
            each = each * (uniform(len(each), device=each.device) >= self.settings.masked)
        return Outcome(each.mean(), each.detach(), error.detach().abs()[:, None], error.new_empty(len(error), 0))
