import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from scipy import stats

from deeplight_core.cli import app
from deeplight_core.config import Profile
from deeplight_core.report import findings
from deeplight_core.report.findings.autoencoder import API, separation_gain

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
    assert "**one is better**" in findings.equal_note({"one": errors(), "other": better})
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
    for lacking in ("code64-l1-1e-05", "code16-l1-0"):
        some = {name: code for name, code in codes().items() if name != lacking}
        assert "need two widths" in findings.codes_note(some, held_out)
    assert "need two widths" in findings.codes_note({}, {})
    assert list(findings.widest(codes())) == ["64 channels, no penalty", "64 channels, penalty 1e-05"]


def test_a_collapsed_posterior_is_named() -> None:
    assert "50% are used" in findings.kl_note(np.array([0.0, 0.5]))
    assert "collapsed" not in findings.kl_note(np.array([0.0, 0.5]))
    assert "**Its posterior has collapsed" in findings.kl_note(np.zeros(3))


def test_missing_pretrainings_are_named() -> None:
    assert findings.trained_note({"autoencoder": True}) == ""
    assert "1 of 2 pre-trainings has not been run**: residual" in findings.trained_note(
        {"autoencoder": True, "residual": False}
    )


def test_a_dead_code_is_said() -> None:
    alive = np.random.default_rng(0).normal(size=(5, 3))
    assert "The code of one is the same" in findings.dead_codes_note({"one": np.ones((5, 3)), "two": alive})
    assert findings.dead_codes_note({"two": alive}) == ""


def apart(seen: float, new: float, n: int = 6) -> pd.DataFrame:
    """Silhouettes of n people who were trained on and n who were held out, two images each."""
    random = np.random.default_rng(0)
    units, held_out = [f"s{i % (2 * n)}" for i in range(4 * n)], [i % 2 == 1 for i in range(4 * n)]
    noise = random.normal(0, 0.02, 4 * n)
    return pd.DataFrame({"unit": units, "held_out": held_out, "silhouette": np.where(held_out, new, seen) + noise})


def test_separation_is_said_for_both_parts() -> None:
    exact = pd.DataFrame({"unit": ["a", "b"], "held_out": [False, True], "silhouette": [0.3, 0.1]})
    assert "one +0.30 and +0.10" in findings.separation_note({"one": exact}, "diagnosis")
    assert "one +0.30 and –" in findings.separation_note({"one": exact.assign(silhouette=[0.3, np.nan])}, "diagnosis")
    assert findings.separation_note({}, "diagnosis") == ""


def test_a_gain_in_separation_is_that_of_held_out_people() -> None:
    one, other = apart(0.1, 0.1), apart(0.9, 0.3).assign(silhouette=lambda t: t["silhouette"][::-1].to_numpy())
    new = one["held_out"]
    gain = other["silhouette"][new].groupby(one["unit"]).mean() - one["silhouette"][new].groupby(one["unit"]).mean()
    interval = stats.t.interval(0.95, 5, gain.mean(), stats.sem(gain))
    assert separation_gain(one, other) == pytest.approx((gain.mean(), *interval))


def test_the_train_step_has_its_time_and_memory() -> None:
    way = {"peak_mb": 900.0, "start_mb": 400.0, "peak_gpu_mb": None}
    grid = {
        "shape": [54, 64, 54], "batch_size": 16, "ways": {"plain": way, "ours": way | {"peak_mb": 700.0}},
        "median_ms_per_image": {"plain": 50.0, "ours": 20.0}, "times_as_fast_as_plain": {"ours": 2.5},
    }  # fmt: skip
    table = texts(findings.autoencoder_speed([{"device": "a CPU", "grids": [grid]}]))
    assert table["times as fast"].tolist() == ["–", "2.5"]
    assert table["memory"].tolist() == ["0.5 GB", "0.3 GB"]
    assert table["grid"].tolist() == ["54 × 64 × 54"] * 2
    assert findings.autoencoder_speed([]) is None
