import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from alone import run_alone
from conftest import N_KEPT
from killing import run_script
from safetensors.torch import load_file
from torch import Tensor

from deeplight_core.data.store import Store
from deeplight_core.models import Batch, Outcome
from deeplight_core.models.deeplight import DeepLight, SliceEncoder
from deeplight_core.routes import DeepLightSettings, LayerGroup, ReadoutSettings, TrainingSettings
from deeplight_core.training.devices import session
from deeplight_core.training.examples import of_states
from deeplight_core.training.inference import predict
from deeplight_core.training.loader import BatchOrder, Volumes
from deeplight_core.training.loop import _enter_epoch, _epochs_to_measure, _layer_groups, fit, learning_rate

STATES = [("EMOTION", "fear"), ("EMOTION", "neutral")]
N_TRAIN = 4 * N_KEPT
SETTINGS = TrainingSettings(
    epochs=2, steps_per_epoch=3, batch_size=16, learning_rate=1e-3, schedule="cosine", threads=1
)
MODEL = (DeepLightSettings(initialisation="he"), ReadoutSettings())
NO_DROPOUT = (
    DeepLightSettings(initialisation="he", conv_dropout=(0, 0, 0), lstm_dropout=0),
    ReadoutSettings(dropout=0),
)
Decoder = tuple[DeepLightSettings, ReadoutSettings]
UNBROKEN = 6  # steps of SETTINGS


class Killed(Volumes):
    """Training data that end the process, so to speak, after so many batches."""

    left = math.inf

    def batches(self, order: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        for numbers, batch in super().batches(order):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield numbers, batch


fit_itself = fit


def train(
    store: Store,
    folder: Path,
    settings: TrainingSettings = SETTINGS,
    model: Decoder = MODEL,
    seed: int = 1,
    every_s: float = 60,
    steps: float = math.inf,
    frozen: bool = False,
    devices: int = 1,
) -> tuple[pd.DataFrame, np.ndarray, dict[str, Tensor]]:
    """Metrics, predictions and weights of a run; it is interrupted after so many steps."""

    def volumes(split: str) -> Callable[[torch.device], Volumes]:
        def make(device: torch.device) -> Volumes:
            data = Killed(store, of_states(store.index, STATES, split), device)
            data.left = steps if split == "train" else math.inf
            return data

        return make

    torch.manual_seed(seed)
    net = DeepLight(store.shape, len(STATES), *model)
    if frozen:
        settings = settings.model_copy(update={"groups": [LayerGroup(layers="encoder", rate=0)]})
    with session(settings, devices) as fabric:
        data = volumes("train"), volumes("validation")
        fitted = fit(fabric, net, *data, settings, seed, folder, "run", checkpoint_every_s=every_s)
    assert not net.training
    return fitted.metrics, fitted.answers.answer.argmax(axis=1), net.state_dict()


def reference(store: Store, settings: TrainingSettings, model: Decoder, seed: int = 1) -> dict[str, Tensor]:
    """The weights of the loop that anyone would write, without dropout: every batch as a whole, `torch.optim.AdamW`."""
    data = Volumes(store, of_states(store.index, STATES, "train"))
    order = BatchOrder(data.examples.table["file"].to_numpy(), settings.batch_size, seed)
    torch.manual_seed(seed)
    net = DeepLight(store.shape, len(STATES), *model).train()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=settings.weight_decay)
    steps = settings.epochs * (settings.steps_per_epoch or order.steps_per_pass)
    for step in range(steps):
        batch = data.batch(order[step])
        loss = torch.nn.functional.cross_entropy(net(batch["volumes"]), batch["targets"])
        loss = loss + settings.l1 * sum(weight.abs().sum() for weight in net.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, steps)
        optimizer.step()
    return net.state_dict()


@pytest.fixture(scope="module")
def unbroken(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, np.ndarray, dict[str, Tensor], bytes]:
    """A run without interruption: what `train` gives, and the bytes of its metrics.csv."""
    folder = tmp_path_factory.mktemp("unbroken")
    return *train(store, folder), (folder / "metrics.csv").read_bytes()


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def tensorboard(folder: Path) -> Any:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # ranks.py imports this file

    events = EventAccumulator(str(folder / "tensorboard"))
    return events.Reload()


