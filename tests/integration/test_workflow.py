"""The main job on profile smoke, in a copy of the repository: killed half-way, resumed, repeated, extended, damaged."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from scipy import stats

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
EXTERNAL = re.compile(
    r"""<(?:script|img|iframe)[^>]+src="https?://|<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="https?://"""
)


def workflow(project: Path, profile: str, **config: object) -> list[str]:
    settings = [f"profile={profile}", *(f"{key}={value}" for key, value in config.items())]
    return ["snakemake", "--nolock", "--rerun-incomplete", "--cores", "2", "--config", *settings]


def run(command: list[str], project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the repository in which `make reproduce PROFILE=smoke` was killed while pre-training, and run again."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    process = subprocess.Popen(
        workflow(folder, "smoke"), cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/smoke/pretraining-*/state.safetensors")):
        assert process.poll() is None, "the workflow ended before it could be killed"
        assert time.monotonic() < deadline, "pre-training did not start in four minutes"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "runs/smoke/notebooks/02_pretraining.ipynb").exists()
    done = run(workflow(folder, "smoke"), folder)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


def notebooks(project: Path, profile: str) -> list[Path]:
    folder = project / "runs" / profile / "notebooks"
    return [*folder.glob("*.ipynb"), *folder.glob("03_finetuning/*.ipynb")]


def test_every_notebook_ran_without_error_or_stray_output(project):
    executed = notebooks(project, "smoke")
    assert len(executed) == 3 + 3 * 2
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        assert not notebook.metadata.papermill.exception, path
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path
                assert output.get("name") != "stderr", (path, output.text)


def test_statistics_equal_those_computed_from_the_results_table(project):
    results = pd.read_csv(project / "runs/smoke/results.csv")
    statistics = pd.read_csv(project / "runs/smoke/statistics.csv").set_index("fraction")
    assert set(results["variant"]) == {"pretrained", "scratch", "linear"}
    for fraction, group in results.groupby("fraction"):
        wide = group.pivot(index="subject", columns="variant", values="accuracy")
        expected = stats.ttest_rel(wide["pretrained"], wide["scratch"])
        row = statistics.loc[fraction]
        assert row["difference"] == pytest.approx((wide["pretrained"] - wide["scratch"]).mean())
        if wide["pretrained"].sub(wide["scratch"]).std() > 0:
            assert row["t"] == pytest.approx(expected.statistic)
            assert row["p"] == pytest.approx(expected.pvalue)


def test_accuracies_equal_those_counted_from_the_predictions(project):
    for folder in (project / "runs/smoke").glob("finetuning-*"):
        predictions = pd.read_parquet(folder / "predictions.parquet")
        table = pd.read_csv(folder / "subject_accuracy.csv").set_index("subject")
        for subject, rows in predictions.groupby("subject"):
            right = sum(a == b for a, b in zip(rows["state"], rows["predicted_state"], strict=True))
            assert table.loc[subject, "accuracy"] == pytest.approx(right / len(rows))


def test_both_variants_saw_the_same_subjects(project):
    units = {}
    for path in (project / "runs/smoke").glob("finetuning-*/config.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        units.setdefault(config["fraction"], []).append(config["units"])
    assert set(units) == {0.5, 1.0}
    for fraction, drawn in units.items():
        assert len(drawn) == 3
        assert drawn[0] == drawn[1] == drawn[2], fraction
    assert set(units[0.5][0]) < set(units[1.0][0])


def test_the_book_is_whole_and_asks_nobody_for_anything(project):
    html = project / "runs/smoke/book/_build/html"
    pages = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    names = {p.relative_to(html).as_posix() for p in pages}
    assert {"book/index.html", "notebooks/01_data.html", "notebooks/04_statistics.html"} <= names
    assert {"notebooks/03_finetuning/scratch-0.5-seed1.html", "real/04_statistics.html"} <= names
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not EXTERNAL.search(text), page
        assert str(project) not in text, page
    for page in ("book/index", "notebooks/01_data", "notebooks/02_pretraining", "notebooks/04_statistics"):
        assert "Simulated data" in (html / f"{page}.html").read_text(encoding="utf-8"), page
    assert "has not been run here" in (html / "real/04_statistics.html").read_text(encoding="utf-8")


def test_a_second_run_does_nothing(project):
    before = {p: p.stat().st_mtime_ns for p in notebooks(project, "smoke")}
    done = run(workflow(project, "smoke"), project)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in notebooks(project, "smoke")} == before


