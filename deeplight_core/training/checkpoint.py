"""Weights in safetensors, everything else in JSON beside them; nothing is ever unpickled."""

import gzip
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deeplight_core.config import recorded_settings
from deeplight_core.data.images import UNREADABLE
from deeplight_core.data.store import Store
from deeplight_core.models import ENCODERS, Encoder, Model, build
from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.preparation import AtlasSettings, PreprocessingSettings
from deeplight_core.routes import ClipSettings
from deeplight_core.system.files import file_sha256, write_whole

__all__ = [
    "LARGEST_RECORD",
    "LARGEST_WEIGHTS",
    "Saved",
    "check_data",
    "data_facts",
    "keep_statistics",
    "load_mask",
    "load_model",
    "load_state",
    "read_record",
    "save_mask",
    "save_model",
    "save_state",
    "save_weights",
    "shuffle",
    "transfer",
]

LARGEST_RECORD, LARGEST_WEIGHTS = 4 << 20, 2 << 30  # bytes: more than any model has
_MOST_VOXELS = 1 << 26  # of a grid
_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}  # safetensors' names


def data_facts(store: Store) -> dict[str, Any]:
    """What a checkpoint records of its data.

    `grid` (shape, affine of the box that the model sees, orientation) and `normalisation` must agree with what the
    weights are used on; `tr_s` and `preprocessing` may differ.
    """
    grid = {
        "shape": list(store.shape), "affine": store.box_affine.round(4).tolist(), "orientation": store.orientation,
    }  # fmt: skip
    return {
        "grid": grid, "normalisation": store.normalisation, "tr_s": store.info["tr_s"],
        "preprocessing": store.info["preprocessing"],
    }  # fmt: skip


def check_data(record: dict[str, Any], folder: str | Path, facts: dict[str, Any]) -> list[str]:
    """Compare a checkpoint's data with those that it is used on.

    Returns
    -------
    permitted differences: of the repetition time and the settings of the preprocessing, `there` and `here`

    Raises
    ------
    ValueError
        If the grid (unless the encoder takes any) or the kind of normalisation differs.
    """
    there, name = record["data"], record["architecture"]["encoder"]["name"]
    wrong = []
    if name in ENCODERS and ENCODERS[name].needs_grid:
        wrong += [
            f"{key} {there['grid'][key]} there, {value} here"
            for key, value in facts["grid"].items()
            if there["grid"][key] != value
        ]
    if there["normalisation"] != facts["normalisation"]:
        wrong.append(f"values are {there['normalisation']} there, {facts['normalisation']} here")
    if wrong:
        raise ValueError(
            f"checkpoint {folder} was trained on another grid or other values: {'; '.join(wrong)}. Prepare the data on "
            "its grid (preprocessing.resample_to, crop), or pre-train on these data"
        )
    places = (f"checkpoint {folder}", "the store")
    both = [
        recorded_settings(PreprocessingSettings, of["preprocessing"], place).model_dump(mode="json")
        for of, place in zip((there, facts), places, strict=True)
    ]
    differing = {"tr_s": (there["tr_s"], facts["tr_s"])}
    differing |= {f"preprocessing.{key}": (both[0][key], both[1][key]) for key in both[0]}
    return [f"{key} {one} there, {other} here" for key, (one, other) in differing.items() if one != other]


