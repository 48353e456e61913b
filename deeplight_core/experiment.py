"""One training of an experiment: settings → store → model → loop → training folder.

A finished training is found, not repeated.

runs/<profile>/<stage>-…-<hash>/
    config.yaml, environment.txt      what was asked for, and what it ran on
    metrics.csv, tensorboard/         every epoch, per task and subject
    model.safetensors, model.json     weights and their record (not for the linear baseline)
    predictions.parquet               every validation volume, true and decoded state
    scores.csv              the results table; written last, so that a training that has it is finished
"""

import platform
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from deeplight_core import __version__
from deeplight_core.analysis.scores import RESULT_KEYS, predictions_table, subject_scores
from deeplight_core.config import LayerGroup, Profile, TrainingSettings, digest
from deeplight_core.data.images import load_bold
from deeplight_core.data.manifest import read_manifest, select
from deeplight_core.data.plan import plan
from deeplight_core.data.prepare import prepare, prepare_subjects
from deeplight_core.data.preprocess import clean, smooth
from deeplight_core.data.simulate import simulate
from deeplight_core.data.store import Store, open_store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import Cell, planned
from deeplight_core.system.files import write_whole
from deeplight_core.system.sources import at_hand
from deeplight_core.training.baselines import linear_predictions
from deeplight_core.training.checkpoint import (
    check_data,
    data_facts,
    load_model,
    read_record,
    save_model,
    shuffle,
    transfer,
)
from deeplight_core.training.devices import available_precision, session
from deeplight_core.training.examples import draw_units, permute_labels, select_rows
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes
from deeplight_core.training.loop import fit

__all__ = [
    "Training",
    "evaluate",
    "finetune",
    "finetuning",
    "finished_training",
    "prepare_data",
    "prepare_part",
    "pretrain",
    "pretraining",
    "series",
    "sweep_results",
]


@dataclass(frozen=True)
class Training:
    """A training, done or not: its folder and what decides its result."""

    profile: Profile
    folder: Path
    stage: str
    variant: str
    fraction: float
    seed: int
    units: list[str]
    checkpoint: Path | None

    @property
    def finished(self) -> bool:
        """Whether the results are there."""
        return (self.folder / "scores.csv").is_file()

    @property
    def label(self) -> str:
        """What progress lines call the training."""
        size = f"{100 * self.fraction:g}% ({len(self.units)} {self.profile.data.split_unit}s)"
        return f"{self.stage} {self.variant} {size}, seed {self.seed}"

    def metrics(self) -> pd.DataFrame:
        """Accuracy per epoch, split, task and subject."""
        return pd.read_csv(self.folder / "metrics.csv", dtype={"subject": str}, keep_default_na=False)

    def predictions(self) -> pd.DataFrame:
        """One row per validation volume."""
        return pd.read_parquet(self.folder / "predictions.parquet")

    def results(self) -> pd.DataFrame:
        """The results table."""
        return pd.read_csv(self.folder / "scores.csv", dtype={"subject": str}, keep_default_na=False)


def _training_units(store: Store, states: list[tuple[str, str]]) -> list[str]:
    return sorted(select_rows(store.index, states, "train")["unit"].unique())


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")


def pretraining(profile: Profile, seed: int, store: Store | None = None) -> Training:
    """The pre-training training of a profile, done or not."""
    _check_seed(seed)
    store = store or open_store(profile.store)
    states = profile.data.states("source")
    key = digest(__version__, "pretraining", store.identity, profile.model, profile.pretraining, states, seed)
    return Training(
        profile, profile.folder / f"pretraining-seed{seed}-{key}", "pretraining", "pretrained", 1.0, seed,
        _training_units(store, states), None,
    )  # fmt: skip


def finetuning(profile: Profile, variant: str, fraction: float, seed: int, store: Store | None = None) -> Training:
    """The fine-tuning training of a variant, fraction and seed, done or not.

    Raises
    ------
    ValueError
        If the variant is unknown, the fraction is not in (0, 1], or the pre-training that it starts from (that of the
        same seed) is not done.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    _check_seed(seed)
    if isinstance(fraction, str) or not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be above 0 and at most 1, got {fraction!r}; 0.05 means 5% of the training units"
        )
    store = store or open_store(profile.store)
    states = profile.data.states("target")
    units = draw_units(_training_units(store, states), fraction, seed)
    checkpoint, origin = None, None
    if VARIANTS[variant].start != "random":
        checkpoint = pretraining(profile, seed, store).folder
        origin = read_record(checkpoint)["sha256"]
    settings = None
    if VARIANTS[variant].learner == "deeplight":
        settings = [section.model_dump(mode="json") for section in (profile.model, profile.finetuning)]
    key = digest(__version__, "finetuning", store.identity, settings, states, units, variant, origin, seed)
    folder = profile.folder / f"finetuning-{variant}-{fraction:g}-seed{seed}-{key}"
    return Training(profile, folder, "finetuning", variant, fraction, seed, units, checkpoint)


def prepare_data(profile: Profile, jobs: int | None = None, device: str = "cpu", keep_going: bool = False) -> Store:
    """The profile's store: read the manifest, simulate the runs if the profile says so, preprocess and label them."""
    return prepare(_runs_at_hand(profile, jobs), profile, jobs, device, keep_going)


