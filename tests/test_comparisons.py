"""Ways to pre-train, side by side: from trainings to the page, on tiny volumes."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import use_threads

from deeplight_core import comparisons, experiment
from deeplight_core.config import Profile
from deeplight_core.data.manifest import write_manifest
from deeplight_core.data.store import open_store
from deeplight_core.training.checkpoint import load_model

NOTEBOOK = Path(__file__).parents[1] / "notebooks/09_comparison.ipynb"
PROBES = ["supervised-frozen", "contrast-frozen", "random-frozen"]
WAYS = ["pretrained", "contrast", "scratch", "linear", "linear-pretrained", *PROBES]
TRAINING = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}


@pytest.fixture(scope="module")
def compared(
    dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Profile:
    """A finished comparison: two seeds, two sizes."""
    folder = tmp_path_factory.mktemp("compared")
    clip = {"length_s": 4, "step_s": 4, "frames": 2}
    window = {**clip, "gap_s": 2}
    fewer = {
        "title": "one person to pre-train on",
        "overrides": {"routes": {"supervised": {"pretraining": {"n_units": 1}}}},
    }
    profile = tiny_profile.overridden(
        {
            "name": "compared",
            "part": "comparison",
            "preprocessing": {"keep": "all"},
            "routes": {
                "supervised": {"pretraining": TRAINING},
                "contrast": {"head": {"units": 4}, "example": window, "pretraining": TRAINING},
                "autoencoder": {"pretraining": TRAINING},
                "clip_contrast": {
                    "encoder": {"frames": 2},
                    "head": {"units": 4},
                    "example": window,
                    "pretraining": TRAINING,
                },
            },
            "finetuning": TRAINING,
            "sweep": {"variants": WAYS, "fractions": [0.5, 1.0], "seeds": [1, 2]},
            "controls": {
                "initialisation": [],
                "tuning_manifest": None,
                "published": ["cae", "clip-contrast"],
                "clip": clip,
                "sensitivity": {"few": fewer},
                "fractions": [1.0],
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_threads(patch)
        write_manifest(dataset[0], folder / "data_manifest.csv")
        (folder / "profiles").mkdir()
        (folder / "profiles/compared.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
        experiment.prepare_data(profile, jobs=1)
        experiment.train_all([profile], ["sweep", "sensitivity", "published"], jobs=1)
    return profile


@pytest.fixture(autouse=True)
def there(compared: Profile, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(next(tmp_path_factory.getbasetemp().glob("compared*")))


def test_costs_are_those_of_the_records(compared: Profile) -> None:
    costs = comparisons.costs(compared, 1.0).set_index("variant")
    assert set(costs.index) == set(WAYS)
    assert costs.loc["pretrained", "pretraining_volumes"] == 2 * 8
    assert costs.loc["contrast", "pretraining_volumes"] == 2 * 8 * 6
    assert costs.loc["scratch", "pretraining_volumes"] == 0
    assert costs.loc["scratch", "finetuning_volumes"] == 2 * 8
    index = open_store(compared.store).index
    source = index[
        index["split"].eq("train") & index["task"].isin(compared.data.tasks("source")) & index["state"].ne("")
    ]
    assert costs.loc["linear-pretrained", "pretraining_volumes"] == len(source) > 0
    own = experiment.finetuning(compared, "linear", 0.5, 1).results()["seen_volumes"].iloc[0]
    assert comparisons.costs(compared, 0.5).set_index("variant").loc["linear", "finetuning_volumes"] == own
    start = experiment.start_of(compared, "pretrained", 1).folder
    n = sum(p.numel() for p in load_model(start)[0].encoder.parameters())
    assert (costs.loc[["pretrained", "scratch", *PROBES], "n_parameters"] == n).all()
    assert np.isnan(costs.loc["linear", "n_parameters"])
    published = comparisons.costs(compared, 1.0, "published").set_index("variant")
    assert published["finetuning_volumes"].to_dict() == {"cae": 2 * 8, "clip-contrast": 2 * 8 * 2}


def test_similar_encoders_are_those_of_the_same_weights(compared: Profile) -> None:
    similar = comparisons.similarity(compared)
    assert len(similar) == 6 * 6
    same = (similar["a"] == similar["b"]) & (similar["seed_a"] == similar["seed_b"])
    assert similar.loc[same, "cka"].to_numpy() == pytest.approx(1)
    assert (similar.loc[~same, "cka"] < 0.9999).all()
    assert (similar["cka"] >= 0).all()
    assert similar["dimensions_a"].between(1, 8).all()


def test_maps_are_scored_on_the_states_that_every_decoder_has(
    compared: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, images, found = comparisons.relevance(compared, each=1)
    assert set(images) <= {"planted", *WAYS}
    assert set(found["seed"]) <= {1, 2}
    rows = [("pretrained", "fear", 0.9), ("contrast", "fear", 0.8), ("scratch", "fear", 0.5), ("scratch", "neut", 0.7)]
    simple = [("t-map", "fear", 0.6), ("t-map", "neut", 0.6)]
    scores = pd.DataFrame(rows + simple, columns=["way", "state", "auc"]).assign(n_voxels=[1, 1, 1, 2, 1, 2])
    monkeypatch.setattr(comparisons, "planted_scores", lambda *_: scores)
    monkeypatch.setattr(comparisons, "planted_contrasts", lambda *_: {"neut": "what was planted"})
    state, images, found = comparisons.relevance(compared, each=1)
    assert state == "neut"  # with the largest places
    assert images["planted"] == "what was planted"
    assert found["auc"].tolist() == [0.9, 0.8, 0.5, 0.6] * 2  # of both seeds


def test_what_pretrainings_learnt_is_the_mean_of_their_records(compared: Profile) -> None:
    found = comparisons.pretrainings(compared)
    found = found.set_index(["route", "seed"])
    assert set(found.index) == {(route, seed) for route in ("supervised", "contrast") for seed in (1, 2)}
    records = experiment.start_of(compared, "contrast", 2).results()
    assert found.loc[("contrast", 2), "score"] == pytest.approx(records["score"].mean())
    assert found.loc[("supervised", 1), "measure"] == "accuracy"
    own = comparisons.pretrainings(compared, "published").set_index(["route", "seed"])
    assert set(own.index) == {(route, seed) for route in ("autoencoder", "clip_contrast") for seed in (1, 2)}
    assert own.loc[("clip_contrast", 1), "seen_volumes"] == 2 * 8 * 6  # windows of three clips


def test_the_page_says_and_shows_what_the_trainings_found(
    compared: Profile, monkeypatch: pytest.MonkeyPatch, no_window: None
) -> None:
    said: list[str] = []
    monkeypatch.setattr("deeplight_core.report.page.say", lambda *texts: said.extend(texts))
    monkeypatch.setattr(
        "deeplight_core.report.page.show", lambda table: said.append("" if table is None else table.to_html())
    )
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names["profile"] = "compared"
    text = "\n".join(said)
    assert "All 32 trainings needed here have been run." in text
    assert "Every seed also repeats the pre-training: supervised on other tasks" in text
    assert "random effects: way: " in text
    assert "of 20 tests tell two decoders apart" in text  # of five decoders, two sizes
    assert "temporal contrast" in text
    assert "Left out: reconstruction (not in this profile) and photographs (not in this profile)." not in text
    assert "Left out: photographs (not in this profile)." in text
    assert "one person to pre-train on" in text
    assert "Holm over all cells; 1 seed, so another training may end differently" in text
    assert "convolutional autoencoder, pre-trained" in text
    assert "A block's answer is its volumes' mean probability, or its clips'." in text
    assert "temporal contrast, clips" in text  # what that pre-training learnt
    assert text.count("volumes seen, pre-training") == 2
    assert len(plt.get_fignums()) >= 6


def test_a_decoder_that_lacks_a_training_is_left_out(compared: Profile, tmp_path: Path) -> None:
    from deeplight_core import collect
    from deeplight_core.analysis import crossed, statistics

    training = experiment.finetuning(compared, "contrast", 1.0, 2)
    shutil.move(training.folder, tmp_path / "away")
    try:
        results, missing = collect.sweep_results(compared)
        assert missing == ["contrast-1-seed2"]
        left = crossed.complete_variants(statistics.only(results))
        assert set(left["variant"]) == {*WAYS} - {"contrast"}
    finally:
        shutil.move(tmp_path / "away", training.folder)
