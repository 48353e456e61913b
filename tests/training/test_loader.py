import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE

from deeplight_core.data.store import Store
from deeplight_core.training.examples import Examples, of_states
from deeplight_core.training.loader import BatchOrder, Volumes

STATES = [("SOCIAL", "no interaction"), ("EMOTION", "fear"), ("SOCIAL", "interaction")]


@pytest.fixture(scope="module")
def examples(store: Store) -> Examples:
    """Volumes of all training runs, in an order that is neither the files' nor the frames'."""
    found = of_states(store.index, STATES, "train")
    order = np.random.default_rng(0).permutation(len(found))
    rows = found.rows.iloc[order].reset_index(drop=True)
    return Examples(rows, rows, np.arange(len(rows)), found.targets[order])


def cropped(store: Store) -> Store:
    return replace(store, info={**store.info, "preprocessing": {**store.info["preprocessing"], "crop": True}})


# ---- which volumes


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(10, 3, 4), (9, 3, 3), (1, 4, 1), (7, 7, 1), (8, 1, 8)])
@pytest.mark.parametrize("shuffled_runs", [None, 1, 2, 99])
def test_each_pass_has_each_volume_once(n: int, batch_size: int, steps: int, shuffled_runs: int | None) -> None:
    order = BatchOrder(np.arange(n) // 3, batch_size, seed=5, shuffled_runs=shuffled_runs)
    assert order.steps_per_pass == steps
    for number in range(3):
        batches = [order[number * steps + i] for i in range(steps)]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert sorted(np.concatenate(batches)) == list(range(n))


@pytest.mark.parametrize("shuffled_runs", [None, 3])
def test_batches_are_a_function_of_seed_and_step(shuffled_runs: int | None) -> None:
    def run(seed: int, steps: range) -> list[list[int]]:
        order = BatchOrder(np.arange(30) // 4, 8, seed, shuffled_runs)
        return [order[step].tolist() for step in steps]

    assert run(1, range(12)) == run(1, range(12))
    assert run(1, range(7, 12)) == run(1, range(12))[7:]  # wherever one starts
    assert run(1, range(4)) != run(2, range(4))
    assert run(1, range(4)) != run(1, range(4, 8))  # the next pass


def test_a_window_of_runs_slides_over_all() -> None:
    """Runs come in random order; volumes of at most so many runs and one are wanted at a time; neighbours are mixed."""
    files = np.repeat(np.arange(40), 25)
    order = BatchOrder(files, 10, seed=1, shuffled_runs=4)
    first_seen, last_seen = np.full(40, -1), np.full(40, -1)
    for step in range(order.steps_per_pass):
        for file in files[order[step]]:
            first_seen[file] = step if first_seen[file] < 0 else first_seen[file]
            last_seen[file] = step
    wanted = [((first_seen <= step) & (step <= last_seen)).sum() for step in range(order.steps_per_pass)]
    assert max(wanted) <= 4 + 2  # and one more, since a batch may span a change
    assert np.mean(wanted) > 3
    assert np.corrcoef(first_seen, np.arange(40))[0, 1] < 0.5  # not in the store's order
    assert np.mean([len(set(files[order[step]])) for step in range(order.steps_per_pass)]) > 3


# ---- what is in a batch


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("crop", [True, False])
def test_voxels_are_at_their_places(store: Store, examples: Examples, in_memory: bool, crop: bool) -> None:
    store = cropped(store) if crop else store
    data = Volumes(store, examples, in_memory=in_memory)
    numbers = np.array([50, 3, 77, 3])
    batch = data.batch(numbers)
    assert batch["volumes"].dtype == torch.float32
    assert batch["volumes"].shape == (4, *((7, 5, 5) if crop else SHAPE[::-1]))
    assert batch["targets"].tolist() == examples.targets[numbers].tolist()
    for volume, row in zip(batch["volumes"].numpy(), examples.rows.iloc[numbers].itertuples(), strict=True):
        image = store.unmask(store.read(row.file)[row.row].numpy())
        np.testing.assert_array_equal(volume, image.get_fdata()[store.box].T)


@pytest.mark.parametrize("in_memory", [True, False])
def test_masked_volumes(store: Store, examples: Examples, in_memory: bool) -> None:
    masked = Volumes(store, examples, in_memory=in_memory).masked(np.arange(len(examples)))
    assert masked.dtype == torch.float16
    expected = torch.stack([store.read(row.file)[row.row] for row in examples.rows.itertuples()])
    assert torch.equal(masked, expected)


@pytest.mark.parametrize("by_run", [False, True])
def test_streaming_gives_the_same_batches(store: Store, examples: Examples, by_run: bool) -> None:
    def batches(in_memory: bool | None) -> list[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        steps = (order[step] for step in range(12))
        return list(Volumes(store, examples, in_memory=in_memory, by_run=by_run).batches(steps))

    order = BatchOrder(examples.table["file"].to_numpy(), 16, 1, shuffled_runs=2 if by_run else None)
    streamed, in_memory = batches(False), batches(True)
    assert len(streamed) == len(in_memory) == 12
    for step, ((numbers, batch), (same_numbers, same_batch)) in enumerate(zip(streamed, in_memory, strict=True)):
        np.testing.assert_array_equal(numbers, order[step])
        np.testing.assert_array_equal(numbers, same_numbers)
        assert torch.equal(batch["volumes"], same_batch["volumes"])
        assert torch.equal(batch["targets"], same_batch["targets"])
        assert batch["numbers"].tolist() == numbers.tolist()


# ---- streaming


class Order:
    """Row numbers without end; counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            self.taken += 1
            yield np.arange(4)


def test_reads_ahead_within_bounds_and_stops_with_the_consumer(store: Store, examples: Examples) -> None:
    threads, order = threading.active_count(), Order()
    batches = Volumes(store, examples, in_memory=False).batches(iter(order))
    next(batches)
    assert threading.active_count() == threads + 1
    while order.taken < 6:  # one given, four in the buffer, one waiting for its place
        time.sleep(0.001)
    time.sleep(0.1)
    assert order.taken == 6
    batches.close()
    assert threading.active_count() == threads


def test_runs_that_come_soon_are_announced_once(
    store: Store, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = []
    monkeypatch.setattr("os.posix_fadvise", lambda *given: announced.append(given[1:]))
    order = BatchOrder(examples.table["file"].to_numpy(), 16, 1, shuffled_runs=2)
    data = Volumes(store, examples, in_memory=False, by_run=True)
    assert len(list(data.batches(order[step] for step in range(order.steps_per_pass)))) == order.steps_per_pass
    assert announced == [(0, 0, os.POSIX_FADV_WILLNEED)] * examples.rows["file"].nunique()


@pytest.mark.parametrize(("free", "kept"), [(10**9, True), (1000, False)])
def test_volumes_stay_on_the_device_if_they_take_less_than_half_of_its_free_memory(
    store: Store, examples: Examples, free: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplight_core.training.loader._free_memory", lambda device: free)
    threads = threading.active_count()
    batches = Volumes(store, examples).batches(iter(Order()))
    next(batches)
    assert (threading.active_count() == threads) == kept
    batches.close()


def test_no_thread_is_left_at_the_end_or_after_an_error(store: Store, examples: Examples) -> None:
    threads, data = threading.active_count(), Volumes(store, examples, in_memory=False)
    assert len(list(data.batches(iter([np.arange(3)] * 9)))) == 9
    assert threading.active_count() == threads

    def consume() -> None:
        for _ in data.batches(iter(Order())):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert threading.active_count() == threads


def test_memory_needs_no_thread(store: Store, examples: Examples) -> None:
    threads = threading.active_count()
    next(Volumes(store, examples).batches(iter(Order())))  # so few volumes are kept in memory by default
    assert threading.active_count() == threads


@pytest.mark.parametrize("in_memory", [True, False])
def test_errors_reach_the_consumer(store: Store, examples: Examples, in_memory: bool) -> None:
    given = Volumes(store, examples, in_memory=in_memory).batches(iter([np.arange(3), np.array([len(examples)])]))
    assert len(next(given)[0]) == 3
    with pytest.raises(IndexError):
        next(given)


def test_damaged_file_is_an_error(store: Store, examples: Examples, tmp_path: Path) -> None:
    store = replace(store, path=Path(shutil.copytree(store.path, tmp_path / "store")))
    file = str(examples.rows["file"].iloc[7])
    (store.path / file).write_bytes((store.path / file).read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        Volumes(store, examples)
