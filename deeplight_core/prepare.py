"""A manifest's runs and structural images into a volume store.

Three steps, each of which finds what is done and goes on: the plan (grid and common mask), the runs (independent of one
another, by any number of processes on any number of machines), the index.
"""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save
from threadpoolctl import threadpool_limits

from deeplight_core.config import PreprocessingSettings, Profile, digest
from deeplight_core.events import label_frames, read_events
from deeplight_core.files import file_sha256, write_whole
from deeplight_core.images import (
    UNREADABLE,
    Grid,
    Header,
    load_volume,
    read_header,
    resample,
    same_grid,
)
from deeplight_core.manifest import COLUMNS, is_structural, run_key, unit_names
from deeplight_core.preprocess import process_run, scaled, zoomed
from deeplight_core.sources import at_hand, refuse_escape, stamps
from deeplight_core.store import Store, open_store, write_volumes
from deeplight_core.workers import in_processes

__all__ = ["Plan", "plan", "prepare", "prepare_run", "prepare_subjects"]

_AT_ONCE = 16  # headers and masks that are read at a time; where they come from far, waiting is most of it
_ABANDONED_S = 3600  # what nobody has touched for so long is left over from a killed process


class Plan(NamedTuple):
    """What all runs of a store share: mask (X, Y, Z) bool, affine, repetition time in seconds (NaN of images)."""

    mask: np.ndarray
    affine: np.ndarray
    tr_s: float

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return self.mask.shape, self.affine

    @property
    def identity(self) -> str:
        """A hash of it."""
        return digest(np.packbits(self.mask).tobytes().hex(), list(self.mask.shape), self.affine.round(4).tolist())


def prepare(
    manifest: pd.DataFrame, profile: Profile, jobs: int | None = None, device: str = "cpu", keep_going: bool = False
) -> Store:
    """Bring a manifest's runs into the profile's store; runs that are there already are kept.

    Parameters
    ----------
    jobs : worker processes, each on one core; one per core by default
    keep_going : prepare all runs that can be prepared before the errors of the others are raised

    Raises
    ------
    ValueError
        If the store was made with other settings, or any input is bad; the store is then left as it was.
    """
    path = profile.store
    if _finished(manifest, profile):
        store = open_store(path)
        if all((path / file).is_file() for file in store.runs["file"]):
            return store
    planned = plan(manifest, profile, keep_going)
    records = _prepare_runs(manifest, profile, planned, jobs, device, keep_going)
    if not any(record["frames"] for record in records):
        raise ValueError("no volume of any run lies in a block; check the events, lag_s and skip_s")
    files = [record["file"] for record in records]
    volumes = pd.concat(
        [pd.DataFrame({"file": r["file"], "frame": r["frames"], "state": r["states"]}) for r in records if r["frames"]],
        ignore_index=True,
    )
    runs = manifest.assign(unit=unit_names(manifest, profile.data.split_unit), file=files)
    labels = [column for column in manifest.columns if column not in COLUMNS]
    index = volumes.merge(
        runs[["file", "tr_s", "dataset", "subject", "session", "task", "run", "unit", "split", *labels]],
        on="file",
        how="left",
    )
    index.insert(2, "onset_s", index["frame"] * index.pop("tr_s").fillna(0.0))
    index["row"] = index.groupby("file").cumcount()
    if _noted(path) != _info(manifest, profile, planned):
        raise ValueError(f"store {path} was begun anew with other settings meanwhile; prepare it again")
    if profile.preprocessing.structural.z_score and is_structural(manifest).all():
        trained_on = [r for r, split in zip(records, manifest["split"], strict=True) if split == "train"]
        _write_statistics(path, [(record["file"], record["scale"]) for record in trained_on])
    private = ("made_of", "sources", "frames", "states", "whole")
    own = pd.DataFrame([{key: value for key, value in r.items() if key not in private} for r in records])
    own.insert(2, "split", manifest["split"].to_numpy())
    write_whole(path / "runs.parquet", own.to_parquet)
    write_whole(path / "index.parquet", index.to_parquet)
    _remove_abandoned(path / "runs")
    return open_store(path)


