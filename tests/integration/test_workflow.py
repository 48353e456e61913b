"""The main job on profile smoke, in a copy of the repository: killed half-way, resumed, repeated, extended, damaged.

The tests share what was executed, so they run in this order in one process. `warm` kernels execute what is not new.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from running import ENVIRONMENT, copy_of_repository, run, workflow
from scipy import stats

from deeplight_core.sweeps import CONTROLS

EXTERNAL = re.compile(
    r"""<(?:script|img|iframe)[^>]+src="https?://|<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="https?://"""
)


@pytest.fixture(scope="module")
def project(tmp_path_factory, warm) -> Path:
    """A copy of the repository in which `make reproduce PROFILE=smoke` was killed while pre-training, and run again.

    Up to the end of pre-training each kernel starts as users have it.
    """
    folder = copy_of_repository(tmp_path_factory.mktemp("project"))
    log = folder / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            workflow("smoke"), cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + 600
    while not list(folder.glob("runs/smoke/pretraining-*/state.safetensors")):
        assert process.poll() is None, f"the workflow ended before it could be killed: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, "pre-training did not start in ten minutes"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "runs/smoke/notebooks/02_pretraining.ipynb").exists()
    first, second = [*workflow("smoke"), "--until", "pretraining"], workflow("smoke", target="reproduce")
    for command, environment in ((first, {}), (second, warm)):
        done = run(command, folder, **environment)
        assert done.returncode == 0, done.stdout[-4000:]
    return folder


def notebooks(project: Path, profile: str) -> list[Path]:
    folder = project / "runs" / profile / "notebooks"
    return [*folder.glob("*.ipynb"), *folder.glob("03_finetuning/*.ipynb")]


def test_every_notebook_ran_without_error_or_stray_output(project):
    executed = notebooks(project, "smoke")
    assert len(executed) == 9 + len(CONTROLS) + 3 * 2
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        assert not notebook.metadata.papermill.exception, path
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path
                assert output.get("name") != "stderr", (path, output.text)


def test_make_help_says_how_long_it_took(project):
    """Interrupted attempts count, until one is done; of several that were done the longest, since it had most to do."""
    record = project / "runs/times.tsv"
    target, profile, seconds, how = record.read_text(encoding="utf-8").splitlines()[0].split("\t")
    assert (target, profile, how) == ("reproduce", "smoke", "done")
    told = run(["make", "help"], project).stdout
    assert f"[smoke took up to {float(seconds) / 60:.0f} min]" in told
    with record.open("a", encoding="utf-8") as file:
        file.write("reproduce\tsmoke\t600\tstopped\nreproduce\tsmoke\t60\tdone\nreproduce\tsmoke\t30\tdone\n")
        file.write("controls\tdemo\t7200\tdone\n")
    told = run(["make", "help"], project).stdout
    assert re.search(r"make reproduce +the main job.* \[smoke took up to 11 min\]$", told, re.MULTILINE)
    assert re.search(r"make controls +beyond the paper.* \[demo took up to 120 min\]$", told, re.MULTILINE)


def test_statistics_equal_those_computed_from_the_results_table(project):
    results = pd.read_csv(project / "runs/smoke/results.csv").query("level == 'volume' and measure == 'accuracy'")
    statistics = pd.read_csv(project / "runs/smoke/statistics.csv").set_index("fraction")
    assert set(results["variant"]) == {"pretrained", "scratch", "linear"}
    for fraction, group in results.groupby("fraction"):
        wide = group.pivot(index="subject", columns="variant", values="score")
        expected = stats.ttest_rel(wide["pretrained"], wide["scratch"])
        row = statistics.loc[fraction]
        assert row["difference"] == pytest.approx((wide["pretrained"] - wide["scratch"]).mean())
        if wide["pretrained"].sub(wide["scratch"]).std() > 0:
            assert row["t"] == pytest.approx(expected.statistic)
            assert row["p"] == pytest.approx(expected.pvalue)


