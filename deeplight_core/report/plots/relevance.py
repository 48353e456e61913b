"""Figures of maps of relevance: through the skull, on the cortex, to click through; how well they find the truth."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from deeplight_core.report.plots.style import OKABE_ITO, plain

__all__ = ["glass_brains", "interactive_map", "localisation_bars", "surface_map"]


def _scale(values: np.ndarray) -> tuple[float, float]:
    """Top of the colour scale, and from where on a value is shown."""
    size = np.abs(values[values != 0])
    top = float(np.percentile(size, 99.5)) if size.size else 1.0
    return top, 0.25 * top


def glass_brains(maps: Mapping[str, Any]) -> Figure:
    """One row of glass brains (left, back, right, top) per NIfTI map, each on its own colour scale."""
    from nilearn import plotting

    height = 0.4 + 2.0 * len(maps)
    figure, rows = plt.subplots(len(maps), 1, figsize=(9, height), squeeze=False, layout="none")
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - 0.35 / height, bottom=0.03)
    for axes, (name, image) in zip(rows[:, 0], maps.items(), strict=True):
        top, threshold = _scale(image.get_fdata())
        plotting.plot_glass_brain(
            image, axes=axes, display_mode="lyrz", plot_abs=False, vmax=top, threshold=threshold, cmap="RdBu_r",
            colorbar=False,
        )  # fmt: skip
        axes.set_title(plain(name), fontsize=11)
    return figure


def surface_map(image: Any, title: str = "") -> Figure:
    """A NIfTI map in MNI space on nilearn's own fsaverage5 cortex: both hemispheres from outside and inside."""
    from nilearn import plotting

    top, threshold = _scale(image.get_fdata())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # of vertices that no voxel of a coarse grid covers
        with plt.rc_context({"figure.constrained_layout.use": False}):
            figure, _ = plotting.plot_img_on_surf(
                image, views=["lateral", "medial"], hemispheres=["left", "right"], colorbar=False, vmax=top,
                threshold=threshold, cmap="RdBu_r", title=plain(title), bg_on_data=True,
            )  # fmt: skip
    result: Figure = figure
    return result


def interactive_map(image: Any, title: str = "") -> Any:
    """Nilearn's viewer of a NIfTI map in MNI space: one self-contained HTML document, which asks for no other file."""
    from nilearn import plotting

    top, threshold = _scale(image.get_fdata())
    title = title.translate({ord("<"): "‹", ord(">"): "›"})  # nilearn writes it into a script as it is
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: 'partition' will ignore the 'mask'")
        view = plotting.view_img(image, threshold=threshold, vmax=top, cmap="RdBu_r", symmetric_cmap=True, title=title)
    view.html = re.sub(r"<link[^>]*https?://[^>]*>", "", view.html)  # its icon lies on a server
    return view


def localisation_bars(scores: pd.DataFrame) -> Figure:
    """How well each way finds the planted places: one panel per measure, a bar for the mean and a point per state.

    Parameters
    ----------
    scores : `way, state, mass, rank, pointing, auc`
    """
    titles = {"mass": "relevance mass", "rank": "rank accuracy", "pointing": "pointing game", "auc": "AUC"}
    ways = list(dict.fromkeys(scores["way"]))
    figure, panels = plt.subplots(1, len(titles), figsize=(11, 0.9 + 0.36 * len(ways)), sharey=True)
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        sns.barplot(
            scores, x=measure, y="way", order=ways, color=OKABE_ITO[4], errorbar=None, width=0.7, saturation=1, ax=axes
        )
        sns.stripplot(scores, x=measure, y="way", order=ways, color="#222222", size=3.5, jitter=False, ax=axes)
        axes.set(xlabel=title, ylabel="")
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
    panels[-1].axvline(0.5, color="#595959", linestyle="--", linewidth=1)
    panels[-1].set_xlim(0, 1.02)
    return figure
