"""Why a finished decoder decides as it does: relevance of every voxel, for each state, subject and group.

A folder of explanations holds::

    explanation.json                  what was explained, and how
    conservation.csv                  one row per example: its logit, and where that went
    group/<state>.nii.gz              mean over subjects of their means over examples
    subjects/<subject>/<state>.nii.gz
    regions.csv                       the largest places of the group's maps, with coordinates
    planted.csv                       simulated data only: how well the maps find what was planted

Examples are explained that the decoder answers correctly, or, if asked so, all with whatever it answers; relevance is
that of the answer's logit, in its units: a map's sum is how much of the logit the voxels explain. `subject` is the unit
of the splits, as everywhere.

Letters: N examples, U units, S states, V in-mask voxels.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deeplight_core.analysis.attribution import METHODS, Method, explain
from deeplight_core.analysis.localisation import localisation, regions, true_places
from deeplight_core.config import FinetuningSettings, Profile, load_profile
from deeplight_core.data.atlas import seen_voxels
from deeplight_core.data.store import Store, open_store
from deeplight_core.experiment import finetuning, started_from
from deeplight_core.models import Model
from deeplight_core.report.quality import planted_contrasts, state_names
from deeplight_core.system.files import write_whole
from deeplight_core.system.progress import track
from deeplight_core.training import examples as learnt_from
from deeplight_core.training.checkpoint import check_data, data_facts, load_model, shuffle
from deeplight_core.training.examples import Examples
from deeplight_core.training.hub import local
from deeplight_core.training.inference import batch_size, predict
from deeplight_core.training.loader import Volumes

__all__ = [
    "Asked",
    "Explained",
    "all_maps",
    "asked",
    "conservation",
    "contrast_maps",
    "explained",
    "file_name",
    "linear_patterns",
    "maps_of",
    "of_page",
    "planted_scores",
    "randomised",
    "sentences",
    "simple_maps",
    "source_of",
    "write",
]

_LARGER = 8  # explaining keeps every layer's maps, decoding does not


@dataclass(frozen=True)
class Asked:
    """A decoder, and the examples that it is asked about.

    names : of the S states or columns
    data : N examples of some units; numbers have the label 0, and several columns have as many examples
    right : numbers of those that it answers correctly; all of them where it answers numbers, or it is asked for what it
        answers
    predicted : whether the states are those that it answers, not those of the events
    """

    checkpoint: Path
    model: Model
    record: dict[str, Any]
    store: Store
    names: list[str]
    data: Volumes
    right: np.ndarray
    predicted: bool = False

    @property
    def labels(self) -> np.ndarray:
        """(N,) the state of each example."""
        targets = self.data.examples.targets
        return targets if targets.ndim == 1 else np.zeros(len(targets), int)


@dataclass(frozen=True)
class Explained:
    """Maps of relevance.

    maps : (U, S, V) means over examples; NaN where a unit has none
    examples : `subject, task, run, frame, block, state, logit, voxels, outside, biases, stabiliser, residual`, in units
        of the logit; `voxels` in the mask, `outside` of it
    """

    asked: Asked
    method: Method
    units: list[str]
    maps: np.ndarray
    examples: pd.DataFrame

    def group(self) -> dict[str, np.ndarray]:
        """Each state's mean (V,) over the units that have a map."""
        there = np.isfinite(self.maps).all(axis=2)
        names = self.asked.names
        return {names[s]: self.maps[there[:, s], s].mean(axis=0) for s in range(len(names)) if there[:, s].any()}


def source_of(source: str | Path) -> tuple[Store, Profile | None]:
    """The prepared store of a profile, by its name or file, or that in a folder.

    Raises
    ------
    ValueError
        If it is neither, or not prepared.
    """
    if (Path(source) / "store.json").is_file():
        return open_store(source), None
    profile = load_profile(source)
    if profile.checkpoint is not None:
        profile = started_from(profile, profile.checkpoint)
    return open_store(profile.store), profile


