from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data
from hypothesis import given
from hypothesis import strategies as st
from nilearn.image import smooth_img
from nilearn.signal import clean as nilearn_clean

from deeplight_core import preprocess
from deeplight_core.config import DataSettings, PreprocessingSettings, SimulationSettings
from deeplight_core.preprocess import (
    clean,
    cleaning_matrix,
    label_frames,
    load_bold,
    load_mask,
    process_run,
    read_events,
    read_frames,
    smooth,
    smoothing_matrix,
)
from deeplight_core.simulate import design

SHAPE = (7, 8, 9)
AFFINE = np.array([[-3.0, 0.2, 0, 9], [0, 3.5, 0, -12], [0.1, 0, 4, -16], [0, 0, 0, 1]])
PAPER = PreprocessingSettings()
Z_SCORE = PreprocessingSettings(detrend=False, high_pass_hz=None)
TOLERANCE = 1e-4  # of z-scores: float32 against nilearn's float64
WANTED = {"left": ["lh"], "right": ["rh"]}


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
    mine, n_constant = clean(torch.from_numpy(series), tr_s, PAPER)
    np.testing.assert_allclose(mine, by_nilearn(series, tr_s, PAPER), atol=TOLERANCE)
    assert mine.dtype == torch.float32
    assert n_constant == 0


@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.parametrize("high_pass_hz", [None, 1 / 128, 0.05])
def test_each_step_can_be_left_out(detrend: bool, high_pass_hz: float | None) -> None:
    settings = PreprocessingSettings(detrend=detrend, high_pass_hz=high_pass_hz)
    series = drifting(75)
    mine, _ = clean(torch.from_numpy(series), 2.0, settings)
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
        image, mask = nib.load(root / row.image), load_mask(root / row.mask)
        bold = smooth(load_bold(root / row.image), image.affine, fwhm_mm)
        expected = smooth_img(image, fwhm_mm).get_fdata()
        assert np.abs(bold.numpy().T - expected).max() <= 1e-6 * expected.max()
        series, _ = clean(bold[:, torch.from_numpy(mask.T.copy())], row.tr_s, PAPER)
        np.testing.assert_allclose(series, by_nilearn(expected.T[:, mask.T], row.tr_s, PAPER), atol=tolerance)


@pytest.mark.parametrize("run", range(1, 13))
def test_real_runs_come_out_as_from_nilearn(run: int) -> None:
    path = real_data("haxby2001-slice") / f"sub-01/func/sub-01_task-objectviewing_run-{run:02d}_bold.nii.gz"
    image = nib.load(path)
    bold = smooth(load_bold(path), image.affine, 3.0)
    expected = smooth_img(image, 3.0).get_fdata()
    assert np.abs(bold.numpy().T - expected).max() <= 1e-6 * expected.max()
    inside = expected.T.std(axis=0) > 0  # one slice, 40×20×1; the corners are constant
    series, n_constant = clean(bold.reshape(len(bold), -1), 2.5, PAPER)
    assert n_constant == (~inside).sum()
    np.testing.assert_allclose(series[:, inside.ravel()], by_nilearn(expected.T[:, inside], 2.5, PAPER), atol=TOLERANCE)


@pytest.mark.parametrize("value", [0.0, 1234.567, -5.0, 1e4])
@pytest.mark.parametrize("settings", [PAPER, Z_SCORE], ids=["all", "z-score only"])
def test_constant_voxels_become_zeros_and_are_counted(value: float, settings: PreprocessingSettings) -> None:
    series = drifting(51)
    alone, _ = clean(torch.from_numpy(series), 2.0, settings)
    series[:, [2, 7]] = value
    mine, n_constant = clean(torch.from_numpy(series), 2.0, settings)
    assert n_constant == 2
    assert not mine[:, [2, 7]].any()
    others = [voxel for voxel in range(11) if voxel not in (2, 7)]
    torch.testing.assert_close(mine[:, others], alone[:, others])


def test_a_voxel_that_varies_by_rounding_only_is_constant() -> None:
    series = drifting(51)
    series[:, 7] = 1e4
    series[::3, 7] = np.nextafter(np.float32(1e4), np.float32(2e4))
    mine, n_constant = clean(torch.from_numpy(series), 2.0, PAPER)
    assert n_constant == 1
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


