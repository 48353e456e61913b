"""One run: NIfTI and events to clean in-mask volumes with labels.

Axis letters: T frames, V in-mask voxels, Z, Y, X slices (bottom to top), rows, columns. A NIfTI array (X, Y, Z, T) lies
on disk in Fortran order, which is (T, Z, Y, X) in C order.

Smoothing and cleaning are linear, so both are matrices: one banded matrix per axis, and one T×T matrix that detrends
and filters. They are made by letting scipy and nilearn work on the identity, hence equal them. A run is smoothed a few
frames at a time, as they come from the file, and cleaned a few voxels at a time, so it never lies in memory as a whole.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import pandas as pd
from isal import igzip_threaded
from nibabel.volumeutils import apply_read_scaling

from deeplight_core.config import PreprocessingSettings
from deeplight_core.manifest import UNREADABLE
from deeplight_core.tasks import TASKS

__all__ = [
    "Events",
    "Grid",
    "Labels",
    "clean",
    "cleaning_matrix",
    "label_frames",
    "load_bold",
    "load_mask",
    "process_run",
    "read_events",
    "read_frames",
    "resample",
    "same_grid",
    "smooth",
    "smoothing_matrix",
]

_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
_TIME_TOLERANCE_S = 1e-6
_FRAMES_BYTES = 1 << 22  # of float32 that are smoothed at a time, and
_BLOCK_BYTES = 1 << 23  # that are cleaned at a time: few enough for the processor's cache
_CONSTANT = 1e-6  # a voxel whose SD is below this share of its mean is constant, up to float32 rounding


@dataclass(frozen=True)
class Events:
    """Blocks of a run and what else its event files hold.

    blocks : `onset, duration` in seconds and `state`
    ignored : names of events that nobody asked for → their number
    unknown : names of EV files that HCP's protocol does not have
    empty : states without any event
    """

    blocks: pd.DataFrame
    ignored: dict[str, int]
    unknown: list[str]
    empty: list[str]


@dataclass(frozen=True)
class Labels:
    """State of each kept volume, and how many were dropped why.

    frames : (N,) frame numbers, ascending; states : (N,) their state
    """

    frames: np.ndarray
    states: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)


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


@lru_cache(maxsize=32)
def smoothing_matrix(n: int, voxel_mm: float, fwhm_mm: float) -> np.ndarray:
    """The n×n matrix of a Gaussian along one axis, with the boundary that `scipy.ndimage.gaussian_filter1d` keeps."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(np.eye(n), fwhm_mm * _SIGMA_PER_FWHM / voxel_mm, axis=0))


def smooth(bold: Any, affine: np.ndarray, fwhm_mm: float, box: tuple[slice, slice, slice] | None = None) -> Any:
    """Smooth (T, Z, Y, X) like `nilearn.image.smooth_img`: one matrix product per axis.

    Parameters
    ----------
    box : slices of Z, Y and X: the part of the smoothed volumes that is wanted; all of it without
    """
    import torch

    voxel_mm = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[::-1]  # z, y, x
    for axis, (mm, part) in enumerate(zip(voxel_mm, box or (slice(None),) * 3, strict=True), start=1):
        matrix = smoothing_matrix(bold.shape[axis], mm, fwhm_mm)[part]
        bold = torch.cat(
            [
                _along(
                    axis,
                    torch.as_tensor(rows, dtype=bold.dtype, device=bold.device),
                    bold.narrow(axis, first, rows.shape[1]),
                )
                for first, rows in _bands(matrix)
            ],
            dim=axis,
        )
    return bold


def _bands(matrix: np.ndarray, n_rows: int = 24) -> Iterator[tuple[int, np.ndarray]]:
    """A banded matrix, some rows at a time: the first column that is not zero in them, and the columns from there."""
    for start in range(0, len(matrix), n_rows):
        rows = matrix[start : start + n_rows]
        columns = np.flatnonzero(rows.any(axis=0))
        yield int(columns[0]), rows[:, columns[0] : columns[-1] + 1]


def _along(axis: int, matrix: Any, bold: Any) -> Any:
    """The product of a matrix and the vectors along one axis of (T, Z, Y, X)."""
    if axis == 3:
        return bold @ matrix.T
    if axis == 2:
        return matrix @ bold
    t, z, y, x = bold.shape
    return (matrix @ bold.reshape(t, z, y * x)).reshape(t, len(matrix), y, x)


