"""Weights in safetensors, everything else in JSON beside them; nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deeplight_core.config import ModelSettings
from deeplight_core.models import MODELS
from deeplight_core.system.files import file_sha256, write_whole

__all__ = [
    "check_data",
    "data_facts",
    "load_model",
    "load_state",
    "read_record",
    "save_model",
    "save_state",
    "shuffle",
    "transfer",
]


def data_facts(info: dict[str, Any], shape: tuple[int, ...], affine: np.ndarray) -> dict[str, Any]:
    """What weights and data must agree on: the grid, TR and preprocessing, from a store's `info`."""
    return {
        "shape": list(shape), "affine": affine.round(4).tolist(), "tr_s": info["tr_s"],
        "preprocessing": info["preprocessing"],
    }  # fmt: skip


def check_data(record: dict[str, Any], folder: str | Path, facts: dict[str, Any]) -> None:
    """Raise ValueError, saying what differs, unless a checkpoint's data agree with `facts`."""
    if differing := [key for key, value in facts.items() if record["data"].get(key) != value]:
        raise ValueError(
            f"checkpoint {folder} was trained on data of other {', '.join(differing)}: "
            + "; ".join(f"{key} {record['data'].get(key)}, here {facts[key]}" for key in differing)
        )


def save_model(model: nn.Module, folder: Path, record: dict[str, Any]) -> None:
    """Write `model.safetensors` and, last, `model.json` with the architecture and the record."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    write_whole(folder / "model.safetensors", lambda p: p.write_bytes(save(tensors)))
    full = {"architecture": model.architecture, **record, "sha256": file_sha256(folder / "model.safetensors")}
    write_whole(folder / "model.json", lambda p: p.write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8"))


def read_record(folder: str | Path) -> dict[str, Any]:
    """The JSON record of a checkpoint folder; raises ValueError if there is no whole checkpoint."""
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise ValueError(f"there is no finished checkpoint in {folder} (model.json); run the pre-training first")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return record


def _tensors(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    path = folder / "model.safetensors"
    try:
        if file_sha256(path) == record["sha256"]:
            return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path} is damaged: its sha256 is not the one in model.json")


def load_model(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a checkpoint folder, weights and all; returns it with its record."""
    folder = Path(folder)
    record = read_record(folder)
    architecture = dict(record["architecture"])
    settings = ModelSettings.model_validate(architecture.pop("settings"))
    model = MODELS[architecture.pop("model")](**architecture, settings=settings)
    model.load_state_dict(_tensors(folder, record), strict=True)
    return model, record


def transfer(model: nn.Module, folder: str | Path, facts: dict[str, Any]) -> list[str]:
    """Copy all weights but the output layer's from a checkpoint into `model`.

    Parameters
    ----------
    facts : `data_facts` of the data that the model is going to see

    Returns
    -------
    the names of the checkpoint's weights that were left out

    Raises
    ------
    ValueError
        If the checkpoint's data differ in grid, TR or preprocessing, or any weight but the output layer's does not fit.
    """
    folder = Path(folder)
    record = read_record(folder)
    check_data(record, folder, facts)
    tensors = _tensors(folder, record)
    left_out = [name for name in tensors if name.startswith("head.")]
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    misfits = [
        f"{name}: {tuple(kept[name].shape) if name in kept else 'absent'} there, "
        f"{tuple(own[name].shape) if name in own else 'absent'} here"
        for name in sorted({*kept, *own})
        if name not in kept or name not in own or kept[name].shape != own[name].shape
    ]
    if misfits:
        raise ValueError(f"checkpoint {folder} does not fit the model:\n" + "\n".join(f"  {m}" for m in misfits))
    model.load_state_dict(kept, strict=False)
    return left_out


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: dict[str, Tensor],
    step: int,
    precision: str,
) -> None:
    """Write what a training needs to go on: weights, the optimiser's moments, other tensors by name, the step.

    The state before stays until this one is whole.
    """
    tensors = dict(others)
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        for key, value in optimizer.state.get(parameter, {}).items():  # none of a weight that has not learnt yet
            tensors[f"adam.{key}.{name}"] = value
    data = save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        {"step": str(step), "precision": precision},
    )
    write_whole(path, lambda p: p.write_bytes(data))


@torch.no_grad()
def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
) -> tuple[int, dict[str, Tensor]]:
    """Put a saved state back, if there is one; the step to go on with (0 without), and the other tensors.

    Raises
    ------
    ValueError
        If the file is damaged, or was computed in another precision.
    """
    if not path.is_file():
        return 0, {}
    try:
        with safe_open(path, framework="pt") as file:
            step, begun_in = int(file.metadata()["step"]), file.metadata()["precision"]
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no dict
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.pop(f"model.{name}"))
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
    return step, tensors


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
