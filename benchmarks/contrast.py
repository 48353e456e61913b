"""A step of temporal contrast beside a supervised step of the same encoder, per encoded volume, in one run.

    python benchmarks/contrast.py        # two cores, about 3 minutes

Both train DeepLight's encoder with the optimiser and allocator of this package's training loop on random volumes in
memory: the same number of volumes in a step, as single volumes with one of 16 states, or as the three windows of a
series. Each way runs in its own process; they take turns; times are medians of single steps after one that is not
counted. Result: one JSON file per device in `benchmarks/results/`, which grows grid by grid under a name that ends in
`.partial`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from report import Result, check
from steps import timed_steps
from torch import Tensor

from deeplight_core.models import build
from deeplight_core.training.devices import available_precision

HERE = Path(__file__).parent
SHAPES = {10: (14, 18, 14), 8: (23, 28, 23), 2: (91, 109, 91)}  # in mm; the first is that of profile contrast
N_STATES, FRAMES, LEARNING_RATE = 16, 3, 1e-3
WAYS = ("supervised", "contrast")


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(_work(options)), flush=True)
        return
    asked = {"threads": options.threads, "steps": options.steps, "rounds": options.rounds}
    result = Result("contrast", options.device, ["torch"], options.output, **asked, grids=[])
    grids: list[dict[str, Any]] = []
    for mm in options.sizes:
        ways: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, times in ways.items():
                times += _in_a_process(options, way, mm)
        medians = {way: statistics.median(times) for way, times in ways.items()}
        grids.append(
            {
                "mm": mm, "shape": list(SHAPES[mm]), "series": options.series, "volumes": options.series * 3 * FRAMES,
                "ms_per_volume": ways, "median_ms_per_volume": medians,
                "contrast_to_supervised": medians["contrast"] / medians["supervised"],
            }
        )  # fmt: skip
        result.add(grids=grids)
        print(mm, "mm", {way: round(of, 2) for way, of in medians.items()}, "ms per volume", flush=True)
    result.finish()


def _in_a_process(options: argparse.Namespace, way: str, mm: int) -> list[float]:
    command = [sys.executable, __file__, "--worker", way, "--sizes", str(mm), "--series", str(options.series)]
    command += ["--device", options.device, "--threads", str(options.threads), "--steps", str(options.steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def _work(options: argparse.Namespace) -> list[float]:
    """Milliseconds per volume of each timed step of one way, in this process."""
    torch.set_num_threads(options.threads)
    device, shape, n = torch.device(options.device), SHAPES[options.sizes[0]], options.series * 3 * FRAMES
    torch.manual_seed(0)
    volumes = torch.randn(n, *shape[::-1])
    if options.worker == "contrast":
        volumes = volumes.reshape(options.series, 3, FRAMES, *shape[::-1])
        head: dict[str, Any] = {"name": "contrast", "targets": [], "settings": {}}
        targets = torch.empty(options.series, 0)
    else:
        head = {"name": "classes", "targets": [["WM", str(i)] for i in range(N_STATES)], "settings": {}}
        targets = torch.randint(N_STATES, (n,))
    model = build({"encoder": {"name": "deeplight", "shape": shape, "settings": {}}, "head": head}).to(device).train()
    batch = {"volumes": volumes.to(device), "targets": targets.to(device)}
    lower = torch.autocast(device.type, torch.bfloat16, enabled=available_precision("bf16-mixed") == "bf16-mixed")

    def loss() -> Tensor:
        with lower:
            return model.loss(batch).loss

    seconds, _ = timed_steps(model, loss, options.steps, LEARNING_RATE, ours=True)
    return [1e3 * s / n for s in seconds]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", type=int, choices=SHAPES, default=[10, 8])
    parser.add_argument("--series", type=int, default=16, help="series in a step, of three windows each")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    check(parser, options, {"series": 2, "steps": 1, "rounds": 1, "threads": 1}, {})
    return options


if __name__ == "__main__":
    main()
