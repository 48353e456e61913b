"""Commands that take decoders to other people's data."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from deeplight_core.commands.options import DataRoot, Jobs, manifests_profile, own_profile, with_data

__all__ = ["decode", "export", "import_published", "push"]

Trained = Annotated[str, typer.Argument(help="Training folder of `pretrain` or `finetune`.", metavar="TRAINING")]
Licence = Annotated[str, typer.Option(help="Licence of the weights, e.g. CC0-1.0.")]


def export(
    training: Trained,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must be new or empty.")],
    licence: Licence = "",
) -> None:
    """Write a decoder for others: weights, record, mask and a model card, and nothing of any person.

    Example: `deeplight export runs/demo/pretraining-supervised-seed1-… -o mydecoder --licence CC0-1.0`
    """
    from deeplight_core.training import exported

    print(f"{exported.export(training, output, licence)}: model.safetensors, model.json, mask.nii.gz, README.md")


def push(
    training: Annotated[str, typer.Argument(help="Training folder, or exported folder.", metavar="TRAINING")],
    name: Annotated[str, typer.Argument(help="Repository of the Hugging Face hub: ORG/NAME.", metavar="ORG/NAME")],
    licence: Licence = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a decoder, exported first, to the Hugging Face hub; log in with `hf auth login`.

    Example: `deeplight push mydecoder mylab/mydecoder`
    """
    from deeplight_core.training import exported, hub

    folder = Path(training)
    with TemporaryDirectory() as scratch:
        if (folder / "scores.csv").is_file():  # a training's, which an exported folder lacks
            folder = exported.export(folder, Path(scratch) / "exported", licence)
        print(f"{hub.push(folder, name, private)}: give this name to `--from`")


def import_published(
    kind: Annotated[str, typer.Argument(help="thomas2021 (DeepLight) or thomas2021-3d.", metavar="KIND")],
    file: Annotated[Path, typer.Argument(help="The authors' file, which you have downloaded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it must be new or empty.")],
) -> None:
    """Make a checkpoint of weights that others have published; nothing in their file is run.

    Example: `deeplight import thomas2021 model-2D_DeepLight_desc-pretrained_model.npy -o thomas2021`
    """
    from deeplight_core.training import thomas2021

    print(f"{thomas2021.import_published(kind, file, output)}: give this folder to `--from`")


def decode(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a decoder, or ORG/NAME@REVISION of the hub.")],
    source: Annotated[str, typer.Argument(help="A run (NIfTI), a CSV of `deeplight manifest`, or a profile.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table (….tsv) to write; others go beside it.")],
    events: Annotated[Path | None, typer.Option(help="Of a single run: its events.tsv.")] = None,
    tr_s: Annotated[
        float | None, typer.Option("--tr", help="Of a single run: seconds, if neither sidecar nor header is right.")
    ] = None,
    data: DataRoot = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Scale probabilities by a temperature, found on held-out subjects.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Scale them by this one, found earlier.")] = None,
    jobs: Jobs = None,
) -> None:
    """Decode every volume and block of any run: what was this person doing? Events are not needed.

    Example: `deeplight decode mydecoder sub-01_task-rest_bold.nii.gz -o predictions.tsv`

    A study, with probabilities that mean what they say: `deeplight decode mydecoder mystudy.csv --calibrate -o all.tsv`
    """
    from deeplight_core import decoding

    if source.endswith((".nii", ".nii.gz")):
        with decoding.profile_of_image(Path(source), events, tr_s) as profile:
            found = decoding.decode(checkpoint, profile, calibrate, temperature, jobs)
    elif events or tr_s:
        raise ValueError(f"--events and --tr are for a single run; {source} has its own")
    else:
        profile = manifests_profile(Path(source)) if source.endswith(".csv") else own_profile(source)
        found = decoding.decode(checkpoint, with_data(profile, data), calibrate, temperature, jobs)
    for difference in found.about["differences"]:
        print(f"note: other data than the decoder was trained on: {difference}")
    if "decoded" in found.volumes:
        for (person, task, run), rows in found.volumes.groupby(["participant_id", "task", "run"], sort=False):
            shares = rows["decoded"].value_counts(normalize=True).head(3)
            print(f"{person}, {task}, run {run}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    for when, of in (found.about.get("calibration") or {}).items():
        print(
            f"{of['n']} volumes with a known state, {when}: accuracy {of['accuracy']:.1%}, mean confidence "
            f"{of['confidence']:.1%}, calibration error {of['ece']:.1%}, log loss {of['log_loss']:.3f}"
        )
    if calibrate:
        print(f"temperature {found.about['temperature']:.3f}; give it to `--temperature` for other runs")
    print(", ".join(map(str, decoding.write(found, output))))
