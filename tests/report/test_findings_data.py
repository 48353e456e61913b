from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.preparation import DataSettings, PreprocessingSettings, StructuralSettings
from deeplight_core.report import findings
from deeplight_core.report.quality import Design

SHAPE = (3, 4, 5)
AFFINE = np.diag([10.0, 20, 5, 1])
PROFILE = Profile()
BIDS = Profile(data=DataSettings(layout="bids", split_unit="run"))
RUNS = pd.DataFrame(
    {
        "run": ["one", "two", "three"], "split": ["train", "train", "validation"], "n_frames": [50, 60, 40],
        "n_kept": [30, 40, 20], "volumes_in_no_block": [20, 19, 20], "volumes_in_two_blocks": [0, 1, 0],
        "constant_voxels": [0, 6, 3], "median_tsnr": [80.0, 40.0, 100.0], "mask_overlap": [1.0, 0.75, 0.9],
        "ignored_events": ["cue, rest", "", "cue"], "unknown_events": "", "resampled": False, "orientation": "RAS",
    }
)  # fmt: skip
INDEX = pd.DataFrame(
    {
        "task": ["WM"] * 7, "state": ["face"] * 3 + ["tool"] * 2 + ["", "place"], "unit": ["s1"] * 6 + ["s2"],
        "split": ["train"] * 6 + ["validation"],
    }
)  # fmt: skip


def store(runs: pd.DataFrame = RUNS, tr_s: float | None = 2.0, **preprocessing: Any) -> Store:
    """A store of 24 voxels, of which nothing is on disk."""
    mask = np.zeros(SHAPE, bool)
    mask[:2, :, 1:4] = True
    settings = PreprocessingSettings(**preprocessing).model_dump(mode="json")
    info = {"n_voxels": 24, "tr_s": tr_s, "preprocessing": settings}
    return Store(Path("nowhere"), info, mask, AFFINE, INDEX, runs)


def manifest(**columns: object) -> pd.DataFrame:
    table = pd.DataFrame(
        {"subject": ["s1", "s1", "s2"], "session": "", "task": ["WM", "WM", "EMOTION"], "run": ["LR", "RL", "LR"],
         "split": ["train", "train", "validation"], "image": ["a", "b", "c"], "tr_s": 0.72, "n_volumes": [10, 11, 5]}
    )  # fmt: skip
    return table.assign(**columns)


def test_runs_are_counted_by_task_and_split() -> None:
    table = findings.runs_table(manifest(), PROFILE)
    assert table.loc["WM", ("subjects", "train")] == 1
    assert table.loc["WM", ("runs", "train")] == 2
    assert table.loc["WM", ("volumes", "train")] == 21
    assert table.loc["WM", ("volumes", "validation")] == 0
    assert findings.runs_table(manifest(), BIDS)["runs"].loc["EMOTION"].tolist() == [0, 1]


def test_the_repetition_time_is_that_of_runs() -> None:
    assert findings.repetition_note(manifest()) == "The repetition time is 0.72 s."
    assert findings.repetition_note(manifest(tr_s=[2.0, 1.5, 2.0])) == "The repetition time is 1.5 or 2 s."
    assert findings.repetition_note(manifest(tr_s=np.nan)) == ""


def test_cleaning_names_the_steps_that_are_asked_for() -> None:
    some = PreprocessingSettings(fwhm_mm=None, high_pass_hz=0.01, lag_s=4.5)
    assert findings.cleaning_note(some, manifest()) == (
        "Cleaning here: linear detrending, a Butterworth high-pass filter (0.01 Hz), z-scores. Labels are shifted by "
        "4.5 s for the haemodynamic lag."
    )
    assert "Gaussian smoothing (6.0 mm FWHM), " in findings.cleaning_note(PreprocessingSettings(fwhm_mm=6), manifest())
    assert findings.cleaning_note(some, manifest(tr_s=np.nan)).startswith("These are structural images")
    registered = some.model_copy(update={"structural": StructuralSettings(registration="affine")})
    assert "masked, registered to MNI152 (affine) and" in findings.cleaning_note(registered, manifest(tr_s=np.nan))


