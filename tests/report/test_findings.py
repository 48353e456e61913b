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
