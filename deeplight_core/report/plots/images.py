"""Figures on networks for photographs."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

__all__ = ["shown_slices"]


def shown_slices(images: np.ndarray) -> Figure:
    """What a network for photographs sees of one volume.

    Parameters
    ----------
    images : (S, H, W) grey values
    """
    columns = min(len(images), 9)
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.3 * columns, 1.4 * rows), squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, image in zip(axes.ravel(), images, strict=False):
        axis.imshow(image, cmap="gray", vmin=images.min(), vmax=images.max())
    return figure
