"""What a training is, done or not: its data, its start, its settings, and a folder whose name has a hash of them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from deeplight_core.config import Profile, digest, project_root
from deeplight_core.data.cohorts import manifest_of
from deeplight_core.data.manifest import is_structural, select
from deeplight_core.data.store import Store, open_store, shared_images
from deeplight_core.models import ENCODERS
from deeplight_core.routes import ROUTES, VARIANTS, TrainingSettings
from deeplight_core.system.files import file_sha256
from deeplight_core.system.provenance import code_hash
from deeplight_core.training.checkpoint import load_mask, read_record
from deeplight_core.training.examples import draw_units
from deeplight_core.training.hub import local
from deeplight_core.training.published import identity
from deeplight_core.training.splits import Split, Splits, Which

__all__ = ["ANY_TARGET", "Training", "checkpoint_record", "finetuning", "pretraining", "start_of", "started_from"]


ANY_TARGET = ("deep", "voxels", "regional", "probe")  # learners of states and of numbers


@dataclass(frozen=True)
class Training:
    """A training, done or not: its folder, and everything that decides its result."""

    profile: Profile
    folder: Path
    stage: Literal["pretraining", "finetuning"]
    route: str
    variant: str
    fraction: float
    seed: int
    fold: int
    split: Split
    checkpoint: Path | None

    @property
    def units(self) -> list[str]:
        """The units it trains on."""
        return self.split.train

    @property
    def which(self) -> Which:
        """Whether it learns the profile's source or its target."""
        return "source" if self.stage == "pretraining" else "target"

    @property
    def settings(self) -> TrainingSettings:
        """How it is trained."""
        if self.stage == "finetuning":
            return self.profile.finetuning.of(self.variant)
        settings: TrainingSettings = getattr(self.profile.routes, self.route).pretraining
        return settings

    @property
    def finished(self) -> bool:
        """Whether the results exist."""
        return (self.folder / "scores.csv").is_file()

    @property
    def label(self) -> str:
        """The training's name in progress lines."""
        if self.stage == "pretraining" and not self.units:
            return f"published weights, {self.route}, seed {self.seed}"
        n, unit = len(self.units), self.profile.data.split_unit
        size = f"{100 * self.fraction:g}% ({n} {unit}{'' if n == 1 else 's'})"
        fold = f", fold {self.fold}" if self.fold else ""
        return f"{self.stage} {self.variant or self.route} {size}, seed {self.seed}{fold}"

    def metrics(self) -> pd.DataFrame:
        """Scores per epoch, split, task, target and subject."""
        return pd.read_csv(self.folder / "metrics.csv", dtype={"subject": str}, keep_default_na=False)

    def predictions(self) -> pd.DataFrame:
        """One row per reported example."""
        return pd.read_parquet(self.folder / "predictions.parquet")

    def results(self) -> pd.DataFrame:
        """The results table."""
        return pd.read_csv(self.folder / "scores.csv", dtype={"subject": str}, keep_default_na=False)


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")


def _check_fold(profile: Profile, fold: object) -> None:
    n = (profile.sweep.folds or 0) * profile.sweep.repeats
    if not isinstance(fold, int) or not 0 <= fold <= n:
        raise ValueError(f"fold must be a whole number from 0 (the manifest's split) to {n}, got {fold!r}")


def _check_targets(profile: Profile, which: Which, who: str) -> None:
    if which == "source" and not profile.data.source:
        raise ValueError(
            f"profile {profile.name} has no source, so there is nothing to pre-train on ({who}); decode without: "
            f"deeplight finetune {profile.name} --variant scratch (or linear), or start from somebody's decoder: "
            f"deeplight finetune {profile.name} --from DECODER"
        )
    if not profile.data.states(which) and not profile.data.columns(which):
        raise ValueError(
            f"{who} learns states or numbers, and data.{which} names none; name the states of its tasks, or a column"
        )
    if len(profile.data.states(which)) == 1:
        raise ValueError(
            f"{who} would learn a single state, {profile.data.states(which)[0][1]}, which there is nothing to tell "
            f"from; name another in data.{which}"
        )


def _code() -> str:
    """The software that decides a result: the code that computes, and torch's version for whichever device."""
    return code_hash() + torch.__version__.partition("+")[0]


