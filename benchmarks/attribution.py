"""Explaining a volume beside a plain train step of the same decoder, in one process.

    python benchmarks/attribution.py        # one core, about 2 minutes

plain    a train step of `peers/torch_loop.py`'s DeepLight as anyone would write it, in float32, per volume
others   `deeplight_core.analysis.attribution` on `deeplight_core.models`, float32; of integrated gradients one point
         of the way, so that all of it takes as many times as much as it has steps

They take turns; times are medians after one round that is not counted. `cpu_ms` is what all cores have worked, which on
a busy machine says more than `ms`. Result: one JSON file per device in `benchmarks/results/`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from report import Result, check

from deeplight_core.analysis.attribution import METHODS, Method, explain
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.routes import DeepLightSettings
from deeplight_core.training.devices import keep_freed_memory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from torch_loop import LEARNING_RATE, Decoder  # noqa: E402

N_STATES = 16


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.device == "cpu":
        keep_freed_memory()
    shape, n = tuple(options.shape), options.batch
    volumes = torch.randn(n, *shape[::-1], device=options.device)
    labels = torch.arange(n, device=options.device) % N_STATES
    plain = Decoder(shape[1], shape[0], N_STATES).to(options.device).train()
    adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    model = DeepLight(shape, N_STATES, DeepLightSettings(initialisation="he")).to(options.device)

    def step() -> None:
        adam.zero_grad()
        F.cross_entropy(plain(volumes), labels).backward()
        adam.step()

    ways: dict[str, Callable[[], object]] = {"plain": step}
    for name, method in METHODS.items():
        once = method.model_copy(update={"steps": 1}) if method.kind == "integrated" else method
        ways[name] = lambda once=once: explain(model, volumes, labels, once)
    flat = Method(rule="alpha2beta1", first="flat")
    ways["lrp-alpha2beta1, flat"] = lambda: explain(model, volumes, labels, flat)
    asked = {"threads": options.threads, "rounds": options.rounds, "batch_size": n, "shape": list(shape)}
    result = Result("attribution", options.device, ["torch"], options.output, **asked, ways={})
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds + 1):
        for way, run in ways.items():
            start, worked = time.perf_counter(), time.process_time()
            run()
            if options.device == "cuda":
                torch.cuda.synchronize()
            wall[way].append(1e3 * (time.perf_counter() - start) / n)
            cpu[way].append(1e3 * (time.process_time() - worked) / n)
    ms = {way: statistics.median(of[1:]) for way, of in wall.items()}
    cpu_ms = {way: statistics.median(of[1:]) for way, of in cpu.items()}
    result.add(
        ways={way: {"ms": wall[way][1:], "cpu_ms": cpu[way][1:]} for way in ways},
        times_a_plain_step={way: ms[way] / ms["plain"] for way in ways},
        cpu_times_a_plain_step={way: cpu_ms[way] / cpu_ms["plain"] for way in ways},
    )
    result.finish()
    for way in ways:
        print(f"{way}: {ms[way]:.0f} ms, {cpu_ms[way]:.0f} ms of CPU, {cpu_ms[way] / cpu_ms['plain']:.2f} × plain")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", type=int, nargs=3, default=[91, 109, 91], metavar=("X", "Y", "Z"))
    parser.add_argument("--batch", type=int, default=2, help="volumes at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    check(parser, options, {"batch": 1, "rounds": 1, "threads": 1}, {})
    return options


if __name__ == "__main__":
    main()
