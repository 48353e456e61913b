import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_throughput_measures_a_tiny_grid(tmp_path: Path) -> None:
    tiny = ["--shape", "7", "8", "9", "--repeats", "1", "--threads", "1", "--matmul", "32", "--copy-mib", "1"]
    command = [sys.executable, BENCHMARKS / "throughput.py", *tiny, "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.match("throughput-*.json")
    assert (result["shape"], result["batch_size"], result["threads"]) == ([7, 8, 9], 2, 1)
    assert len(result["load_average"]) == 3
    rates = [rate for of_precision in result["volumes_per_s"].values() for rate in of_precision.values()]
    rates += [*result["matmul_flops_per_s"].values(), result["copy_bytes_per_s"]]
    assert len(rates) == 7
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("throughput-*.json")), ids=lambda p: p.stem)
def test_committed_results_are_of_the_full_grid(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["shape"] == [91, 109, 91]
    assert result["kind"] in ("cpu", "cuda")


def test_preparing_is_compared_with_nilearn_on_a_small_run(tmp_path: Path) -> None:
    small = ["--resolution", "10", "--frames", "60", "--longer", "70"]
    command = [sys.executable, BENCHMARKS / "prepare.py", *small, "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.match("prepare-*.json")
    assert result["largest_difference_before_float16"] < 1e-4
    peer, ours = (result["runs"][0][who] for who in ("nilearn", "ours"))
    assert result["times_as_fast"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert [run["frames"] for run in result["runs"]] == [60, 70]
    assert all(use["peak_mb"] > 50 for use in (peer, ours, result["runs"][1]["ours"]))
