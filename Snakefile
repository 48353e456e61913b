"""Which notebook makes what. `make reproduce` calls this; so can you:

    snakemake --cores 2 --config profile=demo
    snakemake --cores 2 --config profile=haxby data=/path/to/haxby2001-vt
    snakemake --cores 2 --config profile=demo controls=yes
    snakemake --cores 2 --config profile=demo gain=yes
    snakemake --cores 16 --config profile=paper gpus=2 per_gpu=4
    snakemake --profile profiles/slurm --config profile=paper by_subject=yes devices=4 nodes=2 per_gpu=4

With `by_subject=yes` one job per subject prepares its runs; the jobs fill one store without waiting for each other.
`gpus=2 per_gpu=4` runs eight trainings at a time on this machine's two GPUs. On a cluster, without `gpus`, `per_gpu=4` puts four
fine-tunings side by side into one job with one GPU. `devices=4 nodes=2` pre-trains on two nodes with four GPUs each.
Almost every rule runs one notebook through papermill. Notebooks are written to running/ and moved when complete; a failed
one is kept in failed/, with its traceback; logs/ has the output of each. A notebook depends on files and settings: adding a
fraction to the profile runs only that fraction.
"""

import json
import os
import sys
import time
from itertools import groupby
from pathlib import Path

import yaml

from deeplight_core import config as settings
from deeplight_core.sweeps import CONTROLS, OF_COMPARISON, OF_CONTRAST, OF_IMAGES, Cell, changed, changes, planned, pretraining_of
from deeplight_core.system.provenance import code_hash
from deeplight_core.data.cohorts import manifest_of
from deeplight_core.data.manifest import select
from deeplight_core.routes import ROUTES, VARIANTS

BEGUN = time.time()
NAME = str(config.get("profile", "demo"))
DATA = config.get("data")


def number(option, least):
    value = str(config.get(option, least))
    if not value.isdecimal() or int(value) < least:
        sys.exit(f"snakemake: {option} must be a whole number from {least}, got {value!r}")
    return int(value)


DEVICES, NODES, GPUS, PER_GPU = number("devices", 1), number("nodes", 1), number("gpus", 0), number("per_gpu", 1)
try:
    PROFILE = settings.load_profile(NAME)
except ValueError as error:
    sys.exit(f"snakemake: {error}")
if DATA:
    if "://" not in str(DATA):
        if not Path(DATA).is_dir():
            sys.exit(f"snakemake: the data folder {DATA} does not exist")
        DATA = Path(DATA).absolute()
    PROFILE = PROFILE.model_copy(update={"data": PROFILE.data.model_copy(update={"root": str(DATA)})})
if str(config.get("transfers", "no")) == "yes" and not PROFILE.transfers:
    sys.exit(f"snakemake: profile {NAME} has no transfers; `make autoencoders` takes one that has, such as autoencoder or ixi")
# The part of the book that this profile makes; the profiles that make the others.
PART = PROFILE.part or ("built-in" if PROFILE.simulated else "real")
for part in ("contrast", "images", "comparison"):
    if str(config.get(part, "no")) == "yes" and PART != part:
        sys.exit(f"snakemake: profile {NAME} makes no page of {part}; `make {part}` takes one with `part: {part}`, such as {part}")
PARTS = {"built-in": "demo", "real": "haxby", "structural": "autoencoder", "contrast": "contrast", "images": "images", "comparison": "comparison", "patients": "patients"}
PARTS[PART] = PROFILE.name
if PART == "patients" and not (PROFILE.controls.groups and PROFILE.checkpoint and PROFILE.sweep.folds):
    sys.exit(f"snakemake: the page of profile {NAME}, a small study, needs controls.groups, sweep.folds and a checkpoint to start from")
RUNS = f"runs/{PROFILE.name}"
BOOKS = f"{RUNS}/notebooks"
INDEX = os.path.relpath(PROFILE.store / "index.parquet")
# Notebooks read this file: the profile with all its defaults and the data folder. No rule has it as an input: the settings
# that a rule depends on are its params.
RESOLVED = Path(RUNS) / "profile.yaml"
RESOLVED.parent.mkdir(parents=True, exist_ok=True)
CONTENT = yaml.safe_dump(PROFILE.model_dump(mode="json"), sort_keys=False)
if not RESOLVED.is_file() or RESOLVED.read_text(encoding="utf-8") != CONTENT:  # cluster jobs come here too, while others read it
    RESOLVED.write_text(CONTENT, encoding="utf-8")

