"""The training step of ResNet-18 on slices beside the same network in PyTorch's own layers, in one run.

    python benchmarks/images.py        # two cores, about 5 minutes

Both fine-tune ResNet-18 on axial slices of the same random volumes in memory, whose features are averaged, to tell two
classes, from the same weights. Each way runs in its own process; they take turns; times are medians of single steps
after one that is not counted:

plain          PyTorch as anyone would write it: float32, `nn.Conv2d`, `nn.BatchNorm2d`, default memory format,
               slices resized by `F.interpolate`, `torch.optim.Adam`
ours           `deeplight_core.models` with the optimiser and allocator of this package's training loop, float32
ours-bfloat16  the same with bfloat16 autocast, on GPUs, and on CPUs that have instructions for it

Result: one JSON file per device in `benchmarks/results/`, which grows size by size under a name that ends in
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
import torch.nn.functional as F
from report import Result, check
from steps import timed_steps
from torch import Tensor, nn

from deeplight_core.models import build
from deeplight_core.training.devices import available_precision

HERE = Path(__file__).parent
SHAPE = (54, 64, 54)  # profile images'
MEAN, SD = 0.449, 0.226  # ImageNet's, over colours
LEARNING_RATE = 1e-3
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        if (n_in, stride) == (n_out, 1):
            self.downsample = nn.Sequential()

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(maps))


class Plain(nn.Module):
    """ResNet-18 for axial slices of volumes (B, Z, Y, X), and two classes."""

    def __init__(self, size: int, slices: int) -> None:
        super().__init__()
        self.size, self.slices = size, slices
        self.conv1, self.bn1 = nn.Conv2d(1, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0])
        self.pool = nn.MaxPool2d(3, 2, 1)
        pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, (1, 2, 2, 2), strict=False)
        self.layers = nn.Sequential(*(nn.Sequential(Block(n, m, s), Block(m, m, 1)) for n, m, s in pairs))
        self.classes = nn.Linear(WIDTHS[-1], 2)

    def forward(self, volumes: Tensor) -> Tensor:
        n, edge = volumes.shape[1], max(volumes.shape[1:])
        slices = torch.stack([volumes[:, (i * n + n // 2) // self.slices] for i in range(self.slices)], dim=1).flip(2)
        height, width = slices.shape[2:]
        above, left = (edge - height) // 2, (edge - width) // 2
        slices = F.pad(slices, (left, edge - width - left, above, edge - height - above))
        images = (F.interpolate(slices, (self.size, self.size), mode="bilinear").clamp(0, 1) - MEAN) / SD
        maps = self.layers(self.pool(F.relu(self.bn1(self.conv1(images.flatten(0, 1)[:, None])))))
        features = maps.mean(dim=(2, 3)).view(len(volumes), self.slices, -1).mean(dim=1)
        return self.classes(features)


def main() -> None:
    options = _options()
    if options.worker:
        print(json.dumps(_work(options)), flush=True)
        return
    ways = ["plain", "ours"]
    if available_precision("bf16-mixed") == "bf16-mixed":
        ways.append("ours-bfloat16")
    asked = {"threads": options.threads, "steps": options.steps, "rounds": options.rounds}
    asked |= {"shape": list(SHAPE), "batch_size": options.batch, "slices": options.slices}
    result = Result("images", options.device, ["torch"], options.output, **asked, sizes=[])
    sizes: list[dict[str, Any]] = []
    for size in options.sizes:
        measured: dict[str, dict[str, Any]] = {}
        for _ in range(options.rounds):
            for way in ways:
                new = _in_a_process(options, way, size)
                measured.setdefault(way, new | {"ms_per_slice": []})["ms_per_slice"] += new["ms_per_slice"]
        medians = {way: statistics.median(of["ms_per_slice"]) for way, of in measured.items()}
        times = {way: medians["plain"] / of for way, of in medians.items() if way != "plain"}
        sizes.append({"size": size, "ways": measured, "median_ms_per_slice": medians, "times_as_fast_as_plain": times})
        result.add(sizes=sizes)
        print(size, "pixels", {way: round(of, 2) for way, of in medians.items()}, "ms per slice", flush=True)
    result.finish()


def _in_a_process(options: argparse.Namespace, way: str, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", way, "--sizes", str(size), "--device", options.device]
    for name in ("batch", "slices", "threads", "steps"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """Train as the way says, in this process."""
    torch.set_num_threads(options.threads)
    device, size = torch.device(options.device), options.sizes[0]
    torch.manual_seed(0)
    volumes = torch.rand(options.batch, *SHAPE[::-1]).to(device)
    targets = (torch.arange(options.batch) % 2).to(device)
    settings = {"size": size, "slices": options.slices}
    head = {"name": "classes", "targets": [["T1w", "F"], ["T1w", "M"]], "settings": {"dropout": 0.0}}
    model: nn.Module = build({"encoder": {"name": "resnet18", "shape": SHAPE, "settings": settings}, "head": head})
    if options.worker == "plain":
        plain = Plain(size, options.slices)
        for own, given in zip(plain.parameters(), model.parameters(), strict=True):
            own.data.copy_(given)
        model = plain
    model = model.to(device).train()
    lower = torch.autocast(device.type, torch.bfloat16, enabled=options.worker == "ours-bfloat16")

    def loss() -> Tensor:
        if options.worker == "plain":
            return F.cross_entropy(model(volumes), targets)
        with lower:
            return model.loss({"volumes": volumes, "targets": targets}).loss

    seconds, losses = timed_steps(model, loss, options.steps, LEARNING_RATE, ours=options.worker != "plain")
    return {
        "ms_per_slice": [1e3 * s / options.batch / options.slices for s in seconds],
        "losses": losses,
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 224], help="pixels of a slice's edge")
    parser.add_argument("--batch", type=int, default=8, help="volumes in a step")
    parser.add_argument("--slices", type=int, default=6, help="slices of a volume")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", choices=("plain", "ours", "ours-bfloat16"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    check(parser, options, {"sizes": 32, "batch": 2, "slices": 1, "steps": 1, "rounds": 1, "threads": 1}, {})
    return options


if __name__ == "__main__":
    main()