# ---- how long, and when it is measured


def test_a_small_training_set_gets_epochs_until_there_are_enough_steps(store: Store, tmp_path: Path) -> None:
    asked = SETTINGS.model_copy(update={"min_steps": 10})  # four epochs of three steps; two are nine at most
    metrics, _, weights = train(store, tmp_path / "few", asked)
    assert metrics["step"].unique().tolist() == [3, 6, 9, 12]
    longer = train(store, tmp_path / "longer", SETTINGS.model_copy(update={"epochs": 4}))
    assert_same_weights(weights, longer[2])  # the learning rate falls over all of them, too
    enough = train(store, tmp_path / "enough", SETTINGS.model_copy(update={"min_steps": 6}))
    assert enough[0]["epoch"].max() == SETTINGS.epochs


@pytest.mark.parametrize(
    ("n_epochs", "evaluations", "epochs"),
    [(5, None, {1, 2, 3, 4, 5}), (5, 9, {1, 2, 3, 4, 5}), (100, 4, {25, 50, 75, 100}), (7, 3, {3, 5, 7}), (7, 1, {7})],
)
def test_epochs_that_are_measured_are_evenly_spaced(n_epochs: int, evaluations: int | None, epochs: set[int]) -> None:
    assert _epochs_to_measure(n_epochs, evaluations) == epochs


def test_measuring_less_often_trains_the_same(store: Store, tmp_path: Path) -> None:
    often = train(store, tmp_path / "often", SETTINGS.model_copy(update={"epochs": 4}))
    seldom = train(store, tmp_path / "seldom", SETTINGS.model_copy(update={"epochs": 4, "evaluations": 2}))
    assert_same_weights(often[2], seldom[2])
    np.testing.assert_array_equal(often[1], seldom[1])
    held_out = often[0]["split"] == "validation"
    pd.testing.assert_frame_equal(
        often[0][held_out & often[0]["epoch"].isin([2, 4])].reset_index(drop=True),
        seldom[0][seldom[0]["split"] == "validation"].reset_index(drop=True),
    )
    counted, each = (m[m["split"] == "train"].groupby("epoch")["n"].sum() for m in (seldom[0], often[0]))
    assert counted.to_dict() == {2: each[1] + each[2], 4: each[3] + each[4]}  # counted since the last measurement
    with pytest.raises(KeyboardInterrupt):  # between two measurements
        train(
            store, tmp_path / "killed", SETTINGS.model_copy(update={"epochs": 4, "evaluations": 2}), steps=5, every_s=0
        )
    resumed = train(store, tmp_path / "killed", SETTINGS.model_copy(update={"epochs": 4, "evaluations": 2}))
    pd.testing.assert_frame_equal(resumed[0], seldom[0], check_exact=True)


# ---- determinism


def test_same_seed_same_metrics_and_weights(unbroken: tuple, store: Store, tmp_path: Path) -> None:
    metrics, predicted, weights = train(store, tmp_path)
    pd.testing.assert_frame_equal(metrics, unbroken[0], check_exact=True)
    np.testing.assert_array_equal(predicted, unbroken[1])
    assert_same_weights(weights, unbroken[2])
    assert (tmp_path / "metrics.csv").read_bytes() == unbroken[3]


def test_other_seed_other_weights(unbroken: tuple, store: Store, tmp_path: Path) -> None:
    _, _, weights = train(store, tmp_path, seed=2)
    assert not torch.equal(weights["head.weight"], unbroken[2]["head.weight"])


@pytest.mark.parametrize(
    ("steps", "every_s"),
    [*((steps, 0) for steps in range(UNBROKEN + 1)), (2, 60), (5, 60)],  # saved after each step; after each epoch only
)
def test_resumed_equals_unbroken(unbroken: tuple, store: Store, tmp_path: Path, steps: int, every_s: float) -> None:
    if steps < UNBROKEN:
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path, every_s=every_s, steps=steps)
    else:  # done, but for what comes after the training
        train(store, tmp_path)
    metrics, predicted, weights = train(store, tmp_path, every_s=every_s)
    pd.testing.assert_frame_equal(metrics, unbroken[0], check_exact=True)
    np.testing.assert_array_equal(predicted, unbroken[1])
    assert_same_weights(weights, unbroken[2])
    assert (tmp_path / "metrics.csv").read_bytes() == unbroken[3]