SWEEP = planned(PROFILE, "sweep")
FIRST_SEED = PROFILE.sweep.seeds[0]
FOLDS = range(1, PROFILE.sweep.folds * PROFILE.sweep.repeats + 1) if PROFILE.sweep.folds else [0]
# The controls' trainings that are not in the sweep, by name. Only those asked for are run; pages show the finished ones.
OTHERS = {cell.name: cell for name in dict.fromkeys((*CONTROLS, *OF_CONTRAST, *OF_COMPARISON)) for cell in planned(PROFILE, name) if cell not in SWEEP}


def source_of_manifest():
    """Options of `deeplight manifest`: the root and, of structural images, their suffix and the columns that are decoded."""
    data, root = PROFILE.data, PROFILE.data_root
    if data.layout == "table":
        return f"--table '{root}/participants.tsv' --image '{data.image}' --data '{root}'"
    source = f"--{data.layout} '{root}'"
    suffixes = [task for task in data.tasks() if task in ("T1w", "T2w")]
    if not suffixes:
        return source
    decoded = [own.data for own in (PROFILE, *map(PROFILE.transferred, PROFILE.transfers))]
    labels = dict.fromkeys([own.label for own in decoded if own.label] + [c for own in decoded for c in own.columns("target")])
    listed = f" --subjects '{root}/participants.tsv'" + "".join(f" --label {label}" for label in labels)
    return f"{source} --anat {suffixes[0]}{listed if labels else ''}"


def wanted(option, unless_said="no"):
    return str(config.get(option, unless_said)).lower() in ("yes", "true", "1")


OWN_CONTROLS = {"contrast": OF_CONTRAST, "comparison": OF_COMPARISON, "images": ("rates",)}.get(PART, CONTROLS)
ASKED = {name for name in OWN_CONTROLS if wanted(name if name in ("gain", "published") else "controls")}
ASKED_CELLS = {cell for name in ASKED for cell in planned(PROFILE, name)}
# The profile as controls change it: one with another name has its own data.
CHANGED = {"": PROFILE} | {change: changed(PROFILE, change) for change in changes(PROFILE)}
OTHER_DATA = {profile.name: profile for profile in CHANGED.values() if profile.name != PROFILE.name}
for other in (CHANGED[cell.change] for cell in ASKED_CELLS):
    if other.makes_manifest:
        manifest_of(other)


def notebook_of(cell):
    return f"{BOOKS}/{'03_finetuning' if cell in SWEEP else 'controls'}/{cell.name}.ipynb"


def in_names(fold):
    return f"-fold{fold}" if fold else ""


def number_of(fold):
    return int(fold.removeprefix("-fold") or 0)


def pretraining_notebook(change, route, target, seed, fold):
    """The notebook of a pre-training; that of the first seed and fold by the paper's own route is a page of the book."""
    if (change, route, target, seed, fold) == ("", "supervised", "", FIRST_SEED, FOLDS[0]):
        return BOOKS + "/02_pretraining.ipynb"
    return f"{BOOKS}/pretraining/{change or 'as-is'}/{route}-{target or 'own'}-seed{seed}{in_names(fold)}.ipynb"


def pretrained(cell):
    """A list with the notebook of a training's pre-training; empty if it has none."""
    found = pretraining_of(PROFILE, cell)
    return [pretraining_notebook(*found)] if found else []


def index_of(change):
    """The store that a training reads."""
    return os.path.relpath(CHANGED[change].store / "index.parquet")


def resolved(change):
    """The papermill options that override a notebook's settings with a control's."""
    own = CHANGED[change]
    return "" if own == PROFILE else f" -y '{json.dumps({'overrides': changes(PROFILE)[change].overrides})}'"


def trained(route, target, seed, fold, change=""):
    """A list with the mark of a finished pre-training on several devices; empty if the notebook itself trains.

    It always does for other targets: `deeplight pretrain` knows only the profile's own.
    """
    found = f"{RUNS}/trained/{route}-seed{seed}{in_names(fold)}"
    return [found] if DEVICES * NODES > 1 and target in ("", "own") and not change else []


def folds_of(fold):
    """The settings that decide who is in a fold."""
    return [PROFILE.sweep.folds, PROFILE.sweep.repeats, PROFILE.data.split_seed] if fold else None


def made_of_data(profile):
    return settings.digest(profile.data, profile.simulation or profile.cohort, profile.preprocessing)


def pretraining_settings(route, fold, change=""):
    all_of_it = getattr(CHANGED[change].routes, route).model_dump(mode="json")  # defaults too, as in the training's id
    return settings.digest(code_hash(), made_of_data(CHANGED[change]), all_of_it, folds_of(fold))


