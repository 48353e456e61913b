from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data
from nilearn.image import smooth_img
from nilearn.signal import clean as nilearn_clean

from deeplight_core.data import images, preprocess
from deeplight_core.data.images import load_bold, load_volume
from deeplight_core.data.preprocess import clean, cleaning_matrix, process_run, smooth, smoothing_matrix
from deeplight_core.preparation import PreprocessingSettings, SimulationSettings

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0.2, 0, 9], [0, 3.5, 0, -12], [0.1, 0, 4, -16], [0, 0, 0, 1]])
PAPER = PreprocessingSettings()
Z_SCORE = PreprocessingSettings(detrend=False, high_pass_hz=None)
TOLERANCE = 1e-4  # of z-scores: float32 against nilearn's float64


def saved(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


def by_nilearn(series: np.ndarray, tr_s: float, settings: PreprocessingSettings) -> np.ndarray:
    """(T, V) float64."""
    filtering: dict[str, Any] = {"filter": False}
    if settings.high_pass_hz is not None:
        filtering = {"filter": "butterworth", "high_pass": settings.high_pass_hz, "t_r": tr_s}
    series = np.asarray(series, np.float64)
    return nilearn_clean(series, detrend=settings.detrend, standardize="zscore_sample", **filtering)


def drifting(n_frames: int, n_voxels: int = 11) -> np.ndarray:
    """(T, V) noise of a percent, with a trend, around a scanner's 10,000."""
    random = np.random.default_rng(n_frames)
    trend = np.linspace(-1, 1, n_frames)[:, None] * random.normal(0, 300, n_voxels)
    return (10_000 + trend + random.normal(0, 100, (n_frames, n_voxels))).astype(np.float32)


@pytest.mark.parametrize("fwhm_mm", [3.0, 4.7, 12.0])
def test_smoothing_is_nilearns(fwhm_mm: float) -> None:
    data = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype(np.float32)
    mine = smooth(torch.from_numpy(data.T), AFFINE, fwhm_mm)
    expected = smooth_img(nib.Nifti1Image(data, AFFINE), fwhm_mm).get_fdata()
    np.testing.assert_allclose(mine.numpy().T, expected, atol=1e-6)


def test_smoothing_keeps_constants_up_to_the_edge() -> None:
    np.testing.assert_allclose(smoothing_matrix(9, 2.0, 5.0).sum(axis=1), 1)


@pytest.mark.parametrize("tr_s", [0.72, 2.16, 2.5])
@pytest.mark.parametrize("n_frames", [60, 121, 176])
def test_cleaning_is_nilearns(n_frames: int, tr_s: float) -> None:
    series = drifting(n_frames)
    mine, constant, _ = clean(torch.from_numpy(series), tr_s, PAPER)
    np.testing.assert_allclose(mine, by_nilearn(series, tr_s, PAPER), atol=TOLERANCE)
    assert mine.dtype == torch.float32
    assert constant.sum() == 0


@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.parametrize("high_pass_hz", [None, 1 / 128, 0.05])
def test_each_step_can_be_left_out(detrend: bool, high_pass_hz: float | None) -> None:
    settings = PreprocessingSettings(detrend=detrend, high_pass_hz=high_pass_hz)
    series = drifting(75)
    mine, _, _ = clean(torch.from_numpy(series), 2.0, settings)
    np.testing.assert_allclose(mine, by_nilearn(series, 2.0, settings), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("fwhm_mm", "tolerance"),
    [
        (3.0, TOLERANCE),
        (12.0, 3e-4),  # leaves an SD of 10 around 10,000, which float32 resolves to 0.001
    ],
)
def test_simulated_runs_come_out_as_from_nilearn(
    simulated: tuple[pd.DataFrame, Path, SimulationSettings], fwhm_mm: float, tolerance: float
) -> None:
    manifest, root, _ = simulated
    for row in manifest.itertuples():
        image, mask = nib.load(root / row.image), load_volume(root / row.mask)[0] > 0
        bold = smooth(load_bold(root / row.image), image.affine, fwhm_mm)
        expected = smooth_img(image, fwhm_mm).get_fdata()
        assert np.abs(bold.numpy().T - expected).max() <= 1e-6 * expected.max()
        series, _, _ = clean(bold[:, torch.from_numpy(mask.T.copy())], row.tr_s, PAPER)
        np.testing.assert_allclose(series, by_nilearn(expected.T[:, mask.T], row.tr_s, PAPER), atol=tolerance)


@pytest.mark.parametrize("run", range(1, 13))
def test_real_runs_come_out_as_from_nilearn(run: int) -> None:
    path = real_data("haxby2001-slice") / f"sub-01/func/sub-01_task-objectviewing_run-{run:02d}_bold.nii.gz"
    image = nib.load(path)
    bold = smooth(load_bold(path), image.affine, 3.0)
    expected = smooth_img(image, 3.0).get_fdata()
    assert np.abs(bold.numpy().T - expected).max() <= 1e-6 * expected.max()
    inside = expected.T.std(axis=0) > 0  # one slice, 40×20×1; the corners are constant
    series, constant, _ = clean(bold.reshape(len(bold), -1), 2.5, PAPER)
    assert constant.sum() == (~inside).sum()
    np.testing.assert_allclose(series[:, inside.ravel()], by_nilearn(expected.T[:, inside], 2.5, PAPER), atol=TOLERANCE)


@pytest.mark.parametrize("value", [0.0, 1234.567, -5.0, 1e4])
@pytest.mark.parametrize("settings", [PAPER, Z_SCORE], ids=["all", "z-score only"])
def test_constant_voxels_become_zeros_and_are_counted(value: float, settings: PreprocessingSettings) -> None:
    series = drifting(51)
    alone, _, _ = clean(torch.from_numpy(series), 2.0, settings)
    series[:, [2, 7]] = value
    mine, constant, _ = clean(torch.from_numpy(series), 2.0, settings)
    assert constant.sum() == 2
    assert not mine[:, [2, 7]].any()
    others = [voxel for voxel in range(11) if voxel not in (2, 7)]
    torch.testing.assert_close(mine[:, others], alone[:, others])


def test_a_voxel_that_varies_by_rounding_only_is_constant() -> None:
    series = drifting(51)
    series[:, 7] = 1e4
    series[::3, 7] = np.nextafter(np.float32(1e4), np.float32(2e4))
    mine, constant, _ = clean(torch.from_numpy(series), 2.0, PAPER)
    assert constant.sum() == 1
    assert not mine[:, 7].any()


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"18 frames are too few for the Butterworth filter .* set preprocessing"):
        clean(torch.from_numpy(drifting(18)), 2.0, PAPER)
    clean(torch.from_numpy(drifting(19)), 2.0, PAPER)
    with pytest.raises(ValueError, match=r"a run of 2 frame\(s\) cannot be standardised"):
        clean(torch.from_numpy(drifting(2)), 2.0, PreprocessingSettings(high_pass_hz=None))


