"""Find the runs of a dataset: a folder in HCP's layout, a BIDS folder."""

import json
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import pandas as pd

from deeplight_core.images import UNREADABLE
from deeplight_core.manifest import COLUMNS
from deeplight_core.tasks import TASKS

__all__ = ["scan_bids", "scan_hcp"]


def scan_hcp(root: str | Path, tasks: Iterable[str] = tuple(TASKS)) -> tuple[pd.DataFrame, list[str]]:
    """Find the task runs of an HCP folder: `<subject>/MNINonLinear/Results/tfMRI_<TASK>_<LR|RL>/`.

    Returns
    -------
    the manifest without splits, and a warning for each run that is missing or was left out: no image, no events, or
    another length than most runs of its task
    """
    root = Path(root)
    wanted, rows, warnings = set(tasks), [], []
    for folder in sorted(root.glob("*/MNINonLinear/Results/tfMRI_*_*")):
        _, task, run = folder.name.split("_", 2)
        if task not in wanted:
            continue
        image, evs, mask = folder / f"{folder.name}.nii.gz", folder / "EVs", folder / "brainmask_fs.2.nii.gz"
        if absent := [p.name for p in (image, evs) if not p.exists()]:
            warnings.append(f"{folder.relative_to(root)} left out: no {', '.join(absent)}")
        elif not any(path.stat().st_size for path in evs.glob("*.txt")):
            warnings.append(f"{folder.relative_to(root)} left out: all files in EVs are empty")
        else:
            rows.append(_row(root, "hcp", folder.relative_to(root).parts[0], "", task, run, image, evs, mask, []))
    table = _scanned(rows, root, "HCP runs (<subject>/MNINonLinear/Results/tfMRI_*)")
    usual = table.groupby("task")["n_volumes"].transform(lambda n: n.mode().iloc[0])
    for row, n in zip(table.to_dict("records"), usual, strict=True):
        if row["n_volumes"] != n:
            warnings.append(f"{row['image']} left out: {row['n_volumes']} volumes, most runs of {row['task']} have {n}")
    named = [f"tfMRI_{t}_{r}" for t, r in sorted({*zip(table["task"], table["run"], strict=True)})]
    for subject, own in table.groupby("subject"):
        there = {f"tfMRI_{t}_{r}" for t, r in zip(own["task"], own["run"], strict=True)}
        known = [name for name in named if (root / str(subject) / "MNINonLinear/Results" / name).exists()]
        if lacking := [name for name in named if name not in {*there, *known}]:
            warnings.append(f"subject {subject} has no {', '.join(lacking)}")
    return table[table["n_volumes"] == usual].reset_index(drop=True), warnings


