import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPE
from safetensors.torch import load_file, save_file
from torch import nn

from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.routes import DeepLightSettings
from deeplight_core.system.files import file_sha256
from deeplight_core.training.checkpoint import check_data, data_facts, load_model, read_record, save_model, transfer

SETTINGS = DeepLightSettings(initialisation="he", conv_dropout=(0.1, 0.2, 0.3), lstm_dropout=0.4)


@pytest.fixture(scope="module")
def facts(store: Store) -> dict[str, Any]:
    return data_facts(store)


@pytest.fixture
def checkpoint(tmp_path: Path, facts: dict[str, Any]) -> Path:
    """A decoder of three states."""
    torch.manual_seed(1)
    save_model(DeepLight(SHAPE, 3, SETTINGS), tmp_path / "run", {"data": facts})
    return tmp_path / "run"


def new_model(n_states: int = 4, shape: tuple[int, int, int] = SHAPE) -> DeepLight:
    torch.manual_seed(2)
    return DeepLight(shape, n_states)


def test_a_checkpoint_is_two_files(checkpoint: Path) -> None:
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model.json", "model.safetensors"]
    assert read_record(checkpoint)["architecture"]["encoder"]["settings"]["conv_dropout"] == [0.1, 0.2, 0.3]


def test_loaded_model_decodes_the_same(checkpoint: Path) -> None:
    torch.manual_seed(1)
    model, given = DeepLight(SHAPE, 3, SETTINGS).eval(), torch.randn(2, *SHAPE[::-1])
    assert torch.equal(load_model(checkpoint)[0].eval()(given), model(given))


# ---- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damaged_weights_are_an_error(checkpoint: Path, facts: dict[str, Any], damage: Callable[[Path], None]) -> None:
    damage(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors (is damaged|cannot be read|is missing)"):
        load_model(checkpoint)
    with pytest.raises(ValueError, match=r"model\.safetensors (is damaged|cannot be read|is missing)"):
        transfer(new_model(), checkpoint, facts)


def test_damaged_record_is_an_error(checkpoint: Path) -> None:
    cut(checkpoint / "model.json")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        read_record(checkpoint)


def test_missing_checkpoint_is_an_error(checkpoint: Path, facts: dict[str, Any]) -> None:
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
    with pytest.raises(ValueError, match=r"other weights than model\.json describes: head\.(bias|gain)"):
        load_model(checkpoint)


# ---- transfer


def test_transfer_takes_all_but_the_output_layer(checkpoint: Path, facts: dict[str, Any]) -> None:
    model, own = new_model(), new_model().state_dict()
    left_out, differing = transfer(model, checkpoint, facts)
    assert sorted(left_out) == ["head.bias", "head.weight"]
    assert differing == []
    origin = load_model(checkpoint)[0].state_dict()
    for name, weight in model.state_dict().items():
        expected = own[name] if name.startswith("head.") else origin[name]
        assert torch.equal(weight, expected), name
    assert not torch.equal(own["encoder.lstm.weight_hh_l0"], origin["encoder.lstm.weight_hh_l0"])


def changed(facts: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {**facts, **change, "grid": {**facts["grid"], **change.get("grid", {})}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"shape": [7, 8, 10]}}, r"shape \[7, 8, 9\] there, \[7, 8, 10\] here"),
        ({"grid": {"affine": np.eye(4).tolist()}}, r"affine .* there, \[\[1\.0, 0\.0.* here"),
        ({"grid": {"orientation": "RAS"}}, r"orientation LAS there, RAS here\. Prepare the data on its grid"),
        ({"normalisation": "scaled"}, r"values are .* there, scaled here"),
    ],
)
def test_data_that_must_agree_and_do_not_are_refused(
    checkpoint: Path, facts: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    model, own = new_model(), new_model().state_dict()
    with pytest.raises(ValueError, match=message):
        transfer(model, checkpoint, changed(facts, change))
    with pytest.raises(ValueError, match=message):
        check_data(read_record(checkpoint), checkpoint, changed(facts, change))
    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())