def save_model(model: Model, folder: Path, record: dict[str, Any]) -> None:
    """Write `model.safetensors` and, last, `model.json` with the architecture and the record."""
    save_weights(model, folder / "model.safetensors")
    full = {"architecture": model.architecture, **record, "sha256": file_sha256(folder / "model.safetensors")}
    write_whole(folder / "model.json", lambda p: p.write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8"))


def save_weights(model: Model, path: Path) -> None:
    """Write a model's weights and buffers."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    write_whole(path, lambda p: p.write_bytes(save(tensors)))


def save_mask(mask: np.ndarray, affine: Any, folder: Path) -> None:
    """Write `mask.nii.gz`: the voxels (X, Y, Z) of the grid that the model sees; its bytes depend on nothing else."""
    image = nib.Nifti1Image(np.asarray(mask, np.uint8), np.asarray(affine, float)).to_bytes()
    write_whole(folder / "mask.nii.gz", lambda p: p.write_bytes(gzip.compress(image, mtime=0)))


# ---- reading: everything is checked before memory is taken for it


def _is_printed(name: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        raise ValueError("a name has no line breaks or signs that steer a terminal")
    return name


_Name = Annotated[str, Field(max_length=500), AfterValidator(_is_printed)]


class _Part(BaseModel):
    """An encoder or a head, as it is recorded."""

    model_config = ConfigDict(extra="forbid")
    name: str
    settings: dict[str, Any]
    shape: tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None = Field(None, min_length=3, max_length=3)
    targets: list[list[_Name] | _Name | dict[str, Any]] | None = None


class _Architecture(BaseModel):
    encoder: _Part
    head: _Part

    @model_validator(mode="after")
    def _is_whole(self) -> "_Architecture":
        if self.encoder.shape is None or self.head.targets is None:
            raise ValueError("an encoder has a shape, a head has targets")
        names = [json.dumps(target) for target in self.head.targets]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is there twice")
        pairs = [isinstance(target, list) and len(target) == 2 for target in self.head.targets]
        if self.head.name == "classes" and not (pairs and all(pairs)):
            raise ValueError("a head for states has pairs of a task and a state")
        if math.prod(self.encoder.shape) > _MOST_VOXELS:
            raise ValueError(f"a grid of {self.encoder.shape} has more than {_MOST_VOXELS:,} voxels")
        return self


_Four = Field(min_length=4, max_length=4)


class _Grid(BaseModel):
    shape: tuple[int, int, int]
    affine: Annotated[list[Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], _Four]], _Four]
    orientation: Annotated[str, Field(pattern=r"^[RLAPSI]{3}$")]

    @model_validator(mode="after")
    def _agrees(self) -> "_Grid":
        there = "".join(axis or "?" for axis in nib.aff2axcodes(self.affine))
        if np.linalg.det(np.array(self.affine)) == 0 or there != self.orientation:
            raise ValueError(f"an affine of orientation {there} is not one of orientation {self.orientation}")
        return self


class _Data(BaseModel):
    grid: _Grid
    normalisation: Annotated[str, Field(max_length=200)]
    tr_s: Annotated[float, Field(gt=0, lt=1e4)] | None
    preprocessing: dict[str, Any]


class _Told(BaseModel):
    """What a record may tell of the training, beside its settings."""

    units: list[str] = []
    reported: list[str] = []
    tasks: list[_Name] = []
    clip: ClipSettings | None = None
    atlas: AtlasSettings | None = None


class _Source(BaseModel):
    """Whose weights a decoder has, or started from."""

    title: _Name
    licence: _Name
    redistributable: bool = True


class _Record(BaseModel):
    """What every record holds. Others may be there."""

    architecture: _Architecture
    data: _Data
    training: _Told = _Told()
    source: _Source | None = None
    datasets: list[str] = []
    n_units: int | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read_record(folder: str | Path) -> dict[str, Any]:
    """The JSON record of a checkpoint folder.

    Raises
    ------
    ValueError
        If there is no whole checkpoint, or its record is damaged, of an earlier version, or none of a checkpoint.
    """
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise ValueError(
            f"there is no finished checkpoint in {folder} (model.json); run the pre-training first, or name a "
            "finished training's folder"
        )
    if (size := path.stat().st_size) > LARGEST_RECORD:
        raise ValueError(f"{path} is no checkpoint's record: it has {size:,} bytes, more than any")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; get the checkpoint again, or train it anew") from error
    architecture = record.get("architecture") if isinstance(record, dict) else None
    if not isinstance(architecture, dict) or "encoder" not in architecture:
        raise ValueError(
            f"{path} is of an earlier version of this software, which did not record the grid that the model sees; "
            "train it again (`deeplight pretrain` or `deeplight finetune`)"
        )
    try:
        _Record.model_validate(record)
    except (ValidationError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint's record: {_first_problem(error)}") from None
    recorded_settings(PreprocessingSettings, record["data"]["preprocessing"], str(path))
    return {"training": {}, **record}


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error).split("\n", 1)[0][:300]
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # without the names of types
    return f"{place or 'it'}: {first['msg']}, got {first['input']!r:.100}"


def _expected(folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """Name, shape and type of every tensor of the recorded model; no memory is taken."""
    try:
        with torch.device("meta"):
            return build(record["architecture"]).state_dict()
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{folder / 'model.json'} describes no model of this version: {_first_problem(error)}"
        ) from None


def _tensors(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's tensors, if they are those of its record."""
    path, expected = folder / "model.safetensors", _expected(folder, record)
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder, or train again")
    size = sum(tensor.numel() * tensor.itemsize for tensor in expected.values())
    if size > LARGEST_WEIGHTS:
        raise ValueError(f"{folder / 'model.json'} describes weights of {size:,} bytes, more than any model has")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}; get the checkpoint again, or train it anew") from error
    wanted = {name: (tuple(tensor.shape), _TYPES[tensor.dtype]) for name, tensor in expected.items()}
    wrong = [
        f"{name}: {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} expected"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{path} holds other weights than model.json describes: {'; '.join(wrong[:5])}{more}")
    if file_sha256(path) != record["sha256"]:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in model.json; get it again, or train it anew")
    tensors = dict(load_file(path))
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} holds weights that are no numbers: {', '.join(bad[:5])}")
    return tensors


