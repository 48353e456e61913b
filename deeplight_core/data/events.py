"""What happened in a run: event files to blocks, blocks to a state for each volume."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.config import PreprocessingSettings
from deeplight_core.system.files import read_table
from deeplight_core.tasks import TASKS

__all__ = ["Events", "Labels", "event_names", "joined", "label_frames", "read_events"]

_TIME_TOLERANCE_S = 1e-6


@dataclass(frozen=True)
class Events:
    """Blocks of a run and what else its event files hold.

    blocks : `onset, duration` in seconds and `state`
    ignored : events that are not wanted: name → count
    unknown : names of EV files that HCP's protocol does not have
    empty : states without any event
    """

    blocks: pd.DataFrame
    ignored: dict[str, int]
    unknown: list[str]
    empty: list[str]


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


def read_events(path: Path | None, wanted: dict[str, list[str]], task: str) -> Events:
    """Blocks of the wanted states, from an HCP EV folder (three-column text) or a BIDS `_events.tsv`.

    Parameters
    ----------
    path : None for a run without events (rest)
    wanted : state → the EV stems or trial types pooled for it
    task : the run's task; HCP's tasks tell which other EV files are known

    Raises
    ------
    ValueError
        If the file or a wanted EV file is missing, a row is not numbers, or there is no wanted event.
    """
    if path is None:
        return Events(pd.DataFrame(columns=["onset", "duration", "state"]), {}, [], list(wanted))
    if not path.exists():
        raise ValueError(f"{path} does not exist; correct the manifest or fetch the events")
    names = {name: state for state, stems in wanted.items() for name in stems}
    unknown: list[str] = []
    if path.is_dir():
        known = {*names, "Sync"}
        if task in TASKS:
            known |= {*(n for stems in TASKS[task].states.values() for n in stems), *TASKS[task].other_evs}
        present = {file.stem: file for file in sorted(path.glob("*.txt"))}
        if missing := [name for name in names if name not in present]:
            states = sorted({names[name] for name in missing})
            raise ValueError(f"{path} has no {', '.join(f'{m}.txt' for m in missing)}, which states {states} need")
        unknown = [stem for stem in present if stem not in known]
        rows = [(o, d, stem) for stem in names for o, d in _read_ev(present[stem])]
        ignored = {stem: len(_lines(file)) for stem, file in present.items() if stem not in names}
    else:
        rows = _read_bids(path)
        ignored = dict(Counter(name for _, _, name in rows if name not in names))
    blocks = pd.DataFrame(
        sorted((o, d, names[name]) for o, d, name in rows if name in names), columns=["onset", "duration", "state"]
    )
    if wanted and blocks.empty:
        raise ValueError(f"{path} has no event of {sorted(names)}; it has {sorted(ignored) or 'no events'}")
    empty = [state for state in wanted if state not in set(blocks["state"])]
    return Events(blocks, ignored, unknown, empty)


def event_names(path: Any) -> set[str]:
    """The trial types of a BIDS `_events.tsv`, or the stems of a folder's EV files; ValueError if it is neither."""
    if path.is_dir():
        return {file.stem for file in path.iterdir() if file.suffix == ".txt"}
    return {name for _, _, name in _read_bids(path)}


def _lines(path: Path) -> list[tuple[int, str]]:
    """The non-empty lines of a text file, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read_ev(path: Path) -> list[tuple[float, float]]:
    rows = []
    for number, line in _lines(path):
        try:
            onset, duration = (float(cell) for cell in re.split(r"[\s,;]+", line.strip())[:2])
        except ValueError:
            raise ValueError(f"{path}, row {number}: {line!r} is not `onset duration amplitude` in seconds") from None
        rows.append(_checked(onset, duration, f"{path}, row {number}"))
    return rows


def _read_bids(path: Any) -> list[tuple[float, float, str]]:
    table = read_table(path)
    if missing := [c for c in ("onset", "duration", "trial_type") if c not in table.columns]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    rows = []
    for number, cells in enumerate(table[["onset", "duration", "trial_type"]].itertuples(index=False), start=2):
        try:
            onset, duration = float(cells[0]), float(cells[1])
        except ValueError:
            raise ValueError(
                f"{path}, row {number}: onset {cells[0]!r}, duration {cells[1]!r} are not seconds"
            ) from None
        rows.append((*_checked(onset, duration, f"{path}, row {number}"), str(cells[2])))
    return rows


def _checked(onset: float, duration: float, where: str) -> tuple[float, float]:
    if not (np.isfinite(onset) and np.isfinite(duration) and duration >= 0):
        raise ValueError(
            f"{where}: onset {onset}, duration {duration}; both must be finite and the duration not negative"
        )
    return onset, duration


def label_frames(blocks: pd.DataFrame, n_frames: int, tr_s: float, settings: PreprocessingSettings) -> Labels:
    """Give each volume its block's state and number.

    Events of one state are first joined to blocks if the settings say so. A volume acquired at t (frame × TR) belongs
    to a block if onset + lag + skip ≤ t < onset + lag + duration. Volumes in no block, or in two, have no state: they
    are counted, and dropped unless the settings keep all. Blocks that end after the run or hold no volume are counted,
    too.
    """
    if settings.join_s is not None:
        blocks = joined(blocks, settings.join_s)
    times = np.arange(n_frames) * tr_s
    skip_s = 2 * tr_s if settings.skip_s is None else settings.skip_s
    start = blocks["onset"].to_numpy(float) + settings.lag_s
    inside = (times[:, None] >= start + skip_s - _TIME_TOLERANCE_S) & (
        times[:, None] < start + blocks["duration"].to_numpy(float) - _TIME_TOLERANCE_S
    )
    n_blocks = inside.sum(axis=1)
    labelled, which = np.nonzero(inside & (n_blocks == 1)[:, None])
    states, numbers = np.full(n_frames, "", object), np.full(n_frames, -1)
    states[labelled] = blocks["state"].to_numpy(object)[which]
    numbers[labelled] = start.argsort(kind="stable").argsort()[which]
    dropped = {
        "volumes_in_no_block": int((n_blocks == 0).sum()),
        "volumes_in_two_blocks": int((n_blocks > 1).sum()),
        "blocks_past_the_end": int((start + blocks["duration"] > n_frames * tr_s + _TIME_TOLERANCE_S).sum()),
        "blocks_without_volumes": len(blocks) - len(np.unique(which)),
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