def test_cleaning_says_what_an_example_is() -> None:
    def said(**settings: Any) -> str:
        return findings.cleaning_note(PreprocessingSettings.model_validate(settings), manifest())

    confounds = {"strategy": ["motion", "scrub"]}
    assert said(fwhm_mm=None, example={"kind": "window", "window_s": [3, 7.5]}, confounds=confounds) == (
        "Cleaning here: linear detrending, a Butterworth high-pass filter (0.0078125 Hz), regression of confounds "
        "(motion), censoring of volumes for motion, z-scores. An example is a **trial**: the mean of its volumes from "
        "3 to 7.5 s after its onset or, if there is none, the volume nearest to the middle."
    )
    beta = said(example={"kind": "lss", "hrf": "glover"}, confounds=confounds)
    assert beta.startswith(
        "Cleaning here: Gaussian smoothing (3.0 mm FWHM), censoring of volumes for motion. An example"
    )
    assert "least squares separate (Mumford et al. 2012)" in beta
    assert "*glover*; the model also has cosines up to 0.007812 Hz, confounds (motion) and a constant." in beta
    lsa = said(fwhm_mm=None, high_pass_hz=None, example={"kind": "lsa"}, confounds={"strategy": ["non_steady_state"]})
    assert "censoring of volumes before the steady state. An example" in lsa
    assert "*spm*; the model also has a straight line and a constant." in lsa


def test_trials_are_counted_as_trials() -> None:
    runs = RUNS.assign(trials=[40, 40, 30], trials_outside=[10, 0, 10])
    table = findings.counts_table(runs).data["number"]
    assert (table["trials"], table["trials kept"]) == (110, 90)
    assert table["trials left out: window or response outside the run, or censored"] == 20
    said = findings.kept_note(store(runs, example={"kind": "window"}))
    assert said.startswith("Kept: **90** of 110 trials (82%). They have 24 voxels each")
    worst = findings.worst_runs_table(runs)
    assert worst is not None
    assert "trials kept" in worst.data
    assert findings.seconds_table(PROFILE, store(runs, example={"kind": "window"})) is None
    assert "are trials" in findings.seconds_note(PROFILE, store(runs, example={"kind": "window"}))


def test_counts_are_sums_over_runs_of_what_was_counted() -> None:
    table = findings.counts_table(RUNS).data["number"]
    assert table["volumes kept"] == 90
    assert table["volumes in two blocks"] == 1
    assert "blocks without any volume" not in table


def test_what_was_kept_is_a_share_of_what_was_acquired() -> None:
    said = findings.kept_note(store())
    assert said == (
        "Kept: **90** of 150 volumes (60%), each in exactly one block. They have 24 voxels each, on a grid of "
        "3 × 4 × 5. Events ignored on purpose: `cue`, `rest`. Events with unknown names: none."
    )
    assert "(60%). They have" in findings.kept_note(store(keep="all"))


def test_trials_of_a_design_are_told() -> None:
    design = Design(pd.DataFrame({"onset": [1.0, 5, 9]}), np.array([1.0, 5]), 20, 2.0, 1, of_trials=True)
    assert findings.design_note({"faces": design}) == "Trials that are examples: faces 2 of 3."
    assert "*tool* (WM) with 2 trials" in findings.states_note(INDEX, "trials")


def test_resampling_and_rounding_are_said_where_they_happened() -> None:
    runs = RUNS.assign(
        resampled=[False, True, True], orientation=["RAS", "LAS", "RAS"], rounding_largest=[0.02, 0.0312, 0.01],
        rounding_rms=[0.001, 0.004, 0.002],
    )  # fmt: skip
    said = findings.kept_note(store(runs, resample_to="first", storage="int8"))
    assert "**2 of 3 runs had another grid** (orientations LAS, RAS)" in said
    assert "`preprocessing.resample_to` is `first`." in said
    assert said.endswith("by at most 0.031 SD; in the worst run by 0.004 SD (root mean square).")


def test_what_was_left_out_has_its_reasons_the_most_frequent_first() -> None:
    left_out = pd.DataFrame({"path": ["a", "b", "c"], "reason": ["no events", "too short", "too short"]})
    table = findings.left_out_table(left_out)
    assert table is not None
    assert table.data.to_dict("index") == {
        "too short": {"number": 2, "for example": "b"},
        "no events": {"number": 1, "for example": "a"},
    }
    path = Path("runs/mine/manifest.csv")
    assert findings.left_out_note(left_out, path).startswith("3 entries in all, each with its reason in `manifest.left")
    assert findings.left_out_note(left_out[:1], path).startswith("1 entry in all")
    assert findings.left_out_table(left_out[:0]) is None
    assert findings.left_out_note(left_out[:0], path).startswith("The scan of this dataset left nothing out")


def test_table_1_counts_volumes_with_a_state() -> None:
    table = findings.seconds_table(PROFILE, store())
    assert table is not None
    assert table.data.loc["WM", "this run"] == 2.0 * (5 + 1) / 2
    assert "a subject of this run has 6 s." in findings.seconds_note(PROFILE, store())
    assert "The paper counts 2,084 s in all" in findings.seconds_note(PROFILE, store())
    assert findings.seconds_table(BIDS, store()) is None
    assert "has no counterpart" in findings.seconds_note(BIDS, store())


