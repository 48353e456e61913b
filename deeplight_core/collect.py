"""What many trainings found: the finished ones of a sweep or control, and their tables."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.analysis import scores
from deeplight_core.config import Profile
from deeplight_core.data.store import open_store
from deeplight_core.experiment import Training, finetuning, pretraining, start_of
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import Cell, changed, planned
from deeplight_core.training import examples as learnt_from
from deeplight_core.training.metrics import COLUMNS as METRICS
from deeplight_core.training.splits import Splits, Which

__all__ = [
    "evaluation_values",
    "finished_trainings",
    "fold_values",
    "reported_rows",
    "sweep_curves",
    "sweep_predictions",
    "sweep_pretraining_curves",
    "sweep_results",
    "transfer_values",
]


def _bench(profile: Profile, cells: list[Cell]) -> dict[tuple[str, str], tuple[Profile, Splits]]:
    """(change, target) → profile and splits, for those of the cells whose store exists; opens each store once."""
    store = cache(open_store)
    found = {}
    for change, target in dict.fromkeys((cell.change, cell.target) for cell in cells):
        own = changed(profile, change, target)
        if own.name == profile.name or (own.store / "index.parquet").is_file():
            found[change, target] = own, Splits(own, store(own.store))
    return found


def _if_finished(cell: Cell, bench: dict[tuple[str, str], tuple[Profile, Splits]]) -> Training | None:
    if (cell.change, cell.target) not in bench:
        return None
    variant, (profile, splits) = VARIANTS[cell.variant], bench[cell.change, cell.target]
    starts = variant.start != "random" and not profile.checkpoint
    if starts and not start_of(profile, cell.variant, cell.seed, cell.fold, splits).finished:
        return None
    training = finetuning(profile, cell.variant, cell.fraction, cell.seed, cell.fold, splits)
    return training if training.finished else None


def finished_trainings(profile: Profile, cells: list[Cell]) -> dict[Cell, Training]:
    """The finished trainings among the cells."""
    bench = _bench(profile, cells)
    found = {cell: _if_finished(cell, bench) for cell in cells}
    return {cell: training for cell, training in found.items() if training}


def fold_values(profile: Profile, name: str = "sweep") -> tuple[pd.DataFrame, list[str]]:
    """What a sweep found in each fold, and the names of the missing trainings.

    Measures of a group (`scores.group_scores`) and, for numbers, the mean absolute error over subjects.

    Columns `variant, change, fraction, seed, fold, n_subjects, n_test, target, measure, value`.
    """
    cells = planned(profile, name)
    finished, rows = finished_trainings(profile, cells), []
    for cell, training in finished.items():
        predictions, errors = training.predictions(), training.results().query("measure == 'absolute_error'")
        group = scores.group_scores(predictions, n_resamples=0)
        mean = errors.groupby(["target", "measure"])["score"].mean().rename("value").reset_index()
        which = {key: getattr(cell, key) for key in ("variant", "change", "fraction", "seed", "fold")}
        which |= {"n_subjects": len(training.units), "n_test": predictions["subject"].nunique()}
        for table in (group[["target", "measure", "value"]], mean):
            rows += [which | row for row in table.to_dict("records")]
    columns = ["variant", "change", "fraction", "seed", "fold", "n_subjects", "n_test", "target", "measure", "value"]
    return pd.DataFrame(rows, columns=columns), [cell.name for cell in cells if cell not in finished]


def transfer_values(transfers: dict[str, Profile], name: str = "sweep") -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """`fold_values` of all transfers whose data are there, with a column `transfer`; what is missing of each."""
    tables, missing = [], {}
    for title, profile in transfers.items():
        if not (profile.store / "index.parquet").is_file():
            missing[title] = ["its data"]
            continue
        values, lacking = fold_values(profile, name)
        tables.append(values.assign(transfer=title))
        missing |= {title: lacking} if lacking else {}
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["transfer"]), missing


def evaluation_values(profile: Profile) -> pd.DataFrame:
    """Accuracy of the pre-trained decoder (`cae`) in each fold, evaluated in three ways, as `fold_values` has it.

    variant : `last` epoch, as everywhere; the epoch that was `best` on the very images it is tested on; or labels
        `shuffled` before they are compared with the answers
    """
    random, rows = np.random.default_rng(0), []
    cells = [cell for cell in planned(profile, "faults") if not cell.change]
    for cell, training in finished_trainings(profile, cells).items():
        curve = training.metrics().query("split != 'train'").groupby("epoch")["score"].mean()
        answered = training.predictions()
        shuffled = (random.permutation(answered["state"]) == answered["predicted_state"]).mean()
        which: dict[str, Any] = {"fraction": cell.fraction, "seed": cell.seed, "fold": cell.fold}
        which |= {"n_subjects": len(training.units), "n_test": answered["subject"].nunique(), "measure": "accuracy"}
        found = {"last": curve.iloc[-1], "best": curve.max(), "shuffled": shuffled}
        rows += [{"variant": way, **which, "value": value} for way, value in found.items()]
    return pd.DataFrame(rows)


def sweep_pretraining_curves(profile: Profile) -> pd.DataFrame:
    """Metrics of the pre-training with the sweep's first seed and first fold; no rows if unfinished."""
    training = pretraining(profile, profile.sweep.seeds[0], fold=1 if profile.sweep.folds else 0)
    return training.metrics() if training.finished else pd.DataFrame(columns=list(METRICS))


