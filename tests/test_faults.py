"""What goes wrong with data, disks and processes while a store is filled, beyond what test_prepare.py spoils."""

import contextlib
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import (
    AFFINE,
    EVENTS,
    RUN_FILE,
    SHAPE,
    TR_S,
    Dataset,
    contents,
    flip_bit,
    truncate,
    without_leftovers,
)
from scipy.ndimage import zoom

from deeplight_core.config import Profile
from deeplight_core.events import read_events
from deeplight_core.images import load_bold, load_volume, read_header
from deeplight_core.loader import Volumes, select_rows
from deeplight_core.manifest import COLUMNS, read_manifest, write_manifest, write_notes
from deeplight_core.prepare import prepare
from deeplight_core.scan import scan_hcp, scan_table
from deeplight_core.store import Store, open_store, verify

RUN = "s3/MNINonLinear/Results/tfMRI_SOCIAL_LR"
IMAGE, MASK, EVS = f"{RUN}/tfMRI_SOCIAL_LR.nii.gz", f"{RUN}/brainmask_fs.2.nii.gz", f"{RUN}/EVs"
RECORD_FILE = RUN_FILE.replace(".safetensors", ".json")


def changed(profile: Profile, root: Path | None = None, store: Path | None = None, **preprocessing: object) -> Profile:
    """A profile with another root, another folder for its store, other preprocessing."""
    data = profile.data.model_copy(update={"root": str(root or profile.data.root), "store": store})
    settings = profile.preprocessing.model_copy(update=preprocessing)
    return profile.model_copy(update={"data": data, "preprocessing": settings})


def unfinished(store: Path) -> None:
    """Take away what is written last."""
    (store / "index.parquet").unlink()


def data_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The volumes and tables of a store; its records also hold the times at which sources were changed."""
    return {name: data for name, data in files.items() if name.endswith((".safetensors", ".parquet"))}


def rewrite(path: Path, change: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
    image = nib.load(path)
    whole = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    nib.save(change(whole), path)


# ---- headers


def with_tr(tr: float, unit: str) -> Callable[[nib.Nifti1Image], nib.Nifti1Image]:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = tr
        return image

    return change


@pytest.mark.parametrize(("tr", "unit"), [(2000, "msec"), (2e6, "usec"), (2, "unknown")])
def test_a_repetition_time_in_another_unit_is_the_same(
    copied: Path, spoilt: Dataset, store: Store, tiny_profile: Profile, tr: float, unit: str
) -> None:
    manifest, root = spoilt
    for image in manifest["image"]:
        rewrite(root / image, with_tr(2, "sec"))
    rewrite(root / IMAGE, with_tr(tr, unit))
    found, left_out = scan_hcp(root)
    assert left_out.empty
    assert set(found["tr_s"]) == {TR_S}
    unfinished(copied)
    made = prepare(manifest, changed(tiny_profile, root), jobs=1)
    assert data_of(contents(made.path)) == data_of(contents(store.path))


def set_sform(path: Path, value: float) -> None:
    """Fill the affine in a compressed file's header; nibabel would not write it."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[252:256] = np.array([0, 1], "<i2").tobytes()  # codes of qform and sform: the affine is the latter
    data[280:328] = np.full(12, value, "<f4").tobytes()
    path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_an_affine_that_cannot_be_inverted_is_named(
    project: Path, spoilt: Dataset, tiny_profile: Profile, value: float
) -> None:
    manifest, root = spoilt
    set_sform(root / IMAGE, value)
    with pytest.raises(ValueError, match=rf"{IMAGE} has an affine that cannot be inverted, .*; mend its header"):
        prepare(manifest, changed(tiny_profile, root), jobs=1)
    found, left_out = scan_hcp(root)
    assert len(found) == 11
    assert "cannot be inverted" in left_out.set_index("path").loc[IMAGE, "reason"]


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_mask_with_such_an_affine_is_named(
    project: Path, spoilt: Dataset, tiny_profile: Profile, value: float
) -> None:
    manifest, root = spoilt
    set_sform(root / MASK, value)
    with pytest.raises(ValueError, match=f"{MASK} has an affine that cannot be inverted"):
        prepare(manifest, changed(tiny_profile, root), jobs=1)


@pytest.mark.parametrize("shape", [(7, 8, 9, 0), (0, 8, 9, 5), (7, 8, 0, 5)])
def test_an_image_without_voxels_or_volumes_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "bold.nii"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), AFFINE), path)
    with pytest.raises(ValueError, match=f"{path}"):
        read_header(path)
    with pytest.raises(ValueError, match=f"{path}"):
        load_bold(path)


@pytest.mark.parametrize(
    ("where", "what"), [(108, np.float32(1e30)), (108, np.float32(np.inf)), (42, np.int16([32767] * 3))]
)
def test_a_header_that_promises_more_than_any_memory_is_named(tmp_path: Path, where: int, what: np.ndarray) -> None:
    path = tmp_path / "bold.nii"
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 5), np.float32), AFFINE), path)
    data = bytearray(path.read_bytes())
    data[where : where + what.nbytes] = what.tobytes()  # the offset of the data, or their shape
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError), match=f"{path}"):
        load_bold(path)


