"""What happened in a run: event files to blocks, blocks to a state for each volume."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deeplight_core.preparation import TRIAL_TYPE, PreprocessingSettings
from deeplight_core.system.files import MISSING, pointer_of, read_columns
from deeplight_core.tasks import TASKS

__all__ = [
    "Event", "Events", "Labels", "event_names", "joined", "label_frames", "listed_events", "misplaced", "read_events",
]  # fmt: skip

_TIME_TOLERANCE_S = 1e-6
_TOO_LONG = 1.5  # times the run's length; a film may last a little longer than its run
_FAR = 10  # times the run's length; events that reach farther are not in seconds
_FAR_SHARE = 1 / 3  # of a run's events, above which they are not in seconds, rather than one of them mistyped
_LEAST_CHOICES, _MOST_CHOICES = 2, 20  # different values of a column that may name events


@dataclass(frozen=True)
class Events:
    """Blocks of a run and what else its event files hold.

    blocks : `onset, duration` in seconds and `state`
    ignored : events that are not wanted: name → count
    unknown : names of EV files that HCP's protocol does not have
    empty : states without any event; absent : names of states' events that no event has
    without_onset : wanted events that are left out, since their onset is not stated (n/a)
    """

    blocks: pd.DataFrame
    ignored: dict[str, int]
    unknown: list[str]
    empty: list[str]
    absent: list[str]
    without_onset: int = 0


@dataclass(frozen=True)
class Labels:
    """State and block of each kept volume; how many volumes and blocks were dropped, by reason.

    frames : (N,) frame numbers, ascending; states : (N,) their state, "" for none
    blocks : (N,) number of their block within the run, from 0 in the order of onsets; -1 for none
    """

    frames: np.ndarray
    states: np.ndarray
    blocks: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)


class Event(NamedTuple):
    """A row of an event file, as it is written."""

    onset: str
    duration: str
    name: str
    row: int


def read_events(
    path: Path | None,
    wanted: dict[str, list[str]],
    task: str,
    columns: Sequence[str] = TRIAL_TYPE,
    required: bool = True,
    listed: list[Event] | None = None,
) -> Events:
    """Blocks of the wanted states, from an HCP EV folder (three-column text) or a BIDS `_events.tsv`.

    Parameters
    ----------
    path : None for a run without events (rest)
    wanted : state → the EV stems or trial types pooled for it
    task : the run's task; HCP's tasks tell which other EV files are known
    columns : of an `_events.tsv`, whose cells, joined by `/`, are the trial type
    required : whether there must be a wanted event
    listed : the rows of an `_events.tsv`, if they have been read already

    Raises
    ------
    ValueError
        If the file or a wanted EV file is missing, a wanted row is not numbers, or a required event is missing.
    """
    if path is None:
        none = pd.DataFrame(columns=["onset", "duration", "state"])
        return Events(none, {}, [], list(wanted), [name for stems in wanted.values() for name in stems])
    if not path.exists():
        raise ValueError(f"{path} does not exist; correct the manifest or fetch the events")
    names = {name: state for state, stems in wanted.items() for name in stems}
    unknown: list[str] = []
    if path.is_dir():
        known = {*names, "Sync"}
        if task in TASKS:
            known |= {*(n for stems in TASKS[task].states.values() for n in stems), *TASKS[task].other_evs}
        present = _ev_files(path)
        missing = [name for name in names if name not in present]
        if (
            missing and required and (task in TASKS or len(missing) == len(names))
        ):  # of another task, an event may not have happened
            states = sorted({names[name] for name in missing})
            raise ValueError(f"{path} has no {', '.join(f'{m}.txt' for m in missing)}, which states {states} need")
        unknown = [stem for stem in present if stem not in known]
        rows = [(*event, stem) for stem in names if stem in present for event in _read_ev(present[stem])]
        ignored = {stem: len(_lines(file)) for stem, file in present.items() if stem not in names}
        n_without = 0
    else:
        listed = listed_events(path, columns) if listed is None else listed
        chosen = [event for event in listed if event.name in names]
        stated = [event for event in chosen if event.onset.lower() not in MISSING]
        rows = [(*_in_seconds(event, path), event.name) for event in stated]
        ignored = dict(Counter(event.name for event in listed if event.name not in names))
        n_without = len(chosen) - len(stated)
    blocks = pd.DataFrame(sorted((o, d, names[name]) for o, d, name in rows), columns=["onset", "duration", "state"])
    if wanted and required and blocks.empty:
        raise ValueError(f"{path} has no event of {sorted(names)}; it has {sorted(ignored) or 'no events'}")
    there = {*blocks["state"]}
    empty = [state for state in wanted if state not in there]
    named = {name for _, _, name in rows}
    return Events(blocks, ignored, unknown, empty, [name for name in names if name not in named], n_without)


def event_names(
    path: Any, columns: Sequence[str] = TRIAL_TYPE, listed: list[Event] | None = None
) -> tuple[set[str], set[str]]:
    """The trial types of a BIDS `_events.tsv`, or the stems of a folder's EV files; and those that cannot be states.

    Trial types cannot be states if an event with an onset has no duration, or none has an onset.

    Raises
    ------
    ValueError
        If it is neither, or no trial type can be a state.
    """
    if path.is_dir():
        return {*_ev_files(path)} - {"Sync"}, set()
    listed = listed_events(path, columns) if listed is None else listed
    stated = [e for e in listed if e.name.lower() not in MISSING]
    timed = [e for e in stated if e.onset.lower() not in MISSING]
    names = {e.name for e in timed} - {e.name for e in timed if not _is_stated(e)}
    if timed and not names:
        _in_seconds(next(e for e in timed if not _is_stated(e)), path)  # raises the error
    return names, {e.name for e in stated} - names


def _ev_files(folder: Any) -> dict[str, Any]:
    """Stem → EV file; names that begin with a dot are a Macintosh's own."""
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.stem: file for file in files if file.suffix == ".txt" and not file.name.startswith(".")}