def prepare_subjects(
    manifest: pd.DataFrame,
    profile: Profile,
    subjects: list[str],
    jobs: int | None = None,
    device: str = "cpu",
    keep_going: bool = False,
) -> int:
    """Prepare the runs of some subjects, by one of many processes that fill the same store; return their number.

    Nobody waits for anybody: each run is a file of its own, and who prepares the last one makes no difference, since
    `prepare` writes the index in the end.
    """
    if missing := sorted({*subjects} - {*manifest["subject"]}):
        raise ValueError(f"the manifest has no runs of subject {', '.join(missing)} for this profile")
    if not _finished(manifest, profile):
        rows = manifest[manifest["subject"].isin(subjects)]
        _prepare_runs(rows, profile, plan(manifest, profile, keep_going), jobs, device, keep_going)
    return int(manifest["subject"].isin(subjects).sum())


def _prepare_runs(
    rows: pd.DataFrame, profile: Profile, planned: Plan, jobs: int | None, device: str, keep_going: bool
) -> list[dict[str, Any]]:
    work = partial(prepare_run, profile=profile, planned=planned, device=device)
    return in_processes(work, [row for _, row in rows.iterrows()], jobs, "prepared runs", keep_going)


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed processes have left over."""
    for left_over in [*folder.glob("partial_*"), *folder.glob("fetched_*")]:
        try:
            if time.time() - left_over.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        except FileNotFoundError:  # somebody else's, who has finished
            continue


def _made_with(manifest: pd.DataFrame, profile: Profile) -> dict[str, Any]:
    tr_s = manifest["tr_s"].iloc[0]
    return {
        "preprocessing": profile.preprocessing.model_dump(mode="json"),
        "events": {task: profile.data.events(task) for task in sorted(set(manifest["task"]))},
        "label": profile.data.label,
        "split_unit": profile.data.split_unit,
        "manifest": digest(manifest.astype(object).where(manifest.notna(), None).to_dict("records")),
        "tr_s": None if np.isnan(tr_s) else float(tr_s),
    }


def _software() -> dict[str, str]:
    return {name: version(name) for name in ("deeplight-core", "nilearn", "numpy", "scipy", "torch")}


def _info(manifest: pd.DataFrame, profile: Profile, planned: Plan) -> dict[str, Any]:
    return {
        **_made_with(manifest, profile), "shape": list(planned.mask.shape), "n_voxels": int(planned.mask.sum()),
        "plan": planned.identity,
        "software": _software(),
    }  # fmt: skip


def _finished(manifest: pd.DataFrame, profile: Profile) -> bool:
    """Whether the store has its index; raises ValueError if it was made with other settings."""
    path = profile.store
    found = _noted(path)
    if found is None or not (path / "index.parquet").is_file():
        return False
    made_with = _made_with(manifest, profile)
    if differing := [key for key, value in made_with.items() if found.get(key) != value]:
        raise ValueError(
            f"store {path} was made with other {', '.join(differing)}: "
            + "; ".join(f"{k} {json.dumps(found.get(k))}, now {json.dumps(made_with[k])}" for k in differing)
            + ". Name another store or profile, or delete its index.parquet: runs that stay the same are kept"
        )
    return True


def _noted(path: Path) -> dict[str, Any] | None:
    """What store.json says, if it says anything."""
    try:
        return dict(json.loads((path / "store.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


# ---- the plan


def plan(manifest: pd.DataFrame, profile: Profile, keep_going: bool = False) -> Plan:
    """Decide on grid and common mask, and write them into the store (`store.json` last); or read what was decided.

    Every run must have the first one's TR, every mask its run's grid, and every run the first one's grid unless the
    settings say which one to resample to.

    Parameters
    ----------
    keep_going : plan without the runs that do not fit, and write nothing, so that the plan is another one when they are
        mended, and the same when they are left out of the manifest

    Raises
    ------
    ValueError
        With all problems of all runs.
    """
    path, settings, tr_s = profile.store, profile.preprocessing, float(manifest["tr_s"].iloc[0])
    planned = _planned(path, tr_s)
    if planned and _noted(path) == _info(manifest, profile, planned):
        return planned
    structural = is_structural(manifest)
    if structural.any() and not structural.all():
        raise ValueError("structural images and runs of fMRI are in one manifest; name the tasks of one kind only")
    taken = {"file", "frame", "onset_s", "state", "unit", "row", "label"} & {*manifest.columns}
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
            raise _together(problems, root)
        first = next(headers[row["image"]] for row in rows if row["image"] in headers)
        shape, affine = _target_grid(settings, first, bool(structural.all()))
        grid = (shape, affine.astype(np.float32).astype(np.float64))  # as it is read back from the store
        votes, fitting = np.zeros(grid[0], np.int32), []
        for row in rows:
            if row["image"] in headers:
                problem = _misfit(row, headers[row["image"]], grid, tr_s, settings)
                problems += [problem] if problem else []
                fitting += [] if problem else [row]
        packed = partial(_mask_on_grid, root=root, headers=headers, grid=grid, settings=settings)
        for mask in pool.map(packed, fitting):
            if isinstance(mask, str):
                problems.append(mask)
            else:
                votes += np.unpackbits(mask, count=votes.size).reshape(votes.shape)
    n_counted = len(manifest) - len(problems)
    if problems and not (keep_going and n_counted):
        raise _together(problems, root)
    common = votes >= settings.mask_coverage * n_counted - 1e-9
    if not common.any():
        raise ValueError(
            f"no voxel lies in {settings.mask_coverage:.0%} of the runs' masks; lower preprocessing.mask_coverage"
        )
    planned = Plan(common, grid[1], tr_s)
    (path / "runs").mkdir(parents=True, exist_ok=True)
    info = _info(manifest, profile, planned)
    if problems or _noted(path) != info:
        (path / "index.parquet").unlink(missing_ok=True)  # it does not vouch for other settings or runs
    if problems:
        return planned
    coverage = nib.Nifti1Image((votes / len(manifest)).astype(np.float32), grid[1])
    mask_image = nib.Nifti1Image(common.astype(np.uint8), grid[1])
    text = json.dumps(info, indent=1) + "\n"
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


def _together(problems: list[str], root: Any) -> ValueError:
    return ValueError(f"{len(problems)} problem(s) in {root}:\n" + "\n".join(f"  {p}" for p in problems))


def _header_of(root: Any, row: pd.Series) -> Header | str:
    """A run's header, or what is wrong with its files."""
    try:
        for name in filter(None, (row["image"], row["events"], row["mask"])):
            refuse_escape(root, name)
        return read_header(root / row["image"])
    except ValueError as error:
        return str(error)


