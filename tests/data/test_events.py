from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplight_core.data.events import event_names, label_frames, misplaced, read_events
from deeplight_core.data.simulate import design
from deeplight_core.preparation import DataSettings, PreprocessingSettings

WANTED = {"left": ["lh"], "right": ["rh"]}


def ev_folder(folder: Path, **files: str) -> Path:
    """The EV folder of a MOTOR run: two blocks of the left hand, one of the right; `files` replaces and adds."""
    folder.mkdir(exist_ok=True)
    texts = {"lh": "30\t12\t1\n90\t12\t1\n", "rh": "60\t12\t1\n", "cue": "27\t3\t1\n57\t3\t1\n", "Sync": "6.4\n"}
    for name, text in (texts | files).items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def tsv(folder: Path, text: str) -> Path:
    path = folder / "sub-01_events.tsv"
    path.write_text(text)
    return path


def listed(blocks: pd.DataFrame) -> list[tuple[float, float, str]]:
    return list(blocks[["onset", "duration", "state"]].itertuples(index=False, name=None))


BLOCKS = [(30.0, 12.0, "left"), (60.0, 12.0, "right"), (90.0, 12.0, "left")]


def test_ev_folder_gives_blocks_in_time_order(tmp_path: Path) -> None:
    events = read_events(ev_folder(tmp_path / "EVs"), WANTED, "MOTOR")
    assert listed(events.blocks) == BLOCKS
    assert events.ignored == {"Sync": 1, "cue": 2}
    assert (events.unknown, events.empty) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "30 12 1\n90 12 1",
        "30,12,1\n90,12,1",
        "30;12\n\n90;12\n",
        "\ufeff30\t12\r\n90\t12\r\n",
        " 90  12 1\n 30 12 1 \n",
    ],
    ids=["spaces", "commas", "empty line", "Windows", "unsorted"],
)
def test_separators_and_order_of_an_ev_file_do_not_matter(tmp_path: Path, text: str) -> None:
    assert listed(read_events(ev_folder(tmp_path / "EVs", lh=text), WANTED, "MOTOR").blocks) == BLOCKS


def test_an_empty_ev_file_is_fine_and_listed(tmp_path: Path) -> None:
    events = read_events(ev_folder(tmp_path / "EVs", rh=""), WANTED, "MOTOR")
    assert listed(events.blocks) == [BLOCKS[0], BLOCKS[2]]
    assert events.empty == ["right"]


def test_a_run_without_any_wanted_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"EVs has no event of \['lh', 'rh'\]; it has \['Sync', 'cue'\]"):
        read_events(ev_folder(tmp_path / "EVs", rh="", lh=""), WANTED, "MOTOR")


def test_missing_ev_files_are_named_with_their_states(tmp_path: Path) -> None:
    wanted = WANTED | {"left toe": ["lf"], "tongue": ["t"]}
    with pytest.raises(ValueError, match=r"EVs has no lf.txt, t.txt, which states \['left toe', 'tongue'\] need"):
        read_events(ev_folder(tmp_path / "EVs"), wanted, "MOTOR")
    with pytest.raises(ValueError, match=r"gone does not exist; correct the manifest"):
        read_events(tmp_path / "gone", wanted, "MOTOR")


def test_unknown_ev_names_are_reported_and_protocol_names_are_not(tmp_path: Path) -> None:
    folder = ev_folder(tmp_path / "EVs", lhand="1 2 1\n2 2 1\n", t="5 3 1\n")
    events = read_events(folder, WANTED, "MOTOR")
    assert events.unknown == ["lhand"]
    assert events.ignored == {"Sync": 1, "cue": 2, "lhand": 2, "t": 1}
    assert read_events(folder, WANTED, "another task").unknown == ["cue", "lhand", "t"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("later 12 1", r"row 3: 'later 12 1' is not `onset duration amplitude` in seconds"),
        ("42", "row 3: '42' is not"),
        ("nan 12 1", "row 3: onset nan, duration 12.0; both must be finite"),
        ("42 inf 1", "row 3: onset 42.0, duration inf"),
        ("42 -12 1", "row 3: onset 42.0, duration -12.0; .* not negative"),
    ],
)
def test_a_bad_ev_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"lh.txt, {message}"):
        read_events(ev_folder(tmp_path / "EVs", lh=f"30 12 1\n\n{row}\n"), WANTED, "MOTOR")


