"""What all runs of a store share: settings, grid and common mask; decided before any run is prepared.

Any number of processes may plan the same store at once: each comes to the same plan, and writes the same files.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from deeplight_core.config import LaterVersionError, Profile, digest, project_root
from deeplight_core.data.images import UNREADABLE, Grid, Header, load_volume, read_header, resample, same_grid
from deeplight_core.data.manifest import is_structural, moved_root
from deeplight_core.data.simulate import grid as grid_over_mni
from deeplight_core.data.store import FORMAT, read_info
from deeplight_core.data.structural import reoriented, smoothed_for, template_mask, zoomed
from deeplight_core.preparation import TRIAL_TYPE, PreprocessingSettings
from deeplight_core.system.files import write_whole
from deeplight_core.system.sources import at_hand, refuse_escape

__all__ = ["HCP_GRID", "Plan", "finished", "misfit", "on_grid", "own_mask", "plan", "software", "still_holds"]

HCP_GRID: Grid = (91, 109, 91), np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""The Human Connectome Project's grid at 2 mm: shape (X, Y, Z) and affine."""
_REMEDY = "name its own mask in the manifest, or none"
_NATIVE = ("T1w", "T2w", "anat", "bold", "boldref", "fsnative", "func", "individual", "native", "orig", "scanner")
_AT_ONCE = 16  # headers and masks read at a time; for remote data, latency dominates


class Plan(NamedTuple):
    """What all runs of a store share: mask (X, Y, Z) bool, affine, repetition time in seconds (NaN for images)."""

    mask: np.ndarray
    affine: np.ndarray
    tr_s: float

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return self.mask.shape, self.affine

    @property
    def identity(self) -> str:
        """A hash of the plan."""
        return digest(np.packbits(self.mask).tobytes().hex(), list(self.mask.shape), self.affine.round(4).tolist())


def plan(manifest: pd.DataFrame, profile: Profile, keep_going: bool = False) -> Plan:
    """Decide on grid and common mask, and write them into the store (`store.json` last); or read an earlier decision.

    Every run must have the first run's TR and, unless the settings name a grid to resample to, its grid; every mask
    must have its run's grid.

    Parameters
    ----------
    keep_going : plan without the runs that do not fit, but write nothing: repairing them changes the plan, removing
        them from the manifest does not

    Raises
    ------
    ValueError
        With all problems of all runs; or if runs of several people share no template space.
    """
    path, settings, tr_s = profile.store, profile.preprocessing, float(manifest["tr_s"].iloc[0])
    planned = _planned(path, tr_s)
    if planned and _noted(path) == _info(manifest, profile, planned):
        return planned
    structural = is_structural(manifest)
    registered = bool(structural.all()) and settings.structural.registration == "affine"
    if structural.any() and not structural.all():
        few = manifest["image"][structural if structural.sum() * 2 <= len(manifest) else ~structural]
        kind = "structural images" if structural.sum() * 2 <= len(manifest) else "runs (with a repetition time)"
        raise ValueError(
            "structural images and runs of fMRI are in one manifest; name the tasks of one kind only, or correct the "
            f"{len(few)} {kind}: {', '.join(few[:5])}; a fourth axis makes an image a run, "
            "be it of time, channels or echoes"
        )
    taken = {"file", "frame", "onset_s", "state", "block", "unit", "row", "label"} & {*manifest.columns}
    if taken:
        raise ValueError(f"the manifest's column {', '.join(sorted(taken))} has a name that the store needs; rename it")
    root, rows = profile.data_root, [row for _, row in manifest.iterrows()]
    problems: list[str] = []
    headers: dict[str, Header] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for row, header in zip(rows, pool.map(partial(_header_of, root), rows), strict=True):
            if isinstance(header, Header):
                headers[row["image"]] = header
            else:
                problems.append(header)
        if not headers:
            raise _together(problems, profile)
        _refuse_several_spaces(manifest, headers, profile)
        first = next(headers[row["image"]] for row in rows if row["image"] in headers)
        shape, affine = _target_grid(settings, first, bool(structural.all()))
        grid = (shape, affine.astype(np.float32).astype(np.float64))  # as it is read back from the store
        votes, fitting = np.zeros(grid[0], np.int32), []
        for row in rows:
            if row["image"] in headers:
                problem = misfit(row, headers[row["image"]], grid, tr_s, settings)
                problems += [problem] if problem else []
                fitting += [] if problem else [row]
        if registered:
            votes += len(fitting) * template_mask(grid)
            fitting = []
        elif settings.mask:
            votes += len(fitting) * _given_mask(settings)[0]
            fitting = []
        packed = partial(_mask_on_grid, root=root, headers=headers, grid=grid, settings=settings)
        for mask in pool.map(packed, fitting):
            if isinstance(mask, str):
                problems.append(mask)
            else:
                votes += np.unpackbits(mask, count=votes.size).reshape(votes.shape)
    n_counted = len(manifest) - len(problems)
    if problems and not (keep_going and n_counted):
        raise _together(problems, profile)
    common = votes >= settings.mask_coverage * n_counted - 1e-9
    if not common.any():
        raise ValueError(
            f"no voxel lies in {settings.mask_coverage:.0%} of the runs' masks; lower preprocessing.mask_coverage"
        )
    planned = Plan(common, grid[1], tr_s)
    (path / "runs").mkdir(parents=True, exist_ok=True)
    info = _info(manifest, profile, planned)
    if problems or _noted(path) != info:
        (path / "index.parquet").unlink(missing_ok=True)  # it describes other settings or runs
    if problems:
        return planned
    coverage = nib.Nifti1Image((votes / len(manifest)).astype(np.float32), grid[1])
    mask_image = nib.Nifti1Image(common.astype(np.uint8), grid[1])
    text = json.dumps(info, indent=1) + "\n"
    if not registered:  # else it is known when they are
        write_whole(path / "coverage.nii.gz", lambda p: nib.save(coverage, p))
    write_whole(path / "mask.nii.gz", lambda p: nib.save(mask_image, p))
    write_whole(path / "store.json", lambda p: p.write_text(text, encoding="utf-8"))
    return planned


