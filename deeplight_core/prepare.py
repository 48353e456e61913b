"""A manifest's runs into a volume store."""

import json
import os
from collections.abc import Callable
from functools import partial
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from threadpoolctl import threadpool_limits

from deeplight_core.config import PreprocessingSettings, Profile, digest
from deeplight_core.events import label_frames, read_events
from deeplight_core.files import file_sha256, write_whole
from deeplight_core.images import UNREADABLE, Grid, load_mask, resample, same_grid
from deeplight_core.manifest import run_key, unit_names
from deeplight_core.preprocess import process_run
from deeplight_core.store import Store, open_store
from deeplight_core.workers import in_processes

__all__ = ["prepare", "prepare_run"]


def _grid_and_mask(
    manifest: pd.DataFrame, root: Path, settings: PreprocessingSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The common affine and mask (X, Y, Z).

    Every run must have the first one's TR, every mask its run's grid, and every run the first one's grid unless the
    settings say which one to resample to.
    """
    problems: list[str] = []
    votes: np.ndarray | None = None
    first: tuple[str, float] | None = None
    grid = _target_grid(settings.resample_to)
    seen: dict[str, np.ndarray] = {}
    for _, row in manifest.iterrows():
        try:
            image = nib.load(root / row["image"])
            shape, affine = image.shape, image.affine
        except UNREADABLE as error:
            problems.append(f"{row['image']}: {error}")
            continue
        own = (shape[:3], affine)
        first, grid = first or (row["image"], row["tr_s"]), grid or own
        if not (settings.resample_to or same_grid(own, grid)):
            problems.append(
                f"{row['image']}: grid {shape[:3]} with affine {affine[:3].tolist()} differs from {first[0]}; "
                "say with preprocessing.resample_to which grid all runs are to be resampled to"
            )
        elif abs(row["tr_s"] - first[1]) > 1e-4:
            problems.append(f"{row['image']}: TR {row['tr_s']} s differs from {first[1]} s of {first[0]}")
        elif len(shape) != 4 or shape[3] != row["n_volumes"]:
            problems.append(f"{row['image']}: shape {shape}, but the manifest says {row['n_volumes']} volumes")
        else:
            source = row["mask"] or row["image"]
            try:
                if source not in seen:
                    seen[source] = _mask_of(root, row, image, grid)
                votes = seen[source].astype(np.int32) if votes is None else votes + seen[source]
            except UNREADABLE as error:
                problems.append(f"{source}: {error}" if source not in str(error) else str(error))
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in {root}:\n" + "\n".join(f"  {p}" for p in problems))
    assert grid is not None  # a manifest has rows
    assert votes is not None
    common = votes >= settings.mask_coverage * len(manifest) - 1e-9
    if not common.any():
        raise ValueError(
            f"no voxel lies in {settings.mask_coverage:.0%} of the runs' masks; lower preprocessing.mask_coverage"
        )
    return grid[1], common


def _target_grid(resample_to: str | None) -> Grid | None:
    """The grid that `resample_to` names; None for that of the first run."""
    if resample_to in (None, "first"):
        return None
    if resample_to == "hcp2mm":
        return (91, 109, 91), np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    try:
        image = nib.load(resample_to)
    except UNREADABLE as error:
        raise ValueError(
            f"preprocessing.resample_to: {resample_to} is not hcp2mm, first or a readable image: {error}"
        ) from None
    return image.shape[:3], image.affine


def _mask_of(root: Path, row: pd.Series, image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """A run's mask on the common grid; without one, the voxels that are not zero in its first volume."""
    own = (image.shape[:3], image.affine)
    if not row["mask"]:
        mask = np.asarray(image.dataobj[..., 0]) != 0
        return mask if same_grid(own, grid) else resample(mask.astype(np.uint8), image.affine, grid, "nearest") > 0
    header = nib.load(root / row["mask"])
    if header.shape[:3] != own[0]:
        raise ValueError(f"mask {row['mask']} has grid {header.shape[:3]}, its run {row['image']} has {own[0]}")
    if not np.allclose(header.affine, image.affine, atol=1e-3):
        raise ValueError(f"mask {row['mask']} has another affine than {row['image']}")
    return load_mask(root / row["mask"], grid)


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
    path, root = profile.store, profile.data_root
    made_with = {
        "preprocessing": profile.preprocessing.model_dump(mode="json"),
        "events": {task: profile.data.events(task) for task in sorted(set(manifest["task"]))},
        "split_unit": profile.data.split_unit,
        "manifest": digest(manifest.to_dict("records")),
        "tr_s": float(manifest["tr_s"].iloc[0]),
    }
    if (path / "store.json").is_file():
        found = json.loads((path / "store.json").read_text(encoding="utf-8"))
        if differing := [key for key, value in made_with.items() if found.get(key) != value]:
            raise ValueError(
                f"store {path} was made with other {', '.join(differing)}: "
                + "; ".join(f"{k} {json.dumps(found.get(k))}, now {json.dumps(made_with[k])}" for k in differing)
                + ". Delete it, or give the profile another name"
            )
        if (path / "index.parquet").is_file():
            store = open_store(path)
            if all((path / file).is_file() for file in store.runs["file"]):
                return store
    affine, mask = _grid_and_mask(manifest, root, profile.preprocessing)
    (path / "runs").mkdir(parents=True, exist_ok=True)
    work = partial(prepare_run, root=root, store=path, mask=mask, affine=affine, profile=profile, device=device)
    records = in_processes(work, [row for _, row in manifest.iterrows()], jobs, "prepared runs", keep_going)
    volumes = pd.concat([pd.DataFrame(r.pop("volumes")) for r in records], ignore_index=True)
    if volumes.empty:
        raise ValueError("no volume of any run lies in a block; check the events, lag_s and skip_s")
    rows = manifest.assign(unit=unit_names(manifest, profile.data.split_unit), file=[r["file"] for r in records])
    index = volumes.merge(
        rows[["file", "dataset", "subject", "session", "task", "run", "unit", "split"]], on="file", how="left"
    )
    index = index.assign(row=index.groupby("file").cumcount())
    info = {
        **made_with, "shape": list(mask.shape), "n_voxels": int(mask.sum()), "n_volumes": len(index),
        "software": {name: version(name) for name in ("deeplight-core", "nilearn", "numpy", "scipy", "torch")},
    }  # fmt: skip
    image = nib.Nifti1Image(mask.astype(np.uint8), affine)
    write_whole(path / "mask.nii.gz", lambda p: nib.save(image, p))
    write_whole(path / "store.json", lambda p: p.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8"))
    write_whole(path / "runs.parquet", pd.DataFrame(records).to_parquet)
    write_whole(path / "index.parquet", index.to_parquet)
    return open_store(path)


def prepare_run(
    row: pd.Series, root: Path, store: Path, mask: np.ndarray, affine: np.ndarray, profile: Profile, device: str
) -> dict[str, Any]:
    """Write one run's file, unless it is there as it would be written; return its record with `volumes` columns."""
    import torch

    file, source = f"runs/{run_key(row)}.safetensors", root / row["image"]
    sha256 = file_sha256(source)
    if row["sha256"] and sha256 != row["sha256"]:
        raise ValueError(
            f"{source} is not the file the manifest means: its sha256 is {sha256}, expected {row['sha256']}"
        )
    settings = profile.preprocessing
    events = read_events(root / row["events"], profile.data.events(row["task"]), row["task"])
    labels = label_frames(events.blocks, int(row["n_volumes"]), row["tr_s"], settings)
    made_of = digest(
        sha256, settings, float(row["tr_s"]), np.packbits(mask).tobytes().hex(), affine.round(4).tolist(),
        labels.frames.tolist(), labels.states.tolist(),
    )  # fmt: skip
    n_constant = _constant_of_finished(store / file, made_of)
    if n_constant is None:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            write_whole(
                store / file,
                partial(
                    _write_run,
                    made_of=made_of,
                    frames=labels.frames,
                    mask=mask,
                    process=partial(
                        process_run, source, mask, affine, row["tr_s"], settings, store / "runs", device=device
                    ),
                ),
            )
        n_constant = _constant_of_finished(store / file, made_of)
    own = nib.load(source)
    return {
        "file": file, "sha256": file_sha256(store / file), "run": run_key(row), "split": row["split"],
        "n_frames": int(row["n_volumes"]), "n_kept": len(labels.frames), **labels.dropped,
        "orientation": "".join(nib.aff2axcodes(own.affine)),
        "resampled": not same_grid((own.shape[:3], own.affine), (mask.shape, affine)),
        "constant_voxels": n_constant, "states_without_events": ", ".join(events.empty),
        "ignored_events": ", ".join(events.ignored), "unknown_events": ", ".join(events.unknown),
        "volumes": {
            "file": [file] * len(labels.frames), "frame": labels.frames,
            "onset_s": labels.frames * row["tr_s"], "state": labels.states,
        },
    }  # fmt: skip


def _write_run(path: Path, made_of: str, frames: np.ndarray, mask: np.ndarray, process: Callable[..., int]) -> None:
    """A safetensors file, written a block of voxels at a time: length of the header (8 bytes), header, volumes."""
    import torch

    shape = (len(frames), int(mask.sum()))
    size = 2 * shape[0] * shape[1]

    def header(n_constant: int, sha256: str, length: int = 0) -> bytes:
        record = json.dumps({"made_of": made_of, "n_constant_voxels": n_constant, "sha256": sha256})
        tensor = {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": {"record": record}, "volumes": tensor}).encode().ljust(length)
        return len(text).to_bytes(8, "little") + text

    start = -(-len(header(shape[1], 64 * "0")) // 8) * 8  # the longest header there can be, volumes aligned after it
    chosen = torch.from_numpy(frames)
    with path.open("w+b") as file:

        def write(block: slice, series: Any) -> None:
            for row, values in enumerate(series[chosen.to(series.device)].half().cpu().numpy()):
                os.pwrite(file.fileno(), values.tobytes(), start + 2 * (row * shape[1] + block.start))

        n_constant = process(write=write)
        file.seek(start)
        sha256 = file_digest(file, "sha256").hexdigest()
        file.seek(0)
        file.write(header(n_constant, sha256, start - 8))


def _constant_of_finished(path: Path, made_of: str) -> int | None:
    """The number of constant voxels noted in a run's file, if the file is whole and made of just this; else None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as tensors:
            record = json.loads(tensors.metadata()["record"])
        with path.open("rb") as stream:
            stream.seek(8 + int.from_bytes(stream.read(8), "little"))  # after the header
            whole = record["made_of"] == made_of and record["sha256"] == file_digest(stream, "sha256").hexdigest()
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return int(record["n_constant_voxels"]) if whole else None
