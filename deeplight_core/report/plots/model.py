"""The figure of the decoder itself."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deeplight_core.report.plots.style import INK, LINE, OKABE_ITO

__all__ = ["model_diagram"]


def model_diagram(layers: Sequence[Any], shape: tuple[int, int, int], n_states: int) -> Figure:
    """The decoder from volume to states (Fig. 1): convolutions of every slice above, LSTMs and output below.

    A box's height shows the rows of a convolution's maps, its width the number of channels.

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
    axes.plot(*path[:-1].T, **LINE)
    _arrow(axes, path[-2], path[-1])
    _draw_recurrence(axes, math.prod(convolutions[-1].output_shape[1:]), lstm.output_shape)
    _draw_output(axes, math.prod(lstm.output_shape), n_states)
    return figure


def _note(axes: Axes, x: float, y: float, text: str, size: float = 12, **how: Any) -> None:
    axes.text(
        x,
        y,
        text,
        **{"ha": "center", "va": "center_baseline", "fontsize": size, "color": INK, "linespacing": 1.25, **how},
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
        axes.fill(*corners, facecolor="white", edgecolor=OKABE_ITO[4], linewidth=1.2, zorder=2 + i)
        brain = lean @ np.stack([np.cos(turn), np.sin(turn)]) * 0.82 * math.sqrt(1 - 0.75 * height**2) + middle
        axes.fill(*brain, facecolor=OKABE_ITO[4], alpha=0.75, zorder=2 + i)
    _note(axes, 0.14, 6.0, f"volume of {x} × {y} × {z} voxels = {z} axial slices", 11, ha="left", weight="bold")
    _arrow(axes, (1.6, 4.72), (2.1, 4.72))


def _draw_convolutions(axes: Axes, layers: Sequence[Any]) -> float:
    """Boxes and a table below them; returns x of the last box."""
    left, right = 1.98, 8.74
    step = (right - left) / len(layers)
    rows, channels = (max(layer.output_shape[i] for layer in layers) for i in (2, 1))
    places = [left + (i + 0.5) * step for i in range(len(layers))]
    axes.plot([places[0], places[-1]], [4.72, 4.72], **LINE)
    names = {3.48: "kernel", 3.24: "channels", 3.0: "stride", 2.76: "rows × columns"}
    for y, name in names.items():
        _note(axes, 1.85, y, name, ha="right", color="#595959")
    for place, layer in zip(places, layers, strict=True):
        width, height = 0.8 * step * layer.output_shape[1] / channels, 2 * layer.output_shape[2] / rows
        box = plt.Rectangle((place - width / 2, 4.72 - height / 2), width, height, facecolor=OKABE_ITO[0], zorder=2)
        axes.add_patch(box)
        _note(axes, place, 3.48, f"{layer.kernel}×{layer.kernel}")
        _note(axes, place, 3.24, f"{layer.output_shape[1]}")
        _note(axes, place, 3.0, f"{layer.stride}", weight="bold" if layer.stride > 1 else "normal")
    for size, group in groupby(zip(places, layers, strict=True), key=lambda pair: pair[1].output_shape[2:]):
        same = [place for place, _ in group]
        if len(same) > 1:
            axes.plot([same[0] - 0.3 * step, same[-1] + 0.3 * step], [2.88, 2.88], **LINE)
        _note(axes, (same[0] + same[-1]) / 2, 2.76, f"{size[0]}×{size[1]}")
    _note(axes, right, 6.0, f"{len(layers)} convolutions, the same for every slice", 11, ha="right", weight="bold")
    return places[-1]


def _draw_recurrence(axes: Axes, n_features: int, states: tuple[int, ...]) -> None:
    """One vector per slice; one LSTM reads them upwards, another downwards."""
    heights = 1.35 + 0.3 * np.array([-2.6, -1.6, -0.6, 0.6, 1.6, 2.6])
    columns = ((2.95, OKABE_ITO[2], heights), (4.45, OKABE_ITO[3], heights[::-1]))
    for y in heights:
        axes.add_patch(plt.Rectangle((0.6, y - 0.07), 1.5, 0.14, facecolor=OKABE_ITO[0], zorder=2))
        axes.plot([2.1, 4.45], [y, y], **LINE)
    axes.plot([1.35] * 3, [1.29, 1.35, 1.41], ".", color=INK, markersize=3)  # and so on
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
    up, down = OKABE_ITO[2], OKABE_ITO[3]
    for colour, bottom in ((up, 1.35), (down, 0.75)):
        axes.add_patch(plt.Rectangle((5.8, bottom), 0.3, 0.6, facecolor=colour, zorder=2))
    axes.plot([2.95, 2.95, 5.95], [2.22, 2.4, 2.4], color=up, linewidth=1.2)
    _arrow(axes, (5.95, 2.4), (5.95, 1.95), up)
    axes.plot([4.65, 5.95], [0.57, 0.57], color=down, linewidth=1.2)
    _arrow(axes, (5.95, 0.57), (5.95, 0.75), down)
    heights = np.linspace(0.55, 2.15, n_states) if n_states > 1 else np.array([1.35])
    for y in heights:
        axes.plot([6.1, 8.0], [1.35, y], **{**LINE, "linewidth": 0.6})
    axes.scatter(np.full(n_states, 8.0), heights, s=min(90, (70 / n_states) ** 2), color=OKABE_ITO[1], zorder=2)
    _note(axes, 5.95, 0.18, f"{n_features}\nfeatures")
    _note(axes, 8.0, 0.18, f"softmax,\n{n_states} states")