def _planned(path: Path, tr_s: float) -> Plan | None:
    try:
        image = nib.load(path / "mask.nii.gz")
        return Plan(np.asarray(image.dataobj) > 0, image.affine, tr_s)
    except UNREADABLE:
        return None


def _together(problems: list[str], profile: Profile) -> ValueError:
    root, lost = profile.data_root, any("does not exist" in problem for problem in problems)
    lines = "".join(f"\n  {problem}" for problem in problems)
    advice = moved_root(profile.manifest_path, root) if lost else ""
    return ValueError(f"{len(problems)} problem(s) in {root}:{lines}{advice}")


def _refuse_several_spaces(manifest: pd.DataFrame, headers: dict[str, Header], profile: Profile) -> None:
    """Raise an error if runs are of several people, their grids differ, and no name tells a space common to all.

    Resampling to one grid aligns the grids and not the brains.
    """
    runs = manifest[~is_structural(manifest) & manifest["image"].isin(headers)]
    if profile.preprocessing.assume_aligned or profile.data.layout == "hcp" or runs["subject"].nunique() < 2:
        return
    found = [re.search(r"_space-([A-Za-z0-9+]+)", Path(image).name) for image in runs["image"]]
    spaces = {match[1] if match else "" for match in found}
    native = sorted(spaces & {*_NATIVE})
    grids = [headers[image].grid for image in runs["image"]]
    several = ", ".join(sorted(spaces)) if len(spaces - {""}) > 1 else ""
    if not (native or several) and ("" not in spaces or all(same_grid(grid, grids[0]) for grid in grids)):
        return
    what = "differ in their grids and name no template space"
    if native or several:
        what = f"are in space {', '.join(native)}" if native else f"are in several spaces, {several}"
    raise ValueError(
        f"the images of {runs['subject'].nunique()} subjects {what}: brains are not aligned, and resampling would not "
        "align them. Take images in a template space (deeplight manifest --derivatives derivatives/fmriprep --space "
        "MNI152NLin2009cAsym), or one subject, or, if they are aligned all the same, set preprocessing.assume_aligned "
        "(--assume-aligned) and preprocessing.resample_to"
    )


