"""Ways to pre-train, side by side: what they cost, how alike their encoders are, where their decisions come from."""

from contextlib import suppress
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.analysis.attribution import METHODS, UndefinedError
from deeplight_core.analysis.similarity import effective_dimensions, linear_cka
from deeplight_core.collect import finished_trainings
from deeplight_core.config import Profile
from deeplight_core.data.store import open_store
from deeplight_core.experiment import examples_of, features_of, start_of
from deeplight_core.explanations import asked, explained, planted_scores, simple_maps
from deeplight_core.report.quality import planted_contrasts
from deeplight_core.routes import ROUTES, VARIANTS
from deeplight_core.sweeps import Cell, planned
from deeplight_core.training.checkpoint import load_model
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes
from deeplight_core.training.splits import Splits

__all__ = ["costs", "pretrainings", "relevance", "similarity"]


def pretrainings(profile: Profile, name: str = "sweep") -> pd.DataFrame:
    """What the pre-trainings of a sweep's decoders learnt.

    Returns
    -------
    `variant, route, seed, n_subjects, seen_volumes, measure, score` for every finished pre-training made here: the
    mean over held-out subjects and tasks of examples' scores. Where folds have their own, these are of the first;
    `variant` is the first that starts from it
    """
    rows = []
    for cell in planned(profile, name):
        if VARIANTS[cell.variant].start == "checkpoint" and cell.fold <= 1:
            start = start_of(profile, cell.variant, cell.seed, cell.fold)
            found = start.results() if start.finished else pd.DataFrame()
            if len(found):  # not of published weights
                of = found[found["level"] == "volume"]
                told = *of.iloc[0][["n_subjects", "seen_volumes", "measure"]], of["score"].mean()
                rows.append((cell.variant, VARIANTS[cell.variant].route, cell.seed, *told))
    columns = ["variant", "route", "seed", "n_subjects", "seen_volumes", "measure", "score"]
    table = pd.DataFrame(rows, columns=columns)
    return table.drop_duplicates(["route", "seed"], ignore_index=True)


def costs(profile: Profile, fraction: float, name: str = "sweep") -> pd.DataFrame:
    """What each decoder of a sweep cost at a fraction: means over its finished seeds.

    Returns
    -------
    `variant, n_parameters, pretraining_volumes, pretraining_s, finetuning_volumes, finetuning_s`: parameters of the
    encoder (NaN for models of voxels, and for random features beside no other decoder of their encoder); volumes that
    training has read; processor seconds of training, evaluations included. NaN for the training of published weights,
    and for a linear model's seconds on other tasks, which are in its own
    """
    cells = [cell for cell in planned(profile, name) if cell.fraction == fraction]
    rows = []
    for cell, training in finished_trainings(profile, cells).items():
        variant, row = VARIANTS[cell.variant], training.results().iloc[0]
        found: dict[str, Any] = {"pretraining_volumes": 0, "pretraining_s": 0.0, "n_parameters": np.nan}
        if variant.start != "random":
            start = start_of(profile, cell.variant, cell.seed, cell.fold)
            before = start.results()
            made_here = len(before) > 0
            found["pretraining_volumes"] = before["seen_volumes"].iloc[0] if made_here else np.nan
            found["pretraining_s"] = before["seconds"].iloc[0] if made_here else np.nan
            found["n_parameters"] = _n_parameters(start.folder)
        elif variant.learner == "deep":
            found["n_parameters"] = _n_parameters(training.folder)
        elif variant.learner == "components":
            found["pretraining_volumes"], found["pretraining_s"] = _n_source_volumes(profile, cell.fold), np.nan
        own = {"finetuning_volumes": row["seen_volumes"], "finetuning_s": row["seconds"]}
        encoder = ROUTES[variant.route].encoder if variant.learner in ("deep", "probe") else ""
        rows.append({"variant": cell.variant, "encoder": encoder, **found, **own})
    columns = ["n_parameters", "pretraining_volumes", "pretraining_s", "finetuning_volumes", "finetuning_s"]
    table = pd.DataFrame(rows, columns=["variant", "encoder", *columns])
    table["n_parameters"] = table["n_parameters"].fillna(table.groupby("encoder")["n_parameters"].transform("first"))
    return table.groupby("variant", sort=False)[columns].mean().reset_index()