def test_accuracies_equal_those_counted_from_the_predictions(project):
    for folder in (project / "runs/smoke").glob("finetuning-*"):
        predictions = pd.read_parquet(folder / "predictions.parquet")
        scores = pd.read_csv(folder / "scores.csv").query("level == 'volume' and measure == 'accuracy'")
        table = scores.set_index("subject")
        for subject, rows in predictions.groupby("subject"):
            right = sum(a == b for a, b in zip(rows["state"], rows["predicted_state"], strict=True))
            assert table.loc[subject, "score"] == pytest.approx(right / len(rows))


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
    assert "load_profile" in (html / "reference/experiments.html").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not EXTERNAL.search(text), page
        assert str(project) not in text, page
    results = [
        "01_data",
        "02_pretraining",
        "04_statistics",
        "05_interpretation",
        "paper_and_this_run",
        *(f"controls_{c}" for c in CONTROLS),
    ]
    for page in ("book/index", *(f"notebooks/{name}" for name in results)):
        assert "Simulated data" in (html / f"{page}.html").read_text(encoding="utf-8"), page
    assert "has not been run here" in (html / "real/04_statistics.html").read_text(encoding="utf-8")
    assert "Not reproduced" in (html / "notebooks/paper_and_this_run.html").read_text(encoding="utf-8")  # two epochs
    for name in ("results.csv", "statistics.csv", "04_statistics.ipynb"):
        assert list((html / "_downloads").rglob(name)), name


def test_every_picture_has_a_text_in_its_place(project):
    html = project / "runs/smoke/book/_build/html"
    pictures = [
        (page.name, tag)
        for page in html.rglob("*.html") if "_static" not in page.parts
        for tag in re.findall(r"<img[^>]*>", page.read_text(encoding="utf-8"))
    ]  # fmt: skip
    assert len(pictures) > 30
    assert [p for p in pictures if not re.search(r'alt="(?!_images|\.\./)[^"]{10,}"', p[1])] == []


def test_controls_say_that_they_have_not_been_run(project):
    for control in set(CONTROLS) - {"baselines", "tasks"}:  # these have runs of the sweep to show
        page = (project / f"runs/smoke/book/_build/html/notebooks/controls_{control}.html").read_text(encoding="utf-8")
        text = re.sub(r"<[^>]+>", "", page)
        assert "have not been run" in text, control
        assert f"make {'gain' if control == 'gain' else 'controls'} PROFILE=smoke" in text, control


def test_a_second_run_does_nothing(project):
    before = {p: p.stat().st_mtime_ns for p in notebooks(project, "smoke")}
    done = run(workflow("smoke"), project)
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
    done = run([*workflow(str(wider)), "--dry-run"], project)
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE))
    pages = {"statistics": 1, "paper_and_this_run": 1, "control_page": 3, "book": 1}  # baselines, initialisation, steps
    assert {name: int(n) for name, n in counts.items()} == {"finetuning": 3, **pages, "total": 9}


def test_controls_run_and_their_pages_follow(project, warm):
    done = run(workflow("smoke", controls="yes", gain="yes", reference="no"), project, **warm)
    assert done.returncode == 0, done.stdout[-4000:]
    for control in CONTROLS:
        page = (project / f"runs/smoke/book/_build/html/notebooks/controls_{control}.html").read_text(encoding="utf-8")
        assert "trainings needed here have been run" in page, control
        assert "have not been run" not in page, control
    transfer = pd.read_csv(project / "runs/smoke/transfer_map.csv")
    assert set(transfer["task"]) == {"WM", "MOTOR"}
    again = run(workflow("smoke", reference="no"), project)  # without asking for controls: what is there stays
    assert "Nothing to be done" in again.stdout


