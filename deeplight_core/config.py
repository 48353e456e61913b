"""Settings of one experiment: frozen, typed, validated; read from strict YAML profiles.

A profile (`profiles/<name>.yaml`) holds `name` and the sections below; commands and notebooks take its name. The
defaults are the recipe of Thomas, Müller & Samek (2019), so a profile states only its differences.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from deeplight_core.routes import VARIANTS, ClipSettings, ReadoutSettings, Routes, Section, TrainingSettings
from deeplight_core.system.sources import located
from deeplight_core.tasks import SOURCE_TASKS, TARGET_TASK, TASKS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "TRIAL_TYPE",
    "AtlasSettings",
    "CohortSettings",
    "ColumnTarget",
    "ConfoundSettings",
    "ControlSettings",
    "DataSettings",
    "ExampleSettings",
    "FaultSettings",
    "FinetuningSettings",
    "LaterVersionError",
    "PreprocessingSettings",
    "Profile",
    "ScannerSettings",
    "SimulatedSubjects",
    "SimulationSettings",
    "StructuralSettings",
    "SweepSettings",
    "differences",
    "digest",
    "load_profile",
    "project_root",
    "read_states",
    "recorded_settings",
    "shipped",
]


TRIAL_TYPE = ("trial_type",)  # BIDS's column of the events' names
_QUOTES = "put names with one of : # , [ ] { } & * ! | > % @ ` in quotes"


def _state_map(value: Any, layout: str = "hcp") -> Any:
    """Expand `{task: [state, …]}` to `{task: {state: [event names]}}`; an HCP task's states get HCP's EV names."""
    if not isinstance(value, dict):
        return value
    written_out: dict[str, object] = {}
    for task, states in ((_name_of(task, "tasks"), states) for task, states in value.items()):
        if isinstance(states, list):
            known = TASKS[task].states if task in TASKS and layout == "hcp" else None
            names = [_name_of(state, task) for state in states]
            if known is not None and (unknown := [name for name in names if name not in known]):
                raise ValueError(f"{task} has no state {unknown}; it has {list(known)}")
            written_out[task] = {name: [name] if known is None else list(known[name]) for name in names}
        elif isinstance(states, dict):
            written_out[task] = {
                _name_of(state, task): [_name_of(name, task) for name in names] if isinstance(names, list) else names
                for state, names in states.items()
            }
        else:
            written_out[task] = states
    return written_out


def _name_of(value: object, task: str) -> str:
    """A name as YAML gives it; numbers are taken as text."""
    if isinstance(value, bool):
        raise ValueError(
            f"{task}: YAML reads yes, no, on, off, true and false as {value}; put the name in quotes: 'yes', 'no', …"
        )
    if isinstance(value, dict) and len(value) == 1:
        name, rest = next(iter(value.items()))
        raise ValueError(f"{task}: YAML reads `{name}: {rest}` as two things; put the name in quotes: '{name}: {rest}'")
    if value is None or isinstance(value, dict | list):
        raise ValueError(f"{task}: {value!r} is no name; {_QUOTES}, and null, too")
    return str(value)


StateMap = Annotated[dict[str, dict[str, list[str]]], BeforeValidator(_state_map)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; known are {', '.join(VARIANTS)}")
    return name


VariantName = Annotated[str, AfterValidator(_variant)]


class LaterVersionError(ValueError):
    """A later version of this program made the file to be read."""


class ColumnTarget(Section):
    """Columns of the manifest to decode, such as age; empty cells are missing values. They hold numbers, in their own
    units, unless said otherwise."""

    column: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)]
    """One column, or several that one network decodes together."""
    tasks: list[str] = Field(min_length=1)
    """Tasks whose volumes they are decoded from (for structural images: their suffix, e.g. T1w)."""
    classes: dict[str, Annotated[list[str], Field(min_length=2)]] = Field({})
    """Columns of classes, with their values, such as {sex: [F, M]}."""
    ordered: dict[str, Annotated[list[str], Field(min_length=2)]] = Field({})
    """Columns of ordered values, from the lowest, such as bands of income; what is decoded is the place, from 0."""
    bins: dict[str, tuple[float, float, Annotated[int, Field(ge=2)]]] = Field({})
    """Columns of numbers that a network decodes as bins of equal width: the first edge, the last, how many bins."""

    @model_validator(mode="after")
    def _kinds_are_of_columns(self) -> "ColumnTarget":
        named = [*self.classes, *self.ordered, *self.bins]
        if strangers := sorted({*named} - {*self.column}):
            raise ValueError(f"classes, ordered and bins name {', '.join(strangers)}, which column does not")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is in more than one of classes, ordered and bins; keep one")
        for name, values in (self.classes | self.ordered).items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice: {', '.join(values)}")
        return self

    @property
    def levels(self) -> dict[str, list[str]]:
        """The values of columns that do not hold numbers."""
        return self.classes | self.ordered

    def described(self) -> list[dict[str, Any]]:
        """Every column as a head of phenotypes takes it: `{"column", "kind", "levels"}`, levels of bins their edges."""
        found = []
        for name in self.column:
            kind = next((kind for kind in ("classes", "ordered", "bins") if name in getattr(self, kind)), "number")
            levels = None if kind == "number" else list(getattr(self, kind)[name])
            found.append({"column": name, "kind": kind, "levels": levels})
        return found


def _target(value: Any, others: ValidationInfo) -> Any:
    """A `ColumnTarget` where a column is named, else a state map; HCP's states are for HCP's layout only."""
    if isinstance(value, ColumnTarget) or (isinstance(value, dict) and "column" in value):
        return TypeAdapter(ColumnTarget).validate_python(value)
    return TypeAdapter(StateMap).validate_python(_state_map(value, others.data.get("layout", "hcp")))


Target = Annotated[dict[str, dict[str, list[str]]] | ColumnTarget, BeforeValidator(_target)]


AnySection = TypeVar("AnySection", bound=Section)


class DataSettings(Section):
    """Runs, splits and states."""

    manifest: Path = Path("data_manifest.csv")
    """Manifest CSV; a relative path is relative to the project's root."""
    root: Annotated[str, BeforeValidator(str)] = "data"
    """Folder that the manifest's paths are relative to, or a URL that fsspec knows, e.g. s3://bucket/folder."""
    store: Path | None = None
    """Folder of the volume store (None: runs/<name>/store)."""
    layout: Literal["hcp", "bids", "table"] = "hcp"
    """How `deeplight manifest` reads the root; table: its participants.tsv, and one image per row."""
    image: str = ""
    """(layout table) The image of a row of participants.tsv, e.g. {participant_id}.nii.gz"""
    trial_type: Annotated[
        list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)
    ] = Field([*TRIAL_TYPE])
    """(BIDS) The column of the event files that names events; several are joined by `/`, as in face/left."""
    split_unit: Literal["subject", "run"] = "subject"
    """Unit of the splits, fractions and statistics: subject, or run where there is only one subject."""
    n_validation: int = Field(100, ge=1)
    """Number of units that `deeplight manifest` holds out; an existing manifest keeps its own split."""
    n_test: int = Field(0, ge=0)
    """Number of units that it also holds out as a third split, on which nothing is chosen."""
    split_seed: int = 0
    """Seed of the splits and folds."""
    max_units: dict[Literal["train", "validation", "test"], Annotated[int, Field(ge=1)]] | None = None
    """For each split, use only its first n units (not named, or None: all)."""
    source: Target = Field(default_factory=lambda: _state_map({t: list(TASKS[t].states) for t in SOURCE_TASKS}))
    """Task → states of the pre-training data; `{task: {state: [event names]}}` renames or pools events. Or a number
    for each subject: `{column: age, tasks: [T1w]}`."""
    label: str | None = None
    """Column of the manifest whose values are the events of structural images, e.g. sex."""
    target: Target = Field(default_factory=lambda: _state_map({TARGET_TASK: list(TASKS[TARGET_TASK].states)}))
    """Task → states of the fine-tuning data."""

    @model_validator(mode="after")
    def _states_are_disjoint(self) -> "DataSettings":
        if both := {*self.states("source")} & {*self.states("target")}:
            raise ValueError(f"states {sorted(both)} are in both source and target; a state belongs to one of them")
        for task in self.tasks():
            names = [name for events in self.events(task).values() for name in events]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{task}: {', '.join(repeated)} named more than once; an event belongs to one state")
        return self

    def tasks(self, *which: Literal["source", "target"]) -> list[str]:
        """Tasks of the source, the target, or (by default) both, in order."""
        asked = [getattr(self, name) for name in which or ("source", "target")]
        return list(dict.fromkeys(task for of in asked for task in (of.tasks if isinstance(of, ColumnTarget) else of)))

    def states(self, which: Literal["source", "target"]) -> list[tuple[str, str]]:
        """(task, state) of every output neuron, in the order of the output layer; none where numbers are decoded."""
        of = getattr(self, which)
        if isinstance(of, ColumnTarget):
            return []
        return [(task, state) for task, states in of.items() for state in states]

    def columns(self, which: Literal["source", "target"]) -> list[str]:
        """Columns whose numbers are decoded; none where states are decoded."""
        of = getattr(self, which)
        return of.column if isinstance(of, ColumnTarget) else []

    def levels(self, which: Literal["source", "target"]) -> dict[str, list[str]]:
        """The values of decoded columns that do not hold numbers."""
        of = getattr(self, which)
        return of.levels if isinstance(of, ColumnTarget) else {}

    def phenotypes(self, which: Literal["source", "target"]) -> list[dict[str, Any]]:
        """Decoded columns with their kinds (see `ColumnTarget.described`); none if all are plain numbers, or states."""
        of = getattr(self, which)
        described = of.described() if isinstance(of, ColumnTarget) else []
        return described if any(target["kind"] != "number" for target in described) else []

    def events(self, task: str) -> dict[str, list[str]]:
        """State → event names of a task, over source and target."""
        maps = [of for of in (self.source, self.target) if not isinstance(of, ColumnTarget)]
        return {state: names for of in maps for state, names in of.get(task, {}).items()}


