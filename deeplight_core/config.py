"""Settings of one experiment: frozen, typed, validated; read from strict YAML profiles.

A profile (`profiles/<name>.yaml`) is exactly what papermill injects into a notebook: `name` and the sections below.
The defaults are the recipe of Thomas, Müller & Samek (2019), so that a profile states what it does differently.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from deeplight_core.routes import VARIANTS
from deeplight_core.system.sources import located
from deeplight_core.tasks import SOURCE_TASKS, TARGET_TASK, TASKS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PRECISIONS",
    "ControlSettings",
    "DataSettings",
    "LaterVersionError",
    "LayerGroup",
    "ModelSettings",
    "PreprocessingSettings",
    "Profile",
    "SimulationSettings",
    "StructuralSettings",
    "SweepSettings",
    "TrainingSettings",
    "differences",
    "digest",
    "from_parameters",
    "load_profile",
    "project_root",
    "read_states",
    "recorded_settings",
]


def _state_map(value: Any) -> Any:
    """Write `{task: [state, …]}` out as `{task: {state: [event names]}}`; an HCP task's states get HCP's EV names."""
    if not isinstance(value, dict):
        return value
    written_out: dict[str, object] = {}
    for task, states in value.items():
        if isinstance(states, list):
            if task in TASKS and (unknown := [s for s in states if s not in TASKS[task].states]):
                raise ValueError(f"{task} has no state {unknown}; it has {list(TASKS[task].states)}")
            written_out[task] = {s: list(TASKS[task].states[s]) if task in TASKS else [s] for s in states}
        else:
            written_out[task] = states
    return written_out


StateMap = Annotated[dict[str, dict[str, list[str]]], BeforeValidator(_state_map)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; known are {', '.join(VARIANTS)}")
    return name


VariantName = Annotated[str, AfterValidator(_variant)]


class LaterVersionError(ValueError):
    """A later version of this program made what is to be read."""


class Section(BaseModel):
    """Base of all settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class DataSettings(Section):
    """Which runs, whose split, which states."""

    manifest: Path = Path("data_manifest.csv")
    """Manifest CSV; a relative path is relative to the project's root."""
    root: Annotated[str, BeforeValidator(str)] = "data"
    """Folder that the manifest's paths are relative to, or a URL that fsspec knows, e.g. s3://bucket/folder."""
    store: Path | None = None
    """Folder of the volume store (None: runs/<name>/store)."""
    layout: Literal["hcp", "bids"] = "hcp"
    """How `deeplight manifest` reads the root."""
    split_unit: Literal["subject", "run"] = "subject"
    """What the splits, fractions and statistics count: subjects, or runs where there is one subject only."""
    n_validation: int = Field(100, ge=1)
    """Units that `deeplight manifest` holds out; a manifest that exists keeps its own split."""
    n_test: int = Field(0, ge=0)
    """Units that it holds out beside these, for a third split that nothing is chosen by."""
    split_seed: int = 0
    """Seed of that draw."""
    max_units: dict[Literal["train", "validation", "test"], Annotated[int, Field(ge=1)]] | None = None
    """Use the first so many units of a split (not named, or None: all)."""
    source: StateMap = Field(default_factory=lambda: _state_map({t: list(TASKS[t].states) for t in SOURCE_TASKS}))
    """Task → states of the pre-training data; `{task: {state: [event names]}}` renames or pools events."""
    label: str | None = None
    """Column of the manifest whose values are the events of structural images, e.g. sex."""
    target: StateMap = Field(default_factory=lambda: _state_map({TARGET_TASK: list(TASKS[TARGET_TASK].states)}))
    """Task → states of the fine-tuning data."""

    @model_validator(mode="after")
    def _states_are_disjoint(self) -> "DataSettings":
        if both := {*self.states("source")} & {*self.states("target")}:
            raise ValueError(f"states {sorted(both)} are in both source and target; a state belongs to one of them")
        for task in {**self.source, **self.target}:
            names = [name for events in self.events(task).values() for name in events]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{task}: {', '.join(repeated)} named more than once; an event belongs to one state")
        return self

    def states(self, which: Literal["source", "target"]) -> list[tuple[str, str]]:
        """(task, state) of every output neuron, in the order of the output layer."""
        return [(task, state) for task, states in getattr(self, which).items() for state in states]

    def events(self, task: str) -> dict[str, list[str]]:
        """State → event names of a task, over source and target."""
        return {**self.source.get(task, {}), **self.target.get(task, {})}


