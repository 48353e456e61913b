import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import contents, real_data, use_threads
from scipy.ndimage import zoom

from deeplight_core import cli
from deeplight_core.config import project_root
from deeplight_core.data.manifest import read_notes
from deeplight_core.data.store import open_store, verify

COMMANDS = (
    "simulate",
    "cohort",
    "manifest",
    "init",
    "prepare",
    "verify",
    "pretrain",
    "finetune",
    "sweep",
    "evaluate",
    "decode",
    "explain",
    "export",
    "push",
    "import",
    "report",
    "book",
)


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["deeplight", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, monkeypatch, capsys):
    assert call(monkeypatch, command, "--help") == 0
    assert re.search(r"Example", capsys.readouterr().out)


def test_every_command_is_tested():
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands} == set(COMMANDS)


def test_simulate_then_manifest_agree(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data"
    assert (
        call(
            monkeypatch,
            "simulate",
            str(folder),
            "--train",
            "1",
            "--validation",
            "1",
            "--tr",
            "6",
            "--resolution",
            "10",
            "--jobs",
            "1",
        )
        == 0
    )
    assert call(monkeypatch, "manifest", "--hcp", str(folder), "--validation", "1", "-o", str(tmp_path / "m.csv")) == 0
    made, found = (
        pd.read_csv(p).sort_values("image", ignore_index=True) for p in (folder / "manifest.csv", tmp_path / "m.csv")
    )
    columns = ["subject", "task", "run", "image", "events", "mask", "tr_s", "n_volumes"]
    pd.testing.assert_frame_equal(made[columns], found[columns])
    assert "1 subjects for train, 1 subjects for validation" in capsys.readouterr().out


def test_what_a_manifest_leaves_out_is_listed_beside_it(tmp_path, monkeypatch, capsys):
    folder, output = tmp_path / "data", tmp_path / "m.csv"
    small = ["--train", "2", "--validation", "1", "--tr", "6", "--resolution", "10", "--jobs", "1"]
    assert call(monkeypatch, "simulate", str(folder), *small) == 0
    (folder / "sim002/MNINonLinear/Results/tfMRI_WM_LR/tfMRI_WM_LR.nii.gz").unlink()
    command = ["manifest", "--hcp", str(folder), "-o", str(output)]
    assert call(monkeypatch, *command) == 0
    text = (tmp_path / "m.left-out.csv").read_text()
    assert text == "path,reason\nsim002/MNINonLinear/Results/tfMRI_WM_LR,no <run>.nii.gz\n"
    shown = capsys.readouterr()
    assert "1 warning(s), all listed in" in shown.err
    assert "20 runs" in shown.out
    assert call(monkeypatch, *command, "--task", "MOTOR") == 0
    assert (tmp_path / "m.left-out.csv").read_text() == "path,reason\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "nothing"], "there is no profile"),
        (["manifest", "-o", "m.csv"], "give one of --hcp ROOT, --bids ROOT and --table FILE"),
        (["manifest", "--bids", "nowhere", "-o", "m.csv"], "there is no folder .*nowhere"),
        (["manifest", "--bids", ".", "-o", "m.csv"], "found no BIDS runs"),
        (["manifest", "--hcp", ".", "--space", "T1w", "-o", "m.csv"], "--space, --res and --anat are for --bids"),
        (["manifest", "--bids", ".", "--split-unit", "voxel", "-o", "m.csv"], "subject or run, got 'voxel'"),
        (["manifest", "--bids", ".", "--window", "4", "8", "-o", "m.csv"], "--window is for --example window"),
        (["prepare", "demo", "--example", "window", "--hrf", "spm"], "--hrf is for --example lsa and --example lss"),
        (["manifest", "--bids", ".", "--confounds", "magic", "-o", "m.csv"], "confounds.strategy.0: .*'motion'"),
        (["prepare", "demo", "--example", "lss", "--keep", "all"], "keep: all stores every volume"),
        (["simulate", "x", "--resolution", "1"], "resolution_mm: .*2"),
        (["verify", "nowhere"], "store nowhere does not exist"),
        (["finetune", "demo", "--variant", "magic", "--fraction", "0.5"], "unknown variant 'magic'"),
        (
            ["finetune", "demo", "--variant", "scratch", "--fraction", "1.2"],
            "fraction must be above 0 and at most 1, got 1.2",
        ),
        (
            ["finetune", "demo", "--variant", "scratch", "--fraction", "0"],
            "fraction must be above 0 and at most 1, got 0",
        ),
    ],
)
def test_wrong_input_is_one_message_and_status_2(arguments, message, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("deeplight: ")
    assert "Traceback" not in error
    assert not Path("m.csv").exists()


def test_what_an_example_is_is_noted_with_the_manifest(tmp_path, monkeypatch, capsys):
    use_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    small = ["--train", "1", "--validation", "1", "--tr", "3", "--resolution", "10", "--jobs", "1"]
    assert call(monkeypatch, "simulate", "data", *small) == 0
    listing = ["manifest", "--hcp", "data", "--task", "EMOTION", "-o", "m.csv"]
    listing += ["--example", "window", "--window", "5", "9"]
    assert call(monkeypatch, *listing, "--lag", "0") == 0
    assert call(monkeypatch, "prepare", "m.csv", "--store", "windows.store", "--jobs", "1") == 0
    windows = open_store("windows.store")
    example = windows.preprocessing.example
    assert (example.kind, example.window_s) == ("window", (5.0, 9.0))
    assert f"{len(windows.index)} trials of 2 runs" in capsys.readouterr().out
    assert call(monkeypatch, "prepare", "m.csv", "--store", "betas.store", "--example", "lsa", "--hrf", "glover") == 0
    betas = open_store("betas.store")
    assert (betas.preprocessing.example.kind, betas.preprocessing.example.hrf) == ("lsa", "glover")
    assert betas.index["onset_s"].tolist() == windows.index["onset_s"].tolist()
    assert call(monkeypatch, "prepare", "m.csv", "--store", "no.store", "--confounds", "motion=basic") == 2
    assert "needs one file of fMRIPrep's confounds beside it" in capsys.readouterr().err


def test_the_installed_command_runs():
    done = subprocess.run(
        [Path(sys.executable).with_name("deeplight"), "--help"], capture_output=True, text=True, check=True
    )
    assert all(command in done.stdout for command in COMMANDS)


def test_the_project_root_is_found_from_the_notebooks(monkeypatch):
    root = project_root()
    monkeypatch.chdir(root / "notebooks")
    assert project_root() == root


def test_a_manifest_is_prepared_whole_or_subject_by_subject(tmp_path, monkeypatch, capsys):
    use_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    small = ["--train", "2", "--validation", "1", "--tr", "6", "--resolution", "10", "--jobs", "1"]
    assert call(monkeypatch, "simulate", "data", *small) == 0
    assert call(monkeypatch, "manifest", "--hcp", "data", "--task", "EMOTION", "--validation", "1", "-o", "m.csv") == 0
    assert call(monkeypatch, "prepare", "m.csv", "--store", "one.store", "--jobs", "1") == 0
    assert "of 3 runs" in capsys.readouterr().out
    assert call(monkeypatch, "prepare", "m.csv", "--store", "parts.store", "--plan") == 0
    for subject in ("sim003", "sim001", "sim002"):
        assert call(monkeypatch, "prepare", "m.csv", "--store", "parts.store", "--subject", subject, "--jobs", "1") == 0
    assert not Path("parts.store/index.parquet").exists()
    assert call(monkeypatch, "prepare", "m.csv", "--store", "parts.store", "--jobs", "1") == 0
    assert contents(Path("parts.store")) == contents(Path("one.store"))
    assert call(monkeypatch, "prepare", "m.csv", "--store", "parts.store", "--subject", "nobody") == 2
    assert "no runs of subject nobody" in capsys.readouterr().err
    assert call(monkeypatch, "prepare", "m.csv", "--store", "other.store", "--resample-to", "first", "--jobs", "1") == 0
    assert pd.read_parquet("other.store/runs.parquet")["resampled"].sum() == 0


def test_resting_runs_become_a_store(tmp_path, monkeypatch, capsys):
    use_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    random, affine = np.random.default_rng(0), np.diag([3, 3.5, 4, 1])
    for subject in ("01", "02", "03"):
        folder = tmp_path / f"rest/sub-{subject}/func"
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(random.normal(100, 1, (5, 6, 7, 40)).astype(np.float32), affine)
        image.header.set_zooms((3, 3.5, 4, 2))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, folder / f"sub-{subject}_task-rest_bold.nii.gz")
    assert call(monkeypatch, "manifest", "--bids", "rest", "--validation", "1", "-o", "rest.csv") == 0
    assert "3 runs; 2 subjects for train, 1 subjects for validation" in capsys.readouterr().out
    assert call(monkeypatch, "prepare", "rest.csv", "--store", "s", "--jobs", "1") == 2
    assert "preprocessing.keep: all (--keep all)" in capsys.readouterr().err
    assert call(monkeypatch, "prepare", "rest.csv", "--store", "s", "--keep", "all", "--jobs", "1") == 0
    assert "120 volumes of 3 runs, 210 voxels each" in capsys.readouterr().out
    index = open_store("s").index
    assert index.groupby("subject")["frame"].apply(list).tolist() == [list(range(40))] * 3
    assert (index["onset_s"] == 2.0 * index["frame"]).all()
    assert (index[["task", "state", "block"]] == ["rest", "", -1]).all(axis=None)
    assert call(monkeypatch, "prepare", "rest.csv", "--store", "s", "--keep", "some") == 2


