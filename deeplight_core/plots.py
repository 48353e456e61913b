"""Tables and maps to figures. Pure functions: no file is read or written here.

Colours are those of Okabe & Ito (2008), distinct for colour-blind readers; a task or variant keeps its own everywhere.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = [
    "accuracy_by_fraction",
    "activation_maps",
    "carpet",
    "class_counts",
    "confusion_matrix",
    "design_timeline",
    "difference_bars",
    "fraction_curves",
    "mask_map",
    "task_bars",
    "task_curves",
    "use_style",
]

_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
TASK_COLOURS = dict(
    zip(("EMOTION", "GAMBLING", "LANGUAGE", "MOTOR", "RELATIONAL", "SOCIAL", "WM"), _OKABE_ITO, strict=False)
)
VARIANT_COLOURS = {"pretrained": "#0072B2", "scratch": "#D55E00", "linear": "#595959"}
VARIANT_NAMES = {
    "pretrained": "DeepLight, pre-trained", "scratch": "DeepLight, from scratch", "linear": "logistic regression",
}  # fmt: skip
VARIANT_MARKS = {"pretrained": "o", "scratch": "s", "linear": "D"}
_CHANCE: dict[str, Any] = {"color": "#595959", "linestyle": "--", "linewidth": 1}
_POINTS: dict[str, Any] = {"s": 14, "color": "#222222", "alpha": 0.6, "linewidth": 0, "zorder": 3}


def use_style() -> None:
    """Set matplotlib's defaults for all figures of the project."""
    plt.rcParams.update(
        {
            "figure.dpi": 100, "savefig.dpi": 200, "figure.facecolor": "white", "figure.constrained_layout.use": True,
            "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
            "grid.color": "#E5E5E5", "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 2,
        }
    )  # fmt: skip


def _colour(name: str, position: int) -> str:
    return TASK_COLOURS.get(name, _OKABE_ITO[position % len(_OKABE_ITO)])


def _band(axes: Axes, table: pd.DataFrame, colour: Any, label: str, style: str = "-") -> None:
    """Mean over subjects per epoch with a standard-error band."""
    by_epoch = table.groupby("epoch")["accuracy"]
    mean, error = by_epoch.mean(), by_epoch.sem().fillna(0)
    axes.plot(mean.index, mean, style, color=colour, label=label, marker="o", markersize=3)
    axes.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _mark_chance(axes: Axes, n_states: int) -> None:
    axes.annotate("chance", (1, 1 / n_states), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, 1.0)


def task_curves(metrics: pd.DataFrame, n_states: int) -> Figure:
    """Accuracy per epoch in training and validation, one line per task (Fig. 2 A, B); bands are standard errors.

    Parameters
    ----------
    metrics : `epoch, split, task, subject, accuracy`
    n_states : size of the output layer; chance is its inverse
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axes, split in zip(panels, ("train", "validation"), strict=True):
        for position, (task, group) in enumerate(metrics[metrics["split"] == split].groupby("task")):
            _band(axes, group, _colour(str(task), position), str(task))
        axes.axhline(1 / n_states, **_CHANCE)
        axes.set_title({"train": "Training", "validation": "Validation"}[split])
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("decoding accuracy")
    _percent(panels[0])
    _mark_chance(panels[1], n_states)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def task_bars(results: pd.DataFrame, states_per_task: Mapping[str, int]) -> Figure:
    """Accuracy per task after training (Fig. 2 C): bars are means, points subjects; dashes mark chance.

    Parameters
    ----------
    results : `task, subject, accuracy`
    states_per_task : task → its number of states, for the chance of a decoder that knows the task
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    random = np.random.default_rng(0)
    tasks = list(states_per_task)
    for position, task in enumerate(tasks):
        values = results.loc[results["task"] == task, "accuracy"].to_numpy()
        axes.bar(position, values.mean(), width=0.7, color=_colour(task, position), alpha=0.8)
        axes.scatter(position + random.uniform(-0.2, 0.2, len(values)), values, **_POINTS)
        axes.hlines(
            1 / states_per_task[task], position - 0.4, position + 0.4,
            color="#222222", linestyle=":", linewidth=1.5, zorder=4,
        )  # fmt: skip
        axes.annotate(
            f"{values.mean():.0%}", (position, 0.01),
            ha="center", va="bottom", color="white", fontweight="bold", fontsize=10,
        )  # fmt: skip
    axes.axhline(1 / sum(states_per_task.values()), **_CHANCE)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.set_ylabel("decoding accuracy")
    _percent(axes)
    return figure


