"""BIDS folders as people have them: odd names, lost files, several echoes, other clocks."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from deeplight_core.data.bids import scan_bids

FACES = "onset\tduration\ttrial_type\n0\t4\tface\n6\t4\thouse\n"
N_VOLUMES, TR_S = 10, 2.0


def save(path: Path, tr_s: float = TR_S, n_volumes: int = N_VOLUMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).integers(0, 99, (3, 4, 5, n_volumes))
    image = nib.Nifti1Image(noise.astype(np.int16), np.eye(4))
    image.header.set_zooms((3.0, 3.0, 3.0, tr_s))
    nib.save(image, path)
    return path


def run(root: Path, stem: str, events: str = FACES, **settings: float) -> Path:
    subject = stem.split("_")[0]
    image = save(root / subject / "func" / f"{stem}_bold.nii.gz", **settings)
    (image.parent / f"{stem}_events.tsv").write_text(events)
    return image


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Three subjects with one run each."""
    for subject in ("01", "02", "03"):
        run(tmp_path, f"sub-{subject}_task-loc")
    return tmp_path


def derived(bids: Path, ending: str, **settings: float) -> Path:
    """Preprocessed images of all three subjects; returns the first."""
    folder = bids / "derivatives/prep"
    paths = [folder / f"sub-{s}/func/sub-{s}_task-loc_{ending}" for s in ("03", "02", "01")]
    for path in paths:
        save(path, **settings)
    return paths[-1]


def reasons(bids: Path, *given: object, **options: object) -> dict[str, str]:
    """Subject → why something is said of it."""
    left_out = scan_bids(bids, *given, **options)[1]
    return {path.split("/")[0]: reason for path, reason in left_out.itertuples(index=False, name=None)}


def test_names_that_begin_with_a_dot_do_not_exist(bids: Path) -> None:
    for name in ("bold.nii.gz", "events.tsv", "bold.json"):
        (bids / f"sub-01/func/._sub-01_task-loc_{name}").write_bytes(b"\x00\x05\x16\x07Mac OS X\xb0")
    (bids / "._sub-04").write_bytes(b"\x00\x05")
    found, left_out = scan_bids(bids)
    assert found["subject"].tolist() == ["01", "02", "03"]
    assert left_out.empty