def test_a_run_is_loaded_slices_first(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype(np.float32)
    bold = load_bold(saved(tmp_path / "bold.nii.gz", data))
    assert bold.shape == (5, 9, 8, 7)
    assert bold.dtype == torch.float32
    assert bold[4, 8, 7, 6] == data[6, 7, 8, 4]
    assert bold[1, 2, 3, 4] == data[4, 3, 2, 1]


def broken(kind: str, path: Path) -> Path:
    data = np.random.default_rng(0).normal(size=(*SHAPE, 5))
    if kind == "NaN":
        data[3, 3, 3, [1, 4]] = [np.nan, np.inf]
    saved(path, data[..., 0] if kind == "3-D" else data)
    if kind == "missing":
        path.unlink()
    elif kind in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if kind == "truncated" else 0])
    elif kind == "text":
        path.write_text("<html>404</html>" * 99)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("NaN", "holds NaN or infinite values in 2 of 5 volumes"),
        ("3-D", r"has 3 dimensions \(7, 8, 9\); a run has four"),
        ("truncated", "cannot be read as NIfTI .* cut short"),
        ("empty", "cannot be read as NIfTI"),
        ("text", "cannot be read as NIfTI"),
        ("missing", "does not exist; correct the manifest"),
    ],
)
def test_a_broken_run_is_named(kind: str, message: str, suffix: str, tmp_path: Path) -> None:
    path = broken(kind, tmp_path / f"bold{suffix}")
    with pytest.raises(ValueError, match=rf"(?s)^{path} {message}"):
        load_bold(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "<f8"])
@pytest.mark.parametrize("scaling", [(None, None), (0.25, -7.5)])
def test_frames_are_what_nibabel_reads(
    dtype: str, scaling: tuple[float, float], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_FRAMES_BYTES", 2 * 4 * 7 * 8 * 9)  # two at a time
    values = np.random.default_rng(0).integers(0, 200, (*SHAPE, 5)).astype(dtype)
    image = nib.Nifti1Image(values, AFFINE, nib.Nifti1Header(endianness=">" if ">" in dtype else "<"))
    image.header.set_slope_inter(*scaling)
    path = tmp_path / f"bold{suffix}"
    nib.save(image, path)
    frames = list(read_frames(path))
    assert [len(part) for part in frames] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(frames).numpy().T, nib.load(path).get_fdata(dtype=np.float32))


@pytest.mark.parametrize("position", [-1, -6, -40, 0.5])
def test_a_flipped_bit_in_a_compressed_run_is_found(position: float, tmp_path: Path) -> None:
    path = saved(tmp_path / "bold.nii.gz", np.random.default_rng(0).normal(size=(*SHAPE, 5)))
    content = bytearray(path.read_bytes())
    content[int(position * len(content)) if isinstance(position, float) else position] ^= 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} cannot be read as NIfTI"):
        load_bold(path)


def test_an_image_of_two_files_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((*SHAPE, 3), np.float32), AFFINE), tmp_path / "bold.img")
    with pytest.raises(ValueError, match=r"bold.img is no single NIfTI file"):
        load_bold(tmp_path / "bold.img")


