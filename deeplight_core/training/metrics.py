"""Metrics of a training: counted on its device, kept as a table, shown on the terminal and in TensorBoard."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deeplight_core.analysis.measures import MEASURES
from deeplight_core.models import Batch, Head, Outcome
from deeplight_core.system.files import write_whole
from deeplight_core.system.progress import Bar, duration
from deeplight_core.training.inference import Answers

__all__ = ["COLUMNS", "Metrics", "Tally"]

COLUMNS = ("epoch", "step", "split", "task", "target", "subject", "measure", "score", "n", "loss")


class Tally:
    """Counts and sums for each of N examples in this epoch: (N, 2 + 2K), on the training's device.

    They are the times it was seen, the loss, the score on each of K targets, and the times each score was known. They
    stay on the device, so counting never waits.
    """

    def __init__(self, n: int, n_targets: int, device: torch.device) -> None:
        self.counts = torch.zeros(n, 2 + 2 * n_targets, device=device)
        self.first_bad = torch.full((), torch.inf, device=device)  # first step whose loss was not finite

    @torch.no_grad()
    def add(self, step: int, outcome: Outcome, batch: Batch) -> None:
        """Add a batch; its examples must all be different."""
        losses, score = outcome.each.float(), outcome.score.float()
        known = score.isfinite()
        columns = [torch.ones_like(losses)[:, None], losses[:, None], torch.where(known, score, 0.0), known.float()]
        self.counts[batch["numbers"]] += torch.cat(columns, dim=1)
        self.first_bad = torch.where(losses.isfinite().all(), self.first_bad, self.first_bad.clamp(max=step))


class Metrics:
    """The metrics of a training: one row per epoch × split × task × target × subject.

    Columns `epoch, step, split, task, target, subject, measure, score, n, loss` (training scores are measured while
    training, dropout on).

    Parameters
    ----------
    head : says which targets are scored, and by which measure
    folder : where `metrics.csv` and TensorBoard's files are kept
    step, epoch : where the training goes on; later metrics are forgotten
    batch_size : examples per step, of all processes
    writes : whether this process writes and prints
    """

    def __init__(
        self,
        head: Head,
        folder: Path,
        label: str,
        step: int,
        epoch: int,
        n_steps: int,
        n_epochs: int,
        batch_size: int,
        writes: bool,
    ):
        self._head, self._path, self._label, self._batch_size = head, folder / "metrics.csv", label, batch_size
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
        if len(self._head.scored) > 1:  # a subject has one loss, beside each of its targets
            held_out = held_out.sort_values("n").drop_duplicates(["epoch", "task", "subject"], keep="last")
        total = (held_out["loss"] * held_out["n"]).groupby(held_out["epoch"]).sum()
        return int(str((total / held_out.groupby("epoch")["n"].sum()).idxmin()))

    def show(self, step: int, epoch: int, tally: Tally) -> None:
        """Show the metrics since the epoch began."""
        sums = tally.counts.sum(dim=0).tolist()
        (then, step_then), now = self._looked, time.monotonic()
        rate = (step - step_then) * self._batch_size / (now - then)
        self._looked = now, step
        measure = self._titles()
        scores = self._stated(sums[2 : 2 + len(self._head.scored)], sums[2 + len(self._head.scored) :])
        self._bar.update(
            step,
            f"epoch {epoch}/{self._n_epochs}, batch {step}/{self._n_steps}, loss {sums[1] / max(1, sums[0]):.2f}, "
            f"{measure} {scores}, {rate:,.0f} examples/s, {duration(self._left_s(step))} left",
        )

    def add_epoch(
        self, epoch: int, step: int, train: pd.DataFrame, counts: np.ndarray, held_out: pd.DataFrame, answers: Answers
    ) -> None:
        """Add and report an epoch.

        Parameters
        ----------
        train, held_out : the tables of the training and held-out examples
        counts : the training's tally (N, 2 + 2K)
        answers : to the held-out examples
        """
        known = np.isfinite(answers.score)
        seen = np.ones((len(held_out), 1))
        measured = np.hstack([seen, answers.each[:, None], np.where(known, answers.score, 0), known])
        both = [self._epoch_rows(train, counts, "train"), self._epoch_rows(held_out, measured, "validation")]
        rows = pd.concat(both).assign(epoch=epoch, step=step)
        self.table = pd.concat([self.table, rows[list(COLUMNS)]], ignore_index=True)
        if self._writer is None:
            return
        said = {}
        for split, tally in (("train", counts), ("validation", measured)):
            group = rows[rows["split"] == split]
            loss = tally[:, 1].sum() / tally[:, 0].sum()
            sums = [(group["score"] * group["n"])[group["target"] == t].sum() for t in self._head.scored]
            n = [group.loc[group["target"] == t, "n"].sum() for t in self._head.scored]
            self._writer.add_scalar(f"loss/{split}", loss, step)
            for target, measure, total, count in zip(self._head.scored, self._head.measures, sums, n, strict=True):
                if count:
                    name = measure if len(n) == 1 else f"{measure} of {target}"
                    self._writer.add_scalar(f"{name}/{split}", total / count, step)
            said[split] = loss, self._stated(sums, n)
        self._writer.flush()
        print(
            f"{self._label}: epoch {epoch}/{self._n_epochs}, loss {said['train'][0]:.3f}, "
            f"{self._titles()} {said['train'][1]} in training, "
            f"{said['validation'][1]} in validation, "
            f"{duration(self._left_s(step))} left",
            flush=True,
        )
        write_whole(self._path, partial(self.table.to_csv, index=False))

    def _stated(self, sums: list[float], n: list[float]) -> str:
        """Mean scores in words."""
        parts = zip(self._head.measures, sums, n, strict=True)
        means = [MEASURES[name].format(total / count) if count else "–" for name, total, count in parts]
        return ", ".join(means)

    def _titles(self) -> str:
        """The measures' names."""
        return ", ".join(dict.fromkeys(MEASURES[name].title for name in self._head.measures))

    def _epoch_rows(self, examples: pd.DataFrame, tally: np.ndarray, split: str) -> pd.DataFrame:
        """Score and loss per task, target and subject from (N, 2 + 2K) seen, summed loss, summed scores, known."""
        keys = [examples["task"].to_numpy(), examples["unit"].to_numpy()]
        sums = pd.DataFrame(tally).groupby(keys).sum()
        tables, n_targets = [], len(self._head.scored)
        for i, target in enumerate(self._head.scored):
            seen, n = sums[0].to_numpy(), sums[2 + n_targets + i].to_numpy()
            with np.errstate(invalid="ignore", divide="ignore"):
                score, loss = sums[2 + i].to_numpy() / n, sums[1].to_numpy() / seen
            names = {"task": sums.index.get_level_values(0), "subject": sums.index.get_level_values(1)}
            values = {"measure": self._head.measures[i], "score": score, "n": n.astype(int), "loss": loss}
            tables.append(pd.DataFrame({"split": split, **names, "target": target, **values})[n > 0])
        return pd.concat(tables)

    def close(self) -> None:
        """Close the bar and the TensorBoard file."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _left_s(self, step: int) -> float:
        return (time.monotonic() - self._started) / max(1, step - self._first) * (self._n_steps - step)