def sweep_predictions(profile: Profile, fraction: float) -> pd.DataFrame:
    """Predictions of the sweep's finished trainings at a fraction, with the first seed; adds a column `variant`."""
    cells = [c for c in planned(profile, "sweep") if (c.fraction, c.seed) == (fraction, profile.sweep.seeds[0])]
    finished = finished_trainings(profile, cells)
    tables = [training.predictions().assign(variant=cell.variant) for cell, training in finished.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["variant"])


def reported_rows(profile: Profile, which: Which) -> pd.DataFrame:
    """Index rows that have a state, of the units that the sweep reports in its fixed split or in any fold."""
    splits = Splits(profile, open_store(profile.store))
    folds = range(1, (profile.sweep.folds or 0) * profile.sweep.repeats + 1) if profile.sweep.folds else [0]
    units = sorted({unit for fold in folds for unit in splits.of(which, fold).reported})
    return learnt_from.of_states(splits.store.index, profile.data.states(which), units=units).table


def sweep_curves(profile: Profile, name: str = "sweep") -> pd.DataFrame:
    """The metrics of a sweep's finished deep trainings in one table (see `Training.metrics`).

    Adds the columns `training` (its folder's name), `variant, fraction, n_subjects, seed, change`. There is no `fold`,
    as in the out-of-fold results: each subject's curve is from the folds that held it out.
    """
    deep = [cell for cell in planned(profile, name) if VARIANTS[cell.variant].learner == "deep"]
    own = ["variant", "fraction", "seed", "change"]
    tables = []
    for cell, training in finished_trainings(profile, deep).items():
        which: dict[str, Any] = {"training": training.folder.name, "n_subjects": len(training.units)}
        tables.append(training.metrics().assign(**which, **{key: getattr(cell, key) for key in own}))
    columns = [*METRICS, "training", "n_subjects", *own]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def sweep_results(profile: Profile, name: str = "sweep") -> tuple[pd.DataFrame, list[str]]:
    """The results of a sweep's finished trainings in one table, and the names of the missing ones.

    Adds a column `change`, which names the settings that a control changed (see `sweeps.changes`).

    Raises
    ------
    ValueError
        If a training's folder has another training's results.
    """
    cells = planned(profile, name)
    finished = finished_trainings(profile, cells)
    tables = [_own_results(cell, training).assign(change=cell.change) for cell, training in finished.items()]
    missing = [cell.name for cell in cells if cell not in finished]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(
        columns=[*scores.COLUMNS, "change"]
    ), missing


def _own_results(cell: Cell, training: Training) -> pd.DataFrame:
    """The training's results, if they are those of this cell."""
    table = training.results()
    for key in ("variant", "fraction", "seed", "fold"):
        if others := sorted({str(value) for value in table[key] if value != getattr(cell, key)}):
            raise ValueError(
                f"{training.folder / 'scores.csv'} has results of {key} {', '.join(others)}, not of "
                f"{getattr(cell, key)}: files of two trainings were mixed up; delete this folder and run it again"
            )
    return table
