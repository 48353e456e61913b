"""The published decoders of Thomas, Lindenberger, Samek & Müller (2021, arXiv:2111.01562) → an exported checkpoint.

The authors' repository (athms/evaluating-deeplight-transfer @4a8eeaa) holds a pickled dict of arrays for DeepLight, and
a whole Keras model for 3D-DeepLight. It states no licence, so the user downloads the file. Nothing of a file is run:
a pickle's instructions are looked through first, and of its functions only those that stand for arrays are known, as
stand-ins of our own; of a Keras file, only plain datasets of the expected names, shapes and types are read.

Both were trained on volumes of 91×109×91 voxels at 2 mm, z-scored over each run within the run's own mask. No mask is
published with them: here it is that of the MNI152 template.
"""

import hashlib
import io
import pickle
import pickletools
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplight_core.data.images import resample
from deeplight_core.data.plan import HCP_GRID
from deeplight_core.models import build
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.tasks import HCP_TR_S
from deeplight_core.training.checkpoint import save_weights
from deeplight_core.training.exported import write_exported

__all__ = ["KNOWN", "Z_SCORES", "import_published", "read_2d", "read_3d"]

KNOWN = {
    "thomas2021": ("sha256", "d1070ea1fadf4fc93f053c57bcadc6e37b38a6763276246efb25f35e1d1df90c"),
    "thomas2021-3d": ("git blob", "fc8de447a9e65595650f317d5f483b1f9d2df1a4"),
}
"""What identifies the published files: a sha256, or the number that git has for a file's content."""
Z_SCORES = "z-scores of each voxel over its run"
_MOST_BYTES = 64 << 20
_STATES = {  # in the order of the output layer, by the names of `tasks`
    "EMOTION": ("fear", "neutral"),
    "GAMBLING": ("loss", "neutral", "win"),
    "LANGUAGE": ("math", "story"),
    "MOTOR": ("left toe", "left finger", "right toe", "right finger", "tongue"),
    "RELATIONAL": ("matching", "relational"),
    "SOCIAL": ("interaction", "no interaction"),
}
_TARGETS = [[task, state] for task, states in _STATES.items() for state in states]
_WIDTHS = (8, 8, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64)
_WIDTHS_3D = (8, 8, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128)
_INSTALL = "pip install 'deeplight-core[keras]'"
Arrays = dict[str, np.ndarray]


def import_published(kind: str, file: str | Path, folder: str | Path) -> Path:
    """Write a published decoder as an exported folder.

    Parameters
    ----------
    kind : `thomas2021` (DeepLight, .npy) or `thomas2021-3d` (3D-DeepLight, .hdf5)

    Raises
    ------
    ValueError
        If the file is not the published one, or the folder has files already.
    """
    if kind not in KNOWN:
        raise ValueError(f"there are no published weights {kind!r}; there are {', '.join(KNOWN)}")
    file = Path(file)
    _check_content(kind, file)
    state = read_2d(file) if kind == "thomas2021" else read_3d(file)
    encoder: dict[str, Any] = {"name": "deeplight", "settings": {"widths": _WIDTHS}}
    head: dict[str, Any] = {}
    if kind == "thomas2021-3d":
        encoder = {"name": "deeplight3d", "settings": {"widths": _WIDTHS_3D}}
        head = {"pooling": "scores", "dropout": 0.2, "probabilities": "shares"}
    shape, affine = HCP_GRID
    model = build(
        {"encoder": {**encoder, "shape": shape}, "head": {"name": "classes", "targets": _TARGETS, "settings": head}}
    )
    model.load_state_dict(state, strict=True)
    settings = PreprocessingSettings()  # fwhm 3 mm, linear trend, high-pass at 1/128 Hz, as in both papers
    record: dict[str, Any] = {
        "architecture": model.architecture,
        "data": {
            "grid": {"shape": list(shape), "affine": affine.tolist(), "orientation": "LAS"},
            "normalisation": Z_SCORES, "tr_s": HCP_TR_S, "preprocessing": settings.model_dump(mode="json"),
        },
        "training": {"route": "supervised", "tasks": list(_STATES)},
        "n_units": None, "n_reported": None, "scores": [], "manifest": "", "licence": "",
        "source": {
            "title": f"{kind}: Thomas, Lindenberger, Samek & Müller (2021), arXiv:2111.01562",
            "licence": "none stated by the authors; not to be passed on", "redistributable": False,
        },
    }  # fmt: skip
    with TemporaryDirectory() as scratch:
        save_weights(model, Path(scratch) / "model.safetensors")
        return write_exported(Path(scratch) / "model.safetensors", _template_mask(), record, Path(folder))


def _template_mask() -> np.ndarray:
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return resample(np.asarray(image.dataobj, np.float32), image.affine, HCP_GRID, "nearest") > 0


