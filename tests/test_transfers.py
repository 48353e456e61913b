"""Autoencoding of structural images, and decoders of another cohort that start from it."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import page_of, use_threads
from safetensors.torch import load_file
from sklearn.metrics import silhouette_score
from typer.testing import CliRunner

from deeplight_core import cli, codes, collect, experiment
from deeplight_core.config import Profile
from deeplight_core.data import cohorts
from deeplight_core.data.store import open_store
from deeplight_core.report.findings.autoencoder import API
from deeplight_core.routes import ConvEncoderSettings, ResidualEncoderSettings
from deeplight_core.sweeps import planned
from deeplight_core.training.checkpoint import load_model

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}
SETTINGS: dict[str, Any] = {
    "name": "source",
    "cohort": {
        "dataset": "one", "people": {"AD": 4, "CN": 4}, "scans": {"T1w": {"AD": 5, "CN": 4}}, "shape": [24, 27, 25],
    },
    "data": {
        "manifest": "one.csv", "root": "one", "label": "diagnosis", "n_validation": 2, "source": {"T1w": {}},
        "target": {"T1w": ["AD", "CN"]},
    },
    "preprocessing": {"keep": "all"},
    "routes": {
        "autoencoder": {"pretraining": TRAINING | {"snapshots": True}},
        "multitask": {"pretraining": TRAINING, "head": {"auxiliary": ["diagnosis", "age"]}},
    },
    "finetuning": TRAINING | {"head": {"pooling": "mean", "class_weights": "balanced"}},
    "sweep": {
        "variants": ["cae", "cae-multitask", "cae-scratch", "cae-frozen", "voxels"], "fractions": [1.0], "folds": 2,
    },
    "controls": {"code_widths": [16], "penalties": [0.0], "blocks": [0]},
    "transfers": {
        "other": {
            "cohort": {
                "dataset": "two", "people": {"PD": 5, "HC": 5}, "scans": {"T1w": {"PD": 5, "HC": 5}},
                "shape": [26, 25, 27], "scanner": 3, "seed": 2,
            },
            "data": {"manifest": "two.csv", "root": "two", "target": {"T1w": ["PD", "HC"]}},
        }
    },
}  # fmt: skip


def importable(how: str) -> bool:
    """Whether an item of the table is a function or class."""
    return how.split(".")[0] in ("training", "report", "codes", "models") or how == "data.store.open_store"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's root."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "profiles").mkdir()
    return folder


@pytest.fixture(scope="module")
def profiles(folder: Path) -> tuple[Profile, Profile]:
    """A source and a transfer to another cohort on another grid, with all trainings done; to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_threads(patch)
        source = Profile.model_validate(SETTINGS)
        target = source.transferred("other")
        for profile in (source, target):
            experiment.prepare_data(profile, 1)
        experiment.train_all([target], jobs=1)
    return source, target


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_decoders_of_another_grid_start_from_the_origins_encoder(profiles: tuple[Profile, Profile]) -> None:
    source, target = profiles
    assert open_store(source.store).shape != open_store(target.store).shape
    pretrained = experiment.pretraining(source, 1, "autoencoder")
    assert pretrained.finished
    training = experiment.finetuning(target, "cae", 1.0, 1, 1)
    assert training.finished
    assert training.checkpoint == pretrained.folder
    still = target.overridden({"finetuning": {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-30}})
    own = load_file(experiment.finetune(still, "cae", 1.0, 1, 1).folder / "model.safetensors")
    before = load_file(pretrained.folder / "model.safetensors")
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder
    assert all(torch.allclose(own[name], before[name], atol=1e-12) for name in encoder)
    two = still.overridden({"finetuning": {"blocks": 2}})
    some = load_file(experiment.finetune(two, "cae", 1.0, 1, 1).folder / "model.safetensors")
    same = {name for name in encoder if torch.allclose(some[name], before[name], atol=1e-12)}
    assert {name.split(".")[2] for name in same if name.endswith("weight")} == {"0", "1"}
    with pytest.raises(ValueError, match="cannot transfer 9 blocks; the encoder has 4"):
        experiment.finetune(still.overridden({"finetuning": {"blocks": 9}}), "cae", 1.0, 1, 1)


