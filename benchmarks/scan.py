"""Listing a BIDS folder: time and memory of this package and of pybids, for the same runs.

    python benchmarks/scan.py                              # 1,000 people × 4 runs: about two minutes on two cores
    python benchmarks/scan.py --subjects 100 --runs 2

Images are headers only. We read every header, event file and sidecar, and check lengths, onsets and copies. pybids
makes its index of the folder, with the metadata of sidecars, and tells every run's repetition time and event file; it
reads neither headers nor events. Each is timed in its own process, after its imports. Result: one JSON file in
`benchmarks/results/`.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from prepare import usage
from report import Result, check

TR_S, N_VOLUMES = 2.0, 200


def main() -> None:
    options = _options()
    if options.only:
        print(json.dumps({"pybids": by_pybids, "ours": by_us}[options.only](options.folder)))
        return

    asked = {"subjects": options.subjects, "runs": options.runs}
    result = Result("scan", "cpu", ["pandas", "nibabel", "pybids"], options.output, **asked)
    with tempfile.TemporaryDirectory(prefix="deeplight-scan-") as name:
        write_tree(Path(name), options.subjects, options.runs)
        measured = {}
        for only in ("ours", "pybids"):
            command = [sys.executable, __file__, "--only", only, "--folder", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            measured[only] = json.loads(done.stdout.splitlines()[-1])
            assert measured[only]["found"] == options.subjects * options.runs, measured
            result.add(measured=measured)
    result.finish(times_as_fast=measured["pybids"]["seconds"] / measured["ours"]["seconds"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=1000, help="number of people (default 1,000)")
    parser.add_argument("--runs", type=int, default=4, help="runs of each (default 4)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the result")
    parser.add_argument("--only", choices=("pybids", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    check(parser, options, {"subjects": 3, "runs": 1}, {})
    return options


def write_tree(root: Path, n_subjects: int, n_runs: int) -> None:
    """Raw BIDS runs with events and sidecars; every header is its own."""
    random = np.random.default_rng(0)
    (root / "dataset_description.json").write_text('{"Name": "Many", "BIDSVersion": "1.9.0"}')
    (root / "task-faces_bold.json").write_text(json.dumps({"TaskName": "faces", "RepetitionTime": TR_S}))
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((91, 109, 91, N_VOLUMES))
    header.set_zooms((2, 2, 2, TR_S))
    header.set_sform(np.diag([2, 2, 2, 1]), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for subject in range(1, n_subjects + 1):
        folder = root / f"sub-{subject:04}/func"
        folder.mkdir(parents=True)
        for run in range(1, n_runs + 1):
            stem = f"sub-{subject:04}_task-faces_run-{run}"
            header["descrip"] = stem
            data = gzip.compress(header.binaryblock + bytes(4), compresslevel=1, mtime=0)
            (folder / f"{stem}_bold.nii.gz").write_bytes(data)
            (folder / f"{stem}_bold.json").write_text(json.dumps({"EchoTime": 0.03, "FlipAngle": 77 + run}))
            events = [f"{12 * i}\t2\t{('face', 'house')[i % 2]}\t{random.uniform():.3f}\n" for i in range(30)]
            (folder / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\tresponse_time\n" + "".join(events))


def by_us(root: Path) -> dict[str, float]:
    from deeplight_core.data.bids import scan_bids

    start, used = time.perf_counter(), time.process_time()
    table, _ = scan_bids(root)
    used = time.process_time() - used
    return usage(start) | {"cpu_seconds": used, "found": int((table["tr_s"] == TR_S).sum())}


def by_pybids(root: Path) -> dict[str, float]:
    from bids import BIDSLayout

    start, used = time.perf_counter(), time.process_time()
    layout = BIDSLayout(root)
    runs = layout.to_df(metadata=True, suffix="bold", extension=".nii.gz")
    listed = runs.merge(layout.to_df(suffix="events"), on=["subject", "task", "run"], suffixes=("", "_events"))
    used = time.process_time() - used
    return usage(start) | {"cpu_seconds": used, "found": int((listed["RepetitionTime"] == TR_S).sum())}


if __name__ == "__main__":
    main()
