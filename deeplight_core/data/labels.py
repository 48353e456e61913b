"""What there is to learn from, known from events and headers alone: events and volumes of every state and split."""

import difflib
from functools import partial
from typing import Any

import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.events import joined, misplaced, read_events
from deeplight_core.data.manifest import SPLITS, is_structural, moved_root, start_of
from deeplight_core.data.rows import in_threads
from deeplight_core.data.runs import labels_of
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.system.sources import patiently

__all__ = ["NO_VOLUMES", "alike", "check_labels", "count_labels", "label_table", "losses", "remedy"]

_SHORT_TRIALS = (
    "skip less at the start of each block (--skip 0), or take one example per trial if trials are short (--example "
    "window, lsa or lss)"
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
    `image, task, split, state, name, events, without, volumes`: one row per run and state of the profile, with the
    number of its events, of those that keep no volume, and of its volumes; and, with `state` "", per event name that
    belongs to no state. And image → problem.
    """

    def of_run(row: pd.Series) -> list[dict[str, Any]] | str:
        wanted = profile.data.events(row["task"])
        same = {"image": row["image"], "task": row["task"], "split": row["split"]}
        try:
            path = profile.data_root / row["events"] if row["events"] else None
            read = partial(read_events, path, wanted, row["task"], profile.data.trial_type, required=False)
            events = read() if path is None else patiently(read, path)
            start_s, tr_s, n = start_of(row), float(row["tr_s"]), int(row["n_volumes"])
            if row["events"] and wanted and events.blocks.empty and profile.preprocessing.keep == "labelled":
                there = ", ".join(sorted(events.ignored)[:_SHOWN]) or "no events"
                states = ", ".join(name for names in wanted.values() for name in names)
                return f"{row['events']} has no event of {states}; it has {there}; leave the run out of the manifest"
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
        counted = []
        for state in wanted:
            mine = labels.states == state
            n_events, n_kept = int((blocks["state"] == state).sum()), len({*labels.blocks[mine]})
            counted.append({**same, "state": state, "name": "", "events": n_events, "without": n_events - n_kept,
                            "volumes": int(mine.sum())})  # fmt: skip
        others = [{**same, "state": "", "name": name, "events": n_others, "without": 0, "volumes": 0}
                  for name, n_others in events.ignored.items()]  # fmt: skip
        return counted + others

    runs = [row for _, row in manifest[~is_structural(manifest)].iterrows()]
    found, problems = [], {}
    for row, counted in zip(runs, in_threads(of_run, runs), strict=True):
        if isinstance(counted, str):
            problems[row["image"]] = counted
        else:
            found += counted
    columns = ["image", "task", "split", "state", "name", "events", "without", "volumes"]
    return pd.DataFrame(found, columns=columns), problems


def label_table(counts: pd.DataFrame) -> pd.DataFrame:
    """Per task and state: `events`, `without` any volume, and the volumes of every split.

    Parameters
    ----------
    counts : of `count_labels`
    """
    states = counts[counts["state"] != ""]
    by = states.groupby(["task", "state"], sort=False)
    volumes = states.pivot_table(
        index=["task", "state"], columns="split", values="volumes", aggfunc="sum", fill_value=0, sort=False
    )
    volumes = volumes.reindex(columns=[split for split in SPLITS if split in volumes])
    return by[["events", "without"]].sum().join(volumes)


def losses(table: pd.DataFrame) -> list[str]:
    """States that lose more than a fifth of their events, in words.

    Parameters
    ----------
    table : of `label_table`
    """
    if table.empty:
        return []
    lost = table[table["without"] > _LOST * table["events"]]
    return [
        f"{task}: {without} of {events} events of {state} keep no volume ({without / events:.0%})"
        for (task, state), without, events in zip(lost.index, lost["without"], lost["events"], strict=True)
    ]


def remedy(settings: PreprocessingSettings) -> str:
    """What can be done where `losses` finds some."""
    blocks = settings.example.kind == "volume"
    what = _SHORT_TRIALS if blocks else "look at their onsets: are they within the run, and apart from each other?"
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
    volumes_of_all = table.drop(columns=["events", "without"]).to_numpy().sum()
    wanted = [(task, state) for which in ("source", "target") for task, state in data.states(which) if task in fmri]
    for task, state in wanted:
        n_events = int(table["events"].get((task, state), 0))
        if n_events == 0 and counts[counts["task"] == task].empty and of_runs:
            continue  # none of its runs can be read
        if n_events == 0:
            problems.append(_without_events(task, state, data.events(task), counts, bool(of_runs)))
            continue
        volumes = table.drop(columns=["events", "without"]).xs((task, state))
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
                f"data.{which} has a single state, {state} of {task}, which there is nothing to tell from; name "
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


def _without_events(task: str, state: str, wanted: dict[str, list[str]], counts: pd.DataFrame, unreadable: bool) -> str:
    """Says which events there are instead of a state's, and which is named alike."""
    of_task = counts[counts["task"] == task]
    others = of_task[of_task["state"] == ""].groupby("name")["events"].sum().to_dict()
    states = of_task[of_task["state"] != ""].groupby("state")["events"].sum().to_dict()
    there = {str(name): n for name, n in (states | others).items() if n}
    near = difflib.get_close_matches(wanted[state][0].lower(), {name.lower(): name for name in there}, n=1, cutoff=0.6)
    meant = [name for name in there if near and name.lower() == near[0]]
    said = f"; is {meant[0]} meant?" if meant else ""
    whose = "any readable run" if unreadable else "any run"
    listed = ", ".join(f"{name} ({n})" for name, n in list(there.items())[:_SHOWN]) or "none"
    return f"{task}: no event of {', '.join(wanted[state])} (state {state}) in {whose}; its events are {listed}{said}"


def _rule(settings: PreprocessingSettings) -> str:
    """The label rule in a few words."""
    if settings.example.kind != "volume":
        return f"one example per trial, {settings.example.kind}"
    skipped = "two repetition times" if settings.skip_s is None else f"{settings.skip_s:g} s"
    return f"lag {settings.lag_s:g} s, {skipped} at each start skipped"
