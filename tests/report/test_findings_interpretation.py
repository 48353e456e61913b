import numpy as np
import pandas as pd

from deeplight_core.report import findings


def scores(**rank: float) -> pd.DataFrame:
    """Two states for each way; all other measures are the same for all ways."""
    rows = [
        {"way": way, "state": state, "n_voxels": n, "mass": 0.1, "rank": value + move, "pointing": 1.0, "auc": 0.9,
         "chance": n / 1000}
        for way, value in rank.items() for state, n, move in (("a", 4, -0.1), ("b", 9, 0.1))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_simple_map_that_wins_is_said_to_win() -> None:
    table = scores(**{"LRP, ε": 0.5, "t-map": 0.4, "linear pattern": 0.7}).assign(mass=0.1)
    table.loc[table["way"] == "LRP, ε", ["mass", "pointing", "auc"]] += 0.05
    note = findings.localisation_note(table)
    assert "LRP, ε by relevance mass, linear pattern by rank accuracy, LRP, ε by pointing game" in note
    assert "By rank accuracy a simple map, which needs no network, is at least as good" in note
    assert "has 4 voxels; by chance relevance mass and rank accuracy would be 0.004 to 0.009, and AUC 0.5." in note
    alike = findings.localisation_note(table.assign(mass=np.linspace(0.031, 0.034, len(table))))
    assert alike.startswith("Best are linear pattern by rank accuracy,")  # in the table all have the same mass
    assert "All are alike by relevance mass." in alike
    table.loc[table["way"] == "LRP, ε", "rank"] = 0.9
    assert "No simple map" in findings.localisation_note(table)
    assert findings.localisation_note(table.iloc[:0]) == ""


def test_the_table_has_means_over_states() -> None:
    shown = findings.localisation_table(scores(one=0.5, other=0.25)).data
    assert shown["rank accuracy"].tolist() == ["0.50", "0.25"]
    assert shown[""].tolist() == ["one", "other"]
    assert findings.localisation_table(scores().reindex(columns=["way", "mass"])) is None


def test_random_weights_that_keep_the_maps_are_told() -> None:
    found = pd.DataFrame(
        {"weights": ["head", "head", "all", "all"], "state": ["a", "b"] * 2, "r": [0.1, 0.3, 0.0, -0.1]}
    )
    assert "the maps fall apart" in findings.randomised_note(found)
    assert "0.20 (head) and -0.05 (all)" in findings.randomised_note(found)
    assert "the maps keep much" in findings.randomised_note(found.assign(r=0.8))
    assert findings.randomised_note(None) == ""


def test_where_logits_went_and_the_largest_places() -> None:
    went = pd.DataFrame({
        "way": ["LRP"], "logit": [5.0], "voxels": [4.123456], "outside": [0.0], "biases": [0.8], "stabiliser": [0.1],
        "missing": [2e-7],
    })  # fmt: skip
    shown = findings.conservation_table(went).data
    assert shown["voxels"].tolist() == ["4.12"]
    assert shown["missing, at most"].tolist() == ["2.0e-07"]
    assert findings.conservation_table(went.iloc[:0]) is None
    places = pd.DataFrame({
        "x": [10.0] * 4, "y": [-2.4] * 4, "z": [0.0] * 4, "value": np.arange(4.0), "volume_mm3": [1500.0] * 4,
        "near": "right fusiform", "near_mm": 8.6,
    })  # fmt: skip
    shown = findings.places_table({"a": places, "b": places.iloc[:1]}).data
    assert shown["state"].tolist() == ["a", "a", "a", "b"]
    assert shown["y"].tolist() == ["-2"] * 4
    assert shown["volume (cm³)"].tolist() == ["1.5"] * 4
    assert shown["near"].tolist() == ["right fusiform (9 mm)"] * 4
    assert findings.places_table({}) is None


def test_what_is_explained() -> None:
    assert "Of 9 volumes, evenly spaced over 3 held-out subjects" in findings.asked_note(7, 9, 3)
    assert "the 7 that the decoder answers correctly" in findings.asked_note(7, 9, 3)
    assert "answers none of 9" in findings.asked_note(0, 9, 3)