def test_seconds_are_the_processors_and_go_on_after_an_interruption(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, found = iter(range(0, 100_000, 100)), []
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    monkeypatch.setitem(globals(), "fit", lambda *a, **k: found.append(fit_itself(*a, **k)) or found[-1])
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, every_s=0, steps=2)
    train(store, tmp_path)
    assert found[0].seconds > 200  # from the two saves before the interruption
    assert found[0].seconds % 100 == 0


def test_frozen_weights_stay_and_a_resumed_run_equals_an_unbroken_one(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = DeepLight(store.shape, len(STATES), *MODEL).state_dict()
    *_, weights = train(store, tmp_path / "whole", frozen=True)
    for name, weight in weights.items():
        assert torch.equal(weight, before[name]) == name.startswith("encoder."), name
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "broken", frozen=True, every_s=0, steps=4)
    assert_same_weights(train(store, tmp_path / "broken", frozen=True)[2], weights)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_has_no_dropout(
    frozen: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, forward = [], SliceEncoder.forward

    def spy(self: SliceEncoder, volumes: Tensor) -> Tensor:
        modes.append(self.training)
        return forward(self, volumes)

    monkeypatch.setattr(SliceEncoder, "forward", spy)
    train(store, tmp_path, frozen=frozen)
    assert any(modes) == (not frozen)


def test_killed_between_metrics_and_state(unbroken: tuple, store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, every_s=0, steps=UNBROKEN - 1)
    (tmp_path / "metrics.csv").write_bytes(unbroken[3])  # those of the last epoch are there, its state is not
    train(store, tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == unbroken[3]


def test_interrupted_at_every_step(unbroken: tuple, store: Store, tmp_path: Path) -> None:
    for _ in range(UNBROKEN - 1):
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path, every_s=0, steps=1)
    metrics, _, weights = train(store, tmp_path, every_s=0, steps=1)
    pd.testing.assert_frame_equal(metrics, unbroken[0], check_exact=True)
    assert_same_weights(weights, unbroken[2])


def test_killed_at_any_time_it_becomes_the_same(unbroken: tuple, store: Store, tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path

        import torch.utils.tensorboard
        from safetensors.torch import save_file

        from deeplight_core.data.store import open_store
        from killing import kill_until_done
        from test_loop import train

        def job():
            metrics, predicted, weights = train(open_store({str(store.path)!r}), Path("run"), every_s=0)
            weights = {{name: weight.contiguous() for name, weight in weights.items()}}
            save_file({{"predicted": torch.tensor(predicted), **weights}}, "weights.safetensors")

        kill_until_done(job, watched="run/state.safetensors")
    """
    run_script(script, tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(weights.pop("predicted"), unbroken[1])
    assert_same_weights(weights, unbroken[2])
    assert (tmp_path / "run/metrics.csv").read_bytes() == unbroken[3]
    assert [scalar.step for scalar in tensorboard(tmp_path / "run").Scalars("loss/train")] == [3, 6]


FULL_DISK = """
    (store_path,) = more
    folder = Path("run")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True)
    from test_loop import SETTINGS, train

    def state():
        path = folder / "state.safetensors"
        return path.read_bytes() if path.is_file() else None

    def saving(*given):
        global n_saved, before
        n_saved, before = n_saved + 1, state()
        if n_saved == fails_at:
            free = shutil.disk_usage(folder).free
            (folder / "ballast").write_bytes(bytes(free - 2**16))  # less than a state needs
        save(*given)

    import deeplight_core.training.loop as loop
    save, loop.save_state = loop.save_state, saving
    n_saved, fails_at, before = 0, 4, None
    try:
        train(open_store(store_path), folder, every_s=0)
        raise AssertionError("the disk was not full")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        assert "state.safetensors was not written" in str(error), error
    assert before and state() == before  # the state before is whole
    assert not list(folder.glob("partial_*"))
    (folder / "ballast").unlink()
    loop.save_state = save
    metrics, _, weights = train(open_store(store_path), folder, every_s=0)
    torch.save((metrics, weights), "result.pt")
"""


def test_a_full_disk_leaves_the_state_before(
    unbroken: tuple, store: Store, tmp_path: Path, own_mounts: tuple[str, ...]
) -> None:
    run_alone(FULL_DISK, tmp_path, None, SimpleNamespace(store=None), None, store.path, namespace=own_mounts)
    metrics, weights = torch.load(tmp_path / "result.pt", weights_only=False)
    pd.testing.assert_frame_equal(metrics, unbroken[0], check_exact=True)
    assert_same_weights(weights, unbroken[2])


# ---- the settings of the loop


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.5}, {"l1": 0.01}, {"schedule": "constant"}])
def test_steps_equal_those_of_a_plain_loop(changes: dict[str, float], store: Store, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update=changes)
    expected = reference(store, settings, NO_DROPOUT)
    weights = train(store, tmp_path, settings, NO_DROPOUT)[2]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    if changes:  # the setting does something
        without = reference(store, SETTINGS, NO_DROPOUT)
        assert not torch.allclose(weights["head.weight"], without["head.weight"], rtol=1e-3)


def test_layer_groups_learn_at_their_rates_and_in_their_epochs(store: Store, tmp_path: Path) -> None:
    """Adam's first steps move every weight by the learning rate, whatever the gradient."""
    groups = [
        LayerGroup(layers="encoder", from_epoch=2),
        LayerGroup(layers="encoder.lstm", rate=0.1),
        LayerGroup(layers="encoder.lstm.bias_ih_l0_reverse", until_epoch=1),
    ]
    settings = SETTINGS.model_copy(update={"groups": groups, "steps_per_epoch": 1, "schedule": "constant"})
    torch.manual_seed(1)
    before = DeepLight(store.shape, len(STATES), *MODEL).state_dict()
    moved = []
    for folder, epochs in (("one", 1), ("two", 2)):
        weights = train(store, tmp_path / folder, settings.model_copy(update={"epochs": epochs}))[2]
        moved.append({name: (weight - before[name]).abs().max().item() for name, weight in weights.items()})
    one, two = moved
    for name in before:
        if name == "encoder.lstm.bias_ih_l0_reverse":
            assert one[name] == two[name] == pytest.approx(1e-3, rel=1e-3), name
        elif name.startswith("encoder.lstm"):
            assert one[name] == pytest.approx(1e-4, rel=1e-2), name
            assert two[name] > 1.5e-4, name
        elif name.startswith("encoder"):
            assert one[name] == 0, name
            assert two[name] == pytest.approx(1e-3, rel=1e-2), name
        else:
            assert one[name] == pytest.approx(1e-3, rel=1e-2), name
            assert two[name] != one[name], name


def test_a_frozen_lstm_passes_gradients_on() -> None:
    """cuDNN refuses to outside training; what drops nothing but learns nothing either is outside it."""
    model = DeepLight((7, 8, 9), 2)
    groups = _layer_groups(
        model, SETTINGS.model_copy(update={"groups": [LayerGroup(layers="encoder.lstm", rate=0)]}), 2
    )
    _enter_epoch(model, groups, 1)
    assert model.encoder.training
    assert model.encoder.lstm.training
    assert not any(weight.requires_grad for weight in model.encoder.lstm.parameters())


def test_a_layer_group_that_fits_no_weight_is_an_error(store: Store, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"groups": [LayerGroup(layers="encoder.convs", rate=0)]})
    with pytest.raises(ValueError, match=r"no layers encoder\.convs; .*encoder\.convolutions\.0"):
        train(store, tmp_path, settings)