def test_an_ev_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    folder = ev_folder(tmp_path / "EVs")
    (folder / "lh.txt").write_bytes(b"\xff\xfe3\x000\x00")
    with pytest.raises(ValueError, match=r"lh.txt is not UTF-8 text"):
        read_events(folder, WANTED, "MOTOR")


BIDS = """\
trial_type onset response duration
rh 60 n/a 12
lh 90 n/a 12
rest 72 n/a 18
rest 0 n/a 30
lh 30 n/a 12
""".replace(" ", "\t")


def test_bids_events_are_sorted_and_others_counted(tmp_path: Path) -> None:
    events = read_events(tsv(tmp_path, BIDS), WANTED | {"tongue": ["t"]}, "moving")
    assert listed(events.blocks) == BLOCKS
    assert events.ignored == {"rest": 2}
    assert (events.unknown, events.empty) == ([], ["tongue"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BIDS.replace("90", "soon"), "row 3: onset 'soon', duration '12' are not seconds"),
        (BIDS.replace("90", "90,5"), "row 3: onset '90,5', duration '12' are not seconds; decimals have a point"),
        (BIDS.replace("90\tn/a\t12", "90\tn/a\tn/a"), "row 3: onset '90', duration 'n/a' are not seconds"),
        (BIDS.replace("90\tn/a\t12", "90\tn/a\t-1"), "row 3: onset 90.0, duration -1.0; both must be finite"),
        (BIDS.replace("duration", "length"), "has no column duration; it has trial_type, onset, response, length"),
        (
            BIDS.replace("\t", ","),
            "is not a tab-separated table in UTF-8: its columns are separated by commas; save it",
        ),
        (BIDS.replace("h\t", "H\t"), r"has no event of \['lh', 'rh'\]; it has \['lH', 'rH', 'rest'\]"),
        ("onset\tduration\ttrial_type\n", r"has no event of \['lh', 'rh'\]; it has no events"),
        ("", "is not a tab-separated table"),
    ],
)
def test_bad_bids_events_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"sub-01_events.tsv,? {message}"):
        read_events(tsv(tmp_path, text), WANTED, "moving")


@pytest.mark.parametrize(
    ("task", "pooled", "ignored"),
    [
        ("WM", {"body": ["0bk_body", "2bk_body"], "tool": ["0bk_tools", "2bk_tools"]}, "all_bk_cor"),
        ("GAMBLING", {"win": ["win_event"], "loss": ["loss_event"], "neutral": ["neut_event"]}, "win"),
        ("MOTOR", {"left finger": ["lh"], "left toe": ["lf"]}, "cue"),
        ("SOCIAL", {"interaction": ["mental"], "no interaction": ["rnd"]}, "mental_resp"),
    ],
)
def test_hcp_states_come_from_their_evs(task: str, pooled: dict[str, list[str]], ignored: str, tmp_path: Path) -> None:
    evs = design(task, "LR", 0)
    folder = tmp_path / "EVs"
    folder.mkdir()
    for name, table in evs.items():
        table.to_csv(folder / f"{name}.txt", sep="\t", header=False, index=False)
    data = DataSettings()
    events = read_events(folder, data.events(task), task)
    for state, names in pooled.items():
        mine = events.blocks[events.blocks["state"] == state]
        expected = pd.concat([evs[name] for name in names]).sort_values("onset")
        assert mine[["onset", "duration"]].to_numpy().tolist() == expected[["onset", "duration"]].to_numpy().tolist()
    assert len(events.blocks) == sum(len(evs[name]) for names in data.events(task).values() for name in names)
    assert events.ignored[ignored] == len(evs[ignored])
    assert (events.unknown, events.empty) == ([], [])