def _lines(path: Path) -> list[tuple[int, str]]:
    """The non-empty lines of a text file, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} is a link to a file that is not there; fetch it (`datalad get`)") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; save it anew as plain text in UTF-8") from error
    if pointer := pointer_of(text.encode()):
        raise ValueError(f"{path} is only a pointer of {pointer}")
    lines = text.splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_ev(path: Path) -> list[tuple[float, float]]:
    rows = []
    for number, line in _lines(path):
        text = line.strip()
        decimal_comma = re.search(r"\d,\d", text) and re.search(r"[\s;]", text.strip(", ;"))
        cells = re.split(r"[\s,;]+", text)
        try:
            onset, duration = (float(cell) for cell in cells[:2])
            if decimal_comma or ("," in text and len(cells) > 3):
                raise ValueError
        except ValueError:
            point = "; decimals have a point, not a comma" if "," in text else ""
            raise ValueError(
                f"{path}, row {number}: {line!r} is not `onset duration amplitude` in seconds{point}"
            ) from None
        rows.append(_checked(onset, duration, f"{path}, row {number}"))
    return rows


def listed_events(path: Any, columns: Sequence[str] = TRIAL_TYPE) -> list[Event]:
    """The rows of a BIDS `_events.tsv`, to be given to `read_events` and `event_names`, which then read no file.

    Raises
    ------
    ValueError
        If it is no such table, or has no such columns.
    """
    table = read_columns(path)
    if missing := [c for c in ("onset", "duration", *columns) if c not in table]:
        others = [c for c, cells in table.items() if c not in ("onset", "duration") and _names_events(cells)]
        advice = ""
        if missing == list(TRIAL_TYPE) and others:
            advice = f"; name the column of the events' names: --trial-type {' or '.join(others)}"
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table)}{advice}")
    cells = zip(*(table[c] for c in ("onset", "duration", *columns)), strict=True)
    return [Event(onset, duration, _joined_name(names), row) for row, (onset, duration, *names) in enumerate(cells, 2)]


def _names_events(cells: list[str]) -> bool:
    """Whether a column may hold names of events: few different ones, some of them no numbers."""
    values = {cell for cell in cells if cell.lower() not in MISSING}
    numbers = pd.to_numeric(pd.Series(sorted(values), dtype=object), errors="coerce").notna().all()
    return _LEAST_CHOICES <= len(values) <= _MOST_CHOICES and not numbers


def _joined_name(names: Sequence[str]) -> str:
    """Several columns' names as one; those that are not stated are left away."""
    stated = [name for name in names if name.lower() not in MISSING]
    return "/".join(stated) if stated or len(names) > 1 else names[0]


def _is_stated(event: Event) -> bool:
    try:
        return bool(np.isfinite(float(event.onset)) and 0 <= float(event.duration) < np.inf)
    except ValueError:
        return False


def _in_seconds(event: Event, path: Any) -> tuple[float, float]:
    where = f"{path}, row {event.row}"
    unstated = event.duration.lower() in MISSING
    try:
        onset, duration = float(event.onset), float("nothing" if unstated else event.duration)
    except ValueError:
        advice = ""
        if "," in event.onset + event.duration:
            advice = "; decimals have a point, not a comma"
        elif unstated:
            advice = f"; state it, or leave {event.name!r} out of the states"
        raise ValueError(
            f"{where}: onset {event.onset!r}, duration {event.duration!r} are not seconds{advice}"
        ) from None
    return _checked(onset, duration, where)


