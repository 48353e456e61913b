"""Preparing many runs: what a second process gains, and whether time and memory grow with the number of runs.

    python benchmarks/scaling.py        # about four minutes on two cores, 2.5 GB in TMPDIR

Every measurement is `prepare.prepare`, from a manifest to a whole store, plan and index included. The runs differ only
in name: they are hard links to one file of noise in the shape of a brain, which therefore stays in the page cache. Each
measurement is its own process, timed after its imports. The worker processes import while it is timed; their start-up
is the value at zero runs of a line through two or more numbers of runs.

processes : efficiency = t(1 process) / (n · t(n processes)), n = 2, with start-up from the seconds of the largest
    number of runs, without it from the seconds per run, the slope between the numbers of runs. `cores_busy` is the
    slope of the CPU time of all processes over that of the wall clock: a process that reads `.nii.gz` decompresses in a
    second thread, so it keeps more than one core busy, and two of them cannot be twice as fast on two cores. `.nii`,
    without compression, shows the gain from the processes alone.
many_runs : seconds, and the peak memory (VmHWM) of the process that calls `prepare` and of its largest worker, looked
    up every few milliseconds while it lives; with straight lines through them.
threads : number of threads that BLAS and PyTorch may use before and in `prepare.prepare_run`, which every worker calls
    for every run.

Result: one JSON file in `benchmarks/results/`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

# other imports are local: worker processes import this file, and must not become slower

TR_S = 0.72
KINDS, PARTS = ("nii", "nii.gz"), ("processes", "many_runs")
SAMPLED_EVERY_S = 0.02


def main() -> None:
    options = _options()
    if options.measure:
        print(json.dumps(prepare_runs(options)))
        return
    from prepare import write_run
    from report import Result

    packages = ["deeplight-core", "torch", "nilearn", "numpy", "isal"]
    result = Result("scaling", "cpu", packages, options.output)
    with tempfile.TemporaryDirectory(prefix="deeplight-scaling-") as name:
        folder = Path(name)
        small = folder / "small.nii.gz"
        write_run(small, folder / "small_mask.nii.gz", options.small_frames, options.small_resolution)
        if "processes" in options.parts:
            large = [folder / f"large.{kind}" for kind in KINDS]
            for image in large:
                write_run(image, folder / "large_mask.nii.gz", options.frames, options.resolution)
            result.add(processes=of_processes(large, options))
        if "many_runs" in options.parts:
            result.add(many_runs=of_many_runs(small, options))
        threads = threads_of_a_run(small, options.small_frames)
    result.finish(threads=threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS, help="what is measured (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that are compared with one (default 2)")
    parser.add_argument("--runs", type=int, nargs="+", default=(16, 96), help="runs they prepare (default 16 96)")
    parser.add_argument("--frames", type=int, default=150, help="length of each (default 150)")
    parser.add_argument("--resolution", type=float, default=3.0, help="their voxels in mm (default 3)")
    parser.add_argument("--repeats", type=int, default=1, help="of these; medians are reported (default 1)")
    parser.add_argument(
        "--many", type=int, nargs="+", default=(10, 40, 160), help="numbers of small runs (default 10 40 160)"
    )
    parser.add_argument("--small-frames", type=int, default=60, help="length of each (default 60)")
    parser.add_argument("--small-resolution", type=float, default=6.0, help="their voxels in mm (default 6)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    parser.add_argument("--measure", type=Path, metavar="IMAGE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.measure:
        from report import check

        few = {name: len(set(getattr(options, name))) < 2 for name in ("runs", "many")}
        wrong = {f"--{name} needs two different numbers or more, for a line through them": few[name] for name in few}
        least = {"jobs": 2, "runs": 1, "many": 1, "frames": 1, "small_frames": 1, "repeats": 1}
        check(parser, options, least, wrong)
    return options


# ---- what is measured, from outside


def run(image: Path, n_frames: int, n_runs: int, jobs: int) -> dict[str, float]:
    """One measurement, in its own process."""
    command = [sys.executable, __file__, "--measure", str(image), "--frames", str(n_frames)]
    command += ["--runs", str(n_runs), "--jobs", str(jobs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {"jobs": jobs, "runs": n_runs, **json.loads(done.stdout.splitlines()[-1])}


def of_processes(images: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """One process and several, on the same runs, of each kind of file."""
    result = {name: getattr(options, name) for name in ("resolution", "frames", "jobs", "runs", "repeats")}
    for image in images:
        measured = [
            run(image, options.frames, n_runs, jobs)
            for _ in range(options.repeats)
            for n_runs in options.runs
            for jobs in (1, options.jobs)
        ]
        megabytes = round(image.stat().st_size / 1e6, 1)
        result[image.name.partition(".")[2]] = {"image_mb": megabytes, "measured": measured, **efficiency(measured)}
    return result


def efficiency(measured: list[dict[str, float]]) -> dict[str, Any]:
    """Efficiency of several processes, with and without start-up, and the lines from which the latter comes."""
    one, several = sorted({m["jobs"] for m in measured})
    most, of = max(m["runs"] for m in measured), {}
    for jobs in (one, several):
        mine = [m for m in measured if m["jobs"] == jobs]
        wall, cpu = line(mine, "seconds"), line(mine, "cpu_seconds")
        of[jobs] = {
            "seconds_of_most_runs": float(np.median([m["seconds"] for m in mine if m["runs"] == most])),
            "seconds_per_run": wall["per_run"],
            "startup_s": wall["at_zero_runs"],
            "cores_busy": cpu["per_run"] / wall["per_run"],
        }
    return {
        "with_one": of[one],
        "with_several": of[several],
        "efficiency_with_startup": of[one]["seconds_of_most_runs"] / (several * of[several]["seconds_of_most_runs"]),
        "efficiency_without_startup": of[one]["seconds_per_run"] / (several * of[several]["seconds_per_run"]),
    }


def of_many_runs(image: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of more and more runs."""
    measured = [run(image, options.small_frames, n_runs, options.jobs) for n_runs in sorted(options.many)]
    for m in measured:
        m["seconds_per_run"] = m["seconds"] / m["runs"]
    peaks = ("parent_peak_mb", "worker_peak_mb")
    return {
        "resolution": options.small_resolution,
        "frames": options.small_frames,
        "jobs": options.jobs,
        "measured": measured,
        "lines": {what: line(measured, what) for what in ("seconds", *peaks)},
        "most_over_fewest": {what: measured[-1][what] / measured[0][what] for what in ("runs", "seconds", *peaks)},
    }


