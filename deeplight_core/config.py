"""Settings of one experiment: frozen, typed, validated; read from strict YAML profiles.

A profile (`profiles/<name>.yaml`) holds `name` and the sections below; commands and notebooks take its name. The
defaults are the recipe of Thomas, Müller & Samek (2019), so a profile states only its differences.
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
    Field,
    ValidationError,
    model_validator,
)

from deeplight_core.preparation import (
    NAME,
    QUOTES,
    AtlasSettings,
    CohortSettings,
    ColumnTarget,
    DataSettings,
    PreprocessingSettings,
    Seed,
    SimulationSettings,
)
from deeplight_core.routes import ROUTES, VARIANTS, ClipSettings, ReadoutSettings, Routes, Section, TrainingSettings
from deeplight_core.system.sources import located

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ControlSettings",
    "FaultSettings",
    "FinetuningSettings",
    "GroupSettings",
    "LaterVersionError",
    "Profile",
    "SweepSettings",
    "differences",
    "digest",
    "load_profile",
    "project_root",
    "recorded_settings",
    "shipped",
]


Fraction = Annotated[float, Field(gt=0, le=1)]


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; known are {', '.join(VARIANTS)}")
    return name


VariantName = Annotated[str, AfterValidator(_variant)]


class LaterVersionError(ValueError):
    """A later version of this program made the file to be read."""


AnySection = TypeVar("AnySection", bound=Section)


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


class SensitivitySettings(Section):
    """Other conditions under which ways to pre-train are compared."""

    title: str
    """What they are, in tables and figures."""
    overrides: dict[str, Any]
    """Other settings (see `Profile.overridden`), of pre-training and target; other data need another `name`."""


class GroupSettings(Section):
    """Two groups of people, such as patients and controls, to be told apart (see `groups`)."""

    column: str
    """Column of the manifest that says who is in which."""
    names: Annotated[list[str], Field(min_length=2, max_length=2)]
    """Its two values; the second is the group that is looked for."""


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
    tuning_seed: int | None = None
    """Seed of a simulated cohort of such people, in the place of a manifest."""
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
    published: list[VariantName] = Field([])
    """Decoders with each paper's own architecture, at every fraction and seed of the sweep."""
    clip: ClipSettings | None = None
    """Clips that those of them learn from whose encoders read clips."""
    sensitivity: dict[Annotated[str, Field(pattern=NAME)], SensitivitySettings] = Field({})
    """Other conditions for the sweep's decoders, each with its own pre-trainings, at the largest of `fractions`."""
    groups: GroupSettings | None = None
    """Two groups that are told apart by what decoders see of them (None = there are none)."""
    faults: dict[Annotated[str, Field(pattern=NAME)], FaultSettings] = Field({})
    """Suspected causes of failure, each planted alone in a decoder that starts from an autoencoder."""

    @model_validator(mode="after")
    def _clips_have_a_length(self) -> "ControlSettings":
        of_clips = [variant for variant in self.published if ROUTES[VARIANTS[variant].route].encoder == "clip"]
        if of_clips and self.clip is None:
            raise ValueError(
                f"published names decoders of clips ({', '.join(of_clips)}); set clip: {{length_s: …, step_s: …}}"
            )
        return self


def _named_profile(value: Any) -> Any:
    """A profile's settings where it is given by its name or file."""
    return load_profile(value) if isinstance(value, str) else value


class Profile(Section):
    """All settings of one experiment."""

    name: str = Field("paper", pattern=NAME)
    """Results go to runs/<name>/."""
    part: Literal["built-in", "real", "structural", "contrast", "images", "comparison", "patients"] | None = None
    """The part of the book that its pages make (None: built-in for simulated data, else real)."""
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
    transfers: dict[Annotated[str, Field(pattern=NAME)], dict[str, Any]] = Field({})
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
        return "; ".join(f"{task}: {', '.join(states)}" for task, states in value.items()) or "none"
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
        raise ValueError(f"{path} is not readable as YAML: {error}; {QUOTES}") from error
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
