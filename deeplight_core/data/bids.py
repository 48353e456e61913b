"""Find the runs and structural images of a BIDS folder, raw or preprocessed."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deeplight_core.data.events import event_names
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
from deeplight_core.system.sources import in_threads, is_remote, located

__all__ = ["common_root", "scan_bids"]

_RUN_ENTITIES = ("acq", "ce", "rec", "dir")  # besides `run`, these tell runs of a task apart
_DERIVED_ENTITIES = ("space", "res", "den", "desc", "cohort")  # of preprocessed images, not of raw ones
_NUMBERS = ("run", "echo")  # entities that are numbers: 01 is 1
_SHOWN = 10  # names in a message


class _File(NamedTuple):
    path: Any
    name: str
    entities: dict[str, str]


class _Asked(NamedTuple):
    """What is to be found, and where."""

    root: Any
    raw: Any
    base: Any
    kind: str
    suffix: str
    entities: dict[str, str]
    states: States | None
    trial_type: Sequence[str]
    dataset: str


def scan_bids(
    root: Any,
    tasks: Iterable[str] | None = None,
    derivatives: str = "",
    space: str = "",
    res: str = "",
    anat: str = "",
    states: States | None = None,
    desc: str = "",
    sessions: Iterable[str] | None = None,
    trial_type: Sequence[str] = TRIAL_TYPE,
) -> Found:
    """The task runs of a BIDS folder or URL, `sub-*/[ses-*/]func/*_bold.nii[.gz]`, with events and sidecars.

    Parameters
    ----------
    derivatives : folder of preprocessed images (`desc-preproc`, as fMRIPrep writes them) that replace the raw ones,
        below `root` (`derivatives/fmriprep`) or anywhere; events and repetition times still come from the raw tree. The
        manifest's paths are relative to `common_root`.
    space, res, desc : take only images in this template space, of this resolution, and with this description
    anat : find structural images with this suffix instead (`T1w`: `sub-*/[ses-*/]anat/*_T1w.nii[.gz]`)
    states : task → state → trial types; runs without any of them are left out
    sessions : only these
    trial_type : columns of the event files whose cells, joined by `/`, name an event

    The mask is the `*_mask.nii[.gz]` in the image's folder whose entities all match the image's (`mod-T1w` matches T1w
    images), if there is exactly one. Runs are left out if they have no events (unless their task's name begins with
    `rest`, as in BIDS, or `states` has none for it), come in several spaces, copy another run, or have events of
    another run. Of several echoes, the image without `echo-` is taken.

    Raises
    ------
    ValueError
        If nothing can be used; the message says what there is.
    """
    raw, root = located(root), common_root(root, derivatives)
    base = raw / derivatives if derivatives else raw
    if not base.is_dir():
        advice = "; derivatives are named relative to the BIDS root, or from /" if derivatives and raw.is_dir() else ""
        if not is_remote(base) and base.is_symlink():
            advice = f": it is a link to {base.readlink()}, which is not there"
        raise ValueError(f"there is no folder {base if raw.is_dir() else raw}{advice}")
    if not is_remote(base) and not base.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(
            f"{base} is {base.resolve()}, outside {root}; name the folder itself: --derivatives {base.resolve()}"
        )
    kind, suffix = ("anat", anat) if anat else ("func", "bold")
    entities = {"desc": desc or ("preproc" if derivatives else ""), "space": space, "res": res}
    asked = _Asked(
        root, raw, base, kind, suffix, {k: v for k, v in entities.items() if v}, states, trial_type, _bids_name(raw)
    )
    wanted, chosen = (None if names is None else {*names} for names in (tasks, sessions))
    files, left_out = _files(asked, chosen)
    if files:
        left_out += _without_images(asked, files, chosen, left_out)
    groups: dict[tuple[str, ...], list[_File]] = {}
    for file in files:
        own = file.entities
        task = anat or own.get("task", "")
        if own.get("part", "mag") != "mag":  # phase images
            continue
        if not task:
            left_out.append((str(file.path.relative_to(root)), "its name has no task-<label>"))
            continue
        if wanted is not None and task not in wanted:
            continue
        run = "-".join([*(own[key] for key in _RUN_ENTITIES if key in own), own.get("run", "1")])
        same_run = run if not own.get("run", "").isdecimal() else run[: -len(own["run"])] + str(int(own["run"]))
        groups.setdefault((own["sub"], own.get("ses", ""), task, same_run), []).append(file)
    folders = _Folders()
    rows: list[dict[str, Any]] = []
    for row, notes in in_threads(root, lambda group: _row(asked, folders, *group), groups.items()):
        rows += [row] if row is not None else []
        left_out += notes
    return scanned(rows, left_out, root, lambda: _nothing(asked, files, wanted, chosen, left_out))


def common_root(root: Any, derivatives: str = "") -> Any:
    """The folder that a BIDS dataset's paths are relative to: its root, or one that also holds the derivatives."""
    root = located(root)
    if is_remote(root) or not Path(derivatives).is_absolute():
        return root
    return Path(os.path.commonpath([root.absolute(), derivatives]))


