import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean as nilearn_clean

from deeplight_core.data.confounds import confound_files, read_confounds
from deeplight_core.data.preprocess import Matrices, clean, confound_matrix
from deeplight_core.preparation import ConfoundSettings, PreprocessingSettings
from deeplight_core.system.files import read_table

T, TR_S = 80, 2.0
STEM = "sub-01_ses-a_task-faces_run-1"
IMAGE = f"sub-01/func/{STEM}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
TOLERANCE = 1e-4  # of z-scores, float32


def confounds(n_frames: int = T, n_unsteady: int = 2) -> pd.DataFrame:
    """A table as fMRIPrep writes it: derivatives start with n/a, three volumes moved."""
    random = np.random.default_rng(4)
    table = pd.DataFrame()
    bases = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"] + ["csf", "white_matter", "global_signal"]
    for name in bases:
        course = pd.Series(random.normal(size=n_frames).cumsum())
        table[name], table[f"{name}_derivative1"] = course, course.diff()
        table[f"{name}_power2"], table[f"{name}_derivative1_power2"] = course**2, course.diff() ** 2
    table["framewise_displacement"] = np.where(np.isin(np.arange(n_frames), [20, 21, 50]), 0.9, 0.1)
    table["std_dvars"] = 1.0
    table.loc[0, ["framewise_displacement", "std_dvars"]] = np.nan
    for i in range(3):
        table[f"a_comp_cor_{i:02d}"] = random.normal(size=n_frames)
        table[f"cosine{i:02d}"] = np.cos(np.pi * (np.arange(n_frames) + 0.5) * (i + 1) / n_frames)
    table["aroma_motion_01"] = random.normal(size=n_frames)
    for i in range(n_unsteady):
        table[f"non_steady_state_outlier{i:02d}"] = (np.arange(n_frames) == i).astype(int)
    return table


def written(root: Path, table: pd.DataFrame, kind: str = "timeseries") -> list[str]:
    folder = root / "sub-01/func"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{STEM}_desc-confounds_{kind}.tsv"
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    components = {"Method": "aCompCor", "Mask": "combined", "VarianceExplained": 0.1, "Retained": True}
    path.with_suffix(".json").write_text(json.dumps({f"a_comp_cor_{i:02d}": components for i in range(3)}))
    return confound_files(root, IMAGE)


@pytest.mark.parametrize("kind", ["timeseries", "regressors"])
def test_the_files_beside_an_image_are_its_own(kind: str, tmp_path: Path) -> None:
    files = written(tmp_path, confounds(), kind)
    where = f"sub-01/func/{STEM}_desc-confounds_{kind}"
    assert files == [f"{where}.tsv", f"{where}.json"]
    for other in ("run-2", "task-rest"):  # of other runs
        name = STEM.replace("run-1", other) if "run" in other else STEM.replace("task-faces", other)
        (tmp_path / f"sub-01/func/{name}_desc-confounds_{kind}.tsv").write_text("a\n1\n")
    assert confound_files(tmp_path, IMAGE) == files
    assert confound_files(tmp_path, f"sub-01/func/{STEM}_bold.nii.gz") == []  # a raw image
    (tmp_path / "root").mkdir()
    (tmp_path / "root/sub-01").symlink_to(tmp_path / "sub-01")
    assert confound_files(tmp_path / "root", IMAGE) == []  # outside the root
    assert confound_files(tmp_path, "gone/sub-01_desc-preproc_bold.nii.gz") == []


