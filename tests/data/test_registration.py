"""Structural images in MNI152: registration, the grid over it, regional means; and which images are refused there."""

import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import Dataset, changed, contents, unfinished, use_threads
from nibabel.affines import apply_affine
from nibabel.eulerangles import euler2mat
from nilearn.datasets import (
    fetch_coords_seitzman_2018,
    load_mni152_brain_mask,
    load_mni152_gm_template,
    load_mni152_wm_template,
)

from deeplight_core.config import Profile
from deeplight_core.data import structural
from deeplight_core.data.manifest import COLUMNS
from deeplight_core.data.prepare import prepare
from deeplight_core.data.simulate import grid

needs_dipy = pytest.mark.skipif(find_spec("dipy") is None, reason="dipy is not installed (extra structural)")
MOVED = np.eye(4)  # a head that is smaller than the template's, turned and aside
MOVED[:3, :3] = euler2mat(0.05, -0.04, 0.12) @ np.diag([0.94, 0.9, 0.97])
MOVED[:3, 3] = [12, -9, 15]


@pytest.fixture(scope="module")
def template() -> tuple[np.ndarray, np.ndarray]:
    """MNI152's brain (X, Y, Z) with voxels of 4 mm, and its affine."""
    volume, affine = structural._template(4.0)
    return np.float32(volume), affine


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration with voxels of 8 mm only, and preparing in this process."""
    monkeypatch.setattr(structural, "_STEPS", tuple((8.0, kind, 40) for _, kind, _ in structural._STEPS[:2]))
    use_threads(monkeypatch)


@pytest.fixture
def brains(project: Path, template: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """Manifest and root: two brains in spaces of their own, one to validate."""
    root, rows = project / "brains", []
    root.mkdir()
    random = np.random.default_rng(4)
    for n, subject in enumerate(("a", "b")):
        volume = template[0] * random.normal(1, 0.02, template[0].shape) * 200
        moved = MOVED.copy()
        moved[0, 3] += 4 * n
        nib.save(nib.Nifti1Image(volume.astype(np.uint8), moved @ template[1]), root / f"{subject}.nii.gz")
        rows.append(["mine", subject, "", "T1w", "1", f"{subject}.nii.gz", "", "", np.nan, 1,
                     "train" if n < 1 else "validation", "", "", "F" if n % 2 else "M"])  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS, "sex"]), root


def of_brains(root: Path, resample_to: str | None = None, **own: object) -> Profile:
    data = {"root": root, "label": "sex", "source": {"T1w": {"female": ["F"], "male": ["M"]}}, "target": {}}
    preprocessing = {"structural": own, "resample_to": resample_to}
    return Profile.model_validate({"name": "brains", "data": data, "preprocessing": preprocessing})


@needs_dipy
def test_a_known_affine_is_found(quick: None, template: tuple[np.ndarray, np.ndarray]) -> None:
    volume, affine = template
    found = structural.register(volume, MOVED @ affine)
    places = apply_affine(affine, np.argwhere(volume > 0))
    error_mm = np.linalg.norm(apply_affine(found @ MOVED, places) - places, axis=1)
    assert error_mm.mean() < 1
    assert np.linalg.norm(apply_affine(MOVED, places) - places, axis=1).mean() > 15  # where they began


@needs_dipy
def test_registered_images_lie_on_the_template(
    quick: None, brains: Dataset, template: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, root = brains
    made = prepare(manifest, of_brains(root, registration="affine", resolution_mm=6, regions="grey"), jobs=1)
    shape, affine = grid(6)
    assert made.mask.shape == shape
    np.testing.assert_allclose(made.affine, affine)
    np.testing.assert_array_equal(made.mask, structural.template_mask((shape, affine)))
    smooth = structural.smoothed_for(template[0], template[1], 6)
    expected = structural.resample(smooth, template[1], (shape, affine), "linear").T[made.mask.T]
    for file in made.runs["file"]:
        assert np.corrcoef(made.read(file)[0].float().numpy(), expected)[0, 1] > 0.85  # within 3 mm
    assert (made.runs["template_fit"] > 0.8).all()
    assert made.runs["doubt"].tolist() == ["", ""]
    said = capsys.readouterr().out
    assert "2 images were registered to MNI152 (affine); their correlation with its brain is 0." in said
    assert "grey matter (by intensity, and where the template has it) over 300 regions and the brain" in said
    assert made.coverage()[~made.mask].max() == 0
    assert np.median(made.coverage()[made.mask]) == 1
    regional = made.regional()
    assert regional.index.tolist() == made.runs["file"].tolist()
    assert regional.shape == (2, 301)
    unfinished(made.path)
    before = contents(made.path / "runs")
    prepare(manifest, of_brains(root, registration="affine", resolution_mm=6, regions="grey"), jobs=1)
    assert contents(made.path / "runs") == before  # nothing is registered twice


def test_without_dipy_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, template: tuple[np.ndarray, np.ndarray]
) -> None:
    monkeypatch.setitem(sys.modules, "dipy.align", None)
    with pytest.raises(ValueError, match=r"pip install 'deeplight-core\[structural\]'"):
        structural.register(*template)


@pytest.mark.parametrize(
    ("own", "resample_to", "message"),
    [
        ({"registration": "affine"}, None, "registered images need a grid in MNI152"),
        ({"registration": "affine"}, "first", "registered images need a grid in MNI152"),
        ({"registration": "affine", "zoom_to": (4, 5, 6)}, None, "resampled, not zoomed"),
        ({"resolution_mm": 4}, "hcp2mm", "resolution_mm and resample_to both name a grid"),
        ({"resolution_mm": 4, "zoom_to": (4, 5, 6)}, None, "resolution_mm and structural.zoom_to both name a grid"),
    ],
)
def test_settings_that_name_no_grid_or_two_are_refused(
    tmp_path: Path, own: dict[str, object], resample_to: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        of_brains(tmp_path, resample_to, **own)


# ---- regions


def test_regional_means_are_those_of_a_loop() -> None:
    """A linear map has, on a sphere, its centre's value; over the brain, the mean over its voxels."""
    shape, affine = (70, 80, 75), np.diag([-3.0, 3, 3, 1])
    affine[:3, 3] = [104, -133, -93]
    slope = np.array([0.1, -0.2, 0.3])
    values = (apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) @ slope).astype(np.float32)
    means = structural.regional_means(values, affine)
    centres = fetch_coords_seitzman_2018().rois[["x", "y", "z"]].to_numpy()
    np.testing.assert_allclose(means[:300], centres @ slope, atol=1e-4)  # float32
    mask = load_mni152_brain_mask(resolution=2)
    brain = apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0))
    assert means[300] == pytest.approx((brain @ slope).mean(), abs=1e-3)
    assert len(structural.region_names()) == len(set(structural.region_names())) == 301
    assert "hippocampus" in " ".join(structural.region_names())