class SimulatedSubjects(Section):
    """Subjects of a simulated dataset."""

    train: int = Field(ge=1)
    """Number of subjects to train on."""
    validation: int = Field(ge=1)
    """Number of held-out subjects."""
    first: int = Field(1, ge=1)
    """Number in the first subject's name; two datasets whose numbers differ have different people."""
    runs: list[Literal["LR", "RL"]] = Field(["LR", "RL"], min_length=1)
    """Runs of each task."""
    tr_s: float = Field(0.72, gt=0)
    """Repetition time in seconds."""
    tasks: list[str] | None = Field(None, min_length=1)
    """Tasks of each subject (None = HCP's seven); BATTERY is thirteen tasks in one run."""


class ScannerSettings(Section):
    """Runs as a scanner gives them: every head in its own pose and on its own grid, moving, with strong drift."""

    pose_mm: float = Field(5.0, ge=0)
    """SD of a head's position along each axis."""
    pose_deg: float = Field(4.0, ge=0)
    """SD of its rotation about each axis."""
    motion_mm: float = Field(0.5, ge=0)
    """SD of its movements within a run, along each axis; rotations have as many degrees."""
    drift: float = Field(4.0, ge=0)
    """How many times the drift of runs without these settings."""


class SimulationSettings(Section):
    """The built-in dataset (see `simulate`)."""

    resolution_mm: float = Field(8.0, ge=2, le=10)
    """Edge of a voxel in mm."""
    contrast: float = Field(1.0, ge=0)
    """Amplitude of the planted activation in percent of the baseline: the one difficulty setting, for all tasks."""
    seed: int = 0
    """Seed of everything random in the dataset."""
    subjects: SimulatedSubjects | None = None
    """Subjects of a manifest that is made of the settings where there is none (None = `data.manifest` is given)."""
    scanner: ScannerSettings | None = None
    """What an unprepared run has (None = heads lie still in MNI152)."""


