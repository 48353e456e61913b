import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import deeplight_core
from deeplight_core.config import FinetuningSettings, Profile, differences, digest, load_profile, project_root
from deeplight_core.preparation import (
    CohortSettings,
    DataSettings,
    PreprocessingSettings,
    SimulationSettings,
    read_states,
)
from deeplight_core.routes import PretrainingSettings, Routes, TrainingSettings

ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
shipped = pytest.mark.parametrize("path", PROFILES, ids=[path.stem for path in PROFILES])

TINY = """
name: tiny
data:
  source: {EMOTION: [fear, neutral]}
simulation: {resolution_mm: 8, contrast: 1.5, seed: 3}
preprocessing: {lag_s: 5}
routes: {supervised: {pretraining: {epochs: 2}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@shipped
def test_shipped_profile_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_profile(path).name == path.stem


@shipped
def test_a_profile_is_the_same_by_name_and_by_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1] / "notebooks")
    assert load_profile(path.stem) == load_profile(path) == load_profile(f"profiles/{path.name}")


def test_defaults_are_the_papers_recipe() -> None:
    profile = Profile()
    assert (profile.routes.supervised.pretraining.epochs, profile.finetuning.epochs) == (40, 50)
    recipe = PretrainingSettings(learning_rate=1e-4, batch_size=24, schedule="constant")
    assert profile.routes.supervised.pretraining == recipe
    assert profile.preprocessing == PreprocessingSettings(fwhm_mm=3, high_pass_hz=1 / 128, lag_s=0, skip_s=None)
    assert profile.routes.supervised.encoder.conv_dropout == (0.0, 0.2, 0.4)
    assert profile.sweep.fractions == [0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0]
    assert len(profile.data.states("source")) == 16
    assert profile.data.states("target") == [("WM", state) for state in ("body", "face", "place", "tool")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preprocessing: {fhwm_mm: 3}", "preprocessing.fhwm_mm: unknown key; did you mean 'fwhm_mm'"),
        ("routes: {supervised: {pretraining: {learning_rat: 3}}}", "did you mean 'learning_rate'"),
        ("routes: {supervised: {encoder: {initialization: he}}}", "did you mean 'initialisation'"),
        ("model: {initialisation: he}", "model: it is in routes.supervised now, as encoder"),
        ("pretraining: {epochs: 3}", "pretraining: it is in routes.supervised now"),
        ("data: {slpit_seed: 3}", "did you mean 'split_seed'"),
        ("simulation: {contrst: 3}", "did you mean 'contrast'"),
        ("sweep: {fraction: [1]}", "did you mean 'fractions'"),
        ("fine-tuning: {}", "fine-tuning: unknown key; did you mean 'finetuning'"),
        ("routes: {supervised: {head: {zzz: 3}}}", "unknown key; known are dropout"),
        ("data: {source: {WM: [bodies]}}", r"WM has no state \['bodies'\]; it has \['body', 'face', 'place', 'tool'\]"),
        ("data: {source: {WM: [body]}}", r"\('WM', 'body'\)\] are in both source and target"),
        ("data: {source: {x: {a: [e1], b: [e2, e1]}}}", "x: e1 named more than once; an event belongs to one state"),
        ("data: {max_units: {train: 0}}", "data.max_units.train: .* greater than or equal to 1, got 0"),
        ("data: {max_units: {tset: 1}}", "data.max_units.tset.*'train', 'validation' or 'test'"),
        ("routes: {supervised: {encoder: {conv_dropout: [0, 0.2, 1.4]}}}", "conv_dropout.2: .* less than 1, got 1.4"),
        ("preprocessing: {lag_s: .inf}", "preprocessing.lag_s: .* finite"),
        ("sweep: {fractions: [0.5, 0]}", "sweep.fractions.1: .* greater than 0, got 0"),
        ("sweep: {variants: [frosen]}", "sweep.variants.0: unknown variant 'frosen'; known are pretrained, scratch"),
        ("cohort: {scans: {T2w: {PD: 1}}}", "cohort: scans.T2w names PD, of whom there are no people"),
        ("cohort: {people: {MCI: 3}}", "cohort.people.MCI.*'AD', 'CN', 'CVD', 'HC' or 'PD'"),
        ("cohort: {shape: {T2w: [36, 43, 36]}}", "cohort: shape has none for T1w"),
        ("data: {target: {column: sex, tasks: [a], classes: {age: [F, M]}}}", "bins name age, which column does not"),
        (
            "data: {target: {column: sex, tasks: [a], classes: {sex: [F, M]}, ordered: {sex: [F, M]}}}",
            "sex is in more than one of classes, ordered and bins; keep one",
        ),
        ("data: {target: {column: sex, tasks: [a], classes: {sex: [F, F]}}}", "sex has a value twice: F, F"),
        ("routes: {images: {pretraining: {weights: {source: a, sha256: b}}}}", "weights.sha256: .* pattern"),
        ("cohort: {}\nsimulation: {}", "simulation and cohort both describe the data"),
        ("cohort: {}\ndata: {split_unit: run}", "data.split_unit must be subject for a cohort"),
        ("simulation: {resolution_mm: 1}", "simulation.resolution_mm: .* greater than or equal to 2, got 1"),
        ("name: ../else", "name: .* pattern"),
        ("- a\n- b", "must hold `key: value` lines, found list"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        load_profile(path)
    assert str(path) in str(error.value)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    path = written(tmp_path, "finetuning: {epochs: 0, batchsize: 2}\nsimulation: {contrast: -1}\ndta: {}")
    with pytest.raises(ValueError, match=r"has 4 problem\(s\)") as error:
        load_profile(path)
    for key in ("finetuning.epochs", "finetuning.batchsize", "simulation.contrast", "dta"):
        assert f"\n  {key}: " in str(error.value)


def test_a_profile_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: M\xfcller")
    with pytest.raises(ValueError, match="not readable as YAML"):
        load_profile(path)


def test_a_missing_profile_lists_those_that_ship(project: Path) -> None:
    for asked in ("profiles/tniy.yaml", "tniy"):
        with pytest.raises(ValueError, match=r"no profile .*tniy.yaml; shipped profiles: tiny"):
            load_profile(asked)


@pytest.mark.parametrize("section", [Profile(), DataSettings(), TrainingSettings()], ids=lambda s: type(s).__name__)
def test_settings_are_frozen(section: BaseModel) -> None:
    for name in type(section).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))


def test_overrides_take_the_place_of_the_files_settings(project: Path) -> None:
    before = load_profile("tiny")
    profile = load_profile("tiny", {"finetuning": {"epochs": 7, "head": {"dropout": 0.1}}, "name": "other"})
    assert (profile.name, profile.finetuning.epochs, profile.finetuning.head.dropout) == ("other", 7, 0.1)
    changed = {"epochs": 7, "head": profile.finetuning.head}
    assert profile == before.model_copy(
        update={"name": "other", "finetuning": before.finetuning.model_copy(update=changed)}
    )
    assert load_profile("tiny", {}) == load_profile("tiny", {"data": {}}) == before
    states = {"EMOTION": ["fear", "neutral"]}  # a value, not a section: WM's states are gone
    assert load_profile("tiny", {"data": {"target": states, "source": {}}}).data.tasks() == ["EMOTION"]


def test_overrides_that_are_nothing_are_what_they_say(project: Path) -> None:
    assert load_profile("tiny").simulation is not None
    assert load_profile("tiny", {"simulation": None}).simulation is None
    with pytest.raises(ValueError, match=r"(?s)profile tiny with overrides .* has 1 problem.* data: .* got None"):
        load_profile("tiny", {"data": None})


@pytest.mark.parametrize("given", [{}, {"simulation": None}])
def test_nobody_elses_data_are_simulated(project: Path, given: dict[str, object]) -> None:
    """The shipped profile on real data: nothing is simulated into their folder."""
    mine = {"root": "/data/mine", "manifest": "mine.csv"}
    profile = load_profile("tiny", {"data": mine, **given})
    assert profile.data.root == "/data/mine"
    assert profile.simulation is None
    assert profile.preprocessing.lag_s == 5  # all else is the shipped one's
    assert load_profile("tiny", {"data": mine, "simulation": {}}).simulation == load_profile("tiny").simulation
    own = load_profile("tiny", {"data": mine, "simulation": {"seed": 8}}).simulation
    assert own == load_profile("tiny").simulation.model_copy(update={"seed": 8})


def test_no_cohort_is_simulated_into_somebody_elses_folder(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, "cohort: {seed: 2}"))
    assert profile.overridden({"data": {"root": "/data/mine"}}).cohort is None
    assert profile.overridden({"cohort": {"scanner": 4}}).cohort == CohortSettings(seed=2, scanner=4)


def test_notebooks_have_few_parameters() -> None:
    """All the same two first and last; what varies between them."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        parameters: dict[str, object] = {}
        exec("".join(cell["source"]), {}, parameters)
        first, *_, last = parameters
        assert (first, last) == ("profile", "overrides")
        assert parameters["overrides"] == {}
        assert len(parameters) <= 7


