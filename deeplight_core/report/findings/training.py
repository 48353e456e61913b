"""Sentences about one training: its units, its scores, its confusions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.analysis import scores
from deeplight_core.analysis.measures import ACCURACY, MEASURES
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import counted
from deeplight_core.report.paper import REPORTED, last_epoch_accuracy
from deeplight_core.routes import ROUTES, VARIANTS

__all__ = [
    "best_and_worst_note",
    "confusion_note",
    "curves_note",
    "decoder_note",
    "finetuning_note",
    "paper_note",
    "pretraining_note",
    "scores_note",
    "tasks_note",
]


def pretraining_note(profile: Profile, route: str, units: list[str]) -> str:
    """The units, route and labels of a pre-training, or where its weights come from, if nothing is trained."""
    data, way = profile.data, ROUTES[route]
    if weights := getattr(profile.routes, route).pretraining.weights:
        return (
            f"Nothing is trained here: the encoder has the published weights `{weights.source}`, *{way.title}* "
            f"({way.paper})."
        )
    tasks, n_states, columns = data.tasks("source"), len(data.states("source")), data.columns("source")
    learnt = counted(n_states, "state") if n_states else " and ".join(columns) or "no label"
    return (
        f"Pre-training on **{counted(len(units), data.split_unit)}**, *{way.title}* ({way.paper}): {learnt} of "
        f"{counted(len(tasks), 'task')} ({', '.join(tasks)})."
    )


def finetuning_note(profile: Profile, variant: str, fraction: float, seed: int, fold: int, units: list[str]) -> str:
    """Which decoder is trained, and on whom."""
    title, in_fold = VARIANTS[variant].title, f", fold {fold}" if fold else ""
    return (
        f"**{title[0].upper()}{title[1:]}**, on {100 * fraction:g}% of the training data: "
        f"{counted(len(units), profile.data.split_unit)} ({', '.join(f'`{unit}`' for unit in units)}); "
        f"seed {seed}{in_fold}."
    )


def decoder_note(layers: Sequence[Any]) -> str:
    """How large a decoder is; empty without layers.

    Parameters
    ----------
    layers : as `DeepLight.layers` gives them
    """
    if not layers:
        return ""
    return (
        f"It has {sum(layer.n_parameters for layer in layers):,} parameters and takes "
        f"{sum(layer.flops for layer in layers) / 1e9:.1f} billion operations for one volume."
    )


def curves_note(metrics: pd.DataFrame, unit: str = "subject") -> str:
    """Where the learning curves end: the mean over tasks, then units, in training and validation.

    Parameters
    ----------
    metrics : `epoch, split, task, target, subject, measure, score` of one training
    """
    sentences = []
    for (target, name), rows in metrics.groupby(["target", "measure"], sort=False):
        measure = MEASURES[str(name)]
        ends = [last_epoch_accuracy(rows, split) for split in ("train", "validation")]
        train, validation = (
            f"**{measure.format(end.mean())}** (SE {measure.format(end.std() / math.sqrt(len(end)))})" for end in ends
        )
        sentences.append(
            f"the decoder is right for {train} of the training and {validation} of the validation volumes"
            if measure is ACCURACY
            else f"the {measure.title} of *{target}* is {train} in training and {validation} in validation"
        )
    means = f"means over tasks, then {unit}s" if len(set(metrics["task"])) > 1 else f"means over {unit}s"
    return f"After {counted(metrics['epoch'].max(), 'epoch')} {'; '.join(sentences)} ({means})."


def paper_note(metrics: pd.DataFrame, n_states: int) -> str:
    """Chance and the paper's accuracies after pre-training, with and without gambling; empty without states.

    Parameters
    ----------
    metrics : `epoch, split, task, subject, score` of the pre-training
    """
    if not n_states:
        return ""
    splits = {"training": "train", "validation": "validation"}
    whole, rest = (
        [f"{REPORTED[f'pretraining accuracy{without}, {split}']:.2%}" for split in splits]
        for without in ("", " without gambling")
    )
    text = (
        f"Chance is {1 / n_states:.1%}. The paper reports {' and '.join(whole)} for 300 subjects of the Human "
        "Connectome Project."
    )
    if not {*metrics["task"]} > {"GAMBLING"}:
        return text
    own = [f"{last_epoch_accuracy(metrics, split, ('GAMBLING',)).mean():.1%}" for split in splits.values()]
    return f"{text} Without gambling: {' and '.join(own)} (paper: {' and '.join(rest)})."


def tasks_note(results: pd.DataFrame) -> str:
    """The tasks from the best decoded to the worst; empty without results.

    Parameters
    ----------
    results : `task, score`, as `statistics.only` gives it
    """
    if results.empty:
        return ""
    tasks = results.groupby("task")["score"].mean().sort_values(ascending=False)
    text = f"From best to worst: {', '.join(f'{task} {value:.1%}' for task, value in tasks.items())}."
    if "GAMBLING" not in tasks:
        return text
    lowest, highest, gambling = (
        f"{REPORTED[f'pretraining accuracy, {which}']:.2%}"
        for which in ("lowest of five tasks", "highest of five tasks", "gambling")
    )
    return f"{text} In the paper five tasks lie between {lowest} and {highest}, gambling at {gambling}."


def scores_note(results: pd.DataFrame, n_states: int, unit: str = "subject") -> str:
    """How well held-out units are decoded, volume by volume: mean, SD and range over them, and chance.

    Parameters
    ----------
    results : the results table of one training
    """
    sentences = []
    of_volumes = results[results["level"] == "volume"]
    for (target, name), rows in of_volumes.groupby(["target", "measure"], sort=False):
        measure = MEASURES[str(name)]
        by_unit = rows.groupby("subject")["score"].mean()
        mean, sd, low, high = (measure.format(value) for value in by_unit.agg(["mean", "std", "min", "max"]))
        found = (
            f"the decoder is right for **{mean}** of the volumes"
            if measure is ACCURACY
            else f"the {measure.title} of *{target}* is **{mean}**"
        )
        chance = measure.chance(n_states)
        end = "." if chance is None else f"; chance is {measure.format(chance)}."
        n = counted(len(by_unit), f"held-out {unit}")
        sentences.append(f"On the {n} {found} (SD {sd}, from {low} to {high}){end}")
    return " ".join(sentences)


def confusion_note(predictions: pd.DataFrame, states: list[tuple[str, str]]) -> str:
    """The most frequent confusion, and how often the task is right; empty without states.

    Parameters
    ----------
    predictions : of `scores.state_predictions`
    """
    if not states:
        return ""
    shares = scores.confusion(predictions, states).fillna(0).to_numpy(copy=True)
    np.fill_diagonal(shares, 0)
    true, decoded = (int(i) for i in np.unravel_index(shares.argmax(), shares.shape))
    text = "No state is mistaken for another."
    if shares[true, decoded]:
        (true_task, true_state), (task, state) = states[true], states[decoded]
        text = (
            f"The most frequent confusion: *{true_state}* ({true_task}) is decoded as *{state}* ({task}) in "
            f"{shares[true, decoded]:.0%} of its volumes."
        )
    if len({task for task, _ in states}) == 1:
        return text
    right = (predictions["task"] == predictions["predicted_task"]).mean()
    return f"{text} In {right:.1%} of all volumes the decoded state belongs to the right task."


def best_and_worst_note(shares: pd.DataFrame) -> str:
    """The states that are decoded best and worst; states without a volume do not count.

    Parameters
    ----------
    shares : of `scores.confusion`
    """
    right = pd.Series(np.diag(shares), index=shares.index.get_level_values("state")).dropna()
    if right.empty:
        return ""
    return f"*{right.idxmax()}* is decoded best ({right.max():.0%}), *{right.idxmin()}* worst ({right.min():.0%})."
