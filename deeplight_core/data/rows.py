"""Rows of a manifest, whatever the layout: an image with its events and timing, or the reason why it is left out."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from deeplight_core.data.events import Events, event_names, listed_events, misplaced, read_events
from deeplight_core.data.images import read_header
from deeplight_core.data.manifest import CONTRASTS
from deeplight_core.system.files import pointer_of
from deeplight_core.system.sources import content, in_threads, refuse_escape

__all__ = [
    "IDENTITY",
    "Found",
    "LeftOut",
    "States",
    "events_of",
    "grouped",
    "row_of",
    "scanned",
    "visible",
    "without_paths",
]

IDENTITY = ("dataset", "subject", "session", "task", "run")  # columns that name an image


Found = tuple[pd.DataFrame, pd.DataFrame]
LeftOut = list[tuple[str, str]]
States = dict[str, dict[str, list[str]]]

_TR_S = (0.1, 20.0)  # plausible repetition times, in seconds
_TR_TOLERANCE = 0.01  # of a repetition time, by which header and sidecar may differ
_DISCARDED = ("NumberOfVolumesDiscardedByUser", "NumberOfVolumesDiscardedByScanner")  # BIDS's names
_UNSTEADY = re.compile(r"non_?steady|dummy", re.IGNORECASE)  # in names that BIDS does not know
_TIMING_TOLERANCE_S = 0.005  # by which volumes may be acquired too early or too late
_USUAL = 0.5  # share of the subjects that have a run, above which the others lack it
_WHOLE = 0.8  # share of the usual length, below which a run was stopped early
_SHOWN = 20  # reasons in a message
_SESSION = 0.3  # share of a run's events outside it, above which they may be those of all runs together
_SYSTEMATIC = 0.2  # share of the runs with impossible onsets, above which it is not a few files' fault


def events_of(path: Any, task: str, states: States | None, columns: Sequence[str]) -> tuple[Events | None, list[str]]:
    """A run's events, and what to say of them; the states of its task, or without any every trial type, are wanted.

    Raises
    ------
    ValueError
        If they cannot be used.
    """
    notes: list[str] = []
    if states is not None and not states.get(task):
        return None, notes
    listed = None if path.is_dir() else listed_events(path, columns)
    if states is None:
        names, unusable = event_names(path, columns, listed)
        if not names:
            raise ValueError("no event in its events.tsv")
        wanted = {name: [name] for name in names}
        if unusable:
            notes.append(
                f"kept, but without {', '.join(sorted(unusable))}: not all their events have an onset and a duration; "
                "state them"
            )
    else:
        wanted = states[task]
        names = {name for of_state in wanted.values() for name in of_state}
        if listed is not None and not names & {event.name for event in listed}:
            raise ValueError("no event of a wanted state")
    events = read_events(path, wanted, task, columns, listed=listed)
    if events.without_onset:
        notes.append(f"kept, but {events.without_onset} events without an onset (n/a) are left out")
    return events, notes


def row_of(
    root: Any, names: dict[str, str], image: Any, events: Any = None, mask: Any = None, sidecars: Iterable[Any] = (),
    tr_s: str = "", structural: bool | None = None, found: Events | None = None,
) -> tuple[dict[str, Any] | None, LeftOut]:  # fmt: skip
    """An image as a row of the manifest (None if it cannot be used), and what is to be said of it.

    Parameters
    ----------
    names : dataset, subject, session, task, run
    structural : by default, whether it has one volume, no events and no repetition time of its own
    found : what its events hold; in the row until `scanned` has compared them with the run's length
    """
    name, notes = str(image.relative_to(root)), []
    try:
        for file in filter(None, (image, events, mask)):
            refuse_escape(root, str(file.relative_to(root)))
        header = read_header(image)
        n_volumes = header.shape[3] if len(header.shape) == 4 else 1
        if structural is None:
            structural = events is None and not tr_s and n_volumes == 1
        if structural and n_volumes != 1:
            raise ValueError(f"{n_volumes} volumes; a structural image has one")
        if structural and names["task"] in CONTRASTS:
            _check_contrast(image, names["task"])
        if not structural and len(header.shape) != 4:
            raise ValueError(f"it is one volume, of shape {header.shape}; a run has several, along a fourth axis")
        time: float | str = ""
        start_s = 0.0
        if not structural:
            time, start_s, said = _timing(float(tr_s) if tr_s else header.tr_s, sidecars, n_volumes)
            notes += [(name, note) for note in said]
    except ValueError as error:
        return None, [(name, without_paths(str(error), image, events, mask))]
    row = {
        **names, "image": name, "events": "" if events is None else str(events.relative_to(root)),
        "mask": "" if mask is None else str(mask.relative_to(root)), "tr_s": time, "n_volumes": n_volumes,
        "split": "", "family": "", "sha256": "", "start_s": f"{start_s:g}" if start_s else "", "found": found,
    }  # fmt: skip
    return row, notes


def without_paths(message: str, image: Any, *others: Any) -> str:
    """A message about an image's files without their paths, so that the same reason reads the same for all of them."""
    for file in filter(None, others):
        message = message.replace(str(file), file.name)
    return message.replace(str(image), "").strip(" :")


