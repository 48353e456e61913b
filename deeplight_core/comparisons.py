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
from deeplight_core.explanations import asked, explained, planted_scores
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import Cell, planned
from deeplight_core.training.checkpoint import load_model
from deeplight_core.training.examples import of_states
from deeplight_core.training.loader import Volumes
from deeplight_core.training.splits import Splits

__all__ = ["costs", "relevance", "similarity"]


def costs(profile: Profile, fraction: float) -> pd.DataFrame:
    """What each decoder of the sweep cost at a fraction: means over its finished seeds.

    Returns
    -------
    `variant, n_parameters, pretraining_volumes, pretraining_s, finetuning_volumes, finetuning_s`: parameters of the
    encoder (NaN for models of voxels); volumes that training has read; seconds of training, evaluations included, 0
    where nothing is pre-trained here, or as part of the decoder's own
    """
    cells = [cell for cell in planned(profile, "sweep") if cell.fraction == fraction]
    rows = []
    for cell, training in finished_trainings(profile, cells).items():
        variant, row = VARIANTS[cell.variant], training.results().iloc[0]
        found: dict[str, Any] = {"pretraining_volumes": 0, "pretraining_s": 0.0, "n_parameters": np.nan}
        if variant.start != "random":
            start = start_of(profile, cell.variant, cell.seed, cell.fold)
            before = start.results()
            if len(before):  # published weights were not trained here
                found["pretraining_volumes"] = before["seen_volumes"].iloc[0]
                found["pretraining_s"] = before["seconds"].iloc[0]
            found["n_parameters"] = _n_parameters(start.folder)
        elif variant.learner == "deep":
            found["n_parameters"] = _n_parameters(training.folder)
        elif variant.learner == "components":
            found["pretraining_volumes"] = _n_source_volumes(profile, cell.fold)
        own = {"finetuning_volumes": row["seen_volumes"], "finetuning_s": row["seconds"]}
        rows.append({"variant": cell.variant, **found, **own})
    columns = ["n_parameters", "pretraining_volumes", "pretraining_s", "finetuning_volumes", "finetuning_s"]
    table = pd.DataFrame(rows, columns=["variant", *columns])
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


def similarity(profile: Profile, n_seeds: int = 2) -> pd.DataFrame:
    """Linear CKA of every two frozen encoders of the sweep on the held-out subjects' volumes of the target.

    In a cross-validation, those of the first fold.

    Returns
    -------
    `a, seed_a, b, seed_b, cka, dimensions_a` for every pair of (variant, seed) of the finished readouts, each with
    itself, too; `dimensions_a` is how many dimensions the features of `a` fill (see `similarity.effective_dimensions`)
    """
    probes = _cells(profile, "probe", profile.sweep.seeds[:n_seeds])
    store, features = open_store(profile.store), {}
    for cell, training in finished_trainings(profile, probes).items():
        data = Volumes(store, examples_of(training, store, training.split.reported))
        features[cell.variant, cell.seed] = features_of(training, store, "probe", data)
    filled = {one: effective_dimensions(x) for one, x in features.items()}
    rows = [
        (*one, *other, linear_cka(x, y), filled[one]) for one, x in features.items() for other, y in features.items()
    ]
    return pd.DataFrame(rows, columns=["a", "seed_a", "b", "seed_b", "cka", "dimensions_a"])


def relevance(profile: Profile, each: int) -> tuple[dict[str, nib.Nifti1Image], pd.DataFrame]:
    """Where the decoders' right answers come from, by layer-wise relevance propagation (ε).

    The decoders are those of the first seed at the largest fraction; in a cross-validation, of the first fold.

    Parameters
    ----------
    each : examples of every held-out subject's states that are explained

    Returns
    -------
    Variant → map of the first state (none where it is never answered correctly, or LRP is not defined), and how well
    the maps of those states that all decoders have a map of find what was planted (see `explanations.planted_scores`;
    its `way` is the variant), empty where the truth is unknown
    """
    deep = _cells(profile, "deep", profile.sweep.seeds[:1])
    store, maps, question = open_store(profile.store), {}, None
    for cell, training in finished_trainings(profile, deep).items():
        question = asked(training.folder, store, each=each)
        if len(question.right):
            with suppress(UndefinedError):
                maps[cell.variant] = explained(question, METHODS["lrp-epsilon"]).group()
    state = question.names[0] if question else ""
    images = {variant: store.unmask(of[state]) for variant, of in maps.items() if np.any(of.get(state, 0))}
    scores = planted_scores(question, profile, maps) if question else pd.DataFrame(columns=["way", "state"])
    shared = scores.groupby("state")["way"].transform("nunique") == scores["way"].nunique()
    return images, scores[shared]
