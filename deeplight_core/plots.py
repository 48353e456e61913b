"""Tables and maps to figures. Pure functions: no file is read or written here.

Colours are those of Okabe & Ito (2008), distinct for colour-blind readers; a task or variant keeps its own everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from deeplight_core.variants import VARIANTS

__all__ = [
    "accuracy_by_fraction",
    "activation_maps",
    "carpet",
    "class_counts",
    "confusion_matrix",
    "design_timeline",
    "difference_bars",
    "fraction_curves",
    "hours_bars",
    "mask_map",
    "model_diagram",
    "saved_subjects",
    "seed_differences",
    "task_bars",
    "task_curves",
    "transfer_map",
    "use_style",
]

_OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
TASK_COLOURS = dict(
    zip(("EMOTION", "GAMBLING", "LANGUAGE", "MOTOR", "RELATIONAL", "SOCIAL", "WM"), _OKABE_ITO, strict=False)
)
_STYLES = {  # colour and mark of every variant; one with permuted labels looks like the one with true labels
    "pretrained": ("#0072B2", "o"), "scratch": ("#D55E00", "s"), "linear": ("#595959", "D"), "svm": ("#CC79A7", "^"),
    "decoder": ("#009E73", "v"), "scratch-glorot": ("#E69F00", "P"), "scratch-he": ("#E69F00", "P"),
    "shuffled": ("#CC79A7", "X"), "frozen": ("#56B4E9", "h"),
}  # fmt: skip
_INK = "#222222"
_LINE: dict[str, Any] = {"color": "#8C8C8C", "linewidth": 1.2, "zorder": 0}
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
                _band(axes, chosen[chosen["fraction"] == fraction], colour, f"{100 * fraction:g}%")
            axes.axhline(1 / n_states, **_CHANCE)
            axes.set_title(f"{VARIANTS[variant].title.removeprefix('DeepLight, ')}: {title}")
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
    variants = [v for v in VARIANTS if v in set(intervals["variant"])]
    for position, variant in enumerate(variants):
        group = intervals[intervals["variant"] == variant].sort_values("n_subjects")
        error = np.stack([group["mean"] - group["low"], group["high"] - group["mean"]])
        colour, mark = _STYLES[variant.removesuffix("-permuted")]
        axes.errorbar(
            group["n_subjects"] * 1.03 ** (position - (len(variants) - 1) / 2),  # side by side, so that intervals show
            group["mean"], error, label=VARIANTS[variant].title, capsize=3, color=colour, marker=mark,
            linestyle="-" if VARIANTS[variant].learner == "deeplight" else "--",
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


def saved_subjects(table: pd.DataFrame, unit: str = "subject") -> Figure:
    """How many units from scratch equal n pre-trained ones; an arrow where no size of the sweep does.

    Parameters
    ----------
    table : `n_subjects, equivalent, low, high`, as `statistics.subjects_saved` gives it
    """
    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    sizes = table["n_subjects"].to_numpy(float)
    top = sizes.max() * 1.6  # stands for "more than the largest"
    shown = table[["equivalent", "low", "high"]].clip(upper=top)
    error = np.stack([shown["equivalent"] - shown["low"], shown["high"] - shown["equivalent"]])
    axes.plot(sizes, sizes, **_CHANCE)
    axes.annotate(
        "no gain", (sizes[-1], sizes[-1]), xytext=(0, -14), textcoords="offset points", ha="right", fontsize=9
    )
    colour, mark = _STYLES["pretrained"]
    axes.errorbar(sizes, shown["equivalent"], error, color=colour, marker=mark, linestyle="none", capsize=3)
    for n, value in zip(sizes, table["high"], strict=True):
        if np.isinf(value):
            axes.annotate("▲", (n, top), ha="center", va="center", color=colour, fontsize=11, family="DejaVu Sans")
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


def seed_differences(results: pd.DataFrame, model: pd.DataFrame, a: str = "pretrained", b: str = "scratch") -> Figure:
    """Difference between two variants per fraction: each seed's mean (points) and the mixed model's interval (bar).

    Parameters
    ----------
    results : the results table
    model : `fraction, n_subjects, difference, low, high`, as `statistics.seed_model` gives it
    """
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    means = results.groupby(["fraction", "seed", "variant"])["accuracy"].mean().unstack()
    difference = means[a] - means[b]
    rows = model.to_dict("records")
    for position, row in enumerate(rows):
        values = difference.loc[row["fraction"]].to_numpy()
        axes.scatter(position + np.linspace(-0.15, 0.15, len(values)), values, **_POINTS | {"s": 30})
        interval = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        axes.errorbar(position + 0.3, row["difference"], interval, color=_STYLES[a][0], marker="o", capsize=4)
    axes.axhline(0, color="#222222", linewidth=1)
    axes.set_xticks(range(len(rows)), [f"{100 * row['fraction']:g}%\n(n = {row['n_subjects']})" for row in rows])
    axes.set_xlabel("fraction of the training data")
    axes.set_ylabel("difference in accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def transfer_map(table: pd.DataFrame) -> Figure:
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
        colour = _colour(row["task"], tasks.index(row["task"]))
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
            color="#222222",
            marker=marks[step % len(marks)],
            linestyle="none",
            label=f"{100 * fraction:g}% (n = {n})",
        )
    axes.axvline(0, color="#222222", linewidth=1)
    axes.set_yticks([-i for i in range(len(tasks))], tasks)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("difference in accuracy, pre-trained − from scratch")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E5E5E5")
    figure.legend(loc="outside lower center", ncols=len(fractions))
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


def model_diagram(layers: Sequence[Any], shape: tuple[int, int, int], n_states: int) -> Figure:
    """The decoder from volume to states (Fig. 1): convolutions on every slice above, what follows them below.

    Boxes are as high as a convolution's maps have rows, and as wide as it has channels.

    Parameters
    ----------
    layers : as `DeepLight.layers` gives them: convolutions, the LSTM, the output layer
    shape : (X, Y, Z) of the grid
    n_states : output neurons
    """
    figure, axes = plt.subplots(figsize=(9, 6.2), layout="none")
    axes.set_position((0, 0, 1, 1))  # one data unit is one inch
    axes.set(xlim=(0, 9), ylim=(-0.05, 6.15))
    axes.axis("off")
    convolutions = [layer for layer in layers if layer.kind == "convolution"]
    lstm = next(layer for layer in layers if layer.kind == "lstm")
    _draw_slices(axes, shape)
    end = _draw_convolutions(axes, convolutions)
    path = np.array([(end, 4.72), (8.86, 4.72), (8.86, 2.57), (0.3, 2.57), (0.3, 1.35), (0.52, 1.35)])
    axes.plot(*path[:-1].T, **_LINE)
    _arrow(axes, path[-2], path[-1])
    _draw_recurrence(axes, math.prod(convolutions[-1].output_shape[1:]), lstm.output_shape)
    _draw_output(axes, math.prod(lstm.output_shape), n_states)
    return figure


def _note(axes: Axes, x: float, y: float, text: str, size: float = 12, **how: Any) -> None:
    axes.text(
        x,
        y,
        text,
        **{"ha": "center", "va": "center_baseline", "fontsize": size, "color": _INK, "linespacing": 1.25, **how},
    )


def _arrow(axes: Axes, start: Any, end: Any, colour: str = "#8C8C8C") -> None:
    how = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops=how, zorder=1)


def _draw_slices(axes: Axes, shape: tuple[int, int, int]) -> None:
    """The volume as a stack of axial slices, seen from the side; each holds an outline of the brain."""
    x, y, z = shape
    turn = np.linspace(0, 2 * np.pi, 60)
    lean = np.array([[0.5 * x / max(x, y), 0.24 * y / max(x, y)], [0, 0.24 * y / max(x, y)]])  # of x and y on paper
    for i, height in enumerate(np.linspace(-1, 1, 7)):
        middle = np.array([[0.86], [4.72 + 0.76 * height]])
        corners = lean @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]]) + middle
        axes.fill(*corners, facecolor="white", edgecolor=_OKABE_ITO[4], linewidth=1.2, zorder=2 + i)
        brain = lean @ np.stack([np.cos(turn), np.sin(turn)]) * 0.82 * math.sqrt(1 - 0.75 * height**2) + middle
        axes.fill(*brain, facecolor=_OKABE_ITO[4], alpha=0.75, zorder=2 + i)
    _note(axes, 0.14, 6.0, f"volume of {x} × {y} × {z} voxels = {z} axial slices", 11, ha="left", weight="bold")
    _arrow(axes, (1.6, 4.72), (2.1, 4.72))


def _draw_convolutions(axes: Axes, layers: Sequence[Any]) -> float:
    """Boxes, a table of what they are below; returns where the last one ends."""
    left, right = 1.98, 8.74
    step = (right - left) / len(layers)
    rows, channels = (max(layer.output_shape[i] for layer in layers) for i in (2, 1))
    places = [left + (i + 0.5) * step for i in range(len(layers))]
    axes.plot([places[0], places[-1]], [4.72, 4.72], **_LINE)
    names = {3.48: "kernel", 3.24: "channels", 3.0: "stride", 2.76: "rows × columns"}
    for y, name in names.items():
        _note(axes, 1.85, y, name, ha="right", color="#595959")
    for place, layer in zip(places, layers, strict=True):
        width, height = 0.8 * step * layer.output_shape[1] / channels, 2 * layer.output_shape[2] / rows
        box = plt.Rectangle((place - width / 2, 4.72 - height / 2), width, height, facecolor=_OKABE_ITO[0], zorder=2)
        axes.add_patch(box)
        _note(axes, place, 3.48, f"{layer.kernel}×{layer.kernel}")
        _note(axes, place, 3.24, f"{layer.output_shape[1]}")
        _note(axes, place, 3.0, f"{layer.stride}", weight="bold" if layer.stride > 1 else "normal")
    for size, group in groupby(zip(places, layers, strict=True), key=lambda pair: pair[1].output_shape[2:]):
        same = [place for place, _ in group]
        if len(same) > 1:
            axes.plot([same[0] - 0.3 * step, same[-1] + 0.3 * step], [2.88, 2.88], **_LINE)
        _note(axes, (same[0] + same[-1]) / 2, 2.76, f"{size[0]}×{size[1]}")
    _note(axes, right, 6.0, f"{len(layers)} convolutions, the same for every slice", 11, ha="right", weight="bold")
    return places[-1]


def _draw_recurrence(axes: Axes, n_features: int, states: tuple[int, ...]) -> None:
    """One vector per slice, read by an LSTM upwards and by another downwards."""
    heights = 1.35 + 0.3 * np.array([-2.6, -1.6, -0.6, 0.6, 1.6, 2.6])
    columns = ((2.95, _OKABE_ITO[2], heights), (4.45, _OKABE_ITO[3], heights[::-1]))
    for y in heights:
        axes.add_patch(plt.Rectangle((0.6, y - 0.07), 1.5, 0.14, facecolor=_OKABE_ITO[0], zorder=2))
        axes.plot([2.1, 4.45], [y, y], **_LINE)
    axes.plot([1.35] * 3, [1.29, 1.35, 1.41], ".", color=_INK, markersize=3)  # and so on
    for x, colour, order in columns:
        for y in order:
            axes.add_patch(plt.Rectangle((x - 0.2, y - 0.09), 0.4, 0.18, facecolor=colour, zorder=2))
        for start, end in pairwise(order):
            way = math.copysign(0.09, end - start)
            _arrow(axes, (x, start + way), (x, end - way), colour)
    _note(axes, 1.35, 0.18, f"{n_features} features\nof each slice")
    _note(axes, 2.95, 0.18, f"LSTM, {states[1]} units,\nbottom to top")
    _note(axes, 4.45, 0.18, f"LSTM, {states[1]} units,\ntop to bottom")


def _draw_output(axes: Axes, n_features: int, n_states: int) -> None:
    """The last states of both LSTMs, concatenated, and one neuron per state."""
    up, down = _OKABE_ITO[2], _OKABE_ITO[3]
    for colour, bottom in ((up, 1.35), (down, 0.75)):
        axes.add_patch(plt.Rectangle((5.8, bottom), 0.3, 0.6, facecolor=colour, zorder=2))
    axes.plot([2.95, 2.95, 5.95], [2.22, 2.4, 2.4], color=up, linewidth=1.2)
    _arrow(axes, (5.95, 2.4), (5.95, 1.95), up)
    axes.plot([4.65, 5.95], [0.57, 0.57], color=down, linewidth=1.2)
    _arrow(axes, (5.95, 0.57), (5.95, 0.75), down)
    heights = np.linspace(0.55, 2.15, n_states) if n_states > 1 else np.array([1.35])
    for y in heights:
        axes.plot([6.1, 8.0], [1.35, y], **{**_LINE, "linewidth": 0.6})
    axes.scatter(np.full(n_states, 8.0), heights, s=min(90, (70 / n_states) ** 2), color=_OKABE_ITO[1], zorder=2)
    _note(axes, 5.95, 0.18, f"{n_features}\nfeatures")
    _note(axes, 8.0, 0.18, f"softmax,\n{n_states} states")


def hours_bars(hours: pd.DataFrame) -> Figure:
    """Estimated hours of each part of the full run per device (bars, logarithmic) and the arithmetic's bound (ticks).

    Parameters
    ----------
    hours : `device, precision, part, hours, bound_hours`
    """
    groups = list(hours.groupby(["device", "precision"], sort=False))
    parts = list(hours["part"].unique())
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.28 * (len(hours) + len(groups))))
    place, ticks = 0.0, dict[float, str]()
    handles: dict[str, Any] = {}
    white = {"color": "white", "pad": 0.5}  # behind labels, where lines cross
    for (device, precision), rows in groups:
        ticks[place - (len(rows) - 1) / 2] = f"{device}\n{precision}"
        for row in rows.to_dict("records"):
            colour = _OKABE_ITO[parts.index(row["part"])]
            handles[row["part"]] = axes.barh(place, row["hours"], height=0.8, color=colour)
            label = f"{row['hours']:,.0f} h" if row["hours"] >= 10 else f"{row['hours']:.2g} h"
            at = (max(row["hours"], row["bound_hours"]), place)
            axes.annotate(label, at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=10, bbox=white)
            (handles["least by arithmetic"],) = axes.plot(
                [row["bound_hours"]] * 2, [place - 0.4, place + 0.4], color=_INK, linewidth=2
            )
            place -= 1
        place -= 1
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_xscale("log")
    left = 10 ** math.floor(math.log10(hours["bound_hours"].min()))
    right = 5 * hours[["hours", "bound_hours"]].to_numpy().max()  # room for the labels
    axes.set_xlim(left, right)
    for name, n_hours in {"a day": 24, "a week": 168, "a month": 730, "a year": 8766}.items():
        if left < n_hours < right:
            axes.axvline(n_hours, color="#8C8C8C", linestyle=":", linewidth=1, zorder=0)
            axes.annotate(name, (n_hours, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("hours")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    names = [*parts, "least by arithmetic"]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=len(names))
    return figure