def validation_losses(metrics: pd.DataFrame) -> list[float]:
    held_out = metrics[metrics["split"] == "validation"]
    return [np.average(rows["loss"], weights=rows["n"]) for _, rows in held_out.groupby("epoch")]


# so large a rate that the loss rises after some epochs
RISING = SETTINGS.model_copy(update={"epochs": 12, "learning_rate": 0.03, "schedule": "constant"})


def test_stops_out_of_patience_and_keeps_the_best(store: Store, tmp_path: Path) -> None:
    all_metrics, _, last = train(store, tmp_path / "all", RISING)
    losses = validation_losses(all_metrics)
    metrics, predicted, weights = train(
        store, tmp_path / "best", RISING.model_copy(update={"patience": 2, "keep": "best"})
    )
    stopped = next(i for i in range(len(losses)) if i - int(np.argmin(losses[: i + 1])) == 2)
    assert stopped < len(losses) - 1
    assert validation_losses(metrics) == losses[: stopped + 1]
    best = int(np.argmin(losses[: stopped + 1]))
    to_best = RISING.model_copy(update={"epochs": best + 1})
    _, at_best, expected = train(store, tmp_path / "to best", to_best)
    assert_same_weights(weights, expected)
    np.testing.assert_array_equal(predicted, at_best)
    assert not torch.equal(weights["head.weight"], last["head.weight"])


