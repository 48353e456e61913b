"""Sentences and tables about time, space and money say the numbers of the tables that they are made from."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.io.formats.style import Styler

from deeplight_core.config import Profile
from deeplight_core.models.deeplight import Layer
from deeplight_core.report import costs, findings

PASSES = pd.DataFrame(
    {"trainings": [1, 4], "epochs of each": [2, 3], "volumes per epoch": [100, 60_000],
     "volumes trained on": [200, 400], "volumes validated on": [40, 1000]},
    index=["pre-training", "sweep"],
)  # fmt: skip
SUBJECT = pd.DataFrame(
    {"used for": ["pre-training", "pre-training", "fine-tuning"], "states": [2, 3, 4], "acquired": [4000, 200, 300],
     "kept": [1000, 50, 150]},
    index=pd.Index(["A", "B", "C"], name="task"),
)  # fmt: skip
RATES = pd.DataFrame(
    {"device": ["slow", "fast"], "kind": "cpu", "precision": ["32-true", "bf16-mixed"], "training": [10.0, 100.0],
     "decoding": [20.0, 200.0], "flops_per_s": [1e12, 3.5e12], "copy_bytes_per_s": 2e9, "load": [0.5, 1.5],
     "date": "2026-01-02"}
)  # fmt: skip
HOURS = pd.DataFrame(
    [("slow", "32-true", "pre-training", 1000.0, 400.0), ("slow", "32-true", "sweep", 4000.0, 400.0),
     ("fast", "bf16-mixed", "pre-training", 60.0, 10.0), ("fast", "bf16-mixed", "sweep", 180.0, 30.0)],
    columns=["device", "precision", "part", "hours", "bound_hours"],
)  # fmt: skip
STEPS = pd.DataFrame(
    [("A", 8, 24, "plain", 6.0, 3.0, (7, 8, 9)), ("A", 8, 24, "keras", 3.0, 1.5, (7, 8, 9)),
     ("A", 8, 24, "ours", 2.0, 0.5, (7, 8, 9)), ("A", 2, 4, "ours", 80.0, 20.0, costs.GRID)],
    columns=["device", "mm", "batch", "way", "training", "decoding", "shape"],
)  # fmt: skip
ASSUMED = costs.Assumed(6000, 3, 2.5, 5e-5, {"a wire": 1.25}, (1, 8), 40_000)


def cells(table: Styler | None) -> list[list[str]]:
    """What a table shows, row by row; the first row is its header."""
    assert table is not None
    text = re.sub(r"<style.*?</style>", "", table.to_html(), flags=re.DOTALL)
    assert 'class="wrapped"' in text
    rows = re.findall(r"<tr>(.*?)</tr>", text, flags=re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]


# ---- the full run


def test_volumes_of_a_subject() -> None:
    assert cells(findings.subject_table(SUBJECT))[:2] == [
        ["task", "used for", "states", "acquired", "kept", "share kept"],
        ["A", "pre-training", "2", "4000", "1000", "25%"],
    ]
    assert findings.subject_note(SUBJECT) == (
        "A subject gives 1,050 volumes for pre-training and 150 for fine-tuning, of 4,500 acquired."
    )


def test_passes_name_steps_and_sizes() -> None:
    assert cells(findings.passes_table(PASSES))[2] == ["sweep", "4", "3", "60,000", "400", "1,000"]
    note = findings.passes_note(PASSES, Profile(), [3, 300, 3, 15])
    assert "takes 10 steps of 24 volumes" in note  # two epochs of five batches
    assert "has 4 trainings, on 3, 15 or 300 subjects, and validates on 2.5 times as many" in note


def test_storage_is_in_gigabytes() -> None:
    amounts = {"raw": 5e12, "store": 4e11, "pre-training": 3e11, "linear": 2e11, "training": 4e9, "validation": 3.21e9}
    table = cells(findings.storage_table(amounts, Profile()))
    assert table[1] == ["disk: raw 4-D NIfTI, uncompressed", "5,000.0"]
    assert table[5] == ["device memory: feature maps of a training step (24 volumes)", "4.0"]
    assert table[6][1] == "3.2"
    assert f"({costs.evaluation_batch()} volumes)" in table[6][0]
    assert "holds 1,234 of the grid's 902,629 voxels" in findings.storage_note(1234)


def test_preparing_is_compared_with_nilearn() -> None:
    columns = ["device", "path", "seconds", "peak_gb", "all_hours"]
    table = cells(findings.preparing_table(pd.DataFrame([["A", "ours", 3.68, 0.57, 3.9]], columns=columns)))
    assert table[1] == ["A", "this package", "3.7", "0.6", "3.9"]
    note = findings.preparing_note(
        [{"device": "A", "times_as_fast": 14.73, "largest_difference_before_float16": 6.9e-5}]
    )
    assert note.startswith("On A this package is 14.7 times as fast as nilearn")
    assert note.endswith("by at most 7e-05.")
    assert findings.preparing_note([]) == ""


def test_betas_are_so_many_times_as_fast() -> None:
    result = {"device": "A", "trials": 60, "frames": 300, "n_voxels": 29478}
    result |= {"times_as_fast": 36.7, "largest_difference": 2.4e-7}
    note = findings.betas_speed([result])
    assert note.startswith("On A, the betas of 60 trials of a run of 300 volumes (29,478 voxels) are ready 37 times as")
    assert note.endswith("by at most 2e-07, in units of their noise.")
    assert findings.betas_speed([]) == ""


def test_processes_are_counted_with_their_efficiency() -> None:
    packed = {"efficiency_without_startup": 0.5, "with_one": {"cores_busy": 1.32}}
    note = findings.processes_note(
        [
            {
                "device": "A",
                "processes": {"jobs": 3, "nii": {"efficiency_without_startup": 0.9}, "nii.gz": packed},
                "many_runs": {"most_over_fewest": {"runs": 16.0, "worker_peak_mb": 1.01, "parent_peak_mb": 1.1}},
            }
        ]
    )
    assert "3 processes prepare uncompressed files 2.70 times as fast as one, and compressed files 1.50 times" in note
    assert "keeps 1.32 cores busy" in note
    assert "With 16 times as many runs, the peak memory of a worker is 1.01 times as high" in note
    assert "index 1.10 times." in note


@pytest.mark.parametrize(("warm", "faster"), [(0.5, True), (1.5, False)])
def test_reading_says_when_a_memory_map_is_faster(warm: float, faster: bool) -> None:
    rounding = [{"rounding_rms": 0.01, "rounding_largest": 0.02}, {"rounding_rms": 0.014, "rounding_largest": 0.019}]
    result = {
        "device": "A", "threads": 1,
        "formats": {"float16": {"times_smaller_than_tfrecords": 7.59, "bytes": 200}, "int8": {"bytes": 102}},
        "float16_times_as_fast_as": {"npy": {"random": {"warm": warm}}},
    }  # fmt: skip
    result["formats"]["int8"]["rounding"] = rounding
    note = findings.reading_note(result)
    assert "takes 7.6 times less space" in note
    assert "int8 takes 51% of that" in note
    assert "by 0.014 (root mean square) and by 0.020 at most" in note
    assert ("a memory map of float32 is 2.0 times as fast" in note) == faster
    table = pd.DataFrame({"format": ["npy"], "bytes_per_voxel": [4.0], "random, cold": [1234.5]})
    assert cells(findings.reading_table(table))[1] == ["float32 .npy, memory-mapped", "4.00", "1,234"]


def test_arithmetic_names_the_largest_layer() -> None:
    layers = [Layer("a", "convolution", (9, 16, 7, 8), 1000, 3 * 10**9), Layer("b", "linear", (4,), 234, 10**9)]
    note = findings.arithmetic_note(layers, PASSES)
    assert note.startswith("Decoding a volume takes 4.0 GFLOP, training on it 12.0 GFLOP.")
    assert "75% of that: `a`, which works on 7 × 8 voxels per slice" in note
    assert "a decoder of 1,234 parameters" in note
    huge = [layer._replace(flops=layer.flops * 10**7) for layer in layers]
    assert f"takes {(600 * 3 + 1040) * 0.04:.1f} EFLOP" in findings.arithmetic_note(huge, PASSES)


def test_rates_say_what_is_missing_and_what_was_busy() -> None:
    assert cells(findings.measured_table(RATES))[2] == [
        "fast", "bf16-mixed", "100.00", "200.00", "3.50", "2.00", "1.50", "2026-01-02",
    ]  # fmt: skip
    note = findings.measured_note(RATES)
    assert "**No GPU has been measured**: `python benchmarks/training.py --device cuda`" in note
    assert "while fast was measured" in note
    both = findings.measured_note(pd.concat([RATES.head(1), RATES.head(1).assign(kind="cuda", load=9)]))
    assert both.startswith("Rates are medians")
    assert findings.measured_note(RATES[:0]).count("has been measured") == 2
    assert findings.measured_table(RATES[:0]) is None


def test_hours_add_up() -> None:
    rows = cells(findings.hours_table(HOURS))
    assert rows[0] == ["device", "precision", "pre-training", "sweep", "all", "all (days)", "least by arithmetic"]
    assert ["slow", "32-true", "1,000", "4,000", "5,000", "208", "800"] in rows
    short = HOURS.assign(hours=HOURS["hours"] / 1000)
    assert ["fast", "bf16-mixed", "0.06", "0.18", "0.24", "0.01", "40"] in cells(findings.hours_table(short))
    assert findings.hours_table(HOURS[:0]) is None


def test_hours_of_the_fastest_device() -> None:
    note = findings.hours_note(HOURS, RATES, PASSES, Profile())
    assert note.startswith("The fastest is fast in `bf16-mixed`: 240 hours (10.0 days) for everything")
    assert "most of them for *sweep* (75%). That is 6.0 times" in note
    scaled = PASSES.assign(**{"volumes per epoch": [100, 60_000_000]})
    assert "on all subjects, 500 hours. The paper's profile" in findings.hours_note(HOURS, RATES, scaled, Profile())
    assert findings.hours_note(HOURS[:0], RATES, PASSES, Profile()) == ""


def test_controls_are_compared_with_the_run() -> None:
    note = findings.controls_cost(costs.Controls(10, 87, 24, 390_000_000), PASSES * 10**5)
    assert "add 10 pre-trainings, 87 fine-tunings and 24 linear models: 390 million volumes" in note
    assert "6.5 times those of the run above" in note


# ---- speed


def test_what_has_not_been_measured_says_how() -> None:
    gpu: list[dict[str, Any]] = [{"kind": "cuda"}]
    assert findings.not_measured({"training": gpu, "loader": gpu}) == ""
    note = findings.not_measured({"training": [{"kind": "cpu"}], "loader": []})
    assert "**Not measured:** run `python benchmarks/loader.py`." in note
    assert "**No training step has been measured on a GPU.**" in note


def test_training_speed_has_a_line_per_grid() -> None:
    first, second = findings.training_speed(STEPS).split("\n")
    assert first == (
        "- At 8 mm on A, one process of this package trains on 500 volumes per second: 3.0 times as many as *plain "
        "PyTorch loop*, 1.5 times as many as *Keras on TensorFlow*."
    )
    assert second == "- At 2 mm on A, one process of this package trains on 12 volumes per second."
    assert findings.training_speed(STEPS[:0]) == ""


def test_decoding_is_compared_with_training() -> None:
    assert findings.decoding_speed(STEPS).endswith("this package decodes 4.0 at 8 mm, 4.0 at 2 mm on A.")
    assert findings.decoding_speed(STEPS[:0]) == ""


def test_limits_are_shares() -> None:
    row = {"device": "A", "mm": 8, "batch": 24, "flops": 4.8e8, "training": 2.0, "arithmetic_ms": 0.6,
           "copying_ms": 0.17, "of_limit": 0.3, "idle": -0.02, "load": 0.62, "way": "ours"}  # fmt: skip
    table = cells(findings.limits_table(pd.DataFrame([row])))
    assert table[1] == ["A", "8", "24", "0.48", "2.00", "0.60", "0.17", "30%", "-2.0%", "0.6"]


def test_the_same_learning_is_a_gap_between_means_beside_that_of_two_seeds() -> None:
    curves = {"32-true": [[2.0, 1.0], [3.0, 1.4]], "bf16-mixed": [[2.0, 1.0], [2.0, 1.2]]}
    note = findings.same_learning([{"device": "A", "curves": curves}, {"device": "B", "curves": {}}])
    assert "means over 2 seeds differ by 0.300 on average and by 0.500 at most" in note
    assert "two seeds in float32 differ by 0.700 on average" in note
    assert "The last value is 1.200 in float32 and 1.100 in bfloat16; guessing gives 2.773." in note
    assert "B" not in note.replace("By", "")


def test_loading_stands_beside_what_training_asks_for() -> None:
    result = {
        "device": "A", "kind": "cpu", "bytes_per_volume": 500_000, "volumes": 600,
        "volumes_per_s": {
            "memory": {"warm": 1863.0, "held_mb": 280.0}, "single": {"cold": 1.0, "held_mb": 175.0},
            "by_run": {"cold": 1468.0, "held_mb": 0.1},
        },
    }  # fmt: skip
    note = findings.loading_speed([result], STEPS)
    assert "1,863 volumes per second from memory and 1,468 (0.7 GB/s) run by run" in note
    assert "training on the same grid needs 12." in note
    assert "the 300 MB of the store take 280 MB; streamed, they take 175 MB at most" in note
    assert "training on the same grid" not in findings.loading_speed([result], STEPS[:3])
    assert "the 300 MB of the store take memory of the GPU; streamed" in findings.loading_speed(
        [result | {"kind": "cuda"}], STEPS
    )


def test_the_sweep_is_in_minutes() -> None:
    result = {"device": "A", "cores": 2, "trainings": 14, "volumes_trained_on": 165_888, "volumes_decoded": 161_280,
              "ours_s": 252.0, "plain_s": 852.0, "times_as_fast": 3.38}  # fmt: skip
    note = findings.sweep_speed([result])
    assert "On A with 2 cores, 14 fine-tunings (165,888 volumes trained on, 161,280 decoded) take 4.2 minutes" in note
    assert "needs 14.2 minutes, **3.4 times** as long." in note


# ---- more GPUs, more subjects


def test_what_is_assumed_is_shown() -> None:
    table = dict(cells(findings.assumed_table(ASSUMED))[1:])
    assert table["GB/s over a wire"] == "1.25"
    assert table["least microseconds of an exchange between GPUs"] == "50"
    assert table["subjects of a larger study"] == "40,000"
    assert len(table) == 6


def test_a_rate_is_measured_or_assumed() -> None:
    assert findings.gpu_note("H", 5000) == "The rate is the one measured on H: 5,000 volumes per second."
    assert findings.gpu_note("", 6000).startswith("**No GPU has been measured.** The hours below assume 6,000 volumes")


def test_more_gpus_gain_time_and_cost_money() -> None:
    hours = pd.DataFrame(
        {"n_gpus": [1, 8, 64], "pre-training": [1.0, 0.2, 0.1], "sweep": [3.0, 0.6, 0.4], "divided": [3.0, 0.5, 0.05],
         "all": [4.0, 0.8, 0.5], "dollars": [12.0, 19.2, 96.0]}
    )  # fmt: skip
    assert cells(findings.many_gpus_table(hours))[2] == ["8", "0.20", "0.60", "0.50", "0.80", "19"]
    note = findings.many_gpus_note(hours, [1440.0, 36.0], batch=24)
    assert note.startswith(
        "Compared with 1 GPU, the whole run is faster: with 8 GPUs 5.0 times, with 64 GPUs 8.0 times. The last costs "
        "8.0 times as much."
    )
    assert "has 2 trainings, and the longest, on all subjects, takes 0.40 hours by itself" in note
    assert "a GPU with 3 volumes at a time" in note
    assert findings.many_gpus_note(hours[:1], [1440.0], batch=24) == ""


def test_the_network_is_the_limit_where_it_takes_more_than_half() -> None:
    table = pd.DataFrame(
        {"network": ["wire", "radio"], "gb_per_s": [25.0, 1.25], "exchange_s": [2e-4, 3.4e-3], "share": [0.3, 0.87],
         "n_until_half": [17, 2]}
    )  # fmt: skip
    assert cells(findings.exchanges_table(table))[2] == ["radio", "1.25", "3,400", "87%", "2"]
    note = findings.exchanges_note(table, 600_000, batch=24, rate=6000)
    assert "600,000 parameters, so a step exchanges 2.4 MB of gradients; one GPU takes 250 steps per second." in note
    assert note.endswith("over radio: there the network is the limit.")
    assert findings.exchanges_note(table[:1], 1, 24, 1).endswith("none of these networks is the limit.")


def test_a_disk_feeds_a_part_of_a_gpu() -> None:
    table = pd.DataFrame(
        {"n_gpus": [1, 8, 0], "device": ["", "", "A"], "way": ["", "", "by_run"], "volumes_per_s": [6000, 48_000, 1500],
         "gb_per_s": [2.8, 22.6, 0.7]}
    )  # fmt: skip
    rows = cells(findings.feeding_table(table))
    assert [row[0] for row in rows[1:]] == [
        "needed by 1 GPU", "needed by 8 GPUs", "delivered by the cold disk of A, one core: run by run",
    ]  # fmt: skip
    assert rows[2][1:] == ["48,000", "22.6"]
    note = findings.feeding_note(table, PASSES, volume_bytes=10**6)
    assert note.startswith("The fastest measured disk delivers 0.2 times what one GPU needs.")
    assert "target task take 60 GB" in note
    assert findings.feeding_note(table[:2], PASSES, 10**6).startswith("If a disk delivers less")


def test_growth_has_a_column_per_study() -> None:
    columns = ["volumes", "store_bytes", "index_bytes", "check_hours", "prepare_hours", "pass_hours", "order_bytes"]
    growth = pd.DataFrame([[2e6, 3e12, 4e9, 5, np.nan, 6, 7e9]], columns=columns, index=[40_000])
    rows = cells(findings.growth_table(growth))
    assert rows[0][1] == "40,000 subjects"
    assert [row[1] for row in rows[1:]] == ["2.0", "3.0", "4.0", "5.0", "nan", "6.0", "7.0"]
