"""Which notebook makes what. `make reproduce` calls this; so can you:

    snakemake --cores 2 --config profile=demo
    snakemake --cores 2 --config profile=haxby data=/path/to/haxby2001-vt
    snakemake --cores 2 --config profile=demo controls=yes
    snakemake --executor slurm --jobs 100 --config profile=paper by_subject=yes

With `by_subject=yes` every subject's runs are prepared by a job of their own; they fill one store, and none waits for another.
Every rule runs one notebook through papermill. Notebooks are written to running/ and moved when they are whole; a failed
one is kept in failed/, with its traceback; logs/ has what each of them said. What a notebook depends on are files and settings: adding a fraction to the
profile runs that fraction only.
"""

import os
import sys
from pathlib import Path

import yaml

from deeplight_core import config as settings
from deeplight_core.grids import CONTROLS, Cell, grid
from deeplight_core.manifest import read_manifest, select
from deeplight_core.variants import VARIANTS

NAME = str(config.get("profile", "demo"))
DATA = config.get("data")
try:
    PROFILE = settings.load_profile(NAME if NAME.endswith(".yaml") else f"profiles/{NAME}.yaml")
except ValueError as error:
    sys.exit(f"snakemake: {error}")
if DATA:
    if "://" not in str(DATA):
        if not Path(DATA).is_dir():
            sys.exit(f"snakemake: the data folder {DATA} does not exist")
        DATA = Path(DATA).absolute()
    PROFILE = PROFILE.model_copy(update={"data": PROFILE.data.model_copy(update={"root": str(DATA)})})