def load_model(folder: str | Path) -> tuple[Model, dict[str, Any]]:
    """Build the model of a checkpoint folder, weights and all; returns it with its record."""
    folder = Path(folder)
    record = read_record(folder)
    tensors = _tensors(folder, record)
    model = build(record["architecture"])
    model.load_state_dict(tensors, strict=True)
    return model, record


def load_mask(folder: str | Path, record: dict[str, Any]) -> np.ndarray:
    """The voxels (X, Y, Z) that a checkpoint's model sees, bool.

    Raises
    ------
    ValueError
        If the file is missing, damaged, or not on the grid of the record.
    """
    path, shape = Path(folder) / "mask.nii.gz", tuple(record["data"]["grid"]["shape"])
    room = math.prod(shape) + 4096  # bytes of the image: one for each voxel, and its header
    if not path.is_file():
        raise ValueError(f"{path} is missing; a checkpoint of this version has one, so train or export it again")
    try:
        with gzip.open(path) as stream:
            content = stream.read(room + 1)
        if len(content) > room:
            raise ValueError(f"it holds more than a mask of {shape} takes")
        image = nib.Nifti1Image.from_bytes(content)
        if image.shape != shape or image.get_data_dtype() != np.uint8:
            raise ValueError(f"it holds {image.get_data_dtype()} {image.shape}, not uint8 {shape}")
        if not np.allclose(image.affine, record["data"]["grid"]["affine"], atol=1e-3):
            raise ValueError("its affine is not that of model.json")
        mask = np.asarray(image.dataobj) > 0
    except UNREADABLE as error:
        raise ValueError(f"{path} is no mask of this checkpoint: {error}") from error
    if not mask.any():
        raise ValueError(f"{path} is empty: no voxel is above zero")
    return mask