@pytest.mark.parametrize("contrast", [(0.25, 0.65, 1.0), (1.0, 0.6, 0.4)], ids=["T1", "T2"])
def test_grey_matter_is_found_under_a_smooth_field(contrast: tuple[float, float, float]) -> None:
    """Tissues of the template with noise, up to 35% brighter in the deep brain: regional means stay."""
    atlas, white = load_mni152_gm_template(resolution=2), load_mni152_wm_template(resolution=2)
    every = np.s_[::2, ::2, ::2]
    affine = atlas.affine @ np.diag([2, 2, 2, 1])
    grey, white = atlas.get_fdata()[every], white.get_fdata()[every]
    mask = grey + white > 0.3
    shares = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    distance = np.linalg.norm(apply_affine(affine, np.argwhere(np.ones_like(mask))), axis=1).reshape(mask.shape)
    noise = np.random.default_rng(0).normal(0, 0.03, mask.shape)
    tissues = np.clip(np.tensordot(contrast, shares, axes=1) + noise, 0.01, None)
    means = []
    for field in (0.0, 0.3):
        volume = np.where(mask, 500 * np.exp(field * np.exp(-((distance / 60) ** 2))) * tissues, 0)
        found = structural.grey_matter(volume, mask, affine)
        assert found[~mask].max() == 0
        means.append(structural.regional_means(found, affine))
    truth = structural.regional_means(np.where(mask, grey, 0), affine)
    assert all(np.corrcoef(found, truth)[0, 1] > 0.87 and abs(found[-1] - truth[-1]) < 0.05 for found in means)
    assert np.abs(means[1] - means[0]).mean() < 0.015


