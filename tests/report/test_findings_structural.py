import importlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from deeplight_core.cli import app
from deeplight_core.config import Profile
from deeplight_core.report import findings
from deeplight_core.report.findings.structural import API

ROOT = Path(__file__).parents[2]


def texts(styler) -> pd.DataFrame:
    return styler.data


# ---- the report's library


@pytest.mark.parametrize("how", [how for _, _, how in API])
def test_every_item_of_their_library_has_a_counterpart_that_exists(how: str) -> None:
    """Commands and their options, functions, settings, files."""
    if how.startswith("deeplight "):
        _, command, *rest = how.split()
        known = {
            option for parameter in typer.main.get_command(app).commands[command].params for option in parameter.opts
        }
        assert {word for word in rest if word.startswith("-")} <= known
    elif "/" in how:
        assert (ROOT / how).is_file()
    elif how.split(".")[0] in ("preprocessing", "routes", "finetuning") or how == "data.target":
        value = Profile()
        for part in how.split("."):
            value = getattr(value, part)
    else:
        module, _, name = how.rpartition(".")
        assert hasattr(importlib.import_module(f"deeplight_core.{module}"), name)


# ---- people and weights


def test_people_and_images_are_counted() -> None:
    index = pd.DataFrame(
        {"task": "T1w", "diagnosis": ["AD", "AD", "CN", "CN"], "split": ["train", "train", "train", "validation"],
         "subject": ["a", "a", "b", "c"]}
    )  # fmt: skip
    table = texts(findings.people_table(index, "diagnosis"))
    assert table["number of images"].tolist() == ["2", "1", "1"]
    assert table["people"].tolist() == ["1", "1", "1"]


def test_the_sizes_contradict_the_report() -> None:
    note = findings.architectures_note({"one": (31392, 62769), "other": (47794, 91688)})
    assert "around 60% fewer" in note
    assert "91,688, +46%" in note
    assert texts(findings.architectures_table({"one": (31392, 62769)}))["with its decoder"].tolist() == ["62,769"]
    assert findings.architectures_note({}) == ""


# ---- reconstructions and codes


def errors(shift: float = 0.0, n: int = 6) -> pd.DataFrame:
    own = 0.01 + shift + 0.001 * np.arange(n)
    return pd.DataFrame(
        {"subject": [f"s{i}" for i in range(n)], "autoencoder": own, "mean": 0.02, "pca": 0.005, "n_components": 9}
    )


def test_an_autoencoder_is_held_against_the_mean_and_pca() -> None:
    note = findings.reference_note("autoencoding", errors())
    assert "which is below that of the mean training image (0.02) and more than that of PCA with 9 components" in note
    assert "**not below**" in findings.reference_note("autoencoding", errors(0.05))


def test_equally_well_is_tested() -> None:
    random = np.random.default_rng(0)
    noisy = errors().assign(autoencoder=lambda t: t["autoencoder"] + random.normal(0, 0.003, len(t)))
    assert "**no difference can be shown**" in findings.equal_note({"one": errors(), "other": noisy})
    better = noisy.assign(autoencoder=lambda t: t["autoencoder"] + 0.02)
    assert "**the one one is better**" in findings.equal_note({"one": errors(), "other": better})
    assert findings.equal_note({"one": errors()}) == ""


def codes() -> dict[str, np.ndarray]:
    dense, sparse = np.ones((4, 10)), np.ones((4, 10)) * (np.arange(10) < 4)
    return {
        "code16-l1-0": dense,
        "code16-l1-1e-05": sparse,
        "code64-l1-0": np.tile(dense, 4),
        "code64-l1-1e-05": np.tile(sparse, 4),
    }


