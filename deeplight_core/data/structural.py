"""From a structural image to one volume: masked, scaled, registered or zoomed; and its grey matter, region by region.

Positions are millimetres: an image's affine leads from its voxels to its own space, a transform from there to MNI152.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates

from deeplight_core.data.images import Grid, resample

__all__ = [
    "distance_mm",
    "grey_matter",
    "likeness",
    "region_names",
    "regional_means",
    "register",
    "reoriented",
    "scaled",
    "smoothed_for",
    "template_mask",
    "zoomed",
]

_RADIUS_MM, _SPACING_MM = 8.0, 2.0  # of the regions, spheres, and of the points in them
_STEPS = ((8.0, "RigidTransform3D", 50), (8.0, "AffineTransform3D", 100), (4.0, "AffineTransform3D", 30))
_BINS = 32  # of the joint histogram, in each direction
_EDGE = 2  # voxels of 4 mm at the brain's edge, where fluid, bone and brain mix
_SEEN_VOXELS = 20_000  # of a brain, from which the tissues' intensities are estimated
_ROUNDS, _FIELD_ORDER = 40, 3  # of expectation maximisation; of the field's polynomial
_BLUR_VOXELS, _LEAST_SHARE = 1.5, 0.02  # of the template's tissues: people differ from it
_DARKEST = 1e-3  # of the brightest voxel; the logarithm needs a least value


def scaled(volume: np.ndarray, mask: np.ndarray, path: Path) -> np.ndarray:
    """A structural image (X, Y, Z), zero outside its mask, scaled to [0, 1] (Atanaszov & Ritter 2019, 2.1).

    Raises
    ------
    ValueError
        If it holds NaN or infinite values in its mask, or a single value; the message names `path`.
    """
    inside = np.where(mask, volume, 0).astype(np.float32)
    if not np.isfinite(inside).all():
        raise ValueError(f"{path} holds NaN or infinite values in its mask; repair or leave out the image")
    values = volume[mask] if mask.any() else inside
    if (only := values.min()) == values.max():
        raise ValueError(f"{path} holds only the value {only:g}; leave out the image")
    low, high = inside.min(), inside.max()
    return (inside - low) / (high - low)


def zoomed(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resize a volume (X, Y, Z) or mask (bool) with `scipy.ndimage.zoom`; the corners stay in place.

    Volumes are interpolated linearly, so values stay in their range; masks take the nearest voxel.
    """
    from scipy.ndimage import zoom

    factors = [n / m for n, m in zip(shape, volume.shape, strict=True)]
    order = 0 if volume.dtype == bool else 1
    return np.asarray(zoom(volume.astype(np.float32), factors, order=order, mode="nearest"))


