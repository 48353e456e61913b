"""NIfTI images: a run's frames as they come from the file, masks, grids.

Axis letters: T frames, Z, Y, X slices (bottom to top), rows, columns. A NIfTI array (X, Y, Z, T) lies on disk in
Fortran order, which is (T, Z, Y, X) in C order.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip_threaded
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from deeplight_core.system.files import pointer_of
from deeplight_core.system.sources import patiently

__all__ = [
    "UNREADABLE",
    "Grid",
    "Header",
    "load_bold",
    "load_volume",
    "read_frames",
    "read_header",
    "resample",
    "same_grid",
]

UNREADABLE: tuple[type[Exception], ...] = (  # of damaged NIfTI files
    OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, cast(type[Exception], IsalError),
    ImageFileError, HeaderDataError,
)  # fmt: skip
_NIFTI_STARTS = tuple(n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big"))  # of an uncompressed one
_FRAMES_BYTES = 1 << 22  # of float32 read at a time: few enough for the CPU's cache

_HEADER_BYTES = 1 << 16  # fetched from a remote file to read its header
_FORMATS = (  # that are no NIfTI, by the ends of their names
    ((".dtseries.nii", ".dscalar.nii", ".ptseries.nii", ".pscalar.nii", ".dlabel.nii"), "CIFTI"), ((".gii",), "GIFTI"),
    ((".mgz", ".mgh"), "FreeSurfer's MGH"), ((".head", ".brik", ".brik.gz"), "AFNI's BRIK"), ((".dcm",), "DICOM"),
    ((".mnc",), "MINC"), ((".nrrd", ".nhdr"), "NRRD"),
)  # fmt: skip
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}  # NIfTI's units of time

Grid = tuple[tuple[int, int, int], np.ndarray]


@dataclass(frozen=True)
class Header:
    """What an image says about itself.

    shape : (X, Y, Z, …); affine : (4, 4) voxel → mm; tr_s : repetition time in seconds, 0 if not stated
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    tr_s: float

    @property
    def grid(self) -> Grid:
        """Shape (X, Y, Z) and affine."""
        return self.shape[:3], self.affine  # type: ignore[return-value]

    @property
    def orientation(self) -> str:
        """The directions of the axes, e.g. LAS."""
        return "".join(axis or "?" for axis in nib.aff2axcodes(self.affine))


def read_header(path: Any) -> Header:
    """The header of a NIfTI image, from a path or an fsspec path; of remote files only the beginning is fetched.

    Raises
    ------
    ValueError
        If the file is missing or not a NIfTI image of three or four dimensions, or its affine is not invertible.
    """
    if other := _other_format(path):
        raise ValueError(f"{path} is a file of {other}; convert it to NIfTI (.nii.gz), with volumes of voxels")
    try:
        if isinstance(path, Path):
            facts = _facts(nib.load(path))
        else:
            start = BytesIO(patiently(partial(_start, path), path))
            stream = gzip.GzipFile(fileobj=start) if path.name.endswith(".gz") else start
            facts = _facts(nib.Nifti1Image.from_stream(stream))
    except FileNotFoundError:
        raise _missing(path) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if len(facts.shape) not in (3, 4):
        raise ValueError(
            f"{path} has {len(facts.shape)} dimensions {facts.shape}; an image has three, a run four (and others of "
            "length one)"
        )
    if min(facts.shape) < 1:
        raise ValueError(f"{path} has no voxels or no volumes: its shape is {facts.shape}")
    if not (np.isfinite(facts.affine).all() and abs(np.linalg.det(facts.affine[:3, :3])) > 1e-9):
        raise ValueError(f"{path} has an affine that is not invertible, {facts.affine[:3].tolist()}; repair its header")
    return facts


def _start(path: Any) -> bytes:
    with path.open("rb", block_size=_HEADER_BYTES) as stream:
        return bytes(stream.read(_HEADER_BYTES))


