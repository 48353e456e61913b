"""What decoders see of two groups of people, on the tiny dataset: held against loops over people and volumes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SUBJECTS, Dataset, use_threads

from deeplight_core import experiment, groups
from deeplight_core.analysis.attribution import METHODS
from deeplight_core.config import Profile
from deeplight_core.data.manifest import write_manifest
from deeplight_core.data.store import Store, open_store
from deeplight_core.explanations import asked, explained
from deeplight_core.models import build
from deeplight_core.report.study import study_page
from deeplight_core.training.checkpoint import data_facts, load_model, save_model
from deeplight_core.training.splits import Splits

STATES = ["interaction", "no interaction"]
PATIENTS = {"s2", "s3", "s6"}


def checkpoint_of_others(folder: Path, store: Store) -> None:
    """Random weights, which nobody was trained on."""
    torch.manual_seed(0)
    encoder = {"name": "cae", "shape": list(store.shape), "settings": {"widths": (4, 3)}}
    model = build({"encoder": encoder, "head": {"name": "numbers", "targets": ["age"], "settings": {}}})
    save_model(model, folder, {"data": data_facts(store), "training": {"route": "autoencoder"}})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, tiny_profile: Profile) -> Profile:
    """Six people, three of them patients; decoders from a checkpoint in two folds."""
    folder = tmp_path_factory.mktemp("groups")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_threads(patch)
        table = dataset[0].assign(group=["patient" if s in PATIENTS else "control" for s in dataset[0]["subject"]])
        write_manifest(table, folder / "data_manifest.csv")
        checkpoint_of_others(folder / "given", experiment.prepare_data(tiny_profile, jobs=1))
        own = {
            "checkpoint": str(folder / "given"), "sweep": {"folds": 2, "variants": ["pretrained"], "fractions": [1.0]},
            "finetuning": {"epochs": 1}, "controls": {"groups": {"column": "group", "names": ["control", "patient"]}},
        }  # fmt: skip
        profile = tiny_profile.overridden(own)
        for fold in (1, 2):
            experiment.finetune(profile, "pretrained", 1.0, 1, fold)
    return profile.model_copy(update={"data": profile.data.model_copy(update={"store": folder / "runs/tiny/store"})})


@pytest.fixture(autouse=True)
def at_home(study: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.store.parents[2])


@pytest.fixture(scope="module")
def people(study: Profile) -> groups.People:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study.store.parents[2])
        return groups.seen_of_people(study, each=3)


def test_everybodys_vectors_are_means_over_volumes_of_each_state(study: Profile, people: groups.People) -> None:
    assert people.table["unit"].tolist() == [*SUBJECTS]
    assert {*people.table["unit"][people.second]} == PATIENTS
    store = open_store(study.store)
    encoder = load_model(study.checkpoint or "")[0].encoder.eval()
    for n, unit in ((0, "s1"), (5, "s6")):
        for s, state in enumerate(STATES):
            rows = store.index[(store.index["unit"] == unit) & (store.index["state"] == state)]
            volumes = store.read(rows["file"].iloc[0])[rows["row"].tolist()].float()
            np.testing.assert_allclose(people.vectors["voxels"][n, s], volumes.mean(dim=0), rtol=1e-4, atol=1e-5)
            boxes = torch.zeros(len(volumes), *store.mask.T.shape)
            boxes[:, store.mask.T] = volumes
            expected = encoder(boxes[(slice(None), *store.box[::-1])]).flatten(1).mean(dim=0).detach()
            np.testing.assert_allclose(people.vectors["features"][n, s], expected, rtol=1e-3, atol=1e-5)


def test_relevance_is_of_the_decoder_that_did_not_see_the_person(study: Profile, people: groups.People) -> None:
    """Of the right answers, whether they were given or not."""
    store = open_store(study.store)
    for fold in (1, 2):
        training = experiment.finetuning(study, "pretrained", 1.0, 1, fold)
        reported = training.split.reported
        assert not {*reported} & {*training.units}
        question = asked(training.folder, store, each=3)
        found = explained(replace(question, right=np.arange(len(question.data))), METHODS["lrp-epsilon"])
        assert found.units == reported
        own = people.table["unit"].isin(reported).to_numpy()
        assert people.table["fold"][own].tolist() == [fold] * 3
        differences = found.maps - found.maps.mean(axis=0)
        expected = differences / np.sqrt(np.mean(differences**2))
        np.testing.assert_allclose(people.vectors["relevance"][own], expected, rtol=1e-3, atol=1e-4)


def test_folds_have_the_groups_in_proportion(study: Profile) -> None:
    store = open_store(study.store)
    for seed in range(30):
        splits = Splits(study.overridden({"data": {"split_seed": seed}}), store)
        assert sorted(len(PATIENTS & {*splits.of("target", fold).reported}) for fold in (1, 2)) == [1, 2]


def test_the_report_tells_the_groups_apart(study: Profile) -> None:
    folders = [experiment.finetuning(study, "pretrained", 1.0, 1, fold).folder for fold in (1, 2)]
    shown = study_page(folders, more=groups.report_parts(folders[0]))
    for said in ("Patient or control?", "of 6", "The interval is the message", "relevance to the right answers"):
        assert said in shown
    assert groups.report_parts(Path("nowhere")) == []


def test_wrong_groups_are_told(study: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(column: str, *names: str) -> Profile:
        return study.overridden({"controls": {"groups": {"column": column, "names": names}}})

    with pytest.raises(ValueError, match="has no column diagnosis; add it: `deeplight manifest"):
        groups.seen_of_people(named("diagnosis", "a", "b"))
    with pytest.raises(ValueError, match="some people's group is patient, not control or healthy"):
        groups.seen_of_people(named("group", "control", "healthy"))
    with pytest.raises(ValueError, match=r"names no groups; set controls.groups"):
        groups.seen_of_people(study.overridden({"controls": {"groups": None}}))
    store = open_store(Path(shutil.copytree(study.store, tmp_path / "store")))
    index = store.index.copy()
    index.loc[(index["unit"] == "s4") & (index["state"] == STATES[0]), "state"] = ""
    monkeypatch.setattr(groups, "open_store", lambda path: replace(store, index=index))
    with pytest.raises(ValueError, match="s4 lack volumes of a state"):
        groups.seen_of_people(study)