Suffix = Literal["T1w", "T2w"]
Strategy = Literal[
    "motion", "high_pass", "wm_csf", "global_signal", "compcor", "ica_aroma", "scrub", "non_steady_state"
]  # fmt: skip
ConfoundModel = Literal["basic", "power2", "derivatives", "full"]
Shape = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Counts = dict[Literal["AD", "CN", "CVD", "HC", "PD"], Annotated[int, Field(ge=1)]]


class CohortSettings(Section):
    """A simulated cohort of structural images (see `cohorts`)."""

    dataset: str = Field("cohort", pattern=_NAME)
    """Its name; its letters and digits begin the names of its people."""
    people: Counts = Field({"AD": 60, "CN": 60}, min_length=1)
    """Number of people of each diagnosis: AD, PD and CVD are diseases, CN and HC have none."""
    scans: dict[Suffix, Counts] = Field({"T1w": {"AD": 60, "CN": 60}}, min_length=1)
    """Suffix (T1w, T2w) → diagnosis → number of scans: more than people are further sessions of some of them, fewer are
    of some people only."""
    shape: Shape | dict[Suffix, Shape] = (36, 43, 36)
    """Voxels (X, Y, Z), the same for all scans or by suffix; they are cubes that cover the brain."""
    phenotypes: bool = False
    """Whether people also have household (people in it), income (one of five bands), fluid (intelligence, 0 to 13) and
    smoking (never, previous, current); fluid and smoking change the brain a little, the others do not."""
    scanner: Seed = 0
    """Seed of scanner and sequence: contrast, bias field, noise, scale."""
    seed: Seed = 0
    """Seed of everything else."""

    @model_validator(mode="after")
    def _scans_are_of_people(self) -> "CohortSettings":
        for suffix, counts in self.scans.items():
            if unknown := sorted({*counts} - {*self.people}):
                raise ValueError(f"scans.{suffix} names {', '.join(unknown)}, of whom there are no people")
        if isinstance(self.shape, dict) and (missing := sorted({*self.scans} - {*self.shape})):
            raise ValueError(f"shape has none for {', '.join(missing)}")
        return self

    def shape_of(self, suffix: Suffix) -> tuple[int, int, int]:
        """Voxels (X, Y, Z) of a suffix's scans."""
        return self.shape[suffix] if isinstance(self.shape, dict) else self.shape


class StructuralSettings(Section):
    """From a structural image to one volume: masked, scaled to [0, 1] (Atanaszov & Ritter 2019, 2.1), brought to one
    grid."""

    registration: Literal["none", "affine"] = "none"
    """Register every image to MNI152 (affine, 12 parameters, by mutual information; needs dipy) and resample it once,
    to the grid of resolution_mm or preprocessing.resample_to. The common mask is the template's brain."""
    resolution_mm: float | None = Field(None, ge=1, le=20)
    """Resample every image to voxels of this edge in mm, on a grid over MNI152 (None = another setting names the
    grid)."""
    zoom_to: tuple[int, int, int] | None = None
    """Zoom every image to this shape (X, Y, Z), whatever its position and voxel size, with its axes in the directions
    of the first image's (None = all images share one grid, or another setting names one)."""
    regions: Literal["none", "grey", "values"] = "none"
    """Keep means over 300 regions and the brain (see Store.regional) of every image's grey matter, or of its values, if
    it is a map of grey matter already; for images in MNI152, registered or not."""
    z_score: bool = False
    """Give the model z-scores, from each voxel's mean and SD over the training images."""
    rounded: bool = False
    """Round every voxel to 0 or 1 after resampling: a fault of other software, to be planted on purpose (see
    ControlSettings.faults)."""


