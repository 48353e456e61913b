"""A decoder of one laboratory on the data of another: exported, read from files nobody trusts, fine-tuned."""

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, SHAPE, SUBJECTS, use_threads
from safetensors.torch import load_file, save_file

from deeplight_core import decoding, experiment
from deeplight_core.analysis.statistics import t_interval
from deeplight_core.config import Profile
from deeplight_core.data.manifest import COLUMNS, write_manifest
from deeplight_core.explanations import asked
from deeplight_core.system.files import file_sha256
from deeplight_core.training.checkpoint import load_mask, load_model, read_record
from deeplight_core.training.exported import export
from deeplight_core.training.hub import local

OTHER_AFFINE = np.array([[3.0, 0.4, 0, -9], [0, 3.2, 0, -13], [0, 0, 3.5, -14], [0, 0, 0, 1]])  # RAS, oblique
OTHER_SHAPE = (8, 9, 10)
pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def trained(home: Path, tiny_profile: Profile) -> experiment.Training:
    """A pre-training of the tiny profile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        use_threads(patch)
        experiment.prepare_data(tiny_profile, jobs=1)
        return experiment.pretrain(tiny_profile, 1)


@pytest.fixture(scope="module")
def shared(trained: experiment.Training, home: Path) -> Path:
    return export(trained.folder, home / "exported", "CC0-1.0")


@pytest.fixture
def exported(shared: Path, tmp_path: Path) -> Path:
    """A copy of an exported folder, for tests that change it."""
    return Path(shutil.copytree(shared, tmp_path / "copied"))


@pytest.fixture(scope="module")
def study(home: Path) -> Profile:
    """Another laboratory's: other grid, orientation, TR and people."""
    root, random, rows = home / "study", np.random.default_rng(1), []
    for subject, split in {"p1": "train", "p2": "train", "p3": "validation"}.items():
        folder = root / subject
        (folder / "EVs").mkdir(parents=True)
        bold = random.normal(100, 1, (*OTHER_SHAPE, 40)).astype(np.float32)
        nib.save(nib.Nifti1Image(bold, OTHER_AFFINE), folder / "bold.nii.gz")
        for i, name in enumerate(("left", "right")):
            (folder / f"EVs/{name}.txt").write_text("".join(f"{12 * k + 6 * i}\t6\t1\n" for k in range(4)))
        files = [f"{subject}/bold.nii.gz", f"{subject}/EVs", ""]
        rows.append(["other", subject, "", "hands", "1", *files, 1.5, 40, split, "", ""])
    write_manifest(pd.DataFrame(rows, columns=list(COLUMNS)), home / "study.csv")
    return Profile.model_validate(
        {
            "name": "study",
            "data": {"manifest": "study.csv", "root": root, "source": {}, "target": {"hands": ["left", "right"]}},
            "preprocessing": {"high_pass_hz": None, "skip_s": 0},
            "finetuning": {"epochs": 1, "batch_size": 16, "threads": 1},
        }
    )


# ---- export


