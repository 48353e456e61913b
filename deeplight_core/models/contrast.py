"""Temporal contrast (Shi et al. 2023): in a run, the end resembles the middle more than the beginning.

Only the paper's abstract is available. It says that a series is cut into beginning, middle and end, that (end, middle)
is the positive pair and (beginning, end) the negative one; a thesis by the same author says that negatives come from
inside the same series. The projection, the similarity (cosine), the loss, and negatives from other series are choices
made here, after SimCLR (Chen et al. 2020) and FaceNet (Schroff et al. 2015).

Letters: B batch, L frames of a window, P units of a projection.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm, sum_over_processes
from deeplight_core.models.heads import pooled
from deeplight_core.models.noise import own_part
from deeplight_core.models.protocol import Batch, Encoder, Head, Outcome
from deeplight_core.routes import ContrastSettings

__all__ = ["Contrast", "Quality", "quality"]

_BEGINNING, _MIDDLE, _END = range(3)
_COLLAPSED = 0.98  # mean cosine of any two windows' projections from which on they tell nothing apart


class Quality(NamedTuple):
    """How projections are spread (Wang & Isola 2020).

    alignment : mean squared distance of a positive pair (0: the same)
    uniformity : log of the mean of exp(-2 d²) over all pairs of ends (0: all at one point; about -4: on all sides)
    cosine : mean cosine of any two ends
    dimensions : number of dimensions that the ends use: (Σ λ)² / Σ λ² of their covariance's eigenvalues
    """

    alignment: float
    uniformity: float
    cosine: float
    dimensions: float

    @property
    def collapsed(self) -> bool:
        """Whether all windows have the same projection."""
        return not self.cosine < _COLLAPSED


class Contrast(Head):
    """Windows of one run: is the end closer to the middle than to the beginning?

    The encoder's features of each window (means over its frames and places) are projected by two linear layers, each
    followed by batch normalisation, with ReLU in between, and scaled to length 1; similarity s is their product.
    (Without the normalisation, what all windows share dominates a deep encoder's features, and hides what they differ
    by.) The loss of an example is -log softmax of s(end, middle) / temperature among s(end, middle) and the negatives
    s(end, …) / temperature, or with a margin the mean over negatives of
    max(0, margin - s(end, middle) + s(end, negative)). Its negatives are its own beginning and, with
    `negatives: batch`, in training only, all windows of the batch's other examples, whichever process has them.

    The score is right or wrong: whether the middle is closer than the beginning. Answers are the projections (3, P).
    """

    name = "contrast"
    Settings = ContrastSettings
    measure = "contrast_accuracy"
    scored = ["end"]  # noqa: RUF012  # never changed

    def __init__(self, encoder: Encoder, targets: list[Any], settings: ContrastSettings) -> None:
        super().__init__()
        self.targets, self.settings = list(targets), settings
        n = encoder.output_shape[0]
        hidden = settings.hidden or n
        self.hidden, self.hidden_norm = nn.Linear(n, hidden, bias=False), BatchNorm(hidden)
        self.projection, self.norm = (
            nn.Linear(hidden, settings.units, bias=False),
            BatchNorm(settings.units, affine=False),
        )
        self.answer_shape = (3, settings.units)

    @torch.no_grad()
    def initialise(self) -> None:
        """He's normal weights, Glorot's in the last layer."""
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        nn.init.xavier_normal_(self.projection.weight)
        self.hidden_norm.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """(B, *features) → (B, P), each of length 1."""
        with torch.autocast(features.device.type, enabled=False):
            hidden = F.relu(self.hidden_norm(self.hidden(pooled(features.float()))))
            return F.normalize(self.norm(self.projection(hidden)), dim=1)

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """The loss, and whether the middle is closer to the end than the beginning is.

        Raises
        ------
        ValueError
            If examples are not windows.
        """
        volumes = batch["volumes"]
        if volumes.dim() != 6 or volumes.shape[1] != 3:
            raise ValueError(
                f"contrast needs windows (3, frames, z, y, x), examples are {tuple(volumes.shape[1:])}; the route's "
                "example must be window"
            )
        windows = self(encoder(volumes.flatten(0, 1))).view(len(volumes), 3, -1)  # each window is encoded by itself
        with torch.autocast(volumes.device.type, enabled=False):
            end = windows[:, _END]
            positive = (end * windows[:, _MIDDLE]).sum(dim=1)
            own = (end * windows[:, _BEGINNING]).sum(dim=1)
            each = self._loss(positive, self._negatives(windows, own))
        right = (positive > own).detach().float()[:, None]
        return Outcome(each.mean(), each.detach(), right, windows.detach())

    def _negatives(self, windows: Tensor, own: Tensor) -> Tensor:
        """Similarities of each end to its negatives, (B, N); -inf where there is none."""
        if self.settings.negatives == "series" or not self.training:
            return own[:, None]
        of_all, first = _of_all_processes(windows)
        similarity = torch.einsum("bp,nwp->bnw", windows[:, _END], of_all)
        mine = torch.arange(len(windows), device=windows.device)
        others = torch.ones(similarity.shape, dtype=torch.bool, device=windows.device)
        others[mine, first + mine] = False
        return torch.cat([own[:, None], similarity.masked_fill(~others, -math.inf).flatten(1)], dim=1)

    def _loss(self, positive: Tensor, negatives: Tensor) -> Tensor:
        if self.settings.margin is None:
            logits = torch.cat([positive[:, None], negatives], dim=1) / self.settings.temperature
            return -logits.log_softmax(dim=1)[:, 0]
        violated = F.relu(self.settings.margin - positive[:, None] + negatives)  # 0 where there is no negative
        return violated.sum(dim=1) / negatives.isfinite().sum(dim=1)


def _of_all_processes(windows: Tensor) -> tuple[Tensor, int]:
    """The projections (N, 3, P) of all processes' examples, and the place of this one's first; gradients flow back."""
    part = own_part()
    if part is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return windows, 0
    whole = windows.new_zeros(part.n_all, *windows.shape[1:])
    if part.n:
        whole = torch.cat([whole[: part.first], windows, whole[part.first + part.n :]])
    else:  # one example that does not count
        whole = whole + 0 * windows.sum()
    return sum_over_processes(whole), min(part.first, part.n_all - len(windows))


def quality(answers: np.ndarray) -> Quality:
    """How the projections (N, 3, P) of N examples are spread.

    Of more than 2,000 examples, every so many-th is taken for what looks at all pairs.
    """
    end, middle = answers[:, _END].astype(float), answers[:, _MIDDLE].astype(float)
    alignment = float(((end - middle) ** 2).sum(axis=1).mean())
    some = end[:: max(1, len(end) // 2000)]
    if len(some) < 2:
        return Quality(alignment, math.nan, math.nan, math.nan)
    cosines = (some @ some.T)[np.triu_indices(len(some), 1)].clip(-1, 1)
    uniformity = float(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()))
    eigenvalues = np.linalg.eigvalsh(np.cov(some.T))
    spread = float((eigenvalues**2).sum())
    dimensions = float(eigenvalues.sum() ** 2 / spread) if spread > 0 else 0.0
    return Quality(alignment, uniformity, float(cosines.mean()), dimensions)