def pretraining(
    profile: Profile, seed: int, route: str = "supervised", fold: int = 0, splits: Splits | None = None
) -> Training:
    """The pre-training of a profile by a route, done or not.

    Raises
    ------
    ValueError
        If there is no such route, seed or fold, or weights would be chosen on the reported units.
    """
    if route not in ROUTES:
        raise ValueError(f"there is no route {route!r}; there are {', '.join(ROUTES)}")
    _check_seed(seed)
    _check_fold(profile, fold)
    if (weights := getattr(profile.routes, route).pretraining.weights) is not None:
        store = splits.store if splits else open_store(profile.store)
        key = digest(_code(), "published", store.identity, *_described_route(profile, route), identity(weights), seed)
        folder = profile.folder / f"pretraining-{route}-seed{seed}-{key}"
        return Training(profile, folder, "pretraining", route, "", 1.0, seed, 0, Split([], [], []), None)
    if not ROUTES[route].unlabelled:
        _check_targets(profile, "source", f"route {route}")
    splits = splits or Splits(profile, open_store(profile.store))
    split = splits.of("source", fold, ROUTES[route].unlabelled)
    if n_units := getattr(profile.routes, route).pretraining.n_units:
        if n_units > len(split.train):
            raise ValueError(f"routes.{route}.pretraining.n_units is {n_units}, there are {len(split.train)} units")
        split = replace(split, train=sorted(draw_units(split.train, n_units / len(split.train), seed)))
    key = digest(
        _code(), "pretraining", splits.store.identity, *_described_route(profile, route), _asked(profile, "source"),
        split.train, split.watched, split.reported, seed,
    )  # fmt: skip
    name = f"pretraining-{route}-seed{seed}" + (f"-fold{fold}" if fold else "")
    training = Training(
        profile, profile.folder / f"{name}-{key}", "pretraining", route, "", 1.0, seed, fold, split, None
    )
    states_or_columns = profile.data.states("target") or profile.data.columns("target")
    _check_selection(training, splits.of("target", fold).reported if states_or_columns else [])
    return training


