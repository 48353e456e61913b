"""Examples: the volumes of each, its target, and its unit.

Knows no torch and reads no file. Letters: N examples, L frames of a clip, K targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "Examples",
    "clips",
    "described_columns",
    "draw_units",
    "fold_units",
    "of_anything",
    "of_numbers",
    "of_states",
    "permuted",
    "unit_statistics",
    "windows",
    "with_columns",
]


_MISSING = ("", "n/a", "nan")
_OLDEST_YEARS = 125


@dataclass(frozen=True)
class Examples:
    """Examples of a store, numbered, so that a batch is a function of seed and step.

    rows : the volumes that may be read, as in the store's index (`file, row, …`)
    table : (N) one row per example, that of its first volume in the index: `unit, split, task, run, frame, block, …`
    members : which rows make an example: (N,) volumes, (N, L) clips, (N, 3, L) begin-middle-end windows
    targets : (N,) labels; (N, K) numbers, NaN where one is missing; (N, 0) where there is nothing to decode
    seen : (V,) the in-mask voxels that are seen, the others being zero (None = all)
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    members: np.ndarray
    targets: np.ndarray
    seen: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.table)

    @property
    def volumes_each(self) -> int:
        """Volumes in an example."""
        return int(np.prod(self.members.shape[1:], dtype=int))


def _of_volumes(rows: pd.DataFrame, targets: np.ndarray, asked: str) -> Examples:
    """Every row is an example; raises ValueError, naming what was asked for, if there is none."""
    if rows.empty:
        raise ValueError(f"the store has no {asked}")
    return Examples(rows, rows, np.arange(len(rows)), targets)


def _chosen(index: pd.DataFrame, split: str, units: list[str] | None) -> tuple[pd.DataFrame, str]:
    """The index rows of a split ("": all) and units, and how messages about them end."""
    rows = index[index["split"] == split] if split else index
    return (rows, "") if units is None else (rows[rows["unit"].isin(units)], f" for {units}")


def of_states(
    index: pd.DataFrame, states: list[tuple[str, str]], split: str = "", units: list[str] | None = None
) -> Examples:
    """Volumes of (task, state) pairs; a label is the position in `states`.

    Raises
    ------
    ValueError
        If there is no such volume.
    """
    labels = pd.Series({pair: label for label, pair in enumerate(states)}, dtype="int64")
    rows, of_units = _chosen(index, split, units)
    label = labels.reindex(pd.MultiIndex.from_frame(rows[["task", "state"]])).to_numpy()
    known = np.isfinite(label.astype(float))
    asked = f"{split} volumes of {sorted({t for t, _ in states})}{of_units}".lstrip()
    return _of_volumes(rows[known].reset_index(drop=True), label[known].astype(np.int64), asked)


