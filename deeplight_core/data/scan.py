"""Find the runs and structural images of a dataset in HCP's layout, or of your own table (see `bids` for BIDS).

Each scan returns the manifest without splits and a table of what was left out, with `path` and `reason`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from deeplight_core.data.events import event_names
from deeplight_core.data.manifest import COLUMNS
from deeplight_core.data.rows import (
    IDENTITY,
    Found,
    LeftOut,
    States,
    events_of,
    row_of,
    scanned,
    visible,
    without_paths,
)
from deeplight_core.preparation import TRIAL_TYPE
from deeplight_core.system.files import read_table
from deeplight_core.system.sources import in_threads, located
from deeplight_core.tasks import TASKS

__all__ = ["scan_hcp", "scan_table", "states_of"]

_SHOWN = 10  # names in a message


def scan_hcp(root: Any, tasks: Iterable[str] | None = None) -> Found:
    """The task runs of a folder or URL in HCP's layout: `<subject>/MNINonLinear/Results/tfMRI_<TASK>_<LR|RL>/`.

    Runs are left out if they lack an image or events, differ in length from most of their task, copy another run, or
    have events of another run.

    Parameters
    ----------
    tasks : all by default; of tasks other than the seven of Table 1, every EV file but Sync is a state
    """
    root, wanted = located(root), None if tasks is None else {*tasks}
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    subjects = [folder for folder in visible(root) if folder.is_dir()]
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    seen: Counter[str] = Counter()
    for of_subject, without, there in in_threads(root, partial(_hcp_subject, root, wanted), subjects):
        rows += of_subject
        left_out += without
        seen.update(there)
    present = {(row["subject"], row["task"], row["run"]) for row in rows}
    named = {path for path, _ in left_out}
    for subject in dict.fromkeys(row["subject"] for row in rows):
        for task, run in sorted({(task, run) for _, task, run in present}):
            path = f"{subject}/MNINonLinear/Results/tfMRI_{task}_{run}"
            if (subject, task, run) not in present and path not in named:
                left_out.append((path, "this subject has no such run"))

    def nothing() -> str:
        message = f"found no HCP runs (<subject>/MNINonLinear/Results/tfMRI_*) below {root}"
        if not seen:
            there = ", ".join(path.name for path in visible(root)[:_SHOWN]) or "nothing"
            advice = "; for a BIDS folder take --bids" if any(p.name.startswith("sub-") for p in subjects) else ""
            return f"{message}; is this the dataset's root folder? It has {there}{advice}"
        listed = ", ".join(f"{task} ({n})" for task, n in seen.items())
        near = [task for task in seen if wanted and task.lower() in {name.lower() for name in wanted - {*seen}}]
        said = f"; is {' or '.join(near)} meant?" if near else ""
        return f"{message} that can be used; it has runs of {listed}{said}"

    return scanned(rows, left_out, root, nothing, protocol=True)


def _hcp_subject(root: Any, tasks: set[str] | None, subject: Any) -> tuple[list[dict[str, Any]], LeftOut, list[str]]:
    """A subject's rows, what is left out, and the tasks of all its runs."""
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    seen: list[str] = []
    results = subject / "MNINonLinear" / "Results"
    for folder in visible(results) if results.is_dir() else []:
        parts = folder.name.split("_", 2)
        if len(parts) != 3 or parts[0] not in ("tfMRI", "rfMRI"):
            continue
        task, run = parts[1:]
        seen.append(task if parts[0] == "tfMRI" else f"rest ({task})")
        if parts[0] == "rfMRI":
            continue
        if tasks is not None and task not in tasks:
            continue
        present = {file.name: file for file in visible(folder)}
        name = str(folder.relative_to(root))
        image, evs = present.get(f"{folder.name}.nii.gz"), present.get("EVs")
        if image is None or evs is None:
            absent = [n for n, there in ((f"{folder.name}.nii.gz", image), ("EVs", evs)) if there is None]
            cifti = image is None and any(n.endswith(".dtseries.nii") for n in present)
            says = "; there is CIFTI (dtseries) only: fetch the volumes, too" if cifti else ""
            if others := [n for n in present if n.startswith(f"{folder.name}_") and n.endswith(".nii.gz")]:
                says += (
                    f"; there is {', '.join(n.replace(folder.name, '<run>') for n in others[:3])}" if not image else ""
                )
            left_out.append((name, f"no {' and no '.join(n.replace(folder.name, '<run>') for n in absent)}{says}"))
            continue
        texts = [file for file in visible(evs) if file.name.endswith(".txt")]
        sizes = {file.name: file.stat().st_size if file.exists() else 1 for file in texts}  # 1: a link to nothing
        needed = [n for n in sizes if n != "Sync.txt"]
        states: States = {task: {Path(n).stem: [Path(n).stem] for n in needed}}
        if task in TASKS:
            states = {task: {state: list(stems) for state, stems in TASKS[task].states.items()}}
            needed = [f"{stem}.txt" for stems in TASKS[task].states.values() for stem in stems]
        if absent := [ev for ev in needed if ev not in sizes]:
            left_out.append((name, f"no {', '.join(absent)} in EVs"))
            continue
        if not any(sizes[ev] for ev in needed):
            left_out.append((name, "all files in EVs that states need are empty"))
            continue
        empty = [ev for ev in needed if not sizes[ev]]
        try:
            found, notes = events_of(evs, task, states, TRIAL_TYPE)
        except ValueError as error:
            left_out.append((name, without_paths(str(error), image, evs)))
            continue
        identity = dict(zip(IDENTITY, ("hcp", subject.name, "", task, run), strict=True))
        row, reasons = row_of(root, identity, image, evs, present.get("brainmask_fs.2.nii.gz"), found=found)
        left_out += [(name, note) for note in notes] + reasons
        if row is not None:
            if empty:
                left_out.append((name, f"kept, but empty in EVs: {', '.join(empty)}"))
            rows.append(row)
    return rows, left_out, seen


