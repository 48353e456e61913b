"""Figures of two groups of people."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from deeplight_core.report.plots.style import LINE, OKABE_ITO, plain

__all__ = ["group_values"]


def group_values(values: Mapping[str, np.ndarray], second: np.ndarray, names: tuple[str, str]) -> Figure:
    """A classifier's value of everybody, held out, one panel for each way; right of the line it says the second group.

    Parameters
    ----------
    values : way → (N,)
    second : (N,) who is in the second group
    names : of the first and the second group
    """
    figure, panels = plt.subplots(1, len(values), figsize=(3.4 * len(values), 2.1), sharey=True, squeeze=False)
    for axes, (way, own) in zip(panels[0], values.items(), strict=True):
        for place, (name, colour, mark) in enumerate(zip(names, OKABE_ITO[:2], "os", strict=True)):
            of_group = np.sort(own[second == bool(place)])
            heights = place + 0.5 * (np.arange(len(of_group)) / max(1, len(of_group) - 1) - 0.5)
            axes.plot(of_group, heights, mark, color=colour, markersize=4.5, label=name)
        axes.axvline(0, **LINE)
        axes.set(title=way, xlabel="value", ylim=(-0.6, 1.6))
        axes.set_yticks([0, 1], [plain(name) for name in names])
    return figure