def _check_content(kind: str, file: Path) -> None:
    """Raise ValueError unless the file has exactly the published content."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}; download it from the authors' repository")
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, more than the published file")
    content = file.read_bytes()
    of_git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    sort, expected = KNOWN[kind]
    found = hashlib.sha256(content).hexdigest() if sort == "sha256" else of_git
    if found != expected:
        pointer = ": it is a pointer of Git LFS" if content.startswith(b"version https://git-lfs") else ""
        raise ValueError(
            f"{file} is not the published file of {kind}{pointer} ({sort} {found}, expected {expected}); download it "
            "again from the authors' repository"
        )


# ---- DeepLight: a pickled dict of arrays


def read_2d(file: Path) -> dict[str, Tensor]:
    """The state of DeepLight from the authors' .npy.

    Raises
    ------
    ValueError
        If the file holds anything but the expected arrays.
    """
    named = {}
    for key, values in _pickled(file).items():
        variable = re.fullmatch(r"<tf\.Variable 'model/([\w/]+):0' shape=.{1,40} dtype=float32_ref>", str(key))
        named[variable[1] if variable else str(key)[:80]] = values
    _check_arrays(file, named, _shapes_2d())
    state: dict[str, Tensor] = {}
    for i in range(12):
        layer = f"conv2d_{2 * i + 1}"
        state[f"encoder.convolutions.{i}.weight"] = _tensor(named[f"{layer}/weights"].transpose(3, 2, 0, 1))
        state[f"encoder.convolutions.{i}.bias"] = _tensor(named[f"{layer}/biases"])
    for way, suffix in (("lstm_fw_26", ""), ("lstm_bw_27", "_reverse")):
        for ours, theirs in (("ih", "xh"), ("hh", "hh")):
            weight, bias = (np.split(named[f"{way}/{part}_{theirs}"], 4) for part in ("weights", "biases"))
            for name, gates in (("weight", weight), ("bias", bias)):
                entering, new, kept, leaving = gates  # their order; ours is entering, kept, new, leaving
                if (name, ours) == ("bias", "ih"):
                    kept = kept + 1  # which they add when it runs
                stacked = np.concatenate([entering, kept, new, leaving])
                state[f"encoder.lstm.{name}_{ours}_l0{suffix}"] = _tensor(stacked)
    state["head.weight"] = _tensor(named["linear_29/weights"].T)
    state["head.bias"] = _tensor(named["linear_29/biases"])
    return state


def _shapes_2d() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(zip((1, *_WIDTHS[:-1]), _WIDTHS, strict=True)):
        shapes |= {f"conv2d_{2 * i + 1}/weights": (3, 3, n_in, n_out), f"conv2d_{2 * i + 1}/biases": (n_out,)}
    for way in ("lstm_fw_26", "lstm_bw_27"):
        shapes |= {f"{way}/weights_xh": (256, 768), f"{way}/weights_hh": (256, 64)}
        shapes |= {f"{way}/biases_xh": (256,), f"{way}/biases_hh": (256,)}
    return shapes | {"linear_29/weights": (128, 16), "linear_29/biases": (16,)}


def _check_arrays(file: Path, found: Arrays, expected: dict[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name}: {found[name].shape if name in found else 'absent'}, expected {expected.get(name, 'none')}"
        for name in sorted({*found, *expected})
        if name not in found or name not in expected or found[name].shape != expected[name]
    ]
    wrong += [f"{name}: values that are no numbers" for name, of in found.items() if not np.isfinite(of).all()]
    if wrong:
        raise ValueError(f"{file} holds other arrays than the published ones: {'; '.join(wrong[:5])}")


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32, order="C"))


_OPCODES = {
    "PROTO", "FRAME", "GLOBAL", "STACK_GLOBAL", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "REDUCE", "BUILD", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
}  # fmt: skip


class _Type:
    """Stands for `numpy.dtype` of four-byte floats or of objects."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f4", "O8"):
            raise ValueError(f"it holds values of type {str(code)[:20]!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stands for `numpy.ndarray`, which this makes only if its bytes are as many as its shape says."""

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type):
            raise ValueError("it holds an array of no type")
        if kind.code == "O8":
            (self.value,) = content
            return
        if kind.order not in ("<", "=") or len(shape) > 5 or not all(type(n) is int and 0 < n < 1 << 20 for n in shape):
            raise ValueError(f"it holds an array of shape {str(shape)[:60]}")
        values = np.frombuffer(content, "<f4")
        self.value = values.reshape(shape, order="F" if by_columns else "C")