def _files(asked: _Asked, sessions: set[str] | None) -> tuple[list[_File], LeftOut]:
    """The images of the suffix, in the order of their paths, and the subjects whose names are no labels."""

    def of_subject(folder: Any) -> tuple[list[_File], LeftOut]:
        label = folder.name.removeprefix("sub-")
        if "_" in label:
            reason = f"labels hold no _: rename {folder.name} and its files, e.g. to sub-{label.replace('_', '')}"
            return [], [(str(folder.relative_to(asked.root)), reason)]
        within = [f for f in visible(folder) if f.name.startswith("ses-") and f.is_dir()]
        if sessions is not None:
            within = [f for f in within if f.name.removeprefix("ses-") in sessions]
        places = [f / asked.kind for f in ([folder, *within] if sessions is None else within)]
        named = [p for place in places if place.is_dir() for p in visible(place) if f"_{asked.suffix}.nii" in p.name]
        files = [_File(p, p.name, _entities(p.name)) for p in named if p.name.endswith((".nii", ".nii.gz"))]
        files = [f for f in files if f.name.split(".nii")[0].endswith(f"_{asked.suffix}")]
        reasons = [_misplaced(file, label) for file in files]
        left_out = [(str(f.path.relative_to(asked.root)), why) for f, why in zip(files, reasons, strict=True) if why]
        return [f for f, why in zip(files, reasons, strict=True) if not why], left_out

    subjects = [f for f in visible(asked.base) if f.name.startswith("sub-") and f.is_dir()]
    found = in_threads(asked.root, of_subject, subjects)
    files = sorted((file for some, _ in found for file in some), key=lambda file: str(file.path))
    return files, [entry for _, some in found for entry in some]


def _misplaced(file: _File, subject: str) -> str:
    """Why an image's name does not go with its folder; empty if it does."""
    if file.entities.get("sub") != subject:
        return f"its name and its folder sub-{subject} are of different subjects"
    session = file.path.parent.parent.name
    session = session.removeprefix("ses-") if session.startswith("ses-") else ""
    if "_" in session:
        return f"labels hold no _: rename ses-{session} and its files, e.g. to ses-{session.replace('_', '')}"
    if (own := file.entities.get("ses", "")) != session:
        said = f"names the session {own}" if own else "names no session"
        folder = f"is ses-{session}" if session else "is in no session"
        return f"its name {said}, and its folder {folder}; correct one of them"
    return ""


def _without_images(asked: _Asked, files: list[_File], sessions: set[str] | None, left_out: LeftOut) -> LeftOut:
    """The subjects that have no image, while others have some."""
    named = {f"sub-{file.entities['sub']}" for file in files}
    named |= {part for path, _ in left_out for part in str(path).split("/")}
    found: dict[str, str] = {}
    for base in dict.fromkeys([asked.base, asked.raw]):
        for folder in visible(base):
            if not folder.name.startswith("sub-") or folder.name in named or not folder.is_dir():
                continue
            there = f"it is not below {asked.base.name}" if base != asked.base else _other_files([folder], asked)
            there = "it has no such session" if sessions is not None and base == asked.base else there
            found.setdefault(folder.name, f"this subject has no image named …_{asked.suffix}: {there}")
    return [*found.items()]