def _other_format(path: Any) -> str:
    """The name of an image's format if the file's name tells that it is not NIfTI."""
    name = path.name.lower()
    return next((what for ends, what in _FORMATS if name.endswith(ends)), "")


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of up to four axes: of those after space, axes of length one are dropped if there are several."""
    longer = tuple(n for n in shape[3:] if n != 1)
    return shape if len(shape) <= 4 else (*shape[:3], *(longer or (1,)))


def _facts(image: Any) -> Header:
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(f"it is {type(image).__name__.removesuffix('Image')}, not NIfTI; convert it")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"its values are {image.get_data_dtype()}, not plain numbers (colours, perhaps); make it grey")
    shape = _plain(tuple(image.shape))
    try:
        zooms, unit = image.header.get_zooms(), image.header.get_xyzt_units()[1]
    except KeyError as error:
        raise ValueError(f"its header names a unit unknown to NIfTI, {error}") from None
    time = next((axis for axis, n in enumerate(image.shape) if axis > 2 and n != 1), 3)  # a run's may be the fifth
    tr_s = float(zooms[time] or zooms[3]) * _SECONDS.get(unit, 1.0) if len(zooms) > 3 else 0.0
    return Header(shape, image.affine, tr_s)


def read_frames(
    path: Path, device: str = "cpu", grid: Grid | None = None, brain: np.ndarray | None = None
) -> Iterator[Any]:
    """A run's frames as torch tensors (t, Z, Y, X), float32, a few at a time, read once from beginning to end.

    Parameters
    ----------
    grid : shape and affine to resample the frames to if the file's own differ (`nilearn.image.resample_img`, cubic
        splines, zeros outside)
    brain : (X, Y, Z) bool, on the file's own grid; NaN and infinite values outside become zero (None = there are none)

    Raises
    ------
    ValueError
        If the file is missing, not 4-D NIfTI, damaged (a compressed one is checked to its last byte), or holds NaN or
        infinite values in the brain, which are reported after the last frame.
    """
    import torch

    read_header(path)  # its errors say more
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path} is not a single NIfTI file (.nii or .nii.gz); convert it")
    data = image.dataobj
    shape = _plain(data.shape)
    if len(shape) != 4:
        raise ValueError(f"{path} has {len(shape)} dimensions {shape}; a run has four (X, Y, Z, T)")
    n_frames, n_voxels = shape[3], int(np.prod(shape[:3]))
    step, bad = max(1, _FRAMES_BYTES // (4 * n_voxels)), 0
    with igzip_threaded.open(path, "rb", threads=1) if path.name.endswith(".gz") else path.open("rb") as stream:
        try:
            stream.read(data.offset)
            for start in range(0, n_frames, step):
                raw = np.empty((min(step, n_frames - start), *data.shape[2::-1]), data.dtype)
                _fill(raw, stream)
                frames = apply_read_scaling(raw, data.slope, data.inter).astype(np.float32, copy=False)
                if not (finite := np.isfinite(frames)).all():
                    bad += int((~finite if brain is None else ~finite & brain.T).any(axis=(1, 2, 3)).sum())
                    frames = frames if brain is None else np.where(finite, frames, np.float32(0))
                if grid is not None and not same_grid((data.shape[:3], image.affine), grid):
                    frames = resample(frames.T, image.affine, grid, "continuous").T
                yield torch.from_numpy(frames).to(device)
            while stream.read(1 << 20):  # to the end: a compressed file's checksum is there
                pass
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
    if bad:
        raise ValueError(
            f"{path} holds NaN or infinite values in {bad} of {n_frames} volumes, in its mask; repair or leave out the "
            "run, or name a mask without them"
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


def _missing(path: Any) -> ValueError:
    if isinstance(path, Path) and path.is_symlink():
        return ValueError(f"{path} is a link to a file that is not there; fetch it (`datalad get`), or repair the link")
    return ValueError(f"{path} does not exist; correct the manifest or fetch the file")


def _unreadable(path: Any, error: Exception) -> ValueError:
    advice = "it may be cut short: fetch it again"
    start = b""
    if isinstance(path, Path) and path.is_file():
        with path.open("rb") as stream:
            start = stream.read(64)
        if not start:
            return ValueError(f"{path} is empty (0 bytes); fetch it again")
    elif isinstance(path, Path) and path.is_dir():
        return ValueError(f"{path} is a folder; name the image in it")
    compressed, plain = start.startswith(b"\x1f\x8b"), start[:4] in _NIFTI_STARTS
    if pointer := pointer_of(start):
        advice = f"it is only a pointer of {pointer}"
    elif path.name.endswith(".gz") and plain:
        advice = "its name ends in .gz, but it is not compressed: name it .nii, or compress it with gzip"
    elif compressed and not path.name.endswith(".gz"):
        advice = "it is compressed: its name must end in .nii.gz"
    elif not path.name.endswith((".nii", ".nii.gz")):
        advice = "its name ends neither in .nii nor in .nii.gz; convert it to NIfTI"
    said = str(error).replace(f"File {path} ", "").replace(str(path), "it")
    return ValueError(f"{path} cannot be read as NIfTI ({said}); {advice}")


def load_bold(path: Path, device: str = "cpu", grid: Grid | None = None, brain: np.ndarray | None = None) -> Any:
    """A run's whole series (T, Z, Y, X), float32; parameters and errors as `read_frames`."""
    import torch

    return torch.cat(list(read_frames(path, device, grid, brain)))


def load_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One volume (X, Y, Z) in float32, and its affine; further axes of length one are dropped.

    Raises
    ------
    ValueError
        If it is unreadable or not 3-D.
    """
    read_header(path)  # its errors say more
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except FileNotFoundError:
        raise _missing(path) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if data.ndim > 3 and set(data.shape[3:]) == {1}:
        data = data.reshape(data.shape[:3])
    if data.ndim != 3:
        raise ValueError(f"{path} has {data.ndim} dimensions {data.shape}; one volume has three (X, Y, Z)")
    return data, image.affine