def test_an_exported_folder_is_whole_and_says_what_it_is(trained: experiment.Training, shared: Path) -> None:
    exported = shared
    assert sorted(p.name for p in exported.iterdir()) == ["README.md", "mask.nii.gz", "model.json", "model.safetensors"]
    (one, record), (other, _) = load_model(exported), load_model(trained.folder)
    volumes = torch.randn(2, *SHAPE[::-1])
    assert torch.equal(one.eval()(volumes), other.eval()(volumes))
    store = experiment.open_store(trained.profile.store)
    np.testing.assert_array_equal(load_mask(exported, record), store.mask)
    by_block = trained.results().query("level == 'block'")["score"]
    (row,) = [row for row in record["scores"] if row["level"] == "block"]
    assert (row["task"], row["measure"], row["n"]) == ("EMOTION", "accuracy", 2)
    assert row["mean"] == pytest.approx(by_block.mean(), abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx(t_interval(by_block.to_numpy(), 0.95), abs=1e-6)
    page = (exported / "README.md").read_text()
    for said in (
        "7 × 8 × 9 voxels, orientation LAS",
        "CC0-1.0",
        "EMOTION: fear, neutral",
        "time of the training data: 2 s",
    ):
        assert said in page
    assert f"{by_block.mean():.1%}" in page


def test_nothing_exported_names_a_person_or_a_path(
    trained: experiment.Training, exported: Path, home: Path, project: Path
) -> None:
    written = b"".join(p.read_bytes() for p in exported.iterdir() if p.suffix != ".gz")
    written += gzip.decompress((exported / "mask.nii.gz").read_bytes())
    named = [*SUBJECTS, *(f"tiny/{subject}" for subject in SUBJECTS)]
    assert not [name for name in named if f'"{name}"'.encode() in written or f"sub-{name}".encode() in written]
    assert str(home).encode() not in written
    assert str(trained.profile.data.root).encode() not in written
    record = read_record(exported)
    assert {"units", "reported", "from"}.isdisjoint(record["training"])
    assert (record["n_units"], record["n_reported"]) == (4, 2)


def test_an_image_that_named_the_grid_is_not_named(study: Profile, shared: Path, tmp_path: Path, home: Path) -> None:
    profile = experiment.started_from(study, shared)
    experiment.prepare_data(profile, jobs=1)
    folder = export(experiment.finetune(profile, "pretrained", 1.0, 1).folder, tmp_path / "second")
    assert read_record(folder)["data"]["preprocessing"]["mask"] == "(an image)"
    assert str(home) not in (folder / "model.json").read_text() + (folder / "README.md").read_text()


def test_words_of_others_are_no_markup(tmp_path: Path, trained: experiment.Training) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "training"))
    record = json.loads((folder / "model.json").read_text())
    record["architecture"]["head"]["targets"] = [["<script>alert(1)</script>", "a|b # c"], ["x", "y"]]
    (folder / "model.json").write_text(json.dumps(record))
    page = (export(folder, tmp_path / "odd") / "README.md").read_text()
    assert "<script>" not in page
    assert "a\\|b \\# c" in page


def test_an_exported_decoder_is_evaluated_and_explained(trained: experiment.Training, shared: Path) -> None:
    found, expected = experiment.evaluate(trained.profile, shared), trained.results()
    pd.testing.assert_series_equal(found["score"], expected["score"])
    question = asked(shared, experiment.open_store(trained.profile.store), each=1)
    assert len(question.data) == 2 * 2


def test_a_folder_with_files_is_not_written_over(trained: experiment.Training, exported: Path) -> None:
    with pytest.raises(ValueError, match="exists already and is not empty; name another folder"):
        export(trained.folder, exported)


def test_checkpoints_of_other_routes_travel(trained: experiment.Training, study: Profile, tmp_path: Path) -> None:
    """The battery saves and loads every encoder with every head; this one needs no grid."""
    route = "variational"
    folder = export(experiment.pretrain(trained.profile, 1, route).folder, tmp_path / route)
    assert "fine-tune it on your own labels" in (folder / "README.md").read_text()
    profile = experiment.started_from(study, folder)
    experiment.prepare_data(profile, jobs=1)
    decoder = experiment.finetune(profile, "pretrained", 1.0, 1)
    assert {*decoder.results()["route"]} == {route}
    assert {*decoder.results()["encoder"]} == {read_record(folder)["architecture"]["encoder"]["name"]}


# ---- fine-tuning


