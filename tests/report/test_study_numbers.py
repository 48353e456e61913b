"""Reports on decoders of numbers, with statistics by scipy and plain loops."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from test_html import Read, outside

from deeplight_core.analysis import scores
from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.report import plots
from deeplight_core.report.study import study_page
from deeplight_core.report.study_numbers import number_quality, subject_numbers
from deeplight_core.training.checkpoint import data_facts, save_model

pytestmark = pytest.mark.usefixtures("no_window")

EVIL = "<script>alert(1)</script>"
PEOPLE = ["s1", "s2", "s3", "s4", "s5", EVIL]
AGES = dict(zip(PEOPLE, (31.0, 44.0, 52.0, 60.0, 25.0, 71.0), strict=True))


def predictions(people: list[str], noise: float, column: str = "age", seed: int = 0) -> pd.DataFrame:
    """Two images of everybody."""
    random = np.random.default_rng(seed)
    rows = [["tiny", name, name, "", "rest", str(run), 0, -1] for name in people for run in (1, 2)]
    columns = ["dataset", "unit", "subject", "session", "task", "run", "frame", "block"]
    true = np.array([[AGES[row[1]]] for row in rows])
    return scores.number_predictions(
        pd.DataFrame(rows, columns=columns), true, true + noise * random.normal(size=true.shape), [column]
    )


def training(
    folder: Path, profile: Profile, variant: str, noise: float, people: list[str], fold: int = 0, column: str = "age"
) -> Path:
    """The files of a finished fine-tuning."""
    folder.mkdir()
    config = {
        "stage": "finetuning", "route": "autoencoder", "variant": variant, "fraction": 1.0, "seed": 1, "fold": fold,
        "units": ["t1", "t2"], "reported": people, "profile": profile.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    told = predictions(people, noise, column, fold)
    told.to_parquet(folder / "predictions.parquet")
    key = {"route": "autoencoder", "encoder": "cae", "variant": variant, "fraction": 1.0, "n_subjects": 2, "seed": 1}
    table = scores.subject_scores(told, **key, fold=fold, seen_volumes=1, seconds=1.0)
    table.to_csv(folder / "scores.csv", index=False)
    metrics = pd.DataFrame({
        "epoch": [1, 1, 2, 2], "step": [1, 1, 2, 2], "split": ["train", "validation"] * 2, "task": "rest",
        "target": column, "subject": people[0], "measure": "absolute_error", "score": [9.0, 9, 5, 7], "n": 2,
        "loss": 1.0,
    })  # fmt: skip
    metrics.to_csv(folder / "metrics.csv", index=False)
    return folder


def test_everybodys_numbers_are_means_of_what_was_measured() -> None:
    told = predictions(PEOPLE, 6.0).assign(fold=0)
    told.loc[told["subject"] == "s2", "true age"] = np.nan
    table = subject_numbers(told, "age")
    assert table["subject"].tolist() == sorted({*PEOPLE} - {"s2"})
    for row in table.itertuples():
        own = told[told["subject"] == row.subject]["predicted age"]
        assert (row.true, row.n) == (AGES[row.subject], 2)
        assert row.predicted == pytest.approx(sum(own) / 2)
        assert row.error == pytest.approx(abs(sum(own) / 2 - AGES[row.subject]))


def test_quality_is_that_of_scipy_and_of_all_exchanges() -> None:
    table = subject_numbers(predictions(PEOPLE, 25.0).assign(fold=0), "age")
    true, told = table["true"].to_numpy(), table["predicted"].to_numpy()
    found = number_quality(table)
    assert found.error == pytest.approx(np.abs(told - true).mean())
    interval = stats.t.interval(0.95, len(true) - 1, found.error, stats.sem(table["error"]))
    assert (found.low, found.high) == pytest.approx(interval)
    assert found.r == pytest.approx(stats.pearsonr(true, told).statistic)
    assert found.r_low < found.r < found.r_high
    assert found.guess == pytest.approx(np.abs(true - true.mean()).mean())
    every = np.array(list(permutations(true)))
    as_good = np.mean(np.abs(told - every).mean(axis=1) <= found.error + 1e-9)
    as_close = np.mean([stats.pearsonr(one, told).statistic >= found.r - 1e-9 for one in every])
    assert found.p == pytest.approx(as_good, abs=4 * np.sqrt(as_good / 2000) + 1e-3)
    assert found.r_p == pytest.approx(as_close, abs=4 * np.sqrt(as_close / 2000) + 1e-3)


def test_truths_are_exchanged_within_folds() -> None:
    """Old and young people are in different folds, and nothing but this is told."""
    ages = [30.0, 31, 32, 33, 60, 61, 62, 63]
    table = pd.DataFrame({
        "subject": list("abcdefgh"), "fold": [1] * 4 + [2] * 4, "n": 1, "true": ages,
        "predicted": [33.0, 30, 31, 32, 63, 60, 61, 62],
    })  # fmt: skip
    table["error"] = (table["predicted"] - table["true"]).abs()
    assert number_quality(table).r_p > 0.5
    assert number_quality(table.assign(fold=0)).r_p < 0.05


def test_the_same_answer_for_everybody_has_no_correlation() -> None:
    table = subject_numbers(predictions(PEOPLE, 1.0).assign(fold=0, **{"predicted age": 40.0}), "age")
    found = number_quality(table)
    assert np.isnan([found.r, found.r_p]).all()
    assert found.p == 1.0


def test_a_report_on_numbers_is_whole(tiny_profile: Profile, tmp_path: Path) -> None:
    network = training(tmp_path / "a", tiny_profile, "cae", 4.0, PEOPLE)
    linear = training(tmp_path / "b", tiny_profile, "voxels", 30.0, PEOPLE)
    page = study_page([network, linear])
    read = Read(page)
    assert outside(page) == []
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(EVIL) == 2  # subjects, numbers
    table = subject_numbers(predictions(PEOPLE, 4.0).assign(fold=0), "age")
    for told in (
        f"tells age of 6 subjects that it was not trained on with a mean absolute error of {table['error'].mean():.3g}",
        "age of every subject", "age, told and true", "permutations of the truths", "Beside other decoders: age",
    ):  # fmt: skip
        assert told in read.text
    assert "confusion" not in read.text
    assert sum(tag == "img" for tag, _ in read.tags) == 2  # numbers, curves
    rows = [row for row in read.text.split("paired t-test")[1].split("\n") if row.strip()]
    assert any("p = " in row for row in rows)
    assert "after Atanaszov & Ritter (2019)" in read.text
    assert "Thomas, Müller" not in read.text


def test_how_images_were_prepared_is_told(tiny_profile: Profile, store: Store, tmp_path: Path) -> None:
    folder = training(tmp_path / "a", tiny_profile, "cae", 4.0, PEOPLE)
    for tr_s, told in ((2.0, "Runs were smoothed"), (None, "Structural images were masked, scaled to values from 0")):
        save_model(DeepLight(store.shape, 2), folder, {"data": data_facts(store) | {"tr_s": tr_s}})
        assert told in Read(study_page([folder])).text


def test_folds_and_several_numbers_are_put_together(tiny_profile: Profile, tmp_path: Path) -> None:
    folds = [training(tmp_path / f"f{k}", tiny_profile, "cae", 4.0, PEOPLE[3 * k - 3 : 3 * k], k) for k in (1, 2)]
    assert "tells age of 6 subjects" in Read(study_page(folds)).text
    other = training(tmp_path / "other", tiny_profile, "voxels", 4.0, PEOPLE[:3], 1, "iq")
    with pytest.raises(ValueError, match=r"other decodes iq, .*f1 age; give trainings with the same target"):
        study_page([folds[0], other])


def test_a_single_person_has_no_interval(tiny_profile: Profile, tmp_path: Path) -> None:
    text = Read(study_page([training(tmp_path / "a", tiny_profile, "cae", 4.0, ["s1"])])).text
    assert "nan" not in text.split("Methods, to be pasted")[0].split("Beside")[0]
    assert "of 1 subject that" in text


def test_columns_of_several_kinds_are_refused(tiny_profile: Profile, tmp_path: Path) -> None:
    folder = training(tmp_path / "a", tiny_profile, "cae", 4.0, PEOPLE)
    told = pd.read_parquet(folder / "predictions.parquet")
    told.assign(**{"sex = f": 0.5}).to_parquet(folder / "predictions.parquet")
    with pytest.raises(ValueError, match="a tells neither states nor numbers alone"):
        study_page([folder])


@pytest.mark.parametrize("file", ["config.yaml", "predictions.parquet", "scores.csv"])
def test_damaged_trainings_are_told(file: str, tiny_profile: Profile, tmp_path: Path) -> None:
    folder = training(tmp_path / "a", tiny_profile, "cae", 4.0, PEOPLE)
    (folder / file).write_bytes(b'\x00[: "{\n')
    with pytest.raises(ValueError, match=r"a is damaged; remove it and train again: .+"):
        study_page([folder])


def test_points_are_truths_and_answers() -> None:
    table = pd.DataFrame({"true": [1.0, 2.0], "predicted": [1.5, 1.0]})
    (axes,) = plots.told_numbers(table, r"a $\foo$ b").axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), table)
    axes.figure.canvas.draw()  # a dollar sign is no formula
