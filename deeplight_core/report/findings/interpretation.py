"""Sentences and tables of the page on relevance."""

import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.report.findings.cells import listed, number, table

__all__ = [
    "asked_note",
    "conservation_table",
    "localisation_note",
    "localisation_table",
    "places_table",
    "randomised_note",
]

_TITLES = {"mass": "relevance mass", "rank": "rank accuracy", "pointing": "pointing game", "auc": "AUC"}


def asked_note(n_right: int, n: int, n_subjects: int) -> str:
    """Which examples are explained."""
    if not n_right:
        return f"The decoder answers none of {n} held-out volumes correctly, so there is nothing to explain."
    return (
        f"Of {n} volumes, evenly spaced over {n_subjects} held-out subjects and the states, the {n_right} that the "
        "decoder answers correctly are explained."
    )


def conservation_table(found: pd.DataFrame) -> Styler | None:
    """Where logits went, from `explanations.conservation`."""
    if found.empty:
        return None
    columns = {"": list(found["way"])}
    for name in ("logit", "voxels", "outside", "biases", "stabiliser"):
        columns[name] = [f"{value:.3g}" for value in found[name]]
    return table({**columns, "missing, at most": [f"{value:.1e}" for value in found["missing"]]})


def localisation_table(scores: pd.DataFrame) -> Styler | None:
    """Mean over states of every measure, one row per way."""
    if scores.empty:
        return None
    means = scores.groupby("way", sort=False)[list(_TITLES)].mean()
    columns = {title: [number(value, ".2f") for value in means[name]] for name, title in _TITLES.items()}
    return table({"": list(means.index), **columns})


def localisation_note(scores: pd.DataFrame) -> str:
    """Which way finds the planted places best by each measure, and whether a simple map does."""
    if scores.empty:
        return ""
    means = scores.groupby("way", sort=False)[list(_TITLES)].mean().round(2)  # as in the table
    best = {title: list(means.index[means[name] == means[name].max()]) for name, title in _TITLES.items()}
    alike = [title for title, ways in best.items() if len(ways) == len(means) > 1]
    told = [f"{listed(ways)} by {title}" for title, ways in best.items() if title not in alike]
    said = [f"Best are {listed(told)}."] * bool(told) + [f"All are alike by {listed(alike)}."] * bool(alike)
    simple = [title for title, ways in best.items() if {"t-map", "linear pattern"} & {*ways}]
    verdict = "No simple map, neither the t-map nor the linear pattern, is best by any measure."
    if simple:
        verdict = f"By {listed(simple)} a simple map, which needs no network, is at least as good as relevance."
    fewest = int(scores["n_voxels"].min())
    least, most = scores["chance"].min(), scores["chance"].max()
    return (
        f"{' '.join(said)} {verdict} The smallest set of planted places has {fewest} voxel{'s' * (fewest != 1)}; by "
        f"chance relevance mass and rank accuracy would be {least:.3f} to {most:.3f}, and AUC 0.5."
    )


def randomised_note(found: pd.DataFrame | None) -> str:
    """What is left of the maps when weights are random; None: nothing was explained."""
    if found is None:
        return ""
    means = found.groupby("weights", sort=False)["r"].mean()
    told = listed([f"{value:.2f} ({weights})" for weights, value in means.items()])
    verdict = "the maps fall apart" if means.abs().max() < 0.5 else "the maps keep much of what they showed"
    return f"With random weights, {verdict}: the mean rank correlation with the trained decoder's maps is {told}."


def places_table(places: dict[str, pd.DataFrame], n: int = 3) -> Styler | None:
    """The n largest places of every state's map, with MNI coordinates in mm."""
    rows = [(state, row) for state, table_ in places.items() for row in table_.head(n).to_dict("records")]
    if not rows:
        return None
    columns = {"state": [state for state, _ in rows]}
    columns |= {axis: [f"{row[axis]:.0f}" for _, row in rows] for axis in ("x", "y", "z")}
    columns["relevance"] = [f"{row['value']:.3f}" for _, row in rows]
    columns["volume (cm³)"] = [f"{row['volume_mm3'] / 1000:.1f}" for _, row in rows]
    columns["near"] = [f"{row['near']} ({row['near_mm']:.0f} mm)" for _, row in rows]
    return table(columns)