def test_an_added_fraction_repeats_no_finished_training(project):
    """Planned by a dry run: only the new fraction's notebooks, and what is made from all of them."""
    profile = yaml.safe_load((project / "profiles/smoke.yaml").read_text(encoding="utf-8"))
    profile["sweep"]["fractions"] = [0.25, 0.5, 1.0]
    wider = project / "wider" / "smoke.yaml"
    wider.parent.mkdir(exist_ok=True)
    wider.write_text(yaml.safe_dump(profile), encoding="utf-8")
    done = run([*workflow(project, str(wider)), "--dry-run"], project)
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE))
    assert {name: int(n) for name, n in counts.items()} == {"finetuning": 3, "statistics": 1, "book": 1, "total": 5}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["-p", "fraction", "0"], "fraction must be above 0 and at most 1, got 0"),
        (["-p", "fraction", "1.2"], "fraction must be above 0 and at most 1, got 1.2"),
        (["-p", "variant", "magic"], "unknown variant 'magic'; known are pretrained, scratch, linear"),
        (["-y", "model: {initialisation: glorot}"], "there is no finished checkpoint"),
        (["-y", "model: {dropuot: 0.5}"], "unknown key"),
    ],
)
def test_wrong_parameters_give_one_clear_error_at_the_top(parameters, message, project, tmp_path):
    out = tmp_path / "out.ipynb"
    done = run(["papermill", "notebooks/03_finetuning.ipynb", str(out), "-p", "name", "smoke", *parameters], project)
    assert done.returncode != 0
    assert message in done.stdout
    cells = nbformat.read(out, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    failed = [i for i, c in enumerate(code) if any(o.output_type == "error" for o in c.outputs)]
    assert len(failed) == 1
    assert failed[0] <= 2  # the first cell after the parameters


def test_papermill_by_hand_finds_the_finished_run(project, tmp_path):
    command = ["papermill", "notebooks/03_finetuning.ipynb", str(tmp_path / "out.ipynb"), "-f", "profiles/smoke.yaml"]
    done = run(
        [*command, "-p", "variant", "scratch", "-p", "fraction", "0.5", "-p", "seed", "1", "--log-output"], project
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "found in finetuning-scratch-0.5-seed1" in done.stdout


def test_a_failed_notebook_is_kept_with_its_traceback(project):
    """Last, since it damages the store."""
    damaged = next((project / "runs/smoke/store/runs").glob("sub-sim031_task-WM*.safetensors"))  # held out
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    target = "runs/smoke/notebooks/03_finetuning/linear-0.75-seed1.ipynb"
    done = run([*workflow(project, "smoke"), "--allowed-rules", "finetuning", "--", target], project)
    assert done.returncode != 0
    assert f"{damaged.name} is damaged" in done.stdout
    assert "FAILED: 03_finetuning" in done.stdout
    assert not (project / target).exists()
    kept = nbformat.read(project / "runs/smoke/notebooks/failed/linear-0.75-seed1.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))


@pytest.mark.parametrize(("profile", "dataset"), [("haxby", "haxby2001-vt"), ("haxby-slice", "haxby2001-slice")])
def test_the_same_workflow_reads_real_data(profile, dataset, project):
    if not (SHARED / dataset).is_dir():
        pytest.skip(f"the real dataset {dataset} is not beside the repository")
    settings = yaml.safe_load((project / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))
    for stage in ("pretraining", "finetuning"):
        settings[stage] |= {"epochs": 1, "steps_per_epoch": 3}
    settings["sweep"]["fractions"] = [0.5]
    short = project / "short" / f"{profile}.yaml"
    short.parent.mkdir(exist_ok=True)
    short.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = run(workflow(project, str(short), data=SHARED / dataset), project)
    assert done.returncode == 0, done.stdout[-4000:]
    results = pd.read_csv(project / "runs" / profile / "results.csv")
    assert (results["n_subjects"] == 4).all()
    assert results["subject"].nunique() == 4
    assert (results[results["variant"] == "linear"]["accuracy"].mean()) > 0.3  # real signal, chance 0.25
    page = (project / "runs" / profile / "book/_build/html/real/04_statistics.html").read_text(encoding="utf-8")
    assert "Real data" in page
    assert "tests count runs" in page