def _misfit(row: pd.Series, header: Header, grid: Grid, tr_s: float, settings: PreprocessingSettings) -> str:
    """How a run does not fit the first one; empty if it does."""
    structural = row["events"] == ""
    length = header.shape[3] if len(header.shape) == 4 else 1
    if (not structural and len(header.shape) != 4) or length != row["n_volumes"]:
        return f"{row['image']}: shape {header.shape}, but the manifest says {row['n_volumes']} volumes"
    if not structural and abs(row["tr_s"] - tr_s) > 1e-4:
        return f"{row['image']}: TR {row['tr_s']} s differs from {tr_s} s of the first run"
    if settings.resample_to or (structural and settings.structural.zoom_to) or same_grid(header.grid, grid):
        return ""
    remedy = "say with preprocessing.resample_to which grid all are to be resampled to"
    if structural:
        remedy += ", or with preprocessing.structural.zoom_to which shape all are to be zoomed to"
    return (
        f"{row['image']}: grid {header.shape[:3]} with affine {header.affine[:3].tolist()} differs from "
        f"the first run's {grid[0]} with {grid[1][:3].tolist()}; {remedy}"
    )


def _target_grid(settings: PreprocessingSettings, first: Header, structural: bool) -> Grid:
    """The grid that the settings name, or that of the first run."""
    if structural and settings.structural.zoom_to:
        shape = settings.structural.zoom_to
        factors = [(n - 1) / max(1, m - 1) for n, m in zip(first.shape[:3], shape, strict=True)]  # corners on corners
        return shape, first.affine @ np.diag([*factors, 1])
    if settings.resample_to in (None, "first"):
        return first.grid
    if settings.resample_to == "hcp2mm":
        return (91, 109, 91), np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
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
            return np.packbits(_onto(grid, _own_mask(folder, row, header), header, row, settings))
    except UNREADABLE as error:
        return f"{source}: {error}" if source not in str(error) else str(error)


