"""From a structural image to one volume: masked, scaled, zoomed."""

from pathlib import Path

import numpy as np

__all__ = ["scaled", "zoomed"]


def scaled(volume: np.ndarray, mask: np.ndarray, path: Path) -> np.ndarray:
    """A structural image (X, Y, Z), zero outside its mask, scaled to [0, 1] (Atanaszov & Ritter 2019, 2.1).

    Raises
    ------
    ValueError
        If it holds NaN or infinite values in its mask, or a single value; the message names `path`.
    """
    inside = np.where(mask, volume, 0).astype(np.float32)
    if not np.isfinite(inside).all():
        raise ValueError(f"{path} holds NaN or infinite values in its mask; repair or leave out the image")
    values = volume[mask] if mask.any() else inside
    if (only := values.min()) == values.max():
        raise ValueError(f"{path} holds the value {only:g} only; leave out the image")
    low, high = inside.min(), inside.max()
    return (inside - low) / (high - low)


def zoomed(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resize a volume (X, Y, Z) or mask (bool) with `scipy.ndimage.zoom`; the corners stay in place.

    Volumes are interpolated linearly, so values stay in their range; masks take the nearest voxel.
    """
    from scipy.ndimage import zoom

    factors = [n / m for n, m in zip(shape, volume.shape, strict=True)]
    order = 0 if volume.dtype == bool else 1
    return np.asarray(zoom(volume.astype(np.float32), factors, order=order, mode="nearest"))
