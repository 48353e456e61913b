"""The `deeplight` command: a thin layer over the functions that the notebooks call."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deeplight_core.config import Profile, SimulationSettings, load_profile, project_root, read_states
from deeplight_core.routes import PRECISIONS, ROUTES, VARIANTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Transfer learning for whole-brain fMRI: simulate, prepare, pre-train, fine-tune, evaluate.",
)  # fmt: skip
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


def _profile(name: str, data: Path | None = None) -> Profile:
    profile = load_profile(name)
    if data is None:
        return profile
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": str(data.absolute())})})


def _with_precision(profile: Profile, precision: str | None) -> Profile:
    """The profile with another precision in all its trainings, so that a fine-tuning finds its pre-training."""
    if precision is None:
        return profile
    if precision not in PRECISIONS:
        raise ValueError(f"--precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    content = profile.model_dump()
    for settings in (content["finetuning"], *(route["pretraining"] for route in content["routes"].values())):
        settings["precision"] = precision
    return Profile.model_validate(content)


def _rank() -> int:
    """This process's number among those started together by torchrun, srun or Fabric."""
    return int(next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), 0))


def _manifests_profile(path: Path) -> Profile:
    """The paper's recipe for a manifest's data; the notes beside the manifest give their place and states."""
    from deeplight_core.data.manifest import read_notes

    notes = read_notes(path)
    states = {"source": notes.pop("states"), "target": {}}
    data = {"manifest": path.absolute(), **notes, **states}
    return Profile.model_validate({"name": path.stem, "data": data})


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder to fill; its manifest.csv lists the runs.")],
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

    from deeplight_core.data import manifest, scan
    from deeplight_core.data import simulate as simulation

    try:
        settings = SimulationSettings(resolution_mm=resolution_mm, contrast=contrast, seed=seed)
    except ValidationError as error:
        raise ValueError("; ".join(f"{e['loc'][0]}: {e['msg']}, got {e['input']}" for e in error.errors())) from None
    table = simulation.plan(train, validation, tr_s, tuple(runs or ("LR",)))
    simulation.simulate(table, folder, settings, jobs)
    manifest.write_manifest(table, folder / "manifest.csv")
    states = scan.states_of(table, folder)
    manifest.write_notes(folder / "manifest.csv", str(folder.absolute()), "hcp", "subject", states)
    print(f"{len(table)} runs of {train + validation} simulated subjects, listed in {folder / 'manifest.csv'}")


@app.command()
def cohort(profile: ProfileName, data: DataRoot = None, jobs: Jobs = None) -> None:
    """Simulate a profile's cohort of structural images, with planted effects, as a BIDS folder; `prepare` does so, too.

    Example: `deeplight cohort adni-like --data data/adni-like`
    """
    from deeplight_core.data import cohorts

    own = _profile(profile, data)
    if own.cohort is None:
        raise ValueError(f"profile {own.name} has no cohort; describe one in its section `cohort`")
    table = cohorts.manifest_of(own)
    cohorts.simulate_cohort(table, own.data_root, own.cohort, jobs)
    print(f"{own.data_root}: {len(table)} scans of {table['subject'].nunique()} simulated people")