def _own_mask(folder: Path, row: pd.Series, header: Header) -> np.ndarray:
    """A run's mask on its own grid; without one, the voxels that are not zero in its first volume."""
    if not row["mask"]:
        data = nib.load(folder / row["image"]).dataobj
        return np.asarray(data[..., 0] if len(data.shape) == 4 else data) != 0
    mask, affine = load_volume(folder / row["mask"])
    if mask.shape != header.shape[:3]:
        raise ValueError(f"mask {row['mask']} has grid {mask.shape}, its run {row['image']} has {header.shape[:3]}")
    if not np.allclose(affine, header.affine, atol=1e-3):
        raise ValueError(f"mask {row['mask']} has another affine than {row['image']}")
    if not (mask > 0).any():
        raise ValueError(f"mask {row['mask']} is empty: no voxel is above zero")
    return mask > 0


def _onto(
    grid: Grid, volume: np.ndarray, header: Header, row: pd.Series, settings: PreprocessingSettings
) -> np.ndarray:
    """A mask (bool) or structural image (X, Y, Z) on the common grid: as it is, zoomed, or resampled."""
    is_mask = volume.dtype == bool
    if row["events"] == "" and settings.structural.zoom_to:
        moved = zoomed(volume, grid[0])
    elif same_grid(header.grid, grid):
        moved = volume
    else:
        moved = resample(volume.astype(np.float32), header.affine, grid, "nearest" if is_mask else "linear")
    return moved > 0 if is_mask else moved


# ---- a run


def prepare_run(row: pd.Series, profile: Profile, planned: Plan, device: str = "cpu") -> dict[str, Any]:
    """Write one run's file and its record, unless both are there as they would be written; return the record.

    Raises
    ------
    ValueError
        If a file of the run is missing, damaged, or not what the manifest or the plan says.
    """
    store, root, settings = profile.store, profile.data_root, profile.preprocessing
    file, structural = f"runs/{run_key(row)}.safetensors", row["events"] == ""
    note = (store / file).with_suffix(".json")
    names = [name for name in (row["image"], row["events"], row["mask"]) if name]
    for name in names:
        refuse_escape(root, name)
    label = str(row[profile.data.label]) if structural and profile.data.label else ""
    made_of = digest(
        *names, row["sha256"], int(row["n_volumes"]), 0.0 if structural else float(row["tr_s"]), label, settings,
        profile.data.events(row["task"]), planned.identity, _software(),
    )  # fmt: skip
    try:
        sources = stamps(root, names)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or error} does not exist; correct the manifest or fetch the file") from None
    if record := _record_of_finished(note, store / file, made_of, sources):
        return record
    with at_hand(root, names, store / "runs") as folder, threadpool_limits(1):
        source = folder / row["image"]
        if row["sha256"] and (found := file_sha256(source)) != row["sha256"]:
            raise ValueError(
                f"{root / row['image']} is not the file the manifest means: its sha256 is {found}, "
                f"expected {row['sha256']}"
            )
        header, grid = read_header(source), planned.grid
        if problem := _misfit(row, header, grid, planned.tr_s, settings):
            raise ValueError(problem)
        own = _own_mask(folder, row, header)
        overlap = (_onto(grid, own, header, row, settings) & planned.mask).sum() / planned.mask.sum()
        record = {
            "file": file, "run": run_key(row), "made_of": made_of, "sources": sources,
            "n_frames": int(row["n_volumes"]), "orientation": header.orientation,
            "resampled": not same_grid(header.grid, grid), "mask_overlap": float(overlap),
        }  # fmt: skip

        def write(path: Path) -> None:
            if structural:
                volume = _onto(grid, scaled(load_volume(source)[0], own, source), header, row, settings)
                record.update(_write_image(path, volume, label, row, profile, planned))
            else:
                record.update(_write_series(path, folder, row, profile, planned, device))
            record["sha256"] = file_sha256(path)

        write_whole(store / file, write)
    record["whole"] = digest(record)
    write_whole(note, lambda p: p.write_text(json.dumps(record), encoding="utf-8"))
    return record


