from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import N_KEPT
from test_loader import STATES

from deeplight_core.data.store import Store
from deeplight_core.training.examples import (
    Examples,
    clips,
    described_columns,
    draw_units,
    fold_units,
    of_anything,
    of_numbers,
    of_states,
    permuted,
    unit_statistics,
    windows,
    with_columns,
)


@pytest.fixture
def examples(store: Store) -> Examples:
    return of_states(store.index, STATES, "train")


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
    assert of_states(index, states, "train").targets.tolist() == [2, 1, 0]
    assert of_states(index, states, "validation").targets.tolist() == [2]
    assert of_states(index, states, "train", ["b"]).targets.tolist() == [0]
    with pytest.raises(ValueError, match=r"no validation volumes of \['WM'\]"):
        of_states(index, [("WM", "body")], "validation")
    with pytest.raises(ValueError, match=r"no train volumes of .* for \['z'\]"):
        of_states(index, states, "train", ["z"])


def test_volumes_of_the_store(store: Store) -> None:
    examples = of_states(store.index, STATES, "train", ["s2", "s4"])
    table = examples.table
    assert set(table["unit"]) == {"s2", "s4"}
    assert len(examples) == 2 * (N_KEPT + N_KEPT // 2)
    assert [STATES[label] for label in examples.targets] == list(zip(table["task"], table["state"], strict=True))
    assert examples.volumes_each == 1


def test_permuted_labels_stay_in_their_run_and_as_frequent(examples: Examples) -> None:
    changed = permuted(examples, 1)
    pd.testing.assert_frame_equal(changed.table, examples.table)
    counts = [of.table.assign(label=of.targets).groupby(["file", "label"]).size() for of in (changed, examples)]
    pd.testing.assert_series_equal(*counts)
    labels = examples.table.assign(label=examples.targets)
    both = labels.groupby("file")["label"].transform("nunique") == 2  # half of those labels change in expectation
    assert 0.3 < (changed.targets == examples.targets)[both].mean() < 0.7
    assert (changed.targets == permuted(examples, 1).targets).all()
    assert (changed.targets != permuted(examples, 2).targets).any()


def test_permuted_labels_of_images_change_between_images() -> None:
    rows = {"unit": list("abcdef"), "task": "T1w", "file": list("abcdef"), "state": ["F", "M"] * 3, "split": "train"}
    examples = of_states(pd.DataFrame(rows), [("T1w", "F"), ("T1w", "M")])
    found = {tuple(permuted(examples, seed).targets.tolist()) for seed in range(10)}
    assert len(found) > 2
    assert {sum(labels) for labels in found} == {3}


# ---- numbers


PEOPLE = pd.DataFrame(
    {
        "unit": list("aabbccdd"), "split": "train", "task": "T1w", "file": list("aabbccdd"), "frame": [0, 1] * 4,
        "block": 0, "age": ["30", "30", "41.5", "41.5", "n/a", "n/a", "", ""], "iq": ["1"] * 2 + [""] * 4 + ["3"] * 2,
    }
)  # fmt: skip


def test_numbers_are_those_of_the_columns() -> None:
    examples = of_numbers(PEOPLE, ["age", "iq"], ["T1w"])
    assert examples.table["unit"].tolist() == list("aabbdd")  # nothing is known of c
    np.testing.assert_array_equal(
        examples.targets, np.array([[30, 1], [30, 1], [41.5, np.nan], [41.5, np.nan], [np.nan, 3], [np.nan, 3]])
    )
    with pytest.raises(ValueError, match=r"not a number: age of b is 'old'; correct the manifest"):
        of_numbers(PEOPLE.assign(age=PEOPLE["age"].replace("41.5", "old")), ["age"], ["T1w"])
    with pytest.raises(ValueError, match=r"the manifest has no column height; it has unit"):
        of_numbers(PEOPLE, ["height"], ["T1w"])
    with pytest.raises(ValueError, match=r"no volumes of T1w with age for \['c'\]"):
        of_numbers(PEOPLE, ["age"], ["T1w"], units=["c"])


def test_units_are_what_numbers_are_z_scored_over() -> None:
    """A unit counts once, however many volumes it has."""
    many = pd.concat([PEOPLE, PEOPLE[PEOPLE["unit"] == "b"]], ignore_index=True)
    mean, sd = unit_statistics(of_numbers(many, ["age", "iq"], ["T1w"]))
    np.testing.assert_allclose(mean, [35.75, 2])
    np.testing.assert_allclose(sd, [np.std([30, 41.5], ddof=1), np.sqrt(2)])
    with pytest.raises(ValueError, match=r"does not vary over the 1 training unit"):
        unit_statistics(of_numbers(PEOPLE, ["age"], ["T1w"], units=["a"]))


def test_permuted_numbers_change_between_units() -> None:
    examples = of_numbers(PEOPLE, ["age"], ["T1w"])
    orders = {tuple(permuted(examples, seed).targets[:, 0].tolist()) for seed in range(10)}
    assert orders == {(30, 30, 41.5, 41.5), (41.5, 41.5, 30, 30)}


# ---- clips and windows


def frames(*runs: tuple[str, list[int], list[int]]) -> Examples:
    """Volumes of runs, each with its frames and blocks, in random order."""
    table = pd.concat([pd.DataFrame({"file": f, "frame": t, "block": b, "task": "rest"}) for f, t, b in runs])
    table = table.sample(frac=1, random_state=0).reset_index(drop=True)
    return of_anything(table, ["rest"])


def shown(examples: Examples) -> set[tuple[str, tuple[int, ...]]]:
    """The run and frames of each example."""
    rows = examples.rows
    return {(rows["file"][m.flat[0]], tuple(rows["frame"].to_numpy()[m].ravel().tolist())) for m in examples.members}


def test_clips_are_consecutive_frames_of_one_block() -> None:
    volumes = frames(("a", [2, 3, 4, 5, 7, 8], [0, 0, 0, 1, 1, 1]), ("b", [0, 1], [0, 0]))
    found = clips(volumes, 2)
    assert shown(found) == {("a", (2, 3)), ("a", (3, 4)), ("a", (7, 8)), ("b", (0, 1))}
    assert found.members.shape == (4, 2)
    assert found.volumes_each == 2
    assert found.table["frame"].tolist() == found.rows["frame"].to_numpy()[found.members[:, 0]].tolist()
    assert shown(clips(volumes, 3)) == {("a", (2, 3, 4))}
    with pytest.raises(ValueError, match="no block is long enough for a clip of 4 frames"):
        clips(volumes, 4)


def test_windows_are_beginning_middle_and_end_of_a_run() -> None:
    volumes = frames(("a", list(range(9)), [0] * 4 + [-1] * 5), ("b", [0, 1, 2, 4, 5, 6, 7, 8, 9, 10], [0] * 10))
    found = windows(volumes, 2, gap=1)
    assert shown(found) == {("a", (0, 1, 3, 4, 6, 7)), ("a", (1, 2, 4, 5, 7, 8))}  # in b a frame is missing
    assert found.members.shape == (2, 3, 2)
    assert shown(windows(volumes, 2)) >= {("b", (4, 5, 6, 7, 8, 9)), ("b", (5, 6, 7, 8, 9, 10))}
    assert len(windows(volumes, 1, step=3)) == 3 + 1 + 2
    with pytest.raises(ValueError, match="no run is long enough for a window of 3 × 4 frames, 0 apart"):
        windows(volumes, 4)


def test_some_frames_of_a_sequence_stand_for_it() -> None:
    """Evenly spaced; a sequence still needs all its frames."""
    volumes = frames(("a", list(range(19)), [0] * 19), ("b", [*range(8), *range(9, 17)], [0] * 16))
    assert shown(windows(volumes, 6, encoded=2, step=10)) == {("a", (1, 4, 7, 10, 13, 16))}
    assert shown(windows(volumes, 5, gap=1, encoded=1, step=10)) == {("a", (2, 8, 14))}
    assert shown(clips(volumes, 9, encoded=3, step=10)) == {("a", (1, 4, 7)), ("a", (11, 14, 17))}
    assert shown(clips(volumes, 8, encoded=8, step=20)) == {
        ("a", tuple(range(8))), ("b", tuple(range(8))), ("b", tuple(range(9, 17))),
    }  # fmt: skip
    assert windows(volumes, 6, encoded=2).members.shape[1:] == (3, 2)


def test_windows_equal_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    runs = [(f"run{i}", sorted(random.choice(40, 30, replace=False).tolist()), [0] * 30) for i in range(5)]
    length, gap, step = 2, 1, 1
    expected = set()
    for name, there, _ in runs:
        for first in there:
            asked = [first + part * (length + gap) + i for part in range(3) for i in range(length)]
            whole = range(first, asked[-1] + 1)
            if {*whole} <= {*there}:
                expected.add((name, tuple(asked)))
    assert shown(windows(frames(*runs), length, gap, step)) == expected


def test_controls_of_windows_keep_their_frames_and_change_one_thing() -> None:
    runs = [(f"run{i}", list(range(30)), [0] * 30) for i in range(4)]
    volumes = frames(*runs)
    volumes = replace(
        volumes, table=volumes.table.assign(unit=volumes.table["file"].map(lambda f: "ab"[int(f[3]) // 2]))
    )
    plain, order, run = (windows(volumes, 4, step=3, control=control) for control in ("none", "order", "run"))
    assert (np.sort(order.members, axis=1) == np.sort(plain.members, axis=1)).all()
    moved = (order.members[:, :, 0] != plain.members[:, :, 0]).mean(axis=0)
    assert ((moved > 0.4) & (moved < 0.9)).all()  # 2/3 of each
    assert (run.members[:, 1:] == plain.members[:, 1:]).all()
    file, unit = (volumes.table[column].to_numpy() for column in ("file", "unit"))
    beginning, end = run.members[:, 0, 0], run.members[:, 2, 0]
    assert (file[beginning] != file[end]).all()
    assert (unit[beginning] == unit[end]).all()
    alone = of_anything(volumes.table[volumes.table["file"] == "run0"].reset_index(drop=True), ["rest"])
    with pytest.raises(ValueError, match="there is a single one"):
        windows(alone, 4, control="run")


# ---- folds


def test_every_unit_is_held_out_once_and_families_stay_together() -> None:
    units = pd.DataFrame({"unit": [f"u{i}" for i in range(11)], "family": ["f1"] * 3 + ["f2"] * 2 + [""] * 6})
    held_out = fold_units(units, 4, 3, seed=1)
    assert len(held_out) == 12
    for repeat in range(3):
        folds = held_out[4 * repeat : 4 * repeat + 4]
        assert sorted(u for fold in folds for u in fold) == sorted(units["unit"])
        assert all({"u0", "u1", "u2"} <= {*fold} or {"u0", "u1", "u2"}.isdisjoint(fold) for fold in folds)
        assert max(map(len, folds)) - min(map(len, folds)) <= 2
    assert held_out == fold_units(units.sample(frac=1, random_state=3), 4, 3, seed=1)  # whatever the order
    assert held_out != fold_units(units, 4, 3, seed=2)
    assert held_out[:4] != held_out[4:8]
    with pytest.raises(ValueError, match="8 families or single units cannot make 9 folds"):
        fold_units(units, 9, 1, seed=0)


def test_draws_and_folds_keep_the_proportions_of_classes() -> None:
    units = [f"{i:03d}" for i in range(40)]
    classes = {unit: "AD" if i < 10 else "CN" for i, unit in enumerate(units)}
    draws = [draw_units(units, fraction, 3, classes) for fraction in (0.1, 0.2, 0.5, 1.0)]
    assert [sum(classes[unit] == "AD" for unit in draw) for draw in draws] == [1, 2, 5, 10]
    for smaller, larger in pairwise(draws):
        assert set(smaller) < set(larger)
    assert set(draws[1]) != set(draw_units(units, 0.2, 4, classes))
    table = pd.DataFrame({"unit": units, "family": "", "class": [classes[unit] for unit in units]})
    folds = fold_units(table, 5, 2, seed=1)
    assert [(len(fold), sum(classes[unit] == "AD" for unit in fold)) for fold in folds] == [(8, 2)] * 10
    with pytest.raises(ValueError, match="10 units of AD cannot make 11 folds"):
        fold_units(table, 11, 1, seed=1)


def test_columns_become_levels_or_numbers(examples: Examples) -> None:
    n = len(examples)
    table = examples.table.assign(
        sex=["M", "F", "n/a", ""] * (n // 4) + ["M"] * (n % 4), age=[str(i) for i in range(n - 1)] + ["n/a"], site="X"
    )
    people = Examples(examples.rows, table, examples.members, examples.targets)
    described = described_columns(people, ["sex", "age"])
    assert described == [{"column": "sex", "levels": ["F", "M"]}, {"column": "age", "levels": None}]
    targets = with_columns(people, described).targets
    assert targets[:2].tolist() == [[1, 0], [0, 1]]
    assert np.isnan(targets[2:4, 0]).all()
    assert np.isnan(targets[-1, 1])
    assert targets[3, 1] == 3
    with pytest.raises(ValueError, match=r"no column iq; it has .*sex"):
        described_columns(people, ["iq"])
    with pytest.raises(ValueError, match=f"column site has the value X only in the {n} training examples"):
        described_columns(people, ["site"])


INDEX = pd.DataFrame(
    {"unit": ["s1", "s2", "s3"], "task": "T1w", "split": "train", "file": ["a", "b", "c"], "row": 0, "frame": 0,
     "age": ["31", "n/a", "60"], "sex": ["M", "F", ""], "income": ["low", "high", "n/a"]}
)  # fmt: skip
LEVELS = {"sex": ["F", "M"], "income": ["low", "middle", "high"]}


def test_values_become_their_places() -> None:
    found = of_numbers(INDEX, ["sex", "age", "income"], ["T1w"], levels=LEVELS)
    expected = [[1, 31, 0], [0, np.nan, 2], [np.nan, 60, np.nan]]
    np.testing.assert_array_equal(found.targets, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "income",
            ["low", "rich", "about 20 k"],
            r"income of s2 is 'rich', which is none of low, middle, high \(2 such va",
        ),
        (
            "age",
            ["372", "400", "n/a"],
            r"age of s1 is 372; years are expected \(of months, a twelfth\); correct the man",
        ),
        ("age", ["31", "old", "n/a"], "not a number: age of s2 is 'old'; correct the manifest"),
        ("age", ["n/a", "", "n/a"], "the store has no volumes of T1w with age"),
    ],
)
def test_values_that_cannot_be_decoded(column: str, values: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_numbers(
            INDEX.assign(**{column: values}), [column], ["T1w"], levels={k: LEVELS[k] for k in {column} & {*LEVELS}}
        )