def pretraining_parameters(route, seed, fold, target="", change=""):
    own = f" -p target '{target}'" if target not in ("", "own") else ""
    return f"-p route {route} -p seed {seed}" + (f" -p fold {fold}" if fold else "") + own + resolved(change)


def batches():
    """The fine-tunings that share a GPU on a cluster, by the name of the first.

    They start from the same pre-training, and their fractions are close, since a job lasts as long as its longest.
    """
    found = {}
    for cells in (SWEEP, [cell for cell in OTHERS.values() if cell in ASKED_CELLS]):
        deep = (cell for cell in cells if VARIANTS[cell.variant].learner == "deep")
        for _, alike in groupby(sorted(deep, key=lambda c: (pretrained(c), c.fraction)), key=pretrained):
            alike = list(alike)
            for i in range(0, len(alike), PER_GPU):
                found[alike[i].name] = alike[i : i + PER_GPU]
    return found


def batch_of(cell):
    return next((name for name, cells in BATCHES.items() if cell in cells), None)


def swept(wildcards):
    return Cell("", wildcards.variant, float(wildcards.fraction), int(wildcards.seed), number_of(wildcards.fold))


def change_of(wildcards):
    return "" if wildcards.change == "as-is" else wildcards.change


def shown(name):
    """The notebooks behind a control's page."""
    notebooks = [notebook_of(cell) for cell in planned(PROFILE, name)]
    others = {notebook_of(cell) for cell in OTHERS.values()}
    return [n for n in notebooks if name in ASKED or n not in others or Path(n).exists()]


def parameters_of(cell):
    target = f"-p target '{cell.target}' " if cell.target else ""
    fold = f" -p fold {cell.fold}" if cell.fold else ""
    return f"{target}-p variant {cell.variant} -p fraction {cell.fraction} -p seed {cell.seed}{fold}{resolved(cell.change)}"


def settings_of(cell):
    own = CHANGED[cell.change]
    route = getattr(own.routes, VARIANTS[cell.variant].route)
    started_from = route if pretraining_of(PROFILE, cell) else None
    parts = [part and part.model_dump(mode="json") for part in (route.encoder, own.finetuning.of(cell.variant), started_from)]
    return settings.digest(code_hash(), made_of_data(own), *parts, folds_of(cell.fold))


SUBJECTS = []
if str(config.get("by_subject", "no")).lower() in ("yes", "true", "1"):
    try:
        SUBJECTS = sorted(select(manifest_of(PROFILE), PROFILE.data)["subject"].unique())
    except ValueError as error:
        sys.exit(f"snakemake: {error}")

MADE_OF_DATA = made_of_data(PROFILE)
# Of commands and of their pages: a command that is stopped leaves nothing, which alone would not make a page anew.
BY_THIS_CODE = settings.digest(code_hash(), PROFILE)
BATCHES = batches() if PER_GPU > 1 and not GPUS else {}
SLOTS = max(GPUS * PER_GPU, 1)  # a training takes one; without `gpus` there is no limit
ON_A_GPU = ""
if GPUS:
    workflow.global_resources.setdefault("slot", SLOTS)  # as `--resources slot=…` does
    # Snakemake limits how many jobs run (not strictly, see below), but only the jobs know which GPU is free. Each locks the first
    # free slot while it runs. Slots go round the GPUs, so that none has more than its share, whichever job ends first.
    ON_A_GPU = (
        f"mkdir -p {RUNS}/slots; slot=0; until exec 9>{RUNS}/slots/$slot && flock --nonblock 9; "
        f"do slot=$(((slot + 1) % {SLOTS})); [ $slot -gt 0 ] || sleep 1; done; "
        f'IFS=, read -ra gpus <<< "${{CUDA_VISIBLE_DEVICES:-$(seq -s, 0 {GPUS - 1})}}"; '
        f"export CUDA_VISIBLE_DEVICES=${{gpus[slot % {GPUS}]}}; "
    )
