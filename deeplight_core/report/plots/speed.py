"""Figures of speed: hours, milliseconds and volumes per second."""

import math
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeplight_core.report.findings import WAYS
from deeplight_core.report.plots.style import INK, OKABE_ITO

__all__ = ["hours_bars", "hours_by_gpus", "loading_bars", "loss_curves", "step_bars"]

_PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}
_OURS, _OTHERS = "#0072B2", "#8C8C8C"
_LOADERS = {
    "memory": "store, in memory", "single": "store, single volumes", "by_run": "store, run by run",
    "npy": "a file per volume", "npy_workers": "a file per volume, a worker",
}  # fmt: skip


def step_bars(steps: pd.DataFrame, what: Literal["training", "decoding"]) -> Figure:
    """Milliseconds per volume of every way, one panel per grid; in brackets, speed relative to the plain loop.

    Parameters
    ----------
    steps : of `costs.step_times`
    """
    ways = list(WAYS) if what == "training" else ["plain", "keras", "ours"]
    where = ["device", "cores", "mm", "batch"]
    panels = {
        f"{device}, {cores} cores: {mm} mm, batches of {batch}": rows
        for (device, cores, mm, batch), rows in steps[steps["way"].isin(ways)].groupby(where, sort=False)
    }
    return _rate_bars(panels, what, f"{what}_times", {way: WAYS[way] for way in ways}, "ms per volume")


def loading_bars(loads: pd.DataFrame) -> Figure:
    """Volumes loaded per second, cold and warm; in brackets, speed relative to a file per volume.

    Parameters
    ----------
    loads : of `costs.loading`
    """
    panels = {f"{device}: {cache}": rows for (device, cache), rows in loads.groupby(["device", "cache"], sort=False)}
    return _rate_bars(panels, "volumes_per_s", "times", _LOADERS, "volumes per second")


def _rate_bars(panels: dict[str, pd.DataFrame], value: str, times: str, titles: dict[str, str], unit: str) -> Figure:
    """Horizontal bars, one panel per table (`way` and the columns `value`, `times`), in the order of `titles`."""
    heights = [len(rows) for rows in panels.values()]
    size = (8.5, 0.8 * len(panels) + 0.36 * sum(heights))
    figure, grid = plt.subplots(len(panels), 1, figsize=size, height_ratios=heights, squeeze=False)
    for axes, (title, rows) in zip(grid[:, 0], panels.items(), strict=True):
        rows = rows.set_index("way").reindex([way for way in titles if way in set(rows["way"])])
        names = [titles[way] for way in rows.index]
        colours = {titles[way]: _OURS if _is_ours(way) else _OTHERS for way in rows.index}
        look: dict[str, Any] = {"palette": colours, "width": 0.72, "saturation": 1, "errorbar": None}
        sns.barplot(x=rows[value].to_numpy(), y=names, hue=names, ax=axes, **look)
        for i, (speed, factor) in enumerate(zip(rows[value], rows[times], strict=True)):
            digits = "{:,.0f}" if speed >= 100 else "{:.1f}" if speed >= 10 else "{:.2f}"
            _write(axes, digits.format(speed) + ("" if np.isnan(factor) else f"  ({factor:.1f}×)"), speed, i)
        axes.set(title=title, xlim=(0, 1.25 * rows[value].max()), ylabel="")
        _grid_along_x(axes)
    grid[-1, 0].set_xlabel(unit)
    return figure


def _is_ours(way: str) -> bool:
    return way.startswith("ours") or way in ("memory", "single", "by_run")