def _header_of(root: Any, row: pd.Series) -> Header | str:
    """A run's header, or what is wrong with its files."""
    try:
        for name in filter(None, (row["image"], row["events"], row["mask"])):
            refuse_escape(root, name)
        return read_header(root / row["image"])
    except ValueError as error:
        return str(error)


def misfit(row: pd.Series, header: Header, grid: Grid, tr_s: float, settings: PreprocessingSettings) -> str:
    """Why a run does not fit the first one; empty if it fits."""
    structural = is_structural(row)
    length = header.shape[3] if len(header.shape) == 4 else 1
    if (not structural and len(header.shape) != 4) or length != row["n_volumes"]:
        return f"{row['image']}: shape {header.shape}, but the manifest says {row['n_volumes']} volumes"
    if not structural and abs(row["tr_s"] - tr_s) > 1e-4:
        return (
            f"{row['image']}: TR {row['tr_s']} s differs from {tr_s} s of the first run; a store has one TR: choose by "
            "task or session (deeplight manifest --task, --session), one profile for each"
        )
    own = settings.structural
    if settings.named_grid or (structural and (own.zoom_to or own.resolution_mm)) or same_grid(header.grid, grid):
        return ""
    remedy = "name one grid for all in preprocessing.resample_to"
    if structural:
        remedy += ", the shape to zoom all to in preprocessing.structural.zoom_to, or register them"
    return (
        f"{row['image']}: grid {header.shape[:3]} with affine {header.affine[:3].tolist()} differs from "
        f"the first run's {grid[0]} with {grid[1][:3].tolist()}; {remedy}"
    )


def _target_grid(settings: PreprocessingSettings, first: Header, structural: bool) -> Grid:
    """The grid that the settings name, or the first run's."""
    if structural and settings.structural.zoom_to:
        shape = settings.structural.zoom_to
        factors = [(n - 1) / max(1, m - 1) for n, m in zip(first.shape[:3], shape, strict=True)]  # corners on corners
        return shape, first.affine @ np.diag([*factors, 1])
    if structural and settings.structural.resolution_mm:
        return grid_over_mni(settings.structural.resolution_mm)
    if settings.mask:
        mask, affine = _given_mask(settings)
        return mask.shape, affine
    if settings.resample_to in (None, "first"):
        return first.grid
    if settings.resample_to == "hcp2mm":
        return HCP_GRID
    try:
        return read_header(Path(settings.resample_to)).grid
    except ValueError as error:
        raise ValueError(
            f"preprocessing.resample_to: {settings.resample_to} is not hcp2mm, first or a readable image: {error}"
        ) from None


def _mask_on_grid(
    row: pd.Series, root: Any, headers: dict[str, Header], grid: Grid, settings: PreprocessingSettings
) -> np.ndarray | str:
    """A run's mask on the common grid, packed to bits, or what is wrong with it."""
    source = row["mask"] or row["image"]
    try:
        with at_hand(root, [source], None) as folder:
            header = headers[row["image"]]
            return np.packbits(on_grid(grid, own_mask(folder, row, header), header, row, settings))
    except UNREADABLE as error:
        return f"{source}: {error}" if source not in str(error) else str(error)


def _given_mask(settings: PreprocessingSettings) -> tuple[np.ndarray, np.ndarray]:
    """The mask (X, Y, Z) bool that the settings name, and its affine."""
    try:
        mask, affine = load_volume(project_root() / str(settings.mask))
    except ValueError as error:
        raise ValueError(f"preprocessing.mask: {error}; prepare the store whose mask it is first") from None
    return mask > 0, affine


def own_mask(folder: Path, row: pd.Series, header: Header) -> np.ndarray:
    """A run's mask on its own grid; without one, the voxels that are neither zero nor NaN in its first volume."""
    if not row["mask"]:
        data = nib.load(folder / row["image"]).dataobj
        first = np.asarray(data[(..., *(0,) * (len(data.shape) - 3))])
        return (first != 0) & np.isfinite(first)
    mask, affine = load_volume(folder / row["mask"])
    if mask.shape != header.shape[:3]:
        raise ValueError(
            f"mask {row['mask']} has grid {mask.shape}, its run {row['image']} has {header.shape[:3]}; {_REMEDY}"
        )
    if not np.allclose(affine, header.affine, atol=1e-3):
        raise ValueError(f"mask {row['mask']} and its run {row['image']} have different affines; {_REMEDY}")
    if not (mask > 0).any():
        raise ValueError(f"mask {row['mask']} is empty: no voxel is above zero")
    return mask > 0


