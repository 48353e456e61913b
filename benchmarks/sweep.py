"""The fine-tunings of a profile's sweep: this package, one per core at a time, beside a plain loop.

    make reproduce PROFILE=demo             # once: the store, the pre-training
    python benchmarks/sweep.py              # two cores, about six minutes

ours    every DeepLight fine-tuning of the sweep by `deeplight finetune`, from the start of the process to its results,
        one per core at a time with one thread each, as `make reproduce` runs them (without the notebooks)
plain   the same trainings one by one in the loop that a user would write (`peers/torch_loop.py`, all threads). Only
        some steps are timed, over per-volume files of the same store; the sweep's seconds are the seconds per volume
        times the volumes that the sweep trains on and decodes

Result: one JSON file per device in `benchmarks/results/`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from report import Result, check
from training import last_line, median

from deeplight_core.config import Profile, load_profile
from deeplight_core.data.store import open_store
from deeplight_core.experiment import finetuning, pretraining
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import planned
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes


def main() -> None:
    options = _options()
    profile = load_profile(options.profile)
    store = open_store(profile.store)
    cells = [cell for cell in planned(profile, "sweep") if VARIANTS[cell.variant].learner == "deep"]
    missing = [seed for seed in profile.sweep.seeds if not pretraining(profile, seed).finished]
    if missing:
        sys.exit(f"sweep.py: no pre-training of seed {missing}; run `make reproduce PROFILE={options.profile}` first")
    states = profile.data.states("target")
    trained = decoded = 0
    for cell in cells:
        units = finetuning(profile, cell.variant, cell.fraction, cell.seed).units
        trained += profile.finetuning.epochs * len(of_states(store.index, states, "train", units))
        decoded += profile.finetuning.epochs * len(of_states(store.index, states, "validation"))
    result = Result(
        "sweep", "cpu", ["torch", "lightning-fabric"], options.output, profile=options.profile, trainings=len(cells),
        volumes_trained_on=trained, volumes_decoded=decoded, shape=list(store.shape),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        plain = _plain(profile, Path(scratch), options.steps)
        result.add(plain_ms_per_volume={"training": median(plain), "inference": median(plain, "inference")})
        ours_s = _ours(profile, Path(scratch), [list(cell[1:4]) for cell in cells])
    plain_s = (trained * median(plain) + decoded * median(plain, "inference")) / 1e3
    result.finish(ours_s=ours_s, plain_s=plain_s, times_as_fast=plain_s / ours_s)


def _ours(profile: Profile, folder: Path, cells: list[list[object]]) -> float:
    """Seconds of all fine-tunings, in a separate project with only the store and the pre-training."""
    runs = folder / "runs" / profile.name
    runs.mkdir(parents=True)
    (folder / "profiles").mkdir()
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)
    (folder / "profiles" / "sweep.yaml").write_text(text, encoding="utf-8")
    (runs / "store").symlink_to(profile.store)
    for seed in profile.sweep.seeds:
        run = pretraining(profile, seed)
        shutil.copytree(run.folder, runs / run.folder.name)
    environment = {**os.environ, "OMP_NUM_THREADS": str(profile.finetuning.threads)}

    def finetune(cell: list[object]) -> None:
        variant, fraction, seed = cell
        options = ["--variant", str(variant), "--fraction", str(fraction), "--seed", str(seed)]
        command = [sys.executable, "-m", "deeplight_core.cli", "finetune", "sweep", *options]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    start = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) // profile.finetuning.threads) as jobs:
        list(jobs.map(finetune, cells))
    return time.perf_counter() - start


def _plain(profile: Profile, folder: Path, steps: int) -> dict[str, list[float]]:
    """The plain loop's measurements on the target's training volumes, one float32 file each."""
    store = open_store(profile.store)
    found = of_states(store.index, profile.data.states("target"), "train")
    n = 10 * profile.finetuning.batch_size
    data = Volumes(store, replace(found, table=found.table[:n], members=found.members[:n], targets=found.targets[:n]))
    (folder / "volumes").mkdir()
    for first in range(0, len(data), 24):
        batch = data.batch(np.arange(first, min(first + 24, len(data))))
        for number, volume in zip(batch["numbers"].tolist(), batch["volumes"].numpy(), strict=True):
            np.save(folder / f"volumes/{number:06d}.npy", volume)
    np.save(folder / "labels.npy", data.targets.numpy())
    command = [sys.executable, str(Path(__file__).parent / "peers/torch_loop.py"), str(folder), "--steps", str(steps)]
    command += ["--batch", str(profile.finetuning.batch_size), "--threads", str(len(os.sched_getaffinity(0)))]
    return last_line([*command, "--states", str(len(profile.data.states("target")))])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of the plain loop")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    options = parser.parse_args()
    check(parser, options, {"steps": 1}, {})
    return options


if __name__ == "__main__":
    main()
