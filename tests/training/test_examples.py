from itertools import pairwise

import pandas as pd
import pytest
from conftest import N_KEPT
from test_loader import STATES

from deeplight_core.data.store import Store
from deeplight_core.training.examples import draw_units, permute_labels, select_rows


@pytest.fixture
def rows(store: Store) -> pd.DataFrame:
    return select_rows(store.index, STATES, "train")


def test_draws_are_nested_within_a_seed() -> None:
    units = [f"{i:03d}" for i in range(300)]
    draws = [draw_units(units, fraction, seed=3) for fraction in (0.001, 0.01, 0.05, 0.2, 0.6, 1.0)]
    assert [len(draw) for draw in draws] == [1, 3, 15, 60, 180, 300]
    assert len(draw_units(units[:10], 0.19, seed=3)) == 2  # the nearest number
    for smaller, larger in pairwise(draws):
        assert set(smaller) < set(larger)
    assert sorted(draws[-1]) == units
    assert draws[1] == draw_units(units[::-1], 0.01, seed=3)  # the order of the units is not part of the draw
    assert set(draws[2]) != set(draw_units(units, 0.05, seed=4))


@pytest.mark.parametrize("fraction", [0, 1.2, -0.1, float("nan")])
def test_fractions_that_are_none(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {fraction}"):
        draw_units(["a", "b"], fraction, seed=0)


def test_labels_are_positions_in_the_states() -> None:
    pairs = [
        ("EMOTION", "neutral"),
        ("GAMBLING", "neutral"),
        ("GAMBLING", "win"),
        ("EMOTION", "neutral"),
        ("WM", "body"),
    ]
    index = pd.DataFrame(pairs, columns=["task", "state"]).assign(
        unit=list("aabca"), split=["train"] * 3 + ["validation", "train"]
    )
    states = [("GAMBLING", "win"), ("GAMBLING", "neutral"), ("EMOTION", "neutral")]
    assert select_rows(index, states, "train")["label"].tolist() == [2, 1, 0]
    assert select_rows(index, states, "validation")["label"].tolist() == [2]
    assert select_rows(index, states, "train", ["b"])["label"].tolist() == [0]
    with pytest.raises(ValueError, match=r"no validation volumes of \['WM'\]"):
        select_rows(index, [("WM", "body")], "validation")
    with pytest.raises(ValueError, match=r"no train volumes of .* for \['z'\]"):
        select_rows(index, states, "train", ["z"])


def test_rows_of_the_store(store: Store) -> None:
    rows = select_rows(store.index, STATES, "train", ["s2", "s4"])
    assert set(rows["unit"]) == {"s2", "s4"}
    assert len(rows) == 2 * (N_KEPT + N_KEPT // 2)
    assert [STATES[label] for label in rows["label"]] == list(zip(rows["task"], rows["state"], strict=True))


def test_permuted_labels_stay_in_their_run_and_as_frequent(rows: pd.DataFrame) -> None:
    permuted = permute_labels(rows, 1)
    pd.testing.assert_frame_equal(permuted.drop(columns="label"), rows.drop(columns="label"))
    counts = [table.groupby(["file", "label"]).size() for table in (permuted, rows)]
    pd.testing.assert_series_equal(*counts)
    both = rows.groupby("file")["label"].transform("nunique") == 2  # half of those labels change in expectation
    assert 0.3 < (permuted["label"] == rows["label"])[both].mean() < 0.7
    pd.testing.assert_frame_equal(permuted, permute_labels(rows, 1))
    assert not permuted.equals(permute_labels(rows, 2))