class _Folders:
    """Contents of folders, each listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, list[_File]] = {}

    def inherited(self, own: dict[str, str], folders: list[Any], *ends: str, without: str = "") -> list[Any]:
        """The files that apply to an image by BIDS's inheritance principle, in increasing order of precedence.

        These are all whose entities (`without` one) match the image's, from the root's to those in its own folder.
        """
        own = _comparable(own)
        found = []
        for folder in folders:
            if str(folder) not in self._listed:
                there = visible(folder) if folder.is_dir() else []
                files = [_File(p, p.name, _entities(p.name)) for p in there if "." in p.name]
                self._listed[str(folder)] = sorted(files, key=lambda file: (len(file.entities), file.name))
            for file in self._listed[str(folder)]:
                its = {key: value for key, value in file.entities.items() if key != without}
                if file.name.endswith(ends) and _comparable(its).items() <= own.items():
                    found.append(file.path)
        return found


def _row(
    asked: _Asked, folders: _Folders, key: tuple[str, ...], files: list[_File]
) -> tuple[dict[str, Any] | None, LeftOut]:
    """The row of one run or structural image, and what is to be said of it."""
    subject, session, task, _ = key
    left_out: LeftOut = []
    fitting = [file for file in files if asked.entities.items() <= file.entities.items()]
    names = [str(file.path.relative_to(asked.root)) for file in fitting or files]
    if not fitting:
        return None, [(name, _other_images(asked, files)) for name in names]
    if any("echo" in file.entities for file in fitting):
        whole = [file for file in fitting if "echo" not in file.entities]
        reason = "an echo, beside the run's combined image"
        if not whole:
            reason = "an echo without a combined image; combine the echoes (fMRIPrep and tedana do), one image per run"
        left_out += [(str(file.path.relative_to(asked.root)), reason) for file in fitting if "echo" in file.entities]
        if not whole:
            return None, left_out
        fitting = whole
    if len(fitting) > 1:
        several = "several images of one run; choose one by space and res"
        return None, left_out + [(str(file.path.relative_to(asked.root)), several) for file in fitting]
    image, own = fitting[0].path, fitting[0].entities
    name = str(image.relative_to(asked.root))
    anat = asked.suffix if asked.kind == "anat" else ""
    of_image = own | ({"mod": anat} if anat else {})
    masks = folders.inherited(of_image, [image.parent], "_mask.nii", "_mask.nii.gz", without="desc")
    masks = [mask for mask in masks if _same_space(mask.name, own)]
    if len(masks) > 1:
        left_out.append((name, "kept, but without mask: several fit; name one in the manifest"))
    mask = masks[0] if len(masks) == 1 else None
    run = "-".join([*(own[key] for key in _RUN_ENTITIES if key in own), own.get("run", "1")])
    identity = dict(zip(IDENTITY, (asked.dataset, subject, session, task, run), strict=True))
    if anat:
        row, notes = row_of(asked.root, identity, image, None, mask, structural=True)
        return row, left_out + notes
    raw = {key: value for key, value in own.items() if key not in _DERIVED_ENTITIES}
    parts = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "func"]
    places = [asked.raw.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    events, found = folders.inherited(raw, places, "events.tsv"), None
    problem = "no events.tsv applies to it"
    if asked.base == asked.raw and "desc" in own:
        problem += "; of preprocessed images, --bids names the raw dataset and --derivatives their own folder"
    if events:
        try:
            found, said = events_of(events[-1], task, asked.states, asked.trial_type)
            problem = "" if found is not None else "no event of a wanted state"
            left_out += [(name, note) for note in said]
        except (ValueError, OSError) as error:
            problem = without_paths(str(error), image, events[-1])
            if isinstance(error, FileNotFoundError):
                problem = f"{events[-1].name} is a link to a file that is not there; fetch it (`datalad get`)"
    no_states = asked.states is not None and asked.states.get(task) == {}
    if problem and not (task.startswith("rest") or no_states):
        return None, [*left_out, (name, problem)]
    if problem and events and not no_states:
        left_out.append((name, f"kept, but without events: {problem}"))
    sidecars = [
        *folders.inherited(raw, places, "bold.json"), *folders.inherited(own, [image.parent], "bold.json")
    ]  # fmt: skip
    row, notes = row_of(
        asked.root, identity, image, None if problem else events[-1], mask, dict.fromkeys(sidecars),
        structural=False, found=found,
    )  # fmt: skip
    if row is not None and "-" in task:
        notes = [*notes, (name, f"kept, but its task is called {task}; is a _ missing in its name?")]
    return row, left_out + notes


def _other_images(asked: _Asked, files: list[_File]) -> str:
    """Why none of a run's images is as asked."""
    reason = f"this run has no image with {'_'.join(f'{key}-{value}' for key, value in asked.entities.items())}"
    for key, value in asked.entities.items():
        there = sorted({file.entities[key] for file in files if key in file.entities})
        if value not in there:
            reason += f"; it has {key} {', '.join(there)}" if there else f"; its name has no {key}-"
            reason += f": --desc {there[0]}" if there and key == "desc" else ""
    return reason


