"""The manifest: what exists and who is in which split. Fixed here, never drawn inside training.

One row per run of fMRI or per structural image: one volume, without events or repetition time. A run of rest has no
events either.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from deeplight_core.preparation import TRIAL_TYPE, DataSettings
from deeplight_core.system.files import MISSING, read_table, write_whole

__all__ = [
    "COLUMNS",
    "CONTRASTS",
    "SPLITS",
    "add_subject_columns",
    "assign_splits",
    "is_structural",
    "moved_root",
    "read_left_out",
    "read_manifest",
    "read_notes",
    "run_key",
    "select",
    "start_of",
    "unit_names",
    "write_manifest",
    "write_notes",
]

COLUMNS = (
    "dataset", "subject", "session", "task", "run", "image", "events", "mask",
    "tr_s", "n_volumes", "split", "family", "sha256",
)  # fmt: skip
CONTRASTS = ("T1w", "T2w", "PDw", "FLAIR")  # suffixes of structural images in BIDS that name their contrast
SPLITS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


def read_manifest(path: str | Path, split_unit: Literal["subject", "run"] = "subject") -> pd.DataFrame:
    """Read and validate a manifest; free label columns are kept.

    Parameters
    ----------
    path : UTF-8 CSV with the columns of `COLUMNS`
    split_unit : what belongs to one split as a whole; "run" only for a single subject

    Raises
    ------
    ValueError
        With every problem of the file, each with its row (the header is row 1).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no manifest {path}; make one with `deeplight manifest --help`")
    table = read_table(path)
    table = table.apply(_unstated)
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise ValueError(f"{path}: missing column(s) {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    problems = _cell_problems(table) + _kind_problems(table) + _split_problems(table, split_unit)
    problems += _suffix_problems(table) + _start_problems(table)
    if len(table) == 0:
        problems.append((-1, "the manifest has no rows"))
    if problems:
        lines = [f"  row {row + 2}: {text}" for row, text in sorted(set(problems))]
        raise ValueError(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines))
    return table.assign(tr_s=pd.to_numeric(table["tr_s"])).astype({"tr_s": float, "n_volumes": int})


def _unstated(cells: pd.Series) -> pd.Series:
    """A column of the manifest or of a table of subjects, in which n/a is spelled so and no family is empty."""
    if cells.name in COLUMNS and cells.name != "family":
        return cells
    nothing = "" if cells.name == "family" else "n/a"
    return cells.mask(cells.str.lower().isin(MISSING) & (cells != ""), nothing)


