"""What there is to learn from, known from events and headers alone: events and volumes of every state and split."""

import difflib
import re
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.events import joined, misplaced, read_events
from deeplight_core.data.manifest import SPLITS, is_structural, moved_root, start_of
from deeplight_core.data.runs import labels_of
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.system.sources import in_threads, patiently

__all__ = [
    "NO_VOLUMES", "absent", "alike", "check_labels", "count_labels", "label_table", "losses", "remedy", "volumes_of",
]  # fmt: skip

_SHORT_TRIALS = (
    "take one example per trial if trials are short (--example window, lsa or lss), or skip less at the start of each "
    "block (--skip 0)"
)
NO_VOLUMES = (
    f"no volume of any run lies in a block; check the events and the lag (--lag), {_SHORT_TRIALS}, or store volumes "
    "without a state, too, with preprocessing.keep: all (--keep all)"
)
_LOST = 0.2  # share of a state's events without any volume, above which it is said
_SHOWN = 10  # problems and names in a message


def count_labels(manifest: pd.DataFrame, profile: Profile) -> tuple[pd.DataFrame, dict[str, str]]:
    """Count every run's events and labelled volumes, and say what is wrong with the events.

    Parameters
    ----------
    manifest : rows of runs; structural images have no events

    Returns
    -------
    `image, task, split, state, name, events, without, shared, volumes`: one row per run and state of the profile, with
    the number of its events, of those that keep no volume, of those that overlap another state's, and of its volumes;
    with a `name`, per name of a state's events that the run lacks; and, with `state` "", per event name that belongs to
    no state. And image → problem.
    """

    def of_run(row: pd.Series) -> list[dict[str, Any]] | str:
        wanted = profile.data.events(row["task"])
        same = {"image": row["image"], "task": row["task"], "split": row["split"]}
        try:
            path = profile.data_root / row["events"] if row["events"] else None
            read = partial(read_events, path, wanted, row["task"], profile.data.trial_type, required=False)
            events = read() if path is None else patiently(read, path)
            start_s, tr_s, n = start_of(row), float(row["tr_s"]), int(row["n_volumes"])
            if problem := misplaced(events.blocks, n * tr_s + start_s)[1]:
                return f"{row['events']}: {problem}"
        except (ValueError, OSError) as error:
            return str(error)
        blocks = events.blocks.drop_duplicates()
        if profile.preprocessing.join_s is not None:
            blocks = joined(blocks, profile.preprocessing.join_s)
        try:
            labels = labels_of(blocks, n, tr_s, profile.preprocessing, start_s)
        except ValueError as error:
            return f"{row['image']}: {error}"
        counted, shared = [], _shared(blocks, profile.preprocessing)
        none = {"events": 0, "without": 0, "shared": 0, "volumes": 0}
        for state, names in wanted.items():
            mine, own = labels.states == state, (blocks["state"] == state).to_numpy()
            n_events, n_kept = int(own.sum()), len({*labels.blocks[mine]})
            counted.append({**same, "state": state, "name": "", "events": n_events, "without": n_events - n_kept,
                            "shared": int((own & shared).sum()), "volumes": int(mine.sum())})  # fmt: skip
            counted += [{**same, "state": state, "name": name, **none} for name in names if name in events.absent]
        others = [{**same, "state": "", "name": name, **none, "events": n} for name, n in events.ignored.items()]
        return counted + others

    runs = [row for _, row in manifest[~is_structural(manifest)].iterrows()]
    found, problems = [], {}
    for row, counted in zip(runs, in_threads(profile.data_root, of_run, runs), strict=True):
        if isinstance(counted, str):
            problems[row["image"]] = counted
        else:
            found += counted
    columns = ["image", "task", "split", "state", "name", "events", "without", "shared", "volumes"]
    counts = pd.DataFrame(found, columns=columns)
    if profile.preprocessing.keep == "labelled":
        problems |= _runs_without_events(counts, manifest)
    return counts, {image: problems[image] for image in manifest["image"] if image in problems}


def _shared(blocks: pd.DataFrame, settings: PreprocessingSettings) -> np.ndarray:
    """Which blocks overlap one of another state, or which trials begin together with one."""
    onset, state = blocks["onset"].to_numpy(float), blocks["state"].to_numpy(object)
    lasts = blocks["duration"].to_numpy(float) if settings.example.kind == "volume" else np.zeros(len(blocks))
    end = np.maximum(onset + lasts, onset + 1e-6)
    both = (onset[:, None] < end) & (onset < end[:, None]) & (state[:, None] != state)
    return np.asarray(both.any(axis=1))


