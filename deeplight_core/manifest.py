"""The manifest: one row per run, what exists and who is in which split. Fixed here, never drawn inside training."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from deeplight_core.config import DataSettings
from deeplight_core.files import write_whole
from deeplight_core.tasks import TASKS

__all__ = [
    "COLUMNS",
    "UNREADABLE",
    "assign_splits",
    "read_manifest",
    "run_key",
    "scan_bids",
    "scan_hcp",
    "select",
    "unit_names",
    "write_manifest",
]

COLUMNS = (
    "dataset", "subject", "session", "task", "run", "image", "events", "mask",
    "tr_s", "n_volumes", "split", "family", "sha256",
)  # fmt: skip
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)  # of damaged NIfTI files
SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")


def read_manifest(path: str | Path, split_unit: Literal["subject", "run"] = "subject") -> pd.DataFrame:
    """Read and validate a manifest; free label columns are kept.

    Parameters
    ----------
    path : UTF-8 CSV with the columns of `COLUMNS`
    split_unit : what may not stand in two splits; "run" only where there is a single subject

    Raises
    ------
    ValueError
        With every problem of the file, each with its row (the header is row 1).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no manifest {path}; make one with `deeplight manifest --help`")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a UTF-8 CSV table: {error}") from error
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: rows have more cells than the header; is there a comma too many?")
    problems = _cell_problems(table) + _split_problems(table, split_unit)
    if len(table) == 0:
        problems.append((-1, "the manifest has no rows"))
    if problems:
        lines = [f"  row {row + 2}: {text}" for row, text in sorted(set(problems))]
        raise ValueError(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines))
    return table.astype({"tr_s": float, "n_volumes": int})


def _cell_problems(table: pd.DataFrame) -> list[tuple[int, str]]:
    import pandera.pandas as pa  # slow to import, and only a manifest that is read needs it

    text = pa.Check.str_matches(r"\S", error="must not be empty")
    relative = pa.Check(
        lambda path: not (Path(path).is_absolute() or ".." in Path(path).parts),
        element_wise=True,
        error="leaves the data root; paths are relative to it and go downwards only",
    )
    seconds = pa.Check(_is_tr, element_wise=True, error="must be seconds between 0.1 and 20")
    name = pa.Check.str_matches(r"^[\w.+-]*$", error="may hold letters, digits and . _ + - only")
    schema = pa.DataFrameSchema(
        {
            "dataset": pa.Column(str, text),
            "subject": pa.Column(str, [text, name]),
            "session": pa.Column(str, name),
            "task": pa.Column(str, [text, name]),
            "run": pa.Column(str, [text, name]),
            "image": pa.Column(str, [text, relative]),
            "events": pa.Column(str, [text, relative]),
            "mask": pa.Column(str, relative),
            "tr_s": pa.Column(str, seconds),
            "n_volumes": pa.Column(str, pa.Check.str_matches(r"^[1-9]\d{0,6}$", error="must be a whole number from 1")),
            "split": pa.Column(str, pa.Check.isin(SPLITS, error=f"must be one of {', '.join(SPLITS)}")),
            "family": pa.Column(str),
            "sha256": pa.Column(
                str, pa.Check.str_matches(r"^([0-9a-f]{64})?$", error="must be 64 hex digits or empty")
            ),
        }
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.itertuples()
        return [(int(case.index), f"{case.column} = {case.failure_case!r} {case.check}") for case in cases]
    return []


def _is_tr(cell: str) -> bool:
    try:
        return 0.1 <= float(cell) <= 20
    except ValueError:
        return False


def _split_problems(table: pd.DataFrame, split_unit: str) -> list[tuple[int, str]]:
    problems = []
    keys = ["subject", "session", "task", "run"]  # what names a run in the store
    for row in np.flatnonzero(table.duplicated(keys)):
        problems.append((int(row), f"repeats the run {run_key(table.iloc[row])} of an earlier row"))
    for row in np.flatnonzero(table.duplicated("image")):
        problems.append((int(row), f"repeats the image {table['image'].iloc[row]} of an earlier row"))
    if split_unit == "run":
        return problems
    for column in ("subject", "family"):
        named = table[table[column] != ""]
        first = named.groupby(column)["split"].transform("first")
        for row in named.index[named["split"] != first]:
            problems.append(
                (int(row), f"{column} {table.loc[row, column]} is in split {table.loc[row, 'split']}, "
                           f"but in {first[row]} in an earlier row; a {column} belongs to one split")
            )  # fmt: skip
    return problems


def write_manifest(table: pd.DataFrame, path: str | Path) -> None:
    """Write a manifest atomically, standard columns first."""
    path = Path(path)
    extra = [c for c in table.columns if c not in COLUMNS]
    write_whole(path, lambda p: table[[*COLUMNS, *extra]].to_csv(p, index=False, lineterminator="\n"))


def run_key(row: pd.Series) -> str:
    """The run's name in the store and in messages, e.g. `sub-01_task-WM_run-LR`."""
    session = f"_ses-{row['session']}" if row["session"] else ""
    return f"sub-{row['subject']}{session}_task-{row['task']}_run-{row['run']}"


def unit_names(table: pd.DataFrame, split_unit: Literal["subject", "run"]) -> pd.Series:
    """What each row counts as in splits, fractions and statistics: its subject, or its run."""
    return table["subject"] if split_unit == "subject" else table.apply(run_key, axis=1)


def select(table: pd.DataFrame, data: DataSettings) -> pd.DataFrame:
    """The rows that an experiment uses: its tasks, and the first `max_units` units of each split."""
    tasks = {*data.source, *data.target}
    if missing := sorted(tasks - set(table["task"])):
        raise ValueError(
            f"the manifest has no runs of {', '.join(missing)}; it has {', '.join(sorted(set(table['task'])))}"
        )
    chosen = table[table["task"].isin(tasks)]
    if data.max_units:
        units = unit_names(chosen, data.split_unit)
        keep: set[str] = set()
        for split in SPLITS:
            keep |= set(sorted(units[chosen["split"] == split].unique())[: data.max_units.get(split)])
        chosen = chosen[units.isin(keep)]
    for split in SPLITS:
        if split not in set(chosen["split"]):
            raise ValueError(f"the manifest leaves no {split} runs for tasks {', '.join(sorted(tasks))}")
    return chosen.reset_index(drop=True)


def assign_splits(
    table: pd.DataFrame, split_unit: Literal["subject", "run"], n_validation: int, seed: int
) -> pd.DataFrame:
    """Hold out `n_validation` units, drawn with `seed`; members of a family stay together."""
    units = unit_names(table, split_unit)
    groups = units.where(table["family"] == "", table["family"]) if split_unit == "subject" else units
    names = sorted(groups.unique())
    sizes = units.groupby(groups).nunique()
    held_out: set[str] = set()
    for name in np.random.default_rng(seed).permutation(names):
        if sum(sizes[g] for g in held_out) < n_validation:
            held_out.add(str(name))
    if len(held_out) == len(names):
        raise ValueError(
            f"holding out {n_validation} of {units.nunique()} {split_unit}s leaves none to train on; ask for fewer"
        )
    return table.assign(split=np.where(groups.isin(held_out), "validation", "train"))


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