def visible(folder: Any) -> list[Any]:
    """What is in a folder, by name; names that begin with a dot are a Macintosh's or a program's own."""
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _check_contrast(image: Any, task: str) -> None:
    """Raise an error if an image's sidecar names another contrast than the task, and not the task's."""
    sidecar = image.parent / f"{image.name.removesuffix('.gz').removesuffix('.nii')}.json"
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        named = " ".join(str(facts.get(key, "")) for key in ("SeriesDescription", "ProtocolName")).strip()
    except (OSError, ValueError, AttributeError):
        return
    there = {
        short for short in ("T1", "T2", "PD", "FLAIR") if re.search(rf"(?<![a-z0-9]){short}", named, re.IGNORECASE)
    }
    if there and task.removesuffix("w") not in there:
        raise ValueError(f"its sidecar says {named!r}, its task is {task}; correct one of them")


def _timing(header_tr_s: float, sidecars: Iterable[Any], n_volumes: int) -> tuple[float, float, list[str]]:
    """Repetition time and the first volume's time in seconds, and notes; BIDS's sidecars override the header."""
    tr_s, start_s, volumes, notes = header_tr_s, 0.0, None, []
    for sidecar in sidecars:
        facts = _facts(sidecar)
        try:
            tr_s = float(facts.get("RepetitionTime", tr_s))
            start_s = float(facts.get("StartTime", start_s))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{sidecar.name} holds no readable RepetitionTime or StartTime: {error}") from error
        volumes = facts.get("VolumeTiming", volumes)
        notes += _on_first_volumes(sidecar.name, facts)
    if volumes is not None:
        tr_s, start_s = _regular(volumes, n_volumes)
    if not _TR_S[0] <= tr_s <= _TR_S[1]:
        unit = "; is it in milliseconds?" if tr_s > _TR_S[1] else ""
        raise ValueError(
            f"repetition time {tr_s:g} s is not between {_TR_S[0]} and {_TR_S[1]} s; "
            f"repair the header (or, in BIDS, the sidecar){unit}"
        )
    if not 0 <= start_s <= tr_s * n_volumes:
        raise ValueError(f"its sidecar's StartTime {start_s:g} s is not within the run; correct it")
    if _TR_S[0] <= header_tr_s <= _TR_S[1] and abs(header_tr_s - tr_s) > _TR_TOLERANCE * tr_s:
        notes.append(
            f"kept, but its sidecar says TR {tr_s:g} s and its header {header_tr_s:g} s; the sidecar's is used"
        )
    return round(tr_s, 6), round(start_s, 6), notes


def _facts(sidecar: Any) -> dict[str, Any]:
    """What a sidecar says."""
    try:
        data = sidecar.read_bytes()
    except OSError:
        raise ValueError(
            f"its sidecar {sidecar.name} cannot be read; is it a link to a file that is not there?"
        ) from None
    if pointer := pointer_of(data):
        raise ValueError(f"its sidecar {sidecar.name} is only a pointer of {pointer}")
    try:
        facts = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{sidecar.name} holds no readable RepetitionTime: it is not JSON ({error}); correct or remove it"
        ) from error
    if not isinstance(facts, dict):
        raise ValueError(f"{sidecar.name} holds no readable RepetitionTime: it is no JSON object; correct or remove it")
    return facts


def _on_first_volumes(sidecar: str, facts: dict[str, Any]) -> list[str]:
    """What a sidecar says of volumes before the scanner's steady state, in words."""
    counts = {key: n for key, n in facts.items() if isinstance(n, int) and not isinstance(n, bool) and n > 0}
    notes = [
        f"kept, but {sidecar} says that the first {n} volumes were discarded ({key}); check that the seconds of the "
        "events count from the first volume that is left"
        for key, n in counts.items() if key in _DISCARDED
    ]  # fmt: skip
    return notes + [
        f"kept, but {sidecar} says {key}: {n}; if these volumes are from before the scanner's steady state and still "
        f"in the image, leave them out with --drop-volumes {n}"
        for key, n in counts.items() if _UNSTEADY.search(key)
    ]  # fmt: skip


