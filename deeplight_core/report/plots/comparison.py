"""Figures on ways to pre-train, side by side."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from deeplight_core.analysis.measures import ACCURACY, Measure
from deeplight_core.report.plots.style import CHANCE, INK, STYLES, difference_axis, value_axis
from deeplight_core.routes import ROUTES, VARIANTS

__all__ = ["benefit_by_cost", "condition_dots", "pair_maps", "similarity_map"]


def _titles(variants: list[str]) -> list[str]:
    return [VARIANTS[v].title.removeprefix("DeepLight, ").replace(", ", ",\n") for v in variants]


def pair_maps(pairs: pd.DataFrame, unit: str = "subject") -> Figure:
    """Differences between all decoders, one panel per size: row minus column, in points; a star where they differ.

    Parameters
    ----------
    pairs : `a, b, n_subjects, difference, differ`, as `crossed.pairs` gives it
    """
    variants = list(dict.fromkeys([*pairs["a"], *pairs["b"]]))
    sizes = sorted(pairs["n_subjects"].unique())
    cells = 0.53 * len(variants)
    size = 2.3 + cells, 2.3 + len(sizes) * (0.35 + cells)
    figure, panels = plt.subplots(len(sizes), 1, figsize=size, sharex=True, squeeze=False)
    top = 100 * pairs["difference"].abs().max()
    for axes, n in zip(panels.flat, sizes, strict=True):
        values = pd.DataFrame(np.nan, variants, variants)
        texts = pd.DataFrame("", variants, variants)
        for row in pairs[pairs["n_subjects"] == n].to_dict("records"):
            for one, other, sign in ((row["a"], row["b"], 1), (row["b"], row["a"], -1)):
                values.loc[one, other] = 100 * sign * row["difference"]
                texts.loc[one, other] = f"{values.loc[one, other]:+.0f}{'★' if row['differ'] else ''}"
        sns.heatmap(
            values, annot=texts, fmt="", cmap="RdBu_r", vmin=-top, vmax=top, cbar=False, square=True, ax=axes,
            annot_kws={"size": 10}, xticklabels=_titles(variants), yticklabels=_titles(variants),
        )  # fmt: skip
        axes.set_title(f"{n} {unit}{'' if n == 1 else 's'}")
        axes.tick_params(labelsize=10)
    return figure


def benefit_by_cost(means: pd.DataFrame, costs: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Score at the smallest size, with its interval, against all volumes that a decoder has seen.

    Decoders that have seen as many stand side by side; those with an unknown number are left out.

    Parameters
    ----------
    means : `variant, n_subjects, mean, low, high`, as `crossed.crossed_means` gives it
    costs : `variant, pretraining_volumes, finetuning_volumes`, as `comparisons.costs` gives it
    """
    figure, axes = plt.subplots(figsize=(7, 4.6))
    smallest, taken = means[means["n_subjects"] == means["n_subjects"].min()].set_index("variant"), list[float]()
    for row in costs.to_dict("records"):
        if row["variant"] not in smallest.index or np.isnan(row["pretraining_volumes"]):
            continue
        own = smallest.loc[row["variant"]]
        colour, mark = STYLES[row["variant"]]
        seen = row["pretraining_volumes"] + row["finetuning_volumes"]
        alike = sum(0.9 < seen / other < 1.1 for other in taken)
        taken.append(seen)
        axes.errorbar(
            seen * 1.12**alike, own["mean"],
            [[own["mean"] - own["low"]], [own["high"] - own["mean"]]], color=colour, marker=mark, markersize=7,
            capsize=3, linestyle="", label=VARIANTS[row["variant"]].title,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("volumes seen in all its trainings")
    n = int(means["n_subjects"].min())
    value_axis(axes, measure, f"{measure.title} with {n} to train on")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def condition_dots(tests: pd.DataFrame, titles: Mapping[str, str], measure: Measure = ACCURACY) -> Figure:
    """What other conditions change in each decoder, one panel per condition, with 95% intervals; filled where shown.

    Parameters
    ----------
    tests : `variant, change, difference, low, high, differ`, as `statistics.compare_changes` gives it
    titles : change → its title
    """
    groups = {str(change): own for change, own in tests.groupby("change", sort=False)}
    heights = [1 + 0.3 * len(own) for own in groups.values()]
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(7, sum(heights)), height_ratios=heights, squeeze=False, sharex=True
    )
    for axes, (change, own) in zip(panels.flat, groups.items(), strict=True):
        for position, row in enumerate(own.to_dict("records")):
            colour, mark = STYLES.get(row["variant"], (INK, "o"))
            axes.errorbar(
                row["difference"], position,
                xerr=[[row["difference"] - row["low"]], [row["high"] - row["difference"]]], color=colour, marker=mark,
                markerfacecolor=colour if row["differ"] else "white", markersize=7, capsize=3, linestyle="",
            )  # fmt: skip
        axes.axvline(0, **CHANCE)
        axes.set_yticks(range(len(own)), [VARIANTS[v].title for v in own["variant"]], fontsize=9)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_title(titles[change])
    difference_axis(panels[-1, 0].xaxis, measure)
    return figure


def similarity_map(similar: pd.DataFrame) -> Figure:
    """Linear CKA between the encoders of all ways, averaged over seeds; on the diagonal between seeds of one way.

    Parameters
    ----------
    similar : `a, seed_a, b, seed_b, cka`, as `comparisons.similarity` gives it
    """
    same, identical = similar["a"] == similar["b"], similar["cka"] > 1 - 1e-6  # seeds of published weights are
    others = similar[~same | ((similar["seed_a"] != similar["seed_b"]) & ~identical)]
    variants = list(dict.fromkeys(similar["a"]))
    values = others.groupby(["a", "b"])["cka"].mean().unstack().reindex(index=variants, columns=variants)
    titles = [ROUTES[VARIANTS[v].route].title if VARIANTS[v].start != "random" else "random weights" for v in variants]
    figure, axes = plt.subplots(figsize=(2.6 + 0.75 * len(variants), 1.8 + 0.65 * len(variants)))
    sns.heatmap(
        values, annot=True, fmt=".2f", cmap="cividis", vmin=0, vmax=1, square=True, ax=axes,
        cbar_kws={"label": "linear CKA"}, xticklabels=titles, yticklabels=titles,
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    return figure
