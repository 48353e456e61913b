"""The trainings behind each page of the book: the paper's sweep and the controls."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplight_core.config import Profile
from deeplight_core.preparation import ColumnTarget
from deeplight_core.routes import ROUTES, VARIANTS, Variant

__all__ = [
    "CONTROLS",
    "LONGER",
    "OF_COMPARISON",
    "OF_CONTRAST",
    "OF_IMAGES",
    "OF_TRANSFERS",
    "Cell",
    "Change",
    "changed",
    "changes",
    "faulted",
    "planned",
    "pretraining_of",
]

CONTROLS = ("baselines", "initialisation", "permutation", "tasks", "seeds", "steps", "rates", "gain")
OF_TRANSFERS = ("blocks", "faults")  # controls of decoders of another dataset
OF_COMPARISON = ("rates", "sensitivity", "published")  # of ways to pre-train; the last is a target of its own
OF_CONTRAST = ("shortcuts", "networks")  # controls of temporal contrast
OF_IMAGES = ("conditioning", "tuned", "rates")  # of networks for photographs: frozen; what takes hours; other people's
LONGER = 3  # times the steps, in the control of training length
_DEEP = ["pretrained", "scratch"]


class Cell(NamedTuple):
    """One fine-tuning.

    `target` is empty, or a task that replaces the profile's target; `fold` is 0 for the manifest's own split, or counts
    the folds of cross-validation from 1; `change` is the name of changed settings (see `changes`).
    """

    target: str
    variant: str
    fraction: float
    seed: int
    fold: int = 0
    change: str = ""

    @property
    def name(self) -> str:
        """A name for files."""
        fraction = np.format_float_positional(self.fraction, trim="-")  # all digits: names are read back
        fold = f"fold{self.fold}" if self.fold else ""
        return "-".join(filter(None, [self.change, self.target, self.variant, fraction, f"seed{self.seed}", fold]))


class Change(NamedTuple):
    """Settings that a control changes.

    pretraining : the change under which the pre-training is done ("" = none)
    overrides : see `Profile.overridden`
    """

    pretraining: str
    overrides: dict[str, Any]


def changes(profile: Profile) -> dict[str, Change]:
    """The changes of settings that the controls need, by name; those of simulated data only for a simulated dataset.

    x3 : three times the steps
    constant : the same, at a constant learning rate
    people : the same settings on people whom no page reports
    people-rate… : another learning rate for all variants, on these people
    clips, people-rate…-clips : decoders learn from clips
    sensitivity-… : other conditions of pre-training and target
    contrast…-n… : another contrast of the dataset, and fewer units to pre-train on
    blocks… : only so many of the encoder's first blocks are transferred
    fault-… : a planted fault, or a remedy
    shortcut-order, shortcut-run : windows in random order, or with the beginning of another run
    shortcut-drift : runs whose drift is left in
    network-… : decoders see one region of an atlas
    code…-l1-… : another width of an autoencoder's code, and another L1 penalty
    size…, slices…, inflated : another look of the network for photographs at a volume
    alone-… : one column of the target at a time
    """
    finetuning, controls = profile.finetuning, profile.controls
    longer = {"epochs": LONGER * finetuning.epochs, "min_steps": LONGER * finetuning.min_steps}
    found = {
        f"x{LONGER}": Change("", {"finetuning": longer}),
        "constant": Change("", {"finetuning": {**longer, "schedule": "constant", "evaluations": 30}}),
    }
    found |= {f"blocks{k}": Change("", {"finetuning": {"blocks": k}}) for k in controls.blocks}
    for shortcut in controls.shortcuts:
        window: dict[str, Any] = {"routes": {"contrast": {"example": {"control": shortcut}}}}
        overrides = _with_drift(profile) if shortcut == "drift" else window
        found[f"shortcut-{shortcut}"] = Change(f"shortcut-{shortcut}", overrides)
    if atlas := controls.networks:
        for key, region in atlas.keys.items():
            alone = atlas.model_dump(mode="json") | {"keep": [region]}
            found[f"network-{key}"] = Change("", {"finetuning": {"atlas": alone}})
    found |= {f"fault-{name}": Change("", fault.overrides) for name, fault in controls.faults.items()}
    for width, penalty in product(controls.code_widths, controls.penalties):
        widths = [*profile.routes.autoencoder.encoder.widths[:-1], width]
        own = {"encoder": {"widths": widths}, "pretraining": {"l1": penalty}}
        found[f"code{width}-l1-{penalty:g}"] = Change(f"code{width}-l1-{penalty:g}", {"routes": {"autoencoder": own}})
    looks: dict[str, dict[str, Any]] = {f"size{n}": {"size": n} for n in controls.image_sizes}
    looks |= {f"slices{n}": {"slices": n} for n in controls.image_slices}
    if controls.inflated_size:
        looks["inflated"] = {"inflated": True, "size": controls.inflated_size}
    found |= {name: Change(name, {"routes": {"images": {"encoder": look}}}) for name, look in looks.items()}
    if isinstance(target := profile.data.target, ColumnTarget) and len(target.column) > 1:
        found |= {f"alone-{column}": Change("", _alone(target, column)) for column in target.column}
    clips = {"clip": controls.clip and controls.clip.model_dump()}
    found |= {"clips": Change("", {"finetuning": clips})} if controls.clip else {}
    for name, condition in controls.sensitivity.items():
        found[f"sensitivity-{name}"] = Change(f"sensitivity-{name}", condition.overrides)
    if others := _other_people(profile):
        found["people"] = Change("people", others)
        for rate in controls.learning_rates:
            tuned: dict[str, Any] = {"learning_rate": rate, "learning_rates": {}}
            for kind, clip in {"": {}, "-clips": clips}.items() if controls.clip else [("", {})]:
                found[f"people-rate{rate:g}{kind}"] = Change("people", others | {"finetuning": tuned | clip})
    if profile.simulation is None:
        return found
    for contrast in controls.contrasts:
        data = _other_data(profile, f"contrast{contrast:g}", profile.data.manifest, contrast=contrast)
        found[f"contrast{contrast:g}"] = Change("", data)
        for n in controls.pretraining_units:
            name = f"contrast{contrast:g}-n{n}"
            pretraining = {"routes": {"supervised": {"pretraining": {"n_units": n}}}}
            found[name] = Change(name, data | pretraining)
    return found


def _alone(target: ColumnTarget, column: str) -> dict[str, Any]:
    """Overrides for one of the target's columns."""
    own = {"column": [column], "tasks": target.tasks}
    kinds = {kind: getattr(target, kind) for kind in ("classes", "ordered", "bins")}
    return {"data": {"target": own | {kind: {column: of[column]} for kind, of in kinds.items() if column in of}}}


