from pathlib import Path

import numpy as np
import pandas as pd

from deeplight_core.analysis.separation import Separation
from deeplight_core.config import Profile, load_profile
from deeplight_core.report import findings

SECOND = np.arange(24) >= 12


def one(n_right: int, p: float, low: float, high: float) -> Separation:
    values = np.where(SECOND, 1.0, -1.0)
    values[n_right:] *= -1
    return Separation(values, n_right / 24, low, high, 0.8, p)


def test_what_was_planted_is_said_of_simulated_people_only() -> None:
    said = findings.study_note(load_profile(Path(__file__).parents[2] / "profiles/patients.yaml"))
    assert "Nobody was scanned. 12 simulated patients differ from 12 simulated controls in one way" in said
    assert "response to *face* is 40% weaker" in said
    assert "2 s, voxels measure 8 mm" in said
    assert findings.study_note(Profile()) == ""


def test_people_and_differences_are_counted() -> None:
    groups = pd.Series(["control"] * 3 + ["patient"] * 2)
    said = findings.people_note(groups, ["tr_s 2.16 there, 2.0 here"])
    assert said.startswith("5 people: 3 of group *control* and 2 of group *patient*.")
    assert said.endswith("training data: tr_s 2.16 there, 2.0 here.")
    assert "Nothing but the grid differs" in findings.people_note(groups, [])


def test_groups_are_compared_with_the_linear_model_of_voxels() -> None:
    found = {"voxels": one(14, 0.3, 0.39, 0.76), "relevance": one(22, 0.001, 0.74, 0.98)}
    rows = findings.groups_rows(found, SECOND)
    assert rows["people right"].tolist() == ["14 of 24", "22 of 24"]
    assert "14 of 24" in findings.groups_table(found, SECOND).to_html()
    assert rows["p, against voxels"].tolist() == ["–", "0.0078"]  # eight people that only one gets right: 2 / 2⁸
    said = findings.groups_note(found, SECOND)
    assert "up to 37 points wide, and a coin reaches 71% in one of twenty studies" in said
    assert "better than by chance (p < 0.05, not corrected) by relevance to the right answers; the best" in said
    assert "accuracy, 92%, could be anything from 74% to 98%" in said
    assert "The network's views that differ from the linear model of voxels: relevance to the right answers." in said
    alike = findings.groups_note({"voxels": found["voxels"], "features": found["voxels"]}, SECOND)
    assert "by none of these" in alike
    assert "No view of the network differs" in alike


def test_accuracy_is_told_for_each_group() -> None:
    rows = [
        ("pretrained", f, n, s, x)
        for f, n in ((0.1, 2), (1.0, 20))
        for s, x in zip("abcd", (0.2, 0.4, 0.6, 0.8), strict=True)
    ]
    results = pd.DataFrame(rows, columns=["variant", "fraction", "n_subjects", "subject", "score"])
    said = findings.by_group_note(results, {"a": "control", "b": "control", "c": "patient", "d": "patient"})
    assert said.startswith("Trained on 20 people, the pre-trained decoder is right for 30.0% [")
    assert "in group *control* and 70.0% [" in said
    assert findings.by_group_note(results.assign(variant="linear"), {}) == ""


def test_the_change_and_whether_it_was_found() -> None:
    columns = ["way", "state", "n_voxels", "mass", "rank", "pointing", "auc"]
    rows = [["voxels", "face", 9, 0.1, 0.2, 1.0, 0.93], ["relevance", "face", 9, 0.1, 0.2, 0.0, 0.6]]
    said = findings.change_note(pd.DataFrame(rows, columns=columns))
    assert (
        "responses to *face*: AUC 0.93, largest voxel inside; relevance to *face*: AUC 0.60, largest voxel outside"
        in said
    )
    assert findings.change_note(pd.DataFrame(columns=columns)) == ""


def test_times_are_those_of_records() -> None:
    each = {"variant": ["a", "a", "b"], "fraction": 1.0, "seed": 1, "fold": 1, "seconds": [30.0, 30.0, 60.0]}
    assert findings.times_note(pd.DataFrame(each)).startswith("By their records, 2 trainings took 1.5 min of one core.")
