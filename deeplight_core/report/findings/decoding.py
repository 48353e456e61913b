"""Sentences and tables of the page about the sweep: does pre-training help?"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis import statistics
from deeplight_core.analysis.scores import common_steps
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import (
    change,
    counted,
    interval,
    listed,
    number,
    short_title,
    sizes,
    span,
    starred,
    table,
)
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import planned

__all__ = [
    "answers_note",
    "difference_note",
    "effects_table",
    "fold_note",
    "fold_tests",
    "headline",
    "linear_note",
    "linear_tests",
    "make_command",
    "means_table",
    "missing_note",
    "not_learnt_note",
    "planned_tests",
    "saved_note",
    "steps_note",
    "tests_note",
    "tests_table",
]


_DATA = {"haxby": "haxby2001-vt", "haxby-slice": "haxby2001-slice", "paper": "hcp"}
_NAMED = 10  # missing trainings that a page names
_LEARNT = 0.05  # above chance on its own training data, a decoder has learnt something
_DEEP = {"pretrained": "the pre-trained decoder", "scratch": "the one from scratch"}


def make_command(target: str, profile: str) -> str:
    """The command that makes a profile's pages."""
    data = f" DATA=/path/to/{_DATA[profile]}" if profile in _DATA else ""
    return f"make {target} PROFILE={profile}{data}"