def _is_look(change: str) -> bool:
    return change == "inflated" or re.fullmatch(r"(size|slices)\d+", change) is not None


def _with_drift(profile: Profile) -> dict[str, Any]:
    """Overrides for the same runs without detrending and filter, in their own store."""
    unfiltered = {"detrend": False, "high_pass_hz": None}
    return {"name": f"{profile.name}-drift", "data": {"store": None}, "preprocessing": unfiltered}


def _other_people(profile: Profile) -> dict[str, Any]:
    """Overrides for people whom no page reports; none if there are none."""
    if profile.simulation is not None and profile.controls.tuning_manifest:
        return _other_data(profile, "people", profile.controls.tuning_manifest)
    if profile.cohort is not None and profile.controls.tuning_seed is not None:
        folder = Path("runs") / f"{profile.name}-people"
        cohort = profile.cohort.model_dump(mode="json") | {"seed": profile.controls.tuning_seed}
        return _other_data(profile, "people", folder / "manifest.csv") | {"simulation": None, "cohort": cohort}
    return {}


def _other_data(profile: Profile, name: str, manifest: Path, **simulation: float) -> dict[str, Any]:
    """Overrides for another simulated dataset in its own folder."""
    name = f"{profile.name}-{name.replace('.', '_')}"
    data = {"manifest": str(manifest), "root": f"runs/{name}/data", "store": None}
    return {"name": name, "data": data, "simulation": simulation}


def changed(profile: Profile, change: str, target: str = "") -> Profile:
    """The profile with changed settings and, unless empty, another target (see `Profile.for_target`)."""
    if change:
        profile = profile.overridden(changes(profile)[change].overrides)
    return profile.for_target(target)


def faulted(profile: Profile) -> Profile:
    """The transfer of a profile in which faults are planted (see `ControlSettings.faults`); itself if there is none."""
    transfers = (profile.transferred(name) for name in profile.transfers)
    return next((transfer for transfer in transfers if transfer.controls.faults), profile)


def pretraining_of(profile: Profile, cell: Cell) -> tuple[str, str, str, int, int] | None:
    """Change, route, target, seed and fold of a cell's pre-training; None if it has none."""
    variant = VARIANTS[cell.variant]
    if variant.start == "random":
        return None
    change = changes(profile)[cell.change].pretraining if cell.change else ""
    return change, variant.route, cell.target, cell.seed, cell.fold