def test_states_are_pooled_as_a_file_says(tmp_path, monkeypatch, capsys):
    use_threads(monkeypatch)
    root = real_data("haxby2001-vt")
    monkeypatch.chdir(tmp_path)
    Path("states.yaml").write_text("objectviewing: {alive: [cat, face], made: [chair, house]}\n")
    command = ["manifest", "--bids", str(root), "--split-unit", "run", "--validation", "3", "-o", "m.csv"]
    assert call(monkeypatch, *command, "--states", "states.yaml") == 0
    assert call(monkeypatch, "prepare", "m.csv", "--store", "s", "--jobs", "1") == 0
    assert pd.read_parquet("s/index.parquet")["state"].value_counts().index.tolist() == ["alive", "made"]
    Path("states.yaml").write_text("objectviewing: cat\n")
    assert call(monkeypatch, *command, "--states", "states.yaml") == 2
    assert "states.yaml is no YAML file of `task: {state: [trial types]}`" in capsys.readouterr().err


def test_structural_images_of_real_people_become_volumes(tmp_path, monkeypatch):
    use_threads(monkeypatch)
    root = real_data("ixi-t1")
    monkeypatch.chdir(tmp_path)
    table = ["--table", str(root / "participants.tsv"), "--image", "{participant_id}.nii.gz"]
    assert call(monkeypatch, "manifest", *table, "--validation", "10", "--stratify", "sex", "-o", "t1.csv") == 0
    assert call(monkeypatch, "prepare", "t1.csv", "--store", "s", "--zoom-to", "44", "52", "44", "--jobs", "2") == 0
    store = open_store("s")
    assert verify("s") == []
    assert store.shape == (44, 52, 44)
    number = 7
    row = store.index.iloc[number]
    image = nib.load(root / f"{row['subject']}.nii.gz").get_fdata()
    expected = zoom(image / image.max(), 0.5, order=1, mode="nearest").T[store.mask.T]
    np.testing.assert_allclose(store.read(row["file"])[0].numpy(), expected, atol=2**-11)
    assert store.index[["age", "sex"]].notna().all(axis=None)