def test_a_cut_off_above_nyquist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"high_pass_hz 0.25 is not below the Nyquist frequency 0.25 Hz of TR 2 s"):
        cleaning_matrix(40, 2.0, True, 0.25)


@pytest.mark.parametrize("fwhm_mm", [4.0, None])
def test_a_run_in_parts_is_the_run_as_a_whole(
    fwhm_mm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_FRAMES_BYTES", 7 * 4 * 7 * 8 * 9)
    monkeypatch.setattr(preprocess, "_BLOCK_BYTES", 5 * 4 * 60)
    random = np.random.default_rng(2)
    data = (1000 + 10 * random.normal(size=(*SHAPE, 60))).astype(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[2:6, 1:5, 3:9] = random.random((4, 4, 6)) < 0.4
    data[3, 3, 5] = 1000
    mask[3, 3, 5] = True
    path = saved(tmp_path / "bold.nii.gz", data)
    settings = PreprocessingSettings(fwhm_mm=fwhm_mm)
    got = np.full((60, mask.sum()), np.nan)
    n_constant, _ = process_run(
        path, mask, AFFINE, 2.0, settings, tmp_path, lambda block, part: np.copyto(got[:, block], part)
    )
    smoothed = smooth_img(nib.load(path), fwhm_mm).get_fdata() if fwhm_mm else data
    expected = by_nilearn(smoothed.T[:, mask.T], 2.0, settings)
    constant = (smoothed.T[:, mask.T].std(axis=0) < 1e-3) if fwhm_mm is None else np.zeros(mask.sum(), bool)
    assert n_constant == constant.sum() == (fwhm_mm is None)
    np.testing.assert_allclose(got[:, ~constant], expected[:, ~constant], atol=TOLERANCE)
    assert not got[:, constant].any()
    assert [p.name for p in tmp_path.iterdir()] == ["bold.nii.gz"]  # the scratch file is gone


def test_a_voxel_of_a_run_that_varies_by_rounding_only_is_constant(tmp_path: Path) -> None:
    data = (10_000 + 100 * np.random.default_rng(0).normal(size=(*SHAPE, 51))).astype(np.float32)
    data[2, 3, 4] = 1e4
    data[2, 3, 4, 1::3] = np.nextafter(np.float32(1e4), np.float32(2e4))
    path, settings = saved(tmp_path / "bold.nii", data), PreprocessingSettings(fwhm_mm=None)
    n_constant, _ = process_run(path, np.ones(SHAPE, bool), AFFINE, 2.0, settings, tmp_path, lambda block, series: None)
    assert n_constant == 1
