"""Commands that train decoders and evaluate them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deeplight_core.commands.options import (
    Devices,
    Fold,
    Jobs,
    Nodes,
    Precision,
    ProfileName,
    Route,
    Seed,
    own_profile,
    rank,
    with_precision,
)
from deeplight_core.routes import VARIANTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate", "finetune", "pretrain", "sweep"]


def pretrain(
    profile: ProfileName,
    route: Route = "supervised",
    seed: Seed = 1,
    fold: Fold = 0,
    devices: Devices = 1,
    nodes: Nodes = 1,
    precision: Precision = None,
) -> None:
    """Pre-train an encoder on the source by one of the routes.

    Example: `deeplight pretrain demo --route supervised --seed 1`

    On the four GPUs of one machine: `deeplight pretrain paper --devices 4 --precision bf16-mixed`

    On two nodes: `srun --nodes 2 --ntasks-per-node 4 --kill-on-bad-exit deeplight pretrain paper --devices 4 --nodes
    2`, or `torchrun --nnodes 2 --nproc-per-node 4 … -m deeplight_core.cli pretrain paper --devices 4 --nodes 2`
    """
    from deeplight_core import experiment

    training = experiment.pretrain(with_precision(own_profile(profile), precision), seed, route, fold, devices, nodes)
    if rank() != 0:
        return
    if getattr(training.settings, "weights", None) is not None:  # taken, not trained: nobody is decoded
        from deeplight_core.training.checkpoint import read_record

        print(f"weights of {read_record(training.folder)['weights']['origin']}: {training.folder}")
    else:
        _print_scores(training.folder, training.results(), training.predictions())


def finetune(
    profile: ProfileName,
    variant: Annotated[str, typer.Option(help=f"Decoder to train: {', '.join(VARIANTS)}.")] = "pretrained",
    fraction: Annotated[float, typer.Option(help="Fraction of the training subjects, above 0 and at most 1.")] = 1.0,
    checkpoint: Annotated[
        str, typer.Option("--from", help="Start from this checkpoint: its folder, or ORG/NAME@REVISION of the hub.")
    ] = "",
    seed: Seed = 1,
    fold: Fold = 0,
    devices: Devices = 1,
    nodes: Nodes = 1,
    precision: Precision = None,
) -> None:
    """Train one variant on a fraction of the target's training data.

    Example: `deeplight finetune demo --variant pretrained --fraction 0.05 --seed 1`

    From a decoder of others, with the study's runs brought to its grid: `deeplight finetune mystudy --from exported`
    """
    from deeplight_core import experiment
    from deeplight_core.training.checkpoint import load_model
    from deeplight_core.training.hub import local

    settings = with_precision(own_profile(profile), precision)
    if checkpoint:
        settings = experiment.started_from(settings, checkpoint)
    if settings.checkpoint:
        load_model(local(settings.checkpoint))  # refuses a bad one before runs are read
        if settings.preprocessing.mask and rank() == 0:
            print(f"{settings.name}: runs are brought to the checkpoint's grid, in {settings.store}", flush=True)
        store = experiment.prepare_data(settings)
        if rank() == 0 and not store.is_structural:
            mm = " × ".join(f"{size:g}" for size in store.voxel_mm)
            n = f"{int(store.runs['resampled'].sum())} of {len(store.runs)} runs"
            print(f"{n} were resampled; the grid has {store.shape} voxels of {mm} mm, {store.orientation}", flush=True)
    training = experiment.finetune(settings, variant, fraction, seed, fold, devices, nodes)
    if rank() == 0:
        _print_scores(training.folder, training.results(), training.predictions())


def sweep(
    profile: ProfileName,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="A control instead of the sweep; repeat for several.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--transfer", help="Only this transfer of the profile; repeat for several.")
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Prepare the data, then do all trainings of a profile's sweep, several at a time; finished ones are found.

    Of a profile with transfers, these are its pre-trainings and the sweeps of its transfers.

    Example: `deeplight sweep autoencoder`
    """
    from deeplight_core import codes, experiment
    from deeplight_core.sweeps import changed, planned

    own = own_profile(profile)
    transfers = [own.transferred(name) for name in only or own.transfers]
    decoded, asked = transfers or [own], names or ["sweep"]
    needed = [own, *(settings.origin for settings in decoded), *decoded]
    needed += [changed(p, cell.change, cell.target) for p in decoded for name in asked for cell in planned(p, name)]
    for settings in {settings.store: settings for settings in reversed(needed)}.values():
        experiment.prepare_data(settings, jobs)
    pretrainings = list(codes.of_report(own).values()) if transfers else []
    experiment.train_all(decoded, asked, pretrainings, jobs)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder, with model.safetensors and model.json.")],
    profile: ProfileName,
    split: Annotated[str, typer.Option(help="train, validation or test (default: the reported one).")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV for the results table.")] = None,
) -> None:
    """Apply a trained decoder to a profile's prepared data: the scores of each subject.

    Example: `deeplight evaluate runs/demo/finetuning-pretrained-0.05-seed1-… demo`
    """
    from deeplight_core import experiment

    table = experiment.evaluate(own_profile(profile), checkpoint, split)
    if output:
        table.to_csv(output, index=False)
    shown = table[["task", "target", "subject", "level", "measure", "score", "n"]]
    print(shown.to_string(index=False, float_format="{:.3f}".format))
    _print_scores(checkpoint, table)


def _print_scores(folder: Path, table: "pd.DataFrame", predictions: "pd.DataFrame | None" = None) -> None:
    """Print a training's folder, its mean score over subjects for each task and level, and measures of the group."""
    from deeplight_core.analysis.measures import MEASURES
    from deeplight_core.analysis.scores import group_scores

    print(folder)
    for (task, target, level, measure), rows in table.groupby(["task", "target", "level", "measure"], sort=False):
        said = MEASURES[str(measure)].format(rows["score"].mean())
        print(f"{task}, {target}, by {level}: {MEASURES[str(measure)].title} {said} (mean of {len(rows)})")
    if predictions is None or not any(str(column).startswith("true ") for column in predictions):
        return  # states have many volumes, and an AUC with its interval would take minutes
    for row in group_scores(predictions).to_dict("records"):
        of = MEASURES[row["measure"]]
        value, low, high = (of.format(row[name]) for name in ("value", "low", "high"))
        print(f"{row['target']}, all subjects together: {of.title} {value} [{low}, {high}]")
