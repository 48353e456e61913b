"""A fifth route, added as CONTRIBUTING says: an encoder, a head and an entry; from unlabelled windows to a decoder."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import N_FRAMES, kill_at_step, use_threads
from safetensors.torch import load_file
from tiny import Order, OrderSettings, TinyEncoder, TinySettings

from deeplight_core import config, experiment, models, routes
from deeplight_core.config import Profile
from deeplight_core.data.prepare import prepare
from deeplight_core.routes import PretrainingSettings, Route, Routes, Section, Variant, WindowSettings

# ---- what somebody writes into models/ and routes.py


class GuessSettings(Section):
    encoder: TinySettings = TinySettings()
    head: OrderSettings = OrderSettings()
    example: WindowSettings = WindowSettings(length_s=4, gap_s=2, step_s=4)
    pretraining: PretrainingSettings = PretrainingSettings(epochs=2, batch_size=16, learning_rate=1e-3, threads=1)


class MoreRoutes(Routes):
    guess: GuessSettings = GuessSettings()


GUESS = Route("guessing the order", "nobody", encoder="tiny", head="order", example="window", unlabelled=True)
FROM_GUESS = Variant("pre-trained on order", route="guess", start="checkpoint")


# ---- and what there is then


@pytest.fixture
def profile(
    dataset: tuple[pd.DataFrame, Path], tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    """Pre-trains by the new route on a task without any state, fine-tunes on another."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    monkeypatch.setitem(models.ENCODERS, "tiny", TinyEncoder)
    monkeypatch.setitem(models.HEADS, "order", Order)
    monkeypatch.setitem(routes.ROUTES, "guess", GUESS)
    monkeypatch.setitem(routes.VARIANTS, "guessed", FROM_GUESS)
    data = tiny_profile.data.model_copy(update={"source": {"EMOTION": {}}})
    kept = tiny_profile.preprocessing.model_copy(update={"keep": "all"})
    update = {"name": "guess", "data": data, "preprocessing": kept, "routes": MoreRoutes()}
    made = tiny_profile.model_copy(update=update)
    manifest = dataset[0].assign(events=dataset[0]["events"].where(dataset[0]["task"] != "EMOTION", ""))  # rest
    prepare(manifest, made, jobs=1)
    return made


def test_the_new_route_pretrains_without_labels_and_a_decoder_starts_from_it(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = experiment.pretrain(profile, 1, "guess")
    assert pretrained.folder.name.startswith("pretraining-guess-seed1-")
    metrics = pretrained.metrics()
    assert set(metrics["measure"]) == {"contrast_accuracy"}
    n_windows = -(-(N_FRAMES["EMOTION"] - 3 * 2 - 2 * 1 + 1) // 2)  # of a run, every second one
    assert set(metrics.loc[metrics["split"] == "train", "n"]) == {n_windows}
    results = pretrained.results()
    assert set(results["seen_volumes"]) == {2 * 4 * n_windows * 6}  # two epochs, four subjects, six volumes a window
    decoder = experiment.finetune(profile, "guessed", 1.0, 1)
    assert set(decoder.results()["encoder"]) == {"tiny"}
    assert set(decoder.results()["route"]) == {"guess"}
    assert set(decoder.results()["measure"]) == {"accuracy"}
    frozen = monkeypatch.setitem(
        routes.VARIANTS, "guessed-frozen", Variant("", "guess", start="checkpoint", frozen=True)
    )
    assert frozen is None
    of_frozen = load_file(experiment.finetune(profile, "guessed-frozen", 1.0, 1).folder / "model.safetensors")
    before = load_file(pretrained.folder / "model.safetensors")
    assert {name for name in before if name.startswith("encoder.")} == {
        n for n in of_frozen if n.startswith("encoder.")
    }
    assert all(torch.equal(of_frozen[name], before[name]) for name in of_frozen if name.startswith("encoder."))


def test_it_is_killed_and_resumed(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at_step(patch, 6)  # in the second epoch
        with pytest.raises(KeyboardInterrupt):
            experiment.pretrain(profile, 1, "guess")
    resumed = load_file(experiment.pretrain(profile, 1, "guess").folder / "model.safetensors")
    shutil.rmtree(experiment.pretraining(profile, 1, "guess").folder)
    unbroken = load_file(experiment.pretrain(profile, 1, "guess").folder / "model.safetensors")
    assert any("running" in name for name in unbroken)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in unbroken.items())


def test_every_route_has_its_settings() -> None:
    assert {*Routes.model_fields} == {*routes.ROUTES}
    for name, route in routes.ROUTES.items():
        section = getattr(config.Profile().routes, name)
        assert isinstance(section.encoder, models.ENCODERS[route.encoder].Settings)
        assert isinstance(section.head, models.HEADS[route.head].Settings)
        assert isinstance(section.pretraining, PretrainingSettings)
    assert {variant.route for variant in routes.VARIANTS.values()} <= {*routes.ROUTES}