def prepare_part(
    profile: Profile, subjects: list[str], jobs: int | None = None, device: str = "cpu", keep_going: bool = False
) -> int:
    """One of many jobs that fill the profile's store: its plan, and the runs of some subjects; return their number."""
    table = _runs_at_hand(profile, jobs)
    if not subjects:
        plan(table, profile)
    return prepare_subjects(table, profile, subjects, jobs, device, keep_going) if subjects else 0


def series(profile: Profile, store: Store, row: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """One run's in-mask series (T, V), as acquired (on the store's grid) and after smoothing and cleaning.

    The whole run is held in memory, for pictures of it.
    """
    inside = torch.from_numpy(store.mask.T.copy())
    with at_hand(profile.data_root, [row["image"]], None) as folder:
        bold = load_bold(folder / row["image"], grid=(store.mask.shape, store.affine))
    before = bold[:, inside]
    if profile.preprocessing.fwhm_mm:
        bold = smooth(bold, store.affine, profile.preprocessing.fwhm_mm)
    after, _, _ = clean(bold[:, inside], float(row["tr_s"]), profile.preprocessing)
    return before.numpy(), after.numpy()


def _runs_at_hand(profile: Profile, jobs: int | None) -> pd.DataFrame:
    table = select(read_manifest(profile.manifest_path, profile.data.split_unit), profile.data)
    if profile.simulation is not None:
        simulate(table, profile.data_root, profile.simulation, jobs)
    return table


def pretrain(profile: Profile, seed: int, devices: int = 1, nodes: int = 1) -> Training:
    """Pre-train on the source states of all training units; on several devices see `devices.session`."""
    training = pretraining(profile, seed)
    return _execute(training, profile.data.states("source"), profile.pretraining, devices, nodes)


def finetune(profile: Profile, variant: str, fraction: float, seed: int, devices: int = 1, nodes: int = 1) -> Training:
    """Train a variant on the target states of a fraction of the training units."""
    training = finetuning(profile, variant, fraction, seed)
    return _execute(training, profile.data.states("target"), profile.finetuning, devices, nodes)


def evaluate(profile: Profile, checkpoint: str | Path, split: str = "validation") -> pd.DataFrame:
    """The results table of a trained decoder on a split of the profile's store.

    Raises
    ------
    ValueError
        If there is no checkpoint, or the store differs from its data in grid, TR, preprocessing or states.
    """
    store = open_store(profile.store)
    model, record = load_model(checkpoint)
    check_data(record, checkpoint, data_facts(store.info, store.shape, store.affine))
    states = [(task, state) for task, state in record["states"]]
    if unknown := [f"{task}: {state}" for task, state in states if state not in store.info["events"].get(task, {})]:
        raise ValueError(f"{checkpoint} decodes states that {store.path} does not have: {', '.join(unknown)}")
    rows = select_rows(store.index, states, split)
    model.eval()
    predicted, _ = predict(model, Volumes(store, rows))
    training = record["training"]
    return subject_scores(
        predictions_table(rows, predicted, states), route="supervised", variant=training["variant"],
        fraction=training["fraction"], n_subjects=len(training["units"]), seed=training["seed"],
    )  # fmt: skip


def _execute(
    training: Training, states: list[tuple[str, str]], settings: TrainingSettings, devices: int = 1, nodes: int = 1
) -> Training:
    """Do a training, unless it is finished; every process of a training calls this, the first one writes."""
    if devices * nodes == 1 and _found(training):
        return training
    store = open_store(training.profile.store)
    train_rows = select_rows(store.index, states, "train", training.units)
    held_out_rows = select_rows(store.index, states, "validation")
    variant = VARIANTS[training.variant]
    if variant.permuted:
        train_rows = permute_labels(train_rows, training.seed)
    if variant.learner != "deeplight":
        training.folder.mkdir(parents=True, exist_ok=True)
        _describe(training, store, "32-true")
        predicted = linear_predictions(variant.learner, Volumes(store, train_rows), Volumes(store, held_out_rows))
        _write_results(training, held_out_rows, predicted, states)
        return training
    with session(settings, devices, nodes) as fabric:
        if fabric.broadcast(fabric.is_global_zero and _found(training)):  # the first process looks for all
            return training
        say = print if fabric.is_global_zero else lambda *args, **kwargs: None
        torch.manual_seed(training.seed)
        own = {"initialisation": variant.initialisation} if variant.initialisation else {}
        model = DeepLight(store.shape, len(states), training.profile.model.model_copy(update=own))
        facts = data_facts(store.info, store.shape, store.affine)
        left_out: list[str] = []
        if training.checkpoint:
            left_out = transfer(model, training.checkpoint, facts)
            say(
                f"{training.label}: took all weights of {training.checkpoint.name} but {', '.join(left_out)}",
                flush=True,
            )
            if variant.start == "shuffled":
                shuffle(model.encoder, training.seed)
        if variant.frozen:
            settings = settings.model_copy(update={"groups": [*settings.groups, LayerGroup(layers="encoder", rate=0)]})
        precision = available_precision(settings.precision)
        if precision != settings.precision:
            say(f"{training.label}: this processor has no instructions for bfloat16; computing in float32", flush=True)
        if fabric.is_global_zero:
            training.folder.mkdir(parents=True, exist_ok=True)
            _describe(training, store, precision, fabric.world_size)
        _, predicted = fit(
            fabric, model,
            lambda device: Volumes(store, train_rows, device, by_run=settings.shuffled_runs is not None),
            lambda device: Volumes(store, held_out_rows, device, by_run=True),
            settings, training.seed, training.folder, training.label,
        )  # fmt: skip
        if fabric.is_global_zero:
            record = {
                "states": [list(pair) for pair in states], "data": facts, "store": store.identity,
                "training": {**settings.model_dump(mode="json"), "precision": precision, "variant": training.variant,
                             "fraction": training.fraction, "seed": training.seed, "units": training.units,
                             "left_out": left_out,
                             "from": training.checkpoint.name if training.checkpoint else None},
            }  # fmt: skip
            save_model(model, training.folder, record)
            _write_results(training, held_out_rows, predicted, states)
        fabric.barrier()  # what the others read next is there
    return training


def _found(training: Training) -> bool:
    if training.finished:
        print(f"{training.label}: found in {training.folder.name}", flush=True)
    return training.finished


def _write_results(
    training: Training, rows: pd.DataFrame, predicted: np.ndarray, states: list[tuple[str, str]]
) -> None:
    """Write predictions and, last, the results table; what only an unfinished training needs goes."""
    predictions = predictions_table(rows, predicted, states)
    accuracy = subject_scores(
        predictions, route="supervised", variant=training.variant, fraction=training.fraction,
        n_subjects=len(training.units), seed=training.seed,
    )  # fmt: skip
    write_whole(training.folder / "predictions.parquet", predictions.to_parquet)
    write_whole(training.folder / "scores.csv", lambda p: accuracy.to_csv(p, index=False))
    for leftover in [
        training.folder / "state.safetensors",
        *training.folder.glob("partial_*"),
        *training.folder.glob(".tmp*"),
    ]:
        leftover.unlink(missing_ok=True)


def _describe(training: Training, store: Store, precision: str, n_processes: int = 1) -> None:
    config: dict[str, Any] = {
        "stage": training.stage, "variant": training.variant, "fraction": training.fraction, "seed": training.seed,
        "units": training.units, "store": store.identity, "profile": training.profile.model_dump(mode="json"),
    }  # fmt: skip
    text = yaml.safe_dump(config, sort_keys=False)
    write_whole(training.folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8"))
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in distributions())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    computed = f"{device} × {n_processes}, {precision}"
    lines = [f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {computed}", *packages]
    write_whole(training.folder / "environment.txt", lambda p: p.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def finished_training(profile: Profile, cell: Cell) -> Training | None:
    """The training of a grid's cell if it is finished, else None."""
    own = profile.for_target(cell.target)
    store = open_store(own.store)
    if VARIANTS[cell.variant].start != "random" and not pretraining(own, cell.seed, store).finished:
        return None
    training = finetuning(own, cell.variant, cell.fraction, cell.seed, store)
    return training if training.finished else None


def sweep_results(profile: Profile, name: str = "sweep") -> tuple[pd.DataFrame, list[str]]:
    """The results of a grid's finished runs in one table, and the names of those that are missing."""
    columns = [*RESULT_KEYS, "task", "subject", "score", "n"]
    tables, missing = [], []
    for cell in planned(profile, name):
        if training := finished_training(profile, cell):
            tables.append(training.results())
        else:
            missing.append(cell.name)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns), missing