def _write(axes: Axes, text: str, x: float, y: float, **look: Any) -> None:
    """Write text to the right of a bar."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10, **look)


def _grid_along_x(axes: Axes) -> None:
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")


def loss_curves(curves: dict[str, list[list[float]]], steps_per_point: int) -> Figure:
    """Training loss by step: the mean over seeds and, as a band, the lowest and the highest of them.

    Parameters
    ----------
    curves : for each precision a list of losses per seed, each loss the mean of `steps_per_point` steps
    """
    table = pd.DataFrame(
        [
            (f"{_PRECISIONS.get(name, name)}, {len(seeds)} seeds", steps_per_point * (i + 0.5), loss)
            for name, seeds in curves.items()
            for losses in seeds
            for i, loss in enumerate(losses)
        ],
        columns=["name", "step", "training loss"],
    )
    figure, axes = plt.subplots(figsize=(8.5, 3.4))
    look: dict[str, Any] = {"hue": "name", "style": "name", "palette": OKABE_ITO[: len(curves)]}
    sns.lineplot(table, x="step", y="training loss", errorbar=("pi", 100), ax=axes, **look)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def hours_by_gpus(hours: pd.DataFrame) -> Figure:
    """Hours of pre-training, of the sweep and of both by number of GPUs, on logarithmic axes.

    Parameters
    ----------
    hours : of `costs.many_gpus`
    """
    table = hours.melt("n_gpus", ["pre-training", "sweep", "all"], var_name="part", value_name="hours")
    figure, axes = plt.subplots(figsize=(8.5, 3.8))
    look: dict[str, Any] = {"hue": "part", "style": "part", "palette": OKABE_ITO[:3], "markers": ["o", "s", "D"]}
    sns.lineplot(table, x="n_gpus", y="hours", dashes=False, markeredgewidth=0, ax=axes, **look)
    axes.set(xscale="log", yscale="log", xlabel="GPUs")
    axes.set_xticks(hours["n_gpus"], [str(n) for n in hours["n_gpus"]])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.legend()
    return figure


def hours_bars(hours: pd.DataFrame) -> Figure:
    """Estimated hours of each part of the full run per device (bars, logarithmic) and the arithmetic's bound (ticks).

    Parameters
    ----------
    hours : of `costs.device_hours`
    """
    names, parts = hours["device"] + "\n" + hours["precision"], list(hours["part"].unique())
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.28 * (len(hours) + names.nunique())))
    look: dict[str, Any] = {"palette": OKABE_ITO[: len(parts)], "gap": 0.08, "saturation": 1, "errorbar": None}
    sns.barplot(x=hours["hours"], y=names, hue=hours["part"], legend=False, ax=axes, **look)
    for part, bars in zip(parts, axes.containers, strict=True):
        for bar, row in zip(bars, hours[hours["part"] == part].to_dict("records"), strict=True):
            middle, bound = bar.get_y() + bar.get_height() / 2, row["bound_hours"]
            axes.plot([bound] * 2, [bar.get_y(), bar.get_y() + bar.get_height()], color=INK, linewidth=2)
            text = f"{row['hours']:,.0f} h" if row["hours"] >= 10 else f"{row['hours']:.2g} h"
            _write(axes, text, max(row["hours"], bound), middle, bbox={"color": "white", "pad": 0.5})
    _mark_spans(axes, hours[["hours", "bound_hours"]].to_numpy())
    axes.set(xlabel="hours", ylabel="")
    _grid_along_x(axes)
    handles: list[Any] = [*axes.containers, axes.get_lines()[0]]
    figure.legend(handles, [*parts, "least by arithmetic"], loc="outside lower center", ncols=len(handles))
    return figure


def _mark_spans(axes: Axes, hours: np.ndarray) -> None:
    """A logarithmic axis of hours with room for labels; marks a day, a week, a month and a year."""
    left, right = 10 ** math.floor(math.log10(hours.min())), 5 * hours.max()
    axes.set(xscale="log", xlim=(left, right))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    for name, n_hours in {"a day": 24, "a week": 168, "a month": 730, "a year": 8766}.items():
        if left < n_hours < right:
            axes.axvline(n_hours, color=_OTHERS, linestyle=":", linewidth=1, zorder=0)
            axes.annotate(name, (n_hours, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=10)
