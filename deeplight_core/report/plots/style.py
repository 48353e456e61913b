"""The one look of all figures: colours, marks, chance lines.

Colours are those of Okabe & Ito (2008), distinct for colour-blind readers; a task or variant keeps its own everywhere.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deeplight_core.analysis.measures import Measure
from deeplight_core.routes import VARIANTS

__all__ = [
    "CHANCE",
    "INK",
    "LINE",
    "OKABE_ITO",
    "POINTS",
    "STYLES",
    "TASK_COLOURS",
    "band",
    "bars",
    "colour_of",
    "difference_axis",
    "mark_chance",
    "plain",
    "points",
    "use_style",
    "value_axis",
]

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
TASK_COLOURS = dict(
    zip(("EMOTION", "GAMBLING", "LANGUAGE", "MOTOR", "RELATIONAL", "SOCIAL", "WM"), OKABE_ITO, strict=False)
)
# Colour and mark of every variant; one with permuted labels looks like the one with true labels. Where ways stand side
# by side, supervision is blue, autoencoding orange, temporal contrast green, photographs light blue, random starts red.
STYLES = {
    "pretrained": ("#0072B2", "o"), "scratch": ("#D55E00", "s"), "linear": ("#595959", "D"),
    "linear-pretrained": ("#000000", "*"), "svm": ("#CC79A7", "^"), "decoder": ("#009E73", "<"),
    "ridge": ("#595959", "d"), "scratch-glorot": ("#E69F00", "P"), "scratch-he": ("#E69F00", "P"),
    "shuffled": ("#CC79A7", "X"), "frozen": ("#56B4E9", "h"),
    "cae-scratch": ("#D55E00", "<"), "cae": ("#E69F00", "^"), "cae-multitask": ("#009E73", "p"),
    "cae-variational": ("#0072B2", "d"), "cae-frozen": ("#E69F00", "H"), "cae-multitask-frozen": ("#CC79A7", "8"),
    "voxels": ("#595959", "p"), "regional": ("#000000", "d"),
    "contrast": ("#009E73", "^"), "contrast-frozen": ("#009E73", "v"), "random-frozen": ("#D55E00", "v"),
    "clip-scratch": ("#D55E00", "D"), "clip": ("#0072B2", "D"), "clip-contrast": ("#009E73", "D"),
    "reconstruction": ("#E69F00", ">"), "reconstruction-frozen": ("#E69F00", "v"),
    "supervised-frozen": ("#0072B2", "v"),
    "images": ("#56B4E9", "o"), "images-scratch": ("#D55E00", "X"), "images-frozen": ("#56B4E9", "s"),
    "images-random-frozen": ("#E69F00", "s"), "images-shuffled": ("#CC79A7", "s"),
    "images-shuffled-frozen": ("#CC79A7", "o"),
    "images-statistics": ("#E69F00", "h"), "images-statistics-frozen": ("#E69F00", "o"),
    "resnet18": ("#0072B2", "s"), "resnet18-scratch": ("#D55E00", "P"), "resnet18-frozen": ("#56B4E9", "P"),
    "medicalnet": ("#0072B2", "8"), "medicalnet-scratch": ("#D55E00", "8"), "medicalnet-frozen": ("#56B4E9", "8"),
    "sfcn": ("#0072B2", "p"), "sfcn-scratch": ("#D55E00", "p"), "sfcn-frozen": ("#56B4E9", "p"),
    "video": ("#0072B2", "*"), "video-scratch": ("#D55E00", "*"), "video-frozen": ("#56B4E9", "*"),
}  # fmt: skip
_NEW = [v for v, of in VARIANTS.items() if v not in STYLES and not of.permuted]  # a new one needs no line here
_FREE = [look for look in product(OKABE_ITO[5::-1], "dhpPH8") if look not in STYLES.values()]
STYLES |= dict(zip(_NEW, _FREE, strict=False))
INK = "#222222"
LINE: dict[str, Any] = {"color": "#8C8C8C", "linewidth": 1.2, "zorder": 0}
CHANCE: dict[str, Any] = {"color": "#595959", "linestyle": "--", "linewidth": 1}
POINTS: dict[str, Any] = {"size": 3.7, "color": INK, "alpha": 0.6, "linewidth": 0, "zorder": 3}


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


def colour_of(name: str, position: int) -> str:
    """A task's own colour, or that of a position in the palette."""
    return TASK_COLOURS.get(name, OKABE_ITO[position % len(OKABE_ITO)])


def plain(name: str) -> str:
    """A name of the data for a figure, in which dollar signs would begin a formula."""
    return name.replace("$", r"\$")


def band(axes: Axes, table: pd.DataFrame, colour: Any, label: str, x: str = "epoch") -> None:
    """Mean over subjects (each the mean of its seeds) along `x`, epochs or steps, with a standard-error band."""
    by_subject = table.groupby([x, "subject"], as_index=False)["score"].mean()
    sns.lineplot(
        by_subject, x=x, y="score", errorbar="se", color=colour, label=label, legend=False, ax=axes,
        marker="o", markersize=3, markeredgewidth=0, err_kws={"linewidth": 0},
    )  # fmt: skip


def bars(axes: Axes, table: pd.DataFrame, x: str, y: str, colours: Mapping[str, Any]) -> None:
    """Bars at the means of `y`, one for each key of `colours` in their order, with a point per row."""
    order = list(colours)
    sns.barplot(
        table, x=x, y=y, order=order, hue=x, hue_order=order, palette=dict(colours), errorbar=None, width=0.7,
        saturation=1, alpha=0.85, legend=False, ax=axes,
    )  # fmt: skip
    points(axes, table, x, y, order)


def points(axes: Axes, table: pd.DataFrame, x: str, y: str, order: list[str], **look: Any) -> None:
    """A point per row, side by side instead of overlapping; unlike jitter, every drawing is the same."""
    sns.swarmplot(table, x=x, y=y, order=order, ax=axes, warn_thresh=1, **POINTS | look)


def mark_chance(axes: Axes, chance: float | None, named: bool = False) -> None:
    """A dashed line at chance, if there is one; `named` labels it."""
    if chance is None:
        return
    axes.axhline(chance, **CHANCE)
    if named:
        axes.annotate("chance", (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def value_axis(axes: Axes, measure: Measure, title: str = "") -> None:
    """A vertical axis of a measure's values, in its unit; shares go from 0 to 100%."""
    _label(axes.yaxis, measure, title or measure.axis or measure.title)
    if measure.unit == "share":
        axes.set_ylim(0, 1.0)


def difference_axis(axis: Axis, measure: Measure, of: str = "") -> None:
    """An axis of differences in a measure, in its unit."""
    _label(axis, measure, f"difference in {measure.title}{of}")


def _label(axis: Axis, measure: Measure, title: str) -> None:
    if measure.unit == "share":
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))  # 2.5% would be written as 2%
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    named = measure.unit not in ("", "share")
    axis.set_label_text(f"{title} ({measure.unit})" if named else title)