def of_numbers(
    index: pd.DataFrame,
    columns: list[str],
    tasks: list[str],
    split: str = "",
    units: list[str] | None = None,
    levels: Mapping[str, list[str]] | None = None,
) -> Examples:
    """Volumes of tasks, with numbers from columns of the manifest as targets; volumes without any number are left out.

    Parameters
    ----------
    levels : the values of columns that do not hold numbers; a target is then the value's place, from 0

    Raises
    ------
    ValueError
        If a column is absent, holds something that is not a number or not one of its values, or ages that are no years,
        or there is no such volume.
    """
    levels = levels or {}
    if missing := [column for column in columns if column not in index]:
        raise ValueError(f"the manifest has no column {', '.join(missing)}; it has {', '.join(map(str, index))}")
    rows, of_units = _chosen(index[index["task"].isin(tasks)], split, units)
    if rows.empty:
        asked = f"{split} volumes of {', '.join(tasks)}{of_units}".lstrip()
        raise ValueError(f"the store has no {asked}; those without a state are kept with preprocessing.keep: all")
    texts = rows[columns].astype(str).replace(dict.fromkeys(_MISSING, ""))
    for column in levels:
        texts[column] = _places(texts[column], levels[column], rows["unit"])
    numbers = texts.apply(pd.to_numeric, errors="coerce")
    wrong = (numbers.isna() & (texts != "")).to_numpy()
    if wrong.any():
        found = {(columns[j], rows["unit"].iloc[i], texts.iat[i, j]) for i, j in zip(*wrong.nonzero(), strict=True)}
        named = "; ".join(f"{column} of {unit} is {text!r}" for column, unit, text in sorted(found)[:10])
        raise ValueError(f"not a number: {named}; correct the manifest (an empty cell or n/a is a missing value)")
    if "age" in columns and (old := numbers["age"] > _OLDEST_YEARS).any():
        unit, value = rows.loc[old, "unit"].iloc[0], numbers.loc[old, "age"].iloc[0]
        raise ValueError(f"age of {unit} is {value:g}; years are expected (of months, a twelfth); correct the manifest")
    known = numbers.notna().any(axis=1).to_numpy()
    asked = f"{split} volumes of {', '.join(tasks)} with {' or '.join(columns)}{of_units}".lstrip()
    return _of_volumes(rows[known].reset_index(drop=True), numbers[known].to_numpy(np.float32), asked)


def _places(texts: pd.Series, levels: list[str], units: pd.Series) -> pd.Series:
    """The places of values among the levels, as texts; "" where a value is missing."""
    places = {level: str(place) for place, level in enumerate(levels)} | {"": ""}
    if (strange := ~texts.isin([*places])).any():
        n, value, unit = texts[strange].nunique(), texts[strange].iloc[0], units[strange].iloc[0]
        raise ValueError(
            f"{texts.name} of {unit} is {value!r}, which is none of {', '.join(levels)} ({n} such values); a free text "
            "cannot be decoded: name all values in the profile, or correct the manifest"
        )
    return texts.map(places)


def of_anything(index: pd.DataFrame, tasks: list[str], split: str = "", units: list[str] | None = None) -> Examples:
    """All volumes of tasks, with or without a state, and nothing to decode.

    Raises
    ------
    ValueError
        If there is none.
    """
    rows, of_units = _chosen(index[index["task"].isin(tasks)], split, units)
    asked = f"{split} volumes of {', '.join(tasks)}{of_units}".lstrip()
    return _of_volumes(rows.reset_index(drop=True), np.empty((len(rows), 0), np.float32), asked)


def described_columns(examples: Examples, columns: list[str]) -> list[dict[str, Any]]:
    """Columns of the index as targets: `{"column", "levels"}`, the levels in order, or None for a column of numbers.

    Raises
    ------
    ValueError
        If a column is absent, or has fewer than two values in these examples.
    """
    found = []
    for column in columns:
        if column not in examples.table:
            there = ", ".join(map(str, examples.table))
            raise ValueError(f"the manifest has no column {column}; it has {there}")
        known = examples.table[column].astype(str)
        known = known[~known.isin(_MISSING)]
        levels = sorted(set(known))
        if len(levels) < 2:
            raise ValueError(
                f"column {column} has {'no value' if not levels else f'the value {levels[0]} only'} in the "
                f"{len(examples)} training examples; nothing can be learnt from it"
            )
        is_number = pd.to_numeric(pd.Series(levels), errors="coerce").notna().all()
        found.append({"column": column, "levels": None if is_number else levels})
    return found


def with_columns(examples: Examples, described: list[dict[str, Any]]) -> Examples:
    """The examples with columns as targets (N, K): numbers, or the places of their levels; NaN where one is missing.

    Parameters
    ----------
    described : see `described_columns`
    """
    targets = np.full((len(examples), len(described)), np.nan, np.float32)
    for i, target in enumerate(described):
        texts = examples.table[target["column"]].astype(str)
        if target["levels"] is None:
            targets[:, i] = pd.to_numeric(texts.where(~texts.isin(_MISSING)), errors="raise")
        else:
            place = pd.Series(range(len(target["levels"])), index=target["levels"], dtype=np.float32)
            targets[:, i] = place.reindex(texts).to_numpy()
    return replace(examples, targets=targets)


