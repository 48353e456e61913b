"""Where training happens: one device, or several processes with one device each; precision and determinism.

Lightning Fabric averages the processes' gradients (DDP). On one machine the first process starts the others by running
the same command again; `torchrun` and SLURM's `srun` start all of them.
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
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from deeplight_core.routes import TrainingSettings

__all__ = ["available_precision", "keep_freed_memory", "session"]


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system each step (2.9× at 2 mm on a CPU)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library: nothing to tell
        return
    if not libc.mallopt(-3, 1 << 30):  # largest block from the heap; before 2.35, glibc allowed less
        libc.mallopt(-3, 1 << 25)
    libc.mallopt(-1, 2**31 - 1)  # free memory at the heap's end that is kept
    libc.mallopt(-2, 1 << 28)  # by how much the heap grows


def available_precision(precision: str) -> str:
    """The precision asked for, or 32-true where the CPU has no instructions for bfloat16."""
    if precision == "bf16-mixed" and not torch.cuda.is_available():
        features = torch.cpu.get_capabilities()
        if features.get("architecture") == "x86_64" and not (features.get("avx512_bf16") or features.get("amx_bf16")):
            return "32-true"
    return precision


@contextmanager
def session(settings: TrainingSettings, devices: int = 1, nodes: int = 1) -> Iterator[Fabric]:
    """This process's Fabric, one of devices × nodes that train together; starts the other processes if needed.

    Parameters
    ----------
    devices : GPUs per node, or processes where there is no GPU

    Raises
    ------
    ValueError
        If the number of processes does not fit the batch, the machine, or what torchrun or srun started.
    ChildProcessError
        If another process of the training was lost.
    """
    n, gpu = devices * nodes, torch.cuda.is_available()
    if n > settings.batch_size:
        raise ValueError(f"{n} processes cannot share batches of {settings.batch_size}; raise batch_size or use fewer")
    if gpu and devices > torch.cuda.device_count():
        raise ValueError(f"{devices} devices were asked for, this machine has {torch.cuda.device_count()} GPU(s)")
    environment = _environment(devices, nodes)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for deterministic matrix products
    keep_freed_memory()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision on stderr
    log = logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script")
    log.setLevel(logging.INFO)  # it says which process was lost before it ends the others
    scheduled = any(group.rate > 0 and (group.from_epoch > 1 or group.until_epoch) for group in settings.groups)
    fabric = Fabric(
        accelerator="cuda" if gpu else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(find_unused_parameters=scheduled) if n > 1 else "auto",  # for gradients that come and go
        precision=available_precision(settings.precision),  # type: ignore[arg-type]
        plugins=[environment],
    )
    if isinstance(environment, LightningEnvironment) and environment.local_rank() > 0:
        _stop_with_parent()
    try:
        fabric.launch()
        launcher = fabric.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher) and not gpu:
            launcher.procs.clear()  # gloo tells each process; the launcher would kill this one, maybe before it is told
        torch.set_num_threads(settings.threads)  # Fabric sets its own number
        exact = settings.deterministic if settings.deterministic is not None else not gpu
        torch.use_deterministic_algorithms(exact)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # a pass over all memory
        torch.backends.cudnn.benchmark = not exact
        torch.backends.cudnn.allow_tf32 = False  # 32-true means float32
        yield fabric
    except RuntimeError as error:
        lost = any(sign in str(error) for sign in ("gloo", "NCCL", "Connection", "DistBackend"))
        if n == 1 or isinstance(error, torch.OutOfMemoryError) or not lost:
            raise
        raise ChildProcessError(
            f"another process of this training was lost ({str(error).splitlines()[0]}); "
            "the same command continues where it stopped"
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)


def _environment(devices: int, nodes: int) -> ClusterEnvironment:
    """What starts the processes: torchrun, srun, or the first process.

    A SLURM step of one task, such as `srun --pty bash`, does not count.
    """
    n, by_srun = devices * nodes, int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    by_torchrun = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    started = max(by_srun, by_torchrun)
    if started != n and (started > 1 or nodes > 1):
        raise ValueError(
            f"{started} process(es) were started, but --devices {devices} --nodes {nodes} makes {n}; on several nodes, "
            f"start them with srun --nodes {nodes} --ntasks-per-node {devices} --kill-on-bad-exit, or with torchrun"
        )
    if by_torchrun > 1:
        return TorchElasticEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False) if by_srun > 1 else LightningEnvironment()
    except RuntimeError as error:  # --ntasks without --ntasks-per-node
        raise ValueError(str(error)) from error


def _stop_with_parent() -> None:
    """A killed first process cannot stop the others, so they watch for its end."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
