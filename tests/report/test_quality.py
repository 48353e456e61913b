from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import N_FRAMES, N_KEPT, ONSETS_S, TR_S, Dataset

from deeplight_core.config import Profile
from deeplight_core.data.manifest import run_key
from deeplight_core.data.simulate import load_anatomy, planted_maps
from deeplight_core.data.store import Store
from deeplight_core.preparation import SimulationSettings
from deeplight_core.report import quality

STATES = [("SOCIAL", "no interaction"), ("SOCIAL", "interaction")]


def test_a_design_is_that_of_the_first_training_run(dataset: Dataset, tiny_profile: Profile, store: Store) -> None:
    manifest = dataset[0].iloc[::-1]  # those that are held out come first
    found = quality.designs(tiny_profile, manifest)
    assert set(found) == {"SOCIAL", "EMOTION"}
    for task, design in found.items():
        assert design.blocks["onset"].tolist() == list(ONSETS_S)
        assert (design.n_volumes, design.tr_s, design.n_empty) == (N_FRAMES[task], TR_S, 0)
        stored = store.index[(store.index["task"] == task) & (store.index["subject"] == "s4")]
        assert len(stored) == N_KEPT
        assert design.labelled_s.tolist() == stored["onset_s"].tolist()


def test_labelled_volumes_are_the_same_if_all_are_kept(dataset: Dataset, tiny_profile: Profile) -> None:
    kept = tiny_profile.preprocessing.model_copy(update={"keep": "all", "skip_s": 60.0})
    found = quality.designs(tiny_profile.model_copy(update={"preprocessing": kept}), dataset[0])
    assert [(len(design.labelled_s), design.n_empty) for design in found.values()] == [(0, len(ONSETS_S))] * 2


def test_structural_images_have_no_design(dataset: Dataset, tiny_profile: Profile) -> None:
    assert quality.designs(tiny_profile, dataset[0].assign(tr_s=np.nan, events="", n_volumes=1)) == {}


def test_maps_are_drawn_on_the_template_or_on_the_first_runs_mean(dataset: Dataset, tiny_profile: Profile) -> None:
    manifest, root = dataset
    assert quality.background(tiny_profile, manifest) is None
    bids = tiny_profile.data.model_copy(update={"layout": "bids"})
    mean = quality.background(tiny_profile.model_copy(update={"data": bids}), manifest[1:])
    expected = nib.load(root / manifest["image"].iloc[1]).get_fdata().mean(axis=3)
    np.testing.assert_allclose(mean.get_fdata(), expected, rtol=1e-5)


@pytest.mark.parametrize("at_a_time", [256, 7])
def test_contrasts_are_means_of_training_volumes(store: Store, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(quality, "_VOLUMES_AT_A_TIME", at_a_time)
    volumes = np.concatenate([store.read(file).float().numpy() for file in store.runs["file"]])
    rows = store.index.reset_index(drop=True)
    target = ((rows["split"] == "train") & (rows["task"] == "SOCIAL")).to_numpy()
    found = quality.state_contrasts(store, STATES)
    assert list(found) == ["no interaction", "interaction"]
    for state, image in found.items():
        mean = volumes[target & (rows["state"] == state).to_numpy()].mean(axis=0) - volumes[target].mean(axis=0)
        np.testing.assert_allclose(image.get_fdata().T[store.mask.T], mean, atol=1e-5)
    assert quality.state_contrasts(store, []) == {}


def test_states_of_several_tasks_are_named_with_their_task(store: Store) -> None:
    assert list(quality.state_contrasts(store, [*STATES[:1], ("EMOTION", "fear")])) == [
        "SOCIAL: no interaction",
        "EMOTION: fear",
    ]


def test_planted_contrasts_are_the_simulations_maps(
    simulated: tuple[pd.DataFrame, Path, SimulationSettings], store: Store, tiny_profile: Profile
) -> None:
    _, root, settings = simulated
    anatomy = load_anatomy(10)
    inside = Store(store.path, store.info, anatomy.mask, anatomy.affine, store.index, store.runs)
    data = tiny_profile.data.model_copy(update={"root": str(root)})
    profile = tiny_profile.model_copy(update={"data": data, "simulation": settings})
    truth = planted_maps("SOCIAL", anatomy, settings.seed)
    found = quality.planted_contrasts(profile, inside, STATES)
    half = (truth["interaction"] - truth["no interaction"]) / 2
    np.testing.assert_allclose(found["interaction"].get_fdata().T[anatomy.mask.T], half, atol=1e-6)
    np.testing.assert_allclose(found["no interaction"].get_fdata().T[anatomy.mask.T], -half, atol=1e-6)
    assert quality.planted_contrasts(profile, inside, [("SOCIAL", "a state of one's own")]) == {}
    assert quality.planted_contrasts(profile, inside, []) == {}
    assert quality.planted_contrasts(profile.model_copy(update={"simulation": None}), inside, STATES) == {}


def test_the_worst_runs_have_the_lowest_signal_to_noise_ratio(store: Store, dataset: Dataset) -> None:
    found = quality.worst_runs(store, dataset[0], n=2)
    lowest = store.runs.sort_values("median_tsnr")
    assert [run_key(row) for row in found.values()] == lowest["run"][:2].tolist()
    assert next(iter(found)) == f"{lowest['run'].iloc[0]} (tSNR {lowest['median_tsnr'].iloc[0]:.0f})"
    structural = Store(store.path, store.info, store.mask, store.affine, store.index, store.runs[["run"]])
    assert quality.worst_runs(structural, dataset[0]) == {}


def test_the_share_of_a_trend_is_r_squared_and_constant_voxels_do_not_count() -> None:
    series = np.random.default_rng(0).normal(size=(30, 5)).cumsum(axis=0)
    shares = [np.corrcoef(np.arange(30), voxel)[0, 1] ** 2 for voxel in series.T]
    constant = np.full((30, 6), 3.0)
    assert quality.trend_share(np.hstack([series, constant])) == pytest.approx(np.median(shares))
