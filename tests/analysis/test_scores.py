from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from deeplight_core.analysis.scores import (
    COLUMNS,
    at_the_end,
    common_steps,
    confusion,
    constant_answer,
    group_scores,
    number_predictions,
    outcome_predictions,
    phenotype_predictions,
    recalls,
    state_predictions,
    subject_scores,
)

STATES = [("EMOTION", "fear"), ("EMOTION", "neutral"), ("GAMBLING", "neutral"), ("GAMBLING", "win")]
KEY = {
    "route": "supervised", "encoder": "deeplight", "variant": "scratch", "fraction": 0.05, "n_subjects": 3, "seed": 2,
    "fold": 0, "seen_volumes": 480, "seconds": 1.5,
}  # fmt: skip


def rows_of(n: int, random: np.random.Generator) -> pd.DataFrame:
    """Examples of five subjects in two runs; ten blocks of a run have one state each, and some volumes are in none."""
    table = pd.DataFrame({"dataset": "d", "session": "", "frame": np.arange(n), "block": random.integers(-1, 10, n)})
    table["unit"], table["run"] = random.choice(list("abcde"), n), random.choice(["LR", "RL"], n)
    state = pd.factorize(table["unit"] + table["run"])[0] + table["block"].to_numpy()
    table[["task", "state"]] = [STATES[i % 4] for i in state]
    table["subject"] = "somebody"
    return table.sample(frac=1, random_state=0)


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Random answers; two tasks share the name of a state."""
    random = np.random.default_rng(0)
    return state_predictions(rows_of(300, random), random.dirichlet([1, 1, 1, 1], 300), STATES)


def test_predictions_of_states() -> None:
    rows = pd.DataFrame(
        {"dataset": "d", "subject": "x", "session": "1", "task": "EMOTION", "state": ["fear", "neutral"],
         "unit": ["s1", "s2"], "run": "LR", "frame": [4, 9], "block": [0, 3]}
    )  # fmt: skip
    rows.index = [7, 3]
    table = state_predictions(rows, np.array([[0, 0, 0, 1], [0.25, 0.5, 0.125, 0.125]]), STATES)
    assert table.to_dict("records") == [
        {"dataset": "d", "subject": "s1", "session": "1", "task": "EMOTION", "run": "LR", "frame": 4, "block": 0,
         "state": "fear", "predicted_task": "GAMBLING", "predicted_state": "win", "EMOTION: fear": 0.0,
         "EMOTION: neutral": 0.0, "GAMBLING: neutral": 0.0, "GAMBLING: win": 1.0},
        {"dataset": "d", "subject": "s2", "session": "1", "task": "EMOTION", "run": "LR", "frame": 9, "block": 3,
         "state": "neutral", "predicted_task": "EMOTION", "predicted_state": "neutral", "EMOTION: fear": 0.25,
         "EMOTION: neutral": 0.5, "GAMBLING: neutral": 0.125, "GAMBLING: win": 0.125},
    ]  # fmt: skip


def test_scores_equal_a_loop(predictions: pd.DataFrame) -> None:
    table = subject_scores(predictions, **KEY)
    assert tuple(table.columns) == COLUMNS
    assert table.groupby("level").size().to_dict() == {"volume": 10, "block": 10}
    for row in table.itertuples():
        own = [p for p in predictions.to_dict("records") if (p["task"], p["subject"]) == (row.task, row.subject)]
        blocks = defaultdict(list)
        for p in own:
            if p["block"] >= 0:
                blocks[p["run"], p["block"]].append(p)
        groups = [[p] for p in own] if row.level == "volume" else list(blocks.values())
        hits = []
        for group in groups:
            answer = np.mean([[p[f"{task}: {state}"] for task, state in STATES] for p in group], axis=0)
            hits.append(STATES[answer.argmax()] == (group[0]["task"], group[0]["state"]))
        assert (row.score, row.n) == (pytest.approx(np.mean(hits)), len(hits))
        assert (row.dataset, row.target, row.measure) == ("d", "state", "accuracy")
        assert {name: getattr(row, name) for name in KEY} == KEY


def test_a_block_is_answered_by_the_mean_probability_not_by_a_vote() -> None:
    rows = pd.DataFrame(
        {"dataset": "d", "session": "", "task": "EMOTION", "state": "fear", "unit": "s1", "run": "LR", "block": 0,
         "frame": range(3)}
    )  # fmt: skip
    answers = np.array([[0.9, 0.1, 0, 0], [0.45, 0.55, 0, 0], [0.4, 0.6, 0, 0]])
    table = subject_scores(state_predictions(rows, answers, STATES), **KEY).set_index("level")
    assert table.at["volume", "score"] == pytest.approx(1 / 3)
    assert table.at["block", "score"] == 1.0
    assert table["n"].to_dict() == {"volume": 3, "block": 1}


def test_errors_of_numbers_equal_a_loop() -> None:
    random = np.random.default_rng(0)
    rows = rows_of(200, random)
    truth, answers = random.normal(size=(200, 2)), random.normal(size=(200, 2))
    truth[random.random((200, 2)) < 0.2] = np.nan
    truth[(rows["unit"] == "c").to_numpy(), 1] = np.nan  # of whom nothing is known
    predictions = number_predictions(rows, truth, answers, ["age", "iq"])
    table = subject_scores(predictions, **KEY)
    assert tuple(table.columns) == COLUMNS
    assert set(table["measure"]) == {"absolute_error"}
    assert "c" not in set(table.loc[table["target"] == "iq", "subject"])
    for row in table[table["level"] == "volume"].itertuples():
        own = ((rows["unit"] == row.subject) & (rows["task"] == row.task)).to_numpy()
        column = ["age", "iq"].index(row.target)
        errors = np.abs(answers[own, column] - truth[own, column])
        assert row.n == np.isfinite(errors).sum()
        assert row.score == pytest.approx(np.nanmean(errors))


def test_values_of_a_group_are_scikit_learns(predictions: pd.DataFrame) -> None:
    table = group_scores(predictions).set_index("measure")
    names = [f"{task}: {state}" for task, state in STATES]
    true = predictions["task"] + ": " + predictions["state"]
    decoded = predictions["predicted_task"] + ": " + predictions["predicted_state"]
    assert table.at["balanced_accuracy", "value"] == pytest.approx(balanced_accuracy_score(true, decoded))
    each = [roc_auc_score(true == name, predictions[name]) for name in names]
    assert table.at["auc", "value"] == pytest.approx(np.mean(each))
    assert (table["low"] < table["value"]).all()
    random = np.random.default_rng(0)
    truth, answers = random.normal(size=(100, 1)), random.normal(size=(100, 1))
    table = group_scores(number_predictions(rows_of(100, random), truth, answers, ["age"])).set_index("measure")
    assert table.at["r2", "value"] == pytest.approx(r2_score(truth[:, 0], answers[:, 0]))
    assert table.at["r", "value"] == pytest.approx(np.corrcoef(truth[:, 0], answers[:, 0])[0, 1])
    assert set(table["target"]) == {"age"}


def test_other_outcomes_are_scored_by_their_own_measure() -> None:
    rows, score = rows_of(50, np.random.default_rng(1)), np.random.default_rng(2).random((50, 1))
    table = subject_scores(outcome_predictions(rows, score, ["order"]), "contrast_accuracy", **KEY)
    assert set(table["measure"]) == {"contrast_accuracy"}
    assert set(table["level"]) == {"volume"}
    for row in table.itertuples():
        own = ((rows["unit"] == row.subject) & (rows["task"] == row.task)).to_numpy()
        assert row.score == pytest.approx(score[own, 0].mean())


def test_confusion_equals_a_loop(predictions: pd.DataFrame) -> None:
    table = confusion(predictions, STATES)
    pairs = [((p.task, p.state), (p.predicted_task, p.predicted_state)) for p in predictions.itertuples()]
    for i, true in enumerate(STATES):
        of_state = [decoded for state, decoded in pairs if state == true]
        for j, decoded in enumerate(STATES):
            assert table.iloc[i, j] == pytest.approx(of_state.count(decoded) / len(of_state))
    assert list(table.index) == list(table.columns) == STATES
    np.testing.assert_allclose(table.sum(axis=1), 1)


def test_confusion_of_a_state_without_volumes(predictions: pd.DataFrame) -> None:
    table = confusion(predictions[predictions["state"] != "win"], STATES)
    assert table.loc[("GAMBLING", "win")].isna().all()
    assert not table.drop(index=[("GAMBLING", "win")]).isna().any(axis=None)


def test_the_best_constant_answer_is_that_of_a_plain_loop() -> None:
    rows = pd.DataFrame(
        {"task": [*"AAAABB", *"AABB"], "state": [*"xxxyzz", *"xyzw"], "unit": ["1"] * 6 + ["2"] * 4}
    )  # fmt: skip
    by_hand = {"x": (3 / 4 + 1 / 2) / 4, "y": (1 / 4 + 1 / 2) / 4, "z": (1 + 1 / 2) / 4, "w": (1 / 2) / 4}
    assert constant_answer(rows) == pytest.approx(max(by_hand.values()))
    assert constant_answer(rows[rows["unit"] == "2"]) == pytest.approx(1 / 4)


def trainings() -> pd.DataFrame:
    """Three trainings of a variant and a fraction each, with other numbers of epochs and of steps in an epoch."""
    rows = [
        (name, fraction, seed, epoch, epoch * per_epoch)
        for name, fraction, seed, epochs, per_epoch in (
            ("a", 0.1, 1, (2, 4), 10), ("b", 0.1, 2, (2, 4), 12), ("c", 1.0, 1, (1,), 50)
        )
        for epoch in epochs for _ in ("s1", "s2")
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["training", "fraction", "seed", "epoch", "step"])
    return table.assign(variant="scratch")


def test_every_training_ends_with_its_own_last_epoch() -> None:
    table = trainings()
    assert at_the_end(table)[["training", "epoch"]].drop_duplicates().to_numpy().tolist() == [
        ["a", 4],
        ["b", 4],
        ["c", 1],
    ]
    one = table[table["training"] == "a"][["epoch", "step"]]
    assert at_the_end(one)["step"].tolist() == [40, 40]
    assert at_the_end(table[:0]).empty


def test_seeds_are_measured_at_their_mean_step() -> None:
    table = common_steps(trainings())
    assert table.groupby("training")["step"].unique().map(list).to_dict() == {"a": [22, 44], "b": [22, 44], "c": [50]}
    assert common_steps(trainings()[:0]).empty


def test_recalls_are_shares_of_each_states_volumes() -> None:
    rows = [("s1", "a", "a"), ("s1", "a", "b"), ("s1", "b", "b"), ("s2", "a", "a"), ("s2", "b", "a")]
    predictions = pd.DataFrame(rows, columns=["subject", "state", "predicted_state"])
    found = recalls(predictions.assign(task="T", predicted_task="T")).set_index(["state", "subject"])["score"]
    assert found.to_dict() == {("a", "s1"): 0.5, ("b", "s1"): 1.0, ("a", "s2"): 1.0, ("b", "s2"): 0.0}
    elsewhere = recalls(predictions.assign(task="T", predicted_task="U"))  # the state of another task
    assert (elsewhere["score"] == 0).all()


def test_columns_of_several_kinds_have_each_their_measures() -> None:
    """Against scikit-learn and NumPy; people of whom a column is missing do not count for it."""
    random, n = np.random.default_rng(3), 60
    table = rows_of(n, random).assign(unit=[f"s{i:02d}" for i in range(n)])
    targets = [
        {"column": "smoking", "kind": "classes", "levels": ["never", "previous", "current"]},
        {"column": "income", "kind": "ordered", "levels": ["low", "middle", "high"]},
        {"column": "age", "kind": "bins", "levels": [40, 80, 40]},
    ]
    truth = np.stack([random.integers(0, 3, n), random.integers(0, 3, n), random.normal(60, 7, n)], axis=1).astype(
        float
    )
    truth[::7, 0], truth[1::9, 1], truth[2::11, 2] = np.nan, np.nan, np.nan
    answers = np.concatenate(
        [random.dirichlet([1, 1, 1], n), random.random((n, 1)) * 2, random.normal(60, 7, (n, 1))], 1
    )
    found = phenotype_predictions(table, truth, answers, targets)
    assert found["smoking = current"].tolist() == answers[:, 2].tolist()
    group = group_scores(found, n_resamples=0).set_index(["target", "measure"])["value"]
    known = np.isfinite(truth)
    labels = truth[known[:, 0], 0].astype(int)
    auc = roc_auc_score(labels, answers[known[:, 0], :3], multi_class="ovr")
    assert group["smoking", "auc"] == pytest.approx(auc)
    decoded = answers[known[:, 0], :3].argmax(axis=1)
    assert group["smoking", "balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, decoded))
    for k, name in ((1, "income"), (2, "age")):
        of, answer = truth[known[:, k], k], answers[known[:, k], 2 + k]
        assert group[name, "r2"] == pytest.approx(r2_score(of, answer))
        assert group[name, "r"] == pytest.approx(np.corrcoef(of, answer)[0, 1])
    scores = subject_scores(found, **KEY)
    assert list(scores.columns) == list(COLUMNS)
    measures = scores.groupby("target")["measure"].unique().map(list).to_dict()
    assert measures == {"smoking": ["accuracy"], "income": ["absolute_error"], "age": ["absolute_error"]}
    assert scores.groupby("target")["n"].sum().to_dict() == {
        "smoking": known[:, 0].sum(), "income": known[:, 1].sum(), "age": known[:, 2].sum(),
    }  # fmt: skip
    error = scores.query("target == 'age'")["score"].mean()
    assert error == pytest.approx(np.abs(truth[known[:, 2], 2] - answers[known[:, 2], 4]).mean())
