"""Features of frozen encoders, computed once and kept beside the store.

`<store>-features/<key>/<run>.npy` holds the features of all volumes of a run. The key is a hash of everything that
decides them: the code, torch's version, the encoder's settings and weights, the store, and the voxels that are seen.
"""

import fcntl
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deeplight_core.config import digest
from deeplight_core.data.store import Store
from deeplight_core.models import Encoder
from deeplight_core.system.files import write_whole
from deeplight_core.system.provenance import code_hash
from deeplight_core.training.examples import Examples
from deeplight_core.training.inference import features
from deeplight_core.training.loader import Volumes

__all__ = ["cache_folder", "frozen_features"]


def frozen_features(encoder: Encoder, data: Volumes) -> np.ndarray:
    """The encoder's features of all examples, (N, F); those of volumes are computed once for each run of the store.

    Of clips and windows nothing is kept. Processes that want the same features wait for each other.
    """
    examples = data.examples
    if examples.members.ndim > 1:
        return features(encoder, data).reshape(len(data), -1)
    folder = cache_folder(encoder, data.store, examples.seen)
    folder.mkdir(parents=True, exist_ok=True)
    rows = examples.rows.iloc[examples.members]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [file for file in rows["file"].unique() if not _path(folder, file).is_file()]
        if missing:
            _compute(encoder, data, missing, folder)
    of_run = {file: np.load(_path(folder, file)) for file in rows["file"].unique()}
    return np.stack([of_run[file][row] for file, row in zip(rows["file"], rows["row"], strict=True)])


def cache_folder(encoder: Encoder, store: Store, seen: np.ndarray | None = None) -> Path:
    """Where features of an encoder are kept; its name depends on everything that decides them."""
    key = digest(
        code_hash(), torch.__version__.partition("+")[0], encoder.name, encoder.settings.model_dump(mode="json"),
        list(encoder.shape), _weights_hash(encoder), store.identity, None if seen is None else seen.tolist(),
    )  # fmt: skip
    return store.path.with_name(f"{store.path.name}-features") / key


def _weights_hash(module: nn.Module) -> str:
    import hashlib

    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _path(folder: Path, file: str) -> Path:
    return folder / f"{Path(file).stem}.npy"


def _compute(encoder: Encoder, data: Volumes, files: list[str], folder: Path) -> None:
    """Write the features of all volumes of some runs."""
    index = data.store.index
    rows = index[index["file"].isin(files)].sort_values(["file", "row"]).reset_index(drop=True)
    whole = Examples(rows, rows, np.arange(len(rows)), np.empty((len(rows), 0), np.float32), data.examples.seen)
    found = features(encoder, Volumes(data.store, whole, data.device)).reshape(len(rows), -1)
    for file, places in rows.groupby("file").indices.items():
        values = found[places]
        write_whole(_path(folder, str(file)), lambda p, values=values: _save(p, values))  # type: ignore[misc]


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, values)
