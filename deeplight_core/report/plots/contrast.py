"""Figures on temporal contrast."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from deeplight_core.analysis.measures import MEASURES
from deeplight_core.report.findings.contrast import WAYS
from deeplight_core.report.plots.style import OKABE_ITO, bars, mark_chance, value_axis

__all__ = ["way_bars"]


def way_bars(scores: pd.DataFrame) -> Figure:
    """Share of held-out series whose neighbour is found, by each way; points are subjects, the dashed line is chance.

    Parameters
    ----------
    scores : `way, subject, score`, as `contrasts.contrast_scores` gives it
    """
    measure = MEASURES["contrast_accuracy"]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    titles = {way: title.replace(", ", ",\n") for way, title in WAYS.items()}
    colours = dict(zip(titles.values(), OKABE_ITO, strict=False))
    bars(axes, scores.assign(way=scores["way"].map(titles)), "way", "score", colours)
    mark_chance(axes, measure.chance(), named=True)
    axes.set_xlabel("")
    value_axis(axes, measure, "neighbours found")
    return figure
