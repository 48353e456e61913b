"""One run: NIfTI to clean in-mask series.

Axis letters: T frames, V in-mask voxels, Z, Y, X slices (bottom to top), rows, columns.

Smoothing and cleaning are linear, so both are matrices: one banded matrix per axis, and one T×T matrix that detrends
and filters. They are what scipy and nilearn make of the identity, hence equal to both. With confounds, the matrix also
regresses them out, and has K×T values, K being the frames that are not censored. A run is smoothed a few frames at a
time, as they come from the file, and cleaned a few voxels at a time, so it is never in memory as a whole.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np

from deeplight_core.data.images import read_frames
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.system.files import read_at

__all__ = ["Matrices", "clean", "cleaning_matrix", "confound_matrix", "process_run", "smooth", "smoothing_matrix"]

_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
_BLOCK_BYTES = 1 << 23  # of float32 cleaned at a time: few enough for the CPU's cache
_CONSTANT = 1e-6  # a voxel whose SD is below this share of its mean is constant, up to float32 rounding
_EXPLAINED = 1e-5  # a voxel of whose SD regressors leave less than this share is explained, up to float32 rounding


class Matrices(NamedTuple):
    """What a run of its own confounds or of trials is multiplied by, in the place of the common matrix.

    cleaning : (K, T) or None, if the series stays as it is (then K = T)
    kept : (K,) the frames that are not censored, ascending
    examples : (N, K) makes examples of the clean series; None: its volumes are the examples
    """

    cleaning: np.ndarray | None
    kept: np.ndarray
    examples: np.ndarray | None = None


@lru_cache(maxsize=32)
def smoothing_matrix(n: int, voxel_mm: float, fwhm_mm: float) -> np.ndarray:
    """The n×n matrix of a Gaussian along one axis, with the boundary of `scipy.ndimage.gaussian_filter1d`."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(np.eye(n), fwhm_mm * _SIGMA_PER_FWHM / voxel_mm, axis=0))


