"""Commands that make data, list them and bring them into a store."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deeplight_core.commands.options import (
    DataRoot,
    Drop,
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
    with_data,
)
from deeplight_core.config import Profile, load_profile
from deeplight_core.preparation import TRIAL_TYPE, SimulationSettings, read_states

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cohort", "init", "make_manifest", "prepare", "simulate", "verify"]


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
    """Simulate a profile's people, with planted effects, as a BIDS folder: structural images, or runs of patients.

    `prepare` does so, too. Example: `deeplight cohort adni-like --data data/adni-like`
    """
    from deeplight_core.data import clinic, cohorts

    own = with_data(load_profile(profile), data)
    if own.simulation is not None and own.simulation.patients is not None:
        table, what = clinic.plan(own.simulation), "runs"
        clinic.simulate_study(table, own.data_root, own.simulation, jobs)
    elif own.cohort is not None:
        table, what = cohorts.manifest_of(own), "scans"
        cohorts.simulate_cohort(table, own.data_root, own.cohort, jobs)
    else:
        raise ValueError(f"profile {own.name} has no cohort; describe one in its section `cohort`")
    print(f"{own.data_root}: {len(table)} {what} of {table['subject'].nunique()} simulated people")


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
    desc: Annotated[str, typer.Option(help="--bids: only images of this desc, e.g. denoised (default: preproc).")] = "",
    sessions: Annotated[
        list[str] | None, typer.Option("--session", help="--bids: only this session; repeatable.")
    ] = None,
    anat: Annotated[str, typer.Option(help="--bids: structural images with this suffix instead, e.g. T1w.")] = "",
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeat for several.")] = None,
    states: Annotated[
        Path | None, typer.Option(help="YAML of task: {state: [trial types]}; default: every trial type is a state.")
    ] = None,
    trial_type: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the event files that names events; several are joined by / (default: trial_type)."
        ),
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
    drop_volumes: Drop = None,
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
    from deeplight_core.data import bids as in_bids
    from deeplight_core.data import manifest, scan
    from deeplight_core.system.sources import located, patiently

    if sum(given is not None for given in (hcp, bids, table)) != 1:
        raise ValueError("give one of --hcp ROOT, --bids ROOT and --table FILE")
    if split_unit not in ("subject", "run"):
        raise ValueError(f"--split-unit must be subject or run, got {split_unit!r}")
    unit: Literal["subject", "run"] = "run" if split_unit == "run" else "subject"
    if bids is None and (derivatives or space or res or desc or sessions or anat):
        raise ValueError("--derivatives, --desc, --session, --space, --res and --anat are for --bids")
    if hcp and trial_type:
        raise ValueError("--trial-type is for event files of BIDS; HCP's EV files name their events themselves")
    if table is None and (data or image):
        raise ValueError("--data and --image are for --table")
    if output.resolve() in {path.resolve() for path in (table, subjects) if path}:
        raise ValueError(f"{output} would be overwritten; give the manifest another name")
    if labels and subjects is None:
        raise ValueError("--label needs --subjects")
    labels_by = labelling(lag, skip, example, window, hrf, confounds, drop_volumes)
    Profile().overridden({"preprocessing": labels_by})  # refuse wrong settings now, not later
    layout, root = ("hcp", hcp) if hcp else ("bids", bids or data or str(table and table.absolute().parent))
    asked, columns = read_states(states, layout) if states else None, trial_type or [*TRIAL_TYPE]
    if "://" not in root:
        root = str(Path(root).absolute())
    if hcp:
        scanned = partial(scan.scan_hcp, root, tasks)
    elif bids:
        only = tasks or (asked and list(asked))
        scanned = partial(
            in_bids.scan_bids, root, only, derivatives, space, res, anat, asked, desc, sessions, columns
        )  # fmt: skip
    else:
        scanned = partial(scan.scan_table, table or Path(), root, image, asked, columns)
    found, left_out = patiently(scanned, located(root))
    _print_left_out(left_out)
    _print_absent(found, {"task": tasks or list(asked or {}), "session": sessions or []})
    found = found[found["task"].isin(tasks)].reset_index(drop=True) if tasks else found
    if bids:
        root = str(in_bids.common_root(root, derivatives))
    if subjects:
        found = manifest.add_subject_columns(found, subjects, labels or [])
    given = found["split"] != ""
    if given.any() and not given.all():
        raise ValueError(
            f"the table names the split of {given.sum()} of {len(found)} usable rows; fill the column split (train, "
            "validation, test) for all of them, or leave it empty"
        )
    if not given.any():
        found = manifest.assign_splits(found, unit, validation, seed, stratify, test)
    manifest.write_manifest(found, output)
    manifest.read_manifest(output, unit)  # refuse a faulty manifest now, not later
    known = asked or patiently(partial(scan.states_of, found, located(root), columns), located(root))
    manifest.write_notes(output, root, layout, unit, known, left_out, labels_by, columns)
    if len(left_out):
        print(f"{len(left_out)} warning(s), all listed in {output.with_suffix('.left-out.csv')}", file=sys.stderr)
    counts = manifest.unit_names(found, unit).groupby(found["split"]).nunique()
    counts = counts.reindex([split for split in manifest.SPLITS if split in counts])
    kind = "structural images" if manifest.is_structural(found).all() else "runs"
    print(f"{output}: {len(found)} {kind}; " + ", ".join(f"{n} {unit}s for {split}" for split, n in counts.items()))
    _print_labels(output, unit)


def _print_left_out(left_out: "pd.DataFrame") -> None:
    from deeplight_core.data.rows import grouped

    for kept, what in ((False, "left out"), (True, "warning")):
        some = left_out[left_out["reason"].str.startswith("kept") == kept]
        for line in grouped(some.itertuples(index=False, name=None)):
            print(f"{what}: {line}", file=sys.stderr)


def _print_absent(found: "pd.DataFrame", asked: dict[str, list[str]]) -> None:
    """Say which tasks and sessions that were asked for have no usable run; refuse if none has."""
    for what, names in asked.items():
        there = sorted({*found[what]})
        if names and not {*names} & {*there}:
            raise ValueError(f"no run is of {what} {', '.join(names)}; {what}s are {', '.join(there)}")
        for name in sorted({*names} - {*there}):
            print(f"warning: no run of {what} {name} can be used; {what}s are {', '.join(there)}", file=sys.stderr)


def _print_labels(path: Path, unit: Literal["subject", "run"]) -> None:
    """Print what there is to learn from by the paper's label rule, task by task, and what stands in its way."""
    from deeplight_core.data import labels, manifest

    profile = manifests_profile(path)
    table = manifest.read_manifest(path, unit)
    runs = table[~manifest.is_structural(table)]
    if runs.empty:
        return
    counts, problems = labels.count_labels(runs, profile)
    states = labels.label_table(counts)
    for task, of_task in runs.groupby("task"):
        lengths = of_task.groupby(["n_volumes", "tr_s"]).size()
        listed = [f"{n} runs of {volumes} volumes, TR {tr_s:g} s" for (volumes, tr_s), n in lengths.items()]
        print(f"\ntask {task}: {'; '.join(listed)}")
        if task in states.index:
            shown = states.loc[[str(task)]].droplevel("task").drop(columns="shared")
            shown = shown.rename(columns={"without": "events without volumes"})
            print(shown.to_string())
    lost = labels.losses(states)
    lost += [labels.remedy(profile.preprocessing, states)] if lost else []
    lost += [*labels.absent(counts, bool(problems)), *labels.alike(states), *list(problems.values())[:10]]
    if len({*runs["tr_s"]}) > 1:
        lost.append("runs of several repetition times; a store has one: choose by --task or --session")
    spaces = sorted({*runs["image"].str.extract(r"_space-([A-Za-z0-9+]+)")[0].dropna()})
    if len(spaces) > 1 and len({*runs["subject"]}) > 1:
        lost.append(f"images are in several spaces, {', '.join(spaces)}; choose one with --space")
    named = runs["image"].str.contains("_space-|MNINonLinear")
    if profile.data.layout == "bids" and not named.any() and len({*runs["subject"]}) > 1:
        lost.append(
            "raw images of several subjects: brains are aligned only in a template space; take preprocessed images "
            "(--derivatives)"
        )
    for line in lost:
        print(f"warning: {line}", file=sys.stderr)