def asked(
    checkpoint: str | Path,
    store: Store,
    split: str = "",
    each: int | None = None,
    device: str = "cpu",
    predicted: bool = False,
) -> Asked:
    """A trained decoder, and examples of a store that it can decode.

    Parameters
    ----------
    checkpoint : a folder, or ORG/NAME@REVISION of the hub
    split : "train", "validation", "test" or "all"; "" = the reported one, or what the decoder's fold held out
    each : at most so many examples of every unit's states, evenly spaced (None = all)
    predicted : explain what the decoder answers, right or wrong, to all volumes, whether events name a state or not

    Raises
    ------
    ValueError
        If there is no checkpoint, it decodes nothing, or its data and the store differ where they must agree.
    """
    checkpoint = local(checkpoint)
    model, record = load_model(checkpoint)
    for difference in check_data(record, checkpoint, data_facts(store)):
        print(f"note: other data than {Path(checkpoint).name} was trained on: {difference}", flush=True)
    shape = record["data"]["grid"]["shape"]
    if len(model.encoder.output_shape) > 1 and list(store.shape) != shape:
        raise ValueError(
            f"{checkpoint} has a head for volumes of {shape}, the store has volumes of {store.shape}; explain the CSV "
            "of `deeplight manifest`, whose runs are brought to its grid"
        )
    if split not in ("", "all", "train", "validation", "test"):
        raise ValueError(f"split must be train, validation, test or all, got {split!r}")
    there = {*store.index["unit"]}
    held_out = sorted({*record["training"].get("reported", [])} & there)  # an exported record names nobody
    if not split and not (record["training"].get("fold") and held_out):
        split = "test" if "test" in store.splits else "validation"
    units = held_out if not split else None
    model, on = model.to(device).eval(), torch.device(device)
    predicted = predicted and model.head.name == "classes"
    chosen, names = _examples(checkpoint, model, record, store, "" if split == "all" else split, units, predicted)
    if predicted:
        chosen = replace(chosen, targets=predict(model, Volumes(store, chosen, on)).answer.argmax(axis=1))
    chosen = _few(chosen, each)
    data = Volumes(store, chosen, on)
    right = np.arange(len(chosen))
    if model.head.name == "classes" and not predicted:
        right = np.flatnonzero(predict(model, data).answer.argmax(axis=1) == chosen.targets)
    return Asked(Path(checkpoint), model, record, store, names, data, right, predicted)


def _examples(
    checkpoint: str | Path,
    model: Model,
    record: dict[str, Any],
    store: Store,
    split: str,
    units: list[str] | None,
    predicted: bool,
) -> tuple[Examples, list[str]]:
    """Examples with their states, numbers or (`predicted`) labels still to be answered, and the names of the labels."""
    targets = model.head.targets
    if predicted:
        chosen = learnt_from.of_anything(store.index, sorted(store.index["task"].unique()), split, units)
        chosen = replace(chosen, targets=np.zeros(len(chosen), np.int64))
        names = state_names([(task, state) for task, state in targets])
    elif model.head.name == "classes":
        states = [(task, state) for task, state in targets]
        if not {*states} & {*zip(store.index["task"], store.index["state"], strict=True)}:
            told = ", ".join(f"{task}: {state}" for task, state in states)
            raise ValueError(
                f"the events name none of the decoder's states, {told}; --predicted explains what it answers instead"
            )
        chosen, names = learnt_from.of_states(store.index, states, split, units), state_names(states)
    elif model.head.name == "numbers":
        if len(targets) > 1:
            raise ValueError(f"{checkpoint} decodes {', '.join(targets)} at once; explain a decoder of one of them")
        chosen, names = (
            learnt_from.of_numbers(store.index, targets, record["training"].get("tasks", []), split, units),
            targets,
        )
    else:
        raise ValueError(
            f"{checkpoint} has a head of kind {model.head.name}, which decides nothing that could be explained; "
            "explain a decoder that was fine-tuned from it"
        )
    kept = {name: record["training"][name] for name in ("clip", "atlas") if record["training"].get(name)}
    settings = FinetuningSettings.model_validate(kept)
    if settings.clip:
        chosen = learnt_from.clips(chosen, **settings.clip.in_frames(store.info["tr_s"]))
    return (replace(chosen, seen=seen_voxels(settings.atlas, store)) if settings.atlas else chosen), names