def _regular(volumes: Any, n_volumes: int) -> tuple[float, float]:
    """Repetition time and first time of a sidecar's VolumeTiming, whose volumes must be one repetition time apart."""
    try:
        times = [float(time) for time in volumes]
    except (TypeError, ValueError):
        raise ValueError("its sidecar's VolumeTiming is no list of seconds") from None
    if len(times) != n_volumes:
        raise ValueError(f"its sidecar's VolumeTiming has {len(times)} times, the image {n_volumes} volumes")
    steps = [b - a for a, b in pairwise(times)] or [0.0]
    if max(steps) - min(steps) > _TIMING_TOLERANCE_S:
        raise ValueError(
            f"its volumes are not one repetition time apart: by the sidecar's VolumeTiming {min(steps):g} to "
            f"{max(steps):g} s (sparse or interrupted acquisition); such runs cannot be filtered or labelled here"
        )
    return sum(steps) / len(steps), times[0]


def scanned(
    rows: list[dict[str, Any]], left_out: LeftOut, root: Any, nothing: Callable[[], str], protocol: bool = False
) -> Found:
    """The table of the rows and the list of what is left out.

    Left out are also images that copy an earlier one, runs that were stopped early (with less than four fifths of the
    length of most runs of their task), and runs whose events are not their own. Said are runs of another length, and
    runs that most subjects have and one lacks.

    Parameters
    ----------
    protocol : whether all runs of a task are of one length; others are left out
    nothing : says what there is instead, if there are no rows

    Raises
    ------
    ValueError
        If no row is left, or the onsets of many runs are impossible.
    """
    if rows:
        _take_out_copies(rows, left_out, root)
        _check_lengths(rows, left_out, protocol)
        _check_onsets(rows, left_out)
    if not rows:
        raise ValueError(nothing() + "".join(f"\n  {line}" for line in grouped(left_out)))
    if not protocol:
        _name_missing(rows, left_out)
    table = pd.DataFrame(rows).drop(columns=["found", "usual"])
    if not table["start_s"].any():
        table = table.drop(columns="start_s")
    return table, pd.DataFrame(left_out, columns=["path", "reason"])


def _take_out_copies(rows: list[dict[str, Any]], left_out: LeftOut, root: Any) -> None:
    by_size: dict[int, list[dict[str, Any]]] = {}
    for row, size in zip(rows, in_threads(root, lambda row: (root / row["image"]).stat().st_size, rows), strict=True):
        by_size.setdefault(size, []).append(row)
    alike = [row for of_size in by_size.values() if len(of_size) > 1 for row in of_size]
    first: dict[str, Any] = {}
    for row, hashed in zip(alike, in_threads(root, lambda row: content(root / row["image"]), alike), strict=True):
        original = first.setdefault(hashed, row)
        if original["image"] != row["image"]:
            whose = "" if original["subject"] == row["subject"] else f", of another subject ({original['subject']})"
            left_out.append((str(row["image"]), f"same content as {original['image']}{whose}"))
            rows[:] = [other for other in rows if other is not row]


def _check_lengths(rows: list[dict[str, Any]], left_out: LeftOut, protocol: bool) -> None:
    """Say which runs are of another length than most of their task, and leave out those that were stopped early."""
    table = pd.DataFrame(rows)
    n_volumes = table["n_volumes"].where(table["tr_s"] != "")  # structural images have no length
    usual = n_volumes.groupby(table["task"]).transform(lambda n: n.mode().iloc[0] if n.notna().any() else n)
    odd = n_volumes.notna() & (n_volumes != usual)
    if not protocol:  # tasks that people do at their own pace have no usual length
        odd &= (n_volumes == usual).where(n_volumes.notna()).astype(float).groupby(table["task"]).transform(
            "mean"
        ) > _USUAL
    out = odd & (protocol | (n_volumes < _WHOLE * usual))
    for row, n, is_odd, is_out in zip(rows, usual, odd, out, strict=True):
        row["usual"] = n
        if is_odd:
            kept = "" if is_out else "kept, but "
            left_out.append(
                (row["image"], f"{kept}{row['n_volumes']} volumes, most runs of {row['task']} have {n:.0f}")
            )
    rows[:] = [row for row, is_out in zip(rows, out, strict=True) if not is_out]


