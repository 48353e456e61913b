import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    N_KEPT,
    RUN_FILE,
    SHAPE,
    Dataset,
    changed,
    contents,
    edit_info,
    flip_bit,
    truncate,
    unfinished,
)

from deeplight_core.config import Profile
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import Store, open_store, verify
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes


def test_voxels_are_in_the_order_of_z_y_x(store: Store) -> None:
    x, y, z = SHAPE
    order = [(i, j, k) for k in range(z) for j in range(y) for i in range(x) if store.mask[i, j, k]]
    values = np.arange(1.0, len(order) + 1)
    image = store.unmask(values)
    data = image.get_fdata()
    assert [data[voxel] for voxel in order] == values.tolist()
    assert (data[~store.mask] == 0).all()
    np.testing.assert_array_equal(image.affine, store.affine)
    np.testing.assert_array_equal(data.T[store.mask.T], values)


@pytest.mark.parametrize("crop", [False, True])
def test_shape_that_the_model_sees(store: Store, crop: bool) -> None:
    store = replace(store, info={**store.info, "preprocessing": {**store.info["preprocessing"], "crop": crop}})
    assert store.shape == ((5, 5, 7) if crop else SHAPE)
    assert store.mask[store.box].sum() == store.mask.sum()


def cropped(store: Store) -> Store:
    return replace(store, info={**store.info, "preprocessing": {**store.info["preprocessing"], "crop": True}})


@pytest.mark.parametrize("axis", range(3))
def test_boxes_of_one_size_at_other_places_have_other_affines(store: Store, axis: int) -> None:
    one = cropped(store)
    other = replace(one, mask=np.roll(one.mask, 1, axis))
    assert one.shape == other.shape == (5, 5, 7)
    np.testing.assert_array_equal(one.affine, other.affine)
    for its in (one, other):
        whole = nib.Nifti1Image(its.mask.astype(np.uint8), its.affine)
        np.testing.assert_allclose(its.box_affine, whole.slicer[its.box].affine)
    moved_mm = other.box_affine[:3, 3] - one.box_affine[:3, 3]
    np.testing.assert_allclose(moved_mm, store.affine[:3, axis])


def test_the_box_of_a_store_that_is_not_cropped_is_its_grid(store: Store) -> None:
    np.testing.assert_array_equal(store.box_affine, store.affine)


def test_a_store_says_where_its_axes_point_to_and_what_its_values_are(store: Store) -> None:
    assert store.orientation == "LAS"
    assert replace(store, affine=store.affine[:, [1, 0, 2, 3]]).orientation == "ALS"
    assert not store.is_structural
    assert store.normalisation == "z-scores of each voxel over its run"
    images = replace(store, info={**store.info, "tr_s": None})
    assert images.is_structural
    assert images.normalisation == "scaled to [0, 1] in each image"
    settings = {**store.info["preprocessing"], "structural": {"z_score": True}}
    z_scored = replace(images, info={**images.info, "preprocessing": settings})
    assert z_scored.normalisation == "z-scores of each voxel over the training images"
    runs = replace(store, info={**store.info, "preprocessing": settings})
    assert runs.normalisation == store.normalisation


def test_a_store_says_which_splits_it_has(store: Store) -> None:
    assert store.splits == ["train", "validation"]
    subjects = store.index["subject"]
    for third, expected in (("s5", ["train", "validation", "test"]), (("s5", "s6"), ["train", "test"])):
        split = store.index["split"].mask(subjects.isin([*third] if isinstance(third, tuple) else [third]), "test")
        assert replace(store, index=store.index.assign(split=split)).splits == expected


# ---- damaged stores


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda path: flip_bit(path, 20), Path.unlink])
def test_damaged_run_is_found_and_named(copied: Path, damage: Callable[[Path], None], store: Store) -> None:
    damage(copied / RUN_FILE)
    with pytest.raises(ValueError, match=RUN_FILE):
        open_store(copied).read(RUN_FILE)
    other = "runs/sub-s1_task-SOCIAL_run-LR.safetensors"
    assert (open_store(copied).read(other) == store.read(other)).all()