def _n_parameters(folder: Any) -> int:
    return sum(parameter.numel() for parameter in load_model(folder)[0].encoder.parameters())


def _n_source_volumes(profile: Profile, fold: int) -> int:
    store = open_store(profile.store)
    units = Splits(profile, store).of("source", fold).train
    return len(of_states(store.index, profile.data.states("source"), units=units))


def _cells(profile: Profile, learner: str, seeds: list[int]) -> list[Cell]:
    """The sweep's decoders of a kind at the largest fraction; in a cross-validation, those of the first fold."""
    largest, learners = max(profile.sweep.fractions), {v: VARIANTS[v].learner for v in profile.sweep.variants}
    return [
        cell
        for cell in planned(profile, "sweep")
        if learners[cell.variant] == learner and cell.fraction == largest and cell.seed in seeds and cell.fold <= 1
    ]


def similarity(profile: Profile) -> pd.DataFrame:
    """Linear CKA of every two frozen encoders of the sweep on the held-out subjects' volumes of the target.

    In a cross-validation, those of the first fold.

    Returns
    -------
    `a, seed_a, b, seed_b, cka, dimensions_a` for every pair of (variant, seed) of the finished readouts, each with
    itself, too; `dimensions_a` is how many dimensions the features of `a` fill (see `similarity.effective_dimensions`)
    """
    probes = _cells(profile, "probe", profile.sweep.seeds)
    store, features = open_store(profile.store), {}
    for cell, training in finished_trainings(profile, probes).items():
        data = Volumes(store, examples_of(training, store, training.split.reported))
        features[cell.variant, cell.seed] = features_of(training, store, "probe", data)
    filled = {one: effective_dimensions(x) for one, x in features.items()}
    rows = [
        (*one, *other, linear_cka(x, y), filled[one]) for one, x in features.items() for other, y in features.items()
    ]
    return pd.DataFrame(rows, columns=["a", "seed_a", "b", "seed_b", "cka", "dimensions_a"])


def relevance(profile: Profile, each: int) -> tuple[str, dict[str, nib.Nifti1Image], pd.DataFrame]:
    """Where the decoders' right answers come from, by layer-wise relevance propagation (ε).

    The decoders are those of the largest fraction; in a cross-validation, of the first fold.

    Parameters
    ----------
    each : examples of every held-out subject's states that are explained

    Returns
    -------
    A state: the one with the largest planted places, or where the truth is unknown the first. Its maps by the first
    seed's decoders: variant → image (none where it is never answered correctly, or LRP is not defined), and what was
    planted, if that is known. And how well the maps of those states that all decoders of a seed have a map of find it:
    the columns of `explanations.planted_scores` and `seed`; `way` is the variant, or one of two maps that need no
    network (see `explanations.simple_maps`)
    """
    store, state = open_store(profile.store), ""
    images: dict[str, nib.Nifti1Image] = {}
    tables = [pd.DataFrame(columns=["way", "state", "n_voxels", "seed"])]
    for seed in profile.sweep.seeds:
        maps, question = {}, None
        for cell, training in finished_trainings(profile, _cells(profile, "deep", [seed])).items():
            question = asked(training.folder, store, each=each)
            if len(question.right):
                with suppress(UndefinedError):
                    maps[cell.variant] = explained(question, METHODS["lrp-epsilon"]).group()
        if question is None:
            continue
        scores = planted_scores(question, profile, maps | simple_maps(question, each)).assign(seed=seed)
        deep = scores[scores["way"].isin(maps)].groupby("state")["way"].nunique()
        tables.append(scores[scores["state"].isin(deep.index[deep == len(maps)])])
        if not state:
            largest = scores.sort_values("n_voxels", ascending=False, kind="stable")["state"]
            state = str(largest.iloc[0]) if len(scores) else question.names[0]
            images = {variant: store.unmask(of[state]) for variant, of in maps.items() if np.any(of.get(state, 0))}
            if len(scores):
                states = [(task, name) for task, name in question.model.head.targets]
                images = {"planted": planted_contrasts(profile, store, states)[state], **images}
    return state, images, pd.concat(tables, ignore_index=True)
