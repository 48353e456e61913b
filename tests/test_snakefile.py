"""What Snakemake plans on one machine and on a cluster, and what reaches SLURM.

Nothing is trained: stand-ins note how they are called. tests/integration/test_workflow.py runs the whole workflow.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from deeplight_core.config import load_profile
from deeplight_core.routes import ROUTES
from deeplight_core.sweeps import CONTROLS

ROOT = Path(__file__).parents[1]
NEEDED = ["Snakefile", "profiles", "notebooks", "book", "_config.yml", "_toc.yml", "CHANGELOG.md", "data_manifest.csv",
          "tuning_manifest.csv"]  # fmt: skip
CLUSTER = ["--profile", "profiles/slurm"]
FINETUNING = "runs/smoke/notebooks/03_finetuning"

STAND_INS = {
    # A training that ends when as many as TOGETHER have begun, or after a minute.
    "papermill": """echo "start ${CUDA_VISIBLE_DEVICES-} $2" >> "$CALLS"
for i in {1..600}; do [ $(grep -c ^start "$CALLS") -ge $TOGETHER ] && break; sleep 0.1; done
cp "$1" "$2"; echo "end $2" >> "$CALLS" """,
    "deeplight": 'echo "deeplight $*" >> "$CALLS"',
    # A cluster that runs each job at once, on this machine, and returns when it is done.
    "sbatch": """echo "sbatch $*" >> "$CALLS"
