"""The manifest: one row per run, what exists and who is in which split. Fixed here, never drawn inside training."""

import json
import re
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
        masks = [p for p in image.parent.glob("*_mask.nii*") if f"{stem}_".startswith(_mask_of(p))]
        if len(masks) > 1:
            warnings.append(
                f"{image.relative_to(root)}: {len(masks)} masks fit, none is used; name one in the manifest"
            )
        rows.append(
            _row(root, _bids_name(root), entities["sub"], entities.get("ses", ""), entities["task"],
                 entities.get("run", "1"), image, events, masks[0] if len(masks) == 1 else None)
        )  # fmt: skip
    return _scanned(rows, root, "BIDS runs (sub-*/func/*_bold.nii.gz)"), warnings


def _mask_of(mask: Path) -> str:
    """The start of the names that a mask is for: `sub-01_` of `sub-01_desc-brain_mask.nii.gz`."""
    return re.split(r"(?<=_)(?:desc-|space-|mask\.)", mask.name)[0]


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
    except (*UNREADABLE, IndexError) as error:
        raise ValueError(f"{image} is not a readable 4-D NIfTI: {error}") from error
    sidecar = image.with_name(image.name.split(".nii")[0] + ".json")
    if sidecar.is_file():  # BIDS: the sidecar is the authority on the repetition time
        try:
            tr_s = float(json.loads(sidecar.read_text(encoding="utf-8")).get("RepetitionTime", tr_s))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{sidecar} holds no readable RepetitionTime: {error}") from error
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
