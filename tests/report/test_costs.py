"""The arithmetic of the full run, by hand on small tables, and with the paper's own numbers."""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deeplight_core.config import Profile, load_profile
from deeplight_core.models.deeplight import DeepLight
from deeplight_core.report import costs, findings, paper

N_TRAIN = 20
PASSES = pd.DataFrame(
    {"trainings": [1, 4], "epochs of each": [2, 3], "volumes per epoch": [100, 60], "volumes trained on": [200, 432],
     "volumes validated on": [40, 96]},
    index=["pre-training", "sweep"],
)  # fmt: skip
"""Twenty subjects with five volumes for pre-training and three for the sweep, whose trainings get `SIZES` subjects."""
SIZES = [4, 20, 4, 20]
ASSUMED = costs.Assumed(
    volumes_per_s=10,
    decoding_times_training=4,
    dollars_per_gpu_hour=5,
    latency_s=0.25,
    networks_gb_per_s={"fast": 1.0, "slow": 0.001},
    n_gpus=(1, 2, 8),
    n_subjects=7,
)


def training_result(**changed: Any) -> dict[str, Any]:
    """A result of `benchmarks/training.py` on two grids."""
    ways = {
        "ours": {"training_ms_per_volume": [2.0, 4.0, 90.0], "inference_ms_per_volume": [1.0, 3.0, 2.0]},
        "plain": {"training_ms_per_volume": [10.0], "inference_ms_per_volume": [5.0]},
        "ours-float32": {"training_ms_per_volume": [5.0], "inference_ms_per_volume": [4.0]},
    }
    small = {"shape": [7, 8, 9], "mm": 9, "batch_size": 24, "ways": {"ours": ways["ours"]}, "idle": 0.1}
    full = {"shape": list(costs.GRID), "mm": 2, "batch_size": 4, "ways": ways, "idle": 0.0}
    return {
        "device": "A", "kind": "cpu", "cores": 2, "threads": 3, "date": "2026-01-02", "load_average": [0.5, 1, 1],
        "grids": [{**small, "flops_per_volume": 3e6}, {**full, "flops_per_volume": 8e9}],
        "matmul_flops_per_s": {"float32": 2e11, "bfloat16": 4e12}, "copy_bytes_per_s": 1e10, **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Profile:
    return load_profile("paper")


@pytest.fixture(scope="module")
def subject(recipe: Profile) -> pd.DataFrame:
    return costs.per_subject(recipe, pd.Series({task: 10 * i for i, task in enumerate(recipe.data.tasks(), 1)}))


@pytest.fixture
def steps() -> pd.DataFrame:
    return costs.step_times([training_result()])


def test_results_are_found_by_their_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("loader-b", "loader-a", "store-a"):
        (tmp_path / f"benchmarks/results/{name}.json").write_text(f'{{"device": "{name}"}}')
    monkeypatch.chdir(tmp_path)
    assert [result["device"] for result in costs.measured("loader")] == ["loader-a", "loader-b"]
    assert costs.measured("sweep") == []


def test_operations_are_those_that_torch_counts(recipe: Profile) -> None:
    """PyTorch's own counter on the convolutions and the output layer; of the LSTM it knows nothing."""
    layers = costs.decoder_layers(recipe)
    model = DeepLight(costs.GRID, 16).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = torch.empty(91, 1, 109, 91, device="meta")
        model.encoder.convolutions(maps)
    counted = sum(layer.flops for layer in layers if layer.kind == "convolution")
    assert counted == counter.get_total_flops()
    assert costs.volume_flops(layers) == (sum(x.flops for x in layers), 3 * sum(x.flops for x in layers))
    decoding = costs.volume_flops(layers)[0]
    assert costs.total_flops(layers, PASSES) == (3 * (200 + 432) + 40 + 96) * decoding


def test_a_subject_gives_two_runs_of_each_task(subject: pd.DataFrame) -> None:
    assert subject.loc["WM"].tolist() == ["fine-tuning", 4, 810, 70]
    assert subject.loc["MOTOR"].tolist() == ["pre-training", 5, 568, 20]
    assert (subject["used for"] == "pre-training").sum() == 6
    assert subject["states"].sum() == 20


def test_sweep_and_controls_are_counted(recipe: Profile, subject: pd.DataFrame) -> None:
    assert costs.sweep_subjects(recipe, 300) == 2 * [3, 15, 30, 60, 120, 180, 300]
    assert costs.pretraining_steps(PASSES, 24) == 2 * 5  # the last of five batches holds four volumes
    small = recipe.model_copy(
        update={"controls": recipe.controls.model_copy(
            update={"baselines": ["linear"], "initialisation": [], "permutation": [], "fractions": [0.1], "seeds": [2]}
        )}
    )  # fmt: skip
    counted = costs.controls(small, subject, N_TRAIN)
    assert counted.n_linear == 7  # a fraction each
    longer = 2 * (7 + 1)  # three times the steps at each fraction, and at one of them with a constant learning rate
    assert counted.n_finetunings == 2 * (6 + 1) + longer  # six other tasks as the target, and another seed
    assert counted.n_pretrainings == 6 + 1
    kept, drawn = subject["kept"], 1 + 1 + 2 + 4 + 8 + 12 + 20
    finetuned = 2 * 50 * 2 * kept.sum() + 2 * 150 * (drawn + 2) * kept["WM"]  # two of twenty subjects are 10%
    pretrained = 40 * 20 * (7 * kept.sum() - kept.sum())
    assert counted.n_volumes == finetuned + pretrained


def test_bytes_of_the_full_run(recipe: Profile, subject: pd.DataFrame) -> None:
    kept = subject["kept"]
    amounts = costs.storage(recipe, subject, N_TRAIN, n_voxels=11)
    assert amounts["raw"] == 120 * 3880 * 91 * 109 * 91 * 4
    assert amounts["store"] == 120 * kept.sum() * 11 * 2
    assert amounts["pre-training"] == 120 * kept.drop("WM").sum() * 11 * 2
    assert amounts["linear"] == (2 * 20 + 100) * kept["WM"] * 11 * 4
    first = 91 * 109 * 91 * 16  # values of a map at full resolution
    assert 24 * 4 * 4 * first > amounts["training"] > 24 * 2 * 4 * first
    assert amounts["validation"] == costs.evaluation_batch() * 2 * 4 * first


def test_a_stored_volume_is_the_brain_in_16_bits() -> None:
    n = costs.n_brain_voxels()
    assert costs.volume_bytes() == 2 * n
    assert 0.2 < n / math.prod(costs.GRID) < 0.3


def test_preparing_and_reading_are_tables_of_their_results() -> None:
    first = {"frames": 10, "nilearn": {"seconds": 36.0, "peak_mb": 500}, "ours": {"seconds": 3.6, "peak_mb": 100}}
    prepared = [{"device": "A", "runs": [first, {"frames": 20, "ours": {"seconds": 1, "peak_mb": 1}}]}]
    table = costs.preparing(prepared, n_frames=1000)
    assert table.to_numpy().tolist() == [["A", "nilearn", 36, 0.5, 1], ["A", "ours", 3.6, 0.1, pytest.approx(0.1)]]
    rates = {"cold": {"volumes_per_s": 7}, "warm": {"volumes_per_s": 8}}
    read = costs.reading({"formats": {"npy": {"bytes_per_voxel": 4.0, "random": rates, "sequential": rates}}})
    assert read.to_numpy().tolist() == [["npy", 4.0, 7, 8, 7, 8]]
    assert read.columns[2:].tolist() == ["random, cold", "random, warm", "sequential, cold", "sequential, warm"]
    assert costs.preparing([], 1).empty


def test_steps_take_the_median_and_are_compared_with_the_plain_loop(steps: pd.DataFrame) -> None:
    full = steps[steps["mm"] == 2].set_index("way")
    assert full["training"].to_dict() == {"ours": 4, "plain": 10, "ours-float32": 5}
    assert full["training_times"].to_dict() == {"ours": 2.5, "plain": 1, "ours-float32": 2}
    assert full["decoding_times"].to_dict() == {"ours": 2.5, "plain": 1, "ours-float32": 1.25}
    assert np.isnan(steps.loc[steps["mm"] == 9, "training_times"]).all()
    assert costs.step_times([]).columns.tolist() == steps.columns.tolist()


def test_the_limit_is_arithmetic_or_copying_whichever_takes_longer(steps: pd.DataFrame) -> None:
    small, full = costs.limits(steps).to_dict("records")
    maps = [16 * 7 * 8] * 2 + [16 * 4 * 4] * 2 + [32 * 2 * 2] * 2 + [32 + 32, *4 * [64]]  # y and x of every slice
    assert small["copying_ms"] == pytest.approx(9 * sum(maps) * 10 / 1e10 * 1e3)
    assert small["of_limit"] == pytest.approx(small["copying_ms"] / 4)
    assert full["arithmetic_ms"] == 2
    assert full["of_limit"] == pytest.approx(full["copying_ms"] / 4)
    fast = costs.limits(steps.assign(copy_bytes_per_s=1e20)).iloc[-1]
    assert fast["of_limit"] == 0.5
    assert costs.limits(costs.step_times([])).empty


def test_loading_is_compared_with_a_file_per_volume() -> None:
    speed = {"memory": {"warm": 30.0}, "npy": {"cold": 2.0, "warm": 10.0}, "by_run": {"cold": 8.0, "warm": 5.0}}
    table = costs.loading([{"device": "A", "volumes_per_s": speed}]).set_index(["cache", "way"])["times"]
    assert table.to_dict() == {
        ("cold", "npy"): 1, ("cold", "by_run"): 4, ("warm", "memory"): 3, ("warm", "npy"): 1, ("warm", "by_run"): 0.5,
    }  # fmt: skip


def test_rates_and_hours_are_of_the_full_grid(recipe: Profile, steps: pd.DataFrame) -> None:
    rates = costs.rates(steps, recipe)
    assert rates["device"].tolist() == ["A, 3 threads"] * 2
    assert rates["precision"].tolist() == ["32-true", "bf16-mixed"]
    assert rates["training"].tolist() == [200, 250]
    assert rates["decoding"].tolist() == [250, 500]
    assert rates["flops_per_s"].tolist() == [2e11, 4e12]
    layers = [SimpleNamespace(flops=1e12)]
    hours = costs.device_hours(rates, PASSES, layers).set_index(["precision", "part"])
    assert hours.loc[("32-true", "pre-training"), "hours"] == pytest.approx(200 / 200 / 3600)
    assert hours.loc[("bf16-mixed", "sweep"), "hours"] == pytest.approx(432 / 250 / 3600)
    assert hours.loc[("bf16-mixed", "validation"), "hours"] == pytest.approx(136 / 500 / 3600)
    assert hours.loc[("32-true", "validation"), "bound_hours"] == pytest.approx(136 * 5 / 3600)
    assert hours.loc[("bf16-mixed", "sweep"), "bound_hours"] == pytest.approx(432 * 0.75 / 3600)
    chain = costs.chain_hours(rates, PASSES)  # 180 volumes in the largest fine-tuning, 24 to validate it
    assert chain.tolist() == pytest.approx([(380 / 200 + 64 / 250) / 3600, (380 / 250 + 64 / 500) / 3600])
    none = costs.rates(costs.step_times([]), recipe)
    assert costs.device_hours(none, PASSES, layers).empty


def test_a_batch_larger_than_the_recipes_gives_no_rate(recipe: Profile) -> None:
    result = training_result(kind="cuda")
    result["grids"][1]["batch_size"] = 96
    assert costs.rates(costs.step_times([result]), recipe).empty


def test_a_gpus_rate_is_its_fastest_on_the_full_grid_or_assumed(steps: pd.DataFrame) -> None:
    assert costs.gpu_rate(steps, ASSUMED) == ("", 10)
    gpu = costs.step_times([training_result(), training_result(kind="cuda", device="G")])
    assert costs.gpu_rate(gpu, ASSUMED) == ("G", 250)


def test_the_sweeps_trainings_last_as_long_as_their_volumes(recipe: Profile) -> None:
    seconds = costs.sweep_seconds(PASSES, SIZES, rate=10, assumed=ASSUMED)
    assert seconds == pytest.approx([(n * 3 * 3 + 24 / 4) / 10 for n in (20, 20, 4, 4)])
    passes = paper.full_run(recipe)
    subjects = costs.sweep_subjects(recipe, paper.N_TRAIN)
    all_of_it = passes.loc["sweep", "volumes trained on"] + passes.loc["sweep", "volumes validated on"] / 4
    assert sum(costs.sweep_seconds(passes, subjects, 100, ASSUMED)) == pytest.approx(all_of_it / 100)


def test_more_gpus_share_batches_and_trainings() -> None:
    hours = costs.many_gpus(PASSES, [9.0, 6.0, 5.0], batch=4, rate=10, n_parameters=10**6, assumed=ASSUMED) * 3600
    one, two, eight = hours.to_dict("records")
    assert one["pre-training"] == pytest.approx(50 * 4 / 10 + 40 / 10 / 4)
    assert one["sweep"] == one["divided"] == pytest.approx(20)
    exchange = 0.25 + 2 * 1 / 2 * 4e6 / 1e9
    assert two["pre-training"] == pytest.approx(50 * (2 / 10 + exchange) + 40 / 10 / 4 / 2)
    assert two["sweep"] == pytest.approx(11)  # 9 beside 6 and 5
    assert two["divided"] == pytest.approx(10)
    exchange = 0.25 + 2 * 3 / 4 * 4e6 / 1e9  # no more than four work on a batch of four
    assert eight["pre-training"] == pytest.approx(50 * (1 / 10 + exchange) + 40 / 10 / 4 / 8)
    assert eight["sweep"] == pytest.approx(9)
    assert eight["all"] == pytest.approx(eight["pre-training"] + 9)
    assert eight["dollars"] == pytest.approx(eight["all"] * 8 * 5)


def test_exchanges_take_their_share_of_a_step() -> None:
    fast, slow = costs.exchanges(4, 2.0, 10**6, ASSUMED, n_gpus=4).to_dict("records")
    assert fast["exchange_s"] == pytest.approx(0.25 + 1.5 * 0.004)
    assert fast["share"] == pytest.approx(0.256 / (0.256 + 0.5))
    assert fast["n_until_half"] == 4
    assert slow["exchange_s"] == pytest.approx(0.25 + 1.5 * 4)
    assert slow["n_until_half"] == 1  # two exchange for 4.25 s what they compute in one


def test_what_gpus_ask_for_stands_beside_what_disks_give() -> None:
    speed = {"by_run": {"cold": 50.0}, "single": {"cold": 20.0}}
    table = costs.feeding([{"device": "A", "volumes_per_s": speed}], (1, 8), rate=100.0, volume_bytes=10**7)
    assert table["volumes_per_s"].tolist() == [100, 800, 50, 20]
    assert table["gb_per_s"].tolist() == pytest.approx([1, 8, 0.5, 0.2])
    assert table["way"].tolist() == ["", "", "by_run", "single"]


def test_what_grows_with_subjects_grows_in_proportion(subject: pd.DataFrame) -> None:
    prepared = [{"runs": [{"frames": 10, "ours": {"seconds": 5.0}}]}]
    table = costs.growth((1, 4), subject, 1000, 50, rate=2.0, hash_rate=100.0, prepared=prepared)
    assert table.loc[1, "volumes"] == 280
    assert table.loc[1, "store_bytes"] == 280_000
    assert table.loc[1, "index_bytes"] == 14_000
    assert table.loc[1, "order_bytes"] == 280 * 8
    assert table.loc[1, "check_hours"] == pytest.approx(2800 / 3600)
    assert table.loc[1, "prepare_hours"] == pytest.approx(3880 / 2 / 3600)
    assert table.loc[1, "pass_hours"] == pytest.approx(140 / 3600)
    assert (table.loc[4] / table.loc[1]).tolist() == pytest.approx([4] * 7)
    assert costs.growth((1,), subject, 1000, 50, 2.0, 100.0, [])["prepare_hours"].isna().all()


def test_a_rows_bytes_are_those_of_the_whole_index() -> None:
    index = pd.DataFrame({"frame": np.arange(1000), "onset_s": np.zeros(1000)}, index=pd.Index(np.arange(1000)))
    assert costs.index_row_bytes(index) == 24


def test_hashing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    sha256 = hashlib.sha256
    monkeypatch.setattr(costs.hashlib, "sha256", lambda block: hashed.append(len(block)) or sha256(block))
    assert costs.hashing_rate() == 2**26 / 2
    assert hashed == [2**26]


def test_ways_to_pre_train_cost_what_their_settings_say(recipe: Profile) -> None:
    own, subject = load_profile("comparison-paper"), costs.per_subject(recipe, paper.label_rule(recipe.preprocessing))
    found = costs.ways(own, subject, 300).set_index("variant")
    seen = found["pretraining_volumes"] / found["n_pretrainings"]
    by_hand = 40 * 300 * subject.loc[subject["used for"] == "pre-training", "kept"].sum()  # 40 passes, as in the paper
    assert set(seen.dropna().index) == {"pretrained", "reconstruction", "contrast"}
    assert seen.dropna().to_numpy() == pytest.approx(by_hand, rel=1e-3)
    assert (found["n_pretrainings"].sort_values() == [0, 0, 3, 3, 3]).all()
    assert found.loc["scratch", "pretraining_volumes"] == 0
    drawn = sum(round(300 * fraction) for fraction in own.sweep.fractions)
    assert found.loc["scratch", "finetuning_volumes"] == 3 * 50 * drawn * subject.loc["WM", "kept"]
    rates = pd.DataFrame({"device": ["A"], "precision": ["32-true"], "training": [found.sum()[1::2].sum() / 7200]})
    said = findings.ways_cost_note(found.reset_index(), rates)
    assert "take these hours: 2 on A (32-true)." in said
    assert findings.ways_cost_table(found.reset_index()).to_html().count("<tr") == 6