def test_a_study_on_another_grid_is_brought_to_the_checkpoints(
    study: Profile, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = shared
    profile = experiment.started_from(study, exported)
    store = experiment.prepare_data(profile, jobs=1)
    assert (store.shape, store.orientation, store.voxel_mm) == (SHAPE, "LAS", (3.0, 3.5, 4.0))
    np.testing.assert_allclose(store.affine, AFFINE)
    assert store.runs["resampled"].all()
    np.testing.assert_array_equal(store.mask, load_mask(exported, read_record(exported)))
    decoder = experiment.finetune(profile, "pretrained", 1.0, 2)
    shown = capsys.readouterr().out
    for difference in ("tr_s 2.0 there, 1.5 here", "high_pass_hz 0.0078125 there, None here", "skip_s None there, 0.0"):
        assert difference in shown
    assert shown.index("other data than it was trained on") < shown.index("epoch 1")
    assert not decoder.results().empty
    before, after = (load_model(folder)[0].encoder.state_dict() for folder in (exported, decoder.folder))
    moved = [(after[name] - before[name]).abs().max().item() for name in before]
    assert 0 < max(moved) < 0.01  # a few steps of 1e-4 from where the checkpoint was
    scratch = experiment.finetune(profile, "scratch", 1.0, 2)
    own = load_model(scratch.folder)[0].encoder.state_dict()
    assert (own["lstm.weight_hh_l0"] - before["lstm.weight_hh_l0"]).abs().max() > 0.1


def test_the_checkpoints_architecture_is_taken(study: Profile, shared: Path) -> None:
    exported = shared
    profile = experiment.started_from(study, exported)
    experiment.prepare_data(profile, jobs=1)
    folders = {experiment.finetuning(profile, name, 1.0, 1).folder for name in ("pretrained", "scratch", "frozen")}
    assert len(folders) == 3
    record = read_record(experiment.finetune(profile, "scratch-glorot", 1.0, 1).folder)
    assert record["architecture"]["encoder"]["settings"]["initialisation"] == "glorot"
    assert read_record(exported)["architecture"]["encoder"]["settings"]["initialisation"] == "he"


def test_a_checkpoint_of_tested_people_is_refused(trained: experiment.Training) -> None:
    profile = trained.profile.overridden({"sweep": {"folds": 3}, "checkpoint": str(trained.folder)})
    folds = [experiment.finetuning(profile, "scratch", 1.0, 1, fold) for fold in (1, 2, 3)]
    everyone = [unit for decoder in folds for unit in decoder.split.reported]
    assert sorted(everyone) == sorted(SUBJECTS)
    served = {*trained.units}
    for decoder in folds:
        if served & {*decoder.split.reported}:
            with pytest.raises(ValueError, match=r"was trained on \d of the tested people: tiny/s"):
                experiment.finetuning(profile, "pretrained", 1.0, 1, decoder.fold)


def test_images_of_another_kind_are_refused(study: Profile, exported: Path) -> None:
    path = exported / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": read_record(exported)["data"] | {"tr_s": None}}))
    with pytest.raises(ValueError, match=r"trained on structural images, and profile study has runs of fMRI"):
        experiment.started_from(study, exported)


def test_clips_of_another_length_are_refused(study: Profile, exported: Path) -> None:
    path = exported / "model.json"
    record = json.loads(path.read_text())
    record["architecture"]["encoder"] = {"name": "clip", "shape": list(SHAPE), "settings": {"frames": 27}}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"reads clips of 27 frames; set finetuning\.clip: .* frames: 27"):
        experiment.started_from(study, exported)


# ---- files that nobody should trust


def changed_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        record = json.loads((folder / "model.json").read_text())
        change(record)
        (folder / "model.json").write_text(json.dumps(record))

    return do


