"""Figures on whether the comparison is fair: training length, learning rates, pre-training data."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from deeplight_core.analysis.measures import ACCURACY, Measure
from deeplight_core.report.plots.style import OKABE_ITO, STYLES, difference_axis, mark_chance, value_axis
from deeplight_core.routes import VARIANTS

__all__ = ["gain_lines", "rate_lines", "step_curves"]


def step_curves(curves: pd.DataFrame, n_states: int, unit: str = "subject", measure: Measure = ACCURACY) -> Figure:
    """Held-out score against the number of steps, a panel for each fraction; bands are standard errors over subjects.

    Parameters
    ----------
    curves : `variant, fraction, n_subjects, step, split, subject, score`
    """
    held_out = curves[curves["split"] == "validation"].reset_index(drop=True)
    sizes = held_out.groupby("fraction")["n_subjects"].first()
    figure, panels = plt.subplots(1, len(sizes), figsize=(4 * len(sizes) + 1, 3.8), sharey=True, squeeze=False)
    for axes, (fraction, n) in zip(panels[0], sizes.items(), strict=True):
        for variant in (v for v in VARIANTS if v in set(held_out["variant"])):
            chosen = held_out[(held_out["fraction"] == fraction) & (held_out["variant"] == variant)]
            colour, mark = STYLES[variant]
            sns.lineplot(
                chosen, x="step", y="score", errorbar="se", ax=axes, color=colour, marker=mark, markersize=4,
                label=VARIANTS[variant].title, legend=False,
            )  # fmt: skip
        mark_chance(axes, measure.chance(n_states))
        axes.set_title(f"{n} {unit}{'s' if n > 1 else ''}")
        axes.set_xlabel("steps")
        value_axis(axes, measure, f"validation {measure.title}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def rate_lines(results: pd.DataFrame, n_states: int, measure: Measure = ACCURACY) -> Figure:
    """Score against the learning rate, a line for each variant, averaged over fractions; whiskers are standard errors.

    Parameters
    ----------
    results : `variant, fraction, seed, subject, change, score` of the control `rates`
    """
    rates = results["change"].str.removeprefix("people-rate").astype(float)
    per_subject = results.assign(rate=rates).groupby(["variant", "rate", "subject"])["score"].mean().reset_index()
    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    for variant in (v for v in VARIANTS if v in set(per_subject["variant"])):
        colour, mark = STYLES[variant]
        sns.lineplot(
            per_subject[per_subject["variant"] == variant], x="rate", y="score", errorbar="se", err_style="bars",
            ax=axes, color=colour, marker=mark, label=VARIANTS[variant].title, legend=False,
        )  # fmt: skip
    mark_chance(axes, measure.chance(n_states))
    axes.set_xscale("log")
    axes.set_xticks(
        sorted(per_subject["rate"].unique()), [f"{rate:g}" for rate in sorted(per_subject["rate"].unique())]
    )
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    value_axis(axes, measure)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def gain_lines(gain: pd.DataFrame, unit: str = "subject", measure: Measure = ACCURACY) -> Figure:
    """Gain from pre-training against the number of pre-training units, by contrast (lines) and fraction (panels).

    Parameters
    ----------
    gain : `contrast, n_pretraining, n_subjects, subject, gain`, as `findings.transfer_gain` gives it; whiskers are 95%
        intervals over subjects (bootstrap)
    """
    sizes = sorted(gain["n_subjects"].unique())
    figure, panels = plt.subplots(1, len(sizes), figsize=(4 * len(sizes) + 1, 3.8), sharey=True, squeeze=False)
    contrasts = sorted(gain["contrast"].unique())
    dodge = 0.3 if len(contrasts) > 1 else False
    for axes, n in zip(panels[0], sizes, strict=True):
        chosen = gain[gain["n_subjects"] == n].assign(contrast=lambda table: table["contrast"].map("{:g}%".format))
        sns.pointplot(
            chosen, x="n_pretraining", y="gain", hue="contrast", hue_order=[f"{c:g}%" for c in contrasts],
            palette=list(OKABE_ITO[: len(contrasts)]), markers=["o", "s", "D", "^", "v", "P"][: len(contrasts)],
            dodge=dodge, capsize=0.1, err_kws={"linewidth": 1.5}, linewidth=1.5, seed=0, ax=axes, legend=False,
        )  # fmt: skip
        axes.axhline(0, color="#222222", linewidth=1)
        axes.set_title(f"{n} {unit}{'s' if n > 1 else ''} to fine-tune on")
        axes.set_xlabel(f"{unit}s to pre-train on")
        difference_axis(axes.yaxis, measure)
    handles = [
        plt.Line2D([], [], color=colour, marker=mark, label=f"contrast {contrast:g}%")
        for contrast, colour, mark in zip(contrasts, OKABE_ITO, ["o", "s", "D", "^", "v", "P"], strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(contrasts))
    return figure
