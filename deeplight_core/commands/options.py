"""Options that commands share, and the profile that they name."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from deeplight_core.config import Profile, load_profile
from deeplight_core.preparation import ConfoundSettings, Strategy
from deeplight_core.routes import PRECISIONS, ROUTES

__all__ = [
    "DataRoot",
    "Devices",
    "Drop",
    "Example",
    "Fold",
    "Hrf",
    "Jobs",
    "Lag",
    "Nodes",
    "Precision",
    "ProfileName",
    "Route",
    "Seed",
    "Skip",
    "Strategies",
    "Window",
    "labelling",
    "manifests_profile",
    "own_profile",
    "rank",
    "with_data",
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

Lag = Annotated[float | None, typer.Option("--lag", help="Seconds by which labels are shifted for the lag.", min=0)]
Skip = Annotated[
    float | None, typer.Option("--skip", help="Seconds dropped at the start of a block (default: two TRs).", min=0)
]
Drop = Annotated[
    int | None, typer.Option("--drop-volumes", help="Leave out the first n volumes of every run.", min=0)
]  # fmt: skip
Example = Annotated[
    Literal["volume", "window", "lsa", "lss"] | None,
    typer.Option(
        help="What a decoder learns from: each volume of a block or, of each trial, the mean of a window, or its beta "
        "(least squares all, or separate)."
    ),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="--example window: its first and last second, from the trial's onset (default: 4 8)."),
]
Hrf = Annotated[str | None, typer.Option(help="--example lsa, lss: nilearn's name of the response, e.g. glover.")]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--confounds",
        help="Regress out fMRIPrep's confounds: motion, motion=basic, wm_csf, compcor, high_pass, scrub … (names of "
        "nilearn's load_confounds), fd_threshold=0.2; repeat for several.",
    ),
]


def own_profile(name: str, data: Path | None = None) -> Profile:
    """The profile of a name or file, with another data folder if one is given.

    If it names a checkpoint, its runs are brought to the checkpoint's grid.
    """
    profile = with_data(load_profile(name), data)
    if profile.checkpoint is None:
        return profile
    from deeplight_core.experiment import started_from

    return started_from(profile, profile.checkpoint)


def with_data(profile: Profile, data: Path | None) -> Profile:
    """The profile with another data folder, if one is given."""
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


def labelling(
    lag_s: float | None, skip_s: float | None, example: str | None, window_s: tuple[float, float] | None,
    hrf: str | None, confounds: list[str] | None, drop_volumes: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The settings of the preprocessing that these options name."""
    if window_s and example != "window":
        raise ValueError("--window is for --example window")
    if hrf and example not in ("lsa", "lss"):
        raise ValueError("--hrf is for --example lsa and --example lss")
    asked: dict[str, Any] = {"lag_s": lag_s, "skip_s": skip_s, "drop_volumes": drop_volumes}
    asked["example"] = {"kind": example, "window_s": window_s, "hrf": hrf}
    asked["example"] = {key: value for key, value in asked["example"].items() if value} or None
    if confounds:
        named = [strategy.partition("=") for strategy in confounds]
        others = {*ConfoundSettings.model_fields} - {*get_args(Strategy)}  # such as fd_threshold
        asked["confounds"] = {"strategy": [name for name, _, _ in named if name not in others]}
        asked["confounds"] |= {name: value for name, _, value in named if value}
    return {key: value for key, value in asked.items() if value is not None}


def rank() -> int:
    """This process's number among those started together by torchrun, srun or Fabric."""
    return int(next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0))


def manifests_profile(path: Path) -> Profile:
    """The paper's recipe for a manifest's data; the notes beside the manifest give their place and states."""
    from deeplight_core.data.manifest import read_notes

    notes = read_notes(path)
    states = {"source": notes.pop("states"), "target": {}}
    preprocessing = notes.pop("preprocessing", {})
    data = {"manifest": path.absolute(), **notes, **states}
    profile = Profile.model_validate({"name": path.stem, "data": data})
    return profile.overridden({"preprocessing": preprocessing}) if preprocessing else profile
