"""Settings of data and of their preparation: what is decoded, where it comes from, what becomes of it in the store.

The defaults are the recipe of Thomas, Müller & Samek (2019).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationInfo, model_validator

from deeplight_core.routes import Section
from deeplight_core.tasks import SOURCE_TASKS, TARGET_TASK, TASKS

__all__ = [
    "NAME",
    "QUOTES",
    "TRIAL_TYPE",
    "AtlasSettings",
    "CohortSettings",
    "ColumnTarget",
    "ConfoundSettings",
    "DataSettings",
    "ExampleSettings",
    "PatientSettings",
    "PreprocessingSettings",
    "ScannerSettings",
    "Seed",
    "SimulatedSubjects",
    "SimulationSettings",
    "Strategy",
    "StructuralSettings",
    "read_states",
]

TRIAL_TYPE = ("trial_type",)  # BIDS's column of the events' names
QUOTES = "put names with one of : # , [ ] { } & * ! | > % @ ` in quotes"


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
        raise ValueError(f"{task}: {value!r} is no name; {QUOTES}, and null, too")
    return str(value)


StateMap = Annotated[dict[str, dict[str, list[str]]], BeforeValidator(_state_map)]
Seed = Annotated[int, Field(ge=0)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


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


class PatientSettings(Section):
    """A clinical study: some subjects are patients, who respond otherwise to some states (see `clinic`)."""

    n: int = Field(12, ge=1)
    """Number of patients; the other subjects are controls."""
    changes: dict[str, Annotated[float, Field(ge=-1)]] = Field({}, min_length=1)
    """State → share of its whole response by which patients' differs: -0.4 leaves 60% of it."""
    noise: float = Field(1.0, ge=0)
    """How many times the noise of the other simulated runs everybody's have."""


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
    patients: PatientSettings | None = None
    """Patients and controls, as a BIDS folder with preprocessed runs (None = healthy people in HCP's layout)."""

    @model_validator(mode="after")
    def _patients_are_some_of_the_subjects(self) -> "SimulationSettings":
        if self.patients is None:
            return self
        if self.scanner is not None:
            raise ValueError("patients have preprocessed runs, and scanner describes unprepared ones; keep one of them")
        if self.subjects is None or self.patients.n >= self.subjects.train + self.subjects.validation:
            raise ValueError("patients need subjects, of whom some are controls: name more subjects than patients.n")
        tasks = self.subjects.tasks or list(TASKS)
        if unknown := sorted({*tasks} - {*TASKS}):
            raise ValueError(f"patients do HCP's tasks, {', '.join(TASKS)}; not {', '.join(unknown)}")
        states = {state for task in tasks for state in TASKS[task].states}
        if unknown := sorted({*self.patients.changes} - states):
            raise ValueError(f"patients.changes names {', '.join(unknown)}; the states are {', '.join(sorted(states))}")
        return self


Suffix = Literal["T1w", "T2w"]
Strategy = Literal[
    "motion", "high_pass", "wm_csf", "global_signal", "compcor", "ica_aroma", "scrub", "non_steady_state"
]  # fmt: skip
ConfoundModel = Literal["basic", "power2", "derivatives", "full"]
Shape = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Counts = dict[Literal["AD", "CN", "CVD", "HC", "PD"], Annotated[int, Field(ge=1)]]


class CohortSettings(Section):
    """A simulated cohort of structural images (see `cohorts`)."""

    dataset: str = Field("cohort", pattern=NAME)
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
        advice = f"; {QUOTES}" if isinstance(error, yaml.YAMLError) else ""
        raise ValueError(f"{path} is no YAML file of `task: {{state: [trial types]}}`: {error}{advice}") from None
    return states