def fraction_curves(metrics: pd.DataFrame, n_states: int) -> Figure:
    """Accuracy per epoch for every fraction, variant (columns) and split (rows) (Fig. 3 A, B, D, E).

    Parameters
    ----------
    metrics : `variant, fraction, epoch, split, subject, accuracy`
    """
    variants = [v for v in VARIANT_NAMES if v in set(metrics["variant"])]
    fractions = sorted(metrics["fraction"].unique())
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(fractions)))
    size = (4.5 * len(variants), 6)
    figure, panels = plt.subplots(2, len(variants), figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, (split, title) in enumerate((("train", "training"), ("validation", "validation"))):
        for column, variant in enumerate(variants):
            axes = panels[row, column]
            chosen = metrics[(metrics["split"] == split) & (metrics["variant"] == variant)]
            for colour, fraction in zip(colours, fractions, strict=True):
                _band(axes, chosen[chosen["fraction"] == fraction], colour, f"{100 * fraction:g}%")
            axes.axhline(1 / n_states, **_CHANCE)
            axes.set_title(f"{VARIANT_NAMES[variant].removeprefix('DeepLight, ')}: {title}")
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    for axes in panels[:, 0]:
        axes.set_ylabel("decoding accuracy")
    _percent(panels[0, 0])
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), title="fraction of the training data",
        loc="outside lower center", ncols=len(fractions),
    )  # fmt: skip
    return figure


def accuracy_by_fraction(intervals: pd.DataFrame, n_states: int, unit: str = "subject") -> Figure:
    """Validation accuracy against the size of the training set, per variant, with 95% intervals over held-out subjects.

    Parameters
    ----------
    intervals : `variant, fraction, n_subjects, mean, low, high`, as `statistics.mean_intervals` gives them
    """
    figure, axes = plt.subplots(figsize=(7, 4.2))
    sizes = sorted(intervals["n_subjects"].unique())
    for dodge, (variant, name) in enumerate(VARIANT_NAMES.items(), start=-1):  # side by side, so that intervals show
        group = intervals[intervals["variant"] == variant].sort_values("n_subjects")
        if group.empty:
            continue
        error = np.stack([group["mean"] - group["low"], group["high"] - group["mean"]])
        axes.errorbar(
            group["n_subjects"] * 1.03**dodge, group["mean"], error, label=name, capsize=3,
            color=VARIANT_COLOURS[variant], marker=VARIANT_MARKS[variant],
            linestyle="--" if variant == "linear" else "-",
        )  # fmt: skip
    axes.axhline(1 / n_states, **_CHANCE)
    _mark_chance(axes, n_states)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(s) for s in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"{unit}s to train on")
    axes.set_ylabel("validation accuracy")
    _percent(axes)
    axes.legend(loc="lower right")
    return figure