def test_silent_units_and_the_claims_on_them() -> None:
    held_out = dict(zip(codes(), (0.02, 0.019, 0.018, 0.012), strict=True))
    table = texts(findings.codes_table(codes(), held_out))
    assert table["silent units"].tolist() == ["0%", "60%", "0%", "60%"]
    assert table["channels"].tolist() == ["16", "16", "64", "64"]
    note = findings.codes_note(codes(), held_out)
    assert "60% of the units are silent, without it 0%: the code becomes sparser" in note
    assert "by -0.0010 with 16 channels and by -0.0060 with 64" in note
    assert "a larger code holds here" in note
    assert "**does not hold here**" in findings.codes_note(codes(), held_out | {"code64-l1-1e-05": 0.03})
    assert "need two widths" in findings.codes_note({"code16-l1-0": codes()["code16-l1-0"]}, held_out)
    assert list(findings.widest(codes())) == ["64 channels, no penalty", "64 channels, penalty 1e-05"]


def test_a_collapsed_posterior_is_named() -> None:
    assert "50% are used" in findings.kl_note(np.array([0.0, 0.5]))
    assert "collapsed" not in findings.kl_note(np.array([0.0, 0.5]))
    assert "**Its posterior has collapsed" in findings.kl_note(np.zeros(3))


# ---- transfer


def values(leads: dict[str, float], n_folds: int = 5) -> pd.DataFrame:
    random = np.random.default_rng(1)
    base = 0.6 + random.normal(0, 0.01, n_folds)
    rows = [
        (variant, "", fraction, 1, fold + 1, 40, 10, "state", "auc", base[fold] + lead + random.normal(0, 0.004))
        for variant, lead in leads.items() for fraction in (0.5, 1.0) for fold in range(n_folds)
    ]  # fmt: skip
    columns = ["variant", "change", "fraction", "seed", "fold", "n_subjects", "n_test", "target", "measure", "value"]
    return pd.DataFrame(rows, columns=columns)


def test_transfer_is_tested_against_scratch_and_linear_models() -> None:
    found = values({"cae-scratch": 0.0, "cae": 0.2, "cae-multitask": 0.0, "voxels": 0.25})
    tests = findings.auc_comparisons(found)
    assert set(tests["variant"]) == {"cae", "cae-multitask", "voxels"}
    assert (tests["p_bonferroni"] >= tests["p"] * 6 * 0.999).all() or (tests["p_bonferroni"] == 1).any()
    note = findings.auc_note(found)
    assert "in 2 of 4 comparisons (pre-trained by autoencoding)" in note
    assert "**as good as or better than** the best network (pre-trained by autoencoding, 0.8" in note
    assert "**not as good as**" in findings.auc_note(values({"cae-scratch": 0.0, "cae": 0.2, "voxels": 0.05}))
    table = texts(findings.auc_table(Profile(), found))
    starred = table[table["lead over scratch"].str.contains("★")]
    assert set(starred["decoder"]) == {"pre-trained by autoencoding", "linear model of voxels"}
    assert findings.auc_note(values({"cae": 0.1})) == "Nothing can be compared yet."
    assert findings.auc_table(Profile(), found.iloc[:0]) is None


def test_blocks_have_a_column_for_each_transfer() -> None:
    found = values({"cae": 0.1}).assign(transfer="there")
    few = found.assign(change="blocks0", value=found["value"] - 0.1)
    table = texts(findings.blocks_table(pd.concat([found, few])))
    assert table["blocks"].tolist() == ["0", "all"]
    assert all(re.match(r"0\.\d\d \[", cell) for cell in table["there"])
    assert findings.blocks_table(found.iloc[:0]) is None


def test_what_is_missing_is_named() -> None:
    assert findings.trained_note({"autoencoder": True}) == ""
    assert "1 of 2 pre-trainings has not been run**: residual" in findings.trained_note(
        {"autoencoder": True, "residual": False}
    )
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


def test_separation_is_said_for_both_parts() -> None:
    assert "one +0.30 and +0.10" in findings.separation_note({"one": (0.3, 0.1)}, "diagnosis")
    assert findings.separation_note({}, "diagnosis") == ""
