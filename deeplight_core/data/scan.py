"""Find the runs and structural images of a dataset: in HCP's layout, a BIDS folder, or your own table.

Each scan returns the manifest without splits and a table of what was left out, with `path` and `reason`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from deeplight_core.data.events import event_names
from deeplight_core.data.images import read_header
from deeplight_core.data.manifest import COLUMNS, CONTRASTS
from deeplight_core.system.files import read_table
from deeplight_core.system.sources import is_remote, located, refuse_escape
from deeplight_core.tasks import TASKS

__all__ = ["common_root", "scan_bids", "scan_hcp", "scan_table", "states_of"]

_AT_ONCE = 16  # subjects or files read at a time; for remote data, latency dominates
_TR_S = (0.1, 20.0)  # plausible repetition times, in seconds
_CHUNK = 1 << 16  # bytes hashed at the start, middle and end, to detect copies among files of equal size

Found = tuple[pd.DataFrame, pd.DataFrame]
LeftOut = list[tuple[str, str]]


def scan_hcp(root: Any, tasks: Iterable[str] = tuple(TASKS)) -> Found:
    """The task runs of a folder or URL in HCP's layout: `<subject>/MNINonLinear/Results/tfMRI_<TASK>_<LR|RL>/`.

    Runs are left out if they lack an image or events, differ in length from most of their task, or copy another run.
    """
    root, wanted = located(root), set(tasks)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    subjects = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda folder: folder.name)
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for of_subject, without in pool.map(partial(_hcp_subject, root, wanted), subjects):
            rows += of_subject
            left_out += without
    present = {(row["subject"], row["task"], row["run"]) for row in rows}
    named = {path for path, _ in left_out}
    for subject in dict.fromkeys(row["subject"] for row in rows):
        for task, run in sorted({(task, run) for _, task, run in present}):
            path = f"{subject}/MNINonLinear/Results/tfMRI_{task}_{run}"
            if (subject, task, run) not in present and path not in named:
                left_out.append((path, "this subject has no such run"))
    table, left_out = _scanned(rows, left_out, root, "HCP runs (<subject>/MNINonLinear/Results/tfMRI_*)")
    usual = table.groupby("task")["n_volumes"].transform(lambda n: n.mode().iloc[0])
    for row, n in zip(table.to_dict("records"), usual, strict=True):
        if row["n_volumes"] != n:
            left_out.append((row["image"], f"{row['n_volumes']} volumes, most runs of {row['task']} have {n}"))
    return table[table["n_volumes"] == usual].reset_index(drop=True), _listed(left_out)


def _hcp_subject(root: Any, tasks: set[str], subject: Any) -> tuple[list[dict[str, Any]], LeftOut]:
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    results = subject / "MNINonLinear" / "Results"
    folders = sorted(results.iterdir(), key=lambda folder: folder.name) if results.is_dir() else []
    for folder in folders:
        parts = folder.name.split("_", 2)
        if len(parts) != 3 or parts[0] != "tfMRI" or parts[1] not in tasks:
            continue
        present = {file.name: file for file in folder.iterdir()}
        name = str(folder.relative_to(root))
        image, evs = present.get(f"{folder.name}.nii.gz"), present.get("EVs")
        if image is None or evs is None:
            absent = [n for n, there in ((f"{folder.name}.nii.gz", image), ("EVs", evs)) if there is None]
            left_out.append((name, f"no {' and no '.join(n.replace(folder.name, '<run>') for n in absent)}"))
            continue
        sizes = {file.name: file.stat().st_size for file in evs.iterdir() if file.name.endswith(".txt")}
        needed = [f"{stem}.txt" for stems in TASKS[parts[1]].states.values() for stem in stems]
        if absent := [ev for ev in needed if ev not in sizes]:
            left_out.append((name, f"no {', '.join(absent)} in EVs"))
        elif not any(sizes[ev] for ev in needed):
            left_out.append((name, "all files in EVs that states need are empty"))
        else:
            if empty := [ev for ev in needed if not sizes[ev]]:
                left_out.append((name, f"kept, but empty in EVs: {', '.join(empty)}"))
            _add_row(rows, left_out, root, "hcp", subject.name, "", parts[1], parts[2], image, evs,
                     present.get("brainmask_fs.2.nii.gz"))  # fmt: skip
    return rows, left_out


def scan_bids(
    root: Any,
    tasks: Iterable[str] | None = None,
    derivatives: str = "",
    space: str = "",
    res: str = "",
    anat: str = "",
    states: dict[str, dict[str, list[str]]] | None = None,
) -> Found:
    """The task runs of a BIDS folder or URL, `sub-*/[ses-*/]func/*_bold.nii[.gz]`, with events and sidecars.

    Parameters
    ----------
    derivatives : folder of preprocessed images (`desc-preproc`, as fMRIPrep writes them) that replace the raw ones,
        below `root` (`derivatives/fmriprep`) or anywhere; events and repetition times still come from the raw tree. The
        manifest's paths are relative to `common_root`.
    space, res : take only images in this template space and of this resolution
    anat : find structural images with this suffix instead (`T1w`: `sub-*/[ses-*/]anat/*_T1w.nii[.gz]`)
    states : task → state → trial types; runs without any of them are left out

    The mask is the `*_mask.nii[.gz]` in the image's folder whose entities all match the image's (`mod-T1w` matches T1w
    images), if there is exactly one. Runs are left out if they have no events (unless their task's name begins with
    `rest`, as in BIDS, or `states` has none for it), come in several spaces, or copy another run.
    """
    raw_root, root = located(root), common_root(root, derivatives)
    base = raw_root / derivatives if derivatives else raw_root
    if not base.is_dir():
        raise ValueError(f"there is no folder {base}; derivatives are named relative to the BIDS root, or from /")
    wanted = None if tasks is None else set(tasks)
    kind, suffix = ("anat", anat) if anat else ("func", "bold")
    found: dict[tuple[str, ...], list[tuple[Any, dict[str, str]]]] = {}
    images = [*base.glob(f"sub-*/{kind}/*_{suffix}.nii*"), *base.glob(f"sub-*/ses-*/{kind}/*_{suffix}.nii*")]
    for image in sorted(images, key=str):
        entities = _entities(image)
        task = anat or entities.get("task", "")
        if entities.get("part", "mag") != "mag":  # phase images
            continue
        if not task or (wanted is not None and task not in wanted):
            continue
        run = "-".join([*(entities[key] for key in _RUN_ENTITIES if key in entities), entities.get("run", "1")])
        found.setdefault((entities["sub"], entities.get("ses", ""), task, run), []).append((image, entities))
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    asked = {key: v for key, v in (("desc", "preproc" if derivatives else ""), ("space", space), ("res", res)) if v}
    dataset = _bids_name(raw_root)
    for (subject, session, task, run), there in found.items():
        there_as_asked = [(image, entities) for image, entities in there if asked.items() <= entities.items()]
        names = [str(image.relative_to(root)) for image, _ in there_as_asked or there]
        if not there_as_asked:
            left_out += [(name, f"this run has no image with {_stem(asked)}") for name in names]
            continue
        if len(there_as_asked) > 1:
            left_out += [(name, "several images of one run; choose one by space and res") for name in names]
            continue
        image, entities = there_as_asked[0]
        of_image = entities | ({"mod": anat} if anat else {})
        masks = _inherited(of_image, [image.parent], "*_mask.nii*", without="desc")
        masks = [mask for mask in masks if _same_space(mask, entities)]
        if len(masks) > 1:
            left_out.append((names[0], "kept, but without mask: several fit; name one in the manifest"))
        mask = masks[0] if len(masks) == 1 else None
        if anat:
            _add_row(rows, left_out, root, dataset, subject, session, task, run, image, None, mask, structural=True)
            continue
        raw = {key: value for key, value in entities.items() if key not in _DERIVED_ENTITIES}
        parts = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "func"]
        folders = [raw_root.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        events = _inherited(raw, folders, "*events.tsv")
        problem = "no events.tsv applies to it"
        if events:
            problem = _no_event(events[-1], None if states is None else states.get(task, {}))
        if problem and not (task.startswith("rest") or (states and states.get(task) == {})):
            left_out.append((names[0], problem))
            continue
        if problem and events:
            left_out.append((names[0], f"kept, but without events: {problem}"))
        sidecars = [*_inherited(raw, folders, "*bold.json"), *_inherited(entities, [image.parent], "*bold.json")]
        _add_row(rows, left_out, root, dataset, subject, session, task, run, image,
                 None if problem else events[-1], mask, sidecars, structural=False)  # fmt: skip
    what = f"BIDS {'images' if anat else 'runs'} ({Path(derivatives) / f'sub-*/{kind}/*_{suffix}.nii.gz'})"
    table, left_out = _scanned(rows, left_out, root, what)
    return table, _listed(left_out)


def common_root(root: Any, derivatives: str = "") -> Any:
    """The folder that a BIDS dataset's paths are relative to: its root, or one that also holds the derivatives."""
    root = located(root)
    if is_remote(root) or not Path(derivatives).is_absolute():
        return root
    return Path(os.path.commonpath([root.absolute(), derivatives]))


