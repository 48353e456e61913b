"""The published weights' formats, with random numbers in them; logits by plain NumPy."""

import hashlib
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from deeplight_core import models
from deeplight_core.training import thomas2021
from deeplight_core.training.checkpoint import load_model, read_record
from deeplight_core.training.hub import push
from deeplight_core.training.thomas2021 import import_published, read_2d, read_3d

WIDTHS = (8, 8, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)
WIDTHS_3D = (8, 8, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128)
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)


def variable(name: str, values: np.ndarray) -> str:
    return f"<tf.Variable 'model/{name}:0' shape={values.shape} dtype=float32_ref>"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Random weights of DeepLight by the names of its variables; of a size at which nothing dies or saturates."""
    random, found = np.random.default_rng(0), {}
    for i, (n_in, n_out) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
        found[f"conv2d_{2 * i + 1}/weights"] = random.normal(0, np.sqrt(2 / (9 * n_in)), (3, 3, n_in, n_out))
        found[f"conv2d_{2 * i + 1}/biases"] = random.normal(0, 0.1, n_out)
    for way in ("lstm_fw_26", "lstm_bw_27"):
        for part, n in (("xh", 768), ("hh", 64)):
            found[f"{way}/weights_{part}"] = random.normal(0, 0.06, (256, n))
            found[f"{way}/biases_{part}"] = random.normal(0, 0.1, 256)
    found["linear_29/weights"], found["linear_29/biases"] = random.normal(0, 1, (128, 16)), random.normal(0, 1, 16)
    return {name: values.astype(np.float32) for name, values in found.items()}


def npy(content: object, pickled: Callable[[object], bytes] | None = None) -> bytes:
    """An .npy of one object, as `numpy.save` of 2019 wrote it: protocol 2."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header = header.ljust(117) + b"\n"
    array = np.empty((), object)
    array[()] = content
    data = pickle.dumps(array, protocol=2) if pickled is None else pickled(content)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.fixture(scope="module")