def clips(volumes: Examples, length: int, step: int = 1, encoded: int | None = None) -> Examples:
    """Clips of `length` consecutive frames of one block, one every `step` frames.

    Parameters
    ----------
    volumes : volumes as examples; a clip's target is that of its first frame
    encoded : how many frames of a clip are its members, evenly spaced (None = all)

    Raises
    ------
    ValueError
        If no block has that many consecutive frames.
    """
    return _of_sequences(volumes, _spaced(length, encoded), length, step, ["file", "block"], f"clip of {length} frames")


def windows(
    volumes: Examples, length: int, gap: int = 0, step: int = 1, encoded: int | None = None, control: str = "none"
) -> Examples:
    """Windows of one run: beginning, middle and end of `length` consecutive frames each, with `gap` frames in between.

    A window begins every `step` frames, whatever the labels.

    Parameters
    ----------
    volumes : volumes as examples
    encoded : see `clips`
    control : "order": the three windows of an example come in random order; "run": its beginning is that of an example
        of another run, of the same unit where it has one

    Raises
    ------
    ValueError
        If no run has that many consecutive frames.
    """
    offsets, whole = np.arange(3)[:, None] * (length + gap) + _spaced(length, encoded), 3 * length + 2 * gap
    found = _of_sequences(volumes, offsets, whole, step, ["file"], f"window of 3 × {length} frames, {gap} apart")
    if control == "order":
        turns = np.random.default_rng(0x0DE2).permuted(np.tile(np.arange(3), (len(found), 1)), axis=1)
        return replace(found, members=np.take_along_axis(found.members, turns[:, :, None], axis=1))
    if control == "run":
        members = found.members.copy()
        members[:, 0] = found.members[_of_another_run(found.table), 0]
        return replace(found, members=members)
    return found


def _of_another_run(table: pd.DataFrame) -> np.ndarray:
    """For each row the number of a random row of another file, of the same unit where it has one."""
    random = np.random.default_rng(0x07E2)
    file, unit = (pd.factorize(table[column])[0] for column in ("file", "unit"))
    if not file.any():
        raise ValueError("the beginnings of windows are to come from another run, and there is a single one")
    found = np.empty(len(table), int)
    for number in range(file.max() + 1):
        own = np.flatnonzero(file == number)
        others = np.flatnonzero((file != number) & (unit == unit[own[0]]))
        found[own] = random.choice(others if len(others) else np.flatnonzero(file != number), len(own))
    return found


