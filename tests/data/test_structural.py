"""Structural images through the store: what they become, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from alone import FULL_DISK, run_alone
from conftest import (
    AFFINE,
    SHAPE,
    Dataset,
    changed,
    contents,
    data_of,
    unfinished,
)
from scipy.ndimage import zoom

from deeplight_core.config import Profile
from deeplight_core.data.manifest import COLUMNS
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import open_store, shared_images
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes

SEX = {"h1": "F", "h2": "M", "h3": "F", "h4": "M", "h5": "F", "h6": "M"}


@pytest.fixture
def heads(project: Path) -> Dataset:
    """Manifest and root: six heads, the last two to validate, each with its own mask."""
    root, random, rows = project / "heads", np.random.default_rng(1), []
    root.mkdir()
    for n, (subject, sex) in enumerate(SEX.items()):
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:6, 2:7, 1:8] = random.random((5, 5, 7)) < 0.8
        nib.save(nib.Nifti1Image(random.normal(900, 50, SHAPE).astype(np.float32), AFFINE), root / f"{subject}.nii.gz")
        nib.save(nib.Nifti1Image(mask, AFFINE), root / f"{subject}_mask.nii.gz")
        rows.append(
            ["mine", subject, "", "T1w", "1", f"{subject}.nii.gz", "", f"{subject}_mask.nii.gz", np.nan, 1,
             "train" if n < 4 else "validation", "", "", sex]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS, "sex"]), root


def of_heads(root: Path, storage: str = "float16", **structural: object) -> Profile:
    states = {"T1w": {"female": ["F"], "male": ["M"]}}
    return Profile.model_validate(
        {
            "name": "heads", "data": {"root": root, "label": "sex", "source": states, "target": {}},
            "preprocessing": {"storage": storage, "structural": structural},
        }
    )  # fmt: skip


def head(root: Path, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """One image and its mask (bool)."""
    image, mask = (nib.load(root / f"{subject}{name}.nii.gz") for name in ("", "_mask"))
    return image.get_fdata(dtype=np.float32), mask.get_fdata() > 0


def save_head(root: Path, subject: str, volume: np.ndarray, mask: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(volume.astype(np.float32), AFFINE), root / f"{subject}.nii.gz")
    if mask is not None:
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), root / f"{subject}_mask.nii.gz")


def scaled_by_hand(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = np.where(mask, volume, 0)
    return (inside - inside.min()) / (inside.max() - inside.min())


def test_structural_images_and_runs_do_not_mix(heads: Dataset, dataset: Dataset, tiny_profile: Profile) -> None:
    for parts in ([heads[0].drop(columns="sex"), dataset[0]], [dataset[0], heads[0].drop(columns="sex")]):
        both = pd.concat(parts, ignore_index=True)
        with pytest.raises(ValueError, match=r"structural images and runs of fMRI are in one manifest; name the tasks"):
            prepare(both, tiny_profile, jobs=1)
    assert not tiny_profile.store.exists()


def nan_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    volume[tuple(np.argwhere(mask)[5])] = np.nan
    save_head(root, "h3", volume)


def constant_everywhere(root: Path) -> None:
    save_head(root, "h3", np.full(SHAPE, 7), np.ones(SHAPE))


def constant_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, 7, volume))


def zero_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, 0, volume))


def two_volumes(root: Path) -> None:
    save_head(root, "h3", np.stack([head(root, "h3")[0]] * 2, axis=-1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_in_the_mask, "holds NaN or infinite values in its mask; repair or leave out the image"),
        (constant_everywhere, "holds only the value 7; leave out the image"),
        (constant_in_the_mask, "holds only the value 7; leave out the image"),
        (zero_in_the_mask, "holds only the value 0; leave out the image"),
        (two_volumes, r"shape \(7, 8, 9, 2\), but the manifest says 1 volumes"),
    ],
)
def test_a_structural_image_that_is_of_no_use_is_named(
    heads: Dataset, spoil: Callable[[Path], None], message: str
) -> None:
    manifest, root = heads
    spoil(root)
    profile = of_heads(root)
    with pytest.raises(ValueError, match=f"h3.nii.gz:? {message}"):
        prepare(manifest, profile, jobs=1)
    with pytest.raises(ValueError, match=r"is not finished|does not exist"):
        open_store(profile.store)


def test_nan_outside_the_mask_does_no_harm(heads: Dataset) -> None:
    manifest, root = heads
    profile = of_heads(root)
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, volume, np.nan))
    unfinished(profile.store)
    assert data_of(contents(prepare(manifest, profile, jobs=1).path)) == expected


@pytest.mark.parametrize("name", ["file", "frame", "onset_s", "state", "block", "unit", "row", "label"])
def test_a_label_column_whose_name_the_store_needs_is_refused(heads: Dataset, name: str) -> None:
    manifest, root = heads
    with pytest.raises(ValueError, match=f"column {name} has a name that the store needs; rename it"):
        prepare(manifest.assign(**{name: "x"}), of_heads(root), jobs=1)


def test_other_label_columns_come_with_the_index(heads: Dataset) -> None:
    manifest, root = heads
    made = prepare(manifest.assign(**{"n_kept": "7", "scale": "x", "Größe": "1,80 m"}), of_heads(root), jobs=1)
    assert made.index[["n_kept", "scale", "Größe"]].drop_duplicates().to_numpy().tolist() == [["7", "x", "1,80 m"]]
    assert made.index["sex"].tolist() == list(SEX.values())
    assert set(made.index["block"]) == {0}
    assert made.index["state"].map({"female": "F", "male": "M"}).tolist() == list(SEX.values())


def test_images_without_a_state_are_left_out_or_kept(heads: Dataset) -> None:
    manifest, root = heads
    manifest.loc[1, "sex"] = ""
    made = prepare(manifest, of_heads(root), jobs=1)
    assert made.index["subject"].tolist() == ["h1", "h3", "h4", "h5", "h6"]
    assert made.runs["images_without_state"].tolist() == [0, 1, 0, 0, 0, 0]
    profile = changed(of_heads(root), root, store=root.parent / "all", keep="all")
    every = prepare(manifest, profile, jobs=1)
    assert every.index["state"].tolist() == ["female", "", "female", "male", "female", "male"]
    assert every.index["block"].tolist() == [0] * 6
    assert every.runs["images_without_state"].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_z_scores_are_numpys_over_the_training_images(heads: Dataset, storage: str) -> None:
    manifest, root = heads
    brightest = (3, 4, 4)
    for subject in SEX:  # the same voxel is the brightest in all of them: it is always 1 and has no SD
        volume, mask = head(root, subject)
        mask[brightest], volume[brightest] = True, 2000
        save_head(root, subject, volume, mask)
    made = prepare(manifest, of_heads(root, storage, z_score=True), jobs=1)
    volumes = {file: made.read(file).double().numpy()[0] * made.scales[file] for file in made.runs["file"]}
    trained_on = np.stack(
        [volumes[f] for f, split in zip(made.runs["file"], made.runs["split"], strict=True) if split == "train"]
    )
    assert len(trained_on) == 4
    mean, sd = (values.numpy() for values in made.statistics())
    np.testing.assert_allclose(mean, trained_on.mean(axis=0), rtol=1e-6)  # float32
    np.testing.assert_allclose(sd, trained_on.std(axis=0, ddof=1), rtol=1e-6, atol=1e-9)
    assert (sd == 0).sum() == 1
    examples = of_states(made.index, [("T1w", "female"), ("T1w", "male")], "validation")
    expected = np.stack([volumes[file] for file in examples.rows["file"]])
    expected = np.divide(expected - mean, sd, out=np.zeros_like(expected), where=sd > 0)
    for in_memory in (True, False):
        z = Volumes(made, examples, in_memory=in_memory).masked(np.arange(len(examples))).numpy()
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)


def test_a_disk_that_is_too_full_for_the_statistics_is_named(heads: Dataset, own_mounts: tuple[str, ...]) -> None:
    manifest, root = heads
    profile, sizes = of_heads(root, z_score=True), [f"size={4 * n}k" for n in range(1, 60)]
    reference = contents(prepare(manifest, profile, jobs=1).path)
    shutil.rmtree(profile.store)
    run_alone(FULL_DISK, root.parent, manifest, profile, reference, sizes, namespace=own_mounts)


def test_zooming_is_scipys(heads: Dataset) -> None:
    manifest, root = heads
    random, shape = np.random.default_rng(2), (5, 6, 7)
    shapes = dict(zip(SEX, [(7, 8, 9), (8, 9, 10), (6, 7, 11), (10, 6, 7), (5, 6, 7), (9, 11, 8)], strict=True))
    votes, zoomed = np.zeros(shape), {}
    for subject, its_shape in shapes.items():
        volume, mask = random.uniform(1, 2, its_shape), random.random(its_shape) < 0.8
        save_head(root, subject, volume, mask)
        factors = [n / m for n, m in zip(shape, its_shape, strict=True)]
        volume = scaled_by_hand(*head(root, subject))
        zoomed[subject] = zoom(volume, factors, order=1, mode="nearest")
        votes += zoom(mask.astype(np.float32), factors, order=0, mode="nearest")
    made = prepare(manifest, of_heads(root, zoom_to=shape), jobs=1)
    np.testing.assert_array_equal(made.mask, votes >= 3)
    for subject, expected in zoomed.items():
        stored = made.read(f"runs/sub-{subject}_task-T1w_run-1.safetensors").float().numpy()[0]
        np.testing.assert_allclose(stored, expected.T[made.mask.T], rtol=2**-11, atol=1e-6)  # float16
    far = np.array([[0, 0, 0, 1], [4, 5, 6, 1]]).T, np.array([[0, 0, 0, 1], [6, 7, 8, 1]]).T
    np.testing.assert_allclose(made.affine @ far[0], AFFINE @ far[1], atol=1e-5)  # corners stay where they were


def test_images_with_a_fourth_axis_of_one_are_zoomed_too(heads: Dataset) -> None:
    manifest, root = heads
    profile = of_heads(root, zoom_to=(5, 6, 7))
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    shutil.rmtree(profile.store)
    for subject in SEX:
        save_head(root, subject, head(root, subject)[0][..., None])
    made = prepare(manifest, profile, jobs=1)
    assert made.mask.shape == (5, 6, 7)
    assert data_of(contents(made.path)) == expected


def test_zoomed_images_keep_fractions(heads: Dataset) -> None:
    """Whole numbers (uint8) become fractions, which no step rounds."""
    manifest, root = heads
    for subject in SEX:
        volume = head(root, subject)[0]
        nib.save(nib.Nifti1Image((volume / 5).astype(np.uint8), AFFINE), root / f"{subject}.nii.gz")
    made = prepare(manifest, of_heads(root, zoom_to=(5, 6, 7)), jobs=1)
    for file in made.runs["file"]:
        values = made.read(file)[0].numpy()
        assert ((values > 0.01) & (values < 0.99)).mean() > 0.5
        assert len(np.unique(values)) > 40


def test_a_planted_fault_rounds_every_voxel(heads: Dataset) -> None:
    manifest, root = heads
    made = prepare(manifest, of_heads(root, zoom_to=(5, 6, 7), rounded=True), jobs=1)
    right = prepare(
        manifest, of_heads(root, zoom_to=(5, 6, 7)).overridden({"data": {"store": str(root / "s")}}), jobs=1
    )
    for file in made.runs["file"]:
        assert np.array_equal(made.read(file)[0].numpy(), right.read(file)[0].float().numpy().round())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["mirrored", "axes swapped"])
def test_zooming_does_not_mirror_an_image_of_another_orientation(
    heads: Dataset, order: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, root = heads
    profile = of_heads(root, zoom_to=(5, 6, 7))
    expected = {f: v for f, v in contents(prepare(manifest, profile, jobs=1).path).items() if f.endswith("tensors")}
    shutil.rmtree(profile.store)
    for name in ("h3", "h3_mask"):
        image = nib.load(root / f"{name}.nii.gz")
        turned = image.as_reoriented(np.array([[place, -1] for place in order]))
        assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(AFFINE)
        nib.save(turned, root / f"{name}.nii.gz")
    made = contents(prepare(manifest, profile, jobs=1).path)
    assert {f: v for f, v in made.items() if f.endswith("tensors")} == expected
    assert "1 images of orientation " in capsys.readouterr().out


def test_an_image_in_colours_is_named(heads: Dataset) -> None:
    manifest, root = heads
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), root / "h3.nii.gz")
    with pytest.raises(ValueError, match=r"h3\.nii\.gz .*not plain numbers \(colours, perhaps\); make it grey"):
        prepare(manifest, of_heads(root), jobs=1)


def test_a_mask_that_does_not_fit_is_named(heads: Dataset) -> None:
    manifest, root = heads
    nib.save(nib.Nifti1Image(np.ones((7, 8, 8), np.uint8), AFFINE), root / "h2_mask.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE + np.eye(4)), root / "h4_mask.nii.gz")
    for own in ({}, {"zoom_to": (5, 6, 7)}):
        with pytest.raises(ValueError, match=r"^2 problem") as caught:
            prepare(manifest, of_heads(root, **own), jobs=1)
        for line, why in zip(str(caught.value).splitlines()[1:], ("has grid (7, 8, 8)", "affines"), strict=True):
            assert why in line
            assert "name its own mask in the manifest" in line


def test_one_image_of_two_subjects_is_refused(heads: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the files are called and however they are compressed."""
    manifest, root = heads
    volume, mask = head(root, "h1")
    save_head(root, "h5", volume, mask)
    image = nib.load(root / "h1.nii.gz")
    (root / "h5.nii.gz").unlink()
    nib.save(image, root / "h5.nii")
    manifest.loc[4, "image"] = "h5.nii"
    expected = r"1 image\(s\) belong to two subjects.*\n  h5\.nii of h5 \(validation\) is the image of h1 \(train\)"
    with pytest.raises(ValueError, match=expected):
        prepare(manifest, of_heads(root), jobs=1)
    with pytest.raises(ValueError, match="is not finished"):
        open_store(of_heads(root).store)
    prepare(manifest.assign(family=["f", "", "", "", "f", ""]), of_heads(root), jobs=1)
    assert "warning: sub-h5_task-T1w_run-1 holds the same as an earlier image" in capsys.readouterr().out