def _write_series(
    path: Path, folder: Path, row: pd.Series, profile: Profile, planned: Plan, device: str
) -> dict[str, Any]:
    """The labelled volumes of a run of fMRI."""
    import torch

    torch.set_num_threads(1)
    settings, source = profile.preprocessing, folder / row["image"]
    events = read_events(folder / row["events"], profile.data.events(row["task"]), row["task"])
    labels = label_frames(events.blocks, int(row["n_volumes"]), row["tr_s"], settings)
    counted: dict[str, Any] = {}

    def process(write: Callable[[slice, Any], None]) -> dict[str, np.ndarray]:
        n_constant, tsnr = process_run(
            source, planned.mask, planned.affine, row["tr_s"], settings, path.parent, write, device
        )
        counted.update(constant_voxels=n_constant, median_tsnr=float(np.median(tsnr)))
        return {"tsnr": tsnr}

    stored = write_volumes(path, labels.frames, int(planned.mask.sum()), settings.storage, process, ("tsnr",))
    return {
        "n_kept": len(labels.frames), **labels.dropped, **counted, **stored,
        "states_without_events": ", ".join(events.empty), "ignored_events": ", ".join(events.ignored),
        "unknown_events": ", ".join(events.unknown), "frames": labels.frames.tolist(), "states": list(labels.states),
    }  # fmt: skip


def _write_image(
    path: Path, volume: np.ndarray, label: str, row: pd.Series, profile: Profile, planned: Plan
) -> dict[str, Any]:
    """A structural image; its state is the one whose events have its label, without label column it has none."""
    import torch

    states = [state for state, values in profile.data.events(row["task"]).items() if label in values]
    kept = not profile.data.label or bool(states)
    values = torch.from_numpy(volume.T[planned.mask.T][None])

    def process(write: Callable[[slice, Any], None]) -> dict[str, np.ndarray]:
        write(slice(0, values.shape[1]), values)
        return {}

    frames = np.zeros(int(kept), np.int64)
    stored = write_volumes(path, frames, values.shape[1], profile.preprocessing.storage, process)
    return {
        "n_kept": int(kept), "images_without_state": int(not kept), **stored,
        "ignored_events": "" if kept else label, "unknown_events": "", "frames": frames.tolist(),
        "states": (states or [""])[: int(kept)],
    }  # fmt: skip


def _record_of_finished(note: Path, file: Path, made_of: str, sources: dict[str, list[float]]) -> dict[str, Any] | None:
    """A run's record, if its file is whole and made of just this; else None."""
    try:
        record = json.loads(note.read_text(encoding="utf-8"))
        whole = digest({key: value for key, value in record.items() if key != "whole"}) == record["whole"]
        current = whole and (record["made_of"], record["sources"]) == (made_of, sources)
        current = current and record["sha256"] == file_sha256(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(record) if current else None


def _write_statistics(store: Path, files: list[tuple[str, float]]) -> None:
    """Mean and sample SD of every voxel over images (file, scale), by Welford's method."""
    n, mean, squares = 0, np.float64(0), np.float64(0)
    for file, scale in files:
        with safe_open(store / file, framework="numpy") as tensors:
            for volume in tensors.get_tensor("volumes").astype(np.float64) * scale:
                n += 1
                change = volume - mean
                mean = mean + change / n
                squares = squares + change * (volume - mean)
    if n < 2:
        raise ValueError(
            f"{n} training image(s) have no standard deviation; set preprocessing.structural.z_score to false"
        )
    sd = np.sqrt(squares / (n - 1))
    tensors = {"mean": np.asarray(mean, np.float32), "sd": np.asarray(sd, np.float32)}
    write_whole(store / "statistics.safetensors", lambda p: p.write_bytes(save(tensors)))