def frames_of(
    blocks: list[tuple[float, float, str]], n_frames: int = 20, **settings: float | None
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """State → frames at TR 2 s, and what was dropped (if anything)."""
    table = pd.DataFrame(blocks, columns=["onset", "duration", "state"])
    labels = label_frames(table, n_frames, 2.0, PreprocessingSettings(**settings))
    assert (np.diff(labels.frames) > 0).all()
    in_time = table.sort_values("onset", kind="stable", ignore_index=True)
    assert labels.states.tolist() == in_time["state"][labels.blocks].tolist()
    frames = {state: labels.frames[labels.states == state].tolist() for state in dict.fromkeys(table["state"])}
    return frames, {reason: n for reason, n in labels.dropped.items() if n}


def test_the_first_two_volumes_of_a_block_are_dropped() -> None:
    frames, dropped = frames_of([(4, 10, "a")])
    assert frames == {"a": [4, 5, 6]}  # 8, 10 and 12 s; the block lasts from 4 to before 14 s
    assert dropped == {"volumes_in_no_block": 17}


@pytest.mark.parametrize(("skip_s", "first"), [(None, 4), (0, 2), (1.44, 3), (2, 3), (4, 4)])
def test_skip_is_two_repetition_times_unless_stated(skip_s: float | None, first: int) -> None:
    assert frames_of([(4, 10, "a")], skip_s=skip_s)[0] == {"a": list(range(first, 7))}


def test_adjacent_blocks_share_no_volume() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (10, 10, "b")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7, 8, 9]}
    assert dropped == {}


def test_volumes_in_two_blocks_are_dropped_and_counted() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (6, 10, "b")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2], "b": [5, 6, 7]}
    assert dropped == {"volumes_in_no_block": 2, "volumes_in_two_blocks": 2}


def test_a_block_past_the_end_is_counted() -> None:
    frames, dropped = frames_of([(0, 10, "a"), (14, 10, "b"), (40, 10, "c")], n_frames=10, skip_s=0)
    assert frames == {"a": [0, 1, 2, 3, 4], "b": [7, 8, 9], "c": []}
    assert dropped == {"volumes_in_no_block": 2, "blocks_past_the_end": 2, "blocks_without_volumes": 1}


def test_lag_shifts_the_labels() -> None:
    assert frames_of([(4, 10, "a")], lag_s=6)[0] == {"a": [7, 8, 9]}
    assert frames_of([(4, 10, "a")], lag_s=5)[0] == {"a": [7, 8, 9]}  # from 13 to before 19 s
    assert frames_of([(4, 10, "a")], lag_s=5, skip_s=0)[0] == {"a": [5, 6, 7, 8, 9]}


def test_a_block_shorter_than_what_is_skipped_has_no_volumes() -> None:
    frames, dropped = frames_of([(4, 4, "a"), (20, 0, "b")])
    assert frames == {"a": [], "b": []}
    assert dropped == {"volumes_in_no_block": 20, "blocks_without_volumes": 2}


def test_rounding_does_not_move_a_volume() -> None:
    onset = 3 * 0.72 * 10  # 21.599999999999998
    table = pd.DataFrame([(onset, 7.2, "a")], columns=["onset", "duration", "state"])
    labels = label_frames(table, 60, 0.72, PreprocessingSettings(skip_s=0))
    assert labels.frames.tolist() == list(range(30, 40))


milliseconds = st.integers(0, 60_000)


