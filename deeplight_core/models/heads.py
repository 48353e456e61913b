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

__all__ = ["Classes", "Numbers", "Phenotypes", "n_answers", "pooled"]

_LEAST_SCORE = 1e-7  # added to each before shares are taken, as in Keras: no share is zero, no sum either


def pooled(features: Tensor) -> Tensor:
    """Means over places: (B, C, …) → (B, C)."""
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features


class _Readout(nn.Linear, Head):
    """One linear layer with dropout before it, perhaps after a hidden one; their arithmetic stays in float32."""

    Settings = ReadoutSettings

    def __init__(self, encoder: Encoder, targets: list[Any], settings: ReadoutSettings) -> None:
        shape = encoder.output_shape
        n = math.prod(shape) if settings.pooling == "flatten" else shape[0]
        super().__init__(settings.hidden or n, self.n_outputs(targets))
        if settings.hidden:
            self.hidden = nn.Linear(n, settings.hidden)
        self.targets, self.settings = list(targets), settings

    @staticmethod
    def n_outputs(targets: list[Any]) -> int:
        """Units of the output layer."""
        return len(targets)

    @torch.no_grad()
    def initialise(self) -> None:
        """Glorot normal weights, He's normal ones in the hidden layer; no bias."""
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)
        if self.settings.hidden:
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.zeros_(self.hidden.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, …) → (B, one per target)."""
        if self.settings.pooling == "scores":
            return self._mean_scores(features)
        features = pooled(features.float()) if self.settings.pooling == "mean" else features.flatten(1)
        with torch.autocast(features.device.type, enabled=False):
            if self.settings.hidden:
                features = F.relu(self.hidden(features.float()))
            features = dropout(features, self.settings.dropout, self.training)
            result: Tensor = super().forward(features.float())
        return result

    def _mean_scores(self, features: Tensor) -> Tensor:
        """(B, C, …) → (B, one per target): means over places of scores above zero; dropout leaves whole targets out."""
        with torch.autocast(features.device.type, enabled=False):
            places = features.float().flatten(2) if features.dim() > 2 else features.float()[:, :, None]
            scores = F.relu(super().forward(places.transpose(1, 2)))  # (B, places, one per target)
            return dropout(scores.mean(dim=1), self.settings.dropout, self.training)


class Classes(_Readout):
    """One of S states: softmax and cross-entropy.

    Targets of a batch are labels (B,): positions in `targets`, the [task, state] pairs. Answers are probabilities
    (B, S). With class weights, `class_weights` (S,) are set by `weigh` and kept with the weights.
    """

    name = "classes"
    measure = "accuracy"
    class_weights: Tensor

    def __init__(self, encoder: Encoder, targets: list[Any], settings: ReadoutSettings) -> None:
        super().__init__(encoder, targets, settings)
        if settings.class_weights != "none":
            self.register_buffer("class_weights", torch.ones(len(targets)))

    @property
    def scored(self) -> list[str]:  # type: ignore[override]
        """One target: the state."""
        return ["state"]

    @property
    def answer_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(S,)."""
        return (len(self.targets),)

    @torch.no_grad()
    def weigh(self, labels: Any) -> None:
        """Set the classes' weights by their frequency in training, as the settings say; 1 on average over examples.

        Parameters
        ----------
        labels : (N,) of all training examples; a class without examples gets the weight 1
        """
        counts = torch.bincount(torch.as_tensor(labels), minlength=len(self.targets))
        weights = counts.sum() / ((counts > 0).sum() * counts)
        if self.settings.class_weights == "proportional":
            weights = counts * counts.sum() / counts.square().sum()
        self.class_weights.copy_(torch.where(counts > 0, weights, 1.0))

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """Cross-entropy, weighted by class if the settings say so; right or wrong."""
        logits = self(encoder(batch["volumes"]))
        if self.settings.probabilities == "shares":
            logits = (logits + _LEAST_SCORE).log()  # the softmax of these are shares
        each = F.cross_entropy(logits, batch["targets"], reduction="none")
        if self.settings.class_weights != "none":
            each = each * self.class_weights[batch["targets"]]
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
        if settings.class_weights != "none":
            raise ValueError(f"numbers {', '.join(targets)} have no classes to weigh; set class_weights: none")
        if settings.pooling == "scores":
            raise ValueError(f"numbers {', '.join(targets)} may be below zero; set pooling: flatten or mean")
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


def n_answers(target: dict[str, Any]) -> int:
    """Numbers that answer a target of `Phenotypes`: a probability for each class, else one number."""
    return len(target["levels"]) if target["kind"] == "classes" else 1