def _runs_without_events(counts: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, str]:
    """Image → problem of the runs that have no wanted event, while others of their task have some."""
    states, found = counts[(counts["state"] != "") & (counts["name"] == "")], {}
    paths = manifest.set_index("image")["events"]
    for _, of_task in states.groupby("task"):
        per_run = of_task.groupby("image")["events"].sum()
        for image in per_run.index[(per_run == 0) & (per_run.sum() > 0)] if len(per_run) else []:
            others = counts.loc[(counts["image"] == image) & (counts["state"] == ""), "name"]
            wanted = counts.loc[(counts["image"] == image) & (counts["state"] != "") & (counts["name"] != ""), "name"]
            found[image] = (
                f"{paths[image]} has no event of {', '.join(wanted)}; it has "
                f"{', '.join(sorted(others)[:_SHOWN]) or 'no events'}; leave the run out of the manifest"
            )
    return {image: problem for image, problem in found.items() if paths[image]}


def label_table(counts: pd.DataFrame) -> pd.DataFrame:
    """Per task and state: `events`, `without` any volume, `shared` with another state, and the volumes of every split.

    Parameters
    ----------
    counts : of `count_labels`
    """
    states = counts[counts["state"] != ""]
    by = states.groupby(["task", "state"], sort=False)
    volumes = states.pivot_table(
        index=["task", "state"], columns="split", values="volumes", aggfunc="sum", fill_value=0, sort=False
    )
    return by[["events", "without", "shared"]].sum().join(volumes_of(volumes))