class ConfoundSettings(Section):
    """Confounds of fMRIPrep that are regressed out, and volumes that are left out (censored) for motion.

    Names and meanings are those of `nilearn.interfaces.fmriprep.load_confounds`.
    """

    strategy: list[Strategy] = Field([])
    """What to regress out; scrub leaves volumes out, and non_steady_state those before the scanner's steady state, as
    every other strategy also does (empty = nothing)."""
    motion: ConfoundModel = "full"
    """Motion parameters: 6 (basic), 12 (power2, derivatives) or 24 (full)."""
    wm_csf: ConfoundModel = "basic"
    """Means of white matter and of cerebrospinal fluid, and terms as in motion."""
    global_signal: ConfoundModel = "basic"
    """Mean of the brain, and terms as in motion."""
    compcor: Literal[
        "anat_combined", "anat_separated", "temporal", "temporal_anat_combined", "temporal_anat_separated"
    ] = "anat_combined"
    """Kind of CompCor's components."""
    n_compcor: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Number of components of each kind."""
    ica_aroma: Literal["full", "basic"] = "full"
    """full: the images are ICA-AROMA's (desc-smoothAROMAnonaggr); basic: its noise components are regressed out."""
    scrub: int = Field(5, ge=0)
    """Segments between censored volumes that are shorter than this number of volumes are censored, too."""
    fd_threshold: float = Field(0.5, gt=0)
    """Framewise displacement in mm above which a volume is censored."""
    std_dvars_threshold: float = Field(1.5, gt=0)
    """Standardised DVARS above which a volume is censored."""

    @model_validator(mode="after")
    def _components_need_their_filter(self) -> "ConfoundSettings":
        if "compcor" in self.strategy and "high_pass" not in self.strategy:
            raise ValueError(
                "fMRIPrep computed CompCor's components after a high-pass filter: name high_pass in the strategy, too"
            )
        return self


class ExampleSettings(Section):
    """What a decoder learns from, of runs with events: volumes, or one example per trial."""

    kind: Literal["volume", "window", "lsa", "lss"] = "volume"
    """volume: every volume of a block. Or one example per trial: the mean of its volumes in a window after its onset
    (window), or its beta in a general linear model: least squares all (lsa), or separate (lss; Mumford et al. 2012)."""
    window_s: tuple[float, float] = (4.0, 8.0)
    """First and last second of the window, from the trial's onset; lag_s and skip_s do not move it."""
    hrf: Literal[
        "spm", "spm + derivative", "spm + derivative + dispersion",
        "glover", "glover + derivative", "glover + derivative + dispersion",
    ] = "spm"  # fmt: skip
    """Haemodynamic response of betas, by its name in nilearn; derivatives are regressors of their own."""

    @model_validator(mode="after")
    def _window_is_one(self) -> "ExampleSettings":
        if not self.window_s[0] <= self.window_s[1]:
            raise ValueError(f"window_s goes from its first to its last second, got {list(self.window_s)}")
        return self