def test_a_manifest_has_a_third_split_where_one_is_asked_for(tmp_path, monkeypatch, capsys):
    lines = ["subject,image"]
    for n in range(9):
        nib.save(nib.Nifti1Image(np.full((2, 3, 4), n, np.int16), np.eye(4)), tmp_path / f"{n}.nii")
        lines.append(f"{n},{n}.nii")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    command = ["manifest", "--table", str(tmp_path / "mine.csv"), "--validation", "2", "--test", "3"]
    assert call(monkeypatch, *command, "-o", str(tmp_path / "m.csv")) == 0
    shown = capsys.readouterr().out
    assert "9 structural images; 4 subjects for train, 2 subjects for validation, 3 subjects for test" in shown
    assert pd.read_csv(tmp_path / "m.csv")["split"].value_counts().to_dict() == {"train": 4, "test": 3, "validation": 2}


def test_what_is_left_out_is_said_before_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        image = nib.Nifti1Image(np.full((3, 4, 5), number, np.int16), np.eye(4))
        nib.save(image, tmp_path / f"{number}.nii.gz")
    (tmp_path / "t.csv").write_text("subject,image\n1,1.nii.gz\n2,2.nii.gz\n3,3.nii.gz\n")
    assert call(monkeypatch, "manifest", "--table", "t.csv", "--validation", "2", "-o", "m.csv") == 2
    assert re.search(r"left out: 3.nii.gz: .*\n.*holding out 2 of 2 subjects", capsys.readouterr().err)
    assert call(monkeypatch, "manifest", "--table", "t.csv", "--task", "T1w", "-o", "m.csv") == 2
    assert "no run is of task T1w; tasks are image" in capsys.readouterr().err
    assert call(monkeypatch, "manifest", "--table", "nope.csv", "-o", "m.csv") == 2
    assert "there is no table nope.csv" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("subject,image,split\n1,1.nii.gz,train\n2,2.nii.gz,\n")
    assert call(monkeypatch, "manifest", "--table", "t.csv", "-o", "m.csv") == 2
    assert "names the split of 1 of 2 usable rows; fill the column split" in capsys.readouterr().err