def test_links_to_files_that_are_not_there_leave_out_their_run(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-loc_bold.json").symlink_to("../../.git/annex/gone.json")
    for name in ("sub-02/func/sub-02_task-loc_events.tsv", "sub-03/func/sub-03_task-loc_bold.nii.gz"):
        (bids / name).unlink()
        (bids / name).symlink_to("../../.git/annex/gone")
    run(bids, "sub-04_task-loc")
    run(bids, "sub-05_task-loc", events="/annex/objects/MD5E-s99--0.tsv\n")
    run(bids, "sub-06_task-loc")
    (bids / "sub-06/func/sub-06_task-loc_bold.json").write_text(
        "../../.git/annex/objects/MD5E-s99--0.json"
    )  # a link's text
    found, _ = scan_bids(bids)
    assert found["subject"].tolist() == ["04"]
    said = reasons(bids)
    words = {
        "01": "bold.json cannot be read", "02": "events.tsv is a link to a file that is not there",
        "03": "is a link to a file that is not there", "05": "a pointer of git-annex",
        "06": "its sidecar sub-06_task-loc_bold.json is only a pointer of git-annex",
    }  # fmt: skip
    for subject, of_subject in words.items():
        assert of_subject in said[f"sub-{subject}"]


def test_of_several_echoes_the_combined_image_is_taken(bids: Path) -> None:
    for echo in (1, 2):
        save(bids / f"derivatives/prep/sub-01/func/sub-01_task-loc_echo-{echo}_desc-preproc_bold.nii.gz")
        save(bids / f"derivatives/prep/sub-02/func/sub-02_task-loc_echo-{echo}_desc-preproc_bold.nii.gz")
    save(bids / "derivatives/prep/sub-01/func/sub-01_task-loc_desc-preproc_bold.nii.gz")
    found, left_out = scan_bids(bids, derivatives="derivatives/prep")
    assert found["image"].tolist() == ["derivatives/prep/sub-01/func/sub-01_task-loc_desc-preproc_bold.nii.gz"]
    assert [reason.split(";")[0] for reason in left_out["reason"]] == [
        "this subject has no image named …_bold: it is not below prep",
        *["an echo, beside the run's combined image"] * 2, *["an echo without a combined image"] * 2,
    ]  # fmt: skip


def test_a_mask_without_a_space_is_not_that_of_an_image_in_one(bids: Path) -> None:
    derived(bids, "space-A_desc-preproc_bold.nii.gz")
    derived(bids, "desc-brain_mask.nii.gz")
    assert set(scan_bids(bids, derivatives="derivatives/prep")[0]["mask"]) == {""}
    derived(bids, "space-A_desc-brain_mask.nii.gz")
    assert all("space-A" in mask for mask in scan_bids(bids, derivatives="derivatives/prep")[0]["mask"])


def test_run_1_is_run_01(bids: Path) -> None:
    run(bids, "sub-04_task-loc_run-01")
    save(bids / "derivatives/prep/sub-04/func/sub-04_task-loc_run-1_desc-preproc_bold.nii.gz")
    found, _ = scan_bids(bids, derivatives="derivatives/prep")
    assert found["events"].tolist() == ["sub-04/func/sub-04_task-loc_run-01_events.tsv"]


@pytest.mark.parametrize(
    ("sidecar", "tr_s", "start"),
    [
        ({"RepetitionTime": 2.0, "StartTime": 1.0}, 2.0, "1"),
        ({"RepetitionTime": 2.0, "DelayTime": 1.0}, 2.0, None),
        ({"VolumeTiming": [0.5 + 3 * i for i in range(N_VOLUMES)]}, 3.0, "0.5"),
    ],
)
def test_clocks_of_sidecars(bids: Path, sidecar: dict[str, object], tr_s: float, start: str | None) -> None:
    (bids / "sub-01/func/sub-01_task-loc_bold.json").write_text(json.dumps(sidecar))
    first = scan_bids(bids)[0].iloc[0]
    assert (first["tr_s"], first.get("start_s")) == (tr_s, start)


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"VolumeTiming": [0, 2, 4, 6, 8, 20, 22, 24, 26, 28]}, "not one repetition time apart: .* 2 to 12 s"),
        ({"VolumeTiming": [0, 2, 4]}, "VolumeTiming has 3 times, the image 10 volumes"),
        ({"VolumeTiming": "n/a"}, "VolumeTiming is no list of seconds"),
        ({"RepetitionTime": 2.0, "StartTime": 1e3}, "StartTime 1000 s is not within the run"),
        ({"RepetitionTime": 2000}, "2000 s is not between .* is it in milliseconds"),
    ],
)
def test_clocks_that_cannot_be(bids: Path, sidecar: dict[str, object], message: str) -> None:
    (bids / "sub-01/func/sub-01_task-loc_bold.json").write_text(json.dumps(sidecar))
    assert re.search(message, reasons(bids)["sub-01"])


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        (
            {"NumberOfVolumesDiscardedByUser": 4},
            "the first 4 volumes were discarded .* count from the first volume that is",
        ),
        ({"NonSteadyStateVolumes": 3}, "NonSteadyStateVolumes: 3; .* leave them out with --drop-volumes 3"),
        ({"DummyScans": 2, "NumberOfVolumesDiscardedByUser": 0}, "says DummyScans: 2"),
    ],
)
def test_first_volumes_that_a_sidecar_counts_are_said(bids: Path, sidecar: dict[str, int], message: str) -> None:
    (bids / "sub-01/func/sub-01_task-loc_bold.json").write_text(json.dumps(sidecar | {"RepetitionTime": TR_S}))
    found, left_out = scan_bids(bids)
    assert len(found) == 3
    assert [bool(re.search(message, reason)) for reason in left_out["reason"]] == [True]