class PreprocessingSettings(Section):
    """From a run to clean volumes, in the paper's order (section 2.1)."""

    resample_to: str | None = None
    """Resample all runs to this grid: hcp2mm (91×109×91 at 2 mm), first (the first run's), or an image's
    (None = all runs must share one grid)."""
    mask: Path | None = None
    """Mask image whose grid all runs are resampled to and whose voxels the store has: that of the store that a decoder
    was pre-trained on, for runs in another space (None = the voxels that the runs' masks share)."""
    assume_aligned: bool = False
    """Take runs of several people for aligned although their grids differ and no name tells a template space."""
    fwhm_mm: float | None = Field(3.0, gt=0)
    """Full width at half maximum of the Gaussian smoothing kernel in mm (None = no smoothing)."""
    detrend: bool = True
    """Remove the linear trend of every voxel."""
    high_pass_hz: float | None = Field(1 / 128, gt=0)
    """Cut-off of the Butterworth high-pass in Hz (None = no filter)."""
    lag_s: float = Field(0.0, ge=0)
    """Haemodynamic lag in seconds by which labels are shifted."""
    skip_s: float | None = Field(None, ge=0)
    """Seconds dropped at the start of each block (None = two TRs, as in the paper)."""
    drop_volumes: int = Field(0, ge=0)
    """Leave out the first n volumes of every run, from before the scanner's steady state; times still count from the
    run's first volume."""
    join_s: float | None = Field(None, ge=0)
    """Join events of one state into a block where the next begins at most this many seconds after the last has ended:
    for studies whose event files list the trials of a block (None = every event is a block)."""
    mask_coverage: float = Field(0.5, gt=0, le=1)
    """Keep voxels that lie in at least this share of the runs' masks (registered structural images share the template's
    mask)."""
    crop: bool = False
    """Crop the grid to the mask's bounding box."""
    keep: Literal["labelled", "all"] = "labelled"
    """Volumes to store: those with a state, or all (e.g. for rest)."""
    storage: Literal["float16", "int8"] = "float16"
    """Number format of stored volumes; int8 takes half the space and rounds to 1/127 of a run's largest value."""
    confounds: ConfoundSettings = ConfoundSettings()
    """Confounds to regress out of every voxel, and volumes to leave out for motion."""
    example: ExampleSettings = ExampleSettings()
    """Volumes, or one example per trial."""
    structural: StructuralSettings = StructuralSettings()
    """Settings for structural images (of the others, only mask_coverage, crop, resample_to, keep and storage apply to
    them)."""

    @property
    def named_grid(self) -> str:
        """What names the grid that runs are resampled to; empty if they share one."""
        return "mask" if self.mask else "resample_to" if self.resample_to else ""

    @model_validator(mode="after")
    def _trials_are_no_volumes(self) -> "PreprocessingSettings":
        if self.example.kind != "volume" and self.keep == "all":
            raise ValueError(
                f"keep: all stores every volume, and example.kind: {self.example.kind} one example per trial; keep one "
                "of them"
            )
        return self

    @model_validator(mode="after")
    def _one_grid(self) -> "PreprocessingSettings":
        own = self.structural
        if self.mask and self.resample_to:
            raise ValueError("mask and resample_to both name a grid; keep one of them")
        if own.resolution_mm and (other := "structural.zoom_to" if own.zoom_to else self.resample_to and "resample_to"):
            raise ValueError(f"structural.resolution_mm and {other} both name a grid; keep one of them")
        if own.registration == "affine" and own.zoom_to:
            raise ValueError("registered images are resampled, not zoomed: name structural.resolution_mm, not zoom_to")
        if own.registration == "affine" and not own.resolution_mm and self.resample_to in (None, "first"):
            raise ValueError(
                "registered images need a grid in MNI152: name structural.resolution_mm, or resample_to (hcp2mm or an "
                "image)"
            )
        return self


class AtlasSettings(Section):
    """Regions of an atlas, by name."""

    image: Path
    """NIfTI image of the regions' numbers, on the data's grid."""
    labels: Path
    """Table with columns `index` and `name`, tab- or comma-separated."""
    keep: list[str] = Field(min_length=1)
    """Names of the regions."""

    @property
    def keys(self) -> dict[str, str]:
        """The regions' names by what stands for them in names of files."""
        return {re.sub("[^A-Za-z0-9]+", "_", name): name for name in self.keep}

    @model_validator(mode="after")
    def _names_differ(self) -> "AtlasSettings":
        if alike := sorted({*self.keep} - {*self.keys.values()}):
            raise ValueError(f"{', '.join(alike)} and another region differ in signs only, not in names of files")
        return self


class FinetuningSettings(TrainingSettings):
    """Training on the target, common to all variants (section 3.2)."""

    epochs: int = Field(50, ge=1)
    """Number of epochs."""
    learning_rates: dict[VariantName, Annotated[float, Field(gt=0)]] = Field({})
    """Learning rates of single variants, instead of `learning_rate` (see the control `rates`)."""
    head: ReadoutSettings = ReadoutSettings()
    """The output layer on the encoder's features."""
    clip: ClipSettings | None = None
    """Clips that all decoders learn from (None = volumes)."""
    atlas: AtlasSettings | None = None
    """Regions whose voxels decoders see; all other voxels are zero (None = the whole brain)."""
    blocks: int | None = Field(None, ge=0)
    """Number of the encoder's first blocks that start from the pre-training; the others start from random weights
    (None = all; Yosinski et al. 2014)."""

    def of(self, variant: str) -> "FinetuningSettings":
        """The settings of one variant, with its own learning rate; permuted labels change none."""
        rate = self.learning_rates.get(variant.removesuffix("-permuted"), self.learning_rate)
        return self.model_copy(update={"learning_rate": rate, "learning_rates": {}})


class SweepSettings(Section):
    """The fine-tunings to make (section 3.2)."""

    variants: list[VariantName] = Field(["pretrained", "scratch", "linear"])
    """Decoders to compare, from `routes.VARIANTS`."""
    fractions: list[Fraction] = Field([0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0], min_length=1)
    """Fractions of the training units; at least one unit each."""
    seeds: list[Seed] = Field([1], min_length=1)
    """Seeds. Each decides the draw of units, the initialisation, the batches, and which pre-training is used."""
    folds: int | None = Field(None, ge=2)
    """Number of folds of cross-validation, which replaces the manifest's split (None = use the manifest's split)."""
    repeats: int = Field(1, ge=1)
    """Number of times the units are divided into folds."""


class FaultSettings(Section):
    """A suspected cause of failure, planted on purpose, or a suspected remedy."""

    title: str
    """What it is, in tables and figures."""
    kind: Literal["seen", "suspected", "remedy"]
    """Seen in other software's code, suspected to matter, or suspected to help."""
    variant: VariantName = "cae"
    """The decoder it is planted in."""
    fraction: Fraction = 1.0
    """The share of the training units it gets."""
    overrides: dict[str, Any] = Field({})
    """Other settings (see `Profile.overridden`); those of `pretrained_by` change the pre-training."""


