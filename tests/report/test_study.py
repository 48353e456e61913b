import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from test_html import Read, outside

from deeplight_core.analysis import scores
from deeplight_core.config import Profile
from deeplight_core.data.store import Store
from deeplight_core.report.study import study_page, subject_accuracies

pytestmark = pytest.mark.usefixtures("no_window")

STATES = [("SOCIAL", "interaction"), ("SOCIAL", "no interaction")]
EVIL = "<script>alert(1)</script>"


def predictions(subjects: list[str], right: float, n_blocks: int = 12, seed: int = 0) -> pd.DataFrame:
    """Three volumes of each block, whose answer is right with a probability."""
    random, rows, answers = np.random.default_rng(seed), [], []
    for subject in subjects:
        for block in range(n_blocks):
            label = block % 2
            told = label if random.random() < right else 1 - label
            for frame in range(3):
                rows.append(["tiny", subject, subject, "", "SOCIAL", "LR", 10 * block + frame, block, STATES[label][1]])
                answers.append(np.eye(2)[told] * 0.6 + 0.2)
    columns = ["dataset", "unit", "subject", "session", "task", "run", "frame", "block", "state"]
    return scores.state_predictions(pd.DataFrame(rows, columns=columns), np.array(answers), STATES)


def training(folder: Path, profile: Profile, variant: str, right: float, names: list[str], fold: int = 0) -> Path:
    """The files of a finished fine-tuning."""
    folder.mkdir()
    config = {
        "stage": "finetuning", "route": "supervised", "variant": variant, "fraction": 1.0, "seed": 1, "fold": fold,
        "units": ["t1", "t2"], "reported": names, "profile": profile.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    answered = predictions(names, right, seed=fold)
    answered.to_parquet(folder / "predictions.parquet")
    key = {
        "route": "supervised",
        "encoder": "deeplight",
        "variant": variant,
        "fraction": 1.0,
        "n_subjects": 2,
        "seed": 1,
    }
    table = scores.subject_scores(answered, **key, fold=fold, seen_volumes=1, seconds=1.0)
    table.to_csv(folder / "scores.csv", index=False)
    if variant != "linear":
        metrics = pd.DataFrame({
            "epoch": [1, 1, 2, 2], "step": [1, 1, 2, 2], "split": ["train", "validation"] * 2, "task": "SOCIAL",
            "target": "state", "subject": names[0], "measure": "accuracy", "score": [0.5, 0.5, 0.8, 0.7],
            "n": 9, "loss": 1.0,
        })  # fmt: skip
        metrics.to_csv(folder / "metrics.csv", index=False)
    return folder


def test_accuracies_of_blocks_and_their_permutations() -> None:
    answered = predictions(["a", "b"], 0.9, n_blocks=8)
    table, p = subject_accuracies(answered)
    blocks = answered.groupby(["subject", "block"]).first()
    expected = (blocks["state"] == blocks["predicted_state"]).groupby("subject").mean()
    assert table["subject"].tolist() == ["a", "b"]
    assert table["n"].tolist() == [8, 8]
    np.testing.assert_allclose(table["accuracy"], expected)
    z = 1.959964
    for row in table.itertuples():  # Wilson (1927)
        centre = (row.accuracy + z**2 / 16) / (1 + z**2 / 8)
        half = z / (1 + z**2 / 8) * np.sqrt(row.accuracy * (1 - row.accuracy) / 8 + z**2 / 256)
        assert (row.low, row.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-6)
    assert p < table["p"].min()


def test_permutations_agree_with_all_exchanges_of_a_run() -> None:
    """Eight blocks, four of each state, all right: one of 70 arrangements is as good."""
    table, p = subject_accuracies(predictions(["a"], 1.0, n_blocks=8))
    assert table["p"][0] == pytest.approx(1 / 70, abs=0.008)
    assert p == pytest.approx(table["p"][0])
    never, p = subject_accuracies(predictions(["a"], 0.0, n_blocks=8))
    assert never["p"][0] == p == 1.0


def test_a_report_names_everything_and_asks_for_nothing(tiny_profile: Profile, tmp_path: Path) -> None:
    network = training(tmp_path / "a", tiny_profile, "scratch", 0.9, ["s5", EVIL, "s7"])
    linear = training(tmp_path / "b", tiny_profile, "linear", 0.6, ["s5", EVIL, "s7"])
    page = study_page([network, linear], title=EVIL)
    read = Read(page)
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(EVIL) == 4  # title, heading, subjects, accuracies
    assert outside(page) == []
    for told in ("DeepLight, from scratch, trained on 2 subjects, decodes 2 states of 3", "logistic regression",
                 "permutation test", "(constant) and 2 steps",
                 "Kingma & Ba (2015)", "Runs were smoothed (Gaussian, 3 mm"):  # fmt: skip
        assert told in read.text
    assert "No linear decoder" not in read.text
    assert sum(tag == "img" for tag, _ in read.tags) == 2
    assert "pre-trained" not in re.sub(r"\s+", " ", read.text).split("Methods")[1]
    alone = Read(study_page([network])).text
    assert "No linear decoder was given" in alone


def test_the_quality_of_everybodys_runs_is_told(store: Store, tiny_profile: Profile, tmp_path: Path) -> None:
    profile = tiny_profile.model_copy(update={"data": tiny_profile.data.model_copy(update={"store": store.path})})
    text = Read(study_page([training(tmp_path / "a", profile, "scratch", 0.9, ["s5", "s6"])])).text
    assert "not at hand" not in text
    own = store.runs[store.runs["run"].str.contains("s5")]
    assert re.search(rf"s5\s*test\s*{len(own)}\s*{own['median_tsnr'].median():.0f}\s", text)
    assert re.search(r"s4\s*training", text) is None  # neither trained nor tested on


def test_folds_of_the_decoder_are_put_together(tiny_profile: Profile, tmp_path: Path) -> None:
    folds = [training(tmp_path / f"f{k}", tiny_profile, "scratch", 0.9, [f"s{k}", f"r{k}"], k) for k in (1, 2)]
    text = Read(study_page(folds)).text
    assert "states of 4 subjects" in text
    assert "in each of 2 folds" in text


def test_two_trainings_of_one_fold_are_refused(tiny_profile: Profile, tmp_path: Path) -> None:
    older = training(tmp_path / "older", tiny_profile, "scratch", 0.9, ["s1"], 1)
    newer = training(tmp_path / "newer", tiny_profile, "scratch", 0.5, ["s1"], 1)
    with pytest.raises(ValueError, match=r"older and .*newer are both scratch on 100%, seed 1, fold 1, with other"):
        study_page([older, newer])


def test_maps_of_a_folder_are_shown(tiny_profile: Profile, tmp_path: Path) -> None:
    data, affine = np.zeros((19, 23, 19), np.float32), np.diag([-9.0, 9, 9, 1])
    affine[:3, 3] = [81, -117, -63]
    data[6:9, 10:13, 8:11] = 1.0
    (tmp_path / "maps/group").mkdir(parents=True)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "maps/group/interaction.nii.gz")
    places = pd.DataFrame({"state": ["interaction"], "x": [9.0], "y": [-18.0], "z": [18.0], "value": [1.0]})
    places.to_csv(tmp_path / "maps/regions.csv", index=False)
    folder = training(tmp_path / "a", tiny_profile, "scratch", 0.9, ["s5", "s6"])
    with pytest.raises(ValueError, match=r"is no folder of `deeplight explain`: it lacks explanation.json"):
        study_page([folder], tmp_path / "maps")
    (tmp_path / "maps/explanation.json").write_text("{}")
    read = Read(study_page([folder], tmp_path / "maps"))
    assert sum(tag == "img" for tag, _ in read.tags) == 4
    assert "interaction" in read.text


def test_what_is_no_study_is_told(tiny_profile: Profile, tmp_path: Path) -> None:
    folder = training(tmp_path / "a", tiny_profile, "scratch", 0.9, ["s5", "s6"])
    other = training(tmp_path / "b", tiny_profile.model_copy(update={"name": "other"}), "linear", 0.9, ["s5", "s6"])
    with pytest.raises(ValueError, match=r"b is of profile other, .*a of tiny; give trainings of one study"):
        study_page([folder, other])
    with pytest.raises(ValueError, match=r"c is no finished training \(it has no scores.csv\)"):
        study_page([folder, tmp_path / "c"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"stage": "pretraining"}))
    with pytest.raises(ValueError, match="a is a pre-training; a report is about fine-tunings"):
        study_page([folder])
