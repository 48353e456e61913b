"""Heads: output layers on an encoder's features, for classes and for numbers.

Letters: B batch, F features, S states, K targets.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.noise import dropout
from deeplight_core.models.protocol import Batch, Encoder, Head, Outcome
from deeplight_core.routes import ReadoutSettings

__all__ = ["Classes", "Numbers"]


class _Readout(nn.Linear, Head):
    """One linear layer with dropout before it; its arithmetic stays in float32."""

    Settings = ReadoutSettings

    def __init__(self, encoder: Encoder, targets: list[Any], settings: ReadoutSettings) -> None:
        super().__init__(math.prod(encoder.output_shape), len(targets))
        self.targets, self.settings = list(targets), settings

    @torch.no_grad()
    def initialise(self) -> None:
        """Glorot normal weights, no bias."""
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, …) → (B, one per target)."""
        features = dropout(features.flatten(1), self.settings.dropout, self.training)
        with torch.autocast(features.device.type, enabled=False):
            result: Tensor = super().forward(features.float())
        return result


class Classes(_Readout):
    """One of S states: softmax and cross-entropy.

    Targets of a batch are labels (B,): positions in `targets`, the [task, state] pairs. Answers are probabilities
    (B, S).
    """

    name = "classes"
    measure = "accuracy"

    @property
    def scored(self) -> list[str]:  # type: ignore[override]
        """One target: the state."""
        return ["state"]

    @property
    def answer_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(S,)."""
        return (len(self.targets),)

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """Cross-entropy; right or wrong."""
        logits = self(encoder(batch["volumes"]))
        each = F.cross_entropy(logits, batch["targets"], reduction="none")
        probabilities = logits.detach().softmax(dim=1)
        right = (probabilities.argmax(dim=1) == batch["targets"]).float()[:, None]
        return Outcome(each.mean(), each.detach(), right, probabilities)


class Numbers(_Readout):
    """K numbers at a time, such as age: squared error of z-scores; missing values (NaN) do not count.

    Targets, answers and scores (absolute errors) of a batch are (B, K), in the columns' own units. `mean` and `sd` (K,)
    are those of the training units, set by `standardise` and kept with the weights.
    """

    name = "numbers"
    measure = "absolute_error"
    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: Encoder, targets: list[str], settings: ReadoutSettings) -> None:
        super().__init__(encoder, targets, settings)
        self.register_buffer("mean", torch.zeros(len(targets)))
        self.register_buffer("sd", torch.ones(len(targets)))

    @property
    def scored(self) -> list[str]:  # type: ignore[override]
        """The columns."""
        return self.targets

    @property
    def answer_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(K,)."""
        return (len(self.targets),)

    @torch.no_grad()
    def standardise(self, mean: Any, sd: Any) -> None:
        """Set the training units' mean and SD (K,) of every column."""
        self.mean.copy_(torch.tensor(mean))
        self.sd.copy_(torch.tensor(sd))

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """Mean over the known targets of the squared error of z-scores; absolute errors in the columns' units."""
        z = self(encoder(batch["volumes"]))
        truth, known = batch["targets"], batch["targets"].isfinite()
        difference = torch.where(known, z - (truth - self.mean) / self.sd, 0.0)
        each = difference.square().sum(dim=1) / known.sum(dim=1).clamp(min=1)
        answer = z.detach() * self.sd + self.mean
        error = torch.where(known, (answer - truth).abs(), torch.nan)
        return Outcome(each.mean(), each.detach(), error, answer)
