"""How well a map finds the places that are known to matter, and where its own largest places are.

The first three measures are those of Quantus 0.6.0 (Hedström et al. 2023), on absolute values: relevance mass and rank
accuracy (Arras et al. 2022) and the pointing game (Zhang et al. 2018). A map without any value gets NaN.
"""

import re
import warnings

import nibabel as nib
import numpy as np
import pandas as pd

__all__ = ["MEASURES", "PLACES", "localisation", "regions", "true_places"]

MEASURES = {
    "mass": "share of the map's absolute values inside the places",
    "rank": "share of the map's n largest voxels that are among the n voxels of the places",
    "pointing": "whether the map's largest voxel is inside",
    "auc": "chance that a random voxel inside has a larger value than one outside",
}

_MIDLINE_MM = 5.0
PLACES = (
    "Coordinates are MNI152's, in mm. near is the nearest of 160 places that meta-analyses of tasks found (Dosenbach "
    "et al. 2010), near_mm away. This is no atlas: a place need not lie in what it is near to."
)
"""What a table of places says."""


def true_places(contrast: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The voxels of a planted contrast (V,) whose absolute value is at least a share of the largest one."""
    size = np.abs(contrast)
    return np.asarray(size >= share * size.max()) & (size > 0)


def localisation(values: np.ndarray, places: np.ndarray) -> dict[str, float]:
    """The measures of `MEASURES` for a map (V,) and the voxels (V,) that it should find."""
    from sklearn.metrics import roc_auc_score

    size, n = np.abs(values), int(places.sum())
    if not 0 < n < len(places):
        raise ValueError(f"{n} of {len(places)} voxels are to be found; there must be some inside and some outside")
    if not np.isfinite(size).all() or not size.any():
        return dict.fromkeys(MEASURES, np.nan)
    largest = np.argsort(-size, kind="stable")[:n]
    return {
        "mass": float(size[places].sum() / size.sum()),
        "rank": float(places[largest].mean()),
        "pointing": float(places[size.argmax()]),
        "auc": float(roc_auc_score(places, size)),
    }


def regions(image: nib.Nifti1Image, share: float = 0.3, n: int = 10) -> pd.DataFrame:
    """The largest places of a map: `x, y, z` in mm, `value` at the peak, `volume_mm3` of its cluster, `near, near_mm`.

    Clusters are connected voxels whose absolute value is at least a share of the map's largest; sub-peaks are left out.
    `near` is the nearest of Dosenbach et al.'s (2010) 160 places in MNI space, and `near_mm` how far away it is.
    """
    from nilearn.reporting import get_clusters_table

    size = np.abs(image.get_fdata())
    columns = {"X": "x", "Y": "y", "Z": "z", "Peak Stat": "value", "Cluster Size (mm3)": "volume_mm3"}
    if not size.any():
        return _named(pd.DataFrame(columns=list(columns.values()), dtype=float))
    least = share * size.max() * (1 - 1e-6)  # nilearn takes what is larger
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No clusters found")  # of one sign
        table = get_clusters_table(image, stat_threshold=least, cluster_threshold=0, two_sided=True)
    table = table[table["Cluster ID"].astype(str).str.fullmatch(r"\d+")].rename(columns=columns)[list(columns.values())]
    table = table.apply(pd.to_numeric).sort_values("value", key=np.abs, ascending=False, ignore_index=True)
    return _named(table.head(n))


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """A table of places with the names of the nearest known ones."""
    from nilearn.datasets import fetch_coords_dosenbach_2010

    known = fetch_coords_dosenbach_2010()
    there = known.rois[["x", "y", "z"]].to_numpy(float)
    names = [re.sub(r" \d+$", "", str(label)) for label in known.labels]
    away = np.linalg.norm(table[["x", "y", "z"]].to_numpy(float)[:, None] - there, axis=2)
    nearest = away.argmin(axis=1)
    sides = np.select([there[:, 0] < -_MIDLINE_MM, there[:, 0] > _MIDLINE_MM], ["left ", "right "], "")
    return table.assign(near=[sides[i] + names[i] for i in nearest], near_mm=away.min(axis=1).round(1))
