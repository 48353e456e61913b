import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE
from safetensors.torch import load_file, save_file
from torch import nn

from deeplight_core.config import ModelSettings
from deeplight_core.data.store import Store
from deeplight_core.models import MODELS
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.system.files import file_sha256
from deeplight_core.training.checkpoint import check_data, data_facts, load_model, read_record, save_model, transfer

SETTINGS = ModelSettings(initialisation="he", conv_dropout=(0.1, 0.2, 0.3), lstm_dropout=0.4, output_dropout=0.45)
EXAMPLES: dict[str, Callable[[], nn.Module]] = {"deeplight": lambda: DeepLight(SHAPE, 3, SETTINGS)}


@pytest.fixture(scope="module")
def facts(store: Store) -> dict[str, object]:
    return data_facts(store.info, store.shape, store.affine)


@pytest.fixture
def checkpoint(tmp_path: Path, facts: dict[str, object]) -> Path:
    """A decoder of three states."""
    torch.manual_seed(1)
    save_model(EXAMPLES["deeplight"](), tmp_path / "run", {"data": facts, "states": [["WM", "body"]]})
    return tmp_path / "run"


def new_model(n_states: int = 4, shape: tuple[int, int, int] = SHAPE) -> DeepLight:
    torch.manual_seed(2)
    return DeepLight(shape, n_states)


def test_every_model_is_tested() -> None:
    assert EXAMPLES.keys() == MODELS.keys()
    for name in MODELS:
        assert (Path(__file__).parents[1] / "models" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = EXAMPLES[name]()
    save_model(model, tmp_path / "run", {"states": [["WM", "body"]]})
    torch.manual_seed(99)
    loaded, record = load_model(tmp_path / "run")
    assert type(loaded) is MODELS[name]
    assert loaded.architecture == model.architecture
    assert record["architecture"]["model"] == name
    assert record["states"] == [["WM", "body"]]
    weights, same = model.state_dict(), loaded.state_dict()
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[k], same[k]) for k in weights)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]


def test_loaded_model_decodes_the_same(checkpoint: Path) -> None:
    torch.manual_seed(1)
    model, given = EXAMPLES["deeplight"]().eval(), torch.randn(2, *SHAPE[::-1])
    assert torch.equal(load_model(checkpoint)[0].eval()(given), model(given))


# ---- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damaged_weights_are_an_error(
    checkpoint: Path, facts: dict[str, object], damage: Callable[[Path], None]
) -> None:
    damage(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors (is damaged|cannot be read)"):
        load_model(checkpoint)
    with pytest.raises(ValueError, match=r"model\.safetensors (is damaged|cannot be read)"):
        transfer(new_model(), checkpoint, facts)


def test_damaged_record_is_an_error(checkpoint: Path) -> None:
    cut(checkpoint / "model.json")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        read_record(checkpoint)


def test_missing_checkpoint_is_an_error(checkpoint: Path, facts: dict[str, object]) -> None:
    (checkpoint / "model.json").unlink()  # weights without a record: the save was interrupted
    for folder in (checkpoint, checkpoint / "nowhere"):
        with pytest.raises(ValueError, match=f"no finished checkpoint in {folder}"):
            load_model(folder)
        with pytest.raises(ValueError, match=f"no finished checkpoint in {folder}"):
            transfer(new_model(), folder, facts)


@pytest.mark.parametrize("change", ["one too few", "one too many", "other shape"])
def test_loading_is_strict(checkpoint: Path, change: str) -> None:
    path, record = checkpoint / "model.safetensors", read_record(checkpoint)
    weights = load_file(path)
    bias = weights.pop("head.bias")
    if change != "one too few":
        weights["head.bias" if change == "other shape" else "head.gain"] = bias[:2].clone()
    save_file(weights, path)
    (checkpoint / "model.json").write_text(json.dumps({**record, "sha256": file_sha256(path)}))
    with pytest.raises(RuntimeError, match=r"head\.(bias|gain)"):
        load_model(checkpoint)


# ---- transfer


def test_transfer_takes_all_but_the_output_layer(checkpoint: Path, facts: dict[str, object]) -> None:
    model, own = new_model(), new_model().state_dict()
    assert sorted(transfer(model, checkpoint, facts)) == ["head.bias", "head.weight"]
    origin = load_model(checkpoint)[0].state_dict()
    for name, weight in model.state_dict().items():
        expected = own[name] if name.startswith("head.") else origin[name]
        assert torch.equal(weight, expected), name
    assert not torch.equal(own["encoder.lstm.weight_hh_l0"], origin["encoder.lstm.weight_hh_l0"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [7, 8, 10]}, r"other shape: shape \[7, 8, 9\], here \[7, 8, 10\]"),
        ({"tr_s": 0.72}, r"other tr_s: tr_s 2\.0, here 0\.72"),
        ({"affine": np.eye(4).tolist(), "tr_s": 0.72}, r"other affine, tr_s: affine .*; tr_s 2\.0, here 0\.72"),
        ({"preprocessing": {"fwhm_mm": 6.0}}, r"other preprocessing: .*'fwhm_mm': 3\.0.*here .*'fwhm_mm': 6\.0"),
    ],
)
def test_data_that_differ_are_refused(
    checkpoint: Path, facts: dict[str, object], change: dict[str, object], message: str
) -> None:
    model, own = new_model(), new_model().state_dict()
    with pytest.raises(ValueError, match=message):
        transfer(model, checkpoint, {**facts, **change})
    with pytest.raises(ValueError, match=message):
        check_data(read_record(checkpoint), checkpoint, {**facts, **change})
    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())


def test_weights_that_do_not_fit_are_listed(checkpoint: Path, facts: dict[str, object]) -> None:
    model = new_model(shape=(33, 8, 9))  # slices end as 2×1 instead of 1×1
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model") as error:
        transfer(model, checkpoint, facts)
    assert str(error.value).splitlines()[1:] == [
        "  encoder.lstm.weight_ih_l0: (256, 64) there, (256, 128) here",
        "  encoder.lstm.weight_ih_l0_reverse: (256, 64) there, (256, 128) here",
    ]
    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())


def test_absent_weights_are_listed(checkpoint: Path, facts: dict[str, object]) -> None:
    model = new_model()
    model.encoder.extra = nn.Linear(1, 2, bias=False)
    with pytest.raises(ValueError, match=r"encoder\.extra\.weight: absent there, \(2, 1\) here"):
        transfer(model, checkpoint, facts)
    model = new_model()
    model.encoder.lstm = nn.LSTM(64, 64, bidirectional=False)
    with pytest.raises(ValueError, match=r"bias_hh_l0_reverse: \(256,\) there, absent here"):
        transfer(model, checkpoint, facts)
