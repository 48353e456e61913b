from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.preparation import PreprocessingSettings, SimulationSettings
from deeplight_core.report import findings
from deeplight_core.report.quality import motion_by_unit

PROFILE = Profile()
FILES = ["a", "b", "c", "d"]
INDEX = pd.DataFrame(
    {"file": [*FILES, "a"], "unit": ["s1", "s1", "s2", "s3", "s1"],
     "split": ["train", "train", "train", "validation", "train"]}
)  # fmt: skip
RUNS = pd.DataFrame(
    {"file": FILES, "n_frames": 100, "mean_fd_mm": [0.1, 0.3, 0.7, None], "unsteady_volumes": [1, 2, 0, None],
     "censored_volumes": [1, 2, 40, None], "n_confounds": [6, 6, 6, None]}
)  # fmt: skip


def store(runs: pd.DataFrame = RUNS, **preprocessing: Any) -> Store:
    info = {"tr_s": 2.0, "preprocessing": PreprocessingSettings(**preprocessing).model_dump(mode="json")}
    return Store(Path("nowhere"), info, np.ones((1, 1, 1), bool), np.eye(4), INDEX, runs)


def test_motion_of_a_unit_is_the_mean_over_its_runs() -> None:
    found = motion_by_unit(store())
    assert found.to_dict("list") == {"unit": ["s1", "s2"], "split": ["train", "train"], "mean_fd_mm": [0.2, 0.7]}
    assert motion_by_unit(store(RUNS.drop(columns="mean_fd_mm"))).empty


def test_motion_that_nothing_was_done_about_is_told() -> None:
    said = findings.motion_note(PROFILE, store())
    assert said == (
        "The mean framewise displacement is known for 2 subjects: 0.45 mm in the median subject, 0.70 mm in s2, who "
        "moved most; 1 moved more than 0.5 mm from one volume to the next on average. Nothing was done about motion. "
        "Kept from before the scanner's steady state: 3 volumes. Name strategies in `preprocessing.confounds` to "
        "regress it out."
    )
    unknown = findings.motion_note(PROFILE, store(RUNS.drop(columns="mean_fd_mm")))
    assert unknown.startswith("How much people moved is not known")
    assert findings.motion_note(Profile(simulation=SimulationSettings()), store()) == ""


def test_censoring_and_regression_are_told() -> None:
    runs = RUNS.assign(mean_fd_mm=[0.1, 0.3, 0.7, 0.4])
    said = findings.motion_note(PROFILE, store(runs, confounds={"strategy": ["motion", "scrub"]}))
    assert "Medians of the splits: train 0.45 mm and validation 0.40 mm." in said
    assert said.endswith(
        "43 of 400 volumes were censored (3 of them from before the steady state), 40 in the worst run; 6 regressors "
        "were taken out of the median run."
    )


def scored(slope: float) -> pd.DataFrame:
    fd = np.linspace(0.1, 0.5, 9)
    noise = np.random.default_rng(2).normal(size=9)
    return pd.DataFrame({"variant": "pretrained", "mean_fd_mm": fd, "score": 0.7 + slope * fd + 0.01 * noise})


def test_scores_that_depend_on_motion_are_told() -> None:
    worse = findings.motion_score_note(PROFILE, scored(-1.0))
    assert worse.startswith("Spearman's correlation of score and mean framewise displacement: -1.00 [-1.00, -1.00] for")
    assert worse.endswith("Those who move more are decoded worse: motion disturbs the decoder.")
    better = findings.motion_score_note(PROFILE, scored(1.0))
    assert "+1.00" in better
    assert better.endswith("suspect that motion itself is decoded, and regress it out.")
    assert "None differs from zero" in findings.motion_score_note(PROFILE, scored(0.0))
    assert "9 subjects" in findings.motion_score_note(PROFILE, scored(0.0))


def test_unknown_motion_is_told() -> None:
    said = findings.motion_score_note(PROFILE, scored(0.0).head(3))
    assert said.startswith("The motion of fewer than four held-out subjects is known")
    simulated = Profile(simulation=SimulationSettings())
    assert findings.motion_score_note(simulated, scored(1.0)) == "These data are simulated: nobody moved."