def scan_table(path: Path, root: Any, image: str = "") -> Found:
    """Your own table (CSV or TSV) as a manifest; other columns are kept as labels.

    It needs `subject` (or `participant_id`) and `image`. Rows with `events` or `tr_s`, and images of several volumes,
    are runs of fMRI; other images are structural. Empty cells are filled in: `task` is "image", runs are counted,
    `tr_s` and `n_volumes` are read from the image. Copies, and rows with missing or unreadable files, are left out.

    Parameters
    ----------
    root : folder or URL that the paths are relative to
    image : the image's path if there is no such column, with columns in braces: `{participant_id}.nii.gz`
    """
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
    rows: list[dict[str, Any]] = []
    left_out: LeftOut = []
    for number, row in enumerate(own.to_dict("records"), start=2):
        names = {column: row[column] for column in ("image", "events", "mask") if row[column]}
        if absent := [column for column, name in names.items() if not (root / name).exists()]:
            left_out += [(names[column], f"{column} does not exist") for column in absent]
            continue
        if "image" not in names:
            left_out.append((f"row {number} of {path.name}", "no image"))
            continue
        files = {column: root / name for column, name in names.items()}
        before = len(rows)
        _add_row(rows, left_out, root, row["dataset"], row["subject"], row["session"], row["task"], row["run"],
                 files["image"], files.get("events"), files.get("mask"), tr_s=row["tr_s"])  # fmt: skip
        if len(rows) > before:
            rows[-1] |= {str(key): value for key, value in row.items() if rows[-1].get(str(key), "") == ""}
    table, left_out = _scanned(rows, left_out, root, f"usable rows of {path}")
    return table[[*COLUMNS, *(c for c in own if c not in COLUMNS)]], _listed(left_out)


