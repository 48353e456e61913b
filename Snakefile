"""Which notebook makes what. `make reproduce` calls this; so can you:

    snakemake --cores 2 --config profile=demo
    snakemake --cores 2 --config profile=haxby data=/path/to/haxby2001-vt

Every rule runs one notebook through papermill. Notebooks are written to running/ and moved when they are whole; a failed
one is kept in failed/, with its traceback; logs/ has what each of them said. What a notebook depends on are files and settings: adding a fraction to the
profile runs that fraction only.
"""

import sys
from pathlib import Path

import yaml

from deeplight_core import config as settings

NAME = str(config.get("profile", "demo"))
DATA = config.get("data")
try:
    PROFILE = settings.load_profile(NAME if NAME.endswith(".yaml") else f"profiles/{NAME}.yaml")
except ValueError as error:
    sys.exit(f"snakemake: {error}")
if DATA:
    if not Path(DATA).is_dir():
        sys.exit(f"snakemake: the data folder {DATA} does not exist")
    PROFILE = PROFILE.model_copy(update={"data": PROFILE.data.model_copy(update={"root": Path(DATA).absolute()})})
RUNS = f"runs/{PROFILE.name}"
BOOKS = f"{RUNS}/notebooks"
# The profile with all its defaults and the data folder: what papermill injects. Not an input of any rule: the settings
# that a rule depends on are its params.
RESOLVED = Path(RUNS) / "profile.yaml"
RESOLVED.parent.mkdir(parents=True, exist_ok=True)
RESOLVED.write_text(yaml.safe_dump(PROFILE.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

SWEEP = PROFILE.sweep
FINETUNINGS = [f"{v}-{f:g}-seed{s}" for s in SWEEP.seeds for v in SWEEP.variants for f in SWEEP.fractions]
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
        expand(BOOKS + "/03_finetuning/{run}.ipynb", run=FINETUNINGS),
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
        shell:
            "deeplight manifest --{params.layout} '{params.root}' --split-unit {params.unit} --validation {params.n} "
            "--seed {params.seed} --output {output}"


rule data:
    input:
        str(PROFILE.data.manifest),
        "notebooks/01_data.ipynb",
    output:
        BOOKS + "/01_data.ipynb",
        RUNS + "/store/index.parquet",
    params:
        notebook="01_data",
        parameters="",
        settings=MADE_OF_DATA,
    threads: 0
    shell:
        PAPERMILL


rule pretraining:
    input:
        RUNS + "/store/index.parquet",
        "notebooks/02_pretraining.ipynb",
    output:
        BOOKS + "/02_pretraining.ipynb",
    params:
        notebook="02_pretraining",
        parameters=f"-p seed {SWEEP.pretraining_seed}",
        settings=settings.digest(MADE_OF_DATA, PROFILE.model, PROFILE.pretraining),
    threads: PROFILE.pretraining.threads
    priority: 1  # a third of the sweep waits for it
    shell:
        PAPERMILL


rule finetuning:
    input:
        RUNS + "/store/index.parquet",
        "notebooks/03_finetuning.ipynb",
        lambda wildcards: [BOOKS + "/02_pretraining.ipynb"] if wildcards.variant == "pretrained" else [],
    output:
        BOOKS + "/03_finetuning/{variant}-{fraction}-seed{seed}.ipynb",
    params:
        notebook="03_finetuning",
        parameters="-p variant {variant} -p fraction {fraction} -p seed {seed}",
        settings=lambda wildcards: settings.digest(
            MADE_OF_DATA, PROFILE.model, PROFILE.finetuning, wildcards.variant == "pretrained" and PROFILE.pretraining.model_dump()
        ),
    threads: PROFILE.finetuning.threads
    shell:
        PAPERMILL


rule statistics:
    input:
        expand(BOOKS + "/03_finetuning/{run}.ipynb", run=FINETUNINGS),
        "notebooks/04_statistics.ipynb",
    output:
        BOOKS + "/04_statistics.ipynb",
    params:
        notebook="04_statistics",
        parameters="",
        settings=settings.digest(SWEEP),
    threads: 2
    shell:
        PAPERMILL