PAPERMILL = (
    (f"export DEEPLIGHT_PER_GPU={PER_GPU}; " if PER_GPU > 1 else "")  # sets how much each may keep in the GPU's memory
    + "n=$(( {threads} > 0 ? {threads} : 1 )); export OMP_NUM_THREADS=$n OPENBLAS_NUM_THREADS=$n MKL_NUM_THREADS=$n; "
    # Every notebook's name while it runs is its own, since jobs run side by side.
    "out={output[0]}; name=${{out#{BOOKS}/}}; name=${{name#03_finetuning/}}; name=${{name#controls/}}; "
    "name=$(echo ${{name%.ipynb}} | tr / -); part={BOOKS}/running/$name.ipynb; log={RUNS}/logs/$name.log; "
    "mkdir -p {BOOKS}/running {BOOKS}/failed {RUNS}/logs $(dirname $out); "
    "if papermill notebooks/{params.notebook}.ipynb $part -p profile {RESOLVED} {params.parameters} "
    "--kernel python3 --log-output --no-progress-bar 2>&1 | tee $log "
    "| {{ grep --line-buffered -E '(left|took [0-9:]+|found in .*|going on at step .*)$' || true; }}; "
    "then mv $part $out; "
    "else mv $part {BOOKS}/failed/ || true; sed -n '/Exception encountered/,$p' $log >&2; "
    'echo "FAILED: {params.notebook}; the notebook with its traceback is {BOOKS}/failed/$name.ipynb, its log $log" >&2; exit 1; fi'
)


OF_TRANSFERS = ["06_autoencoder", "06_transfer", "06_faults", "06_claims"]  # the pages of a profile with transfers
TRANSFERS = {name: PROFILE.transferred(name) for name in PROFILE.transfers}


def has_network(profile):
    return any(VARIANTS[variant].learner == "deep" for variant in profile.sweep.variants)


# The controls of a profile of temporal contrast are no sweeps of its transfers.
CONTROLLED = PART != "contrast" and (wanted("controls") or Path(f"{RUNS}/trained/controls").exists())
if not CONTROLLED:  # those without a network are controls of the data
    TRANSFERS = {name: own for name, own in TRANSFERS.items() if has_network(own)}
# A store's data page is made once, whoever reads it.
OWN_STORES = {p.store: name for name, p in reversed(TRANSFERS.items()) if p.store != PROFILE.store}
STARTED = {v for own in TRANSFERS.values() for v in own.sweep.variants if VARIANTS[v].start != "random"}
STARTS = sorted({pretraining_notebook("", VARIANTS[v].route, "", FIRST_SEED, FOLDS[0]) for v in STARTED})
DATA_PAGES = [f"{BOOKS}/data/{name}.ipynb" for name in OWN_STORES.values()]
# The decoder whose answers are explained: on simulated fMRI, where it is known which places matter.
EXPLAINED = [
    cell
    for cell in SWEEP
    if PROFILE.simulation and (cell.variant, cell.seed, cell.fold) == ("pretrained", FIRST_SEED, FOLDS[0])
    and cell.fraction == max(PROFILE.sweep.fractions)
]
if PART == "contrast":
    NOTEBOOKS = [BOOKS + "/01_data.ipynb", *DATA_PAGES, BOOKS + "/07_contrast.ipynb", BOOKS + "/07_claims.ipynb"]
elif PART == "structural":
    NOTEBOOKS = [*expand(BOOKS + "/{name}.ipynb", name=["01_data", *OF_TRANSFERS]), *DATA_PAGES]
elif PART == "comparison":
    NOTEBOOKS = [BOOKS + "/01_data.ipynb", BOOKS + "/09_comparison.ipynb"]
elif PART == "images":
    NOTEBOOKS = expand(BOOKS + "/{name}.ipynb", name=["01_data", "08_natural_images", "08_claims"])
elif PART == "patients":
    NOTEBOOKS = [BOOKS + "/10_patients.ipynb"]
else:
    NOTEBOOKS = [
        BOOKS + "/01_data.ipynb",
        BOOKS + "/04_statistics.ipynb",
        *([BOOKS + "/05_interpretation.ipynb"] if EXPLAINED else []),
        # a study of one task has no pre-training, and nothing of the paper's to stand beside
        *(
            expand(BOOKS + "/{name}.ipynb", name=["02_pretraining", "paper_and_this_run", "06_volumes"])
            if PROFILE.data.states("source")
            else []
        ),
        *expand(BOOKS + "/{name}.ipynb", name=["full_run", "performance", "scaling"]),
        *expand(BOOKS + "/controls_{name}.ipynb", name=CONTROLS),
        *(notebook_of(cell) for cell in SWEEP),
        *(f"{RUNS}/batches/{name}" for name in BATCHES),
    ]


rule book:
    input:
        NOTEBOOKS,
        pages=[p for p in sorted(Path("book").rglob("*")) if p.is_file()] + ["_config.yml", "_toc.yml", "CHANGELOG.md"],
        other=[
            p
            for n in PARTS.values()
            if n != PROFILE.name
            for page in ("04_statistics", "06_transfer", "07_contrast", "08_natural_images", "09_comparison", "10_patients")
            for p in Path(f"runs/{n}/notebooks").glob(f"{page}.ipynb")
        ],
    output:
        RUNS + "/book/_build/html/index.html",
    params:
        parts=" ".join(f"--{part} {name}" for part, name in PARTS.items())
        + ("" if wanted("reference", "yes") else " --no-reference"),  # most of the time that a book takes
    shell:
        "mkdir -p {RUNS}/logs; deeplight book {RUNS}/book {params.parts} && {{ jupyter-book build {RUNS}/book -W -n --keep-going > {RUNS}/logs/book.log 2>&1 "
        "|| {{ grep -E 'WARNING|ERROR' {RUNS}/logs/book.log >&2; false; }} }}"