RICH = RISING.model_copy(
    update={
        "epochs": 5,
        "patience": 2,
        "keep": "best",
        "weight_decay": 0.1,
        "l1": 0.001,
        "groups": [LayerGroup(layers="encoder", rate=0.5, from_epoch=2)],
        "shuffled_runs": 2,
    }
)


def test_with_all_settings_a_resumed_run_equals_an_unbroken_one(store: Store, tmp_path: Path) -> None:
    metrics, predicted, weights = train(store, tmp_path / "whole", RICH)
    n_steps = metrics["step"].max()
    for _ in range(n_steps - 1):
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path / "broken", RICH, every_s=0, steps=1)
    for _ in range(2):  # the second time it has nothing to do but to predict
        again = train(store, tmp_path / "broken", RICH, every_s=0)
        pd.testing.assert_frame_equal(again[0], metrics, check_exact=True)
        np.testing.assert_array_equal(again[1], predicted)
        assert_same_weights(again[2], weights)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.long
def test_a_compiled_model_learns_the_same(store: Store, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    settings = SETTINGS.model_copy(update={"epochs": 1})
    plain, compiled = (
        train(store, tmp_path / str(compile), settings.model_copy(update={"compile": compile}))
        for compile in (False, True)
    )
    np.testing.assert_allclose(compiled[0]["loss"], plain[0]["loss"], rtol=1e-4)
    assert list(compiled[2]) == list(plain[2])


# ---- what is counted


def test_metrics_have_each_epoch_split_task_and_subject(unbroken: tuple) -> None:
    metrics = unbroken[0]
    assert list(metrics.columns) == [
        "epoch", "step", "split", "task", "target", "subject", "measure", "score", "n", "loss",
    ]  # fmt: skip
    assert metrics.groupby("epoch")["step"].unique().map(list).to_dict() == {1: [3], 2: [6]}
    assert metrics[metrics["split"] == "train"].groupby("epoch")["n"].sum().to_dict() == {
        1: 48,
        2: 40,
    }  # a pass is 4 × 16 and 8
    for _, epoch in metrics.groupby("epoch"):
        train, held_out = epoch[epoch["split"] == "train"], epoch[epoch["split"] == "validation"]
        assert sorted(train["subject"]) == ["s1", "s2", "s3", "s4"]
        assert dict(zip(held_out["subject"], held_out["n"], strict=True)) == {"s5": N_KEPT, "s6": N_KEPT}
    assert set(metrics["task"]) == {"EMOTION"}


def test_last_metrics_are_those_of_the_predictions(unbroken: tuple, store: Store) -> None:
    metrics, predicted = unbroken[:2]
    examples = of_states(store.index, STATES, "validation")
    last = metrics[(metrics["epoch"] == 2) & (metrics["split"] == "validation")]
    for row in last.itertuples():
        of_subject = (examples.table["unit"] == row.subject).to_numpy()
        assert row.score == pytest.approx((predicted == examples.targets)[of_subject].mean())


def test_an_epoch_is_one_pass_unless_its_steps_are_given(store: Store, tmp_path: Path) -> None:
    one_pass = SETTINGS.model_copy(update={"epochs": 1, "steps_per_epoch": None})
    metrics = train(store, tmp_path / "pass", one_pass)[0]
    assert set(metrics["step"]) == {5}  # 72 volumes, 16 at a time
    assert metrics.loc[metrics["split"] == "train", "n"].tolist() == [N_KEPT] * 4
    two_passes = SETTINGS.model_copy(update={"epochs": 1, "steps_per_epoch": 10})
    metrics = train(store, tmp_path / "passes", two_passes)[0]
    assert metrics.loc[metrics["split"] == "train", "n"].tolist() == [2 * N_KEPT] * 4


def test_training_accuracy_is_counted_per_subject(store: Store, tmp_path: Path) -> None:
    """With a step size of next to nothing and without dropout, it is that of the untrained model."""
    settings = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-30})
    metrics, _, weights = train(store, tmp_path, settings, NO_DROPOUT)
    data = Volumes(store, of_states(store.index, STATES, "train"))
    untrained = DeepLight(store.shape, 2, *NO_DROPOUT).eval()
    untrained.load_state_dict(weights)
    losses, score, _ = predict(untrained, data)
    order = BatchOrder(data.examples.table["file"].to_numpy(), 16, seed=1)
    batches = [order[step] for step in range(3)]
    for row in metrics[metrics["split"] == "train"].itertuples():
        seen = [i for batch in batches for i in batch if data.examples.table["unit"][i] == row.subject]
        hits = [score[i, 0] for i in seen]
        assert row.n == len(seen)
        assert row.score == pytest.approx(np.mean(hits))
        assert row.loss == pytest.approx(np.mean([losses[i] for i in seen]), rel=1e-5)


