"""Temporal contrast: what it learnt, whether a shortcut explains it, and the claims of Shi et al. (2023)."""

from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.scores import constant_answer
from deeplight_core.config import Profile
from deeplight_core.models.contrast import Quality
from deeplight_core.report.findings.cells import change, counted, interval, listed, short_title, table
from deeplight_core.routes import VARIANTS

__all__ = [
    "beside_whole_brain",
    "beyond_shortcut",
    "contrast_gains",
    "contrast_gains_note",
    "contrast_gains_table",
    "contrast_speed",
    "convergence",
    "convergence_note",
    "convergence_table",
    "converges_earlier",
    "first_converged",
    "networks_note",
    "networks_table",
    "quality_note",
    "recalls_note",
    "recalls_table",
    "seen_note",
    "shortcut_note",
    "shortcuts_note",
    "shortcuts_table",
    "unprepared_note",
    "ways_table",
    "windows_note",
]

WAYS = {
    "learnt": "temporal contrast",
    "shortcut": "mean of all voxels and its slope, linear",
    "voxels": "similarity of mean volumes, nothing learnt",
}
CHANGES = {
    "": "as it is",
    "shortcut-order": "windows in random order",
    "shortcut-run": "beginnings from another run",
    "shortcut-drift": "drift left in",
    "random": "no contrast, random weights",
}
GAINS = (("contrast", "scratch"), ("contrast", "pretrained"), ("contrast-frozen", "random-frozen"))
TOLERANCE = 0.02  # a decoder has converged within this of its accuracy with the most subjects


def windows_note(profile: Profile, n_train: int, n_held_out: int, tr_s: float) -> str:
    """What an example of the contrast is, and how many there are."""
    example, head = profile.routes.contrast.example, profile.routes.contrast.head
    asked = example.in_frames(tr_s)
    gap = f", {example.gap_s:g} s apart" if example.gap_s else ", without a gap"
    told = "its own beginning" if head.negatives == "series" else "its own beginning and all windows of other series"
    how = f"temperature {head.temperature:g}" if head.margin is None else f"margin {head.margin:g}"
    return (
        f"A series is three windows of {asked['length'] * tr_s:.1f} s{gap}, and {counted(asked['encoded'], 'frame')} "
        f"of each are encoded. The end of a series is to be told from {told} ({how}). There are {n_train:,} series to "
        f"learn from and {n_held_out:,} of people who are held out. **The paper states none of these numbers; they are "
        "choices made here.**"
    )


def ways_table(scores: pd.DataFrame) -> Styler:
    """Share of series whose neighbour is found, by each way, with its 95% interval over held-out subjects.

    Parameters
    ----------
    scores : `way, subject, score`, as `contrasts.contrast_scores` gives it
    """
    rows = {}
    for way, title in WAYS.items():
        values = scores.loc[scores["way"] == way, "score"].to_numpy()
        rows[title] = interval(float(values.mean()), *statistics.t_interval(values, 0.95))
    return table({"the neighbour is found by": list(rows), "of held-out series": list(rows.values())})


def beyond_shortcut(scores: pd.DataFrame, way: str = "shortcut") -> tuple[float, float, float]:
    """Share of series that contrast finds beyond another way, with its 95% interval over held-out subjects."""
    wide = scores.pivot(index="subject", columns="way", values="score")
    beyond = (wide["learnt"] - wide[way]).to_numpy()
    return float(beyond.mean()), *statistics.t_interval(beyond, 0.95)


def shortcut_note(scores: pd.DataFrame) -> str:
    """Whether contrast finds more than the shortcut does, and than similarity does: chance is one half."""
    mean, low, high = beyond_shortcut(scores)
    plain = beyond_shortcut(scores, "voxels")
    said = f"Beyond the shortcut, contrast finds {interval(mean, low, high, '+.1%')} of all series; chance is 50%."
    if low > 0:
        said += " **It has learnt more than the runs' mean and slope.**"
    elif not np.isnan(low):
        said += " **It cannot be shown to have learnt more than the runs' mean and slope.**"
    said += f" Beyond the similarity of mean volumes it finds {interval(*plain, '+.1%')}"
    if plain[2] < 0:
        return f"{said}: **the windows as they are show their neighbours better than what was learnt.**"
    return f"{said}."


