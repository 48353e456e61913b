"""What goes wrong with data, disks and processes while a store is filled, beyond what test_prepare.py spoils."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import (
    AFFINE,
    EVENTS,
    EVS,
    IMAGE,
    MASK,
    RUN_FILE,
    SHAPE,
    TR_S,
    Dataset,
    changed,
    contents,
    data_of,
    flip_bit,
    truncate,
    unfinished,
    without_leftovers,
)

from deeplight_core.config import Profile
from deeplight_core.data.events import read_events
from deeplight_core.data.images import load_bold, load_volume, read_header
from deeplight_core.data.manifest import read_manifest, write_manifest
from deeplight_core.data.prepare import prepare
from deeplight_core.data.scan import scan_hcp, scan_table
from deeplight_core.data.store import Store, verify

RECORD_FILE = RUN_FILE.replace(".safetensors", ".json")


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
    with pytest.raises(ValueError, match=rf"{IMAGE} has an affine that is not invertible, .*; repair its header"):
        prepare(manifest, changed(tiny_profile, root), jobs=1)
    found, left_out = scan_hcp(root)
    assert len(found) == 11
    assert "is not invertible" in left_out.set_index("path").loc[IMAGE, "reason"]


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_mask_with_such_an_affine_is_named(
    project: Path, spoilt: Dataset, tiny_profile: Profile, value: float
) -> None:
    manifest, root = spoilt
    set_sform(root / MASK, value)
    with pytest.raises(ValueError, match=f"{MASK} has an affine that is not invertible"):
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
