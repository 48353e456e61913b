"""Commands that make data, list them and bring them into a store."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deeplight_core.commands.options import (
    DataRoot,
    Example,
    Hrf,
    Jobs,
    Lag,
    ProfileName,
    Skip,
    Strategies,
    Window,
    labelling,
    manifests_profile,
    own_profile,
)
from deeplight_core.config import Profile, SimulationSettings, read_states

__all__ = ["cohort", "make_manifest", "prepare", "simulate", "verify"]


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


def cohort(profile: ProfileName, data: DataRoot = None, jobs: Jobs = None) -> None:
    """Simulate a profile's cohort of structural images, with planted effects, as a BIDS folder; `prepare` does so, too.

    Example: `deeplight cohort adni-like --data data/adni-like`
    """
    from deeplight_core.data import cohorts

    own = own_profile(profile, data)
    if own.cohort is None:
        raise ValueError(f"profile {own.name} has no cohort; describe one in its section `cohort`")
    table = cohorts.manifest_of(own)
    cohorts.simulate_cohort(table, own.data_root, own.cohort, jobs)
    print(f"{own.data_root}: {len(table)} scans of {table['subject'].nunique()} simulated people")


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
    lag: Lag = None,
    skip: Skip = None,
    example: Example = None,
    window: Window = None,
    hrf: Hrf = None,
    confounds: Strategies = None,
) -> None:
    """List a dataset's runs or structural images in a manifest, with fixed splits: train, validation and test.

    Beside it, `….left-out.csv` lists the files left out and why, and `….source.json` says where the data are, and what
    an example is (`--lag`, `--skip`, `--example`, `--confounds`), for `deeplight prepare` with this manifest.

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
    labels_by = labelling(lag, skip, example, window, hrf, confounds)
    Profile().overridden({"preprocessing": labels_by})  # refuse wrong settings now, not later
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
    manifest.write_notes(output, root, layout, unit, known, left_out, labels_by)
    for reason, n in left_out["reason"].value_counts().head(20).items():
        print(f"warning: {n} × {reason}", file=sys.stderr)
    if len(left_out):
        print(f"{len(left_out)} warning(s), all listed in {output.with_suffix('.left-out.csv')}", file=sys.stderr)
    counts = manifest.unit_names(found, unit).groupby(found["split"]).nunique()
    counts = counts.reindex([split for split in manifest.SPLITS if split in counts])
    kind = "structural images" if manifest.is_structural(found).all() else "runs"
    print(f"{output}: {len(found)} {kind}; " + ", ".join(f"{n} {unit}s for {split}" for split, n in counts.items()))


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
    lag: Lag = None,
    skip: Skip = None,
    example: Example = None,
    window: Window = None,
    hrf: Hrf = None,
    confounds: Strategies = None,
) -> None:
    """Preprocess and label runs into a volume store; simulate them first if the profile says so.

    Example: `deeplight prepare demo`

    From a manifest, with the paper's recipe: `deeplight prepare hcp.csv --store hcp.store --jobs 8`

    Resting runs have no states: `deeplight prepare rest.csv --store rest.store --keep all`

    Short trials, and fMRIPrep's confounds: `deeplight prepare faces.csv --example lss --confounds motion`

    Structural images in their own spaces: `deeplight prepare t1.csv --store t1.store --register 4 --regions grey`

    One job per subject: first `… --plan`, then `… --subject 100307` for each, last without either option.
    """
    from deeplight_core import experiment

    profile = manifests_profile(Path(source)) if source.endswith(".csv") else own_profile(source)
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
    asked = {k: v for k, v in asked.items() if v} | labelling(lag, skip, example, window, hrf, confounds)
    profile = profile.overridden({"preprocessing": asked})
    profile = profile.model_copy(update={"data": settings})
    if plan_only or subjects:
        n = experiment.prepare_part(profile, subjects or [], jobs, device, keep_going)
        print(f"{profile.store}: planned" + (f", {n} runs of {', '.join(subjects)} prepared" if subjects else ""))
        return
    made = experiment.prepare_data(profile, jobs, device, keep_going)
    print(f"{made.path}: {len(made.index)} {made.holds} of {len(made.runs)} runs, {made.info['n_voxels']} voxels each")


def verify(store: Annotated[Path, typer.Argument(help="Folder of a volume store.")]) -> None:
    """Check a store: checksums of all files, counts of volumes and voxels.

    Example: `deeplight verify runs/demo/store`
    """
    from deeplight_core.data import store as stores

    if problems := stores.verify(store):
        raise ValueError(f"{store} has {len(problems)} problem(s):\n" + "\n".join(f"  {p}" for p in problems))
    opened = stores.open_store(store)
    examples = f"{len(opened.index)} {opened.holds} of {len(opened.runs)} runs"
    print(f"{store} is whole: {examples}, manifest {opened.info['manifest']}")