def seen_note(seen: dict[str, int]) -> str:
    """How many volumes each pre-training has seen.

    Parameters
    ----------
    seen : variant → number of volumes that its finished pre-training has encoded, with repetition
    """
    told = [f"{VARIANTS[variant].title} {n:,}" for variant, n in seen.items()]
    return f"Volumes encoded in pre-training, each as often as it was: {listed(told)}." if told else ""


def quality_note(found: Quality) -> str:
    """How the projections of held-out windows are spread, and whether they have collapsed."""
    said = (
        f"Neighbours' projections are {found.alignment:.2f} apart (mean squared distance; two random directions: 2). "
        f"Any two ends have a mean cosine of {found.cosine:.2f}; their projections use {found.dimensions:.1f} "
        f"dimensions; uniformity is {found.uniformity:.2f} (0: all at one point)."
    )
    return f"{said} **They have collapsed: all windows look the same.**" if found.collapsed else said


def contrast_speed(results: list[dict[str, Any]]) -> Styler | None:
    """A step of temporal contrast beside a supervised one, per encoded volume; None if unmeasured.

    Parameters
    ----------
    results : of `benchmarks/contrast.py`, one for each machine
    """
    rows = [
        {
            "device": result["device"], "grid": " × ".join(map(str, grid["shape"])),
            "supervised, ms per volume": f"{grid['median_ms_per_volume']['supervised']:.2f}",
            "contrast, ms per volume": f"{grid['median_ms_per_volume']['contrast']:.2f}",
            "ratio": f"{grid['contrast_to_supervised']:.2f}",
        }
        for result in results for grid in result["grids"]
    ]  # fmt: skip
    return table({title: [row[title] for row in rows] for title in rows[0]}) if rows else None


