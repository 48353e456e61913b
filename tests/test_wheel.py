"""The installed package works outside the repository, with what it brings along."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import Dataset

from deeplight_core.data.manifest import write_manifest
from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.training.checkpoint import data_facts, save_mask, save_model

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import deeplight_core
import deeplight_core.system.workers
from deeplight_core import cli
from deeplight_core.config import load_profile
from deeplight_core.data.cohorts import manifest_of
from deeplight_core.data.clinic import plan
from deeplight_core.data.simulate import foci

# each process would import everything anew
deeplight_core.system.workers.ProcessPoolExecutor = lambda jobs, *_: ThreadPoolExecutor(jobs)

def call(*arguments, status=0):
    sys.argv = ["deeplight", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code not in (None, status):
            sys.exit(stop.code or 1)

call("export", "training", "-o", "exported")
call("finetune", "mine.yaml", "--from", "exported")
(decoder,) = Path("runs/mine").glob("finetuning-*")
call("export", decoder, "-o", "second")
call("push", "second", "lab/../decoder", status=2)
call("import", "thomas2021", "run.nii.gz", "-o", "published", status=2)
call("decode", "second", "run.nii.gz", "-o", "predictions.tsv", "--jobs", "1")
call("decode", "second", "mine.yaml", "-o", "study.tsv", "--jobs", "1")
call("explain", "second", "run.nii.gz", "--predicted", "--method", "gradient", "--no-pages", "-o", "maps")
call("report", decoder, "-o", "report.html")
demo, patients = load_profile("demo"), load_profile("patients")
print(json.dumps({
    "package": deeplight_core.__file__, "demo": len(manifest_of(demo)), "foci": len(foci()),
    "people": int(plan(patients.simulation)["subject"].nunique()),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, which was built of a copy of the repository."""
    copy, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE", "data_manifest.csv", "tuning_manifest.csv"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("deeplight_core", "profiles"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy / "out"), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (copy / "out").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


def test_decoders_travel_with_an_installed_package(
    installed: Path, store: Store, dataset: Dataset, tmp_path: Path
) -> None:
    training = tmp_path / "training"
    torch.manual_seed(0)
    save_mask(store.mask, store.affine, training)
    told = {"units": ["s1"], "reported": ["s5"], "route": "supervised"}
    save_model(DeepLight(store.shape, 2), training, {"data": data_facts(store), "training": told})
    header = "task,target,subject,level,measure,score\n"
    (training / "scores.csv").write_text(header + "EMOTION,state,s5,volume,accuracy,0.5\n")
    write_manifest(dataset[0][dataset[0]["task"] == "SOCIAL"], tmp_path / "mine.csv")
    states = {"source": {}, "target": {"SOCIAL": ["interaction", "no interaction"]}}
    profile = {
        "name": "mine",
        "data": {"manifest": "mine.csv", "root": str(dataset[1]), **states},
        "finetuning": {"epochs": 1, "threads": 1},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    bold = np.random.default_rng(0).normal(100, 1, (6, 6, 6, 40)).astype(np.float32)
    image = nib.Nifti1Image(bold, np.diag([4.0, 4, 4, 1]))
    image.header.set_zooms((4, 4, 4, 2))
    nib.save(image, tmp_path / "run.nii.gz")
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["package"]).is_relative_to(installed)
    assert said["demo"] > 100
    assert said["foci"] > 10
    assert said["people"] == 24
    assert "a repository is named ORG/NAME" in done.stderr
    assert "is not the published file of thomas2021" in done.stderr
    assert (tmp_path / "study_blocks.tsv").is_file()
    assert (tmp_path / "predictions.tsv").read_text().count("\n") == 41
    assert list((tmp_path / "maps/group").glob("*.nii.gz"))
    assert "Accuracy of every subject" in (tmp_path / "report.html").read_text()
