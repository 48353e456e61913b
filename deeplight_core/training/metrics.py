"""What a training run has seen: counted on its device, kept as a table, shown on the terminal and in TensorBoard."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deeplight_core.system.files import write_whole
from deeplight_core.system.progress import Bar, duration

__all__ = ["Metrics", "Tally"]


class Tally:
    """How often each volume was seen in this epoch, how often decoded rightly, and its summed loss: (N, 3).

    It stays on the training's device, so that counting makes nobody wait.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.counts = torch.zeros(n, 3, device=device)
        self.first_bad = torch.full((), torch.inf, device=device)  # first step whose loss was not finite

    @torch.no_grad()
    def add(self, step: int, losses: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> None:
        """Count a batch, whose volumes are all different."""
        right = (logits.argmax(dim=1) == batch["labels"]).float()
        self.counts[batch["numbers"]] += torch.stack([torch.ones_like(right), right, losses.float()], dim=1)
        self.first_bad = torch.where(losses.isfinite().all(), self.first_bad, self.first_bad.clamp(max=step))


class Metrics:
    """The metrics of a run: one row per epoch × split × task × subject.

    Columns `epoch, step, split, task, subject, score, n, loss` (training accuracy is measured while
    training, dropout on).

    Parameters
    ----------
    folder : where `metrics.csv` and TensorBoard's files are kept
    step, epoch : where the run goes on; what was measured after it is forgotten
    batch_size : volumes per step, of all processes
    writes : whether this process is the one that writes and prints
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        step: int,
        epoch: int,
        n_steps: int,
        n_epochs: int,
        batch_size: int,
        writes: bool,
    ):
        self._path, self._label, self._batch_size = folder / "metrics.csv", label, batch_size
        self._started, self._first, self._n_steps, self._n_epochs = time.monotonic(), step, n_steps, n_epochs
        self.table = pd.DataFrame()
        if epoch and self._path.is_file():
            table = pd.read_csv(self._path, dtype={"subject": str}, keep_default_na=False)
            self.table = table[table["epoch"] <= epoch]
        self._writer = None
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
            if step:
                print(f"{label}: going on at step {step} of {n_steps}", flush=True)
        self._bar = Bar(n_steps, label, shown=writes)
        self._looked = self._started, step

    @property
    def n_epochs(self) -> int:
        """Epochs so far."""
        return 0 if self.table.empty else int(self.table["epoch"].max())

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the lowest mean validation loss so far; 0 before the first."""
        if self.table.empty:
            return 0
        held_out = self.table[self.table["split"] == "validation"]
        total = (held_out["loss"] * held_out["n"]).groupby(held_out["epoch"]).sum()
        return int(str((total / held_out.groupby("epoch")["n"].sum()).idxmin()))

    def show(self, step: int, epoch: int, tally: Tally) -> None:
        """Show how things stand since the epoch began."""
        n, right, loss = tally.counts.sum(dim=0).tolist()
        (then, step_then), now = self._looked, time.monotonic()
        rate = (step - step_then) * self._batch_size / (now - then)
        self._looked = now, step
        self._bar.update(
            step,
            f"epoch {epoch}/{self._n_epochs}, batch {step}/{self._n_steps}, loss {loss / max(1, n):.2f}, "
            f"{right / max(1, n):.1%} right, {rate:,.0f} volumes/s, {duration(self._left_s(step))} left",
        )

    def add_epoch(
        self,
        epoch: int,
        step: int,
        train_rows: pd.DataFrame,
        counts: np.ndarray,
        validation_rows: pd.DataFrame,
        predicted: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """Add and report an epoch: the training's tally (N, 3), the predicted validation labels and their losses."""
        right = predicted == validation_rows["label"].to_numpy()
        seen = np.stack([np.ones(len(losses)), right, losses], axis=1)
        both = [_epoch_rows(train_rows, counts, "train"), _epoch_rows(validation_rows, seen, "validation")]
        rows = pd.concat(both).assign(epoch=epoch, step=step)
        self.table = pd.concat([self.table, rows], ignore_index=True)
        if self._writer is None:
            return
        mean = {
            str(split): group[["score", "loss"]].mul(group["n"], axis=0).sum() / group["n"].sum()
            for split, group in rows.groupby("split")
        }
        for split, values in mean.items():
            for name in ("score", "loss"):
                self._writer.add_scalar(f"{name}/{split}", values[name], step)
        self._writer.flush()
        print(
            f"{self._label}: epoch {epoch}/{self._n_epochs}, loss {mean['train']['loss']:.3f}, "
            f"accuracy {mean['train']['score']:.1%} in training, "
            f"{mean['validation']['score']:.1%} in validation, {duration(self._left_s(step))} left",
            flush=True,
        )
        write_whole(self._path, partial(self.table.to_csv, index=False))

    def close(self) -> None:
        """End what is shown."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _left_s(self, step: int) -> float:
        return (time.monotonic() - self._started) / max(1, step - self._first) * (self._n_steps - step)


def _epoch_rows(rows: pd.DataFrame, tally: np.ndarray, split: str) -> pd.DataFrame:
    """Accuracy and loss per task and subject from (N, 3) seen, right, summed loss."""
    table = rows[["task"]].assign(subject=rows["unit"], n=tally[:, 0], right=tally[:, 1], loss=tally[:, 2])
    sums = table.groupby(["task", "subject"]).sum().reset_index()
    sums = sums[sums["n"] > 0]
    return pd.DataFrame(
        {
            "epoch": 0, "step": 0, "split": split, "task": sums["task"], "subject": sums["subject"],
            "score": sums["right"] / sums["n"], "n": sums["n"].astype(int), "loss": sums["loss"] / sums["n"],
        }
    )  # fmt: skip
