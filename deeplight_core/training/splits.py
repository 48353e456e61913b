"""Who trains, who is watched and who is reported: the manifest's splits, and folds of cross-validation."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.training import examples as learnt_from

__all__ = ["Split", "Splits", "Which"]

Which = Literal["source", "target"]


@dataclass(frozen=True)
class Split:
    """Units to train on, to measure during the training, and to report; each list is sorted."""

    train: list[str]
    watched: list[str]
    reported: list[str]


class Splits:
    """The splits of a profile's trainings, each computed once from the opened store."""

    def __init__(self, profile: Profile, store: Store) -> None:
        self._data, self._sweep, self._groups, self.store = profile.data, profile.sweep, profile.controls.groups, store
        self.of, self._rows = cache(self._of), cache(self._rows_of)

    def _rows_of(self, which: Which, unlabelled: bool) -> pd.DataFrame:
        """The index rows that are examples."""
        rows = self.store.index[self.store.index["task"].isin(self._data.tasks(which))]
        if unlabelled:
            return learnt_from.of_anything(rows, self._data.tasks(which)).table
        if states := self._data.states(which):
            return learnt_from.of_states(rows, states).table
        if columns := self._data.columns(which):
            levels = self._data.levels(which)
            return learnt_from.of_numbers(rows, columns, self._data.tasks(which), levels=levels).table
        return rows

    def _units(self, which: Which, unlabelled: bool) -> pd.DataFrame:
        """`unit, family, split` of every unit that has examples; `class`, of structural data or groups of people."""
        rows = self._rows(which, unlabelled)
        columns = ["unit", "family", "split"]
        if self.store.is_structural and not unlabelled and self._data.states(which):
            rows, columns = rows.assign(**{"class": rows["state"]}), [*columns, "class"]
        elif self._groups and self._groups.column in rows:
            rows, columns = rows.assign(**{"class": rows[self._groups.column]}), [*columns, "class"]
        return rows[columns].drop_duplicates("unit").sort_values("unit")

    def draw(self, units: list[str], fraction: float, seed: int) -> list[str]:
        """A seeded fraction of the target's units, sorted; structural images keep the classes' proportions."""
        classes = None
        if self.store.is_structural and self._data.states("target"):
            table = self._units("target", unlabelled=False)
            classes = dict(zip(table["unit"], table["class"], strict=True))
        return sorted(learnt_from.draw_units(units, fraction, seed, classes))

    def _of(self, which: Which, fold: int, unlabelled: bool = False) -> Split:
        """The manifest's own split (fold 0), or a fold's: train on all units of train and validation outside it."""
        units = self._units(which, unlabelled)
        by_split = {str(split): group["unit"].tolist() for split, group in units.groupby("split")}
        reported = by_split.get("test") or by_split.get("validation", [])
        split = Split(by_split.get("train", []), by_split.get("validation") or reported, reported)
        if fold:
            split = self._fold(units, split, by_split.get("validation", []), fold)
        for name, of in (("training", split.train), ("held-out", split.reported)):
            if not of:
                raise ValueError(
                    f"the store has no {name} volumes of {', '.join(self._data.tasks(which))}; change who is held out "
                    "in the manifest, and prepare again"
                )
            if not unlabelled:
                self._check_states(which, name, of, fold)
        return split

    def _check_states(self, which: Which, name: str, units: list[str], fold: int) -> None:
        """Raise an error if units that are to tell states apart hold a single one."""
        if len(self._data.states(which)) < 2:
            return
        rows = self._rows(which, False)
        if len(found := rows.loc[rows["unit"].isin(units), ["task", "state"]].drop_duplicates()) == 1:
            where = (
                f", in fold {fold}; ask for fewer folds, or another data.split_seed" if fold else "; divide them anew"
            )
            only = f"{found['task'].iloc[0]}: {found['state'].iloc[0]}"
            raise ValueError(f"the {len(units)} {name} {self._data.split_unit}(s) hold one state only, {only}{where}")

    def _fold(self, units: pd.DataFrame, fixed: Split, validation: list[str], fold: int) -> Split:
        sweep = self._sweep
        if self.store.statistics():
            raise ValueError(
                "z-scores over the training images are not made anew for each fold, so that held-out images would be "
                "seen; set preprocessing.structural.z_score to false, or sweep.folds to null"
            )
        pool = self._units("target", unlabelled=False)
        pool = pool[pool["split"] != "test"]
        folds = learnt_from.fold_units(pool, sweep.folds or 0, sweep.repeats, self._data.split_seed)
        divided = {unit for of in folds for unit in of}
        families = {*pool.loc[pool["unit"].isin(folds[fold - 1]), "family"]} - {""}
        held_out = {*folds[fold - 1], *units.loc[units["family"].isin(families), "unit"]}
        # Source units that the target lacks keep their split; no unit of the fold, nor of its families, is pre-trained
        # on.
        train = {*fixed.train, *({*validation} & divided)} - held_out
        reported = sorted({*fixed.train, *validation} - train)
        return Split(sorted(train), reported, reported)
