import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import real_data

from deeplight_core.data.bids import common_root, scan_bids
from deeplight_core.data.manifest import assign_splits, is_structural, read_manifest, write_manifest
from deeplight_core.data.scan import scan_hcp, scan_table, states_of
from deeplight_core.preparation import SimulationSettings
from deeplight_core.tasks import TASKS


def pairs(left_out: pd.DataFrame) -> list[tuple[str, str]]:
    return list(left_out.itertuples(index=False, name=None))


def test_scan_hcp_gives_back_the_plan(simulated: tuple[pd.DataFrame, Path, SimulationSettings]) -> None:
    planned, root, _ = simulated
    found, left_out = scan_hcp(root)
    order = ["subject", "task", "run"]
    expected = planned.assign(dataset="hcp", split="").sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), expected)
    assert left_out.empty
    assert set(scan_hcp(root, ["EMOTION"])[0]["task"]) == {"EMOTION"}


def test_scan_hcp_warns_of_runs_that_are_not_whole(tmp_path: Path) -> None:
    for task in ("WM", "EMOTION"):
        save_bold(tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/tfMRI_{task}_RL.nii.gz")
    for task in ("WM", "MOTOR"):
        save_bold(tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/tfMRI_{task}_RL.nii.gz")
        evs = tmp_path / f"100307/MNINonLinear/Results/tfMRI_{task}_RL/EVs"
        evs.mkdir()
        for name in (name for names in TASKS[task].states.values() for name in names):
            (evs / f"{name}.txt").write_text("1 2 1\n" * (task == "WM"))
    found, left_out = scan_hcp(tmp_path)
    assert found[["subject", "task", "run", "mask"]].to_numpy().tolist() == [["100307", "WM", "RL", ""]]
    assert pairs(left_out) == [
        ("100307/MNINonLinear/Results/tfMRI_EMOTION_RL", "no EVs"),
        ("100307/MNINonLinear/Results/tfMRI_MOTOR_RL", "all files in EVs that states need are empty"),
    ]


def test_scan_hcp_leaves_out_runs_of_another_length_and_names_missing_ones(tmp_path: Path) -> None:
    for subject, n_volumes in (("1", 5), ("2", 5), ("3", 4)):
        for run in ("LR", "RL"):
            if (subject, run) == ("2", "RL"):
                continue
            folder = tmp_path / f"{subject}/MNINonLinear/Results/tfMRI_WM_{run}"
            save_bold(folder / f"tfMRI_WM_{run}.nii.gz", shape=(3, 3, 3, n_volumes))
            (folder / "EVs").mkdir()
            for name in (name for names in TASKS["WM"].states.values() for name in names):
                (folder / f"EVs/{name}.txt").write_text("1 2 1\n")
    found, left_out = scan_hcp(tmp_path)
    assert found[["subject", "run"]].to_numpy().tolist() == [["1", "LR"], ["1", "RL"], ["2", "LR"]]
    assert pairs(left_out) == [("2/MNINonLinear/Results/tfMRI_WM_RL", "this subject has no such run")] + [
        (f"3/MNINonLinear/Results/tfMRI_WM_{run}/tfMRI_WM_{run}.nii.gz", "4 volumes, most runs of WM have 5")
        for run in ("LR", "RL")
    ]


def test_what_an_hcp_folder_has_instead_is_said(tmp_path: Path) -> None:
    results = tmp_path / "1/MNINonLinear/Results"
    save_bold(results / "rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz")
    with pytest.raises(ValueError, match=r"that can be used; it has runs of rest \(REST1\) \(1\)$"):
        scan_hcp(tmp_path)
    image = save_bold(results / "tfMRI_CARIT_PA/tfMRI_CARIT_PA_hp0_clean.nii.gz")
    with pytest.raises(ValueError, match=r"is CARIT meant\?$"):
        scan_hcp(tmp_path, ["carit"])
    with pytest.raises(ValueError, match=r"no <run>.nii.gz and no EVs; there is <run>_hp0_clean.nii.gz"):
        scan_hcp(tmp_path)
    image.rename(image.with_name("tfMRI_CARIT_PA.nii.gz"))
    (image.parent / "EVs").mkdir()
    go = image.parent / "EVs/go.txt"
    go.symlink_to("/nowhere")
    with pytest.raises(ValueError, match=r"EVs/go.txt is a link to a file that is not there; fetch it"):
        scan_hcp(tmp_path)
    go.unlink()
    go.write_text("/annex/objects/MD5-s1--1\n")
    with pytest.raises(ValueError, match=r"EVs/go.txt is only a pointer of git-annex"):
        scan_hcp(tmp_path)
    (tmp_path / "sub-1").mkdir()
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(ValueError, match=r"root folder\? It has sub-1; for a BIDS folder take --bids$"):
        scan_hcp(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.mat", "ends neither in .nii nor in .nii.gz; convert it"), ("a", "is a folder; name the image")],
)
def test_what_is_no_image_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir() if name == "a" else (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "t.csv").write_text(f"subject,image\n1,{name}\n")
    with pytest.raises(ValueError, match=message):
        scan_table(tmp_path / "t.csv", tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere, in which the files of .*t.csv would be"):
        scan_table(tmp_path / "t.csv", tmp_path / "nowhere")


def save_bold(path: Path, tr: float = 1.5, unit: str = "sec", shape: tuple[int, ...] = (7, 8, 9, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).integers(0, 99, shape)  # of its own for every path
    image = nib.Nifti1Image(noise.astype(np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((3.0, 3.0, 3.0, tr)[: len(shape)])
    nib.save(image, path)
    return path


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two subjects, one with sessions and a run 10 beside run 1; a run that has no events."""
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "mine"}))
    for stem in (
        "sub-01/func/sub-01_task-faces_run-1", "sub-01/func/sub-01_task-faces_run-10",
        "sub-02/ses-a/func/sub-02_ses-a_task-faces", "sub-02/ses-a/func/sub-02_ses-a_task-tones",
    ):  # fmt: skip
        save_bold(tmp_path / f"{stem}_bold.nii.gz")
        (tmp_path / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\tface\n")
    save_bold(tmp_path / "sub-01/func/sub-01_task-movie_bold.nii.gz")
    return tmp_path


def test_scan_bids_reads_entities_and_header(bids: Path, tmp_path: Path) -> None:
    found, left_out = scan_bids(bids)
    assert sorted(found[["dataset", "subject", "session", "task", "run"]].to_numpy().tolist()) == [
        ["mine", "01", "", "faces", "1"], ["mine", "01", "", "faces", "10"],
        ["mine", "02", "a", "faces", "1"], ["mine", "02", "a", "tones", "1"],
    ]  # fmt: skip
    assert found["events"][2] == "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv"
    assert set(found["tr_s"]) == {1.5}
    assert set(found["n_volumes"]) == {5}
    assert pairs(left_out) == [("sub-01/func/sub-01_task-movie_bold.nii.gz", "no events.tsv applies to it")]
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
    found, left_out = scan_bids(bids)
    assert found[:2].set_index("run")["mask"].to_dict() == {"10": "sub-01/func/sub-01_desc-brain_mask.nii.gz", "1": ""}
    reason = "kept, but without mask: several fit; name one in the manifest"
    assert ("sub-01/func/sub-01_task-faces_run-1_bold.nii.gz", reason) in pairs(left_out)


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
    found, left_out = scan_bids(fmriprep, derivatives=FMRIPREP, space="MNI152NLin2009cAsym")
    assert found["tr_s"].tolist() == [0.9, 0.9, 0.9, 1.1]
    assert found["image"][2] == (
        f"{FMRIPREP}/sub-02/ses-a/func/sub-02_ses-a_task-faces_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    )
    assert found["mask"][2] == found["image"][2].replace("desc-preproc_bold", "desc-brain_mask")
    assert found["events"][2] == "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv"
    assert len(left_out) == 1
    assert "task-movie" in left_out["path"][0]


def test_scan_bids_names_a_run_that_has_no_image_in_the_space(fmriprep: Path) -> None:
    stem = "sub-01_task-faces_run-1_space-{}_desc-preproc_bold.nii.gz"
    (fmriprep / FMRIPREP / "sub-01/func" / stem.format("MNI152NLin2009cAsym")).unlink()
    found, left_out = scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP, space="MNI152NLin2009cAsym")
    assert found[["subject", "run"]].to_numpy().tolist() == [["01", "10"], ["02", "1"]]
    reason = "this run has no image with desc-preproc_space-MNI152NLin2009cAsym; it has space T1w"
    assert pairs(left_out) == [(f"{FMRIPREP}/sub-01/func/{stem.format('T1w')}", reason)]


def test_scan_bids_leaves_out_a_run_in_several_spaces_and_says_how_to_choose(fmriprep: Path) -> None:
    with pytest.raises(ValueError, match="found no BIDS runs"):
        scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP, space="MNI305")
    save_bold(fmriprep / "sub-01/func/sub-01_task-faces_run-1_rec-x_bold.nii.gz")  # a run of its own, not a copy
    found, _ = scan_bids(fmriprep, ["faces"])
    assert found["run"].tolist() == ["10", "1", "x-1", "1"]
    (fmriprep / FMRIPREP / "sub-01/func/sub-01_task-faces_run-1_space-T1w_desc-preproc_bold.nii.gz").unlink()
    found, left_out = scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP)
    assert found[["subject", "run"]].to_numpy().tolist() == [["01", "1"]]
    assert left_out["reason"].tolist() == ["several images of one run; choose one by space and res"] * 4


def test_scan_bids_takes_events_and_sidecars_from_higher_folders(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-faces_run-1_events.tsv").unlink()
    (bids / "sub-01/func/sub-01_task-faces_run-10_events.tsv").write_text("onset\tduration\ttrial_type\n")
    (bids / "task-faces_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\tface\n")
    (bids / "bold.json").write_text('{"RepetitionTime": 2.5}')
    (bids / "sub-02/ses-a/sub-02_ses-a_bold.json").write_text('{"RepetitionTime": 0.7}')
    found, left_out = scan_bids(bids)
    assert found[["run", "events", "tr_s"]].to_numpy().tolist() == [
        ["1", "task-faces_events.tsv", 2.5],
        ["1", "sub-02/ses-a/func/sub-02_ses-a_task-faces_events.tsv", 0.7],
        ["1", "sub-02/ses-a/func/sub-02_ses-a_task-tones_events.tsv", 0.7],
    ]
    assert ("sub-01/func/sub-01_task-faces_run-10_bold.nii.gz", "no event in its events.tsv") in pairs(left_out)


def test_resting_runs_need_no_events(bids: Path, tmp_path: Path) -> None:
    for task in ("rest", "restEyesOpen", "restless", "restBad", "forest"):
        save_bold(bids / f"sub-01/func/sub-01_task-{task}_bold.nii.gz")
    save_bold(bids / "sub-02/ses-a/func/sub-02_ses-a_task-rest_bold.nii.gz", shape=(7, 8, 9))
    (bids / "sub-01/func/sub-01_task-restless_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\tjerk\n")
    (bids / "sub-01/func/sub-01_task-restBad_events.tsv").write_text("onset\tduration\n1\t2\n")
    found, left_out = scan_bids(bids)
    resting = found[found["task"].str.startswith("rest")].set_index("task")
    events = "sub-01/func/sub-01_task-restless_events.tsv"
    assert resting["events"].to_dict() == {"rest": "", "restEyesOpen": "", "restless": events, "restBad": ""}
    assert resting[["tr_s", "n_volumes"]].drop_duplicates().to_numpy().tolist() == [[1.5, 5]]
    reasons = dict(pairs(left_out))
    assert reasons.pop("sub-01/func/sub-01_task-restBad_bold.nii.gz").startswith("kept, but without events: ")
    assert reasons.pop("sub-02/ses-a/func/sub-02_ses-a_task-rest_bold.nii.gz").startswith(
        "it is one volume, of shape (7, 8, 9)"
    )
    assert reasons == dict.fromkeys(
        [f"sub-01/func/sub-01_task-{task}_bold.nii.gz" for task in ("movie", "forest")], "no events.tsv applies to it"
    )
    assert states_of(found, bids) == {
        "faces": {"face": ["face"]}, "tones": {"face": ["face"]}, "rest": {}, "restEyesOpen": {}, "restBad": {},
        "restless": {"jerk": ["jerk"]},
    }  # fmt: skip
    split = assign_splits(found, "subject", 1, 0)
    write_manifest(split, tmp_path / "manifest.csv")
    assert not is_structural(read_manifest(tmp_path / "manifest.csv")).any()


def test_a_task_that_is_to_have_no_states_needs_no_events(bids: Path) -> None:
    found, left_out = scan_bids(bids, states={"movie": {}, "faces": {"face": ["face"]}})
    assert found.set_index("task").at["movie", "events"] == ""
    assert not left_out["path"].str.contains("movie").any()


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
    found, left_out = scan_bids(bids)
    assert len(found) == 3
    reason = left_out.set_index("path")["reason"]["sub-01/func/sub-01_task-faces_run-1_bold.nii.gz"]
    assert "sub-01_task-faces_run-1_bold.json holds no readable RepetitionTime" in reason


@pytest.mark.parametrize("broken", ["3-D", "cut short", "empty"])
def test_a_broken_image_is_named(bids: Path, broken: str) -> None:
    path = save_bold(bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz", shape=(7, 8, 9))
    if broken != "3-D":
        path.write_bytes(path.read_bytes()[: 60 if broken == "cut short" else 0])
    found, left_out = scan_bids(bids)
    assert len(found) == 3
    reason = left_out.set_index("path")["reason"]["sub-01/func/sub-01_task-faces_run-1_bold.nii.gz"]
    assert {"3-D": "it is one volume", "empty": "is empty (0 bytes)"}.get(broken, "cannot be read as NIfTI") in reason


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no BIDS runs .* is this the dataset's root folder\?"):
        scan_bids(tmp_path)
    with pytest.raises(ValueError, match="found no HCP runs"):
        scan_hcp(tmp_path)


@pytest.mark.parametrize(
    ("name", "n_volumes", "mask"), [("haxby2001-vt", 72, "sub-01_desc-vt_mask.nii.gz"), ("haxby2001-slice", 121, "")]
)
def test_scan_bids_on_real_data(name: str, n_volumes: int, mask: str, tmp_path: Path) -> None:
    found, left_out = scan_bids(real_data(name))
    assert left_out.empty
    assert list(found["run"]) == [f"{run:02d}" for run in range(1, 13)]
    assert set(found["subject"]) == {"01"}
    assert set(found["tr_s"]) == {2.5}
    assert set(found["n_volumes"]) == {n_volumes}
    assert {Path(path).name for path in found["mask"]} == {mask}
    split = assign_splits(found, "run", 4, 0)
    write_manifest(split, tmp_path / "manifest.csv")
    assert (read_manifest(tmp_path / "manifest.csv", "run")["split"] == "validation").sum() == 4


# ---- structural images, tables of one's own, copies, links


def test_scan_bids_finds_structural_images(bids: Path) -> None:
    for stem in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a"):
        save_bold(bids / f"{stem}_T1w.nii.gz", shape=(7, 8, 9))
        save_bold(bids / f"{stem}_T2w.nii.gz", shape=(7, 8, 9))
    save_bold(bids / "sub-01/anat/sub-01_desc-brain_mask.nii.gz", shape=(7, 8, 9))
    found, left_out = scan_bids(bids, anat="T1w")
    assert left_out.empty
    assert found[["subject", "session", "task", "image", "events", "tr_s", "n_volumes"]].to_numpy().tolist() == [
        ["01", "", "T1w", "sub-01/anat/sub-01_T1w.nii.gz", "", "", 1],
        ["02", "a", "T1w", "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "", "", 1],
    ]
    assert found["mask"].tolist() == ["sub-01/anat/sub-01_desc-brain_mask.nii.gz", ""]


def test_scan_bids_tells_masks_of_several_contrasts_apart(bids: Path) -> None:
    stem = "sub-01/anat/sub-01"
    for suffix in ("T1w", "T2w"):
        save_bold(bids / f"{stem}_{suffix}.nii.gz", shape=(7, 8, 9))
        save_bold(bids / f"{stem}_mod-{suffix}_desc-brain_mask.nii.gz", shape=(7, 8, 9))
    for suffix in ("T1w", "T2w"):
        found, left_out = scan_bids(bids, anat=suffix)
        reason = f"this subject has no image named …_{suffix}: no anat folder holds an image; there is func"
        assert pairs(left_out) == [("sub-02", reason)]
        assert found["mask"].tolist() == [f"{stem}_mod-{suffix}_desc-brain_mask.nii.gz"]


def test_an_anatomical_image_of_several_volumes_is_left_out(bids: Path) -> None:
    save_bold(bids / "sub-01/anat/sub-01_T1w.nii.gz", shape=(7, 8, 9))
    save_bold(bids / "sub-01/anat/sub-01_run-2_T1w.nii.gz", shape=(7, 8, 9, 5))
    found, left_out = scan_bids(bids, anat="T1w")
    assert found["run"].tolist() == ["1"]
    assert pairs(left_out)[1:] == [("sub-01/anat/sub-01_run-2_T1w.nii.gz", "5 volumes; a structural image has one")]


def test_an_image_whose_sidecar_contradicts_its_name_is_left_out(bids: Path) -> None:
    named = {"01": "t2_space_sag", "02": "T1 MPRAGE", "03": "MPRAGE", "04": "T2 and T1"}
    for subject, series in named.items():
        image = save_bold(bids / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", shape=(7, 8, 9))
        image.with_name(f"sub-{subject}_T1w.json").write_text(json.dumps({"SeriesDescription": series}))
    found, left_out = scan_bids(bids, anat="T1w")
    assert found["subject"].tolist() == ["02", "03", "04"]
    (pair,) = pairs(left_out)
    expected = "its sidecar says 't2_space_sag', its task is T1w; correct one of them"
    assert pair == ("sub-01/anat/sub-01_T1w.nii.gz", expected)


def test_a_copied_run_is_left_out_under_its_second_name(bids: Path) -> None:
    copy = "sub-02/ses-a/func/sub-02_ses-a_task-faces_bold.nii.gz"
    (bids / copy).write_bytes((bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz").read_bytes())
    found, left_out = scan_bids(bids, ["faces"])
    assert len(found) == 2
    reason = "same content as sub-01/func/sub-01_task-faces_run-1_bold.nii.gz, of another subject (01)"
    assert (copy, reason) in pairs(left_out)


def test_images_of_one_size_are_no_copies(bids: Path) -> None:
    for path in bids.glob("sub-*/**/*_bold.nii.gz"):
        save_bold(path.with_suffix(""))  # uncompressed, all of one length
        path.unlink()
    found, left_out = scan_bids(bids)
    assert len(found) == 4
    assert left_out["reason"].tolist() == ["no events.tsv applies to it"]


def test_a_link_that_leaves_the_root_is_left_out(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = save_bold(tmp_path_factory.mktemp("outside") / "x.nii.gz")
    link = bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz"
    link.unlink()
    link.symlink_to(outside)
    _, left_out = scan_bids(bids, ["faces"])
    (reason,) = left_out["reason"]
    assert "outside the data root" in reason


def test_runs_without_any_of_the_states_are_left_out(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-faces_run-1_events.tsv").write_text("onset\tduration\ttrial_type\n1\t2\thouse\n")
    found, left_out = scan_bids(bids, states={"faces": {"seen": ["face"]}})
    assert found[["subject", "task", "run"]].to_numpy().tolist() == [["01", "faces", "10"], ["02", "faces", "1"]]
    assert left_out["reason"].tolist().count("no event of a wanted state") == 2
    assert states_of(found, bids) == {"faces": {"face": ["face"]}}


@pytest.mark.parametrize(("tr", "unit"), [(0.0, "sec"), (720.0, "sec"), (720.0, "unknown")])
def test_a_repetition_time_that_cannot_be_is_left_out(bids: Path, tr: float, unit: str) -> None:
    save_bold(bids / "sub-01/func/sub-01_task-faces_run-1_bold.nii.gz", tr, unit)
    found, left_out = scan_bids(bids, ["faces"])
    assert len(found) == 2
    assert f"repetition time {tr:g} s is not between 0.1 and 20.0 s; repair the header" in left_out["reason"][0]


def test_a_table_of_ones_own(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("table")
    run, events = "sub-01/func/sub-01_task-faces_run-{}_bold.nii.gz", "sub-01/func/sub-01_task-faces_run-{}_events.tsv"
    lines = ["participant_id,task,image,events,tr_s,handedness"]
    lines += [f"sub-01,faces,{run.format(n)},{events.format(n)},{tr},left" for n, tr in ((1, ""), (10, "0.9"))]
    lines += [f"sub-07,faces,{run.format(3)},{events.format(1)},,right"]
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    found, left_out = scan_table(folder / "mine.csv", bids)
    assert found[["dataset", "subject", "task", "run", "tr_s", "n_volumes", "handedness"]].to_numpy().tolist() == [
        ["mine", "01", "faces", "1", 1.5, 5, "left"], ["mine", "01", "faces", "2", 0.9, 5, "left"],
    ]  # fmt: skip
    assert pairs(left_out) == [(run.format(3), "image does not exist")]


def test_in_a_table_volumes_and_repetition_times_tell_runs_without_events_from_structural_images(
    tmp_path: Path,
) -> None:
    shapes = {"run": (7, 8, 9, 5), "flat": (7, 8, 9), "one": (7, 8, 9, 1), "single": (7, 8, 9, 1), "wrong": (7, 8, 9)}
    for name, shape in shapes.items():
        save_bold(tmp_path / f"{name}.nii.gz", shape=shape)
    lines = [f"{name},{name}.nii.gz,{'2.5' if name in ('single', 'wrong') else ''}" for name in shapes]
    (tmp_path / "mine.csv").write_text("\n".join(["subject,image,tr_s", *lines]) + "\n")
    found, left_out = scan_table(tmp_path / "mine.csv", tmp_path)
    assert found[["subject", "events", "tr_s", "n_volumes"]].to_numpy().tolist() == [
        ["run", "", 1.5, 5], ["flat", "", "", 1], ["one", "", "", 1], ["single", "", 2.5, 1],
    ]  # fmt: skip
    assert pairs(left_out) == [
        ("wrong.nii.gz", "it is one volume, of shape (7, 8, 9); a run has several, along a fourth axis")
    ]


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        ("participant_id,sex\n01,F\n", "", "has no column image"),
        ("participant_id,sex\n01,F\n", "{name}.nii.gz", "--image '{name}.nii.gz' names 'name'"),
        ("image\nx.nii.gz\n", "", "has no column subject"),
        ("participant_id,image\n01,x.nii.gz\n", "", r"(?s)found no usable rows .* image does not exist"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(text: str, image: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        scan_table(tmp_path / "mine.csv", tmp_path, image)


def test_structural_images_of_real_people(tmp_path: Path) -> None:
    root = real_data("ixi-t1")
    found, left_out = scan_table(root / "participants.tsv", root, "{participant_id}.nii.gz")
    assert left_out.empty
    assert len(found) == 50
    split = assign_splits(found, "subject", 10, 0, "sex")
    counts = split.groupby(["split", "sex"]).size()
    assert (counts["validation", "F"], counts["validation", "M"]) in ((5, 5), (6, 4))  # 28 and 22 of 50
    write_manifest(split, tmp_path / "m.csv")
    assert set(read_manifest(tmp_path / "m.csv")["n_volumes"]) == {1}


def test_a_missing_event_file_leaves_the_run_out_and_an_empty_one_is_noted(
    simulated: tuple[pd.DataFrame, Path, SimulationSettings], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(simulated[1], tmp_path / "hcp"))
    (root / "sim001/MNINonLinear/Results/tfMRI_EMOTION_LR/EVs/fear.txt").unlink()
    (root / "sim002/MNINonLinear/Results/tfMRI_EMOTION_LR/EVs/fear.txt").write_text("")
    found, left_out = scan_hcp(root, ["EMOTION"])
    assert found["subject"].tolist() == ["sim002"]
    assert pairs(left_out) == [
        ("sim001/MNINonLinear/Results/tfMRI_EMOTION_LR", "no fear.txt in EVs"),
        ("sim002/MNINonLinear/Results/tfMRI_EMOTION_LR", "kept, but empty in EVs: fear.txt"),
    ]


def test_derivatives_may_lie_beside_the_raw_folder(fmriprep: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    study = tmp_path_factory.mktemp("study")
    shutil.copytree(fmriprep, study / "raw")
    (study / "raw" / FMRIPREP).rename(study / "prepped")
    found, _ = scan_bids(study / "raw", ["faces"], derivatives=str(study / "prepped"), space="T1w")
    inside, _ = scan_bids(fmriprep, ["faces"], derivatives=FMRIPREP, space="T1w")
    assert common_root(study / "raw", str(study / "prepped")) == study
    assert found["image"].tolist() == [path.replace(FMRIPREP, "prepped") for path in inside["image"]]
    assert found["events"].tolist() == [f"raw/{path}" for path in inside["events"]]
    assert (found["tr_s"] == inside["tr_s"]).all()
