"""Figures of data: labels, cleaning, maps on the brain."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deeplight_core.report.plots.style import OKABE_ITO, colour_of, plain
from deeplight_core.report.quality import Design

__all__ = [
    "activation_maps",
    "carpet",
    "class_counts",
    "design_timeline",
    "mask_map",
    "motion_by_split",
    "tsnr_distribution",
    "value_map",
]


_SPLITS = {"train": ("solid: training", 0.95), "validation": ("pale: validation", 0.5), "test": ("palest: test", 0.25)}


def class_counts(index: pd.DataFrame, what: str = "volumes") -> Figure:
    """Volumes per state and split; `index` has `task, state, split`, and volumes without a state are not counted.

    Parameters
    ----------
    what : what a row of the index is (`Store.holds`)
    """
    counts = index[index["state"] != ""].groupby(["task", "state", "split"], sort=True).size().unstack(fill_value=0)
    figure, axes = plt.subplots(figsize=(7, 1 + 0.27 * len(counts)))
    places = np.arange(len(counts))[::-1]
    left = np.zeros(len(counts))
    splits = {split: look for split, look in _SPLITS.items() if split in counts}
    for split, (_, alpha) in splits.items():
        colours = [colour_of(task, i) for i, task in enumerate(counts.index.get_level_values("task"))]
        bars = axes.barh(places, counts[split], left=left, color=colours, label=split)
        for bar in bars:
            bar.set_alpha(alpha)
        left += counts[split].to_numpy()
    axes.set_yticks(places, [f"{task.lower()}: {state}" for task, state in counts.index], fontsize=9)
    axes.set_xlabel(f"labelled {what} ({', '.join(name for name, _ in splits.values())})")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    return figure


def tsnr_distribution(runs: pd.DataFrame) -> Figure:
    """Histogram of the runs' temporal signal-to-noise ratios (their median voxels'), by split.

    Parameters
    ----------
    runs : a store's `split, median_tsnr`
    """
    return _by_split(runs, "median_tsnr", "median tSNR of a run", "runs")


def motion_by_split(units: pd.DataFrame, unit: str = "subject") -> Figure:
    """Histogram of the units' mean framewise displacements, by split.

    Parameters
    ----------
    units : `split, mean_fd_mm`, as `quality.motion_by_unit` gives it
    """
    return _by_split(units, "mean_fd_mm", f"mean framewise displacement of a {unit} (mm)", f"{unit}s")


def _by_split(table: pd.DataFrame, column: str, label: str, what: str) -> Figure:
    """Histogram of a column, stacked by `split`."""
    greys = {"train": "#595959", "validation": "#999999", "test": "#CCCCCC"}
    there = [split for split in greys if split in set(table["split"])]
    figure, axes = plt.subplots(figsize=(7, 2.8))
    sns.histplot(
        table, x=column, hue="split", hue_order=there[::-1], palette=greys, multiple="stack", alpha=1,
        edgecolor="white", ax=axes,
    )  # fmt: skip
    axes.set_xlabel(label)
    axes.set_ylabel(what)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    sns.move_legend(axes, "best", title=None)
    return figure


def design_timeline(designs: Mapping[str, Design]) -> Figure:
    """Blocks of one run per task over time; ticks below are the volumes that have a state."""
    figure, axes = plt.subplots(figsize=(9, 1 + 0.75 * len(designs)))
    for row, design in enumerate(designs.values()):
        states = list(dict.fromkeys(design.blocks["state"]))
        for onset, duration, state in design.blocks[["onset", "duration", "state"]].itertuples(index=False):
            shade = OKABE_ITO[states.index(state) % len(OKABE_ITO)]
            axes.barh(-row, duration, left=onset, height=0.42, color=shade, alpha=0.85, linewidth=0)
            if duration > 10:
                name = state.replace(" ", "\n")
                axes.text(onset + duration / 2, -row, name, ha="center", va="center", fontsize=6.5, color="black")
        axes.plot(design.labelled_s, np.full(len(design.labelled_s), -row - 0.3), "|", color="#222222", markersize=4)
        axes.plot([0, design.n_volumes * design.tr_s], [-row - 0.42] * 2, color="#BBBBBB", linewidth=0.8)
    axes.set_yticks([-row for row in range(len(designs))], list(designs))
    axes.set_xlabel("seconds from the start of the run")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    return figure


def carpet(before: np.ndarray, after: np.ndarray, tr_s: float, title: str = "") -> Figure:
    """All voxels (rows) over time (columns) of one run, before and after cleaning.

    Parameters
    ----------
    before, after : (T, V) series of the same voxels; each voxel is shown as SDs from its mean
    """
    figure, panels = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    stages = ("as acquired", "after cleaning")
    for axes, series, stage in zip(panels, (before, after), stages, strict=True):
        centred = series - series.mean(axis=0)
        deviation = centred.std(axis=0)
        shown = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
        image = axes.imshow(
            shown.T, aspect="auto", cmap="gray", vmin=-2, vmax=2, interpolation="none",
            extent=(0, len(series) * tr_s, shown.shape[1], 0),
        )  # fmt: skip
        axes.set_title(stage)
        axes.set_ylabel("voxel")
        axes.grid(False)
    panels[1].set_xlabel("seconds")
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=panels, label="SD from the voxel's mean", shrink=0.8)
    return figure


def activation_maps(maps: Mapping[str, Any], background: Any = None, label: str = "", n_cuts: int = 6) -> Figure:
    """One row of axial slices per NIfTI map, on one colour scale; `background=None` takes nilearn's MNI152 template."""
    from nilearn import plotting

    values = np.abs(np.stack([image.get_fdata() for image in maps.values()]))
    top = float(np.percentile(values[values > 0], 99.5)) if values.any() else 1.0
    cuts = _cuts(values.any(axis=0), next(iter(maps.values())).affine, n_cuts)
    height = 0.5 + 1.7 * len(maps)
    figure, rows = plt.subplots(len(maps), 1, figsize=(9, height), squeeze=False, layout="none")
    figure.subplots_adjust(left=0.02, right=0.93, top=1 - 0.5 / height, bottom=0.02)
    scale = ScalarMappable(Normalize(-top, top), "RdBu_r")
    figure.colorbar(scale, ax=rows, fraction=0.03, aspect=35, shrink=min(1, 2 / len(maps)))
    anatomy = {} if background is None else {"bg_img": background}
    for axes, (name, image) in zip(rows[:, 0], maps.items(), strict=True):
        plotting.plot_stat_map(
            image, axes=axes, display_mode="z", cut_coords=cuts, vmax=top, threshold=top * 0.15, cmap="RdBu_r",
            colorbar=False, annotate=True, black_bg=False, draw_cross=False, **anatomy,
        )  # fmt: skip
        axes.set_title(plain(name), fontsize=11)
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


