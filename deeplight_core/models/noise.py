"""Noise that does not depend on how many processes share a batch.

Every process draws the noise of the whole batch and takes the part of its own volumes, so that two GPUs drop the same
channels of the same volumes as one would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["dropout", "part_of_batch", "uniform"]

_part: ContextVar[tuple[int, int] | None] = ContextVar("part of the batch", default=None)  # first volume, all volumes


@contextmanager
def part_of_batch(first: int, n_all: int) -> Iterator[None]:
    """Say that a forward pass sees the volumes from `first` of a batch of `n_all`."""
    token = _part.set((first, n_all))
    try:
        yield
    finally:
        _part.reset(token)


def uniform(n: int, *shape: int, device: torch.device) -> Tensor:
    """Uniform noise in [0, 1) for the n volumes of this process, (n, *shape)."""
    first, n_all = _part.get() or (0, n)
    return torch.rand(n_all, *shape, device=device)[first : first + n]


def dropout(features: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of single features (B, …), the kept ones scaled by 1 / (1 - p)."""
    if not training or p == 0:
        return features
    kept = uniform(*features.shape, device=features.device) >= p
    return features * kept / (1 - p)