def test_the_reports_claims_have_a_page(
    profiles: tuple[Profile, Profile], monkeypatch: pytest.MonkeyPatch, no_window: None
) -> None:
    source, _ = profiles
    page = page_of("06_claims", source, monkeypatch)
    assert "pre-trainings have not been run**: residual" in page
    table = pd.read_csv(source.folder / "claims.csv").set_index("quantity")
    said = table["this run"].str
    assert said.startswith("AUC")["fine-tuning does not converge: one T1w → two T1w: PD or HC"]
    assert said.contains("significantly better in . of 1")["autoencoding gives no useful start for the other cohorts"]
    assert said.contains("both autoencoders are needed")["the strided residual autoencoder is smaller"]
    assert "cannot be tested here" in page
    longer = {"pretraining": {"epochs": 9}}  # of which nothing has been trained
    other = {"routes": {"autoencoder": longer, "multitask": longer}, "finetuning": {"epochs": 9}}
    empty = page_of("06_claims", source.overridden(other), monkeypatch)
    assert "Not all has been run" in empty
    assert "No claim can be tested yet.** 11 claims cannot be tested here." in empty


def test_every_fold_has_its_values(profiles: tuple[Profile, Profile]) -> None:
    _, target = profiles
    values, missing = collect.fold_values(target)
    assert missing == []
    assert set(values["measure"]) == {"auc", "balanced_accuracy"}
    values = values[values["measure"] == "auc"]
    assert values.groupby("variant")["fold"].apply(list).tolist() == [[1, 2]] * 5
    assert values["value"].between(0, 1).all()
    assert set(values["n_test"]) == {4, 6} or set(values["n_test"]) == {5}
    assert len(planned(target, "sweep")) == 10
    cell = experiment.finetuning(target, "voxels", 1.0, 1, 1).predictions()
    right = (
        cell["T1w: PD"][cell["state"] == "PD"].to_numpy()[:, None] - cell["T1w: PD"][cell["state"] == "HC"].to_numpy()
    )
    expected = ((right > 0) + 0.5 * (right == 0)).mean()
    found = values[(values["variant"] == "voxels") & (values["fold"] == 1)]["value"].item()
    assert found == pytest.approx(expected)


def test_nobody_is_tested_who_served_the_pretraining(profiles: tuple[Profile, Profile]) -> None:
    source, _ = profiles
    again = source.model_copy(update={"transfers": {}, "pretrained_by": source})
    with pytest.raises(ValueError, match=r"tested subjects also served the pre-training of profile source: one/one"):
        experiment.finetuning(again, "cae", 1.0, 1, 1)


def test_nobody_is_tested_whose_image_served_the_pretraining_under_another_name(
    profiles: tuple[Profile, Profile], folder: Path
) -> None:
    _, there = profiles
    renamed = pd.read_csv("two.csv", keep_default_na=False)
    renamed.assign(dataset="three", subject="x" + renamed["subject"]).to_csv("three.csv", index=False)
    origin = there.model_dump(mode="json") | {"pretrained_by": None}
    data = {"root": "two", "manifest": "three.csv"}
    here = there.overridden({"name": "three", "data": data, "pretrained_by": origin})
    experiment.prepare_data(here, 1)
    with pytest.raises(ValueError, match=r"\d tested image\(s\) also served the pre-training of profile source-other"):
        experiment.finetuning(here, "cae", 1.0, 1, 1)


def test_auxiliary_targets_are_columns_of_the_manifest(profiles: tuple[Profile, Profile]) -> None:
    model, record = load_model(experiment.pretraining(profiles[0], 1, "multitask").folder)
    assert model.head.targets == [
        {"column": "diagnosis", "levels": ["AD", "CN"]}, {"column": "age", "levels": None},
    ]  # fmt: skip
    ages = open_store(profiles[0].store).index.drop_duplicates("unit")
    ages = ages[ages["unit"].isin(record["training"]["units"])]["age"].astype(float)
    assert model.head.mean[1].item() == pytest.approx(ages.mean(), rel=1e-5)


