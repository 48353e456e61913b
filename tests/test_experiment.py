import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import N_KEPT, kill_at_step, use_threads
from safetensors.torch import load_file

from deeplight_core import cli, collect, experiment, sweeps, trainings
from deeplight_core.analysis.scores import COLUMNS, subject_scores
from deeplight_core.collect import sweep_curves, sweep_predictions, sweep_pretraining_curves, sweep_results
from deeplight_core.config import Profile
from deeplight_core.data.manifest import write_manifest
from deeplight_core.data.store import Store, open_store
from deeplight_core.experiment import (
    evaluate,
    finetune,
    finetuning,
    prepare_data,
    pretrain,
    pretraining,
)
from deeplight_core.preparation import ColumnTarget, SimulationSettings
from deeplight_core.routes import ROUTES
from deeplight_core.routes import VARIANTS as EVERY_VARIANT
from deeplight_core.system.provenance import commit
from deeplight_core.training.checkpoint import load_model, read_record
from deeplight_core.training.splits import Split, Splits

VARIANTS = ["pretrained", "scratch", "linear"]


@pytest.fixture(scope="module")
def finished(store: Store, tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything that the profile asks for is done; to be read only."""
    project = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        shutil.copytree(store.path, tiny_profile.store)
        pretrain(tiny_profile, 1)
        for variant in VARIANTS:
            finetune(tiny_profile, variant, 0.5, 1)
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test trainings."""
    copy = Path(shutil.copytree(finished, tmp_path / "project"))  # with the files' times
    monkeypatch.chdir(copy)
    return copy


def changed(profile: Profile, section: str, **fields: object) -> Profile:
    return profile.model_copy(update={section: getattr(profile, section).model_copy(update=fields)})


def rerouted(profile: Profile, part: str, **fields: object) -> Profile:
    """A profile whose supervised route has another encoder, head or pre-training."""
    own = getattr(profile.routes.supervised, part).model_copy(update=fields)
    section = profile.routes.supervised.model_copy(update={part: own})
    return changed(profile, "routes", supervised=section)


def untimed(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def times(project: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(project.rglob("*"))}


# ---- what is found, and what is another training


def test_finished_trainings_are_found(project: Path, tiny_profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(project)
    training = pretrain(tiny_profile, 1)
    assert training.finished
    for variant in VARIANTS:
        again = finetune(tiny_profile, variant, 0.5, 1)
        assert capsys.readouterr().out.endswith(
            f"finetuning {variant} 50% (2 subjects), seed 1: found in {again.folder.name}\n"
        )
    assert times(project) == before


def test_metrics_and_predictions_of_a_sweep_say_whose_they_are(project: Path, tiny_profile: Profile) -> None:
    more = changed(tiny_profile, "sweep", fractions=[0.5, 1.0])
    metrics, predictions = sweep_curves(more), sweep_predictions(more, 0.5)
    of_scratch = finetuning(more, "scratch", 0.5, 1)
    own = metrics[metrics["variant"] == "scratch"].reset_index(drop=True)
    assert set(own["training"]) == {of_scratch.folder.name}
    assert own[["fraction", "n_subjects", "seed"]].drop_duplicates().to_numpy().tolist() == [[0.5, 2, 1]]
    pd.testing.assert_frame_equal(own[list(of_scratch.metrics())], of_scratch.metrics())
    assert set(metrics["variant"]) == {"pretrained", "scratch"}
    assert predictions["variant"].unique().tolist() == VARIANTS
    assert len(predictions) == sum(len(finetuning(more, v, 0.5, 1).predictions()) for v in VARIANTS)
    pd.testing.assert_frame_equal(sweep_pretraining_curves(more), pretraining(more, 1).metrics())


def test_metrics_of_nothing_have_their_columns(project: Path, tiny_profile: Profile) -> None:
    other = changed(tiny_profile, "sweep", fractions=[1.0], seeds=[7])
    metrics = sweep_curves(tiny_profile)
    assert sweep_curves(other).empty
    assert list(sweep_curves(other)) == list(metrics)
    assert list(sweep_pretraining_curves(other)) == list(sweep_pretraining_curves(tiny_profile))
    assert sweep_pretraining_curves(other).empty
    assert sweep_predictions(other, 1.0).empty


def test_results_of_another_training_are_refused(project: Path, tiny_profile: Profile) -> None:
    own, other = (finetuning(tiny_profile, variant, 0.5, 1).folder / "scores.csv" for variant in VARIANTS[:2])
    kept = own.read_bytes()
    own.write_bytes(other.read_bytes())
    try:
        with pytest.raises(ValueError, match=f"results of variant {VARIANTS[1]}, not of {VARIANTS[0]}.*mixed up"):
            sweep_results(tiny_profile)
    finally:
        own.write_bytes(kept)


def test_adding_a_fraction_repeats_nothing(project: Path, tiny_profile: Profile) -> None:
    before = times(project)
    more = changed(tiny_profile, "sweep", fractions=[0.5, 1.0])
    results, missing = sweep_results(more)
    assert missing == [f"{v}-1-seed1" for v in VARIANTS]
    assert set(results["fraction"]) == {0.5}
    for fraction in more.sweep.fractions:
        finetune(more, "linear", fraction, 1)
    assert sweep_results(more)[1] == [f"{v}-1-seed1" for v in VARIANTS[:2]]
    after = times(project)
    new = [path.name for path in (project / "runs/tiny").iterdir() if path not in before]
    assert len(new) == 1
    assert new[0].startswith("finetuning-linear-1-seed1-")
    del before[project / "runs/tiny"]  # where the new folder is
    assert {path: after[path] for path in before} == before


_OTHER_ORDER = {"SOCIAL": {"no interaction": ["rnd"], "interaction": ["mental"]}}


def test_changed_settings_are_another_run(project: Path, tiny_profile: Profile) -> None:
    training = finetuning(tiny_profile, "scratch", 0.5, 1)
    assert training.finished
    others = [
        finetuning(changed(tiny_profile, "finetuning", epochs=3), "scratch", 0.5, 1),
        finetuning(rerouted(tiny_profile, "encoder", initialisation="glorot"), "scratch", 0.5, 1),
        finetuning(tiny_profile, "scratch", 0.5, 2),
        finetuning(tiny_profile, "scratch", 0.75, 1),
        finetuning(tiny_profile, "pretrained", 0.5, 1),
        finetuning(changed(tiny_profile, "data", target=_OTHER_ORDER), "scratch", 0.5, 1),
    ]
    assert len({other.folder for other in [training, *others]}) == 7
    store = open_store(tiny_profile.store)
    other_store = replace(store, info={**store.info, "manifest": "another"})
    splits = Splits(tiny_profile, other_store)
    assert finetuning(tiny_profile, "scratch", 0.5, 1, splits=splits).folder != training.folder
    assert pretraining(tiny_profile, 2).folder != pretraining(tiny_profile, 1).folder


def test_a_variant_has_its_own_learning_rate(project: Path, tiny_profile: Profile) -> None:
    tuned = changed(tiny_profile, "finetuning", learning_rates={"scratch": 0.5})
    assert finetuning(tuned, "scratch", 0.5, 1).settings.learning_rate == 0.5
    assert finetuning(tuned, "scratch-permuted", 0.5, 1).settings.learning_rate == 0.5
    assert finetuning(tuned, "scratch", 0.5, 1).folder != finetuning(tiny_profile, "scratch", 0.5, 1).folder
    assert finetuning(tuned, "pretrained", 0.5, 1).finished  # the other's rate is none of its business
    same = changed(tiny_profile, "finetuning", learning_rates={"scratch": tiny_profile.finetuning.learning_rate})
    assert finetuning(same, "scratch", 0.5, 1).finished


def test_some_of_the_units_are_pretrained_on(project: Path, tiny_profile: Profile) -> None:
    few, fewer = (pretraining(rerouted(tiny_profile, "pretraining", n_units=n), 1) for n in (3, 1))
    assert set(fewer.units) < set(few.units) < set(pretraining(tiny_profile, 1).units)
    assert (len(fewer.units), len(few.units)) == (1, 3)
    assert few.folder != fewer.folder
    assert few.split.reported == pretraining(tiny_profile, 1).split.reported
    with pytest.raises(ValueError, match=r"routes.supervised.pretraining.n_units is 5, there are 4 units"):
        pretraining(rerouted(tiny_profile, "pretraining", n_units=5), 1)


def test_what_does_not_matter_is_not_another_run(project: Path, tiny_profile: Profile) -> None:
    longer = changed(tiny_profile, "finetuning", epochs=3)
    assert finetuning(longer, "linear", 0.5, 1).finished
    assert pretraining(longer, 1).finished
    assert finetuning(rerouted(tiny_profile, "pretraining", epochs=3), "scratch", 0.5, 1).finished
    assert finetuning(changed(tiny_profile, "sweep", seeds=[1, 2, 3]), "pretrained", 0.5, 1).finished


def test_other_pretraining_is_another_run(project: Path, tiny_profile: Profile) -> None:
    """What a fine-tuning training is named after is the weights that it starts from."""
    training = finetuning(tiny_profile, "pretrained", 0.5, 1)
    record = training.checkpoint / "model.json"
    record.write_text(record.read_text().replace(read_record(training.checkpoint)["sha256"], "0" * 64))
    assert finetuning(tiny_profile, "pretrained", 0.5, 1).folder != training.folder


# ---- what a training does


def test_variants_see_the_same_units(project: Path, tiny_profile: Profile) -> None:
    half, all_units = ({v: finetuning(tiny_profile, v, f, 1).units for v in VARIANTS} for f in (0.5, 1.0))
    assert half["pretrained"] == half["scratch"] == half["linear"]
    assert set(half["scratch"]) < set(all_units["scratch"]) == {"s1", "s2", "s3", "s4"}
    for variant in VARIANTS:
        config = yaml.safe_load((finetuning(tiny_profile, variant, 0.5, 1).folder / "config.yaml").read_text())
        assert config["units"] == half[variant]
    metrics = finetuning(tiny_profile, "pretrained", 0.5, 1).metrics()
    assert set(metrics.loc[metrics["split"] == "train", "subject"]) == set(half["pretrained"])
    assert set(metrics.loc[metrics["split"] == "validation", "subject"]) == {"s5", "s6"}


def test_results_are_those_of_the_predictions(project: Path, tiny_profile: Profile) -> None:
    for variant in VARIANTS:
        training = finetuning(tiny_profile, variant, 0.5, 1)
        results, predictions = training.results(), training.predictions()
        assert tuple(results.columns) == COLUMNS
        key = {
            "route": "supervised", "encoder": "logistic" if variant == "linear" else "deeplight", "variant": variant,
            "fraction": 0.5, "n_subjects": 2, "seed": 1, "fold": 0, "seen_volumes": results["seen_volumes"].iloc[0],
            "seconds": results["seconds"].iloc[0],
        }  # fmt: skip
        pd.testing.assert_frame_equal(results, subject_scores(predictions, **key))
        assert results["subject"].tolist() == ["s5", "s6"] * 2
        assert results["level"].tolist() == ["volume"] * 2 + ["block"] * 2
        assert results["n"].tolist() == [N_KEPT] * 2 + [6] * 2
        assert set(results["dataset"]) == {"tiny"}
        assert set(results["measure"]) == {"accuracy"}
        assert set(results["target"]) == {"state"}
        assert (results["seconds"] >= 0).all()
        volumes = 2 * N_KEPT  # of two subjects
        assert set(results["seen_volumes"]) == {volumes if variant == "linear" else 2 * volumes}  # two epochs
        assert set(predictions["task"]) == {"SOCIAL"}
        states = ["SOCIAL: interaction", "SOCIAL: no interaction"]
        np.testing.assert_allclose(predictions[states].sum(axis=1), 1, rtol=1e-5)
    each = [finetuning(tiny_profile, v, 0.5, 1).results() for v in VARIANTS]
    pd.testing.assert_frame_equal(sweep_results(tiny_profile)[0], pd.concat(each, ignore_index=True).assign(change=""))


def test_evaluating_a_run_gives_its_results(project: Path, tiny_profile: Profile) -> None:
    for training in (pretraining(tiny_profile, 1), finetuning(tiny_profile, "pretrained", 0.5, 1)):
        pd.testing.assert_frame_equal(evaluate(tiny_profile, training.folder), training.results())
    train = evaluate(tiny_profile, training.folder, "train")
    assert sorted({*train["subject"]}) == ["s1", "s2", "s3", "s4"]


def test_evaluating_on_other_data_is_an_error_or_a_note(
    project: Path, tiny_profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    training = pretraining(tiny_profile, 1)
    path = tiny_profile.store / "store.json"
    path.write_text(path.read_text().replace('"tr_s": 2.0', '"tr_s": 0.72'))
    assert len(evaluate(tiny_profile, training.folder)) == 4
    note = f"note: other data than {training.folder.name} was trained on: tr_s 2.0 there, 0.72 here"
    assert note in capsys.readouterr().out
    path.write_text(path.read_text().replace('"crop": false', '"crop": true'))
    with pytest.raises(ValueError, match=r"trained on another grid .* shape \[7, 8, 9\] there"):
        evaluate(tiny_profile, training.folder)


def test_evaluating_states_that_the_store_does_not_have_is_an_error(project: Path, tiny_profile: Profile) -> None:
    training = pretraining(tiny_profile, 1)
    path = tiny_profile.store / "store.json"
    path.write_text(path.read_text().replace('"fear"', '"fright"'))
    with pytest.raises(ValueError, match=r"decodes states that .* does not have: EMOTION: fear"):
        evaluate(tiny_profile, training.folder)


def test_run_folder_says_everything_about_itself(project: Path, tiny_profile: Profile) -> None:
    training = finetuning(tiny_profile, "pretrained", 0.5, 1)
    assert {path.name for path in training.folder.iterdir()} == {
        "config.yaml", "environment.txt", "metrics.csv", "tensorboard", "model.safetensors", "model.json",
        "mask.nii.gz", "predictions.parquet", "scores.csv",
    }  # fmt: skip
    config = yaml.safe_load((training.folder / "config.yaml").read_text())
    assert Profile.model_validate(config["profile"]) == tiny_profile
    assert (config["variant"], config["fraction"], config["seed"]) == ("pretrained", 0.5, 1)
    assert f"torch=={torch.__version__}" in (training.folder / "environment.txt").read_text().splitlines()
    record = read_record(training.folder)
    assert record["architecture"]["head"]["targets"] == [["SOCIAL", "interaction"], ["SOCIAL", "no interaction"]]
    assert record["store"] == config["store"] == open_store(tiny_profile.store).identity
    assert record["training"]["from"] == pretraining(tiny_profile, 1).folder.name
    assert sorted(record["training"]["left_out"]) == ["head.bias", "head.weight"]
    assert not (finetuning(tiny_profile, "linear", 0.5, 1).folder / "model.json").exists()


def test_pretrained_starts_from_the_checkpoint(project: Path, tiny_profile: Profile) -> None:
    """After one step of next to nothing it still is the checkpoint, but for the output layer."""
    weights = load_model(finetune(still(tiny_profile), "pretrained", 0.5, 1).folder)[0].state_dict()
    scratch = load_model(finetune(still(tiny_profile), "scratch", 0.5, 1).folder)[0].state_dict()
    origin = load_model(pretraining(tiny_profile, 1).folder)[0].state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, (scratch if name.startswith("head.") else origin)[name], rtol=0, atol=1e-29)
    assert not torch.equal(scratch["encoder.lstm.weight_hh_l0"], origin["encoder.lstm.weight_hh_l0"])


def test_interrupted_run_becomes_the_same(
    project: Path, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = finetuning(tiny_profile, "scratch", 0.5, 1).folder
    weights, scores = load_file(whole / "model.safetensors"), finetuning(tiny_profile, "scratch", 0.5, 1).results()
    shutil.rmtree(whole)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "save_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny_profile, "scratch", 0.5, 1)
    training = finetuning(tiny_profile, "scratch", 0.5, 1)
    assert training.folder == whole
    assert not training.finished
    assert sweep_results(tiny_profile)[1] == ["scratch-0.5-seed1"]
    finetune(tiny_profile, "scratch", 0.5, 1)
    assert "going on at step 6 of 6" in capsys.readouterr().out
    assert all(torch.equal(weight, weights[name]) for name, weight in load_file(whole / "model.safetensors").items())
    pd.testing.assert_frame_equal(untimed(training.results()), untimed(scores))


# ---- controls


def test_every_variant_trains_and_is_told_apart(project: Path, tiny_profile: Profile) -> None:
    own = {name: variant for name, variant in EVERY_VARIANT.items() if variant.route == "supervised"}
    of_states = [name for name, variant in own.items() if variant.learner != "ridge"]
    trainings = {variant: finetune(tiny_profile, variant, 0.5, 1) for variant in of_states}
    assert len({training.folder for training in trainings.values()}) == len(of_states)
    for variant, training in trainings.items():
        assert set(training.results()["variant"]) == {variant}
        assert training.units == trainings["scratch"].units
        assert training.results()["n"].tolist() == [N_KEPT, N_KEPT, 6, 6]


def still(profile: Profile) -> Profile:
    """Its training changes next to nothing."""
    return changed(profile, "finetuning", epochs=1, steps_per_epoch=1, learning_rate=1e-30)


def encoder_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_model(folder)[0].state_dict()
    return {name: weight for name, weight in weights.items() if name.startswith("encoder.")}


def test_shuffled_has_the_weights_of_the_pretraining_in_another_order(project: Path, tiny_profile: Profile) -> None:
    training = finetune(still(tiny_profile), "shuffled", 0.5, 1)
    assert training.checkpoint is not None
    before = encoder_of(training.checkpoint)
    for name, after in encoder_of(training.folder).items():
        n = 4 if "lstm" in name else 1  # each gate keeps its own distribution
        for part, own in zip(after.chunk(n), before[name].chunk(n), strict=True):
            assert torch.allclose(part.flatten().sort().values, own.flatten().sort().values, atol=1e-12), name
        if before[name].unique().numel() > 2:
            assert not torch.equal(after, before[name]), name


def test_frozen_keeps_the_encoder_and_learns_the_output_layer(project: Path, tiny_profile: Profile) -> None:
    training = finetune(tiny_profile, "frozen", 0.5, 1)
    assert training.checkpoint is not None
    before, after = encoder_of(training.checkpoint), encoder_of(training.folder)
    assert all(torch.equal(after[name], before[name]) for name in before)
    untrained = load_model(finetune(still(tiny_profile), "frozen", 0.5, 1).folder)[0].state_dict()
    assert not torch.equal(load_model(training.folder)[0].state_dict()["head.weight"], untrained["head.weight"])


def test_initialisation_is_the_variants_own(project: Path, tiny_profile: Profile) -> None:
    spread = {}
    for variant in ("scratch", "scratch-he", "scratch-glorot"):
        training = finetune(still(tiny_profile), variant, 0.5, 1)
        spread[variant] = encoder_of(training.folder)["encoder.convolutions.5.weight"].std().item()
    n_in, n_out = 9 * 32, 9 * 32
    assert spread["scratch-he"] == spread["scratch"] == pytest.approx((2 / n_in) ** 0.5, rel=0.05)
    assert spread["scratch-glorot"] == pytest.approx((2 / (n_in + n_out)) ** 0.5, rel=0.05)


def test_permuted_labels_are_trained_on_but_not_tested_on(project: Path, tiny_profile: Profile) -> None:
    """On true labels the tiny data are separable; volumes held out keep their true states."""
    true, permuted = (finetune(tiny_profile, v, 1.0, 1) for v in ("linear", "linear-permuted"))
    assert true.results()["score"].min() > 0.9
    assert permuted.results()["score"].mean() < 0.8
    pd.testing.assert_series_equal(true.predictions()["state"], permuted.predictions()["state"])


def test_another_task_as_the_target(project: Path, tiny_profile: Profile) -> None:
    swapped = tiny_profile.for_target("EMOTION")
    assert swapped.data.states("source") == tiny_profile.data.states("target")
    assert swapped.folder == tiny_profile.folder
    pretrain(swapped, 1)
    training = finetune(swapped, "pretrained", 0.5, 1)
    assert set(training.results()["task"]) == {"EMOTION"}
    assert read_record(training.checkpoint)["architecture"]["head"]["targets"] == [
        ["SOCIAL", "interaction"],
        ["SOCIAL", "no interaction"],
    ]
    assert training.folder != finetuning(tiny_profile, "pretrained", 0.5, 1).folder


def test_an_unfinished_grid_says_what_is_missing(project: Path, tiny_profile: Profile) -> None:
    own = changed(tiny_profile, "controls", fractions=[0.5], seeds=[1, 2])
    results, missing = sweep_results(own, "tasks")
    assert set(results["task"]) == {"SOCIAL"}
    assert missing == ["EMOTION-pretrained-0.5-seed1", "EMOTION-scratch-0.5-seed1"]
    assert sweep_results(own, "seeds")[1] == ["pretrained-0.5-seed2", "scratch-0.5-seed2"]
    results, missing = sweep_results(own, "permutation")
    assert len(results) == 0
    assert list(results.columns) == list(sweep_results(own)[0].columns)
    assert len(missing) == 3


def test_results_say_which_settings_a_control_changed(project: Path, tiny_profile: Profile) -> None:
    own = changed(tiny_profile, "controls", fractions=[0.5], learning_rates=[0.1], tuning_manifest=Path("others.csv"))
    own = own.model_copy(update={"simulation": SimulationSettings()})
    longer = sweeps.changed(own, "x3")
    assert finetune(longer, "scratch", 0.5, 1).metrics()["epoch"].max() == 3 * own.finetuning.epochs
    results, missing = sweep_results(own, "steps")
    both = results[(results["variant"] == "scratch") & (results["fraction"] == 0.5)]
    assert both.groupby("change")["seen_volumes"].first().pipe(lambda seen: seen["x3"] / seen[""]) == 3
    assert "constant-scratch-0.5-seed1" in missing
    results, missing = sweep_results(own, "rates")  # there is no store of other people yet
    assert len(results) == 0
    assert set(missing) >= {"people-rate0.1-scratch-0.5-seed1", "people-rate0.1-pretrained-0.5-seed1"}


# ---- from the manifest, and errors


def test_prepare_data_reads_the_manifest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: tuple[pd.DataFrame, Path],
    tiny_profile: Profile,
    store: Store,
) -> None:
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    write_manifest(dataset[0], tmp_path / "data_manifest.csv")
    assert prepare_data(tiny_profile, jobs=1).identity == store.identity
    fewer = changed(tiny_profile, "data", max_units={"train": 1}).model_copy(update={"name": "fewer"})
    assert set(prepare_data(fewer, jobs=1).index["unit"]) == {"s1", "s5", "s6"}


def test_pretrained_needs_a_checkpoint(project: Path, tiny_profile: Profile) -> None:
    with pytest.raises(
        ValueError, match=r"no finished checkpoint in .*pretraining-supervised-seed7-.*; run the pre-training first"
    ):
        finetune(tiny_profile, "pretrained", 0.5, 7)
    assert not list((project / "runs/tiny").glob("pretraining-supervised-seed7-*"))
    assert finetune(tiny_profile, "scratch", 0.5, 7).finished


def test_unknown_variant_is_an_error(tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match="unknown variant 'pretraind'; known are pretrained, scratch, linear"):
        finetuning(tiny_profile, "pretraind", 0.5, 1)


@pytest.mark.parametrize("fraction", [0, 1.2, -0.1, float("nan"), "0.5"])
def test_fractions_that_are_none(tiny_profile: Profile, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction must be above 0 and at most 1, got {fraction!r}"):
        finetuning(tiny_profile, "scratch", fraction, 1)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None])
def test_seeds_that_are_none(tiny_profile: Profile, seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0, got {seed!r}"):
        finetuning(tiny_profile, "scratch", 0.5, seed)
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0, got {seed!r}"):
        pretraining(tiny_profile, seed)


# ---- routes, splits, folds, numbers


def test_unknown_routes_and_folds_are_refused(project: Path, tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match="there is no route 'supervized'; there are supervised"):
        pretraining(tiny_profile, 1, "supervized")
    for ask in (lambda: pretraining(tiny_profile, 1, fold=1), lambda: finetuning(tiny_profile, "scratch", 0.5, 1, 1)):
        with pytest.raises(ValueError, match=r"fold must be a whole number from 0 .* to 0, got 1"):
            ask()


def test_what_learns_from_labels_says_when_there_are_none(project: Path, tiny_profile: Profile) -> None:
    rest = changed(tiny_profile, "data", source={"EMOTION": {}}, target={"SOCIAL": {}})
    with pytest.raises(ValueError, match=r"route supervised learns states or numbers, and data.source names none"):
        pretraining(rest, 1)
    with pytest.raises(ValueError, match=r"variant scratch learns states or numbers, and data.target names none"):
        finetuning(rest, "scratch", 0.5, 1)
    alone = changed(tiny_profile, "data", source={})
    with pytest.raises(ValueError, match=r"no source, so there is nothing to pre-train on \(route supervised\)"):
        pretraining(alone, 1)


TRAINED = [name for name in ROUTES if getattr(Profile().routes, name).pretraining.weights is None]


@pytest.mark.parametrize("route", [name for name in TRAINED if ROUTES[name].example == "volume"])
def test_every_route_is_killed_and_resumed(
    route: str, project: Path, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its command."""
    (project / "tiny.yaml").write_text(yaml.safe_dump(tiny_profile.model_dump(mode="json")))
    command = ["deeplight", "pretrain", "tiny.yaml", "--route", route, "--seed", "3"]
    monkeypatch.setattr("sys.argv", command)

    with monkeypatch.context() as patch:
        kill_at_step(patch, 7)  # in the second epoch
        with pytest.raises(SystemExit, match="130"):
            cli.main()
    training = pretraining(tiny_profile, 3, route)
    state = training.folder / "state.safetensors"
    assert state.is_file()
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert training.finished
    assert not state.exists()
    resumed = load_file(training.folder / "model.safetensors")
    shutil.rmtree(training.folder)
    pretrain(tiny_profile, 3, route)
    unbroken = load_file(training.folder / "model.safetensors")
    assert all(torch.equal(weight, unbroken[name]) for name, weight in resumed.items())


def test_the_folder_names_the_commit(project: Path, tiny_profile: Profile) -> None:
    lines = (finetuning(tiny_profile, "linear", 0.5, 1).folder / "environment.txt").read_text().splitlines()
    assert lines[1] == f"deeplight_core: commit {commit()}"


def test_other_code_is_another_training(project: Path, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finetuning(tiny_profile, "scratch", 0.5, 1)
    assert before.finished
    monkeypatch.setattr(trainings, "code_hash", lambda: "other")
    assert not finetuning(tiny_profile, "scratch", 0.5, 1).finished
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setattr(torch, "__version__", torch.__version__ + "+cu126")  # the same, built for a GPU
    assert finetuning(tiny_profile, "scratch", 0.5, 1).folder == before.folder


def test_nothing_is_chosen_by_what_is_reported(project: Path, tiny_profile: Profile) -> None:
    for fields in ({"keep": "best"}, {"patience": 2}):
        best = changed(rerouted(tiny_profile, "pretraining", **fields), "finetuning", **fields)
        for ask in (lambda p=best: pretraining(p, 1), lambda p=best: finetuning(p, "scratch", 0.5, 1)):
            with pytest.raises(ValueError, match=r"would choose by the subjects that are reported; hold out a third"):
                ask()
        assert finetuning(best, "linear", 0.5, 1).finished  # it chooses nothing


def test_a_pretraining_is_not_chosen_by_what_its_fine_tuning_reports(project: Path, tiny_profile: Profile) -> None:
    """The test subject lacks the target, so fine-tuning reports the validation subject."""
    with_split(tiny_profile.store, {"s6": "test"})
    best = rerouted(tiny_profile, "pretraining", keep="best")
    assert not pretraining(best, 1).finished
    path = tiny_profile.store / "index.parquet"
    index = pd.read_parquet(path)
    index[~((index["unit"] == "s6") & (index["task"] == "SOCIAL"))].to_parquet(path)
    with pytest.raises(ValueError, match="would choose by the subjects that are reported"):
        pretraining(best, 1)


def with_split(path: Path, units: dict[str, str]) -> None:
    """Put units of a store into other splits."""
    index = pd.read_parquet(path / "index.parquet")
    index["split"] = index["unit"].map(units).fillna(index["split"])
    index.to_parquet(path / "index.parquet")


def test_a_third_split_is_reported_and_the_second_chooses(project: Path, tiny_profile: Profile) -> None:
    with_split(tiny_profile.store, {"s6": "test"})
    best = changed(tiny_profile, "finetuning", keep="best")
    training = finetune(best, "scratch", 1.0, 1)
    assert training.split == Split(["s1", "s2", "s3", "s4"], ["s5"], ["s6"])
    assert set(training.results()["subject"]) == {"s6"}
    metrics = training.metrics()
    assert set(metrics.loc[metrics["split"] == "validation", "subject"]) == {"s5"}
    pd.testing.assert_frame_equal(evaluate(best, training.folder), training.results())
    assert set(evaluate(best, training.folder, "validation")["subject"]) == {"s5"}


def test_a_sweep_opens_its_store_once(project: Path, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"open": 0, "select": 0}
    opened, selected = collect.open_store, experiment.learnt_from.of_states

    def counted_open(path: Path) -> Store:
        calls["open"] += 1
        return opened(path)

    def counted_select(*given: object, **named: object) -> object:
        calls["select"] += 1
        return selected(*given, **named)

    monkeypatch.setattr(collect, "open_store", counted_open)
    monkeypatch.setattr(experiment.learnt_from, "of_states", counted_select)
    wide = changed(tiny_profile, "sweep", fractions=[0.25, 0.5, 0.75, 1.0], seeds=[1, 2, 3])
    results, missing = sweep_results(wide)
    assert len(missing) == 4 * 3 * 3 - 3
    assert len(results) == 3 * 4
    assert calls == {"open": 1, "select": 2}  # once for the source, once for the target


@pytest.fixture
def folded(project: Path, tiny_profile: Profile) -> Profile:
    """All six subjects are divided into three folds, twice."""
    return changed(tiny_profile, "sweep", variants=["pretrained", "linear"], fractions=[1.0], folds=3, repeats=2)


def test_folds_hold_out_every_unit_once_and_nobody_is_pretrained_on(folded: Profile) -> None:
    held_out = []
    for fold in range(1, 7):
        pretrain(folded, 1, fold=fold)
        training, before = finetuning(folded, "pretrained", 1.0, 1, fold), pretraining(folded, 1, fold=fold)
        assert training.split.watched == training.split.reported == before.split.reported
        assert {*training.units} == {*before.units} == {f"s{i}" for i in range(1, 7)} - {*training.split.reported}
        held_out += [training.split.reported]
    for repeat in (held_out[:3], held_out[3:]):
        assert sorted(unit for fold in repeat for unit in fold) == [f"s{i}" for i in range(1, 7)]
    assert held_out[:3] != held_out[3:]
    training = finetune(folded, "linear", 1.0, 1, 2)
    assert "fold2" in training.folder.name
    assert set(training.results()["fold"]) == {2}
    assert set(training.results()["subject"]) == {*training.split.reported}
    assert set(training.results()["n_subjects"]) == {4}
    results, missing = sweep_results(folded)
    assert set(results["fold"]) == {2}
    assert len(missing) == 11


def test_families_of_a_fold_are_not_pretrained_on(folded: Profile) -> None:
    """Also who has no data of the target."""
    path = folded.store / "index.parquet"
    index = pd.read_parquet(path)
    index["family"] = index["unit"].map({"s3": "f", "s4": "f"}).fillna("")
    index[~((index["unit"] == "s4") & (index["task"] == "SOCIAL"))].to_parquet(path)
    for fold in range(1, 7):
        held_out = finetuning(folded, "linear", 1.0, 1, fold).split.reported
        assert "s4" not in held_out
        assert ("s4" in pretraining(folded, 1, fold=fold).units) == ("s3" not in held_out)


def test_a_decoder_of_a_fold_is_evaluated_on_what_the_fold_held_out(folded: Profile) -> None:
    pretrain(folded, 1, fold=1)
    training = finetune(folded, "pretrained", 1.0, 1, 1)
    pd.testing.assert_frame_equal(evaluate(folded, training.folder), training.results())
    assert set(evaluate(folded, training.folder, "validation")["subject"]) == {"s5", "s6"}  # if that is asked for


def test_statistics_of_all_training_images_are_not_for_folds(folded: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "statistics", lambda self: (0, 1))
    with pytest.raises(
        ValueError, match=r"not made anew for each fold, .* set preprocessing.structural.z_score to false"
    ):
        finetuning(folded, "linear", 1.0, 1, 1)


def test_a_split_for_tests_is_in_no_fold(folded: Profile) -> None:
    with_split(folded.store, {"s6": "test"})
    for fold in range(1, 7):
        split = finetuning(folded, "linear", 1.0, 1, fold).split
        assert "s6" not in {*split.train, *split.reported}


def test_nothing_is_chosen_on_a_fold(folded: Profile) -> None:
    with_split(folded.store, {"s6": "test"})
    best = changed(folded, "finetuning", keep="best")
    assert not finetuning(best, "scratch", 1.0, 1).finished  # the validation split may choose
    with pytest.raises(ValueError, match="fold 1: keep: best and patience would choose by the subjects"):
        finetuning(best, "scratch", 1.0, 1, 1)


@pytest.fixture
def aged(project: Path, tiny_profile: Profile) -> Profile:
    """The target is the subjects' age, which is not known of one."""
    path = tiny_profile.store / "index.parquet"
    index = pd.read_parquet(path)
    ages = {"s1": "20", "s2": "31.5", "s3": "n/a", "s4": "60", "s5": "45", "s6": "25"}
    index.assign(age=index["unit"].map(ages)).to_parquet(path)
    return changed(tiny_profile, "data", target=ColumnTarget(column=["age"], tasks=["SOCIAL"]))


@pytest.mark.parametrize("variant", ["pretrained", "scratch", "frozen", "ridge"])
def test_a_number_is_decoded_in_its_own_unit(aged: Profile, variant: str) -> None:
    training = finetune(aged, variant, 1.0, 1)
    assert training.units == ["s1", "s2", "s4"]  # an age is needed to learn from
    results, predictions = training.results(), training.predictions()
    assert set(results["measure"]) == {"absolute_error"}
    assert set(results["target"]) == {"age"}
    for row in results[results["level"] == "volume"].itertuples():
        own = predictions[predictions["subject"] == row.subject]
        assert set(own["true age"]) == {45.0 if row.subject == "s5" else 25.0}
        assert row.score == pytest.approx((own["predicted age"] - own["true age"]).abs().mean(), rel=1e-5)
    assert predictions["predicted age"].between(-50, 150).all()
    if variant != "ridge":
        head = load_model(training.folder)[0].head
        assert head.mean.item() == pytest.approx(np.mean([20, 31.5, 60]))
        assert head.sd.item() == pytest.approx(np.std([20, 31.5, 60], ddof=1))
        assert set(training.metrics()["measure"]) == {"absolute_error"}
        pd.testing.assert_frame_equal(evaluate(aged, training.folder), results)


def test_learners_of_states_do_not_decode_numbers(aged: Profile, tiny_profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"the target is numbers, and variant svm \(linear SVM\) decodes states"):
        finetuning(aged, "svm", 1.0, 1)
    with pytest.raises(ValueError, match=r"the target is states, and variant ridge .* decodes numbers"):
        finetuning(tiny_profile, "ridge", 1.0, 1)