def scan_table(
    path: Path, root: Any, image: str = "", states: States | None = None, trial_type: Sequence[str] = TRIAL_TYPE
) -> Found:
    """Your own table (CSV or TSV) as a manifest; other columns are kept as labels.

    It needs `subject` (or `participant_id`) and `image`. Rows with `events` or `tr_s`, and images of several volumes,
    are runs of fMRI; other images are structural. Empty cells are filled in: `task` is "image", runs are counted,
    `tr_s` and `n_volumes` are read from the image. Copies, and rows with missing or unreadable files, are left out.

    Parameters
    ----------
    root : folder or URL that the paths are relative to
    image : the image's path if there is no such column, with columns in braces: `{participant_id}.nii.gz`
    states, trial_type : as in `scan_bids`
    """
    if not path.is_file():
        raise ValueError(f"there is no table {path}")
    given = read_table(path)
    own = given.copy()
    if "subject" not in own and "participant_id" in own:
        own = own.rename(columns={"participant_id": "subject"})
        own["subject"] = own["subject"].str.removeprefix("sub-")
    if image and "image" not in own:
        try:
            own["image"] = [image.format(**{str(k): v for k, v in row.items()}) for row in given.to_dict("records")]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"--image {image!r} names {error}; {path} has columns {', '.join(map(str, given))}"
            ) from None
    if missing := [column for column in ("subject", "image") if column not in own]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, given))}")
    for column in COLUMNS:
        if column not in own:
            own[column] = ""
    own["dataset"] = own["dataset"].replace("", path.stem)
    own["task"] = own["task"].where(own["task"] != "", "image")
    counted = (own.groupby(["subject", "session", "task"]).cumcount() + 1).astype(str)
    own["run"] = own["run"].where(own["run"] != "", counted)
    root = located(root)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}, in which the files of {path} would be; name it with --data")
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    for number, row in enumerate(own.to_dict("records"), start=2):
        names = {column: row[column] for column in ("image", "events", "mask") if row[column]}
        if "image" not in names:
            left_out.append((f"row {number} of {path.name}", "no image"))
            continue
        if absent := [column for column, name in names.items() if not (root / name).exists()]:
            left_out += [(names[column], _absent(root / names[column], column)) for column in absent]
            continue
        files, found = {column: root / name for column, name in names.items()}, None
        if "events" in files:
            try:
                found, notes = events_of(files["events"], row["task"], states, trial_type)
            except ValueError as error:
                left_out.append((names["image"], without_paths(str(error), files["image"], files["events"])))
                continue
            left_out += [(names["image"], note) for note in notes]
        identity = {column: row[column] for column in IDENTITY}
        made, notes_of_image = row_of(
            root, identity, files["image"], files.get("events"), files.get("mask"), tr_s=row["tr_s"], found=found
        )
        left_out += notes_of_image
        if made is not None:
            rows.append(made | {str(key): value for key, value in row.items() if made.get(str(key), "") == ""})
    listing, without = scanned(rows, left_out, root, lambda: f"found no usable rows of {path} below {root}")
    free = [c for c in listing if c not in COLUMNS]
    return listing[[*COLUMNS, *free]], without


def _absent(file: Any, column: str) -> str:
    """Why there is no file of a table's column."""
    if "\\" in file.name:
        return f"{column} does not exist; it is written with \\: folders are divided by /"
    if isinstance(file, Path) and file.is_symlink():
        return f"{column} is a link to a file that is not there; fetch it (`datalad get`), or repair the link"
    return f"{column} does not exist"


def states_of(
    table: pd.DataFrame, root: Any, trial_type: Sequence[str] = TRIAL_TYPE
) -> dict[str, dict[str, list[str]]]:
    """Task → state → event names of a manifest: HCP's states for HCP's tasks, else every trial type is a state.

    HCP's events are folders of EV files; a BIDS task of the same name has its own trial types.
    """
    states: dict[str, dict[str, list[str]]] = {}
    for task, rows in table.groupby("task"):
        files = [name for name in rows["events"] if name]
        if task in TASKS and not any(Path(name).suffix for name in files):
            states[str(task)] = {state: list(names) for state, names in TASKS[str(task)].states.items()}
        else:
            found = in_threads(root, lambda name: event_names(root / name, trial_type)[0], files)
            states[str(task)] = {name: [name] for name in sorted(set().union(*found))}
    return states