class ControlSettings(Section):
    """The grids of `make controls`, beyond the paper, on the sweep's data and splits."""

    baselines: list[VariantName] = Field(["linear", "linear-pretrained", "svm", "decoder"])
    """Linear models, at every fraction of the sweep."""
    initialisation: list[VariantName] = Field(["scratch-glorot", "scratch-he", "shuffled", "frozen"])
    """Other initial weights, at every fraction of the sweep; the profile's own initialisation is not trained twice."""
    permutation: list[VariantName] = Field(["pretrained-permuted", "scratch-permuted", "linear-permuted"])
    """Decoders trained on permuted labels, at `fractions`."""
    tasks: list[str] | None = None
    """Tasks that take the target's place, one after the other (None = every task)."""
    fractions: list[Fraction] = Field([0.01, 0.1, 0.4], min_length=1)
    """Fractions for permuted labels, leaving one task out, and repeated seeds."""
    seeds: list[Seed] = Field([1, 2, 3, 4, 5])
    """Seeds of complete repetitions, pre-training included."""
    tuning_manifest: Path | None = None
    """Manifest of people whom no page reports, for choosing learning rates (None = learning rates are not tried)."""
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field([3e-4, 1e-3, 3e-3, 1e-2], min_length=1)
    """Learning rates to try with every variant, on these people."""
    learning_rate_seeds: list[Seed] = Field([1], min_length=1)
    """Seeds of these trials."""
    contrasts: list[Annotated[float, Field(gt=0)]] = Field([1.0, 1.5, 2.5], min_length=1)
    """Contrasts of the simulated datasets for transfer gain (`make gain`)."""
    pretraining_units: list[Annotated[int, Field(ge=1)]] = Field([3, 10, 30], min_length=1)
    """Numbers of units to pre-train on, for transfer gain."""
    blocks: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2, 3])
    """Numbers of an autoencoder's first blocks to transfer, beside all of them."""
    code_widths: list[Annotated[int, Field(ge=1)]] = Field([16, 64])
    """Channels of an autoencoder's code, each tried with every penalty."""
    penalties: list[Annotated[float, Field(ge=0)]] = Field([0.0, 1e-6, 1e-5])
    """Weights of the sum of all weights' absolute values in an autoencoder's loss."""
    image_sizes: list[Annotated[int, Field(ge=8)]] = Field([])
    """Pixels of a slice's edge to try with the frozen network for photographs, beside the route's own."""
    image_slices: list[Annotated[int, Field(ge=1)]] = Field([])
    """Slices in each plane to try with it."""
    inflated_size: int | None = Field(None, ge=8)
    """Voxels of the longest axis with which it is tried inflated to 3D (None = it is not)."""
    shortcuts: list[Literal["order", "run", "drift"]] = Field([])
    """What else contrast could learn: windows in random order; beginnings from another run; runs with their drift."""
    networks: AtlasSettings | None = None
    """Regions to decode from, each alone (None = none)."""
    faults: dict[Annotated[str, Field(pattern=_NAME)], FaultSettings] = Field({})
    """Suspected causes of failure, each planted alone in a decoder that starts from an autoencoder."""


def _named_profile(value: Any) -> Any:
    """A profile's settings where it is given by its name or file."""
    return load_profile(value) if isinstance(value, str) else value