def _few(chosen: Examples, each: int | None) -> Examples:
    """At most so many examples of each unit's states, evenly spaced over what there are."""
    if each is None:
        return chosen
    keys = [chosen.table["unit"].to_numpy(), chosen.targets if chosen.targets.ndim == 1 else np.zeros(len(chosen), int)]
    groups = pd.Series(range(len(chosen))).groupby(keys).indices.values()
    kept = np.concatenate(
        [own[np.unique(np.linspace(0, len(own) - 1, min(each, len(own))).round().astype(int))] for own in groups]
    )
    kept.sort()
    return replace(
        chosen, table=chosen.table.iloc[kept].reset_index(drop=True), members=chosen.members[kept],
        targets=chosen.targets[kept],
    )  # fmt: skip


def explained(question: Asked, method: Method, double: bool = False, model: Model | None = None) -> Explained:
    """The relevance of every voxel to the answers of a decoder.

    Parameters
    ----------
    double : compute in double precision, so that what is conserved is so to rounding
    model : explain this one's answers to the same examples

    Raises
    ------
    ValueError
        If no example was answered correctly, or LRP is not defined for the decoder.
    """
    if not len(question.right):
        raise ValueError(
            f"{question.checkpoint} answers none of {len(question.data)} examples correctly; --predicted explains what "
            "it answers"
        )
    model = copy.deepcopy(model or question.model)
    model = model.double() if double else model
    table, labels = question.data.examples.table.iloc[question.right], question.labels[question.right]
    units = sorted(table["unit"].unique())
    place = table["unit"].map({unit: i for i, unit in enumerate(units)}).to_numpy()
    total = np.zeros((len(units), len(question.names), question.store.info["n_voxels"]))
    rows = []
    for numbers, found, inside in _relevance(question, model, method, double):
        np.add.at(total, (place[numbers], labels[numbers]), inside)
        parts = {name: getattr(found, name).cpu().numpy() for name in ("logit", "biases", "stabiliser", "residual")}
        within = inside.sum(axis=1, dtype=float)
        parts["outside"] = found.voxels.double().flatten(1).sum(dim=1).cpu().numpy() - within
        rows.append(pd.DataFrame({"voxels": within, **parts}))
    n = np.zeros(total.shape[:2])
    np.add.at(n, (place, labels), 1)
    maps = np.full(total.shape, np.nan, np.float32)
    maps[n > 0] = total[n > 0] / n[n > 0][:, None]
    who = table[["unit", "task", "run", "frame", "block"]].rename(columns={"unit": "subject"}).reset_index(drop=True)
    who = who.assign(state=[question.names[label] for label in labels]).join(pd.concat(rows, ignore_index=True))
    return Explained(question, method, units, maps, who)


