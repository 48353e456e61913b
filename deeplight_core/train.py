"""The training loop: set up, fit, evaluate; interrupted at any moment, it goes on as if it had not been.

The loop knows only `model.loss(batch)`. Batches and dropout are functions of (seed, step), so the state to keep is the
weights, Adam's moments and the running tally of the epoch.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deeplight_core.config import TrainingSettings
from deeplight_core.evaluate import predict
from deeplight_core.files import write_whole
from deeplight_core.loader import Volumes, rows_of_step, steps_per_pass
from deeplight_core.progress import duration

__all__ = ["fit", "keep_freed_memory", "learning_rate"]

_STATE = "state.safetensors"
_WARM_UP = 0.05


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system each step (2.9× at 2 mm on a CPU)."""
    import ctypes

    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library: nothing to tell
        return
    for option, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 1 << 28)):  # mmap threshold, trim threshold, top pad
        libc.mallopt(option, value)


def learning_rate(settings: TrainingSettings, step: int, n_steps: int) -> float:
    """The step size at a step: constant, or linear warm-up over 5% of the steps and cosine decay to zero."""
    if settings.schedule == "constant":
        return settings.learning_rate
    warm_up = max(1, round(_WARM_UP * n_steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


def fit(
    model: nn.Module,
    train: Callable[[torch.device], Volumes],
    validation: Callable[[torch.device], Volumes],
    settings: TrainingSettings,
    seed: int,
    folder: Path,
    label: str,
    checkpoint_every_s: float = 60.0,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Train a model's unfrozen weights; report each epoch; leave the model trained, on the CPU.

    Parameters
    ----------
    train, validation : make the volumes on the device that is used
    folder : where the resumable state, `metrics.csv` and TensorBoard's files are kept
    label : what to call this run in progress lines

    Returns
    -------
    metrics, one row per epoch × split × task × subject: `epoch, step, split, task, subject, accuracy, n_volumes, loss`
    (training accuracy is measured while training, dropout on), and the predicted validation labels (N,)

    Raises
    ------
    ValueError
        If the loss is no longer finite; the message names the step and the runs in the batch.
    """
    from torch.utils.tensorboard import SummaryWriter

    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision on stderr
    fabric = Fabric(accelerator="auto", devices=1, precision=settings.precision)
    data, held_out = train(fabric.device), validation(fabric.device)
    optimizer = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=settings.learning_rate)
    wrapped, optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("loss")
    per_epoch = settings.steps_per_epoch or steps_per_pass(len(data), settings.batch_size)
    n_steps = settings.epochs * per_epoch
    tally = torch.zeros(len(data), 3)  # per volume, in this epoch: times seen, times right, summed loss
    folder.mkdir(parents=True, exist_ok=True)
    step, metrics = _resume(folder, model, optimizer, tally, per_epoch)
    if step:
        print(f"{label}: going on at step {step} of {n_steps}", flush=True)
    started, first, saved = time.monotonic(), step, time.monotonic()
    predicted = np.empty(0, int)
    writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
    order = (rows_of_step(len(data), settings.batch_size, seed, s) for s in range(step, n_steps))
    _train_mode(wrapped)
    for numbers, batch in data.batches(order):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, n_steps)
        with fabric.autocast():  # on one device, Fabric applies its precision to `forward` only
            loss, logits = wrapped.loss(batch)
        if not torch.isfinite(loss):
            runs = sorted({str(f) for f in data.rows["file"].iloc[numbers]})
            raise ValueError(
                f"{label}: loss is {loss.item()} at step {step}, runs {', '.join(runs)}; lower learning_rate"
            )
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        right = (logits.detach().argmax(dim=1) == batch["labels"]).float().cpu()
        each = loss.detach().float().cpu().expand_as(right)
        tally[numbers] += torch.stack([torch.ones_like(right), right, each], dim=1)
        step += 1
        if step % per_epoch == 0:
            wrapped.eval()
            predicted, losses = predict(wrapped, held_out)
            _train_mode(wrapped)
            rows = [_epoch_rows(data.rows, tally.numpy(), "train")]
            seen = np.stack([np.ones(len(losses)), predicted == held_out.rows["label"].to_numpy(), losses], axis=1)
            rows.append(_epoch_rows(held_out.rows, seen, "validation"))
            epoch = step // per_epoch
            metrics = pd.concat([metrics, pd.concat(rows).assign(epoch=epoch, step=step)], ignore_index=True)
            left_s = (time.monotonic() - started) / (step - first) * (n_steps - step)
            _report(label, metrics, epoch, settings.epochs, left_s, writer)
            tally.zero_()
            write_whole(folder / "metrics.csv", partial(metrics.to_csv, index=False))
        if step % per_epoch == 0 or time.monotonic() - saved > checkpoint_every_s:
            _save_state(folder, model, optimizer, tally, step)
            saved = time.monotonic()
    if len(predicted) == 0:  # killed between the last step and the results
        wrapped.eval()
        predicted, _ = predict(wrapped, held_out)
    writer.close()
    model.to("cpu").eval()
    return metrics, predicted


def _train_mode(model: nn.Module) -> None:
    """Dropout for what learns; a frozen part gives the same features for the same volume."""
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(w.requires_grad for w in weights):
            part.eval()


def _epoch_rows(rows: pd.DataFrame, tally: np.ndarray, split: str) -> pd.DataFrame:
    """Accuracy and loss per task and subject from (N, 3) seen, right, summed loss."""
    table = rows[["task"]].assign(subject=rows["unit"], n=tally[:, 0], right=tally[:, 1], loss=tally[:, 2])
    sums = table.groupby(["task", "subject"]).sum().reset_index()
    sums = sums[sums["n"] > 0]
    return pd.DataFrame(
        {
            "epoch": 0, "step": 0, "split": split, "task": sums["task"], "subject": sums["subject"],
            "accuracy": sums["right"] / sums["n"], "n_volumes": sums["n"].astype(int), "loss": sums["loss"] / sums["n"],
        }
    )  # fmt: skip


def _report(label: str, metrics: pd.DataFrame, epoch: int, epochs: int, left_s: float, writer: object) -> None:
    now = metrics[metrics["epoch"] == epoch]
    mean = {
        str(split): group[["accuracy", "loss"]].mul(group["n_volumes"], axis=0).sum() / group["n_volumes"].sum()
        for split, group in now.groupby("split")
    }
    for split, values in mean.items():
        for name in ("accuracy", "loss"):
            writer.add_scalar(f"{name}/{split}", values[name], int(now["step"].iloc[0]))  # type: ignore[attr-defined]
    writer.flush()  # type: ignore[attr-defined]
    print(
        f"{label}: epoch {epoch}/{epochs}, loss {mean['train']['loss']:.3f}, "
        f"accuracy {mean['train']['accuracy']:.1%} in training, "
        f"{mean['validation']['accuracy']:.1%} in validation, {duration(left_s)} left",
        flush=True,
    )


def _save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tally: torch.Tensor, step: int
) -> None:
    tensors = {"tally": tally}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        for key, value in optimizer.state.get(parameter, {}).items():  # none of a frozen weight
            tensors[f"adam.{key}.{name}"] = value
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_whole(folder / _STATE, lambda p: save_file(tensors, p, metadata={"step": json.dumps(step)}))


def _resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, tally: torch.Tensor, per_epoch: int
) -> tuple[int, pd.DataFrame]:
    """Put the saved state back; the step to go on with, and the metrics of the epochs before it."""
    path, metrics = folder / _STATE, pd.DataFrame()
    if not path.is_file():
        return 0, metrics
    with safe_open(path, framework="pt") as tensors, torch.no_grad():
        step = int(json.loads(tensors.metadata()["step"]))
        tally.copy_(tensors.get_tensor("tally"))
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.get_tensor(f"model.{name}"))
            if not parameter.requires_grad:
                continue
            state = {key: tensors.get_tensor(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {
                k: v if k == "step" else v.to(parameter).clone(memory_format=torch.preserve_format)
                for k, v in state.items()
            }
    if (folder / "metrics.csv").is_file():
        metrics = pd.read_csv(folder / "metrics.csv", dtype={"subject": str}, keep_default_na=False)
        metrics = metrics[metrics["epoch"] <= step // per_epoch]
    return step, metrics
