"""The manifest: one row per run, what exists and who is in which split. Fixed here, never drawn inside training."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
import pandera.pandas as pa

from deeplight_core.config import DataSettings
from deeplight_core.tasks import TASKS

__all__ = [
    "COLUMNS",
    "assign_splits",
    "file_sha256",
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
SPLITS = ("train", "validation")

_TEXT = pa.Check.str_matches(r"\S", error="must not be empty")
_RELATIVE = pa.Check(
    lambda path: not (Path(path).is_absolute() or ".." in Path(path).parts),
    element_wise=True,
    error="leaves the data root; paths are relative to it and go downwards only",
)
_NAME = pa.Check.str_matches(r"^[\w.+-]*$", error="may hold letters, digits and . _ + - only")
_SCHEMA = pa.DataFrameSchema(
    {
        "dataset": pa.Column(str, _TEXT),
        "subject": pa.Column(str, [_TEXT, _NAME]),
        "session": pa.Column(str, _NAME),
        "task": pa.Column(str, [_TEXT, _NAME]),
        "run": pa.Column(str, [_TEXT, _NAME]),
        "image": pa.Column(str, [_TEXT, _RELATIVE]),
        "events": pa.Column(str, [_TEXT, _RELATIVE]),
        "mask": pa.Column(str, _RELATIVE),
        "tr_s": pa.Column(float, pa.Check.in_range(0.1, 20, error="must be seconds between 0.1 and 20"), coerce=True),
        "n_volumes": pa.Column(int, pa.Check.ge(1, error="must be at least 1"), coerce=True),
        "split": pa.Column(str, pa.Check.isin(SPLITS, error=f"must be one of {', '.join(SPLITS)}")),
        "family": pa.Column(str),
        "sha256": pa.Column(str, pa.Check.str_matches(r"^([0-9a-f]{64})?$", error="must be 64 hex digits or empty")),
    }
)


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
    problems: list[tuple[int, str]] = []
    checked = table
    try:
        checked = _SCHEMA.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        for case in error.failure_cases.itertuples():
            row = 0 if case.index is None or pd.isna(case.index) else int(case.index)
            reason = "must be a number" if str(case.check).startswith("coerce_dtype") else case.check
            if not str(case.check).startswith("dtype("):
                problems.append((row, f"{case.column} = {case.failure_case!r} {reason}"))
    problems += _split_problems(table, split_unit)
    if len(table) == 0:
        problems.append((-1, "the manifest has no rows"))
    if problems:
        lines = [f"  row {row + 2}: {text}" for row, text in sorted(set(problems))]
        raise ValueError(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines))
    return checked


def _split_problems(table: pd.DataFrame, split_unit: str) -> list[tuple[int, str]]:
    problems = []
    keys = ["dataset", "subject", "session", "task", "run"]
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
    temporary = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    table[[*COLUMNS, *extra]].to_csv(temporary, index=False, lineterminator="\n")
    temporary.replace(path)


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
        raise ValueError(f"the manifest has no runs of {', '.join(missing)}; it has {', '.join(sorted(set(table['task'])))}")
    chosen = table[table["task"].isin(tasks)]
    if data.max_units:
        units = unit_names(chosen, data.split_unit)
        keep: set[str] = set()
        for split, n in data.max_units.items():
            keep |= set(sorted(units[chosen["split"] == split].unique())[:n])
        chosen = chosen[units.isin(keep)]
    for split in SPLITS:
        if split not in set(chosen["split"]):
            raise ValueError(f"the manifest leaves no {split} runs for tasks {', '.join(sorted(tasks))}")
    return chosen.reset_index(drop=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def assign_splits(table: pd.DataFrame, split_unit: Literal["subject", "run"], n_validation: int, seed: int) -> pd.DataFrame:
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
    the manifest without splits, and a warning for each run that was left out
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
            continue
        rows.append(_row(root, "hcp", folder.relative_to(root).parts[0], "", task, run, image, evs, mask))
    return _scanned(rows, root, "HCP runs (<subject>/MNINonLinear/Results/tfMRI_*)"), warnings


def scan_bids(root: str | Path, tasks: Iterable[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Find the task runs of a BIDS folder: `sub-*/[ses-*/]func/*_bold.nii[.gz]` with `_events.tsv` beside them.

    The mask is the run's or the subject's `*_mask.nii.gz` in the same folder, where there is exactly one that fits.
    """
    root = Path(root)
    wanted = None if tasks is None else set(tasks)
    rows, warnings = [], []
    for image in sorted([*root.glob("sub-*/func/*_bold.nii*"), *root.glob("sub-*/ses-*/func/*_bold.nii*")]):
        stem = image.name.split("_bold.nii")[0]
        entities = dict(re.findall(r"(sub|ses|task|run)-([A-Za-z0-9]+)", stem))
        if "task" not in entities or (wanted is not None and entities["task"] not in wanted):
            continue
        events = image.with_name(f"{stem}_events.tsv")
        if not events.is_file():
            warnings.append(f"{image.relative_to(root)} left out: no {events.name} beside it")
            continue
        masks = [p for p in image.parent.glob("*_mask.nii*") if stem.startswith(re.split(r"_(desc|space)-", p.name)[0])]
        if len(masks) > 1:
            warnings.append(f"{image.relative_to(root)}: {len(masks)} masks fit, none is used; name one in the manifest")
        rows.append(
            _row(root, _bids_name(root), entities["sub"], entities.get("ses", ""), entities["task"],
                 entities.get("run", "1"), image, events, masks[0] if len(masks) == 1 else None)
        )  # fmt: skip
    return _scanned(rows, root, "BIDS runs (sub-*/func/*_bold.nii.gz)"), warnings


def _bids_name(root: Path) -> str:
    description = root / "dataset_description.json"
    try:
        name = json.loads(description.read_text(encoding="utf-8"))["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = root.resolve().name
    return str(name)


def _row(
    root: Path, dataset: str, subject: str, session: str, task: str, run: str,
    image: Path, events: Path, mask: Path | None,
) -> dict[str, object]:  # fmt: skip
    try:
        header = nib.load(image).header
        n_volumes = header.get_data_shape()[3]
        tr_s = float(header.get_zooms()[3])
        unit = header.get_xyzt_units()[1]
    except (OSError, IndexError, nib.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{image} is not a readable 4-D NIfTI: {error}") from error
    sidecar = image.with_name(image.name.split(".nii")[0] + ".json")
    if sidecar.is_file():  # BIDS: the sidecar is the authority on the repetition time
        tr_s = float(json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime", tr_s))
    elif unit == "msec":
        tr_s /= 1000
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