def _nothing(
    asked: _Asked, files: list[_File], wanted: set[str] | None, sessions: set[str] | None, left_out: LeftOut
) -> str:
    """What there is instead, if no run can be used."""
    where = Path(asked.base.name if asked.base != asked.raw else "") / f"sub-*/{asked.kind}/*_{asked.suffix}.nii.gz"
    message = f"found no BIDS {'images' if asked.kind == 'anat' else 'runs'} ({where}) below {asked.root}"
    tasks = Counter(file.entities.get("task", "") for file in files)
    if asked.kind == "func" and wanted is not None and files and not wanted & {*tasks}:
        near = [task for task in tasks if task.lower() in {name.lower() for name in wanted}]
        said = f"; is {' or '.join(near)} meant?" if near else ""
        listed = ", ".join(f"{task} ({n})" for task, n in tasks.items())
        return f"{message} of the task {', '.join(sorted(wanted))}; tasks are {listed}{said}"
    if sessions is not None and not files:
        others = {f.name for f in [*asked.base.glob("sub-*/ses-*")] if f.is_dir()}
        if others and not {f"ses-{name}" for name in sessions} & others:
            listed = ", ".join(sorted(name.removeprefix("ses-") for name in others)[:_SHOWN])
            return f"{message} of the session {', '.join(sorted(sessions))}; sessions are {listed}"
    if files:
        spaces, said = {file.entities["space"] for file in files if "space" in file.entities}, ""
        if spaces and any(reason.startswith("several images") for _, reason in left_out):
            said = f"; choose one of their spaces, {', '.join(sorted(spaces))}, with --space"
        if any(reason == "no event of a wanted state" for _, reason in left_out):
            said += f"; the events are {', '.join(_events_there(asked)[:_SHOWN])}"
        return f"{message} that can be used; there are {len(files)} images{said}"
    if not any(path.name.startswith("sub-") for path in visible(asked.base)):
        there = ", ".join(path.name for path in visible(asked.base)[:_SHOWN]) or "nothing"
        hcp = "; for HCP's layout take --hcp" if any((f / "MNINonLinear").is_dir() for f in visible(asked.base)) else ""
        return f"{message}; is this the dataset's root folder? It has no folders sub-*, but {there}{hcp}"
    if left_out:
        return f"{message} that can be used"
    return f"{message}; {_other_files([f for f in visible(asked.base) if f.name.startswith('sub-')], asked)}"


def _other_files(subjects: list[Any], asked: _Asked) -> str:
    """What else is in the subjects' folders where images are looked for."""
    places = [p for f in subjects for p in (*f.glob(asked.kind), *f.glob(f"ses-*/{asked.kind}")) if p.is_dir()]
    names = [path.name for place in places for path in visible(place)]
    if loud := [n for n in names if n.lower().endswith((".nii", ".nii.gz")) and not n.endswith((".nii", ".nii.gz"))]:
        return f"found {len(loud)} images named as {loud[0]}: names end in .nii or .nii.gz, in lower case"
    old = [n for n in names if "_bold_space-" in n and n.split(".")[0].endswith("_preproc")]
    if old:
        space = old[0].split("_bold_space-")[1].split("_")[0]
        return (
            f"found {len(old)} images named …_bold_space-{space}_preproc; these are from before fMRIPrep 1.2, whose "
            "names are not BIDS's: rename them (…_space-X_desc-preproc_bold.nii.gz), list them in a table (--table), "
            "or run fMRIPrep anew"
        )
    for end, what in ((".dtseries.nii", "CIFTI (dtseries)"), (".func.gii", "GIFTI (surfaces)"), (".mgz", "MGZ")):
        if n := sum(name.endswith(end) for name in names):
            return (
                f"found {n} files of {what} only: ask for volumes (fMRIPrep: --output-spaces MNI152NLin2009cAsym), "
                "since decoders of whole brains need voxels"
            )
    images = Counter(n.split(".nii")[0].rsplit("_", 1)[-1] for n in names if ".nii" in n)
    if images:
        listed = ", ".join(f"{n} named …_{suffix}" for suffix, n in images.most_common(5))
        return f"found no image named …_{asked.suffix}, but {listed}"
    kinds = sorted({p.name for f in subjects for s in (f, *f.glob("ses-*")) if s.is_dir() for p in visible(s)})
    others = ", ".join(kind for kind in kinds if not kind.startswith("ses-")) or "nothing"
    return f"no {asked.kind} folder holds an image; there is {others}" + (
        "; for structural images take --anat T1w" if "anat" in kinds and asked.kind == "func" else ""
    )


def _events_there(asked: _Asked) -> list[str]:
    found: set[str] = set()
    for path in [*asked.raw.glob("sub-*/func/*events.tsv"), *asked.raw.glob("sub-*/ses-*/func/*events.tsv")][:_SHOWN]:
        try:
            found |= event_names(path, asked.trial_type)[0]
        except (ValueError, OSError):
            continue
    return sorted(found)


def _entities(name: str) -> dict[str, str]:
    """`sub-01_task-faces_bold.nii.gz` → sub: 01, task: faces."""
    return dict(part.split("-", 1) for part in name.split(".")[0].split("_") if "-" in part)


def _comparable(entities: dict[str, str]) -> dict[str, str]:
    """Entities with numbers without leading zeros."""
    return {k: str(int(v)) if k in _NUMBERS and v.isdecimal() else v for k, v in entities.items()}


def _same_space(mask: str, entities: dict[str, str]) -> bool:
    return all(_entities(mask).get(key) == entities.get(key) for key in ("space", "res"))


def _bids_name(root: Any) -> str:
    """The dataset's name, or its folder's if it states none."""
    try:
        name = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = ""
    return name.strip() if isinstance(name, str) and name.strip() else str(root.resolve().name)
