"""From a manifest's runs and structural images to a volume store.

Three steps, each resumable: the plan (grid and common mask), the runs (independent of one another, by any number of
processes on any number of machines), the index.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save
from threadpoolctl import threadpool_limits

from deeplight_core.config import Profile, digest
from deeplight_core.data.images import Header, load_volume, read_header, same_grid
from deeplight_core.data.labels import NO_VOLUMES, check_labels, losses, remedy
from deeplight_core.data.manifest import COLUMNS, is_structural, run_key, start_of, unit_names
from deeplight_core.data.plan import Plan, finished, misfit, on_grid, own_mask, plan, software, still_holds
from deeplight_core.data.preprocess import process_run
from deeplight_core.data.runs import run_of, source_files
from deeplight_core.data.store import FORMAT, Store, changed_sources, open_store, write_volumes
from deeplight_core.data.structural import (
    distance_mm,
    grey_matter,
    likeness,
    region_names,
    regional_means,
    register,
    scaled,
)
from deeplight_core.preparation import TRIAL_TYPE, StructuralSettings
from deeplight_core.system.files import file_sha256, write_whole
from deeplight_core.system.sources import Stamps, at_hand, changed_since, is_remote, refuse_escape, stamps
from deeplight_core.system.workers import in_processes

__all__ = ["prepare", "prepare_run", "prepare_subjects"]

_ABANDONED_S = 3600  # files untouched for longer are left over from a killed process
_FAR_MM = 10.0  # from the template: farther than a brain in MNI152 lies, nearer than most in their own space
_UNLIKE = 0.3  # correlation with the template, in size; registered brains of T1w have about 0.6
_CONTRASTS = {"T1w": 1, "T2w": -1}  # sign of an image's correlation with the template, a T1w


def prepare(
    manifest: pd.DataFrame, profile: Profile, jobs: int | None = None, device: str = "cpu", keep_going: bool = False
) -> Store:
    """Bring a manifest's runs into the profile's store; runs already there are kept.

    Parameters
    ----------
    jobs : worker processes, each on one core; one per core by default
    keep_going : prepare all runs that can be prepared, then raise the errors of the others

    Raises
    ------
    ValueError
        If the store was made with other settings, or any input is bad; the store is then left as it was.
    """
    path = profile.store
    if finished(manifest, profile):
        store = open_store(path)
        whole = all((path / file).is_file() for file in store.runs["file"])
        if whole and not _forget_changed(store, profile.data_root):
            return store
    table = check_labels(manifest, profile, keep_going)
    for loss in [*(lost := losses(table)), *([remedy(profile.preprocessing, table)] if lost else [])]:
        print(f"warning: {loss}", flush=True)
    planned = plan(manifest, profile, keep_going)
    records = _prepare_runs(manifest, profile, planned, jobs, device, keep_going)
    _refuse_copies(manifest, records)
    if not any(record["frames"] for record in records):
        if profile.data.label and is_structural(manifest).all():
            raise ValueError(_no_label(manifest, profile))
        raise ValueError(NO_VOLUMES)
    files = [record["file"] for record in records]
    volumes = pd.concat(
        [
            pd.DataFrame({"file": r["file"], "frame": r["frames"], "state": r["states"], "block": r["blocks"]})
            for r in records
            if r["frames"]
        ],
        ignore_index=True,
    )
    runs = manifest.assign(unit=unit_names(manifest, profile.data.split_unit), file=files)
    labels = [column for column in manifest.columns if column not in COLUMNS]
    index = volumes.merge(
        runs[["file", "tr_s", "dataset", "subject", "session", "task", "run", "unit", "family", "split", *labels]],
        on="file",
        how="left",
    )
    starts = runs.set_index("file").apply(start_of, axis=1)
    index.insert(2, "onset_s", index["frame"] * index.pop("tr_s").fillna(0.0) + index["file"].map(starts))
    if profile.preprocessing.example.kind != "volume":
        index["onset_s"] = [onset for record in records for onset in record.get("onsets", [0.0] * record["n_kept"])]
    index["row"] = index.groupby("file").cumcount()
    if not still_holds(manifest, profile, planned):
        raise ValueError(f"store {path} was begun anew with other settings meanwhile; prepare it again")
    if profile.preprocessing.structural.z_score and is_structural(manifest).all():
        trained_on = [r for r, split in zip(records, manifest["split"], strict=True) if split == "train"]
        _write_statistics(path, [(record["file"], record["scale"]) for record in trained_on])
    private = (
        "made_of", "sources", "names", "root", "frames", "states", "blocks", "onsets", "whole", "transform", "regions"
    )  # fmt: skip
    own = pd.DataFrame([{key: value for key, value in r.items() if key not in private} for r in records])
    own.insert(2, "split", manifest["split"].to_numpy())
    if profile.preprocessing.structural.regions != "none" and is_structural(manifest).all():
        means = pd.DataFrame(
            [r["regions"] for r in records], index=pd.Index(files, name="file"), columns=region_names()
        )
        write_whole(path / "regions.parquet", means.to_parquet)
    if profile.preprocessing.structural.registration == "affine" and is_structural(manifest).all():
        _write_coverage(path, planned, files)
    if len(table):
        write_whole(path / "labels.parquet", table.to_parquet)
    write_whole(path / "runs.parquet", own.to_parquet)
    write_whole(path / "index.parquet", index.to_parquet)
    _remove_abandoned(path / "runs")
    if not profile.preprocessing.confounds.strategy and "unsteady_volumes" in own:
        unsteady = own[own["unsteady_volumes"] > profile.preprocessing.drop_volumes]
        if len(unsteady):
            print(
                f"warning: the confounds of {len(unsteady)} run(s) mark up to {unsteady['unsteady_volumes'].max():.0f} "
                "volumes as before the steady state, which are kept; leave them out with --drop-volumes (or "
                "--confounds non_steady_state)",
                flush=True,
            )
    for line in _image_notes(own, profile.preprocessing.structural):
        print(line, flush=True)
    return open_store(path)


def prepare_subjects(
    manifest: pd.DataFrame,
    profile: Profile,
    subjects: list[str],
    jobs: int | None = None,
    device: str = "cpu",
    keep_going: bool = False,
) -> int:
    """Prepare the runs of some subjects, as one of many processes that fill the same store; return the number of runs.

    No process waits for another: each run has its own file, and `prepare` writes the index at the end.
    """
    if missing := sorted({*subjects} - {*manifest["subject"]}):
        raise ValueError(f"the manifest has no runs of subject {', '.join(missing)} for this profile")
    if not finished(manifest, profile):
        rows = manifest[manifest["subject"].isin(subjects)]
        _prepare_runs(rows, profile, plan(manifest, profile, keep_going), jobs, device, keep_going)
    return int(manifest["subject"].isin(subjects).sum())


def _prepare_runs(
    rows: pd.DataFrame, profile: Profile, planned: Plan, jobs: int | None, device: str, keep_going: bool
) -> list[dict[str, Any]]:
    work = partial(prepare_run, profile=profile, planned=planned, device=device)
    return in_processes(work, [row for _, row in rows.iterrows()], jobs, "prepared runs", keep_going)


def _forget_changed(store: Store, root: Any) -> bool:
    """Whether sources on this machine have changed since the store was made; it is then unfinished, so that their runs
    are made anew, and the plan, too, if they are images."""
    if is_remote(root) or not (changed := changed_sources(store, root)):
        return False
    some = ", ".join(name for names in list(changed.values())[:3] for name in names[:1])
    print(f"files have changed since the store was made; {len(changed)} run(s) made anew: {some} …", flush=True)
    (store.path / "index.parquet").unlink()
    if any(name.endswith((".nii", ".nii.gz")) for names in changed.values() for name in names):
        (store.path / "mask.nii.gz").unlink()
    return True


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left behind."""
    for left_over in [*folder.glob("partial_*"), *folder.glob("fetched_*")]:
        try:
            if time.time() - left_over.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        except FileNotFoundError:  # another process has just finished it
            continue