def line(measured: list[dict[str, float]], what: str) -> dict[str, float]:
    """The straight line (least squares) of a quantity over the number of runs, through medians of repeats."""
    runs = sorted({m["runs"] for m in measured})
    values = np.array([np.median([m[what] for m in measured if m["runs"] == n]) for n in runs])
    slope, offset = np.polyfit(runs, values, 1)
    residual = np.abs(values - (slope * np.array(runs) + offset)).max()
    return {"per_run": float(slope), "at_zero_runs": float(offset), "largest_residual": float(residual)}


# ---- one measurement, from inside


def prepare_runs(options: argparse.Namespace) -> dict[str, float]:
    """Seconds, CPU time and peak memory of preparing linked runs into a new store, which is deleted."""
    from deeplight_core.data import prepare

    with tempfile.TemporaryDirectory(dir=options.measure.parent) as name:
        manifest, profile = linked_runs(options.measure, options.frames, options.runs[0], Path(name))
        peaks: dict[str, int] = {}
        done = threading.Event()
        watch = threading.Thread(target=watch_workers, args=(peaks, done))
        watch.start()
        start, cpu = time.perf_counter(), processor_seconds()
        try:
            store = prepare.prepare(manifest, profile, options.jobs)
        finally:
            seconds = time.perf_counter() - start
            done.set()
            watch.join()
        assert len(store.index) == len(manifest) * options.frames
        return {
            "seconds": seconds,
            "cpu_seconds": processor_seconds() - cpu,
            "parent_peak_mb": peak_bytes("self") / 1e6,
            "worker_peak_mb": max(peaks.values()) / 1e6,
            "workers": len(peaks),
        }


