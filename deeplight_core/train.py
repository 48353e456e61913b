"""The training loop: set up, fit, evaluate; interrupted at any moment, it goes on as if it had not been.

The loop knows only `model.loss(batch)`. Batches and dropout are functions of (seed, step) and of nothing else, so the
state to keep is the weights, Adam's moments and the running tally of the epoch; and the batch may be shared by any
number of processes.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from deeplight_core.checkpoint import load_state, save_state
from deeplight_core.config import LayerGroup, TrainingSettings
from deeplight_core.evaluate import predict
from deeplight_core.loader import BatchOrder, Volumes
from deeplight_core.metrics import Metrics, Tally
from deeplight_core.models.noise import part_of_batch

__all__ = ["fit", "learning_rate"]

_WARM_UP = 0.05
_LOOK_EVERY_S = 1.0  # how often the processor waits for the device, to see how things stand


def learning_rate(settings: TrainingSettings, step: int, n_steps: int) -> float:
    """The step size at a step: constant, or linear warm-up over 5% of the steps and cosine decay to zero."""
    if settings.schedule == "constant":
        return settings.learning_rate
    warm_up = max(1, round(_WARM_UP * n_steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


def fit(
    fabric: Fabric,
    model: nn.Module,
    train: Callable[[torch.device], Volumes],
    validation: Callable[[torch.device], Volumes],
    settings: TrainingSettings,
    seed: int,
    folder: Path,
    label: str,
    checkpoint_every_s: float = 60.0,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Train a model; report each epoch; leave the model trained, on the CPU.

    Parameters
    ----------
    fabric : of `devices.session`; every process of it calls this function
    train, validation : make the volumes on the device that is used
    folder : where the resumable state, `metrics.csv` and TensorBoard's files are kept
    label : what to call this run in progress lines

    Returns
    -------
    metrics (see `Metrics`), and the predicted validation labels (N,)

    Raises
    ------
    ValueError
        If the loss is no longer finite (the message names the step and the runs in its batch), or a layer group fits
        no weight.
    MemoryError
        If the memory of the device does not suffice.
    """
    data, held_out = train(fabric.device), validation(fabric.device)
    order = BatchOrder(data.rows["file"].to_numpy(), settings.batch_size, seed, settings.shuffled_runs)
    per_epoch = settings.steps_per_epoch or order.steps_per_pass
    n_steps = settings.epochs * per_epoch
    groups = _layer_groups(model, settings)
    optimizer = torch.optim.AdamW(
        [{"params": weights, "rate": group.rate} for group, weights in groups if group.rate > 0],
        lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True,
    )  # fmt: skip
    if settings.compile:
        model.compile()
    wrapped, optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("loss")
    state, tally = folder / "state.safetensors", Tally(len(data), fabric.device)
    step, others = load_state(state, model, optimizer)
    best = {name.removeprefix("best."): weight for name, weight in others.items() if name.startswith("best.")}
    if step and fabric.is_global_zero:  # counts of all processes
        tally.counts.copy_(others["tally"])
    metrics = Metrics(folder, label, step, step // per_epoch, n_steps, settings.epochs, fabric.is_global_zero)
    pace = _Pace(fabric, step, per_epoch, checkpoint_every_s)
    predicted, entered = np.empty(0, int), 0

    with _memory_explained(label, settings, data), closing(metrics):
        last = step if _out_of_patience(metrics, settings) else n_steps
        for _, batch in data.batches(_own_part(order[s], fabric) for s in range(step, last)):
            epoch = step // per_epoch + 1
            if epoch != entered:
                _enter_epoch(model, groups, epoch)
                entered = epoch
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, n_steps) * group["rate"]
            first, n_own, n_all = _share(len(order[step]), fabric)
            with part_of_batch(first, n_all), fabric.autocast():  # Fabric's precision alone covers `forward` only
                loss, each, logits = wrapped.loss(batch)
            fabric.backward(loss * (n_own * fabric.world_size / n_all))  # DDP takes the mean over processes
            if settings.l1:
                _add_l1_gradient(model, settings.l1)
            optimizer.step()
            optimizer.zero_grad()
            if n_own:
                tally.add(step, each, logits, batch)
            step += 1
            if not pace.is_time_to_look(step):
                continue
            _check_finite(fabric, tally, order, data, label)
            metrics.show(step, epoch, tally)
            if step == epoch * per_epoch:
                counts = _sum(fabric, tally.counts).cpu().numpy()
                predicted, losses = predict(model, held_out, fabric)
                metrics.add_epoch(epoch, step, data.rows, counts, held_out.rows, predicted, losses)
                tally.counts.zero_()
                if settings.keep == "best" and metrics.best_epoch == epoch:
                    best = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
            if pace.is_time_to_save(step):
                total = _sum(fabric, tally.counts)
                if fabric.is_global_zero:
                    kept = {f"best.{name}": weight for name, weight in best.items()}
                    save_state(state, model, optimizer, {"tally": total, **kept}, step)
            if step == epoch * per_epoch and _out_of_patience(metrics, settings):
                break
        if settings.keep == "best":
            model.load_state_dict(best)
        if settings.keep == "best" or len(predicted) == 0:  # killed between the last step and the results
            predicted, _ = predict(model, held_out, fabric)
    model.to("cpu").eval()
    return metrics.table, predicted


