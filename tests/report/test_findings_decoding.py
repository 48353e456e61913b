import numpy as np
import pandas as pd

from deeplight_core.config import DataSettings, Profile, SimulationSettings
from deeplight_core.report import findings

PROFILE = Profile(name="tiny", simulation=SimulationSettings())


def test_a_note_names_what_is_missing_and_how_to_run_it() -> None:
    note = findings.missing_note(PROFILE, "seeds", ["scratch-0.1-seed2"])
    assert note.startswith("**1 of the 30 trainings of this page have not been run**")
    assert "`make controls PROFILE=tiny`" in note
    assert "`scratch-0.1-seed2`" in note
    assert "`make reproduce PROFILE=tiny`" in findings.missing_note(PROFILE, "sweep", ["linear-1-seed1"])
    assert findings.missing_note(PROFILE, "seeds", []) == "All 30 trainings of this page are here."
    one_task = PROFILE.model_copy(
        update={"data": DataSettings(source={"a": {"x": ["x"], "y": ["y"]}}, target={"a": {"z": ["z"], "w": ["w"]}})}
    )
    assert findings.missing_note(one_task, "tasks", []) == "This profile has no trainings for this page."


def test_what_folds_say_is_the_tables() -> None:
    row = {"fraction": 0.5, "n_subjects": 3, "difference": 0.1, "low": -0.02, "high": 0.22, "t": 2.5, "dof": 4.0,
           "p": 0.067, "p_bonferroni": 0.13}  # fmt: skip
    profile = Profile(sweep={"folds": 5, "repeats": 2})
    note = findings.fold_note(profile, pd.DataFrame([row, {**row, "fraction": 1.0, "t": np.nan}]))
    assert "5 folds of the subjects, 2 time(s)" in note
    assert "- 3 subjects (50%): +10.0% [-2.0%, +22.0%], t(4) = 2.50, p = 0.067 (Bonferroni 0.13)\n" in note
    assert "- 3 subjects (100%): +10.0% [-2.0%, +22.0%], no variance, no test\n" in note
