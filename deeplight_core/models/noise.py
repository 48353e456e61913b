"""Noise that does not depend on how many processes share a batch.

The loop sets torch's seed to a function of (seed, step). Every process draws the noise of the whole batch and takes its
own examples' part, so an example's noise is a function of (seed, step, example), and two GPUs drop the same channels of
the same volumes as one would. Dropout, noise on the input, a VAE's draws and masks all come from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Part", "dropout", "normal", "own_part", "part_of_batch", "uniform"]


class Part(NamedTuple):
    """This process's examples: `n` from `first` on, of the `n_all` of a shared batch."""

    first: int
    n: int
    n_all: int


_part: ContextVar[Part | None] = ContextVar("part of the batch", default=None)


@contextmanager
def part_of_batch(first: int, n: int, n_all: int) -> Iterator[None]:
    """Say that a forward pass sees `n` examples from `first` on, of a batch of `n_all`.

    With n = 0 it sees one example that does not count, because modules of other processes wait for it.
    """
    token = _part.set(Part(first, n, n_all))
    try:
        yield
    finally:
        _part.reset(token)


def own_part() -> Part | None:
    """This process's part of the batch; None where the batch is not shared."""
    return _part.get()


def uniform(n: int, *shape: int, device: torch.device) -> Tensor:
    """Uniform noise in [0, 1) for n items, (n, *shape)."""
    return _drawn(torch.rand, n, shape, device)


def normal(n: int, *shape: int, device: torch.device) -> Tensor:
    """Standard normal noise for n items, (n, *shape)."""
    return _drawn(torch.randn, n, shape, device)


def _drawn(draw: Any, n: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Items are this process's examples, or parts of them in a row, equally many of each (frames, slices, views)."""
    part = _part.get()
    if part is None:
        whole: Tensor = draw(n, *shape, device=device)
        return whole
    seen = max(1, part.n)
    assert n % seen == 0, f"noise for {n} items, but this part of the batch has {seen} examples"
    whole = draw(part.n_all, n // seen, *shape, device=device)
    return whole[part.first : part.first + seen].flatten(0, 1)


def dropout(features: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of single features (B, …), the kept ones scaled by 1 / (1 - p)."""
    if not training or p == 0:
        return features
    kept = uniform(*features.shape, device=features.device) >= p
    return features * kept / (1 - p)
