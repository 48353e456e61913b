"""A whole training step and inference: this package's loop beside those that a user would write, in one run.

    pip install -r benchmarks/peers/requirements-keras.txt    # in an environment of its own
    python benchmarks/training.py --keras-python /path/to/that/python      # two cores, about 15 minutes
    python benchmarks/training.py --device cuda                            # a GPU, about 20 minutes
    python benchmarks/training.py --device cuda --batch 24 --rounds 1 --steps 30 --curve-steps 0    # about three

All read the same random brain volumes with a pattern per state, train the same network by Adam on batches of the same
size, and wait for their data themselves. Each runs in its own process, after uncounted steps:

plain          PyTorch as anyone would write it: float32, default memory format, a default DataLoader over one float32
               file per volume (`peers/torch_loop.py`)
obvious        PyTorch with bfloat16 autocast, channels-last and DataLoader workers (the same file)
keras          the architecture of the original in Keras on TensorFlow, float32, TFRecords (`peers/keras_loop.py`)
ours           `deeplight_core.training.loop.fit` on a volume store, bf16-mixed, in one process with all threads
ours-float32   the same in float32
ours-2         the same as `ours` in two processes with one thread each that share every batch (`--devices 2`)
ours-compiled  on a GPU, with `compile: true`

The ways take turns, three times over. Times are medians of single steps; on a GPU, of the means over all timed steps.
`inference` of ours is `inference.predict` over the store; the peers run a batch that is already in memory. `curves` are
our training losses in both precisions on the first grid, three seeds each, with a larger learning rate and He's
initialisation, so that something is learnt. The result also has the device's rates of matrix products and of copying
memory. `idle` is the share of a step that vanishes when the same batch is used again and again. Result: one JSON file
per device in `benchmarks/results/`, which grows grid by grid under a name that ends in `.partial`.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from report import Result, check

from deeplight_core.data.store import Store, write_volumes
from deeplight_core.models import Batch, Outcome
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.routes import DeepLightSettings, TrainingSettings
from deeplight_core.system.files import file_sha256
from deeplight_core.training.devices import session
from deeplight_core.training.examples import Examples
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes
from deeplight_core.training.loop import fit

HERE = Path(__file__).parent
SHAPES = {8: (23, 28, 23), 6: (31, 37, 31), 2: (91, 109, 91)}  # HCP's grid at 2 mm, and two coarser ones
STATES = 16
STEPS_PER_POINT = 10  # of a loss curve
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def main() -> None:
    options = _options()
    if options.worker:
        _work(json.loads(options.worker), options.output)
        return
    device, grids = torch.device(options.device), []
    cuda = device.type == "cuda"
    result = Result(
        "training", options.device, ["torch", "lightning-fabric"], options.output, threads=options.threads,
        steps=options.steps, rounds=options.rounds, grids=[], curves={},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for mm in options.sizes:
            folder = Path(scratch) / f"{mm}mm"
            batches = options.batch or ([24, 96] if cuda else [24 if mm > 2 else 4])
            make_data(folder, SHAPES[mm], n=max(96, *batches))
            for batch in batches:
                grid = {"mm": mm, "shape": list(SHAPES[mm]), "batch_size": batch, **_ways(options, folder, batch)}
                grids.append({**grid, "flops_per_volume": _flops(SHAPES[mm])})
                result.add(grids=grids)
                print(_summary(grid), flush=True)
            if mm == options.sizes[0] and options.curve_steps:
                result.add(curves=_curves(options, folder, batches[0]))
    rate = {
        str(dtype).removeprefix("torch."): matmul_rate(device, dtype, options.matmul or (8192 if cuda else 2048))
        for dtype in (torch.float32, torch.bfloat16)
    }
    result.finish(matmul_flops_per_s=rate, copy_bytes_per_s=copy_rate(device, options.copy))


def _flops(shape: tuple[int, int, int]) -> float:
    """Operations of one volume's forward and backward pass; the first layer's input needs no gradient."""
    layers = DeepLight(shape, STATES).layers()
    return float(3 * sum(layer.flops for layer in layers) - layers[0].flops)


def make_data(folder: Path, shape: tuple[int, int, int], n: int, per_run: int = 48) -> None:
    """The same volumes as a store and as one float32 `.npy` each, with labels: noise and a pattern per state."""
    from nilearn.datasets import load_mni152_brain_mask  # here: every process that trains would wait for it
    from nilearn.image import resample_img

    random = np.random.default_rng(0)
    affine = np.diag([*(np.array([-91, 109, 91]) * 2 / shape), 1.0])
    affine[:3, 3] = (90, -126, -72)
    brain = resample_img(
        load_mni152_brain_mask(resolution=2), affine, shape, "nearest", force_resample=True, copy_header=True
    )
    mask = np.asarray(brain.dataobj) > 0
    patterns = random.normal(0, 0.3, (STATES, mask.sum()))
    (folder / "volumes").mkdir(parents=True)
    (folder / "store/runs").mkdir(parents=True)
    rows, runs = [], []
    for first in range(0, n, per_run):
        labels = random.integers(0, STATES, per_run)
        volumes = (patterns[labels] + random.normal(size=(per_run, mask.sum()))).astype(np.float16)
        file = f"runs/{first}.safetensors"
        write_volumes(
            folder / "store" / file, np.arange(per_run), int(mask.sum()), "float16",
            lambda write, volumes=volumes: write(slice(0, volumes.shape[1]), torch.from_numpy(volumes)) or {},
        )  # fmt: skip
        whole = np.zeros(mask.shape[::-1], np.float32)
        for i, (volume, label) in enumerate(zip(volumes, labels, strict=True)):
            whole[mask.T] = volume
            np.save(folder / f"volumes/{first + i:06d}.npy", whole)
            rows.append({"file": file, "row": i, "label": label, "task": "WM", "unit": str(first)})
        runs.append({"file": file, "scale": 1.0, "sha256": file_sha256(folder / "store" / file)})
    index = pd.DataFrame(rows)
    np.save(folder / "labels.npy", index["label"].to_numpy())
    index.to_parquet(folder / "store/index.parquet")
    pd.DataFrame(runs).to_parquet(folder / "store/runs.parquet")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / "store/mask.nii.gz")


def read_store(folder: Path) -> Store:
    """The data that `make_data` wrote."""
    path, image = folder / "store", nib.load(folder / "store/mask.nii.gz")
    mask = np.asarray(image.dataobj) > 0
    preprocessing = {"crop": False, "storage": "float16"}
    info = {"n_voxels": int(mask.sum()), "tr_s": 0.72, "preprocessing": preprocessing}
    index, runs = pd.read_parquet(path / "index.parquet"), pd.read_parquet(path / "runs.parquet")
    return Store(path, info, mask, image.affine, index, runs)


def _ways(options: argparse.Namespace, folder: Path, batch: int) -> dict[str, Any]:
    """Each way's measurements, by its name; the ways take turns, so that a slow minute of the machine hits all."""
    common = ["--batch", str(batch), "--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    common += ["--threads", str(options.threads), "--states", str(STATES)]
    torch_loop = [sys.executable, str(HERE / "peers/torch_loop.py"), str(folder), *common, "--device", options.device]
    ours: dict[str, Any] = {"folder": str(folder), "batch": batch, "warm_up": options.warm_up, "steps": options.steps}
    ours["threads"] = options.threads
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": lambda: last_line([*torch_loop, "--way", "plain"]),
        "obvious": lambda: last_line([*torch_loop, "--way", "obvious"]),
        "ours": lambda: _ours(ours),
        "ours-float32": lambda: _ours({**ours, "precision": "32-true"}),
        "same batch": lambda: _ours({**ours, "same_batch": True}),
    }
    if options.keras_python:
        keras = [options.keras_python, str(HERE / "peers/keras_loop.py"), str(folder), *common]
        ways["keras"] = lambda: last_line(keras)
    if options.device == "cuda":
        ways["ours-compiled"] = lambda: _ours({**ours, "compile": True})
    elif options.threads > 1:
        ways["ours-2"] = lambda: _ours({**ours, "threads": options.threads // 2, "devices": 2})
    results: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            try:
                measured = way()
            except subprocess.CalledProcessError as error:  # a GPU too small for a peer's float32 maps, for example
                print(f"{name} failed, and is left out: {error.stderr}", flush=True)
                continue
            before = results.setdefault(name, measured)
            if before is not measured:
                for key in ("training_ms_per_volume", "inference_ms_per_volume"):
                    before[key] += measured[key]
    idle = 1 - median(results.pop("same batch")) / median(results["ours"])
    return {"ways": results, "idle": idle}


def _curves(options: argparse.Namespace, folder: Path, batch: int) -> dict[str, list[list[float]]]:
    """Training losses in both precisions, a list per seed: means of `STEPS_PER_POINT` steps."""
    ours = {"folder": str(folder), "batch": batch, "warm_up": 1, "steps": options.curve_steps - 1}
    ours |= {"threads": options.threads, "learning_rate": 1e-3, "initialisation": "he"}
    curves = {}
    for precision in ("32-true", "bf16-mixed"):
        losses = [_ours({**ours, "precision": precision, "seed": seed})["losses"] for seed in options.curve_seeds]
        curves[precision] = [np.reshape(of_seed, (-1, STEPS_PER_POINT)).mean(axis=1).tolist() for of_seed in losses]
    return curves


def _ours(asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, __file__, "--worker", json.dumps(asked), "--output", output]
        environment = {name: value for name, value in os.environ.items() if name not in RANKS}
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        result: dict[str, Any] = json.loads((Path(output) / "worker.json").read_text(encoding="utf-8"))
    return result


def last_line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(result: dict[str, Any], what: str = "training") -> float:
    return statistics.median(result[f"{what}_ms_per_volume"])


def _summary(grid: dict[str, Any]) -> str:
    figures = [f"{name} {median(of):.2f} / {median(of, 'inference'):.2f}" for name, of in grid["ways"].items()]
    return f"{grid['shape']}, batch {grid['batch_size']}, ms per volume trained / decoded: {', '.join(figures)}"


class Timed(Volumes):
    """Volumes that note when each batch was requested; on a GPU only the first and last, after waiting for it."""

    def follow(self, warm_up: int, steps: int, same_batch: bool) -> None:
        self.warm_up, self.steps, self.same_batch, self.asked_s = warm_up, steps, same_batch, []

    def batches(self, order: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        given, item = super().batches(order), None
        for step in range(self.warm_up + self.steps + 1):  # one more, in which the epoch ends
            if self.device.type != "cuda" or step in (self.warm_up, self.warm_up + self.steps):
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                self.asked_s.append((step, time.perf_counter()))
            if item is None or not self.same_batch:
                item = next(given, None)
            assert item is not None
            yield item


class Noted(DeepLight):
    """A decoder that keeps the loss of every training batch on its device."""

    def loss(self, batch: Batch) -> Outcome:
        outcome = super().loss(batch)
        if self.training:
            self.losses = [*getattr(self, "losses", []), outcome.loss.detach()]
        return outcome


def labelled(rows: pd.DataFrame) -> Examples:
    """The volumes of a store made by `make_data`."""
    return Examples(rows, rows, np.arange(len(rows)), rows["label"].to_numpy())


def _work(asked: dict[str, Any], output: Path) -> None:
    """Train and decode as asked; the first process writes its measurements."""
    store = read_store(Path(asked["folder"]))
    n_steps = asked["warm_up"] + asked["steps"] + 1
    settings = TrainingSettings(
        epochs=1, steps_per_epoch=n_steps, batch_size=asked["batch"], threads=asked["threads"],
        learning_rate=asked.get("learning_rate", 1e-4), precision=asked.get("precision", "bf16-mixed"),
        compile=asked.get("compile", False),
    )  # fmt: skip
    seed, every, few = asked.get("seed", 1), labelled(store.index), labelled(store.index.iloc[:1])
    data: list[Timed] = []

    def training(device: torch.device) -> Volumes:
        volumes = Timed(store, every, device)
        volumes.follow(asked["warm_up"], asked["steps"], asked.get("same_batch", False))
        data.append(volumes)
        return volumes

    with session(settings, asked.get("devices", 1)) as fabric, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        model = Noted(store.shape, STATES, DeepLightSettings(initialisation=asked.get("initialisation", "glorot")))
        run_folder = Path(folder if fabric.is_global_zero else tempfile.mkdtemp())
        fit(fabric, model, training, lambda device: Volumes(store, few, device), settings, seed, run_folder, "ours")
        model.to(fabric.device)
        everything = Volumes(store, every, fabric.device)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            predict(model, everything, fabric)
            seconds.append(time.perf_counter() - start)
        if fabric.is_global_zero:
            cuda = fabric.device.type == "cuda"
            timed = [time_s for step, time_s in data[0].asked_s if step >= asked["warm_up"]]
            per_volume = asked["batch"] * (asked["steps"] if cuda else 1)
            result = {
                "precision": settings.precision,
                "n_parameters": sum(weight.numel() for weight in model.parameters()),
                "training_ms_per_volume": (1e3 * np.diff(timed) / per_volume).tolist(),
                "inference_ms_per_volume": [1e3 * s / len(everything) for s in seconds[1:]],
                "losses": [loss.item() for loss in model.losses[: n_steps - 1]],
                "peak_gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            }
            (output / "worker.json").write_text(json.dumps(result), encoding="utf-8")


def _median_seconds(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """Median seconds per call, over five repeats of `calls` calls in a row, after an untimed repeat."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds[1:])


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """FLOP/s of the product of two n×n matrices: 2·n³ operations."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _median_seconds(lambda: a @ b, device, calls=10 if device.type == "cuda" else 3)


def copy_rate(device: torch.device, mib: int) -> float:
    """Bytes/s read plus written when memory of the device is copied within it."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device, calls=10)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", type=int, nargs="+", choices=SHAPES, help="mm (default: 8 6 2; on a GPU: 2)")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="volumes per step (default: 24, at 2 mm 4; on a GPU 24 96)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that the ways take turns (default 3)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each turn (default 12)")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before them (default 4)")
    parser.add_argument("--curve-steps", type=int, default=300, help="steps of the loss curves (default 300; 0: none)")
    parser.add_argument("--curve-seeds", type=int, nargs="+", default=(1, 2, 3), help="their seeds (default 1 2 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--matmul", type=int, help="rows of the square matrices (default: 8192 on a GPU, 2048)")
    parser.add_argument("--copy", type=int, default=512, help="MiB that are copied (default 512)")
    parser.add_argument("--keras-python", help="Python with requirements-keras.txt (without: no keras)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps, keras = options.curve_steps, options.keras_python
    least = {"rounds": 1, "steps": 1, "warm_up": 0, "curve_steps": 0, "curve_seeds": 0, "threads": 1, "batch": 1}
    wrong = {
        f"--curve-steps must be a multiple of {STEPS_PER_POINT}, since a point of a curve is a mean of as many steps, "
        f"or 0 for no curves; got {steps}": steps % STEPS_PER_POINT != 0,
        f"--keras-python {keras} cannot be run": bool(keras) and not shutil.which(keras),
    }
    check(parser, options, {**least, "matmul": 1, "copy": 1}, wrong)
    options.sizes = options.sizes or ([2] if options.device == "cuda" else [8, 6, 2])
    return options


if __name__ == "__main__":
    main()
