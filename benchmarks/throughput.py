"""How fast this device trains and runs DeepLight: the numbers that an estimate of the full run needs.

    python benchmarks/throughput.py                 # the CPU, about two minutes on two cores
    python benchmarks/throughput.py --device cuda   # a GPU

Training steps and inference are those of `deeplight_core.train`: same model, memory format, precision and optimiser, on
random volumes that lie on the device already, so reading data is not in it. Beside them stand the device's rate of
matrix products and of copying memory, which bound what any program could reach. Result: one JSON file per device in
`benchmarks/results/`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from report import write_result

from deeplight_core.models.deeplight import DeepLight
from deeplight_core.train import keep_freed_memory

PRECISIONS = ("32-true", "bf16-mixed")
LEARNING_RATE = 1e-4  # any: it changes no time


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    load = os.getloadavg()
    shape, batch_size = tuple(options.shape), options.batch or (24 if device.type == "cuda" else 2)
    write_result(
        "throughput",
        options.device,
        load,
        ["torch"],
        options.output,
        threads=torch.get_num_threads(),
        shape=list(shape),
        batch_size=batch_size,
        repeats=options.repeats,
        volumes_per_s={
            precision: {
                what: batch_size / seconds
                for what, seconds in step_seconds(device, precision, shape, batch_size, options.repeats).items()
            }
            for precision in PRECISIONS
        },
        matmul_flops_per_s={
            str(dtype).removeprefix("torch."): matmul_rate(device, dtype, options.matmul, options.repeats)
            for dtype in (torch.float32, torch.bfloat16)
        },
        copy_bytes_per_s=copy_rate(device, options.copy_mib, options.repeats),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", type=int, nargs=3, default=(91, 109, 91), metavar=("X", "Y", "Z"), help="grid")
    parser.add_argument("--batch", type=int, help="volumes per step (default: 24 on a GPU, 2 on a CPU)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats; medians are reported (default 3)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--matmul", type=int, help="rows of the square matrices (default: 8192 on a GPU, 2048)")
    parser.add_argument("--copy-mib", type=int, default=512, help="size of the copied block (default 512)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here")
    options.matmul = options.matmul or (8192 if options.device == "cuda" else 2048)
    return options


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int, calls: int = 1) -> float:
    """Median seconds of one call, after one that is not timed."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds[1:])


def step_seconds(
    device: torch.device, precision: str, shape: tuple[int, ...], batch_size: int, repeats: int
) -> dict[str, float]:
    """Seconds of one training step and of one forward pass in inference mode, of a batch."""
    torch.manual_seed(0)
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)  # type: ignore[arg-type]
    model = DeepLight((shape[0], shape[1], shape[2]))
    wrapped, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))
    wrapped.mark_forward_method("loss")
    volumes = torch.randn(batch_size, *shape[::-1], device=device)
    batch = {"volumes": volumes, "labels": torch.arange(batch_size, device=device) % model.n_states}

    def train() -> None:
        with fabric.autocast():
            loss, _ = wrapped.loss(batch)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()

    @torch.inference_mode()
    def infer() -> None:
        wrapped(volumes)

    calls = 10 if device.type == "cuda" else 1
    training = median_seconds(train, device, repeats, calls)
    wrapped.eval()
    return {"training": training, "inference": median_seconds(infer, device, repeats, calls)}


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int, repeats: int) -> float:
    """FLOP/s of the product of two n×n matrices: 2·n³ operations."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b, device, repeats, calls=10 if device.type == "cuda" else 1)


def copy_rate(device: torch.device, mib: int, repeats: int) -> float:
    """Bytes/s read plus written when memory of the device is copied within it."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, repeats, calls=10 if device.type == "cuda" else 1)
    return 2 * source.nbytes / seconds


if __name__ == "__main__":
    main()