# If only one job is ready, Snakemake (at least 9.12 to 9.15) gives back its cores without having taken them, and then starts too
# many jobs. `threads: 0` keeps the count right for the rules that everything else waits for.
if PROFILE.makes_manifest:
    try:
        manifest_of(PROFILE)  # made from the settings alone
    except ValueError as error:
        sys.exit(f"snakemake: {error}")
elif not PROFILE.manifest_path.is_file():  # an existing one is the user's, and keeps its splits
    if "://" not in PROFILE.data.root and not Path(PROFILE.data_root).is_dir():
        sys.exit(f"snakemake: profile {NAME} reads the folder {PROFILE.data_root}, which does not exist; name yours with DATA=…")

    rule manifest:
        output:
            str(PROFILE.data.manifest),
        params:
            source=lambda w: source_of_manifest(),
            unit=PROFILE.data.split_unit,
            n=PROFILE.data.n_validation,
            n_test=PROFILE.data.n_test,
            seed=PROFILE.data.split_seed,
        threads: 0
        resources:
            cpus_per_task=1,
        shell:
            "deeplight manifest {params.source} --split-unit {params.unit} --validation {params.n} "
            "--test {params.n_test} --seed {params.seed} --output {output}"


rule plan:
    input:
        str(PROFILE.data.manifest),
    output:
        touch(f"{RUNS}/prepared/plan"),
    params:
        settings=MADE_OF_DATA,
    shell:
        "deeplight prepare {RESOLVED} --plan"


rule subject:
    input:
        f"{RUNS}/prepared/plan",
    output:
        touch(f"{RUNS}/prepared/sub-{{subject}}"),
    threads: 2
    resources:
        mem_mb=3000,
    shell:
        "deeplight prepare {RESOLVED} --subject {wildcards.subject} --jobs {threads}"


rule data:
    input:
        str(PROFILE.data.manifest),
        "notebooks/01_data.ipynb",
        [f"{RUNS}/prepared/sub-{subject}" for subject in SUBJECTS],
    output:
        BOOKS + "/01_data.ipynb",
        INDEX,
    params:
        notebook="01_data",
        parameters="",
        settings=MADE_OF_DATA,
    threads: 0
    resources:
        cpus_per_task=8,  # on a cluster; on one machine all cores are used
    shell:
        PAPERMILL


use rule data as other_data with:
    input:
        lambda w: str(OTHER_DATA[w.name].data.manifest),
        "notebooks/01_data.ipynb",
    output:
        BOOKS + "/data/{name}.ipynb",
        "runs/{name}/store/index.parquet",
    wildcard_constraints:
        name="|".join(OTHER_DATA) or "-",
    params:
        notebook="01_data",
        parameters=lambda w: resolved(next(change for change, own in CHANGED.items() if own.name == w.name)),
        settings=lambda w: made_of_data(OTHER_DATA[w.name]),


if DEVICES * NODES > 1:

    rule train:
        input:
            INDEX,
        output:
            touch(RUNS + "/trained/{route}-seed{seed}{fold}"),
        wildcard_constraints:
            route="|".join(ROUTES),
            seed=r"\d+",
            fold=r"(-fold\d+)?",
        params:
            settings=lambda w: pretraining_settings(w.route, w.fold),
            fold=lambda w: f"--fold {number_of(w.fold)} " if w.fold else "",
        threads: lambda w: DEVICES * getattr(PROFILE.routes, w.route).pretraining.threads
        priority: 1
        resources:
            slot=SLOTS,  # it sees all GPUs
            mpi="srun",  # the command starts its own ranks; without this SLURM's plugin would run it within `srun -n1`
            nodes=NODES,
            gres=f"gpu:{DEVICES}",  # per node; `gpu` would be a sum over the nodes
            cpus_per_task=lambda w: getattr(PROFILE.routes, w.route).pretraining.threads,
            # The plugin refuses one task per node, and takes `tasks` for tasks per GPU where that is not 0.
            **({"tasks_per_node": DEVICES} if DEVICES > 1 else {"tasks": NODES, "tasks_per_gpu": 0}),
        shell:
            "${{SLURM_JOB_ID:+{resources.mpi} --nodes={NODES} --ntasks-per-node={DEVICES} --kill-on-bad-exit "
            "--cpus-per-task={resources.cpus_per_task}}} "
            "deeplight pretrain {RESOLVED} --route {wildcards.route} --seed {wildcards.seed} {params.fold}"
            "--devices {DEVICES} --nodes {NODES}"