def test_a_sidecar_that_contradicts_the_header_is_said(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-loc_bold.json").write_text('{"RepetitionTime": 1.5}')
    assert scan_bids(bids)[0]["tr_s"].tolist() == [1.5, 2.0, 2.0]
    assert reasons(bids) == {
        "sub-01": "kept, but its sidecar says TR 1.5 s and its header 2 s; the sidecar's is used"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("bold_space-MNI_preproc.nii.gz", "found 3 images named …_bold_space-MNI_preproc; .* before fMRIPrep 1.2"),
        ("space-fsLR_den-91k_bold.dtseries.nii.gz", "found no image named …_bold"),
        ("desc-denoised_bold.nii.gz", "it has desc denoised: --desc denoised"),
        ("desc-preproc_cbv.nii.gz", "found no image named …_bold, but 3 named …_cbv"),
    ],
)
def test_what_is_found_is_said(bids: Path, ending: str, message: str) -> None:
    derived(bids, ending)
    with pytest.raises(ValueError, match=message):
        scan_bids(bids, derivatives="derivatives/prep")


def test_cifti_alone_is_said(bids: Path) -> None:
    path = derived(bids, "bold.nii.gz").with_name("sub-01_task-loc_space-fsLR_den-91k_bold.dtseries.nii")
    for image in (bids / "derivatives").rglob("*_bold.nii.gz"):
        image.unlink()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"found 1 files of CIFTI \(dtseries\) only: ask for volumes"):
        scan_bids(bids, derivatives="derivatives/prep")


def test_other_descriptions_spaces_tasks_and_sessions(bids: Path) -> None:
    derived(bids, "space-A_desc-denoised_bold.nii.gz")
    found, _ = scan_bids(bids, derivatives="derivatives/prep", desc="denoised")
    assert len(found) == 3
    with pytest.raises(ValueError, match=r"has no image with .*space-B; it has space A"):
        scan_bids(bids, derivatives="derivatives/prep", desc="denoised", space="B")
    with pytest.raises(ValueError, match=r"of the task Loc; tasks are loc \(3\); is loc meant\?"):
        scan_bids(bids, ["Loc"])
    for session in ("pre", "post"):
        stem = f"sub-04_ses-{session}_task-loc"
        image = save(bids / f"sub-04/ses-{session}/func/{stem}_bold.nii.gz")
        image.with_name(f"{stem}_events.tsv").write_text(FACES)
    assert scan_bids(bids, sessions=["pre"])[0]["session"].tolist() == ["pre"]


def test_labels_with_an_underscore_or_of_another_subject(bids: Path) -> None:
    (bids / "sub-01").rename(bids / "sub-site1_01")
    (bids / "sub-02").rename(bids / "sub-99")
    run(bids, "sub-A-05_task-loc")
    run(bids, "sub-06_task-locrun-1")
    said = reasons(bids)
    assert scan_bids(bids)[0]["subject"].tolist() == ["03", "06", "A-05"]
    assert said["sub-site1_01"].startswith("labels hold no _: rename sub-site1_01 and its files, e.g. to sub-site101")
    assert said["sub-99"] == "its name and its folder sub-99 are of different subjects"
    assert said["sub-06"] == "kept, but its task is called locrun-1; is a _ missing in its name?"


def test_a_name_that_is_of_another_session_than_its_folder(bids: Path) -> None:
    names = {"ses-1": "sub-01_task-loc", "ses-2": "sub-01_ses-1_task-loc", "ses-pre_1": "sub-01_ses-pre_1_task-loc"}
    for folder, stem in names.items():
        save(bids / f"sub-01/{folder}/func/{stem}_bold.nii.gz")
    save(bids / "sub-02/func/sub-02_ses-1_task-loc_bold.nii.gz")
    found, left_out = scan_bids(bids)
    assert found["subject"].tolist() == ["01", "02", "03"]
    assert left_out["reason"].tolist() == [
        "its name names no session, and its folder is ses-1; correct one of them",
        "its name names the session 1, and its folder is ses-2; correct one of them",
        "labels hold no _: rename ses-pre_1 and its files, e.g. to ses-pre1",
        "its name names the session 1, and its folder is in no session; correct one of them",
    ]