def _cell_problems(table: pd.DataFrame) -> list[tuple[int, str]]:
    import pandera.pandas as pa  # slow to import, and only needed here

    text = pa.Check.str_matches(r"\S", error="must not be empty")
    relative = pa.Check(
        lambda path: not (Path(path).is_absolute() or ".." in Path(path).parts or "\x00" in path),
        element_wise=True,
        error="leaves the data root; paths are relative to it and go downwards only",
    )
    seconds = pa.Check(_is_tr, element_wise=True, error="must be seconds between 0.1 and 20")
    name = pa.Check.str_matches(r"[\w.+-]*\Z", error="may hold letters, digits and . _ + - only")
    schema = pa.DataFrameSchema(
        {
            "dataset": pa.Column(str, text),
            "subject": pa.Column(str, [text, name]),
            "session": pa.Column(str, name),
            "task": pa.Column(str, [text, name]),
            "run": pa.Column(str, [text, name]),
            "image": pa.Column(str, [text, relative]),
            "events": pa.Column(str, relative),
            "mask": pa.Column(str, relative),
            "tr_s": pa.Column(str, seconds),
            "n_volumes": pa.Column(
                str, pa.Check.str_matches(r"[1-9][0-9]{0,6}\Z", error="must be a whole number, at least 1")
            ),
            "split": pa.Column(str, pa.Check.isin(SPLITS, error=f"must be one of {', '.join(SPLITS)}")),
            "family": pa.Column(str),
            "sha256": pa.Column(
                str, pa.Check.str_matches(r"([0-9a-f]{64})?\Z", error="must be 64 hex digits or empty")
            ),
        }
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.itertuples()
        return [(int(case.index), f"{case.column} = {case.failure_case!r} {case.check}") for case in cases]
    return []


def _kind_problems(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Rows that are neither a run of fMRI nor a structural image."""
    rows = zip(table["events"], table["tr_s"], table["n_volumes"], strict=True)
    return [
        (row, f"tr_s = '' must be seconds, with events = {events!r} and n_volumes = {n!r}; "
              "only a structural image (no events, one volume) has no repetition time")
        for row, (events, tr_s, n) in enumerate(rows)
        if tr_s == "" and (events, n) != ("", "1")
    ]  # fmt: skip


def _suffix_problems(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Rows whose file is named after another contrast than their task, such as T1w and `sub-01_T2w.nii.gz`."""
    named = table["image"].str.extract(r"_([A-Za-z0-9]+)\.nii(?:\.gz)?$")[0]
    wrong = named.isin(CONTRASTS) & table["task"].isin(CONTRASTS) & (named != table["task"])
    return [
        (int(row), f"task = {table.loc[row, 'task']!r}, but {table.loc[row, 'image']} is named {named[row]}; "
                   "correct one of them")
        for row in table.index[wrong]
    ]  # fmt: skip


def _start_problems(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Rows whose `start_s`, if the manifest has this column, is no time."""
    cells = table.get("start_s", pd.Series(dtype=str))
    return [
        (row, f"start_s = {cell!r} must be seconds from the run's beginning to its first volume, or empty")
        for row, cell in enumerate(cells)
        if not re.fullmatch(r"([0-9]+(\.[0-9]*)?)?", cell)
    ]


def start_of(row: pd.Series) -> float:
    """When a run's first volume was acquired, in seconds: its `start_s`, if the manifest has this column, else 0."""
    return float(row.get("start_s") or 0.0)


def _is_tr(cell: str) -> bool:
    if not re.fullmatch(r"[0-9.eE+-]*", cell):
        return False
    try:
        return cell == "" or 0.1 <= float(cell) <= 20  # a structural image has none
    except ValueError:
        return False


def _split_problems(table: pd.DataFrame, split_unit: str) -> list[tuple[int, str]]:
    problems = []
    keys = ["subject", "session", "task", "run"]  # they name a run in the store
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


def is_structural(rows: pd.DataFrame | pd.Series) -> Any:
    """Whether a row, or each row, of a manifest is a structural image: these have no repetition time."""
    return pd.isna(pd.to_numeric(rows["tr_s"]))


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
    """The unit of each row in splits, fractions and statistics: its subject, or its run."""
    return table["subject"] if split_unit == "subject" else table.apply(run_key, axis=1)


def select(table: pd.DataFrame, data: DataSettings) -> pd.DataFrame:
    """The rows that an experiment uses: its tasks, and the first `max_units` units of each split."""
    tasks = {*data.tasks()}
    if not tasks:
        raise ValueError("neither data.source nor data.target names a task; name the states of at least one")
    if missing := sorted(tasks - set(table["task"])):
        there = ", ".join(sorted(set(table["task"])))
        message = f"the manifest has no runs of {', '.join(missing)}; it has {there}"
        if data.source == type(data)().source and {*missing} <= {*data.tasks("source")}:
            message += (
                ". The profile names no source, so it is the paper's. For a study without one write `source: {}` in "
                "`data`: its decoders are trained from scratch, are linear (variants scratch, linear), or start from a "
                "given checkpoint (`deeplight finetune --from`), since there is nothing to pre-train on"
            )
        raise ValueError(message)
    chosen = table[table["task"].isin(tasks)]
    if data.max_units:
        units = unit_names(chosen, data.split_unit)
        keep: set[str] = set()
        for split in SPLITS:
            keep |= set(sorted(units[chosen["split"] == split].unique())[: data.max_units.get(split)])
        chosen = chosen[units.isin(keep)]
    for needed in (["train"], ["validation", "test"]):
        if not chosen["split"].isin(needed).any():
            raise ValueError(
                f"the manifest leaves no {' or '.join(needed)} runs for tasks {', '.join(sorted(tasks))}; hold out "
                "subjects that did them (`deeplight manifest --validation`, or another --seed)"
            )
    return chosen.reset_index(drop=True)


def add_subject_columns(table: pd.DataFrame, path: Path, labels: list[str]) -> pd.DataFrame:
    """Add the subjects' family and other columns to a manifest, from a table of subjects (CSV or TSV).

    The subject's column is `subject`, `participant_id` or `Subject` (HCP); the family's is `family`, `Family_ID` or
    `Pedigree_ID` (HCP's restricted table). Only the family and the columns asked for are copied.

    Raises
    ------
    ValueError
        If the table is unreadable, lacks a column or a subject, or names a subject twice.
    """
    if not path.is_file():
        raise ValueError(f"there is no table {path}; name the table of subjects, e.g. participants.tsv")
    people = read_table(path)
    names = next((c for c in ("subject", "participant_id", "Subject") if c in people), None)
    if missing := [*([] if names else ["participant_id (or subject)"]), *(c for c in labels if c not in people)]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, people))}")
    family = next((c for c in ("family", "Family_ID", "Pedigree_ID") if c in people), None)
    people = people.set_index(people[names].str.removeprefix("sub-"))[
        [*dict.fromkeys([*filter(None, [family]), *labels])]
    ]
    people = people.apply(_unstated)
    people = people[~(people.reset_index().duplicated().to_numpy())]  # a row for each session, all of them equal
    if repeated := sorted({*people.index[people.index.duplicated()]}):
        differing = [str(c) for c, n in people.groupby(level=0).nunique().max().items() if n > 1]
        raise ValueError(
            f"{path} names {', '.join(repeated[:10])} more than once, with different {', '.join(differing)}; keep one "
            "row of each"
        )
    if unknown := sorted({*table["subject"]} - {*people.index}):
        raise ValueError(
            f"{path} has no row for {len(unknown)} subject(s) of the manifest: {', '.join(unknown[:10])}; its "
            f"{names} are {', '.join(people.index.unique()[:5])} …"
        )
    if family:
        table = table.assign(family=people.loc[table["subject"], family].replace("n/a", "").to_numpy())
    return table.assign(**{column: people.loc[table["subject"], column].to_numpy() for column in labels})


