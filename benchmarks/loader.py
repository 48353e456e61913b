"""How fast batches reach a training, on one core: from memory, streamed, and as a user would load them.

    python benchmarks/loader.py                 # about three minutes, 2.7 GB in the folder for temporary files (TMPDIR)
    python benchmarks/loader.py --device cuda   # batches made on a GPU

Every way ends in the same batches of 24 float32 volumes of HCP's whole grid with their labels, in random order:

memory       ours, all volumes on the device (`Volumes(in_memory=True)`), unmasked there
single       ours, streamed: single volumes from anywhere in the store (`in_memory=False`)
by_run       ours, streamed in windows of four runs (`shuffled_runs: 4`), which the system fetches run by run
npy          PyTorch: a default DataLoader over one float32 `.npy` per volume
npy_workers  the same with one DataLoader worker, which needs a second core

cold: the files were dropped from the page cache before. `held_mb` is the memory that the process holds in addition,
without files in the page cache: for `memory` all volumes, for the others the volumes read ahead. Volumes/s are medians
over the repeats. Result: one JSON file per device in `benchmarks/results/`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peers.torch_loop import PerVolumeFiles
from report import Result, check
from torch.utils.data import DataLoader
from training import SHAPES, labelled, make_data, read_store

from deeplight_core.training.devices import keep_freed_memory
from deeplight_core.training.loader import BatchOrder, Volumes

BATCH = 24


def main() -> None:
    options = _options()
    device, cores = torch.device(options.device), sorted(os.sched_getaffinity(0))
    result = Result(
        "loader", options.device, ["torch"], options.output, shape=list(SHAPES[options.size]), volumes=options.volumes,
        batch_size=BATCH, repeats=options.repeats,
    )  # fmt: skip
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(folder, SHAPES[options.size], options.volumes, per_run=100)
        store = read_store(folder)
        files = store.index["file"].to_numpy()
        one_by_one, windows = BatchOrder(files, BATCH, seed=0), BatchOrder(files, BATCH, seed=0, shuffled_runs=4)

        def ours(order: BatchOrder, **how: bool) -> Callable[[], Iterator[torch.Tensor]]:
            data = Volumes(store, labelled(store.index), device, **how)
            return lambda: (
                batch["volumes"] for _, batch in data.batches(order[step] for step in range(order.steps_per_pass))
            )

        def npy(workers: int) -> Callable[[], Iterator[torch.Tensor]]:
            loader = DataLoader(PerVolumeFiles(folder), BATCH, shuffle=True, num_workers=workers)
            return lambda: (volumes.to(device) for volumes, _ in loader)

        ways = {
            "memory": lambda: ours(one_by_one, in_memory=True),
            "single": lambda: ours(one_by_one, in_memory=False),
            "by_run": lambda: ours(windows, in_memory=False, by_run=True),
            "npy": lambda: npy(0),
            "npy_workers": lambda: npy(1),
        }
        volumes_per_s = {}
        for name, way in ways.items():
            os.sched_setaffinity(0, cores if name == "npy_workers" else cores[:1])
            before = _held_mb()
            batches = way()
            volumes_per_s[name] = {
                state: options.volumes / _seconds(batches, folder, state == "cold", device, options.repeats)
                for state in (["warm"] if name == "memory" else ["cold", "warm"])
            }
            volumes_per_s[name]["held_mb"] = _held_mb() - before
            result.add(volumes_per_s=volumes_per_s)
            del batches
        os.sched_setaffinity(0, cores)
    result.finish(bytes_per_volume=store.info["n_voxels"] * 2)


def _seconds(
    batches: Callable[[], Iterator[torch.Tensor]], folder: Path, cold: bool, device: torch.device, repeats: int
) -> float:
    """Median seconds of a pass over all batches, after an untimed one; reads a value of each batch."""
    seconds = []
    for _ in range(1 + repeats):
        if cold:
            _forget(folder)
        start = time.perf_counter()
        total = torch.zeros((), device=device)
        for volumes in batches():
            total += volumes[-1, volumes.shape[1] // 2, 0, 0]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _forget(folder: Path) -> None:
    """Drop files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _held_mb() -> float:
    """This process's memory, files not counted."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", type=int, default=2, choices=SHAPES, help="mm (default 2)")
    parser.add_argument("--volumes", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    options = parser.parse_args()
    check(parser, options, {"volumes": 1, "repeats": 1}, {})
    return options


if __name__ == "__main__":
    main()