def _share(n: int, fabric: Fabric) -> tuple[int, int, int]:
    """This process's share of a batch of n: its first volume, how many volumes, and n."""
    first, end = (n * rank // fabric.world_size for rank in (fabric.global_rank, fabric.global_rank + 1))
    return first, end - first, n


def _own_part(numbers: np.ndarray, fabric: Fabric) -> np.ndarray:
    """The volumes of this process's share; where a small batch leaves it nothing, one volume, to count as nothing."""
    first, n_own, _ = _share(len(numbers), fabric)
    return numbers[first : first + n_own] if n_own else numbers[:1]


def _sum(fabric: Fabric, counts: Tensor) -> Tensor:
    """The sum over all processes, in a new tensor."""
    total = fabric.all_reduce(counts.clone(), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _add_l1_gradient(model: nn.Module, factor: float) -> None:
    """Add the gradient of factor × Σ|w| over the weights that learn: factor times each weight's sign."""
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad.add_(weight.detach().sign(), alpha=factor)


def _layer_groups(model: nn.Module, settings: TrainingSettings) -> list[tuple[LayerGroup, list[nn.Parameter]]]:
    """The weights of each layer group; those of a group with rate 0 are frozen for good."""
    groups = [LayerGroup(layers=""), *settings.groups]
    names = [name for name, _ in model.named_parameters()]
    if strangers := [g.layers for g in settings.groups if not any(name.startswith(g.layers) for name in names)]:
        known = sorted({name.rpartition(".")[0] for name in names})
        raise ValueError(f"no weights start with {', '.join(strangers)}; layers are {', '.join(known)}")
    of_group: dict[int, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        number = max(i for i, group in enumerate(groups) if name.startswith(group.layers))
        weight.requires_grad_(groups[number].rate > 0)
        of_group.setdefault(number, []).append(weight)
    return [(groups[number], weights) for number, weights in of_group.items()]


def _enter_epoch(model: nn.Module, groups: list[tuple[LayerGroup, list[nn.Parameter]]], epoch: int) -> None:
    """Freeze and unfreeze. Dropout is for what learns: a frozen part gives the same features for the same volume."""
    for group, weights in groups:
        for weight in weights:
            weight.requires_grad_(group.learns(epoch))
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(w.requires_grad for w in weights):
            part.eval()


def _out_of_patience(metrics: Metrics, settings: TrainingSettings) -> bool:
    return settings.patience is not None and metrics.n_epochs - metrics.best_epoch >= settings.patience


def _check_finite(fabric: Fabric, tally: Tally, order: BatchOrder, data: Volumes, label: str) -> None:
    """Raise ValueError if a loss was not finite since the last look; the weights since then are never saved."""
    bad = float(fabric.all_reduce(tally.first_bad.clone(), reduce_op="min"))  # type: ignore[arg-type]
    if bad < math.inf:
        runs = sorted({str(f) for f in data.rows["file"].iloc[order[int(bad)]]})
        raise ValueError(
            f"{label}: the loss is not finite at step {int(bad)}, runs {', '.join(runs)}; lower learning_rate, or look "
            "at these runs (`deeplight verify`)"
        )


@contextmanager
def _memory_explained(label: str, settings: TrainingSettings, data: Volumes) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise MemoryError(
            f"{label}: the memory of {data.device} does not suffice for batches of {settings.batch_size} volumes of "
            f"{' × '.join(map(str, data.shape[::-1]))} voxels in {settings.precision}; lower batch_size, use precision "
            "bf16-mixed, or crop the grid (preprocessing.crop); the same command goes on where it was"
        ) from error


class _Pace:
    """When to look at the device and when to save, in steps: clocks differ, so the first process says it for all.

    Looking makes the processor wait for the device, so it is done about once a second, and at the end of an epoch.
    """

    def __init__(self, fabric: Fabric, step: int, per_epoch: int, save_every_s: float) -> None:
        self._fabric, self._per_epoch, self._save_every_s = fabric, per_epoch, save_every_s
        self._saved_s = self._looked_s = time.monotonic()
        self._looked, self._next = step, step + 1

    def is_time_to_look(self, step: int) -> bool:
        return step >= self._next or step % self._per_epoch == 0

    def is_time_to_save(self, step: int) -> bool:
        """Whether to save now; asked once at every look, by every process."""
        now = time.monotonic()
        save = step % self._per_epoch == 0 or now - self._saved_s >= self._save_every_s
        steps_per_s = (step - self._looked) / max(now - self._looked_s, 1e-9)
        ahead = max(1, int(steps_per_s * min(_LOOK_EVERY_S, self._save_every_s)))
        save, ahead = self._fabric.broadcast((save, ahead))
        self._looked_s, self._looked, self._next = now, step, step + ahead
        if save:
            self._saved_s = now
        return bool(save)