@pytest.mark.parametrize("fwhm_mm", [4.0, None])
def test_a_run_in_parts_is_the_run_as_a_whole(
    fwhm_mm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_FRAMES_BYTES", 7 * 4 * 7 * 8 * 9)
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
    n_constant = process_run(
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
    n_constant = process_run(path, np.ones(SHAPE, bool), AFFINE, 2.0, settings, tmp_path, lambda block, series: None)
    assert n_constant == 1


def test_masks_are_where_values_are_positive(tmp_path: Path) -> None:
    data = np.random.default_rng(0).choice([-1.0, 0.0, 0.3, 2.0], SHAPE)
    for values in (data, data[..., None]):
        np.testing.assert_array_equal(load_mask(saved(tmp_path / "mask.nii.gz", values)), data > 0)


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    for values, message in ((np.zeros(SHAPE), "is empty"), (np.ones((*SHAPE, 2)), "has 4 dimensions")):
        with pytest.raises(ValueError, match=f"mask {path} {message}"):
            load_mask(saved(path, values))
    with pytest.raises(ValueError, match=f"^{path} cannot be read as NIfTI"):
        load_mask(broken("truncated", path))


def ev_folder(folder: Path, **files: str) -> Path:
    """The EV folder of a MOTOR run: two blocks of the left hand, one of the right; `files` replaces and adds."""
    folder.mkdir(exist_ok=True)
    texts = {"lh": "30\t12\t1\n90\t12\t1\n", "rh": "60\t12\t1\n", "cue": "27\t3\t1\n57\t3\t1\n", "Sync": "6.4\n"}
    for name, text in (texts | files).items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def tsv(folder: Path, text: str) -> Path:
    path = folder / "sub-01_events.tsv"
    path.write_text(text)
    return path


def listed(blocks: pd.DataFrame) -> list[tuple[float, float, str]]:
    return list(blocks[["onset", "duration", "state"]].itertuples(index=False, name=None))


BLOCKS = [(30.0, 12.0, "left"), (60.0, 12.0, "right"), (90.0, 12.0, "left")]


def test_ev_folder_gives_blocks_in_time_order(tmp_path: Path) -> None:
    events = read_events(ev_folder(tmp_path / "EVs"), WANTED, "MOTOR")
    assert listed(events.blocks) == BLOCKS
    assert events.ignored == {"Sync": 1, "cue": 2}
    assert (events.unknown, events.empty) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "30 12 1\n90 12 1",
        "30,12,1\n90,12,1",
        "30;12\n\n90;12\n",
        "\ufeff30\t12\r\n90\t12\r\n",
        " 90  12 1\n 30 12 1 \n",
    ],
    ids=["spaces", "commas", "empty line", "Windows", "unsorted"],
)
def test_separators_and_order_of_an_ev_file_do_not_matter(tmp_path: Path, text: str) -> None:
    assert listed(read_events(ev_folder(tmp_path / "EVs", lh=text), WANTED, "MOTOR").blocks) == BLOCKS


def test_an_empty_ev_file_is_fine_and_listed(tmp_path: Path) -> None:
    events = read_events(ev_folder(tmp_path / "EVs", rh=""), WANTED, "MOTOR")
    assert listed(events.blocks) == [BLOCKS[0], BLOCKS[2]]
    assert events.empty == ["right"]


def test_a_run_without_any_wanted_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"EVs has no event of \['lh', 'rh'\]; it has \['Sync', 'cue'\]"):
        read_events(ev_folder(tmp_path / "EVs", rh="", lh=""), WANTED, "MOTOR")


def test_missing_ev_files_are_named_with_their_states(tmp_path: Path) -> None:
    wanted = WANTED | {"left toe": ["lf"], "tongue": ["t"]}
    with pytest.raises(ValueError, match=r"EVs has no lf.txt, t.txt, which states \['left toe', 'tongue'\] need"):
        read_events(ev_folder(tmp_path / "EVs"), wanted, "MOTOR")
    with pytest.raises(ValueError, match=r"gone does not exist; correct the manifest"):
        read_events(tmp_path / "gone", wanted, "MOTOR")


def test_unknown_ev_names_are_reported_and_protocol_names_are_not(tmp_path: Path) -> None:
    folder = ev_folder(tmp_path / "EVs", lhand="1 2 1\n2 2 1\n", t="5 3 1\n")
    events = read_events(folder, WANTED, "MOTOR")
    assert events.unknown == ["lhand"]
    assert events.ignored == {"Sync": 1, "cue": 2, "lhand": 2, "t": 1}
    assert read_events(folder, WANTED, "another task").unknown == ["cue", "lhand", "t"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("later 12 1", r"row 3: 'later 12 1' is not `onset duration amplitude` in seconds"),
        ("42", "row 3: '42' is not"),
        ("nan 12 1", "row 3: onset nan, duration 12.0; both must be finite"),
        ("42 inf 1", "row 3: onset 42.0, duration inf"),
        ("42 -12 1", "row 3: onset 42.0, duration -12.0; .* not negative"),
    ],
)
def test_a_bad_ev_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"lh.txt, {message}"):
        read_events(ev_folder(tmp_path / "EVs", lh=f"30 12 1\n\n{row}\n"), WANTED, "MOTOR")