def _spaced(length: int, encoded: int | None) -> np.ndarray:
    """So many of the numbers below `length`, evenly spaced; a single one is in the middle."""
    n = encoded or length
    return (np.arange(n) * length + length // 2) // n if n < length else np.arange(length)


def _of_sequences(
    volumes: Examples, offsets: np.ndarray, whole: int, step: int, within: list[str], what: str
) -> Examples:
    """Examples of frames at fixed offsets from the first of `whole` frames, of which none is missing."""
    table = volumes.table
    keys = [pd.factorize(table[column])[0] for column in reversed(within)]
    order = np.lexsort([table["frame"].to_numpy(), *keys])
    breaks = np.diff(table["frame"].to_numpy()[order]) != 1
    for key in keys:
        breaks |= np.diff(key[order]) != 0
    ends = np.append(np.flatnonzero(breaks) + 1, len(order))
    starts = [np.arange(begin, end - whole + 1, step) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    first = np.concatenate(starts)
    if not len(first):
        place = "block" if "block" in within else "run"
        raise ValueError(
            f"no {place} is long enough for a {what}; frames without a state are kept with preprocessing.keep: all"
        )
    members = order[first.reshape(-1, *[1] * offsets.ndim) + offsets]
    chosen = order[first]
    table = table.iloc[chosen].reset_index(drop=True)
    return Examples(volumes.rows, table, volumes.members[members], volumes.targets[chosen])


# ---- units


def draw_units(units: list[str], fraction: float, seed: int, classes: Mapping[str, str] | None = None) -> list[str]:
    """A seeded fraction of the units, at least one; smaller fractions are subsets of larger ones.

    Parameters
    ----------
    classes : the class of each unit, where it has one; every fraction then has the classes' proportions
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}; 0.05 means 5% of the training units")
    order = [str(unit) for unit in np.random.default_rng([seed, 0xF2AC]).permutation(sorted(units))]
    if classes:
        of_class: dict[str, list[str]] = {}
        for unit in order:
            of_class.setdefault(classes[unit], []).append(unit)
        place = {unit: (i + 0.5) / len(group) for group in of_class.values() for i, unit in enumerate(group)}
        order.sort(key=place.__getitem__)
    return order[: max(1, int(fraction * len(units) + 0.5))]


def fold_units(units: pd.DataFrame, n_folds: int, repeats: int, seed: int) -> list[list[str]]:
    """The units held out in each fold: repeats × n_folds lists; in each repeat every unit is held out once.

    Parameters
    ----------
    units : `unit, family`, a row for each unit; members of a family are held out together. With a column `class`, all
        folds have the classes' proportions

    Raises
    ------
    ValueError
        If there are fewer families (or units without one) than folds, or fewer units of a class.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    table = units.drop_duplicates("unit").sort_values("unit").reset_index(drop=True)
    groups = table["family"].where(table["family"] != "", "unit " + table["unit"])
    if groups.nunique() < n_folds:
        raise ValueError(f"{groups.nunique()} families or single units cannot make {n_folds} folds; ask for fewer")
    kind, labels = GroupKFold, None
    if "class" in table:
        kind, labels = StratifiedGroupKFold, table["class"]
        few = labels.value_counts()
        if few.min() < n_folds:
            raise ValueError(f"{few.min()} units of {few.idxmin()} cannot make {n_folds} folds; ask for fewer")
    held_out = []
    for repeat in range(repeats):
        divided = kind(n_folds, shuffle=True, random_state=np.random.RandomState([seed, repeat, 0xF01D]))
        held_out += [table["unit"][test].tolist() for _, test in divided.split(table, labels, groups)]
    return held_out


def unit_statistics(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample SD (K,) of each number over units; missing ones are left out.

    Raises
    ------
    ValueError
        If a number is the same for all units, or known for fewer than two.
    """
    per_unit = pd.DataFrame(examples.targets).groupby(examples.table["unit"].to_numpy()).mean()
    mean, sd = per_unit.mean().to_numpy(), per_unit.std().to_numpy()
    if not (sd > 0).all():
        n = int(per_unit.notna().sum().min())
        raise ValueError(f"a target does not vary over the {n} training unit(s) that have it; take a larger fraction")
    return mean, sd


def permuted(examples: Examples, seed: int) -> Examples:
    """The examples with their targets in random order: as frequent as before, but meaningless.

    Labels are permuted within each run, those of structural images between images; numbers, which belong to units,
    between units.
    """
    random = np.random.default_rng([seed, 0x9E12])
    if examples.targets.ndim == 1:
        labels = pd.Series(examples.targets).groupby(examples.table["file"].to_numpy(), sort=False)
        if labels.ngroups == len(examples):
            return replace(examples, targets=random.permutation(examples.targets))
        return replace(examples, targets=labels.transform(random.permutation).to_numpy())
    names, unit = np.unique(examples.table["unit"], return_inverse=True)
    first = np.unique(unit, return_index=True)[1]
    return replace(examples, targets=examples.targets[first[random.permutation(len(names))]][unit])