def missing_note(profile: Profile, name: str, missing: list[str]) -> str:
    """One line of Markdown: how many trainings a page has, which are missing, and how to run them."""
    n = len(planned(profile, name))
    if not missing:
        return f"All {n} trainings needed here have been run." if n else "This profile has none of these trainings."
    own = profile.part if profile.part in ("contrast", "images", "comparison", "patients") else "reproduce"
    targets = {"sweep": own, "gain": "gain", "published": "comparison-as-published"}
    command = make_command(targets.get(name, "controls"), profile.name)
    named = ", ".join(f"`{m}`" for m in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    others = "; the page shows the others" if len(missing) < n else ""
    return (
        f"**{len(missing)} of the {n} trainings needed here {'has' if len(missing) == 1 else 'have'} not been run**"
        f"{others}. `{command}` runs the missing ones: {named}{more}. Decoders are compared over their common seeds."
    )


def fold_note(profile: Profile, comparison: pd.DataFrame) -> str:
    """Cross-validation of pre-training: a sentence for each fraction, and a caution about the other tests.

    Parameters
    ----------
    comparison : of `fold_tests`
    """
    unit = profile.data.split_unit
    said = [
        f"- {counted(row['n_subjects'], unit)} ({100 * row['fraction']:g}%): {change(row)}, "
        + (
            "no variance, no test"
            if np.isnan(row["t"])
            else f"t({row['dof']:g}) = {row['t']:.2f}, p = {row['p']:.2g} (Bonferroni {row['p_bonferroni']:.2g})"
        )
        for row in comparison.to_dict("records")
    ]
    lines = "\n".join(said)
    return (
        f"**Cross-validated**: {profile.sweep.folds} folds of the {unit}s, drawn "
        f"{counted(profile.sweep.repeats, 'time')}. "
        "Pre-trained against from scratch, with the corrected resampled t-test (Nadeau & Bengio 2003) over folds:\n\n"
        f"{lines}\n\nThe figures and tests below take each {unit}'s score from the fold that held it out. They count "
        f"{unit}s, whose decoders share training data, so their intervals are too narrow: trust the list above."
    )


def planned_tests(profile: Profile, results: pd.DataFrame) -> pd.DataFrame:
    """Pre-trained against from scratch (`statistics.compare`), corrected for all fractions that the sweep plans.

    Empty if no fraction has both decoders.
    """
    if not {"pretrained", "scratch"} <= set(results["variant"]):
        return pd.DataFrame()
    return statistics.compare(results, n_tests=len(profile.sweep.fractions))


def fold_tests(profile: Profile, volumes: pd.DataFrame) -> pd.DataFrame | None:
    """Pre-trained against from scratch over folds (`statistics.compare_folds`), corrected as `planned_tests`.

    None where the sweep is not cross-validated, or no fold has both decoders.
    """
    if not profile.sweep.folds or volumes.empty:
        return None
    shared = statistics.shared_folds(volumes)
    shared = shared[shared["variant"].isin(_DEEP)]
    both = shared.groupby(["fraction", "seed"])["variant"].transform("nunique") == len(_DEEP)
    if not both.any():
        return None
    tests = statistics.compare_folds(shared[both], n_tests=len(profile.sweep.fractions))
    return tests.assign(significant=tests["p_bonferroni"] < 0.05)


def headline(profile: Profile, tests: pd.DataFrame, folds: pd.DataFrame | None = None) -> str:
    """The result in a few sentences: both ends of the sweep, and at how many fractions the difference is significant.

    Parameters
    ----------
    tests : of `planned_tests`
    folds : of `fold_tests`, which judges where there are folds
    """
    if tests.empty and "pretrained" not in profile.sweep.variants:
        return (
            f"{profile.provenance} The sweep has no pre-trained decoder, as a study without a source has none; the "
            "parts on the difference, its statistics and what pre-training is worth stay empty."
        )
    if tests.empty:
        return f"{profile.provenance} Pre-trained and from scratch cannot be compared yet: no fraction has both."
    judged = tests if folds is None else folds
    small, large, of = tests.iloc[0], tests.iloc[-1], judged.iloc[0]
    within = f", 95% interval {of['low']:+.1%} to {of['high']:+.1%}"
    return (
        f"{profile.provenance} Trained on {counted(small['n_subjects'], profile.data.split_unit)}, the pre-trained "
        f"decoder is right for **{small['mean_a']:.1%}** of the held-out volumes, the one from scratch for "
        f"**{small['mean_b']:.1%}** (difference {of['difference']:+.1%}{'' if np.isnan(of['low']) else within}); "
        f"on {large['n_subjects']:.0f}: {large['mean_a']:.1%} and {large['mean_b']:.1%}. "
        f"{_verdict(judged)} Chance is {1 / len(profile.data.states('target')):.0%}."
    )


def _verdict(tests: pd.DataFrame) -> str:
    clear = tests.loc[tests["significant"], "difference"]
    up, down = (clear > 0).sum(), (clear < 0).sum()
    said = (
        f"Pre-training changes accuracy significantly at {len(clear)} of {len(tests)} fractions ({up} up, {down} down)."
    )
    return said if up else f"{said} **No benefit of transfer can be shown here.**"


def linear_tests(profile: Profile, results: pd.DataFrame) -> pd.DataFrame:
    """Both DeepLight decoders against every linear model of a table, Bonferroni over all of its comparisons.

    Returns
    -------
    `decoder, baseline` (variants); `n`, the number of fractions that both have; the numbers of those at which the
    decoder is significantly `better` or `worse`; its `lead` and `lag` (the largest and the smallest difference)
    """
    linear = [v for v in VARIANTS if VARIANTS[v].learner != "deep" and v in set(results["variant"])]
    n_tests = 2 * len(linear) * len(profile.sweep.fractions)
    rows = []
    for decoder, baseline in ((d, b) for d in _DEEP if d in set(results["variant"]) for b in linear):
        test = statistics.compare(results, decoder, baseline, n_tests=n_tests)
        clear = test.loc[test["significant"], "difference"]
        lead, lag = test["difference"].max(), test["difference"].min()
        rows.append((decoder, baseline, len(test), int((clear > 0).sum()), int((clear < 0).sum()), lead, lag))
    return pd.DataFrame(rows, columns=["decoder", "baseline", "n", "better", "worse", "lead", "lag"])


def linear_note(tests: pd.DataFrame, details: bool = True) -> str:
    """How the decoders compare with each linear model (of `linear_tests`), and where `details` are; empty without."""
    said = []
    for baseline, rows in tests.groupby("baseline", sort=False):
        each = [
            f"{_DEEP[r['decoder']]} is significantly better at {r['better']} and worse at {r['worse']} of {r['n']} "
            "fractions"
            for r in rows.to_dict("records")
        ]
        said.append(f"Against {VARIANTS[str(baseline)].title} on the same volumes, {'; '.join(each)}.")
    where = ["The page *Linear baselines* has the details."] if said and details else []
    return " ".join([*said, *where])


def not_learnt_note(profile: Profile, curves: pd.DataFrame, conditions: Mapping[str, str] | None = None) -> str:
    """Which decoders ended at chance on their own training data, so that little can be said of them; "" if none did.

    Parameters
    ----------
    curves : of `collect.sweep_curves`; decoders of numbers have no chance, and none is named
    conditions : titles of changes of settings, by name
    """
    states, titles = profile.data.states("target"), conditions or {}
    if not states:
        return ""
    own, bound = ["variant", "n_subjects", "change"], 1 / len(states) + _LEARNT
    ends = curves["step"] == curves.groupby("training")["step"].transform("max")
    trained = curves[ends & (curves["split"] == "train")]
    last = trained.groupby([*own, "training"], sort=False, as_index=False, dropna=False)["score"].mean()
    said = [
        f"{(of['score'] < bound).sum()} of {counted(len(of), 'training')} {short_title(str(variant))} on "
        f"{counted(of['n_subjects'].iloc[0], profile.data.split_unit)}"
        f"{f' ({titles[str(name)]})' if name in titles else ''}"
        for (variant, _, name), of in last.groupby(own, sort=False, dropna=False)  # "" is NaN in a file
        if (of["score"] < bound).any()
    ]
    if not said:
        return ""
    return (
        f"**Not learnt:** {'; '.join(said)} ended with less than {bound:.0%} right on the data that they were trained "
        "on. They had learnt nothing when they stopped, because of their learning rate, their number of steps or their "
        "data; a comparison with them says little."
    )


def steps_note(profile: Profile, metrics: pd.DataFrame) -> str:
    """Steps until each decoder is halfway from chance to its last accuracy, at the smallest and largest fraction.

    Parameters
    ----------
    metrics : of `collect.sweep_curves`
    """
    held_out = common_steps(metrics[(metrics["split"] == "validation") & metrics["variant"].isin(_DEEP)])
    curves = held_out.groupby(["fraction", "variant", "step"])["score"].mean()
    both = held_out.groupby("fraction")["variant"].nunique()
    fractions = both.index[both == len(_DEEP)]
    chance = 1 / len(profile.data.states("target"))
    said = []
    for fraction in dict.fromkeys(fractions[[0, -1]] if len(fractions) else []):
        each = []
        for variant, name in _DEEP.items():
            curve = curves.loc[fraction, variant]
            last, steps = curve.iloc[-1], curve.index[-1]
            if last > chance:
                reached = curve.index[curve >= (chance + last) / 2][0]
                each.append(f"{name} after {reached:,.0f} of {steps:,.0f} steps")
            else:
                each.append(f"{name} never (it ends at chance after {steps:,.0f} steps)")
        said.append(f"on {100 * fraction:g}% of the training data, {listed(each)}")
    return f"Halfway from chance to the last accuracy (at a measured step): {'; '.join(said)}." if said else ""


def difference_note(tests: pd.DataFrame) -> str:
    """Where the difference is largest, and at how many fractions it is significant (of `planned_tests`, not empty)."""
    best = tests.sort_values("difference").iloc[-1]
    return (
        f"In validation the difference is largest at {100 * best['fraction']:g}% of the training data "
        f"({best['difference']:+.1%}). {_verdict(tests)}"
    )


def tests_table(profile: Profile, tests: pd.DataFrame) -> Styler | None:
    """The t-tests of `planned_tests` with both corrections; None where there are none."""
    if tests.empty:
        return None
    rows = tests.to_dict("records")
    return table(
        {
            **sizes(profile, tests),
            "difference [95% interval]": [change(r) for r in rows],
            f"t({rows[0]['dof']})": [number(r["t"], ".2f") for r in rows],
            "p": [number(r["p"]) for r in rows],
            "Bonferroni": [starred(r["p_bonferroni"], r["significant"]) for r in rows],
            "Holm": [starred(r["p_holm"], r["significant_holm"]) for r in rows],
        }
    )


def effects_table(profile: Profile, tests: pd.DataFrame) -> Styler | None:
    """Permutation tests, Bayes factors and sizes of the effect of `planned_tests`; None where there are none."""
    if tests.empty:
        return None
    rows = tests.to_dict("records")
    return table(
        {
            **sizes(profile, tests),
            "p, permutation": [number(r["p_permutation"]) for r in rows],
            "Bayes factor": [number(r["bf10"], ".3g") for r in rows],
            "d": [number(r["d"], ".2f") for r in rows],
            "95%, bootstrap": [span(r["d_low"], r["d_high"]) for r in rows],
            "95%, noncentral t": [span(r["d_t_low"], r["d_t_high"]) for r in rows],
        }
    )


def tests_note(profile: Profile, tests: pd.DataFrame) -> str:
    """How far the tests of both tables (of `planned_tests`) agree, and their limits."""
    if tests.empty:
        return ""
    n, unit = int(tests["n"].iloc[0]), profile.data.split_unit
    disagree = tests.loc[(tests["p"] < 0.05) != (tests["p_permutation"] < 0.05), "fraction"]
    at = "every fraction" if disagree.empty else f"all fractions but {', '.join(f'{100 * f:g}%' for f in disagree)}"
    said = [
        f"Holm finds {tests['significant_holm'].sum()} of {len(tests)} fractions significant, Bonferroni "
        f"{tests['significant'].sum()}. The t-test and the permutation test agree at {at} (uncorrected, 0.05)."
    ]
    if n <= 13:
        said.append(f"With {n} held-out {unit}s no permutation test can give less than p = {2 / 2**n:.2g}.")
    if n < 50:
        said.append(
            f"With {n} {unit}s the bootstrap interval of *d* is too narrow; that of the noncentral t distribution "
            "assumes normal differences."
        )
    said.append(
        f"The {unit}s are the only source of variance in these tables: {counted(len(profile.sweep.seeds), 'training')} "
        "of each kind. The page *Repeated trainings* shows how much trainings vary."
    )
    return " ".join(said)


def means_table(profile: Profile, results: pd.DataFrame) -> Styler | None:
    """Mean accuracy of every decoder at every fraction with its 95% interval; None where there are no results."""
    if results.empty:
        return None
    means = statistics.mean_intervals(results)
    means["cell"] = [interval(r["mean"], r["low"], r["high"]) for r in means.to_dict("records")]
    wide = means.pivot(index=["fraction", "n_subjects"], columns="variant", values="cell").fillna("missing")
    decoders = {short_title(v): wide[v].tolist() for v in VARIANTS if v in wide}
    return table({**sizes(profile, wide.index.to_frame()), **decoders})


def saved_note(profile: Profile, saved: pd.DataFrame) -> str:
    """How many units from scratch equal n pre-trained ones.

    Parameters
    ----------
    saved : of `statistics.subjects_saved`
    """
    more = f"more than {saved['n_subjects'].max()}"
    worth = []
    for row in saved.to_dict("records"):
        equal, high = (more if np.isinf(row[name]) else f"{row[name]:.1f}" for name in ("equivalent", "high"))
        least = "at most " if row["at_most"] else ""
        within = "" if np.isinf(row["equivalent"]) else f" (95% interval {row['low']:.1f} to {high})"
        equals = "equals" if row["n_subjects"] == 1 else "equal"
        worth.append(f"{row['n_subjects']} pre-trained {equals} {least}{equal} from scratch{within}")
    return f"In {profile.data.split_unit}s: {'; '.join(worth)}."


def answers_note(profile: Profile, predictions: pd.DataFrame) -> str:
    """The share of the most frequent answer among each decoder's answers.

    Parameters
    ----------
    predictions : `variant, predicted_state`, one row per volume
    """
    if predictions.empty:
        return "No decoder has been trained on the smallest fraction yet."
    shares = predictions.groupby("variant", sort=False)["predicted_state"].value_counts(normalize=True)
    most = shares.groupby("variant", sort=False).max()
    each = [f"{share:.0%} of the answers of *{VARIANTS[str(v)].title}*" for v, share in most.items()]
    n_states = len(profile.data.states("target"))
    return f"The most frequent answer makes up {listed(each)} (the true states are about {1 / n_states:.0%} each)."
