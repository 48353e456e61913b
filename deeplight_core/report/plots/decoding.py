"""Figures of decoding: learning curves, scores, differences, confusions.

Scores are accuracies unless `measure` names another measure; `n_states` is 0 where there are no states.
"""

from collections.abc import Mapping
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from deeplight_core.analysis.measures import ACCURACY, Measure
from deeplight_core.analysis.scores import common_steps
from deeplight_core.analysis.statistics import subject_means
from deeplight_core.report.plots.style import (
    CHANCE,
    INK,
    STYLES,
    band,
    bars,
    colour_of,
    difference_axis,
    mark_chance,
    plain,
    points,
    value_axis,
)
from deeplight_core.routes import ROUTES, VARIANTS

__all__ = [
    "accuracy_by_fraction",
    "accuracy_by_network",
    "confusion_matrix",
    "difference_bars",
    "fraction_curves",
    "saved_subjects",
    "score_by_motion",
    "seed_differences",
    "task_bars",
    "task_curves",
    "told_numbers",
    "transfer_map",
]


def task_curves(metrics: pd.DataFrame, n_states: int, measure: Measure = ACCURACY) -> Figure:
    """Score per epoch in training and validation, one line per task (Fig. 2 A, B); bands are standard errors.

    Parameters
    ----------
    metrics : `epoch, split, task, subject, score`
    n_states : size of the output layer, for the chance line
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axes, split in zip(panels, ("train", "validation"), strict=True):
        for position, (task, group) in enumerate(metrics[metrics["split"] == split].groupby("task")):
            band(axes, group, colour_of(str(task), position), plain(str(task)))
        mark_chance(axes, measure.chance(n_states), named=split == "validation")
        axes.set_title({"train": "Training", "validation": "Validation"}[split])
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    value_axis(panels[0], measure)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def task_bars(results: pd.DataFrame, states_per_task: Mapping[str, int], measure: Measure = ACCURACY) -> Figure:
    """Score per task after training (Fig. 2 C): bars are means, points subjects; dashes mark chance.

    Parameters
    ----------
    results : `task, subject, score`
    states_per_task : task → its number of states, for the chance of a decoder that knows the task; tasks without
        results, as those whose blocks are too short for a clip, have no bar
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    tasks = [task for task in states_per_task if task in set(results["task"])]
    bars(axes, results, "task", "score", {task: colour_of(task, i) for i, task in enumerate(tasks)})
    means = results.groupby("task")["score"].mean()
    for position, task in enumerate(tasks):
        if (chance := measure.chance(states_per_task[task])) is not None:
            axes.hlines(chance, position - 0.4, position + 0.4, color=INK, linestyle=":", linewidth=1.5, zorder=4)
        mean = measure.format(means[task], decimals=0 if measure.unit == "share" else None)
        axes.annotate(
            mean, (position, 0.01), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", color="white", fontweight="bold", fontsize=10,
        )  # fmt: skip
    mark_chance(axes, measure.chance(sum(states_per_task.values())))
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.set_xlabel("")
    value_axis(axes, measure)
    return figure


def fraction_curves(metrics: pd.DataFrame, n_states: int, measure: Measure = ACCURACY) -> Figure:
    """Score against steps for every fraction, variant (columns) and split (rows) (Fig. 3 A, B, D, E).

    Parameters
    ----------
    metrics : `variant, fraction, seed, step, split, subject, score`
    """
    metrics = common_steps(metrics)
    variants = [v for v in VARIANTS if v in set(metrics["variant"])]
    fractions = sorted(metrics["fraction"].unique())
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(fractions)))
    size = (4.5 * len(variants), 6)
    figure, panels = plt.subplots(2, len(variants), figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, (split, title) in enumerate((("train", "training"), ("validation", "validation"))):
        for column, variant in enumerate(variants):
            axes = panels[row, column]
            chosen = metrics[(metrics["split"] == split) & (metrics["variant"] == variant)]
            for colour, fraction in zip(colours, fractions, strict=True):
                band(axes, chosen[chosen["fraction"] == fraction], colour, f"{100 * fraction:g}%", x="step")
            mark_chance(axes, measure.chance(n_states))
            axes.set_title(f"{VARIANTS[variant].title.removeprefix('DeepLight, ')}: {title}")
            axes.set_xlabel("")
    panels[0, 0].set_xscale("log")  # sets all panels, which share it
    panels[0, 0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0, 0].xaxis.set_major_formatter("{x:,.0f}")
    panels[0, 0].xaxis.set_minor_locator(NullLocator())
    for axes in panels[1]:
        axes.set_xlabel("steps")
    for axes in panels[:, 0]:
        value_axis(axes, measure)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), title="fraction of the training data",
        loc="outside lower center", ncols=len(fractions),
    )  # fmt: skip
    return figure