def test_codes_and_reconstructions_are_those_of_the_model(profiles: tuple[Profile, Profile]) -> None:
    training = experiment.pretraining(profiles[0], 1, "autoencoder")
    store = open_store(profiles[0].store)
    features, table = codes.codes(training)
    assert len(features) == len(table) == len(store.index)
    assert set(table.loc[table["held_out"], "unit"]) == {*training.split.reported}
    original, found, mask = codes.reconstructions(training, 2)
    assert original.shape == found.shape == (2, *store.shape[::-1])
    errors = ((original - found) ** 2)[:, mask].mean(axis=1)
    np.testing.assert_allclose(errors, training.predictions()["score of volume"][:2], rtol=1e-4)
    first, last = (codes.reconstructions(training, 2, epoch)[1] for epoch in (1, 2))
    assert np.array_equal(last, found)
    assert not np.array_equal(first, found)
    reference = codes.reference_errors(training)
    assert set(reference["subject"]) == {*training.split.reported}
    assert (reference["pca"] <= reference["mean"] * 1.2).all()
    assert reference["autoencoder"].mean() == pytest.approx(training.predictions()["score of volume"].mean(), rel=0.3)


def test_a_frozen_encoder_is_read_by_a_linear_model(profiles: tuple[Profile, Profile]) -> None:
    _, target = profiles
    table = experiment.finetuning(target, "cae-frozen", 1.0, 1, 1).results()
    assert set(table["encoder"]) == {"probe"}
    ages = target.overridden({"data": {"target": {"column": "age", "tasks": ["T1w"]}}})
    for variant in ("cae-frozen", "voxels"):
        answers = experiment.finetune(ages, variant, 1.0, 1, 1).predictions()
        assert answers["predicted age"].between(20, 120).all(), variant


def test_a_regional_model_needs_regional_means(profiles: tuple[Profile, Profile]) -> None:
    with pytest.raises(ValueError, match="has no regional means; prepare it with"):
        experiment.finetune(profiles[1], "regional", 1.0, 1, 1)


def test_the_table_names_all_of_it(profiles: tuple[Profile, Profile], tmp_path: Path) -> None:
    tables, missing = collect.sweep_results(profiles[1])
    assert missing == []
    assert set(tables["dataset"]) == {"two"}
    assert set(tables["route"]) == {"autoencoder", "multitask"}
    tables.to_csv(tmp_path / "results.csv", index=False)
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(tables)


def test_codes_are_counted_projected_and_separated(profiles: tuple[Profile, Profile]) -> None:
    training = experiment.pretraining(profiles[0], 1, "autoencoder")
    assert codes.n_weights(training) == (31392, 62769)
    rows, mask = codes.reconstruction_rows(training, 2)
    assert list(rows) == ["original", "after epoch 1", "at the end"]
    assert all(volumes.shape == (2, *mask.shape) for volumes in rows.values())
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 0.1, (12, 5)), random.normal(3, 0.1, (12, 5))])
    dead = codes.projections(np.ones((12, 4)))  # which t-SNE does not survive
    assert all((places == 0).all() for places in dead.values())
    for places in codes.projections(features).values():
        near, far = places[:12], places[12:]
        assert np.linalg.norm(near - near.mean(axis=0), axis=1).max() < np.linalg.norm(
            near.mean(axis=0) - far.mean(axis=0)
        )
    table = pd.DataFrame(
        {"unit": [f"s{i}" for i in range(24)], "diagnosis": ["AD"] * 12 + ["CN"] * 12, "held_out": [False, True] * 12}
    )
    apart = codes.separation(features, table, "diagnosis")
    assert apart["silhouette"].min() > 0.9
    for held_out, rows in apart.groupby("held_out"):
        own = table["held_out"] == held_out
        assert rows["silhouette"].mean() == pytest.approx(silhouette_score(features[own], table["diagnosis"][own]))
    alone = codes.separation(features, table.assign(held_out=[False] * 23 + [True]), "diagnosis")
    assert alone["silhouette"].isna().tolist() == [False] * 23 + [True]