def test_verify_finds_nothing_wrong_with_a_store(store: Store) -> None:
    assert verify(store.path) == []


def test_verify_names_everything_that_is_wrong(copied: Path, store: Store) -> None:
    flip_bit(copied / RUN_FILE)
    (copied / "runs/sub-s1_task-SOCIAL_run-LR.safetensors").unlink()
    lost = store.index["file"] == "runs/sub-s2_task-SOCIAL_run-LR.safetensors"
    store.index[~(lost & (store.index["row"] == 0))].to_parquet(copied / "index.parquet")
    problems = verify(copied)
    for expected in (
        rf"{RUN_FILE} is damaged", "sub-s1_task-SOCIAL_run-LR.safetensors is gone",
        rf"sub-s2_task-SOCIAL_run-LR.safetensors holds \({N_KEPT}, .* the index says \({N_KEPT - 1},",
    ):  # fmt: skip
        assert sum(bool(re.search(expected, p)) for p in problems) == 1, expected
    assert len(problems) == 3


@pytest.mark.parametrize("name", ["store.json", "mask.nii.gz", "runs.parquet", "index.parquet"])
def test_damaged_index_is_an_error(copied: Path, name: str) -> None:
    truncate(copied / name)
    with pytest.raises(ValueError, match=f"store {copied} is damaged"):
        open_store(copied)


def test_open_store_says_what_is_missing(copied: Path) -> None:
    (copied / "index.parquet").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        open_store(copied)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_store(copied / "nowhere")


