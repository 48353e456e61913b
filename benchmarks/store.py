"""Reading volumes back, on one core: this package's store, and other formats of the same volumes.

    python benchmarks/store.py          # about two minutes, 1.2 GB in the folder for temporary files (TMPDIR)

All hold the same random z-scores of the voxels in the MNI152 brain mask on HCP's grid:

float16     ours: one safetensors file per run, as `store.write_volumes` writes it, including a `tsnr` map
int8        ours, in half the space
npy         NumPy: one float32 `.npy` of a run's in-mask voxels, memory-mapped
webdataset  WebDataset: one tar per run, a float16 `.npy` of the in-mask voxels per volume. It reads only from beginning
            to end, so `random` is not WebDataset's: single volumes are read at the places in an index, which `tarfile`
            makes beforehand
nifti       nibabel: one float32 `.nii.gz` of the whole grid per volume, masked when it is read

Every read ends in the same float32 tensor of the in-mask voxels, so every byte is read, and converted if it is not
float32. The values must be as close to the written ones as the format allows.

random               single volumes of all runs in random order, as `loader.Volumes` streams them: ours opens the
                     file for each, the others keep it open
sequential           a whole run, volume by volume, and opening it
sequential_checked   the same by `Store.read`, which compares the file's SHA-256 first (once per process and file)

cold: the files were dropped from the page cache (a virtual disk may still have its own cache). warm: they were read
before, the random volumes through the same open files. `cached_before` is the smallest and the largest share of the
files that mincore found in the page cache before the reads; `disk_bytes_per_byte` is the number of bytes that Linux
then fetched from the disk, reading ahead included, per byte of the volumes. Volumes/s are medians over the repeats,
after an uncounted one; MB/s are the same in bytes of the volumes on disk, which differ between formats. `plain_read` is
an upper bound: the float16 files read into a buffer. Result: one JSON file in `benchmarks/results/`.
"""

import argparse
import ctypes
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import webdataset
from prepare import write_run
from report import Result, check
from safetensors import safe_open

from deeplight_core.data.store import Store, volume_reader, write_volumes
from deeplight_core.system.files import file_sha256

TFRECORD_FRAMING = 16  # bytes: length, its CRC, the data's CRC
VOXELS_AT_A_TIME = 20_000  # as a run is prepared