@pytest.mark.parametrize("wrong", [{"finetunig": {"epochs": 7}}, {"finetuning": {"epoch": 7}}])
def test_wrong_overrides_are_refused_by_name(project: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"with overrides .*\n  finetuni.*did you mean '(finetuning|epochs)'"):
        load_profile("tiny", wrong)
    with pytest.raises(ValueError, match=r"overrides must be sections .*, got 'epochs: 7'"):
        load_profile("tiny", "epochs: 7")


def test_a_target_may_be_numbers() -> None:
    data = DataSettings(source={"rest": {}}, target={"column": "age", "tasks": ["rest", "T1w"]})
    assert data.columns("target") == ["age"]
    assert data.states("target") == data.states("source") == []
    assert data.tasks() == ["rest", "T1w"]
    assert data.tasks("target") == ["rest", "T1w"]
    assert data.events("rest") == {}
    assert Profile(data=data).tasks_to_leave_out == []
    with pytest.raises(ValidationError, match=r"tasks"):
        DataSettings(target={"column": "age"})


def test_state_lists_stand_for_hcps_event_files() -> None:
    data = DataSettings(source={"EMOTION": ["fear"], "viewing": ["cat"]}, target={"WM": {"all": ["0bk_body"]}})
    assert data.source == {"EMOTION": {"fear": ["fear"]}, "viewing": {"cat": ["cat"]}}
    assert data.events("WM") == {"all": ["0bk_body"]}
    assert data.states("source") == [("EMOTION", "fear"), ("viewing", "cat")]