def accuracy_by_fraction(
    intervals: pd.DataFrame, n_states: int, unit: str = "subject", measure: Measure = ACCURACY, narrow: bool = False
) -> Figure:
    """Validation score against the size of the training set, per variant, with 95% intervals over held-out subjects.

    Parameters
    ----------
    intervals : `variant, fraction, n_subjects, mean, low, high`, as `statistics.mean_intervals` gives them
    narrow : so that it can be read on a phone
    """
    figure, axes = plt.subplots(figsize=(4.8, 5.2) if narrow else (7, 4.6))
    _lines_by_size(axes, intervals, n_states, measure)
    axes.set_xlabel(f"{unit}s to train on")
    figure.legend(loc="outside lower center", ncols=1 if narrow else 2)
    return figure


def accuracy_by_network(
    intervals: pd.DataFrame, n_states: int, unit: str = "subject", measure: Measure = ACCURACY
) -> Figure:
    """The same, one panel per encoder; decoders without one are in all panels."""
    networks = {v: ROUTES[VARIANTS[v].route].encoder for v in VARIANTS if VARIANTS[v].learner in ("deep", "probe")}
    variants = [v for v in VARIANTS if v in set(intervals["variant"])]
    encoders = dict.fromkeys(networks[v] for v in variants if v in networks)
    figure, panels = plt.subplots(
        len(encoders), 1, figsize=(7, 0.6 + 2.3 * len(encoders)), sharex=True, sharey=True, squeeze=False
    )
    for axes, encoder in zip(panels.flat, encoders, strict=True):
        own = [v for v in variants if networks.get(v, encoder) == encoder]
        _lines_by_size(axes, intervals[intervals["variant"].isin(own)], n_states, measure, named=axes is panels[-1, 0])
        axes.legend(loc="center left", bbox_to_anchor=(1.12, 0.5), fontsize=9)
    panels[-1, 0].set_xlabel(f"{unit}s to train on")
    return figure


def _lines_by_size(axes: Axes, intervals: pd.DataFrame, n_states: int, measure: Measure, named: bool = True) -> None:
    sizes = sorted(intervals["n_subjects"].unique())
    variants = [v for v in VARIANTS if v in set(intervals["variant"])]
    for position, variant in enumerate(variants):
        group = intervals[intervals["variant"] == variant].sort_values("n_subjects")
        error = np.stack([group["mean"] - group["low"], group["high"] - group["mean"]])
        colour, mark = STYLES.get(variant.removesuffix("-permuted"), (colour_of("", position), "*"))
        axes.errorbar(
            group["n_subjects"] * 1.03 ** (position - (len(variants) - 1) / 2),  # side by side, so that intervals show
            group["mean"], error, label=VARIANTS[variant].title, capsize=3, color=colour, marker=mark,
            linestyle="-" if VARIANTS[variant].learner == "deep" else "--",
        )  # fmt: skip
    mark_chance(axes, measure.chance(n_states), named=named)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    value_axis(axes, measure, f"validation {measure.title}")


