"""Figures of structural images: reconstructions, codes, projections."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deeplight_core.report.plots.style import bars, colour_of

__all__ = ["code_histograms", "code_projections", "error_bars", "error_curves", "fault_curves", "reconstruction_grid"]


def reconstruction_grid(rows: Mapping[str, np.ndarray], mask: np.ndarray, z_scores: bool = False) -> Figure:
    """Axial slices of volumes, one row each: originals and reconstructions.

    Parameters
    ----------
    rows : titles and (n, Z, Y, X) volumes, n the same in all; every image's middle and a lower slice are shown
    mask : (Z, Y, X) bool; voxels outside are left blank
    z_scores : whether values lie around 0, not between 0 and 1
    """
    cmap, low, high = ("RdBu_r", -3, 3) if z_scores else ("gray", 0, 1)
    n = len(next(iter(rows.values())))
    inside = np.flatnonzero(mask.any(axis=(1, 2)))
    slices = [int(inside[int(share * (len(inside) - 1))]) for share in (0.35, 0.6)]
    figure, axes = plt.subplots(
        len(rows), 2 * n, figsize=(1.1 * 2 * n + 1.2, 1.25 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (title, volumes) in zip(axes, rows.items(), strict=True):
        for i, axis in enumerate(line):
            image = np.where(mask, volumes[i // 2], np.nan)[slices[i % 2]]
            axis.imshow(image, origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            axis.set_axis_off()
        line[0].set_axis_on()
        line[0].set(xticks=[], yticks=[])
        line[0].grid(visible=False)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
        sns.despine(ax=line[0], left=True, bottom=True)
    return figure


def error_bars(errors: pd.DataFrame) -> Figure:
    """Held-out reconstruction errors of the mean volume, an autoencoder and PCA: bars are means, points people.

    Parameters
    ----------
    errors : as `codes.reference_errors` gives them
    """
    titles = {"mean": "mean volume", "autoencoder": "autoencoder", "pca": f"PCA, {errors['n_components'].iloc[0]}"}
    table = errors.rename(columns=titles).melt("subject", list(titles.values()), "model", "error")
    figure, axes = plt.subplots(figsize=(5, 3.2))
    bars(axes, table, "model", "error", {title: colour_of("", i) for i, title in enumerate(titles.values())})
    axes.set(xlabel="", ylabel="mean squared error")
    return figure


def error_curves(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Reconstruction errors by epoch, one colour per autoencoder: training dashed, held-out people solid.

    Parameters
    ----------
    curves : titles and metrics (`split, epoch, score`)
    """
    rows = pd.concat([table.assign(who=title) for title, table in curves.items()], ignore_index=True)
    rows["images"] = rows["split"].map({"train": "trained on"}).fillna("held out")
    palette = {title: colour_of("", i) for i, title in enumerate(curves)}
    figure, axes = plt.subplots(figsize=(7, 3.8))
    sns.lineplot(
        rows, x="epoch", y="score", hue="who", style="images", style_order=["held out", "trained on"], palette=palette,
        errorbar=None, ax=axes, legend="full",
    )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
    _legend_below(figure, axes)
    return figure


def fault_curves(metrics: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Loss by step of decoders with faults, one panel each, beside those without (grey); means over folds and people.

    Parameters
    ----------
    metrics : `change, step, split, loss`, as `collect.sweep_curves` gives them for the control `faults`
    titles : change → title of its panel; "" is the decoder without faults
    """
    losses = metrics[metrics["loss"] > 0].groupby(["change", "split", "step"], as_index=False)["loss"].mean()
    shown = [change for change in titles if change and change in set(losses["change"])]
    rows = math.ceil(len(shown) / 3)
    figure, panels = plt.subplots(rows, 3, figsize=(8, 2.5 * rows), sharey=True, squeeze=False)
    for axis, change in zip(panels.flat, shown, strict=False):
        for of, colour in (("", "#999999"), (change, colour_of("", 3))):
            for split, of_split in losses[losses["change"] == of].groupby("split"):
                axis.plot(of_split["step"], of_split["loss"], color=colour, linestyle="--" if split == "train" else "-")
        axis.set_title(textwrap.fill(titles[change], 24), fontsize="medium")
        axis.set(ylim=(0, None), xlabel="steps")
    for axis in panels.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in panels[:, 0]:
        axis.set_ylabel("cross-entropy")
    dashes: dict[str, Any] = {"held out": "-", "trained on": "--"}
    lines = [
        Line2D([], [], color=colour, linestyle=dashes[images], label=f"{name}, {images}")
        for colour, name in (("#999999", "no fault"), (colour_of("", 3), "this fault"))
        for images in dashes
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Move seaborn's legend below the figure, without the names of the columns."""
    handles, labels = axes.get_legend_handles_labels()
    own = axes.get_legend()
    assert own is not None
    own.remove()
    shown = [(h, label) for h, label in zip(handles, labels, strict=True) if label not in ("who", "images")]
    figure.legend(*zip(*shown, strict=True), loc="outside lower center", ncols=4)


def code_histograms(codes: Mapping[str, np.ndarray]) -> Figure:
    """Distribution of the units of the code, each unit's mean over the held-out images (the report's Fig. 3.1).

    Parameters
    ----------
    codes : titles and (N, U) features of held-out images
    """
    means = {title: np.asarray(features).mean(axis=0) for title, features in codes.items()}
    values = np.concatenate(list(means.values()))
    largest = float(np.quantile(values, 0.98)) or float(values.max()) or 1.0  # a few large ones would hide the others
    edges = np.linspace(values.min(), largest, 40)
    figure, axes = plt.subplots(1, len(means), figsize=(3.6 * len(means), 3), sharex=True, sharey=True, squeeze=False)
    for axis, (title, values) in zip(axes[0], means.items(), strict=True):
        shown = np.minimum(values, largest)
        sns.histplot(x=shown, bins=edges, stat="proportion", ax=axis, color=colour_of("", 0), edgecolor="none")
        above = f"; {share:.0%} above" if (share := (values > largest).mean()) else ""
        axis.set(title=title, xlabel=f"mean activation{above}", ylabel="share of the code's units")
    return figure


def code_projections(projections: Mapping[str, np.ndarray], table: pd.DataFrame, column: str) -> Figure:
    """Images in two dimensions, one panel per projection: dots were trained on, crosses were held out (Fig. 3.2).

    Parameters
    ----------
    projections : titles and (N, 2) places
    table : one row per image: the column that decides its colour, and `held_out`
    column : of classes
    """
    figure, axes = plt.subplots(1, len(projections), figsize=(3.4 * len(projections), 3.4), squeeze=False)
    classes = sorted(table[column].unique())
    palette: dict[str, Any] = {name: colour_of("", i) for i, name in enumerate(classes)}
    for axis, (title, places) in zip(axes[0], projections.items(), strict=True):
        rows = pd.DataFrame(places, columns=["x", "y"]).assign(
            who=table[column].to_numpy(), images=np.where(table["held_out"], "held out", "trained on")
        )
        sns.scatterplot(
            rows, x="x", y="y", hue="who", style="images", hue_order=classes, style_order=["trained on", "held out"],
            markers={"trained on": "o", "held out": "X"}, palette=palette, ax=axis, s=28, linewidth=0,
            legend="full" if axis is axes[0][-1] else False,
        )  # fmt: skip
        axis.set(title=title, xlabel="", ylabel="", xticks=[], yticks=[])
    _legend_below(figure, axes[0][-1])
    return figure