def test_data_that_may_differ_are_reported(checkpoint: Path, facts: dict[str, Any]) -> None:
    preprocessing = {**facts["preprocessing"], "fwhm_mm": 6.0, "lag_s": 4.0}
    others = changed(facts, {"tr_s": 0.72, "preprocessing": preprocessing})
    _, differing = transfer(new_model(), checkpoint, others)
    assert differing == [
        "tr_s 2.0 there, 0.72 here", "preprocessing.fwhm_mm 3.0 there, 6.0 here",
        "preprocessing.lag_s 0.0 there, 4.0 here",
    ]  # fmt: skip


def test_a_setting_that_was_added_later_differs_only_from_another_value(
    checkpoint: Path, facts: dict[str, Any]
) -> None:
    path, record = checkpoint / "model.json", read_record(checkpoint)
    del record["data"]["preprocessing"]["crop"]
    path.write_text(json.dumps(record))
    assert check_data(read_record(checkpoint), checkpoint, facts) == []
    others = changed(facts, {"preprocessing": {**facts["preprocessing"], "crop": True}})
    assert check_data(record, checkpoint, others) == ["preprocessing.crop False there, True here"]


def test_equal_boxes_of_other_places_are_other_grids(store: Store) -> None:
    """Two stores, cropped to the same shape at different places of one grid."""
    one, other = (cropped(store, first) for first in (1, 2))
    assert one.shape == other.shape
    assert np.array_equal(one.affine, other.affine)
    record = {"data": data_facts(one), "architecture": DeepLight(one.shape, 2).architecture}
    assert check_data(record, "it", data_facts(one)) == []
    with pytest.raises(ValueError, match=r"trained on another grid .*affine .* there, .* here"):
        check_data(record, "it", data_facts(other))


def cropped(store: Store, first: int) -> Store:
    mask = np.zeros_like(store.mask)
    mask[first : first + 4, 2:5, 1:7] = True
    return replace(
        store, mask=mask, info={**store.info, "preprocessing": {**store.info["preprocessing"], "crop": True}}
    )


def test_a_checkpoint_of_an_earlier_version_is_refused(checkpoint: Path, facts: dict[str, Any]) -> None:
    """As the version before encoders and heads wrote it: the grid's affine is not the box's."""
    old = {
        "architecture": {"model": "deeplight", "shape": [7, 8, 9], "n_states": 3, "settings": {}},
        "data": {"shape": [7, 8, 9], "affine": np.eye(4).tolist(), "tr_s": 2.0, "preprocessing": {}},
    }
    (checkpoint / "model.json").write_text(json.dumps(old))
    for refused in (lambda: load_model(checkpoint), lambda: transfer(new_model(), checkpoint, facts)):
        with pytest.raises(ValueError, match=r"model\.json is of an earlier version .*; train it again"):
            refused()


def test_weights_that_do_not_fit_are_listed(checkpoint: Path, facts: dict[str, Any]) -> None:
    model = new_model(shape=(33, 8, 9))  # slices end as 2×1 instead of 1×1
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the model") as error:
        transfer(model, checkpoint, facts)
    assert str(error.value).splitlines()[1:] == [
        "  encoder.lstm.weight_ih_l0: (256, 64) there, (256, 128) here",
        "  encoder.lstm.weight_ih_l0_reverse: (256, 64) there, (256, 128) here",
    ]
    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())


def test_absent_weights_are_listed(checkpoint: Path, facts: dict[str, Any]) -> None:
    model = new_model()
    model.encoder.extra = nn.Linear(1, 2, bias=False)
    with pytest.raises(ValueError, match=r"encoder\.extra\.weight: absent there, \(2, 1\) here"):
        transfer(model, checkpoint, facts)
    model = new_model()
    model.encoder.lstm = nn.LSTM(64, 64, bidirectional=False)
    with pytest.raises(ValueError, match=r"bias_hh_l0_reverse: \(256,\) there, absent here"):
        transfer(model, checkpoint, facts)
