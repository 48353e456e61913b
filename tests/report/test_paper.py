from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Dataset
from scipy import stats

from deeplight_core.config import Profile, load_profile
from deeplight_core.data.store import Store
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.preparation import PreprocessingSettings
from deeplight_core.report import paper
from deeplight_core.tasks import TASKS

SUBJECTS = [f"s{i}" for i in range(6)]
FRACTIONS = (0.01, 0.4, 1.0)


def metrics(levels: dict[str, float], epochs: int = 10) -> pd.DataFrame:
    """A training whose accuracy rises to `levels` (task → accuracy), a little lower in validation."""
    random = np.random.default_rng(round(1000 * sum(levels.values())))
    return pd.DataFrame(
        [
            (epoch, split, task, subject, level * epoch / epochs - 0.05 * (split == "validation")
             + 0.01 * random.normal(), volumes, 40 * epoch)
            for epoch in range(1, epochs + 1) for split in ("train", "validation")
            for volumes, (task, level) in zip((90, 30), levels.items(), strict=False) for subject in SUBJECTS
        ],
        columns=["epoch", "split", "task", "subject", "score", "n", "step"],
    )  # fmt: skip


def finetuned(levels: dict[tuple[str, float], float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and results of a sweep whose (variant, fraction) end at `levels`."""
    curves = pd.concat(
        [metrics({"WM": level}).assign(variant=v, fraction=f, seed=1) for (v, f), level in levels.items()]
    )
    results = curves[(curves["epoch"] == 10) & (curves["split"] == "validation")]
    return curves, results.assign(n_subjects=(results["fraction"] * 100).astype(int), route="supervised")


LEVELS = {("pretrained", f): 0.9 for f in FRACTIONS} | {("scratch", f): 0.3 + 0.5 * f for f in FRACTIONS}


def table(levels: dict[tuple[str, float], float] = LEVELS) -> pd.DataFrame:
    curves, results = finetuned(levels)
    return side_by_side(curves, results, {"MOTOR": 0.9, "GAMBLING": 0.3})


def side_by_side(curves: pd.DataFrame, results: pd.DataFrame, levels: dict[str, float]) -> pd.DataFrame:
    table = paper.side_by_side(metrics(levels), curves, results, 8, (0.2, 0.25), list(FRACTIONS))
    return table.set_index("quantity")


def test_table1_has_the_papers_durations_and_those_of_this_run() -> None:
    index = pd.DataFrame({"task": ["WM"] * 30 + ["MOTOR"] * 8, "unit": ["a"] * 20 + ["b"] * 10 + ["a"] * 4 + ["b"] * 4})
    rows = paper.table1(index, 2.0)
    assert rows["paper"].tolist() == [400, 224, 312, 480, 200, 216, 252, 2084]
    assert rows.loc["Total", "targets"] == 20
    assert rows.loc["WM", "this run"] == 15 * 2
    assert rows.loc["MOTOR", "this run"] == 4 * 2
    assert np.isnan(rows.loc["SOCIAL", "this run"])


def test_the_label_rule_drops_two_volumes_of_every_block() -> None:
    """By hand: a block of `length` seconds holds that many volumes at TR 0.72 s less two, give or take one."""
    rows = paper.table1(pd.DataFrame({"task": [], "unit": []}), 2.0)
    for task, length, blocks in (("WM", 27.5, 16), ("SOCIAL", 23, 10), ("RELATIONAL", 18, 12), ("MOTOR", 12, 20)):
        assert rows.loc[task, "label rule"] == pytest.approx(blocks * (length - 2 * 0.72), abs=blocks * 0.72), task
    assert (rows["why"][:-1] != "").all()
    assert set(rows.index) == {*TASKS, "Total"}


def test_deviations_are_facts_of_the_grid_and_settings_that_differ(
    store: Store, dataset: Dataset, tiny_profile: Profile
) -> None:
    recipe = load_profile("paper")
    table = paper.deviations(recipe, tiny_profile, store, dataset[0])
    assert table.loc["grid (voxels)"].tolist() == ["91 × 109 × 91", "7 × 8 × 9"]
    assert table.loc["voxel (mm)"].tolist() == ["2 × 2 × 2", "3 × 3.5 × 4"]
    assert table.loc["TR (s)"].tolist() == ["0.72", "2"]
    assert table.loc["subjects (training + validation)"].tolist() == ["300 + 100", "4 + 2"]
    assert table.loc["finetuning.epochs"].tolist() == ["50", "2"]
    assert (table["paper"] != table["this run"]).all()
    same_tr = replace(store, info={**store.info, "tr_s": 0.72})
    assert "TR (s)" not in paper.deviations(recipe, tiny_profile, same_tr, dataset[0]).index
    structural = replace(store, info={**store.info, "tr_s": None})
    assert paper.deviations(recipe, tiny_profile, structural, dataset[0]).loc["TR (s)", "this run"] == "–"


def test_the_decoder_is_the_papers_on_its_grid() -> None:
    full, small = (DeepLight(shape, 16).layers() for shape in ((91, 109, 91), (9, 11, 7)))
    facts = paper.decoder_facts(full, small).set_index("decoder")
    for fact in ("convolutions (kernels, stride)", "features per slice", "LSTMs × units", "output neurons"):
        assert facts.loc[fact, "paper"] == facts.loc[fact, "here, on the paper's grid"], fact
    assert facts.loc["features per slice", "here, on this run's grid"] == "64"


def test_accuracy_of_the_last_epoch_is_the_mean_over_tasks_as_in_the_paper() -> None:
    curve = metrics({"MOTOR": 0.9, "GAMBLING": 0.3})
    last = curve[(curve["epoch"] == 10) & (curve["split"] == "train") & (curve["subject"] == "s2")].set_index("task")
    expected = (last.loc["MOTOR", "score"] + last.loc["GAMBLING", "score"]) / 2
    assert paper.last_epoch_accuracy(curve, "train")["s2"] == pytest.approx(expected)
    assert paper.last_epoch_accuracy(curve, "train", ("GAMBLING",))["s2"] == last.loc["MOTOR", "score"]
    all_tasks, without, gambling = (
        paper.REPORTED[f"pretraining accuracy{what}"]
        for what in (", validation", " without gambling, validation", ", gambling")
    )
    assert (5 * without + gambling) / 6 == pytest.approx(all_tasks, abs=5e-5)


def test_a_run_like_the_papers_confirms_every_claim() -> None:
    rows = table()
    assert set(rows["verdict"]) == {"holds here", ""}
    assert (rows["this run"] != "not in this run").all()


def test_training_time_is_in_steps() -> None:
    """From scratch ends at 75% in validation after 400 steps; pre-trained, which ends at 85%, is there after 360."""
    row = table().loc["steps to reach from scratch's last accuracy, all data"]
    assert row["this run"] == "pre-trained 360, from scratch 400"
    assert row["verdict"] == "holds here"


def test_the_end_of_a_longer_training_is_its_own() -> None:
    """Small fractions make more epochs: what the last one gives must not be all that counts."""
    curves, results = finetuned(LEVELS)
    small = curves["fraction"] == 0.01
    longer = curves.assign(epoch=curves["epoch"] * np.where(small, 7, 1))
    pd.testing.assert_frame_equal(
        side_by_side(longer, results, {"MOTOR": 0.9}), side_by_side(curves, results, {"MOTOR": 0.9})
    )


def test_a_run_unlike_the_papers_says_no() -> None:
    rows = table({("pretrained", f): 0.3 for f in FRACTIONS} | {("scratch", f): 0.9 for f in FRACTIONS})
    about_both = (rows["claim"] != "") & ~rows["claim"].str.contains("constant")
    tested = rows[rows["where"].str.startswith(("Fig. 3", "3.2")) & about_both]
    assert len(tested) == 6
    assert set(tested["verdict"]) == {"does not hold here"}


def test_better_but_not_significantly_is_no() -> None:
    curves, results = finetuned({(v, 1.0): 0.8 for v in ("pretrained", "scratch")})
    results.loc[(results["variant"] == "pretrained") & (results["subject"] == "s0"), "score"] += 0.01
    rows = side_by_side(curves, results, {"MOTOR": 0.9})
    assert rows.loc["difference, all data", "verdict"] == "does not hold here"
    assert rows.loc["difference, all data", "this run"].startswith("+0.17 points")


def test_t_values_are_those_of_scipy() -> None:
    _, results = finetuned(LEVELS)
    wide = results.pivot(index="subject", columns=["variant", "fraction"], values="score")
    for quantity, a, b in (
        ("difference, all data", ("pretrained", 1.0), ("scratch", 1.0)),
        ("pre-trained on 40% against from scratch on 100%", ("pretrained", 0.4), ("scratch", 1.0)),
    ):
        assert f"t(5) = {stats.ttest_rel(wide[a], wide[b]).statistic:.2f}" in table().loc[quantity, "this run"]


@pytest.mark.parametrize("gone", [("pretrained", 1.0), ("scratch", 0.01), ("pretrained", 0.4)])
def test_what_the_run_lacks_says_so(gone: tuple[str, float]) -> None:
    rows = table({cell: level for cell, level in LEVELS.items() if cell != gone})
    assert len(rows) == len(table())
    assert (rows["this run"] == "not in this run").any()
    lacking = rows[rows["this run"] == "not in this run"]
    assert set(lacking["verdict"]) <= {"cannot be tested here", ""}


def test_nothing_at_all_is_no_error() -> None:
    curves, results = finetuned(LEVELS)
    rows = side_by_side(curves[:0], results[:0], {"MOTOR": 0.9})
    assert (rows.loc[rows["where"].str.startswith("Fig. 3"), "this run"] == "not in this run").all()
    assert rows.loc["gambling, validation", "this run"] == "not in this run"
    untrained = paper.side_by_side(metrics({"MOTOR": 0.9})[:0], curves[:0], results[:0], 8, (0.2, 0.25), [1.0])
    assert set(untrained["this run"]) == {"not in this run"}


def test_a_claim_about_every_fraction_needs_every_fraction() -> None:
    quantity = "fractions at which pre-trained is higher, validation"
    some = table({cell: level for cell, level in LEVELS.items() if cell[1] < 1.0}).loc[quantity]
    assert some["this run"].startswith("2 of 2 (3 planned)")
    assert some["verdict"] == "cannot be tested here"
    apart = table({("pretrained", 0.01): 0.9, ("scratch", 1.0): 0.3}).loc[quantity]
    assert (apart["this run"], apart["verdict"]) == ("not in this run", "cannot be tested here")


def test_the_level_is_that_of_all_planned_fractions() -> None:
    """p of 40% against 100% is put between 0.05/3 and 0.05."""
    curves, results = finetuned(LEVELS)
    a, b = ((results["variant"] == v) & (results["fraction"] == f) for v, f in (("pretrained", 0.4), ("scratch", 1.0)))
    noise = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    results.loc[a, "score"] = 0.5 + 0.01 * noise + 0.0124
    results.loc[b, "score"] = 0.5
    row = side_by_side(curves, results, {"MOTOR": 0.9}).loc["pre-trained on 40% against from scratch on 100%"]
    assert 0.05 / 3 < float(row["this run"].split("p = ")[1]) < 0.05
    assert row["verdict"] == "does not hold here"


def test_a_test_that_cannot_be_made_decides_nothing() -> None:
    curves, results = finetuned(LEVELS)
    results.loc[results["variant"] == "pretrained", "score"] = 1.0
    results.loc[results["variant"] == "scratch", "score"] = 0.5
    rows = side_by_side(curves, results, {"MOTOR": 0.9})
    for quantity in ("difference, all data", "pre-trained, 1% (n = 1; paper: 3)"):
        assert rows.loc[quantity, "verdict"] == "cannot be tested here", quantity


def test_guessing_the_most_frequent_state_is_not_a_success() -> None:
    rows = paper.side_by_side(metrics({"MOTOR": 0.4}), *finetuned(LEVELS), 8, (0.4, 0.25), list(FRACTIONS))
    rows = rows.set_index("quantity")
    assert rows.loc["8 states, validation (paper: 16)", "verdict"] == "does not hold here"
    assert "any constant answer (40.00%)" in rows.loc["8 states, validation (paper: 16)", "claim"]


def test_volumes_of_the_full_run() -> None:
    """Three hundred subjects, 40 and 50 epochs, two variants at seven fractions; a hundred subjects to validate on."""
    passes = paper.full_run(load_profile(Path(__file__).parents[2] / "profiles" / "paper.yaml"))
    rule = paper.label_rule(PreprocessingSettings())
    source = rule.drop("WM").sum()
    assert passes.at["pre-training", "volumes trained on"] == 40 * 300 * source
    assert passes.at["sweep", "volumes trained on"] == 50 * 2 * rule["WM"] * (3 + 15 + 30 + 60 + 120 + 180 + 300)
    assert passes.at["pre-training", "volumes validated on"] == 40 * 100 * source
    assert passes.at["sweep", "volumes validated on"] == 50 * 14 * 100 * rule["WM"]