class SimulationSettings(Section):
    """The built-in dataset (see `simulate`)."""

    resolution_mm: float = Field(8.0, ge=2, le=10)
    """Edge of a voxel in mm."""
    contrast: float = Field(1.0, ge=0)
    """Amplitude of the planted activation in percent of the baseline: the one difficulty setting, for all tasks."""
    seed: int = 0
    """Seed of everything random in the dataset."""


class StructuralSettings(Section):
    """From a structural image to one volume: masked, scaled to [0, 1] (Atanaszov & Ritter 2019, 2.1), zoomed."""

    zoom_to: tuple[int, int, int] | None = None
    """Shape (X, Y, Z) that every image is zoomed to, whatever its own position and voxel size (None = all images must
    share one grid, or preprocessing.resample_to says which)."""
    z_score: bool = False
    """Give the model z-scores, with every voxel's mean and SD over the training images."""


class PreprocessingSettings(Section):
    """From a run to clean volumes, in the paper's order (section 2.1)."""

    resample_to: str | None = None
    """Grid that all runs are brought to: hcp2mm (91×109×91 at 2 mm), first (that of the first run), or an image with it
    (None = all runs must share one)."""
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
    mask_coverage: float = Field(0.5, gt=0, le=1)
    """A voxel is kept if it lies in at least this share of the runs' masks."""
    crop: bool = False
    """Crop the grid to the mask's bounding box."""
    keep: Literal["labelled", "all"] = "labelled"
    """Which volumes are stored: those with a state, or all (e.g. of rest)."""
    storage: Literal["float16", "int8"] = "float16"
    """How volumes are stored; int8 takes half the space and rounds to 1/127 of a run's largest value."""
    structural: StructuralSettings = StructuralSettings()
    """What is done with structural images instead (of the others, only mask_coverage, crop, resample_to, keep and
    storage apply to them)."""


class ModelSettings(Section):
    """DeepLight's initialisation and dropout (section 2.2)."""

    initialisation: Literal["glorot", "he"] = "glorot"
    """Normal initialisation of the convolutions: Glorot & Bengio (2010), as in the paper, or He et al. (2015)."""
    conv_dropout: tuple[Share, Share, Share] = (0.0, 0.2, 0.4)
    """Probability that a channel is dropped, for each group of four convolution layers."""
    lstm_dropout: Share = 0.5
    """Dropout on the slice features that enter the LSTM."""
    output_dropout: Share = 0.5
    """Dropout on the 128 features that enter the output layer."""


class LayerGroup(Section):
    """Layers that learn at a rate of their own, or in some epochs only (discriminative rates, gradual unfreezing)."""

    layers: str
    """Name of a layer or of what holds it, e.g. encoder or encoder.convolutions.0"""
    rate: float = Field(1.0, ge=0)
    """Factor on the learning rate (0 = frozen throughout)."""
    from_epoch: int = Field(1, ge=1)
    """First epoch in which they learn."""
    until_epoch: int | None = Field(None, ge=1)
    """Last epoch in which they learn (None = the run's last)."""

    @model_validator(mode="after")
    def _epochs_are_in_order(self) -> "LayerGroup":
        if self.until_epoch is not None and self.until_epoch < self.from_epoch:
            raise ValueError(f"until_epoch {self.until_epoch} is before from_epoch {self.from_epoch}")
        return self

    def fits(self, name: str) -> bool:
        """Whether a weight belongs to the layers."""
        return self.layers in ("", name) or name.startswith(f"{self.layers}.")

    def learns(self, epoch: int) -> bool:
        """Whether the layers learn in an epoch (from 1)."""
        return self.rate > 0 and self.from_epoch <= epoch <= (self.until_epoch or epoch)


