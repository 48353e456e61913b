import errno
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import (
    AFFINE,
    EVS,
    IMAGE,
    MASK,
    N_FRAMES,
    N_KEPT,
    ONSETS_S,
    RUN_FILE,
    SHAPE,
    TR_S,
    Dataset,
    changed,
    contents,
    flip_bit,
    truncate,
    without_leftovers,
)
from killing import run_script
from nilearn.image import resample_img, smooth_img
from nilearn.signal import clean
from safetensors.numpy import load_file

from deeplight_core.config import Profile
from deeplight_core.data import simulate
from deeplight_core.data.images import Header
from deeplight_core.data.plan import _target_grid, plan
from deeplight_core.data.prepare import prepare, prepare_subjects
from deeplight_core.data.store import Store, open_store, verify
from deeplight_core.preparation import PreprocessingSettings


def without_root(record: bytes) -> dict[str, object]:
    """A record without what depends on the place of the data."""
    return {key: value for key, value in json.loads(record).items() if key not in ("root", "whole")}


def with_root(profile: Profile, root: Path) -> Profile:
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": str(root)})})


# ---- what is in a store


def test_volumes_equal_nilearn(store: Store, dataset: Dataset, tiny_profile: Profile) -> None:
    manifest, root = dataset
    settings = tiny_profile.preprocessing
    for row in manifest.itertuples():
        smooth = smooth_img(root / row.image, settings.fwhm_mm).get_fdata(dtype=np.float32)
        series = clean(
            smooth.T[:, store.mask.T],
            detrend=True, filter="butterworth", high_pass=settings.high_pass_hz, t_r=TR_S, standardize="zscore_sample",
        )  # fmt: skip
        times = np.arange(row.n_volumes) * TR_S
        kept = [(f, i) for f, t in enumerate(times) for i, on in enumerate(ONSETS_S) if on + 2 * TR_S <= t < on + 10]
        expected = series[[frame for frame, _ in kept]]
        file = f"runs/sub-{row.subject}_task-{row.task}_run-LR.safetensors"
        # half a unit in the last of float16's 11 binary places, and 1e-4 for sums in another order
        np.testing.assert_allclose(store.read(file).float().numpy(), expected, rtol=2**-11, atol=1e-4)
        rows = store.index[store.index["file"] == file]
        states = {"EMOTION": ["fear", "neutral"], "SOCIAL": ["interaction", "no interaction"]}[row.task]
        assert rows["frame"].tolist() == [frame for frame, _ in kept]
        assert rows["onset_s"].tolist() == [frame * TR_S for frame, _ in kept]
        assert rows["state"].tolist() == [states[i % 2] for _, i in kept]
        assert rows["block"].tolist() == [i for _, i in kept]
        assert rows["row"].tolist() == list(range(N_KEPT))
        assert set(rows["unit"]) == set(rows["subject"]) == {row.subject}
        assert set(rows["split"]) == {row.split}


def test_files(store: Store, dataset: Dataset) -> None:
    records = [file.replace(".safetensors", ".json") for file in store.runs["file"]]
    expected = {"store.json", "mask.nii.gz", "coverage.nii.gz", "labels.parquet", "runs.parquet", "index.parquet"}
    expected |= {*store.runs["file"], *records}
    assert set(contents(store.path)) == expected  # nothing partial is left
    assert len(store.runs) == len(dataset[0]) == 12
    for run in store.runs.itertuples():
        path = store.path / run.file
        assert run.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        volumes = load_file(path)["volumes"]
        assert volumes.dtype == np.float16
        assert volumes.shape == (run.n_kept, store.mask.sum()) == (N_KEPT, store.info["n_voxels"])
        assert run.n_frames == run.n_kept + run.volumes_in_no_block


def test_info_says_how_it_was_made(store: Store, tiny_profile: Profile) -> None:
    assert store.info["shape"] == list(SHAPE)
    assert store.info["tr_s"] == TR_S
    assert store.info["preprocessing"] == tiny_profile.preprocessing.model_dump(mode="json")
    assert store.info["software"]["nilearn"]


def test_mask_is_of_voxels_in_enough_masks(store: Store, dataset: Dataset) -> None:
    manifest, root = dataset
    votes = sum(nib.load(root / mask).get_fdata() for mask in manifest["mask"])
    np.testing.assert_array_equal(store.mask, votes >= 6)
    assert store.mask.sum() < (votes > 0).sum()  # the masks do differ


