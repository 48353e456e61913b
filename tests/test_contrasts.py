"""The routes of temporal contrast, from a run without any event to a decoder of volumes or clips."""

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import N_FRAMES, changed, page_of, use_threads
from pydantic import ValidationError

from deeplight_core import contrasts, experiment
from deeplight_core.config import Profile
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import open_store
from deeplight_core.sweeps import changed as changed_by
from deeplight_core.sweeps import planned
from deeplight_core.training.checkpoint import read_record
from deeplight_core.training.loader import BatchOrder, Volumes

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}
SMALL = {"widths": (2, 3, 4, 4, 4, 6), "features": 8}


@pytest.fixture
def profile(
    dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """Contrast on a task without any event, decoders of another; the store keeps all volumes."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    window = {"length_s": 4, "gap_s": 2, "step_s": 4, "frames": 2}
    made = tiny_profile.overridden(
        {
            "name": "contrast",
            "preprocessing": {"keep": "all"},
            "data": {"source": {"EMOTION": {}}},
            "routes": {
                "contrast": {"head": {"units": 4}, "example": window, "pretraining": TRAINING},
                "clip_contrast": {
                    "encoder": {**SMALL, "frames": 2}, "head": {"units": 4}, "example": window, "pretraining": TRAINING,
                },
                "clip_supervised": {"encoder": {**SMALL, "frames": 2}},
            },
        }
    )  # fmt: skip
    manifest = dataset[0].assign(events=dataset[0]["events"].where(dataset[0]["task"] != "EMOTION", ""))
    prepare(manifest, made, jobs=1)
    return made


def with_clips(profile: Profile, **other: Any) -> Profile:
    return profile.overridden({"finetuning": {"clip": {"length_s": 4, "step_s": 2, **other}}})


def test_contrast_pretrains_without_labels_and_decoders_start_from_it(profile: Profile) -> None:
    pretrained = experiment.pretrain(profile, 1, "contrast")
    n_windows = -(-(N_FRAMES["EMOTION"] - 3 * 2 - 2 * 1 + 1) // 2)  # of a run, every second one
    metrics = pretrained.metrics()
    assert set(metrics["measure"]) == {"contrast_accuracy"}
    assert set(metrics.loc[metrics["split"] == "train", "n"]) == {n_windows}
    assert set(pretrained.results()["seen_volumes"]) == {2 * 4 * n_windows * 6}
    quality = read_record(pretrained.folder)["contrast"]
    assert 0 <= quality["alignment"] <= 4
    assert quality["uniformity"] <= 0
    for variant in ("contrast", "contrast-frozen", "random-frozen"):
        results = experiment.finetune(profile, variant, 1.0, 1).results()
        assert set(results["measure"]) == {"accuracy"}
        assert set(results["level"]) == {"volume", "block"}
    start = experiment.finetuning(profile, "contrast", 1.0, 1).checkpoint
    assert start == pretrained.folder
    asked = profile.overridden({"controls": {"shortcuts": ["order"]}, "sweep": {"fractions": [1.0]}})
    found = contrasts.of_controls(asked).set_index("change")
    assert found.index.tolist() == ["", "random"]
    assert found.loc["random", ["contrast", "shortcut"]].isna().all()
    untrained = results.query("level == 'volume'").groupby("subject")["score"].mean().mean()
    assert found.loc["random", "probe"] == pytest.approx(untrained)


def test_the_papers_claims_have_a_page_with_and_without_trainings(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, no_window: None
) -> None:
    few = profile.overridden({"sweep": {"variants": ["contrast", "scratch"], "fractions": [0.5]}})
    empty = page_of("07_claims", few, monkeypatch)
    assert "2 of the 2 trainings needed here have not been run" in empty
    assert "No claim can be tested yet.** 7 claims cannot be tested here." in empty
    experiment.train_all([few], jobs=1)
    page = page_of("07_claims", few, monkeypatch)
    assert "of held-out neighbours beyond the shortcut" in page
    assert " of 2.** 5 claims cannot be tested here." in page
    assert "of 2 at most" in page
    table = pd.read_csv(few.folder / "claims.csv").set_index("quantity")
    assert len(table) == 7
    assert (table["verdict"] == "cannot be tested here").sum() == 5


def test_decoders_of_clips_are_compared_by_block(profile: Profile) -> None:
    """The task's blocks keep three volumes each: two clips of two."""
    of_clips = with_clips(profile)
    experiment.pretrain(of_clips, 1, "clip_contrast")
    experiment.pretrain(of_clips, 1, "contrast")
    for variant in ("clip-contrast", "clip-scratch", "contrast", "linear"):
        results = experiment.finetune(of_clips, variant, 1.0, 1).results()
        n = results.groupby("level")["n"].unique().map(list).to_dict()
        assert n == {"volume": [12], "block": [6]}, variant
    of_volumes = experiment.finetuning(profile, "linear", 1.0, 1)
    assert of_volumes.folder != experiment.finetuning(of_clips, "linear", 1.0, 1).folder


def test_a_collapse_is_said(profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    still = profile.overridden({"routes": {"contrast": {"pretraining": {"learning_rate": 1e-12}}}})
    random = experiment.pretrain(still, 1, "contrast")
    assert ("collapsed" in capsys.readouterr().out) == (read_record(random.folder)["contrast"]["cosine"] >= 0.98)
    wide = profile.overridden({"routes": {"contrast": {"pretraining": {"learning_rate": 10.0, "weight_decay": 0.09}}}})
    collapsed = experiment.pretrain(wide, 1, "contrast")
    assert read_record(collapsed.folder)["contrast"]["cosine"] > 0.98
    assert "collapsed: any two windows look the same" in capsys.readouterr().out


def test_runs_that_are_too_short_are_counted(
    profile: Profile, dataset: tuple[pd.DataFrame, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """44 frames of one task fit three windows of 14, 40 of the other do not."""
    both = profile.overridden(
        {"data": {"source": {"EMOTION": {}, "SOCIAL": {}}, "target": {}},
         "routes": {"contrast": {"example": {"length_s": 28, "gap_s": 0}}}}
    )  # fmt: skip
    experiment.pretrain(both, 1, "contrast")
    said = capsys.readouterr().out
    assert "4 run(s) are too short and left out: runs/sub-s1_task-EMOTION_run-LR.safetensors, " in said
    longer = both.overridden({"routes": {"contrast": {"example": {"length_s": 30}}}})
    with pytest.raises(ValueError, match="no run is long enough for a window of 3 × 15 frames, 0 apart"):
        experiment.pretrain(longer, 1, "contrast")


def test_a_store_of_labelled_volumes_is_refused(
    profile: Profile, dataset: tuple[pd.DataFrame, Path], tmp_path: Path
) -> None:
    labelled = changed(profile, store=tmp_path / "labelled", keep="labelled")
    labelled = labelled.overridden({"data": {"source": {"EMOTION": ["fear", "neutral"]}}})
    prepare(dataset[0], labelled, jobs=1)
    with pytest.raises(ValueError, match=r"keeps labelled volumes only; set preprocessing\.keep: all"):
        experiment.pretrain(labelled, 1, "contrast")


@pytest.mark.parametrize(
    ("route", "settings", "message"),
    [
        ("contrast", {"head": {"negatives": "batch"}, "pretraining": {"batch_size": 1}}, "needs a batch_size of at"),
        ("clip_contrast", {"example": {"frames": 3}}, "takes clips of 20 frames, windows have example.frames 3"),
        ("contrast", {"example": {"length_s": -1}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(route: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Profile.model_validate(yaml.safe_load(yaml.safe_dump({"routes": {route: settings}})))


def test_windows_shorter_than_their_frames_are_refused(profile: Profile) -> None:
    short = profile.overridden({"routes": {"contrast": {"example": {"length_s": 2}}}})
    with pytest.raises(ValueError, match=r"length_s 2 is 1 frame\(s\) at a TR of 2 s, and 2 are to be encoded"):
        experiment.pretrain(short, 1, "contrast")


def test_clips_of_other_lengths_than_the_encoder_takes_are_refused(profile: Profile) -> None:
    with pytest.raises(ValueError, match="encoder clip takes clips of 2 frames, got clips of 3 frames"):
        experiment.finetune(with_clips(profile, length_s=6), "clip-scratch", 1.0, 1)
    with pytest.raises(ValueError, match="encoder clip takes clips of 2 frames, got single volumes"):
        experiment.finetune(profile, "clip-scratch", 1.0, 1)


def test_controls_change_where_windows_come_from(profile: Profile) -> None:
    asked = profile.overridden(
        {"controls": {"shortcuts": ["order", "run", "drift"]}, "sweep": {"fractions": [1.0], "variants": ["contrast"]}}
    )
    cells = planned(asked, "shortcuts")
    assert [cell.change for cell in cells] == ["", "shortcut-order", "shortcut-run", "shortcut-drift"]
    assert {cell.variant for cell in cells} == {"contrast-frozen"}
    drift = changed_by(asked, "shortcut-drift")
    assert (drift.preprocessing.detrend, drift.preprocessing.high_pass_hz) == (False, None)
    assert drift.store != asked.store
    assert drift.data_root == asked.data_root


def test_what_the_shortcut_tells_is_computed_from_the_windows(profile: Profile) -> None:
    training = experiment.pretrain(profile, 1, "contrast")
    found = contrasts.contrast_scores(training)
    assert set(found["way"]) == {"learnt", "shortcut", "voxels"}
    assert found["score"].between(0, 1).all()
    store = open_store(profile.store)
    chosen = experiment.examples_of(training, store, training.split.reported)
    volumes = Volumes(store, chosen).masked(np.arange(len(chosen))).double().numpy()  # (N, 3, L, V)
    closer = []
    for windows in volumes:
        beginning, middle, end = windows.mean(axis=1)
        similar = [end @ other / np.linalg.norm(other) for other in (beginning, middle)]
        closer.append(similar[1] > similar[0])
    expected = pd.Series(closer).groupby(chosen.table["unit"]).mean()
    own = found[found["way"] == "voxels"].set_index("subject")["score"]
    assert own.to_dict() == pytest.approx(expected.to_dict())
    learnt = found[found["way"] == "learnt"].set_index("subject")["score"]
    assert learnt.to_dict() == pytest.approx(training.results().set_index("subject")["score"].to_dict())
    n_train, n_reported, tr_s = contrasts.n_series(training)
    assert (n_reported, tr_s) == (len(chosen), 2.0)
    assert n_train == 2 * n_reported


def test_decoders_see_one_network_alone(profile: Profile) -> None:
    store = open_store(profile.store)
    numbers = np.ones(store.mask.shape, np.float32)
    numbers[3:] = 2
    nib.save(nib.Nifti1Image(numbers, store.affine), "atlas.nii.gz")
    Path("atlas.tsv").write_text("index\tname\n1\tLeft part\n2\tRight\n", encoding="utf-8")
    atlas = {"image": "atlas.nii.gz", "labels": "atlas.tsv", "keep": ["Left part", "Right"]}
    asked = profile.overridden(
        {"controls": {"networks": atlas}, "sweep": {"fractions": [1.0], "variants": ["contrast", "linear"]}}
    )
    cells = planned(asked, "networks")
    assert [c.change for c in cells if c.variant == "linear"] == ["", "network-Left_part", "network-Right"]
    experiment.train_all([asked], ["networks"], jobs=1)
    results = contrasts.of_networks(asked)
    assert set(results["network"]) == {"", "Left part", "Right"}
    assert len(results.groupby(["variant", "network"])) == 6
    means = {"Left part": 0.25, "Right": 0.75}
    values = contrasts.network_map(asked, means).get_fdata()
    assert values[0].mean() == 0.25
    assert values[-1].mean() == 0.75
    alone = changed_by(asked, "network-Right")
    trained = experiment.finetuning(alone, "linear", 1.0, 1)
    Path("atlas.tsv").write_text("index\tname\n2\tLeft part\n1\tRight\n", encoding="utf-8")
    assert experiment.finetuning(alone, "linear", 1.0, 1).folder != trained.folder  # another content


def test_a_decoder_of_clips_of_one_network_is_evaluated_on_such(profile: Profile) -> None:
    store = open_store(profile.store)
    nib.save(nib.Nifti1Image(np.ones(store.mask.shape, np.float32), store.affine), "atlas.nii.gz")
    Path("atlas.tsv").write_text("index\tname\n1\tAll\n", encoding="utf-8")
    asked = with_clips(profile).overridden(
        {"finetuning": {"atlas": {"image": "atlas.nii.gz", "labels": "atlas.tsv", "keep": ["All"]}}}
    )
    trained = experiment.finetune(asked, "clip-scratch", 1.0, 1)
    again = experiment.evaluate(asked, trained.folder)
    columns = ["subject", "level", "score", "n"]
    pd.testing.assert_frame_equal(again[columns], trained.results()[columns], check_dtype=False)


@pytest.mark.parametrize("by_run", [False, True])
def test_series_are_streamed_as_they_are_kept_in_memory(profile: Profile, by_run: bool) -> None:
    training = experiment.pretraining(profile, 1, "contrast")
    store = open_store(profile.store)
    series = experiment.examples_of(training, store, training.units)
    order = BatchOrder(series.table["file"].to_numpy(), 8, 1, shuffled_runs=2 if by_run else None)

    def batches(in_memory: bool) -> list[torch.Tensor]:
        data = Volumes(store, series, in_memory=in_memory, by_run=by_run)
        return [batch["volumes"] for _, batch in data.batches(order[step] for step in range(6))]

    streamed, kept = batches(False), batches(True)
    assert [volumes.shape[1:3] for volumes in kept] == [(3, 2)] * 6
    assert all(torch.equal(one, other) for one, other in zip(streamed, kept, strict=True))


def test_a_run_without_signal_is_refused(profile: Profile, dataset: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    shutil.copytree(dataset[1], tmp_path / "spoilt")
    image = nib.load(path := tmp_path / "spoilt" / dataset[0]["image"][0])
    nib.save(nib.Nifti1Image(np.full(image.shape, 100, np.float32), image.affine), path)
    spoilt = profile.model_copy(
        update={"data": profile.data.model_copy(update={"root": str(tmp_path / "spoilt"), "store": tmp_path / "store"})}
    )
    with pytest.raises(ValueError, match=rf"{path.name}: no voxel varies over time"):
        prepare(dataset[0], spoilt, jobs=1)


def test_regions_whose_names_differ_in_signs_only_are_refused(profile: Profile) -> None:
    with pytest.raises(ValueError, match="A-b and another region differ in signs only"):
        profile.overridden({"controls": {"networks": {"image": "a", "labels": "b", "keep": ["A-b", "A b"]}}})