@given(
    blocks=st.lists(st.tuples(milliseconds, st.integers(0, 30_000), st.sampled_from("abc")), max_size=6),
    n_frames=st.integers(1, 60), tr_ms=st.integers(500, 3000), lag_ms=st.integers(0, 8000),
    skip_ms=st.none() | st.integers(0, 5000),
)  # fmt: skip
def test_labels_equal_a_plain_loop(
    blocks: list[tuple[int, int, str]], n_frames: int, tr_ms: int, lag_ms: int, skip_ms: int | None
) -> None:
    expected, in_none, in_two = {}, 0, 0
    in_time = sorted(range(len(blocks)), key=lambda i: blocks[i][0])
    for frame in range(n_frames):
        owners = []
        for i, (onset, duration, state) in enumerate(blocks):
            first = onset + lag_ms + (2 * tr_ms if skip_ms is None else skip_ms)
            if first <= frame * tr_ms < onset + lag_ms + duration:
                owners.append((state, in_time.index(i)))
        states = {state for state, _ in owners}
        if len(states) == 1:
            expected[frame] = min(owners, key=lambda owner: owner[1])  # of several blocks of one state, the first
        in_none += not owners
        in_two += len(states) > 1
    table = pd.DataFrame([(o / 1000, d / 1000, s) for o, d, s in blocks], columns=["onset", "duration", "state"])
    settings = PreprocessingSettings(lag_s=lag_ms / 1000, skip_s=None if skip_ms is None else skip_ms / 1000)
    labels = label_frames(table, n_frames, tr_ms / 1000, settings)
    every = label_frames(table, n_frames, tr_ms / 1000, settings.model_copy(update={"keep": "all"}))
    assert every.frames.tolist() == list(range(n_frames))
    assert list(zip(every.states, every.blocks, strict=True)) == [expected.get(i, ("", -1)) for i in range(n_frames)]
    assert every.dropped == labels.dropped
    found = zip(labels.frames.tolist(), zip(labels.states, labels.blocks.tolist(), strict=True), strict=True)
    assert dict(found) == expected
    assert labels.dropped["volumes_in_no_block"] == in_none
    assert labels.dropped["volumes_in_two_blocks"] == in_two
    past = sum(onset + lag_ms + duration > n_frames * tr_ms for onset, duration, _ in blocks)
    assert labels.dropped["blocks_past_the_end"] == past


def test_trials_of_a_block_are_joined() -> None:
    trials = [(0.0, 2.0, "a"), (2.01, 1.9, "b"), (4.0, 2.0, "a"), (6.2, 3.0, "a"), (20.0, 5.0, "a"), (21.0, 1.0, "a")]
    table = pd.DataFrame(trials[::-1], columns=["onset", "duration", "state"])
    labels = label_frames(table, 30, 1.0, PreprocessingSettings(skip_s=0, join_s=0.5))
    assert labels.frames.tolist() == [0, 1, 3, *range(4, 10), *range(20, 25)]  # at 3 s the trial of b; none is in two
    assert labels.states.tolist() == ["a", "a", "b", *"aaaaaa", *"aaaaa"]
    assert labels.blocks.tolist() == [0, 0, 1, *[2] * 6, *[3] * 5]


@given(
    trials=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8), st.sampled_from("ab")), max_size=8),
    gap_s=st.integers(0, 5),
)
@settings(deadline=None)
def test_joined_trials_equal_a_plain_loop(trials: list[tuple[int, int, str]], gap_s: int) -> None:
    expected: list[list] = []
    for state in "ab":
        mine: list[list] = []
        for onset, duration, _ in sorted(t for t in trials if t[2] == state):
            if mine and onset <= mine[-1][1] + gap_s:
                mine[-1][1] = max(mine[-1][1], onset + duration)
            else:
                mine.append([onset, onset + duration, state])
        expected += mine
    table, joined = (
        pd.DataFrame(rows, columns=["onset", "duration", "state"]).astype({"onset": float, "duration": float})
        for rows in (trials, [(start, end - start, state) for start, end, state in expected])
    )
    as_blocks = label_frames(joined, 60, 1.0, PreprocessingSettings(skip_s=0))
    as_trials = label_frames(table, 60, 1.0, PreprocessingSettings(skip_s=0, join_s=gap_s))
    assert as_trials.frames.tolist() == as_blocks.frames.tolist()
    assert as_trials.states.tolist() == as_blocks.states.tolist()
    assert as_trials.dropped == as_blocks.dropped


@pytest.mark.parametrize("row", ["0,5\t10,5\t1", "0,5 10,5 1", "0,5;10,5;1", "0,5,10,5,1"])
def test_decimal_commas_in_an_ev_file_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(ValueError, match="decimals have a point, not a comma"):
        read_events(ev_folder(tmp_path / "EVs", lh=f"{row}\n"), WANTED, "MOTOR")