def smooth(bold: Any, affine: np.ndarray, fwhm_mm: float, box: tuple[slice, slice, slice] | None = None) -> Any:
    """Smooth (T, Z, Y, X) like `nilearn.image.smooth_img`: one matrix product per axis.

    Parameters
    ----------
    box : slices of Z, Y and X: the part of the smoothed volumes to compute; all by default
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
    """A banded matrix, some rows at a time: their first non-zero column, and their columns from there to the last."""
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
    if not detrend and high_pass_hz is None:
        return None
    return _of_identity(n_frames, tr_s, detrend, high_pass_hz)


def confound_matrix(
    tr_s: float, detrend: bool, high_pass_hz: float | None, confounds: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """The K×T matrix of nilearn's detrending, Butterworth high-pass and regression of confounds.

    It equals `nilearn.signal.clean(confounds=…, sample_mask=kept)`: censored frames are interpolated before the filter
    and left out after it, and confounds are filtered like the series.

    Parameters
    ----------
    confounds : (T, C) finite; C may be 0
    kept : (K,) the frames that are not censored, ascending

    Raises
    ------
    ValueError
        As `cleaning_matrix`, or if the confounds leave nothing of a series.
    """
    n_frames, n_lost = len(confounds), confounds.shape[1] + 2 * detrend
    if n_lost + 2 > len(kept):
        raise ValueError(
            f"{confounds.shape[1]} confounds leave nothing of {len(kept)} volumes (of {n_frames}) that are not "
            "censored; name fewer in preprocessing.confounds, or censor fewer volumes (fd_threshold, scrub)"
        )
    # nilearn 0.14 mistakes the frames after censored ones at the beginning for others if frames at the end are
    # censored, too (its interpolation counts censored frames from the end). Both are cut off first in that case.
    part = slice(0, n_frames)
    ends = np.setdiff1d(np.arange(n_frames), np.arange(kept[0], kept[-1] + 1))
    if not np.isin(n_frames - 1 - ends, kept).all():
        part = slice(int(kept[0]), int(kept[-1]) + 1)
    matrix = np.zeros((len(kept), n_frames))
    matrix[:, part] = _of_identity(
        part.stop - part.start, tr_s, detrend, high_pass_hz, confounds[part] if confounds.size else None,
        kept - part.start if len(kept) < part.stop - part.start else None,
    )  # fmt: skip
    return matrix


def _of_identity(
    n_frames: int,
    tr_s: float,
    detrend: bool,
    high_pass_hz: float | None,
    confounds: np.ndarray | None = None,
    sample_mask: np.ndarray | None = None,
) -> np.ndarray:
    """What `nilearn.signal.clean` makes of the identity."""
    from nilearn.signal import clean as nilearn_clean

    if high_pass_hz is not None and high_pass_hz >= 0.5 / tr_s:
        raise ValueError(
            f"high_pass_hz {high_pass_hz:g} is not below the Nyquist frequency {0.5 / tr_s:g} Hz of TR {tr_s:g} s"
        )
    filtering = {} if high_pass_hz is None else {"filter": "butterworth", "high_pass": high_pass_hz, "t_r": tr_s}
    if high_pass_hz is None:
        filtering = {"filter": False}
    own = {} if confounds is None else {"confounds": confounds.copy()}
    own |= {} if sample_mask is None else {"sample_mask": sample_mask.copy()}  # which nilearn changes
    try:
        return np.asarray(nilearn_clean(np.eye(n_frames), detrend=detrend, standardize=None, **filtering, **own))
    except ValueError as error:
        if "padlen" not in str(error):
            raise
        raise ValueError(
            f"{n_frames} frames are too few for the Butterworth filter ({error}); "
            "set preprocessing.high_pass_hz to null"
        ) from error


def clean(
    series: Any, tr_s: float, settings: PreprocessingSettings, baseline: Any = 0.0, matrices: Matrices | None = None
) -> tuple[Any, Any, Any]:
    """Detrend, high-pass and z-score (T, V) float32; equals `nilearn.signal.clean(standardize="zscore_sample")`.

    Parameters
    ----------
    baseline : (V,) what was subtracted from the series; a voxel that varies by rounding only is constant
    matrices : what the run is multiplied by in the place of the settings' common matrix

    Returns
    -------
    the clean series, or the examples made of it (N, V); which voxels are constant (V): zeros in the series; the
    temporal signal-to-noise ratio (V) before cleaning: mean / SD over time, zero in constant voxels
    """
    import torch

    censored = matrices is not None and len(matrices.kept) < len(series)
    n_kept = len(matrices.kept) if matrices and censored else len(series)
    if n_kept < 3:
        raise ValueError(f"a run of {n_kept} frame(s) cannot be standardised; at least 3 are needed")
    scale = np.sqrt(n_kept - 1)  # of the sample
    kept = series[torch.from_numpy(matrices.kept).to(series.device)] if matrices and censored else series
    mean = kept.mean(dim=0, dtype=torch.float64)
    precision = torch.float64 if matrices and matrices.examples is not None else torch.float32  # betas may be large
    series = (series - mean).to(precision)  # every matrix removes the mean: taking it first keeps float32 exact enough
    kept = (kept - mean).to(precision) if censored else series
    level, deviation = (mean + baseline).abs(), torch.linalg.vector_norm(kept, dim=0) / scale
    constant = deviation <= _CONSTANT * level
    if matrices is None:
        matrix = cleaning_matrix(len(series), tr_s, settings.detrend, settings.high_pass_hz)
    else:
        matrix = matrices.cleaning
    if matrix is not None:
        series = torch.as_tensor(matrix - matrix.mean(axis=0), dtype=series.dtype, device=series.device) @ series
    norm = torch.linalg.vector_norm(series, dim=0)
    tsnr = torch.where(constant, 0.0, level / deviation)
    if matrices is not None:
        constant = constant | (norm <= _EXPLAINED * scale * deviation)
    series = series * torch.where(constant | (norm == 0), 0.0, scale / norm)
    if matrices is not None and matrices.examples is not None:
        series = torch.as_tensor(matrices.examples, dtype=series.dtype, device=series.device) @ series
    return series.float(), constant, tsnr.float()


def process_run(
    path: Path,
    mask: np.ndarray,
    affine: np.ndarray,
    tr_s: float,
    settings: PreprocessingSettings,
    scratch: Path,
    write: Callable[[slice, Any], object],
    device: str = "cpu",
    matrices: Matrices | None = None,
    brain: np.ndarray | None = None,
) -> tuple[int, np.ndarray]:
    """Smooth and clean one run's in-mask series, never holding more than a part of it in memory.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    scratch : folder with room for the smoothed in-mask series in float32
    write : receives a slice of the in-mask voxels and their clean series (T, v) or examples, float32, block by block
    matrices : see `clean`
    brain : (X, Y, Z) bool, the run's own mask on its own grid, outside which NaN is zero

    Returns
    -------
    the number of constant voxels, which become zeros, and the temporal signal-to-noise ratio (V) of the smoothed series

    Raises
    ------
    ValueError
        As `read_frames` and `clean`; the message names the file.
    """
    import torch

    z, y, x = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask.T))
    box = (z, y, x)
    voxels = torch.from_numpy(np.flatnonzero(mask.T[box])).to(device)
    n_constant, tsnr = 0, np.empty(len(voxels), np.float32)

    def inside(frames: Any) -> Any:
        part = smooth(frames, affine, settings.fwhm_mm, box) if settings.fwhm_mm else frames[(slice(None), *box)]
        return part.reshape(len(part), -1).index_select(1, voxels)

    with TemporaryFile(dir=scratch) as file:
        n_frames, reference = 0, None
        for frames in read_frames(path, device, (mask.shape, affine) if settings.named_grid else None, brain):
            if reference is None:  # subtracted, so that float32 resolves changes on a baseline of 10,000
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
                read_at(file.fileno(), row, 4 * (frame * len(voxels) + start))
            try:
                cleaned, constant, block_tsnr = clean(
                    torch.from_numpy(series).to(device), tr_s, settings, baseline[block], matrices
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            n_constant += int(constant.sum())
            tsnr[block] = block_tsnr.cpu().numpy()
            write(block, cleaned)
    return n_constant, tsnr
