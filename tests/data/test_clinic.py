import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import use_threads

from deeplight_core import cli
from deeplight_core.config import load_profile
from deeplight_core.data.clinic import plan, planted_change_path, simulate_study
from deeplight_core.data.manifest import read_manifest
from deeplight_core.data.simulate import planted_path, simulate_run
from deeplight_core.preparation import PatientSettings, SimulatedSubjects, SimulationSettings

PROFILE = """
name: clinic
data: {manifest: clinic.csv, root: clinic, layout: bids, source: {}, target: {EMOTION: [fear, neutral]}}
simulation:
  resolution_mm: 10.0
  subjects: {first: 7, train: 3, validation: 1, runs: [LR], tr_s: 2.0, tasks: [EMOTION]}
  patients: {n: 2, changes: {fear: -0.5}}
"""


def settings(noise: float = 0.0, **changes: float) -> SimulationSettings:
    people = SimulatedSubjects(train=1, validation=1, tr_s=2.0, tasks=["EMOTION"])
    patients = PatientSettings(n=1, changes=changes or {"neutral": 0.0}, noise=noise)
    return SimulationSettings(resolution_mm=10, subjects=people, patients=patients)


def series(group: str, noise: float = 0.0, **changes: float) -> np.ndarray:
    row = plan(settings()).iloc[0].copy()
    row["n_volumes"], row["group"] = 40, group
    return np.asarray(simulate_run(row, settings(noise, **changes))[0].get_fdata())


def test_patients_respond_otherwise_to_the_stated_states_only() -> None:
    """Everything but noise is linear in the response: leaving it out altogether shows how large it is."""
    control, without = series("control"), series("patient", fear=-1.0)
    response = control - without
    assert response.std() > 0
    np.testing.assert_allclose(series("patient", fear=-0.4), control - 0.4 * response, atol=0.02)
    np.testing.assert_array_equal(series("control", fear=-0.4), control)


def test_noise_has_the_stated_size() -> None:
    silent, once, twice = (series("control", noise) for noise in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(twice - silent, 2 * (once - silent), atol=0.02)


def test_the_folder_is_bids_with_derivatives_that_the_manifest_command_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    use_threads(monkeypatch)
    Path("clinic.yaml").write_text(PROFILE)
    listed = ["manifest", "--bids", "clinic", "--derivatives", "derivatives/fmriprep", "-o", "clinic.csv"]
    people = ["--subjects", "clinic/participants.tsv", "--label", "group", "--stratify", "group"]
    for command in (["cohort", "clinic.yaml", "--jobs", "1"], [*listed, *people]):
        monkeypatch.setattr(sys, "argv", ["deeplight", *command])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    said = capsys.readouterr()
    assert "4 runs of 4 simulated people" in said.out
    assert said.err == ""
    made = load_profile("clinic.yaml").simulation
    assert made is not None
    found = read_manifest(Path("clinic.csv"), "subject")
    pd.testing.assert_frame_equal(found.astype(str), plan(made)[list(found)].astype(str))
    assert found["group"].value_counts().to_dict() == {"patient": 2, "control": 2}
    image = nib.load(Path("clinic") / found["image"].iloc[0])
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms()[3] == 2.0
    for folder in ("clinic", "clinic/derivatives/fmriprep"):
        about = json.loads((Path(folder) / "dataset_description.json").read_text())
        assert "nobody was scanned" in about["GeneratedBy"][0]["Description"]
    change, fear = (
        nib.load(path(Path("clinic"), "EMOTION", "fear")).get_fdata() for path in (planted_change_path, planted_path)
    )
    np.testing.assert_allclose(change, -0.5 * fear, atol=1e-6)
    assert not planted_change_path(Path("clinic"), "EMOTION", "neutral").exists()


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    people = {"train": 1, "validation": 1, "tasks": ["EMOTION"]}
    for patients, subjects, message in (
        ({"n": 2, "changes": {"fear": 1}}, people, "name more subjects than patients.n"),
        ({"n": 1, "changes": {"fear": 1}}, None, "patients need subjects"),
        ({"n": 1, "changes": {"fera": 1}}, people, "patients.changes names fera; the states are fear, neutral"),
        ({"n": 1, "changes": {"fear": 1}}, people | {"tasks": ["BATTERY"]}, "patients do HCP's tasks, .*not BATTERY"),
    ):
        with pytest.raises(ValueError, match=message):
            SimulationSettings.model_validate({"patients": patients, "subjects": subjects})
    with pytest.raises(ValueError, match="no column group; add `--subjects … --label group`"):
        simulate_study(plan(settings()).drop(columns="group"), tmp_path, settings(), 1)
