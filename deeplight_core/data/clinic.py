"""A simulated clinical study: patients and controls, as a BIDS folder with preprocessed runs, named as fMRIPrep does.

Brains, responses and noise are those of `simulate`; nobody was scanned. Patients' whole response to some states is
weaker or stronger by a stated share (`PatientSettings.changes`), and nothing else of them differs. The runs are what a
scanner and fMRIPrep would leave, so there are neither raw images nor confounds.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import pandas as pd
from threadpoolctl import threadpool_limits

from deeplight_core.data.manifest import COLUMNS, assign_splits
from deeplight_core.data.simulate import (
    fill,
    generator,
    load_anatomy,
    planted_maps,
    planted_path,
    simulate_run,
    write_planted,
)
from deeplight_core.data.simulate import plan as plan_runs
from deeplight_core.preparation import SimulationSettings
from deeplight_core.system.files import write_whole
from deeplight_core.tasks import TASKS

__all__ = ["DERIVATIVES", "GROUPS", "plan", "planted_change_path", "simulate_study"]

DERIVATIVES = "derivatives/fmriprep"
GROUPS = ("control", "patient")
_NAME = "simulated patients"
_SPACE = "space-MNI152NLin2009cAsym"


def plan(settings: SimulationSettings, split_seed: int = 0) -> pd.DataFrame:
    """The study's manifest, with `group`, as `deeplight manifest` lists it; groups are held out in proportion."""
    asked, patients = settings.subjects, settings.patients
    assert asked is not None
    assert patients is not None
    tasks = asked.tasks or list(TASKS)
    table = plan_runs(asked.train, asked.validation, asked.tr_s, tuple(asked.runs), tasks, asked.first)
    people = table["subject"].unique()
    who = dict(zip(people, generator(settings.seed, "patients").permutation(len(people)), strict=True))
    number = {run: str(place) for place, run in enumerate(asked.runs, start=1)}
    table = table.assign(
        dataset=_NAME, run=table["run"].map(number), group=[GROUPS[int(who[s] < patients.n)] for s in table["subject"]]
    )
    stem = (
        "sub-" + table["subject"] + "/func/sub-" + table["subject"] + "_task-" + table["task"] + "_run-" + table["run"]
    )
    table["image"] = f"{DERIVATIVES}/" + stem + f"_{_SPACE}_desc-preproc_bold.nii.gz"
    table["mask"] = f"{DERIVATIVES}/" + stem + f"_{_SPACE}_desc-brain_mask.nii.gz"
    table["events"] = stem + "_events.tsv"
    return assign_splits(table[[*COLUMNS, "group"]], "subject", asked.validation, split_seed, "group")


def simulate_study(manifest: pd.DataFrame, root: str | Path, settings: SimulationSettings, jobs: int | None) -> None:
    """Simulate the runs of a manifest of the study; those that exist are kept, so an interrupted simulation goes on.

    Beside them are `participants.tsv`, the planted maps (`simulate.write_planted`), and what patients have more or less
    of each changed state (`planted_change_path`).

    Raises
    ------
    ValueError
        If the folder holds a dataset of other settings, or the manifest does not say who is a patient.
    """
    if "group" not in manifest:
        raise ValueError("the manifest of simulated patients has no column group; add `--subjects … --label group`")
    fill(manifest, Path(root), settings, _begin, _simulate_and_write, jobs, "simulated runs")


def planted_change_path(root: Path, task: str, state: str) -> Path:
    """Where a study keeps the map of what patients have more of a state, in units of `contrast`."""
    path = planted_path(root, task, state)
    return path.with_name(path.name.replace(".nii.gz", "_patients.nii.gz"))


def _begin(root: Path, settings: SimulationSettings) -> None:
    assert settings.patients is not None
    write_planted(root, settings)
    table, anatomy = plan(settings), load_anatomy(settings.resolution_mm)
    for task in table["task"].unique():
        maps = planted_maps(task, anatomy, settings.seed)
        for state in {*maps} & {*settings.patients.changes}:
            change = anatomy.image(settings.patients.changes[state] * maps[state])
            nib.save(change, planted_change_path(root, task, state))
        sidecar = {"TaskName": task, "RepetitionTime": float(table["tr_s"].iloc[0])}
        _write_json(root / f"task-{task}_bold.json", sidecar)
    people = table[["subject", "group"]].drop_duplicates().rename(columns={"subject": "participant_id"})
    people["participant_id"] = "sub-" + people["participant_id"]
    people.to_csv(root / "participants.tsv", sep="\t", index=False)
    by = [{"Name": "deeplight-core", "Description": "simulated; nobody was scanned"}]
    for folder, kind in ((root, "raw"), (root / DERIVATIVES, "derivative")):
        folder.mkdir(parents=True, exist_ok=True)
        description = {"Name": _NAME, "BIDSVersion": "1.9.0", "DatasetType": kind, "GeneratedBy": by}
        _write_json(folder / "dataset_description.json", description)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _simulate_and_write(row: pd.Series, root: Path, settings: SimulationSettings) -> None:
    with threadpool_limits(1):
        bold, mask, evs = simulate_run(row, settings)
    events = pd.concat(
        [evs[name].assign(trial_type=state) for state, names in TASKS[row["task"]].states.items() for name in names]
    )
    for name in ("events", "image"):
        (root / row[name]).parent.mkdir(parents=True, exist_ok=True)
    events = events.sort_values("onset")[["onset", "duration", "trial_type"]]
    events.to_csv(root / row["events"], sep="\t", index=False, float_format="%.3f")
    nib.save(nib.as_closest_canonical(mask), root / row["mask"])
    write_whole(root / row["image"], lambda p: nib.save(nib.as_closest_canonical(bold), p))
