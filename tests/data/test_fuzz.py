"""Parsers and readers given anything: they name the file in a ValueError (or OSError), or what they return holds."""

import gzip
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import AFFINE, SHAPE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplight_core.data.confounds import read_confounds
from deeplight_core.data.events import read_events
from deeplight_core.data.images import read_frames, read_header
from deeplight_core.data.manifest import COLUMNS, read_manifest
from deeplight_core.data.rows import IDENTITY, row_of
from deeplight_core.data.simulate import plan
from deeplight_core.data.trials import trials_before, trials_of
from deeplight_core.preparation import ConfoundSettings, PreprocessingSettings, read_states

WANTED = {"left": ["lh"], "right": ["rh"]}
few = settings(max_examples=100, deadline=None, derandomize=True)
cheap = settings(few, max_examples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def quiet_nibabel(caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of lines on headers that it mends."""
    caplog.set_level("CRITICAL", "nibabel.global")


# ---- events

numbers = st.sampled_from(
    ["0", "2", "14.5", "-4", "1e3", "1e308", "nan", "inf", "-inf", "1_0", "٣", "0x10", ".", "n/a", ""]
)
cells = numbers | st.sampled_from(["lh", "rh", "rest", '"', '"lh"', "NA", "\x00", "\xa0"]) | st.text(max_size=4)
lines = st.builds(
    lambda cells, separator: separator.join(cells), st.lists(cells, max_size=5), st.sampled_from("\t ,;\x0b")
)
texts = st.builds(
    lambda lines, end, coding: end.join(lines).encode(coding, errors="replace"),
    st.lists(lines, max_size=6), st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
)  # fmt: skip


def blocks_hold(blocks: pd.DataFrame) -> None:
    onsets, durations = blocks["onset"].to_numpy(float), blocks["duration"].to_numpy(float)
    assert len(blocks) > 0
    assert np.isfinite(onsets).all()
    assert np.isfinite(durations).all()
    assert (durations >= 0).all()
    assert (np.diff(onsets) >= 0).all()
    assert set(blocks["state"]) <= set(WANTED)


@few
@given(content=texts | st.binary(max_size=60))
@example(content=b"2\t3\t1\n")
def test_any_event_file_gives_blocks_or_is_named(folder: Path, content: bytes) -> None:
    evs = folder / "EVs"
    evs.mkdir(exist_ok=True)
    (evs / "lh.txt").write_bytes(content)
    (evs / "rh.txt").write_text("60 12 1\n")
    (evs / "cue.txt").write_text("57 3 1\n")
    try:
        events = read_events(evs, WANTED, "MOTOR")
    except ValueError as error:
        assert str(evs / "lh.txt") in str(error)  # noqa: PT017  either is right
    else:
        blocks_hold(events.blocks)


@few
@given(content=texts | st.binary(max_size=60), header=st.sampled_from([b"", b"onset\tduration\ttrial_type\n"]))
@example(content=b"2\t3\tlh\n", header=b"onset\tduration\ttrial_type\n")
def test_any_table_of_events_gives_blocks_or_is_named(folder: Path, content: bytes, header: bytes) -> None:
    path = folder / "sub-01_events.tsv"
    path.write_bytes(header + content)
    try:
        events = read_events(path, WANTED, "faces")
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        blocks_hold(events.blocks)


plain_cells = st.sampled_from(["0", "2.5", "14", "-4", "1e3", "lh", "rh", "rest", "1"])


@few
@given(
    columns=st.permutations(["onset", "duration", "trial_type", "amplitude"]),
    rows=st.lists(st.lists(plain_cells, min_size=3, max_size=6), max_size=5),
)
@example(columns=["onset", "duration", "amplitude", "trial_type"], rows=[["0", "14", "2.5", "1", "lh"]])
def test_a_table_of_events_is_what_splitting_its_lines_gives(
    folder: Path, columns: list[str], rows: list[list[str]]
) -> None:
    path = folder / "sub-02_events.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
    try:
        found = read_events(path, WANTED, "faces").blocks
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert all(len(row) <= 4 for row in rows)
    states = {"lh": "left", "rh": "right"}
    split = [dict(zip(columns, row, strict=False)) for row in rows]
    wanted = [(float(row["onset"]), float(row["duration"]), states[row["trial_type"]])
              for row in split if row.get("trial_type") in states]  # fmt: skip
    assert list(found.itertuples(index=False, name=None)) == sorted(wanted)


# ---- the manifest

TABLE = (
    plan(2, 1, 2.16, ("LR",)).astype({"tr_s": str, "n_volumes": str}).iloc[::3].reset_index(drop=True)
)  # of 3 people
odd = st.sampled_from([
    "", " ", "0", "1", "-1", "2.16", " 2.16", "1_0", "٢", "nan", "inf", "1e1", "0x2", "12.0", "5\n", "a\n", "\n", ".",
    "..", "a/../b", "/etc/x", "a/./b", "train", "validation", "test", "Train", "sim001", "sim002", "F1", "LR", "WM",
    "é", "\x00", '"', ",", "\ufeff", "0a" * 32, "0A" * 32, "0a" * 32 + "\n", "a" * 300,
])  # fmt: skip
mutations = st.lists(
    st.tuples(st.integers(0, len(TABLE) - 1), st.sampled_from(COLUMNS), odd | st.text(max_size=6)),
    min_size=1,
    max_size=3,
)


@few
@given(mutations=mutations)
@example(mutations=[])
@example(mutations=[(0, "tr_s", "1_0")])
@example(mutations=[(0, "tr_s", "٢")])
@example(mutations=[(0, "n_volumes", "٣")])
@example(mutations=[(0, "subject", "a\n")])
@example(mutations=[(0, "n_volumes", "5\n")])
@example(mutations=[(0, "image", "a\x00b")])
@example(mutations=[(0, "events", "a/../b")])
@example(mutations=[(0, "mask", "/etc/x")])
@example(mutations=[(0, "split", "validation")])
@example(mutations=[(0, "family", "F1"), (6, "family", "F1")])
@example(mutations=[(1, "subject", "sim001"), (1, "task", "WM")])
@example(mutations=[(1, "image", TABLE["image"][0])])
@example(mutations=[(1, "events", ""), (1, "tr_s", ""), (1, "n_volumes", "1")])
@example(mutations=[(1, "events", "")])
@example(mutations=[(1, "tr_s", "")])
def test_any_manifest_names_its_bad_rows_or_holds(folder: Path, mutations: list[tuple[int, str, str]]) -> None:
    table, path = TABLE.copy(), folder / "manifest.csv"
    for row, column, value in mutations:
        table.loc[row, column] = value
    path.write_text(table.to_csv(index=False), encoding="utf-8", errors="replace", newline="")
    try:
        found = read_manifest(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert re.search(r"\n  row \d+: ", str(error))  # noqa: PT017
        return
    assert len(found) == len(table)
    for column in ("subject", "task", "run"):
        assert found[column].map(lambda cell: bool(re.fullmatch(r"[\w.+-]+", cell))).all()
    assert found["session"].map(lambda cell: bool(re.fullmatch(r"[\w.+-]*", cell))).all()
    assert (found["dataset"].str.strip() != "").all()
    assert set(found["split"]) <= {"train", "validation", "test"}
    structural = found["tr_s"].isna()
    assert (found.loc[structural, "events"] == "").all()
    assert found.loc[~structural, "tr_s"].between(0.1, 20).all()
    assert (found["n_volumes"] >= 1).all()
    assert (found.loc[structural, "n_volumes"] == 1).all()
    assert not found.duplicated(["subject", "session", "task", "run"]).any()
    assert not found["image"].duplicated().any()
    for column in ("image", "events", "mask"):
        assert not any(Path(name).is_absolute() or ".." in Path(name).parts or "\x00" in name for name in found[column])
    for column in ("subject", "family"):
        named = found.loc[found[column] != "", [column, "split"]].drop_duplicates()
        assert not named[column].duplicated().any()
    assert found["sha256"].map(lambda cell: bool(re.fullmatch(r"([0-9a-f]{64})?", cell))).all()


# ---- images


def nifti(dtype: str, scaling: tuple[float, float] | tuple[None, None]) -> bytes:
    """The bytes of a small run."""
    values = np.random.default_rng(0).integers(0, 200, (*SHAPE, 5)).astype(dtype)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(*scaling)
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


RUNS = {"float32": nifti("<f4", (None, None)), "int16": nifti("<i2", (0.25, -7.5))}
flips = st.tuples(st.integers(0, 351) | st.integers(0, 10_000), st.integers(1, 255))


def flipped(data: bytes, flips: list[tuple[int, int]], start: int = 0) -> bytes:
    """Bytes with some of them, from `start` on, changed."""
    changed = bytearray(data)
    for position, bits in flips:
        changed[start + position % (len(data) - start)] ^= bits
    return bytes(changed)


def frames_of(path: Path) -> np.ndarray | None:
    """(X, Y, Z, T), or None if the file is refused and named."""
    try:
        with np.errstate(all="ignore"):  # of values that became too large for float32, which are then refused
            return torch.cat(list(read_frames(path))).numpy().T
    except (ValueError, OSError) as error:
        assert str(path) in str(error)  # noqa: PT017
        return None


def header_of(path: Path) -> Any:
    try:
        return read_header(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@few
@given(which=st.sampled_from(sorted(RUNS)), flips=st.lists(flips, max_size=3), length=st.none() | st.floats(0, 1))
@example(which="int16", flips=[], length=None)
@example(which="int16", flips=[(40, 7)], length=None)  # the number of dimensions
@example(which="float32", flips=[(123, 4)], length=None)  # units that there are not
@example(which="int16", flips=[(43, 0x70), (45, 0x70), (47, 0x70), (49, 0x70)], length=None)  # a huge shape
@example(which="float32", flips=[(291, 90)], length=None)  # an affine of 1e18 mm
@example(which="float32", flips=[(48, 5)], length=None)  # no volume
@example(which="float32", flips=[(42, 7)], length=None)  # no voxel
@example(which="float32", flips=[(70, 16 ^ 32)], length=None)  # complex numbers
@example(which="float32", flips=[(70, 16 ^ 128)], length=None)  # colours
@example(which="float32", flips=[(111, 0x3F), (110, 0x30)], length=None)  # an offset beyond the end
@example(which="float32", flips=[(111, 0x3D), (110, 0x30)], length=None)  # an infinite offset
def test_a_damaged_run_is_named_or_read_as_nibabel_reads_it(
    folder: Path, suffix: str, which: str, flips: list[tuple[int, int]], length: float | None
) -> None:
    path, data = folder / f"bold{suffix}", flipped(RUNS[which], flips)
    data = data if length is None else data[: int(length * len(data))]
    path.write_bytes(gzip.compress(data, mtime=0) if suffix == ".nii.gz" else data)
    header, frames = header_of(path), frames_of(path)
    if header is not None:
        image = nib.load(path)
        assert header.shape == image.shape
        np.testing.assert_array_equal(header.affine, image.affine)
        assert len(header.orientation) == 3
    if frames is not None:
        np.testing.assert_array_equal(frames, nib.load(path).get_fdata(dtype=np.float32))


@few
@given(which=st.sampled_from(sorted(RUNS)), flips=st.lists(flips, max_size=2), length=st.none() | st.floats(0, 0.999))
@example(which="int16", flips=[], length=None)
@example(which="float32", flips=[(0, 1)], length=None)  # a block that cannot be
def test_damage_to_a_compressed_run_is_found(
    folder: Path, which: str, flips: list[tuple[int, int]], length: float | None
) -> None:
    whole, path = gzip.compress(RUNS[which], mtime=0), folder / "damaged.nii.gz"
    damaged = flipped(whole, flips, start=10)  # after gzip's own header, which has no checksum
    path.write_bytes(damaged if length is None else damaged[: int(length * len(damaged))])
    header_of(path)
    frames = frames_of(path)
    if path.read_bytes() == whole:
        np.testing.assert_array_equal(frames, nib.Nifti1Image.from_bytes(RUNS[which]).get_fdata(dtype=np.float32))
    else:
        assert frames is None


# ---- trials

onsets = st.floats(-30, 130) | st.sampled_from([0.0, 7.5, 60.0])
trial_tables = st.lists(
    st.tuples(onsets, st.sampled_from([0.0, 0.5, 2.0, 9.0]), st.sampled_from(["left", "right"])), max_size=8
)


@cheap
@given(
    trials=trial_tables,
    kind=st.sampled_from(["window", "lsa", "lss"]),
    window=st.sampled_from([(4.0, 8.0), (0.0, 0.1), (-3.0, 1.0)]),
    kept=st.lists(st.integers(0, 59), min_size=20, unique=True).map(sorted),
)
@example(trials=[], kind="lss", window=(4.0, 8.0), kept=list(range(60)))
@example(trials=[(0.0, 2.0, "left")] * 2 + [(0.0, 2.0, "right")], kind="lsa", window=(4.0, 8.0), kept=list(range(60)))
def test_any_trials_become_examples_or_are_counted(
    trials: list[tuple[float, float, str]], kind: str, window: tuple[float, float], kept: list[int]
) -> None:
    """Each example weighs the frames that are kept: a window's weights are a mean, a beta's see no constant."""
    blocks = pd.DataFrame(trials, columns=["onset", "duration", "state"])
    chosen = PreprocessingSettings.model_validate({"example": {"kind": kind, "window_s": window}})
    times = np.arange(60) * 2.0
    found = trials_of(blocks, times, chosen, kept=np.array(kept))
    dropped = sum(n for name, n in found.counts.items() if name not in ("trials", "trials_nearest"))
    assert len(found.numbers) + dropped == found.counts["trials"] == len(blocks.drop_duplicates())
    assert found.matrix.shape == (len(found.numbers), len(kept))
    assert np.isfinite(found.matrix).all()
    assert (np.diff(found.numbers) > 0).all()
    assert set(found.states) <= {"left", "right"}
    if kind == "window":
        np.testing.assert_allclose(found.matrix.sum(axis=1), 1)
        early, states = trials_before(blocks, times, chosen, np.array(kept))
        assert (list(early), list(states)) == (list(found.numbers), list(found.states))
    else:
        np.testing.assert_allclose(found.matrix.sum(axis=1), 0, atol=1e-6)


# ---- confounds, sidecars, states

CONFOUNDS = pd.DataFrame(
    np.random.default_rng(0).normal(size=(5, 8)).round(3).astype(str),
    columns=["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement", "csf"],
)


@cheap
@given(
    changes=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([*CONFOUNDS]), cells), max_size=2),
    without=st.sampled_from(["", *CONFOUNDS]),
    tail=st.sampled_from([b"", b"1\t2\n", b"\xff\n", b'"\n', b"\n\n"]),
    strategy=st.sampled_from([[], ["motion"], ["non_steady_state"]]),
)
@example(changes=[(0, "framewise_displacement", "n/a")], without="", tail=b"", strategy=["motion"])
@example(changes=[(3, "rot_x", "n/a")], without="", tail=b"", strategy=["motion"])
@example(changes=[(3, "rot_x", "inf")], without="", tail=b"", strategy=["motion"])
def test_any_table_of_confounds_gives_regressors_or_is_named(
    folder: Path, changes: list[tuple[int, str, str]], without: str, tail: bytes, strategy: list[str]
) -> None:
    name, table = "sub-01_task-x_desc-confounds_timeseries.tsv", CONFOUNDS.copy()
    for row, column, value in changes:
        table.loc[row, column] = value
    text = table.drop(columns=[without] if without else []).to_csv(sep="\t", index=False)
    (folder / name).write_bytes(text.encode(errors="replace") + tail)
    (folder / name).with_suffix(".json").write_text("{}")
    chosen = ConfoundSettings.model_validate({"strategy": strategy, "motion": "basic"})
    files = [name, name.replace(".tsv", ".json")]
    try:
        found = read_confounds(folder, files, "sub-01_task-x_desc-preproc_bold.nii.gz", 5, chosen)
    except ValueError as error:
        assert strategy  # without one, a file that cannot be used counts as none
        assert name in str(error)  # noqa: PT017
        return
    if found is None:
        assert not strategy
        return
    assert found.regressors.shape == (5, 6 if strategy == ["motion"] else 0)
    assert np.isfinite(found.regressors).all()
    assert set(found.kept) <= set(range(5))
    assert found.mean_fd_mm is None or np.isfinite(found.mean_fd_mm)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, 2.0, 0.0, -1.0, 1e300, "2", "n/a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
clocks = st.dictionaries(
    st.sampled_from(["RepetitionTime", "StartTime", "VolumeTiming", "NumberOfVolumesDiscardedByUser", "DummyScans"]),
    json_values | st.just([0.0, 2.0, 4.0, 6.0, 8.0]),
)


@few
@given(
    sidecar=clocks.map(lambda facts: json.dumps(facts).encode()) | json_values.map(repr).map(str.encode) | st.binary()
)
@example(sidecar=b"[" * 100_000)
@example(sidecar=b'{"RepetitionTime": NaN}')
@example(sidecar=b'{"VolumeTiming": [0, 2, NaN, 6, 8]}')
@example(sidecar=b'{"RepetitionTime": 1e400}')
def test_any_sidecar_gives_a_clock_or_a_reason(folder: Path, sidecar: bytes) -> None:
    image, path = folder / "sub-01_task-x_bold.nii", folder / "sub-01_task-x_bold.json"
    if not image.exists():
        image.write_bytes(RUNS["int16"])
    path.write_bytes(sidecar)
    row, notes = row_of(folder, dict.fromkeys(IDENTITY, "x"), image, sidecars=[path], tr_s="2", structural=False)
    if row is None:
        assert len(notes) == 1
        assert path.name in notes[0][1] or "sidecar" in notes[0][1] or "repetition time" in notes[0][1]
    else:
        assert 0.1 <= row["tr_s"] <= 20
        assert 0 <= float(row["start_s"] or 0) <= row["tr_s"] * 5
        assert all(reason.startswith("kept") for _, reason in notes)


yaml_names = st.sampled_from(["face", "1", "yes", "a: b", "", "~", "1.0", "[x", "&a", "*a", "é", "- x"])
yaml_lines = st.builds(
    lambda indent, key, value: f"{'  ' * indent}{key}: {value}",
    st.integers(0, 2), yaml_names, yaml_names | st.builds(lambda name: f"[{name}]", yaml_names),
)  # fmt: skip


@few
@given(text=st.lists(yaml_lines, max_size=4).map("\n".join).map(str.encode) | st.binary(max_size=30))
@example(text=b"loc: {face: [face]}")
@example(text=b"loc: {1: [1, 2.0], no: [x]}")
@example(text=b"loc: &a {face: *a}")
@example(text=b"? [a]\n: b")
@example(text=b"loc: 2020-01-01")
def test_any_file_of_states_names_events_or_is_named(folder: Path, text: bytes) -> None:
    path = folder / "states.yaml"
    path.write_bytes(text)
    try:
        found = read_states(path, "bids")
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    for task, states in found.items():
        assert isinstance(task, str)
        for state, names in states.items():
            assert isinstance(state, str)
            assert names
            assert all(isinstance(name, str) for name in names)


# ---- guided by coverage

FUZZER = """
    import sys
    from pathlib import Path

    import atheris

    with atheris.instrument_imports(include=["deeplight_core.data.events", "deeplight_core.data.manifest"]):
        from deeplight_core.data.events import read_events
        from deeplight_core.data.manifest import COLUMNS, read_manifest

    def events(data):
        table, evs = Path("sub-01_events.tsv"), Path("EVs")
        table.write_bytes(b"onset\\tduration\\ttrial_type\\n" + data)
        (evs / "lh.txt").write_bytes(data)
        for path in (table, evs):
            attempt(read_events, path, {"left": ["lh"]}, "MOTOR")

    def manifest(data):
        table = Path("manifest.csv")
        table.write_bytes(",".join(COLUMNS).encode() + b"\\n" + data)
        attempt(read_manifest, table)

    def attempt(parse, *arguments):
        try:
            parse(*arguments)
        except ValueError:
            pass

    Path("EVs").mkdir(exist_ok=True)
    atheris.Setup(sys.argv[1:], {"events": events, "manifest": manifest}[sys.argv[1]])
    atheris.Fuzz()
"""
ROW = "a,s1,,WM,LR,s1.nii.gz,EVs,m.nii.gz,0.72,405,train,,\n"
SEEDS = {
    "events": [b"1\t2\tlh\n", b"1 2 3\n4 5 6\n", b"\xef\xbb\xbf1,2\r\n"],
    "manifest": [ROW.encode(), ROW.replace("s1", "s2").encode(), b"a,s1,,T1w,1,a.nii.gz,,,,1,train,,\n"],
}
N_INPUTS = {"events": 3000, "manifest": 250}  # pandera takes its time


@pytest.mark.parametrize("parser", sorted(SEEDS))
def test_a_fuzzer_finds_no_other_error_in_a_parser(parser: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is there for Linux only")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(SEEDS[parser]):
        (corpus / str(i)).write_bytes(seed)
    limits = [f"-runs={N_INPUTS[parser]}", "-max_total_time=60", "-rss_limit_mb=4096", "-max_len=300", "-seed=1"]
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FUZZER), parser, *limits, corpus]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Instrumenting deeplight_core.data.{parser}" in done.stderr
    covered = [int(number) for number in re.findall(r"cov: (\d+)", done.stderr)]
    assert covered[-1] > 20
    assert int(re.search(r"Done (\d+) runs", done.stderr)[1]) > 100
