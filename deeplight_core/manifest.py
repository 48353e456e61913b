"""The manifest: one row per run, what exists and who is in which split. Fixed here, never drawn inside training."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from deeplight_core.config import DataSettings
from deeplight_core.files import write_whole

__all__ = [
    "COLUMNS",
    "assign_splits",
    "read_manifest",
    "run_key",
    "select",
    "unit_names",
    "write_manifest",
]

COLUMNS = (
    "dataset", "subject", "session", "task", "run", "image", "events", "mask",
    "tr_s", "n_volumes", "split", "family", "sha256",
)  # fmt: skip
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
