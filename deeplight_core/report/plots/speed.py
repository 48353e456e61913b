"""How fast: hours, milliseconds and volumes per second."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deeplight_core.report.plots.style import INK, OKABE_ITO

__all__ = ["hours_bars", "loss_curves", "rate_bars", "scaling_lines"]


def rate_bars(table: pd.DataFrame, unit: str, colours: dict[str, str]) -> Figure:
    """Bars of a rate or a time, one panel per group; beside each its value, and how many times as fast as the first.

    Parameters
    ----------
    table : `group, way, value, times`; `times` is what stands behind the value, NaN for nothing
    unit : of the values, written below
    colours : of the ways
    """
    groups = list(table.groupby("group", sort=False))
    heights = [len(rows) for _, rows in groups]
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(8.5, 0.8 * len(groups) + 0.36 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, (group, rows) in zip(panels[:, 0], groups, strict=True):
        ways = list(rows["way"])
        axes.barh(ways, rows["value"], height=0.72, color=[colours.get(way, "#8C8C8C") for way in ways])
        for way, value, times in zip(ways, rows["value"], rows["times"], strict=True):
            digits = "{:,.0f}" if value >= 100 else "{:.1f}" if value >= 10 else "{:.2f}"
            label = digits.format(value) + ("" if np.isnan(times) else f"  ({times:.1f}×)")
            axes.annotate(label, (value, way), xytext=(4, 0), textcoords="offset points", va="center", fontsize=10)
        axes.set_xlim(0, 1.25 * rows["value"].max())
        axes.set_title(group)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
    panels[-1, 0].set_xlabel(unit)
    return figure


def loss_curves(curves: dict[str, list[list[float]]], steps_per_point: int) -> Figure:
    """Training loss by step: the mean over seeds and, as a band, the lowest and the highest of them.

    Parameters
    ----------
    curves : for each name a list per seed of losses, each the mean of so many steps
    """
    figure, axes = plt.subplots(figsize=(8.5, 3.4))
    for i, (name, seeds) in enumerate(curves.items()):
        losses = np.array(seeds)
        steps = steps_per_point * (np.arange(losses.shape[1]) + 0.5)
        label = f"{name}, {len(seeds)} seeds"
        axes.plot(steps, losses.mean(axis=0), label=label, color=OKABE_ITO[i], linestyle=("-", "--")[i % 2])
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=OKABE_ITO[i], alpha=0.2, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def scaling_lines(table: pd.DataFrame, unit: str) -> Figure:
    """A quantity by number of devices on logarithmic axes, a line per name.

    Parameters
    ----------
    table : `name, devices, value`
    unit : of the values, beside the axis
    """
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    for i, (name, rows) in enumerate(table.groupby("name", sort=False)):
        axes.plot(rows["devices"], rows["value"], marker="osD^v"[i % 5], color=OKABE_ITO[i], label=str(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    numbers = sorted(table["devices"].unique())
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("GPUs")
    axes.set_ylabel(unit)
    axes.legend()
    return figure


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
            colour = OKABE_ITO[parts.index(row["part"])]
            handles[row["part"]] = axes.barh(place, row["hours"], height=0.8, color=colour)
            label = f"{row['hours']:,.0f} h" if row["hours"] >= 10 else f"{row['hours']:.2g} h"
            at = (max(row["hours"], row["bound_hours"]), place)
            axes.annotate(label, at, xytext=(5, 0), textcoords="offset points", va="center", fontsize=10, bbox=white)
            (handles["least by arithmetic"],) = axes.plot(
                [row["bound_hours"]] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=2
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