def difference_bars(
    results: pd.DataFrame,
    comparison: pd.DataFrame,
    a: str = "pretrained",
    b: str = "scratch",
    measure: Measure = ACCURACY,
    title: str = "",
) -> Figure:
    """Difference between two variants per fraction (Fig. 3 C, F): bars are means, points subjects.

    Parameters
    ----------
    results : the results table
    comparison : `fraction, n_subjects, difference, low, high, significant`, as `statistics.compare` gives it; a star
        marks significance
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    means = subject_means(results[results["variant"].isin([a, b])])
    wide = means.pivot(index=["fraction", "subject"], columns="variant", values="score")
    table = (wide[a] - wide[b]).rename("difference").dropna().reset_index()
    names = _fractions(comparison)
    table["size"] = table["fraction"].map(names)
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(names)))
    bars(axes, table, "size", "difference", dict(zip(names.values(), colours, strict=True)))
    highest = table.groupby("fraction")["difference"].max()
    for position, row in enumerate(comparison.to_dict("records")):
        mean = row["difference"]
        interval = [[mean - row["low"]], [row["high"] - mean]]
        axes.errorbar(position + 0.25, mean, interval, color="black", capsize=4, zorder=4)  # beside the points
        if row["significant"]:
            axes.annotate(
                "★", (position, max(highest[row["fraction"]], row["high"])), xytext=(0, 4), textcoords="offset points",
                ha="center", fontsize=14, family="DejaVu Sans",
            )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=1)
    axes.margins(y=0.15)
    axes.set_xlabel("fraction of the training data")
    axes.set_title(title)
    difference_axis(axes.yaxis, measure)
    return figure


def _fractions(table: pd.DataFrame) -> dict[float, str]:
    """Fraction → its name on an axis, with the number of units."""
    rows = table.to_dict("records")
    return {row["fraction"]: f"{100 * row['fraction']:g}%\n(n = {row['n_subjects']})" for row in rows}


def saved_subjects(table: pd.DataFrame, unit: str = "subject") -> Figure:
    """How many units from scratch equal n pre-trained ones; arrows mark more, or fewer, than the sweep has.

    Parameters
    ----------
    table : `n_subjects, equivalent, low, high, at_most`, as `statistics.subjects_saved` gives it
    """
    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    sizes = table["n_subjects"].to_numpy(float)
    top = sizes.max() * 1.6  # stands for "more than the largest"
    shown = table[["equivalent", "low", "high"]].clip(upper=top)
    error = np.stack([shown["equivalent"] - shown["low"], shown["high"] - shown["equivalent"]])
    axes.plot(sizes, sizes, **CHANCE)
    axes.annotate(
        "no gain", (sizes[-1], sizes[-1]), xytext=(0, -14), textcoords="offset points", ha="right", fontsize=9
    )
    colour, mark = STYLES["pretrained"]
    axes.errorbar(sizes, shown["equivalent"], error, color=colour, marker=mark, linestyle="none", capsize=3)
    for n, value, at_most in zip(sizes, table["high"], table["at_most"], strict=True):
        for drawn, arrow, y in ((np.isinf(value), "▲", top), (at_most, "▼", sizes.min() * 0.93)):
            if drawn:
                axes.annotate(arrow, (n, y), ha="center", va="center", color=colour, fontsize=11, family="DejaVu Sans")
    axes.axhline(sizes.max(), color="#BBBBBB", linewidth=0.8)
    axes.annotate(
        f"more than {sizes.max():g}", (1, top), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [f"{n:g}" for n in sizes]
    axes.set_xticks(sizes, ticks)
    axes.set_yticks(sizes, ticks)
    axes.minorticks_off()
    axes.set_ylim(sizes.min() * 0.8, top * 1.2)
    axes.set_xlabel(f"{unit}s to fine-tune the pre-trained decoder on")
    axes.set_ylabel(f"{unit}s from scratch that equal them")
    return figure


def score_by_motion(scored: pd.DataFrame, unit: str = "subject", measure: Measure = ACCURACY) -> Figure:
    """Each held-out unit's score against its mean framewise displacement, a mark for each variant.

    Parameters
    ----------
    scored : `variant, score, mean_fd_mm`, as `analysis.motion.scores_and_motion` gives it
    """
    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    for position, variant in enumerate(v for v in VARIANTS if v in set(scored["variant"])):
        group = scored[scored["variant"] == variant]
        colour, mark = STYLES.get(variant.removesuffix("-permuted"), (colour_of("", position), "*"))
        axes.plot(
            group["mean_fd_mm"], group["score"], color=colour, marker=mark, linestyle="none", alpha=0.8,
            label=VARIANTS[variant].title,
        )  # fmt: skip
    axes.set_xlabel(f"mean framewise displacement of a {unit} (mm)")
    value_axis(axes, measure, f"validation {measure.title}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def seed_differences(
    results: pd.DataFrame,
    model: pd.DataFrame,
    a: str = "pretrained",
    b: str = "scratch",
    measure: Measure = ACCURACY,
) -> Figure:
    """Difference between two variants per fraction: each seed's mean (points) and the mixed model's interval (bar).

    Parameters
    ----------
    results : the results table
    model : `fraction, n_subjects, difference, low, high`, as `crossed.seed_model` gives it
    """
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    names = _fractions(model)
    means = results.groupby(["fraction", "seed", "variant"])["score"].mean().unstack()
    table = (means[a] - means[b]).rename("difference").reset_index()
    table["size"] = table["fraction"].map(names)
    points(axes, table, "size", "difference", list(names.values()), size=5.5)
    for position, row in enumerate(model.to_dict("records")):
        interval = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        axes.errorbar(position + 0.3, row["difference"], interval, color=STYLES[a][0], marker="o", capsize=4)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xlabel("fraction of the training data")
    difference_axis(axes.yaxis, measure)
    return figure


def transfer_map(table: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Difference between pre-trained and from scratch for every task as the target; filled where significant.

    Parameters
    ----------
    table : `task, fraction, n_subjects, difference, low, high, significant`
    """
    tasks, fractions = list(dict.fromkeys(table["task"])), sorted(table["fraction"].unique())
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.62 * len(tasks)))
    marks = ("o", "s", "D", "^", "v", "P")
    for row in table.to_dict("records"):
        step = fractions.index(row["fraction"])
        y = -tasks.index(row["task"]) - 0.22 * (step - (len(fractions) - 1) / 2)
        colour = colour_of(row["task"], tasks.index(row["task"]))
        axes.errorbar(
            row["difference"], y, xerr=[[row["difference"] - row["low"]], [row["high"] - row["difference"]]],
            color=colour, marker=marks[step % len(marks)], capsize=2, linewidth=1.5,
            markerfacecolor=colour if row["significant"] else "white",
        )  # fmt: skip
    for step, fraction in enumerate(fractions):
        n = int(table.loc[table["fraction"] == fraction, "n_subjects"].iloc[0])
        axes.plot(
            [],
            [],
            color=INK,
            marker=marks[step % len(marks)],
            linestyle="none",
            label=f"{100 * fraction:g}% (n = {n})",
        )
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks([-i for i in range(len(tasks))], tasks)
    difference_axis(axes.xaxis, measure, ", pre-trained − from scratch")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E5E5E5")
    figure.legend(loc="outside lower center", ncols=len(fractions))
    return figure