def test_a_subject_without_images_is_said(bids: Path) -> None:
    derived(bids, "desc-preproc_bold.nii.gz")
    (bids / "derivatives/prep/sub-03").rename(bids / "sub-05")
    odd = bids / "derivatives/prep/sub-02/func/sub-02_task-loc_desc-preproc_bold.nii.gz"
    odd.rename(odd.with_name("sub-02_task-loc_space-fsLR_den-91k_bold.dtseries.nii"))
    said = reasons(bids, derivatives="derivatives/prep")
    assert said["sub-02"].startswith("this subject has no image named …_bold: found 1 files of CIFTI (dtseries) only")
    assert said["sub-03"] == said["sub-05"] == "this subject has no image named …_bold: it is not below prep"
    save(bids / "sub-01/ses-1/func/sub-01_ses-1_task-loc_bold.nii.gz").with_name(
        "sub-01_ses-1_task-loc_events.tsv"
    ).write_text(FACES)
    assert reasons(bids, sessions=["1"])["sub-02"].endswith("it has no such session")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"sessions": ["2"]}, r"of the session 2; sessions are 1$"),
        (("_bold.nii.gz", "_bold.NII.GZ"), {}, "found 1 images named as .*_bold.NII.GZ: names end in .nii or .nii.gz"),
        (("_bold.nii.gz", "_desc-preproc_bold.nii.gz"), {}, "--bids names the raw dataset and --derivatives their own"),
        (("func", "anat"), {}, "no func folder holds an image; there is anat; for structural images take --anat T1w"),
        (("func", "MNINonLinear"), {}, "It has no folders sub-.*, but 01; for HCP's layout take --hcp"),
    ],
)
def test_what_there_is_instead_is_said(
    tmp_path: Path, change: tuple[str, str] | None, options: dict[str, list[str]], message: str
) -> None:
    image = save(tmp_path / "sub-01/ses-1/func/sub-01_ses-1_task-loc_bold.nii.gz")
    if change and change[0] == "func":
        image.parent.rename(image.parent.with_name(change[1]))
    elif change:
        image.rename(image.with_name(image.name.replace(*change)))
    if change and change[1] == "MNINonLinear":
        (tmp_path / "sub-01/ses-1").rename(tmp_path / "01")
        (tmp_path / "sub-01").rmdir()
    with pytest.raises(ValueError, match=message):
        scan_bids(tmp_path, **options)


def test_a_folder_that_is_not_there_is_named(bids: Path) -> None:
    (bids / "prep").symlink_to("/nowhere")
    with pytest.raises(ValueError, match=r"there is no folder .*prep: it is a link to /nowhere, which is not there$"):
        scan_bids(bids, derivatives="prep")
    with pytest.raises(ValueError, match=r"there is no folder .*; derivatives are named relative to the BIDS root"):
        scan_bids(bids, derivatives="derivatives")
    with pytest.raises(ValueError, match=r"there is no folder [^;]*$"):
        scan_bids(bids / "nope", derivatives="prep")


def test_events_named_by_other_columns(bids: Path) -> None:
    for path in bids.rglob("*_events.tsv"):
        path.write_text("onset\tduration\tstim\tside\n0\t4\tface\tleft\n6\t4\thouse\tn/a\n")
    with pytest.raises(ValueError, match="name the column of the events' names: --trial-type stim"):
        scan_bids(bids)
    assert len(scan_bids(bids, trial_type=["stim", "side"])[0]) == 3