def huge_header(folder: Path) -> None:
    """A file of some bytes whose header promises 8 EB."""
    tensor = {"dtype": "F32", "shape": [1 << 30, 1 << 31], "data_offsets": [0, 1 << 63]}
    header = json.dumps({"head.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)


def other_type(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    changed_record(lambda record: record.update(sha256=file_sha256(path)))(folder)


def no_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["head.bias"][0] = torch.nan
    save_file(tensors, path)
    changed_record(lambda record: record.update(sha256=file_sha256(path)))(folder)


def bomb(folder: Path) -> None:
    (folder / "mask.nii.gz").write_bytes(gzip.compress(b"\0" * (1 << 24)))


def pipe(folder: Path) -> None:
    """What waits for ever when it is read."""
    (folder / "mask.nii.gz").unlink()
    os.mkfifo(folder / "mask.nii.gz")


def of(*path: str, value: Any) -> Callable[[Path], None]:
    def change(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return changed_record(change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.json").write_text("[" * 100_000), r"model\.json is damaged"),
        (lambda f: (f / "model.json").write_text("[]"), r"model\.json is of an earlier version"),
        (lambda f: (f / "model.json").write_text(" " * (5 << 20)), r"no checkpoint's record: it has 5,242,880 bytes"),
        (of("architecture", "encoder", "shape", value=[4000, 8, 9]), r"no checkpoint's record: .*shape.*4000"),
        (of("architecture", "encoder", "shape", value=[1000, 1000, 1000]), r"has more than 67,108,864 voxels"),
        (of("architecture", "encoder", "shape", value=[1000, 8, 9]), r"other weights than .* describes: encoder"),
        (of("architecture", "encoder", "name", value="os.system"), r"describes no model .*'os\.system'"),
        (of("architecture", "encoder", "settings", "widths", value=[8] * 12), r"holds other weights .*convolutions\.0"),
        (of("architecture", "encoder", "settings", "widths", value=[1 << 40] * 12), r"(bytes, more than any|no model)"),
        (of("architecture", "head", "targets", value=[["a", n] for n in "bcd"]), r"head\.bias: \(\(2,\), 'F32'\)"),
        (of("architecture", "head", "targets", value=[["a", "b"]] * 2), r'\["a", "b"\] is there twice'),
        (of("architecture", "head", "targets", value=[]), r"a head for states has pairs of a task and a state"),
        (of("architecture", "head", "targets", value=["ab", "cd"]), r"a head for states has pairs"),
        (of("architecture", "head", "targets", value=[["a", "b\x1b[2J"], ["a", "c"]]), r"signs that steer a terminal"),
        (of("architecture", "head", "targets", value=[["a", "b\nc"], ["a", "c"]]), r"a name has no line breaks"),
        (of("data", "grid", "affine", value=[[1.0]]), r"no checkpoint's record: data\.grid\.affine"),
        (of("data", "grid", "affine", value=[[0.0] * 4] * 4), r"orientation \?\?\? is not one of orientation LAS"),
        (of("data", "grid", "orientation", value="RAS"), r"orientation LAS is not one of orientation RAS"),
        (changed_record(lambda record: record["data"]["grid"].pop("affine")), r"data\.grid\.affine: Field required"),
        (of("data", "preprocessing", "structural", value="x"), r"is damaged, its settings cannot be: structural"),
        (of("data", "preprocessing", "example", value=None), r"is damaged, its settings cannot be: example"),
        (of("training", value=["x"]), r"no checkpoint's record: training"),
        (of("training", "reported", value=5), r"no checkpoint's record: training\.reported"),
        (of("training", "tasks", value=[1]), r"no checkpoint's record: training\.tasks"),
        (of("training", "clip", value={"length_s": "x"}), r"no checkpoint's record: training\.clip"),
        (of("source", value={"title": "x"}), r"no checkpoint's record: source\.licence"),
        (of("sha256", value="0" * 64), r"model\.safetensors is damaged"),
        (huge_header, r"model\.safetensors cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n."), r"safetensors cannot be read"),
        (other_type, r"other weights than model\.json describes: .*'F64'"),
        (no_numbers, r"weights that are no numbers: head\.bias"),
        (bomb, r"mask\.nii\.gz is no mask of this checkpoint: it holds more than a mask of \(7, 8, 9\)"),
        (lambda f: (f / "mask.nii.gz").write_bytes(b"PK\x03\x04"), r"mask\.nii\.gz is no mask of this checkpoint"),
        (lambda f: (f / "mask.nii.gz").unlink(), r"mask\.nii\.gz is missing"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (pipe, r"mask\.nii\.gz is missing"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_one_clear_refusal(
    spoil: Callable[[Path], object], message: str, exported_once: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported_once, tmp_path / "spoilt"))
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_mask(folder, load_model(folder)[1])
    for read in (decoding.decode, lambda *of: next(iter(decoding.prepared(*of).gen))):  # before runs are looked for
        with pytest.raises(ValueError, match=message):
            read(folder, Profile(name="nowhere"))
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1500


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory: pytest.TempPathFactory, store: Any) -> Path:
    """A decoder that was never trained, in an exported folder."""
    from deeplight_core.models.deeplight import DeepLight
    from deeplight_core.training.checkpoint import data_facts, save_model
    from deeplight_core.training.exported import write_exported

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    save_model(DeepLight(SHAPE, 2), folder, {"data": data_facts(store), "training": {}})
    record = {**read_record(folder), "n_units": 1, "n_reported": 1, "scores": [], "manifest": "", "licence": ""}
    return write_exported(folder / "model.safetensors", store.mask, record, folder / "exported")


@pytest.mark.parametrize("name", ["nowhere", "../../etc/passwd", "a/b/c", "org/..", "org/name/../x@" + "a" * 40])
def test_what_is_neither_folder_nor_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"neither such a folder nor ORG/NAME@REVISION"):
        local(name)
