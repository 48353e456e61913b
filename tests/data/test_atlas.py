"""Regions of an atlas as voxels of a store, and what is wrong with other people's atlases."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from deeplight_core.data.atlas import seen_voxels
from deeplight_core.data.store import Store
from deeplight_core.preparation import AtlasSettings
from deeplight_core.training.examples import of_anything
from deeplight_core.training.loader import Volumes


@pytest.fixture
def atlas(store: Store, project: Path) -> AtlasSettings:
    """Three regions, by the first axis; the table's order is not that of the numbers."""
    numbers = np.zeros(store.mask.shape, np.float32)
    numbers[:3], numbers[3:5], numbers[5:] = 7, 2, 4
    nib.save(nib.Nifti1Image(numbers, store.affine), project / "atlas.nii.gz")
    table = pd.DataFrame({"index": [2, 4, 7], "name": ["Visual", "Limbic", "Default mode"]})
    table.to_csv(project / "atlas.tsv", sep="\t", index=False)
    return AtlasSettings(image=Path("atlas.nii.gz"), labels=Path("atlas.tsv"), keep=["Default mode"])


def test_regions_are_voxels_in_the_order_of_the_store(atlas: AtlasSettings, store: Store) -> None:
    seen = seen_voxels(atlas, store)
    x = np.nonzero(store.mask.T)[2]  # (z, y, x) of the in-mask voxels
    assert seen.tolist() == (x < 3).tolist()
    both = seen_voxels(atlas.model_copy(update={"keep": ["Default mode", "Visual"]}), store)
    assert both.tolist() == (x < 5).tolist()


def test_the_others_are_zero_for_networks_and_linear_models(atlas: AtlasSettings, store: Store) -> None:
    examples = of_anything(store.index, ["EMOTION"], "validation")
    seen = seen_voxels(atlas, store)
    numbers = np.arange(4)
    whole, part = Volumes(store, examples), Volumes(store, replace(examples, seen=seen))
    np.testing.assert_array_equal(part.masked(numbers), whole.masked(numbers).numpy() * seen)
    inside = store.mask[store.box].T
    expected = np.zeros((4, *inside.shape), np.float32)
    expected[:, inside] = whole.masked(numbers).float().numpy() * seen
    np.testing.assert_array_equal(part.batch(numbers)["volumes"], expected)
    assert np.abs(expected).sum() > 0
    streamed = Volumes(store, replace(examples, seen=seen), in_memory=False)
    np.testing.assert_array_equal(streamed.batch(numbers)["volumes"], expected)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["Visaul"], r"atlas\.tsv has no region Visaul; did you mean Visual\?"),
        (["xyz"], r"has no region xyz; it has Visual, Limbic, Default mode"),
    ],
)
def test_unknown_regions_are_named(keep: list[str], message: str, atlas: AtlasSettings, store: Store) -> None:
    with pytest.raises(ValueError, match=message):
        seen_voxels(atlas.model_copy(update={"keep": keep}), store)


def test_an_atlas_of_another_grid_is_refused(atlas: AtlasSettings, store: Store) -> None:
    numbers = np.asarray(nib.load("atlas.nii.gz").dataobj)
    moved = store.affine.copy()
    moved[0, 3] += 2
    for other in (nib.Nifti1Image(numbers[:-1], store.affine), nib.Nifti1Image(numbers, moved)):
        nib.save(other, "atlas.nii.gz")
        with pytest.raises(ValueError, match=r"whose grid is 7 × 8 × 9; resample it to .*mask\.nii\.gz"):
            seen_voxels(atlas, store)


def test_unusable_files_are_named(atlas: AtlasSettings, store: Store) -> None:
    Path("atlas.tsv").write_text("index\tname\n99\tNowhere\n")
    with pytest.raises(ValueError, match=r"no voxel of .* lies in Nowhere"):
        seen_voxels(atlas.model_copy(update={"keep": ["Nowhere"]}), store)
    Path("atlas.tsv").write_text("number\tname\n2\tVisual\n")
    with pytest.raises(ValueError, match=r"atlas\.tsv has no column index"):
        seen_voxels(atlas, store)
    Path("atlas.tsv").write_text("index\tname\ntwo\tVisual\n")
    with pytest.raises(ValueError, match="every region needs a number"):
        seen_voxels(atlas, store)
    Path("atlas.tsv").write_text("index\tname\n2\tDefault mode\n")
    Path("atlas.nii.gz").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="cannot be read"):
        seen_voxels(atlas, store)