def confusion_matrix(shares: pd.DataFrame, title: str = "") -> Figure:
    """Share of each true state's volumes (rows) decoded as each state (columns); both indexed by (task, state)."""
    tasks, names = ([plain(pair[i]) for pair in shares.index] for i in (0, 1))
    size = 1.6 + 0.42 * len(names)
    figure, axes = plt.subplots(figsize=(size + 1.2, size))
    values = shares.to_numpy(float)
    shown = (values >= 0.1) | (len(names) <= 6)
    texts = np.array(
        [
            [f"{100 * v:.0f}" if s else "" for v, s in zip(*rows, strict=True)]
            for rows in zip(values, shown, strict=True)
        ]
    )
    sns.heatmap(
        shares, vmin=0, vmax=1, cmap="cividis", square=True, annot=texts, fmt="", annot_kws={"fontsize": 9}, ax=axes,
        xticklabels=False, yticklabels=False,
        cbar_kws={"format": PercentFormatter(1.0, decimals=0), "shrink": 0.7, "label": "share of volumes"},
    )  # fmt: skip
    for edge in [i for i, (one, next_one) in enumerate(pairwise(tasks), start=1) if one != next_one]:
        axes.axhline(edge, color="white", linewidth=1.5)
        axes.axvline(edge, color="white", linewidth=1.5)
    at = np.arange(len(names)) + 0.5
    axes.set_xticks(at, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(at, names, rotation=0)
    axes.set_xlabel("decoded state")
    axes.set_ylabel("true state")
    axes.set_title(title)
    axes.grid(False)
    return figure


def told_numbers(table: pd.DataFrame, column: str) -> Figure:
    """What a decoder tells against the truth, a point per subject; the dashed line is where both are the same.

    Parameters
    ----------
    table : `true, predicted`
    column : what the numbers are
    """
    figure, axes = plt.subplots(figsize=(4.8, 4.4))
    axes.axline((table["true"].mean(),) * 2, slope=1, **CHANCE)
    axes.plot(table["true"], table["predicted"], color=STYLES["pretrained"][0], marker="o", linestyle="none", alpha=0.8)
    axes.set_xlabel(f"true {plain(column)}")
    axes.set_ylabel(f"predicted {plain(column)}")
    return figure