def assign_splits(
    table: pd.DataFrame,
    split_unit: Literal["subject", "run"],
    n_validation: int,
    seed: int,
    stratify: str = "",
    n_test: int = 0,
) -> pd.DataFrame:
    """Hold out `n_validation` units, then `n_test` others, drawn with `seed`; members of a family stay together.

    Parameters
    ----------
    stratify : label column whose values are as frequent among the held-out units as among all; a column of numbers
        with more than four values is divided into quarters
    """
    units = unit_names(table, split_unit)
    groups = units.where(table["family"] == "", table["family"]) if split_unit == "subject" else units
    stratum = _strata(table, stratify) if stratify else pd.Series("", index=table.index)
    counts = pd.crosstab(groups, stratum, values=units, aggfunc="nunique").fillna(0)  # of units, per group
    total = units.nunique()
    splits = pd.Series("train", index=counts.index)
    order = np.random.default_rng(seed).permutation(sorted(groups.unique()))
    for split, n in (("validation", n_validation), ("test", n_test)):
        share = counts.sum() * n / total  # of each stratum to hold out
        for limit in (np.ceil(share - 1e-9), share * 0 + total):  # no stratum above its share; then fill up
            for name in order:
                taken = counts[splits == split].sum()
                if taken.sum() < n and splits[name] == "train" and (taken + counts.loc[name] <= limit).all():
                    splits[name] = split
    if not (splits == "train").any():
        asked = f"{n_validation} + {n_test}" if n_test else n_validation
        remedy = "ask for fewer"
        if total == 1:
            remedy = "hold out some of a single subject's runs: --split-unit run" if split_unit == "subject" else ""
            remedy = remedy or "one run cannot be divided"
        elif groups.nunique() < total:
            remedy += f", or look at the families: these {total} {split_unit}s are {groups.nunique()} families"
        raise ValueError(f"holding out {asked} of {total} {split_unit}s leaves none to train on; {remedy}")
    return table.assign(split=groups.map(splits))