class Profile(Section):
    """All settings of one experiment."""

    name: str = Field("paper", pattern=_NAME)
    """Results go to runs/<name>/."""
    data: DataSettings = DataSettings()
    simulation: SimulationSettings | None = None
    cohort: CohortSettings | None = None
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    routes: Routes = Routes()
    """The ways to pre-train: their models and trainings."""
    finetuning: FinetuningSettings = FinetuningSettings()
    sweep: SweepSettings = SweepSettings()
    controls: ControlSettings = ControlSettings()
    pretrained_by: Annotated["Profile | None", BeforeValidator(_named_profile)] = None
    """The profile whose pre-training the decoders start from, by its name, file or settings (None = this one's)."""
    checkpoint: str | None = None
    """The checkpoint that the decoders start from, and whose encoder they have, instead of a pre-training: its folder,
    or ORG/NAME@REVISION of the Hugging Face hub."""
    transfers: dict[Annotated[str, Field(pattern=_NAME)], dict[str, Any]] = Field({})
    """Other datasets to decode with this profile's pre-training, by name: overrides of this profile, among them the
    data's `root` and `manifest`."""

    def transferred(self, name: str) -> "Profile":
        """The profile of one of the transfers, named `<this name>-<name>`; unchanged for "".

        Raises
        ------
        ValueError
            If there is no such transfer, or its settings are invalid.
        """
        if name == "":
            return self
        if name not in self.transfers:
            raise ValueError(
                f"profile {self.name} has no transfer {name!r}; it has {', '.join(self.transfers) or 'none'}"
            )
        own = {"transfers": {}, "pretrained_by": self.model_copy(update={"transfers": {}}).model_dump(mode="json")}
        return self.overridden({"name": f"{self.name}-{name}", **own, **self.transfers[name]})

    @property
    def origin(self) -> "Profile":
        """The profile whose pre-training the decoders start from."""
        return self.pretrained_by or self

    @model_validator(mode="after")
    def _one_kind_of_simulated_data(self) -> "Profile":
        if self.simulation is not None and self.cohort is not None:
            raise ValueError("simulation and cohort both describe the data; keep one of them")
        if self.cohort is not None and self.data.split_unit != "subject":
            raise ValueError("data.split_unit must be subject for a cohort")
        return self

    @property
    def tasks_to_leave_out(self) -> list[str]:
        """Tasks that can be the target while all others are the source; none where a task serves as both."""
        source, target = self.data.source, self.data.target
        if isinstance(source, ColumnTarget) or isinstance(target, ColumnTarget):
            return []
        tasks = {**source, **target}
        return list(tasks) if len(tasks) == len(source) + len(target) > 1 else []

    def for_target(self, task: str) -> "Profile":
        """This profile with one task as the target and all others as the source; unchanged for "".

        Raises
        ------
        ValueError
            If the task cannot be left out.
        """
        if task == "" or [task] == self.data.tasks("target"):
            return self
        if task not in self.tasks_to_leave_out:
            raise ValueError(
                f"{task!r} cannot be the target while the rest is the source; tasks of profile {self.name} that can: "
                f"{', '.join(self.tasks_to_leave_out) or 'none'}"
            )
        source_states: Any = self.data.source
        target_states: Any = self.data.target
        states = {**source_states, **target_states}
        source = {name: of_task for name, of_task in states.items() if name != task}
        data = self.data.model_copy(update={"source": source, "target": {task: states[task]}})
        return self.model_copy(update={"data": data})

    def overridden(self, overrides: dict[str, Any]) -> "Profile":
        """This profile with other settings, e.g. `{"finetuning": {"epochs": 5}}`: sections are merged, values replaced.

        Simulated data belong to their folder: overrides of `data.root` replace the simulation and the cohort with their
        own, or none.

        Raises
        ------
        ValueError
            With all problems, as in `load_profile`.
        """
        where = f"profile {self.name} with overrides {overrides}"
        if not isinstance(overrides, dict):
            raise ValueError(f"overrides must be sections of settings, such as {{'name': 'mine'}}, got {overrides!r}")
        moved = isinstance(overrides.get("data"), dict) and "root" in overrides["data"]
        left = {key: None for key in ("simulation", "cohort") if moved and key not in overrides}
        return _validated(_merged(Profile, self.model_dump(mode="json") | left, overrides), where)

    def stored_in(self, store: Path) -> "Profile":
        """This profile with another folder for its store."""
        return self.model_copy(update={"data": self.data.model_copy(update={"store": store})})

    @property
    def makes_manifest(self) -> bool:
        """Whether the manifest is made of the settings where there is none."""
        return self.cohort is not None or bool(self.simulation and self.simulation.subjects)

    @property
    def simulated(self) -> bool:
        """Whether its data are made by this project."""
        return self.simulation is not None or self.cohort is not None

    @property
    def provenance(self) -> str:
        """One sentence for every page: which data its figures come from."""
        if self.simulated:
            planted = "activations" if self.cohort is None else "effects of disease, age and sex"
            made = f"made by this project, with planted {planted}; nobody was scanned"
            return f"**Simulated data** (profile `{self.name}`): {made}."
        counted = " One subject: splits, fractions and tests count runs." if self.data.split_unit == "run" else ""
        return f"**Real data** (profile `{self.name}`): `{Path(self.data.root).name}`.{counted}"

    @property
    def folder(self) -> Path:
        """Folder of this profile's results."""
        return project_root() / "runs" / self.name

    @property
    def store(self) -> Path:
        """Folder of the volume store."""
        return project_root() / self.data.store if self.data.store else self.folder / "store"

    @property
    def manifest_path(self) -> Path:
        """The manifest, absolute."""
        return shipped(self.data.manifest)

    @property
    def data_root(self) -> Any:
        """The data's root, as a path: an absolute folder or a URL."""
        return located(self.data.root if "://" in self.data.root else project_root() / self.data.root)


def differences(a: Profile, b: Profile) -> "pd.DataFrame":
    """Settings in which two profiles differ: one row per `section.field`; columns `paper` (a) and `this run` (b)."""
    import pandas as pd

    rows = {}
    for section in ("simulation", "cohort", "data", "preprocessing", "routes", "finetuning", "sweep"):
        one, two = (_flat(p.model_dump(mode="json")[section] or {}) for p in (a, b))
        for key in dict.fromkeys([*one, *two]):
            if one.get(key) != two.get(key) and key not in (
                "manifest",
                "root",
                "layout",
                "max_units",
                "n_validation",
                "n_test",
                "store",
            ):
                rows[f"{section}.{key}"] = (_stated(one.get(key)), _stated(two.get(key)))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["paper", "this run"])


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as `section.field`; states stay together."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        within = isinstance(value, dict) and key not in ("source", "target", "max_units")
        flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()} if within else {key: value}
    return flat