def test_a_table_is_not_overwritten(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("subject,image\n1,x.nii\n")
    assert call(monkeypatch, "manifest", "--table", str(path), "-o", str(path)) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert path.read_text() == "subject,image\n1,x.nii\n"


def test_a_study_from_its_folder_to_a_drafted_profile_and_its_store(tmp_path, monkeypatch, capsys):
    """A typo in the profile is said before anything is prepared; the draft has none."""
    use_threads(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    random = np.random.default_rng(0)
    for subject in ("01", "02", "03"):
        folder = tmp_path / f"data/sub-{subject}/func"
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(random.normal(100, 1, (4, 4, 4, 40)).astype(np.float32), np.diag([3, 3, 3, 1]))
        image.header.set_zooms((3, 3, 3, 2.0))
        nib.save(image, folder / f"sub-{subject}_task-loc_bold.nii.gz")
        events = "".join(f"{14 * i}\t10\t{('face', 'house ')[i % 2]}\tx\n" for i in range(5))
        (folder / f"sub-{subject}_task-loc_events.tsv").write_text(f"onset\tduration\tstim\tother\n{events}")
    command = ["manifest", "--bids", "data", "--validation", "1", "-o", "m.csv"]
    assert call(monkeypatch, *command) == 2
    assert "--trial-type stim" in capsys.readouterr().err
    assert call(monkeypatch, *command, "--trial-type", "stim") == 0
    shown = capsys.readouterr()
    assert re.search(
        r"task loc: 3 runs of 40 volumes, TR 2 s\n.*\n.*\nface +9 +0 +18 +9\nhouse +6 +0 +12 +6", shown.out
    )
    assert "raw images of several subjects" in shown.err
    assert call(monkeypatch, *command, "--trial-type", "stim", "--task", "loc", "--task", "rest") == 0
    assert "warning: no run of task rest can be used; tasks are loc" in capsys.readouterr().err
    (tmp_path / "states.yaml").write_text("loc: {face: [face], house: [house, hut]}\n")
    assert call(monkeypatch, *command, "--trial-type", "stim", "--states", "states.yaml") == 0
    assert "warning: loc: no event of hut (state house) in any run" in capsys.readouterr().err
    assert call(monkeypatch, *command, "--trial-type", "stim", "--drop-volumes", "40") == 0
    assert "drop_volumes 40 leaves none of its 40 volumes" in capsys.readouterr().err
    limits = ["--confounds", "scrub", "--confounds", "fd_threshold=0.2"]
    assert call(monkeypatch, *command, "--trial-type", "stim", *limits) == 0
    assert read_notes(tmp_path / "m.csv")["preprocessing"] == {
        "confounds": {"strategy": ["scrub"], "fd_threshold": "0.2"}
    }
    assert call(monkeypatch, *command, "--trial-type", "stim") == 0
    assert call(monkeypatch, "init", "m.csv", "-o", "profiles/mine.yaml") == 0
    assert call(monkeypatch, "init", "m.csv", "-o", "profiles/mine.yaml") == 2
    text = (tmp_path / "profiles/mine.yaml").read_text()
    (tmp_path / "profiles/typo.yaml").write_text(text.replace("house: [house]", "house: [hause]"))
    assert call(monkeypatch, "prepare", "typo") == 2
    assert "no event of hause (state house) in any run; its events are" in capsys.readouterr().err
    assert not (tmp_path / "runs/typo/store").exists()
    assert call(monkeypatch, "prepare", "mine", "--drop-volumes", "3", "--jobs", "1") == 0
    store = open_store(tmp_path / "runs/mine/store")
    assert store.index["frame"].min() == 3
    assert store.labels().loc[("loc", "face"), "train"] == (store.index["split"] == "train").sum() - 20
    assert verify(store.path) == []
    capsys.readouterr()
    assert call(monkeypatch, "prepare", "mine", "--lag", "2", "--jobs", "1") == 2
    shown = capsys.readouterr().err
    assert (
        "made with other preprocessing: preprocessing.lag_s 5.0, now 2.0; preprocessing.drop_volumes 3, now 0." in shown
    )