def test_grey_matter_of_the_template_is_that_of_its_map() -> None:
    """MNI152's own map was made by other means, from many people."""
    brain, mask, affine = structural._mni152()
    atlas = load_mni152_gm_template(resolution=2)
    means = structural.regional_means(structural.grey_matter(np.float32(brain), mask, affine), affine)
    assert np.corrcoef(means, structural.regional_means(atlas.get_fdata(), atlas.affine))[0, 1] > 0.9


def test_maps_of_grey_matter_are_taken_as_they_are(quick: None, project: Path, brains: Dataset) -> None:
    manifest, root = brains
    grey = load_mni152_gm_template(resolution=2)
    maps = [grey.get_fdata(dtype=np.float32)[::2, ::2, ::2] * k for k in (1, 0.5)]
    affine = grey.affine @ np.diag([2, 2, 2, 1])
    for name, values in zip(manifest["image"], maps, strict=True):
        nib.save(nib.Nifti1Image(np.where(values > 0.05, values, 0), affine), root / name)
    made = prepare(manifest, of_brains(root, regions="values"), jobs=1)
    means = made.regional().to_numpy()
    assert means[0] == pytest.approx(structural.regional_means(np.where(maps[0] > 0.05, maps[0], 0), affine), rel=1e-6)
    assert means[1].mean() / means[0].mean() == pytest.approx(0.5, rel=0.1)  # not scaled to [0, 1]
    assert "template_fit" not in made.runs  # a map has no contrast
    (made.path / "regions.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        made.regional()


def test_images_that_are_not_in_mni152_have_no_regions(quick: None, brains: Dataset) -> None:
    manifest, root = brains
    for own in ({"zoom_to": (12, 14, 11)}, {"resolution_mm": 8}):
        profile = of_brains(root, regions="grey", **own)
        with pytest.raises(ValueError, match=r"[ab]\.nii\.gz is not in MNI152 \(its brain lies \d+ mm off\)"):
            prepare(manifest, profile, jobs=1)
    made = prepare(manifest, of_brains(root, zoom_to=(12, 14, 11)), jobs=1)
    with pytest.raises(ValueError, match="has no regional means; prepare it with"):
        made.regional()


# ---- contrast


def test_a_contrast_that_contradicts_the_task_is_told(
    quick: None, brains: Dataset, template: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """Images in MNI152 already, so that nothing needs registering; b is dark where T1w is bright."""
    manifest, root = brains
    volume, affine = template
    brain = volume > 0
    for n, name in enumerate(manifest["image"]):
        contrast = np.where(brain, 1.2 - volume if n == 1 else volume, 0) * (100 + n)
        nib.save(nib.Nifti1Image(contrast.astype(np.float32), affine), root / name)
    made = prepare(manifest, of_brains(root, regions="grey", resolution_mm=8), jobs=1)
    expected = "contrast unlike T1w's: white matter is darker than fluid"
    assert made.runs["doubt"].tolist() == ["", expected]
    assert f"warning: sub-b_task-T1w_run-1: {expected}" in capsys.readouterr().out
    of_t2 = manifest.assign(task="T2w")
    profile = of_brains(root, regions="grey", resolution_mm=8)
    data = profile.data.model_copy(update={"source": {"T2w": {"female": ["F"], "male": ["M"]}}})
    second = changed(profile.model_copy(update={"data": data}), root, root.parent / "t2.store")
    doubts = prepare(of_t2, second, jobs=1).runs["doubt"].tolist()
    assert [bool(doubt) for doubt in doubts] == [True, False]


def test_distance_is_that_of_the_shift(template: tuple[np.ndarray, np.ndarray]) -> None:
    volume, affine = template
    for axis, mm in product(range(3), (-14.0, 22.0)):
        aside = affine.copy()
        aside[axis, 3] += mm
        assert structural.distance_mm(volume, aside) == pytest.approx(abs(mm), abs=0.01)
