import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import N_FRAMES, TR_S, Dataset, use_threads

from deeplight_core import cli, experiment
from deeplight_core.analysis.calibration import fit_temperature, quality, with_temperature
from deeplight_core.config import Profile
from deeplight_core.decoding import Decoded, decode, profile_of_image, write
from deeplight_core.training.exported import export

NAMES = ["SOCIAL: interaction", "SOCIAL: no interaction"]
pytestmark = pytest.mark.usefixtures("at_home")


@pytest.fixture(scope="module")
def training(home: Path, tiny_profile: Profile) -> experiment.Training:
    """A decoder of SOCIAL that was trained on two of the four training subjects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        use_threads(patch)
        experiment.prepare_data(tiny_profile, jobs=1)
        return experiment.finetune(tiny_profile, "scratch", 0.5, 1)


@pytest.fixture(scope="module")
def decoded(training: experiment.Training, home: Path) -> Decoded:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        use_threads(patch)
        return decode(training.folder, training.profile, jobs=1)


def test_volumes_are_decoded_as_in_training(training: experiment.Training, decoded: Decoded) -> None:
    expected, table = training.predictions(), decoded.volumes
    assert len(table) == 6 * sum(N_FRAMES.values())  # all volumes of all tasks, with or without a state
    table = table[(table["task"] == "SOCIAL") & (table["trial_type"] != "n/a")]
    table = table[table["participant_id"].isin(["sub-s5", "sub-s6"])]
    np.testing.assert_allclose(table[NAMES], expected[NAMES], atol=2e-3)
    np.testing.assert_allclose(table["onset"].astype(float), expected["frame"] * TR_S)
    assert table["decoded"].tolist() == (expected["predicted_task"] + ": " + expected["predicted_state"]).tolist()
    assert table["trial_type"].tolist() == expected["state"].tolist()
    assert (table[NAMES].max(axis=1) == table["probability"]).all()


def test_blocks_are_means_of_their_volumes(training: experiment.Training, decoded: Decoded) -> None:
    blocks, expected = decoded.blocks, training.predictions()
    assert set(blocks["made_of"]) == {"block"}
    assert len(blocks) == 6 * 2 * 6
    of_block = expected.groupby(["subject", "block"])[NAMES].mean()
    chosen = blocks[(blocks["task"] == "SOCIAL") & blocks["participant_id"].isin(["sub-s5", "sub-s6"])]
    np.testing.assert_allclose(chosen[NAMES], of_block, atol=2e-3)
    first = chosen.iloc[0]
    assert (first["onset"], first["duration"], first["n_volumes"]) == (6.0, 6.0, 3)  # 2 s and two TRs that are dropped


def test_a_run_without_events_becomes_segments(training: experiment.Training, dataset: Dataset, tmp_path: Path) -> None:
    row = dataset[0].query("subject == 's5' and task == 'SOCIAL'").iloc[0]
    image = nib.load(dataset[1] / row["image"])
    path = tmp_path / "sub-07_ses-2_task-rest_run-3_bold.nii.gz"
    nib.save(image, path)
    (tmp_path / "sub-07_ses-2_task-rest_run-3_bold.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    with profile_of_image(path) as profile:
        found = decode(training.folder, profile, jobs=1)
    table, segments = found.volumes, found.blocks
    assert table[["participant_id", "session", "task", "run"]].drop_duplicates().to_numpy().tolist() == [
        ["sub-07", "2", "rest", "3"]
    ]
    assert table["onset"].tolist() == [2.5 * i for i in range(N_FRAMES["SOCIAL"])]
    assert set(table["trial_type"]) == {"n/a"}
    assert set(segments["made_of"]) == {"segment"}
    assert segments["n_volumes"].sum() == len(table)
    ends = segments["onset"] + segments["duration"]
    assert ends.tolist() == [*segments["onset"].iloc[1:], len(table) * 2.5]
    assert (segments["decoded"] != segments["decoded"].shift()).all()
    assert "tr_s 2.0 there, 2.5 here" in found.about["differences"]
    assert found.about["calibration"] is None


def test_the_temperature_is_of_training_subjects_that_were_left_out(
    training: experiment.Training, decoded: Decoded
) -> None:
    found = decode(training.folder, training.profile, calibrate=True, jobs=1)
    table = decoded.volumes[(decoded.volumes["task"] == "SOCIAL") & (decoded.volumes["trial_type"] != "n/a")]
    labels = pd.Index(NAMES).get_indexer("SOCIAL: " + table["trial_type"])
    people, answers = table["participant_id"].str.removeprefix("sub-"), table[NAMES].to_numpy()
    left_out = people.isin({"s1", "s2", "s3", "s4"} - {*training.units}).to_numpy()
    assert left_out.sum() == 2 * 18
    temperature = fit_temperature(answers[left_out], labels[left_out])
    assert found.about["temperature"] == pytest.approx(temperature, rel=0.03)  # answers are rounded, the optimum flat
    losses = [quality(with_temperature(answers[left_out], t), labels[left_out])["log_loss"]
              for t in (found.about["temperature"], temperature, 1.0)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] < losses[2]
    tested = people.isin(["s5", "s6"]).to_numpy()
    before, after = (found.about["calibration"][when] for when in ("as it is", "at this temperature"))
    assert before == pytest.approx(quality(answers[tested], labels[tested]), abs=1e-4)
    mended = quality(with_temperature(answers, temperature)[tested], labels[tested])
    assert after["log_loss"] == pytest.approx(mended["log_loss"], abs=1e-3)
    assert before["accuracy"] == after["accuracy"]
    assert found.calibration["n"].sum() == 2 * 18


def test_nobody_to_calibrate_on_is_an_error(training: experiment.Training, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(training.folder, tmp_path / "everybody"))
    record = json.loads((folder / "model.json").read_text())
    record["training"]["units"] = ["s1", "s2", "s3", "s4"]
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"nobody to calibrate on: .* hold some out"):
        decode(folder, training.profile, calibrate=True, jobs=1)


def test_a_pretraining_without_answers_is_refused(training: experiment.Training) -> None:
    folder = experiment.pretrain(training.profile, 1, "residual").folder
    with pytest.raises(ValueError, match=r"a head of kind reconstruction, which decodes nothing; fine-tune it first"):
        decode(folder, training.profile)


def test_the_command_writes_tables_and_says_what_they_hold(
    training: experiment.Training, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = export(training.folder, tmp_path / "exported")
    row = dataset[0].query("subject == 's6' and task == 'SOCIAL'").iloc[0]
    image, events = dataset[1] / row["image"], dataset[1] / row["events"]
    output = tmp_path / "out" / "predictions.tsv"
    command = ["deeplight", "decode", str(folder), str(image), "--events", str(events), "-o", str(output)]
    monkeypatch.setattr("sys.argv", [*command, "--tr", "2", "--temperature", "2", "--jobs", "1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "sub-unknown, image, run 1: " in capsys.readouterr().out
    volumes = pd.read_csv(output, sep="\t", keep_default_na=False)
    blocks = pd.read_csv(tmp_path / "out/predictions_blocks.tsv", sep="\t")
    about = json.loads(output.with_suffix(".json").read_text())
    assert set(volumes["trial_type"]) == {"mental", "rnd", "n/a"}
    assert not (tmp_path / "out/predictions_calibration.png").exists()  # events have other names than its states
    assert len(blocks) == 6
    assert about["onset"]["Description"]
    assert about["Decoder"]["temperature"] == 2
    assert str(tmp_path) not in output.with_suffix(".json").read_text()


def test_calibration_is_written_with_its_picture(decoded: Decoded, tmp_path: Path) -> None:
    mpl.use("agg")
    paths = write(decoded, tmp_path / "all.tsv")
    assert {path.name for path in paths} >= {"all.tsv", "all_calibration.tsv", "all_calibration.png", "all.json"}
    assert (tmp_path / "all_calibration.png").read_bytes().startswith(b"\x89PNG")
    write(replace(decoded, calibration=pd.DataFrame()), tmp_path / "all.tsv")
    assert not list(tmp_path.glob("*calibration*"))


def test_a_table_of_another_kind_is_refused(decoded: Decoded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a tab-separated table; name it ….tsv, not x.csv"):
        write(decoded, tmp_path / "x.csv")