def reoriented(volume: np.ndarray, affine: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A volume (X, Y, Z) with its axes flipped and swapped to point where those of the affine `like` do."""
    change = ornt_transform(io_orientation(affine), io_orientation(like))
    return np.ascontiguousarray(apply_orientation(volume, change))


# ---- in MNI152


@lru_cache(maxsize=1)
def _mni152() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI152's brain (T1, skull-stripped), its mask (bool), and their affine at 2 mm; nilearn brings them along."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    image, mask = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2).get_fdata() > 0
    return image.get_fdata() * mask, mask, image.affine


@lru_cache(maxsize=4)
def _template(resolution_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The template's brain with voxels of that edge, and its affine."""
    brain, _, affine = _mni152()
    return _coarse(brain, affine, resolution_mm)


def smoothed_for(volume: np.ndarray, affine: np.ndarray, resolution_mm: float) -> np.ndarray:
    """A volume (X, Y, Z), smoothed to be sampled at wider voxels of that edge; the FWHM is the difference in width."""
    wider = np.maximum(resolution_mm / voxel_sizes(affine) - 1, 0)
    return gaussian_filter(np.float32(volume), wider / 2.355)


def _coarse(volume: np.ndarray, affine: np.ndarray, resolution_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A volume (X, Y, Z), smoothed and resampled to voxels of that edge, and its affine."""
    factors = resolution_mm / voxel_sizes(affine)
    smooth = smoothed_for(volume, affine, resolution_mm)
    x, y, z = (int(np.ceil(n / f)) for n, f in zip(volume.shape, factors, strict=True))
    target = affine @ np.diag([*factors, 1.0])
    target[:3, 3] = apply_affine(affine, (factors - 1) / 2)  # outer edge on outer edge
    return resample(smooth, affine, ((x, y, z), target), "linear").astype(np.float64), target


def template_mask(grid: Grid) -> np.ndarray:
    """The template's brain mask (X, Y, Z) on a grid."""
    _, mask, affine = _mni152()
    share = smoothed_for(mask, affine, float(voxel_sizes(grid[1]).min()))
    return resample(share, affine, grid, "linear") >= 0.5


def distance_mm(volume: np.ndarray, affine: np.ndarray) -> float:
    """How far a brain (X, Y, Z) lies from the template's: the largest distance along an axis, in mm.

    Compared are the middle and both ends (5th and 95th percentile) of the brightest part, without the lowest tenth.
    """
    ends = []
    for brain, its_affine in ((volume, affine), _template(4.0)):
        bright = brain > 0.1 * np.percentile(brain[brain > 0], 99)
        ends.append(np.percentile(apply_affine(its_affine, np.argwhere(bright)), [5, 50, 95], axis=0))
    return float(np.abs(ends[0] - ends[1]).max())


def register(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Find the affine transform (4, 4) from an image's space to MNI152: 12 parameters, by mutual information.

    First rigid, then affine with voxels of 8 mm, then of 4 mm (`dipy.align.imaffine`); all voxels count, so nothing is
    random.

    Parameters
    ----------
    volume : (X, Y, Z) brain, zero outside
    affine : (4, 4) of its voxels

    Raises
    ------
    ValueError
        If dipy is not installed.
    """
    try:
        from dipy.align import imaffine, transforms
    except ImportError:
        raise ValueError(
            "registration needs dipy, which is not installed: pip install 'deeplight-core[structural]', or set "
            "preprocessing.structural.registration to none"
        ) from None
    found: np.ndarray | None = None
    for resolution_mm, kind, n in _STEPS:
        still, still_affine = _template(resolution_mm)
        moving, moving_affine = _coarse(volume, affine, resolution_mm)
        if found is None:
            found = imaffine.transform_centers_of_mass(still, still_affine, moving, moving_affine).affine
        search = imaffine.AffineRegistration(
            metric=imaffine.MutualInformationMetric(nbins=_BINS), level_iters=[n], sigmas=[0.0], factors=[1],
            verbosity=0,
        )  # fmt: skip
        found = search.optimize(
            still, moving, getattr(transforms, kind)(), None, static_grid2world=still_affine,
            moving_grid2world=moving_affine, starting_affine=found,
        ).affine  # fmt: skip
    return np.linalg.inv(np.asarray(found))


def likeness(volume: np.ndarray, affine: np.ndarray) -> float:
    """Correlation of an image with the template inside both brains, 8 mm from their edges, with voxels of 4 mm.

    It tells how well an image fits, and which contrast it has: negative if fluid is brighter than white matter.

    Parameters
    ----------
    volume : (X, Y, Z) brain, zero outside
    affine : (4, 4) from its voxels to MNI152
    """
    still, still_affine = _template(4.0)
    smooth, its_affine = _coarse(volume, affine, 4.0)
    moved = resample(smooth, its_affine, (still.shape, still_affine), "linear")
    both = binary_erosion((still > 0) & (moved > 0), iterations=_EDGE)
    varies = both.any() and moved[both].std() > 0
    return float(np.corrcoef(still[both], moved[both])[0, 1]) if varies else 0.0


# ---- grey matter


@lru_cache(maxsize=1)
def _tissue_maps() -> tuple[np.ndarray, np.ndarray]:
    """Shares of fluid, grey and white matter in MNI152, (3, X, Y, Z), a little blurred, and their affine."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    grey, white = load_mni152_gm_template(resolution=2), load_mni152_wm_template(resolution=2)
    _, mask, affine = _mni152()
    brain = resample(mask.astype(np.float32), affine, (grey.shape, grey.affine), "linear")
    tissues = [gaussian_filter(image, _BLUR_VOXELS) for image in (brain, grey.get_fdata(), white.get_fdata())]
    fluid = np.clip(tissues[0] - tissues[1] - tissues[2], 0, None)
    return np.stack([fluid, *tissues[1:]]) + _LEAST_SHARE, grey.affine


def _expected_tissues(places_mm: np.ndarray) -> np.ndarray:
    """The template's shares of fluid, grey and white matter at places (N, 3) of MNI152: (N, 3), which sum to 1."""
    maps, affine = _tissue_maps()
    at = apply_affine(np.linalg.inv(affine), places_mm).T
    shares = np.stack([map_coordinates(tissue, at, order=1, cval=_LEAST_SHARE) for tissue in maps], axis=1)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _powers(places_mm: np.ndarray) -> np.ndarray:
    """The polynomials (N, K) of a smooth field at places (N, 3), without the constant."""
    n = range(_FIELD_ORDER + 1)
    x, y, z = (places_mm / 100).T
    powers = [x**i * y**j * z**k for i in n for j in n for k in n if 0 < i + j + k <= _FIELD_ORDER]
    return np.stack(powers, axis=1)


def grey_matter(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Probability of grey matter (X, Y, Z) in a brain in MNI152, of any contrast.

    Fluid, grey and white matter are three Gaussians of the logarithm of intensity, expected where the template has
    them; a polynomial of third order takes the coil's smooth field away. They are found together, by expectation
    maximisation (Van Leemput et al. 1999, IEEE Trans Med Imaging 18:897; Ashburner & Friston 2005, NeuroImage 26:839).

    Parameters
    ----------
    volume : (X, Y, Z); mask : (X, Y, Z) bool, the brain
    affine : (4, 4) from its voxels to MNI152
    """
    values = np.maximum(volume[mask].astype(np.float64), _DARKEST * volume[mask].max())
    logarithm, places = np.log(values), apply_affine(affine, np.argwhere(mask))
    every = max(1, len(values) // _SEEN_VOXELS)
    seen, expected, powers = logarithm[::every], _expected_tissues(places[::every]), _powers(places[::every])
    shares, field = expected, np.zeros(len(seen))
    for _ in range(_ROUNDS):
        mean, variance = _gaussians(seen - field, shares)
        shares = _posterior(seen - field, expected, mean, variance)
        precision = (shares / variance).sum(axis=1)
        wanted = seen - (shares / variance) @ mean / precision
        weighted = powers * precision[:, None]
        weights = np.linalg.solve(powers.T @ weighted, weighted.T @ wanted)
        field = powers @ weights
    corrected = logarithm - _powers(places) @ weights
    probability = np.zeros(volume.shape, np.float32)
    probability[mask] = _posterior(corrected, _expected_tissues(places), mean, variance)[:, 1]
    return probability


def _gaussians(values: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances (3,) of values (N,) that belong to tissues by shares (N, 3)."""
    n = shares.sum(axis=0)
    mean = values @ shares / n
    return mean, ((values[:, None] - mean) ** 2 * shares).sum(axis=0) / n + 1e-4


def _posterior(values: np.ndarray, expected: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Probabilities (N, 3) of tissues, given values (N,) and what is expected at their places (N, 3)."""
    joint = expected * np.exp(-((values[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(variance) + 1e-12
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


@lru_cache(maxsize=1)
def _regions() -> pd.DataFrame:
    """The regions: `name, x, y, z`; centres of Seitzman et al. (2020), which nilearn brings along, in its order."""
    from nilearn.datasets import fetch_coords_seitzman_2018

    found = fetch_coords_seitzman_2018()
    places = enumerate(zip(found.regions, found.networks, strict=True), start=1)
    centres = found.rois[["x", "y", "z"]].reset_index(drop=True)
    return centres.assign(name=[f"{n:03d}_{region}_{network}" for n, (region, network) in places])


def region_names() -> list[str]:
    """Names of the means of `regional_means`: 300 regions, and `brain`."""
    return [*_regions()["name"], "brain"]


def regional_means(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Means (301,) of a map (X, Y, Z), zero outside the brain: over spheres at the regions' centres, and the brain.

    The spheres have a radius of 8 mm; those of neighbours may overlap. The brain is the template's. Values are
    interpolated linearly at points 2 mm apart.

    Parameters
    ----------
    affine : (4, 4) from the map's voxels to MNI152
    """
    to_voxels = np.linalg.inv(affine)

    def at(places_mm: np.ndarray) -> np.ndarray:
        return map_coordinates(np.float32(values), apply_affine(to_voxels, places_mm).T, order=1)

    steps = np.arange(-_RADIUS_MM, _RADIUS_MM + 0.5, _SPACING_MM)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = offsets[(offsets**2).sum(axis=1) <= _RADIUS_MM**2]
    spheres = _regions()[["x", "y", "z"]].to_numpy()[:, None] + offsets
    _, mask, its_affine = _mni152()
    brain = at(apply_affine(its_affine, np.argwhere(mask)))
    return np.append(at(spheres.reshape(-1, 3)).reshape(spheres.shape[:2]).mean(axis=1), brain.mean())