RUNS = f"runs/{PROFILE.name}"
BOOKS = f"{RUNS}/notebooks"
INDEX = os.path.relpath(PROFILE.store / "index.parquet")
# The profile with all its defaults and the data folder: what papermill injects. Not an input of any rule: the settings
# that a rule depends on are its params.
RESOLVED = Path(RUNS) / "profile.yaml"
RESOLVED.parent.mkdir(parents=True, exist_ok=True)
RESOLVED.write_text(yaml.safe_dump(PROFILE.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

SWEEP = grid(PROFILE, "sweep")
FIRST_SEED = PROFILE.sweep.seeds[0]
# Every run of a control that is not the sweep's, by name. Without `controls=yes` the controls' pages show what is there.
OTHERS = {cell.name: cell for name in CONTROLS for cell in grid(PROFILE, name) if cell not in SWEEP}
RUN_CONTROLS = str(config.get("controls", "no")).lower() in ("yes", "true", "1")


def notebook_of(cell):
    return f"{BOOKS}/{'03_finetuning' if cell in SWEEP else 'controls'}/{cell.name}.ipynb"


def pretraining_of(cell):
    """The notebook of the pre-training that a run starts from, in a list; an empty one for a run that starts from none."""
    if VARIANTS[cell.variant].start == "random":
        return []
    if not cell.target and cell.seed == FIRST_SEED:
        return [BOOKS + "/02_pretraining.ipynb"]
    return [f"{BOOKS}/pretraining/{cell.target or 'own'}-seed{cell.seed}.ipynb"]


def shown(name):
    """The notebooks that a control's page is made from."""
    notebooks = [notebook_of(cell) for cell in grid(PROFILE, name)]
    others = {notebook_of(cell) for cell in OTHERS.values()}
    return [n for n in notebooks if RUN_CONTROLS or n not in others or Path(n).exists()]


def parameters_of(cell):
    target = f"-p target '{cell.target}' " if cell.target else ""
    return f"{target}-p variant {cell.variant} -p fraction {cell.fraction} -p seed {cell.seed}"


def settings_of(cell):
    pretraining = PROFILE.pretraining if pretraining_of(cell) else None
    return settings.digest(MADE_OF_DATA, PROFILE.model, PROFILE.finetuning, pretraining and pretraining.model_dump())


SUBJECTS = []
if str(config.get("by_subject", "no")).lower() in ("yes", "true", "1"):
    try:
        runs = read_manifest(PROFILE.manifest_path, PROFILE.data.split_unit)
        SUBJECTS = sorted(select(runs, PROFILE.data)["subject"].unique())
    except ValueError as error:
        sys.exit(f"snakemake: {error}")

REAL = PROFILE.name if PROFILE.simulation is None else "haxby"
BUILT_IN = PROFILE.name if PROFILE.simulation is not None else "demo"

MADE_OF_DATA = settings.digest(PROFILE.data, PROFILE.simulation and PROFILE.simulation.model_dump(), PROFILE.preprocessing)
PAPERMILL = (
    "n=$(( {threads} > 0 ? {threads} : 1 )); export OMP_NUM_THREADS=$n OPENBLAS_NUM_THREADS=$n MKL_NUM_THREADS=$n; "
    "out={output[0]}; name=$(basename $out .ipynb); part={BOOKS}/running/$name.ipynb; log={RUNS}/logs/$name.log; "
    "mkdir -p {BOOKS}/running {BOOKS}/failed {RUNS}/logs $(dirname $out); "
    "if papermill notebooks/{params.notebook}.ipynb $part -f {RESOLVED} {params.parameters} "
    "--kernel python3 --log-output --no-progress-bar 2>&1 | tee $log "
    "| {{ grep --line-buffered -E '(left|took [0-9:]+|found in .*|going on at step .*)$' || true; }}; "
    "then mv $part $out; "
    "else mv $part {BOOKS}/failed/ || true; sed -n '/Exception encountered/,$p' $log >&2; "
    'echo "FAILED: {params.notebook}; the notebook with its traceback is {BOOKS}/failed/$name.ipynb, its log $log" >&2; exit 1; fi'
)


rule book:
    input:
        BOOKS + "/01_data.ipynb",
        BOOKS + "/02_pretraining.ipynb",
        BOOKS + "/04_statistics.ipynb",
        BOOKS + "/paper_and_this_run.ipynb",
        BOOKS + "/full_run.ipynb",
        expand(BOOKS + "/controls_{name}.ipynb", name=CONTROLS),
        [notebook_of(cell) for cell in SWEEP],
        pages=[p for p in sorted(Path("book").rglob("*")) if p.is_file()] + ["_config.yml", "_toc.yml", "CHANGELOG.md"],
        other=[p for n in (REAL, BUILT_IN) if n != PROFILE.name for p in Path(f"runs/{n}/notebooks").glob("04_statistics.ipynb")],
    output:
        RUNS + "/book/_build/html/index.html",
    params:
        built_in=BUILT_IN,
        real=REAL,
    shell:
        "mkdir -p {RUNS}/logs; deeplight book {RUNS}/book --built-in {params.built_in} --real {params.real} "
        "&& {{ jupyter-book build {RUNS}/book -W -n --keep-going > {RUNS}/logs/book.log 2>&1 "
        "|| {{ grep -E 'WARNING|ERROR' {RUNS}/logs/book.log >&2; false; }} }}"


# Snakemake (9.12 to 9.15 at least) gives back the cores of a job that was the only one ready without having taken them, and then
# starts too many. `threads: 0` keeps the count right for the rules that everything else waits for.
if not PROFILE.manifest_path.is_file():  # one that exists is the user's, and keeps its splits

    rule manifest:
        output:
            str(PROFILE.data.manifest),
        params:
            layout=PROFILE.data.layout,
            root=str(PROFILE.data_root),
            unit=PROFILE.data.split_unit,
            n=PROFILE.data.n_validation,
            seed=PROFILE.data.split_seed,
        threads: 0
        resources:
            cpus_per_task=1,
        shell:
            "deeplight manifest --{params.layout} '{params.root}' --split-unit {params.unit} --validation {params.n} "
            "--seed {params.seed} --output {output}"


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


rule pretraining:
    input:
        INDEX,
        "notebooks/02_pretraining.ipynb",
    output:
        BOOKS + "/02_pretraining.ipynb",
    params:
        notebook="02_pretraining",
        parameters=f"-p seed {FIRST_SEED}",
        settings=settings.digest(MADE_OF_DATA, PROFILE.model, PROFILE.pretraining),
    threads: PROFILE.pretraining.threads
    priority: 1  # a third of the sweep waits for it
    shell:
        PAPERMILL


use rule pretraining as other_pretraining with:
    output:
        BOOKS + "/pretraining/{target}-seed{seed}.ipynb",
    params:
        notebook="02_pretraining",
        parameters=lambda w: f"-p seed {w.seed}" + ("" if w.target == "own" else f" -p target '{w.target}'"),
        settings=settings.digest(MADE_OF_DATA, PROFILE.model, PROFILE.pretraining),


rule finetuning:
    input:
        INDEX,
        "notebooks/03_finetuning.ipynb",
        lambda w: pretraining_of(Cell("", w.variant, float(w.fraction), int(w.seed))),
    output:
        BOOKS + "/03_finetuning/{variant}-{fraction}-seed{seed}.ipynb",
    wildcard_constraints:
        variant="|".join(VARIANTS),
        fraction=r"[\d.e-]+",
        seed=r"\d+",
    params:
        notebook="03_finetuning",
        parameters=lambda w: parameters_of(Cell("", w.variant, float(w.fraction), int(w.seed))),
        settings=lambda w: settings_of(Cell("", w.variant, float(w.fraction), int(w.seed))),
    threads: PROFILE.finetuning.threads
    shell:
        PAPERMILL


rule control:
    input:
        INDEX,
        "notebooks/03_finetuning.ipynb",
        lambda w: pretraining_of(OTHERS[w.cell]),
    output:
        BOOKS + "/controls/{cell}.ipynb",
    params:
        notebook="03_finetuning",
        parameters=lambda w: parameters_of(OTHERS[w.cell]),
        settings=lambda w: settings_of(OTHERS[w.cell]),
    threads: PROFILE.finetuning.threads
    shell:
        PAPERMILL


rule control_page:
    input:
        INDEX,
        lambda w: shown(w.name),
        "notebooks/controls_{name}.ipynb",
    output:
        BOOKS + "/controls_{name}.ipynb",
    wildcard_constraints:
        name="|".join(CONTROLS),
    params:
        notebook=lambda w: f"controls_{w.name}",
        parameters="",
        settings=lambda w: settings.digest([list(cell) for cell in grid(PROFILE, w.name)]),
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


use rule statistics as full_run with:
    input:
        "profiles/paper.yaml",
        "notebooks/full_run.ipynb",
        sorted(Path("benchmarks/results").glob("*.json")),
    output:
        BOOKS + "/full_run.ipynb",
    params:
        notebook="full_run",
        parameters="",
        settings="",
