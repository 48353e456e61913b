"""The page *Your own data* is followed word for word, on a small study as fMRIPrep leaves it."""

import json
import re
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from deeplight_core import cli
from deeplight_core.config import Profile, load_profile
from deeplight_core.data import draft
from deeplight_core.data.images import Header
from deeplight_core.data.store import open_store

TEXT = (Path(__file__).parents[1] / "book/own_data.md").read_text(encoding="utf-8")
SHAPE, N_VOLUMES, TR_S, N_TRIALS = (8, 10, 8), 44, 2.0, 12
AFFINE = np.array([[-20.0, 0, 0, 70], [0, 20, 0, -110], [0, 0, 20, -60], [0, 0, 0, 1]])
SPACES = ("MNI152NLin2009cAsym_res-2", "MNI152NLin6Asym_res-2", "T1w")
ABORTED, MISSING = ("05", 2), ("09", 2)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Twelve people, two runs with trials of 2 s, three spaces, confounds; one run stopped early, one is missing."""
    root, random = tmp_path / "mystudy", np.random.default_rng(0)
    maps = {state: random.normal(size=SHAPE) for state in ("face", "house")}
    inside = np.zeros(SHAPE, np.uint8)
    inside[1:-1, 1:-1, 1:-1] = 1
    people = [f"{number:02}" for number in range(1, 13)]
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "My study", "BIDSVersion": "1.9.0"}')
    (root / "task-faces_bold.json").write_text(json.dumps({"TaskName": "faces", "RepetitionTime": TR_S}))
    (root / "participants.tsv").write_text(
        "participant_id\tsex\tage\n" + "".join(f"sub-{s}\t{'FM'[int(s) % 2]}\t{20 + int(s)}\n" for s in people)
    )
    for subject, run in [(s, r) for s in people for r in (1, 2) if (s, r) != MISSING]:
        stem = f"sub-{subject}/func/sub-{subject}_task-faces_run-{run}"
        onsets = 4 + 6 * np.arange(N_TRIALS) + random.integers(0, 2, N_TRIALS)
        names = random.permutation(["face", "house"] * (N_TRIALS // 2))
        events = pd.DataFrame({"onset": onsets, "duration": 2, "trial_type": names})
        n_volumes = 20 if (subject, run) == ABORTED else N_VOLUMES
        bold = random.normal(1000, 10, (*SHAPE, n_volumes))
        for onset, name in zip(onsets, names, strict=True):
            first = round((onset + 4) / TR_S)
            bold[..., first : first + 3] += 12 * maps[name][..., None]
        image = nib.Nifti1Image((bold * inside[..., None]).astype(np.int16), AFFINE)
        image.header.set_zooms((20, 20, 20, TR_S))
        confounds = pd.DataFrame(
            random.normal(size=(n_volumes, 8)),
            columns=["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter"],
        )
        confounds["framewise_displacement"] = confounds["std_dvars"] = ["n/a", *random.uniform(0, 0.3, n_volumes - 1)]
        prepared = root / "derivatives/fmriprep"
        for folder in (root, prepared):
            (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        events.to_csv(root / f"{stem}_events.tsv", sep="\t", index=False)
        confounds.to_csv(prepared / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False)
        (prepared / f"{stem}_desc-confounds_timeseries.json").write_text("{}")
        for space in SPACES:
            nib.save(image, prepared / f"{stem}_space-{space}_desc-preproc_bold.nii.gz")
            nib.save(nib.Nifti1Image(inside, AFFINE), prepared / f"{stem}_space-{space}_desc-brain_mask.nii.gz")
    return root


def follow(command: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one of the page's commands as a shell would, in this process; it must succeed."""
    name, *words = shlex.split(command.replace("/data/mystudy", str(study)))
    assert name == "deeplight", command
    found = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in words]
    assert all(found), command
    monkeypatch.setattr(sys, "argv", ["deeplight", *(word for some in found for word in some)])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, command  # noqa: PT017


def says(output: str, line: str) -> bool:
    """Whether a line is shown; … is anything, and blanks are of any width."""
    pattern = ".*".join(r"\s+".join(map(re.escape, part.split())) for part in line.split("…"))
    return any(re.fullmatch(pattern, " ".join(shown.split())) for shown in output.splitlines())


def test_the_page_is_followed_word_by_word(
    study: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(draft, "_MIN_STEPS", 3)  # the network need not learn here
    monkeypatch.setattr(draft, "_EPOCHS", 1)
    (project / "profiles").mkdir()
    profile, shown, followed = project / "profiles/mystudy.yaml", "", []
    for kind, block in re.findall(r"^```(bash|text|yaml)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        if kind == "bash":
            for command in block.replace("\\\n", " ").splitlines():
                follow(command, study, monkeypatch)
                followed.append(command)
            out, err = capfd.readouterr()
            shown = out + err
        elif kind == "text" and shown:
            for line in block.splitlines():
                assert says(shown, line), f"{line!r} is not in\n{shown}"
        elif block.startswith("sweep:"):  # replaces the profile's section
            profile.write_text(profile.read_text().partition("sweep:\n")[0] + block)
        elif kind == "yaml" and block.startswith("name:"):
            Profile.model_validate(yaml.safe_load(block))
        elif kind == "yaml":
            load_profile("mystudy").overridden(yaml.safe_load(block))
    assert len(followed) == TEXT.count("\ndeeplight ") > 10
    linear = pd.concat(map(pd.read_csv, Path().glob("runs/mystudy/finetuning-linear-1-seed1-fold*/scores.csv")))
    accuracy = linear[linear["level"] == "block"].set_index("subject")["score"]
    assert sorted(accuracy.index) == list(range(1, 13))  # everybody is tested once
    assert accuracy.min() > 0.8
    runs = {name: open_store(project / f"{name}.store").runs for name in ("lss", "clean")}
    assert runs["lss"]["trials"].tolist() == [N_TRIALS] * 22
    assert runs["clean"]["n_confounds"].tolist() == [8] * 22
    page = (project / "everybody.html").read_text(encoding="utf-8")
    assert all(f"<td>{number:02}</td>" in page for number in range(1, 13))


def test_the_times_of_the_page_are_the_drafts(study: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = re.search(r"about (\d+) minutes at 4 mm, (\d+) minutes at 3 mm, (\d+) minutes at 2 mm", TEXT).groups()
    (project / "profiles").mkdir()
    follow(
        re.search(r"deeplight manifest.*?csv$", TEXT, re.DOTALL | re.MULTILINE)[0].replace("\\\n", " "),
        study,
        monkeypatch,
    )
    for minutes, shape in zip(stated, ((49, 58, 49), (65, 77, 65), (97, 115, 97)), strict=True):
        monkeypatch.setattr(draft, "read_header", lambda _, shape=shape: Header((*shape, 44), np.eye(4), TR_S))
        said = draft.draft_profile(Path("profiles/mystudy.csv"), "mystudy")[1][1]
        *hours, m, s = map(int, re.search(r"about ([\d:]+) on", said)[1].split(":"))
        assert round(60 * sum(hours) + m + s / 60) == int(minutes)
