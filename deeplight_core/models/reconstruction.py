"""Heads that reconstruct what the encoder saw, with auxiliary targets (Atanaszov & Ritter 2019, sections 3.1 and 3.2).

Where report and code (ben0it8/trans-MRI @ec273bb) differ, or leave something open, and what is done here:
- noise on the input is Gaussian, in training only; the code's drops whole volumes, and in evaluation, too;
- auxiliary targets are told by one linear layer each from the code's means over places, so that this layer fits any
  grid; the code has one target and flattens. The mean squared error is of in-mask voxels, the code's of all;
- the code ignores alpha; here the loss is α · error + (1 - α) · auxiliary losses, as in the report;
- the variational autoencoder, which the report wishes for, is Kingma & Welling's (2014). See `Variational`.

Axis letters: B batch, Z, Y, X; K auxiliary targets; U units of the code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.heads import pooled
from deeplight_core.models.noise import normal
from deeplight_core.models.protocol import Batch, Encoder, Head, Outcome
from deeplight_core.routes import ReconstructionSettings, VariationalSettings

__all__ = ["Reconstruction", "Variational"]


class Reconstruction(Head):
    """The volumes themselves and K auxiliary targets.

    The loss of an example is its mean squared error over in-mask voxels; with auxiliary targets it is α times that and
    1 - α times the mean over its known targets of cross-entropies (classes) and squared errors of z-scores (numbers).

    Auxiliary targets are `{"column": "sex", "levels": ["F", "M"]}` for classes and `{"column": "age", "levels": None}`
    for numbers; those of a batch are (B, K): numbers of classes, or numbers in their own units; missing ones are NaN.
    `mask` (Z, Y, X), set by `set_mask`, and `mean` and `sd` (K,) of the training units' numbers, set by `standardise`,
    are kept with the weights. One volume per example.
    """

    name = "reconstruction"
    Settings = ReconstructionSettings
    measure = "reconstruction_error"
    scored = ["volume"]  # noqa: RUF012  # never changed
    answer_shape = (0,)
    mask: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: Encoder, targets: list[dict[str, Any]], settings: ReconstructionSettings) -> None:
        super().__init__()
        self.targets, self.settings = list(targets), settings
        self.decoder = encoder.mirror()
        width = encoder.output_shape[0]
        self.auxiliary = nn.ModuleList(nn.Linear(width, len(target["levels"] or [0])) for target in self.targets)
        self.register_buffer("mask", torch.ones(encoder.shape[::-1], dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(len(self.targets)))
        self.register_buffer("sd", torch.ones(len(self.targets)))

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew: the decoder's own way; Glorot normal and no bias for auxiliary targets."""
        self.decoder.initialise()
        for layer in self.auxiliary:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def set_mask(self, mask: Any) -> None:
        """Set the voxels (Z, Y, X) whose errors count."""
        mask = torch.as_tensor(mask).bool()
        if mask.shape != self.mask.shape or not mask.any():
            raise ValueError(
                f"a mask of {tuple(mask.shape)} (z, y, x) with {int(mask.sum())} voxels does not fit volumes of "
                f"{tuple(self.mask.shape)}; give the mask of the volumes"
            )
        self.mask.copy_(mask)

    @torch.no_grad()
    def standardise(self, mean: Any, sd: Any) -> None:
        """Set the training units' mean and SD (K,) of every auxiliary number; what stands for classes is not read."""
        self.mean.copy_(torch.tensor(mean))
        self.sd.copy_(torch.tensor(sd))

    def forward(self, features: Tensor, context: Any = None) -> Tensor:
        """(B, *features), and what the encoder's `trace` gave beside them → volumes (B, Z, Y, X)."""
        volumes: Tensor = self.decoder(features, context).float()
        return volumes.sigmoid() if self.settings.output == "sigmoid" else volumes

    def code(self, features: Tensor) -> Tensor:
        """What the decoder reads when nothing is drawn."""
        return features

    def reconstruct(self, encoder: Encoder, volumes: Tensor) -> Tensor:
        """Volumes (B, Z, Y, X) as they return from their code."""
        features, context = encoder.trace(volumes)
        result: Tensor = self(self.code(features), context)
        return result

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """The errors; each volume's mean squared error is its score. Nothing is answered."""
        volumes = batch["volumes"]
        if volumes.shape[1:] != self.mask.shape:
            raise ValueError(
                f"examples are {tuple(volumes.shape[1:])}, and reconstructed are single volumes of "
                f"{tuple(self.mask.shape)} (z, y, x)"
            )
        features, context = encoder.trace(self._noisy(volumes))
        code, penalty = self._drawn(features)
        error = self._squared_error(self(code, context), volumes)
        each = self._with_auxiliary(error, features, batch["targets"]) + penalty
        return Outcome(each.mean(), each.detach(), error.detach()[:, None], error.new_empty(len(error), 0))

    def _drawn(self, features: Tensor) -> tuple[Tensor, Tensor | float]:
        """The code that the decoder reads, and what it adds to each example's loss."""
        return features, 0.0

    def _noisy(self, volumes: Tensor) -> Tensor:
        if not (self.training and self.settings.noise):
            return volumes
        return volumes + self.settings.noise * normal(*volumes.shape, device=volumes.device) * self.mask

    def _squared_error(self, reconstructed: Tensor, volumes: Tensor) -> Tensor:
        """(B,): means over in-mask voxels."""
        squares = (reconstructed - volumes).square() * self.mask
        return squares.sum(dim=(1, 2, 3)) / self.mask.sum()

    def _with_auxiliary(self, error: Tensor, features: Tensor, truth: Tensor) -> Tensor:
        """(B,): α · error + (1 - α) · mean loss of the known targets (B, K)."""
        if not self.targets:
            return error
        known = truth.isfinite()
        truth = torch.where(known, truth, 0.0)
        code, losses = pooled(features.float()), []
        with torch.autocast(code.device.type, enabled=False):
            for k, (target, layer) in enumerate(zip(self.targets, self.auxiliary, strict=True)):
                told = layer(code)
                if target["levels"]:
                    losses.append(F.cross_entropy(told, truth[:, k].long(), reduction="none"))
                else:
                    losses.append((told[:, 0] - (truth[:, k] - self.mean[k]) / self.sd[k]).square())
        total = torch.where(known, torch.stack(losses, dim=1), 0.0).sum(dim=1)
        return self.settings.alpha * error + (1 - self.settings.alpha) * total / known.sum(dim=1).clamp(min=1)


