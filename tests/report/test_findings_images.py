import re

import numpy as np
import pandas as pd
import pytest

from deeplight_core.config import Profile, load_profile
from deeplight_core.report import findings

FOLDS = range(1, 6)
NOISE = np.array([-0.01, 0.0, 0.01, 0.005, -0.005])


def values_of(means: dict[tuple[str, str, float], float], change: str = "") -> pd.DataFrame:
    """Five folds around the means of (variant, target, fraction); sex has an AUC, age a correlation."""
    rows = [
        {"variant": variant, "change": change, "target": target, "fraction": fraction, "seed": 1, "fold": fold,
         "n_subjects": round(190 * fraction), "n_test": 48, "measure": "auc" if target == "sex" else "r",
         "value": mean + NOISE[fold - 1] * (1 + (variant == "images"))}
        for (variant, target, fraction), mean in means.items() for fold in FOLDS
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def values() -> pd.DataFrame:
    means = {("images", "sex", 0.1): 0.9, ("images-scratch", "sex", 0.1): 0.6, ("images", "sex", 1.0): 0.95,
             ("images-scratch", "sex", 1.0): 0.95, ("images", "household", 1.0): 0.004,
             ("images-scratch", "household", 1.0): 0.0}  # fmt: skip
    return values_of(means)


def test_weights_are_told_with_where_they_come_from() -> None:
    settings = {"slices": 2, "planes": ["axial", "coronal"], "inflated": False, "size": 64}
    record = {
        "weights": {"origin": "a package", "licence": "MIT", "sha256": "0123456789abcdef"},
        "architecture": {"encoder": {"name": "resnet18", "settings": settings}},
    }
    said = findings.weights_note(record)
    assert "`resnet18` has the weights of **a package**, licence MIT, sha256 `0123456789ab…`" in said
    assert "It sees 4 slices (axial and coronal), resized to 64 pixels" in said
    settings |= {"inflated": True, "size": None}
    assert "It sees the whole volume, by kernels that are inflated to 3D, in one channel" in findings.weights_note(
        record
    )


def test_phenotypes_are_told_with_what_is_known_and_planted() -> None:
    profile = load_profile("images")
    people = pd.DataFrame(
        {"sex": ["F", "M", "F", ""], "age": [60.0, 70, 65, 75], "household": ["1", "2", "n/a", "3"],
         "income": ["below 18,000", "", "", "above 100,000"], "fluid": ["6"] * 4, "smoking": ["never"] * 4}
    )  # fmt: skip
    found = findings.phenotypes_table(profile, people).data.set_index("phenotype")
    assert found["known for"].tolist() == ["3 of 4", "4 of 4", "3 of 4", "2 of 4", "4 of 4", "4 of 4"]
    assert found.at["sex", "values"] == "F: 2, M: 1"
    assert found.at["age", "values"] == "67.5 ± 6.5"
    assert found["planted effect"].tolist() == ["strong", "strong", "none", "none", "weak", "weak"]
    assert found.at["income", "kind"] == "ordered, decoded as a place"
    real = findings.phenotypes_table(profile.model_copy(update={"cohort": None}), people)
    assert "planted effect" not in real.data
    assert findings.phenotypes_table(Profile(), people) is None


def test_it_says_what_can_be_decoded_and_where_photographs_help(values: pd.DataFrame) -> None:
    said = findings.phenotypes_note(values)
    assert "Decoded (the whole interval lies above chance): sex (" in said
    assert "even by the best decoder: household (pre-trained on photographs, 0.00)." in said
    assert findings.phenotypes_note(values[:0]) == "Nothing has been run yet."
    gain = findings.photographs_note(values)
    assert "Of 3 comparisons with the same network from scratch, a significant gain in 1 (sex with 19 people)." in gain
    same = values.assign(value=values.groupby(["target", "fraction", "fold"])["value"].transform("mean"))
    assert "no significant gain." in findings.photographs_note(same)
    assert findings.photographs_note(values[values["variant"] == "images"]) == "No network has been fine-tuned yet."


def test_controls_tell_features_from_conditioning() -> None:
    frozen = {
        "images-frozen": 0.9, "images-random-frozen": 0.6, "images-shuffled-frozen": 0.65,
        "images-statistics-frozen": 0.5,
    }  # fmt: skip
    own = values_of({(variant, "sex", 1.0): mean for variant, mean in frozen.items()})
    looks = pd.concat([values_of({("images-frozen", "sex", 1.0): 0.8}, change) for change in ("slices1", "slices6")])
    table = findings.conditioning_table(pd.concat([own, looks])).data
    assert table["features"].tolist() == [
        "photographs' features", "network for photographs, random features",
        "photographs, weights shuffled, features", "photographs, statistics only, features",
        "photographs' features, 1 slice in each plane", "photographs' features, 6 slices in each plane",
    ]  # fmt: skip
    assert table["sex"].str.slice(0, 4).tolist() == ["0.90", "0.60", "0.65", "0.50", "0.80", "0.80"]
    age = own.assign(target="age", measure="r", value=own["value"] - 0.2 * (own["variant"] == "images-frozen"))
    said = findings.conditioning_note(pd.concat([own, age, looks]))
    for lead in (
        r"\+0.20 \[.*\] over random weights",
        r"\+0.15 \[.*\] over weights shuffled within layers and \+0.30 ",
    ):
        assert re.search(lead, said)
    assert "**Most of the lead is features, not conditioning.**" in said
    constant = age.assign(value=age["value"].where(age["variant"] != "images-random-frozen"))
    assert r"+0.30 [" in findings.conditioning_note(pd.concat([own, constant]))  # over random weights, by sex alone
    close = own.assign(value=own["value"].where(own["variant"] != "images-shuffled-frozen", own["value"] + 0.2))
    assert "**The lead cannot be attributed to features.**" in findings.conditioning_note(close)
    noise = np.tile(0.4 * NOISE / NOISE.std(), len(frozen)) * (own["variant"] == "images-frozen")
    wide = findings.conditioning_note(own.assign(value=own["value"] + noise))
    assert "**The lead cannot be attributed to features.**" in wide
    without = findings.conditioning_note(own[own["variant"] != "images-statistics-frozen"])
    assert without.endswith("over weights shuffled within layers.")
    assert findings.conditioning_note(own[own["fold"] == 1]).endswith("over statistics only.")
    assert findings.conditioning_table(own[:0]) is None
    assert findings.conditioning_note(own[:0].assign(change="")) == "The controls have not been run yet."
