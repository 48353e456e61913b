"""Seeded, resumable batches from a store to a device.

Which volumes are in a batch is a pure function of (seed, step): it does not matter where a run is resumed, nor whether
the volumes come from memory or from disk.
"""

import os
import queue
import threading
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deeplight_core.store import Store, volume_reader

__all__ = ["Batch", "Volumes", "draw_units", "permute_labels", "rows_of_step", "select_rows", "steps_per_pass"]

Batch = dict[str, Tensor]
_PREFETCH = 4  # batches read ahead when streaming: the bound on its buffer
_SHARE_OF_MEMORY = 0.5


def select_rows(
    index: pd.DataFrame, states: list[tuple[str, str]], split: str, units: list[str] | None = None
) -> pd.DataFrame:
    """The index rows of (task, state) pairs, a split and units, with their `label`: the position in `states`."""
    labels = pd.Series({pair: label for label, pair in enumerate(states)}, dtype="int64")
    rows = index[index["split"] == split]
    if units is not None:
        rows = rows[rows["unit"].isin(units)]
    label = labels.reindex(pd.MultiIndex.from_frame(rows[["task", "state"]])).to_numpy()
    rows = rows.assign(label=label).dropna(subset="label").astype({"label": "int64"}).reset_index(drop=True)
    if rows.empty:
        of_units = f" for {units}" if units else ""
        raise ValueError(f"the store has no {split} volumes of {sorted({t for t, _ in states})}{of_units}")
    return rows


def draw_units(units: list[str], fraction: float, seed: int) -> list[str]:
    """A seeded fraction of the units, at least one; smaller fractions are subsets of larger ones."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}; 0.05 means 5% of the training units")
    order = np.random.default_rng([seed, 0xF2AC]).permutation(sorted(units))
    return [str(u) for u in order[: max(1, int(fraction * len(units) + 0.5))]]


def permute_labels(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows with their `label` in random order within each run: as frequent as before, and without meaning."""
    random = np.random.default_rng([seed, 0x9E12])
    return rows.assign(label=rows.groupby("file", sort=False)["label"].transform(random.permutation))


def steps_per_pass(n: int, batch_size: int) -> int:
    """Batches of one pass over n volumes; the last one may be smaller."""
    return -(-n // batch_size)


def rows_of_step(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which of n volumes are in the batch of a step (counted from 0 over all passes)."""
    number, position = divmod(step, steps_per_pass(n, batch_size))
    order = np.random.default_rng([seed, number]).permutation(n)
    return order[position * batch_size : (position + 1) * batch_size]


class Volumes:
    """Labelled volumes of a store on a device.

    Parameters
    ----------
    rows : index rows with `label`, as `select_rows` gives them
    in_memory : keep all volumes in memory; by default if they take less than half of what is free
    """

    def __init__(
        self, store: Store, rows: pd.DataFrame, device: torch.device | str = "cpu", in_memory: bool | None = None
    ) -> None:
        self.store, self.rows, self.device = store, rows, torch.device(device)
        self.labels = torch.tensor(rows["label"].to_numpy(), device=self.device)
        box = store.box
        self.shape = store.shape[::-1]  # (Z, Y, X)
        self._positions = torch.from_numpy(np.flatnonzero(store.mask[box].T)).to(self.device)
        files = {file: store.read(file) for file in rows["file"].unique()}
        scales = torch.tensor(rows["file"].map(store.scales).to_numpy(np.float32), device=self.device)
        self._scale = scales if (scales != 1).any() else None
        statistics = store.statistics()
        self._statistics = statistics and tuple(values.to(self.device) for values in statistics)
        bytes_per_value = 1 if store.info["preprocessing"]["storage"] == "int8" else 2
        n_bytes = bytes_per_value * len(rows) * store.info["n_voxels"]
        if in_memory is None:
            in_memory = n_bytes < _SHARE_OF_MEMORY * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._all: Tensor | None = None
        self._readers = {} if in_memory else {file: volume_reader(store.path / file) for file in files}
        self._of_file = list(zip(rows["file"], rows["row"], strict=True))
        if in_memory:
            parts = rows.groupby("file", sort=False)["row"]
            picked = [files[str(file)][torch.tensor(part.to_numpy())] for file, part in parts]
            self._all = torch.cat(picked).to(self.device)
            order = np.concatenate(list(parts.indices.values()))
            self._place = torch.from_numpy(np.argsort(order)).to(self.device)

    def __len__(self) -> int:
        """The number of volumes."""
        return len(self.rows)

    def masked(self, numbers: np.ndarray) -> Tensor:
        """In-mask volumes (B, V) by their row numbers: float16 as stored, or float32 where they must be computed."""
        chosen = torch.from_numpy(numbers).to(self.device)
        if self._all is not None:
            picked = self._all[self._place[chosen]]
        else:
            of_file = [self._of_file[i] for i in numbers]
            picked = torch.stack([self._readers[file](row) for file, row in of_file]).to(self.device)
        if self._scale is not None:
            picked = picked.float().mul_(self._scale[chosen, None])
        if self._statistics:
            mean, sd = self._statistics
            picked = torch.where(sd > 0, (picked - mean) / sd, 0.0)
        return picked

    def batch(self, numbers: np.ndarray) -> Batch:
        """`volumes` (B, Z, Y, X) float32, zero outside the mask, and `labels` (B,)."""
        masked = self.masked(numbers)
        volumes = torch.zeros(len(numbers), int(np.prod(self.shape)), device=self.device)
        volumes[:, self._positions] = masked.float()
        return {
            "volumes": volumes.view(-1, *self.shape),
            "labels": self.labels[torch.from_numpy(numbers).to(self.device)],
        }

    def batches(self, order: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        """(row numbers, batch) for each set of row numbers; read ahead in a bounded buffer when streaming."""
        if self._all is not None:
            for numbers in order:
                yield numbers, self.batch(numbers)
            return
        ahead: queue.Queue[tuple[np.ndarray, Batch] | BaseException | None] = queue.Queue(_PREFETCH)
        stop = threading.Event()

        def put(item: tuple[np.ndarray, Batch] | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ahead.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for numbers in order:
                    if stop.is_set():
                        return
                    put((numbers, self.batch(numbers)))
                put(None)
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()