rule pretraining:
    input:
        INDEX,
        "notebooks/02_pretraining.ipynb",
        trained("supervised", "", FIRST_SEED, FOLDS[0]),
    output:
        BOOKS + "/02_pretraining.ipynb",
    params:
        notebook="02_pretraining",
        parameters=pretraining_parameters("supervised", FIRST_SEED, FOLDS[0]),
        settings=pretraining_settings("supervised", FOLDS[0]),
    threads: PROFILE.routes.supervised.pretraining.threads
    priority: 1  # a third of the sweep waits for it
    resources:
        slot=1,
    shell:
        "{ON_A_GPU}" + PAPERMILL


use rule pretraining as other_pretraining with:
    input:
        lambda w: index_of(change_of(w)),
        "notebooks/02_pretraining.ipynb",
        lambda w: trained(w.route, w.target, w.seed, number_of(w.fold), change_of(w)),
    output:
        BOOKS + "/pretraining/{change}/{route}-{target}-seed{seed}{fold}.ipynb",
    wildcard_constraints:
        change="|".join([*changes(PROFILE), "as-is"]),
        route="|".join(ROUTES),
        seed=r"\d+",
        fold=r"(-fold\d+)?",
    params:
        notebook="02_pretraining",
        parameters=lambda w: pretraining_parameters(w.route, w.seed, number_of(w.fold), w.target, change_of(w)),
        settings=lambda w: pretraining_settings(w.route, w.fold, change_of(w)),
    threads: lambda w: getattr(PROFILE.routes, w.route).pretraining.threads


rule finetuning:
    input:
        INDEX,
        "notebooks/03_finetuning.ipynb",
        lambda w: pretrained(swept(w)),
    output:
        BOOKS + "/03_finetuning/{variant}-{fraction}-seed{seed}{fold}.ipynb",
    wildcard_constraints:
        variant="|".join(VARIANTS),
        fraction=r"[\d.e-]+",
        seed=r"\d+",
        fold=r"(-fold\d+)?",
    params:
        notebook="03_finetuning",
        parameters=lambda w: parameters_of(swept(w)),
        settings=lambda w: settings_of(swept(w)),
    threads: PROFILE.finetuning.threads
    resources:
        slot=1,
    group: (lambda w: batch_of(swept(w))) if BATCHES else None
    shell:
        "{ON_A_GPU}" + PAPERMILL


rule control:
    input:
        lambda w: index_of(OTHERS[w.cell].change),
        "notebooks/03_finetuning.ipynb",
        lambda w: pretrained(OTHERS[w.cell]),
    output:
        BOOKS + "/controls/{cell}.ipynb",
    params:
        notebook="03_finetuning",
        parameters=lambda w: parameters_of(OTHERS[w.cell]),
        settings=lambda w: settings_of(OTHERS[w.cell]),
    threads: PROFILE.finetuning.threads
    resources:
        slot=1,
    group: (lambda w: batch_of(OTHERS[w.cell])) if BATCHES else None
    shell:
        "{ON_A_GPU}" + PAPERMILL


if BATCHES:

    # SLURM's plugin runs the members of a group one after another unless something in the group depends on all of them
    # (snakemake-executor-plugin-slurm#469, seen in its version 2.8). This does, and adds a minute to the group's runtime.
    rule batch:
        input:
            lambda w: [notebook_of(cell) for cell in BATCHES[w.batch]],
        output:
            touch(RUNS + "/batches/{batch}"),
        resources:
            runtime=1,
        group: "{batch}"


rule control_page:
    input:
        INDEX,
        lambda w: shown(w.name) + (shown("seeds") if w.name == "steps" else []),  # how much chance changes
        "notebooks/controls_{name}.ipynb",
    output:
        BOOKS + "/controls_{name}.ipynb",
    wildcard_constraints:
        name="|".join(CONTROLS),
    params:
        notebook=lambda w: f"controls_{w.name}",
        parameters="",
        settings=lambda w: settings.digest(PROFILE.finetuning, [list(cell) for cell in planned(PROFILE, w.name)]),
    shell:
        PAPERMILL


