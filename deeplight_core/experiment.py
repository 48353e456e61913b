"""One training of an experiment: settings → store → model → loop → training folder.

A finished training is found, not repeated. runs/<profile>/<stage>-…-<hash>/ holds::

    config.yaml, environment.txt      settings; hardware, software and the code's commit
    metrics.csv, tensorboard/         every epoch, per task, target and subject
    model.safetensors, model.json     weights and their record, mask.nii.gz the voxels seen (not for linear models)
    predictions.parquet               every example of the reported split, with its target and answer
    scores.csv                        the results table; written last, so it marks a finished training
"""

import platform
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.metadata import distributions
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from deeplight_core.analysis import scores
from deeplight_core.config import FinetuningSettings, Profile
from deeplight_core.data.atlas import seen_voxels
from deeplight_core.data.clinic import simulate_study
from deeplight_core.data.cohorts import manifest_of, simulate_cohort
from deeplight_core.data.images import load_bold, read_header
from deeplight_core.data.labels import check_labels
from deeplight_core.data.manifest import select
from deeplight_core.data.plan import own_mask, plan
from deeplight_core.data.prepare import prepare, prepare_subjects
from deeplight_core.data.preprocess import clean, smooth
from deeplight_core.data.runs import run_of, source_files
from deeplight_core.data.simulate import simulate
from deeplight_core.data.store import Store, open_store
from deeplight_core.models import Encoder, Head, build
from deeplight_core.models.contrast import Contrast, quality
from deeplight_core.models.heads import Classes, Numbers, Phenotypes, n_answers
from deeplight_core.models.reconstruction import Reconstruction
from deeplight_core.routes import ROUTES, VARIANTS, LayerGroup, Variant
from deeplight_core.sweeps import changed, planned
from deeplight_core.system.files import write_whole
from deeplight_core.system.provenance import commit
from deeplight_core.system.sources import at_hand
from deeplight_core.system.workers import in_processes
from deeplight_core.training import examples as learnt_from
from deeplight_core.training.baselines import linear_answers, readout_answers
from deeplight_core.training.checkpoint import (
    check_data,
    data_facts,
    keep_statistics,
    load_model,
    read_record,
    save_mask,
    save_model,
    shuffle,
    transfer,
)
from deeplight_core.training.devices import available_precision, session
from deeplight_core.training.examples import Examples, permuted, unit_statistics
from deeplight_core.training.features import frozen_features
from deeplight_core.training.hub import local
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import Volumes
from deeplight_core.training.loop import fit
from deeplight_core.training.metrics import COLUMNS as METRICS
from deeplight_core.training.published import read_weights
from deeplight_core.training.splits import Splits
from deeplight_core.trainings import (
    ANY_TARGET,
    Training,
    checkpoint_record,
    finetuning,
    pretraining,
    start_of,
    started_from,
)

__all__ = [
    "Training",
    "evaluate",
    "examples_of",
    "execute",
    "features_of",
    "finetune",
    "finetuning",
    "prepare_data",
    "prepare_part",
    "pretrain",
    "pretraining",
    "series",
    "start_of",
    "started_from",
    "train_all",
]


def prepare_data(profile: Profile, jobs: int | None = None, device: str = "cpu", keep_going: bool = False) -> Store:
    """The profile's store: read the manifest, simulate the images if the profile says so, preprocess and label them."""
    return prepare(_runs_at_hand(profile, jobs), profile, jobs, device, keep_going)


def prepare_part(
    profile: Profile, subjects: list[str], jobs: int | None = None, device: str = "cpu", keep_going: bool = False
) -> int:
    """One of many jobs that fill the profile's store: the plan alone, or some subjects' runs; returns their number."""
    table = _runs_at_hand(profile, jobs)
    if not subjects:
        check_labels(table, profile)
        plan(table, profile)
    return prepare_subjects(table, profile, subjects, jobs, device, keep_going) if subjects else 0