for argument; do case $argument in --wrap=*) command=${argument#--wrap=};; esac; done
id=$$; export SLURM_JOB_ID=$id
bash -c "$command" > "$CALLS.$id.log" 2>&1 && state=COMPLETED || state=FAILED
echo "$id|$state" >> "$CALLS.states"; echo $id""",
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "sacct": 'case "$*" in *JobIdRaw*) cat "$CALLS.states" 2> /dev/null || true;; esac',
    "sinfo": "echo 'gpu*'",
}


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what Snakemake reads, with stand-ins for what it starts."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in NEEDED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return folder


def snakemake(project: Path, *arguments: str, **environment: str) -> str:
    path = os.pathsep.join([str(project.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SNAKEMAKE_", "CUDA_"))}
    done = subprocess.run(
        ["snakemake", *arguments], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, env={**kept, "PATH": path, "CALLS": str(project.parent / "calls"), **environment},
    )  # fmt: skip
    logs = "".join(log.read_text()[-3000:] for log in project.parent.glob("calls.*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + logs
    return done.stdout


def plan(project: Path, *arguments: str, options: str = "") -> tuple[dict[str, int], dict[str, str]]:
    """How many jobs of each rule there are, and what is said of each job, by its first output."""
    config = ["--config", "profile=smoke", *options.split()]
    said = snakemake(project, "--dry-run", "--printshellcmds", *(arguments or ["--cores", "2"]), *config)
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", said, flags=re.MULTILINE)}
    jobs = re.split(r"^ *(?=\[\w{3} \w{3} +\d+ [\d:]+ \d{4}\])", said, flags=re.MULTILINE)
    return counts, {found[1]: job for job in jobs if (found := re.search(r"^ *output: ([^,\n]+)", job, re.MULTILINE))}


def calls(project: Path, name: str = "") -> list[str]:
    return [line for line in (project.parent / "calls").read_text().splitlines() if line.startswith(name)]


def running(project: Path) -> list[Counter[str]]:
    """How many trainings were on each GPU, after each that started or ended."""
    gpu_of, counts = {}, []
    for line in calls(project):
        if line.startswith("start "):
            _, gpu, notebook = line.split(" ")
            gpu_of[notebook] = gpu
        elif line.startswith("end "):
            del gpu_of[line.removeprefix("end ")]
        counts.append(Counter(gpu_of.values()))
    return counts


def prepared(project: Path, *notebooks: str) -> None:
    for name in ("runs/smoke/store/index.parquet", *notebooks):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()


def test_one_machine_plans_nothing_of_a_cluster(project):
    counts, jobs = plan(project, options="controls=no")
    pages = {"control_page": len(CONTROLS), "statistics": 1, "paper_and_this_run": 1, "measured": 3, "book": 1}
    pages |= {"interpretation": 1}
    assert counts == {"data": 1, "pretraining": 1, "finetuning": 6, "volumes": 1, **pages, "total": 24}
    assert re.search("srun|CUDA_VISIBLE_DEVICES|gres=|Group", "".join(jobs.values())) is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("transfers=yes", "profile smoke has no transfers; `make autoencoders` takes one that has"),
        (
            "images=yes",
            "profile smoke makes no page of images; `make images` takes one with `part: images`",
        ),
        ("contrast=yes", "profile smoke makes no page of contrast; `make contrast` takes one with `part: contrast`"),
    ],
)
def test_targets_are_refused_a_profile_that_is_not_for_them(option, message, project):
    with pytest.raises(AssertionError, match=message):
        snakemake(project, "--dry-run", "--cores", "1", "--config", "profile=smoke", option)


def test_a_manifest_of_images_has_what_is_decoded(project):
    def manifest(**data: str) -> str:
        profile = yaml.safe_load((ROOT / "profiles/ixi.yaml").read_text(encoding="utf-8"))
        profile["data"] |= {"root": "images", "manifest": "m.csv", "target": {"T1w": ["F", "M"]}} | data
        (project / "profiles/mine.yaml").write_text(yaml.safe_dump(profile | {"name": "mine"}))
        return snakemake(project, "--dry-run", "--printshellcmds", "--cores", "1", "--config", "profile=mine")

    (project / "images").mkdir()
    root = project / "images"
    said = f"--anat T1w --subjects '{root}/participants.tsv' --label sex --label age --split-unit"
    assert f"--bids '{root}' {said}" in manifest(layout="bids")
    image = "--image '{participant_id}.nii.gz'"
    assert f"deeplight manifest --table '{root}/participants.tsv' {image} --data '{root}'" in manifest()


def test_a_study_of_patients_goes_from_its_folder_to_a_page(project):
    """The checkpoint of profile demo is made if it is not there."""
    said = snakemake(project, "--dry-run", "--printshellcmds", "--cores", "2", "--config", "profile=patients")
    newest = "$(ls -td runs/patients/finetuning-pretrained-1-seed1-fold{}-* | head -1)"
    trained = f"{newest.format(1)} {newest.format(2)}"
    commands = [
        "deeplight cohort", "deeplight manifest --bids runs/patients/data --derivatives derivatives/fmriprep",
        "deeplight pretrain demo", "-o runs/decoder", "deeplight sweep", "deeplight explain",
        f"deeplight report {trained}", "papermill notebooks/10_patients.ipynb", "--patients patients",
    ]  # fmt: skip
    assert [command for command in commands if command not in said] == []


def test_the_manifest_of_a_cohort_is_made_from_its_settings(project):
    smoke = yaml.safe_load((project / "profiles/smoke.yaml").read_text())
    own = {
        "name": "people", "cohort": {"people": {"AD": 3, "CN": 3}, "scans": {"T1w": {"AD": 3, "CN": 3}}},
        "data": {
            "manifest": "runs/people/manifest.csv", "root": "runs/people/data", "layout": "bids", "label": "diagnosis",
            "n_validation": 2, "source": {}, "target": {"T1w": ["AD", "CN"]},
        },
    }  # fmt: skip
    kept = {key: smoke[key] for key in ("routes", "finetuning", "sweep") if key in smoke}
    (project / "profiles/people.yaml").write_text(yaml.safe_dump(kept | own))
    said = snakemake(project, "--dry-run", "--cores", "2", "--config", "profile=people", "by_subject=yes")
    assert len((project / "runs/people/manifest.csv").read_text().splitlines()) == 7
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", said, flags=re.MULTILINE)}
    assert "manifest" not in counts
    assert (counts["subject"], counts["data"]) == (6, 1)


@pytest.mark.parametrize(("visible", "started", "expected"), [(None, 4, {"0", "1"}), ("4,GPU-7", 6, {"4", "GPU-7"})])
def test_trainings_share_this_machines_gpus_evenly(project, visible, started, expected):
    """Even where more jobs are started than the GPUs have room for."""
    prepared(project, "runs/smoke/notebooks/02_pretraining.ipynb")
    variants = ("pretrained", "scratch", "linear")
    targets = [f"{FINETUNING}/{v}-{fraction}-seed1.ipynb" for v in variants for fraction in ("0.5", "1")]
    options = ["--config", "profile=smoke", "gpus=2", "per_gpu=2", "--allowed-rules", "finetuning"]
    options += ["--resources", f"slot={started}"] if started != 4 else []
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    said = snakemake(project, "--cores", "6", *options, "--", *targets, TOGETHER="4", **environment)
    assert f"Provided resources: slot={started}\n" in said
    counts = running(project)
    assert len(counts) == 2 * len(targets)
    assert {gpu for count in counts for gpu in count} == expected
    assert max(count[gpu] for count in counts for gpu in count) == 2
    assert max(count.total() for count in counts) == 4
    assert len(list((project / "runs/smoke/slots").iterdir())) == 4


def test_pretraining_has_all_gpus_of_this_machine_for_itself(project):
    _, jobs = plan(project, options="gpus=2 per_gpu=4 devices=2")
    assert "CUDA_VISIBLE_DEVICES" not in jobs["runs/smoke/trained/supervised-seed1"]
    assert "slot=8," in jobs["runs/smoke/trained/supervised-seed1"]
    assert "slot=1" in jobs[f"{FINETUNING}/scratch-1-seed1.ipynb"]
    assert "runs/smoke/batches" not in str(jobs)


def test_pretraining_on_several_nodes_comes_before_its_notebooks(project):
    counts, jobs = plan(project, *CLUSTER, options="controls=yes devices=4 nodes=2")
    assert counts["train"] == 3  # the seeds of the controls, and the autoencoder of volumes
    for seed, notebook in (("1", "02_pretraining"), ("2", "pretraining/as-is/supervised-own-seed2")):
        train = jobs[f"runs/smoke/trained/supervised-seed{seed}"]
        assert (
            f"deeplight pretrain runs/smoke/profile.yaml --route supervised --seed {seed} --devices 4 --nodes 2"
            in train
        )
        assert "srun --nodes=2 --ntasks-per-node=4 " in train
        assert f"runs/smoke/trained/supervised-seed{seed}" in jobs[f"runs/smoke/notebooks/{notebook}.ipynb"]
    others = [job for output, job in jobs.items() if re.search("pretraining/as-is/supervised-[A-Z]+-seed1", output)]
    assert len(others) == 1  # smoke leaves one more task out
    assert "trained" not in "".join(others)  # the command cannot leave out another task


def test_batches_hold_every_deep_fine_tuning_once(project):
    counts, jobs = plan(project, *CLUSTER, options="controls=yes per_gpu=4")
    batches = [job for output, job in jobs.items() if output.startswith("runs/smoke/batches/")]
    members = [re.findall(r"[^ ]+\.ipynb", re.search(r"input: (.*)", job)[1]) for job in batches]
    assert counts["batch"] == len(batches)
    assert max(len(batch) for batch in members) == 4
    grouped = sorted(notebook for batch in members for notebook in batch)
    trainings = [o for o in jobs if o.startswith((FINETUNING, "runs/smoke/notebooks/controls/"))]
    linear = re.compile("/(linear|svm|decoder)-")
    assert grouped == sorted(notebook for notebook in trainings if not linear.search(notebook))
    inside = re.compile(r"^    rule (finetuning|control):", re.MULTILINE)  # as the members of a group are shown
    assert grouped == sorted(notebook for notebook in trainings if inside.search(jobs[notebook]))
    for batch in members:  # nobody waits for a pre-training that is not its own
        needed = [set(re.findall(r"[^ ]*pretraining[^ ]*\.ipynb", jobs[n].split("output:")[0])) for n in batch]
        assert all(files == needed[0] for files in needed)


def test_slurm_gets_one_job_with_one_gpu_for_several_fine_tunings(project):
    prepared(project)
    targets = ["runs/smoke/batches/scratch-0.5-seed1"]
    snakemake(
        project, *CLUSTER, "--slurm-init-seconds-before-status-checks", "1", "--config", "profile=smoke", "per_gpu=4",
        "--allowed-rules", "finetuning", "batch", "--", *targets, TOGETHER="2",
    )  # fmt: skip
    (sbatch,) = calls(project, "sbatch")
    resources = sbatch.split(" --wrap")[0]
    assert "--gres=gpu:1" in resources
    assert "-t 1381 --mem 64000 " in resources  # the sum of the memory, not of the time
    assert "--cpus-per-task=2 " in resources
    assert len(calls(project, "srun")) == 1
    assert max(count.total() for count in running(project)) == 2  # at the same time


@pytest.mark.parametrize(
    ("devices", "nodes", "tasks"), [(4, 2, "--nodes=2 --ntasks-per-node=4 "), (1, 3, "--nodes=3 --ntasks=3 ")]
)
def test_slurm_gets_the_nodes_and_the_command_its_ranks(project, devices, nodes, tasks):
    prepared(project)
    options = ["profile=smoke", f"devices={devices}", f"nodes={nodes}"]
    snakemake(
        project, *CLUSTER, "--slurm-init-seconds-before-status-checks", "1", "--config", *options,
        "--allowed-rules", "train", "--", "runs/smoke/trained/supervised-seed1",
    )  # fmt: skip
    (sbatch,) = calls(project, "sbatch")
    assert f" {tasks}--cpus-per-task=1 " in sbatch
    assert f" --gres=gpu:{devices} " in sbatch
    assert "per-gpu" not in sbatch
    command = (
        f"deeplight pretrain runs/smoke/profile.yaml --route supervised --seed 1 --devices {devices} --nodes {nodes}"
    )
    ranks = f"--nodes={nodes} --ntasks-per-node={devices}"
    assert calls(project, "srun") == [f"srun {ranks} --kill-on-bad-exit --cpus-per-task=1 {command}"]  # Snakemake isn't
    assert calls(project, "deeplight") == [command]


def test_the_cluster_profile_names_rules_that_exist(project):
    rules = set(re.findall(r"^ *(?:use )?rule (?:\w+ as )?(\w+)", (ROOT / "Snakefile").read_text(), flags=re.MULTILINE))
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    assert set(settings["set-resources"]) <= rules


def test_a_manifest_is_made_with_the_splits_of_the_profile(project):
    (project / "mine").mkdir()
    data = {"manifest": "mine/m.csv", "root": "mine", "layout": "bids", "n_validation": 3, "n_test": 2}
    (project / "profiles/mine.yaml").write_text(yaml.safe_dump({"name": "mine", "data": data}))
    said = snakemake(project, "--dry-run", "--printshellcmds", "--cores", "1", "--config", "profile=mine")
    assert re.search("deeplight manifest --bids .* --validation 3 --test 2 --seed 0 --output mine/m.csv", said)


def test_a_folder_that_is_not_there_is_named_before_anything_runs(project):
    with pytest.raises(AssertionError, match=r"haxby reads the folder .*haxby2001-vt, which does not"):
        plan(project, options="profile=haxby")


def test_a_wrong_number_is_one_message(project):
    with pytest.raises(AssertionError, match="snakemake: devices must be a whole number from 1, got 'two'"):
        plan(project, options="devices=two")


def test_every_route_has_its_rule_and_its_line_for_the_cluster(project):
    """Also of a fold of cross-validation; `set-resources` of profiles/slurm give the rules their GPU and their time."""
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    folds = yaml.safe_load((project / "profiles/smoke.yaml").read_text(encoding="utf-8"))
    folds["sweep"] |= {"folds": 3}
    (project / "profiles/folds.yaml").write_text(yaml.safe_dump({**folds, "name": "folds"}), encoding="utf-8")
    names = {"seed7": "", "seed7-fold2": "--fold 2 "}
    targets = [f"runs/folds/notebooks/pretraining/as-is/{route}-own-{name}.ipynb" for route in ROUTES for name in names]
    dry = ("--cores", "1", "--dry-run", "--printshellcmds", "--config", "profile=folds", "devices=2")
    said = snakemake(project, *dry, "--", *targets)
    for route in ROUTES:
        for option in names.values():
            assert f"deeplight pretrain runs/folds/profile.yaml --route {route} --seed 7 {option}--devices 2" in said
        assert said.count(f"-p route {route} -p seed 7") == 2
    rules = re.findall(r"^rule (\w+):", said, flags=re.MULTILINE)
    assert {*rules} - {"data"} == {"train", "other_pretraining"} <= set(settings["set-resources"])
    assert rules.count("train") == rules.count("other_pretraining") == len(targets)


def test_controls_that_change_the_data_have_stores_of_their_own(project):
    """And the trainings on them get the changed settings; the grid of transfer gain is run only if asked for."""
    counts, jobs = plan(project, options="controls=yes gain=yes")
    assert counts["other_data"] == 2
    tried = jobs["runs/smoke/notebooks/controls/people-rate0.001-pretrained-0.5-seed1.ipynb"]
    assert "runs/smoke-people/store/index.parquet" in tried
    assert "pretraining/people/supervised-own-seed1.ipynb" in tried
    assert '"learning_rate": 0.001' in tried
    few = jobs["runs/smoke/notebooks/pretraining/contrast3-n2/supervised-own-seed1.ipynb"]
    assert "runs/smoke-contrast3/store/index.parquet" in few
    assert '"n_units": 2' in few
    longer = jobs["runs/smoke/notebooks/controls/x3-pretrained-0.5-seed1.ipynb"]
    assert "runs/smoke/store/index.parquet" in longer
    assert "notebooks/02_pretraining.ipynb" in longer  # of the sweep: nothing of it changes
    _, without = plan(project, options="controls=yes")
    assert [output for output in without if "contrast" in output] == []
    assert any("people-rate" in output for output in without)


def test_the_page_of_rates_follows_those_of_the_profile(project):
    page = "runs/smoke/notebooks/controls_rates.ipynb"
    prepared(project)
    snakemake(project, "--cores", "2", page, "--config", "profile=smoke", TOGETHER="1")
    assert page not in plan(project, page)[1]
    profile = project / "profiles/smoke.yaml"
    own = profile.read_text(encoding="utf-8")
    profile.write_text(
        own.replace("finetuning:\n", "finetuning:\n  learning_rates: {scratch: 2.0e-3}\n"), encoding="utf-8"
    )
    assert page in plan(project, page)[1]


def test_decoders_as_published_are_trained_if_asked_for(project):
    """Beside the comparison, from the profile's own pre-trainings; other conditions have theirs, and their own data."""
    asked = {
        name: plan(project, options=f"profile=comparison comparison=yes {name}")
        for name in ("published=yes", "controls=yes")
    }
    of_clips = "runs/comparison/notebooks/controls/clips-clip-contrast-0.4-seed3.ipynb"
    job = asked["published=yes"][1][of_clips]
    assert "pretraining/as-is/clip_contrast-own-seed3.ipynb" in job
    clip = load_profile("comparison").controls.clip
    assert f'"length_s": {clip.length_s}' in job
    assert f'"frames": {clip.frames}' in job
    assert of_clips not in asked["controls=yes"][1]
    raw = asked["controls=yes"][1]["runs/comparison/notebooks/controls/sensitivity-raw-contrast-0.4-seed1.ipynb"]
    assert "runs/comparison-raw/store/index.parquet" in raw
    assert "pretraining/sensitivity-raw/contrast-own-seed1.ipynb" in raw
    assert asked["controls=yes"][0]["other_data"] == 3  # raw, another grid, other people


def test_decoders_of_another_profiles_pre_training_are_compared_by_one_command(project):
    """`deeplight sweep` starts from that profile's pre-training; the notebook would pre-train this profile's own."""
    (project / "data/ixi-t1").mkdir(parents=True)
    counts, jobs = plan(project, options="profile=comparison-ixi comparison=yes data=data/ixi-t1")
    assert counts["swept"] == counts["comparison_page"] == 1
    assert {"finetuning", "pretraining", "other_pretraining"}.isdisjoint(counts)
    assert "deeplight sweep runs/comparison-ixi/profile.yaml --name sweep" in jobs["runs/comparison-ixi/trained/sweep"]


def test_a_page_waits_for_a_command_that_was_stopped_when_begun_anew(project):
    """Snakemake removes what the command had made before; the page, made of that, is still there."""
    own = ["--cores", "2", "--config", "profile=comparison-ixi", "comparison=yes", "data=data/ixi-t1"]
    page = project / "runs/comparison-ixi/notebooks/09_comparison.ipynb"
    for folder in ("data/ixi-t1", "runs/ixi/store"):
        (project / folder).mkdir(parents=True)
    (project / "runs/ixi/store/index.parquet").touch()
    target = str(page.relative_to(project))
    snakemake(project, target, *own, TOGETHER="1")
    assert page.exists()
    assert "Nothing to be done" in snakemake(project, "--dry-run", target, *own)
    profile = project / "profiles/comparison-ixi.yaml"
    profile.write_text(profile.read_text(encoding="utf-8").replace("epochs: 20", "epochs: 21"), encoding="utf-8")
    (project.parent / "bin/deeplight").write_text("#!/bin/bash\nkill -TERM $$\n")
    with pytest.raises(AssertionError, match="SIGTERM"):
        snakemake(project, target, *own, TOGETHER="1")
    assert page.exists()
    assert "deeplight sweep" in snakemake(project, "--dry-run", "--printshellcmds", target, *own)