@lru_cache(maxsize=32)
def cleaning_matrix(n_frames: int, tr_s: float, detrend: bool, high_pass_hz: float | None) -> np.ndarray | None:
    """The T×T matrix of nilearn's linear detrending and Butterworth high-pass; None if neither is asked for.

    Raises
    ------
    ValueError
        If the run is too short for the filter's edge padding, or the cut-off is above the Nyquist frequency.
    """
    from nilearn.signal import clean as nilearn_clean

    if not detrend and high_pass_hz is None:
        return None
    if high_pass_hz is not None and high_pass_hz >= 0.5 / tr_s:
        raise ValueError(
            f"high_pass_hz {high_pass_hz:g} is not below the Nyquist frequency {0.5 / tr_s:g} Hz of TR {tr_s:g} s"
        )
    filtering = {} if high_pass_hz is None else {"filter": "butterworth", "high_pass": high_pass_hz, "t_r": tr_s}
    if high_pass_hz is None:
        filtering = {"filter": False}
    try:
        return np.asarray(nilearn_clean(np.eye(n_frames), detrend=detrend, standardize=None, **filtering))
    except ValueError as error:
        if "padlen" not in str(error):
            raise
        raise ValueError(
            f"{n_frames} frames are too few for the Butterworth filter ({error}); "
            "set preprocessing.high_pass_hz to null"
        ) from error


def clean(series: Any, tr_s: float, settings: PreprocessingSettings, baseline: Any = 0.0) -> tuple[Any, int]:
    """Detrend, high-pass and z-score (T, V) float32; equals `nilearn.signal.clean(standardize="zscore_sample")`.

    Parameters
    ----------
    baseline : (V,) what has been subtracted from the series; a voxel is constant that varies by rounding only

    Returns
    -------
    the clean series, and the number of constant voxels, which become zeros
    """
    import torch

    if len(series) < 3:
        raise ValueError(f"a run of {len(series)} frame(s) cannot be standardised; at least 3 are needed")
    scale = np.sqrt(len(series) - 1)  # of the sample
    mean = series.mean(dim=0, dtype=torch.float64)
    series = (series - mean).float()  # every matrix below removes the mean: taking it first keeps float32 exact enough
    constant = torch.linalg.vector_norm(series, dim=0) <= scale * _CONSTANT * (mean + baseline).abs()
    matrix = cleaning_matrix(len(series), tr_s, settings.detrend, settings.high_pass_hz)
    if matrix is not None:
        series = torch.as_tensor(matrix - matrix.mean(axis=0), dtype=series.dtype, device=series.device) @ series
    norm = torch.linalg.vector_norm(series, dim=0)
    return series * torch.where(constant | (norm == 0), 0.0, scale / norm), int(constant.sum())