def test_an_ev_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    folder = ev_folder(tmp_path / "EVs")
    (folder / "lh.txt").write_bytes(b"\xff\xfe3\x000\x00")
    with pytest.raises(ValueError, match=r"lh.txt is not UTF-8 text"):
        read_events(folder, WANTED, "MOTOR")


BIDS = """\
trial_type onset response duration
rh 60 n/a 12
lh 90 n/a 12
rest 72 n/a 18
rest 0 n/a 30
lh 30 n/a 12
""".replace(" ", "\t")


def test_bids_events_are_sorted_and_others_counted(tmp_path: Path) -> None:
    events = read_events(tsv(tmp_path, BIDS), WANTED | {"tongue": ["t"]}, "moving")
    assert listed(events.blocks) == BLOCKS
    assert events.ignored == {"rest": 2}
    assert (events.unknown, events.empty) == ([], ["tongue"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BIDS.replace("90", "n/a"), "row 3: onset 'n/a', duration '12' are not seconds"),
        (BIDS.replace("90\tn/a\t12", "90\tn/a\tn/a"), "row 3: onset '90', duration 'n/a' are not seconds"),
        (BIDS.replace("90\tn/a\t12", "90\tn/a\t-1"), "row 3: onset 90.0, duration -1.0; both must be finite"),
        (BIDS.replace("duration", "length"), "has no column duration; it has trial_type, onset, response, length"),
        (BIDS.replace("\t", ","), "has no column onset, duration, trial_type; it has trial_type,onset"),
        (BIDS.replace("h\t", "H\t"), r"has no event of \['lh', 'rh'\]; it has \['lH', 'rH', 'rest'\]"),
        ("onset\tduration\ttrial_type\n", r"has no event of \['lh', 'rh'\]; it has no events"),
        ("", "is not a tab-separated table"),
    ],
)
def test_bad_bids_events_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"sub-01_events.tsv,? {message}"):
        read_events(tsv(tmp_path, text), WANTED, "moving")


@pytest.mark.parametrize(
    ("task", "pooled", "ignored"),
    [
        ("WM", {"body": ["0bk_body", "2bk_body"], "tool": ["0bk_tools", "2bk_tools"]}, "all_bk_cor"),
        ("GAMBLING", {"win": ["win_event"], "loss": ["loss_event"], "neutral": ["neut_event"]}, "win"),
        ("MOTOR", {"left finger": ["lh"], "left toe": ["lf"]}, "cue"),
        ("SOCIAL", {"interaction": ["mental"], "no interaction": ["rnd"]}, "mental_resp"),
    ],
)
def test_hcp_states_come_from_their_evs(task: str, pooled: dict[str, list[str]], ignored: str, tmp_path: Path) -> None:
    evs = design(task, "LR", 0)
    folder = tmp_path / "EVs"
    folder.mkdir()
    for name, table in evs.items():
        table.to_csv(folder / f"{name}.txt", sep="\t", header=False, index=False)
    data = DataSettings()
    events = read_events(folder, data.events(task), task)
    for state, names in pooled.items():
        mine = events.blocks[events.blocks["state"] == state]
        expected = pd.concat([evs[name] for name in names]).sort_values("onset")
        assert mine[["onset", "duration"]].to_numpy().tolist() == expected[["onset", "duration"]].to_numpy().tolist()
    assert len(events.blocks) == sum(len(evs[name]) for names in data.events(task).values() for name in names)
    assert events.ignored[ignored] == len(evs[ignored])
    assert (events.unknown, events.empty) == ([], [])