def planned(profile: Profile, name: str) -> list[Cell]:
    """The trainings of the sweep (`name="sweep"`), or of a control with those it is compared with."""
    sweep, controls = profile.sweep, profile.controls
    # The sweep already trains from scratch with the profile's own initialisation.
    repeated = profile.routes.supervised.encoder.initialisation
    initialisation = [v for v in controls.initialisation if VARIANTS[v].initialisation != repeated]
    folds = range(1, sweep.folds * sweep.repeats + 1) if sweep.folds else range(1)

    def grid(
        variants: list[str],
        fractions: list[float] = sweep.fractions,
        seeds: list[int] = sweep.seeds[:1],
        targets: Sequence[str] = ("",),
        changes: Sequence[str] = ("",),
    ) -> list[Cell]:
        every = product(changes, targets, seeds, folds, variants, fractions)
        return [Cell(target, v, fraction, seed, fold, change) for change, target, seed, fold, v, fraction in every]

    if name == "sweep":
        cells = grid(sweep.variants, seeds=sweep.seeds)
    elif name == "baselines":
        cells = grid(_DEEP + controls.baselines)
    elif name == "initialisation":
        cells = grid(_DEEP + initialisation)
    elif name == "permutation":
        cells = grid(controls.permutation, controls.fractions)
    elif name == "tasks":
        own, possible = profile.data.tasks("target"), profile.tasks_to_leave_out
        targets = [task for task in possible if [task] == own or task in (controls.tasks or possible)]
        cells = grid(_DEEP, controls.fractions, targets=["" if [task] == own else task for task in targets])
    elif name == "seeds":
        cells = grid(_DEEP, controls.fractions, [*sweep.seeds, *controls.seeds])
    elif name == "steps":
        cells = grid(_DEEP, changes=["", f"x{LONGER}"]) + grid(_DEEP, controls.fractions, changes=["constant"])
    elif name == "rates":
        tried = [change for change in changes(profile) if change.startswith("people-")]
        deep = [v for v in sweep.variants if VARIANTS[v].learner == "deep"] or _DEEP
        chosen = [v for v in deep + initialisation + controls.published if VARIANTS[v].learner == "deep"]
        cells = grid(chosen, controls.fractions, controls.learning_rate_seeds, changes=tried)
        cells = [cell for cell in cells if cell.change.endswith("-clips") == _reads_clips(cell.variant)]
    elif name == "shortcuts":
        tried = [change for change in changes(profile) if change.startswith("shortcut-")]
        cells = grid(["contrast-frozen"], [max(sweep.fractions)], changes=["", *tried]) if tried else []
    elif name == "sensitivity":
        others = [change for change in changes(profile) if change.startswith("sensitivity-")]
        cells = grid(sweep.variants, [max(controls.fractions)], changes=["", *others]) if others else []
    elif name == "published":
        cells = grid(controls.published, seeds=sweep.seeds)
        cells = [cell._replace(change="clips") if _reads_clips(cell.variant) else cell for cell in cells]
    elif name == "networks":
        networks = [change for change in changes(profile) if change.startswith("network-")]
        cells = grid(["contrast", "linear"], [max(sweep.fractions)], changes=["", *networks]) if networks else []
    elif name in OF_IMAGES[:2]:
        whole, looks = [max(sweep.fractions)], [change for change in changes(profile) if _is_look(change)]
        if "images-frozen" not in sweep.variants:
            cells = []
        elif name == "conditioning":
            taken_away = ["images-shuffled-frozen", "images-statistics-frozen", "images-random-frozen"]
            cells = grid(["images-frozen", *taken_away], whole) + grid(["images-frozen"], whole, changes=looks)
        else:
            alone = [change for change in changes(profile) if change.startswith("alone-")]
            cells = grid(["images", "images-scratch", "images-shuffled", "images-statistics"], whole)
            cells += grid(["images", "images-scratch"], whole, changes=[c for c in looks if c == "inflated"] + alone)
    elif name == "blocks":
        changes_of = [f"blocks{k}" for k in controls.blocks]
        cells = grid(["cae"], [max(sweep.fractions)], changes=["", *changes_of]) if changes_of else []
    elif name == "faults":
        planted = [(f"fault-{name}", fault) for name, fault in controls.faults.items()]
        cells = grid(["cae"], [1.0]) if planted else []
        for change, fault in planted:
            cells += grid([fault.variant], [fault.fraction], changes=[change])
    elif name == "gain":
        data = [change for change in changes(profile) if change.startswith("contrast")]
        cells = [
            cell
            for cell in grid(sweep.variants, controls.fractions[:2], changes=data)
            if (VARIANTS[cell.variant].start == "checkpoint") == ("-n" in cell.change)  # -n: units to pre-train on
        ]
    else:
        every = (*CONTROLS, *OF_TRANSFERS, *OF_CONTRAST, *OF_IMAGES, *OF_COMPARISON)
        known = ", ".join(("sweep", *dict.fromkeys(every)))
        raise ValueError(f"there is no sweep {name!r}; there are {known}")
    if name != "sweep" and not (profile.data.tasks("source") or profile.pretrained_by or profile.checkpoint):
        cells = [cell for cell in cells if not _needs_source(VARIANTS[cell.variant])]
    return list(dict.fromkeys(cells))


def _reads_clips(variant: str) -> bool:
    return ROUTES[VARIANTS[variant].route].encoder == "clip"


def _needs_source(variant: Variant) -> bool:
    return variant.start != "random" or variant.learner == "components"