def process_run(
    path: Path,
    mask: np.ndarray,
    affine: np.ndarray,
    tr_s: float,
    settings: PreprocessingSettings,
    scratch: Path,
    write: Callable[[slice, Any], object],
    device: str = "cpu",
) -> int:
    """Smooth and clean one run's in-mask series, never holding more than a part of it in memory.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    scratch : folder with room for the smoothed in-mask series in float32
    write : is given a slice of the in-mask voxels and their clean series (T, v), float32, block by block

    Returns
    -------
    the number of constant voxels, which become zeros

    Raises
    ------
    ValueError
        As `read_frames` and `clean`; the message names the file.
    """
    import torch

    z, y, x = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask.T))
    box = (z, y, x)
    voxels = torch.from_numpy(np.flatnonzero(mask.T[box])).to(device)
    n_constant = 0

    def inside(frames: Any) -> Any:
        part = smooth(frames, affine, settings.fwhm_mm, box) if settings.fwhm_mm else frames[(slice(None), *box)]
        return part.reshape(len(part), -1).index_select(1, voxels)

    with TemporaryFile(dir=scratch) as file:
        n_frames, reference = 0, None
        for frames in read_frames(path, device, (mask.shape, affine) if settings.resample_to else None):
            if reference is None:  # subtracted, so that float32 resolves the changes and not the scanner's 10,000
                reference = frames[0].clone()
                baseline = inside(reference[None])[0]
            file.write(inside(frames - reference).cpu().numpy().data)
            n_frames += len(frames)
        file.flush()
        step = max(1, _BLOCK_BYTES // (4 * n_frames))
        for start in range(0, len(voxels), step):
            block = slice(start, min(start + step, len(voxels)))
            series = np.empty((n_frames, block.stop - start), np.float32)
            for frame, row in enumerate(series):  # not through a memory map, which would count as this process's memory
                os.preadv(file.fileno(), [row.data], 4 * (frame * len(voxels) + start))
            try:
                cleaned, n = clean(torch.from_numpy(series).to(device), tr_s, settings, baseline[block])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            n_constant += n
            write(block, cleaned)
    return n_constant


def read_events(path: Path, wanted: dict[str, list[str]], task: str) -> Events:
    """Blocks of the wanted states, from an HCP EV folder (three-column text) or a BIDS `_events.tsv`.

    Parameters
    ----------
    wanted : state → the EV stems or trial types that are pooled for it
    task : the run's task; for HCP's tasks it tells which other EV files are known

    Raises
    ------
    ValueError
        If the file, or a wanted EV file, is missing or has a row that is not numbers, or no wanted event is left.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; correct the manifest or fetch the events")
    names = {name: state for state, stems in wanted.items() for name in stems}
    unknown: list[str] = []
    if path.is_dir():
        known = {*names, "Sync"}
        if task in TASKS:
            known |= {*(n for stems in TASKS[task].states.values() for n in stems), *TASKS[task].other_evs}
        present = {file.stem: file for file in sorted(path.glob("*.txt"))}
        if missing := [name for name in names if name not in present]:
            states = sorted({names[name] for name in missing})
            raise ValueError(f"{path} has no {', '.join(f'{m}.txt' for m in missing)}, which states {states} need")
        unknown = [stem for stem in present if stem not in known]
        rows = [(o, d, stem) for stem in names for o, d in _read_ev(present[stem])]
        ignored = {stem: len(_lines(file)) for stem, file in present.items() if stem not in names}
    else:
        rows = _read_bids(path)
        ignored = dict(Counter(name for _, _, name in rows if name not in names))
    blocks = pd.DataFrame(
        sorted((o, d, names[name]) for o, d, name in rows if name in names), columns=["onset", "duration", "state"]
    )
    if blocks.empty:
        raise ValueError(f"{path} has no event of {sorted(names)}; it has {sorted(ignored) or 'no events'}")
    empty = [state for state in wanted if state not in set(blocks["state"])]
    return Events(blocks, ignored, unknown, empty)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_ev(path: Path) -> list[tuple[float, float]]:
    rows = []
    for number, line in _lines(path):
        try:
            onset, duration = (float(cell) for cell in re.split(r"[\s,;]+", line.strip())[:2])
        except ValueError:
            raise ValueError(f"{path}, row {number}: {line!r} is not `onset duration amplitude` in seconds") from None
        rows.append(_checked(onset, duration, f"{path}, row {number}"))
    return rows


def _read_bids(path: Path) -> list[tuple[float, float, str]]:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a tab-separated table: {error}") from error
    if missing := [c for c in ("onset", "duration", "trial_type") if c not in table.columns]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    rows = []
    for number, cells in enumerate(table[["onset", "duration", "trial_type"]].itertuples(index=False), start=2):
        try:
            onset, duration = float(cells[0]), float(cells[1])
        except ValueError:
            raise ValueError(
                f"{path}, row {number}: onset {cells[0]!r}, duration {cells[1]!r} are not seconds"
            ) from None
        rows.append((*_checked(onset, duration, f"{path}, row {number}"), str(cells[2])))
    return rows


def _checked(onset: float, duration: float, where: str) -> tuple[float, float]:
    if not (np.isfinite(onset) and np.isfinite(duration) and duration >= 0):
        raise ValueError(
            f"{where}: onset {onset}, duration {duration}; both must be finite and the duration not negative"
        )
    return onset, duration


def label_frames(blocks: pd.DataFrame, n_frames: int, tr_s: float, settings: PreprocessingSettings) -> Labels:
    """Give each volume its block's state.

    A volume acquired at t (frame × TR) belongs to a block if onset + lag + skip ≤ t < onset + lag + duration. Volumes
    in no block, or in two, are dropped and counted; so are blocks that end after the run or hold no volume.
    """
    times = np.arange(n_frames) * tr_s
    skip_s = 2 * tr_s if settings.skip_s is None else settings.skip_s
    start = blocks["onset"].to_numpy(float) + settings.lag_s
    inside = (times[:, None] >= start + skip_s - _TIME_TOLERANCE_S) & (
        times[:, None] < start + blocks["duration"].to_numpy(float) - _TIME_TOLERANCE_S
    )
    n_blocks = inside.sum(axis=1)
    frames = np.flatnonzero(n_blocks == 1)
    states = blocks["state"].to_numpy(object)[inside[frames].argmax(axis=1)] if len(frames) else np.empty(0, object)
    dropped = {
        "volumes_in_no_block": int((n_blocks == 0).sum()),
        "volumes_in_two_blocks": int((n_blocks > 1).sum()),
        "blocks_past_the_end": int((start + blocks["duration"] > n_frames * tr_s + _TIME_TOLERANCE_S).sum()),
        "blocks_without_volumes": int((~inside[frames].any(axis=0)).sum()) if len(frames) else len(blocks),
    }
    return Labels(frames, states, dropped)