# ---- a run


def prepare_run(row: pd.Series, profile: Profile, planned: Plan, device: str = "cpu") -> dict[str, Any]:
    """Write one run's file and its record, unless both are up to date; return the record.

    Raises
    ------
    ValueError
        If a file of the run is missing, damaged, or not what the manifest or the plan says.
    """
    store, root, settings = profile.store, profile.data_root, profile.preprocessing
    file, structural = f"runs/{run_key(row)}.safetensors", is_structural(row)
    note = (store / file).with_suffix(".json")
    names = source_files(root, row)
    for name in names:
        refuse_escape(root, name)
    label = str(row[profile.data.label]) if structural and profile.data.label else ""
    asked: list[Any] = [profile.data.trial_type] if profile.data.trial_type != [*TRIAL_TYPE] else []
    asked += [start_of(row)] if start_of(row) else []
    made_of = digest(
        FORMAT, *names, row["sha256"], int(row["n_volumes"]), 0.0 if structural else float(row["tr_s"]), label,
        settings, profile.data.events(row["task"]), planned.identity, software(), *asked,
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
        if problem := misfit(row, header, grid, planned.tr_s, settings):
            raise ValueError(problem)
        own, place = own_mask(folder, row, header), header
        facts: dict[str, Any] = {}
        if structural:
            volume = load_volume(source)[0]
            image = scaled(volume, own, source)
            place, facts = _placed(volume, own, header, root / row["image"], row["task"], settings.structural)
        overlap = (on_grid(grid, own, place, row, settings) & planned.mask).sum() / planned.mask.sum()
        record = {
            "file": file, "run": run_key(row), "made_of": made_of, "sources": sources, "names": names,
            "root": str(root),
            "n_frames": int(row["n_volumes"]), "orientation": header.orientation,
            "resampled": not same_grid(header.grid, grid), "mask_overlap": float(overlap), **facts,
        }  # fmt: skip

        def write(path: Path) -> None:
            if structural:
                placed = on_grid(grid, image, place, row, settings)
                placed = placed.round() if settings.structural.rounded else placed
                record.update(_write_image(path, placed, label, row, profile, planned))
            else:
                record.update(_write_series(path, folder, row, profile, planned, own, device))
            record["sha256"] = file_sha256(path)

        write_whole(store / file, write)
    record["whole"] = digest(record)
    write_whole(note, lambda p: p.write_text(json.dumps(record), encoding="utf-8"))
    return record


def _placed(
    volume: np.ndarray, mask: np.ndarray, header: Header, path: Any, task: str, settings: StructuralSettings
) -> tuple[Header, dict[str, Any]]:
    """Where a structural image (X, Y, Z) lies, in MNI152 if it is registered, and what is noted about it.

    Notes: `content`, a hash of its values in the mask; `transform` to MNI152 and `template_fit`, if it is registered or
    its grey matter is sought; `regions`, the means; `doubt`, what speaks against the image ("": nothing).
    """
    brain = np.where(mask, volume, 0)
    facts: dict[str, Any] = {"content": hashlib.sha256(brain.tobytes()).hexdigest()[:16], "doubt": ""}
    if settings.registration == "affine":
        transform = register(brain, header.affine)
        header = replace(header, affine=transform @ header.affine)
        facts["transform"] = transform.tolist()
    elif settings.regions != "none" and (far := distance_mm(brain, header.affine)) > _FAR_MM:
        raise ValueError(
            f"{path} is not in MNI152 (its brain lies {far:.0f} mm off), so that it has no regions; set "
            "preprocessing.structural.registration to affine, or regions to none"
        )
    if settings.registration == "affine" or settings.regions == "grey":
        facts["template_fit"] = fit = likeness(brain, header.affine)
        if fit * _CONTRASTS.get(task, 0) < 0:
            facts["doubt"] = (
                f"contrast unlike {task}'s: white matter is {'darker' if fit < 0 else 'brighter'} than fluid"
            )
        elif abs(fit) < _UNLIKE and task in _CONTRASTS:
            facts["doubt"] = "fits the template badly"
    if settings.regions != "none":
        grey = grey_matter(volume, mask, header.affine) if settings.regions == "grey" else brain
        facts["regions"] = regional_means(grey, header.affine).tolist()
    return header, facts


def _write_series(
    path: Path, folder: Path, row: pd.Series, profile: Profile, planned: Plan, brain: np.ndarray, device: str
) -> dict[str, Any]:
    """Write the volumes to keep from a run of fMRI; without events, they have no state."""
    import torch

    torch.set_num_threads(1)
    settings, source = profile.preprocessing, folder / row["image"]
    run = run_of(row, folder, profile)
    labels, counted = run.labels, dict(run.facts)

    def process(write: Callable[[slice, Any], None]) -> dict[str, np.ndarray]:
        n_constant, tsnr = process_run(
            source, planned.mask, planned.affine, row["tr_s"], settings, path.parent, write, device, run.matrices, brain
        )
        if n_constant == len(tsnr):
            raise ValueError(f"{source}: no voxel varies over time, so there is no signal; leave this run out")
        counted.update(constant_voxels=n_constant, median_tsnr=float(np.median(tsnr)))
        return {"tsnr": tsnr}

    stored = write_volumes(path, run.rows, int(planned.mask.sum()), settings.storage, process, ("tsnr",))
    if run.onset_s is not None:
        counted["onsets"] = run.onset_s.tolist()
    return {
        "n_kept": len(labels.frames), **labels.dropped, **counted, **stored,
        "events_without_onset": run.events.without_onset, "states_without_events": ", ".join(run.events.empty),
        "ignored_events": ", ".join(run.events.ignored), "unknown_events": ", ".join(run.events.unknown),
        "frames": labels.frames.tolist(), "states": list(labels.states), "blocks": labels.blocks.tolist(),
    }  # fmt: skip


def _write_image(
    path: Path, volume: np.ndarray, label: str, row: pd.Series, profile: Profile, planned: Plan
) -> dict[str, Any]:
    """Write a structural image; its state is the one whose events include its label, none without a label column."""
    import torch

    states = [state for state, values in profile.data.events(row["task"]).items() if label in values]
    known = not profile.data.label or bool(states)
    kept = known or profile.preprocessing.keep == "all"
    values = torch.from_numpy(volume.T[planned.mask.T][None])

    def process(write: Callable[[slice, Any], None]) -> dict[str, np.ndarray]:
        write(slice(0, values.shape[1]), values)
        return {}

    frames = np.zeros(int(kept), np.int64)
    stored = write_volumes(path, frames, values.shape[1], profile.preprocessing.storage, process)
    return {
        "n_kept": int(kept), "images_without_state": int(not known), **stored,
        "ignored_events": "" if known else label, "unknown_events": "", "frames": frames.tolist(),
        "states": (states or [""])[: int(kept)], "blocks": [0] * int(kept),
    }  # fmt: skip


def _record_of_finished(note: Path, file: Path, made_of: str, sources: Stamps) -> dict[str, Any] | None:
    """A run's record if its file is whole and was made from exactly this; else None."""
    try:
        record = json.loads(note.read_text(encoding="utf-8"))
        whole = digest({key: value for key, value in record.items() if key != "whole"}) == record["whole"]
        current = whole and record["made_of"] == made_of and not changed_since(record["sources"], sources)
        current = current and record["sha256"] == file_sha256(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(record) if current else None


def _refuse_copies(manifest: pd.DataFrame, records: list[dict[str, Any]]) -> None:
    """Raise an error if people who may be divided share an image, whatever its file's compression or header."""
    first: dict[str, pd.Series] = {}
    problems = []
    for (_, row), record in zip(manifest.iterrows(), records, strict=True):
        if "content" in record:
            other = first.setdefault(record["content"], row)
            relatives = row["family"] != "" and row["family"] == other["family"]
            if row["subject"] != other["subject"] and not relatives:
                problems.append(
                    f"{row['image']} of {row['subject']} ({row['split']}) is the image of {other['subject']} "
                    f"({other['split']}), {other['image']}"
                )
    if problems:
        raise ValueError(
            f"{len(problems)} image(s) belong to two subjects; remove one row of each pair from the manifest, or give "
            "both the same family:\n" + "\n".join(f"  {p}" for p in problems)
        )


def _no_label(manifest: pd.DataFrame, profile: Profile) -> str:
    """What the label column holds instead of the states' values."""
    wanted = sorted({v for t in profile.data.tasks() for values in profile.data.events(t).values() for v in values})
    found = manifest[profile.data.label].value_counts()
    listed = ", ".join(f"{value or 'nothing'} ({n})" for value, n in found.head(5).items())
    return (
        f"no image has a state: the manifest's column {profile.data.label} holds {listed}, the states are made of "
        f"{', '.join(wanted)}; correct the column or the states, or store images without a state, too (--keep all)"
    )


def _image_notes(runs: pd.DataFrame, settings: StructuralSettings) -> list[str]:
    """What was done with structural images, and which of them to look at; one line each."""
    lines = []
    if "template_fit" in runs:
        fit = runs["template_fit"]
        fits = f"their correlation with its brain is {fit.min():.2f} to {fit.max():.2f} (median {fit.median():.2f})"
        done = "registered to MNI152 (affine)" if settings.registration == "affine" else "compared with MNI152"
        lines.append(f"{len(runs)} images were {done}; {fits}")
    if settings.regions != "none" and "doubt" in runs:
        what = "grey matter (by intensity, and where the template has it)" if settings.regions == "grey" else "values"
        lines.append(f"means of their {what} over 300 regions and the brain are in regions.parquet")
    if settings.zoom_to and (other := runs["orientation"] != runs["orientation"].iloc[0]).any():
        first = runs["orientation"].iloc[0]
        lines.append(f"{other.sum()} images of orientation {_several(runs.loc[other, 'orientation'])} became {first}")
    if "doubt" in runs:
        doubtful = runs[runs["doubt"] != ""]
        lines += [f"warning: {run}: {doubt}" for run, doubt in zip(doubtful["run"], doubtful["doubt"], strict=True)]
        again = runs.loc[runs.duplicated("content"), "run"]
        lines += [f"warning: {run} holds the same as an earlier image of its subject or family" for run in again]
    return lines


def _several(names: pd.Series) -> str:
    return ", ".join(sorted(set(names)))


def _write_coverage(store: Path, planned: Plan, files: list[str]) -> None:
    """Share of images that are not zero, at every voxel of the mask."""
    share = np.zeros(int(planned.mask.sum()))
    for file in files:
        with safe_open(store / file, framework="numpy") as tensors:
            share += (tensors.get_tensor("volumes") != 0).sum(axis=0) / len(files)
    data = np.zeros(planned.mask.shape[::-1], np.float32)
    data[planned.mask.T] = share
    image = nib.Nifti1Image(data.T, planned.affine)
    write_whole(store / "coverage.nii.gz", lambda p: nib.save(image, p))


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