@pytest.mark.parametrize("none", [[], {}])
def test_a_task_may_have_no_states(none: object) -> None:
    data = DataSettings(source={"rest": none, "EMOTION": ["fear"]})
    assert data.source == {"rest": {}, "EMOTION": {"fear": ["fear"]}}
    assert data.states("source") == [("EMOTION", "fear")]


def test_a_task_may_serve_source_and_target_with_different_states() -> None:
    data = DataSettings(source={"WM": ["body", "face"]}, target={"WM": ["tool"]})
    assert list(data.events("WM")) == ["body", "face", "tool"]


def test_paths_are_below_the_folder_that_holds_profiles(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project / "notebooks")
    profile = load_profile("tiny")
    assert project_root() == project
    assert profile.store == project / "runs/tiny/store"
    assert profile.manifest_path == project / "data_manifest.csv"
    assert profile.data_root == project / "data"
    assert Profile(data={"root": "/elsewhere"}).data_root == Path("/elsewhere")


def test_digest_depends_on_values_not_on_order() -> None:
    assert digest({"a": 1, "b": 2}, Profile()) == digest({"b": 2, "a": 1}, Profile())
    assert digest(Profile()) != digest(Profile(finetuning=FinetuningSettings(epochs=41)))
    assert len(digest(1)) == 12