def init(
    manifest: Annotated[Path, typer.Argument(help="CSV of `deeplight manifest`.", metavar="MANIFEST")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Profile to write, e.g. profiles/mystudy.yaml.")],
    target: Annotated[str, typer.Option(help="Task to decode; the others are the source.")] = "",
) -> None:
    """Draft a profile for a small study: its states with their counts, fractions, and the time that it will take.

    Example: `deeplight init mystudy.csv -o profiles/mystudy.yaml`
    """
    from deeplight_core.data.draft import draft_profile
    from deeplight_core.system.files import write_whole

    if output.exists():
        raise ValueError(f"{output} is there already; give the profile another name")
    if output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{output} must end in .yaml")
    text, summary = draft_profile(manifest, output.stem, target)
    write_whole(output, lambda path: path.write_text(text, encoding="utf-8"))
    print("\n".join([f"{output}: {summary[0]}", *summary[1:]]))


def prepare(
    source: Annotated[str, typer.Argument(help="Profile, or CSV of `deeplight manifest`.", metavar="SOURCE")],
    data: DataRoot = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the store instead of the profile's.")] = None,
    resample_to: Annotated[
        str | None, typer.Option(help="Grid for all runs: hcp2mm, first (the first run's), or an image.")
    ] = None,
    assume_aligned: Annotated[
        bool, typer.Option("--assume-aligned", help="Runs of several people are aligned though no name tells it.")
    ] = False,
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
    drop_volumes: Drop = None,
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
        "assume_aligned": assume_aligned,
        "keep": keep,
        "structural": {k: v for k, v in structural.items() if v},
    }
    if register_mm:
        asked["structural"] |= {"registration": "affine"}
    asked = {k: v for k, v in asked.items() if v} | labelling(lag, skip, example, window, hrf, confounds, drop_volumes)
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