def _check_onsets(rows: list[dict[str, Any]], left_out: LeftOut) -> None:
    """Leave out the runs whose events cannot be theirs, and say where some events cannot."""
    with_events = [row for row in rows if row["found"] is not None and not row["found"].blocks.empty]
    lengths = [row["n_volumes"] * row["tr_s"] + float(row["start_s"] or 0) for row in with_events]
    counts = [misplaced(row["found"].blocks, run_s) for row, run_s in zip(with_events, lengths, strict=True)]
    alike = Counter(_events_of_all(row, n) for row, (n, _) in zip(with_events, counts, strict=True))
    impossible = []
    for row, run_s, (n, reason) in zip(with_events, lengths, counts, strict=True):
        usual, outside = row["usual"], f"{n} of its {len(row['found'].blocks)} events lie outside the run ({run_s:g} s)"
        same = _events_of_all(row, n)
        if not reason and same and alike[same] > 1:
            reason = (
                f"{outside}, and {alike[same]} runs of this subject have the same events; are these the events of "
                "all runs together? Each run has a file of its own, with seconds from the run's first volume"
            )
        if reason:
            left_out.append((row["image"], reason))
            cut_short = row["n_volumes"] < usual and not misplaced(row["found"].blocks, usual * row["tr_s"])[1]
            impossible += [] if cut_short else [(row, reason)]
            row["found"] = False
        elif n:
            left_out.append((row["image"], f"kept, but {outside}"))
    if len(impossible) > _SYSTEMATIC * len(with_events):
        lines = "".join(f"\n  {row['image']}: {reason}" for row, reason in impossible[:10])
        raise ValueError(
            f"the events of {len(impossible)} of {len(with_events)} runs cannot be theirs; correct the event "
            f"files:{lines}"
        )
    rows[:] = [row for row in rows if row["found"] is not False]


def _events_of_all(row: dict[str, Any], n_outside: int) -> tuple[Any, ...]:
    """Whose events these are and what, if many lie outside the run and may be those of all runs together; else ()."""
    blocks = row["found"].blocks
    if n_outside <= _SESSION * len(blocks):
        return ()
    return row["subject"], row["session"], row["task"], *blocks.itertuples(index=False, name=None)


def _name_missing(rows: list[dict[str, Any]], left_out: LeftOut) -> None:
    """List the runs that most subjects have and others lack, unless it is said already why they are left out."""
    gone = [str(path).rpartition("/")[2] for path, reason in left_out if not reason.startswith("kept")]
    subjects = sorted({row["subject"] for row in rows})
    whose: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        run = re.sub(r"(^|-)0+(?=\d+$)", r"\1", row["run"])  # 01 is 1
        whose.setdefault((row["session"], row["task"], run), set()).add(row["subject"])
    for (session, task, run), have in whose.items():
        if len(have) > _USUAL * len(subjects):
            at = f"_ses-{session}" if session else ""
            for subject in (s for s in subjects if s not in have):
                stem = f"sub-{subject}{at}_task-{task}_run-{run}"
                if not any(_is_of(name, stem) for name in gone):
                    left_out.append((stem, "this subject has no such run"))


def _is_of(name: str, stem: str) -> bool:
    """Whether a file's name is one of a run, `sub-…_task-…_run-…` (`run-LR-1` is of direction LR)."""
    whose, _, run = stem.rpartition("_run-")
    *others, number = run.split("-")
    stated = re.search(r"_run-0*(\d+)_", name)
    parts = [*(f"_{part}_" for part in whose.split("_")), *(f"-{part}_" for part in others)]
    return all(part in f"_{name}" for part in parts) and (stated[1] if stated else "1") == number


def grouped(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """What was left out by reason, the most frequent first; reasons that differ in names and numbers only are one."""
    alike: dict[str, LeftOut] = {}
    for path, reason in left_out:
        alike.setdefault(re.sub(r"sub-[^\s:,;]+|\S*/\S+|\d+(\.\d+)?|'[^']*'", "…", reason), []).append((path, reason))
    lines = [
        f"{entries[0][0]}: {entries[0][1]}" + (f" (and {len(entries) - 1} more like it)" if len(entries) > 1 else "")
        for entries in sorted(alike.values(), key=len, reverse=True)
    ]
    return lines[:_SHOWN] + ([f"… and {len(lines) - _SHOWN} more reasons"] if len(lines) > _SHOWN else [])
