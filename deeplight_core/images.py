"""NIfTI images: a run's frames as they come from the file, masks, grids.

Axis letters: T frames, Z, Y, X slices (bottom to top), rows, columns. A NIfTI array (X, Y, Z, T) lies on disk in
Fortran order, which is (T, Z, Y, X) in C order.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip_threaded
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

__all__ = ["UNREADABLE", "Grid", "load_bold", "load_mask", "read_frames", "resample", "same_grid"]

UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)  # of damaged NIfTI files
_FRAMES_BYTES = 1 << 22  # of float32 that are read at a time: few enough for the processor's cache

Grid = tuple[tuple[int, int, int], np.ndarray]


def read_frames(path: Path, device: str = "cpu", grid: Grid | None = None) -> Iterator[Any]:
    """A run's frames as torch tensors (t, Z, Y, X), float32, a few at a time, read once from beginning to end.

    Parameters
    ----------
    grid : shape and affine that the frames are resampled to where the file's own differ (`nilearn.image.resample_img`,
        cubic splines, zeros outside)

    Raises
    ------
    ValueError
        If the file is missing, not 4-D NIfTI, damaged (a compressed one is checked to its last byte), or holds NaN or
        infinite values; the last only after all frames.
    """
    import torch

    try:
        image = nib.load(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; correct the manifest or fetch the file") from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path} is no single NIfTI file (.nii or .nii.gz); convert it")
    data = image.dataobj
    if len(data.shape) != 4:
        raise ValueError(f"{path} has {len(data.shape)} dimensions {data.shape}; a run has four (X, Y, Z, T)")
    n_frames, n_voxels = data.shape[3], int(np.prod(data.shape[:3]))
    step, bad = max(1, _FRAMES_BYTES // (4 * n_voxels)), 0
    with igzip_threaded.open(path, "rb", threads=1) if path.name.endswith(".gz") else path.open("rb") as stream:
        try:
            stream.read(data.offset)
            for start in range(0, n_frames, step):
                raw = np.empty((min(step, n_frames - start), *data.shape[2::-1]), data.dtype)
                _fill(raw, stream)
                frames = apply_read_scaling(raw, data.slope, data.inter).astype(np.float32, copy=False)
                if not np.isfinite(frames).all():
                    bad += int((~np.isfinite(frames)).any(axis=(1, 2, 3)).sum())
                if grid is not None and not same_grid((data.shape[:3], image.affine), grid):
                    frames = resample(frames.T, image.affine, grid, "continuous").T
                yield torch.from_numpy(frames).to(device)
            while stream.read(1 << 20):  # to the end, where a compressed file has its checksum
                pass
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
    if bad:
        raise ValueError(
            f"{path} holds NaN or infinite values in {bad} of {n_frames} volumes; repair or leave out the run"
        )


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same shape, and affines that differ by less than a micrometre."""
    return one[0] == other[0] and np.allclose(one[1], other[1], atol=1e-3)


def resample(data: np.ndarray, affine: np.ndarray, grid: Grid, interpolation: str) -> np.ndarray:
    """(X, Y, Z) or (X, Y, Z, T) on another grid, by `nilearn.image.resample_img`, float32."""
    from nilearn.image import resample_img

    shape, target = grid
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    done = resample_img(
        image,
        target_affine=target,
        target_shape=shape,
        interpolation=interpolation,
        copy_header=True,
        force_resample=True,
    )
    return np.asarray(done.dataobj, dtype=np.float32)


def _fill(array: np.ndarray, stream: BinaryIO) -> None:
    view = array.reshape(-1).view(np.uint8).data
    while view:
        n = stream.readinto(view)  # type: ignore[attr-defined]
        if not n:
            raise EOFError("the file ends too early")
        view = view[n:]


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as NIfTI ({error}); it may be cut short: fetch it again")


def load_bold(path: Path, device: str = "cpu", grid: Grid | None = None) -> Any:
    """A run's whole series (T, Z, Y, X), float32; parameters and errors as `read_frames`."""
    import torch

    return torch.cat(list(read_frames(path, device, grid)))


def load_mask(path: Path, grid: Grid | None = None) -> np.ndarray:
    """A mask as bool (X, Y, Z), resampled to a grid (nearest neighbour) if one is given and differs.

    Raises
    ------
    ValueError
        If it is unreadable, not 3-D or empty.
    """
    data = _load(path)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValueError(f"mask {path} has {data.ndim} dimensions {data.shape}; a mask has three (X, Y, Z)")
    mask = data > 0
    affine = nib.load(path).affine
    if grid is not None and not same_grid((mask.shape, affine), grid):
        mask = resample(mask.astype(np.uint8), affine, grid, "nearest") > 0
    if not mask.any():
        raise ValueError(f"mask {path} is empty: no voxel is above zero")
    return mask


def _load(path: Path) -> np.ndarray:
    try:
        return np.asarray(nib.load(path).dataobj, dtype=np.float32)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; correct the manifest or fetch the file") from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