def _checked(onset: float, duration: float, where: str) -> tuple[float, float]:
    if not (np.isfinite(onset) and np.isfinite(duration) and duration >= 0):
        raise ValueError(
            f"{where}: onset {onset}, duration {duration}; both must be finite and the duration not negative"
        )
    return onset, duration


def misplaced(blocks: pd.DataFrame, run_s: float) -> tuple[int, str]:
    """How many events cannot be a run's own, and, if these are all or far from the run, why.

    They begin after the run, end before it, or last half as long again as the run. Runs stopped early have some.

    Parameters
    ----------
    blocks : `onset, duration` in seconds
    run_s : the run's length in seconds
    """
    onset, duration = blocks["onset"].to_numpy(float), blocks["duration"].to_numpy(float)
    end = onset + duration
    wrong = (onset >= run_s) | (duration > _TOO_LONG * run_s) | (end < 0)
    n = int(wrong.sum())
    far = n > _FAR_SHARE * len(blocks) and end.max() > _FAR * run_s
    if n == 0 or not (n == len(blocks) or far):
        return n, ""
    guess = "do they belong to another run, or was this one stopped early?"
    if onset.max() >= run_s and np.median(end) / 1000 <= run_s < np.median(end) / 10:
        guess = "are they in milliseconds?"
    elif 0 <= onset.max() < run_s:
        guess = "are the durations in milliseconds?"
    elif n == len(blocks) and onset.min() >= run_s:
        guess = "are they counted on from run to run?"
    return n, (
        f"{n} of its {len(blocks)} events lie outside the run, which lasts {run_s:g} s, while they reach from "
        f"{onset.min():g} to {end.max():g} s; {guess} Onsets are seconds from the run's first volume"
    )


def label_frames(
    blocks: pd.DataFrame, n_frames: int, tr_s: float, settings: PreprocessingSettings, start_s: float = 0.0
) -> Labels:
    """Give each volume its block's state and number.

    Events of one state are first joined to blocks if the settings say so. A volume acquired at t (start + frame × TR)
    belongs to a block if onset + lag + skip ≤ t < onset + lag + duration; of several blocks of one state, to the first.
    Volumes in no block, or in blocks of two states, have no state: they are counted, and dropped unless the settings
    keep all. Blocks that end after the run or hold no volume are counted, too.

    Parameters
    ----------
    blocks : `onset, duration` in seconds and `state`
    start_s : when the first volume was acquired
    """
    if settings.join_s is not None:
        blocks = joined(blocks, settings.join_s)
    times = start_s + np.arange(n_frames) * tr_s
    skip_s = 2 * tr_s if settings.skip_s is None else settings.skip_s
    start = blocks["onset"].to_numpy(float) + settings.lag_s
    inside = (times[:, None] >= start + skip_s - _TIME_TOLERANCE_S) & (
        times[:, None] < start + blocks["duration"].to_numpy(float) - _TIME_TOLERANCE_S
    )
    state = blocks["state"].to_numpy(object)
    n_states = sum((inside[:, state == name].any(axis=1) for name in {*state}), np.zeros(n_frames, int))
    inside &= (n_states == 1)[:, None]
    labelled, rank = np.flatnonzero(n_states == 1), start.argsort(kind="stable").argsort()
    which = np.where(inside[labelled], rank, len(blocks)).argmin(axis=1) if len(labelled) else labelled
    states, numbers = np.full(n_frames, "", object), np.full(n_frames, -1)
    states[labelled], numbers[labelled] = state[which], rank[which]
    dropped = {
        "volumes_in_no_block": int((n_states == 0).sum()),
        "volumes_in_two_blocks": int((n_states > 1).sum()),
        "blocks_past_the_end": int((start + blocks["duration"] > times[-1] + tr_s + _TIME_TOLERANCE_S).sum()),
        "blocks_without_volumes": int((~inside.any(axis=0)).sum()),
    }
    frames = np.arange(n_frames) if settings.keep == "all" else labelled
    return Labels(frames, states[frames], numbers[frames], dropped)


def joined(blocks: pd.DataFrame, gap_s: float) -> pd.DataFrame:
    """Events of one state as one block where each begins at most `gap_s` after the end of those before it."""
    ordered = blocks.sort_values(["state", "onset"], kind="stable")
    end = ordered["onset"] + ordered["duration"]
    latest = end.groupby(ordered["state"]).cummax().groupby(ordered["state"]).shift()
    number = (ordered["onset"] > latest.fillna(-np.inf) + gap_s + _TIME_TOLERANCE_S).cumsum().rename("number")
    found = pd.DataFrame({"state": ordered["state"], "onset": ordered["onset"], "end": end}).groupby(number)
    whole = found.agg({"onset": "min", "end": "max", "state": "first"}).sort_values("onset", kind="stable")
    whole["duration"] = whole["end"] - whole["onset"]
    return whole[["onset", "duration", "state"]].reset_index(drop=True)