def _encoded(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which old pickles hold bytes."""
    if encoding != "latin1":
        raise ValueError(f"it holds text in {str(encoding)[:20]!r}")
    return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    """Knows the four names by which arrays are pickled, and gives stand-ins for them."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; raises UnpicklingError for any other."""
        known = {
            "_reconstruct": (("numpy.core.multiarray", "numpy._core.multiarray"), _Array),
            "ndarray": (("numpy",), "numpy.ndarray"),
            "dtype": (("numpy",), _Type),
            "encode": (("_codecs",), _encoded),
        }
        modules, stand_in = known.get(name, ((), None))
        if module not in modules:
            raise pickle.UnpicklingError(f"it asks for {module[:40]}.{name[:40]}")
        return stand_in


def _pickled(file: Path) -> dict[Any, np.ndarray]:
    """The dict of arrays in an .npy of one object."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        stream = io.BytesIO(file.read_bytes())
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("it has another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1000)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"it holds an array {shape} of {dtype}")
        content = stream.read()
        for n, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name not in _OPCODES:
                raise ValueError(f"it has the instruction {opcode.name}")
            if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > n:  # the memo would grow with it
                raise ValueError("it numbers what it does not hold")
        found = _Restricted(io.BytesIO(content)).load()
        values = found.value if isinstance(found, _Array) else None
        if not isinstance(values, dict) or not all(isinstance(of, _Array) for of in values.values()):
            raise ValueError("it holds no dict of arrays")
        arrays = {name: of.value for name, of in values.items()}
        if not all(isinstance(of, np.ndarray) for of in arrays.values()):
            raise ValueError("it holds no dict of arrays")
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
            OverflowError, RecursionError, MemoryError) as error:  # fmt: skip
        problem = str(error).split("\n", 1)[0][:200]
        raise ValueError(f"{file} is not the published file of thomas2021: {problem}") from None
    return arrays


# ---- 3D-DeepLight: a Keras model in HDF5


def read_3d(file: Path) -> dict[str, Tensor]:
    """The state of 3D-DeepLight from the authors' .hdf5; of the stored model, only its weights are read.

    Raises
    ------
    ValueError
        If the file holds anything but the expected datasets, or h5py is not installed.
    """
    named = _datasets(file)
    _check_arrays(file, named, _shapes_3d())
    state: dict[str, Tensor] = {}
    theirs = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for i in range(12):
        kernel = named[f"conv3d {i} kernel"].transpose(4, 3, 0, 1, 2)  # (z, y, x, in, out)
        state[f"encoder.layers.{i}.convolution.weight"] = _tensor(kernel)
        state[f"encoder.layers.{i}.convolution.bias"] = _tensor(named[f"conv3d {i} bias"])
        for ours, name in theirs.items():
            state[f"encoder.layers.{i}.norm.{ours}"] = _tensor(named[f"batch_normalization {i} {name}"])
        state[f"encoder.layers.{i}.norm.num_batches_tracked"] = torch.tensor(0)
    state["head.weight"] = _tensor(named["conv3d 12 kernel"][0, 0, 0].T)
    state["head.bias"] = _tensor(named["conv3d 12 bias"])
    return state


def _shapes_3d() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv3d 12 kernel": (1, 1, 1, 128, 16), "conv3d 12 bias": (16,)}
    for i, (n_in, n_out) in enumerate(zip((1, *_WIDTHS_3D[:-1]), _WIDTHS_3D, strict=True)):
        shapes |= {f"conv3d {i} kernel": (3, 3, 3, n_in, n_out), f"conv3d {i} bias": (n_out,)}
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"batch_normalization {i} {name}"] = (n_out,)
    return shapes


def _datasets(file: Path) -> Arrays:
    """Weights as `<kind of layer> <its place among these> <name>`; Keras numbers layers, from any number on."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"Keras models need the package h5py: {_INSTALL}") from None
    most = max(int(np.prod(shape)) for shape in _shapes_3d().values())
    found: dict[tuple[str, int, str], np.ndarray] = {}

    def parts(group: Any) -> dict[str, Any]:
        if len(group) > 100:
            raise ValueError("it has more groups than the model has layers")
        if linked := [name[:60] for name in group if not isinstance(group.get(name, getlink=True), h5py.HardLink)]:
            raise ValueError(f"{linked[0]} is a link to somewhere else")
        return {name: group[name] for name in group}

    def look(group: Any, layer: tuple[str, int], depth: int) -> None:
        for name, part in parts(group).items():
            if isinstance(part, h5py.Group) and depth < 4:
                look(part, layer, depth + 1)
            elif not isinstance(part, h5py.Dataset) or part.external or part.is_virtual:
                raise ValueError(f"{name[:60]} is no array")
            elif part.dtype != np.float32 or part.size is None or part.size > most:
                raise ValueError(f"{name[:60]} is no array of the model: {part.dtype} {part.shape}")
            else:
                found[(*layer, name.removesuffix(":0"))] = part[()]

    try:
        with h5py.File(file, "r") as stream:
            top = parts(stream)
            for name, group in parts(top.get("model_weights", stream)).items():
                layer = re.fullmatch(r"(conv3d|batch_normalization)(?:_v\d+)?(?:_(\d{1,6}))?", name)
                if layer and isinstance(group, h5py.Group):
                    look(group, (layer[1], int(layer[2] or 0)), 1)
                elif not isinstance(group, h5py.Group) or len(group):
                    raise ValueError(f"{name[:60]} is no layer of the model")
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError) as error:
        problem = str(error).split("\n", 1)[0][:200]
        raise ValueError(f"{file} is not the published file of thomas2021-3d: {problem}") from None
    places = {kind: sorted({n for other, n, _ in found if other == kind}) for kind in {kind for kind, *_ in found}}
    return {f"{kind} {places[kind].index(n)} {name}": values for (kind, n, name), values in found.items()}