def file_2d(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "weights.npy"
    path.write_bytes(npy({variable(name, values): values for name, values in arrays.items()}))
    return path


# ---- DeepLight


def convolved(maps: np.ndarray, weights: np.ndarray, biases: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's convolution with SAME padding and ReLU: maps (N, axes…, C), weights (3, …, C, C')."""
    n_axes = weights.ndim - 2
    sizes = maps.shape[1:-1]
    out = [-(-n // stride) for n in sizes]
    total = [max((m - 1) * stride + weights.shape[0] - n, 0) for m, n in zip(out, sizes, strict=True)]
    padded = np.pad(maps, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    result = np.zeros((len(maps), *out, weights.shape[-1]))
    for place in np.ndindex(*weights.shape[:n_axes]):
        part = tuple(slice(p, p + (m - 1) * stride + 1, stride) for p, m in zip(place, out, strict=True))
        result += padded[(slice(None), *part)] @ weights[place]
    return np.maximum(result + biases, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def last_state(slices: np.ndarray, way: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    h, c = np.zeros(64), np.zeros(64)
    for x in slices:
        gates = arrays[f"{way}/weights_xh"] @ x + arrays[f"{way}/biases_xh"]
        i, g, f, o = np.split(gates + arrays[f"{way}/weights_hh"] @ h + arrays[f"{way}/biases_hh"], 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def logits_2d(volume: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """One volume (Z, Y, X), in float64."""
    maps = volume[..., None].astype(float)
    for i, stride in enumerate(STRIDES):
        layer = f"conv2d_{2 * i + 1}"
        maps = convolved(maps, arrays[f"{layer}/weights"].astype(float), arrays[f"{layer}/biases"], stride)
    slices = maps.reshape(len(maps), -1)
    features = [last_state(slices, "lstm_fw_26", arrays), last_state(slices[::-1], "lstm_bw_27", arrays)]
    return np.concatenate(features) @ arrays["linear_29/weights"] + arrays["linear_29/biases"]


def known(monkeypatch: pytest.MonkeyPatch, kind: str, path: Path) -> None:
    """Let a file count as the published one."""
    monkeypatch.setitem(thomas2021.KNOWN, kind, ("sha256", hashlib.sha256(path.read_bytes()).hexdigest()))


def with_slices(folder: Path, shape: tuple[int, int, int]) -> models.Model:
    """The imported decoder on a smaller grid, which its weights fit, too."""
    imported, record = load_model(folder)
    architecture = record["architecture"]
    small = models.build({**architecture, "encoder": {**architecture["encoder"], "shape": shape}})
    small.load_state_dict(imported.state_dict())
    return small.eval()


def test_logits_are_those_of_plain_numpy(
    file_2d: Path, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "thomas2021", file_2d)
    folder = import_published("thomas2021", file_2d, tmp_path / "imported")
    model = with_slices(folder, (91, 109, 3))
    assert sum(p.numel() for p in load_model(folder)[0].parameters()) == 594_888
    volumes = np.random.default_rng(1).normal(size=(1, 3, 109, 91)).astype(np.float32)
    with torch.inference_mode():
        found = model(torch.from_numpy(volumes)).numpy()
    expected = np.stack([logits_2d(volume, arrays) for volume in volumes])
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_imported_folder_says_what_it_is(file_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, "thomas2021", file_2d)
    folder = import_published("thomas2021", file_2d, tmp_path / "imported")
    record = read_record(folder)
    assert record["data"]["grid"]["shape"] == [91, 109, 91]
    assert record["architecture"]["head"]["targets"][7:12] == [
        ["MOTOR", side] for side in ("left toe", "left finger", "right toe", "right finger", "tongue")
    ]
    assert "not to be passed on" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="no licence that would allow passing them on"):
        push(folder, "org/name")


def test_only_the_published_file_is_imported(file_2d: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the published file of thomas2021 \(sha256 .*, expected d1070ea"):
        import_published("thomas2021", file_2d, tmp_path / "imported")
    pointer = tmp_path / "pointer.hdf5"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"a pointer of Git LFS \(git blob .*expected fc8de44"):
        import_published("thomas2021-3d", pointer, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


class Evil:
    """Its unpickling runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def far_memo(_: object) -> bytes:
    """A pickle of 20 bytes whose memo would take 16 GB."""
    return b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b"."


def long_text(_: object) -> bytes:
    """A pickle that promises 4 GB of text."""
    return b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"abc."


def large_array(_: object) -> bytes:
    """An array of a shape that its bytes do not fill."""
    good = pickle.dumps(np.arange(3, dtype=np.float32), protocol=2)
    return good.replace(b"K\x03\x85", b"J" + struct.pack("<i", 1 << 30) + b"\x85")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda trace: npy({"x": Evil(trace)}), r"it asks for (posix|nt)\.mkdir"),
        (lambda trace: npy(0, lambda _: pickle.dumps(Evil(trace), protocol=4)), r"it asks for (posix|nt)\.mkdir"),
        (lambda trace: npy(0, lambda _: b"cbuiltins\neval\n(V1+1\ntR."), r"it has the instruction UNICODE"),
        (lambda trace: npy(0, lambda _: b"cnumpy\ntesting\n."), r"it asks for numpy\.testing"),
        (lambda trace: npy(0, far_memo), r"it numbers what it does not hold"),
        (lambda trace: npy(0, long_text), r"expected 4294967295 bytes"),
        (lambda trace: npy(0, large_array), r"thomas2021: .*shape"),
        (lambda trace: npy({"x": np.arange(3.0)}), r"values of type 'f8'"),
        (lambda trace: npy({"x": 1}), r"it holds no dict of arrays"),
        (lambda trace: npy({"x": np.ones(3, np.float32)}), r"other arrays than the published ones: conv2d_1/biases"),
        (lambda trace: b"PK\x03\x04" + bytes(200), r"thomas2021: .*magic"),
        (lambda trace: npy([1])[:150], r"thomas2021: "),
    ],
)
def test_other_pickles_are_refused_and_nothing_is_run(
    content: Callable[[Path], bytes], message: str, tmp_path: Path
) -> None:
    path, trace = tmp_path / "evil.npy", tmp_path / "trace"
    path.write_bytes(content(trace))
    with pytest.raises(ValueError, match=message):
        read_2d(path)
    assert not trace.exists()


def test_weights_that_numpy_saves_today_are_read(arrays: dict[str, np.ndarray], file_2d: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, {variable(name, values): values for name, values in arrays.items()}, allow_pickle=True)  # type: ignore[arg-type]
    path = tmp_path / "new.npy"
    path.write_bytes(stream.getvalue())
    one, other = read_2d(file_2d), read_2d(path)
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- 3D-DeepLight


def arrays_3d() -> dict[str, np.ndarray]:
    random, found = np.random.default_rng(2), {}
    for i, (n_in, n_out) in enumerate(zip((1, *WIDTHS_3D), WIDTHS_3D, strict=False)):
        found[f"conv {i} kernel"] = random.normal(0, np.sqrt(2 / (27 * n_in)), (3, 3, 3, n_in, n_out))
        found[f"conv {i} bias"] = random.normal(0, 0.1, n_out)
        for name, low, high in (
            ("gamma", 0.5, 1.5),
            ("beta", -0.5, 0.5),
            ("moving_mean", 0, 1),
            ("moving_variance", 0.3, 2),
        ):
            found[f"norm {i} {name}"] = random.uniform(low, high, n_out)
    found["conv 12 kernel"], found["conv 12 bias"] = (
        random.normal(0, 0.1, (1, 1, 1, 128, 16)),
        random.normal(0, 0.5, 16),
    )
    return {name: values.astype(np.float32) for name, values in found.items()}


