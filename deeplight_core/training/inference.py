"""A model's outcomes for all examples, in their order."""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric

from deeplight_core.models import Encoder, Model
from deeplight_core.training.loader import Volumes

__all__ = ["Answers", "batch_size", "features", "predict"]

# A batch of predictions, in voxels (the full grid's largest maps take 60 MB per volume), and the most volumes. Larger
# batches do not fit a CPU's caches; a GPU needs large ones.
_VOXELS_AT_A_TIME, _LARGEST_BATCH = {"cpu": 2**22, "cuda": 2**25}, 256


class Answers(NamedTuple):
    """Outcomes of N examples: losses (N,), scores (N, K) and answers (N, …), as in `models.Outcome`."""

    each: np.ndarray
    score: np.ndarray
    answer: np.ndarray


def batch_size(shape: tuple[int, int, int], device: str, volumes_each: int = 1) -> int:
    """Number of examples to decode at a time, for a grid of this shape and a kind of device."""
    return max(1, min(_LARGEST_BATCH, _VOXELS_AT_A_TIME.get(device, 2**22) // (volumes_each * math.prod(shape))))


@torch.inference_mode()
def features(encoder: Encoder, data: Volumes) -> np.ndarray:
    """The encoder's features of all examples, (N, *output_shape) float32."""
    encoder.eval()
    size = batch_size(data.shape, data.device.type, data.examples.volumes_each)
    numbers = (np.arange(start, min(start + size, len(data))) for start in range(0, len(data), size))
    return np.concatenate([encoder(batch["volumes"]).float().cpu().numpy() for _, batch in data.batches(numbers)])


@torch.inference_mode()
def predict(model: Model, data: Volumes, fabric: Fabric | None = None) -> Answers:
    """The outcomes of all examples.

    Parameters
    ----------
    fabric : computes in its precision; its processes share the examples, and each gets all outcomes
    """
    was_training = [part for part in model.modules() if part.training]
    model.eval()
    size = batch_size(data.shape, data.device.type, data.examples.volumes_each)
    rank, n_ranks = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    starts = range(rank * size, len(data), n_ranks * size)
    n_scored, n_answers = len(model.head.scored), math.prod(model.head.answer_shape)
    results = torch.zeros(len(data), 1 + n_scored + n_answers, device=data.device)
    wanted = (np.arange(start, min(start + size, len(data))) for start in starts)
    for start, (_, batch) in zip(starts, data.batches(wanted), strict=True):
        torch.manual_seed(start)  # a head draws the same however many processes there are
        with fabric.autocast() if fabric else nullcontext():
            found = model.loss(batch)
        columns = (found.each[:, None], found.score, found.answer.flatten(1))
        results[batch["numbers"]] = torch.cat([column.float() for column in columns], dim=1)
    if fabric:  # each process has filled its own rows
        fabric.all_reduce(results, reduce_op="sum")
    for part in was_training:
        part.training = True
    each, score, answer = np.split(results.cpu().numpy(), [1, 1 + n_scored], axis=1)
    return Answers(each[:, 0], score, answer.reshape(len(answer), *model.head.answer_shape))