if PROFILE.transfers:

    use rule data as transfer_data with:
        input:
            lambda w: [INDEX] if TRANSFERS[w.name].preprocessing.mask else [],
            "notebooks/01_data.ipynb",
        output:
            BOOKS + "/data/{name}.ipynb",
        wildcard_constraints:
            name="|".join(OWN_STORES.values()) or "-",
        params:
            notebook="01_data",
            parameters=lambda w: f"-p transfer {w.name}",
            settings=lambda w: made_of_data(TRANSFERS[w.name]),
        threads: workflow.cores or 1

    rule transfers:
        input:
            INDEX,
            DATA_PAGES,
            STARTS if PART == "contrast" else [],  # here pre-trainings have notebooks of their own
        output:
            touch(RUNS + "/trained/{name}"),
        wildcard_constraints:
            name="transfers|controls",
        params:
            settings=BY_THIS_CODE,
            sweeps=lambda w: "--name sweep --name blocks --name faults" if w.name == "controls" else "--name sweep",
            transfers=" ".join(f"--transfer {name}" for name in TRANSFERS),
        threads: workflow.cores or 1
        shell:
            "deeplight sweep {RESOLVED} {params.sweeps} {params.transfers} --jobs {threads}"

    rule transfer_page:
        input:
            f"{RUNS}/trained/controls" if CONTROLLED else f"{RUNS}/trained/transfers",
            "notebooks/{name}.ipynb",
        output:
            BOOKS + "/{name}.ipynb",
        wildcard_constraints:
            name="|".join(OF_TRANSFERS),
        params:
            notebook=lambda w: w.name,
            parameters="",
            settings=BY_THIS_CODE,
        shell:
            PAPERMILL

else:
    VOLUMES = pretraining_notebook("", "reconstruction", "", FIRST_SEED, FOLDS[0])

    rule volumes:
        input:
            INDEX,
            [VOLUMES] if wanted("controls") or Path(VOLUMES).exists() else [],
            "notebooks/06_volumes.ipynb",
        output:
            BOOKS + "/06_volumes.ipynb",
        params:
            notebook="06_volumes",
            parameters="",
            settings="",
        shell:
            PAPERMILL


rule contrast_page:
    input:
        pretraining_notebook("", "contrast", "", FIRST_SEED, FOLDS[0]),
        [notebook_of(cell) for cell in SWEEP],
        [f"{RUNS}/trained/transfers"] if TRANSFERS else [],
        shown("shortcuts"),
        shown("networks"),
        "notebooks/{name}.ipynb",
    output:
        BOOKS + "/{name}.ipynb",
    wildcard_constraints:
        name="07_contrast|07_claims",
    params:
        notebook=lambda w: w.name,
        parameters="",
        settings=settings.digest(PROFILE.sweep),
    shell:
        PAPERMILL


# A network for photographs has no pre-training of its own; another profile's pre-trainings have no notebooks here.
BY_COMMAND = PART == "images" or (PART == "comparison" and PROFILE.pretrained_by is not None)
if BY_COMMAND:
    NAMES = {"sweep": ["sweep"]}
    if PART == "images":
        NAMES = {"sweep": ["sweep", OF_IMAGES[0]], "full": [OF_IMAGES[1]], "controls": [OF_IMAGES[2]]}
    SWEPT = [f"{RUNS}/trained/{name}" for name in NAMES if name == "sweep" or wanted(name) or Path(f"{RUNS}/trained/{name}").exists()]

    rule swept:
        input:
            INDEX,
            lambda w: sorted({index_of(cell.change) for name in NAMES[w.name] for cell in planned(PROFILE, name)}),
        output:
            touch(RUNS + "/trained/{name}"),
        wildcard_constraints:
            name="|".join(NAMES),
        params:
            settings=BY_THIS_CODE,
            sweeps=lambda w: " ".join(f"--name {name}" for name in NAMES[w.name]),
        threads: workflow.cores or 1
        shell:
            "deeplight sweep {RESOLVED} {params.sweeps} --jobs {threads}"


if PART == "images":

    rule images_page:
        input:
            SWEPT,
            "notebooks/{name}.ipynb",
        output:
            BOOKS + "/{name}.ipynb",
        wildcard_constraints:
            name="08_natural_images|08_claims",
        params:
            notebook=lambda w: w.name,
            parameters="",
            settings=BY_THIS_CODE,
        shell:
            PAPERMILL


