"""One run from NIfTI to clean volumes: time and peak memory of this package and of nilearn, on the same cores.

    python benchmarks/prepare.py                                          # about five minutes on two cores
    python benchmarks/prepare.py --image bold.nii.gz --mask mask.nii.gz --tr 0.72

nilearn's path is the usual one: `apply_mask` with 3 mm smoothing, `clean`, `unmask`. Ours is `prepare.prepare_run`,
which ends with the float16 volumes on disk. Each is timed in its own process, after its imports. Without an image, the
script writes noise in the shape of a brain on HCP's grid, as long as a working-memory run. A second, longer run shows
that memory does not grow with the length. Result: one JSON file in `benchmarks/results/`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from report import Result, check

TR_S, HIGH_PASS_HZ, FWHM_MM = 0.72, 1 / 128, 3.0


def main() -> None:
    options = _options()
    if options.only:
        print(json.dumps(measure(options)))
        return

    result = Result("prepare", options.device, ["torch", "nilearn", "numpy", "isal"], options.output)
    with tempfile.TemporaryDirectory(prefix="deeplight-prepare-") as name:
        folder = Path(name)
        image, mask = options.image, options.mask
        if image is None:
            image, mask = folder / "bold.nii.gz", folder / "mask.nii.gz"
            write_run(image, mask, options.frames, options.resolution)
        command = [sys.executable, __file__, "--mask", str(mask), "--tr", str(options.tr), "--folder", str(folder)]
        command += ["--device", options.device]

        def run(only: str, path: Path) -> dict[str, float]:
            done = subprocess.run([*command, "--only", only, "--image", str(path)], check=True, stdout=subprocess.PIPE)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        runs: list[dict[str, Any]] = [{"frames": options.frames}]
        for only in ("nilearn", "ours"):
            runs[0][only] = run(only, image)
            result.add(runs=runs)
        difference = np.abs(
            np.load(folder / "nilearn.npy", mmap_mode="r") - np.load(folder / "ours.npy", mmap_mode="r")
        ).max()
        if options.image is None:
            longer = folder / "longer.nii.gz"
            write_run(longer, mask, options.longer, options.resolution)
            runs.append({"frames": options.longer, "ours": run("ours", longer)})
        compressed_mb = image.stat().st_size / 1e6
    peer, ours = runs[0]["nilearn"], runs[0]["ours"]
    result.finish(
        image_mb=round(compressed_mb, 1),
        runs=runs,
        times_as_fast=peer["seconds"] / ours["seconds"],
        largest_difference_before_float16=float(difference),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a 4-D run (default: noise)")
    parser.add_argument("--mask", type=Path, help="its mask")
    parser.add_argument("--tr", type=float, default=TR_S, help="its repetition time in seconds (default 0.72)")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where ours smooths and cleans: cpu or cuda"
    )
    parser.add_argument("--frames", type=int, default=405, help="length of the simulated run (default 405)")
    parser.add_argument("--longer", type=int, default=1200, help="length of the run that shows memory (default 1200)")
    parser.add_argument("--resolution", type=float, default=2.0, help="of the simulated run in mm (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    parser.add_argument("--only", choices=("nilearn", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = [path for path in (options.image, options.mask) if path]
    wrong = {"give --image and --mask together": len(given) == 1}
    wrong |= {f"there is no file {path}": not path.is_file() for path in given}
    check(parser, options, {"frames": 1, "longer": 1}, wrong)
    return options


def write_run(image: Path, mask: Path, n_frames: int, resolution_mm: float) -> None:
    """Noise of 1% around 10,000 in the MNI152 brain mask, zero outside, a few frames at a time."""
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import resample_img

    from deeplight_core.data import simulate

    shape, affine = simulate.grid(resolution_mm=resolution_mm)
    brain = resample_img(
        load_mni152_brain_mask(resolution=2), target_affine=affine, target_shape=shape, interpolation="nearest",
        copy_header=True, force_resample=True,
    )  # fmt: skip
    inside = np.asarray(brain.dataobj) > 0
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), mask)
    random = np.random.default_rng(0)
    data = np.zeros((n_frames, *shape[::-1]), np.float32)
    for frame in data:
        frame[inside.T] = 10_000 + 100 * random.normal(size=inside.sum())
    nib.save(nib.Nifti1Image(data.T, affine), image)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one of the two; keeps its volumes (as float32, untimed) for the comparison."""
    return {"nilearn": by_nilearn, "ours": by_us}[options.only](options)


def by_nilearn(options: argparse.Namespace) -> dict[str, float]:
    from nilearn.masking import apply_mask, unmask
    from nilearn.signal import clean

    mask = nib.load(options.mask)
    start = time.perf_counter()
    series = apply_mask(options.image, mask, smoothing_fwhm=FWHM_MM)
    series = clean(
        series, detrend=True, standardize="zscore_sample", filter="butterworth", high_pass=HIGH_PASS_HZ, t_r=options.tr
    )
    unmask(series, mask)
    used = usage(start)
    inside = np.asarray(mask.dataobj) > 0
    order = np.argsort(np.ravel_multi_index(np.nonzero(inside), inside.shape, order="F"))  # ours: x fastest
    np.save(options.folder / "nilearn.npy", np.asarray(series, np.float32)[:, order])
    return used


def by_us(options: argparse.Namespace) -> dict[str, float]:
    from deeplight_core.config import Profile
    from deeplight_core.data import images, prepare, preprocess
    from deeplight_core.data.plan import Plan

    image = nib.load(options.image)
    n_frames = image.shape[3]
    (options.folder / "store/runs").mkdir(parents=True, exist_ok=True)
    events = options.folder / "events.tsv"
    events.write_text(f"onset\tduration\ttrial_type\n0\t{n_frames * options.tr + 1}\tall\n")
    row = pd.Series(
        {"subject": "1", "session": "", "task": "noise", "run": str(n_frames), "sha256": "", "n_volumes": n_frames,
         "image": str(options.image.absolute().relative_to("/")), "mask": str(options.mask.absolute().relative_to("/")),
         "events": str(events.absolute().relative_to("/")), "tr_s": options.tr}
    )  # fmt: skip
    data = {"root": "/", "source": {"noise": {"all": ["all"]}}, "target": {}, "store": options.folder / "store"}
    profile = Profile.model_validate({"data": data, "preprocessing": {"skip_s": 0, "lag_s": 0}})
    mask = images.load_volume(options.mask)[0] > 0
    planned = Plan(mask, image.affine, options.tr)
    import nilearn.signal  # noqa: F401  imports are not timed on either side

    start = time.perf_counter()
    record = prepare.prepare_run(row, profile, planned, options.device)
    used = usage(start)
    assert record["n_kept"] == n_frames
    if not (options.folder / "ours.npy").exists():
        shape = (n_frames, int(mask.sum()))
        kept = np.lib.format.open_memmap(options.folder / "ours.npy", "w+", np.float32, shape)

        def keep(block: slice, series: object) -> None:
            kept[:, block] = series

        preprocess.process_run(
            options.image, mask, image.affine, options.tr, profile.preprocessing, options.folder, keep
        )
    return used


def usage(start: float) -> dict[str, float]:
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {"seconds": seconds, "peak_mb": int(status["VmHWM"].split()[0]) * 1024 / 1e6}


if __name__ == "__main__":
    main()