@app.command(name="manifest")
def make_manifest(
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")],
    hcp: Annotated[str | None, typer.Option(help="Root in HCP's layout: a folder or URL, e.g. s3://bucket/x.")] = None,
    bids: Annotated[str | None, typer.Option(help="Root of a BIDS dataset: a folder or URL.")] = None,
    table: Annotated[Path | None, typer.Option(help="Your own table (CSV, TSV) with subject and image.")] = None,
    data: Annotated[str | None, typer.Option(help="--table: root of its paths (default: its folder).")] = None,
    image: Annotated[str, typer.Option(help="--table without an image column: e.g. {participant_id}.nii.gz")] = "",
    derivatives: Annotated[
        str, typer.Option(help="--bids: folder of preprocessed images, e.g. derivatives/fmriprep.")
    ] = "",
    space: Annotated[str, typer.Option(help="--bids: only images of this template, e.g. MNI152NLin2009cAsym.")] = "",
    res: Annotated[str, typer.Option(help="--bids: only images of this resolution, e.g. 2.")] = "",
    anat: Annotated[str, typer.Option(help="--bids: structural images with this suffix instead, e.g. T1w.")] = "",
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeat for several.")] = None,
    states: Annotated[
        Path | None, typer.Option(help="YAML of task: {state: [trial types]}; default: every trial type is a state.")
    ] = None,
    subjects: Annotated[
        Path | None, typer.Option(help="Table of subjects with their family, e.g. HCP's restricted one.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="--subjects: copy this column; repeat for several.")
    ] = None,
    split_unit: Annotated[str, typer.Option(help="Unit of the splits: subject, or run for one subject.")] = "subject",
    validation: Annotated[int, typer.Option(help="Subjects (or runs) to hold out.", min=1)] = 1,
    test: Annotated[int, typer.Option(help="More to hold out, as a third split: test.", min=0)] = 0,
    stratify: Annotated[str, typer.Option(help="Keep this label's proportions in every split.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the draw.", min=0)] = 0,
) -> None:
    """List a dataset's runs or structural images in a manifest, with fixed splits: train, validation and test.

    Beside it, `….left-out.csv` lists the files left out and why, and `….source.json` says where the data are.

    Example: `deeplight manifest --bids /data/mystudy --validation 4 -o mystudy.csv`

    With fMRIPrep: `… --derivatives derivatives/fmriprep --space MNI152NLin2009cAsym`

    On S3, with your own credentials: `deeplight manifest --hcp s3://bucket/HCP_1200 --validation 100 -o hcp.csv`
    """
    from deeplight_core.data import manifest, scan
    from deeplight_core.system.sources import located, patiently

    if sum(given is not None for given in (hcp, bids, table)) != 1:
        raise ValueError("give one of --hcp ROOT, --bids ROOT and --table FILE")
    if split_unit not in ("subject", "run"):
        raise ValueError(f"--split-unit must be subject or run, got {split_unit!r}")
    unit: Literal["subject", "run"] = "run" if split_unit == "run" else "subject"
    if bids is None and (derivatives or space or res or anat):
        raise ValueError("--derivatives, --space, --res and --anat are for --bids")
    if table is None and (data or image):
        raise ValueError("--data and --image are for --table")
    if output.resolve() in {path.resolve() for path in (table, subjects) if path}:
        raise ValueError(f"{output} would be overwritten; give the manifest another name")
    if labels and subjects is None:
        raise ValueError("--label needs --subjects")
    asked = read_states(states) if states else None
    layout, root = ("hcp", hcp) if hcp else ("bids", bids or data or str(table and table.absolute().parent))
    if "://" not in root:
        root = str(Path(root).absolute())
    if hcp:
        scanned = partial(scan.scan_hcp, root, tasks) if tasks else partial(scan.scan_hcp, root)
    elif bids:
        only = tasks or (asked and list(asked))
        scanned = partial(scan.scan_bids, root, only, derivatives, space, res, anat, asked)
    else:
        scanned = partial(scan.scan_table, table or Path(), root, image)
    found, left_out = patiently(scanned, located(root))
    found = found[found["task"].isin(tasks)].reset_index(drop=True) if tasks else found
    if bids:
        root = str(scan.common_root(root, derivatives))
    if subjects:
        found = manifest.add_subject_columns(found, subjects, labels or [])
    if not (found["split"] != "").all():
        found = manifest.assign_splits(found, unit, validation, seed, stratify, test)
    manifest.write_manifest(found, output)
    manifest.read_manifest(output, unit)  # refuse a faulty manifest now, not later
    known = asked or patiently(partial(scan.states_of, found, located(root)), located(root))
    manifest.write_notes(output, root, layout, unit, known, left_out)
    for reason, n in left_out["reason"].value_counts().head(20).items():
        print(f"warning: {n} × {reason}", file=sys.stderr)
    if len(left_out):
        print(f"{len(left_out)} warning(s), all listed in {output.with_suffix('.left-out.csv')}", file=sys.stderr)
    counts = manifest.unit_names(found, unit).groupby(found["split"]).nunique()
    counts = counts.reindex([split for split in manifest.SPLITS if split in counts])
    kind = "structural images" if manifest.is_structural(found).all() else "runs"
    print(f"{output}: {len(found)} {kind}; " + ", ".join(f"{n} {unit}s for {split}" for split, n in counts.items()))


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="Profile, or CSV of `deeplight manifest`.", metavar="SOURCE")],
    data: DataRoot = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the store instead of the profile's.")] = None,
    resample_to: Annotated[
        str | None, typer.Option(help="Grid for all runs: hcp2mm, first (the first run's), or an image.")
    ] = None,
    keep: Annotated[
        Literal["labelled", "all"] | None, typer.Option(help="Store the volumes that have a state, or all of them.")
    ] = None,
    zoom_to: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Zoom all structural images to this shape: X Y Z.")
    ] = None,
    register_mm: Annotated[
        float | None,
        typer.Option("--register", help="Register structural images to MNI152 (affine), voxels of this edge in mm."),
    ] = None,
    regions: Annotated[
        Literal["none", "grey", "values"] | None,
        typer.Option(help="Regional means of their grey matter, or of the values of maps of grey matter."),
    ] = None,
    subjects: Annotated[
        list[str] | None, typer.Option("--subject", help="Only this subject's runs, for one of many jobs; repeatable.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Only decide on grid and mask; run once before many jobs.")
    ] = False,
    jobs: Jobs = None,
    device: Annotated[str, typer.Option(help="Where to smooth and clean: cpu or cuda.")] = "cpu",
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a failure; list all failures at the end.")
    ] = False,
) -> None:
    """Preprocess and label runs into a volume store; simulate them first if the profile says so.

    Example: `deeplight prepare demo`

    From a manifest, with the paper's recipe: `deeplight prepare hcp.csv --store hcp.store --jobs 8`

    Resting runs have no states: `deeplight prepare rest.csv --store rest.store --keep all`

    Structural images in their own spaces: `deeplight prepare t1.csv --store t1.store --register 4 --regions grey`

    One job per subject: first `… --plan`, then `… --subject 100307` for each, last without either option.
    """
    from deeplight_core import experiment

    profile = _manifests_profile(Path(source)) if source.endswith(".csv") else _profile(source)
    settings = profile.data
    if data or store:
        changed = {
            "root": str(data.absolute()) if data else settings.root,
            "store": store.absolute() if store else settings.store,
        }
        settings = settings.model_copy(update=changed)
    structural = {"zoom_to": zoom_to, "resolution_mm": register_mm, "regions": regions}
    asked: dict[str, Any] = {
        "resample_to": resample_to,
        "keep": keep,
        "structural": {k: v for k, v in structural.items() if v},
    }
    if register_mm:
        asked["structural"] |= {"registration": "affine"}
    profile = profile.overridden({"preprocessing": {k: v for k, v in asked.items() if v}})
    profile = profile.model_copy(update={"data": settings})
    if plan_only or subjects:
        n = experiment.prepare_part(profile, subjects or [], jobs, device, keep_going)
        print(f"{profile.store}: planned" + (f", {n} runs of {', '.join(subjects)} prepared" if subjects else ""))
        return
    made = experiment.prepare_data(profile, jobs, device, keep_going)
    print(f"{made.path}: {len(made.index)} volumes of {len(made.runs)} runs, {made.info['n_voxels']} voxels each")


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="Folder of a volume store.")]) -> None:
    """Check a store: checksums of all files, counts of volumes and voxels.

    Example: `deeplight verify runs/demo/store`
    """
    from deeplight_core.data import store as stores

    if problems := stores.verify(store):
        raise ValueError(f"{store} has {len(problems)} problem(s):\n" + "\n".join(f"  {p}" for p in problems))
    opened = stores.open_store(store)
    print(
        f"{store} is whole: {len(opened.index)} volumes of {len(opened.runs)} runs, manifest {opened.info['manifest']}"
    )