def value_map(image: Any, background: Any = None, label: str = "", limits: tuple[float, float] | None = None) -> Figure:
    """Axial slices of a NIfTI map of positive values, zero where there is nothing to show.

    Parameters
    ----------
    limits : ends of the colour scale (None = 0 and the 98th percentile)
    """
    from nilearn import plotting

    values = image.get_fdata()
    low, high = limits or (0.0, float(np.percentile(values[values > 0], 98)))
    figure = plt.figure(figsize=(9, 2.6), layout="none")
    anatomy = {} if background is None else {"bg_img": background}
    plotting.plot_stat_map(
        image, figure=figure, display_mode="z", cut_coords=_cuts(values > 0, image.affine, 6), cmap="viridis",
        vmin=low, vmax=high, threshold=1e-6, colorbar=True, cbar_tick_format="%.3g", black_bg=False, draw_cross=False,
        **anatomy,
    )  # fmt: skip
    figure.suptitle(label, fontsize=11)
    return figure


def _cuts(inside: np.ndarray, affine: np.ndarray, n: int) -> list[float]:
    """z in mm of up to n slices of a (X, Y, Z) mask that hold voxels, evenly spread, the outermost left out."""
    slices = np.flatnonzero(inside.any(axis=(0, 1)))
    chosen = np.unique(slices[np.linspace(0, len(slices) - 1, min(n, len(slices)) + 2).round().astype(int)[1:-1]])
    x, y = (n // 2 for n in inside.shape[:2])
    return [float((affine @ [x, y, z, 1])[2]) for z in chosen]