def convergence(results: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """From how many subjects on each decoder of the sweep converges.

    Converged is defined beforehand: the interval of its accuracy lies above that of the best constant answer, and the
    accuracy is within two points of the same decoder's with the most subjects.

    Parameters
    ----------
    results : of one measure and level, as `statistics.only` takes them
    rows : `task, state, unit` of the held-out volumes, for the best constant answer

    Returns
    -------
    `variant, n_subjects, mean, low, high, converged`, a row for each size; `constant`: the best constant answer. No
    rows without results
    """
    if results.empty:
        return pd.DataFrame(columns=["variant", "n_subjects", "mean", "low", "high", "converged", "constant"])
    constant = constant_answer(rows)
    table = statistics.mean_intervals(results)
    most = table.loc[table.groupby("variant")["n_subjects"].idxmax()].set_index("variant")["mean"]
    near = table["mean"] >= table["variant"].map(most) - TOLERANCE
    converged = (table["low"] > constant) & near
    columns = ["variant", "n_subjects", "mean", "low", "high"]
    return table[columns].assign(converged=converged, constant=constant)


def first_converged(found: pd.DataFrame) -> dict[str, float]:
    """Variant → the smallest number of units with which it converges; infinite if there is none."""
    first = found[found["converged"].astype(bool)].groupby("variant")["n_subjects"].min()
    return {v: float(first.get(v, np.inf)) for v in VARIANTS if v in set(found["variant"])}


def converges_earlier(found: pd.DataFrame) -> bool | None:
    """Whether contrast converges with fewer units than scratch.

    None if one of them is missing at a size, or has no interval.
    """
    both = found[found["variant"].isin(["contrast", "scratch"])]
    if both.empty or (both.groupby("n_subjects")["variant"].nunique() < 2).any() or both["low"].isna().any():
        return None
    first = first_converged(both)
    return first["contrast"] < first["scratch"]


def convergence_table(found: pd.DataFrame, unit: str = "subject") -> Styler:
    """Accuracy of each decoder (rows) by the number of units (columns); ✓ where it has converged."""
    order = [variant for variant in VARIANTS if variant in set(found["variant"])]
    columns: dict[str, list[Any]] = {"decoder": [short_title(variant) for variant in order]}
    for n in sorted(found["n_subjects"].unique()):
        of_size = found[found["n_subjects"] == n].set_index("variant")
        columns[counted(n, unit)] = [
            f"{of_size.at[v, 'mean']:.1%}{' ✓' if of_size.at[v, 'converged'] else ''}" if v in of_size.index else "–"
            for v in order
        ]
    return table(columns)


def convergence_note(found: pd.DataFrame, unit: str = "subject") -> str:
    """The paper's claim beside this run: from how many units on a decoder converges."""
    if found.empty:
        return "No decoder has been trained yet."
    most, first = int(found["n_subjects"].max()), first_converged(found)
    told = []
    for n in sorted(set(first.values())):
        size = f"only with all {most}" if n == most else f"with {counted(n, unit)}" if np.isfinite(n) else "never"
        told.append(f"{size}: {listed([short_title(variant) for variant in first if first[variant] == n])}")
    verdicts = {True: " **The claim holds here.**", False: " **The claim does not hold here.**", None: ""}
    verdict = verdicts[converges_earlier(found)]
    return (
        f"The best constant answer is right for {found['constant'].iloc[0]:.1%}. Decoders converge "
        f"{'; '.join(told)}. With all, every decoder that is better than a constant answer has converged by "
        "definition. In the paper, the decoder pre-trained by contrast converges with 12 subjects and the one from "
        f"scratch with 100.{verdict}"
    )


def contrast_gains(results: pd.DataFrame) -> pd.DataFrame:
    """What contrast adds to no pre-training, to supervised pre-training, and to random features, at every size.

    Parameters
    ----------
    results : of one measure and level, as `statistics.only` takes them

    Returns
    -------
    `a, b` (variants) and the columns of `statistics.compare`, corrected over the whole table
    """
    pairs = [pair for pair in GAINS if len(results) and set(pair) <= set(results["variant"])]
    if not pairs:
        return pd.DataFrame(columns=["a", "b"])
    n_tests = len(pairs) * results["fraction"].nunique()
    tests = [statistics.compare(results, a, b, n_tests=n_tests).assign(a=a, b=b) for a, b in pairs]
    return pd.concat(tests, ignore_index=True)


def contrast_gains_table(gains: pd.DataFrame, unit: str = "subject") -> Styler | None:
    """Differences of `contrast_gains` by the number of units, with intervals; None without any."""
    if gains.empty:
        return None
    cells = gains.assign(cell=[f"{change(r)}{' ★' if r['significant'] else ''}" for r in gains.to_dict("records")])
    wide = cells.pivot(index=["a", "b"], columns="n_subjects", values="cell").fillna("–")
    wide = wide.loc[[pair for pair in GAINS if pair in wide.index]]
    titles = [f"{short_title(a)} − {short_title(b)}" for a, b in wide.index]
    columns = {counted(n, unit): wide[n].tolist() for n in sorted(gains["n_subjects"].unique())}
    return table({"difference": titles, **columns}, wrapped=True)


def contrast_gains_note(gains: pd.DataFrame) -> str:
    """At how many sizes contrast is significantly better or worse than each decoder beside it; empty without any."""
    told = []
    for a, b in dict.fromkeys(zip(gains["a"], gains["b"], strict=True)):
        own = gains[(gains["a"] == a) & (gains["b"] == b)]
        better, worse = (int((own["significant"] & (own["better"] == ahead)).sum()) for ahead in (True, False))
        n = counted(len(own), "size")
        told.append(f"{short_title(a)} against {short_title(b)}: better at {better} of {n}, worse at {worse}")
    if not told:
        return ""
    return f"Significant differences (★; over held-out subjects, Bonferroni over the table): {'; '.join(told)}."


def unprepared_note(profile: Profile, found: pd.DataFrame, tests: pd.DataFrame) -> str:
    """The paper's claim on data as a scanner gives them, beside this run.

    Parameters
    ----------
    profile : of the transfer
    found : as `convergence` gives it, for the largest size
    tests : `statistics.compare` of the decoders pre-trained by contrast and from scratch, one row
    """
    assert profile.simulation is not None
    assert profile.simulation.scanner is not None
    scanner, own = profile.simulation.scanner, found.set_index("variant")
    spans = own[["mean", "low", "high"]].astype(float)
    told = [f"{VARIANTS[v].title} {interval(*spans.loc[v])}" for v in VARIANTS if v in own.index]
    above = [bool(own.at[v, "converged"]) for v in ("contrast", "scratch")]
    test = tests.iloc[0]
    verdict = "holds here" if above == [True, False] and test["low"] > 0 else "does not hold here"
    return (
        f"Heads lie {scanner.pose_mm:g} mm and {scanner.pose_deg:g}° (SD) apart, move by {scanner.motion_mm:g} mm "
        f"within a run, and drift is {scanner.drift:g} times as strong; runs are neither smoothed nor filtered. With "
        f"{own['n_subjects'].iloc[0]} people to train on: {listed(told)}; constant answers are right for at most "
        f"{own['constant'].iloc[0]:.1%}. Contrast and scratch differ by "
        f"{interval(test['difference'], test['low'], test['high'], '+.1%')}. In the paper the decoder pre-trained by "
        "contrast reaches 80.2 ± 4.7% with 30 people and the one from scratch does not converge: in the terms of this "
        "page, the first is better than a constant answer and than the second, which is no better than a constant "
        f"answer. **That claim {verdict}.** Real raw runs go through the same "
        "commands (profile `haxby-slice`); they are of one person and cannot test it."
    )


def recalls_table(tests: dict[str, pd.DataFrame]) -> Styler:
    """Share of each task's volumes that each decoder recognises; ✓ where it is above chance, corrected.

    Parameters
    ----------
    tests : variant → `statistics.recalled`
    """
    order = [variant for variant in VARIANTS if variant in tests]
    states = tests[order[0]]["state"]
    columns: dict[str, list[Any]] = {"task": list(states)}
    for variant in order:
        own = tests[variant].set_index("state").loc[states]
        columns[VARIANTS[variant].title] = [
            f"{mean:.1%}{' ✓' if above else ''}" for mean, above in zip(own["mean"], own["above"], strict=True)
        ]
    return table(columns, wrapped=True)


def recalls_note(tests: dict[str, pd.DataFrame]) -> str:
    """How many tasks each decoder classifies: recall above chance, corrected over tasks."""
    order = [variant for variant in VARIANTS if variant in tests]
    n = len(tests[order[0]])
    told = [f"{short_title(v)} {int(tests[v]['above'].sum())}" for v in order]
    return (
        f"*Classified* means recalled above chance (1 in {n}) by a one-sided t-test over held-out people, Holm over "
        f"tasks. Of {n} tasks, each decoder classifies: {listed(told)}. The paper's classifies 11 of 13."
    )


def networks_table(results: pd.DataFrame) -> Styler | None:
    """Accuracy of decoders of one network at a time (rows), best first, with intervals over held-out subjects.

    Parameters
    ----------
    results : of one measure and level, with a column `network`, empty for the whole brain
    """
    if results.empty:
        return None
    found: dict[tuple[str, str], str] = {}
    means: dict[str, float] = {}
    for names, group in results.groupby(["variant", "network"]):
        variant, network = map(str, names)
        values = group.groupby("subject")["score"].mean().to_numpy()
        found[variant, network] = interval(float(values.mean()), *statistics.t_interval(values, 0.95))
        means[network] = max(float(values.mean()), means.get(network, 0.0))
    variants = [variant for variant in VARIANTS if variant in set(results["variant"])]
    best = sorted(means, key=means.__getitem__, reverse=True)
    columns: dict[str, list[Any]] = {"input": [network or "whole brain" for network in best]}
    columns |= {VARIANTS[v].title: [found.get((v, network), "–") for network in best] for v in variants}
    return table(columns, wrapped=True)


def beside_whole_brain(results: pd.DataFrame) -> pd.DataFrame:
    """What decoders of single networks, pre-trained by contrast, reach beside that of the whole brain.

    Parameters
    ----------
    results : as for `networks_table`

    Returns
    -------
    a row per network, best first, with `mean, low, high`, and of the difference from the whole brain `difference,
    difference_low, difference_high` (95%); no rows without decoders to compare
    """
    own = results[results["variant"] == "contrast"]
    means = own.groupby(["network", "subject"])["score"].mean().unstack("subject")
    columns = ["mean", "low", "high", "difference", "difference_low", "difference_high"]
    if "" not in means.index or len(means) < 2:
        return pd.DataFrame(columns=columns)
    rows = {}
    for network, scores in means.drop(index="").iterrows():
        parts = scores.to_numpy(), (scores - means.loc[""]).to_numpy()
        rows[network] = [value for part in parts for value in (part.mean(), *statistics.t_interval(part, 0.95))]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("mean", ascending=False)


def networks_note(results: pd.DataFrame) -> str:
    """Which network is as good as the whole brain for the decoder pre-trained by contrast, and which is the worst."""
    beside = beside_whole_brain(results)
    if beside.empty:
        return "No decoder of a single network has been trained: `make controls PROFILE=contrast`."
    within = [str(network) for network in beside.index[beside["difference_high"] >= 0]]
    whole = f"the whole brain ({(beside['mean'] - beside['difference']).iloc[0]:.1%})"
    good = f"{listed(within)} cannot be told apart from {whole}" if within else f"none is as good as {whole}"
    best, worst = ((beside.index[i], f"{beside['mean'].iloc[i]:.1%}") for i in (0, -1))
    return (
        f"Of {len(beside)} networks, {good}; best is {best[0]} ({best[1]}), worst {worst[0]} ({worst[1]}). In the "
        "paper the visual network is as good as the whole brain, and the limbic one fails."
    )


def shortcuts_table(values: pd.DataFrame) -> Styler | None:
    """What contrast finds, and what a linear probe of its features finds, as it is and in each control.

    Parameters
    ----------
    values : `change, contrast, shortcut, probe`, means over held-out units
    """
    if values.empty:
        return None
    columns: dict[str, list[Any]] = {"contrast": [CHANGES[change] for change in values["change"]]}
    titles = {"contrast": "neighbours found", "shortcut": "by the shortcut", "probe": "linear probe of the target"}
    for column, title in titles.items():
        columns[title] = [f"{value:.1%}" if np.isfinite(value) else "–" for value in values[column]]
    return table(columns, wrapped=True)


def shortcuts_note(values: pd.DataFrame) -> str:
    """What the controls say; they differ from the route in one thing each."""
    own = {row["change"]: row for row in values.to_dict("records")}
    untrained = own.pop("random", None)
    if len(own) < 2:
        return "The controls of temporal contrast have not been run: `make controls PROFILE=contrast`."
    said = []
    if "shortcut-order" in own:
        share = own["shortcut-order"]["contrast"]
        said.append(f"With windows in random order there is nothing to find, and {share:.1%} are found (chance 50%).")
    if "shortcut-drift" in own:
        drift = own["shortcut-drift"]
        said.append(
            f"With drift left in, the shortcut alone finds {drift['shortcut']:.1%}, and contrast "
            f"{drift['contrast']:.1%}."
        )
    best = max(own.values(), key=lambda row: row["probe"])
    beside = f"; from random weights it decodes {untrained['probe']:.1%}" if untrained else ""
    said.append(f"The probe decodes best from this encoder: *{CHANGES[best['change']]}* ({best['probe']:.1%}){beside}.")
    return " ".join(said)