def _strata(table: pd.DataFrame, column: str) -> pd.Series:
    if column not in table:
        raise ValueError(f"the manifest has no column {column} to stratify by; it has {', '.join(table.columns)}")
    values = table[column].astype(str)
    if empty := sorted({*table.loc[values.str.lower().isin(MISSING), "subject"]}):
        raise ValueError(
            f"{column} is {'empty' if (values == '').any() else 'n/a'} for {', '.join(empty[:10])}; fill it, leave "
            "them out, or do not stratify by it"
        )
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or numbers.nunique() <= 4:
        return values
    return pd.qcut(numbers, 4, labels=False, duplicates="drop").astype(str)


def write_notes(
    path: Path,
    root: str,
    layout: str,
    split_unit: str,
    states: dict[str, dict[str, list[str]]],
    left_out: pd.DataFrame | None = None,
    preprocessing: dict[str, Any] | None = None,
    trial_type: Sequence[str] = TRIAL_TYPE,
) -> None:
    """Write what a manifest's table cannot say beside it: `….source.json` (where the data are) and `….left-out.csv`.

    Parameters
    ----------
    preprocessing : settings of the preprocessing that were asked for with the manifest
    """
    listed = pd.DataFrame(columns=["path", "reason"]) if left_out is None else left_out
    notes: dict[str, Any] = {"root": root, "layout": layout, "split_unit": split_unit, "states": states}
    notes |= {"preprocessing": preprocessing} if preprocessing else {}
    notes |= {"trial_type": [*trial_type]} if [*trial_type] != [*TRIAL_TYPE] else {}
    write_whole(
        path.with_suffix(".source.json"), lambda p: p.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    )
    write_whole(path.with_suffix(".left-out.csv"), lambda p: listed.to_csv(p, index=False, lineterminator="\n"))


def read_notes(path: Path) -> dict[str, Any]:
    """The root, layout, unit of splits and states that a manifest was made with; and its preprocessing and the columns
    of trial types, if they were named.

    Raises
    ------
    ValueError
        If the file beside the manifest is missing or unreadable.
    """
    notes = path.with_suffix(".source.json")
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
        named = {key: found[key] for key in ("preprocessing", "trial_type") if key in found}
        return {key: found[key] for key in ("root", "layout", "split_unit", "states")} | named
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not path.is_file():
            raise ValueError(f"there is no manifest {path}; make one with `deeplight manifest`") from None
        raise ValueError(
            f"{notes}, which says where the data of {path} are, cannot be read ({error}); make both anew with "
            "`deeplight manifest`, or write a profile"
        ) from None


def moved_root(manifest_path: Path, root: Any) -> str:
    """Advice if a manifest was made for another root; empty if not, or if nothing is noted."""
    try:
        made_for = str(read_notes(manifest_path)["root"])
    except ValueError:
        return ""
    if made_for == str(root):
        return ""
    return f"\nThe manifest was made for the root {made_for}: set data.root to it (or give --data)"


def read_left_out(path: Path) -> pd.DataFrame:
    """`path, reason` of what the scan left out of a manifest; empty if there is no list."""
    listed = path.with_suffix(".left-out.csv")
    return pd.read_csv(listed, dtype=str) if listed.is_file() else pd.DataFrame(columns=["path", "reason"])
