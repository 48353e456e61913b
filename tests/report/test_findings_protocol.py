"""What the page on ways to pre-train says of how they were compared, from tables made by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from deeplight_core.config import Profile, load_profile
from deeplight_core.report import findings
from deeplight_core.routes import ROUTES


def learnt(**of_ways: float) -> pd.DataFrame:
    """Pre-trainings of two seeds on 40 subjects; the second is a tenth worse."""
    measures = {"reconstruction": "reconstruction_error", "contrast": "contrast_accuracy"}
    rows = [
        ("pretrained" if route == "supervised" else route, route, seed, 40, 900, measures.get(route, "accuracy"), score)
        for route, best in of_ways.items() for seed, score in ((1, best), (2, best - 0.1))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "route", "seed", "n_subjects", "seen_volumes", "measure", "score"])


def test_the_protocol_names_people_ways_seeds_rates_and_published_weights() -> None:
    sweep = {"variants": ["pretrained", "contrast", "images-frozen", "scratch"], "seeds": [1, 2, 3]}
    own = Profile.model_validate({"sweep": sweep})
    rows = [(f"s{i}", n) for i in range(8) for n in (3, 30)]
    table, pretrained = pd.DataFrame(rows, columns=["subject", "n_subjects"]), learnt(supervised=0.5, contrast=0.6)
    said = findings.protocol_note(own, table, pretrained)
    assert "learn 4 states of WM from the same 3 and 30 subjects, drawn anew for each of 3 seeds" in said
    assert "answer for the same 8 subjects, none of whom any training has seen." in said
    assert "supervised on other tasks and temporal contrast, on 40 subjects. The subjects that" in said
    assert "published" in said
    assert "sees 9 axial slices of a volume" in said
    assert "Learning rates" not in said
    assert said.endswith("Plain *pre-trained* means on other tasks, by supervision.")
    rates = own.overridden({"finetuning": {"learning_rate": 0.001, "learning_rates": {"pretrained": 0.002}}})
    said = findings.protocol_note(rates, table, pretrained)
    assert "below): 0.002 (pre-trained) and 0.001 (pre-trained by temporal contrast and from" in said
    sweep["variants"] = ["pretrained", "scratch"]
    said = findings.protocol_note(Profile.model_validate({"sweep": sweep}), table, pretrained)
    assert "photographs" not in said.lower()
    assert "without a way" not in said
    assert findings.protocol_note(own, table.iloc[:0], pretrained) == ""


def test_the_protocol_of_a_cross_validation_does_not_say_that_nobody_was_trained_on() -> None:
    rows = [(f"s{i}", n) for i in range(8) for n in (3, 30)]
    table = pd.DataFrame(rows, columns=["subject", "n_subjects"])
    said = findings.protocol_note(load_profile("comparison-ixi"), table, learnt(autoencoder=0.8))
    assert "answer for the same 8 subjects, each in the fold that leaves them out." in said
    assert "repeats the pre-training: autoencoding and autoencoding with auxiliary targets, on 40 subjects." in said
    assert "slices of a volume; it is fine-tuned, or its features are read out by a linear model." in said
    said = findings.protocol_note(load_profile("comparison-haxby"), table.assign(n_subjects=3), learnt(supervised=0.5))
    assert "answer for the same 8 runs, none of which any training has seen." in said


def test_what_pretrainings_learnt_stands_beside_knowing_nothing() -> None:
    own = load_profile("comparison")
    shown = findings.pretrainings_table(own, learnt(supervised=0.5, reconstruction=0.8, contrast=0.6)).data
    assert shown.iloc[:, 0].tolist() == [
        "supervised on other tasks",
        "autoencoding of fMRI volumes",
        "temporal contrast",
    ]
    n_states = len(own.data.states("source"))
    assert shown["nothing learnt"].tolist() == [f"{1 / n_states:.1%}", "1", "50.0%"]
    assert shown["seed 2"].tolist() == ["40.0%", "0.7", "50.0%"]
    one = findings.pretrainings_table(own, learnt(contrast=0.6, supervised=0.5).drop(index=1)).data
    assert one["seed 2"].tolist() == ["–", "40.0%"]
    structural = findings.pretrainings_table(load_profile("comparison-ixi"), learnt(reconstruction=0.8)).data
    assert structural["nothing learnt"].tolist() == ["–"]
    assert findings.pretrainings_table(own, learnt()) is None


def test_chance_of_other_classes_than_states_is_not_that_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUTES, "contrast", replace(ROUTES["contrast"], head="flips"))
    flips = learnt(supervised=0.5, contrast=0.6).assign(measure="accuracy")
    own = load_profile("comparison")
    n_states = len(own.data.states("source"))
    assert findings.pretrainings_table(own, flips).data["nothing learnt"].tolist() == [f"{1 / n_states:.1%}", "–"]
    left_out = findings.ways_left_out_note(own.overridden({"sweep": {"variants": ["contrast"]}}))
    assert left_out == findings.ways_left_out_note(own.overridden({"sweep": {"variants": ["scratch"]}}))


def test_that_ways_have_read_unequal_numbers_of_volumes_is_told() -> None:
    own, table = load_profile("comparison"), pd.DataFrame({"subject": ["s1"], "n_subjects": [3]})
    both = learnt(supervised=0.5, contrast=0.6)
    assert "Each pre-training has read 900 volumes (within 1%)." in findings.protocol_note(own, table, both)
    both.loc[both["route"] == "contrast", "seen_volumes"] = 1000
    unequal = "read equally many volumes**: supervised on other tasks 900 and temporal contrast 1,000."
    assert f"**Pre-trainings have not {unequal}" in findings.protocol_note(own, table, both)
    one = findings.protocol_note(own, table, both[both["route"] == "contrast"])
    assert "has read" not in one
    assert "have not read" not in one


def test_what_data_do_not_allow_is_named_with_its_reason() -> None:
    said = findings.ways_left_out_note
    own = Profile.model_validate({"sweep": {"variants": ["pretrained", "images-frozen", "scratch"]}})
    assert said(own) == (
        "Left out: reconstruction (not in this profile) and temporal contrast (windows need volumes that follow each "
        "other, and there are only those with a state)."
    )
    every = ["pretrained", "cae", "contrast", "images"]
    assert said(own.overridden({"sweep": {"variants": every}})) == ""
    assert said(own.overridden({"sweep": {"variants": every[:1]}, "controls": {"published": every[1:]}})) == ""
    alone = own.overridden(
        {"data": {"source": {}}, "sweep": {"variants": ["scratch"]}, "preprocessing": {"keep": "all"}}
    )
    assert "supervision (there are no other states to learn from)" in said(alone)
    assert "temporal contrast (not in this profile)" in said(alone)
    assert "temporal contrast (a structural image has no time)" in said(load_profile("comparison-ixi"))