def test_learns(store: Store, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "steps_per_epoch": 60, "schedule": "constant"})
    metrics, *_ = train(store, tmp_path, settings, NO_DROPOUT)
    assert metrics.groupby("split")["score"].mean()["validation"] > 0.9


# ---- the rest


def test_bfloat16(store: Store, tmp_path: Path, unbroken: tuple, bfloat16: None) -> None:
    metrics, _, weights = train(store, tmp_path, SETTINGS.model_copy(update={"precision": "bf16-mixed"}))
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    assert not torch.equal(weights["head.weight"], unbroken[2]["head.weight"])
    np.testing.assert_allclose(metrics["loss"], unbroken[0]["loss"], rtol=0.1)  # bfloat16 has 8 binary places


def test_learning_rates() -> None:
    constant = TrainingSettings(learning_rate=3e-4)
    assert {learning_rate(constant, step, 100) for step in range(100)} == {3e-4}
    cosine = TrainingSettings(learning_rate=2.0, schedule="cosine")
    rates = [learning_rate(cosine, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])  # warm-up over 5%
    assert rates[5] == 2.0
    assert rates[5 + 95 * 2 // 5] == pytest.approx(1 + math.cos(math.pi * 2 / 5))
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert [learning_rate(cosine, step, 1) for step in range(1)] == [2.0]


def test_learning_rate_reaches_the_optimizer(store: Store, tmp_path: Path) -> None:
    """Adam's first step moves each weight by the learning rate, whatever the gradient: here half of it, warming up."""
    settings = SETTINGS.model_copy(update={"epochs": 1, "steps_per_epoch": 40, "learning_rate": 0.01})
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, settings, every_s=0, steps=1)
    bias = load_file(tmp_path / "state.safetensors")["model.head.bias"]  # it starts at zero
    torch.testing.assert_close(bias.abs(), torch.full((2,), 0.005), rtol=1e-3, atol=0)


def test_loss_that_is_not_finite_is_an_error(store: Store, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "schedule": "constant"})
    with pytest.raises(ValueError, match=r"run: the loss is not finite at step \d, runs runs/sub-s.*; lower learn"):
        train(store, tmp_path, settings)


