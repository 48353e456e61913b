"""The training loop: set up, fit, evaluate. Interrupted at any moment, it resumes to the same result.

The loop knows only `model.loss(batch)`. Batches and noise depend on (seed, step, example) alone, so any number of
processes may share a batch, and the state to save is the model's weights and buffers, Adam's moments and the epoch's
tally. Models with BatchNorm use `models.batchnorm`, whose statistics are those of the whole batch; its running averages
are buffers, saved with the weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from deeplight_core.models import Batch, Model
from deeplight_core.models.noise import part_of_batch
from deeplight_core.routes import LayerGroup, TrainingSettings
from deeplight_core.training.checkpoint import load_state, save_state, save_weights
from deeplight_core.training.devices import available_precision
from deeplight_core.training.inference import Answers, predict
from deeplight_core.training.loader import BatchOrder, Volumes
from deeplight_core.training.metrics import Metrics, Tally

__all__ = ["Fitted", "fit", "learning_rate"]

_WARM_UP = 0.05
_LOOK_EVERY_S = 1.0  # seconds between waits of the CPU for the device, to check on it


class Fitted(NamedTuple):
    """The results of a training, beside the trained model.

    metrics : see `Metrics`
    answers : to the held-out examples
    seen_volumes : number of volumes it was trained on, with repetition
    seconds : processor time of this process, all threads together and interruptions left out
    """

    metrics: pd.DataFrame
    answers: Answers
    seen_volumes: int
    seconds: float


def learning_rate(settings: TrainingSettings, step: int, n_steps: int) -> float:
    """Learning rate at a step: constant, or linear warm-up over 5% of the steps, then cosine decay to zero."""
    if settings.schedule == "constant":
        return settings.learning_rate
    warm_up = max(1, round(_WARM_UP * n_steps))
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up)))


def fit(
    fabric: Fabric,
    model: Model,
    train: Callable[[torch.device], Volumes],
    validation: Callable[[torch.device], Volumes],
    settings: TrainingSettings,
    seed: int,
    folder: Path,
    label: str,
    checkpoint_every_s: float = 60.0,
) -> Fitted:
    """Train a model and report each epoch; the trained model ends on the CPU.

    Parameters
    ----------
    fabric : of `devices.session`; all its processes call this function
    train, validation : make the examples, on the given device, to train on and to measure
    folder : for the resumable state, `metrics.csv` and TensorBoard's files
    label : the training's name in progress lines

    Raises
    ------
    ValueError
        If the loss is no longer finite (the message names the step and its runs), a layer group fits no weight, or no
        layer learns in an epoch.
    MemoryError
        If the device's memory does not suffice.
    """
    started = time.process_time()
    with _memory_explained(label, settings):
        data, held_out = train(fabric.device), validation(fabric.device)
        order = BatchOrder(data.examples.table["file"].to_numpy(), settings.batch_size, seed, settings.shuffled_runs)
        per_epoch = settings.steps_per_epoch or order.steps_per_pass
        n_epochs = max(settings.epochs, math.ceil(settings.min_steps / per_epoch))
        n_steps = n_epochs * per_epoch
        measured = _epochs_to_measure(n_epochs, settings.evaluations)
        groups = _layer_groups(model, settings, n_epochs)
        learning = [{"params": weights, "rate": group.rate} for group, weights in groups if group.rate > 0]
        adam = torch.optim.AdamW(learning, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
        if settings.compile:
            model.compile()
        wrapped, optimizer = fabric.setup(model, adam)
        wrapped.mark_forward_method("loss")

        state, precision = folder / "state.safetensors", available_precision(settings.precision)
        done, others, seconds = load_state(state, model, adam, precision)
        started -= seconds
        best = {name.removeprefix("best."): weight for name, weight in others.items() if name.startswith("best.")}
        tally = Tally(len(data), len(model.head.scored), fabric.device)
        if done and fabric.is_global_zero:  # these are the counts of all processes
            tally.counts.copy_(others["tally"])
        metrics = Metrics(
            model.head, folder, label, done, done // per_epoch, n_steps, n_epochs, settings.batch_size,
            writes=fabric.is_global_zero,
        )  # fmt: skip
        _check_agreement(fabric, done, metrics, folder)
        pace = _Pace(fabric, done, checkpoint_every_s)
        answers: Answers | None = None
        last = done
        steps = range(done, done if _out_of_patience(metrics, settings) else n_steps)

        with closing(metrics):
            for step, (_, batch) in zip(steps, data.batches(_own_part(order[s], fabric) for s in steps), strict=False):
                epoch = step // per_epoch + 1
                at_end = (step + 1) % per_epoch == 0 and epoch in measured
                if step == done or step % per_epoch == 0:
                    _enter_epoch(model, groups, epoch)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step, n_steps) * group["rate"]
                torch.manual_seed(seed * 1_000_003 + step)
                _take_step(fabric, wrapped, optimizer, settings.l1, step, batch, len(order[step]), tally)
                last = step + 1
                if (pause := pace.after(step, at_end)) == "none":
                    continue
                _check_finite(fabric, model, tally, order, data, label, step)
                metrics.show(step + 1, epoch, tally)
                if at_end:
                    counts = _sum(fabric, tally.counts).cpu().numpy()
                    answers = predict(model, held_out, fabric)
                    metrics.add_epoch(epoch, step + 1, data.examples.table, counts, held_out.examples.table, answers)
                    tally.counts.zero_()
                    if settings.snapshots and fabric.is_global_zero:
                        save_weights(model, folder / f"epoch-{epoch}.safetensors")
                    if settings.keep == "best" and metrics.best_epoch == epoch:
                        best = {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
                if pause == "save":
                    kept = {"tally": _sum(fabric, tally.counts)} | {f"best.{n}": weight for n, weight in best.items()}
                    if fabric.is_global_zero:
                        save_state(state, model, adam, kept, step + 1, precision, time.process_time() - started)
                if at_end and _out_of_patience(metrics, settings):
                    break
            if settings.keep == "best":
                model.load_state_dict(best)
            if settings.keep == "best" or answers is None:  # killed between the last step and the results
                answers = predict(model, held_out, fabric)
    model.to("cpu").eval()
    passes, rest = divmod(last, order.steps_per_pass)
    seen = passes * len(data) + min(rest * settings.batch_size, len(data))
    return Fitted(metrics.table, answers, seen * data.examples.volumes_each, time.process_time() - started)


def _take_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    l1: float,
    step: int,
    batch: Batch,
    n_all: int,
    tally: Tally,
) -> None:
    """Forward, backward and update, with this process's part of a batch of `n_all` examples."""
    first, n_own = _share(n_all, fabric)
    with part_of_batch(first, n_own, n_all), fabric.autocast():  # Fabric's precision alone covers `forward` only
        outcome = model.loss(batch)
    fabric.backward(outcome.loss * (n_own * fabric.world_size / n_all))  # DDP takes the mean over processes
    if l1:  # the gradient of l1 × Σ|w| is l1 times each weight's sign
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.add_(weight.detach().sign(), alpha=l1)
    optimizer.step()
    optimizer.zero_grad()
    if n_own:
        tally.add(step, outcome, batch)