_BYTES = ctypes.POINTER(ctypes.c_ubyte)
Read = Callable[[int, torch.Tensor], object]  # a row of a run into a tensor (V,)
Rates = dict[str, Any]  # of one format, way to read, and cold or warm


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    result = Result(
        "store", "cpu", ["torch", "numpy", "safetensors", "webdataset", "nibabel"], options.output,
        threads=torch.get_num_threads(), runs=options.runs, volumes_per_run=options.frames,
        random_volumes=options.picks, repeats=options.repeats,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="deeplight-store-") as name:
        folder = Path(name)
        write_run(folder / "frame.nii.gz", folder / "mask.nii.gz", 1, options.resolution)
        image = nib.load(folder / "mask.nii.gz")
        mask, size = np.asarray(image.dataobj) > 0, (options.runs, options.frames)
        int8 = Safetensors(folder / "int8", mask, image.affine, size)
        formats = [
            Safetensors(folder / "float16", mask, image.affine, size),
            int8,
            Npy(folder / "npy", mask, image.affine, size),
            WebDataset(folder / "webdataset", mask, image.affine, size),
            Nifti(folder / "nifti", mask, image.affine, size),
        ]
        for form in formats:
            for run in range(options.runs):
                form.write(run, z_scores(run, options.frames, mask))
        differences = {form.name: largest_difference(form) for form in formats}
        reads = measure(formats, options.picks, options.repeats)
        plain = plain_read(formats[0], options.repeats)
        sizes = {form.name: sum(file.stat().st_size for file in form.all_files()) for form in formats}
    n_volumes, n_voxels = options.runs * options.frames, int(mask.sum())
    tfrecords = n_volumes * (4 * mask.size + TFRECORD_FRAMING)
    result.finish(
        shape=list(mask.shape),
        n_voxels=n_voxels,
        tfrecords_bytes=tfrecords,
        formats={
            form.name: {
                "bytes": sizes[form.name],
                "bytes_per_voxel": sizes[form.name] / (n_volumes * n_voxels),
                "times_smaller_than_tfrecords": tfrecords / sizes[form.name],
                "largest_difference": differences[form.name],
                **({"rounding": int8.stored} if form is int8 else {}),
                **reads[form.name],
            }
            for form in formats
        },
        plain_read=plain,
        float16_times_as_fast_as=times_as_fast(reads),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=float, default=2.0, help="of the grid in mm (default 2)")
    parser.add_argument("--runs", type=int, default=4, help="number of runs (default 4)")
    parser.add_argument("--frames", type=int, default=100, help="volumes of each (default 100)")
    parser.add_argument("--picks", type=int, default=100, help="random volumes that are read at a time (default 100)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats; medians are reported (default 7)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    options = parser.parse_args()
    there = options.runs * options.frames
    wrong = {f"--picks {options.picks} are more than the {there} volumes": options.picks > there}
    check(parser, options, {"runs": 1, "frames": 1, "picks": 1, "repeats": 1}, wrong)
    return options


def z_scores(run: int, n_frames: int, mask: np.ndarray) -> np.ndarray:
    """A run's volumes (T, V) float32, the same at every call."""
    return np.random.default_rng([0, run]).standard_normal((n_frames, int(mask.sum())), np.float32)


# ---- the formats


class Format:
    """Runs of in-mask volumes in a folder.

    mask : (X, Y, Z) bool; size : numbers of runs and of volumes per run
    """

    def __init__(self, folder: Path, mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> None:
        self.folder, self.mask, self.affine, (self.n_runs, self.n_frames) = folder, mask, affine, size
        self.name, self.n_voxels = folder.name, int(mask.sum())
        folder.mkdir()

    def write(self, run: int, volumes: np.ndarray) -> None:
        """Write a run's volumes (T, V) float32."""
        raise NotImplementedError

    def files(self, run: int) -> list[Path]:
        """The files of a run."""
        raise NotImplementedError

    def n_bytes(self, run: int, row: int) -> int:
        """Bytes of a volume on disk."""
        raise NotImplementedError

    def allowed(self, run: int, volume: np.ndarray) -> np.ndarray:
        """The largest permitted error of a volume (V,) when it is read; here half of float16's steps."""
        return np.spacing(np.abs(volume.astype(np.float16))).astype(np.float32) / 2

    def opened(self, run: int) -> AbstractContextManager[Read]:
        """A run whose volumes can be read in any order."""
        raise NotImplementedError

    def sequential(self, run: int, out: torch.Tensor) -> Iterator[int]:
        """Open a run and bring one volume after the other into `out` (V,) float32."""
        with self.opened(run) as read:
            for row in range(self.n_frames):
                read(row, out)
                yield row

    def backwards(self, run: int, out: torch.Tensor) -> Iterator[int]:
        """As `sequential`, from the last volume to the first, as single volumes are read."""
        with self.opened(run) as read:
            for row in reversed(range(self.n_frames)):
                read(row, out)
                yield row

    def accesses(self) -> dict[str, Callable[[int, torch.Tensor], Iterator[int]]]:
        """Ways to read a whole run."""
        return {"sequential": self.sequential}

    def all_files(self) -> list[Path]:
        """The files of all runs."""
        return [file for run in range(self.n_runs) for file in self.files(run)]


class Safetensors(Format):
    """Ours; the folder has the name of the setting `storage`. Reads as `Store.read` and `loader.Volumes` do."""

    def __init__(self, folder: Path, mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__(folder, mask, affine, size)
        self.stored: list[dict[str, float]] = []
        self.sha256: list[str] = []

    def write(self, run: int, volumes: np.ndarray) -> None:
        def process(write: Callable[[slice, torch.Tensor], None]) -> dict[str, np.ndarray]:
            for start in range(0, self.n_voxels, VOXELS_AT_A_TIME):
                block = slice(start, min(start + VOXELS_AT_A_TIME, self.n_voxels))
                write(block, torch.from_numpy(volumes[:, block]))
            return {"tsnr": np.zeros(self.n_voxels)}  # these volumes have none; its bytes count

        (path,) = self.files(run)
        self.stored.append(
            write_volumes(path, np.arange(self.n_frames), self.n_voxels, self.name, process, maps=("tsnr",))
        )
        self.sha256.append(file_sha256(path))

    def files(self, run: int) -> list[Path]:
        return [self.folder / f"{run}.safetensors"]

    def n_bytes(self, run: int, row: int) -> int:
        return self.n_voxels * (1 if self.name == "int8" else 2)

    def allowed(self, run: int, volume: np.ndarray) -> np.ndarray:
        half_a_step = self.stored[run]["scale"] / 2 * (1 + 1e-5) if self.name == "int8" else 0.0  # 1e-5: float32
        return super().allowed(run, volume) + half_a_step

    @contextmanager
    def opened(self, run: int) -> Iterator[Read]:
        yield self._reader(run, volume_reader(self.files(run)[0]))

    def sequential(self, run: int, out: torch.Tensor) -> Iterator[int]:
        with safe_open(self.files(run)[0], framework="pt") as tensors:
            read = self._reader(run, tensors.get_tensor("volumes").__getitem__)
            for row in range(self.n_frames):
                read(row, out)
                yield row

    def checked(self, run: int, out: torch.Tensor) -> Iterator[int]:
        """As `sequential`, by `Store.read`."""
        (path,) = self.files(run)
        runs = pd.DataFrame({"file": [path.name], "sha256": [self.sha256[run]], "scale": [self.stored[run]["scale"]]})
        store = Store(self.folder, {}, self.mask, self.affine, pd.DataFrame(), runs)
        read = self._reader(run, store.read(path.name).__getitem__)
        for row in range(self.n_frames):
            read(row, out)
            yield row

    def accesses(self) -> dict[str, Callable[[int, torch.Tensor], Iterator[int]]]:
        return {"sequential": self.sequential, "sequential_checked": self.checked}

    def _reader(self, run: int, volume: Callable[[int], torch.Tensor]) -> Read:
        if self.name == "float16":
            return lambda row, out: out.copy_(volume(row))
        scale = self.stored[run]["scale"]
        return lambda row, out: out.copy_(volume(row)).mul_(scale)


class Npy(Format):
    """NumPy's own."""

    def write(self, run: int, volumes: np.ndarray) -> None:
        np.save(self.files(run)[0], volumes)

    def files(self, run: int) -> list[Path]:
        return [self.folder / f"{run}.npy"]

    def n_bytes(self, run: int, row: int) -> int:
        return 4 * self.n_voxels

    def allowed(self, run: int, volume: np.ndarray) -> np.ndarray:
        return np.zeros_like(volume)

    @contextmanager
    def opened(self, run: int) -> Iterator[Read]:
        volumes = np.load(self.files(run)[0], mmap_mode="r")
        yield lambda row, out: np.copyto(out.numpy(), volumes[row])


class WebDataset(Format):
    """A tar per run; its index is made after writing."""

    def __init__(self, folder: Path, mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__(folder, mask, affine, size)
        self.index: list[list[tuple[int, int]]] = []  # of each volume: its start, and its number of bytes

    def write(self, run: int, volumes: np.ndarray) -> None:
        (path,) = self.files(run)
        with webdataset.TarWriter(str(path)) as tar:
            for row, volume in enumerate(volumes):
                tar.write({"__key__": f"{row:06d}", "npy": volume.astype(np.float16)})
        with tarfile.open(path) as tar:
            self.index.append([(member.offset_data, member.size) for member in tar])

    def files(self, run: int) -> list[Path]:
        return [self.folder / f"{run}.tar"]

    def n_bytes(self, run: int, row: int) -> int:
        return self.index[run][row][1]

    @contextmanager
    def opened(self, run: int) -> Iterator[Read]:
        with self.files(run)[0].open("rb") as file:

            def read(row: int, out: torch.Tensor) -> None:
                start, n_bytes = self.index[run][row]
                out.copy_(torch.from_numpy(np.load(io.BytesIO(os.pread(file.fileno(), n_bytes, start)))))

            yield read

    def sequential(self, run: int, out: torch.Tensor) -> Iterator[int]:
        for sample in webdataset.WebDataset(str(self.files(run)[0]), shardshuffle=False).decode():
            out.copy_(torch.from_numpy(sample["npy"]))
            yield int(sample["__key__"])


class Nifti(Format):
    """A compressed image per volume."""

    def __init__(self, folder: Path, mask: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__(folder, mask, affine, size)
        self.positions = torch.from_numpy(np.flatnonzero(mask.T))

    def write(self, run: int, volumes: np.ndarray) -> None:
        for file, volume in zip(self.files(run), volumes, strict=True):
            data = np.zeros(self.mask.shape[::-1], np.float32)
            data[self.mask.T] = volume
            nib.save(nib.Nifti1Image(data.T, self.affine), file)

    def files(self, run: int) -> list[Path]:
        return [self.folder / f"{run}_{row:06d}.nii.gz" for row in range(self.n_frames)]

    def n_bytes(self, run: int, row: int) -> int:
        return self.files(run)[row].stat().st_size

    def allowed(self, run: int, volume: np.ndarray) -> np.ndarray:
        return np.zeros_like(volume)

    @contextmanager
    def opened(self, run: int) -> Iterator[Read]:
        files = self.files(run)

        def read(row: int, out: torch.Tensor) -> None:
            data = np.asarray(nib.load(files[row]).dataobj, np.float32)
            torch.index_select(torch.from_numpy(data.T.reshape(-1)), 0, self.positions, out=out)

        yield read


def largest_difference(form: Format) -> float:
    """Largest error of reading, over all volumes and ways to read; ValueError if it is too large."""
    largest, out = 0.0, torch.empty(form.n_voxels)
    for run in range(form.n_runs):
        volumes = z_scores(run, form.n_frames, form.mask)
        for access, read in {**form.accesses(), "random": form.backwards}.items():
            left = set(range(form.n_frames))
            out.fill_(np.nan)  # so that an unread value fails the comparison
            for row in read(run, out):
                difference = np.abs(out.numpy() - volumes[row])
                if not (difference <= form.allowed(run, volumes[row])).all():
                    raise ValueError(f"{form.name}, {access}: volume {row} of run {run} is off by {difference.max()}")
                largest = max(largest, float(difference.max()))
                left.remove(row)
                out.fill_(np.nan)
            if left:
                raise ValueError(f"{form.name}, {access}: run {run} gave no volumes {sorted(left)}")
    return largest


# ---- the page cache


def drop(files: list[Path]) -> None:
    """Drop files from the page cache, once they are on the disk."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(files: list[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def cached_share(files: list[Path]) -> float:
    """Share of files' pages that are in the page cache, as mincore says."""
    libc, n_cached, n_pages = ctypes.CDLL(None, use_errno=True), 0, 0
    for file in files:
        mapped = np.memmap(file, np.uint8, "r")
        pages = np.zeros(-(-mapped.size // os.sysconf("SC_PAGE_SIZE")), np.uint8)
        if libc.mincore(
            ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), pages.ctypes.data_as(_BYTES)
        ):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        n_cached, n_pages = n_cached + int((pages & 1).sum()), n_pages + pages.size
    return n_cached / n_pages


CACHES = {"cold": drop, "warm": fill}


# ---- the measurement


def measure(formats: list[Format], n_picks: int, repeats: int) -> dict[str, dict[str, dict[str, Rates]]]:
    """Format → way to read → cold and warm → rates. The formats take turns, so that slow minutes affect all."""
    n_runs, n_frames = formats[0].n_runs, formats[0].n_frames
    seen: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for repeat in range(1 + repeats):
        order = np.random.default_rng([1, repeat]).permutation(n_runs * n_frames)[:n_picks]
        picks = [divmod(int(i), n_frames) for i in order]
        for form in formats:
            for access in ("random", *form.accesses()):
                for cache in CACHES:
                    once = read_once(form, access, cache, picks, repeat % n_runs)
                    seen.setdefault((form.name, access, cache), []).append(once)
    result: dict[str, dict[str, dict[str, Rates]]] = {}
    for (name, access, cache), all_of_it in seen.items():
        result.setdefault(name, {}).setdefault(access, {})[cache] = summary(all_of_it[1:])
    return result


def read_once(form: Format, access: str, cache: str, picks: list[tuple[int, int]], run: int) -> dict[str, float]:
    """Seconds, volumes and bytes of one reading, after emptying or filling the page cache."""
    files, out = form.all_files(), torch.empty(form.n_voxels)
    if access != "random":
        picks = [(run, row) for row in range(form.n_frames)]
    CACHES[cache](files)
    cached, from_disk = cached_share(files), disk_bytes()
    if access == "random":
        seconds = read_random(form, picks, out, before=cache == "warm")
    else:
        start = time.perf_counter()
        for _ in form.accesses()[access](run, out):
            pass
        seconds = time.perf_counter() - start
    n_bytes = sum(form.n_bytes(*pick) for pick in picks)
    return {
        "seconds": seconds, "volumes": len(picks), "bytes": n_bytes, "cached_before": cached,
        "disk_bytes_per_byte": (disk_bytes() - from_disk) / n_bytes,
    }  # fmt: skip


def read_random(form: Format, picks: list[tuple[int, int]], out: torch.Tensor, before: bool) -> float:
    """Seconds of reading each (run, row), for the first time or again."""
    with ExitStack() as stack:
        readers = [stack.enter_context(form.opened(run)) for run in range(form.n_runs)]
        for _ in range(1 + before):
            start = time.perf_counter()
            for run, row in picks:
                readers[run](row, out)
            seconds = time.perf_counter() - start
    return seconds


def disk_bytes() -> int:
    """Bytes fetched from disks for this process so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":") for line in lines)["read_bytes"])


def summary(seen: list[dict[str, float]]) -> Rates:
    rates = [once["volumes"] / once["seconds"] for once in seen]
    return {
        "volumes_per_s": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "mb_per_s": statistics.median(once["bytes"] / once["seconds"] / 1e6 for once in seen),
        "cached_before": [extreme(once["cached_before"] for once in seen) for extreme in (min, max)],
        "disk_bytes_per_byte": statistics.median(once["disk_bytes_per_byte"] for once in seen),
    }


def plain_read(form: Format, repeats: int) -> dict[str, float]:
    """MB/s of reading a run's file into a buffer, cold and warm."""
    rates: dict[str, list[float]] = {cache: [] for cache in CACHES}
    for repeat in range(1 + repeats):
        files = form.files(repeat % form.n_runs)
        for cache, prepare in CACHES.items():
            prepare(files)
            start = time.perf_counter()
            fill(files)
            seconds = time.perf_counter() - start
            rates[cache].append(sum(file.stat().st_size for file in files) / seconds / 1e6)
    return {f"{cache}_mb_per_s": statistics.median(of_cache[1:]) for cache, of_cache in rates.items()}


def times_as_fast(reads: dict[str, dict[str, dict[str, Rates]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Peer → way to read → cold and warm → our volumes/s in float16 over the peer's."""
    rate = "volumes_per_s"
    return {
        peer: {
            access: {
                cache: reads["float16"][access][cache][rate] / reads[peer][access][cache][rate] for cache in CACHES
            }
            for access in ("random", "sequential")
        }
        for peer in reads
        if peer not in ("float16", "int8")
    }


if __name__ == "__main__":
    main()