class TrainingSettings(Section):
    """One training run (sections 2.2, 3.1 and 3.2)."""

    epochs: int = Field(40, ge=1)
    """Number of epochs."""
    steps_per_epoch: int | None = Field(None, ge=1)
    """Batches per epoch (None = one pass over the training data)."""
    batch_size: int = Field(24, ge=1)
    """Volumes per batch."""
    learning_rate: float = Field(1e-4, gt=0)
    """Adam's step size."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: constant, or warm-up over 5% of the steps and cosine decay to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of each weight that a step takes away, times the learning rate (AdamW, Loshchilov & Hutter 2019)."""
    l1: float = Field(0.0, ge=0)
    """Factor of the sum of all weights' absolute values that is added to what is minimised."""
    groups: list[LayerGroup] = []
    """Layers with a learning rate or a schedule of their own; of those that fit a weight, the last one counts."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many epochs without a lower validation loss (None = never)."""
    keep: Literal["last", "best"] = "last"
    """The weights that the run ends with: the last epoch's, or those with the lowest validation loss."""
    shuffled_runs: int | None = Field(None, ge=1)
    """Shuffle volumes within a window of so many runs that slides over all, so that a store larger than the memory is
    read run by run (None = over all runs)."""
    precision: Precision = "32-true"
    """Lightning Fabric's precision; bf16-mixed computes convolutions in bfloat16."""
    threads: int = Field(2, ge=1)
    """CPU threads of each process; fixed here because the last bits of a sum depend on it."""
    deterministic: bool | None = None
    """Refuse operations whose last bits vary from run to run (None = on a CPU, where that costs nothing)."""
    compile: bool = False
    """Compile the model (torch.compile): slow to start; meant for GPUs."""


class SweepSettings(Section):
    """The grid of fine-tuning runs (section 3.2)."""

    variants: list[VariantName] = ["pretrained", "scratch", "linear"]
    """Decoders to compare, of those in `variants.VARIANTS`."""
    fractions: list[Fraction] = Field([0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0], min_length=1)
    """Fractions of the training units; at least one unit each."""
    seeds: list[Seed] = Field([1], min_length=1)
    """Seeds of the draw of units, the initialisation, the batches, and the pre-training that a run starts from."""


class ControlSettings(Section):
    """The grids of `make controls`, beyond the paper, on the sweep's data and splits."""

    baselines: list[VariantName] = ["linear", "svm", "decoder"]
    """Linear models, at every fraction of the sweep."""
    initialisation: list[VariantName] = ["scratch-glorot", "scratch-he", "shuffled", "frozen"]
    """Other starts of the weights, at every fraction of the sweep; the profile's initialisation is not run twice."""
    permutation: list[VariantName] = ["pretrained-permuted", "scratch-permuted", "linear-permuted"]
    """Decoders trained on permuted labels, at `fractions`."""
    fractions: list[Fraction] = Field([0.01, 0.1, 0.4], min_length=1)
    """Fractions of permuted labels, of leaving one task out, and of repeated seeds."""
    seeds: list[Seed] = [1, 2, 3, 4, 5]
    """Seeds of complete repetitions, pre-training included."""