STRATEGIES: dict[str, dict[str, Any]] = {
    "24 motion parameters": {"strategy": ["motion"]},
    "6 motion parameters, tissues": {"strategy": ["motion", "wm_csf", "global_signal"], "motion": "basic"},
    "CompCor": {"strategy": ["compcor", "high_pass"], "n_compcor": 2},
    "scrubbing": {"strategy": ["motion", "scrub"], "motion": "basic", "scrub": 5, "fd_threshold": 0.5},
    "AROMA's components": {"strategy": ["ica_aroma", "wm_csf"], "ica_aroma": "basic", "wm_csf": "full"},
    "steady state": {"strategy": ["non_steady_state"]},
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("high_pass_hz", [1 / 128, None])
def test_cleaning_with_confounds_is_nilearns(name: str, high_pass_hz: float | None, tmp_path: Path) -> None:
    files, settings = written(tmp_path, confounds()), ConfoundSettings(**STRATEGIES[name])
    found = read_confounds(tmp_path, files, IMAGE, T, settings)
    assert found is not None
    asked = {k: v for k, v in STRATEGIES[name].items() if k != "strategy"}
    strategy = [s for s in settings.strategy if s != "non_steady_state"] or ["motion"]
    table, mask = load_confounds(str(tmp_path / IMAGE), strategy=strategy, demean=False, **asked)
    table = None if name == "steady state" else table
    np.testing.assert_array_equal(found.kept, mask)
    series = (10_000 + 100 * np.random.default_rng(5).normal(size=(T, 9))).astype(np.float32)
    filtering: dict[str, Any] = {"filter": False} if high_pass_hz is None else {"high_pass": high_pass_hz, "t_r": TR_S}
    expected = nilearn_clean(series.astype(float), confounds=table, sample_mask=mask.copy(), **filtering)
    matrix = confound_matrix(TR_S, True, high_pass_hz, found.regressors, found.kept)
    mine, constant, _ = clean(torch.from_numpy(series), TR_S, PreprocessingSettings(), 0.0, Matrices(matrix, mask))
    np.testing.assert_allclose(mine.numpy(), expected, atol=TOLERANCE)
    assert not constant.any()


def test_scrubbing_censors_what_moved_and_short_segments(tmp_path: Path) -> None:
    files, scrubbing = written(tmp_path, confounds()), STRATEGIES["scrubbing"]
    found = read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings(**scrubbing))
    assert found is not None
    assert sorted({*range(T)} - {*found.kept.tolist()}) == [0, 1, 20, 21, 50]
    assert (found.n_unsteady, found.regressors.shape) == (2, (T, 6))
    assert found.mean_fd_mm == pytest.approx((0.1 * (T - 4) + 0.9 * 3) / (T - 1))
    moved = confounds()
    moved.loc[24, "framewise_displacement"] = 0.8  # two volumes remain between 21 and 24
    found = read_confounds(tmp_path, written(tmp_path, moved), IMAGE, T, ConfoundSettings(**scrubbing))
    assert found is not None
    assert sorted({*range(T)} - {*found.kept.tolist()}) == [0, 1, 20, 21, 22, 23, 24, 50]


def spike(frame: int, kept: list[int]) -> int:
    """The frame at which a lone peak of a series is found after cleaning."""
    series = np.zeros((T, 1))
    series[frame] = 100.0
    matrix = confound_matrix(TR_S, True, 1 / 128, np.empty((T, 0)), np.array(kept))
    return kept[int(np.argmax(matrix @ series))]


def test_frames_keep_their_places_when_both_ends_are_censored() -> None:
    """Where nilearn 0.14 moves them: it takes the censored frames at the end for those at the beginning."""
    kept = list(range(2, T - 3))
    moved = nilearn_clean(np.eye(T), standardize=None, high_pass=1 / 128, t_r=TR_S, sample_mask=np.array(kept))
    assert kept[int(np.argmax(moved[:, 30]))] != 30
    assert spike(30, kept) == 30
    inner = nilearn_clean(np.eye(T - 5), standardize=None, high_pass=1 / 128, t_r=TR_S)
    matrix = confound_matrix(TR_S, True, 1 / 128, np.empty((T, 0)), np.array(kept))
    np.testing.assert_allclose(matrix[:, 2:-3], inner, atol=1e-12)
    assert not matrix[:, [0, 1, -3, -2, -1]].any()


@pytest.mark.parametrize("censored", [[0, 1], [T - 1], [10, T - 11], [0, 3, 40]])
def test_other_censoring_is_nilearns(censored: list[int]) -> None:
    kept = np.setdiff1d(np.arange(T), censored)
    nuisance = np.random.default_rng(6).normal(size=(T, 3))
    theirs = nilearn_clean(
        np.eye(T), standardize=None, high_pass=1 / 128, t_r=TR_S, sample_mask=kept.copy(), confounds=nuisance.copy()
    )
    np.testing.assert_allclose(confound_matrix(TR_S, True, 1 / 128, nuisance, kept), theirs, atol=1e-10)


def test_a_voxel_that_confounds_explain_is_constant() -> None:
    nuisance = np.random.default_rng(7).normal(size=(T, 3))
    series = (10_000 + 100 * np.column_stack([nuisance @ [1, 2, 3], np.random.default_rng(8).normal(size=T)])).astype(
        np.float32
    )
    matrices = Matrices(confound_matrix(TR_S, True, None, nuisance, np.arange(T)), np.arange(T))
    mine, constant, _ = clean(torch.from_numpy(series), TR_S, PreprocessingSettings(), 0.0, matrices)
    assert constant.tolist() == [True, False]
    assert not mine[:, 0].any()


def test_without_a_strategy_motion_is_noted_and_nothing_is_done(tmp_path: Path) -> None:
    files = written(tmp_path, confounds())
    found = read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings())
    assert found is not None
    assert (found.regressors.shape, found.kept.tolist(), found.n_unsteady) == ((T, 0), list(range(T)), 2)
    assert read_confounds(tmp_path, [], IMAGE, T, ConfoundSettings()) is None
    assert read_confounds(tmp_path, files, IMAGE, T + 1, ConfoundSettings()) is None
    (tmp_path / files[0]).write_bytes(b"\xff\xfe")
    assert read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings()) is None
    with pytest.raises(ValueError, match="is not a tab-separated table in UTF-8"):
        read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings(strategy=["motion"]))
    table = confounds().drop(columns="framewise_displacement")
    found = read_confounds(tmp_path, written(tmp_path, table), IMAGE, T, ConfoundSettings())
    assert found is not None
    assert found.mean_fd_mm is None