def test_mask_of_a_run_without_one(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    manifest, root = dataset
    image = nib.load(root / manifest["image"][0])
    bold = image.get_fdata(dtype=np.float32)
    bold[:, :2] = 0
    nib.save(nib.Nifti1Image(bold, image.affine), project / "bold.nii.gz")
    shutil.copytree(root / manifest["events"][0], project / "EVs")
    manifest = manifest[:1].assign(mask="", image="bold.nii.gz", events="EVs")
    store = prepare(manifest, with_root(tiny_profile, project), jobs=1)
    np.testing.assert_array_equal(store.mask, bold[..., 0] != 0)  # of the first volume


def test_the_index_has_its_columns_in_order(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    manifest = dataset[0].assign(family=["f" + s[1] for s in dataset[0]["subject"]], age="40", sex="F")
    made = prepare(manifest, tiny_profile, jobs=1)
    assert list(made.index) == [
        "file", "frame", "onset_s", "state", "block", "dataset", "subject", "session", "task", "run", "unit", "family",
        "split", "age", "sex", "row",
    ]  # fmt: skip
    assert (made.index["family"] == "f" + made.index["subject"].str[1]).all()


# ---- runs without events


def resting(dataset: Dataset, profile: Profile) -> tuple[pd.DataFrame, Profile]:
    """The SOCIAL runs as rest, without events, of a task that has no states."""
    manifest = dataset[0].copy()
    manifest.loc[manifest["task"] == "SOCIAL", ["task", "events"]] = ["rest", ""]
    data = profile.data.model_copy(update={"target": {"rest": {}}})
    return manifest, profile.model_copy(update={"data": data})


def test_a_run_without_events_is_no_structural_image_and_counts_what_it_leaves_out(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    made = prepare(*resting(dataset, tiny_profile), jobs=1)
    assert set(made.index["task"]) == {"EMOTION"}
    np.testing.assert_array_equal(made.mask, store.mask)
    runs = made.runs.set_index("file")
    rest = runs[runs.index.str.contains("task-rest")]
    assert rest[["n_frames", "n_kept", "volumes_in_no_block", "blocks_without_volumes"]].to_numpy().tolist() == [
        [44, 0, 44, 0]
    ] * 6  # fmt: skip
    social = store.runs[store.runs["file"].str.contains("SOCIAL")]
    assert rest["median_tsnr"].tolist() == social["median_tsnr"].tolist()  # smoothed as ever
    assert verify(made.path) == []


def test_every_frame_can_be_kept(project: Path, dataset: Dataset, store: Store, tiny_profile: Profile) -> None:
    manifest, profile = resting(dataset, tiny_profile)
    made = prepare(manifest, changed(profile, keep="all"), jobs=1)
    sizes = made.index.groupby("file").size()
    assert sizes.tolist() == [N_FRAMES["EMOTION"], N_FRAMES["SOCIAL"]] * 6  # of rest
    assert made.runs["n_kept"].tolist() == made.runs["n_frames"].tolist()
    assert (made.index["frame"] == made.index["row"]).all()
    assert (made.index.loc[made.index["task"] == "rest", ["state", "block"]] == ["", -1]).all(axis=None)
    columns = ["file", "frame", "onset_s", "state", "block", "split"]
    labelled = store.index.loc[store.index["task"] == "EMOTION", columns].reset_index(drop=True)
    in_blocks = made.index[made.index["state"] != ""]
    pd.testing.assert_frame_equal(in_blocks[columns].reset_index(drop=True), labelled)
    for file in labelled["file"].unique():
        rows = in_blocks.loc[in_blocks["file"] == file, "row"].tolist()
        assert (made.read(file)[rows] == store.read(file)).all()
    social = store.index[store.index["task"] == "SOCIAL"]  # the same frames are there of rest, which has no blocks
    for file, rows in social.groupby("file"):
        rest = made.read(file.replace("SOCIAL", "rest"))
        assert (rest[rows["frame"].tolist()] == store.read(file)).all()
    assert verify(made.path) == []


def test_events_of_a_task_without_states_are_ignored(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    data = tiny_profile.data.model_copy(update={"target": {"SOCIAL": {}}})
    made = prepare(dataset[0], tiny_profile.model_copy(update={"data": data}), jobs=1)
    social = made.runs[made.runs["file"].str.contains("SOCIAL")]
    assert set(social["n_kept"]) == {0}
    assert set(social["ignored_events"]) == {"mental, rnd"}


def test_a_run_without_events_of_a_task_with_states_says_which_it_lacks(
    project: Path, dataset: Dataset, tiny_profile: Profile
) -> None:
    manifest = dataset[0].copy()
    manifest.loc[manifest["image"] == IMAGE, "events"] = ""
    made = prepare(manifest, tiny_profile, jobs=1)
    run = made.runs.set_index("file").loc[RUN_FILE]
    assert (run["n_kept"], run["states_without_events"]) == (0, "interaction, no interaction")


# ---- interrupted, and made twice


def interrupt_before_index(store: Path) -> None:
    (store / "index.parquet").unlink()


def interrupt_early(store: Path) -> None:
    for name in ("index.parquet", "runs.parquet", "store.json", "mask.nii.gz", RUN_FILE):
        (store / name).unlink()
    for file in sorted((store / "runs").glob("*EMOTION*"))[::2]:
        file.unlink()
    (store / "runs/partial_1_sub-s3_task-SOCIAL_run-LR.safetensors").write_bytes(b"half a fi")


def cut_a_run(store: Path) -> None:
    interrupt_before_index(store)
    truncate(store / RUN_FILE)


def damage_a_run(store: Path) -> None:
    interrupt_before_index(store)
    flip_bit(store / RUN_FILE)


def damage_one_run_and_lose_another(store: Path) -> None:
    flip_bit(store / RUN_FILE)
    (store / "runs/sub-s1_task-SOCIAL_run-LR.safetensors").unlink()


def run_made_of_something_else(store: Path) -> None:
    interrupt_before_index(store)
    shutil.copy(store / "runs/sub-s1_task-SOCIAL_run-LR.safetensors", store / RUN_FILE)


@pytest.mark.parametrize(
    "interrupt",
    [
        interrupt_before_index,
        interrupt_early,
        cut_a_run,
        damage_a_run,
        damage_one_run_and_lose_another,
        run_made_of_something_else,
    ],
)
def test_resumed_store_is_the_same(
    copied: Path, store: Store, dataset: Dataset, tiny_profile: Profile, interrupt: Callable[[Path], None]
) -> None:
    interrupt(copied)
    resumed = prepare(dataset[0], tiny_profile, jobs=2)
    assert without_leftovers(contents(copied)) == contents(store.path)
    assert resumed.identity == store.identity


def test_killed_at_any_time_the_store_becomes_the_same(
    tmp_path: Path, store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    dataset[0].to_pickle(tmp_path / "manifest.pkl")
    (tmp_path / "profile.json").write_text(tiny_profile.model_dump_json())
    script = """
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path

        import nilearn.signal
        import pandas as pd
        import torch

        from deeplight_core.data import prepare
        from deeplight_core.system import workers
        from deeplight_core.config import Profile
        from killing import kill_until_done

        manifest = pd.read_pickle("manifest.pkl")
        profile = Profile.model_validate_json(Path("profile.json").read_text())
        workers.ProcessPoolExecutor = lambda jobs, *_: ThreadPoolExecutor(jobs)  # the writer is killed, too
        kill_until_done(lambda: prepare.prepare(manifest, profile, jobs=1), watched="runs/tiny/store/runs/sub-*")
    """
    run_script(script, tmp_path)
    folder = tmp_path / "runs/tiny/store"
    assert without_leftovers(contents(folder)) == contents(store.path)


def test_number_of_jobs_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    monkeypatch.chdir(tmp_path)
    two = prepare(dataset[0], tiny_profile, jobs=2)  # two processes; the fixture's store was made by one thread
    assert contents(two.path) == contents(store.path)


def test_second_prepare_does_nothing(copied: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    before = {p: p.stat().st_mtime_ns for p in [copied, *copied.rglob("*")]}
    prepare(dataset[0], tiny_profile)
    assert {p: p.stat().st_mtime_ns for p in [copied, *copied.rglob("*")]} == before


def test_store_of_other_settings_is_refused(copied: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    before = contents(copied)
    other = tiny_profile.preprocessing.model_copy(update={"fwhm_mm": 6.0})
    with pytest.raises(
        ValueError, match=r"other preprocessing: preprocessing.fwhm_mm 3\.0, now 6\.0\. .*delete its index.parquet"
    ):
        prepare(dataset[0], tiny_profile.model_copy(update={"preprocessing": other}))
    with pytest.raises(ValueError, match="other manifest"):
        prepare(dataset[0][2:], tiny_profile)
    events = tiny_profile.data.model_copy(update={"source": {"EMOTION": {"fear": ["fear"]}}})
    with pytest.raises(ValueError, match="other events"):
        prepare(dataset[0], tiny_profile.model_copy(update={"data": events}))
    assert contents(copied) == before


# ---- bad input: each spoils run s3 SOCIAL and gives the file that the error must name


def cut_image(manifest: pd.DataFrame, root: Path) -> str:
    truncate(root / IMAGE)
    return IMAGE


def cut_image_in_its_header(manifest: pd.DataFrame, root: Path) -> str:
    truncate(root / IMAGE, 0.0005)
    return IMAGE


def empty_image(manifest: pd.DataFrame, root: Path) -> str:
    truncate(root / IMAGE, 0)
    return IMAGE


def damaged_compression(manifest: pd.DataFrame, root: Path) -> str:
    data = (root / IMAGE).read_bytes()
    (root / IMAGE).write_bytes(data[:10] + b"\xff" * 100 + data[110:])
    return IMAGE


def damaged_header(manifest: pd.DataFrame, root: Path) -> str:
    data = bytearray(gzip.decompress((root / IMAGE).read_bytes()))
    data[70:72] = b"\x00\x10"  # no such data type
    (root / IMAGE).write_bytes(gzip.compress(data))
    return IMAGE


def damaged_image(manifest: pd.DataFrame, root: Path) -> str:
    manifest.loc[manifest["image"] == IMAGE, "sha256"] = hashlib.sha256((root / IMAGE).read_bytes()).hexdigest()
    flip_bit(root / IMAGE, 20_000)
    return IMAGE


def no_image(manifest: pd.DataFrame, root: Path) -> str:
    (root / IMAGE).unlink()
    return IMAGE


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], shift_mm: float = 0) -> None:
    image = nib.load(path)
    data, affine = change(image.get_fdata(dtype=np.float32)), image.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(data, affine), path)


def other_shape(manifest: pd.DataFrame, root: Path) -> str:
    rewrite(root / IMAGE, lambda bold: bold[:, :, :-1])
    return IMAGE


def other_affine(manifest: pd.DataFrame, root: Path) -> str:
    for name in (IMAGE, MASK):  # both alike, so that the mask fits the run
        rewrite(root / name, lambda data: data, shift_mm=1)
    return IMAGE


def three_dimensions(manifest: pd.DataFrame, root: Path) -> str:
    rewrite(root / IMAGE, lambda bold: bold[..., 0])
    return IMAGE


def nan_voxel(manifest: pd.DataFrame, root: Path) -> str:
    def put_nan(bold: np.ndarray) -> np.ndarray:
        bold[3, 4, 5, 6] = np.nan
        return bold

    rewrite(root / IMAGE, put_nan)
    return IMAGE


def other_grid_of_mask(manifest: pd.DataFrame, root: Path) -> str:
    rewrite(root / MASK, lambda mask: mask[:-1])
    return MASK


def other_affine_of_mask(manifest: pd.DataFrame, root: Path) -> str:
    rewrite(root / MASK, lambda mask: mask, shift_mm=1)
    return MASK


def empty_mask(manifest: pd.DataFrame, root: Path) -> str:
    rewrite(root / MASK, np.zeros_like)
    return MASK


def cut_mask(manifest: pd.DataFrame, root: Path) -> str:
    truncate(root / MASK)
    return MASK


def wrong_n_volumes(manifest: pd.DataFrame, root: Path) -> str:
    manifest.loc[manifest["image"] == IMAGE, "n_volumes"] = 45
    return IMAGE


def wrong_tr(manifest: pd.DataFrame, root: Path) -> str:
    manifest.loc[manifest["image"] == IMAGE, "tr_s"] = 0.72
    return IMAGE


def wrong_sha256(manifest: pd.DataFrame, root: Path) -> str:
    manifest.loc[manifest["image"] == IMAGE, "sha256"] = "0" * 64
    return IMAGE


def no_ev(manifest: pd.DataFrame, root: Path) -> str:
    (root / EVS / "rnd.txt").unlink()
    return "rnd.txt"


SPOILERS = [
    cut_image, cut_image_in_its_header, empty_image, damaged_compression, damaged_header, damaged_image, no_image,
    other_shape, other_affine, three_dimensions, nan_voxel, other_grid_of_mask, other_affine_of_mask, empty_mask,
    cut_mask, wrong_n_volumes, wrong_tr, wrong_sha256, no_ev,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS)
def test_bad_input_is_named_and_the_store_left_as_it_was(
    copied: Path, spoilt: Dataset, tiny_profile: Profile, spoil: Callable[[pd.DataFrame, Path], str]
) -> None:
    manifest, root = spoilt
    for name in ("index.parquet", "store.json", RUN_FILE):  # unfinished, the spoilt run still to come
        (copied / name).unlink()
    before = contents(copied)
    name = spoil(manifest, root)
    with pytest.raises(ValueError, match=name):
        prepare(manifest, with_root(tiny_profile, root), jobs=1)
    after = contents(copied)
    after.pop("store.json", None)  # the plan
    assert after == before


def test_several_problems_are_reported_together(project: Path, spoilt: Dataset, tiny_profile: Profile) -> None:
    manifest, root = spoilt
    other_shape(manifest, root)
    rewrite(root / manifest["mask"][0], np.zeros_like)
    with pytest.raises(ValueError, match=r"^2 problem\(s\)") as error:
        prepare(manifest, with_root(tiny_profile, root), jobs=1)
    assert IMAGE in str(error.value)
    assert manifest["mask"][0] in str(error.value)
    assert not tiny_profile.store.exists()


def test_no_volume_in_a_block_is_an_error(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    preprocessing = tiny_profile.preprocessing.model_copy(update={"skip_s": 60.0})
    message = r"no volume of any run lies in a block; .*preprocessing\.keep: all"
    with pytest.raises(ValueError, match=message):
        prepare(dataset[0], tiny_profile.model_copy(update={"preprocessing": preprocessing}), jobs=1)
    manifest, profile = resting(dataset, tiny_profile)
    with pytest.raises(ValueError, match=message):
        prepare(manifest[manifest["task"] == "rest"], profile, jobs=1)
    assert not (tiny_profile.store / "index.parquet").exists()


def test_no_voxel_in_enough_masks_is_an_error(project: Path, spoilt: Dataset, tiny_profile: Profile) -> None:
    manifest, root = spoilt
    corner, opposite = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    corner[0, 0, 0] = opposite[6, 7, 8] = 1
    affine = nib.load(root / manifest["image"][0]).affine
    nib.save(nib.Nifti1Image(corner, affine), root / "0.nii.gz")
    nib.save(nib.Nifti1Image(opposite, affine), root / "1.nii.gz")
    manifest = manifest.assign(mask=[f"{i % 2}.nii.gz" for i in range(12)])
    preprocessing = tiny_profile.preprocessing.model_copy(update={"mask_coverage": 1.0})
    with pytest.raises(ValueError, match=r"lower preprocessing\.mask_coverage"):
        prepare(manifest, with_root(tiny_profile, root).model_copy(update={"preprocessing": preprocessing}), jobs=1)


def test_keep_going_prepares_the_others_and_a_repaired_run_follows(
    spoilt: Dataset, store: Store, project: Path, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    good, times = (root / IMAGE).read_bytes(), (root / IMAGE).stat()
    nan_voxel(manifest, root)
    ev = root / "s1/MNINonLinear/Results/tfMRI_SOCIAL_LR/EVs/rnd.txt"
    ev.rename(root / "elsewhere.txt")
    profile = with_root(tiny_profile, root)
    with pytest.raises(ValueError, match=r"(?s)2 of 12 failed; the others are done:.*s1.*rnd.txt.*s3.*NaN"):
        prepare(manifest, profile, jobs=2, keep_going=True)
    with pytest.raises(ValueError, match="is not finished"):
        open_store(profile.store)
    assert len(list((profile.store / "runs").glob("sub-*.safetensors"))) == 10
    (root / IMAGE).write_bytes(good)
    os.utime(root / IMAGE, ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / "elsewhere.txt").rename(ev)
    prepare(manifest, profile, jobs=1, keep_going=True)
    made, expected = (
        {name: without_root(data) if name.startswith("runs/") and name.endswith(".json") else data
         for name, data in without_leftovers(contents(path)).items()}
        for path in (profile.store, store.path)
    )  # fmt: skip
    assert made == expected


def test_a_full_disk_is_named_and_nothing_half_written_is_left(
    project: Path, dataset: Dataset, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device; .*runs/sub-\w+\.safetensors was not written|No space"):
        prepare(dataset[0], tiny_profile, jobs=1)
    assert not any((tiny_profile.store / "runs").iterdir())


# ---- runs of other grids


def resampling(profile: Profile, to: str, **settings: object) -> Profile:
    other = profile.preprocessing.model_copy(update={"resample_to": to, **settings})
    return profile.model_copy(update={"preprocessing": other})


def turn(path: Path) -> None:
    """The same volumes, written from right to left."""
    image = nib.load(path)
    affine = image.affine @ np.diag([-1, 1, 1, 1])
    affine[:3, 3] = (image.affine @ [image.shape[0] - 1, 0, 0, 1])[:3]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], affine), path)


def test_a_run_of_another_orientation_comes_out_the_same_and_is_noted(
    spoilt: Dataset, store: Store, project: Path, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    turn(root / IMAGE)
    turn(root / MASK)
    profile = with_root(tiny_profile, root)
    with pytest.raises(ValueError, match=rf"(?s){IMAGE}: grid .* name one grid .* in preprocessing.resample_to"):
        prepare(manifest, profile, jobs=1)
    turned = prepare(manifest, resampling(profile, "first"), jobs=1)
    np.testing.assert_array_equal(turned.mask, store.mask)
    np.testing.assert_allclose(turned.read(RUN_FILE).float(), store.read(RUN_FILE).float(), atol=2e-3)
    noted = turned.runs.set_index("file")
    assert noted["resampled"].sum() == 1
    assert noted.loc[RUN_FILE, "resampled"]
    assert noted["orientation"].nunique() == 2
    assert verify(turned.path) == []


def test_resampling_is_nilearns(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    manifest, root = dataset
    affine = np.array([[-7.0, 0, 0, 20], [0, 8, 0, -28], [0, 0, 9, -25], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), affine), project / "grid.nii.gz")
    first = nib.load(root / manifest["image"][0])
    assert not np.allclose(first.affine, affine)
    made = prepare(manifest, resampling(tiny_profile, "grid.nii.gz"), jobs=1)
    assert made.mask.shape == (5, 6, 7)
    np.testing.assert_array_equal(made.affine, affine)
    assert made.runs["resampled"].all()
    row = manifest.iloc[0]
    settings = tiny_profile.preprocessing
    moved = resample_img(
        first,
        target_affine=affine,
        target_shape=(5, 6, 7),
        interpolation="continuous",
        copy_header=True,
        force_resample=True,
    )
    series = smooth_img(moved, settings.fwhm_mm).get_fdata().T[:, made.mask.T]
    clean_series = clean(
        series,
        detrend=True,
        filter="butterworth",
        high_pass=settings.high_pass_hz,
        t_r=TR_S,
        standardize="zscore_sample",
    )
    file = made.runs["file"][0]
    assert row["subject"] in file
    frames = made.index.loc[made.index["file"] == file, "frame"]
    inside = series.std(axis=0) > 1e-3 * np.abs(series.mean(axis=0))
    assert inside.mean() > 0.5
    got = made.read(file).float().numpy()
    np.testing.assert_allclose(got[:, inside], clean_series[frames][:, inside], rtol=2**-10, atol=1e-3)


def test_a_grid_that_nobody_knows_is_named(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"preprocessing.resample_to: hcp3mm is not hcp2mm, first or a readable image"):
        prepare(dataset[0], resampling(tiny_profile, "hcp3mm"), jobs=1)


def test_runs_of_another_space_get_the_grid_and_voxels_of_a_given_mask(
    store: Store, project: Path, dataset: Dataset, tiny_profile: Profile
) -> None:
    inside = store.mask.copy()
    inside[np.unravel_index(np.flatnonzero(inside)[::3], inside.shape)] = False
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), store.affine), project / "other.nii.gz")
    own = {"mask": Path("other.nii.gz"), "crop": False}
    profile = tiny_profile.model_copy(update={"preprocessing": tiny_profile.preprocessing.model_copy(update=own)})
    made = prepare(dataset[0], profile, jobs=1)
    np.testing.assert_array_equal(made.mask, inside)
    np.testing.assert_allclose(made.affine, store.affine, atol=1e-5)
    np.testing.assert_allclose(made.read(RUN_FILE).float(), store.read(RUN_FILE).float()[:, inside.T[store.mask.T]])
    missing = profile.preprocessing.model_copy(update={"mask": Path("none.nii.gz")})
    with pytest.raises(
        ValueError, match=r"preprocessing.mask: .*none.nii.gz.*prepare the store whose mask it is first"
    ):
        prepare(dataset[0], profile.model_copy(update={"preprocessing": missing, "name": "else"}), jobs=1)
    with pytest.raises(ValueError, match="mask and resample_to both name a grid"):
        tiny_profile.overridden({"preprocessing": {"mask": "other.nii.gz", "resample_to": "first"}})


def test_hcps_grid_is_that_of_the_simulation() -> None:
    shape, affine = simulate.grid(resolution_mm=2)
    grid = _target_grid(PreprocessingSettings(resample_to="hcp2mm"), Header((1, 1, 1, 1), np.eye(4), 0.0), False)
    assert grid[0] == shape
    np.testing.assert_array_equal(grid[1], affine)


# ---- what the quality control shows


def test_signal_to_noise_and_coverage_equal_those_computed_separately(
    store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = dataset
    ratios = []
    for row in manifest.itertuples():
        series = smooth_img(root / row.image, tiny_profile.preprocessing.fwhm_mm).get_fdata().T[:, store.mask.T]
        ratios.append(series.mean(axis=0) / series.std(axis=0, ddof=1))
    np.testing.assert_allclose(store.tsnr(), np.mean(ratios, axis=0), rtol=2**-10)
    np.testing.assert_allclose(store.runs["median_tsnr"], np.median(ratios, axis=1), rtol=1e-5)
    masks = np.stack([nib.load(root / mask).get_fdata() > 0 for mask in manifest["mask"]])
    np.testing.assert_allclose(store.coverage(), masks.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(store.runs["mask_overlap"], masks[:, store.mask].mean(axis=1))


# ---- many jobs, one store


def test_who_keeps_going_plans_without_the_runs_that_do_not_fit(
    spoilt: Dataset, project: Path, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    other_affine(manifest, root)
    profile = with_root(tiny_profile, root)
    with pytest.raises(ValueError, match=rf"(?s)1 of 12 failed; the others are done:.*{IMAGE}: grid"):
        prepare(manifest, profile, jobs=1, keep_going=True)
    runs = {p: p.stat().st_mtime_ns for p in (profile.store / "runs").iterdir()}
    assert len(runs) == 2 * 11
    made = prepare(manifest[manifest["image"] != IMAGE].reset_index(drop=True), profile, jobs=1)
    assert {p: p.stat().st_mtime_ns for p in (profile.store / "runs").iterdir()} == runs  # none is prepared anew
    assert verify(made.path) == []
    assert len(made.runs) == 11


def test_a_plan_is_read_back_as_it_was_made(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    made = plan(dataset[0], tiny_profile)
    times = {p: p.stat().st_mtime_ns for p in tiny_profile.store.iterdir()}
    again = plan(dataset[0], tiny_profile)
    assert made.identity == again.identity
    assert {p: p.stat().st_mtime_ns for p in tiny_profile.store.iterdir()} == times
    with pytest.raises(ValueError, match="no runs of subject s7"):
        prepare_subjects(dataset[0], tiny_profile, ["s1", "s7"])


def test_what_killed_processes_left_over_is_removed_when_it_is_old(
    copied: Path, dataset: Dataset, tiny_profile: Profile
) -> None:
    (copied / "index.parquet").unlink()
    old, fetched, young = (copied / f"runs/{name}" for name in ("partial_x_1_2_a", "fetched_b", "partial_x_1_2_c"))
    fetched.mkdir()
    for path in (old, young, fetched / "image.nii"):
        path.write_bytes(b"half a fi")
    for path in (old, fetched):
        os.utime(path, (0, 0))
    prepare(dataset[0], tiny_profile, jobs=1)
    assert [path.exists() for path in (old, fetched, young)] == [False, False, True]


# ---- sources that change, and images that are not aligned


def test_a_changed_source_is_noticed_and_its_run_made_anew(
    project: Path, spoilt: Dataset, tiny_profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, root = spoilt
    profile = with_root(tiny_profile, root)
    first = prepare(manifest, profile, jobs=1)
    evs = root / EVS
    times = {name: (evs / name).stat() for name in ("mental.txt", "rnd.txt")}
    texts = {name: (evs / name).read_text() for name in times}
    for name, other in (("mental.txt", "rnd.txt"), ("rnd.txt", "mental.txt")):
        (evs / name).write_text(texts[other])
        os.utime(evs / name, ns=(times[name].st_atime_ns, times[name].st_mtime_ns))  # of the same time
    assert [line.split(" of ")[0] for line in verify(first.path)] == [
        f"{EVS}/{name}" for name in ("mental.txt", "rnd.txt")
    ]
    made = prepare(manifest, profile, jobs=1)
    assert f"files have changed since the store was made; 1 run(s) made anew: {EVS}" in capsys.readouterr().out
    of_run = made.index["file"] == RUN_FILE
    before = first.index.set_index(["file", "frame"])["state"]
    after = made.index.set_index(["file", "frame"])["state"]
    assert (before[RUN_FILE] != after[RUN_FILE]).all()
    assert of_run.sum() == N_KEPT
    pd.testing.assert_series_equal(before.drop(RUN_FILE), after.drop(RUN_FILE))
    assert verify(made.path) == []


def test_a_changed_mask_changes_the_plan_and_lost_sources_do_not_matter(
    project: Path, spoilt: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    profile = with_root(tiny_profile, root)
    n_voxels = prepare(manifest, profile, jobs=1).info["n_voxels"]
    for path in root.rglob("brainmask_fs.2.nii.gz"):
        image = nib.load(path)
        smaller = np.asarray(image.dataobj).copy()
        smaller[3:] = 0
        nib.save(nib.Nifti1Image(smaller, image.affine), path)
    made = prepare(manifest, profile, jobs=1)
    assert made.info["n_voxels"] < n_voxels
    shutil.rmtree(root)
    assert prepare(manifest, profile, jobs=1).identity == made.identity
    assert verify(made.path) == []


def test_runs_of_several_heads_without_a_common_space_are_refused(
    project: Path, spoilt: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    image, moved = nib.load(root / IMAGE), np.zeros((4, 4))
    moved[0, 3] = 3
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine + moved), root / IMAGE)
    data = tiny_profile.data.model_copy(update={"root": str(root), "layout": "table"})
    native = tiny_profile.model_copy(update={"data": data})
    native = changed(native, root, resample_to="first", mask_coverage=0.1)
    manifest = manifest.assign(mask="")
    with pytest.raises(ValueError, match="images of 6 subjects differ in their grids and name no template space"):
        plan(manifest, native)
    assert plan(manifest, changed(native, root, assume_aligned=True)).mask.any()
    named = manifest.copy()
    for i, row in named.iterrows():
        named.loc[i, "image"] = row["image"].replace(".nii", f"_space-{'A' if row['subject'] == 's3' else 'B+1'}.nii")
        shutil.copy(root / row["image"], root / named.loc[i, "image"])
    with pytest.raises(ValueError, match=r"images of 6 subjects are in several spaces, A, B\+1: brains are not"):
        plan(named, changed(native, root, project / "two"))
    one = manifest[manifest["subject"] == "s3"]
    assert plan(one, changed(native, root, project / "one")).mask.any()


def test_first_volumes_left_out_are_as_if_they_were_not_there(
    project: Path, spoilt: Dataset, dataset: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    for row in manifest.itertuples():
        image = nib.load(root / row.image)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[..., 3:], AFFINE), root / row.image)
        for ev in (root / row.events).glob("*.txt"):
            lines = [line.split("\t") for line in ev.read_text().splitlines()]
            ev.write_text("".join(f"{float(onset) - 3 * TR_S}\t{duration}\t1\n" for onset, duration, _ in lines))
    settings = changed(tiny_profile, dataset[1], project / "whole", drop_volumes=3, skip_s=0)
    whole = prepare(dataset[0], settings, jobs=1)
    shorter = manifest.assign(n_volumes=manifest["n_volumes"] - 3)
    cut = prepare(shorter, changed(tiny_profile, root, project / "cut", skip_s=0), jobs=1)
    assert (whole.index["frame"] - 3).tolist() == cut.index["frame"].tolist()
    assert whole.index["state"].tolist() == cut.index["state"].tolist()
    assert len(whole.index) < len(
        prepare(dataset[0], changed(settings, dataset[1], project / "all", drop_volumes=0), jobs=1).index
    )
    one, other = (store.read(RUN_FILE).float().numpy() for store in (whole, cut))
    np.testing.assert_allclose(one, other, atol=4e-3)  # rounded to float16
