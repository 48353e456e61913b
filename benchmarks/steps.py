"""Common to the benchmarks of single models: timed training steps."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deeplight_core.training.devices import keep_freed_memory

__all__ = ["timed_steps"]


def timed_steps(
    model: nn.Module, loss: Callable[[], Tensor], n: int, learning_rate: float, ours: bool
) -> tuple[list[float], list[float]]:
    """Train by Adam, as this package's loop does or (`ours` false) as anyone would.

    Parameters
    ----------
    loss : of the one batch that is trained on
    n : steps after the first, which is not timed

    Returns
    -------
    Seconds of each timed step; the loss in every step
    """
    device = next(model.parameters()).device
    if ours and device.type == "cpu":
        keep_freed_memory()  # as `devices.session` does
    optimizer = torch.optim.AdamW if ours else torch.optim.Adam
    adam = optimizer(model.parameters(), learning_rate, **({"weight_decay": 0.0, "fused": True} if ours else {}))
    seconds, losses = [], []
    for _ in range(n + 1):
        start = time.perf_counter()
        found = loss()
        adam.zero_grad()
        found.backward()
        adam.step()
        losses.append(found.item())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[1:], losses