def finetuning(
    profile: Profile, variant: str, fraction: float, seed: int, fold: int = 0, splits: Splits | None = None
) -> Training:
    """The fine-tuning of a variant, fraction, seed and fold, done or not.

    Raises
    ------
    ValueError
        If the variant is unknown or does not fit the target, the fraction is not in (0, 1], or its pre-training (of the
        same seed and fold) is not done.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    _check_seed(seed)
    _check_fold(profile, fold)
    if isinstance(fraction, str) or not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be above 0 and at most 1, got {fraction!r}; 0.05 means 5% of the training units"
        )
    _check_targets(profile, "target", f"variant {variant}")
    chosen, columns = VARIANTS[variant], profile.data.columns("target")
    if chosen.learner not in ANY_TARGET and (chosen.learner == "ridge") != bool(columns):
        kinds = ("numbers", "states") if columns else ("states", "numbers")
        raise ValueError(f"the target is {kinds[0]}, and variant {variant} ({chosen.title}) decodes {kinds[1]}")
    if chosen.learner not in ANY_TARGET and profile.data.phenotypes("target"):
        raise ValueError(
            f"the target is columns of several kinds, which variant {variant} ({chosen.title}) does not decode; take a "
            "network, voxels, regional, or a frozen encoder's features"
        )
    splits = splits or Splits(profile, open_store(profile.store))
    split = splits.of("target", fold)
    split = replace(split, train=splits.draw(split.train, fraction, seed))
    checkpoint: Path | None = None
    origin: Any = None
    given = checkpoint_record(profile)
    if given and chosen.start != "random":
        checkpoint = local(profile.checkpoint or "")
        _refuse_trained_on(given, checkpoint, splits.store, split.reported)
    elif chosen.start != "random":
        checkpoint = start_of(profile, variant, seed, fold, splits).folder
    if checkpoint:
        origin = read_record(checkpoint)["sha256"]
    settings: Any = None
    if chosen.learner == "components":
        _check_targets(profile, "source", f"variant {variant}")
        origin = [_asked(profile, "source"), splits.of("source", fold).train]
    encoder = given["architecture"]["encoder"] if given else getattr(profile.routes, chosen.route).encoder.model_dump()
    if chosen.learner == "probe":  # what it sees of a volume is not told by its weights
        settings = encoder
    if chosen.learner == "deep":
        settings = [
            encoder,
            profile.finetuning.of(variant).model_dump(mode="json"),
            split.watched,
        ]
    key = digest(
        _code(), "finetuning", splits.store.identity, settings, _asked(profile, "target"), split.train, split.reported,
        {**asdict(chosen), "title": variant}, origin, seed,
    )  # fmt: skip
    name = f"finetuning-{variant}-{fraction:g}-seed{seed}" + (f"-fold{fold}" if fold else "")
    way = given.get("training", {}).get("route") if given else None
    training = Training(
        profile, profile.folder / f"{name}-{key}", "finetuning", way if way in ROUTES else chosen.route, variant,
        fraction, seed, fold, split, checkpoint,
    )  # fmt: skip
    if chosen.learner == "deep":
        _check_selection(training, [])
    return training


def start_of(profile: Profile, variant: str, seed: int, fold: int = 0, splits: Splits | None = None) -> Training:
    """The pre-training of a variant: the profile's own, or on other data, that of the profile that it names.

    Raises
    ------
    ValueError
        If other data hold somebody whom the decoder is tested on, by name or by the image itself.
    """
    splits, route = splits or Splits(profile, open_store(profile.store)), VARIANTS[variant].route
    if profile.pretrained_by is None:
        return pretraining(profile, seed, route, fold, splits)
    there = open_store(profile.origin.store)
    training = pretraining(profile.origin, seed, route, 0, Splits(profile.origin, there))
    reported = splits.of("target", fold).reported
    if both := sorted(_people(there, training.units) & _people(splits.store, reported)):
        raise ValueError(
            f"{len(both)} of the tested {profile.data.split_unit}s also served the pre-training of profile "
            f"{profile.origin.name}: {', '.join(both[:10])}; leave them out of one of the two manifests"
        )
    shared = shared_images(there, splits.store)
    shared = shared[shared["subject"].isin(training.units) & shared["other_subject"].isin(reported)]
    if len(shared):
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(shared["run"][:5], shared["other_run"], strict=False))
        raise ValueError(
            f"{len(shared)} tested image(s) also served the pre-training of profile {profile.origin.name}, under other "
            f"names: {pairs}; leave them out of one of the two manifests"
        )
    return training


def checkpoint_record(profile: Profile) -> dict[str, Any] | None:
    """The record of the checkpoint that the profile names, if it names one."""
    return read_record(local(profile.checkpoint)) if profile.checkpoint else None


def _refuse_trained_on(record: dict[str, Any], folder: Path, store: Store, reported: list[str]) -> None:
    """Raise ValueError if a checkpoint was trained on somebody whom the decoder is tested on, as far as it says."""
    tested = _people(store, reported)
    trained_on = {f"{of}/{unit}" for of in record.get("datasets", []) for unit in record["training"].get("units", [])}
    if both := sorted(tested & trained_on):
        raise ValueError(
            f"checkpoint {folder} was trained on {len(both)} of the tested people: {', '.join(both[:10])}; take a "
            "checkpoint of others"
        )


def started_from(profile: Profile, checkpoint: str | Path) -> Profile:
    """The profile with decoders that start from a checkpoint, and have its encoder.

    If the encoder needs its grid, the runs are resampled to it and keep its mask's voxels, in a store of their own.

    Raises
    ------
    ValueError
        If there is no such checkpoint, it is of another kind of images, or of clips of another length.
    """
    folder = local(checkpoint)
    record = read_record(folder)
    encoder, of_images = record["architecture"]["encoder"], record["data"]["tr_s"] is None
    if is_structural(select(manifest_of(profile), profile.data)).all() != of_images:
        kinds = ("structural images", "runs of fMRI")
        there, here = kinds if of_images else reversed(kinds)
        raise ValueError(
            f"checkpoint {checkpoint} was trained on {there}, and profile {profile.name} has {here}; take another one"
        )
    frames, clip = encoder["settings"].get("frames"), profile.finetuning.clip
    if frames and (clip is None or clip.frames != frames):
        raise ValueError(
            f"checkpoint {checkpoint} reads clips of {frames} frames; set finetuning.clip: {{length_s: …, step_s: …, "
            f"frames: {frames}}} in profile {profile.name}"
        )
    name = str(folder) if Path(checkpoint).is_dir() else str(checkpoint)
    if encoder["name"] not in ENCODERS or not ENCODERS[encoder["name"]].needs_grid:
        return profile.overridden({"checkpoint": name})
    load_mask(folder, record)  # refuses a bad one before anything is prepared
    store = profile.folder / f"store-{record['sha256'][:8]}"
    grid = {"resample_to": None, "mask": str(folder / "mask.nii.gz"), "crop": False}
    own = {"checkpoint": name, "preprocessing": {**grid, "structural": {"resolution_mm": None}}}
    return profile.overridden(own).stored_in(store)


def _people(store: Store, units: list[str]) -> set[str]:
    """The units as `<dataset>/<unit>`: other datasets may use the same names."""
    rows = store.index[store.index["unit"].isin(units)]
    return {f"{dataset}/{unit}" for dataset, unit in zip(rows["dataset"], rows["unit"], strict=True)}


def _described_route(profile: Profile, route: str) -> list[Any]:
    """A route and all its settings, defaults too: another default is another training."""
    settings = getattr(profile.routes, route).model_dump(mode="json")
    return [{**asdict(ROUTES[route]), "title": route, "paper": ""}, settings]


def _asked(profile: Profile, which: Which) -> list[Any]:
    """States or columns to decode, the tasks to decode them from, and from what clips and voxels."""
    asked: list[Any] = [profile.data.states(which), profile.data.columns(which), profile.data.tasks(which)]
    if described := profile.data.phenotypes(which):
        asked.append(described)
    if which == "source":
        return asked
    clip, atlas = profile.finetuning.clip, profile.finetuning.atlas
    files = [file_sha256(project_root() / path) for path in (atlas.image, atlas.labels)] if atlas else []
    return [*asked, clip and clip.model_dump(), atlas and atlas.keep, files]


def _check_selection(training: Training, others: list[str]) -> None:
    """Raise ValueError if weights would be chosen on units that are reported, here or later (`others`)."""
    settings, split = training.settings, training.split
    if (settings.keep == "best" or settings.patience) and {*split.watched} & {*split.reported, *others}:
        raise ValueError(
            f"{training.label}: keep: best and patience would choose by the {training.profile.data.split_unit}s that "
            "are reported; hold out a third split (`deeplight manifest --test N`), or set keep: last and patience: null"
        )
