import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> ModuleType:
    """A benchmark as a module that finds these options on its command line."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [name, *options])
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("training", ["--curve-steps", "5"], ["--curve-steps must be a multiple of 10"]),
        (
            "training",
            ["--batch", "4", "0", "--rounds", "0", "--keras-python", "nowhere/python"],
            ["--batch must be 1 or more, got 0", "--rounds must be 1", "--keras-python nowhere/python cannot be run"],
        ),
        ("loader", ["--repeats", "0"], ["--repeats must be 1 or more, got 0"]),
        (
            "store",
            ["--picks", "500", "--repeats", "0"],
            ["--picks 500 are more than the 400 volumes", "--repeats must"],
        ),
        ("prepare", ["--image", "nowhere.nii"], ["give --image and --mask together", "there is no file nowhere.nii"]),
        ("scaling", ["--jobs", "1", "--many", "3", "3"], ["--jobs must be 2 or more, got 1", "--many needs two"]),
        ("sweep", ["--steps", "0"], ["--steps must be 1 or more, got 0"]),
        ("autoencoder", ["--batch", "0"], ["--batch must be 1 or more, got 0"]),
        ("betas", ["--trials", "1", "--frames", "60"], ["--trials must be 2 or more, got 1"]),
        ("betas", ["--trials", "60", "--frames", "60"], ["--frames must leave 4 s for every trial"]),
        (
            "scan",
            ["--subjects", "2", "--runs", "0"],
            ["--subjects must be 3 or more, got 2", "--runs must be 1 or more"],
        ),
        ("contrast", ["--series", "1"], ["--series must be 2 or more, got 1"]),
        ("attribution", ["--rounds", "0"], ["--rounds must be 1 or more, got 0"]),
        ("images", ["--sizes", "64", "8"], ["--sizes must be 32 or more, got 8"]),
    ],
)
def test_wrong_options_are_one_message_before_anything_is_measured(
    name: str, options: list[str], messages: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = script(name, monkeypatch, *options)
    with pytest.raises(SystemExit):
        module._options()
    shown = capsys.readouterr().err
    assert all(message in shown for message in messages), shown


def test_measurements_are_kept_when_a_later_part_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the result of an earlier run with them; nothing is really measured here."""
    options = ["--sizes", "8", "6", "--batch", "4", "--output", str(tmp_path)]
    training = script("training", monkeypatch, *options)
    way = {"training_ms_per_volume": [2.0], "inference_ms_per_volume": [1.0]}
    ways = {"8mm": {"ways": {"ours": way}, "idle": 0.5}, "6mm": {"ways": {"ours": way}, "idle": 0.25}}
    monkeypatch.setattr(training, "make_data", lambda *_, **__: None)
    monkeypatch.setattr(training, "_ways", lambda options, folder, batch: ways[folder.name])
    monkeypatch.setattr(training, "_curves", lambda *_: {"32-true": [[1.0]]})
    for rate in ("matmul_rate", "copy_rate"):
        monkeypatch.setattr(training, rate, lambda *_: 1.0)
    training.main()
    (whole,) = tmp_path.iterdir()
    before = whole.read_bytes()
    assert whole.match("training-*.json")
    assert [grid["mm"] for grid in json.loads(before)["grids"]] == [8, 6]

    def interrupted(options: object, folder: Path, batch: int) -> object:
        if folder.name == "6mm":
            raise KeyboardInterrupt
        return ways[folder.name]

    monkeypatch.setattr(training, "_ways", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.main()
    assert whole.read_bytes() == before
    kept = json.loads(whole.with_name(f"{whole.name}.partial").read_text(encoding="utf-8"))
    assert [(grid["mm"], grid["idle"]) for grid in kept["grids"]] == [(8, 0.5)]
    assert kept["curves"] == {"32-true": [[1.0]]}
    monkeypatch.setattr(training, "_ways", lambda options, folder, batch: ways[folder.name])
    training.main()
    assert list(tmp_path.iterdir()) == [whole]


def test_a_folder_that_cannot_be_written_shows_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    training = script("training", monkeypatch, "--output", str(tmp_path / "file"))
    monkeypatch.setattr(training, "make_data", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(OSError, match="file"):
        training.main()


@pytest.mark.long
def test_training_is_compared_on_a_small_grid(tmp_path: Path) -> None:
    tiny = ["--sizes", "8", "--batch", "4", "--rounds", "1", "--steps", "3", "--warm-up", "1", "--curve-steps", "10"]
    tiny += ["--curve-seeds", "1", "--matmul", "32", "--copy", "1", "--threads", "2"]
    result = result_of("training", tiny, tmp_path)
    (grid,) = result["grids"]
    assert (grid["mm"], grid["shape"], grid["batch_size"]) == (8, [23, 28, 23], 4)
    ways = grid["ways"]
    assert set(ways) == {"plain", "obvious", "ours", "ours-float32", "ours-2"}
    for way in ways.values():
        assert len(way["training_ms_per_volume"]) == 3
        assert len(way["losses"]) == 4
        assert min([*way["training_ms_per_volume"], *way["inference_ms_per_volume"]]) > 0
        assert np.mean(way["losses"]) == pytest.approx(np.log(16), rel=0.1)  # untrained, over 16 states
    assert len({way["n_parameters"] for way in ways.values()}) == 1  # the same network
    np.testing.assert_allclose(ways["ours-2"]["losses"][0], ways["ours"]["losses"][0], rtol=0.1)
    assert result["curves"].keys() == {"32-true", "bf16-mixed"}
    assert all(len(of_seed) == 1 for of_precision in result["curves"].values() for of_seed in of_precision)
    assert all(rate > 0 for rate in [*result["matmul_flops_per_s"].values(), result["copy_bytes_per_s"]])


def test_operations_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    training = script("training", monkeypatch)
    assert training._flops((91, 109, 91)) == pytest.approx(28e9, rel=0.05)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("training-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_training_are_of_all_grids(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {grid["mm"] for grid in result["grids"]} == ({2} if result["kind"] == "cuda" else {8, 6, 2})
    assert result["rounds"] * result["steps"] >= 30
    assert result["load_average"][0] < 1.5
    if result["kind"] == "cpu":
        assert all("keras" in grid["ways"] for grid in result["grids"])


@pytest.mark.long
def test_loading_is_compared_on_a_small_grid(tmp_path: Path) -> None:
    result = result_of("loader", ["--size", "8", "--volumes", "200", "--repeats", "1"], tmp_path)
    rates = result["volumes_per_s"]
    assert set(rates) == {"memory", "single", "by_run", "npy", "npy_workers"}
    assert all(rate[state] > 0 for rate in rates.values() for state in rate if state != "held_mb")


@pytest.mark.long
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


def result_of(script: str, options: list[str], output: Path) -> dict[str, Any]:
    """The one result that a script writes."""
    subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", *options, "--output", output], check=True, capture_output=True
    )
    (path,) = output.iterdir()
    assert path.match(f"{script}-*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    small = ["--resolution", "10", "--runs", "2", "--frames", "6", "--picks", "5", "--repeats", "2"]
    return result_of("store", small, tmp_path_factory.mktemp("reading"))


@pytest.mark.long
def test_reading_is_compared_with_other_formats_on_a_small_grid(reading: dict[str, Any]) -> None:
    result, formats, (x, y, z) = reading, reading["formats"], reading["shape"]
    assert (x, y, z) == (19, 22, 19)
    assert 1000 < result["n_voxels"] < x * y * z / 2
    assert result["tfrecords_bytes"] == 12 * (4 * x * y * z + 16)
    with_tsnr = {"float16": 2 + 2 / 6, "int8": 1 + 2 / 6, "npy": 4}  # and a header
    for name, least in with_tsnr.items():
        assert least < formats[name]["bytes_per_voxel"] < least + 0.03
    for of_format in formats.values():
        n_bytes = of_format["bytes"]
        assert of_format["bytes_per_voxel"] == pytest.approx(n_bytes / (12 * result["n_voxels"]))
        assert of_format["times_smaller_than_tfrecords"] == pytest.approx(result["tfrecords_bytes"] / n_bytes)
    ours, others = {"random", "sequential", "sequential_checked"}, {"random", "sequential"}
    accesses = {"float16": ours, "int8": ours, "npy": others, "webdataset": others, "nifti": others}
    assert {name: {*of_format} & ours for name, of_format in formats.items()} == accesses
    for read in (formats[name][access] for name, of_format in accesses.items() for access in of_format):
        cold, warm = read["cold"], read["warm"]
        assert warm["cached_before"] == [1, 1]
        assert warm["disk_bytes_per_byte"] == 0
        assert 0 <= cold["cached_before"][0] <= cold["cached_before"][1] <= 1
        assert all(0 < rate["slowest"] <= rate["volumes_per_s"] <= rate["fastest"] for rate in (cold, warm))
        assert all(rate["mb_per_s"] > 0 for rate in (cold, warm))
    rates = {name: formats[name]["sequential"]["cold"]["volumes_per_s"] for name in ("float16", "npy")}
    faster = result["float16_times_as_fast_as"]
    assert faster["npy"]["sequential"]["cold"] == pytest.approx(rates["float16"] / rates["npy"])
    assert {*faster} == {"npy", "webdataset", "nifti"}


def test_volumes_that_are_read_differ_by_what_the_format_rounds(reading: dict[str, Any]) -> None:
    formats = reading["formats"]
    differences = {name: of_format["largest_difference"] for name, of_format in formats.items()}
    half_a_step = 2**-10  # of float16 between 2 and 4, where the largest of 23,000 z-scores lie, or one between 4 and 8
    assert differences["npy"] == differences["nifti"] == 0
    assert half_a_step / 2 < differences["float16"] == differences["webdataset"] <= 2 * half_a_step
    assert len(formats["int8"]["rounding"]) == 2
    for rounding in formats["int8"]["rounding"]:
        assert 0.9 < rounding["rounding_largest"] / (rounding["scale"] / 2) <= 1 + 1e-5
        assert rounding["rounding_rms"] == pytest.approx(rounding["scale"] / 12**0.5, rel=0.05)  # uniform in a step
    largest = max(rounding["rounding_largest"] for rounding in formats["int8"]["rounding"])
    assert abs(differences["int8"] - largest) <= 2 * half_a_step


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("store-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_reading_are_of_the_full_grid(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["shape"] == [91, 109, 91]
    assert (result["runs"], result["volumes_per_run"], result["random_volumes"]) == (4, 100, 100)
    assert result["repeats"] >= 7
    assert result["threads"] == 1
    assert result["formats"]["float16"]["bytes_per_voxel"] <= 2.05
    reads = [reads for of_format in result["formats"].values() for reads in of_format.values() if "cold" in str(reads)]
    assert len(reads) == 12
    assert all(read["cold"]["cached_before"][1] < 0.01 for read in reads)
    assert all(read["warm"]["disk_bytes_per_byte"] == 0 for read in reads)


@pytest.mark.long
def test_time_and_memory_of_some_tiny_runs(tmp_path: Path) -> None:
    tiny = ["--parts", "many_runs", "--many", "3", "2", "--small-resolution", "10", "--small-frames", "50"]
    result = result_of("scaling", tiny, tmp_path)
    many = result["many_runs"]
    assert (many["resolution"], many["frames"], many["jobs"]) == (10, 50, 2)
    assert "processes" not in result
    assert {*result["threads"]["in_a_run"].values()} == {1}
    few, more = many["measured"]
    assert (few["runs"], more["runs"]) == (2, 3)
    for measured in (few, more):
        assert measured["workers"] == 2
        assert min(measured["parent_peak_mb"], measured["worker_peak_mb"]) > 50
        assert measured["cpu_seconds"] > 0
        assert measured["seconds_per_run"] == pytest.approx(measured["seconds"] / measured["runs"])
    for what, line in many["lines"].items():
        assert line["per_run"] == pytest.approx(more[what] - few[what])
        assert line["at_zero_runs"] == pytest.approx(3 * few[what] - 2 * more[what])
    assert many["most_over_fewest"]["runs"] == 1.5


def test_efficiency_with_and_without_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = script("scaling", monkeypatch)
    one, two = ({"startup": s, "per_run": t, "cores": c} for s, t, c in ((3, 0.5, 1.25), (4, 0.3125, 1.75)))
    measured = [
        {"jobs": jobs, "runs": runs, "seconds": of["startup"] + runs * of["per_run"] + noise,
         "cpu_seconds": 7 + runs * of["per_run"] * of["cores"] + noise}
        for jobs, of in ((1, one), (2, two)) for runs in (8, 24, 80) for noise in (-1, 0, 1)
    ]  # fmt: skip
    found = scaling.efficiency(measured)
    assert found["efficiency_without_startup"] == pytest.approx(0.8)
    assert found["efficiency_with_startup"] == pytest.approx(43 / (2 * 29))
    for who, of in (("with_one", one), ("with_several", two)):
        assert found[who]["startup_s"] == pytest.approx(of["startup"])
        assert found[who]["cores_busy"] == pytest.approx(of["cores"])


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("scaling-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_scaling_are_of_all_runs(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    processes, many = result["processes"], result["many_runs"]
    assert (processes["resolution"], processes["frames"], processes["runs"]) == (3, 150, [16, 96])
    assert (many["resolution"], many["frames"], many["jobs"]) == (6, 60, 2)
    assert [measured["runs"] for measured in many["measured"]] == [10, 40, 160]
    for kind in ("nii", "nii.gz"):
        assert processes[kind]["with_one"]["seconds_of_most_runs"] >= 30
        assert len(processes[kind]["measured"]) == 4 * processes["repeats"]
    assert {*result["threads"]["in_a_run"].values()} == {1}


@pytest.mark.long
def test_the_autoencoder_is_compared_on_one_image(tmp_path: Path) -> None:
    tiny = ["--grids", "half", "--batch", "1", "--steps", "1", "--rounds", "2", "--threads", "1"]
    result = result_of("autoencoder", tiny, tmp_path)
    (grid,) = result["grids"]
    assert (grid["shape"], grid["batch_size"]) == ([54, 64, 54], 1)
    plain, ours = (grid["ways"][way] for way in ("plain", "ours"))
    assert plain["n_parameters"] == ours["n_parameters"] == 62_769
    np.testing.assert_allclose(plain["losses"], ours["losses"], rtol=1e-4)  # the same model, weights and steps
    for way, of in grid["ways"].items():
        assert len(of["ms_per_image"]) == 2
        assert grid["median_ms_per_image"][way] == pytest.approx(np.median(of["ms_per_image"]))
        assert of["peak_mb"] > of["start_mb"] > 50
    ratio = grid["median_ms_per_image"]["plain"] / grid["median_ms_per_image"]["ours"]
    assert grid["times_as_fast_as_plain"]["ours"] == pytest.approx(ratio)


def test_resnet_on_slices_is_compared_on_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are this one, which has imported everything."""
    tiny = ["--sizes", "32", "--batch", "2", "--slices", "2", "--steps", "1", "--rounds", "1", "--threads", "1"]
    images = script("images", monkeypatch, *tiny, "--output", str(tmp_path))
    for function in ("steps.keep_freed_memory", "images.torch.set_num_threads"):
        monkeypatch.setattr(function, lambda *_: None)

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        shown = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(shown):
            patch.setattr(sys, "argv", command[1:])
            images.main()
        return SimpleNamespace(stdout=shown.getvalue())

    monkeypatch.setattr(images.subprocess, "run", run)
    images.main()
    (path,) = tmp_path.glob("images-*.json")
    (measured,) = json.loads(path.read_text(encoding="utf-8"))["sizes"]
    plain, ours = (measured["ways"][way] for way in ("plain", "ours"))
    assert plain["n_parameters"] == ours["n_parameters"] == 11_171_266  # 11,689,512 in colour with 1,000 classes
    np.testing.assert_allclose(plain["losses"][0], ours["losses"][0], rtol=1e-4)  # the same model, weights and slices
    medians = measured["median_ms_per_slice"]
    assert measured["times_as_fast_as_plain"]["ours"] == pytest.approx(medians["plain"] / medians["ours"])


@pytest.mark.long
def test_contrast_is_compared_with_supervision_on_a_coarse_grid(tmp_path: Path) -> None:
    tiny = ["--sizes", "10", "--series", "2", "--steps", "1", "--rounds", "1", "--threads", "1"]
    (grid,) = result_of("contrast", tiny, tmp_path)["grids"]
    assert (grid["shape"], grid["volumes"]) == ([14, 18, 14], 18)
    medians = grid["median_ms_per_volume"]
    assert medians == {way: pytest.approx(np.median(times)) for way, times in grid["ms_per_volume"].items()}
    assert grid["contrast_to_supervised"] == pytest.approx(medians["contrast"] / medians["supervised"])


def test_explaining_is_compared_with_a_train_step_on_a_coarse_grid(tmp_path: Path) -> None:
    tiny = ["--shape", "9", "11", "7", "--batch", "1", "--rounds", "2", "--threads", "1"]
    result = result_of("attribution", tiny, tmp_path)
    assert {"plain", "lrp-epsilon", "lrp-alpha2beta1", "lrp-gamma", "gradient"} < {*result["ways"]}
    medians = {way: np.median(of["cpu_ms"]) for way, of in result["ways"].items()}
    for way, times in result["cpu_times_a_plain_step"].items():
        assert times == pytest.approx(medians[way] / medians["plain"])


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("attribution-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_explaining_are_of_the_full_grid(path: Path) -> None:
    """Three plain train steps for a volume at most; α2β1 without the flat rule, and γ, take more, and are told so."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["shape"] == [91, 109, 91]
    times = result["cpu_times_a_plain_step"]
    for way in ("lrp-epsilon", "lrp-alpha2beta1, flat", "gradient", "integrated-gradients"):
        assert times[way] <= 3, way
    assert max(times.values()) <= 4


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("autoencoder-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_the_autoencoder_are_of_both_grids(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [grid["shape"] for grid in result["grids"]] == [[54, 64, 54], [108, 128, 108]]
    assert result["rounds"] * result["steps"] >= 6
    for grid in result["grids"]:
        plain, *ours = grid["ways"].values()
        for of in ours:
            np.testing.assert_allclose(of["losses"], plain["losses"], rtol=0.05)


@pytest.mark.long
def test_betas_are_compared_with_nilearns_on_a_small_run(tmp_path: Path) -> None:
    result = result_of("betas", ["--resolution", "10", "--frames", "60", "--trials", "3"], tmp_path)
    assert result["largest_difference"] < 1e-4
    ours, theirs = (result["measured"][who] for who in ("ours", "nilearn"))
    assert result["times_as_fast"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert result["n_voxels"] > 1000


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("betas-*.json")), ids=lambda p: p.stem)
def test_committed_results_of_betas_are_of_sixty_trials(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["trials"], result["frames"]) == (60, 300)
    assert result["largest_difference"] < 1e-4
    assert result["times_as_fast"] >= 20