# ---- values


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])], ids=str)
def test_voxels_that_are_not_one_real_number_are_named(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "image.nii.gz"
    for load, shape in ((load_bold, (*SHAPE, 5)), (load_volume, SHAPE)):
        nib.save(nib.Nifti1Image(np.ones(shape, dtype), AFFINE), path)
        with pytest.raises(ValueError, match=f"{path}"):
            load(path)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", ">f4"])
def test_scaled_and_big_endian_values_are_those_they_stand_for(
    copied: Path, spoilt: Dataset, tiny_profile: Profile, dtype: str
) -> None:
    manifest, root = spoilt
    profile = changed(tiny_profile, root)
    raw = np.random.default_rng(0).integers(0, 200, nib.load(root / IMAGE).shape)
    nib.save(nib.Nifti1Image((raw * 0.25 - 7.5).astype(np.float32), AFFINE), root / IMAGE)
    unfinished(copied)
    prepare(manifest, profile, jobs=1)
    expected = data_of(contents(copied))

    header = nib.Nifti1Header(endianness=">" if ">" in dtype else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(raw.astype(dtype), AFFINE, header)
    image.header.set_slope_inter(0.25, -7.5)
    nib.save(image, root / IMAGE)
    assert nib.load(root / IMAGE).dataobj.slope == 0.25
    assert nib.load(root / IMAGE).header.endianness == header.endianness
    unfinished(copied)
    (copied / RUN_FILE).unlink()
    prepare(manifest, profile, jobs=1)
    assert data_of(contents(copied)) == expected


def test_a_file_compressed_in_several_pieces_is_read_to_its_end(
    copied: Path, spoilt: Dataset, store: Store, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    data = gzip.decompress((root / IMAGE).read_bytes())
    pieces = [gzip.compress(data[i : i + 50_000]) for i in range(0, len(data), 50_000)]  # as bgzip does
    assert len(pieces) > 1
    (root / IMAGE).write_bytes(b"".join(pieces))
    unfinished(copied)
    prepare(manifest, changed(tiny_profile, root), jobs=1)
    assert data_of(contents(copied)) == data_of(contents(store.path))
    (root / IMAGE).write_bytes(b"".join(pieces[:-1]))
    unfinished(copied)
    with pytest.raises(ValueError, match=f"{IMAGE} cannot be read as NIfTI"):
        prepare(manifest, changed(tiny_profile, root), jobs=1)


def test_the_checksum_of_a_compressed_run_is_read_however_far_behind_the_data_it_is(
    copied: Path, spoilt: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    data = gzip.compress(gzip.decompress((root / IMAGE).read_bytes()) + bytes(3 << 20))
    (root / IMAGE).write_bytes(data)
    unfinished(copied)
    prepare(manifest, changed(tiny_profile, root), jobs=1)
    flip_bit(root / IMAGE)
    unfinished(copied)
    with pytest.raises(ValueError, match=f"{IMAGE} cannot be read as NIfTI"):
        prepare(manifest, changed(tiny_profile, root), jobs=1)


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_run_whose_compressed_data_are_broken_in_the_middle_is_named(
    copied: Path, spoilt: Dataset, tiny_profile: Profile, keep_going: bool
) -> None:
    manifest, root = spoilt
    unfinished(copied)
    (copied / RUN_FILE.replace("s3", "s4")).unlink()
    data = (root / IMAGE).read_bytes()
    (root / IMAGE).write_bytes(data[:20_000] + 4096 * b"\xff" + data[24_096:])
    with pytest.raises(ValueError, match=f"{IMAGE} cannot be read as NIfTI"):
        prepare(manifest, changed(tiny_profile, root), jobs=1, keep_going=keep_going)
    assert (copied / RUN_FILE.replace("s3", "s4")).exists() or not keep_going  # it may be, by then


def test_constant_voxels_become_zeros_and_are_counted(
    project: Path, spoilt: Dataset, store: Store, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    manifest = manifest[manifest["subject"] == "s3"]
    own = np.argwhere(nib.load(root / MASK).get_fdata() > 0)[[3, 20]]

    def freeze(image: nib.Nifti1Image) -> nib.Nifti1Image:
        bold = image.get_fdata(dtype=np.float32)
        bold[tuple(own[0])], bold[tuple(own[1])] = 123.4, 0
        return nib.Nifti1Image(bold, image.affine)

    rewrite(root / IMAGE, freeze)
    made = prepare(manifest, changed(tiny_profile, root, fwhm_mm=None), jobs=1)
    assert made.runs.set_index("file")["constant_voxels"].to_dict()[RUN_FILE] == 2
    assert made.runs["constant_voxels"].sum() == 2
    for volume in made.read(RUN_FILE).float().numpy():
        zeros = np.argwhere((made.unmask(volume).get_fdata() == 0) & made.mask)
        np.testing.assert_array_equal(zeros, own)


@pytest.mark.parametrize("damage", [lambda data: data[:9000], lambda data: data[:2000] + b"\xff" * 99 + data[2099:]])
def test_a_run_without_mask_that_is_damaged_after_the_plan_is_named(
    project: Path, spoilt: Dataset, tiny_profile: Profile, damage: Callable[[bytes], bytes]
) -> None:
    manifest, root = spoilt
    manifest, profile = manifest.assign(mask=""), changed(tiny_profile, root)
    prepare(manifest, profile, jobs=1)
    unfinished(profile.store)
    (root / IMAGE).write_bytes(damage((root / IMAGE).read_bytes()))
    with pytest.raises((ValueError, OSError), match=IMAGE):
        prepare(manifest, profile, jobs=1)


# ---- events


@pytest.mark.parametrize(
    ("separator", "end", "start"),
    [
        ("\t", "\n", ""), (" ", "\n", ""), ("  ", "\n", ""), (",", "\n", ""), ("; ", "\n", ""), ("\t", "\r\n", ""),
        ("\t", "\r\n", "\ufeff"),
    ],
    ids=["tabs", "spaces", "two spaces", "commas", "semicolons", "Windows", "Windows with byte-order mark"],
)  # fmt: skip
def test_however_events_are_written_the_store_is_the_same(
    copied: Path, spoilt: Dataset, store: Store, tiny_profile: Profile, separator: str, end: str, start: str
) -> None:
    manifest, root = spoilt
    for path in (root / EVS).iterdir():
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        text = start + "".join(separator.join(row) + end for row in reversed(rows))  # and not in time's order
        path.write_bytes(text.encode())
    unfinished(copied)
    (copied / RUN_FILE).unlink()
    prepare(manifest, changed(tiny_profile, root), jobs=1)
    assert data_of(contents(copied)) == data_of(contents(store.path))


def test_blocks_that_reach_out_of_the_run_keep_what_is_inside_and_the_others_are_counted(
    copied: Path, spoilt: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    #   inside; from before the start; past the end; wholly past it; wholly before the start; of no length
    mental = "60 10 1\n-4 10 1\n80 10 1\n86 10 1\n-30 10 1\n40 0 1\n"
    (root / EVS / "mental.txt").write_text(mental)
    (root / EVS / "rnd.txt").write_text("20 10 1\n")
    unfinished(copied)
    made = prepare(manifest, changed(tiny_profile, root), jobs=1)
    rows = made.index[made.index["file"] == RUN_FILE]
    # 44 volumes 2 s apart; the first two of each block are dropped
    assert rows.groupby("state")["frame"].apply(list).to_dict() == {
        "interaction": [0, 1, 2, 32, 33, 34, 42, 43], "no interaction": [12, 13, 14],
    }  # fmt: skip
    run = made.runs.set_index("file").loc[RUN_FILE]
    assert (run["n_kept"], run["volumes_in_no_block"], run["volumes_in_two_blocks"]) == (11, 33, 0)
    assert (run["blocks_past_the_end"], run["blocks_without_volumes"]) == (2, 3)
    assert verify(copied) == []


def test_a_run_whose_events_have_no_length_is_empty_and_the_others_are_whole(
    copied: Path, spoilt: Dataset, store: Store, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    for name in EVENTS["SOCIAL"]:
        (root / EVS / f"{name}.txt").write_text("10 0 1\n30 0 1\n")
    unfinished(copied)
    made = prepare(manifest, changed(tiny_profile, root), jobs=1)
    assert made.runs.set_index("file").loc[RUN_FILE, ["n_kept", "blocks_without_volumes"]].tolist() == [0, 4]
    others = store.index[store.index["file"] != RUN_FILE].reset_index(drop=True)
    pd.testing.assert_frame_equal(made.index, others)
    assert verify(copied) == []


def test_rows_of_a_table_with_more_cells_than_its_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sub-01_events.tsv"  # read with the columns moved by one, these would be 5 s from 10 s on
    path.write_text("onset\tduration\tamplitude\ttrial_type\n0\t10\t5\t1\tface\n")
    with pytest.raises(ValueError, match=f"{path}"):
        read_events(path, {"face": ["face"]}, "faces")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE), tmp_path / "a.nii.gz")
    (tmp_path / "table.csv").write_text("subject,image,sex\nx,1,a.nii.gz,F\n")
    with pytest.raises(ValueError, match=r"table\.csv"):
        scan_table(tmp_path / "table.csv", tmp_path)


# ---- names


def test_umlauts_and_spaces_in_all_names_make_no_difference(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    root = project / "Daten für Änne/HCP 1200"
    shutil.copytree(dataset[1], root)
    assert len(scan_hcp(root)[0]) == 12
    manifest = dataset[0].copy()
    for column in ("image", "mask", "events"):
        new = [f"{Path(name).parent}/größer als ’n Haus, {Path(name).name}" for name in manifest[column]]
        for old_name, new_name in zip(manifest[column], new, strict=True):
            (root / old_name).rename(root / new_name)
        manifest[column] = new
    write_manifest(manifest, project / "Läufe 1.csv")
    profile = changed(tiny_profile, root, project / "Änne’s Speicher/store")
    made = prepare(read_manifest(project / "Läufe 1.csv"), profile, jobs=1)
    assert made.path == project / "Änne’s Speicher/store"
    assert data_of(contents(made.path)) == data_of(contents(store.path))
    assert verify(made.path) == []


# ---- in processes of their own: disks and concurrency

PREAMBLE = """
    import errno
    import os
    import pickle
    import random
    import shutil
    import signal
    import subprocess
    import sys
    import time
    import traceback
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import nilearn.signal
    import torch
    from conftest import contents, without_leftovers

    from deeplight_core import workers
    from deeplight_core.prepare import prepare, prepare_subjects
    from deeplight_core.store import open_store, verify

    REMOUNT = ["mount", "--options-mode", "ignore", "-o"]  # the old options name users that a namespace may not have
    manifest, profile, reference, *more = pickle.loads(sys.stdin.buffer.read())
    workers.ProcessPoolExecutor = lambda jobs, *_: ThreadPoolExecutor(jobs)
    store = profile.store

    def is_whole():
        return without_leftovers(contents(store)) == reference and verify(store) == []

    def start(job, *arguments):
        \"\"\"Do a job in a fork of this process.\"\"\"
        if (child := os.fork()) == 0:
            status = 1
            try:
                job(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return child

    def end(child):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fill():
        prepare(manifest, profile, jobs=1)

    def n_done():
        return len(list(store.glob("runs/sub-*.json")))

    def wait_until(true):
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def start_anew():
        shutil.rmtree(store)
"""


def run_alone(script: str, folder: Path, *given: object, namespace: tuple[str, ...] = ()) -> None:
    """Run a script in a process that has started no threads, and fail with what it prints if it fails."""
    here = Path(__file__).parent
    done = subprocess.run(
        [*namespace, sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(script)],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        input=pickle.dumps(given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()


@pytest.fixture
def own_mounts(tmp_path: Path) -> tuple[str, ...]:
    """What to put before a command that is to mount file systems that only it sees."""
    command = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
    try:
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted: {error}")
    if tried.returncode != 0:
        pytest.skip(f"this user may not mount file systems: {tried.stderr}")
    return command


def test_a_folder_that_is_read_only_is_named_and_a_finished_store_there_is_used(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...]
) -> None:
    script = """
        store.mkdir(parents=True)
        for found in ("nothing", "half of it", "all of it"):
            subprocess.run(["mount", "-t", "tmpfs", "none", store], check=True)
            for name, data in reference.items():
                if found == "all of it" or (found == "half of it" and "SOCIAL" in name or name == "store.json"):
                    (store / name).parent.mkdir(exist_ok=True)
                    (store / name).write_bytes(data)
            subprocess.run([*REMOUNT, "remount,ro", store], check=True)
            before = contents(store)
            try:
                prepare(manifest, profile, jobs=1)
                assert found == "all of it", found
                assert is_whole()
            except OSError as error:
                assert found != "all of it", found
                assert error.errno == errno.EROFS, error
                assert "Read-only file system" in str(error), error
                assert str(store) in str(error), error
            assert contents(store) == before
            subprocess.run(["umount", store], check=True)
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path), namespace=own_mounts)


FULL_DISK = """
    (sizes,) = more
    store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", sizes[0], "none", store], check=True)
    for n_full, size in enumerate(sizes):
        subprocess.run([*REMOUNT, f"remount,{size}", store], check=True)
        try:
            fill()
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            assert "No space left on device" in str(error), error
            assert str(store) in str(error), error
        left = contents(store)
        assert all(data == reference[name] for name, data in left.items()), set(left)  # whole, nothing partial
        try:
            open_store(store)
            raise AssertionError("an unfinished store was opened")
        except ValueError as error:
            assert "is not finished" in str(error)
    assert is_whole(), (size, verify(store))
    assert n_full > 20, n_full
"""


@pytest.mark.parametrize(
    "sizes",
    [[f"size={4 * n}k" for n in range(1, 100)], [f"nr_inodes={n}" for n in range(2, 60)]],
    ids=["bytes", "files"],
)
def test_a_disk_that_is_full_is_named_and_with_more_room_the_store_becomes_whole(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...], sizes: list[str]
) -> None:
    """The disk grows by a page, or file, at a time, so that it is full at every place where anything is written."""
    run_alone(FULL_DISK, project, dataset[0], tiny_profile, contents(store.path), sizes, namespace=own_mounts)


def test_a_run_that_a_full_disk_cuts_short_is_never_taken_for_whole(project: Path, own_mounts: tuple[str, ...]) -> None:
    """A write that does not fit may end early without an error; here each row of the file takes several pages."""
    script = """
        import numpy as np
        from safetensors.numpy import load_file

        from deeplight_core.files import write_whole
        from deeplight_core.store import write_volumes

        path, values = Path("disk/run.safetensors"), torch.arange(18_000.0).view(3, 6_000)
        path.parent.mkdir()

        def process(write):
            write(slice(0, 6_000), values)
            return {}

        for storage, size in (("float16", 36_000), ("int8", 18_000)):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", path.parent], check=True)
            for n_pages in range(1, 20):
                subprocess.run([*REMOUNT, f"remount,size={4 * n_pages}k", path.parent], check=True)
                try:
                    write_whole(path, lambda p: write_volumes(p, np.arange(3), 6_000, storage, process))
                    break
                except OSError as error:
                    assert "No space left on device" in str(error), error
                    assert not list(path.parent.iterdir())
            assert size < path.stat().st_size < 1.01 * size, (storage, n_pages, path.stat().st_size)
            assert load_file(path)["volumes"].shape == (3, 6_000)
            subprocess.run(["umount", path.parent], check=True)
    """
    run_alone(script, project, None, SimpleNamespace(store=None), None, namespace=own_mounts)


@pytest.mark.parametrize(
    ("call", "storage"), [("pwrite", "float16"), ("pwrite", "int8"), ("preadv", "float16"), ("pread", "int8")]
)
def test_calls_that_move_fewer_bytes_than_asked_lose_nothing(
    project: Path, dataset: Dataset, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch, call: str, storage: str
) -> None:
    """POSIX lets them, e.g. on network file systems; an error will do, too."""
    manifest, profile = dataset[0][:2], changed(tiny_profile, storage=storage)
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    shutil.rmtree(profile.store)
    original = getattr(os, call)

    def short(file: int, what: Any, position: int) -> Any:
        if call == "pread":
            return original(file, what // 2 + 1, position)
        view = memoryview(what[0] if call == "preadv" else what).cast("B")
        view = view[: len(view) // 2 + 1]
        return original(file, [view] if call == "preadv" else view, position)

    monkeypatch.setattr(os, call, short)
    with contextlib.suppress(OSError):
        prepare(manifest, profile, jobs=1)
    found = data_of(contents(profile.store))
    assert found.items() <= expected.items()


def test_two_processes_that_fill_one_store_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        for _ in range(3):
            both = [start(fill), start(fill)]
            assert [end(child) for child in both] == [0, 0]
            assert is_whole()
            start_anew()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_two_containers_that_fill_one_store_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile, own_mounts: tuple[str, ...]
) -> None:
    """Both count their processes from 1."""
    script = """
        me, other = more
        assert os.getpid() == 1
        for n in range(3):
            Path(f"{me}{n}").touch()
            wait_until(Path(f"{other}{n}").exists)
            profile = profile.model_copy(update={"name": f"round{n}"})
            store = profile.store
            fill()
            assert is_whole()
    """
    container = (*own_mounts, "--pid", "--fork", "--kill-child")
    given = project, dataset[0], tiny_profile, contents(store.path)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run_alone, script, *given, *names, namespace=container) for names in ("ab", "ba")]
    for one in both:
        one.result()


def test_one_process_per_subject_all_at_once_make_the_same(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        for _ in range(2):
            subjects = [[subject] for subject in sorted(set(manifest["subject"]))]
            all_of_them = [start(prepare_subjects, manifest, profile, subject, 1) for subject in subjects]
            assert [end(child) for child in all_of_them] == [0] * 6
            assert n_done() == 12
            assert not (store / "index.parquet").exists()
            times = {path: path.stat().st_mtime_ns for path in store.glob("runs/*")}
            fill()
            assert times == {path: path.stat().st_mtime_ns for path in store.glob("runs/*")}  # nothing done twice
            assert is_whole()
            start_anew()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_a_store_that_is_being_filled_opens_whole_or_not_at_all(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        refusals = set()
        for _ in range(3):
            child, n_opened = start(fill), 0
            while not n_opened:
                try:
                    opened = open_store(store)
                    assert len(opened.index) == 12 * 18
                    assert is_whole()
                    n_opened += 1
                except ValueError as error:
                    refusals.add(str(error).removeprefix(f"store {store} ").split(";")[0])
            assert end(child) == 0
            start_anew()
        assert refusals == {"does not exist", "is not finished"}, refusals
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_a_slow_plan_does_not_take_away_what_a_faster_process_has_finished(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        from deeplight_core import plan as planning

        load_volume, index = planning.load_volume, store / "index.parquet"

        def load_late(path):
            wait_until(index.exists)
            return load_volume(path)

        def fill_slowly():
            planning.load_volume = load_late
            fill()

        slow = start(fill_slowly)
        time.sleep(0.1)
        assert end(start(fill)) == 0
        while os.waitid(os.P_PID, slow, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            open_store(store)
        assert end(slow) == 0
        assert is_whole()
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def test_one_of_two_processes_is_killed_and_the_other_makes_the_store_whole(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    script = """
        n_killed = 0
        for n_before in (0, 2, 7, 12):
            killed, other = start(fill), start(fill)
            wait_until(lambda: n_done() >= n_before)
            time.sleep(random.uniform(0, 0.02))
            os.kill(killed, signal.SIGKILL)
            n_killed += end(killed) == -signal.SIGKILL
            assert end(other) == 0
            assert is_whole()
            start_anew()
        assert n_killed >= 2, n_killed
    """
    run_alone(script, project, dataset[0], tiny_profile, contents(store.path))


def workers_of(process: int) -> list[int]:
    """The processes that a pool has spawned."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_is_one_message_and_the_same_command_goes_on(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    write_manifest(dataset[0], project / "mine.csv")
    states = {**tiny_profile.data.source, **tiny_profile.data.target}
    write_notes(project / "mine.csv", str(dataset[1]), "hcp", "subject", states)
    deeplight = Path(sys.executable).with_name("deeplight")
    command = [deeplight, "prepare", "mine.csv", "--store", "store", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(found := workers_of(process.pid)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(found[0], signal.SIGKILL)  # as Linux does when memory runs out
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2, shown
    assert shown.startswith("deeplight: "), shown
    assert "Traceback" not in shown
    assert "--jobs" in shown
    with pytest.raises(ValueError, match="is not finished"):
        open_store(project / "store")
    made = prepare(read_manifest(project / "mine.csv"), changed(tiny_profile, store=project / "store"), jobs=1)
    assert data_of(contents(made.path)) == data_of(contents(store.path))


def test_workers_that_die_while_others_are_still_started_do_not_keep_the_pool_waiting(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os\n\ndef die(_):\n    os._exit(1)\n")
    script = """
        import dying
        from deeplight_core.workers import in_processes
        if __name__ == "__main__":
            try:
                in_processes(dying.die, range(32), 32, "deaths")
            except OSError as error:
                assert "--jobs" in str(error), error
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(script))
    process = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        _, shown = process.communicate(timeout=20)
    finally:
        process.kill()  # its workers end with it
    assert process.returncode == 0, shown


# ---- stores with something else in them


@pytest.mark.parametrize("name", [RUN_FILE, RECORD_FILE, "index.parquet", "mask.nii.gz"])
def test_a_folder_in_the_place_of_a_file_is_named(
    copied: Path, dataset: Dataset, store: Store, tiny_profile: Profile, name: str
) -> None:
    unfinished(copied)
    (copied / name).unlink(missing_ok=True)
    (copied / name / "inside").mkdir(parents=True)
    with pytest.raises((ValueError, OSError), match=f"directory; .*{name}"):
        prepare(dataset[0], tiny_profile, jobs=1)
    assert not [path for path in copied.rglob("partial_*")]
    shutil.rmtree(copied / name)
    prepare(dataset[0], tiny_profile, jobs=1)
    assert contents(copied) == contents(store.path)


JUNK = [b"", b"junk", b"\xff\xfe\x00", b"[]", b"null", b"{}"]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_store_json_of_a_finished_store_is_named_or_written_anew(
    copied: Path, dataset: Dataset, store: Store, tiny_profile: Profile, junk: bytes
) -> None:
    (copied / "store.json").write_bytes(junk)
    with pytest.raises(ValueError, match=f"store {copied} is damaged"):
        verify(copied)
    try:
        prepare(dataset[0], tiny_profile, jobs=1)
        assert contents(copied) == contents(store.path)
    except ValueError as error:
        assert f"store {copied} was made with other" in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_store_json_of_an_unfinished_store_is_written_anew(
    copied: Path, dataset: Dataset, store: Store, tiny_profile: Profile, junk: bytes
) -> None:
    unfinished(copied)
    (copied / "store.json").write_bytes(junk)
    times = {path: path.stat().st_mtime_ns for path in copied.glob("runs/*")}
    prepare(dataset[0], tiny_profile, jobs=1)
    assert contents(copied) == contents(store.path)
    assert {path: path.stat().st_mtime_ns for path in copied.glob("runs/*")} == times


def cut_record(store: Path) -> None:
    truncate(store / RECORD_FILE)


def record_of_another_run(store: Path) -> None:
    shutil.copy(store / RECORD_FILE.replace("s3", "s1"), store / RECORD_FILE)


def record_and_file_of_another_run(store: Path) -> None:
    for name in (RECORD_FILE, RUN_FILE):
        shutil.copy(store / name.replace("s3", "s1"), store / name)


def record_of_nothing(store: Path) -> None:
    (store / RECORD_FILE).write_text("[]")


def record_without_file(store: Path) -> None:
    (store / RUN_FILE).unlink()


def record_that_lacks_something(store: Path) -> None:
    record = json.loads((store / RECORD_FILE).read_text())
    del record["frames"]
    (store / RECORD_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [
        cut_record, record_of_another_run, record_and_file_of_another_run, record_of_nothing, record_without_file,
        record_that_lacks_something,
    ],
)  # fmt: skip
def test_a_run_whose_record_does_not_hold_is_prepared_anew(
    copied: Path, dataset: Dataset, store: Store, tiny_profile: Profile, damage: Callable[[Path], None]
) -> None:
    unfinished(copied)
    damage(copied)
    prepare(dataset[0], tiny_profile, jobs=1)
    assert contents(copied) == contents(store.path)


# ---- what changes between two calls


def test_runs_that_a_shorter_manifest_still_has_are_kept(
    copied: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    unfinished(copied)
    times = {path.name: path.stat().st_mtime_ns for path in copied.glob("runs/*")}
    social = dataset[0][dataset[0]["task"] == "SOCIAL"].reset_index(drop=True)  # each subject's mask still counts once
    made = prepare(social, tiny_profile, jobs=1)
    assert {path.name: path.stat().st_mtime_ns for path in copied.glob("runs/*")} == times
    assert set(made.index["task"]) == {"SOCIAL"}
    assert len(made.runs) == 6
    assert verify(copied) == []
    for file in made.runs["file"]:
        assert (made.read(file) == store.read(file)).all()


def test_runs_are_prepared_anew_where_a_shorter_manifest_has_another_mask(
    copied: Path, dataset: Dataset, tiny_profile: Profile
) -> None:
    unfinished(copied)
    fewer = dataset[0][dataset[0]["subject"] != "s1"].reset_index(drop=True)
    prepare(fewer, tiny_profile, jobs=1)
    fresh = prepare(fewer, changed(tiny_profile, store=Path("fresh")), jobs=1)
    assert without_leftovers(contents(fresh.path)).items() <= contents(copied).items()
    assert verify(copied) == []


@pytest.mark.parametrize("same_size", [True, False])
def test_a_source_that_changes_before_the_index_is_written_is_prepared_anew(
    copied: Path, spoilt: Dataset, store: Store, tiny_profile: Profile, same_size: bool
) -> None:
    manifest, root = spoilt
    unfinished(copied)
    times = {path.name: path.stat().st_mtime_ns for path in copied.glob("runs/*.safetensors")}
    other = manifest["image"][manifest["subject"] == "s1"].iloc[1]
    if same_size:
        (root / EVS / "rnd.txt").write_text((root / EVS / "rnd.txt").read_text().replace("14\t10", "12\t10"))
    else:
        shutil.copyfile(root / other, root / IMAGE)
    made = prepare(manifest, changed(tiny_profile, root), jobs=1)
    new = {path.name for path in copied.glob("runs/*.safetensors") if path.stat().st_mtime_ns != times[path.name]}
    assert new == {Path(RUN_FILE).name}
    assert made.index.equals(store.index) != same_size
    assert (made.read(RUN_FILE) == made.read(RUN_FILE.replace("s3", "s1"))).all() != same_size
    assert verify(copied) == []


def test_an_index_without_store_json_does_not_vouch_for_other_settings(
    copied: Path, spoilt: Dataset, tiny_profile: Profile
) -> None:
    manifest, root = spoilt
    profile = changed(tiny_profile, root, fwhm_mm=6.0)
    (copied / "store.json").unlink()
    (root / EVS / "rnd.txt").rename(root / "rnd.txt")
    with pytest.raises(ValueError, match=r"rnd\.txt"):  # after some of the runs
        prepare(manifest, profile, jobs=1)
    (root / "rnd.txt").rename(root / EVS / "rnd.txt")
    prepare(manifest, profile, jobs=1)
    assert verify(copied) == []
    fresh = prepare(manifest, changed(profile, root, store=Path("fresh")), jobs=1)
    assert data_of(contents(copied)) == data_of(contents(fresh.path))


# ---- structural images

SEX = {"h1": "F", "h2": "M", "h3": "F", "h4": "M", "h5": "F", "h6": "M"}


@pytest.fixture
def heads(project: Path) -> Dataset:
    """Manifest and root: six heads, the last two to validate, each with its own mask."""
    root, random, rows = project / "heads", np.random.default_rng(1), []
    root.mkdir()
    for n, (subject, sex) in enumerate(SEX.items()):
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:6, 2:7, 1:8] = random.random((5, 5, 7)) < 0.8
        nib.save(nib.Nifti1Image(random.normal(900, 50, SHAPE).astype(np.float32), AFFINE), root / f"{subject}.nii.gz")
        nib.save(nib.Nifti1Image(mask, AFFINE), root / f"{subject}_mask.nii.gz")
        rows.append(
            ["mine", subject, "", "T1w", "1", f"{subject}.nii.gz", "", f"{subject}_mask.nii.gz", np.nan, 1,
             "train" if n < 4 else "validation", "", "", sex]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS, "sex"]), root


def of_heads(root: Path, storage: str = "float16", **structural: object) -> Profile:
    states = {"T1w": {"female": ["F"], "male": ["M"]}}
    return Profile.model_validate(
        {
            "name": "heads", "data": {"root": root, "label": "sex", "source": states, "target": {}},
            "preprocessing": {"storage": storage, "structural": structural},
        }
    )  # fmt: skip


def head(root: Path, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """One image and its mask (bool)."""
    image, mask = (nib.load(root / f"{subject}{name}.nii.gz") for name in ("", "_mask"))
    return image.get_fdata(dtype=np.float32), mask.get_fdata() > 0


def save_head(root: Path, subject: str, volume: np.ndarray, mask: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(volume.astype(np.float32), AFFINE), root / f"{subject}.nii.gz")
    if mask is not None:
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), root / f"{subject}_mask.nii.gz")


def scaled_by_hand(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = np.where(mask, volume, 0)
    return (inside - inside.min()) / (inside.max() - inside.min())


def test_structural_images_and_runs_do_not_mix(heads: Dataset, dataset: Dataset, tiny_profile: Profile) -> None:
    for parts in ([heads[0].drop(columns="sex"), dataset[0]], [dataset[0], heads[0].drop(columns="sex")]):
        both = pd.concat(parts, ignore_index=True)
        with pytest.raises(ValueError, match=r"structural images and runs of fMRI are in one manifest; name the tasks"):
            prepare(both, tiny_profile, jobs=1)
    assert not tiny_profile.store.exists()


def nan_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    volume[tuple(np.argwhere(mask)[5])] = np.nan
    save_head(root, "h3", volume)


def constant_everywhere(root: Path) -> None:
    save_head(root, "h3", np.full(SHAPE, 7), np.ones(SHAPE))


def constant_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, 7, volume))


def zero_in_the_mask(root: Path) -> None:
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, 0, volume))


def two_volumes(root: Path) -> None:
    save_head(root, "h3", np.stack([head(root, "h3")[0]] * 2, axis=-1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_in_the_mask, "holds NaN or infinite values in its mask; repair or leave out the image"),
        (constant_everywhere, "holds the value 7 only; leave out the image"),
        (constant_in_the_mask, "holds the value 7 only; leave out the image"),
        (zero_in_the_mask, "holds the value 0 only; leave out the image"),
        (two_volumes, r"shape \(7, 8, 9, 2\), but the manifest says 1 volumes"),
    ],
)
def test_a_structural_image_that_is_of_no_use_is_named(
    heads: Dataset, spoil: Callable[[Path], None], message: str
) -> None:
    manifest, root = heads
    spoil(root)
    profile = of_heads(root)
    with pytest.raises(ValueError, match=f"h3.nii.gz:? {message}"):
        prepare(manifest, profile, jobs=1)
    with pytest.raises(ValueError, match=r"is not finished|does not exist"):
        open_store(profile.store)


def test_nan_outside_the_mask_does_no_harm(heads: Dataset) -> None:
    manifest, root = heads
    profile = of_heads(root)
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    volume, mask = head(root, "h3")
    save_head(root, "h3", np.where(mask, volume, np.nan))
    unfinished(profile.store)
    assert data_of(contents(prepare(manifest, profile, jobs=1).path)) == expected


@pytest.mark.parametrize("name", ["file", "frame", "onset_s", "state", "unit", "row", "label"])
def test_a_label_column_whose_name_the_store_needs_is_refused(heads: Dataset, name: str) -> None:
    manifest, root = heads
    with pytest.raises(ValueError, match=f"column {name} has a name that the store needs; rename it"):
        prepare(manifest.assign(**{name: "x"}), of_heads(root), jobs=1)


def test_other_label_columns_come_with_the_index(heads: Dataset) -> None:
    manifest, root = heads
    made = prepare(manifest.assign(**{"n_kept": "7", "scale": "x", "Größe": "1,80 m"}), of_heads(root), jobs=1)
    assert made.index[["n_kept", "scale", "Größe"]].drop_duplicates().to_numpy().tolist() == [["7", "x", "1,80 m"]]
    assert made.index["sex"].tolist() == list(SEX.values())
    assert made.index["state"].map({"female": "F", "male": "M"}).tolist() == list(SEX.values())


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_z_scores_are_numpys_over_the_training_images(heads: Dataset, storage: str) -> None:
    manifest, root = heads
    brightest = (3, 4, 4)
    for subject in SEX:  # the same voxel is the brightest in all of them: it is always 1 and has no SD
        volume, mask = head(root, subject)
        mask[brightest], volume[brightest] = True, 2000
        save_head(root, subject, volume, mask)
    made = prepare(manifest, of_heads(root, storage, z_score=True), jobs=1)
    volumes = {file: made.read(file).double().numpy()[0] * made.scales[file] for file in made.runs["file"]}
    trained_on = np.stack(
        [volumes[f] for f, split in zip(made.runs["file"], made.runs["split"], strict=True) if split == "train"]
    )
    assert len(trained_on) == 4
    mean, sd = (values.numpy() for values in made.statistics())
    np.testing.assert_allclose(mean, trained_on.mean(axis=0), rtol=1e-6)  # float32
    np.testing.assert_allclose(sd, trained_on.std(axis=0, ddof=1), rtol=1e-6, atol=1e-9)
    assert (sd == 0).sum() == 1
    rows = select_rows(made.index, [("T1w", "female"), ("T1w", "male")], "validation")
    expected = np.stack([volumes[file] for file in rows["file"]])
    expected = np.divide(expected - mean, sd, out=np.zeros_like(expected), where=sd > 0)
    for in_memory in (True, False):
        z = Volumes(made, rows, in_memory=in_memory).masked(np.arange(len(rows))).numpy()
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)


def test_a_disk_that_is_too_full_for_the_statistics_is_named(heads: Dataset, own_mounts: tuple[str, ...]) -> None:
    manifest, root = heads
    profile, sizes = of_heads(root, z_score=True), [f"size={4 * n}k" for n in range(1, 60)]
    reference = contents(prepare(manifest, profile, jobs=1).path)
    shutil.rmtree(profile.store)
    run_alone(FULL_DISK, root.parent, manifest, profile, reference, sizes, namespace=own_mounts)


def test_zooming_is_scipys(heads: Dataset) -> None:
    manifest, root = heads
    random, shape = np.random.default_rng(2), (5, 6, 7)
    shapes = dict(zip(SEX, [(7, 8, 9), (8, 9, 10), (6, 7, 11), (10, 6, 7), (5, 6, 7), (9, 11, 8)], strict=True))
    votes, zoomed = np.zeros(shape), {}
    for subject, its_shape in shapes.items():
        volume, mask = random.uniform(1, 2, its_shape), random.random(its_shape) < 0.8
        save_head(root, subject, volume, mask)
        factors = [n / m for n, m in zip(shape, its_shape, strict=True)]
        volume = scaled_by_hand(*head(root, subject))
        zoomed[subject] = zoom(volume, factors, order=1, mode="nearest")
        votes += zoom(mask.astype(np.float32), factors, order=0, mode="nearest")
    made = prepare(manifest, of_heads(root, zoom_to=shape), jobs=1)
    np.testing.assert_array_equal(made.mask, votes >= 3)
    for subject, expected in zoomed.items():
        stored = made.read(f"runs/sub-{subject}_task-T1w_run-1.safetensors").float().numpy()[0]
        np.testing.assert_allclose(stored, expected.T[made.mask.T], rtol=2**-11, atol=1e-6)  # float16
    far = np.array([[0, 0, 0, 1], [4, 5, 6, 1]]).T, np.array([[0, 0, 0, 1], [6, 7, 8, 1]]).T
    np.testing.assert_allclose(made.affine @ far[0], AFFINE @ far[1], atol=1e-5)  # corners stay where they were


def test_images_with_a_fourth_axis_of_one_are_zoomed_too(heads: Dataset) -> None:
    manifest, root = heads
    profile = of_heads(root, zoom_to=(5, 6, 7))
    expected = data_of(contents(prepare(manifest, profile, jobs=1).path))
    shutil.rmtree(profile.store)
    for subject in SEX:
        save_head(root, subject, head(root, subject)[0][..., None])
    made = prepare(manifest, profile, jobs=1)
    assert made.mask.shape == (5, 6, 7)
    assert data_of(contents(made.path)) == expected


# ---- int8


def test_int8_rounds_to_the_step_that_it_says(
    project: Path, dataset: Dataset, store: Store, tiny_profile: Profile
) -> None:
    made = prepare(dataset[0], changed(tiny_profile, storage="int8"), jobs=1)
    for run in made.runs.itertuples():
        exact, stored = store.read(run.file).float().numpy(), made.read(run.file).numpy()
        assert stored.dtype == np.int8
        assert run.scale == pytest.approx(np.abs(exact).max() / 127)
        error = stored * np.float64(run.scale) - exact
        assert np.abs(error).max() <= run.scale / 2 * (1 + 1e-5)
        assert run.rounding_largest == pytest.approx(np.abs(error).max(), rel=1e-4)
        assert run.rounding_rms == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    size = {s.path: sum((s.path / file).stat().st_size for file in s.runs["file"]) for s in (made, store)}
    assert size[made.path] < 0.6 * size[store.path]
    assert verify(made.path) == []


def test_int8_volumes_are_the_same_from_memory_and_disk(project: Path, dataset: Dataset, tiny_profile: Profile) -> None:
    made = prepare(dataset[0], changed(tiny_profile, storage="int8"), jobs=1)
    rows = select_rows(made.index, [("SOCIAL", "interaction"), ("EMOTION", "fear")], "train")
    rows = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    of_rows = [made.read(row.file)[row.row].numpy() * np.float32(made.scales[row.file]) for row in rows.itertuples()]
    in_memory, streamed = (Volumes(made, rows, in_memory=which) for which in (True, False))
    numbers = np.random.default_rng(0).permutation(len(rows))
    for volumes in (in_memory, streamed):
        np.testing.assert_array_equal(volumes.masked(numbers).numpy(), np.stack(of_rows)[numbers])
    order = np.array_split(numbers, 7)
    for (_, one), (_, other) in zip(in_memory.batches(iter(order)), streamed.batches(iter(order)), strict=True):
        assert (one["volumes"] == other["volumes"]).all()
        assert one["volumes"].abs().max() > 1