def on_grid(
    grid: Grid, volume: np.ndarray, header: Header, row: pd.Series, settings: PreprocessingSettings
) -> np.ndarray:
    """A mask (bool) or structural image (X, Y, Z) on the common grid: as it is, zoomed, or resampled.

    Zooming ignores positions, but not the directions of the axes: left stays left.
    """
    is_mask = volume.dtype == bool
    if is_structural(row) and settings.structural.zoom_to:
        moved = zoomed(reoriented(volume, header.affine, grid[1]), grid[0])
    elif same_grid(header.grid, grid):
        moved = volume
    else:
        own = settings.structural
        if not is_mask and (own.resolution_mm or own.registration == "affine"):
            volume = smoothed_for(volume, header.affine, float(voxel_sizes(grid[1]).min()))
        moved = resample(volume.astype(np.float32), header.affine, grid, "nearest" if is_mask else "linear")
    return moved > 0 if is_mask else moved


def _made_with(manifest: pd.DataFrame, profile: Profile) -> dict[str, Any]:
    tr_s = manifest["tr_s"].iloc[0]
    made_with: dict[str, Any] = {
        "preprocessing": profile.preprocessing.model_dump(mode="json"),
        "events": {task: profile.data.events(task) for task in sorted(set(manifest["task"]))},
        "label": profile.data.label,
        "split_unit": profile.data.split_unit,
        "manifest": digest(manifest.astype(object).where(manifest.notna(), None).to_dict("records")),
        "tr_s": None if np.isnan(tr_s) else float(tr_s),
    }
    if profile.data.trial_type != [*TRIAL_TYPE]:
        made_with["trial_type"] = profile.data.trial_type
    return made_with


@cache  # looking them up takes as long as a small run
def software() -> dict[str, str]:
    """Versions of the packages that decide a store's bits."""
    return {name: version(name) for name in ("deeplight-core", "nilearn", "numpy", "scipy", "torch")}


def _info(manifest: pd.DataFrame, profile: Profile, planned: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT, **_made_with(manifest, profile), "shape": list(planned.mask.shape),
        "n_voxels": int(planned.mask.sum()), "plan": planned.identity, "software": software(),
    }  # fmt: skip


def finished(manifest: pd.DataFrame, profile: Profile) -> bool:
    """Whether the store has its index, in the present format; raises ValueError if it was made with other settings."""
    path = profile.store
    found = _noted(path)
    if found is None or not (path / "index.parquet").is_file():
        return False
    made_with = _made_with(manifest, profile)
    compared = [*dict.fromkeys([*made_with, "trial_type"])]
    if differing := [key for key in compared if found.get(key) != made_with.get(key)]:
        raise ValueError(
            f"store {path} was made with other {', '.join(differing)}: "
            + "; ".join(_differences({k: found.get(k) for k in differing}, {k: made_with.get(k) for k in differing}))
            + ". Name another store or profile, or delete its index.parquet: runs that stay the same are kept"
        )
    return True


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    """What differs between two settings, each in words; of sections only what differs in them."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [f"{name} {json.dumps(one)}, now {json.dumps(other)}"]
    keys = dict.fromkeys([*one, *other])
    return [
        line for key in keys for line in _differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    ]


def _noted(path: Path) -> dict[str, Any] | None:
    """The contents of store.json; None if unreadable or in an earlier format, LaterVersionError if in a later one."""
    try:
        return read_info(path)
    except LaterVersionError:
        raise
    except ValueError:
        return None


def still_holds(manifest: pd.DataFrame, profile: Profile, planned: Plan) -> bool:
    """Whether the store still has this plan: nobody has begun it anew with other settings."""
    return _noted(profile.store) == _info(manifest, profile, planned)