@app.command()
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

    training = experiment.pretrain(_with_precision(_profile(profile), precision), seed, route, fold, devices, nodes)
    if _rank() == 0:
        _print_scores(training.folder, training.results(), training.predictions())


@app.command()
def finetune(
    profile: ProfileName,
    variant: Annotated[str, typer.Option(help=f"Decoder to train: {', '.join(VARIANTS)}.")],
    fraction: Annotated[float, typer.Option(help="Fraction of the training subjects, above 0 and at most 1.")],
    seed: Seed = 1,
    fold: Fold = 0,
    devices: Devices = 1,
    nodes: Nodes = 1,
    precision: Precision = None,
) -> None:
    """Train one variant on a fraction of the target's training data.

    Example: `deeplight finetune demo --variant pretrained --fraction 0.05 --seed 1`
    """
    from deeplight_core import experiment

    settings = _with_precision(_profile(profile), precision)
    training = experiment.finetune(settings, variant, fraction, seed, fold, devices, nodes)
    if _rank() == 0:
        _print_scores(training.folder, training.results(), training.predictions())


@app.command()
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

    own = _profile(profile)
    transfers = [own.transferred(name) for name in only or own.transfers]
    decoded, asked = transfers or [own], names or ["sweep"]
    needed = [own, *(settings.origin for settings in decoded), *decoded]
    needed += [changed(p, cell.change, cell.target) for p in decoded for name in asked for cell in planned(p, name)]
    for settings in {settings.store: settings for settings in reversed(needed)}.values():
        experiment.prepare_data(settings, jobs)
    pretrainings = list(codes.of_report(own).values()) if transfers else []
    experiment.train_all(decoded, asked, pretrainings, jobs)


@app.command()
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

    table = experiment.evaluate(_profile(profile), checkpoint, split)
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


@app.command()
def book(
    folder: Annotated[Path, typer.Argument(help="Folder for the book's source; replaced if it exists.")],
    built_in: Annotated[str, typer.Option(help="Profile on the built-in dataset.")] = "demo",
    real: Annotated[str, typer.Option(help="Profile on real data.")] = "haxby",
    structural: Annotated[str, typer.Option(help="Profile on structural images.")] = "autoencoder",
    contrast: Annotated[str, typer.Option(help="Profile of temporal contrast.")] = "contrast",
) -> None:
    """Put the book's pages and the executed notebooks together, for `jupyter-book build`.

    Example: `deeplight book runs/demo/book --built-in demo --real haxby`
    """
    from deeplight_core.report.book import stage

    stage(project_root(), folder, built_in, real, structural, contrast)


def main() -> None:
    """Run the command; wrong input gives one message and exit status 2."""
    try:
        app()
    except (ValueError, OSError, MemoryError) as error:
        print(f"deeplight{f' (process {_rank()})' if _rank() else ''}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("deeplight: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":  # for torchrun -m
    main()