def difference_bars(
    results: pd.DataFrame, comparison: pd.DataFrame, a: str = "pretrained", b: str = "scratch"
) -> Figure:
    """Difference in accuracy between two variants per fraction (Fig. 3 F): bars are means, points held-out subjects.

    Parameters
    ----------
    results : `variant, fraction, subject, accuracy`, one row per subject (seeds averaged)
    comparison : `fraction, n_subjects, difference, low, high, significant`, as `statistics.compare` gives it; a star
        marks significance
    """
    figure, axes = plt.subplots(figsize=(7, 3.8))
    random = np.random.default_rng(0)
    wide = results.pivot(index=["fraction", "subject"], columns="variant", values="accuracy")
    difference = wide[a] - wide[b]
    colours = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(comparison)))
    rows = comparison.to_dict("records")
    for position, row in enumerate(rows):
        values, mean = difference.loc[row["fraction"]].to_numpy(), row["difference"]
        axes.bar(position, mean, width=0.7, color=colours[position], alpha=0.85)
        axes.scatter(position + random.uniform(-0.2, 0.2, len(values)), values, **_POINTS)
        interval = [[mean - row["low"]], [row["high"] - mean]]
        axes.errorbar(position, mean, interval, color="black", capsize=4, zorder=4)
        if row["significant"]:
            axes.annotate(
                "★", (position, max(values.max(), row["high"])), xytext=(0, 4), textcoords="offset points",
                ha="center", fontsize=14, family="DejaVu Sans",
            )  # fmt: skip
    axes.axhline(0, color="#222222", linewidth=1)
    axes.margins(y=0.15)
    axes.set_xticks(range(len(rows)), [f"{100 * row['fraction']:g}%\n(n = {row['n_subjects']})" for row in rows])
    axes.set_xlabel("fraction of the training data")
    axes.set_ylabel("difference in accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def confusion_matrix(shares: pd.DataFrame, title: str = "") -> Figure:
    """Share of each true state's volumes (rows) decoded as each state (columns); both indexed by (task, state)."""
    names = [state for _, state in shares.index]
    tasks = [task for task, _ in shares.index]
    size = 1.6 + 0.42 * len(names)
    figure, axes = plt.subplots(figsize=(size + 1.2, size))
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(shares.to_numpy(float)):
        if np.isfinite(value) and (len(names) <= 6 or value >= 0.1):
            ink = "white" if value < 0.55 else "black"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=ink)
    for edge in np.flatnonzero([x != y for x, y in pairwise(tasks)]):
        axes.axhline(edge + 0.5, color="white", linewidth=1.5)
        axes.axvline(edge + 0.5, color="white", linewidth=1.5)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("decoded state")
    axes.set_ylabel("true state")
    axes.set_title(title)
    axes.grid(False)
    figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), shrink=0.7, label="share of volumes")
    return figure


def class_counts(index: pd.DataFrame) -> Figure:
    """Volumes per state and split; `index` has `task, state, split`."""
    counts = index.groupby(["task", "state", "split"], sort=True).size().unstack(fill_value=0)
    figure, axes = plt.subplots(figsize=(7, 1 + 0.27 * len(counts)))
    places = np.arange(len(counts))[::-1]
    left = np.zeros(len(counts))
    for split, alpha in (("train", 0.95), ("validation", 0.5)):
        colours = [_colour(task, i) for i, task in enumerate(counts.index.get_level_values("task"))]
        bars = axes.barh(places, counts[split], left=left, color=colours, label=split)
        for bar in bars:
            bar.set_alpha(alpha)
        left += counts[split].to_numpy()
    axes.set_yticks(places, [f"{task.lower()}: {state}" for task, state in counts.index], fontsize=9)
    axes.set_xlabel("labelled volumes (solid: training, pale: validation)")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    return figure


def design_timeline(
    blocks: Mapping[str, pd.DataFrame], kept: Mapping[str, np.ndarray], end_s: Mapping[str, float]
) -> Figure:
    """Blocks of one run per task over time; ticks below are the volumes that were kept.

    Parameters
    ----------
    blocks : task → `onset, duration, state`
    kept : task → acquisition times (s) of the labelled volumes
    end_s : task → length of the run
    """
    figure, axes = plt.subplots(figsize=(9, 1 + 0.75 * len(blocks)))
    for row, (task, table) in enumerate(blocks.items()):
        states = list(dict.fromkeys(table["state"]))
        for onset, duration, state in zip(table["onset"], table["duration"], table["state"], strict=True):
            shade = _OKABE_ITO[states.index(state) % len(_OKABE_ITO)]
            axes.barh(-row, duration, left=onset, height=0.42, color=shade, alpha=0.85, linewidth=0)
            if duration > 10:
                name = state.replace(" ", "\n")
                axes.text(onset + duration / 2, -row, name, ha="center", va="center", fontsize=6.5, color="black")
        axes.plot(kept[task], np.full(len(kept[task]), -row - 0.3), "|", color="#222222", markersize=4)
        axes.plot([0, end_s[task]], [-row - 0.42] * 2, color="#BBBBBB", linewidth=0.8)
    axes.set_yticks([-r for r in range(len(blocks))], list(blocks))
    axes.set_xlabel("seconds from the start of the run")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    return figure


