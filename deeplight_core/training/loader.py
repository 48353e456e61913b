"""Seeded, resumable batches from a store to a device.

The examples of a batch are a pure function of (seed, step): it does not matter where a training is resumed, how many
processes share the batch, or whether the volumes come from memory or from disk.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deeplight_core.data.store import Store, volume_reader
from deeplight_core.models import Batch
from deeplight_core.training.examples import Examples

__all__ = ["BatchOrder", "Volumes"]

_PREFETCH = 4  # batches read ahead when streaming: the buffer's bound
_ANNOUNCED = 64  # batches whose runs the system is told to fetch when streaming by run
_SHARE_OF_MEMORY = 0.5  # of the device's free memory; the rest is for the models


class BatchOrder:
    """The examples of each step's batch (steps count from 0 over all passes): a pure function of seed and step.

    Parameters
    ----------
    files : (N,) the file of each example's run
    shuffled_runs : a window of this many runs slides over the runs in random order, and examples are shuffled within
        it; at most one run more is needed at a time (None: shuffle over all runs)
    """

    def __init__(self, files: np.ndarray, batch_size: int, seed: int, shuffled_runs: int | None = None) -> None:
        self.batch_size, self._seed, self._window = batch_size, seed, shuffled_runs
        self._file_of = np.unique(files, return_inverse=True)[1]
        self._passes: dict[int, np.ndarray] = {}  # the last two: reading ahead enters the next one early

    @property
    def steps_per_pass(self) -> int:
        """Batches of one pass over the examples; the last one may be smaller."""
        return -(-len(self._file_of) // self.batch_size)

    def __getitem__(self, step: int) -> np.ndarray:
        """The numbers of the examples in the batch of a step."""
        number, position = divmod(step, self.steps_per_pass)
        order = self._passes.get(number)
        if order is None:
            order = self._order(number)
            self._passes = {**{n: o for n, o in self._passes.items() if abs(n - number) == 1}, number: order}
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def _order(self, number: int) -> np.ndarray:
        random, n = np.random.default_rng([self._seed, number]), len(self._file_of)
        if self._window is None:
            return random.permutation(n)
        places = random.permutation(self._file_of.max() + 1)[self._file_of]
        return np.argsort(places + self._window * random.random(n), kind="stable")


class Volumes:
    """Examples of a store on a device: volumes, clips or windows, with their targets.

    Parameters
    ----------
    in_memory : keep all volumes on the device; by default if they take less than half of its free memory (divided by
        $DEEPLIGHT_PER_GPU, where several trainings share a GPU). Otherwise they are streamed, a few batches
        ahead
    by_run : volumes come in windows of a few runs (`BatchOrder.shuffled_runs`, or the store's order): when streaming,
        have the system fetch whole runs, which disks do faster than single volumes
    """

    def __init__(
        self,
        store: Store,
        examples: Examples,
        device: torch.device | str = "cpu",
        in_memory: bool | None = None,
        by_run: bool = False,
    ) -> None:
        self.store, self.examples, self.device, self._by_run = store, examples, torch.device(device), by_run
        rows = examples.rows
        self.targets = torch.tensor(examples.targets, device=self.device)
        self.shape = store.shape[::-1]  # (Z, Y, X)
        inside = store.mask[store.box].T.ravel()
        shown = inside.copy()
        if examples.seen is not None:
            shown[inside] = examples.seen
        places = np.where(shown, np.cumsum(inside) - 1, inside.sum())  # outside: the zero after the last voxel
        self._places = torch.from_numpy(places).to(self.device)
        scales = torch.tensor(rows["file"].map(store.scales).to_numpy(np.float32), device=self.device)
        self._scale = scales if (scales != 1).any() else None
        statistics = store.statistics()
        self._statistics = statistics and tuple(values.to(self.device) for values in statistics)
        self._all: Tensor | None = None
        dtype = torch.int8 if store.info["preprocessing"]["storage"] == "int8" else torch.float16
        size = (len(rows), store.info["n_voxels"])
        if in_memory is None:
            sharing = "WORLD_SIZE" if self.device.type == "cpu" else "DEEPLIGHT_PER_GPU"
            share = _SHARE_OF_MEMORY / int(os.environ.get(sharing, "1"))
            in_memory = dtype.itemsize * size[0] * size[1] < share * _free_memory(self.device)
        if in_memory:
            self._all = torch.empty(size, dtype=dtype, device=self.device)
        self._file_of, files = pd.factorize(rows["file"])
        self._row_of = rows["row"].to_numpy()
        self._files, indices = [str(file) for file in files], rows.groupby("file", sort=False).indices
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # they check the files' hashes
            for file, volumes in zip(self._files, threads.map(store.read, self._files), strict=True):
                if self._all is not None:
                    part = indices[file]
                    of_run = volumes[torch.from_numpy(self._row_of[part])]
                    self._all[self._moved(torch.from_numpy(part))] = of_run.to(self.device)
        self._readers = [] if in_memory else [volume_reader(store.path / file) for file in self._files]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def masked(self, numbers: np.ndarray) -> Tensor:
        """In-mask volumes (B, …, V) of examples: float16 as stored, or float32 where they must be computed."""
        members = self.examples.members[numbers]
        volumes = self._computed(self._moved(torch.from_numpy(members)), self._read(members))
        if self.examples.seen is None:
            return volumes
        return volumes * torch.from_numpy(self.examples.seen).to(volumes.device)

    def batch(self, numbers: np.ndarray) -> Batch:
        """`volumes` (B, …, Z, Y, X) float32, zero outside the mask; `targets` and `numbers` of the B examples."""
        return self._unmasked(numbers, self._read(self.examples.members[numbers]))

    def _read(self, members: np.ndarray) -> Tensor | None:
        """Volumes read from disk, (B, …, V) as stored; None if all are on the device."""
        if self._all is not None:
            return None
        wanted = members.ravel()
        places = zip(self._file_of[wanted], self._row_of[wanted], strict=True)
        volumes = torch.stack([self._readers[file](int(row)) for file, row in places])
        volumes = volumes.view(*members.shape, -1)
        return volumes.pin_memory() if self.device.type == "cuda" else volumes

    def _moved(self, values: Tensor) -> Tensor:
        """Values on the device, without waiting for its pending work."""
        if self.device.type != "cuda":
            return values
        return (values if values.is_pinned() else values.pin_memory()).to(self.device, non_blocking=True)

    def _computed(self, chosen: Tensor, read: Tensor | None) -> Tensor:
        if read is not None:
            picked = self._moved(read)
        else:
            assert self._all is not None
            picked = self._all[chosen]
        if self._scale is not None:
            picked = picked.float().mul_(self._scale[chosen].unsqueeze(-1))
        if self._statistics:
            mean, sd = self._statistics
            picked = torch.where(sd > 0, (picked - mean) / sd, 0.0)
        return picked

    def _unmasked(self, numbers: np.ndarray, read: Tensor | None) -> Batch:
        members = self.examples.members[numbers]
        masked = self._computed(self._moved(torch.from_numpy(members)), read).view(members.size, -1)
        padded = masked.new_zeros(len(masked), masked.shape[1] + 1, dtype=torch.float32)
        padded[:, :-1] = masked
        volumes = padded.index_select(1, self._places).view(*members.shape, *self.shape)
        chosen = self._moved(torch.from_numpy(numbers))
        return {"volumes": volumes, "targets": self.targets[chosen], "numbers": chosen}

    def batches(self, order: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        """(numbers, batch) for each set of examples' numbers; read ahead in a bounded buffer when streaming.

        The thread that reads ahead makes in-mask volumes only: outside the main thread, glibc gives the memory of whole
        volumes back to the system each time.
        """
        if self._all is not None:
            for numbers in order:
                yield numbers, self.batch(numbers)
            return
        ahead: queue.Queue[tuple[np.ndarray, Tensor | None] | BaseException | None] = queue.Queue(_PREFETCH)
        stop = threading.Event()

        def put(item: tuple[np.ndarray, Tensor | None] | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ahead.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for numbers in self._announced(order) if self._by_run else order:
                    if stop.is_set():
                        return
                    put((numbers, self._read(self.examples.members[numbers])))
                put(None)
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                numbers, volumes = item
                yield numbers, self._unmasked(numbers, volumes)
        finally:
            stop.set()
            thread.join()

    def _announced(self, order: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The same numbers; in the background, the system fetches the runs of those that come soon."""
        coming: deque[np.ndarray] = deque()
        fetched: deque[int] = deque(maxlen=4 * _ANNOUNCED)  # announced lately; announcing again does no harm
        for numbers in chain(order, [None] * _ANNOUNCED):
            if numbers is not None:
                coming.append(numbers)
                for file in {*self._file_of[self.examples.members[numbers].ravel()].tolist()}.difference(fetched):
                    fetched.append(file)
                    if hasattr(os, "posix_fadvise"):  # not on macOS
                        with (self.store.path / self._files[file]).open("rb") as stream:
                            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            if coming and (numbers is None or len(coming) > _ANNOUNCED):
                yield coming.popleft()


def _free_memory(device: torch.device) -> int:
    """Free bytes of a device; for a CPU, no more than a cluster's job may use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
    free = 1024 * int(meminfo.split("MemAvailable:")[1].split()[0])
    own = Path("/proc/self/cgroup")  # Linux: the groups whose limits hold for this process, as SLURM sets them
    group = Path("/sys/fs/cgroup") / own.read_text().strip().rpartition("::/")[2] if own.is_file() else Path()
    for folder in (group, *group.parents):
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.is_file() and limit.read_text().strip() != "max":
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
