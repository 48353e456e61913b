"""Options that commands share, and the profile that they name."""

import os
from pathlib import Path
from typing import Annotated

import typer

from deeplight_core.config import Profile, load_profile
from deeplight_core.routes import PRECISIONS, ROUTES

__all__ = [
    "DataRoot",
    "Devices",
    "Fold",
    "Jobs",
    "Nodes",
    "Precision",
    "ProfileName",
    "Route",
    "Seed",
    "manifests_profile",
    "own_profile",
    "rank",
    "with_precision",
]

ProfileName = Annotated[str, typer.Argument(help="Name of a profile in profiles/, or a YAML file.", metavar="PROFILE")]
DataRoot = Annotated[Path | None, typer.Option("--data", help="Use this data folder instead of the profile's.")]
Jobs = Annotated[int | None, typer.Option(help="Worker processes; one per core by default.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the initialisation, the batches and the draw of subjects.", min=0)]
Devices = Annotated[int, typer.Option(help="GPUs per node, or processes where there is none.", min=1)]
Nodes = Annotated[int, typer.Option(help="Nodes; start one command per GPU with srun or torchrun.", min=1)]
Route = Annotated[
    str,
    typer.Option(help=f"Way to pre-train: {'; '.join(f'{name} ({route.paper})' for name, route in ROUTES.items())}."),
]
Fold = Annotated[int, typer.Option(help="Fold of cross-validation, from 1 (0: the manifest's own split).", min=0)]
Precision = Annotated[
    str | None, typer.Option(help="32-true or bf16-mixed, instead of the profile's; the same for both trainings.")
]


def own_profile(name: str, data: Path | None = None) -> Profile:
    """The profile of a name or file, with another data folder if one is given."""
    profile = load_profile(name)
    if data is None:
        return profile
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": str(data.absolute())})})


def with_precision(profile: Profile, precision: str | None) -> Profile:
    """The profile with another precision in all its trainings, so that a fine-tuning finds its pre-training."""
    if precision is None:
        return profile
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    content = profile.model_dump()
    for settings in (content["finetuning"], *(route["pretraining"] for route in content["routes"].values())):
        settings["precision"] = precision
    return Profile.model_validate(content)


def rank() -> int:
    """This process's number among those started together by torchrun, srun or Fabric."""
    return int(next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0))


def manifests_profile(path: Path) -> Profile:
    """The paper's recipe for a manifest's data; the notes beside the manifest give their place and states."""
    from deeplight_core.data.manifest import read_notes

    notes = read_notes(path)
    states = {"source": notes.pop("states"), "target": {}}
    data = {"manifest": path.absolute(), **notes, **states}
    return Profile.model_validate({"name": path.stem, "data": data})