class Variational(Reconstruction):
    """The same with a random code: normal, with a mean and a variance that linear layers read from the features at
    each place (1×1×1 convolutions).

    To an example's loss comes `kl` · KL / V, where KL is the divergence of its code from the standard normal, summed
    over the code's units, and V the number of in-mask voxels. Without auxiliary targets this is the evidence lower
    bound, times a constant, of voxels with normal noise of variance kl / 2. The weight grows linearly from 0 over the
    first `warm_up_steps` steps, which are counted in `steps`, kept with the weights. Outside training the code is the
    mean. Auxiliary targets are told from the encoder's features, which are what is transferred.
    """

    name = "variational"
    Settings = VariationalSettings
    steps: Tensor

    def __init__(self, encoder: Encoder, targets: list[dict[str, Any]], settings: VariationalSettings) -> None:
        super().__init__(encoder, targets, settings)
        width = encoder.output_shape[0]
        self.code_mean, self.code_log_variance = (nn.Linear(width, width) for _ in range(2))  # at each place
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def initialise(self) -> None:
        """Glorot normal weights of the code's mean, too; a tenth of those for its log-variance, which starts near 0."""
        super().initialise()
        for layer, gain in ((self.code_mean, 1.0), (self.code_log_variance, 0.1)):
            nn.init.xavier_normal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def code(self, features: Tensor) -> Tensor:
        """The code's mean, (B, *features)."""
        return self.distribution(features)[0]

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the code, (B, *features) each."""
        with torch.autocast(features.device.type, enabled=False):
            places = features.float().movedim(1, -1)
            return self.code_mean(places).movedim(-1, 1), self.code_log_variance(places).movedim(-1, 1)

    @torch.no_grad()
    def kl_of_units(self, encoder: Encoder, volumes: Tensor) -> Tensor:
        """Mean KL divergence over volumes (B, Z, Y, X) of each unit of the code, in nats: (U,).

        A unit near 0 is not used. If all are, the posterior has collapsed: the code says nothing.
        """
        return _kl(*self.distribution(encoder.trace(volumes)[0])).mean(dim=0)

    def _drawn(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.distribution(features)
        penalty = self._kl_weight() * _kl(mean, log_variance).sum(dim=1) / self.mask.sum()
        if not self.training:
            return mean, penalty
        return mean + (0.5 * log_variance).exp() * normal(*mean.shape, device=mean.device), penalty

    def _kl_weight(self) -> Tensor:
        """The divergence's weight; the first training step has 1 / `warm_up_steps` of it, and steps are counted."""
        if self.training:
            self.steps += 1
        return self.settings.kl * (self.steps / max(1, self.settings.warm_up_steps)).clamp(max=1)


def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of each unit from the standard normal, (B, …) → (B, U)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1)
