import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.preparation import DataSettings, SimulationSettings
from deeplight_core.report import findings, paper

PROFILE = Profile(name="tiny", simulation=SimulationSettings())
BIDS = Profile(name="tiny", data=DataSettings(layout="bids", root="/data/own", split_unit="run"))
INDEX = pd.DataFrame(
    {"task": ["WM"] * 30 + ["MOTOR"] * 8, "unit": ["a"] * 20 + ["b"] * 10 + ["a"] * 4 + ["b"] * 4,
     "split": ["train"] * 20 + ["validation"] * 10 + ["train"] * 4 + ["validation"] * 4,
     "file": ["a1"] * 10 + ["a2"] * 10 + ["b1"] * 5 + ["b2"] * 5 + ["a3"] * 4 + ["b3"] * 4}
)  # fmt: skip


def test_the_sizes_of_both_are_named() -> None:
    note = findings.data_note(PROFILE, INDEX, (9, 11, 7), 300)
    assert "from 300 + 100 subjects" in note
    assert note.endswith("this run's from 1 + 1 subjects on 9 × 11 × 7.")
    assert (findings.data_origin(PROFILE), findings.data_origin(BIDS)) == ("simulated", "own")


def test_durations_are_in_seconds() -> None:
    durations = paper.table1(INDEX, 2.0)
    shown = findings.durations_table(PROFILE, durations).data.set_index("task")
    assert shown.loc["WM", ["targets", "paper", "this run"]].tolist() == ["4", "400 s", "30 s"]
    assert shown.loc["SOCIAL", "this run"] == "–"
    assert shown.loc["Total", "paper"] == "2084 s"
    note = findings.durations_note(PROFILE, durations, INDEX, 2.0)
    assert "\n- WM: HCP's blocks last" in note
    assert "- Total" not in note
    assert "a subject has 1.5 runs of each task at TR 2 s; labels are shifted by 0 s" in note  # two of WM, one of MOTOR


def test_other_data_have_no_seconds_of_these_tasks() -> None:
    durations = paper.table1(INDEX, 2.0)
    assert "this run" not in findings.durations_table(BIDS, durations).data
    note = findings.durations_note(BIDS, durations, INDEX, 2.0)
    assert note.endswith("**This run's data have none of these tasks**; the page *Data* counts its own volumes.")
    assert "of each task" not in note


def test_the_papers_difference_is_that_of_its_accuracies() -> None:
    assert np.isclose(paper.REPORTED["pretrained, 1%, validation"] - paper.REPORTED["scratch, 1%, validation"], 0.3502)
    assert "it is +35.02 points at 1% and +1.92 points at 100%" in paper.reported_difference()