def test_what_was_learnt_from_a_bad_loss_is_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is looked at once in a while; a loss that is not finite is found before anything is saved."""
    monkeypatch.setattr(
        "deeplight_core.training.loop._Pace.after", lambda self, step, at_end: "save" if at_end else "none"
    )
    loss = DeepLight.loss

    def spoilt(self: DeepLight, batch: Batch) -> Outcome:
        value, each, *found = loss(self, batch)
        if not self.training:
            return Outcome(value, each, *found)
        calls.append(batch["numbers"].tolist())
        wrong = torch.nan if len(calls) == 5 else 1
        return Outcome(value * wrong, each * wrong, *found)

    calls: list[list[int]] = []
    monkeypatch.setattr(DeepLight, "loss", spoilt)
    rows = of_states(store.index, STATES, "train").table
    with pytest.raises(ValueError, match="not finite at step 4, runs") as error:
        train(store, tmp_path)
    named = set(re.findall(r"runs/\S+\.safetensors", str(error.value)))
    assert named == set(rows["file"].iloc[calls[4]])
    assert len(calls) == 6
    state = load_file(tmp_path / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_too_little_memory_is_explained(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: DeepLight, batch: Batch) -> Outcome:
        return Outcome(torch.empty(2**60), *3 * [torch.empty(0)])

    monkeypatch.setattr(DeepLight, "loss", loss)
    with pytest.raises(MemoryError, match=r"run: memory does not suffice for batches of 16 examples; lower batch_size"):
        train(store, tmp_path)


def test_weights_that_are_not_finite_are_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient may overflow where the loss does not."""
    loss = DeepLight.loss

    def steep(self: DeepLight, batch: Batch) -> Outcome:
        value, *found = loss(self, batch)
        return Outcome(value + (self.head.bias * torch.inf).sum().nan_to_num(), *found)

    monkeypatch.setattr(DeepLight, "loss", steep)
    with pytest.raises(ValueError, match=r"the weights are not finite at step 0, runs .*; lower learning_rate"):
        train(store, tmp_path, every_s=0)
    assert not (tmp_path / "state.safetensors").exists()


def test_a_state_of_another_precision_is_refused(store: Store, tmp_path: Path, bfloat16: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, every_s=0, steps=2)
    with pytest.raises(ValueError, match="was begun in 32-true, and this machine computes in bf16-mixed; go on where"):
        train(store, tmp_path, SETTINGS.model_copy(update={"precision": "bf16-mixed"}))


def test_a_layer_is_not_taken_for_another_whose_name_goes_on() -> None:
    group = LayerGroup(layers="encoder.convolutions.1")
    assert group.fits("encoder.convolutions.1.weight")
    assert not group.fits("encoder.convolutions.10.weight")


def test_an_epoch_in_which_nothing_learns_is_refused(store: Store, tmp_path: Path) -> None:
    groups = [LayerGroup(layers="encoder", until_epoch=1), LayerGroup(layers="head", until_epoch=1)]
    with pytest.raises(ValueError, match="no layer learns in epoch 2"):
        train(store, tmp_path, SETTINGS.model_copy(update={"groups": groups}))
    with pytest.raises(ValueError, match="until_epoch 1 is before from_epoch 2"):
        LayerGroup(layers="head", from_epoch=2, until_epoch=1)


def test_a_damaged_state_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, every_s=0, steps=2)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read .*; delete it to train from the start"):
        train(store, tmp_path)


@pytest.mark.parametrize("interrupted_at", [None, 3, 4])
def test_tensorboard_holds_the_epochs(store: Store, tmp_path: Path, interrupted_at: int | None) -> None:
    if interrupted_at:
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path, every_s=0, steps=interrupted_at)
    metrics, *_ = train(store, tmp_path)
    events = tensorboard(tmp_path)
    tags = ["accuracy/train", "accuracy/validation", "loss/train", "loss/validation"]
    assert sorted(events.Tags()["scalars"]) == tags
    for tag in events.Tags()["scalars"]:
        name, split = tag.split("/")
        of_split = metrics[metrics["split"] == split]
        for scalar, (step, rows) in zip(events.Scalars(tag), of_split.groupby("step"), strict=True):
            assert scalar.step == step
            values = rows["loss" if name == "loss" else "score"]
            assert scalar.value == pytest.approx(np.average(values, weights=rows["n"]), rel=1e-6)


def test_says_how_far_it_is(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, every_s=0, steps=4)
    first = capsys.readouterr().out
    assert first.startswith("run: epoch 1/2, loss ")
    assert first.endswith(" left\n")
    train(store, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: going on at step 4 of 6"
    assert lines[1].startswith("run: epoch 2/2, loss ")
    assert len(lines) == 2