def test_a_setting_that_comes_later_changes_no_digest_where_it_has_its_default() -> None:
    class Later(SimulationSettings):
        motion_mm: float = 0.5

    for contrast in (1.0, 2.0):
        assert digest(Later(contrast=contrast)) == digest(SimulationSettings(contrast=contrast))
    assert digest(Later(motion_mm=1)) != digest(Later())
    assert digest(Profile(finetuning=FinetuningSettings(epochs=40))) != digest(Profile())


def test_differences_lists_what_is_not_the_papers() -> None:
    mine = Profile(
        name="mine",
        simulation=SimulationSettings(contrast=2),
        data=DataSettings(root="elsewhere", source={"EMOTION": ["fear"]}),
        preprocessing=PreprocessingSettings(fwhm_mm=None),
    )
    table = differences(Profile(), mine)
    assert list(table.index) == [
        "simulation.resolution_mm", "simulation.contrast", "simulation.seed", "data.source", "preprocessing.fwhm_mm",
    ]  # fmt: skip
    assert list(table.loc["preprocessing.fwhm_mm"]) == ["3.0", "–"]
    assert table.loc["data.source", "this run"] == "EMOTION: fear"
    assert differences(mine, mine).empty


def test_provenance_tells_simulated_from_real() -> None:
    assert Profile(simulation=SimulationSettings()).provenance.startswith("**Simulated data**")
    structural = Profile(cohort=CohortSettings()).provenance
    assert structural.startswith("**Simulated data**")
    assert "effects of disease" in structural
    assert Profile().provenance.startswith("**Real data**")
    assert "count runs" in Profile(data={"split_unit": "run"}).provenance


def sections(model: type[BaseModel] = Profile) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Profile:  # a profile in a profile
                yield from sections(kind)


FIELDS = [
    (section.__name__, name)
    for section in dict.fromkeys(sections())
    if section is not Routes  # whose fields are read by the names in `ROUTES`
    for name in section.model_fields
]


@pytest.fixture(scope="session")
def names_read() -> set[str]:
    """Every `.name` and `["name"]` that the package's source reads, and every `.name` of the workflow."""
    names = set(re.findall(r"\.(\w+)", (ROOT / "Snakefile").read_text(encoding="utf-8")))
    for file in Path(deeplight_core.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
    return names


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=[".".join(field) for field in FIELDS])
def test_every_setting_is_read_somewhere(section: str, field: str, names_read: set[str]) -> None:
    assert field in names_read, f"nobody reads {section}.{field}"


def test_a_task_takes_the_place_of_the_target() -> None:
    swapped = Profile().for_target("MOTOR")
    assert list(swapped.data.target) == ["MOTOR"]
    assert set(swapped.data.source) == {"GAMBLING", "LANGUAGE", "SOCIAL", "RELATIONAL", "EMOTION", "WM"}
    assert {t: swapped.data.events(t) for t in swapped.tasks_to_leave_out} == {
        t: Profile().data.events(t) for t in Profile().tasks_to_leave_out
    }
    assert Profile().for_target("") == Profile().for_target("WM") == Profile()


def test_a_task_that_cannot_be_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'WN' cannot be the target .* that can: GAMBLING, MOTOR"):
        Profile().for_target("WN")
    shared = Profile(data={"source": {"viewing": ["cat", "dog"]}, "target": {"viewing": ["house", "shoe"]}})
    with pytest.raises(ValueError, match="that can: none"):
        shared.for_target("resting")


def test_unknown_variants_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown variant 'pretraind'; known are pretrained, scratch, linear"):
        Profile(sweep={"variants": ["pretraind"]})


# ---- transfers


