"""The `deeplight` command: a thin face over the functions that the notebooks call."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from deeplight_core.config import Profile, SimulationSettings, load_profile, project_root

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Transfer learning for whole-brain fMRI: simulate, prepare, pre-train, fine-tune, evaluate.",
)  # fmt: skip
ProfileName = Annotated[str, typer.Argument(help="Name of a profile in profiles/, or a YAML file.", metavar="PROFILE")]
DataRoot = Annotated[Path | None, typer.Option("--data", help="Use this data folder instead of the profile's.")]
Jobs = Annotated[int | None, typer.Option(help="Worker processes; one per core by default.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the initialisation, the batches and the draw of subjects.", min=0)]


def _profile(name: str, data: Path | None = None) -> Profile:
    path = Path(name) if name.endswith((".yaml", ".yml")) else project_root() / "profiles" / f"{name}.yaml"
    profile = load_profile(path)
    if data is None:
        return profile
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": data.absolute()})})


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder to fill; its manifest.csv lists what is in it.")],
    train: Annotated[int, typer.Option(help="Training subjects.", min=1)] = 30,
    validation: Annotated[int, typer.Option(help="Validation subjects.", min=1)] = 10,
    tr_s: Annotated[float, typer.Option("--tr", help="Repetition time in seconds.", min=0.1, max=10)] = 2.16,
    resolution_mm: Annotated[float, typer.Option("--resolution", help="Voxel edge in mm, 2 to 10.")] = 8.0,
    contrast: Annotated[float, typer.Option(help="Amplitude of the activation in percent of the baseline.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the dataset.", min=0)] = 0,
    runs: Annotated[list[str] | None, typer.Option("--run", help="Run name; repeat for several.")] = None,
    jobs: Jobs = None,
) -> None:
    """Simulate a dataset in HCP's file layout, with planted activations.

    Example: `deeplight simulate data/mine --train 8 --validation 4 --resolution 6`
    """
    from pydantic import ValidationError

    from deeplight_core import manifest
    from deeplight_core import simulate as simulation

    try:
        settings = SimulationSettings(resolution_mm=resolution_mm, contrast=contrast, seed=seed)
    except ValidationError as error:
        raise ValueError("; ".join(f"{e['loc'][0]}: {e['msg']}, got {e['input']}" for e in error.errors())) from None
    table = simulation.plan(train, validation, tr_s, tuple(runs or ("LR",)))
    simulation.simulate(table, folder, settings, jobs)
    manifest.write_manifest(table, folder / "manifest.csv")
    print(f"{len(table)} runs of {train + validation} simulated subjects, listed in {folder / 'manifest.csv'}")


@app.command(name="manifest")
def make_manifest(
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")],
    hcp: Annotated[Path | None, typer.Option(help="Root of a folder in HCP's layout.")] = None,
    bids: Annotated[Path | None, typer.Option(help="Root of a BIDS folder.")] = None,
    derivatives: Annotated[
        str, typer.Option(help="Preprocessed images below the BIDS root, e.g. derivatives/fmriprep.")
    ] = "",
    space: Annotated[str, typer.Option(help="Only images of this template, e.g. MNI152NLin2009cAsym.")] = "",
    res: Annotated[str, typer.Option(help="Only images of this resolution, e.g. 2.")] = "",
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeat for several.")] = None,
    split_unit: Annotated[str, typer.Option(help="What is split: subject or, of one subject, run.")] = "subject",
    validation: Annotated[int, typer.Option(help="Subjects (or runs) to hold out.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0)] = 0,
) -> None:
    """Scan an HCP-layout or BIDS folder into a manifest with a fixed train/validation split.

    What was left out is listed beside the manifest, in a file that ends in `.left-out.txt`.

    Example: `deeplight manifest --bids /data/mystudy --validation 4 -o mystudy.csv`

    With fMRIPrep: `… --derivatives derivatives/fmriprep --space MNI152NLin2009cAsym`
    """
    from deeplight_core import manifest, scan

    if (hcp is None) == (bids is None):
        raise ValueError("give one of --hcp ROOT and --bids ROOT")
    if split_unit not in ("subject", "run"):
        raise ValueError(f"--split-unit must be subject or run, got {split_unit!r}")
    unit: Literal["subject", "run"] = "run" if split_unit == "run" else "subject"
    if hcp is not None and (derivatives or space or res):
        raise ValueError("--derivatives, --space and --res are for --bids")
    if hcp is not None:
        table, warnings = scan.scan_hcp(hcp, tasks) if tasks else scan.scan_hcp(hcp)
    else:
        table, warnings = scan.scan_bids(bids or Path(), tasks or None, derivatives, space, res)
    table = manifest.assign_splits(table, unit, validation, seed)
    manifest.write_manifest(table, output)
    left_out = output.with_suffix(".left-out.txt")
    left_out.unlink(missing_ok=True)
    if warnings:
        left_out.write_text("\n".join(warnings) + "\n", encoding="utf-8")
        print(f"{len(warnings)} warning(s), all of them in {left_out}:", file=sys.stderr)
    for warning in warnings[:20]:
        print(f"warning: {warning}", file=sys.stderr)
    counts = manifest.unit_names(table, unit).groupby(table["split"]).nunique()
    print(f"{output}: {len(table)} runs; " + ", ".join(f"{n} {unit}s for {split}" for split, n in counts.items()))


@app.command()
def prepare(
    profile: ProfileName,
    data: DataRoot = None,
    jobs: Jobs = None,
    device: Annotated[str, typer.Option(help="Where to smooth and clean: cpu or cuda.")] = "cpu",
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Prepare what can be; list all failures.")] = False,
) -> None:
    """Preprocess and label the profile's runs into its volume store; simulate them first if the profile says so.

    Example: `deeplight prepare demo`
    """
    from deeplight_core import experiment

    store = experiment.prepare_data(_profile(profile, data), jobs, device, keep_going)
    print(f"{store.path}: {len(store.index)} volumes of {len(store.runs)} runs, {store.info['n_voxels']} voxels each")


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Folder of a volume store.")]) -> None:
    """Check a store: checksums of all files, counts of volumes and voxels.

    Example: `deeplight verify runs/demo/store`
    """
    from deeplight_core import store as stores

    if problems := stores.verify(store):
        raise ValueError(f"{store} has {len(problems)} problem(s):\n" + "\n".join(f"  {p}" for p in problems))
    opened = stores.open_store(store)
    print(
        f"{store} is whole: {len(opened.index)} volumes of {len(opened.runs)} runs, manifest {opened.info['manifest']}"
    )


@app.command()
def pretrain(profile: ProfileName, seed: Seed = 1) -> None:
    """Pre-train a decoder on the source states.

    Example: `deeplight pretrain demo --seed 1`
    """
    from deeplight_core import experiment

    run = experiment.pretrain(_profile(profile), seed)
    print(f"{run.folder}\n{run.results().groupby('task')['accuracy'].mean().to_string(float_format='{:.1%}'.format)}")


@app.command()
def finetune(
    profile: ProfileName,
    variant: Annotated[str, typer.Option(help="pretrained, scratch or linear.")],
    fraction: Annotated[float, typer.Option(help="Fraction of the training subjects, above 0 and at most 1.")],
    seed: Seed = 1,
) -> None:
    """Train one variant on a fraction of the target states' training data.

    Example: `deeplight finetune demo --variant pretrained --fraction 0.05 --seed 1`
    """
    from deeplight_core import experiment

    run = experiment.finetune(_profile(profile), variant, fraction, seed)
    print(f"{run.folder}\nvalidation accuracy {run.results()['accuracy'].mean():.1%}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder with model.safetensors and model.json.")],
    profile: ProfileName,
    split: Annotated[str, typer.Option(help="train or validation.")] = "validation",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV for the results table.")] = None,
) -> None:
    """Apply a trained decoder to a profile's prepared data: accuracy per subject.

    Example: `deeplight evaluate runs/demo/finetuning-pretrained-0.05-seed1-… demo`
    """
    from deeplight_core import experiment

    table = experiment.evaluate(_profile(profile), checkpoint, split)
    if output:
        table.to_csv(output, index=False)
    print(table[["task", "subject", "accuracy", "n_volumes"]].to_string(index=False, float_format="{:.3f}".format))
    print(f"mean over subjects: {table['accuracy'].mean():.1%}")


@app.command()
def book(
    folder: Annotated[Path, typer.Argument(help="Folder for the book's source; replaced if it exists.")],
    built_in: Annotated[str, typer.Option(help="Profile on the built-in dataset.")] = "demo",
    real: Annotated[str, typer.Option(help="Profile on real data.")] = "haxby",
) -> None:
    """Put the book's pages and the executed notebooks together, for `jupyter-book build`.

    Example: `deeplight book runs/demo/book --built-in demo --real haxby`
    """
    from deeplight_core.book import stage

    stage(project_root(), folder, built_in, real)


def main() -> None:
    """Run the command; a wrong input is one message and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"deeplight: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("deeplight: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