def transfer(
    model: Model, folder: str | Path, facts: dict[str, Any], blocks: int | None = None
) -> tuple[list[str], list[str]]:
    """Copy the encoder, and nothing else, from a checkpoint into `model`.

    Parameters
    ----------
    facts : `data_facts` of the data that the model is going to see
    blocks : copy only so many of the encoder's first blocks (None = the whole encoder)

    Returns
    -------
    names of the checkpoint's weights that were left out, and the permitted differences of the data (see `check_data`)

    Raises
    ------
    ValueError
        If the checkpoint's data do not agree, any weight to copy does not fit, or the encoder has fewer blocks.
    """
    folder = Path(folder)
    record = read_record(folder)
    differing = check_data(record, folder, facts)
    tensors = _tensors(folder, record)
    there = model.encoder.blocks
    if blocks is not None and blocks > len(there):
        raise ValueError(f"cannot transfer {blocks} blocks; the encoder has {len(there)}: {', '.join(there)}")
    copied = ("encoder.",) if blocks is None else tuple(f"encoder.{block}." for block in there[:blocks])
    left_out = [name for name in tensors if not name.startswith(copied)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(copied)}
    misfits = [
        f"{name}: {tuple(kept[name].shape) if name in kept else 'absent'} there, "
        f"{tuple(own[name].shape) if name in own else 'absent'} here"
        for name in sorted({*kept, *own})
        if name not in kept or name not in own or kept[name].shape != own[name].shape
    ]
    if misfits:
        raise ValueError(f"checkpoint {folder} does not fit the model:\n" + "\n".join(f"  {m}" for m in misfits))
    model.load_state_dict(kept, strict=False)
    return left_out, differing


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: dict[str, Tensor],
    step: int,
    precision: str,
    seconds: float = 0.0,
) -> None:
    """Write what a training needs to go on: the model's weights and buffers, the optimiser's moments, other tensors.

    With them go the step, the precision and the processor seconds taken so far. The previous state stays until this one
    is whole.
    """
    tensors = {**others, **{f"model.{name}": tensor for name, tensor in model.state_dict().items()}}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():  # a weight that was never trained has none
            tensors[f"adam.{key}.{name}"] = value
    data = save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        {"step": str(step), "precision": precision, "seconds": str(seconds)},
    )
    write_whole(path, lambda p: p.write_bytes(data))


class Saved(NamedTuple):
    """A restored state: the step to go on with, other tensors, the processor seconds taken so far."""

    step: int
    others: dict[str, Tensor]
    seconds: float


@torch.no_grad()
def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str) -> Saved:
    """Restore a saved state; without one, start at step 0.

    Raises
    ------
    ValueError
        If the file is damaged, or was computed in another precision.
    """
    if not path.is_file():
        return Saved(0, {}, 0.0)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            step, begun_in, seconds = int(about["step"]), about["precision"], float(about["seconds"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no dict
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensors.pop(f"model.{name}"))
        for name, parameter in model.named_parameters():
            prefixes = {key: f"adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            state = {key: tensors.pop(stored) for key, stored in prefixes.items() if stored in tensors}
            if state:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device)
                    if key == "step"
                    else torch.empty_like(parameter).copy_(value)  # in the weight's memory format
                    for key, value in state.items()
                }
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it to train from the start") from error
    if begun_in != precision:
        raise ValueError(
            f"{path} was begun in {begun_in}, and this machine computes in {precision}; go on where it was begun, or "
            "delete it to train from the start"
        )
    return Saved(step, tensors, seconds)


@torch.no_grad()
def shuffle(module: nn.Module, seed: int) -> None:
    """Put the entries of every weight tensor in random order: the same distribution in every layer, no features.

    An LSTM's tensors stack its four gates, which differ (the forget gate's bias): each gate keeps its own.
    """
    random = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        for weight in layer.parameters(recurse=False):
            for part in weight.chunk(4) if isinstance(layer, nn.LSTM) else [weight]:
                order = torch.randperm(part.numel(), generator=random)
                part.copy_(part.flatten()[order].view_as(part))


@torch.no_grad()
def keep_statistics(encoder: Encoder, seed: int) -> None:
    """Draw all of an encoder's weights anew, but for the statistics, scales and shifts of its batch normalisation."""
    kept = {
        f"{name}.{key}": tensor.clone()
        for name, part in encoder.named_modules()
        if isinstance(part, BatchNorm)
        for key, tensor in part.state_dict().items()
    }
    if not kept:
        raise ValueError(f"encoder {encoder.name} has no batch normalisation whose statistics could be kept")
    torch.manual_seed(seed)
    encoder.initialise()
    encoder.load_state_dict(kept, strict=False)
