"""The volume store: in-mask float16 volumes of labelled frames, one safetensors file per run, a Parquet index.

store.json           grid, TR, settings, manifest hash, versions: refused when they differ from what is asked for
mask.nii.gz          the common mask
runs/<run>.safetensors   `volumes` (N, V) float16; how they were made is in the file's own metadata
runs.parquet         one row per run: file, sha256, what was kept and what was left out
index.parquet        one row per volume; written last, so that a store that has it is whole
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from deeplight_core.config import digest
from deeplight_core.files import file_sha256
from deeplight_core.images import UNREADABLE
from deeplight_core.progress import track

__all__ = ["Store", "open_store", "verify"]


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
    def box(self) -> tuple[slice, slice, slice]:
        """The part of the grid (X, Y, Z) that the model sees: all of it, or the mask's bounding box."""
        if not self.info["preprocessing"]["crop"]:
            return tuple(slice(0, n) for n in self.mask.shape)  # type: ignore[return-value]
        corners = [np.flatnonzero(self.mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        return tuple(slice(int(c[0]), int(c[-1]) + 1) for c in corners)  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the volumes that the model sees."""
        return tuple(s.stop - s.start for s in self.box)

    @property
    def identity(self) -> str:
        """A hash of all that the store holds."""
        return digest(self.info, list(self.runs["sha256"]))

    def read(self, file: str) -> Any:
        """A run's volumes (N, V), float16, memory-mapped.

        Raises
        ------
        ValueError
            If the file is gone, or is not what was written (sha256).
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

    def unmask(self, values: np.ndarray) -> nib.Nifti1Image:
        """A (V,) map as NIfTI on the store's grid."""
        data = np.zeros(self.mask.shape[::-1], np.float32)
        data[self.mask.T] = values
        return nib.Nifti1Image(data.T, self.affine)


def open_store(path: str | Path) -> Store:
    """Open a whole store; raises ValueError if it is missing, unfinished or unreadable."""
    path = Path(path)
    if not (path / "index.parquet").is_file():
        state = "is not finished" if path.exists() else "does not exist"
        raise ValueError(f"store {path} {state}; run `deeplight prepare` (or notebook 01_data) first")
    try:
        info = json.loads((path / "store.json").read_text(encoding="utf-8"))
        index, runs = pd.read_parquet(path / "index.parquet"), pd.read_parquet(path / "runs.parquet")
        image = nib.load(path / "mask.nii.gz")
        mask = np.asarray(image.dataobj) > 0
    except UNREADABLE as error:
        raise ValueError(f"store {path} is damaged ({error}); delete it and run `deeplight prepare` again") from error
    return Store(path, info, mask, image.affine, index, runs)


def verify(path: str | Path) -> list[str]:
    """What is wrong with a store, a line each: files that are gone or damaged, counts that do not agree.

    Raises
    ------
    ValueError
        If it cannot be opened at all.
    """
    store = open_store(path)
    problems = []
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
    for name, found in (("n_volumes", len(store.index)), ("n_voxels", int(store.mask.sum()))):
        if store.info[name] != found:
            problems.append(f"store.json says {name} {store.info[name]}, there are {found}")
    return problems
