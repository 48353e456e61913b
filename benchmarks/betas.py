"""Betas of a run's trials by least squares separate: time and memory of this package and of nilearn, on the same cores.

    python benchmarks/betas.py                                           # about five minutes on two cores
    python benchmarks/betas.py --trials 120 --resolution 2

nilearn fits a `FirstLevelModel` (OLS, SPM's response, cosine drifts, confounds) for each trial, to an image that is in
memory. We read the same image from its file and multiply it by one matrix. Each is timed in its own process, after its
imports. Result: one JSON file in `benchmarks/results/`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from prepare import usage, write_run
from report import Result, check

TR_S, HIGH_PASS_HZ, N_CONFOUNDS = 2.0, 1 / 128, 6


def main() -> None:
    options = _options()
    if options.only:
        print(json.dumps({"nilearn": by_nilearn, "ours": by_us}[options.only](options)))
        return

    asked = {"resolution": options.resolution, "frames": options.frames, "trials": options.trials}
    result = Result("betas", "cpu", ["torch", "nilearn", "numpy"], options.output, **asked)
    with tempfile.TemporaryDirectory(prefix="deeplight-betas-") as name:
        folder = Path(name)
        write_run(folder / "bold.nii", folder / "mask.nii", options.frames, options.resolution)
        numbers = ["--frames", str(options.frames), "--trials", str(options.trials), "--folder", name]
        measured = {}
        for only in ("ours", "nilearn"):
            command = [sys.executable, __file__, *numbers, "--only", only]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            measured[only] = json.loads(done.stdout.splitlines()[-1])
            result.add(measured=measured)
        ours, theirs, sd = (np.load(folder / f"{of}.npy") for of in ("ours", "nilearn", "sd"))
    theirs /= sd * measured["ours"]["unit"]
    result.finish(
        n_voxels=ours.shape[1],
        times_as_fast=measured["nilearn"]["seconds"] / measured["ours"]["seconds"],
        largest_difference=float(np.abs(ours - theirs).max()),
        largest_beta=float(np.abs(theirs).max()),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="number of trials (default 60)")
    parser.add_argument("--frames", type=int, default=300, help="length of the run (default 300)")
    parser.add_argument("--resolution", type=float, default=4.0, help="edge of a voxel in mm (default 4)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    parser.add_argument("--only", choices=("nilearn", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    few = options.frames * TR_S < 4 * options.trials
    check(parser, options, {"trials": 2, "frames": 60}, {"--frames must leave 4 s for every trial": few})
    return options


def design(options: argparse.Namespace) -> tuple[pd.DataFrame, np.ndarray]:
    """Events of 1 s, and confounds (T, C)."""
    random = np.random.default_rng(1)
    onsets = np.linspace(4, options.frames * TR_S - 16, options.trials) + random.uniform(0, 1, options.trials)
    events = pd.DataFrame({"onset": onsets, "duration": 1.0, "state": random.choice(["a", "b"], options.trials)})
    return events, random.normal(size=(options.frames, N_CONFOUNDS))


def by_nilearn(options: argparse.Namespace) -> dict[str, float]:
    from nilearn.glm.first_level import FirstLevelModel

    events, confounds = design(options)
    mask = nib.load(options.folder / "mask.nii")
    image = nib.load(options.folder / "bold.nii")
    image.get_fdata()  # kept in memory
    inside = np.asarray(mask.dataobj) > 0
    nuisance, betas = pd.DataFrame(confounds).add_prefix("confound"), []
    warnings.filterwarnings("ignore", ".*Generation of a mask has been requested")
    start = time.perf_counter()
    for number in range(len(events)):
        names = np.where(np.arange(len(events)) == number, "this", "others")
        model = FirstLevelModel(
            TR_S, hrf_model="spm", drift_model="cosine", high_pass=HIGH_PASS_HZ, noise_model="ols",
            signal_scaling=False, mask_img=mask, minimize_memory=True,
        )  # fmt: skip
        model.fit(image, events=events[["onset", "duration"]].assign(trial_type=names), confounds=nuisance)
        betas.append(model.compute_contrast("this", output_type="effect_size"))
    used = usage(start)
    np.save(options.folder / "nilearn.npy", np.stack([beta.get_fdata().T[inside.T] for beta in betas]))
    others = model.design_matrices_[0].drop(columns=["this", "others"]).to_numpy()
    series = image.get_fdata().T[:, inside.T]
    left = series - others @ np.linalg.lstsq(others, series, rcond=None)[0]
    np.save(options.folder / "sd.npy", left.std(axis=0, ddof=1))
    return used


def by_us(options: argparse.Namespace) -> dict[str, float]:
    import nilearn.glm.first_level  # noqa: F401  imports are not timed on either side

    from deeplight_core.data.images import load_volume
    from deeplight_core.data.preprocess import Matrices, process_run
    from deeplight_core.data.trials import nuisance_matrix, residual_matrix, trials_of
    from deeplight_core.preparation import PreprocessingSettings

    events, confounds = design(options)
    mask, affine = load_volume(options.folder / "mask.nii")
    settings = PreprocessingSettings.model_validate(
        {"fwhm_mm": None, "high_pass_hz": HIGH_PASS_HZ, "example": {"kind": "lss", "hrf": "spm"}}
    )
    betas = np.empty((len(events), int((mask > 0).sum())), np.float32)

    def keep(block: slice, part: object) -> None:
        betas[:, block] = part

    start = time.perf_counter()
    times, kept = np.arange(options.frames) * TR_S, np.arange(options.frames)
    trials = trials_of(events, times, settings, confounds)
    cleaning = residual_matrix(nuisance_matrix(times, settings, confounds), kept)
    matrices = Matrices(cleaning, kept, trials.matrix)
    process_run(options.folder / "bold.nii", mask > 0, affine, TR_S, settings, options.folder, keep, matrices=matrices)
    used = usage(start)
    assert len(trials.numbers) == len(events)
    np.save(options.folder / "ours.npy", betas)
    return used | {"unit": trials.unit}


if __name__ == "__main__":
    main()