if PART == "patients":
    STATED = f"{PROFILE.checkpoint}/model.json"
    LARGEST = max(PROFILE.sweep.fractions)

    if PROFILE.simulated:

        rule study:
            output:
                PROFILE.data.root + "/participants.tsv",
            params:
                settings=MADE_OF_DATA,
                manifest=PROFILE.data.manifest,
                n=PROFILE.data.n_validation,
            threads: workflow.cores or 1
            shell:
                "deeplight cohort {RESOLVED} --jobs {threads} && deeplight manifest --bids {PROFILE.data.root} "
                "--derivatives derivatives/fmriprep --subjects {output} --label group --stratify group "
                "--validation {params.n} --output {params.manifest}"

        rule decoder:
            output:
                STATED,
            params:
                folder=PROFILE.checkpoint,
            threads: workflow.cores or 1
            shell:
                "deeplight prepare demo && mkdir -p {RUNS}/logs && deeplight pretrain demo | tee {RUNS}/logs/pretraining.log && "
                "deeplight export $(grep -E '/pretraining-supervised-seed1-[0-9a-f]+$' {RUNS}/logs/pretraining.log | tail -1) -o {params.folder}"

    rule groups:
        input:
            [STATED] if PROFILE.simulated else [],
            PROFILE.data.root + "/participants.tsv" if PROFILE.simulated else str(PROFILE.data.manifest),
        output:
            RUNS + "/report.html",
        params:
            settings=BY_THIS_CODE,
            explained=f"{RUNS}/finetuning-pretrained-{LARGEST:g}-seed{FIRST_SEED}-fold1-",
            # of every fold the newest: older ones may have other settings
            trained=" ".join(
                f"$(ls -td {RUNS}/finetuning-{v}-{LARGEST:g}-seed{FIRST_SEED}-fold{k}-* | head -1)"
                for v in PROFILE.sweep.variants for k in range(1, PROFILE.sweep.folds + 1)
            ),
        threads: workflow.cores or 1
        shell:
            "deeplight sweep {RESOLVED} --jobs {threads} && "
            "deeplight explain $(ls -td {params.explained}* | head -1) {RESOLVED} --each 13 --output {RUNS}/relevance && "
            "deeplight report {params.trained} --maps {RUNS}/relevance --output {output}"

    rule groups_page:
        input:
            RUNS + "/report.html",
            "notebooks/10_patients.ipynb",
        output:
            BOOKS + "/10_patients.ipynb",
        params:
            notebook="10_patients",
            parameters="",
            settings=BY_THIS_CODE,
        shell:
            PAPERMILL


rule comparison_page:
    input:
        SWEPT if BY_COMMAND else [notebook_of(cell) for cell in SWEEP],
        [] if BY_COMMAND else [shown(name) for name in OF_COMPARISON],
        "notebooks/09_comparison.ipynb",
    output:
        BOOKS + "/09_comparison.ipynb",
    params:
        notebook="09_comparison",
        parameters="",
        settings=BY_THIS_CODE,
    shell:
        PAPERMILL


rule statistics:
    input:
        [notebook_of(cell) for cell in SWEEP],
        "notebooks/04_statistics.ipynb",
    output:
        BOOKS + "/04_statistics.ipynb",
    params:
        notebook="04_statistics",
        parameters="",
        settings=settings.digest(PROFILE.sweep),
    shell:
        PAPERMILL


use rule statistics as interpretation with:
    input:
        [notebook_of(cell) for cell in EXPLAINED],
        "notebooks/05_interpretation.ipynb",
    output:
        BOOKS + "/05_interpretation.ipynb",
    params:
        notebook="05_interpretation",
        parameters="",
        settings=settings.digest([list(cell) for cell in EXPLAINED]),


use rule statistics as paper_and_this_run with:
    input:
        BOOKS + "/02_pretraining.ipynb",
        [notebook_of(cell) for cell in SWEEP],
        "notebooks/paper_and_this_run.ipynb",
    output:
        BOOKS + "/paper_and_this_run.ipynb",
    params:
        notebook="paper_and_this_run",
        parameters="",
        settings=settings.digest(PROFILE.sweep),


use rule statistics as measured with:
    input:
        "profiles/paper.yaml",
        "notebooks/{name}.ipynb",
        INDEX,
        sorted(Path("benchmarks/results").glob("*.json")),
    output:
        BOOKS + "/{name}.ipynb",
    wildcard_constraints:
        name="full_run|performance|scaling",
    params:
        notebook=lambda w: w.name,
        parameters="",
        settings="",


def record(how):
    """Write down how long this took, for `make help`; where nothing is to do, neither of the two below is called."""
    if "target" in config:
        with Path("runs/times.tsv").open("a", encoding="utf-8") as times:
            times.write(f"{config['target']}\t{PROFILE.name}\t{time.time() - BEGUN:.0f}\t{how}\n")


onsuccess:
    record("done")


onerror:
    record("stopped")