def scan_bids(
    root: str | Path, tasks: Iterable[str] | None = None, derivatives: str = "", space: str = "", res: str = ""
) -> tuple[pd.DataFrame, list[str]]:
    """Find the task runs of a BIDS folder: `sub-*/[ses-*/]func/*_bold.nii[.gz]`, with events and sidecars.

    Parameters
    ----------
    derivatives : folder below `root` whose preprocessed images (`desc-preproc`, as fMRIPrep writes them) are taken in
        the place of the raw ones, e.g. `derivatives/fmriprep`; events and repetition times still come from the raw tree
    space, res : the images of this template and resolution only, where there are several

    Returns
    -------
    the manifest without splits, and a warning for each run that was left out. The mask is the `*_mask.nii[.gz]` in the
    image's folder whose entities are all the image's, where there is exactly one.
    """
    root = Path(root)
    base = root / derivatives
    if not base.is_dir():
        raise ValueError(f"there is no folder {base}; the derivatives are named relative to the BIDS root")
    wanted = None if tasks is None else set(tasks)
    found: dict[tuple[str, ...], list[tuple[Path, dict[str, str]]]] = {}
    for image in sorted([*base.glob("sub-*/func/*_bold.nii*"), *base.glob("sub-*/ses-*/func/*_bold.nii*")]):
        entities = _entities(image)
        if "task" not in entities or (wanted is not None and entities["task"] not in wanted):
            continue
        run = "-".join([*(entities[key] for key in _RUN_ENTITIES if key in entities), entities.get("run", "1")])
        key = (entities["sub"], entities.get("ses", ""), entities["task"], run)
        found.setdefault(key, []).append((image, entities))
    rows, warnings = [], []
    asked = {key: v for key, v in (("desc", "preproc" if derivatives else ""), ("space", space), ("res", res)) if v}
    for (subject, session, task, run), there in found.items():
        images = [(image, entities) for image, entities in there if asked.items() <= entities.items()]
        if not images:
            names = ", ".join(path.name for path, _ in there)
            warnings.append(f"run left out, no image of it has {_stem(asked)}: {names}")
            continue
        image, entities = images[0]
        if len(images) > 1:
            names = ", ".join(path.name for path, _ in images)
            warnings.append(f"{len(images)} images of one run left out: {names}; choose one by space and res")
            continue
        raw = {key: value for key, value in entities.items() if key not in _DERIVED_ENTITIES}
        parts = [f"sub-{subject}", *([f"ses-{session}"] if session else []), "func"]
        folders = [root.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
        events = _inherited(raw, folders, "*events.tsv")
        if not events:
            warnings.append(f"{image.relative_to(root)} left out: no {_stem(raw)}_events.tsv")
            continue
        if len(events[-1].read_bytes().splitlines()) < 2:
            warnings.append(f"{image.relative_to(root)} left out: no event in {events[-1].relative_to(root)}")
            continue
        masks = _inherited(entities, [image.parent], "*_mask.nii*", without="desc")
        masks = [mask for mask in masks if _same_grid(mask, entities)]
        if len(masks) > 1:
            warnings.append(
                f"{image.relative_to(root)}: {len(masks)} masks fit, none is used; name one in the manifest"
            )
        sidecars = [
            f for e, where in ((raw, folders), (entities, [image.parent])) for f in _inherited(e, where, "*bold.json")
        ]
        rows.append(
            _row(root, _bids_name(root), subject, session, task, run, image, events[-1],
                 masks[0] if len(masks) == 1 else None, sidecars)
        )  # fmt: skip
    return _scanned(rows, root, f"BIDS runs ({Path(derivatives) / 'sub-*/func/*_bold.nii.gz'})"), warnings


_RUN_ENTITIES = ("acq", "ce", "rec", "dir", "echo")  # what tells runs of a task apart, beside `run`
_DERIVED_ENTITIES = ("space", "res", "den", "desc", "cohort")  # of preprocessed images, not of raw ones


def _entities(path: Path) -> dict[str, str]:
    """`sub-01_task-faces_bold.nii.gz` → sub: 01, task: faces."""
    return dict(part.split("-", 1) for part in path.name.split(".")[0].split("_") if "-" in part)


def _stem(entities: dict[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _inherited(entities: dict[str, str], folders: list[Path], pattern: str, without: str = "") -> list[Path]:
    """The files that apply to an image by BIDS's inheritance principle, the one that has the say last.

    These are all whose entities (`without` one) are the image's, from the root's to those in the image's own folder.
    """
    files = [file for folder in folders for file in sorted(folder.glob(pattern), key=lambda p: len(_entities(p)))]
    own = [{key: value for key, value in _entities(file).items() if key != without} for file in files]
    return [file for file, its in zip(files, own, strict=True) if its.items() <= entities.items()]


def _same_grid(mask: Path, entities: dict[str, str]) -> bool:
    return all(_entities(mask).get(key) == entities.get(key) for key in ("space", "res"))


def _bids_name(root: Path) -> str:
    description = root / "dataset_description.json"
    try:
        name = json.loads(description.read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = root.resolve().name
    return str(name)


def _row(
    root: Path, dataset: str, subject: str, session: str, task: str, run: str,
    image: Path, events: Path, mask: Path | None, sidecars: list[Path],
) -> dict[str, object]:  # fmt: skip
    try:
        header = nib.load(image).header
        n_volumes = header.get_data_shape()[3]
        tr_s = float(header.get_zooms()[3])
        unit = header.get_xyzt_units()[1]
    except (*UNREADABLE, IndexError) as error:
        raise ValueError(f"{image} is not a readable 4-D NIfTI: {error}") from error
    if unit == "msec":
        tr_s /= 1000
    for sidecar in sidecars:  # BIDS: they are the authority on the repetition time
        try:
            tr_s = float(json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime", tr_s))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{sidecar} holds no readable RepetitionTime: {error}") from error
    return {
        "dataset": dataset, "subject": subject, "session": session, "task": task, "run": run,
        "image": image.relative_to(root).as_posix(), "events": events.relative_to(root).as_posix(),
        "mask": mask.relative_to(root).as_posix() if mask and mask.is_file() else "",
        "tr_s": round(tr_s, 6), "n_volumes": n_volumes, "split": "", "family": "", "sha256": "",
    }  # fmt: skip


def _scanned(rows: list[dict[str, object]], root: Path, what: str) -> pd.DataFrame:
    if not rows:
        raise ValueError(f"found no {what} below {root}; is this the dataset's root folder?")
    return pd.DataFrame(rows, columns=list(COLUMNS))
