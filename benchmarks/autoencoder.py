"""The convolutional autoencoder's train step beside the same model in PyTorch's own layers, in one run.

    python benchmarks/autoencoder.py        # two cores, about 10 minutes

Both train the report's model (Atanaszov & Ritter 2019) by Adam on the same random images in memory, from the same
weights, without regard to loading them. Each way runs in its own process; they take turns; times are medians of single
steps after one that is not counted:

plain          PyTorch as anyone would write it: float32, `nn.Conv3d`, `nn.MaxPool3d(return_indices=True)`,
               `nn.ConvTranspose3d`, `nn.MaxUnpool3d`, default memory format, `torch.optim.Adam`
ours           `deeplight_core.models` with the optimiser and allocator of this package's training loop, float32
ours-bfloat16  the same with bfloat16 autocast, on GPUs, and on CPUs that have instructions for it

The grids are the report's (108×128×108) and half of it on each axis, as its code zooms. `peak_mb` is the most memory
that the process has used, its own start included (`start_mb`). Result: one JSON file per device in
`benchmarks/results/`, which grows grid by grid under a name that ends in `.partial`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from report import Result, check
from steps import timed_steps
from torch import Tensor, nn

from deeplight_core.models import build
from deeplight_core.training.devices import available_precision

HERE = Path(__file__).parent
SHAPES = {"half": (54, 64, 54), "full": (108, 128, 108)}
LEARNING_RATE = 1e-3


class Plain(nn.Module):
    """The report's autoencoder for images (B, 1, Z, Y, X)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1), nn.Conv3d(16, 32, 3, padding=1)]
        )
        self.code, self.first = nn.Conv3d(32, 16, 3), nn.ConvTranspose3d(16, 32, 3)
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose3d(32, 16, 3, padding=1),
                nn.ConvTranspose3d(16, 8, 3, padding=1),
                nn.ConvTranspose3d(8, 1, 3, padding=1),
            ]
        )
        self.pool, self.unpool = nn.MaxPool3d(2, return_indices=True), nn.MaxUnpool3d(2)

    def forward(self, images: Tensor) -> Tensor:
        maps, kept = images, []
        for layer in self.down:
            maps = F.relu(layer(maps))
            size = maps.shape
            maps, places = self.pool(maps)
            kept.append((places, size))
        maps = F.relu(self.first(F.relu(self.code(maps))))
        for i, layer in enumerate(self.up):
            places, size = kept.pop()
            maps = layer(self.unpool(maps, places, output_size=size))
            maps = F.relu(maps) if i < 2 else torch.sigmoid(maps)
        return maps


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(_work(options)), flush=True)
        return
    device = torch.device(options.device)
    ways = ["plain", "ours"]
    if device.type == "cuda" or available_precision("bf16-mixed") == "bf16-mixed":
        ways.append("ours-bfloat16")
    asked = {"threads": options.threads, "steps": options.steps, "rounds": options.rounds}
    result = Result("autoencoder", options.device, ["torch"], options.output, **asked, grids=[])
    grids: list[dict[str, Any]] = []
    for name in options.grids:
        batch = options.batch or {"half": 16, "full": 4}[name]
        measured: dict[str, dict[str, Any]] = {}
        for _ in range(options.rounds):
            for way in ways:
                _merge(measured, way, _in_a_process(options, way, name, batch))
        medians = {way: statistics.median(of["ms_per_image"]) for way, of in measured.items()}
        grids.append(
            {
                "grid": name, "shape": list(SHAPES[name]), "batch_size": batch, "ways": measured,
                "median_ms_per_image": medians,
                "times_as_fast_as_plain": {way: medians["plain"] / of for way, of in medians.items() if way != "plain"},
            }
        )  # fmt: skip
        result.add(grids=grids)
        print(name, {way: round(of, 1) for way, of in medians.items()}, "ms per image", flush=True)
    result.finish()


def _in_a_process(options: argparse.Namespace, way: str, grid: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", way, "--grids", grid, "--batch", str(batch)]
    command += ["--device", options.device, "--threads", str(options.threads), "--steps", str(options.steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _merge(measured: dict[str, dict[str, Any]], way: str, new: dict[str, Any]) -> None:
    """Add a round's steps to those of the rounds before; memory and losses are the first round's."""
    if way in measured:
        measured[way]["ms_per_image"] += new["ms_per_image"]
    else:
        measured[way] = new


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """Train as the way says, in this process."""
    torch.set_num_threads(options.threads)
    device, shape = torch.device(options.device), SHAPES[options.grids[0]]
    start_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    torch.manual_seed(0)
    images = torch.rand(options.batch, *shape[::-1]).to(device)
    batch = {"volumes": images, "targets": images.new_empty(len(images), 0)}
    encoder = {"name": "cae", "shape": shape, "settings": {}}
    model = build({"encoder": encoder, "head": {"name": "reconstruction", "targets": [], "settings": {}}})
    if options.worker == "plain":
        plain = Plain()
        for own, given in zip(plain.parameters(), model.parameters(), strict=True):
            own.data.copy_(given)
        model = plain
    model = model.to(device).train()
    lower = torch.autocast(device.type, torch.bfloat16, enabled=options.worker == "ours-bfloat16")

    def loss() -> Tensor:
        if options.worker == "plain":
            return F.mse_loss(model(images[:, None])[:, 0], images)
        with lower:
            return model.loss(batch).loss

    seconds, losses = timed_steps(model, loss, options.steps, LEARNING_RATE, ours=options.worker != "plain")
    return {
        "ms_per_image": [1e3 * s / options.batch for s in seconds],
        "losses": losses,
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
        "start_mb": start_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--grids", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", type=int, help="images per step (default: 16 of half the grid, 4 of the full one)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", choices=("plain", "ours", "ours-bfloat16"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    check(parser, options, {"batch": 1, "steps": 1, "rounds": 1, "threads": 1}, {})
    return options


if __name__ == "__main__":
    main()
