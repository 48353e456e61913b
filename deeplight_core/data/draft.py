"""A profile for a small study, drafted from its manifest, with comments that say why."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from deeplight_core.config import Profile, project_root
from deeplight_core.data.images import read_header
from deeplight_core.data.labels import count_labels, label_table, losses, volumes_of
from deeplight_core.data.manifest import is_structural, read_manifest, read_notes, unit_names
from deeplight_core.preparation import TRIAL_TYPE
from deeplight_core.system.progress import duration

__all__ = ["draft_profile"]

_LAG_S = 5.0  # after which the response to a short event is largest
_EPOCHS, _MIN_STEPS, _BATCH = 15, 600, 24
_MS_PER_VOXEL, _LEAST_MS = (
    1.0e-4,
    2.5,
)  # training on one volume, on two cores of a server (the methods page measures it)
_N_FRACTIONS = 5
_LEAST_VOLUMES = 2  # of a block, on average; shorter events are trials
_WHY = {
    "lag_s": "   # the haemodynamic response is largest about 5 s after a short event",
    "skip_s": "   # the paper drops two TRs of each block",
    "example": "   # trials are short: one example for each, the mean from 4 to 8 s after its onset (lss, lsa: betas)",
}


def draft_profile(path: Path, name: str, target: str = "") -> tuple[str, list[str]]:
    """The text of a profile for a manifest's runs, and a summary in a few lines.

    Parameters
    ----------
    path : a manifest, with its notes beside it
    name : of the profile
    target : the task to decode; the others are the source (default: the last one by name)

    Raises
    ------
    ValueError
        If the manifest or its notes are unreadable, it has no runs with states, or the target is none of its tasks.
    """
    notes = read_notes(path)
    manifest = read_manifest(path, notes["split_unit"])
    manifest = manifest[~is_structural(manifest)]
    named = {task: states for task, states in notes.pop("states").items() if states}
    if not named:
        raise ValueError(
            f"no task of {path} has states; a draft is for runs with events (see `deeplight manifest --states`)"
        )
    if target and target not in named:
        raise ValueError(f"{path} has no task {target} with states; it has {', '.join(named)}")
    noted: dict[str, Any] = notes.pop("preprocessing", {})
    asked = {"lag_s": _LAG_S, "skip_s": 0.0} | noted
    whole = _whole(path, name, notes, named, asked)
    table = label_table(count_labels(manifest, whole)[0])
    if "example" not in asked and _are_short(table):
        asked = {"example": {"kind": "window"}} | noted
        whole = _whole(path, name, notes, named, asked)
        table = label_table(count_labels(manifest, whole)[0])
    train = table.get("train", pd.Series(0, index=table.index))
    usable = {task: [s for s in states if train.get((task, s), 0) > 0] for task, states in named.items()}
    decodable = [task for task, states in usable.items() if len(states) > 1]
    if not decodable:
        raise ValueError(
            f"no task of {path} has two states with training volumes; see the table that `deeplight manifest` prints"
        )
    decoded = target or decodable[-1]
    sources = [task for task in decodable if task != decoded]
    learnt = manifest[(manifest["task"] == decoded) & (manifest["split"] == "train")]
    n_train = unit_names(learnt, notes["split_unit"]).nunique()
    counts = _numbers(n_train)
    fractions = [_fraction(n, n_train) for n in counts]
    variants = ["pretrained", "scratch", "linear"] if sources else ["scratch", "linear"]
    data: dict[str, Any] = {"manifest": _below_project(path), "root": notes["root"], "layout": notes["layout"],
                            "split_unit": notes["split_unit"]}  # fmt: skip
    if notes.get("trial_type", [*TRIAL_TYPE]) != [*TRIAL_TYPE]:
        data["trial_type"] = notes["trial_type"]
    unit = notes["split_unit"]
    seconds = _seconds(manifest, whole, table, decoded, sources, counts, n_train)
    lines = [
        f"# {name}: drafted from {path.name}: {len(manifest)} runs, {n_train} training {unit}(s) for {decoded}.",
        "# What is not stated is the recipe of Thomas et al. (2019); the page on your own data explains the settings.",
        "# An unknown key or a wrong value is reported before anything runs.",
        f"name: {name}", "data:", *(f"  {key}: {_yaml(value)}" for key, value in data.items()),
    ]  # fmt: skip
    if sources:
        lines += [
            "  source:                  # what the encoder is pre-trained on",
            *_states(sources, usable, named, table),
        ]
    else:
        lines += ["  source: {}               # one task: nothing to pre-train on; scratch and linear decoders only"]
    lines += [
        "  target:                  # what is decoded", *_states([decoded], usable, named, table),
        "preprocessing:",
        *(f"  {key}: {_yaml(value)}{_WHY.get(key, '')}" for key, value in asked.items()),
        "  crop: true               # only the box around the brain: faster",
        "routes:", "  supervised:",
        "    encoder: {initialisation: he}",
        f"    pretraining: {{epochs: {_EPOCHS}, min_steps: {_MIN_STEPS}, learning_rate: 5.0e-4, schedule: cosine}}",
        "finetuning:",
        f"  epochs: {_EPOCHS}               # passes over the training volumes,",
        f"  min_steps: {_MIN_STEPS}           # but at least this many steps, however few {unit}s there are",
        "  learning_rate: 5.0e-4", "  schedule: cosine",
        "sweep:",
        f"  variants: [{', '.join(variants)}]",
        f"  fractions: [{', '.join(map(str, fractions))}]   # {', '.join(map(str, counts))} {unit}s",
        f"  seeds: [1]               # about {duration(seconds)} on two cores; each further seed takes as long",
    ]  # fmt: skip
    left = [f"{task}: {state}" for task in named for state in named[task] if state not in usable[task]]
    summary = [
        f"decodes {', '.join(usable[decoded])} of {decoded}; "
        + (f"pre-trains on {', '.join(sources)}" if sources else "one task, so no pre-training: scratch and linear"),
        f"fractions of {', '.join(map(str, counts))} {unit}s; about {duration(seconds)} on two cores, less on a GPU",
    ]
    summary += [f"left out, since they keep no training volume: {', '.join(left)}"] if left else []
    text = "\n".join(lines) + "\n"
    Profile.model_validate(yaml.safe_load(text))
    return text, summary


def _are_short(table: pd.DataFrame) -> bool:
    """Whether the events of some state are trials rather than blocks: they keep no volume, or only one each."""
    volumes = volumes_of(table).sum(axis=1)
    return bool(losses(table)) or bool((volumes < _LEAST_VOLUMES * (table["events"] - table["without"])).any())


def _whole(
    path: Path, name: str, notes: dict[str, Any], states: dict[str, dict[str, list[str]]], asked: dict[str, Any]
) -> Profile:
    """A profile that has all states, to count them."""
    data = {"manifest": path.absolute(), **notes, "source": states, "target": {}}
    return Profile.model_validate({"name": name, "data": data, "preprocessing": asked})


def _numbers(n: int) -> list[int]:
    """Up to five different numbers of units up to n, about evenly spaced by their logarithms."""
    return sorted({max(1, round(n ** (i / (_N_FRACTIONS - 1)))) for i in range(_N_FRACTIONS)})


def _fraction(n: int, of: int) -> float:
    """The shortest fraction that draws n of so many units (see `examples.draw_units`)."""
    return next(f for digits in range(1, 9) if int((f := round(n / of, digits)) * of + 0.5) == n and 0 < f <= 1)


def _below_project(path: Path) -> str:
    absolute, root = path.absolute(), project_root()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)


def _states(
    tasks: list[str], usable: dict[str, list[str]], named: dict[str, dict[str, list[str]]], table: pd.DataFrame
) -> list[str]:
    """The states of tasks as lines of YAML, with their counts."""
    lines = []
    for task in tasks:
        lines.append(f"    {_yaml(task)}:")
        for state in usable[task]:
            row: dict[Any, Any] = volumes_of(table).xs((task, state)).to_dict()
            volumes = ", ".join(f"{n} in {split}" for split, n in row.items())
            events = f"{_yaml(named[task][state])}   # {table['events'][task, state]} events"
            lines.append(f"      {_yaml(state)}: {events}; volumes: {volumes}")
    return lines


def _yaml(value: Any) -> str:
    """A value on one line, as YAML reads it back; names stay text."""
    return yaml.safe_dump([value], allow_unicode=True, width=10_000, default_flow_style=True).strip()[1:-1]


def _seconds(
    manifest: pd.DataFrame, profile: Profile, table: pd.DataFrame, decoded: str, sources: list[str], counts: list[int],
    n_train: int,
) -> float:  # fmt: skip
    """Estimated seconds of all trainings of networks, for one seed."""
    shape = read_header(profile.data_root / manifest["image"].iloc[0]).shape[:3]
    each_ms = max(_LEAST_MS, _MS_PER_VOXEL * math.prod(shape))

    def steps(n_volumes: float) -> int:
        return max(_MIN_STEPS, _EPOCHS * math.ceil(n_volumes / _BATCH))

    of_all = float(table.loc[[decoded], "train"].sum())
    one = sum(steps(of_all * n / n_train) for n in counts)
    first = steps(float(table.loc[sources, "train"].sum())) if sources else 0
    return (one * (2 if sources else 1) + first) * _BATCH * each_ms / 1000
