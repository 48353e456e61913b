"""Regions of an atlas, as voxels of a store."""

import difflib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.config import project_root
from deeplight_core.data.store import Store
from deeplight_core.preparation import AtlasSettings
from deeplight_core.system.files import read_table

__all__ = ["seen_voxels"]


def seen_voxels(atlas: AtlasSettings, store: Store) -> np.ndarray:
    """Which of a store's in-mask voxels (V,) lie in the regions of an atlas that are kept.

    Raises
    ------
    ValueError
        If the image or its table is absent or unusable, the image has another grid than the store, the table lacks a
        region, or none of the store's voxels lies in them.
    """
    path, labels = project_root() / atlas.image, _labels(project_root() / atlas.labels)
    if unknown := [name for name in atlas.keep if name not in labels]:
        near = difflib.get_close_matches(unknown[0], labels, n=1, cutoff=0.4)
        there = f"did you mean {near[0]}?" if near else f"it has {', '.join(list(labels)[:10])}"
        raise ValueError(f"{atlas.labels} has no region {', '.join(unknown)}; {there}")
    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj).squeeze()
    except (OSError, nib.filebasedimages.ImageFileError, EOFError) as error:
        raise ValueError(f"atlas {path} cannot be read: {error}") from error
    if values.shape != store.mask.shape or not np.allclose(image.affine, store.affine, atol=1e-3):
        raise ValueError(
            f"atlas {path} has a grid of {' × '.join(map(str, values.shape))} voxels with another place or size than "
            f"{store.path}, whose grid is {' × '.join(map(str, store.mask.shape))}; resample it to "
            f"{store.path}/mask.nii.gz (nearest neighbour, as nilearn.image.resample_to_img does)"
        )
    kept = np.isin(values, [labels[name] for name in atlas.keep])
    seen = kept.T[store.mask.T]  # in the order of the store's voxels
    if not seen.any():
        raise ValueError(
            f"no voxel of {store.path} lies in {', '.join(atlas.keep)} of atlas {path}; keep other regions"
        )
    return np.asarray(seen)


def _labels(path: Path) -> dict[str, int]:
    """Names of regions → their numbers in the image, of a table with columns `index` and `name`."""
    table = read_table(path)
    if missing := [column for column in ("index", "name") if column not in table]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; an atlas' table has index and name")
    numbers = pd.to_numeric(table["index"], errors="coerce")
    if numbers.isna().any() or table["name"].duplicated().any():
        raise ValueError(f"{path}: every region needs a number as its index, and a name of its own")
    return {str(name): int(number) for name, number in zip(table["name"], numbers, strict=True)}
