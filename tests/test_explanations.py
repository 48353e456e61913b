"""Explanations of small decoders on the tiny store, held against loops over single examples."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import N_FRAMES, use_threads
from scipy import stats

from deeplight_core import cli, explanations
from deeplight_core.analysis.attribution import METHODS, Method, explain
from deeplight_core.config import Profile
from deeplight_core.data.manifest import write_manifest, write_notes
from deeplight_core.data.store import Store
from deeplight_core.models import build
from deeplight_core.preparation import SimulationSettings
from deeplight_core.training.checkpoint import data_facts, load_model, save_mask, save_model

STATES = [["SOCIAL", "interaction"], ["SOCIAL", "no interaction"]]


def decoder(folder: Path, store: Store, head: str = "classes", targets: object = STATES, **training: object) -> Path:
    """A checkpoint with random weights."""
    torch.manual_seed(0)
    architecture = {
        "encoder": {"name": "cae", "shape": list(store.shape), "settings": {"widths": (4, 3)}},
        "head": {"name": head, "targets": targets, "settings": {}},
    }
    model = build(architecture)
    if head == "reconstruction":
        model.head.set_mask(store.mask[store.box].T)
    about = {"reported": ["s5", "s6"], "units": ["s1", "s2", "s3", "s4"], "fold": 0, "tasks": ["SOCIAL"]} | training
    save_model(model, folder, {"data": data_facts(store), "training": about})
    return folder


@pytest.fixture
def question(store: Store, tmp_path: Path) -> explanations.Asked:
    return explanations.asked(decoder(tmp_path / "decoder", store), store)


def test_examples_are_those_of_the_reported_split_that_are_answered_correctly(store, tmp_path, question):
    model, _ = load_model(tmp_path / "decoder")
    data = question.data
    assert set(data.examples.table["unit"]) == {"s5", "s6"}
    answers = [int(model.eval()(data.batch(np.array([i]))["volumes"]).argmax()) for i in range(len(data))]
    assert question.right.tolist() == [i for i, answer in enumerate(answers) if answer == question.labels[i]]
    assert 0 < len(question.right) < len(data)
    everybody = explanations.asked(tmp_path / "decoder", store, "all")
    assert len(set(everybody.data.examples.table["unit"])) == 6
    fold = explanations.asked(decoder(tmp_path / "fold", store, fold=2, reported=["s2", "s6"]), store)
    assert set(fold.data.examples.table["unit"]) == {"s2", "s6"}


def test_a_few_examples_are_of_every_subject_and_state(store, tmp_path, question):
    few = explanations.asked(tmp_path / "decoder", store, each=2)
    table = few.data.examples.table
    counts = table.groupby(["unit", "state"]).size()
    assert counts.tolist() == [2, 2, 2, 2]
    own = question.data.examples.table.query("unit == 's5' and state == 'interaction'")["frame"]
    assert table.query("unit == 's5' and state == 'interaction'")["frame"].tolist() == [own.iloc[0], own.iloc[-1]]
    np.testing.assert_array_equal(few.labels, [[s for _, s in STATES].index(state) for state in table["state"]])


def test_maps_are_means_over_examples_then_over_subjects(question, store):
    """Also in double precision, and where a subject has no right answer for a state."""
    lost = np.flatnonzero(
        (question.data.examples.table["unit"] == "s6") & (question.labels == question.labels[question.right[0]])
    )
    question = replace(question, right=np.setdiff1d(question.right, lost))
    method = Method(epsilon=1e-2)
    found = explanations.explained(question, method, double=True)
    inside = store.mask[store.box].T
    model = load_model(question.checkpoint)[0].double()
    single = {}
    for i in question.right:
        volume, label = question.data.batch(np.array([i]))["volumes"].double(), int(question.labels[i])
        one = explain(model, volume, torch.tensor([label]), method)
        unit = question.data.examples.table["unit"].iloc[i]
        single.setdefault((unit, question.names[label]), []).append(one.voxels[0].numpy()[inside])
        row = found.examples.iloc[list(question.right).index(i)]
        assert row["subject"] == unit
        assert row["state"] == question.names[label]
        assert row["logit"] == pytest.approx(one.logit.item())
        assert row["voxels"] == pytest.approx(single[unit, row["state"]][-1].sum())
        assert row["voxels"] + row["outside"] == pytest.approx(one.voxels.sum().item())
        assert row["biases"] == pytest.approx(one.biases.item())
        assert abs(row["residual"]) < 1e-6 * abs(row["logit"])
    of_unit = {key: np.mean(maps, axis=0) for key, maps in single.items()}
    for u, unit in enumerate(found.units):
        for s, name in enumerate(question.names):
            expected = of_unit.get((unit, name), np.full(inside.sum(), np.nan))
            np.testing.assert_allclose(found.maps[u, s], expected, rtol=1e-4, atol=1e-7)
    assert np.isnan(found.maps).any()
    for name, values in found.group().items():
        there = [of_unit[u, name] for u in found.units if (u, name) in of_unit]
        np.testing.assert_allclose(values, np.mean(there, axis=0), rtol=1e-4, atol=1e-7)


def test_a_folder_has_a_map_for_every_subject_and_the_group(question, store, tmp_path):
    found = explanations.explained(question, METHODS["gradient"])
    explanations.write(found, tmp_path / "out")
    group = found.group()
    for name, values in group.items():
        file = f"{explanations.file_name(name)}.nii.gz"
        image = nib.load(tmp_path / "out/group" / file)
        np.testing.assert_allclose(image.affine, store.affine)
        np.testing.assert_allclose(image.get_fdata()[store.mask], store.unmask(values).get_fdata()[store.mask])
        assert not image.get_fdata()[~store.mask].any()
        for unit in found.units:
            assert (tmp_path / "out/subjects" / unit / file).is_file()
    table = pd.read_csv(tmp_path / "out/conservation.csv")
    assert len(table) == len(question.right)
    places = pd.read_csv(tmp_path / "out/regions.csv")
    assert set(places["state"]) == set(group)
    top = places[places["state"] == "interaction"].iloc[0]
    values = store.unmask(group["interaction"]).get_fdata()
    peak = np.unravel_index(np.abs(values).argmax(), values.shape)
    np.testing.assert_allclose(top[["x", "y", "z"]].astype(float), (store.affine @ [*peak, 1])[:3], atol=1e-3)
    assert not (tmp_path / "out/planted.csv").exists()


def test_contrasts_are_t_tests_over_subjects(store, tmp_path):
    question = explanations.asked(decoder(tmp_path / "decoder", store), store, "all")
    found = explanations.contrast_maps(question)
    table, data = question.data.examples.table, question.data
    values = data.masked(np.arange(len(data))).float().numpy()
    for name in question.names:
        per_unit = []
        for unit in sorted(set(table["unit"])):
            means = {
                s: values[((table["unit"] == unit) & (table["state"] == s)).to_numpy()].mean(axis=0)
                for s in question.names
            }
            per_unit.append(means[name] - sum(means.values()) / len(means))
        np.testing.assert_allclose(found[name], stats.ttest_1samp(per_unit, 0).statistic, rtol=1e-3, atol=1e-4)


def test_a_linear_pattern_is_the_covariance_of_voxels_with_the_decoders_value(question, store):
    """Haufe et al. (2014) for two states, whose values are opposite: cov(x, s) / var(s), halved by the second value."""
    from sklearn.linear_model import LogisticRegression

    found = explanations.linear_patterns(question)
    index = store.index
    rows = index[index["unit"].isin(["s1", "s2", "s3", "s4"]) & (index["task"] == "SOCIAL") & (index["state"] != "")]
    x = np.concatenate(
        [store.read(f)[own["row"].tolist()].float().numpy() for f, own in rows.groupby("file", sort=False)]
    )
    y = np.concatenate([own["state"].to_numpy() for _, own in rows.groupby("file", sort=False)])
    scaled = x * 10 / (x.std() * np.sqrt(x.shape[1]))
    values = LogisticRegression(C=1.0, max_iter=1000).fit(scaled, y == "interaction").decision_function(scaled)
    expected = np.array([np.cov(column, values)[0, 1] for column in x.T]) / values.var(ddof=1) / 2
    np.testing.assert_allclose(found["interaction"], expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(found["no interaction"], -found["interaction"], rtol=1e-3, atol=1e-6)


def test_scores_are_of_the_planted_difference_between_states(question, store, tmp_path, tiny_profile: Profile):
    random = np.random.default_rng(0)
    planted = {name: random.normal(size=store.info["n_voxels"]) for name in question.names}
    (tmp_path / "planted").mkdir()
    for name, values in planted.items():
        nib.save(store.unmask(values), tmp_path / f"planted/SOCIAL_{name.replace(' ', '-')}.nii.gz")
    profile = tiny_profile.model_copy(update={
        "simulation": SimulationSettings(), "data": tiny_profile.data.model_copy(update={"root": str(tmp_path)})
    })  # fmt: skip
    maps = {name: random.normal(size=store.info["n_voxels"]) for name in question.names}
    found = explanations.planted_scores(question, profile, {"a": maps, "b": {"interaction": maps["interaction"]}})
    assert found[["way", "state"]].to_numpy().tolist() == [
        ["a", "interaction"],
        ["b", "interaction"],
        ["a", "no interaction"],
    ]
    difference = np.abs(planted["interaction"] - planted["no interaction"])
    places, size = difference >= 0.5 * difference.max(), np.abs(maps["interaction"])
    first = found.iloc[0]
    assert first["n_voxels"] == places.sum()
    assert first["mass"] == pytest.approx(size[places].sum() / size.sum())
    assert first["auc"] == pytest.approx(
        stats.mannwhitneyu(size[places], size[~places]).statistic / (places.sum() * (~places).sum())
    )
    assert explanations.planted_scores(question, tiny_profile, {"a": maps}).empty


def test_what_is_answered_is_explained_without_events(store, tmp_path):
    """The states of the events play no part, and all volumes of all tasks are asked about."""
    folder = decoder(tmp_path / "decoder", store)
    silent = replace(store, index=store.index.assign(state=""))
    question = explanations.asked(folder, silent, predicted=True)
    table = question.data.examples.table
    assert set(table["task"]) == {"EMOTION", "SOCIAL"}
    assert set(table["unit"]) == {"s5", "s6"}
    model, _ = load_model(folder)
    answers = [int(model.eval()(question.data.batch(np.array([i]))["volumes"]).argmax()) for i in range(len(table))]
    assert question.labels.tolist() == answers
    assert question.right.tolist() == list(range(len(table)))
    found = explanations.explained(question, METHODS["gradient"])
    logits = model(question.data.batch(np.arange(len(table)))["volumes"]).amax(dim=1).detach()
    np.testing.assert_allclose(found.examples["logit"], logits, rtol=1e-4)
    assert "whether correctly or not" in explanations.sentences(found)[0]


def test_random_weights_give_other_maps(question):
    table = explanations.randomised(question, METHODS["lrp-epsilon"])
    assert table["weights"].unique().tolist() == ["head", "head and upper half", "all"]
    assert set(table["state"]) <= set(question.names)
    assert (table["r"] < 0.9).all()
    before = [w.clone() for w in question.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, question.model.parameters(), strict=True))


def test_a_number_is_explained_too(store, tmp_path):
    index = store.index.assign(age=store.index["unit"].str[1:].astype(int).add(30).astype(str))
    known = replace(store, index=index)
    question = explanations.asked(decoder(tmp_path / "age", store, "numbers", ["age"]), known)
    found = explanations.explained(question, METHODS["lrp-gamma"])
    assert set(found.group()) == {"age"}
    assert len(found.examples) == len(question.data)


# ---- what cannot be explained


def test_wrong_input_is_told(store, tmp_path, question):
    with pytest.raises(ValueError, match="split must be train, validation, test or all, got 'testing'"):
        explanations.asked(tmp_path / "decoder", store, "testing")
    with pytest.raises(ValueError, match="has a head of kind reconstruction, which decides nothing"):
        explanations.asked(decoder(tmp_path / "cae", store, "reconstruction", []), store)
    with pytest.raises(ValueError, match="decodes age, iq at once; explain a decoder of one"):
        explanations.asked(decoder(tmp_path / "numbers", store, "numbers", ["age", "iq"]), store)
    with pytest.raises(ValueError, match="answers none of 36 examples correctly"):
        explanations.explained(replace(question, right=np.array([], int)), METHODS["gradient"])
    silent = replace(store, index=store.index.assign(state=""))
    with pytest.raises(
        ValueError, match=r"none of the decoder's states, SOCIAL: interaction, .*; --predicted explains"
    ):
        explanations.asked(tmp_path / "decoder", silent)
    same = replace(explanations.explained(question, METHODS["gradient"]), units=["a/b", "a b"])
    with pytest.raises(ValueError, match="some of a/b, a b have the same name in paths"):
        explanations.write(same, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("body", "body"), ("WM: 2 back", "WM-2-back"), ("../../x", "x"), ("..", "unnamed"), ("<b>", "b")],
)
def test_names_are_safe_in_paths(name, expected):
    assert explanations.file_name(name) == expected


# ---- the command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["deeplight", "explain", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_writes_maps_and_pages(store, tmp_path, monkeypatch, capsys):
    folder, output = decoder(tmp_path / "decoder", store), tmp_path / "out"
    asked = [str(folder), str(store.path), "--output", str(output), "--each", "2"]
    assert call(monkeypatch, *asked, "--method", "lrp-gamma", "--first", "flat", "--double", "--no-pages") == 0
    assert "gamma in convolutions, flat in the first one" in capsys.readouterr().out
    about = json.loads((output / "explanation.json").read_text())
    assert about["method"]["rule"] == "gamma"
    assert about["n_examples"] == 8
    assert about["largest_residual"] < 1e-6
    assert not list(output.glob("*.html"))


def test_a_manifest_and_a_run_are_prepared_as_the_decoders_data_were(store, dataset, tmp_path, monkeypatch, capsys):
    use_threads(monkeypatch)
    folder, output = decoder(tmp_path / "decoder", store), tmp_path / "out"
    save_mask(store.mask, store.affine, folder)
    rows = dataset[0].query("task == 'SOCIAL' and subject in ['s4', 's6']")
    write_manifest(rows, tmp_path / "m.csv")
    states = {"SOCIAL": {"interaction": ["mental"], "no interaction": ["rnd"]}}
    write_notes(tmp_path / "m.csv", str(dataset[1]), "hcp", "subject", states)
    common = ["-o", str(output), "--no-pages", "--method", "gradient", "--jobs", "1"]
    assert call(monkeypatch, str(folder), str(tmp_path / "m.csv"), *common) == 0
    table = pd.read_csv(output / "conservation.csv")
    assert set(table["subject"]) == {"s4", "s6"}  # whatever their split
    image = nib.load(dataset[1] / rows["image"].iloc[1])
    nib.save(image, tmp_path / "sub-x_task-rest_bold.nii.gz")
    (tmp_path / "sub-x_task-rest_bold.json").write_text('{"RepetitionTime": 2.0}')
    run = str(tmp_path / "sub-x_task-rest_bold.nii.gz")
    assert call(monkeypatch, str(folder), run, *common) == 2
    assert "--predicted explains what it answers instead" in capsys.readouterr().err
    assert call(monkeypatch, str(folder), run, *common, "--predicted") == 0
    table = pd.read_csv(output / "conservation.csv")
    assert len(table) == N_FRAMES["SOCIAL"]
    assert json.loads((output / "explanation.json").read_text())["predicted"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "."], "--data is for a CSV of `deeplight manifest`"),
        (["--method", "lime"], "--method must be one of lrp-epsilon, lrp-alpha2beta1"),
        (["--first", "zero"], "--first must be same, flat or wsquare, got 'zero'"),
        (["--first", "flat", "--method", "gradient"], "--first is for LRP, and --method is gradient"),
        (["--split", "held-out"], "split must be train, validation, test or all"),
    ],
)
def test_wrong_options_are_told_without_a_traceback(options, message, store, tmp_path, monkeypatch, capsys):
    folder = decoder(tmp_path / "decoder", store)
    assert call(monkeypatch, str(folder), str(store.path), "-o", str(tmp_path / "out"), *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_checkpoint_names_nobody_and_is_explained_all_the_same(store, tmp_path):
    folder = decoder(tmp_path / "decoder", store)
    record = json.loads((folder / "model.json").read_text())
    for name in ("reported", "units"):
        del record["training"][name]
    (folder / "model.json").write_text(json.dumps(record))
    question = explanations.asked(str(folder), store)
    assert set(question.data.examples.table["unit"]) == {"s5", "s6"}
    assert explanations.linear_patterns(question) == {}
    with pytest.raises(ValueError, match="there is no checkpoint somewhere: neither such a folder nor"):
        explanations.asked("somewhere", store)