def _relevance(
    question: Asked, model: Model, method: Method, double: bool
) -> Iterator[tuple[np.ndarray, Any, np.ndarray]]:
    """Batch by batch: places among the right examples, their relevance, and that of in-mask voxels (B, V)."""
    data, store = question.data, question.store
    size = max(1, batch_size(data.shape, data.device.type, data.examples.volumes_each) // _LARGER)
    places = [np.arange(i, min(i + size, len(question.right))) for i in range(0, len(question.right), size)]
    mask = torch.from_numpy(np.ascontiguousarray(store.mask[store.box].T)).to(data.device)
    batches = data.batches(iter([question.right[own] for own in places]))
    what = f"{question.checkpoint.name}: explained"
    for own, (_, batch) in track(zip(places, batches, strict=True), len(places), what):
        volumes: Tensor = batch["volumes"].double() if double else batch["volumes"]
        found = explain(model, volumes, torch.from_numpy(question.labels[question.right[own]]), method)
        frames = found.voxels.flatten(1, -4).sum(dim=1) if found.voxels.dim() > 4 else found.voxels
        yield own, found, frames[:, mask].cpu().numpy()


# ---- the page


STEPS = 20  # of integrated gradients, on the page
_METHODS = {
    "LRP, ε": METHODS["lrp-epsilon"],
    "LRP, ε, flat first": METHODS["lrp-epsilon"].model_copy(update={"first": "flat"}),
    "LRP, α2β1": METHODS["lrp-alpha2beta1"],
    "LRP, γ": METHODS["lrp-gamma"],
    "gradient × input": METHODS["gradient"],
    "integrated gradients": METHODS["integrated-gradients"].model_copy(update={"steps": STEPS}),
}


def of_page(profile: Profile, each: int) -> tuple[Asked, dict[str, Explained]]:
    """The page's decoder, and its answers explained in every way: method → relevance.

    It is the pre-trained one of the largest fraction, first seed and first fold.

    Parameters
    ----------
    each : see `asked`
    """
    sweep = profile.sweep
    training = finetuning(profile, "pretrained", max(sweep.fractions), sweep.seeds[0], 1 if sweep.folds else 0)
    question = asked(training.folder, open_store(profile.store), each=each)
    found = {} if not len(question.right) else {w: explained(question, method) for w, method in _METHODS.items()}
    return question, found


def all_maps(question: Asked, found: Mapping[str, Explained], each: int) -> dict[str, dict[str, np.ndarray]]:
    """Way → state → map (V,): of relevance, the t-map of the same volumes, and a linear decoder's pattern."""
    return {way: one.group() for way, one in found.items()} | simple_maps(question, each)


def simple_maps(question: Asked, each: int) -> dict[str, dict[str, np.ndarray]]:
    """Way → state → map (V,), of two ways that need no network: the t-map and a linear decoder's pattern."""
    return {"t-map": contrast_maps(question), "linear pattern": linear_patterns(question, each)}


def conservation(found: Mapping[str, Explained]) -> pd.DataFrame:
    """Where logits went, by method: means over examples of `logit, voxels, outside, biases, stabiliser`, and `missing`.

    `missing` is the largest share of an example's logit that was given to nobody.
    """
    columns = ["logit", "voxels", "outside", "biases", "stabiliser"]
    means = {way: of.examples[columns].mean() for way, of in found.items()}
    missing = [(of.examples["residual"] / of.examples["logit"]).abs().max() for of in found.values()]
    table = pd.DataFrame(means).T.reindex(columns=columns).rename_axis("way").reset_index()
    return table.assign(missing=missing)


# ---- other maps, and what was planted


def contrast_maps(question: Asked) -> dict[str, np.ndarray]:
    """Each state's mean minus the mean of all states, as t (V,) over the units of the examples that are asked about.

    Examples are z-scored volumes, so this is a general linear model with one regressor per state in each unit, and a
    t-test over the units that have all states. A single unit has the contrast itself.
    """
    units, n_states = question.data.examples.table["unit"].to_numpy(), len(question.names)
    contrasts = []
    for unit in sorted(set(units)):
        own = np.flatnonzero(units == unit)
        values, labels = _voxels(question.data, own), question.labels[own]
        if {*labels} == {*range(n_states)}:
            means = np.stack([values[labels == s].mean(axis=0) for s in range(n_states)])
            contrasts.append(means - means.mean(axis=0))
    if not contrasts:
        return {}
    mean, n = np.mean(contrasts, axis=0), len(contrasts)
    error = np.std(contrasts, axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.ones_like(mean)
    t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)
    return dict(zip(question.names, t, strict=True))


def linear_patterns(question: Asked, each: int | None = None) -> dict[str, np.ndarray]:
    """The activation pattern (V,) of every state in logistic regression (Haufe et al. 2014).

    It is trained on the decoder's own training units, as the sweep's is (C = 1, volumes whose norm is about 10); its
    weights W become patterns cov(x) W cov(x W)⁻¹. Empty where the store does not have these units.

    Parameters
    ----------
    each : see `asked`
    """
    from sklearn.linear_model import LogisticRegression

    store, units = question.store, question.record["training"].get("units", [])
    if question.model.head.name != "classes" or not units or not {*units} <= {*store.index["unit"]}:
        return {}
    states = [(task, state) for task, state in question.model.head.targets]
    chosen = replace(
        _few(learnt_from.of_states(store.index, states, "", units), each), seen=question.data.examples.seen
    )
    data = Volumes(store, chosen)
    x = _voxels(data, np.arange(len(data)))
    scaled = x * (10 / (x.std() * np.sqrt(x.shape[1])))
    model = LogisticRegression(C=1.0, max_iter=1000).fit(scaled, chosen.targets)
    answers = model.decision_function(scaled).reshape(len(x), -1)
    if answers.shape[1] == 1:
        answers = np.concatenate([-answers, answers], axis=1)
    centred, answers = x - x.mean(axis=0), answers - answers.mean(axis=0)
    patterns = centred.T @ answers @ np.linalg.pinv(answers.T @ answers, hermitian=True)
    return {question.names[label]: patterns[:, k] for k, label in enumerate(model.classes_)}


def _voxels(data: Volumes, numbers: np.ndarray) -> np.ndarray:
    """(n, V) float32; a clip is the mean of its frames."""
    values = data.masked(numbers).float().cpu().numpy()
    return np.asarray(values.reshape(len(values), -1, values.shape[-1]).mean(axis=1))


def planted_scores(
    question: Asked, profile: Profile | None, ways: Mapping[str, Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """How well maps find what was planted: `way, state, n_voxels, mass, rank, pointing, auc, chance`.

    The places to find are those where the planted map of a state minus the mean of all decoded states' is at least half
    as large as its largest value (see `analysis.localisation`); `chance` is their share of all voxels, which is what
    mass and rank are without any knowledge. Empty where the truth is unknown.

    Parameters
    ----------
    ways : name of the way → state → map (V,)
    """
    rows: list[dict[str, Any]] = []
    if profile is not None and question.model.head.name == "classes":
        states = [(task, state) for task, state in question.model.head.targets]
        for name, image in planted_contrasts(profile, question.store, states).items():
            places = true_places(image.get_fdata().T[question.store.mask.T])
            for way, maps in ways.items():
                if name in maps:
                    own = {"way": way, "state": name, "n_voxels": int(places.sum()), "chance": places.mean()}
                    rows.append(own | localisation(maps[name], places))
    return pd.DataFrame(rows, columns=["way", "state", "n_voxels", "mass", "rank", "pointing", "auc", "chance"])


def randomised(question: Asked, method: Method, seed: int = 0) -> pd.DataFrame:
    """How much of the maps is left as weights become random (Adebayo et al. 2018): `weights, state, r`.

    From the answers downwards, weights of more and more layers are put in random order within each tensor; `r` is the
    rank correlation of the group's map with that of the trained decoder, for the same examples.
    """
    from scipy.stats import spearmanr

    trained, blocks = explained(question, method).group(), question.model.encoder.blocks
    stages = {"head": [], "head and upper half": blocks[len(blocks) // 2 :], "all": blocks}
    rows = []
    for stage, shuffled in stages.items():
        model = copy.deepcopy(question.model)
        for part in (model.head, *(model.encoder.get_submodule(block) for block in shuffled)):
            shuffle(part, seed)
        found = explained(question, method, model=model).group()
        rows += [{"weights": stage, "state": s, "r": float(spearmanr(trained[s], found[s]).statistic)} for s in trained]
    return pd.DataFrame(rows)


# ---- files


def file_name(name: str) -> str:
    """A name that is safe in a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "unnamed"


def maps_of(found: Explained) -> list[tuple[str, nib.Nifti1Image, pd.DataFrame]]:
    """Each state's name, its group's map, and the map's largest places (see `analysis.localisation.regions`)."""
    images = {name: found.asked.store.unmask(values) for name, values in found.group().items()}
    return [(name, image, regions(image)) for name, image in images.items()]


def sentences(found: Explained) -> list[str]:
    """What was explained, and what became of the logits."""
    question, method, table = found.asked, found.method, found.examples
    how = {
        "lrp": f"layer-wise relevance propagation ({method.rule} in convolutions, {method.first} in the first one; "
        f"ε = {method.epsilon:g})",
        "gradient": "gradient × input", "integrated": f"integrated gradients ({method.steps} steps)",
    }[method.kind]  # fmt: skip
    means, residual = table[["logit", "voxels", "outside", "biases"]].mean(), (table["residual"] / table["logit"]).abs()
    which = "answers correctly" if not question.predicted else "answers, whether correctly or not"
    return [
        f"{len(table)} of {len(question.data)} examples of {len(found.units)} subjects, those that "
        f"{question.checkpoint.name} {which}, explained by {how}.",
        f"Of a mean logit of {means['logit']:.3g}, the brain's voxels explain {means['voxels']:.3g}, voxels outside it "
        f"{means['outside']:.3g}, biases {means['biases']:.3g}; what is missing is at most {residual.max():.1e} of an "
        f"example's logit (median {residual.median():.1e}).",
    ]


def write(found: Explained, folder: Path, profile: Profile | None = None) -> None:
    """Write a folder of explanations; `explanation.json` comes last.

    Raises
    ------
    ValueError
        If the names of two states or subjects would be the same in paths.
    """
    question, store = found.asked, found.asked.store
    for names in (question.names, found.units):
        if len({file_name(name) for name in names}) < len(names):
            raise ValueError(f"some of {', '.join(names)} have the same name in paths; rename one in the manifest")
    tables = []
    for name, image, places in maps_of(found):
        _save(image, folder / "group" / f"{file_name(name)}.nii.gz")
        tables.append(places.assign(state=name))
    for unit, maps in zip(found.units, found.maps, strict=True):
        for name, values in zip(question.names, maps, strict=True):
            if np.isfinite(values).all():
                _save(store.unmask(values), folder / "subjects" / file_name(unit) / f"{file_name(name)}.nii.gz")
    table = pd.concat(tables, ignore_index=True)
    _save_table(table[["state", *(c for c in table if c != "state")]].round(4), folder / "regions.csv")
    _save_table(found.examples, folder / "conservation.csv")
    scores = planted_scores(question, profile, {"relevance": found.group()})
    if len(scores):
        _save_table(scores, folder / "planted.csv")
    about = {
        "checkpoint": question.checkpoint.name, "sha256": question.record["sha256"], "store": store.identity,
        "method": found.method.model_dump(mode="json"), "states": question.names, "subjects": found.units,
        "n_examples": len(question.data), "n_right": len(question.right), "predicted": question.predicted,
        "largest_residual": float((found.examples["residual"].abs() / found.examples["logit"].abs()).max()),
    }  # fmt: skip
    text = json.dumps(about, indent=1) + "\n"
    write_whole(folder / "explanation.json", lambda p: p.write_text(text, encoding="utf-8"))


def _save(image: nib.Nifti1Image, path: Path) -> None:
    write_whole(path, lambda p: nib.save(image, p))


def _save_table(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda p: table.to_csv(p, index=False))
