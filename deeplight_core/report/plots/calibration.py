"""Figure of calibration."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from deeplight_core.report.plots.style import LINE, OKABE_ITO

__all__ = ["reliability_diagram"]


def reliability_diagram(bins: pd.DataFrame) -> Figure:
    """Share of right answers against confidence; on the diagonal probabilities mean what they say. Below: how many.

    Parameters
    ----------
    bins : `low, high, n, confidence, accuracy`, as `calibration.reliability` gives them
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 5.2), sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], **LINE)
    above.plot(bins["confidence"], bins["accuracy"], "o-", color=OKABE_ITO[0])
    above.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1.02))
    below.bar(bins["low"], bins["n"], bins["high"] - bins["low"], align="edge", color=OKABE_ITO[4], edgecolor="white")
    below.set(xlabel="confidence: the largest probability", ylabel="volumes")
    return figure