def write_3d(path: Path, arrays: dict[str, np.ndarray], first: int = 0) -> Path:
    """As Keras saves a model: layers are numbered on from any that were made before; some have no weights."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = b'{"class_name": "Lambda"}'
        for name, values in arrays.items():
            kind, i, part = name.split()
            n, layer = int(i) + first, {"conv": "conv3d", "norm": "batch_normalization"}[kind]
            layer = f"{layer}_{n}" if n else layer
            file.create_dataset(f"model_weights/{layer}/{layer}/{part}:0", data=values)
        file.create_group("model_weights/spatial_dropout3d")
        file.create_dataset("optimizer_weights/iterations", data=7)
    return path


def logits_3d(volume: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    maps = volume[None, ..., None].astype(float)
    for i, stride in enumerate(STRIDES):
        maps = convolved(maps, arrays[f"conv {i} kernel"].astype(float), arrays[f"conv {i} bias"], stride)
        mean, variance = arrays[f"norm {i} moving_mean"], arrays[f"norm {i} moving_variance"]
        maps = (maps - mean) / np.sqrt(variance + 1e-3) * arrays[f"norm {i} gamma"] + arrays[f"norm {i} beta"]
    scores = np.maximum(maps @ arrays["conv 12 kernel"][0, 0, 0].astype(float) + arrays["conv 12 bias"], 0)
    return scores.mean(axis=(0, 1, 2, 3))


@pytest.mark.parametrize("first", [0, 13])
def test_scores_in_3d_are_those_of_plain_numpy(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_3d()
    path = write_3d(tmp_path / "model.hdf5", arrays, first)
    known(monkeypatch, "thomas2021-3d", path)
    folder = import_published("thomas2021-3d", path, tmp_path / "imported")
    assert sum(p.numel() for p in load_model(folder)[0].parameters()) == 890_280
    model = with_slices(folder, (19, 22, 17))
    volumes = np.random.default_rng(3).normal(size=(2, 17, 22, 19)).astype(np.float32)
    batch = {"volumes": torch.from_numpy(volumes), "targets": torch.tensor([3, 5])}
    with torch.inference_mode():
        found, outcome = model(batch["volumes"]).numpy(), model.loss(batch)
    expected = np.stack([logits_3d(volume, arrays) for volume in volumes])
    assert (expected > 0).any(axis=1).all()
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-4)
    shares = (expected + 1e-7) / (expected + 1e-7).sum(axis=1, keepdims=True)  # what the authors trained
    np.testing.assert_allclose(outcome.answer, shares, atol=1e-4)
    np.testing.assert_allclose(outcome.each, -np.log(shares[[0, 1], [3, 5]]), rtol=1e-3)


def test_a_dimension_of_the_published_grid_in_3d() -> None:
    """At 91×109×91 voxels the last maps have 3×4×3 places, as published."""
    encoder = {"name": "deeplight3d", "shape": (91, 109, 91), "settings": {}}
    with torch.device("meta"):
        model = models.build({"encoder": encoder, "head": {"name": "classes", "targets": [["a", "b"]], "settings": {}}})
    assert model.encoder.output_shape == (128, 3, 4, 3)


def soft_link(file: h5py.File) -> None:
    file["model_weights/conv3d/conv3d/more"] = h5py.SoftLink("/optimizer_weights/iterations")


def outer_link(file: h5py.File) -> None:
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink("/etc/passwd", "/")


def circle(file: h5py.File) -> None:
    file["model_weights/conv3d/conv3d/again"] = file["model_weights/conv3d"]


def large(file: h5py.File) -> None:
    file.create_dataset(
        "model_weights/conv3d/conv3d/large", (1 << 40,), np.float32, chunks=(1 << 20,), compression="gzip"
    )


def other_shape(file: h5py.File) -> None:
    del file["model_weights/conv3d/conv3d/bias:0"]
    file.create_dataset("model_weights/conv3d/conv3d/bias:0", data=np.zeros(9, np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (soft_link, r"more is a link to somewhere else"),
        (outer_link, r"model_weights is a link to somewhere else"),
        (circle, r"is no array"),
        (large, r"large is no array of the model: float32 \(1099511627776,\)"),
        (other_shape, r"other arrays .*conv3d 0 bias: \(9,\), expected \(8,\)"),
        (lambda file: file.create_dataset("model_weights/lambda/code", data=1.0), r"lambda is no layer of the model"),
    ],
)
def test_other_hdf5_files_are_refused(spoil: Callable[[h5py.File], object], message: str, tmp_path: Path) -> None:
    path = write_3d(tmp_path / "model.hdf5", arrays_3d())
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(ValueError, match=message):
        read_3d(path)


def test_a_cut_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = write_3d(tmp_path / "model.hdf5", arrays_3d())
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"is not the published file of thomas2021-3d: "):
        read_3d(path)