def test_a_link_to_derivatives_is_named_with_its_remedy(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("scratch")
    (bids / "derivatives").mkdir()
    (bids / "derivatives/prep").symlink_to(outside)
    with pytest.raises(ValueError, match=f"is {outside}, outside .* --derivatives {outside}"):
        scan_bids(bids, derivatives="derivatives/prep")


@pytest.mark.parametrize("name", ["", " ", None, 7])
def test_a_dataset_without_a_name_has_its_folders(bids: Path, name: object) -> None:
    (bids / "dataset_description.json").write_text(json.dumps({"Name": name}))
    assert set(scan_bids(bids)[0]["dataset"]) == {bids.name}


def test_aborted_and_missing_runs_are_said(bids: Path) -> None:
    for subject, n_volumes in (("01", 20), ("02", 19), ("03", 9), ("05", 20), ("06", 20)):
        run(bids, f"sub-{subject}_task-long", n_volumes=n_volumes)
    found, left_out = scan_bids(bids)
    assert found.groupby("task")["subject"].apply(list).to_dict() == {
        "loc": ["01", "02", "03"], "long": ["01", "02", "05", "06"],
    }  # fmt: skip
    assert sorted(left_out.itertuples(index=False, name=None)) == [
        ("sub-02/func/sub-02_task-long_bold.nii.gz", "kept, but 19 volumes, most runs of long have 20"),
        ("sub-03/func/sub-03_task-long_bold.nii.gz", "9 volumes, most runs of long have 20"),
        ("sub-05_task-loc_run-1", "this subject has no such run"),
        ("sub-06_task-loc_run-1", "this subject has no such run"),
    ]


def test_a_missing_run_is_said_whatever_is_said_of_the_others(bids: Path) -> None:
    for subject in ("01", "02", "03"):
        for number in (1, 2, 3):
            run(
                bids,
                f"sub-{subject}_task-nback_dir-AP_run-{number:02}",
                n_volumes=9 if (subject, number) == ("02", 1) else 20,
            )
    for name in ("sub-01/func/sub-01_task-nback_dir-AP_run-02", "sub-02/func/sub-02_task-nback_dir-AP_run-03"):
        (bids / f"{name}_bold.nii.gz").unlink()
    (bids / "sub-01/func/sub-01_task-nback_dir-AP_run-01_events.tsv").write_text(FACES + "n/a\t4\tface\n")
    assert sorted(scan_bids(bids, ["nback"])[1].itertuples(index=False, name=None)) == [
        (
            "sub-01/func/sub-01_task-nback_dir-AP_run-01_bold.nii.gz",
            "kept, but 1 events without an onset (n/a) are left out",
        ),
        ("sub-01_task-nback_run-AP-2", "this subject has no such run"),
        ("sub-02/func/sub-02_task-nback_dir-AP_run-01_bold.nii.gz", "9 volumes, most runs of nback have 20"),
        ("sub-02_task-nback_run-AP-3", "this subject has no such run"),
    ]


@pytest.mark.parametrize(
    ("factor", "later", "message"),
    [(1000, 0, "are they in milliseconds"), (1, 100, "are they counted on from run to run")],
)
def test_onsets_that_cannot_be_a_runs(bids: Path, factor: int, later: int, message: str) -> None:
    text = "onset\tduration\ttrial_type\n" + "".join(
        f"{factor * t + later}\t{3 * factor}\tface\n" for t in (0, 4, 8, 12)
    )
    (bids / "sub-01/func/sub-01_task-loc_events.tsv").write_text(text)
    with pytest.raises(ValueError, match=rf"the events of 1 of 3 runs cannot be theirs(?s:.*){message}"):
        scan_bids(bids)
    for subject in ("04", "05"):
        run(bids, f"sub-{subject}_task-loc")
    assert message in reasons(bids)["sub-01"]  # one of five is that file's fault
    assert scan_bids(bids)[0]["subject"].tolist() == ["02", "03", "04", "05"]


def test_events_of_all_runs_in_every_runs_file_are_refused(bids: Path) -> None:
    together = FACES + "20\t4\thouse\n26\t4\tface\n"
    for number in (1, 2):
        run(bids, f"sub-04_task-two_run-{number}", events=together)
        run(bids, f"sub-05_task-two_run-{number}")
    with pytest.raises(ValueError, match=r"2 of 4 runs cannot be theirs(?s:.*)2 of its 4 events lie outside the run "
                                         r"\(20 s\), and 2 runs of this subject have the same events"):  # fmt: skip
        scan_bids(bids, ["two"])
    (bids / "sub-04/func/sub-04_task-two_run-2_events.tsv").write_text(FACES)  # of one run, it may be a mistake
    assert "kept, but 2 of its 4 events" in reasons(bids, ["two"])["sub-04"]
    assert len(scan_bids(bids, ["two"])[0]) == 4


def test_events_past_the_end_are_counted(bids: Path) -> None:
    (bids / "sub-01/func/sub-01_task-loc_events.tsv").write_text(FACES + "25\t4\tface\nn/a\t4\tface\n")
    assert scan_bids(bids)[1]["reason"].tolist() == [
        "kept, but 1 events without an onset (n/a) are left out",
        "kept, but 1 of its 3 events lie outside the run (20 s)",
    ]
