import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import real_data

from deeplight_core.config import DataSettings, SimulationSettings
from deeplight_core.manifest import (
    COLUMNS,
    assign_splits,
    read_manifest,
    run_key,
    scan_bids,
    scan_hcp,
    select,
    unit_names,
    write_manifest,
)
from deeplight_core.simulate import plan

COMMITTED = Path(__file__).parents[1] / "data_manifest.csv"


@pytest.fixture
def table() -> pd.DataFrame:
    """Seven tasks of sim001 (rows 2–8), sim002 (9–15), both to train on, and sim003 (16–22) to validate."""
    return plan(2, 1, 2.16, ("LR",))


def changed(table: pd.DataFrame, cells: dict[tuple[int, str], object], folder: Path) -> Path:
    """Write the table with other values in cells (row of the file, column)."""
    table = table.astype(object)
    for (row, column), value in cells.items():
        table.loc[row - 2, column] = value
    write_manifest(table, folder / "manifest.csv")
    return folder / "manifest.csv"


def test_write_and_read_give_back_the_same(table: pd.DataFrame, tmp_path: Path) -> None:
    table = table.assign(age=[f"{n}" for n in range(len(table))], sha256="0a" * 32)  # a free label column
    write_manifest(table[["age", *COLUMNS]], tmp_path / "new/manifest.csv")
    back = read_manifest(tmp_path / "new/manifest.csv")
    pd.testing.assert_frame_equal(back, table)
    assert list(back.columns) == [*COLUMNS, "age"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["manifest.csv"]


def test_a_byte_order_mark_does_no_harm(table: pd.DataFrame, tmp_path: Path) -> None:
    path = changed(table, {}, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    pd.testing.assert_frame_equal(read_manifest(path), table)


def test_subjects_keep_their_leading_zeros(table: pd.DataFrame, tmp_path: Path) -> None:
    write_manifest(table.assign(subject=table["subject"].str[3:], run="1"), tmp_path / "manifest.csv")
    back = read_manifest(tmp_path / "manifest.csv")
    assert list(back["subject"].unique()) == ["001", "002", "003"]
    assert set(back["run"]) == {"1"}


def test_all_problems_are_reported_together_each_with_its_row(table: pd.DataFrame, tmp_path: Path) -> None:
    cells: dict[tuple[int, str], object] = {
        (2, "tr_s"): -1, (3, "tr_s"): "fast", (4, "tr_s"): "", (5, "tr_s"): "nan", (6, "n_volumes"): "many",
        (7, "n_volumes"): "0", (8, "n_volumes"): "12.5", (9, "image"): "/etc/x.nii.gz", (10, "events"): "../EVs",
        (11, "mask"): "a/../../b.nii.gz", (12, "split"): "test", (13, "sha256"): "abc", (14, "subject"): "",
        (15, "run"): "L R", (16, "dataset"): "", (17, "task"): "a/b", (18, "image"): "",
    }  # fmt: skip
    with pytest.raises(ValueError, match="problem") as error:
        read_manifest(changed(table, cells, tmp_path))
    lines = str(error.value).splitlines()[1:]
    for (row, column), value in cells.items():
        assert any(line.startswith(f"  row {row}: {column} = {str(value)!r}") for line in lines), (row, column)
    assert len(lines) == len(cells) + 1
    assert "  row 12: subject sim002 is in split test, but in train in an earlier row" in str(error.value)


@pytest.mark.parametrize("column", ["subject", "family"])
def test_nobody_is_in_two_splits(table: pd.DataFrame, tmp_path: Path, column: str) -> None:
    if column == "family":
        cells: dict[tuple[int, str], object] = {(row, "family"): "F7" for row in (9, 16)}
        bad, who = 16, "family F7"  # of a subject in train and one in validation
    else:
        cells, bad, who = {(8, "split"): "validation"}, 8, "subject sim001"
    with pytest.raises(ValueError, match=rf"1 problem\(s\):\n  row {bad}: {who} is in split validation, but in train"):
        read_manifest(changed(table, cells, tmp_path))


def test_runs_are_split_only_where_that_is_asked_for(table: pd.DataFrame, tmp_path: Path) -> None:
    path = changed(table, {(8, "split"): "validation"}, tmp_path)
    assert read_manifest(path, split_unit="run")["split"][6] == "validation"


def test_repeated_runs_and_images_are_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    double = pd.concat([table, table[3:4]], ignore_index=True)
    write_manifest(double, tmp_path / "manifest.csv")
    with pytest.raises(ValueError, match=r"2 problem\(s\)") as error:
        read_manifest(tmp_path / "manifest.csv")
    assert "row 23: repeats the run sub-sim001_task-LANGUAGE_run-LR of an earlier row" in str(error.value)
    assert f"row 23: repeats the image {table['image'][3]} of an earlier row" in str(error.value)


def test_two_datasets_may_not_share_a_runs_name(table: pd.DataFrame, tmp_path: Path) -> None:
    cells: dict[tuple[int, str], object] = {
        (3, "dataset"): "other", (3, "task"): "WM", (3, "image"): "other/bold.nii.gz",
    }  # fmt: skip
    with pytest.raises(ValueError, match="row 3: repeats the run sub-sim001_task-WM_run-LR"):
        read_manifest(changed(table, cells, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a UTF-8 CSV table"),
        (",".join(COLUMNS).encode() + b"\nM\xfcller", "not a UTF-8 CSV table"),
        (",".join(COLUMNS).encode() + b"\n", "the manifest has no rows"),
        (",".join(COLUMNS[:-2]).encode() + b"\n", r"missing column\(s\) family, sha256; expected dataset, subject"),
        (b"a,b\n1,2\n1,2,3\n", "not a UTF-8 CSV table.*line 3"),
        (",".join(COLUMNS).encode() + b"\n" + b"x," * 13, "rows have more cells than the header"),
    ],
    ids=["empty", "not UTF-8", "no rows", "missing columns", "ragged", "a comma too many"],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(tmp_path / "manifest.csv")
    assert str(tmp_path / "manifest.csv") in str(error.value)


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no manifest .* `deeplight manifest"):
        read_manifest(tmp_path / "manifest.csv")


def test_the_committed_manifest_is_the_built_in_dataset() -> None:
    pd.testing.assert_frame_equal(read_manifest(COMMITTED), plan(30, 10, 2.16, ("LR",)))


def test_run_keys_name_the_session_where_there_is_one(table: pd.DataFrame) -> None:
    assert run_key(table.loc[0]) == "sub-sim001_task-WM_run-LR"
    assert run_key(table.assign(session="2").loc[0]) == "sub-sim001_ses-2_task-WM_run-LR"
    assert unit_names(table, "subject").nunique() == 3
    assert unit_names(table, "run").nunique() == len(table)


def test_select_takes_the_tasks_and_the_first_units() -> None:
    table = plan(5, 3, 2.16, ("LR",)).sample(frac=1, random_state=0)
    data = DataSettings(source={"SOCIAL": ["interaction"]}, max_units={"train": 2, "validation": 1})
    chosen = select(table, data)
    assert sorted(set(zip(chosen["subject"], chosen["split"], strict=True))) == [
        ("sim001", "train"), ("sim002", "train"), ("sim006", "validation"),
    ]  # fmt: skip
    assert set(chosen["task"]) == {"SOCIAL", "WM"}
    assert list(chosen.index) == list(range(6))


def test_select_leaves_a_split_whole_that_is_not_limited() -> None:
    chosen = select(plan(5, 3), DataSettings(max_units={"train": 2}))
    assert chosen.groupby("split")["subject"].nunique().to_dict() == {"train": 2, "validation": 3}


def test_select_counts_runs_where_runs_are_the_unit() -> None:
    table = plan(1, 1)[lambda t: t["task"] == "WM"]
    data = DataSettings(split_unit="run", source={}, max_units={"train": 1, "validation": 2})
    assert list(select(table, data)["run"]) == ["LR", "LR", "RL"]


def test_select_refuses_what_is_not_there(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no runs of rest; it has EMOTION, GAMBLING"):
        select(table, DataSettings(source={"rest": ["rest"]}))
    with pytest.raises(ValueError, match="leaves no validation runs for tasks EMOTION, "):
        select(table[:14], DataSettings())


def held_out(table: pd.DataFrame, seed: int, n: int = 6) -> set[str]:
    split = assign_splits(table, "subject", n, seed)
    assert split.groupby("subject")["split"].nunique().max() == 1
    return set(split.loc[split["split"] == "validation", "subject"])


def test_splits_are_drawn_by_subject_and_seed() -> None:
    table = plan(20, 0, runs=("LR",)).assign(split="")
    assert len(held_out(table, 0)) == 6
    assert held_out(table, 0) == held_out(table.sample(frac=1, random_state=1), 0)
    assert held_out(table, 0) != held_out(table, 1)


def test_runs_can_be_held_out_instead() -> None:
    table = plan(1, 0)
    split = assign_splits(table, "run", 5, 0)
    assert (split["split"] == "validation").sum() == 5


def test_families_stay_together() -> None:
    table = plan(20, 0, runs=("LR",))
    number = table["subject"].str[3:].astype(int)
    table["family"] = np.where(number <= 12, "F" + (number // 3).astype(str), "")
    for seed in range(5):
        split = assign_splits(table, "subject", 5, seed)
        assert split[split["family"] != ""].groupby("family")["split"].nunique().max() == 1
        assert 5 <= split.loc[split["split"] == "validation", "subject"].nunique() < 5 + 3


def test_too_many_held_out_is_refused() -> None:
    with pytest.raises(ValueError, match="holding out 3 of 3 subjects leaves none to train on"):
        assign_splits(plan(3, 0), "subject", 3, 0)


def test_scan_hcp_gives_back_the_plan(simulated: tuple[pd.DataFrame, Path, SimulationSettings]) -> None:
    planned, root, _ = simulated
    found, warnings = scan_hcp(root)
    order = ["subject", "task", "run"]
    expected = planned.assign(dataset="hcp", split="").sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), expected)
    assert warnings == []
    assert set(scan_hcp(root, ["EMOTION"])[0]["task"]) == {"EMOTION"}


def test_scan_hcp_warns_of_runs_that_are_not_whole(tmp_path: Path) -> None:
    for task in ("WM", "EMOTION"):
        save_bold(tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/tfMRI_{task}_RL.nii.gz")
    for task in ("WM", "MOTOR"):
        save_bold(tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/tfMRI_{task}_RL.nii.gz")
        evs = tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/EVs"
        evs.mkdir()
        (evs / "0bk_body.txt").write_text("1 2 1\n" * (task == "WM"))
    found, warnings = scan_hcp(tmp_path)
    assert found[["subject", "task", "run", "mask"]].to_numpy().tolist() == [["100307", "WM", "RL", ""]]
    assert warnings == [
        "100307/MNINonLinear/Results/tfMRI_EMOTION_RL left out: no EVs",
        "100307/MNINonLinear/Results/tfMRI_MOTOR_RL left out: all files in EVs are empty",
    ]


def test_scan_hcp_leaves_out_runs_of_another_length_and_names_missing_ones(tmp_path: Path) -> None:
    for subject, n_volumes in (("1", 5), ("2", 5), ("3", 4)):
        for run in ("LR", "RL"):
            if (subject, run) == ("2", "RL"):
                continue
            folder = tmp_path / f"{subject}/MNINonLinear/Results/tfMRI_WM_{run}"
            save_bold(folder / f"tfMRI_WM_{run}.nii.gz", shape=(3, 3, 3, n_volumes))
            (folder / "EVs").mkdir()
            (folder / "EVs/0bk_body.txt").write_text("1 2 1\n")
    found, warnings = scan_hcp(tmp_path)
    assert found[["subject", "run"]].to_numpy().tolist() == [["1", "LR"], ["1", "RL"], ["2", "LR"]]
    assert warnings == [
        f"3/MNINonLinear/Results/tfMRI_WM_{run}/tfMRI_WM_{run}.nii.gz left out: 4 volumes, most runs of WM have 5"
        for run in ("LR", "RL")
    ] + ["subject 2 has no tfMRI_WM_RL"]


def save_bold(path: Path, tr: float = 1.5, unit: str = "sec", shape: tuple[int, ...] = (7, 8, 9, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((3.0, 3.0, 3.0, tr)[: len(shape)])
    nib.save(image, path)
    return path


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two subjects, one with sessions and a run 10 beside run 1; a resting run that has no events."""
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "mine"}))
    for stem in (
        "sub-01/func/sub-01_task-faces_run-1", "sub-01/func/sub-01_task-faces_run-10",
        "sub-02/ses-a/func/sub-02_ses-a_task-faces", "sub-02/ses-a/func/sub-02_ses-a_task-tones",
    ):  # fmt: skip
        save_bold(tmp_path / f"{stem}_bold.nii.gz")
        (tmp_path / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\tface\n")
    save_bold(tmp_path / "sub-01/func/sub-01_task-rest_bold.nii.gz")
    return tmp_path


def test_scan_bids_reads_entities_and_header(bids: Path, tmp_path: Path) -> None:
    found, warnings = scan_bids(bids)
    assert sorted(found[["dataset", "subject", "session", "task", "run"]].to_numpy().tolist()) == [
        ["mine", "01", "", "faces", "1"], ["mine", "01", "", "faces", "10"],
        ["mine", "02", "a", "faces", "1"], ["mine", "02", "a", "tones", "1"],
    ]  # fmt: skip
    assert found["events"][2] == "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv"
    assert set(found["tr_s"]) == {1.5}
    assert set(found["n_volumes"]) == {5}
    assert warnings == ["sub-01/func/sub-01_task-rest_bold.nii.gz left out: no sub-01_task-rest_events.tsv"]
    split = assign_splits(found, "subject", 1, 0)
    write_manifest(split, tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "manifest.csv"), split)
    assert set(scan_bids(bids, ["tones"])[0]["subject"]) == {"02"}


def test_scan_bids_finds_the_mask_of_the_run_or_subject(bids: Path) -> None:
    save_bold(bids / "sub-01/func/sub-01_task-faces_run-1_desc-brain_mask.nii.gz", shape=(7, 8, 9))
    save_bold(bids / "sub-02/ses-a/func/sub-02_ses-a_mask.nii.gz", shape=(7, 8, 9))
    of_subject = "sub-02/ses-a/func/sub-02_ses-a_mask.nii.gz"
    assert scan_bids(bids)[0].apply(lambda row: (row["run"], row["mask"]), axis=1).to_list() == [
        ("10", ""), ("1", "sub-01/func/sub-01_task-faces_run-1_desc-brain_mask.nii.gz"),
        ("1", of_subject), ("1", of_subject),
    ]  # fmt: skip
    save_bold(bids / "sub-01/func/sub-01_desc-brain_mask.nii.gz", shape=(7, 8, 9))
    found, warnings = scan_bids(bids)
    assert found[:2].set_index("run")["mask"].to_dict() == {"10": "sub-01/func/sub-01_desc-brain_mask.nii.gz", "1": ""}
    assert any("run-1_bold.nii.gz: 2 masks fit, none is used" in warning for warning in warnings)


FMRIPREP = "derivatives/fmriprep"


@pytest.fixture
def fmriprep(bids: Path) -> Path:
    """The raw folder with what fMRIPrep makes of it in two spaces; repetition times in one sidecar of the raw root."""
    (bids / "task-faces_bold.json").write_text('{"RepetitionTime": 0.9}')
    for raw in bids.glob("sub-*/**/*_bold.nii.gz"):
        folder = bids / FMRIPREP / raw.parent.relative_to(bids)
        stem = raw.name.removesuffix("_bold.nii.gz")
        for space in ("MNI152NLin2009cAsym", "T1w"):
            save_bold(folder / f"{stem}_space-{space}_desc-preproc_bold.nii.gz", tr=0)
            save_bold(folder / f"{stem}_space-{space}_desc-brain_mask.nii.gz", shape=(7, 8, 9))
        save_bold(folder / f"{stem}_space-T1w_boldref.nii.gz", shape=(7, 8, 9))
    (bids / "sub-02/ses-a/func/sub-02_ses-a_task-tones_bold.json").write_text('{"RepetitionTime": 1.1}')
    return bids


def test_scan_bids_finds_what_fmriprep_made_and_the_events_of_the_raw_tree(fmriprep: Path) -> None:
    found, warnings = scan_bids(fmriprep, derivatives=FMRIPREP, space="MNI152NLin2009cAsym")
    assert found["tr_s"].tolist() == [0.9, 0.9, 0.9, 1.1]
    assert found["image"][2] == (
        f"{FMRIPREP}/sub-02/ses-a/func/sub-02_ses-a_task-faces_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    )
    assert found["mask"][2] == found["image"][2].replace("desc-preproc_bold", "desc-brain_mask")
    assert found["events"][2] == "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv"
    assert len(warnings) == 1
    assert "task-rest" in warnings[0]


def test_scan_bids_names_a_run_that_has_no_image_in_the_space(fmriprep: Path) -> None:
    stem = "sub-01_task-faces_run-1_space-{}_desc-preproc_bold.nii.gz"
    (fmriprep / FMRIPREP / "sub-01/func" / stem.format("MNI152NLin2009cAsym")).unlink()
    found, warnings = scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP, space="MNI152NLin2009cAsym")
    assert found[["subject", "run"]].to_numpy().tolist() == [["01", "10"], ["02", "1"]]
    assert warnings == [
        f"run left out, no image of it has desc-preproc_space-MNI152NLin2009cAsym: {stem.format('T1w')}"
    ]


def test_scan_bids_leaves_out_a_run_in_several_spaces_and_says_how_to_choose(fmriprep: Path) -> None:
    with pytest.raises(ValueError, match="found no BIDS runs"):
        scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP, space="MNI305")
    save_bold(fmriprep / "sub-01/func/sub-01_task-faces_run-1_rec-x_bold.nii.gz")  # a run of its own, not a copy
    found, _ = scan_bids(fmriprep, ["faces"])
    assert found["run"].tolist() == ["10", "1", "x-1", "1"]
    (fmriprep / FMRIPREP / "sub-01/func/sub-01_task-faces_run-1_space-T1w_desc-preproc_bold.nii.gz").unlink()
    found, warnings = scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP)
    assert found[["subject", "run"]].to_numpy().tolist() == [["01", "1"]]
    assert sum("2 images of one run left out" in w and "choose one by space and res" in w for w in warnings) == 2


def test_scan_bids_takes_events_and_sidecars_from_higher_folders(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-faces_run-1_events.tsv").unlink()
    (bids / "sub-01/func/sub-01_task-faces_run-10_events.tsv").write_text("onset\tduration\ttrial_type\n")
    (bids / "task-faces_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\tface\n")
    (bids / "bold.json").write_text('{"RepetitionTime": 2.5}')
    (bids / "sub-02/ses-a/sub-02_ses-a_bold.json").write_text('{"RepetitionTime": 0.7}')
    found, warnings = scan_bids(bids)
    assert found[["run", "events", "tr_s"]].to_numpy().tolist() == [
        ["1", "task-faces_events.tsv", 2.5],
        ["1", "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv", 0.7],
        ["1", "sub-02/ses-a/func/sub-02_ses-a_task-tones_events.tsv", 0.7],
    ]
    assert any("run-10_bold.nii.gz left out: no event in sub-01/func/sub-01" in w for w in warnings)


def test_derivatives_that_are_not_there_are_named(bids: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*derivatives/nothing"):
        scan_bids(bids, derivatives="derivatives/nothing")


@pytest.mark.parametrize(("tr", "unit"), [(1.25, "sec"), (1250.0, "msec")])
def test_repetition_time_is_in_the_headers_unit(bids: Path, tr: float, unit: str) -> None:
    save_bold(bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz", tr, unit)
    assert scan_bids(bids)[0][:2].set_index("run").at["1", "tr_s"] == 1.25


def test_the_sidecar_overrules_the_header(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-faces_run-1_bold.json").write_text('{"RepetitionTime": 0.8}')
    (bids / "sub-01/func/sub-01_task-faces_run-10_bold.json").write_text('{"EchoTime": 0.03}')
    assert scan_bids(bids)[0][:2].set_index("run")["tr_s"].to_dict() == {"1": 0.8, "10": 1.5}


@pytest.mark.parametrize("content", ["{", "[]", '{"RepetitionTime": "n/a"}', '{"RepetitionTime": null}'])
def test_a_broken_sidecar_is_named(bids: Path, content: str) -> None:
    (bids / "sub-01/func/sub-01_task-faces_run-1_bold.json").write_text(content)
    with pytest.raises(ValueError, match=r"sub-01_task-faces_run-1_bold.json holds no readable RepetitionTime"):
        scan_bids(bids)


@pytest.mark.parametrize("broken", ["3-D", "cut short", "empty"])
def test_a_broken_image_is_named(bids: Path, broken: str) -> None:
    path = save_bold(bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz", shape=(7, 8, 9))
    if broken != "3-D":
        path.write_bytes(path.read_bytes()[: 60 if broken == "cut short" else 0])
    with pytest.raises(ValueError, match=r"sub-01_task-faces_run-1_bold.nii.gz is not a readable 4-D NIfTI"):
        scan_bids(bids)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no BIDS runs .* is this the dataset's root folder\?"):
        scan_bids(tmp_path)
    with pytest.raises(ValueError, match="found no HCP runs"):
        scan_hcp(tmp_path)


@pytest.mark.parametrize(
    ("name", "n_volumes", "mask"), [("haxby2001-vt", 72, "sub-01_desc-vt_mask.nii.gz"), ("haxby2001-slice", 121, "")]
)
def test_scan_bids_on_real_data(name: str, n_volumes: int, mask: str, tmp_path: Path) -> None:
    found, warnings = scan_bids(real_data(name))
    assert warnings == []
    assert list(found["run"]) == [f"{run:02d}" for run in range(1, 13)]
    assert set(found["subject"]) == {"01"}
    assert set(found["tr_s"]) == {2.5}
    assert set(found["n_volumes"]) == {n_volumes}
    assert {Path(path).name for path in found["mask"]} == {mask}
    split = assign_splits(found, "run", 4, 0)
    write_manifest(split, tmp_path / "manifest.csv")
    assert (read_manifest(tmp_path / "manifest.csv", "run")["split"] == "validation").sum() == 4