def carpet(before: np.ndarray, after: np.ndarray, tr_s: float) -> Figure:
    """All voxels (rows) over time (columns) of one run, before and after cleaning.

    Parameters
    ----------
    before, after : (T, V) series of the same voxels; each voxel is shown as SDs from its mean
    """
    figure, panels = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    titles = ("as acquired", "after cleaning")
    for axes, series, title in zip(panels, (before, after), titles, strict=True):
        centred = series - series.mean(axis=0)
        deviation = centred.std(axis=0)
        shown = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
        image = axes.imshow(
            shown.T, aspect="auto", cmap="gray", vmin=-2, vmax=2, interpolation="none",
            extent=(0, len(series) * tr_s, shown.shape[1], 0),
        )  # fmt: skip
        axes.set_title(title)
        axes.set_ylabel("voxel")
        axes.grid(False)
    panels[1].set_xlabel("seconds")
    figure.colorbar(image, ax=panels, label="SD from the voxel's mean", shrink=0.8)
    return figure


def activation_maps(maps: Mapping[str, Any], background: Any = None, label: str = "", n_cuts: int = 6) -> Figure:
    """One row of axial slices per NIfTI map, on one colour scale; `background=None` takes nilearn's MNI152 template."""
    from nilearn import plotting

    values = np.abs(np.stack([image.get_fdata() for image in maps.values()]))
    top = float(np.percentile(values[values > 0], 99.5)) if values.any() else 1.0
    cuts = _cuts(values.any(axis=0), next(iter(maps.values())).affine, n_cuts)
    figure, rows = plt.subplots(len(maps), 1, figsize=(9, 1.9 * len(maps)), squeeze=False, layout="none")
    anatomy = {} if background is None else {"bg_img": background}
    for axes, (name, image) in zip(rows[:, 0], maps.items(), strict=True):
        plotting.plot_stat_map(
            image, axes=axes, display_mode="z", cut_coords=cuts, vmax=top, threshold=top * 0.15, cmap="RdBu_r",
            colorbar=True, annotate=True, black_bg=False, draw_cross=False, **anatomy,
        )  # fmt: skip
        axes.set_title(name, fontsize=11)
    figure.suptitle(label, fontsize=11)
    return figure


def mask_map(mask: Any, background: Any = None, n_cuts: int = 7) -> Figure:
    """A mask over the template (or `background`)."""
    from nilearn import plotting

    figure = plt.figure(figsize=(9, 2.6), layout="none")
    anatomy = {} if background is None else {"bg_img": background}
    plotting.plot_roi(
        mask, figure=figure, display_mode="z", cut_coords=_cuts(mask.get_fdata() > 0, mask.affine, n_cuts),
        cmap="autumn", alpha=0.45, colorbar=False, black_bg=False, **anatomy,
    )  # fmt: skip
    return figure


def _cuts(inside: np.ndarray, affine: np.ndarray, n: int) -> list[float]:
    """z in mm of up to n slices of a (X, Y, Z) mask that hold voxels, evenly spread, the outermost left out."""
    slices = np.flatnonzero(inside.any(axis=(0, 1)))
    chosen = np.unique(slices[np.linspace(0, len(slices) - 1, min(n, len(slices)) + 2).round().astype(int)[1:-1]])
    x, y = (n // 2 for n in inside.shape[:2])
    return [float((affine @ [x, y, z, 1])[2]) for z in chosen]
