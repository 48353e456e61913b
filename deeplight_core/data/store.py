"""The volume store: in-mask volumes of labelled frames, or of all; one safetensors file per run, a Parquet index.

store.json           format, grid, TR, settings, manifest hash, versions; a store made with others is refused
mask.nii.gz          the common mask; coverage.nii.gz the share of runs whose own mask has a voxel
runs/<run>.safetensors   `volumes` (N, V) float16, or int8 with a scale; of runs of fMRI, `tsnr` (V) float16
runs/<run>.json      the run's record: what its file was made from, its sha256, what was kept and left out
statistics.safetensors   `mean`, `sd` (V) over the training images, if the settings ask for z-scores
regions.parquet      regional means of structural images, one row per image, if the settings ask for them
labels.parquet       events and volumes of every task, state and split, and events without volumes; of runs of fMRI
runs.parquet         the records, one row per run
index.parquet        one row per volume; written last: a store that has it is whole

Where the settings ask for one example per trial, a trial takes the place of a volume: `frame` and `block` are its
number within the run, `onset_s` is its onset.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from safetensors import SafetensorError, safe_open

from deeplight_core.config import LaterVersionError, digest, recorded_settings
from deeplight_core.data.images import UNREADABLE
from deeplight_core.data.manifest import SPLITS
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.system.files import file_sha256, read_at, write_at
from deeplight_core.system.progress import track
from deeplight_core.system.sources import changed_since, is_remote, located, stamps

__all__ = [
    "FORMAT",
    "Store",
    "changed_sources",
    "open_store",
    "read_info",
    "shared_images",
    "verify",
    "volume_reader",
    "write_volumes",
]

FORMAT = 2  # of the layout above
_AT_ONCE = 16  # records and sources read at a time


@dataclass(frozen=True)
class Store:
    """A whole store, opened for reading.

    info : store.json
    mask : (X, Y, Z) bool; affine : (4, 4)
    index : one row per volume, in the order of the files
    runs : one row per run
    """

    path: Path
    info: dict[str, Any]
    mask: np.ndarray
    affine: np.ndarray
    index: pd.DataFrame
    runs: pd.DataFrame

    @property
    def preprocessing(self) -> PreprocessingSettings:
        """The settings that its runs were prepared with."""
        return PreprocessingSettings.model_validate(self.info["preprocessing"])

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The part of the grid (X, Y, Z) that the model sees: all of it, or the mask's bounding box."""
        if not self.preprocessing.crop:
            return tuple(slice(0, n) for n in self.mask.shape)  # type: ignore[return-value]
        corners = [np.flatnonzero(self.mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        return tuple(slice(int(c[0]), int(c[-1]) + 1) for c in corners)  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the volumes that the model sees."""
        return tuple(s.stop - s.start for s in self.box)

    @property
    def box_affine(self) -> np.ndarray:
        """Affine (4, 4) of the volumes that the model sees."""
        corner = np.eye(4)
        corner[:3, 3] = [s.start for s in self.box]
        return self.affine @ corner

    @property
    def orientation(self) -> str:
        """The directions of the axes, e.g. LAS."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel in mm along X, Y, Z."""
        x, y, z = (float(edge) for edge in voxel_sizes(self.affine).round(4))
        return x, y, z

    @property
    def splits(self) -> list[str]:
        """The splits that have volumes."""
        return [split for split in SPLITS if (self.index["split"] == split).any()]

    @property
    def is_structural(self) -> bool:
        """Whether it holds structural images instead of runs of fMRI."""
        return self.info["tr_s"] is None

    @property
    def holds(self) -> str:
        """What one of its examples is, in the plural: volumes or trials."""
        return "volumes" if self.preprocessing.example.kind == "volume" else "trials"

    @property
    def normalisation(self) -> str:
        """How the model's input is scaled, in words."""
        if not self.is_structural:
            return "z-scores of each voxel over its run"
        if self.preprocessing.structural.z_score:
            return "z-scores of each voxel over the training images"
        return "scaled to [0, 1] in each image"

    @property
    def identity(self) -> str:
        """A hash of everything in the store."""
        others = {key: value for key, value in self.info.items() if key != "preprocessing"}
        return digest(self.preprocessing, others, list(self.runs["sha256"]))

    def read(self, file: str) -> Any:
        """A run's volumes (N, V) as stored, memory-mapped; multiply by `scales[file]` to get the values.

        Raises
        ------
        ValueError
            If the file is missing, or is not what was written (sha256).
        """
        path = self.path / file
        expected = self.runs.set_index("file").at[file, "sha256"]
        if not path.is_file():
            raise ValueError(f"{path} is gone; run `deeplight prepare` again to restore it")
        if file_sha256(path) != expected:
            raise ValueError(
                f"{path} is damaged (its sha256 is not the index's); delete it and run `deeplight prepare` again"
            )
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor("volumes")

    @property
    def scales(self) -> dict[str, float]:
        """The factor from each file's stored values to the values; 1 for float16."""
        return dict(zip(self.runs["file"], self.runs["scale"], strict=True))

    def statistics(self) -> tuple[Any, Any] | None:
        """Mean and SD (V) over the training images, float32, if volumes are z-scored with them; else None."""
        if not self.is_structural or not self.preprocessing.structural.z_score:
            return None
        path = self.path / "statistics.safetensors"
        if not path.is_file():
            raise ValueError(f"{path} is gone; delete {self.path / 'index.parquet'} and run `deeplight prepare` again")
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor("mean"), tensors.get_tensor("sd")

    def regional(self) -> pd.DataFrame:
        """Means of grey matter, or of a map's values: one row per file, one column per region, and one for the brain.

        Raises
        ------
        ValueError
            If the store was prepared without them.
        """
        if not self.is_structural or self.preprocessing.structural.regions == "none":
            raise ValueError(
                f"store {self.path} has no regional means; prepare it with preprocessing.structural.regions: grey "
                "(or values, for maps of grey matter)"
            )
        try:
            return pd.read_parquet(self.path / "regions.parquet")
        except UNREADABLE as error:
            raise _damaged(self.path, error) from error

    def tsnr(self) -> np.ndarray:
        """Temporal signal-to-noise ratio (V), averaged over runs.

        In each run it is mean / SD over time of the smoothed series, before detrending.
        """
        total = np.zeros(self.info["n_voxels"], np.float32)
        for file in self.runs["file"]:
            with safe_open(self.path / file, framework="numpy") as tensors:
                total += tensors.get_tensor("tsnr")
        return total / len(self.runs)

    def labels(self) -> pd.DataFrame:
        """As `labels.label_table` gives it: events, losses and volumes of every task and state; or empty."""
        path = self.path / "labels.parquet"
        return pd.read_parquet(path) if path.is_file() else pd.DataFrame()

    def coverage(self) -> np.ndarray:
        """Share of runs whose own mask has a voxel, (X, Y, Z)."""
        return np.asarray(nib.load(self.path / "coverage.nii.gz").dataobj, dtype=np.float32)

    def unmask(self, values: np.ndarray) -> nib.Nifti1Image:
        """A (V,) map as NIfTI on the store's grid."""
        data = np.zeros(self.mask.shape[::-1], np.float32)
        data[self.mask.T] = values
        return nib.Nifti1Image(data.T, self.affine)


def open_store(path: str | Path) -> Store:
    """Open a whole store; raises ValueError if it is missing, unfinished, unreadable, or in another format."""
    path = Path(path)
    if not (path / "index.parquet").is_file():
        state = "is not finished" if path.exists() else "does not exist"
        raise ValueError(f"store {path} {state}; run `deeplight prepare` (or notebook 01_data) first")
    info = read_info(path)
    try:
        index, runs = pd.read_parquet(path / "index.parquet"), pd.read_parquet(path / "runs.parquet")
        image = nib.load(path / "mask.nii.gz")
        mask = np.asarray(image.dataobj) > 0
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    return Store(path, info, mask, image.affine, index, runs)


def shared_images(one: Store, other: Store) -> pd.DataFrame:
    """Structural images that two stores have in common, whatever their grids: `run, other_run, subject, other_subject`.

    Images are the same if they have the same values in their masks, before anything is done to them.
    """
    tables = []
    for store, prefix in ((one, ""), (other, "other_")):
        subjects = store.index.drop_duplicates("file").set_index("file")["subject"]
        table = store.runs.reindex(columns=["content", "run", "file"]).dropna()
        table = table.assign(subject=table["file"].map(subjects)).drop(columns="file")
        tables.append(table.rename(columns={name: prefix + name for name in ("run", "subject")}))
    return tables[0].merge(tables[1], on="content")[["run", "other_run", "subject", "other_subject"]]


def read_info(path: Path) -> dict[str, Any]:
    """The contents of a store's store.json; settings that its version did not have get their defaults.

    Raises
    ------
    LaterVersionError
        If it has a later format, or settings that this version does not have.
    ValueError
        If it is missing, unreadable, or has an earlier format.
    """
    try:
        read = json.loads((path / "store.json").read_text(encoding="utf-8"))
        info: dict[str, Any] = read if isinstance(read, dict) else {}
        found = info["format"] if isinstance(info.get("format"), int) else 1
        needed = ("preprocessing", "events", "tr_s", "shape", "n_voxels")
        if found <= FORMAT and (lacking := [key for key in needed if key not in info]):
            raise ValueError(f"store.json lacks {', '.join(lacking)}")
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if found > FORMAT:
        raise LaterVersionError(
            f"store {path} was made by a later version (format {found}, this one knows {FORMAT}); "
            "update deeplight-core, or name another store"
        )
    if found < FORMAT:
        raise ValueError(
            f"store {path} was made by an earlier version (format {found}, not {FORMAT}); "
            "`deeplight prepare` makes it anew"
        )
    settings = recorded_settings(PreprocessingSettings, info["preprocessing"], f"store {path}")
    return {**info, "preprocessing": settings.model_dump(mode="json")}


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"store {path} is damaged ({error}); delete it and run `deeplight prepare` again")


def changed_sources(store: Store, root: Any = None) -> dict[str, list[str]]:
    """File of a run → its sources that are not as they were when it was made: in size, time or content, new, or gone.

    A run one of whose sources has gone altogether has not changed: data may be deleted that are no longer needed.

    Parameters
    ----------
    root : where the sources are (None = where they were; stores of earlier versions do not say, and are not compared)
    """

    def of_run(file: str) -> list[str]:
        try:
            record = json.loads((store.path / file).with_suffix(".json").read_text(encoding="utf-8"))
            noted = record["sources"]
            names = record.get("names") or [*noted]
            place = root or (located(record["root"]) if "root" in record else None)
            return [] if place is None or is_remote(place) else changed_since(noted, stamps(place, names))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(zip(store.runs["file"], pool.map(of_run, store.runs["file"]), strict=True))
    return {file: names for file, names in found.items() if names}


def verify(path: str | Path) -> list[str]:
    """The problems of a store, one line each: files that are missing or damaged, counts that disagree.

    Raises
    ------
    ValueError
        If it cannot be opened at all.
    """
    store = open_store(path)
    problems = [
        f"{name} of {file} has changed since the store was made; run `deeplight prepare` again"
        for file, names in changed_sources(store).items() for name in names
    ]  # fmt: skip
    counts = store.index.groupby("file").size()
    for file, n_kept in track(
        zip(store.runs["file"], store.runs["n_kept"], strict=True), len(store.runs), "verified runs"
    ):
        try:
            shape = tuple(store.read(file).shape)
        except (ValueError, SafetensorError, OSError) as error:
            problems.append(str(error))
            continue
        expected = (int(counts.get(file, 0)), int(store.mask.sum()))
        if shape != expected or shape[0] != n_kept:
            problems.append(f"{store.path / file} holds {shape} (volumes, voxels), the index says {expected}")
    if strangers := sorted({*counts.index} - {*store.runs["file"]}):
        problems.append(f"index.parquet has volumes of runs that runs.parquet lacks: {', '.join(strangers)}")
    if store.info["n_voxels"] != store.mask.sum():
        problems.append(f"store.json says n_voxels {store.info['n_voxels']}, the mask has {store.mask.sum()}")
    return problems


def volume_reader(path: Path) -> Callable[[int], Any]:
    """A function that reads single volumes (V,) of a run's file, in any order.

    A memory map would fetch far more from a disk that reads ahead. No file is kept open.
    """
    import torch

    with path.open("rb") as stream:
        n = int.from_bytes(stream.read(8), "little")
        tensor = json.loads(stream.read(n))["volumes"]
    first, n_voxels = 8 + n + tensor["data_offsets"][0], tensor["shape"][1]
    dtype = {"F16": np.float16, "I8": np.int8}[tensor["dtype"]]

    def read(row: int) -> Any:
        volume = np.empty(n_voxels, dtype)
        with path.open("rb", buffering=0) as stream:
            read_at(stream.fileno(), volume, first + row * volume.nbytes)
        return torch.from_numpy(volume)

    return read


def write_volumes(
    path: Path,
    frames: np.ndarray,
    n_voxels: int,
    storage: str,
    process: Callable[[Callable[[slice, Any], None]], dict[str, np.ndarray]],
    maps: tuple[str, ...] = (),
) -> dict[str, float]:
    """Write a run's file, a block of voxels at a time, without ever holding the run in memory.

    Parameters
    ----------
    frames : (N,) numbers of the frames to keep
    storage : float16 or int8
    process : receives a function of a slice of the voxels and their series (T, v), and calls it for all voxels;
        returns the maps (V,) to store beside the volumes
    maps : names of these maps

    Returns
    -------
    `scale`, and for int8 the largest and the root-mean-square rounding error
    """
    import torch

    chosen, dtype = torch.from_numpy(frames), {"float16": "F16", "int8": "I8"}[storage]
    tensors, end = {}, 0
    for name, its_type, shape in [*((m, "F16", [n_voxels]) for m in maps), ("volumes", dtype, [len(frames), n_voxels])]:
        start, end = end, end + int(np.prod(shape)) * (1 if its_type == "I8" else 2)
        tensors[name] = {"dtype": its_type, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(tensors).encode()
    header = text.ljust(-(-len(text) // 8) * 8)  # volumes are aligned after it
    first = 8 + len(header) + start
    with path.open("w+b") as file, TemporaryFile(dir=path.parent) as scratch:
        target, offset = (file, first) if storage == "float16" else (scratch, 0)

        def write(block: slice, series: Any) -> None:
            for row, values in enumerate(series[chosen.to(series.device)].half().cpu().numpy()):
                write_at(target.fileno(), values, offset + 2 * (row * n_voxels + block.start))

        made = process(write)
        file.write(len(header).to_bytes(8, "little") + header)
        for name in maps:
            file.write(np.asarray(made[name], np.float16).tobytes())
        return {"scale": 1.0} if storage == "float16" else _to_int8(scratch, file, len(frames), n_voxels)


def _to_int8(source: BinaryIO, target: BinaryIO, n_rows: int, n_voxels: int) -> dict[str, float]:
    """Copy float16 rows as int8, in steps of 1/127 of the largest absolute value."""

    def rows() -> Any:
        for row in range(n_rows):
            read_at(source.fileno(), values := np.empty(n_voxels, np.float16), 2 * row * n_voxels)
            yield values.astype(np.float32)

    scale = max((float(np.abs(row).max()) for row in rows()), default=0.0) / 127 or 1.0
    largest, squares = 0.0, 0.0
    for row in rows():
        rounded = np.rint(row / scale).astype(np.int8)
        target.write(rounded.tobytes())
        error = rounded * np.float32(scale) - row
        largest, squares = max(largest, float(np.abs(error).max())), squares + float(np.square(error).sum())
    rms = float(np.sqrt(squares / max(1, n_rows * n_voxels)))
    return {"scale": scale, "rounding_largest": largest, "rounding_rms": rms}
