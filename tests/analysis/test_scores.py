import numpy as np
import pandas as pd
import pytest

from deeplight_core.analysis.scores import confusion, constant_answer, predictions_table, subject_scores

STATES = [("EMOTION", "fear"), ("EMOTION", "neutral"), ("GAMBLING", "neutral"), ("GAMBLING", "win")]


KEY = {"route": "supervised", "variant": "scratch", "fraction": 0.05, "n_subjects": 3, "seed": 2}


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Random decoded states of five subjects; two tasks share the name of a state."""
    random = np.random.default_rng(0)
    true, decoded = random.integers(4, size=(2, 200))
    rows = pd.DataFrame([STATES[i] for i in true], columns=["task", "state"])
    rows = rows.assign(unit=random.choice(list("abcde"), 200), run="LR", frame=np.arange(200))
    return predictions_table(rows, decoded, STATES)


def test_predictions_table() -> None:
    rows = pd.DataFrame(
        {"task": "EMOTION", "state": ["fear", "neutral"], "unit": ["s1", "s2"], "run": "LR", "frame": [4, 9]}
    )
    rows.index = [7, 3]
    table = predictions_table(rows, np.array([3, 1]), STATES)
    assert table.to_dict("records") == [
        {"subject": "s1", "run": "LR", "frame": 4, "task": "EMOTION", "state": "fear",
         "predicted_task": "GAMBLING", "predicted_state": "win"},
        {"subject": "s2", "run": "LR", "frame": 9, "task": "EMOTION", "state": "neutral",
         "predicted_task": "EMOTION", "predicted_state": "neutral"},
    ]  # fmt: skip


def test_subject_scores_equals_a_loop(predictions: pd.DataFrame) -> None:
    table = subject_scores(predictions, **KEY)
    assert list(table.columns) == [*KEY, "task", "subject", "score", "n"]
    assert len(table) == 10
    for row in table.itertuples():
        hits = [
            (p.task, p.state) == (p.predicted_task, p.predicted_state)
            for p in predictions.itertuples()
            if (p.task, p.subject) == (row.task, row.subject)
        ]
        assert (row.score, row.n) == (pytest.approx(sum(hits) / len(hits)), len(hits))
        assert (row.route, row.variant, row.fraction, row.n_subjects, row.seed) == tuple(KEY.values())


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
