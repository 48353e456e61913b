"""Makes torchvision importable; import it before zennit.

PyPI's torchvision is built for CUDA. Beside a PyTorch for CPUs its operators do not load, and importing it fails on the
first one that it expects. Nothing here calls these operators: it is enough that their names are known.
"""

import sys

import torch

try:
    import torchvision
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