def volumes_of(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a `label_table` that are the splits' numbers of volumes."""
    return table[[split for split in SPLITS if split in table]]


def losses(table: pd.DataFrame) -> list[str]:
    """States that lose more than a fifth of their events, in words.

    Parameters
    ----------
    table : of `label_table`
    """
    if table.empty:
        return []
    lost = table.assign(shared=table.get("shared", 0))  # stores of earlier versions have none
    lost = lost[lost["without"] > _LOST * lost["events"]]
    return [
        f"{task}: {without} of {events} events of {state} keep no volume ({without / events:.0%})"
        + (f", and {shared} are at the same time as events of another state" if shared else "")
        for (task, state), without, events, shared in zip(
            lost.index, lost["without"], lost["events"], lost["shared"], strict=True
        )
    ]


def remedy(settings: PreprocessingSettings, table: pd.DataFrame) -> str:
    """What can be done where `losses` finds some.

    Parameters
    ----------
    table : of `label_table`
    """
    blocks = settings.example.kind == "volume"
    what = _SHORT_TRIALS if blocks else "look at their onsets: are they within the run, and apart from each other?"
    if table["shared"].any():
        whose = "volumes in events of two states" if blocks else "trials of two states that begin together"
        what += f"; {whose} are left out: name only one of these states (--states)"
    return f"more than {_LOST:.0%} of a state's events are lost: {what}"


def alike(table: pd.DataFrame) -> list[str]:
    """States of a task whose names differ in case, blanks or as numbers are written, in words.

    Parameters
    ----------
    table : of `label_table`
    """
    same: dict[tuple[str, Any], list[str]] = {}
    for task, state in ((str(task), str(state)) for task, state in table.index):
        try:
            key: Any = float(state)
        except ValueError:
            key = "".join(state.lower().split())
        same.setdefault((task, key), []).append(state)
    return [
        f"{task}: are {' and '.join(names)} one and the same state? Pool them with --states"
        for (task, _), names in same.items() if len(names) > 1
    ]  # fmt: skip


def check_labels(manifest: pd.DataFrame, profile: Profile, keep_going: bool = False) -> pd.DataFrame:
    """The table of `label_table`, if the profile's decoders can learn from it.

    Parameters
    ----------
    keep_going : ignore runs whose events cannot be used

    Raises
    ------
    ValueError
        With all problems: events that cannot be used, states without events, states without volumes at all, in the
        training split or in the reported one, tasks with a single state.
    """
    structural = is_structural(manifest)
    counts, of_runs = count_labels(manifest[~structural], profile)
    table = label_table(counts)
    if structural.any():  # their states are a column's values
        return table
    problems = [] if keep_going else [*of_runs.values()]
    data, settings = profile.data, profile.preprocessing
    reported = "test" if (manifest["split"] == "test").any() else "validation"
    fmri = {*manifest["task"]}
    volumes_of_all = volumes_of(table).to_numpy().sum()
    problems += absent(counts, bool(of_runs))
    wanted = [(task, state) for which in ("source", "target") for task, state in data.states(which) if task in fmri]
    for task, state in wanted:
        n_events = int(table["events"].get((task, state), 0))
        if n_events == 0:  # named already, or none of its runs can be read
            continue
        volumes = volumes_of(table).xs((task, state))
        if settings.keep == "all":
            continue
        if volumes.sum() == 0:
            problems.append(
                f"{task}: state {state} has {n_events} events, and none keeps a volume by the label rule "
                f"({_rule(settings)})" + (f"; {_SHORT_TRIALS}" if volumes_of_all else "")
            )
            continue
        for split in dict.fromkeys(["train", reported]) if not profile.sweep.folds else {}:
            if not (manifest["split"] == split).any():
                continue
            if volumes.get(split, 0) == 0:
                spread = ", ".join(f"{n} in {name}" for name, n in volumes.items())
                problems.append(
                    f"{task}: state {state} has no volume in split {split} ({spread}); leave the state out, or move "
                    "subjects that have it to the split"
                )
    for which in ("source", "target"):
        states = [state for state in data.states(which) if state[0] in fmri]
        if len(states) == 1 and settings.keep == "labelled":
            (task, state), others = states[0], counts[(counts["task"] == states[0][0]) & (counts["state"] == "")]
            listed = ", ".join(f"{name} ({n})" for name, n in others.groupby("name")["events"].sum().items())
            problems.append(
                f"data.{which} has a single state, {state} of {task}, and nothing to tell it from; name "
                f"another (other events of {task}: {listed or 'none'})"
            )
    if wanted and table["events"].sum() and not volumes_of_all and settings.keep == "labelled":
        problems = [NO_VOLUMES, *problems]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lost = any("does not exist" in problem for problem in problems)
        advice = moved_root(profile.manifest_path, profile.data_root) if lost else ""
        raise ValueError(f"{len(problems)} problem(s) with the labels:{lines}{more}{advice}")
    return table


def absent(counts: pd.DataFrame, unreadable: bool = False) -> list[str]:
    """Names of states' events that no run has, in words: with the events that there are, and the one named alike.

    Parameters
    ----------
    counts : of `count_labels`
    unreadable : whether other runs could not be read
    """
    of_states = counts[counts["state"] != ""]
    n_runs = of_states.groupby("task")["image"].nunique()
    lacking = of_states[of_states["name"] != ""].groupby(["task", "state", "name"], sort=False)["image"].nunique()
    found = []
    for (task, state, name), n in zip(lacking.index, lacking, strict=True):
        if n < n_runs[task]:
            continue
        of_task = counts[counts["task"] == task]
        events = of_task["name"].where(of_task["state"] == "", of_task["state"])
        there = {str(other): int(k) for other, k in of_task.groupby(events)["events"].sum().items() if k}
        near = difflib.get_close_matches(name.lower(), {other.lower(): other for other in there}, n=1, cutoff=0.6)
        said = "".join(f"; is {other} meant?" for other in there if near and other.lower() == near[0])
        if re.fullmatch(r"[0-9.]+", name) and not said:
            said = "; YAML reads 010 as 8 and 12:30 as 750: put such names in quotes"
        listed = ", ".join(f"{other} ({k})" for other, k in list(there.items())[:_SHOWN]) or "none"
        whose = "any readable run" if unreadable else "any run"
        found.append(f"{task}: no event of {name} (state {state}) in {whose}; its events are {listed}{said}")
    return found


def _rule(settings: PreprocessingSettings) -> str:
    """The label rule in a few words."""
    if settings.example.kind != "volume":
        return f"one example per trial, {settings.example.kind}"
    skipped = "two repetition times" if settings.skip_s is None else f"{settings.skip_s:g} s"
    return f"lag {settings.lag_s:g} s, {skipped} at each start skipped"