@pytest.mark.parametrize(
    ("notebook", "parameters"),
    [
        ("04_statistics", ["-y", "overrides: {sweep: {fractions: [0.25, 0.5, 1.0], seeds: [1, 5]}}"]),
        ("04_statistics", ["-y", "overrides: {sweep: {variants: [pretrained], fractions: [0.5]}}"]),
        ("paper_and_this_run", ["-y", "overrides: {sweep: {fractions: [0.25, 0.5]}}"]),
        ("controls_seeds", ["-y", "overrides: {controls: {fractions: [0.5], seeds: [1, 2, 3]}}"]),
        ("controls_tasks", ["-y", "overrides: {controls: {fractions: [0.25, 0.5]}}"]),
        ("controls_baselines", ["-y", "overrides: {sweep: {fractions: [0.25]}}"]),
        ("controls_initialisation", ["-y", "overrides: {sweep: {fractions: [0.25, 0.5]}}"]),
        ("controls_permutation", ["-y", "overrides: {controls: {fractions: [0.25]}}"]),
    ],
)
def test_a_page_of_an_incomplete_grid_shows_what_is_there(notebook, parameters, project, warm, tmp_path):
    """In a copy of the results, since pages write their tables."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("data", "book", "_build", ".snakemake", "notebooks"))
    shutil.copytree(project / "notebooks", copy / "notebooks")
    out = tmp_path / "out.ipynb"
    done = run(
        ["papermill", f"notebooks/{notebook}.ipynb", str(out), "-p", "profile", "smoke", *parameters], copy, **warm
    )
    assert done.returncode == 0, done.stdout[-3000:]
    text = json.dumps([o for c in nbformat.read(out, as_version=4).cells for o in c.get("outputs", [])])
    complete = "{sweep: {variants" in parameters[-1]
    assert ("have not been run" in text) != complete


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["-p", "fraction", "0"], "fraction must be above 0 and at most 1, got 0"),
        (["-p", "fraction", "1.2"], "fraction must be above 0 and at most 1, got 1.2"),
        (["-p", "variant", "magic"], "unknown variant 'magic'; known are pretrained, scratch, linear"),
        (
            ["-y", "overrides: {routes: {supervised: {encoder: {initialisation: glorot}}}}"],
            "there is no finished checkpoint",
        ),
        (["-y", "overrides: {routes: {supervised: {encoder: {dropuot: 0.5}}}}"], "unknown key"),
    ],
)
def test_wrong_parameters_give_one_clear_error_at_the_top(parameters, message, project, warm, tmp_path):
    out = tmp_path / "out.ipynb"
    command = ["papermill", "notebooks/03_finetuning.ipynb", str(out), "-p", "profile", "smoke", *parameters]
    done = run(command, project, **warm)
    assert done.returncode != 0
    assert message in done.stdout
    cells = nbformat.read(out, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    failed = [i for i, c in enumerate(code) if any(o.output_type == "error" for o in c.outputs)]
    assert len(failed) == 1
    assert failed[0] <= 2  # the first cell after the parameters


def test_papermill_by_hand_finds_the_finished_training(project, tmp_path):
    command = [
        "papermill",
        "notebooks/03_finetuning.ipynb",
        str(tmp_path / "out.ipynb"),
        "-p",
        "profile",
        "profiles/smoke.yaml",
    ]
    command += ["-p", "variant", "scratch", "-p", "fraction", "0.5", "-p", "seed", "1", "--log-output"]
    done = run(command, project)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "found in finetuning-scratch-0.5-seed1" in done.stdout


def test_a_failed_notebook_is_kept_with_its_traceback(project, warm):
    """Last, since it damages the store."""
    damaged = next((project / "runs/smoke/store/runs").glob("sub-sim031_task-WM*.safetensors"))  # held out
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    target = "runs/smoke/notebooks/03_finetuning/linear-0.75-seed1.ipynb"
    done = run([*workflow("smoke"), "--allowed-rules", "finetuning", "--", target], project, **warm)
    assert done.returncode != 0
    assert f"{damaged.name} is damaged" in done.stdout
    assert "FAILED: 03_finetuning" in done.stdout
    assert not (project / target).exists()
    kept = nbformat.read(project / "runs/smoke/notebooks/failed/linear-0.75-seed1.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))
