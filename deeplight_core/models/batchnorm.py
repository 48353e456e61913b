"""Batch normalisation over the whole batch, however many processes share it.

Each process adds up its own examples, the sums are added over all processes, and gradients flow back through that
addition to every process (torch's own SyncBatchNorm does so on GPUs only). One process computes as torch does.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from deeplight_core.models.noise import own_part

__all__ = ["BatchNorm", "sum_over_processes"]


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to each."""
    total: Tensor = _SumOverProcesses.apply(values)
    return total


class BatchNorm(_BatchNorm):
    """Normalise each channel of (B, C, …) over the batch and all places; `running_…` are used outside training."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation needs (B, C, …), got {tuple(input.shape)}")

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, …) → the same shape."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            result: Tensor = super().forward(maps)
            return result
        part = own_part()
        counts = 0.0 if part is not None and part.n == 0 else 1.0  # one example that does not count
        places = [0, *range(2, maps.dim())]
        values = maps.float()  # sums of bfloat16 would lose the small terms
        shape = (1, -1, *[1] * (maps.dim() - 2))
        n = values.new_full((1,), counts * values.numel() / values.shape[1])
        total = sum_over_processes(torch.cat([n, counts * values.sum(places)]))
        mean = total[1:] / total[0]
        centred = values - mean.view(shape)
        variance = sum_over_processes(counts * centred.square().sum(places)) / total[0]
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * total[0].detach() / (total[0].detach() - 1))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(maps.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)