def threads_of_a_run(image: Path, n_frames: int) -> dict[str, dict[str, int]]:
    """Threads that BLAS and PyTorch may use while a worker smooths and cleans a run: calls the same function here."""
    from unittest.mock import patch

    import torch
    from threadpoolctl import threadpool_info

    from deeplight_core.data import prepare

    def threads() -> dict[str, int]:
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        return {pool["internal_api"]: pool["num_threads"] for pool in pools} | {"torch": torch.get_num_threads()}

    def watched(*args: Any) -> Any:
        seen["in_a_run"] = threads()
        return process_run(*args)

    seen = {"before": threads()}

    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        manifest, profile = linked_runs(image, n_frames, 1, Path(name))
        planned, process_run = prepare.plan(manifest, profile), prepare.process_run
        with patch.object(prepare, "process_run", watched):
            prepare.prepare_run(manifest.iloc[0], profile, planned)
    return seen


def linked_runs(image: Path, n_frames: int, n_runs: int, folder: Path) -> tuple[Any, Any]:
    """Manifest and profile of runs that link to one image and its mask; every volume is labelled and kept."""
    import pandas as pd

    from deeplight_core.config import Profile
    from deeplight_core.data.manifest import COLUMNS

    kind, root = image.name.partition(".")[2], folder / "data"
    mask, rows = image.with_name(f"{image.name.partition('.')[0]}_mask.nii.gz"), []
    for number in range(n_runs):
        where = f"{number:04d}/MNINonLinear/Results/tfMRI_NOISE_LR"
        (root / where).mkdir(parents=True)
        os.link(image, root / where / f"tfMRI_NOISE_LR.{kind}")
        os.link(mask, root / where / "brainmask_fs.2.nii.gz")
        (root / where / "EVs").mkdir()
        half_s = (n_frames // 2 + 1) * TR_S
        for state, onset in (("first", 0.0), ("second", half_s)):
            (root / where / f"EVs/{state}.txt").write_text(f"{onset}\t{half_s}\t1\n", encoding="utf-8")
        rows.append(
            ["scaling", f"{number:04d}", "", "NOISE", "LR", f"{where}/tfMRI_NOISE_LR.{kind}", f"{where}/EVs",
             f"{where}/brainmask_fs.2.nii.gz", TR_S, n_frames, "train", "", ""]
        )  # fmt: skip
    data = {"root": str(root), "store": folder / "store", "source": {"NOISE": ["first", "second"]}, "target": {}}
    profile = Profile.model_validate({"data": data, "preprocessing": {"skip_s": 0, "lag_s": 0}})
    return pd.DataFrame(rows, columns=list(COLUMNS)), profile


def processor_seconds() -> float:
    """CPU time of this process, of those it has waited for, and of the server that forks the workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    of_servers = [of_process(f"{server}/stat").rpartition(")")[2].split()[11:15] for server in fork_servers()]
    ticks = sum(int(number) for of in of_servers for number in of)  # its own, and of the workers that have ended
    return sum(usage.ru_utime + usage.ru_stime for usage in used) + ticks / os.sysconf("SC_CLK_TCK")


def fork_servers() -> list[str]:
    """The process that multiprocessing forks workers from, if it has been started."""
    children = " ".join(of_process(f"self/task/{task}/children") for task in os.listdir("/proc/self/task"))
    return [child for child in children.split() if "forkserver" in of_process(f"{child}/cmdline")]


def peak_bytes(process: int | str) -> int:
    """VmHWM of a process; 0 if it has ended."""
    facts = dict(entry.split(":", 1) for entry in of_process(f"{process}/status").splitlines())
    return 1024 * int(facts.get("VmHWM", "0 kB").split()[0])


def watch_workers(peaks: dict[str, int], done: threading.Event) -> None:
    """Record the peak memory of each worker process, until told to stop."""
    while not done.wait(SAMPLED_EVERY_S):
        for server in fork_servers():
            for worker in of_process(f"{server}/task/{server}/children").split():
                peaks[worker] = max(peaks.get(worker, 0), peak_bytes(worker))


def of_process(name: str) -> str:
    """A file of /proc; empty if the process or thread has ended."""
    try:
        return Path("/proc", name).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


if __name__ == "__main__":
    main()