def _share(n: int, fabric: Fabric) -> tuple[int, int]:
    """This process's share of a batch of n: its first example, and its number of examples."""
    first, end = (n * rank // fabric.world_size for rank in (fabric.global_rank, fabric.global_rank + 1))
    return first, end - first


def _own_part(numbers: np.ndarray, fabric: Fabric) -> np.ndarray:
    """The examples of this process's share; if a small batch leaves it none, one example that will not count."""
    first, n_own = _share(len(numbers), fabric)
    return numbers[first : first + n_own] if n_own else numbers[:1]


def _sum(fabric: Fabric, counts: Tensor) -> Tensor:
    """The sum over all processes, in a new tensor."""
    total = fabric.all_reduce(counts.clone(), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _epochs_to_measure(n_epochs: int, evaluations: int | None) -> set[int]:
    """The epochs (from 1) after which the held-out examples are measured: evenly spaced, the last one included."""
    n = min(evaluations or n_epochs, n_epochs)
    return {-(-n_epochs * i // n) for i in range(1, n + 1)}


def _layer_groups(
    model: nn.Module, settings: TrainingSettings, n_epochs: int
) -> list[tuple[LayerGroup, list[nn.Parameter]]]:
    """The weights of each layer group; a group with rate 0 is frozen for good."""
    groups = [LayerGroup(layers=""), *settings.groups]
    names = [name for name, _ in model.named_parameters()]
    if strangers := [group.layers for group in groups if not any(group.fits(name) for name in names)]:
        known = sorted({name.rpartition(".")[0] for name in names})
        raise ValueError(f"there are no layers {', '.join(strangers)}; layers are {', '.join(known)}")
    of_group: dict[int, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        number = max(i for i, group in enumerate(groups) if group.fits(name))
        weight.requires_grad_(groups[number].rate > 0)
        of_group.setdefault(number, []).append(weight)
    used = [groups[number] for number in of_group]
    if idle := [epoch for epoch in range(1, n_epochs + 1) if not any(group.learns(epoch) for group in used)]:
        raise ValueError(f"no layer learns in epoch {idle[0]}; change groups")
    return [(groups[number], weights) for number, weights in of_group.items()]


def _enter_epoch(model: nn.Module, groups: list[tuple[LayerGroup, list[nn.Parameter]]], epoch: int) -> None:
    """Freeze and unfreeze layers for this epoch. Frozen parts run in eval mode, so their features do not vary."""
    for group, weights in groups:
        for weight in weights:
            weight.requires_grad_(group.learns(epoch))
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(w.requires_grad for w in weights) and not isinstance(part, nn.LSTM):
            part.eval()  # not LSTMs: in eval mode cuDNN passes no gradient through, and they have no dropout to stop


def _out_of_patience(metrics: Metrics, settings: TrainingSettings) -> bool:
    return settings.patience is not None and metrics.n_epochs - metrics.best_epoch >= settings.patience


def _check_agreement(fabric: Fabric, done: int, metrics: Metrics, folder: Path) -> None:
    """Raise ValueError in every process unless all resume from the same state."""
    own = torch.tensor([done, -done, metrics.n_epochs, -metrics.n_epochs], device=fabric.device)
    fabric.all_reduce(own, reduce_op="max")
    if own[0] != -own[1] or own[2] != -own[3]:
        raise ValueError(f"processes find different states in {folder}; it has to be on a disk that all nodes share")


def _check_finite(
    fabric: Fabric, model: nn.Module, tally: Tally, order: BatchOrder, data: Volumes, label: str, step: int
) -> None:
    """Raise ValueError if a loss or a weight was not finite since the last look; nothing since then is saved."""
    bad = float(fabric.all_reduce(tally.first_bad.clone(), reduce_op="min"))  # type: ignore[arg-type]
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    weights_are_finite = bool(torch.stack([value.isfinite().all() for value in values]).all())
    if bad == math.inf and weights_are_finite:
        return
    what = "weights are" if bad == math.inf else "loss is"
    step = step if bad == math.inf else int(bad)
    runs = sorted({str(f) for f in data.examples.table["file"].iloc[order[step]]})
    raise ValueError(
        f"{label}: the {what} not finite at step {step}, runs {', '.join(runs)}; lower learning_rate, or look at these "
        "runs (`deeplight verify`)"
    )


@contextmanager
def _memory_explained(label: str, settings: TrainingSettings) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        signs = ("can't allocate memory", "ALLOC_FAILED", "out of memory")
        if not (isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)):
            raise
        other = "" if settings.precision == "bf16-mixed" else "use precision bf16-mixed, "
        raise MemoryError(
            f"{label}: memory does not suffice for batches of {settings.batch_size} examples; lower batch_size, {other}"
            f"crop the grid (preprocessing.crop), or run fewer trainings at a time. {str(error).splitlines()[0]}"
        ) from error


class _Pace:
    """Decides at which steps to synchronise and save; the first process decides for all, because clocks differ.

    Synchronising makes the CPU wait for the device, so it happens about once a second, and at the end of an epoch.
    """

    def __init__(self, fabric: Fabric, done: int, save_every_s: float) -> None:
        self._fabric, self._save_every_s = fabric, save_every_s
        self._saved_s = self._looked_s = time.monotonic()
        self._looked, self._next = done - 1, done

    def after(self, step: int, at_end: bool) -> str:
        """What every process does after a step: "none", "look" (synchronise) or "save" (synchronise, then save)."""
        if step < self._next and not at_end:
            return "none"
        now = time.monotonic()
        save = at_end or now - self._saved_s >= self._save_every_s
        steps_per_s = (step - self._looked) / max(now - self._looked_s, 1e-9)
        ahead = max(1, int(steps_per_s * min(_LOOK_EVERY_S, self._save_every_s)))
        save, ahead = self._fabric.broadcast((save, ahead))
        self._looked_s, self._looked, self._next = now, step, step + ahead
        if save:
            self._saved_s = now
        return "save" if save else "look"