def _stated(value: object) -> str:
    if isinstance(value, dict):  # states of the tasks
        return "; ".join(f"{task}: {', '.join(states)}" for task, states in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def project_root() -> Path:
    """The nearest folder that holds `profiles/`, from the working directory upwards; else the working directory."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "profiles").is_dir()), here)


def shipped(name: str | Path) -> Path:
    """A file of the project, or the one that came with the installed package if there is none."""
    own, packaged = project_root() / name, Path(__file__).parent / "project" / name
    return packaged if packaged.is_file() and not own.exists() else own


def digest(*values: object) -> str:
    """Twelve hexadecimal digits that identify settings and other JSON-like values; the order of keys does not matter.

    Settings at their defaults are left out, so a setting that a later version adds changes no digest.
    """
    plain = [v.model_dump(mode="json", exclude_defaults=True) if isinstance(v, BaseModel) else v for v in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def load_profile(profile: str | Path, overrides: dict[str, Any] | None = None) -> Profile:
    """Read and validate a profile: `profiles/<name>.yaml` by its name, or a YAML file.

    Parameters
    ----------
    profile : a name, or a file ending in .yaml; a relative path is tried here, then in the project's root
    overrides : see `Profile.overridden`

    Raises
    ------
    ValueError
        With all problems: a missing file, unreadable YAML, unknown keys (with the nearest known one), wrong values.
    """
    path = Path(profile)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped(Path("profiles") / f"{profile}.yaml")
    elif not path.is_file() and (project_root() / path).is_file():
        path = project_root() / path
    if not path.is_file():
        folders = (project_root() / "profiles", Path(__file__).parent / "project" / "profiles")
        known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
        raise ValueError(f"there is no profile {path}; shipped profiles: {', '.join(known) or 'none'}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as YAML: {error}; {_QUOTES}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, found {type(content).__name__}")
    profile_read = _validated(content, str(path))
    return profile_read.overridden(overrides) if overrides else profile_read


def recorded_settings(section: type[AnySection], content: object, where: str) -> AnySection:
    """Settings as recorded by a store or checkpoint; settings that its version lacked get their defaults.

    Raises
    ------
    LaterVersionError
        If they hold settings that this version does not know.
    ValueError
        If they are invalid. Both messages begin with `where`.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        problems = {".".join(map(str, problem["loc"])): problem for problem in error.errors()}
        if unknown := [key for key, problem in problems.items() if problem["type"] == "extra_forbidden"]:
            raise LaterVersionError(
                f"{where} was made by a later version, with settings that this one does not know: "
                f"{', '.join(unknown)}; update deeplight-core"
            ) from None
        cannot_be = "; ".join(f"{key}: {problem['msg']}, got {problem['input']!r}" for key, problem in problems.items())
        raise ValueError(f"{where} is damaged, its settings cannot be: {cannot_be}") from None


def read_states(path: Path, layout: str = "hcp") -> dict[str, dict[str, list[str]]]:
    """Task → state → event names, from a YAML file of `{task: {state: [trial types]}}`.

    Parameters
    ----------
    layout : HCP's tasks have HCP's states in HCP's layout only

    Raises
    ------
    ValueError
        If the file is unreadable or holds anything else.
    """
    try:
        states: dict[str, dict[str, list[str]]] = TypeAdapter(StateMap).validate_python(
            _state_map(yaml.safe_load(path.read_text(encoding="utf-8")), layout)
        )
    except (OSError, yaml.YAMLError, ValueError) as error:
        advice = f"; {_QUOTES}" if isinstance(error, yaml.YAMLError) else ""
        raise ValueError(f"{path} is no YAML file of `task: {{state: [trial types]}}`: {error}{advice}") from None
    return states


def _merged(section: type[BaseModel], content: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings with overrides: sections are merged, values replaced (maps of tasks to states, too)."""
    merged = dict(content)
    for key, value in overrides.items():
        annotation = section.model_fields[key].annotation if key in section.model_fields else None
        kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
        inner = kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Section) else None
        given = content.get(key)
        if inner and isinstance(given, dict) and isinstance(value, dict):
            value = _merged(inner, given, value)
        merged[key] = value
    return merged


def _validated(content: dict[str, Any], where: str) -> Profile:
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = _unknown_key(problem["loc"])
            elif problem["type"] != "value_error":
                message += f", got {problem['input']!r}"
            lines.append(f"  {key}: {message}" if key else f"  {message}")
        raise ValueError(f"{where} has {len(lines)} problem(s):\n" + "\n".join(lines)) from None


def _unknown_key(location: tuple[int | str, ...]) -> str:
    """Advice on an unknown key: the section's nearest key, or where the key has moved."""
    if location in (("model",), ("pretraining",)):
        return "it is in routes.supervised now, as encoder (initialisation, dropout), head (dropout) and pretraining"
    section: Any = Profile
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        inner = [kind for kind in _sections_of(field.annotation)] if field else []
        section = inner[0] if inner else section
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; known are {', '.join(known)}"


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The settings that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _sections_of(part)]