def test_values_of_transfers_name_what_is_missing(profiles: tuple[Profile, Profile]) -> None:
    source, target = profiles
    elsewhere = target.model_copy(update={"name": "nowhere"})
    values, missing = collect.transfer_values({"other": target, "nowhere": elsewhere})
    assert set(values["transfer"]) == {"other"}
    assert missing == {"nowhere": ["its data"]}
    report = codes.of_report(source)
    assert {name for name, t in report.items() if t.finished} == {"autoencoder", "multitask", "code16-l1-0"}
    assert report["code16-l1-0"].folder == report["autoencoder"].folder  # the route's own width, and no penalty
    missing = collect.transfer_values({"other": target}, "blocks")[1]["other"]
    assert missing == [f"blocks0-cae-1-seed1-fold{fold}" for fold in (1, 2)]


def test_one_command_does_what_is_left(
    profiles: tuple[Profile, Profile], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_threads(monkeypatch)
    (folder / "profiles" / "source.yaml").write_text(yaml.safe_dump(SETTINGS))
    names = ["--name", "sweep", "--name", "blocks"]
    monkeypatch.setattr("sys.argv", ["deeplight", "sweep", "source", *names, "--jobs", "1"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    said = capsys.readouterr().out
    assert "pre-trainings: 2/2" in said  # residual and variational
    assert "decoders: 2/2" in said  # none of the blocks
    assert all(training.finished for training in codes.of_report(profiles[0]).values())
    assert collect.transfer_values({"other": profiles[1]}, "blocks")[1] == {}


# ---- the report's library, item by item


def command(how: str, source: Profile, folder: Path, out: Path) -> list[str]:
    """A command of the table as one that can be run on the tests' cohort."""
    root = folder / "one"
    whole = {
        "manifest": f"--bids {root} --anat T1w --subjects {root}/participants.tsv -o {out}/t1.csv",
        "prepare": f"{out}/t1.csv --store {out}/t1.store",
        "finetune": "source --variant cae-scratch --fraction 1.0",
    }
    words = {
        "DATA": str(root), "t1.csv": f"{out}/t1.csv", "t1.store": f"{out}/t1.store", "autoencoder": "source",
        "participants.tsv": f"{root}/participants.tsv", "PROFILE": "source",
        "TRAINING": str(experiment.finetuning(source, "cae-scratch", 1.0, 1).folder),
    }  # fmt: skip
    verb, *rest = how.removeprefix("deeplight ").split()
    route = rest[-1:] if rest[-2:-1] == ["--route"] else []
    filled = " ".join(words.get(word, word) for word in rest).replace("…", whole.get(verb, ""))
    return [verb, *filled.split()[: -1 if route else None], *route]


@pytest.mark.parametrize("how", [how for _, _, how in API if how.startswith("deeplight ")])
def test_every_command_of_the_table_does_its_work(
    how: str, profiles: tuple[Profile, Profile], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(monkeypatch)
    (folder / "profiles" / "source.yaml").write_text(yaml.safe_dump(SETTINGS))
    if " prepare " in f" {how} ":
        cohorts.manifest_of(profiles[0]).to_csv(tmp_path / "t1.csv", index=False)
        (tmp_path / "t1.source.json").write_text(
            json.dumps({"root": str(folder / "one"), "layout": "bids", "split_unit": "subject", "states": {"T1w": {}}})
        )
    if " evaluate " in f" {how} ":
        experiment.finetune(profiles[0], "cae-scratch", 1.0, 1)
    done = CliRunner().invoke(cli.app, command(how, profiles[0], folder, tmp_path))
    assert done.exit_code == 0, done.output
    made = {"manifest": "t1.csv", "prepare": "t1.store/index.parquet"}.get(how.split()[1])
    assert made is None or (tmp_path / made).is_file()


@pytest.mark.parametrize(
    ("how", "overrides", "which"),
    [
        ("preprocessing.mask_coverage", {"preprocessing": {"mask_coverage": 0.9}}, "data"),
        ("preprocessing.structural.z_score", {"preprocessing": {"structural": {"z_score": True}}}, "data"),
        ("routes.autoencoder.head.noise", {"routes": {"autoencoder": {"head": {"noise": 0.1}}}}, "pretraining"),
        (
            "routes.autoencoder.pretraining",
            {"routes": {"autoencoder": {"pretraining": {"weight_decay": 0.1, "l1": 1e-4, "learning_rate": 1e-2}}}},
            "pretraining",
        ),
        ("data.target", {"data": {"target": {"T1w": ["CN", "AD"]}}}, "finetuning"),
        ("finetuning.groups", {"finetuning": {"groups": [{"layers": "encoder", "from_epoch": 2}]}}, "finetuning"),
        ("finetuning.head.hidden", {"finetuning": {"head": {"hidden": 8, "pooling": "flatten"}}}, "finetuning"),
    ],
)  # fmt: skip
def test_every_setting_of_the_table_changes_what_is_computed(
    how: str, overrides: dict[str, Any], which: str, profiles: tuple[Profile, Profile], tmp_path: Path
) -> None:
    """In its store, its autoencoder, or its decoder."""
    source, brief = profiles[0], {"epochs": 2, "steps_per_epoch": 1}
    base = source.overridden({"routes": {"autoencoder": {"pretraining": brief}}, "finetuning": brief})
    base = base.overridden({"data": {"store": str(source.store)}})
    own = base.overridden(overrides)
    value: Any = own
    for part in how.split("."):
        value = getattr(value, part)
    assert value is not None
    if which == "data":
        own = own.overridden({"data": {"store": str(tmp_path / "store")}})
        before, after = experiment.prepare_data(base, 1), experiment.prepare_data(own, 1)
        assert before.identity != after.identity
        return
    if which == "pretraining":
        one, other = (experiment.pretrain(of, 1, "autoencoder") for of in (base, own))
    else:
        one, other = (experiment.finetune(of, "cae-scratch", 1.0, 1) for of in (base, own))
    weights = [load_file(training.folder / "model.safetensors") for training in (one, other)]
    same_names = weights[0].keys() == weights[1].keys()
    assert not (same_names and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]))


def called(how: str, profiles: tuple[Profile, Profile]) -> Any:
    """The result of a function or class of the table."""
    module, _, name = how.rpartition(".")
    function = getattr(importlib.import_module(f"deeplight_core.{module}"), name)
    training, store = experiment.pretraining(profiles[0], 1, "autoencoder"), open_store(profiles[0].store)
    if how == "models.HEADS":
        return {"classes", "reconstruction"} <= set(function)
    features, rows = codes.codes(training)
    examples = experiment.examples_of(training, store, training.units)
    arguments: dict[str, Any] = {
        "training.loader.Volumes": (store, examples),
        "training.loader.BatchOrder": (examples.table["file"].to_numpy(), 4, 1),
        "report.findings.people_table": (store.index, "diagnosis"),
        "data.store.open_store": (store.path,),
        "codes.codes": (training,),
        "report.plots.error_curves": ({"one": training.metrics()},),
        "report.plots.code_projections": (codes.projections(features), rows, "diagnosis"),
        "report.plots.code_histograms": ({"one": features},),
        "training.checkpoint.load_model": (training.folder,),
        "models.autoencoder.ConvEncoder": (store.shape, ConvEncoderSettings()),
        "models.autoencoder.ResidualEncoder": (store.shape, ResidualEncoderSettings()),
    }
    return function(*arguments[how])


@pytest.mark.parametrize("how", [how for _, _, how in API if importable(how)])
def test_every_function_of_the_table_can_be_called(how: str, profiles: tuple[Profile, Profile]) -> None:
    assert called(how, profiles) is not None


def test_nothing_of_the_table_is_left_out() -> None:
    settings = {"preprocessing", "routes", "finetuning", "data.target"}
    rest = [how for _, _, how in API if not how.startswith("deeplight ") and not importable(how)]
    rest = [how for how in rest if not any(how.startswith(name) for name in settings)]
    assert rest == ["notebooks/01_data.ipynb", "profiles/autoencoder.yaml"]  # run by the workflow's tests