def states_of(table: pd.DataFrame, root: Any) -> dict[str, dict[str, list[str]]]:
    """Task → state → event names of a manifest: HCP's states for HCP's tasks, else every trial type is a state."""
    states: dict[str, dict[str, list[str]]] = {}
    for task, rows in table.groupby("task"):
        if task in TASKS:
            states[str(task)] = {state: list(names) for state, names in TASKS[str(task)].states.items()}
        else:
            found = _in_threads(lambda name: event_names(root / name), [name for name in rows["events"] if name])
            states[str(task)] = {name: [name] for name in sorted(set().union(*found) - {"n/a"})}
    return states


_RUN_ENTITIES = ("acq", "ce", "rec", "dir", "echo")  # besides `run`, these tell runs of a task apart
_DERIVED_ENTITIES = ("space", "res", "den", "desc", "cohort")  # of preprocessed images, not of raw ones


def _entities(path: Any) -> dict[str, str]:
    """`sub-01_task-faces_bold.nii.gz` → sub: 01, task: faces."""
    return dict(part.split("-", 1) for part in path.name.split(".")[0].split("_") if "-" in part)


def _stem(entities: dict[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _inherited(entities: dict[str, str], folders: list[Any], pattern: str, without: str = "") -> list[Any]:
    """The files that apply to an image by BIDS's inheritance principle, in increasing order of precedence.

    These are all whose entities (`without` one) match the image's, from the root's to those in the image's own folder.
    """
    files = [f for d in folders for f in sorted(d.glob(pattern), key=lambda p: (len(_entities(p)), p.name))]
    own = [{key: value for key, value in _entities(file).items() if key != without} for file in files]
    return [file for file, its in zip(files, own, strict=True) if its.items() <= entities.items()]


def _same_space(mask: Any, entities: dict[str, str]) -> bool:
    return all(_entities(mask).get(key) == entities.get(key) for key in ("space", "res"))


def _no_event(path: Any, states: dict[str, list[str]] | None) -> str:
    """Why a run's events cannot be used; empty if they can."""
    try:
        names = event_names(path)
    except ValueError as error:
        return str(error)
    if not names:
        return "no event in its events.tsv"
    if states is not None and not names & {name for of_state in states.values() for name in of_state}:
        return "no event of a wanted state"
    return ""


def _bids_name(root: Any) -> str:
    try:
        name = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = root.resolve().name
    return str(name)


def _add_row(
    rows: list[dict[str, Any]], left_out: LeftOut, root: Any, dataset: str, subject: str, session: str, task: str,
    run: str, image: Any, events: Any = None, mask: Any = None, sidecars: Iterable[Any] = (), tr_s: str = "",
    structural: bool | None = None,
) -> None:  # fmt: skip
    """Add an image to the rows found or, if it cannot be used, to what is left out.

    structural : by default, whether it has one volume, no events and no repetition time of its own
    """
    name = str(image.relative_to(root))
    try:
        for file in filter(None, (image, events, mask)):
            refuse_escape(root, str(file.relative_to(root)))
        header = read_header(image)
        n_volumes = header.shape[3] if len(header.shape) == 4 else 1
        if structural is None:
            structural = events is None and not tr_s and n_volumes == 1
        if structural and n_volumes != 1:
            raise ValueError(f"{n_volumes} volumes; a structural image has one")
        if structural and task in CONTRASTS:
            _check_contrast(image, task)
        if not structural and len(header.shape) != 4:
            raise ValueError(f"not a readable 4-D image: its shape is {header.shape}")
        time: float | str = ""
        if not structural:
            time = _repetition_time(float(tr_s) if tr_s else header.tr_s, sidecars)
    except ValueError as error:
        left_out.append((name, str(error).replace(str(image), "").strip(" :")))
        return
    rows.append({
        "dataset": dataset, "subject": subject, "session": session, "task": task, "run": run, "image": name,
        "events": "" if events is None else str(events.relative_to(root)),
        "mask": "" if mask is None else str(mask.relative_to(root)), "tr_s": time,
        "n_volumes": n_volumes, "split": "", "family": "", "sha256": "",
    })  # fmt: skip


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


def _repetition_time(tr_s: float, sidecars: Iterable[Any]) -> float:
    """The repetition time in seconds; BIDS's sidecars override the header."""
    for sidecar in sidecars:
        try:
            tr_s = float(json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime", tr_s))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{sidecar.name} holds no readable RepetitionTime: {error}") from error
    if not _TR_S[0] <= tr_s <= _TR_S[1]:
        raise ValueError(
            f"repetition time {tr_s:g} s is not between {_TR_S[0]} and {_TR_S[1]} s; "
            "repair the header (or, in BIDS, the sidecar)"
        )
    return round(tr_s, 6)


def _scanned(rows: list[dict[str, Any]], left_out: LeftOut, root: Any, what: str) -> tuple[pd.DataFrame, LeftOut]:
    """A table of the rows, without those whose image copies an earlier one."""
    if not rows:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in left_out[:10])
        raise ValueError(f"found no {what} below {root}; is this the dataset's root folder?{reasons}")
    by_size: dict[int, list[dict[str, Any]]] = {}
    for row, size in zip(rows, _in_threads(lambda row: (root / row["image"]).stat().st_size, rows), strict=True):
        by_size.setdefault(size, []).append(row)
    alike = [row for of_size in by_size.values() if len(of_size) > 1 for row in of_size]
    first: dict[str, Any] = {}
    for row, content in zip(alike, _in_threads(lambda row: _content(root / row["image"]), alike), strict=True):
        original = first.setdefault(content, row)
        if original["image"] != row["image"]:
            whose = "" if original["subject"] == row["subject"] else f", of another subject ({original['subject']})"
            left_out.append((str(row["image"]), f"same content as {original['image']}{whose}"))
            rows.remove(row)
    return pd.DataFrame(rows), left_out


def _in_threads(work: Any, items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, items))


def _content(path: Any) -> str:
    """A hash of a file's beginning, middle and end, and its size."""
    size = path.stat().st_size
    hashed = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for position in (0, size // 2, max(0, size - _CHUNK)):
            stream.seek(position)
            hashed.update(stream.read(_CHUNK))
    return hashed.hexdigest()


def _listed(left_out: LeftOut) -> pd.DataFrame:
    return pd.DataFrame(left_out, columns=["path", "reason"])
