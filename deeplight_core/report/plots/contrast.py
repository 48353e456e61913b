"""Figures on temporal contrast."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from deeplight_core.analysis.measures import MEASURES
from deeplight_core.report.findings.contrast import WAYS
from deeplight_core.report.plots.style import CHANCE, OKABE_ITO, STYLES, bars, mark_chance, value_axis
from deeplight_core.routes import VARIANTS

__all__ = ["recall_dots", "way_bars"]


def way_bars(scores: pd.DataFrame) -> Figure:
    """Share of held-out series whose neighbour is found, by each way; points are subjects, the dashed line is chance.

    Parameters
    ----------
    scores : `way, subject, score`, as `contrasts.contrast_scores` gives it
    """
    measure = MEASURES["contrast_accuracy"]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    titles = {way: textwrap.fill(title, 17) for way, title in WAYS.items()}
    colours = dict(zip(titles.values(), OKABE_ITO, strict=False))
    bars(axes, scores.assign(way=scores["way"].map(titles)), "way", "score", colours)
    mark_chance(axes, measure.chance(), named=True)
    axes.set_xlabel("")
    value_axis(axes, measure, "neighbours found")
    return figure


def recall_dots(tests: dict[str, pd.DataFrame]) -> Figure:
    """Recall of each task by each decoder, with 95% intervals over held-out subjects; the dashed line is chance.

    Parameters
    ----------
    tests : variant → `statistics.recalled`
    """
    order = [variant for variant in VARIANTS if variant in tests]
    states = list(tests[order[0]]["state"])
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.42 * len(states)))
    for position, variant in enumerate(order):
        own = tests[variant].set_index("state").loc[states]
        error = np.stack([own["mean"] - own["low"], own["high"] - own["mean"]])
        colour, mark = STYLES[variant]
        axes.errorbar(
            own["mean"], np.arange(len(states)) + 0.17 * (position - (len(order) - 1) / 2), xerr=error, fmt=mark,
            markersize=5, color=colour, elinewidth=1.2, label=VARIANTS[variant].title,
        )  # fmt: skip
    axes.axvline(1 / len(states), **CHANCE)
    axes.set_yticks(range(len(states)), states)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("recall")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
