from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from deeplight_core.config import load_profile
from deeplight_core.data.draft import _fraction, _numbers, draft_profile
from deeplight_core.data.labels import check_labels
from deeplight_core.data.manifest import COLUMNS, read_manifest, select, write_manifest, write_notes
from deeplight_core.training.examples import draw_units


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 100])
def test_fractions_differ_in_the_number_of_units_they_draw(n: int) -> None:
    counts = _numbers(n)
    assert counts == sorted({*counts})
    assert (counts[0], counts[-1]) == (1, n)
    units = [f"{i:03d}" for i in range(n)]
    assert [len(draw_units(units, _fraction(k, n), 1)) for k in counts] == counts


def study(folder: Path, duration_s: float, tasks: tuple[str, ...] = ("loc",)) -> Path:
    """The manifest of five subjects, three of them to train on, with notes."""
    image = nib.Nifti1Image(np.ones((7, 8, 9, 40), np.int16), np.eye(4))
    rows = []
    for i, (subject, task) in enumerate((s, t) for s in "abcde" for t in tasks):
        text = "".join(f"{14 * j}\t{duration_s}\t{('face: a', 'no')[j % 2]}\n" for j in range(5))
        nib.save(image, folder / f"{i}.nii")
        (folder / f"{i}.tsv").write_text(f"onset\tduration\tkind\n{text}")
        split = "train" if subject in "abc" else "validation"
        rows.append(["x", subject, "", task, "1", f"{i}.nii", f"{i}.tsv", "", 2.0, 40, split, "", ""])
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    write_manifest(table, folder / "m.csv")
    states = {task: {f"{name}{n}": [name] for name in ("face: a", "no")} for n, task in enumerate(tasks)}
    write_notes(folder / "m.csv", str(folder), "bids", "subject", states, trial_type=["kind"])
    return folder / "m.csv"


def test_a_draft_is_a_profile_whose_labels_can_be_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = study(tmp_path, 10, ("a", "b", "c"))
    text, summary = draft_profile(path, "mine", "b")
    (tmp_path / "mine.yaml").write_text(text)
    profile = load_profile("mine.yaml")
    assert profile.data.tasks("source") == ["a", "c"]
    assert profile.data.target == {"b": {"face: a1": ["face: a"], "no1": ["no"]}}
    assert profile.data.trial_type == ["kind"]
    assert profile.sweep.variants == ["pretrained", "scratch", "linear"]
    assert len({*profile.sweep.fractions}) == len(profile.sweep.fractions) == 3
    assert "15 events; volumes: 45 in train, 30 in validation" in text
    assert "fractions of 1, 2, 3 subjects" in summary[1]
    table = check_labels(select(read_manifest(path), profile.data), profile)
    assert (table["train"] > 0).all()


def test_a_study_of_one_task_with_short_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, summary = draft_profile(study(tmp_path, 0.5), "mine")
    (tmp_path / "mine.yaml").write_text(text)
    profile = load_profile("mine.yaml")
    assert (profile.data.source, profile.sweep.variants) == ({}, ["scratch", "linear"])
    assert profile.preprocessing.example.kind == "window"
    assert "one task, so no pre-training" in summary[0]
    check_labels(select(read_manifest(tmp_path / "m.csv"), profile.data), profile)


def test_what_cannot_be_drafted_is_named(tmp_path: Path) -> None:
    path = study(tmp_path, 10)
    with pytest.raises(ValueError, match="has no task tools with states; it has loc"):
        draft_profile(path, "mine", "tools")
    write_notes(path, str(tmp_path), "bids", "subject", {"loc": {}})
    with pytest.raises(ValueError, match=r"no task of .* has states"):
        draft_profile(path, "mine")
    write_notes(path, str(tmp_path), "bids", "subject", {"loc": {"x": ["face: a"]}}, trial_type=["kind"])
    with pytest.raises(ValueError, match="has two states with training volumes"):
        draft_profile(path, "mine")
