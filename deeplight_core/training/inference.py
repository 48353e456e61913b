"""What a model answers: the answers to all examples, in their order."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from deeplight_core.training.loader import Volumes

__all__ = ["batch_size", "predict"]

# A batch of predictions, in voxels (the full grid's largest maps take 60 MB per volume), and the most volumes. On a
# processor, larger ones leave the caches; a GPU wants much to do at a time.
_VOXELS_AT_A_TIME, _LARGEST_BATCH = {"cpu": 2**22, "cuda": 2**25}, 256


def batch_size(shape: tuple[int, int, int], device: str) -> int:
    """Volumes that are decoded at a time, on a grid of this shape, on a kind of device."""
    return max(1, min(_LARGEST_BATCH, _VOXELS_AT_A_TIME.get(device, 2**22) // math.prod(shape)))


@torch.inference_mode()
def predict(model: nn.Module, data: Volumes, fabric: Fabric | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Predicted labels (N,) and cross-entropy (N,) of all volumes, in their order.

    Parameters
    ----------
    fabric : computes in its precision; its processes share the volumes, and each is given the results of all
    """
    was_training = [part for part in model.modules() if part.training]
    model.eval()
    size = batch_size(data.shape, data.device.type)
    rank, n_ranks = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    starts = range(rank * size, len(data), n_ranks * size)
    results = torch.zeros(2, len(data), device=data.device)
    for _, batch in data.batches(np.arange(start, min(start + size, len(data))) for start in starts):
        with fabric.autocast() if fabric else nullcontext():
            logits = model(batch["volumes"]).float()
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        results[:, batch["numbers"]] = torch.stack([logits.argmax(dim=1).float(), losses])
    if fabric:  # each process has filled its own columns
        fabric.all_reduce(results, reduce_op="sum")
    for part in was_training:
        part.training = True
    labels, losses = results.cpu().numpy()
    return labels.astype(int), losses
