"""Patient or control? What a decoder sees of everybody in a small study, and whether it tells the groups apart.

Three vectors describe a person, each of means over his volumes of every state: his voxels, which need no network; the
features of the checkpoint that the study's decoders start from; and the relevance of his voxels to the answers of the
decoder that was fine-tuned without him. None has learnt from anybody's group.

Letters: N people, S states, V in-mask voxels, F features.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import yaml

from deeplight_core.analysis.attribution import METHODS
from deeplight_core.analysis.localisation import localisation, true_places
from deeplight_core.analysis.separation import Separation, separation
from deeplight_core.config import Profile
from deeplight_core.data.clinic import planted_change_path
from deeplight_core.data.store import open_store
from deeplight_core.experiment import finetuning
from deeplight_core.explanations import asked, explained
from deeplight_core.report import findings, plots
from deeplight_core.report.html import Part
from deeplight_core.report.quality import on_grid
from deeplight_core.training.checkpoint import load_model
from deeplight_core.training.examples import of_states
from deeplight_core.training.hub import local
from deeplight_core.training.inference import features
from deeplight_core.training.loader import Volumes
from deeplight_core.training.splits import Splits

__all__ = ["EACH", "People", "planted_change", "report_parts", "seen_of_people", "told_apart"]


EACH = 13  # volumes of each person's states that are explained


@dataclass(frozen=True)
class People:
    """Everybody in a study.

    table : `unit, group, fold` of N people; the fold is that in which somebody was held out
    second : (N,) whether they are of the second group
    vectors : way → (N, S, V or F)
    """

    table: pd.DataFrame
    second: np.ndarray
    vectors: dict[str, np.ndarray]


def seen_of_people(profile: Profile, each: int | None = EACH) -> People:
    """Everybody's voxels and, where they are available, the features of the checkpoint and relevance.

    Relevance is that of the decoders of the largest fraction and the first seed, once all folds are trained: LRP, ε.

    Parameters
    ----------
    profile : with `controls.groups`, prepared
    each : explain at most so many volumes of each person's states, evenly spaced (None = all)

    Raises
    ------
    ValueError
        If the profile names no groups, or somebody is in neither, or lacks a state.
    """
    groups, states = profile.controls.groups, profile.data.states("target")
    if groups is None:
        raise ValueError(f"profile {profile.name} names no groups; set controls.groups: {{column: …, names: […, …]}}")
    store = open_store(profile.store)
    if groups.column not in store.index:
        raise ValueError(
            f"the manifest of profile {profile.name} has no column {groups.column}; add it: `deeplight manifest … "
            f"--subjects TABLE --label {groups.column}`"
        )
    chosen = of_states(store.index, states, units=sorted(store.index["unit"].unique()))
    table = chosen.table.drop_duplicates("unit")[["unit", groups.column]].sort_values("unit", ignore_index=True)
    table.columns = ["unit", "group"]
    if others := sorted({*table["group"]} - {*groups.names}):
        raise ValueError(f"some people's {groups.column} is {', '.join(others)}, not {' or '.join(groups.names)}")
    if not profile.sweep.folds:
        raise ValueError(
            f"profile {profile.name} divides nobody into folds; set sweep.folds to hold everybody out once"
        )
    splits = Splits(profile, store)
    held_out = {fold: splits.of("target", fold).reported for fold in range(1, profile.sweep.folds + 1)}
    table = table.assign(fold=table["unit"].map({unit: fold for fold, units in held_out.items() for unit in units}))
    place = pd.Index(table["unit"]).get_indexer(pd.Index(chosen.table["unit"]))
    n = np.zeros((len(table), len(states)))
    np.add.at(n, (place, chosen.targets), 1)
    if (n == 0).any():
        lacking = table["unit"][(n == 0).any(axis=1)].tolist()
        raise ValueError(f"{', '.join(lacking)} lack volumes of a state; leave them out of the manifest")

    def means(values: np.ndarray) -> np.ndarray:
        total = np.zeros((*n.shape, values.shape[1]))
        np.add.at(total, (place, chosen.targets), values)
        return total / n[:, :, None]

    data = Volumes(store, chosen)
    vectors = {"voxels": means(data.masked(np.arange(len(data))).float().numpy())}
    if profile.checkpoint is not None:
        encoder = load_model(local(profile.checkpoint))[0].encoder
        vectors["features"] = means(features(encoder, data).reshape(len(data), -1))
    if (relevance := _relevance(profile, table["unit"].tolist(), each)) is not None:
        vectors["relevance"] = relevance
    return People(table, (table["group"] == groups.names[1]).to_numpy(), vectors)


def _relevance(profile: Profile, units: list[str], each: int | None) -> np.ndarray | None:
    """(N, S, V) of the right answers' logits, whether they were given or not; None if a fold is not trained.

    Every decoder has a scale and places of its own, so its maps are taken as differences from their mean, in units of
    the differences' root mean square.
    """
    sweep, store = profile.sweep, open_store(profile.store)
    if "pretrained" not in sweep.variants:
        return None
    folds = range(1, (sweep.folds or 0) + 1)
    trainings = [finetuning(profile, "pretrained", max(sweep.fractions), sweep.seeds[0], fold) for fold in folds]
    if not all(training.finished for training in trainings):
        return None
    maps: dict[str, np.ndarray] = {}
    for training in trainings:
        question = asked(training.folder, store, each=each)
        found = explained(replace(question, right=np.arange(len(question.data))), METHODS["lrp-epsilon"])
        differences = found.maps - found.maps.mean(axis=0)
        scale = np.sqrt((differences**2).mean())
        maps |= dict(zip(found.units, differences / scale if scale else differences, strict=True))
    return np.stack([maps[unit] for unit in units])


def told_apart(people: People) -> dict[str, Separation]:
    """Way → how well the groups are told apart by it, in the folds in which decoders were trained."""
    folds = people.table["fold"].to_numpy()
    return {
        way: separation(values.reshape(len(values), -1), people.second, folds) for way, values in people.vectors.items()
    }


def planted_change(profile: Profile, people: People) -> tuple[dict[str, nib.Nifti1Image], pd.DataFrame]:
    """Where the groups differ, and whether that is where it was planted; simulated patients only.

    The map of a changed state is the t of second minus first group; the places to find are those where the planted
    change is at least half as large as its largest value.

    Returns
    -------
    state → the planted map; `way, state, n_voxels, mass, rank, pointing, auc` as `explanations.planted_scores` has them
    """
    planted: dict[str, nib.Nifti1Image] = {}
    rows: list[dict[str, Any]] = []
    if profile.simulation is not None and profile.simulation.patients is not None:
        store, states = open_store(profile.store), profile.data.states("target")
        for number, (task, state) in enumerate(states):
            path = planted_change_path(profile.data_root, task, state)
            if not path.is_file():
                continue
            change = on_grid(nib.load(path), store)
            planted[state] = store.unmask(change)
            places = true_places(change)
            for way in {"voxels", "relevance"} & {*people.vectors}:
                t = _t(people.vectors[way][:, number], people.second)
                rows.append({"way": way, "state": state, "n_voxels": int(places.sum()), **localisation(t, places)})
    columns = ["way", "state", "n_voxels", "mass", "rank", "pointing", "auc"]
    return planted, pd.DataFrame(rows, columns=columns).sort_values(["way", "state"], ascending=[False, True])


def report_parts(training: Path) -> list[Part]:
    """What a report says of a study's groups: nothing where it has none, or where the prepared data are not at hand."""
    if not (training / "scores.csv").is_file():
        return []
    profile = Profile.model_validate(yaml.safe_load((training / "config.yaml").read_text(encoding="utf-8"))["profile"])
    groups = profile.controls.groups
    if groups is None or not (profile.store / "index.parquet").is_file():
        return []
    people = seen_of_people(profile)
    apart = told_apart(people)
    first, second = groups.names
    figure = plots.group_values({way: one.held_out for way, one in apart.items()}, people.second, (first, second))
    said = "One linear classifier reads the means over everybody's volumes of every state, in the decoders' folds."
    note, rows = findings.groups_note(apart, people.second), findings.groups_rows(apart, people.second)
    caption = f"The classifier's value of everybody, held out; right of the line it says {second}."
    return [
        Part(
            f"{second.capitalize()} or {first}?", [said, note.replace("**", "")], table=rows, figures={caption: figure}
        )
    ]


def _t(values: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(V,) Welch's t of the second minus the first group, zero where nobody varies."""
    parts = [values[own] for own in (second, ~second)]
    error = np.sqrt(sum(part.var(axis=0, ddof=1) / len(part) for part in parts))
    difference = parts[0].mean(axis=0) - parts[1].mean(axis=0)
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