def frames_of(
    blocks: list[tuple[float, float, str]], n_frames: int = 20, **settings: float | None
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """State → frames at TR 2 s, and what was dropped (if anything)."""
    table = pd.DataFrame(blocks, columns=["onset", "duration", "state"])
    labels = label_frames(table, n_frames, 2.0, PreprocessingSettings(**settings))
    assert (np.diff(labels.frames) > 0).all()
    frames = {state: labels.frames[labels.states == state].tolist() for state in dict.fromkeys(table["state"])}
    return frames, {reason: n for reason, n in labels.dropped.items() if n}


def test_the_first_two_volumes_of_a_block_are_dropped() -> None:
    frames, dropped = frames_of([(4, 10, "a")])
    assert frames == {"a": [4, 5, 6]}  # 8, 10 and 12 s; the block lasts from 4 to before 14 s
    assert dropped == {"volumes_in_no_block": 17}


@pytest.mark.parametrize(("skip_s", "first"), [(None, 4), (0, 2), (1.44, 3), (2, 3), (4, 4)])
def test_skip_is_two_repetition_times_unless_stated(skip_s: float | None, first: int) -> None:
    assert frames_of([(4, 10, "a")], skip_s=skip_s)[0] == {"a": list(range(first, 7))}


def test_adjacent_blocks_share_no_volume() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (10, 10, "b")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7, 8, 9]}
    assert dropped == {}


def test_volumes_in_two_blocks_are_dropped_and_counted() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (6, 10, "b")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2], "b": [5, 6, 7]}
    assert dropped == {"volumes_in_no_block": 2, "volumes_in_two_blocks": 2}


def test_a_block_past_the_end_is_counted() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (14, 10, "b"), (40, 10, "c")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2, 3, 4], "b": [7, 8, 9], "c": []}
    assert dropped == {"volumes_in_no_block": 2, "blocks_past_the_end": 2, "blocks_without_volumes": 1}


def test_lag_shifts_the_labels() -> None:
    assert frames_of([(4, 10, "a")], lag_s=6)[0] == {"a": [7, 8, 9]}
    assert frames_of([(4, 10, "a")], lag_s=5)[0] == {"a": [7, 8, 9]}  # from 13 to before 19 s
    assert frames_of([(4, 10, "a")], lag_s=5, skip_s=0)[0] == {"a": [5, 6, 7, 8, 9]}


def test_a_block_shorter_than_what_is_skipped_has_no_volumes() -> None:
    frames, dropped = frames_of([(4, 4, "a"), (20, 0, "b")])
    assert frames == {"a": [], "b": []}
    assert dropped == {"volumes_in_no_block": 20, "blocks_without_volumes": 2}


def test_rounding_does_not_move_a_volume() -> None:
    onset = 3 * 0.72 * 10  # 21.599999999999998
    table = pd.DataFrame([(onset, 7.2, "a")], columns=["onset", "duration", "state"])
    labels = label_frames(table, 60, 0.72, PreprocessingSettings(skip_s=0))
    assert labels.frames.tolist() == list(range(30, 40))


milliseconds = st.integers(0, 60_000)


@given(
    blocks=st.lists(st.tuples(milliseconds, st.integers(0, 30_000), st.sampled_from("abc")), max_size=6),
    n_frames=st.integers(1, 60), tr_ms=st.integers(500, 3000), lag_ms=st.integers(0, 8000),
    skip_ms=st.none() | st.integers(0, 5000),
)  # fmt: skip
def test_labels_equal_a_plain_loop(
    blocks: list[tuple[int, int, str]], n_frames: int, tr_ms: int, lag_ms: int, skip_ms: int | None
) -> None:
    expected, in_none, in_two = {}, 0, 0
    for frame in range(n_frames):
        owners = []
        for onset, duration, state in blocks:
            first = onset + lag_ms + (2 * tr_ms if skip_ms is None else skip_ms)
            if first <= frame * tr_ms < onset + lag_ms + duration:
                owners.append(state)
        if len(owners) == 1:
            expected[frame] = owners[0]
        in_none += not owners
        in_two += len(owners) > 1
    table = pd.DataFrame([(o / 1000, d / 1000, s) for o, d, s in blocks], columns=["onset", "duration", "state"])
    settings = PreprocessingSettings(lag_s=lag_ms / 1000, skip_s=None if skip_ms is None else skip_ms / 1000)
    labels = label_frames(table, n_frames, tr_ms / 1000, settings)
    assert dict(zip(labels.frames.tolist(), labels.states, strict=True)) == expected
    assert labels.dropped["volumes_in_no_block"] == in_none
    assert labels.dropped["volumes_in_two_blocks"] == in_two
    past = sum(onset + lag_ms + duration > n_frames * tr_ms for onset, duration, _ in blocks)
    assert labels.dropped["blocks_past_the_end"] == past