def test_a_store_of_an_earlier_format_is_refused_and_made_anew(
    project: Path, store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("store", "plan", "prepare"):
            patch.setattr(f"deeplight_core.data.{module}.FORMAT", 1)
        old = prepare(dataset[0], tiny_profile, jobs=1).path
    edit_info(old, lambda info: info.pop("format"))  # which the first format did not name
    before, times = contents(old), {path: path.stat().st_mtime_ns for path in old.glob("runs/*")}
    for refused in (open_store, verify):
        with pytest.raises(ValueError, match=r"earlier version \(format 1, not 2\); `deeplight prepare` makes it anew"):
            refused(old)
    assert contents(old) == before
    prepare(dataset[0], tiny_profile, jobs=1)
    assert contents(old) == contents(store.path)
    assert all(path.stat().st_mtime_ns != time for path, time in times.items())


def test_a_store_of_a_later_format_is_left_alone(copied: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    edit_info(copied, lambda info: info.update(format=3))
    edit_info(copied, lambda info: info.pop("shape"))  # whatever else may have changed
    before = contents(copied)
    for refused in (open_store, lambda path: prepare(dataset[0], tiny_profile, jobs=1)):
        with pytest.raises(ValueError, match=r"was made by a later version .*\(format 3, this one knows 2\); update"):
            refused(copied)
        (copied / "runs.parquet").unlink(missing_ok=True)
        before.pop("runs.parquet", None)
        assert contents(copied) == before


# ---- settings that other versions have


class Later(PreprocessingSettings):
    """The settings of a version that has one more."""

    denoise: int = 0


def forget_some_settings(info: dict[str, Any]) -> None:
    """As if the store's version did not have them; they have their defaults."""
    del info["preprocessing"]["keep"], info["preprocessing"]["structural"]["z_score"]


def test_settings_that_came_later_with_their_defaults_make_no_store_other(
    copied: Path, store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    edit_info(copied, forget_some_settings)
    opened = open_store(copied)
    assert (opened.info, opened.identity) == (store.info, store.identity)
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    prepare(dataset[0], tiny_profile, jobs=1)
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*")} == before
    unfinished(copied)
    prepare(dataset[0], tiny_profile, jobs=1)
    assert {p: before[p] for p in before if "parquet" not in p.name} == {
        p: p.stat().st_mtime_ns for p in before if "parquet" not in p.name
    }
    assert open_store(copied).identity == store.identity


def test_a_later_version_finds_the_store_and_its_runs(
    copied: Path, store: Store, dataset: Dataset, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight_core.data.store.PreprocessingSettings", Later)
    later = tiny_profile.model_copy(update={"preprocessing": Later()})
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    assert prepare(dataset[0], later, jobs=1).identity == store.identity
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*")} == before
    unfinished(copied)
    prepare(dataset[0], later, jobs=1)
    assert all(p.stat().st_mtime_ns == before[p] for p in copied.glob("runs/*"))
    with pytest.raises(ValueError, match=r"other preprocessing: preprocessing.denoise 0, now 1\. "):
        prepare(dataset[0], tiny_profile.model_copy(update={"preprocessing": Later(denoise=1)}), jobs=1)


@pytest.mark.parametrize("finished", [True, False])
def test_settings_that_only_a_later_version_knows_are_named(
    copied: Path, dataset: Dataset, tiny_profile: Profile, finished: bool
) -> None:
    edit_info(copied, lambda info: info["preprocessing"].update(denoise=0, structural={"skull": True}))
    if not finished:
        unfinished(copied)
    before = contents(copied)
    for refused in [lambda: prepare(dataset[0], tiny_profile, jobs=1), *([lambda: open_store(copied)] * finished)]:
        with pytest.raises(
            ValueError, match=rf"{copied} was made by a later version, .*structural.skull, denoise; update"
        ):
            refused()
    assert contents(copied) == before


def test_recorded_settings_that_cannot_be_are_named(copied: Path) -> None:
    edit_info(copied, lambda info: info["preprocessing"].update(fwhm_mm=-3))
    with pytest.raises(
        ValueError, match=rf"store {copied} is damaged, its settings cannot be: fwhm_mm: .*greater than 0, got -3"
    ):
        open_store(copied)


# ---- int8


def test_int8_rounds_to_the_step_that_it_says(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    made = prepare(dataset[0], changed(tiny_profile, storage="int8"), jobs=1)
    for run in made.runs.itertuples():
        exact, stored = store.read(run.file).float().numpy(), made.read(run.file).numpy()
        assert stored.dtype == np.int8
        assert run.scale == pytest.approx(np.abs(exact).max() / 127)
        error = stored * np.float64(run.scale) - exact
        assert np.abs(error).max() <= run.scale / 2 * (1 + 1e-5)
        assert run.rounding_largest == pytest.approx(np.abs(error).max(), rel=1e-4)
        assert run.rounding_rms == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    size = {s.path: sum((s.path / file).stat().st_size for file in s.runs["file"]) for s in (made, store)}
    assert size[made.path] < 0.6 * size[store.path]
    assert verify(made.path) == []


def test_int8_volumes_are_the_same_from_memory_and_disk(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    made = prepare(dataset[0], changed(tiny_profile, storage="int8"), jobs=1)
    shuffled = made.index.sample(frac=1, random_state=0)
    examples = of_states(shuffled, [("SOCIAL", "interaction"), ("EMOTION", "fear")], "train")
    rows = examples.rows
    of_rows = [made.read(row.file)[row.row].numpy() * np.float32(made.scales[row.file]) for row in rows.itertuples()]
    in_memory, streamed = (Volumes(made, examples, in_memory=which) for which in (True, False))
    numbers = np.random.default_rng(0).permutation(len(rows))
    for volumes in (in_memory, streamed):
        np.testing.assert_array_equal(volumes.masked(numbers).numpy(), np.stack(of_rows)[numbers])
    order = np.array_split(numbers, 7)
    for (_, one), (_, other) in zip(in_memory.batches(iter(order)), streamed.batches(iter(order)), strict=True):
        assert (one["volumes"] == other["volumes"]).all()
        assert one["volumes"].abs().max() > 1