def test_labels_that_are_all_missing_are_told(heads: Dataset) -> None:
    manifest, root = heads
    with pytest.raises(ValueError, match=r"column sex holds n/a \(6\), the states are made of F, M"):
        prepare(manifest.assign(sex="n/a"), of_heads(root), jobs=1)


def test_images_among_runs_are_named(heads: Dataset) -> None:
    manifest, root = heads
    manifest.loc[2, "tr_s"] = 2.0
    with pytest.raises(ValueError, match=r"correct the 1 runs \(with a repetition time\): h3\.nii\.gz"):
        prepare(manifest, of_heads(root), jobs=1)


def test_images_that_two_cohorts_share_are_found(heads: Dataset) -> None:
    """The second cohort has two people of the first under other names, on another grid, in other files."""
    manifest, root = heads
    first = prepare(manifest, of_heads(root), jobs=1)
    for subject in ("h2", "h6"):
        nib.save(nib.load(root / f"{subject}.nii.gz"), root / f"{subject}.nii")
    again = manifest.assign(image=manifest["image"].replace({"h2.nii.gz": "h2.nii", "h6.nii.gz": "h6.nii"}))
    again["subject"] = "x" + again["subject"]
    for subject in ("h1", "h3", "h4", "h5"):
        save_head(root, subject, head(root, subject)[0] + 1)
    second = prepare(again, changed(of_heads(root, zoom_to=(5, 6, 7)), root, root.parent / "second"), jobs=1)
    shared = shared_images(first, second)
    assert shared[["subject", "other_subject"]].to_numpy().tolist() == [["h2", "xh2"], ["h6", "xh6"]]
    assert shared["other_run"].tolist() == ["sub-xh2_task-T1w_run-1", "sub-xh6_task-T1w_run-1"]