def with_na(table: pd.DataFrame, column: str, rows: list[int]) -> pd.DataFrame:
    table.loc[rows, column] = np.nan
    return table


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda t: t.head(70), {"strategy": ["motion"]}, r"timeseries.tsv has 70 rows, and its run 80 volumes"),
        (
            lambda t: t.drop(columns=["csf", "white_matter"]),
            {"strategy": ["wm_csf"], "wm_csf": "basic"},
            r"timeseries.tsv: The following keywords or parameters are missing: .*wm_csf.*strategy: wm_csf",
        ),
        (lambda t: t.drop(columns="std_dvars"), {"strategy": ["scrub"]}, r"it has no column 'std_dvars'"),
        (
            lambda t: with_na(t, "rot_z", [7, 8]), {"strategy": ["motion"], "motion": "basic"},
            r"n/a in rot_z \(row 9, 10\), in volumes that are not censored; name a strategy without",
        ),
        (
            lambda t: t.assign(framewise_displacement=2.0), {"strategy": ["scrub"]},
            r"0 of 80 volumes are left after censoring; raise fd_threshold",
        ),
        (
            lambda t: t.assign(framewise_displacement=np.where(t.index < 78, 2.0, 0.1)),
            {"strategy": ["scrub"], "scrub": 0}, r"2 of 80 volumes are left after censoring",
        ),
        (lambda t: t, {"strategy": ["ica_aroma"]}, r"full means images that ICA-AROMA has cleaned \(desc-smoothAROMA"),
        (
            lambda t: t.rename(columns={"trans_x": "TransX"}), {"strategy": ["motion"]},
            r"timeseries.tsv: The confound file contains header in camel case",
        ),
    ],
)  # fmt: skip
def test_confounds_that_cannot_be_used_are_named(
    change: Callable[[pd.DataFrame], pd.DataFrame], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    files = written(tmp_path, change(confounds()))
    with pytest.raises(ValueError, match=message):
        read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings(**settings))


def test_values_not_stated_in_censored_volumes_do_not_count(tmp_path: Path) -> None:
    table = with_na(confounds(), "trans_x", [0, 1, 20])
    settings = ConfoundSettings(strategy=["motion", "scrub"], motion="basic")
    found = read_confounds(tmp_path, written(tmp_path, table), IMAGE, T, settings)
    whole = read_confounds(tmp_path, written(tmp_path, confounds()), IMAGE, T, settings)
    assert found is not None
    assert whole is not None
    assert np.isfinite(found.regressors).all()
    np.testing.assert_allclose(found.regressors[found.kept], whole.regressors[whole.kept])


def test_a_strategy_needs_one_file(tmp_path: Path) -> None:
    settings = ConfoundSettings(strategy=["motion"])
    with pytest.raises(ValueError, match=r"desc-preproc_bold.nii.gz: .* beside it .*, and finds none; take the im"):
        read_confounds(tmp_path, [], IMAGE, T, settings)
    written(tmp_path, confounds())
    both = written(tmp_path, confounds(), "regressors")
    with pytest.raises(ValueError, match=r"finds 2 of them: .*regressors.tsv, .*timeseries.tsv"):
        read_confounds(tmp_path, both, IMAGE, T, settings)


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    files = written(tmp_path, confounds())
    path = tmp_path / files[0]
    path.write_text(path.read_text().replace("0.1\t1.0", "0,1\t1.0", 3))
    with pytest.raises(ValueError, match=r"row 3: framewise_displacement '0,1' is not a number; decimals have a point"):
        read_confounds(tmp_path, files, IMAGE, T, ConfoundSettings(strategy=["scrub"]))


def test_aroma_cleaned_images_are_taken_as_they_are(tmp_path: Path) -> None:
    files, image = written(tmp_path, confounds()), IMAGE.replace("desc-preproc", "desc-smoothAROMAnonaggr")
    settings = ConfoundSettings(strategy=["ica_aroma", "wm_csf"])
    found = read_confounds(tmp_path, files, image, T, settings)
    assert found is not None
    assert found.regressors.shape == (T, 2)
    raw = read_table(tmp_path / files[0])
    np.testing.assert_allclose(found.regressors, raw[["csf", "white_matter"]].astype(float))


def test_too_many_confounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"24 confounds leave nothing of 27 volumes \(of 80\) that are not censored"):
        confound_matrix(TR_S, True, None, np.random.default_rng(0).normal(size=(T, 24)), np.arange(27))


def test_compcor_needs_its_filter() -> None:
    with pytest.raises(ValueError, match="after a high-pass filter: name high_pass in the strategy"):
        ConfoundSettings(strategy=["compcor"])