class Profile(Section):
    """All settings of one experiment."""

    name: str = Field("paper", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Results go to runs/<name>/."""
    data: DataSettings = DataSettings()
    simulation: SimulationSettings | None = None
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    model: ModelSettings = ModelSettings()
    pretraining: TrainingSettings = TrainingSettings(epochs=40)
    finetuning: TrainingSettings = TrainingSettings(epochs=50)
    sweep: SweepSettings = SweepSettings()
    controls: ControlSettings = ControlSettings()

    @property
    def tasks_to_leave_out(self) -> list[str]:
        """Tasks that can be the target while all others are the source; none where a task serves as both."""
        tasks = {**self.data.source, **self.data.target}
        return list(tasks) if len(tasks) == len(self.data.source) + len(self.data.target) > 1 else []

    def for_target(self, task: str) -> "Profile":
        """This profile with one task as the target and all others as the source; with "" itself.

        Raises
        ------
        ValueError
            If the task is not among those that can be left out.
        """
        if task == "" or [task] == list(self.data.target):
            return self
        if task not in self.tasks_to_leave_out:
            raise ValueError(
                f"{task!r} cannot be the target while the rest is the source; tasks of profile {self.name} that can: "
                f"{', '.join(self.tasks_to_leave_out) or 'none'}"
            )
        states = {**self.data.source, **self.data.target}
        source = {name: of_task for name, of_task in states.items() if name != task}
        data = self.data.model_copy(update={"source": source, "target": {task: states[task]}})
        return self.model_copy(update={"data": data})

    @property
    def provenance(self) -> str:
        """One sentence for every page: which data its figures come from."""
        if self.simulation is not None:
            made = "made by this project, with planted activations; nobody was scanned"
            return f"**Simulated data** (profile `{self.name}`): {made}."
        counted = " One subject: splits, fractions and tests count runs." if self.data.split_unit == "run" else ""
        return f"**Real data** (profile `{self.name}`): `{Path(self.data.root).name}`.{counted}"

    @property
    def folder(self) -> Path:
        """Where everything that this profile makes is kept."""
        return project_root() / "runs" / self.name

    @property
    def store(self) -> Path:
        """Where the volume store is kept."""
        return project_root() / self.data.store if self.data.store else self.folder / "store"

    @property
    def manifest_path(self) -> Path:
        """The manifest, absolute."""
        return project_root() / self.data.manifest

    @property
    def data_root(self) -> Any:
        """The data's root, as a path: an absolute folder or a URL."""
        return located(self.data.root if "://" in self.data.root else project_root() / self.data.root)


def differences(a: Profile, b: Profile) -> "pd.DataFrame":
    """Settings in which two profiles differ: `section.field` → a column for each, named `paper` and `this run`."""
    import pandas as pd

    rows = {}
    for section in ("simulation", "data", "preprocessing", "model", "pretraining", "finetuning", "sweep"):
        one, two = (p.model_dump(mode="json")[section] or {} for p in (a, b))
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


def _stated(value: object) -> str:
    if isinstance(value, dict):  # states of the tasks
        return "; ".join(f"{task}: {', '.join(states)}" for task, states in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def project_root() -> Path:
    """The nearest folder, from the working directory upwards, that holds `profiles/`; else the working directory."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "profiles").is_dir()), here)


def digest(*values: object) -> str:
    """Twelve hexadecimal digits that stand for settings and other JSON-like values; order of keys does not matter.

    Settings that have their defaults are left out: one that a later version adds changes no digest.
    """
    plain = [v.model_dump(mode="json", exclude_defaults=True) if isinstance(v, BaseModel) else v for v in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def load_profile(path: str | Path) -> Profile:
    """Read and validate a profile.

    Raises
    ------
    ValueError
        With all problems of the file: unreadable YAML, unknown keys (with the nearest known one), wrong values.
    """
    path = Path(path)
    if not path.is_file():
        shipped = sorted(p.stem for p in (project_root() / "profiles").glob("*.yaml"))
        raise ValueError(f"there is no profile {path}; shipped profiles: {', '.join(shipped) or 'none'}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, found {type(content).__name__}")
    return _validated(content, str(path))


def recorded_settings(section: type[AnySection], content: object, where: str) -> AnySection:
    """Settings as a store or checkpoint records them; those that its version did not have get their defaults.

    Raises
    ------
    LaterVersionError
        If they hold settings that this version does not have; the message begins with `where`, as does
    ValueError
        if they are no such settings.
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


def read_states(path: Path) -> dict[str, dict[str, list[str]]]:
    """Task → state → event names, from a YAML file of `{task: {state: [trial types]}}`.

    Raises
    ------
    ValueError
        If it is unreadable or something else.
    """
    try:
        states: dict[str, dict[str, list[str]]] = TypeAdapter(StateMap).validate_python(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(f"{path} is no YAML file of `task: {{state: [trial types]}}`: {error}") from None
    return states


def from_parameters(name: str, **sections: Any) -> Profile:
    """The profile of a notebook: `profiles/<name>.yaml`, with the `sections` that are given in the place of the file's.

    A section is not given if it is `...`; empty ones are what they say. A simulation belongs to its data: with `data`
    goes the `simulation` that is given with it, or none, never the file's.

    `papermill … -f profiles/demo.yaml` injects all sections, `papermill … -p name demo` none; both give the same.
    """
    shipped = project_root() / "profiles" / f"{name}.yaml"
    given = {key: value for key, value in sections.items() if value is not ...}
    if "data" in given:
        given.setdefault("simulation", None)
    base = load_profile(shipped).model_dump(mode="json") if shipped.is_file() else {"name": name}
    if not shipped.is_file() and not given:
        load_profile(shipped)  # raises, and lists the shipped ones
    return _validated({**base, **given}, f"parameters of profile {name}")


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
    sections: dict[str, type[BaseModel]] = {
        "data": DataSettings, "simulation": SimulationSettings, "preprocessing": PreprocessingSettings,
        "model": ModelSettings, "pretraining": TrainingSettings, "finetuning": TrainingSettings, "sweep": SweepSettings,
        "controls": ControlSettings, "structural": StructuralSettings,
        "groups": LayerGroup,
    }  # fmt: skip
    section: type[BaseModel] = Profile
    for part in location[:-1]:
        section = sections.get(str(part), section)
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; known are {', '.join(known)}"
