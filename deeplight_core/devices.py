"""What a training runs on: one device or many processes with one each, in which precision, how exactly.

One process per device; Lightning Fabric averages their gradients (DDP). On one machine the first process starts the
others by running the same command again; under `torchrun` and SLURM's `srun` they are there already.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from deeplight_core.config import TrainingSettings

__all__ = ["available_precision", "keep_freed_memory", "session"]


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system each step (2.9× at 2 mm on a CPU)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library: nothing to tell
        return
    for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 1 << 28)):  # mmap threshold, trim threshold, top pad
        libc.mallopt(option, value)


def available_precision(precision: str) -> str:
    """The precision that was asked for, or 32-true where the processor has no instructions for bfloat16."""
    if precision == "bf16-mixed" and not torch.cuda.is_available():
        features = torch.cpu.get_capabilities()
        if features.get("architecture") == "x86_64" and not (features.get("avx512_bf16") or features.get("amx_bf16")):
            return "32-true"
    return precision


@contextmanager
def session(settings: TrainingSettings, devices: int = 1, nodes: int = 1) -> Iterator[Fabric]:
    """The Fabric of this process, one of devices × nodes that train together; the others are started if need be.

    Parameters
    ----------
    devices : GPUs per node, or processes where there is no GPU

    Raises
    ------
    ValueError
        If the processes do not fit the batch, the machine or what torchrun or srun started.
    ChildProcessError
        If another process of the training was lost.
    """
    n = devices * nodes
    if n > settings.batch_size:
        raise ValueError(f"{n} processes cannot share batches of {settings.batch_size}; raise batch_size or use fewer")
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise ValueError(f"{devices} devices were asked for, this machine has {torch.cuda.device_count()} GPU(s)")
    started_n = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or devices)
    if started_n != n:
        raise ValueError(
            f"{started_n} processes were started, but --devices {devices} --nodes {nodes} makes {n}; on several nodes, "
            f"start them with srun --nodes {nodes} --ntasks-per-node {devices}, or with torchrun"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need
    keep_freed_memory()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision on stderr
    scheduled = any(group.rate > 0 and (group.from_epoch > 1 or group.until_epoch) for group in settings.groups)
    fabric = Fabric(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(find_unused_parameters=scheduled) if n > 1 else "auto",  # gradients that come and go
        precision=available_precision(settings.precision),  # type: ignore[arg-type]
    )
    if n > 1 and "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        _stop_with_parent()
    fabric.launch()
    torch.set_num_threads(settings.threads)  # Fabric sets a number of its own
    exact = settings.deterministic if settings.deterministic is not None else fabric.device.type == "cpu"
    torch.use_deterministic_algorithms(exact)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # a pass over all memory
    torch.backends.cudnn.benchmark = not exact
    try:
        yield fabric
    except RuntimeError as error:
        if n > 1 and any(sign in str(error) for sign in ("gloo", "NCCL", "Connection", "DistBackend")):
            raise ChildProcessError(
                f"another process of this training was lost ({str(error).splitlines()[0]}); "
                "the same command goes on where it was"
            ) from None
        raise
    finally:
        torch.use_deterministic_algorithms(False)


def _stop_with_parent() -> None:
    """The first process cannot tell the others to stop when it is killed: let them watch for its end."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