def series(profile: Profile, store: Store, row: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """One run's in-mask series (T, V), as acquired (on the store's grid) and after smoothing and cleaning.

    For figures: holds the whole run in memory.
    """
    inside = torch.from_numpy(store.mask.T.copy())
    with at_hand(profile.data_root, source_files(profile.data_root, row), None) as folder:
        brain = own_mask(folder, row, read_header(folder / row["image"]))
        bold = load_bold(folder / row["image"], grid=(store.mask.shape, store.affine), brain=brain)
        matrices = run_of(row, folder, profile).matrices
    before = bold[:, inside]
    if profile.preprocessing.fwhm_mm:
        bold = smooth(bold, store.affine, profile.preprocessing.fwhm_mm)
    matrices = matrices and matrices._replace(examples=None)  # its series
    after, _, _ = clean(bold[:, inside], float(row["tr_s"]), profile.preprocessing, matrices=matrices)
    return before.numpy(), after.numpy()


def _runs_at_hand(profile: Profile, jobs: int | None) -> pd.DataFrame:
    table = select(manifest_of(profile), profile.data)
    if profile.simulation is not None:
        simulated = simulate_study if profile.simulation.patients else simulate
        simulated(table, profile.data_root, profile.simulation, jobs)
    if profile.cohort is not None:
        simulate_cohort(table, profile.data_root, profile.cohort, jobs)
    return table


def pretrain(
    profile: Profile, seed: int, route: str = "supervised", fold: int = 0, devices: int = 1, nodes: int = 1
) -> Training:
    """Pre-train by a route on the training units' source data; for several devices see `devices.session`."""
    return execute(pretraining(profile, seed, route, fold), devices, nodes)


def finetune(
    profile: Profile, variant: str, fraction: float, seed: int, fold: int = 0, devices: int = 1, nodes: int = 1
) -> Training:
    """Train a variant on the target data of a fraction of the training units."""
    return execute(finetuning(profile, variant, fraction, seed, fold), devices, nodes)


def evaluate(profile: Profile, checkpoint: str | Path, split: str = "") -> pd.DataFrame:
    """The results table of a trained decoder on a split of the profile's store, by default the reported one.

    A decoder trained in a fold is by default evaluated on the units that the fold held out.

    Raises
    ------
    ValueError
        If there is no checkpoint, it decodes nothing that can be scored here, or its data and the store differ where
        they must agree.
    """
    store, checkpoint = open_store(profile.store), local(checkpoint)
    model, record = load_model(checkpoint)
    for difference in check_data(record, checkpoint, data_facts(store)):
        print(f"note: other data than {Path(checkpoint).name} was trained on: {difference}", flush=True)
    targets, training = model.head.targets, record["training"]
    shape, grid = list(store.shape), record["data"]["grid"]["shape"]
    if len(model.encoder.output_shape) > 1 and shape != grid:
        raise ValueError(
            f"{checkpoint} has a head for volumes of {grid}, the store has volumes of {shape}; prepare the data on its "
            "grid: name it as the profile's checkpoint"
        )
    held_out = {*training.get("reported", [])} & {*store.index["unit"]}
    units = sorted(held_out) if training.get("fold") and held_out and not split else None
    if units is None:
        split = split or ("test" if "test" in store.splits else "validation")
    if model.head.name == "classes":
        states = [(task, state) for task, state in targets]
        if unknown := [f"{task}: {state}" for task, state in states if state not in store.info["events"].get(task, {})]:
            raise ValueError(f"{checkpoint} decodes states that {store.path} does not have: {', '.join(unknown)}")
        chosen = learnt_from.of_states(store.index, states, split, units)
    elif model.head.name == "numbers":
        chosen = learnt_from.of_numbers(store.index, targets, training.get("tasks", []), split, units)
    elif model.head.name == "phenotypes":
        columns, levels = [target["column"] for target in targets], profile.data.levels("target")
        chosen = learnt_from.of_numbers(store.index, columns, training.get("tasks", []), split, units, levels)
    else:
        raise ValueError(f"{checkpoint} has a head of kind {model.head.name}, which decodes nothing that can be scored")
    kept = {name: training[name] for name in ("clip", "atlas") if training.get(name)}
    chosen = _as_decoded(chosen, store, FinetuningSettings.model_validate(kept))
    model.eval()
    answers = predict(model, Volumes(store, chosen)).answer
    names = ("route", "variant", "fraction", "seed", "fold", "seen_volumes", "seconds")
    key = {name: training.get(name, np.nan) for name in names}  # an exported record lacks some
    n = record.get("n_units", len(training.get("units", [])))
    return scores.subject_scores(
        _predictions(chosen, answers, targets), encoder=model.encoder.name, n_subjects=n, **key
    )


def examples_of(training: Training, store: Store, units: list[str]) -> Examples:
    """A training's examples in some units: volumes (or trials), clips, or in pre-training its route's windows."""
    data, which = training.profile.data, training.which
    route = ROUTES[training.route]
    if training.stage == "pretraining" and route.example != "volume":
        _check_order(store, f"route {training.route}")
    if training.stage == "pretraining" and route.unlabelled:
        chosen = learnt_from.of_anything(store.index, data.tasks(which), units=units)
    elif columns := data.columns(which):
        levels = data.levels(which)
        chosen = learnt_from.of_numbers(store.index, columns, data.tasks(which), units=units, levels=levels)
    else:
        chosen = learnt_from.of_states(store.index, data.states(which), units=units)
    if training.stage == "finetuning":
        return _as_decoded(chosen, store, training.profile.finetuning)
    if route.example == "volume":
        return chosen
    if route.unlabelled and store.info["preprocessing"]["keep"] != "all":
        raise ValueError(
            f"route {training.route} learns from the order of time, and {store.path} keeps labelled volumes only; set "
            "preprocessing.keep: all"
        )
    sequences = learnt_from.clips if route.example == "clip" else learnt_from.windows
    section = getattr(training.profile.routes, training.route)
    return sequences(chosen, **section.example.in_frames(store.info["tr_s"]))


def _as_decoded(chosen: Examples, store: Store, settings: FinetuningSettings) -> Examples:
    """Volumes as decoders see them: as clips, and some regions only, if the settings say so."""
    if settings.clip:
        _check_order(store, "a decoder of clips (finetuning.clip)")
        chosen = learnt_from.clips(chosen, **settings.clip.in_frames(store.info["tr_s"]))
    return replace(chosen, seen=seen_voxels(settings.atlas, store)) if settings.atlas else chosen


def _check_order(store: Store, who: str) -> None:
    """Raise ValueError if a store holds no volumes that follow each other."""
    if store.preprocessing.example.kind != "volume":
        raise ValueError(
            f"{who} learns from volumes that follow each other, and {store.path} holds one example per trial; prepare "
            "volumes (preprocessing.example.kind: volume), or choose another"
        )


def _too_short(chosen: Examples) -> list[str]:
    """Runs that have volumes, but no clip or window that is long enough."""
    return sorted({*chosen.rows["file"]} - {*chosen.table["file"]})


def _auxiliary(training: Training, train: Examples) -> list[dict[str, Any]]:
    """Columns that a pre-training without labels learns beside its own aim, as its head's settings ask."""
    section = getattr(training.profile.routes, training.route)
    asked = getattr(section.head, "auxiliary", []) if training.stage == "pretraining" else []
    return learnt_from.described_columns(train, asked)


def _architecture(training: Training, store: Store, auxiliary: list[dict[str, Any]]) -> dict[str, Any]:
    """The encoder of the training's route, with the route's head (pre-training) or one for the target (fine-tuning)."""
    data, which = training.profile.data, training.which
    route, section = ROUTES[training.route], getattr(training.profile.routes, training.route)
    given = checkpoint_record(training.profile) if training.stage == "finetuning" else None
    initialisation = VARIANTS[training.variant].initialisation if training.variant else None
    own = {"initialisation": initialisation} if initialisation else {}
    encoder = section.encoder.model_copy(update=own)
    if getattr(encoder, "window", ()) is None:  # what a photograph's black and white stand for
        scores = store.normalisation.startswith("z-scores")
        encoder = encoder.model_copy(update={"window": (-4.0, 4.0) if scores else (0.0, 1.0)})
    columns = data.columns(which)
    targets: list[Any] = columns or [list(pair) for pair in data.states(which)]
    name, settings = "numbers" if columns else "classes", training.profile.finetuning.head
    if phenotypes := data.phenotypes(which):
        name, targets = "phenotypes", phenotypes
    if training.stage == "pretraining":
        name, settings = (name if route.head == "classes" else route.head), section.head
        targets = auxiliary if route.unlabelled else targets
    described = {"name": route.encoder, "settings": encoder.model_dump()}
    if given:
        described = {"name": given["architecture"]["encoder"]["name"],
                     "settings": given["architecture"]["encoder"]["settings"] | own}  # fmt: skip
    return {
        "encoder": {**described, "shape": store.shape},
        "head": {"name": name, "targets": targets, "settings": settings.model_dump()},
    }


def execute(training: Training, devices: int = 1, nodes: int = 1) -> Training:
    """Do a training, unless it is finished. All its processes call this; the first one writes."""
    if devices * nodes == 1 and _found(training):
        return training
    store, split = open_store(training.profile.store), training.split
    if not training.units:
        _take_published(training, store)
        return training
    train, watched = (examples_of(training, store, units) for units in (split.train, split.watched))
    if described := training.profile.data.phenotypes(training.which):
        _check_columns(train, described)
    same = split.reported == split.watched
    reported = watched if same else examples_of(training, store, split.reported)
    variant = VARIANTS.get(training.variant)
    if auxiliary := _auxiliary(training, train):
        train, watched, reported = (learnt_from.with_columns(of, auxiliary) for of in (train, watched, reported))
    if variant and variant.permuted:
        train = permuted(train, training.seed)
    if variant and variant.learner != "deep":
        _linear(training, store, train, reported)
        return training
    settings = training.settings
    with session(settings, devices, nodes) as fabric:
        if fabric.broadcast(fabric.is_global_zero and _found(training)):  # the first process looks for all
            return training
        say = print if fabric.is_global_zero else lambda *args, **kwargs: None
        if short := _too_short(train):
            say(
                f"{training.label}: {len(short)} run(s) are too short and left out: {', '.join(short[:10])}", flush=True
            )
        torch.manual_seed(training.seed)
        model = build(_architecture(training, store, auxiliary))
        _tell_of_data(model.head, store, train)
        facts = data_facts(store)
        left_out: list[str] = []
        if training.checkpoint:
            blocks = training.profile.finetuning.blocks
            left_out, differing = transfer(model, training.checkpoint, facts, blocks)
            say(
                f"{training.label}: took the encoder of {training.checkpoint.name}, not {', '.join(left_out)}",
                flush=True,
            )
            for difference in differing:
                say(f"{training.label}: other data than it was trained on: {difference}", flush=True)
            if variant:
                _started(model.encoder, variant, training.seed)
        if variant and variant.frozen:
            settings = settings.model_copy(update={"groups": [*settings.groups, LayerGroup(layers="encoder", rate=0)]})
        precision = available_precision(settings.precision)
        if precision != settings.precision:
            say(f"{training.label}: this CPU has no instructions for bfloat16; computing in float32", flush=True)
        if fabric.is_global_zero:
            training.folder.mkdir(parents=True, exist_ok=True)
            _describe(training, store, precision, fabric.world_size)
        fitted = fit(
            fabric, model,
            lambda device: Volumes(store, train, device, by_run=settings.shuffled_runs is not None),
            lambda device: Volumes(store, watched, device, by_run=True),
            settings, training.seed, training.folder, training.label,
        )  # fmt: skip
        answers = fitted.answers
        if not same:
            data = Volumes(store, reported, fabric.device, by_run=True)
            answers = predict(model.to(fabric.device), data, fabric)
        if fabric.is_global_zero:
            measured = {"seen_volumes": fitted.seen_volumes, "seconds": round(fitted.seconds, 1)}
            record = {
                "data": facts, "store": store.identity, "manifest": store.info["manifest"],
                "datasets": sorted(store.index["dataset"].unique().tolist()),
                "source": read_record(training.checkpoint).get("source") if training.checkpoint else None,
                "training": {**settings.model_dump(mode="json"), **_key(training), **measured, "precision": precision,
                             "units": training.units, "reported": split.reported,
                             "tasks": training.profile.data.tasks(training.which),
                             "left_out": left_out,
                             "from": training.checkpoint.name if training.checkpoint else None},
            }  # fmt: skip
            if isinstance(model.head, Contrast):
                found = quality(answers.answer)
                record["contrast"] = found._asdict()
                if found.collapsed:
                    say(
                        f"{training.label}: collapsed: any two windows look the same to it (cosine {found.cosine:.2f}"
                        "); lower the learning rate or the temperature, or take negatives: batch",
                        flush=True,
                    )
            save_mask(_seen(store, train), facts["grid"]["affine"], training.folder)
            save_model(model, training.folder, record)
            if model.head.name in ("classes", "numbers", "phenotypes"):
                predictions = _predictions(reported, answers.answer, model.head.targets)
            else:
                predictions = scores.outcome_predictions(reported.table, answers.score, model.head.scored)
            measure = "" if model.head.name == "phenotypes" else model.head.measure  # each column has its own
            _write_results(training, predictions, measure=measure, **measured)
        fabric.barrier()  # the other processes may read the files next
    return training


def _seen(store: Store, train: Examples) -> np.ndarray:
    """The voxels (X, Y, Z) of the model's grid that it sees, bool."""
    mask = store.mask.copy()
    if train.seen is not None:
        mask.T[store.mask.T] = train.seen
    return mask[store.box]


def _take_published(training: Training, store: Store) -> None:
    """Write published weights as a checkpoint; what they lack, such as an LSTM over slices, stays random."""
    architecture = _architecture(training, store, [])
    architecture["head"] = {"name": "numbers", "targets": ["nothing"], "settings": {}}  # a checkpoint has one
    torch.manual_seed(training.seed)
    model = build(architecture)
    weights = training.settings.weights  # type: ignore[attr-defined]
    record = read_weights(weights, model.encoder.name, model.encoder.network)  # type: ignore[arg-type]
    training.folder.mkdir(parents=True, exist_ok=True)
    _describe(training, store, "32-true")
    told = {**_key(training), "units": [], "reported": [], "tasks": [], "seen_volumes": 0, "seconds": 0.0}
    facts, source = data_facts(store), {"title": record["origin"], "licence": record["licence"]}
    save_mask(store.mask[store.box], facts["grid"]["affine"], training.folder)
    save_model(
        model, training.folder,
        {"data": facts, "store": store.identity, "source": source, "training": told, "weights": record},
    )  # fmt: skip
    for name, columns in (("metrics.csv", METRICS), ("scores.csv", scores.COLUMNS)):
        table = pd.DataFrame(columns=list(columns))
        write_whole(training.folder / name, partial(table.to_csv, index=False))


def _started(encoder: Encoder, variant: Variant, seed: int) -> None:
    """Take from a pre-trained encoder what a control leaves out of it."""
    if variant.start == "shuffled":
        shuffle(encoder, seed)
    elif variant.start == "statistics":
        keep_statistics(encoder, seed)


def _check_columns(train: Examples, described: list[dict[str, Any]]) -> None:
    """Raise ValueError for columns that are missing for all training examples, or the same for all that have them."""
    found = []
    for values, target in zip(train.targets.T, described, strict=True):
        known = np.unique(values[np.isfinite(values)])
        if not len(known):
            found.append(f"{target['column']} is missing for all of them")
        elif len(known) == 1:
            only = target["levels"][int(known[0])] if target["kind"] in ("classes", "ordered") else f"{known[0]:g}"
            found.append(f"{target['column']} is {only} for all who have it")
    if found:
        raise ValueError(
            f"nothing can be learnt from some columns of {train.table['unit'].nunique()} training unit(s): "
            f"{'; '.join(found)}; take a larger fraction, or leave them out of the target"
        )


def _tell_of_data(head: Head, store: Store, train: Examples) -> None:
    """Give a head what it must know of the training data: numbers' mean and SD, labels' frequencies, the mask."""
    if isinstance(head, Numbers | Phenotypes):
        head.standardise(*unit_statistics(train))
    elif isinstance(head, Classes) and head.settings.class_weights != "none":
        head.weigh(train.targets)
    elif isinstance(head, Reconstruction):
        head.set_mask(store.mask[store.box].T)
        if any(target["levels"] is None for target in head.targets):
            head.standardise(*unit_statistics(train))


def _linear(training: Training, store: Store, train: Examples, reported: Examples) -> None:
    """Train a linear model and write its results."""
    training.folder.mkdir(parents=True, exist_ok=True)
    _describe(training, store, "32-true")
    data, started = training.profile.data, time.process_time()
    states, learner, source = data.states("target"), VARIANTS[training.variant].learner, None
    volumes = Volumes(store, train), Volumes(store, reported)
    if learner in ANY_TARGET:
        x, x_new = (features_of(training, store, learner, of) for of in volumes)
        if learner == "probe":
            # By its own deviation, or the features' typical one: divided by its own, a rare feature would decide.
            sd = x.std(axis=0)
            sd = np.maximum(sd, max(np.sqrt((sd**2).mean()), 1e-12))
            x, x_new = x / sd, x_new / sd
        of_units = train.table["unit"].to_numpy()
        if described := data.phenotypes("target"):
            answers = _answers_of_columns(x, x_new, train.targets, of_units, described)
        else:
            answers = readout_answers(x, x_new, train.targets, of_units, len(states))
    else:
        if learner == "components":
            units = Splits(training.profile, store).of("source", training.fold).train
            source = Volumes(store, learnt_from.of_states(store.index, data.states("source"), units=units))
        answers = linear_answers(learner, *volumes, len(states), source)
    seconds = round(time.process_time() - started, 1)
    seen = len(train) * train.volumes_each
    predictions = _predictions(reported, answers, data.phenotypes("target") or data.columns("target") or states)
    _write_results(training, predictions, seen_volumes=seen, seconds=seconds)


def _answers_of_columns(
    x: np.ndarray, x_new: np.ndarray, targets: np.ndarray, units: np.ndarray, described: list[dict[str, Any]]
) -> np.ndarray:
    """Answers (N', A) as `Phenotypes` gives them: a linear model of each column, fitted to those who have it."""
    answers = []
    for values, target in zip(targets.T, described, strict=True):
        known = np.isfinite(values)
        if target["kind"] == "classes":
            labels, n = values[known].astype(np.int64), n_answers(target)
            answers.append(readout_answers(x[known], x_new, labels, units[known], n))
        else:
            answers.append(readout_answers(x[known], x_new, values[known, None], units[known]))
    return np.concatenate(answers, axis=1)


def features_of(training: Training, store: Store, learner: str, data: Volumes) -> np.ndarray:
    """What a linear readout gets of each example, (N, F): voxels, regional means, or a frozen encoder's features."""
    if learner == "voxels":
        return data.masked(np.arange(len(data))).float().numpy().reshape(len(data), -1)
    if learner == "regional":
        return store.regional().loc[data.examples.table["file"]].to_numpy()
    if training.checkpoint is None:
        torch.manual_seed(training.seed)
        return frozen_features(build(_architecture(training, store, [])).encoder, data)
    model, record = load_model(training.checkpoint)
    check_data(record, training.checkpoint, data_facts(store))
    if not model.encoder.needs_grid:
        model = build(record["architecture"] | {"encoder": record["architecture"]["encoder"] | {"shape": store.shape}})
        transfer(model, training.checkpoint, data_facts(store))
    _started(model.encoder, VARIANTS[training.variant], training.seed)
    return frozen_features(model.encoder, data)


def _found(training: Training) -> bool:
    if training.finished:
        print(f"{training.label}: found in {training.folder.name}", flush=True)
    return training.finished


def _key(training: Training) -> dict[str, Any]:
    """The training's columns in the results table."""
    names = ("route", "variant", "fraction", "seed", "fold")
    return {name: getattr(training, name) for name in names}


def _predictions(reported: Examples, answers: np.ndarray, targets: list[Any]) -> pd.DataFrame:
    if isinstance(targets[0], dict):
        return scores.phenotype_predictions(reported.table, reported.targets, answers, targets)
    if reported.targets.ndim == 1:
        return scores.state_predictions(reported.table, answers, [(task, state) for task, state in targets])
    return scores.number_predictions(reported.table, reported.targets, answers, targets)


def _write_results(training: Training, predictions: pd.DataFrame, measure: str = "", **measured: float) -> None:
    """Write predictions and, last, the results table; then delete what only an unfinished training needs."""
    given = checkpoint_record(training.profile) if training.stage == "finetuning" else None
    encoder = given["architecture"]["encoder"]["name"] if given else ROUTES[training.route].encoder
    learner = VARIANTS[training.variant].learner if training.variant else "deep"
    table = scores.subject_scores(
        predictions, measure, encoder=encoder if learner == "deep" else learner, n_subjects=len(training.units),
        **_key(training), **measured,
    )  # fmt: skip
    write_whole(training.folder / "predictions.parquet", predictions.to_parquet)
    write_whole(training.folder / "scores.csv", lambda p: table.to_csv(p, index=False))
    partial = [*training.folder.glob("partial_*"), *training.folder.glob(".tmp*")]
    for leftover in [training.folder / "state.safetensors", *partial]:
        leftover.unlink(missing_ok=True)


def _describe(training: Training, store: Store, precision: str, n_processes: int = 1) -> None:
    config: dict[str, Any] = {
        "stage": training.stage, **_key(training), "units": training.units, "reported": training.split.reported,
        "store": store.identity, "profile": training.profile.model_dump(mode="json"),
    }  # fmt: skip
    text = yaml.safe_dump(config, sort_keys=False)
    write_whole(training.folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8"))
    packages = sorted(f"{about['Name']}=={about['Version']}" for about in (d.metadata for d in distributions()))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    computed = f"{device} × {n_processes}, {precision}"
    lines = [
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {computed}",
        f"deeplight_core: commit {commit()}", *packages,
    ]  # fmt: skip
    write_whole(training.folder / "environment.txt", lambda p: p.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def train_all(
    profiles: list[Profile],
    names: Sequence[str] = ("sweep",),
    pretrainings: Sequence[Training] = (),
    jobs: int | None = None,
) -> None:
    """Do all trainings of the profiles' sweeps or controls that are not done, each in one of several processes.

    Parameters
    ----------
    names : of `sweeps.planned`
    pretrainings : others to do beside those that decoders start from
    jobs : worker processes; by default one per core
    """
    cells = [(changed(p, c.change, c.target), c) for p in profiles for name in names for c in planned(p, name)]
    asked = [(p, c) for p, c in cells if VARIANTS[c.variant].start != "random" and not p.checkpoint]
    starts = [start_of(p, c.variant, c.seed, c.fold) for p, c in asked]
    first = {training.folder: training for training in [*pretrainings, *starts]}
    in_processes(_quietly, [t for t in first.values() if not t.finished], jobs, "pre-trainings")
    decoders = {t.folder: t for t in (finetuning(p, c.variant, c.fraction, c.seed, c.fold) for p, c in cells)}
    in_processes(_quietly, [t for t in decoders.values() if not t.finished], jobs, "decoders")


def _quietly(training: Training) -> None:
    with redirect_stdout(StringIO()):
        execute(training)
