"""Was the comparison fair? Sentences and tables on training length, learning rates and pre-training data."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis.statistics import t_interval
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import counted, interval, listed
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import LONGER

__all__ = [
    "best_rates",
    "gain_note",
    "gain_table",
    "length_note",
    "length_table",
    "pace_note",
    "rates_note",
    "rates_table",
    "transfer_gain",
]

TOLERANCE = 0.02  # a cell may change by less than this with three times the steps


def _by_length(results: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of every variant and fraction (rows), as planned and with more steps (columns)."""
    chosen = results[results["change"].isin(["", f"x{LONGER}"])]
    means = chosen.groupby(["variant", "fraction", "n_subjects", "change"])["score"].mean().unstack("change")
    return means.reindex(columns=["", f"x{LONGER}"]).dropna().set_axis(["planned", "longer"], axis=1)


def length_table(results: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """Scores as planned, with three times the steps, and their difference; a row for each fraction and variant."""
    means = _by_length(results)
    if means.empty:
        return None
    table = pd.DataFrame(
        {
            "decoder": [VARIANTS[variant].title for variant, _, _ in means.index],
            f"{unit}s": [f"{n} ({100 * fraction:g}%)" for _, fraction, n in means.index],
            "as planned": means["planned"].to_numpy(),
            f"{LONGER} times the steps": means["longer"].to_numpy(),
            "difference": (means["longer"] - means["planned"]).to_numpy(),
        }
    )
    shares: dict[Any, Any] = {"as planned": "{:.1%}", f"{LONGER} times the steps": "{:.1%}", "difference": "{:+.1%}"}
    return table.style.format(shares).hide(axis="index")


def length_note(results: pd.DataFrame, repeated: pd.DataFrame | None = None) -> str:
    """Whether three times the steps change a cell of the table by two points or more, and each decoder on average.

    One cell also changes by chance, as from seed to seed; the average over fractions tells whether steps were missing.

    Parameters
    ----------
    results : scores as planned and with more steps
    repeated : scores of trainings with several seeds, which tell how much a cell changes by chance
    """
    means = _by_length(results)
    if means.empty:
        return "No decoder has been trained for longer yet."
    table = means.assign(change=means["longer"] - means["planned"]).reset_index()
    said = f"With {LONGER} times the steps, {len(table)} cells change by {table['change'].abs().mean():.1%} on average"
    over = table[table["change"].abs() >= TOLERANCE].to_dict("records")
    named = ", ".join(f"{VARIANTS[r['variant']].title} with {r['n_subjects']} ({r['change']:+.1%})" for r in over)
    said += f"; by {TOLERANCE:.0%} or more: {named or 'none'}."
    if over and repeated is not None and len(apart := _between_seeds(repeated)):
        share = (apart >= TOLERANCE).mean()
        said += f" Chance alone does so: {share:.0%} of pairs that differ only in the seed are as far apart."
    averages = [
        f"{VARIANTS[str(variant)].title} by {interval(own.mean(), *t_interval(own.to_numpy(), 0.95), '+.1%')}"
        for variant, own in table.groupby("variant")["change"]
        if len(own) > 1
    ]
    if averages:
        said += f" Averaged over fractions (95% interval over them): {listed(averages)}."
    if {"pretrained", "scratch"} <= set(table["variant"]):
        of = means.unstack("variant")
        gains = {c: of[c]["pretrained"] - of[c]["scratch"] for c in ("planned", "longer")}
        gain = pd.DataFrame(gains).dropna()  # fractions where all four are there
        if len(gain):
            planned, longer = gain["planned"].mean(), gain["longer"].mean()
            said += f" The gain from pre-training, averaged over fractions, goes from {planned:+.1%} to {longer:+.1%}"
            change = (gain["longer"] - gain["planned"]).to_numpy()
            if len(gain) > 1:
                said += f", a change of {interval(change.mean(), *t_interval(change, 0.95), '+.1%')}"
            said += "."
    return said


def _between_seeds(results: pd.DataFrame) -> np.ndarray:
    """How far the mean scores of two seeds are apart, for all pairs of seeds of a variant and fraction."""
    means = results[results["change"] == ""].groupby(["variant", "fraction", "seed"])["score"].mean()
    cells = means.groupby(["variant", "fraction"])
    return np.array([abs(a - b) for _, cell in cells for a, b in combinations(cell, 2)])


def pace_note(curves: pd.DataFrame) -> str:
    """Steps until each decoder is within two points of its best, at a constant learning rate.

    Parameters
    ----------
    curves : `variant, fraction, step, split, subject, score`
    """
    held_out = curves[curves["split"] == "validation"]
    said = []
    for (fraction, variant), group in held_out.groupby(["fraction", "variant"]):
        mean = group.groupby("step")["score"].mean()
        there = mean.index[mean >= mean.max() - TOLERANCE][0]
        said.append(f"{VARIANTS[str(variant)].title} on {100 * float(str(fraction)):g}%: {there:,} ({mean.max():.1%})")
    if not said:
        return "No decoder has been trained at a constant learning rate yet."
    return f"Steps until a decoder is within {TOLERANCE:.0%} of its best (in brackets): " + "; ".join(said) + "."


def _by_rate(results: pd.DataFrame) -> pd.DataFrame:
    """Mean score of every variant (rows) at every learning rate (columns) that has all fractions and seeds.

    Variants with a single rate are left out: nothing is to be compared.
    """
    rates = results["change"].str.extract(r"people-rate([\d.e+-]+?)(?:-clips)?$")[0].astype(float)
    means = results.assign(rate=rates).groupby(["variant", "rate", "seed", "fraction"])["score"].mean()
    table = means.unstack(["seed", "fraction"]).dropna().mean(axis=1).unstack("rate").dropna(thresh=2)
    return table.loc[[variant for variant in VARIANTS if variant in table.index]]


def best_rates(results: pd.DataFrame) -> dict[str, float]:
    """Variant → the learning rate with the highest mean score, on the people simulated for this choice."""
    return {str(variant): float(rate) for variant, rate in _by_rate(results).idxmax(axis=1).items()}


def rates_table(results: pd.DataFrame, form: str = "{:.1%}") -> Styler | None:
    """Mean score of every variant at every learning rate; the best one in bold."""
    table = _by_rate(results)
    if table.empty:
        return None
    table.index = pd.Index([VARIANTS[variant].title for variant in table.index])
    table.columns = pd.Index([f"{rate:g}" for rate in table.columns])
    return table.style.format(form, na_rep="–").highlight_max(axis=1, props="font-weight: bold")


def rates_note(profile: Profile, results: pd.DataFrame) -> str:
    """Which learning rate suits which variant, and whether the profile uses it."""
    means = _by_rate(results)
    if means.empty:
        return "No learning rates have been tried yet."
    best = best_rates(results)
    used = {variant: profile.finetuning.of(variant).learning_rate for variant in best}
    named = "; ".join(f"{VARIANTS[variant].title}: {rate:g}" for variant, rate in best.items())
    other = [
        f"{VARIANTS[variant].title} ({used[variant]:g}{_lower(means.T[variant], used[variant])})"
        for variant in best
        if used[variant] != best[variant]
    ]
    said = f"**The profile uses others** for {', '.join(other)}." if other else "The profile uses these."
    tried = means.columns.astype(float)
    at_edge = [v for v, rate in best.items() if rate in (tried.min(), tried.max())]
    edge = f" At the edge of the grid: {', '.join(VARIANTS[v].title for v in at_edge)}." if at_edge else ""
    return f"Best learning rates: {named}. {said}{edge}"


def _lower(means: pd.Series, rate: float) -> str:
    """How far a learning rate's mean score is from the best one's, or that it has not been tried with all sizes."""
    if rate not in means.dropna().index:
        return ", not tried yet"
    return f", whose score is {means.max() - means[rate]:.3f} lower"


def transfer_gain(results: pd.DataFrame) -> pd.DataFrame:
    """Gain from pre-training, by contrast, number of pre-training units and fraction.

    Parameters
    ----------
    results : of the control `gain`, with `change` naming contrast and number

    Returns
    -------
    `contrast, n_pretraining, fraction, n_subjects, subject, gain`, a row for each held-out subject
    """
    names = results["change"].str.extract(r"contrast(?P<contrast>[\d.e+-]+?)(?:-n(?P<n_pretraining>\d+))?$")
    table = results.assign(contrast=names["contrast"].astype(float), n_pretraining=names["n_pretraining"].astype(float))
    keys = ["contrast", "fraction", "n_subjects", "subject"]
    scores = table.groupby(["variant", "n_pretraining", *keys], dropna=False)["score"].mean().reset_index()
    both = scores[scores["variant"] == "pretrained"].merge(scores[scores["variant"] == "scratch"], on=keys)
    both = both.assign(gain=both["score_x"] - both["score_y"], n_pretraining=both["n_pretraining_x"].astype(int))
    return both[["contrast", "n_pretraining", "fraction", "n_subjects", "subject", "gain"]]


def gain_table(results: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """Mean score of every decoder, dataset and number of pre-training units (rows) by the size of the target's data."""
    if results.empty:
        return None
    names = results["change"].str.extract(r"contrast(?P<contrast>[\d.e+-]+?)(?:-n(?P<n>\d+))?$").fillna("–")
    rows = {
        "contrast": names["contrast"] + "%",
        f"{unit}s pre-trained on": names["n"],
        "decoder": results["variant"].map({name: variant.title for name, variant in VARIANTS.items()}),
    }
    sizes = results["n_subjects"].map("on {:,}".format)
    table = results.assign(**rows, size=sizes).groupby([*rows, "size"], sort=False)["score"].mean().unstack("size")
    shown = table.rename_axis(columns=None).reset_index()
    return shown.style.format("{:.1%}", subset=list(table.columns)).hide(axis="index")


def gain_note(gain: pd.DataFrame, unit: str = "subject") -> str:
    """Where pre-training helps most and least, and in how many cases it harms.

    Parameters
    ----------
    gain : of `transfer_gain`
    """
    if gain.empty:
        return "No training of this control has been run yet."
    means = gain.groupby(["contrast", "n_pretraining", "n_subjects"])["gain"].mean().reset_index()
    rows = means.sort_values("gain").to_dict("records")
    least, most = rows[0], rows[-1]
    told = [
        f"{counted(row['n_pretraining'], unit)} to pre-train on, {row['n_subjects']} to fine-tune on and a contrast of "
        f"{row['contrast']:g}% ({row['gain']:+.1%})"
        for row in (most, least)
    ]
    harmed = int((means["gain"] < 0).sum())
    below = f"it is below zero in {harmed} of {len(means)} cases"
    return f"The gain is largest with {told[0]} and smallest with {told[1]}; {below}."