class Phenotypes(_Readout):
    """K columns of several kinds at a time, by one output layer; missing values (NaN) do not count.

    Targets are `{"column", "kind", "levels"}`; those of a batch are (B, K): numbers in their own units, or places of
    levels. Kinds, with their losses, each of which is about 1 for a guess:

    number : squared error of z-scores
    classes : cross-entropy, divided by the logarithm of the number of classes
    ordered : binary cross-entropy of being above each level but the last, divided by log 2 (Niu et al. 2016); the
        answer is the expected place
    bins : of a number, `levels` being first edge, last edge and how many; divergence from the shares of a normal
        distribution in the bins, whose SD is a bin's width (Peng et al. 2021), divided by the logarithm of how many;
        the answer is the expected number

    Answers are (B, A): for each target its `n_answers`. Scores are right or wrong for classes, else absolute errors.
    `mean` and `sd` (K,) are those of the training units, set by `standardise` and kept with the weights.
    """

    name = "phenotypes"
    measure = "absolute_error"
    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: Encoder, targets: list[dict[str, Any]], settings: ReadoutSettings) -> None:
        if settings.class_weights != "none":
            raise ValueError("phenotypes of several kinds have no class weights; set class_weights: none")
        super().__init__(encoder, targets, settings)
        self.register_buffer("mean", torch.zeros(len(targets)))
        self.register_buffer("sd", torch.ones(len(targets)))

    @staticmethod
    def _n_units(target: dict[str, Any]) -> int:
        kind, levels = target["kind"], target["levels"]
        return {
            "number": 1,
            "classes": len(levels or []),
            "ordered": len(levels or []) - 1,
            "bins": (levels or [0])[-1],
        }[kind]

    @staticmethod
    def n_outputs(targets: list[Any]) -> int:
        """Units of the output layer, of all targets."""
        return sum(Phenotypes._n_units(target) for target in targets)

    @property
    def scored(self) -> list[str]:  # type: ignore[override]
        """The columns."""
        return [target["column"] for target in self.targets]

    @property
    def measures(self) -> list[str]:
        """What each column is scored by."""
        return ["accuracy" if target["kind"] == "classes" else "absolute_error" for target in self.targets]

    @property
    def answer_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(A,)."""
        return (sum(map(n_answers, self.targets)),)

    @torch.no_grad()
    def standardise(self, mean: Any, sd: Any) -> None:
        """Set the training units' mean and SD (K,) of every column; those of kinds other than number are not read."""
        self.mean.copy_(torch.tensor(mean))
        self.sd.copy_(torch.tensor(sd))

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """Mean over the known targets of their losses."""
        told = self(encoder(batch["volumes"])).split([self._n_units(target) for target in self.targets], dim=1)
        known = batch["targets"].isfinite()
        losses, score, answers = [], [], []
        for k, (target, units) in enumerate(zip(self.targets, told, strict=True)):
            truth = torch.where(known[:, k], batch["targets"][:, k], 0.0)
            loss, answer = self._one(k, target, units, truth)
            losses.append(torch.where(known[:, k], loss, 0.0))
            answers.append(answer.detach())
            right = (answer.argmax(dim=1) == truth).float() if target["kind"] == "classes" else None
            score.append((answer[:, 0] - truth).abs() if right is None else right)
        each = torch.stack(losses, dim=1).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        scores = torch.where(known, torch.stack(score, dim=1).detach(), torch.nan)
        return Outcome(each.mean(), each.detach(), scores, torch.cat(answers, dim=1))

    def _one(self, k: int, target: dict[str, Any], units: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,) and answers (B, n_answers) of one target."""
        kind, levels = target["kind"], target["levels"]
        if kind == "number":
            loss = (units[:, 0] - (truth - self.mean[k]) / self.sd[k]).square()
            return loss, units * self.sd[k] + self.mean[k]
        if kind == "classes":
            return F.cross_entropy(units, truth.long(), reduction="none") / math.log(len(levels)), units.softmax(dim=1)
        if kind == "ordered":
            above = (truth[:, None] > torch.arange(units.shape[1], device=units.device)).float()
            loss = F.binary_cross_entropy_with_logits(units, above, reduction="none").mean(dim=1) / math.log(2)
            return loss, units.sigmoid().sum(dim=1, keepdim=True)
        first, last, n = levels
        edges = torch.linspace(first, last, int(n) + 1, device=units.device)
        width = (last - first) / n
        inside = truth.clamp(first + width / 2, last - width / 2)  # what lies beyond belongs to the last bin
        shares = torch.special.ndtr((edges - inside[:, None]) / width).diff(dim=1)
        shares = shares / shares.sum(dim=1, keepdim=True)
        loss = F.kl_div(units.log_softmax(dim=1), shares, reduction="none").sum(dim=1) / math.log(n)
        middles = (edges[:-1] + edges[1:]) / 2
        return loss, units.softmax(dim=1) @ middles[:, None]