def test_a_transfer_is_a_profile_with_other_data_that_knows_its_origin(project: Path) -> None:
    (project / "profiles" / "mine.yaml").write_text(
        "name: mine\nfinetuning: {epochs: 3}\n"
        "transfers:\n  t2: {data: {root: there, manifest: t2.csv}, finetuning: {batch_size: 8}}\n"
        "  own: {pretrained_by: null}\n"
    )
    mine = load_profile("mine")
    there = mine.transferred("t2")
    assert (there.name, there.data.root, there.finetuning.epochs, there.finetuning.batch_size) == (
        "mine-t2",
        "there",
        3,
        8,
    )
    assert there.origin == mine.model_copy(update={"transfers": {}})
    assert there.transfers == {}
    assert mine.transferred("") is mine
    own = mine.transferred("own")
    assert own.origin is own
    written = project / "resolved.yaml"
    written.write_text(yaml.safe_dump(there.model_dump(mode="json")))
    assert load_profile(written) == there
    (project / "profiles" / "other.yaml").write_text("name: other\npretrained_by: mine\n")
    assert load_profile("other").origin == mine
    with pytest.raises(ValueError, match="profile mine has no transfer 't3'; it has t2, own"):
        mine.transferred("t3")


def test_the_full_contrast_differs_from_the_small_one_in_its_sweep_only() -> None:
    small, full = (load_profile(ROOT / f"profiles/{name}.yaml") for name in ("contrast", "contrast-full"))
    assert set(small.sweep.fractions) < set(full.sweep.fractions) | {0.5}
    same = {"name": small.name, "data": full.data.model_copy(update={"store": None}), "sweep": small.sweep}
    assert full.model_copy(update=same) == small
    supervised, contrast = (getattr(small.routes, route) for route in ("supervised", "contrast"))
    seen = [
        route.pretraining.epochs * (route.pretraining.steps_per_epoch or 0) * route.pretraining.batch_size * volumes
        for route, volumes in ((supervised, 1), (contrast, 3 * contrast.example.frames))
    ]
    assert seen[0] == seen[1]  # batches that are full; a pass may end with a smaller one


def test_the_states_of_the_task_battery_are_those_of_its_profile() -> None:
    states, data = read_states(ROOT / "profiles/states/mdtb.yaml"), load_profile(ROOT / "profiles/mdtb.yaml").data
    assert len({state for of_task in states.values() for state in of_task}) == 26
    assert data.source == {"b": states["b"]}
    assert len(data.states("target")) == 13
    assert data.events("a").items() <= states["a"].items()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ("[yes, no]", "put the name in quotes: 'yes', 'no'"),
        ("[Valid: stimulus, other]", "put the name in quotes: 'Valid: stimulus'"),
        ("[null, a]", "None is no name"),
        ("{seen: [face, no]}", "put the name in quotes"),
    ],
)
def test_names_that_yaml_reads_otherwise_are_to_be_quoted(project: Path, states: str, message: str) -> None:
    text = f"name: mine\ndata:\n  layout: bids\n  source: {{loc: {states}}}\n  target: {{}}\n"
    with pytest.raises(ValueError, match=f"data.source: loc: .*{message}"):
        load_profile(written(project, text))
    (project / "states.yaml").write_text(f"loc: {states}\n")
    with pytest.raises(ValueError, match=message):
        read_states(project / "states.yaml")


def test_numbers_are_names(project: Path) -> None:
    text = "name: mine\ndata: {layout: bids, source: {1: [1, 2.0], 2: {3: [4]}}, target: {}}\n"
    assert load_profile(written(project, text)).data.source == {"1": {"1": ["1"], "2.0": ["2.0"]}, "2": {"3": ["4"]}}


def test_hcps_states_are_for_hcps_layout(project: Path) -> None:
    text = "name: mine\ndata: {{layout: {}, source: {{MOTOR: [left_hand]}}, target: {{}}}}\n"
    own = load_profile(written(project, text.format("bids")))
    assert own.data.source == {"MOTOR": {"left_hand": ["left_hand"]}}
    with pytest.raises(ValueError, match="MOTOR has no state"):
        load_profile(written(project, text.format("hcp")))
    (project / "states.yaml").write_text("MOTOR: [left_hand]\n")
    assert read_states(project / "states.yaml", "bids") == own.data.source


def test_decoders_of_clips_as_published_need_a_length() -> None:
    with pytest.raises(ValueError, match=r"published names decoders of clips \(clip-contrast\); set clip"):
        Profile.model_validate({"controls": {"published": ["cae", "clip-contrast"]}})
    Profile.model_validate({"controls": {"published": ["cae"]}})