def test_the_masks_size_is_its_voxels_times_their_volume() -> None:
    said = findings.mask_note(store())
    assert said.startswith("The mask holds 24 voxels (0.02 litres). In the worst run 25.0% of them are constant")
    assert findings.mask_note(store(RUNS.drop(columns="constant_voxels"))) == "The mask holds 24 voxels (0.02 litres)."


def test_coverage_counts_voxels_of_the_common_mask_only() -> None:
    shares = np.full(SHAPE, 0.5)
    shares[:1] = 1  # half of the mask, and voxels outside it
    said = findings.coverage_note(store(mask_coverage=0.4), shares)
    assert said == (
        "A voxel is kept if at least 40% of the runs' masks hold it; 50.0% of the kept voxels lie in all of them. The "
        "mask of `two` covers the least of the common mask: 75.0%."
    )


def test_the_ratio_of_the_poorest_voxels_is_a_percentile() -> None:
    tsnr = np.random.default_rng(0).permutation(np.arange(1, 202.0))
    assert findings.tsnr_note(tsnr) == "The median voxel has a ratio of 101; one voxel in twenty lies below 11."


def test_the_lowest_signal_to_noise_ratios_come_first() -> None:
    table = findings.worst_runs_table(RUNS, n=2)
    assert table is not None
    assert table.data["run"].tolist() == ["two", "one"]
    assert findings.worst_runs_note(RUNS) == "The median run has a ratio of 80; the lowest is 40 (50% of it)."
    structural = RUNS.drop(columns="median_tsnr")
    assert findings.worst_runs_table(structural) is None
    assert findings.worst_runs_note(structural) == ""


def design(n_blocks: int, n_labelled: int, n_empty: int = 0) -> Design:
    blocks = pd.DataFrame({"onset": [20.0 * i for i in range(n_blocks)], "duration": 10.0, "state": "x"})
    return Design(blocks, 2.0 * np.arange(n_labelled), n_volumes=40, tr_s=2.0, n_empty=n_empty)


def test_a_design_says_how_many_volumes_have_a_state_and_which_blocks_none() -> None:
    assert findings.design_note({"A": design(3, 12), "B": design(2, 8)}) == (
        "Volumes with a state: A 12 of 40, B 8 of 40. Every block has volumes."
    )
    some = findings.design_note({"A": design(3, 12, n_empty=1), "B": design(2, 0, n_empty=2), "rest": design(0, 0)})
    assert some.endswith("rest 0 of 40. Without any volume: 1 block of A and 2 blocks of B.")
    assert findings.design_note({"rest": design(0, 0)}) == ""
    assert findings.design_note({}) == ""


def test_states_are_counted_in_the_training_data() -> None:
    assert findings.states_note(INDEX) == (
        "The rarest state of the training data is *tool* (WM) with 2 volumes, the most frequent one *face* (WM) with 3."
    )
    assert findings.states_note(INDEX.assign(state="")) == ""


def test_drift_is_that_of_the_worst_run() -> None:
    random, time = np.random.default_rng(0), np.arange(40.0)

    def run(slope: float) -> np.ndarray:
        return random.normal(size=(40, 7)) + slope * time[:, None]

    def share(series: np.ndarray) -> float:
        return float(np.median([np.corrcoef(time, voxel)[0, 1] ** 2 for voxel in series.T]))

    series = {"mild": (run(0.1), run(0.02)), "strong": (run(0.3), run(0.0))}
    before, after = share(series["strong"][0]), share(series["mild"][1])
    said = f"up to {before:.1%} of the median voxel's variance before cleaning and {after:.1%} after it."
    assert findings.drift_note(series).endswith(said)
    assert findings.drift_note({}) == ""


def test_activation_is_compared_with_what_was_planted_inside_the_mask() -> None:
    random, mask = np.random.default_rng(0), store().mask
    found, truth = random.normal(size=SHAPE), random.normal(size=SHAPE)
    maps = {"face": nib.Nifti1Image(found, AFFINE), "tool": nib.Nifti1Image(-2 * found, AFFINE)}
    planted = {state: nib.Nifti1Image(truth, AFFINE) for state in maps}
    r = np.corrcoef(found[mask], truth[mask])[0, 1]
    assert findings.activation_note(maps, planted, mask).endswith(f"at {r:.2f} (*face*), {-r:.2f} (*tool*).")
    peak = 2 * np.abs(found[mask]).max()
    assert f"is {peak:.2f} SD, for *tool*." in findings.activation_note(maps, {}, mask)
    assert findings.activation_note({}, {}, mask) == ""
