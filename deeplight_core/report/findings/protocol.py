"""What ways to pre-train were given and have learnt, and which of them the data do not allow."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from deeplight_core.analysis.measures import MEASURES
from deeplight_core.config import Profile
from deeplight_core.report.findings.cells import counted, fine_tuned, listed, short_title, table, trained_on
from deeplight_core.routes import ROUTES, VARIANTS

__all__ = ["names_note", "pretrainings_table", "protocol_note", "ways_left_out_note"]

_WAYS = ("supervision", "reconstruction", "temporal contrast", "photographs")


def protocol_note(profile: Profile, results: pd.DataFrame, pretrained: pd.DataFrame) -> str:
    """What is the same for all ways, and what is not.

    Parameters
    ----------
    results : the sweep's
    pretrained : of `comparisons.pretrainings`
    """
    seeds, data, variants = profile.sweep.seeds, profile.data, profile.sweep.variants
    if results.empty:
        return ""
    unit, sizes = data.split_unit, sorted(results["n_subjects"].unique())
    n_states = len(data.states("target"))
    held_out = counted(results["subject"].nunique(), unit)
    of = {row["route"]: int(row["n_subjects"]) for row in pretrained.to_dict("records")}
    ways = list(dict.fromkeys(trained_on(v) for v in fine_tuned(variants) if _way(v) != "photographs"))
    nobody = f"none of {'whom' if unit == 'subject' else 'which'} any training has seen"
    if profile.sweep.folds:
        nobody = "each in the fold that leaves them out"
    said = [
        f"All decoders learn {f'{n_states} states of ' * bool(n_states)}{listed(data.tasks('target'))} from the same "
        f"{listed([str(n) for n in sizes])} {unit}{'' if sizes == [1] else 's'}, drawn anew for each of "
        f"{counted(len(seeds), 'seed')}, and answer for the same {held_out}, {nobody}.",
        f"Every seed also repeats the pre-training: {listed(ways)}" + (
            f", on {listed([str(n) for n in sorted(set(of.values()))])} {unit}s." if of else "."
        ) if ways else "",
        f"The {unit}s that decoders learn the target from are among them, with other "
        f"{'images' if data.label else 'volumes'}."
        if of and not profile.pretrained_by else "",
        _seen_note(pretrained),
        f"Photographs' weights are published ones; their seeds differ in the drawn {unit}s only."
        if "images-frozen" in variants else "",
        _looks(profile, tuned="images" in variants) if "images-frozen" in variants else "",
        _rates(profile),
        names_note(variants),
    ]  # fmt: skip
    return " ".join(filter(None, said))


def _seen_note(pretrained: pd.DataFrame) -> str:
    """How many volumes the pre-trainings have read, and whether these are as many for every way."""
    if pretrained["route"].nunique() < 2:
        return ""
    of = pretrained.groupby("route", sort=False).first()
    if of["seen_volumes"].max() <= 1.01 * of["seen_volumes"].min():
        return f"Each pre-training has read {of['seen_volumes'].mean():,.0f} volumes (within 1%)."
    told = [f"{ROUTES[str(route)].title} {n:,.0f}" for route, n in of["seen_volumes"].items()]
    return f"**Pre-trainings have not read equally many volumes**: {listed(told)}."


def _looks(profile: Profile, tuned: bool) -> str:
    """What a network for photographs sees of a volume."""
    look = profile.routes.images.encoder
    planes = f"{counted(look.slices, f'{listed([*look.planes])} slice')} of a volume"
    used = "it is fine-tuned, or its features are" if tuned else "its features are"
    return f"The network for photographs sees {planes}; {used} read out by a linear model."


def _rates(profile: Profile) -> str:
    """The learning rates of networks."""
    rates: dict[float, list[str]] = {}
    for v in profile.sweep.variants:
        if VARIANTS[v].learner == "deep":
            rates.setdefault(profile.finetuning.of(v).learning_rate, []).append(short_title(v))
    if len(rates) < 2:
        return ""
    told = [f"{rate:g} ({listed(names)})" for rate, names in rates.items()]
    return f"Learning rates were chosen for each decoder (*Are they fair?* is below): {listed(told)}."


def pretrainings_table(profile: Profile, pretrained: pd.DataFrame) -> Styler | None:
    """What every pre-training has learnt, beside what knowing nothing gives (of `comparisons.pretrainings`)."""
    if pretrained.empty:
        return None
    origin, rows = profile.origin, []
    structural = bool(origin.cohort or origin.data.label)
    for _, own in pretrained.groupby("route", sort=False):
        measure = MEASURES[own["measure"].iloc[0]]
        if measure.name == "reconstruction_error":
            nothing = np.nan if structural else 1.0  # voxels of a run are z-scored
        elif measure.guess == "1/states" and ROUTES[own["route"].iloc[0]].head != "classes":
            nothing = np.nan  # among how many answers only the head knows
        else:
            nothing = measure.chance(len(origin.data.states("source"))) or np.nan
        by_seed = own.set_index("seed")["score"]
        rows.append(
            {"pre-training": trained_on(own["variant"].iloc[0]),
             f"measure, on held-out {origin.data.split_unit}s": measure.title,
             "nothing learnt": measure.format(nothing)}
            | {f"seed {seed}": measure.format(by_seed.get(seed, np.nan)) for seed in sorted(set(pretrained["seed"]))}
        )  # fmt: skip
    return table({name: [row[name] for row in rows] for name in rows[0]}, wrapped=True)


def names_note(variants: Sequence[str]) -> str:
    """What the shortest name means where decoders are pre-trained in several ways."""
    several = len({VARIANTS[v].route for v in fine_tuned(variants)}) > 1
    return "Plain *pre-trained* means on other tasks, by supervision." if several and "pretrained" in variants else ""


def ways_left_out_note(profile: Profile) -> str:
    """Which of the four ways to pre-train these data do not allow, and why."""
    compared = {
        _way(v) for v in (*profile.sweep.variants, *profile.controls.published) if VARIANTS[v].start != "random"
    }
    left_out = [f"{way} ({_reason(profile, way)})" for way in _WAYS if way not in compared]
    return f"Left out: {listed(left_out)}." if left_out else ""


def _way(variant: str) -> str:
    """Which of the four papers' ways a variant's encoder was pre-trained in; empty if in another one."""
    route = ROUTES[VARIANTS[variant].route]
    if route.head != "classes":
        heads = {"reconstruction": "reconstruction", "variational": "reconstruction", "contrast": "temporal contrast"}
        return heads.get(route.head, "")
    return "supervision" if route.encoder in ("deeplight", "clip") else "photographs"


def _reason(profile: Profile, way: str) -> str:
    if way == "supervision" and not profile.data.states("source"):
        return "there are no other states to learn from"
    if way == "temporal contrast" and (profile.cohort or profile.data.label):
        return "a structural image has no time"
    if way == "temporal contrast" and profile.preprocessing.keep != "all":
        return "windows need volumes that follow each other, and there are only those with a state"
    return "not in this profile"