def test_only_wanted_rows_are_checked_and_onsets_that_are_not_stated_are_counted(tmp_path: Path) -> None:
    text = BIDS + "press\t3\tn/a\tNaN\nlh\tNA\tn/a\t12\nlh\t\tn/a\t12\nrest\tsoon\tn/a\t1\nNA\t3\tn/a\t1\n"
    events = read_events(tsv(tmp_path, text), WANTED, "moving")
    assert listed(events.blocks) == BLOCKS
    assert events.without_onset == 2
    assert events.ignored == {"rest": 3, "press": 1, "NA": 1}
    assert event_names(tsv(tmp_path, text)) == ({"lh", "rh"}, {"rest", "press"})
    with pytest.raises(ValueError, match="state it, or leave 'press' out of the states"):
        read_events(tsv(tmp_path, text), {"press": ["press"]}, "moving")


def test_several_columns_name_an_event(tmp_path: Path) -> None:
    text = "onset\tduration\tstim\tside\n0\t4\tface\tleft\n6\t4\thouse\tn/a\n12\t4\tn/a\tn/a\n18\t4\t1\t2.0\n"
    assert event_names(tsv(tmp_path, text), ["stim", "side"])[0] == {"face/left", "house", "1/2.0"}
    blocks = read_events(tsv(tmp_path, text), {"x": ["face/left"]}, "t", ["stim", "side"]).blocks
    assert listed(blocks) == [(0.0, 4.0, "x")]


def test_a_column_that_may_name_events_is_proposed(tmp_path: Path) -> None:
    rows = "".join(f"{i}\t1\t{'ab'[i % 2]}\t{i / 7}\timage{i}.png\n" for i in range(30))
    with pytest.raises(ValueError, match=r"it has .*; name the column of the events' names: --trial-type stim$"):
        read_events(tsv(tmp_path, f"onset\tduration\tstim\trating\tfile\n{rows}"), WANTED, "moving")


def test_repeated_rows_and_overlaps_of_one_state_are_no_conflict() -> None:
    once, _ = frames_of([(0, 10, "a"), (14, 6, "b")], skip_s=0)
    twice, dropped = frames_of([(0, 10, "a"), (0, 10, "a"), (14, 6, "b"), (14, 6, "b")], skip_s=0)
    assert twice == once
    assert dropped == {"volumes_in_no_block": 12}
    assert frames_of([(0, 10, "a"), (6, 10, "a")], skip_s=0)[0] == {"a": list(range(8))}


def test_a_block_that_another_state_covers_has_no_volume() -> None:
    labels = label_frames(
        pd.DataFrame([(0.0, 20.0, "a"), (4.0, 8.0, "b")], columns=["onset", "duration", "state"]), 12, 2.0,
        PreprocessingSettings(skip_s=0),
    )  # fmt: skip
    assert labels.dropped["volumes_in_two_blocks"] == 4
    assert labels.dropped["blocks_without_volumes"] == 1


def test_the_first_volume_may_be_acquired_later() -> None:
    table = pd.DataFrame([(0.0, 10.0, "a"), (14.0, 6.0, "b")], columns=["onset", "duration", "state"])
    labels = label_frames(table, 12, 2.0, PreprocessingSettings(skip_s=0), start_s=1.0)
    assert labels.frames.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]  # at 1, 3, … 9 and 15, 17, 19 s


@pytest.mark.parametrize(
    ("onsets", "duration", "n", "message"),
    [
        ([0, 14, 28, 42], 10, 0, ""),
        ([0, 14, 75, 81], 10, 1, ""),
        ([0, 20, 42, 90, 95], 10, 2, ""),
        ([0, 14000, 28000, 42000], 10000, 4, "milliseconds"),
        ([0, 14, 28, 42], 10000, 4, "durations in milliseconds"),
        ([100, 114, 128], 10, 3, "counted on from run to run"),
        ([-90, -70], 10, 2, "another run"),
        ([0], 85, 0, ""),
        ([0, 14, 28, 30000, 42000], 10, 2, "another run"),
        ([0, 14, 28, 30, 42000], 10, 1, ""),
    ],
)
def test_events_that_are_not_a_runs(onsets: list[float], duration: float, n: int, message: str) -> None:
    found = misplaced(pd.DataFrame({"onset": onsets, "duration": duration}), 80.0)
    assert found[0] == n
    assert message in found[1]
    assert bool(found[1]) == bool(message)
