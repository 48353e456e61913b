import re
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.report import findings

BESIDE = {"auc": ("balanced_accuracy", 0.05), "r": ("absolute_error", 5.0)}


def texts(styler: Any) -> pd.DataFrame:
    return styler.data


def values(
    leads: dict[str, float], n_folds: int = 5, measure: str = "auc", fractions: tuple[float, ...] = (0.5, 1.0)
) -> pd.DataFrame:
    """Two measures of every variant in every fold: 0.6 and its lead, and another at some distance."""
    random = np.random.default_rng(1)
    base, (beside, distance) = 0.6 + random.normal(0, 0.01, n_folds), BESIDE[measure]
    rows = []
    for variant, lead in leads.items():
        for fraction in fractions:
            for fold in range(n_folds):
                value = base[fold] + lead + random.normal(0, 0.004)
                which = (variant, "", fraction, 1, fold + 1, 40, 10, "state")
                rows += [(*which, measure, value), (*which, beside, value + distance)]
    columns = ["variant", "change", "fraction", "seed", "fold", "n_subjects", "n_test", "target", "measure", "value"]
    return pd.DataFrame(rows, columns=columns)


def test_transfer_is_tested_against_scratch_and_linear_models() -> None:
    found = values({"cae-scratch": 0.0, "cae": 0.2, "cae-multitask": 0.0, "voxels": 0.25})
    tests = findings.decoders_tests(findings.main_values(found))
    assert set(tests["variant"]) == {"cae", "cae-multitask", "voxels"}
    assert (tests["p_bonferroni"] >= tests["p"] * 6 * 0.999).all() or (tests["p_bonferroni"] == 1).any()
    note = findings.decoders_note(found)
    assert "in 2 of 4 comparisons (convolutional autoencoder, pre-trained)" in note
    assert "With all 40, the best linear model (linear model of voxels, AUC 0.8" in note
    assert ") is **better than** the best network (convolutional autoencoder, pre-trained, 0.8" in note
    assert "difference +0.05 [+0.0" in note
    assert ") is **not as good as**" in findings.decoders_note(values({"cae-scratch": 0.0, "cae": 0.2, "voxels": 0.05}))
    assert ") **cannot be told apart from**" in findings.decoders_note(values({"cae": 0.2, "voxels": 0.2}))
    table = texts(findings.decoders_table(Profile(), found))
    starred = table[table["lead over scratch"].str.contains("★")]
    assert set(starred["decoder"]) == {"convolutional autoencoder, pre-trained", "linear model of voxels"}
    pretrained = table["decoder"] == "convolutional autoencoder, pre-trained"
    assert table.loc[pretrained, "balanced accuracy"].str.startswith("85%").all()
    assert findings.decoders_note(values({"cae": 0.1})) == "Nothing can be compared yet."
    assert findings.decoders_note(found.iloc[:0]) == "Nothing has been run yet."
    assert findings.decoders_table(Profile(), found.iloc[:0]) is None


def test_linear_models_alone_lead_over_nothing() -> None:
    found = values({"voxels": 0.0, "regional": 0.1})
    assert "lead over scratch" not in texts(findings.decoders_table(Profile(), found))
    assert findings.decoders_note(found).startswith(
        "No network is trained here; the best is a linear model of regional"
    )


def test_numbers_are_compared_by_correlation() -> None:
    table = texts(findings.decoders_table(Profile(), values({"cae-scratch": 0.0, "cae": 0.2}, measure="r")))
    assert table["correlation"].str.match(r"0\.\d\d \[").all()
    assert table["mean absolute error"].str.match(r"5\.\d \[").all()


def test_blocks_have_a_column_for_each_transfer() -> None:
    found = values({"cae": 0.1}).assign(transfer="there")
    few = found.assign(change="blocks0", value=found["value"] - 0.1)
    table = texts(findings.blocks_table(pd.concat([found, few])))
    assert table["blocks"].tolist() == ["0", "all"]
    assert all(re.match(r"0\.\d\d \[", cell) for cell in table["there: AUC"])
    assert findings.blocks_table(found.iloc[:0]) is None


def test_transfers_and_what_is_missing_of_them_are_named() -> None:
    source = Profile.model_validate(
        {"name": "a", "data": {"root": "x/one", "source": {"T1w": {}}, "target": {"T1w": ["AD", "CN"]}}}
    )
    target = source.overridden(
        {"name": "b", "pretrained_by": source.model_dump(mode="json"), "data": {"root": "x/two"}}
    )
    assert findings.transfer_title(target) == "one T1w → two T1w: AD or CN"
    note = findings.transfers_note({"two": target}, {"two": [f"m{i}" for i in range(7)]})
    assert "m0, m1, m2, m3, m4 and 2 more" in note
    assert findings.transfers_note({"two": target}, {}) == ""


# ---- faults

FAULTY = Profile.model_validate(
    {
        "name": "a",
        "controls": {
            "faults": {
                "labels": {"title": "other labels", "kind": "seen"},
                "dense": {"title": "a dense head", "kind": "suspected"},
                "norm": {"title": "normalisation", "kind": "remedy"},
                "later": {"title": "not run yet", "kind": "suspected"},
            }
        },
    }
)


def faulty() -> pd.DataFrame:
    """No effect of the dense head; the fault's name is its change."""
    base = values({"cae": 0.1}, fractions=(1.0,))
    effects = {"labels": -0.2, "dense": 0.0, "norm": 0.1}
    changed = [base.assign(change=f"fault-{name}", value=base["value"] + effect * (1 + 0.01 * base["fold"]))
               for name, effect in effects.items()]  # fmt: skip
    return pd.concat([base, *changed], ignore_index=True)


def test_faults_are_tested_against_the_decoder_without() -> None:
    tests = findings.fault_tests(FAULTY, faulty()).set_index("fault")
    assert tests["difference"].round(2).to_dict() == {"labels": -0.21, "dense": 0.0, "norm": 0.1}
    table = texts(findings.faults_table(FAULTY, faulty()))
    assert table["fault"].tolist() == ["none", "other labels", "a dense head", "normalisation"]
    assert table["kind"].tolist() == ["–", "fact: seen in their code", "hypothesis", "possible remedy"]
    assert table["change"].str.contains("★").tolist() == [False, True, False, True]
    note = findings.faults_note(FAULTY, faulty())
    assert "worse, alone: **other labels**. Significantly better, alone: **normalisation**." in note
    assert "Of the other 1 no effect can be shown on 5 folds" in note


def test_faults_that_are_not_planted_yet() -> None:
    assert "have not been planted" in findings.faults_note(FAULTY, faulty().iloc[:0])
    assert findings.faults_table(FAULTY, faulty().query("change == ''")) is None


def test_a_few_folds_show_what_an_evaluation_can_hide() -> None:
    ways = pd.DataFrame({"variant": ["last", "best", "shuffled"] * 2, "value": [0.7, 0.9, 0.5, 0.8, 0.9, 0.4]})
    note = findings.evaluation_note(ways)
    assert "accuracy of 75%" in note
    assert "45%" in note
    assert "90%" in note
    assert "not been trained" in findings.evaluation_note(ways.iloc[:0])
