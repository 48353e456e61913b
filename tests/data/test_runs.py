"""Stores of trials, and of volumes without confounds, made of a study as fMRIPrep leaves it."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import AFFINE, SHAPE, contents, data_of, edit_info
from nilearn.glm.first_level import FirstLevelModel
from nilearn.image import smooth_img
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean as nilearn_clean

from deeplight_core import experiment
from deeplight_core.analysis import statistics
from deeplight_core.analysis.motion import scores_and_motion
from deeplight_core.config import Profile
from deeplight_core.data.manifest import COLUMNS
from deeplight_core.data.prepare import prepare
from deeplight_core.data.store import Store, verify
from deeplight_core.report import findings, quality

T, TR_S = 64, 2.0
N_TRIALS = 16
PEOPLE = {"01": "train", "02": "train", "03": "validation", "04": "validation"}
ROUNDING = 2**-11  # half a unit in the last of float16's 11 binary places

# of nilearn's masker, about its own arguments
pytestmark = pytest.mark.filterwarnings("ignore:.*Generation of a mask has been requested:RuntimeWarning")


def where(person: str) -> str:
    return f"sub-{person}/func/sub-{person}_task-faces"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Manifest and root: a trial of 1 s every 6 to 8 s, a map of each state; heads move, and values with them."""
    root, random = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    maps = random.normal(size=(2, *SHAPE))
    response = np.array([0, 0.3, 1, 0.9, 0.4, 0.1])
    rows = []
    for number, (person, split) in enumerate(PEOPLE.items()):
        onsets = 5 + 6.5 * np.arange(N_TRIALS) + random.uniform(0, 1.4, N_TRIALS)
        states = random.permutation(np.repeat([0, 1], N_TRIALS // 2))
        fd = random.exponential(0.03 * (number + 1), T)
        fd[[0, 30, 31]] = np.nan, 3.0, 1.5
        moved = np.nan_to_num(fd).cumsum() / 10
        bold = 1000 + 3 * random.normal(size=(*SHAPE, T)) + 5 * moved * random.normal(size=(*SHAPE, 1))
        for onset, state in zip(onsets, states, strict=True):
            first = round(onset / TR_S)
            bold[..., first : first + 6] += 6 * maps[state][..., None] * response[: T - first]
        path = root / where(person)
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(bold.astype(np.float32), AFFINE), f"{path}_space-MNI_desc-preproc_bold.nii.gz")
        table = pd.DataFrame({"trans_x": moved} | {n: random.normal(size=T) for n in ("trans_y", "trans_z")})
        table = table.assign(**{f"rot_{axis}": random.normal(size=T) for axis in "xyz"})
        table = table.assign(framewise_displacement=fd, std_dvars=1.0, non_steady_state_outlier00=0)
        table.loc[0, "non_steady_state_outlier00"] = 1
        table.to_csv(f"{path}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
        events = pd.DataFrame({"onset": onsets, "duration": 1.0, "trial_type": np.array(["face", "house"])[states]})
        events.to_csv(f"{path}_events.tsv", sep="\t", index=False)
        name = where(person)
        rows.append(
            ["study", person, "", "faces", "1", f"{name}_space-MNI_desc-preproc_bold.nii.gz", f"{name}_events.tsv", "",
             TR_S, T, split, "", ""]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)), root


MOTION: dict[str, Any] = {"strategy": ["motion", "scrub"], "motion": "basic", "std_dvars_threshold": 3.0}


def profile(root: Path, name: str = "study", **preprocessing: Any) -> Profile:
    data = {"root": str(root), "layout": "bids", "source": {}, "target": {"faces": ["face", "house"]}}
    own = {"fwhm_mm": 4.0, **preprocessing}
    return Profile.model_validate({"name": name, "data": data, "preprocessing": own})


def smoothed(root: Path, person: str, store: Store) -> tuple[nib.Nifti1Image, np.ndarray]:
    """The image after nilearn's smoothing, and its in-mask series (T, V) in the store's order."""
    image = smooth_img(root / f"{where(person)}_space-MNI_desc-preproc_bold.nii.gz", 4.0)
    return image, image.get_fdata().T[:, store.mask.T]


def values(store: Store, person: str) -> np.ndarray:
    return store.read(f"runs/sub-{person}_task-faces_run-1.safetensors").float().numpy()


def events(root: Path, person: str) -> pd.DataFrame:
    return pd.read_csv(root / f"{where(person)}_events.tsv", sep="\t")


def nuisance(root: Path, person: str) -> tuple[pd.DataFrame, np.ndarray]:
    image = str(root / f"{where(person)}_space-MNI_desc-preproc_bold.nii.gz")
    own = {key: value for key, value in MOTION.items() if key != "strategy"}
    return load_confounds(image, strategy=MOTION["strategy"], demean=False, **own)


def test_betas_in_a_store_are_nilearns(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    store = prepare(manifest, profile(root, example={"kind": "lss"}, confounds=MOTION), jobs=1)
    assert verify(store.path) == []
    image, series = smoothed(root, "03", store)
    confounds, kept = nuisance(root, "03")
    trials = events(root, "03")
    rows = store.index[store.index["subject"] == "03"]
    mask = nib.Nifti1Image(store.mask.astype(np.uint8), store.affine)
    model = FirstLevelModel(
        TR_S, hrf_model="spm", drift_model="cosine", high_pass=1 / 128, noise_model="ols", signal_scaling=False,
        mask_img=mask,
    )  # fmt: skip
    betas = []
    for number in rows["frame"]:
        own = trials.assign(trial_type=np.where(np.arange(N_TRIALS) == number, "this", "others"))
        model.fit(image, events=own, confounds=confounds, sample_masks=kept)
        betas.append(model.compute_contrast("this", output_type="effect_size").get_fdata().T[store.mask.T])
    design = model.design_matrices_[0].drop(columns=["this", "others"]).to_numpy()
    series = series[kept]
    residuals = series - design @ np.linalg.lstsq(design, series, rcond=None)[0]
    run = store.runs.set_index("run").loc["sub-03_task-faces_run-1"]
    expected = np.stack(betas) / residuals.std(axis=0, ddof=1) / run["beta_unit"]
    np.testing.assert_allclose(values(store, "03"), expected, rtol=ROUNDING, atol=1e-4)
    # and the tables
    assert rows["onset_s"].tolist() == pytest.approx(trials["onset"][rows["frame"]].tolist())
    assert rows["state"].tolist() == trials["trial_type"][rows["frame"]].tolist()
    assert (rows["block"] == rows["frame"]).all()
    assert (run["trials"], run["n_kept"], run["n_confounds"]) == (N_TRIALS, len(rows), 6)
    assert run["n_kept"] == run["trials"] - run["trials_outside"] - run["trials_inseparable"]
    assert run["censored_volumes"] == T - len(kept)
    fd = pd.read_csv(root / f"{where('03')}_desc-confounds_timeseries.tsv", sep="\t")["framewise_displacement"]
    assert run["mean_fd_mm"] == pytest.approx(fd.mean())
    assert store.holds == "trials"


def test_windows_in_a_store_are_means_of_nilearns_volumes(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    example = {"kind": "window", "window_s": [3, 7]}
    store = prepare(manifest, profile(root, example=example, confounds=MOTION), jobs=1)
    confounds, kept = nuisance(root, "02")
    clean = nilearn_clean(
        smoothed(root, "02", store)[1], confounds=confounds, sample_mask=kept.copy(), high_pass=1 / 128, t_r=TR_S
    )
    onsets, expected = events(root, "02")["onset"], {}
    for number, onset in enumerate(onsets):
        chosen = (kept * TR_S >= onset + 3) & (kept * TR_S <= onset + 7)
        if chosen.any() and onset + 7 < T * TR_S:
            expected[number] = clean[chosen].mean(axis=0)
    assert store.index.loc[store.index["subject"] == "02", "frame"].tolist() == list(expected)
    np.testing.assert_allclose(values(store, "02"), list(expected.values()), rtol=ROUNDING, atol=1e-4)


def test_volumes_without_confounds_are_nilearns(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    store = prepare(manifest, profile(root, confounds=MOTION, lag_s=4, skip_s=0, keep="all"), jobs=1)
    confounds, kept = nuisance(root, "01")
    expected = nilearn_clean(
        smoothed(root, "01", store)[1], confounds=confounds, sample_mask=kept.copy(), high_pass=1 / 128, t_r=TR_S
    )
    np.testing.assert_allclose(values(store, "01"), expected, rtol=ROUNDING, atol=1e-4)
    rows = store.index[store.index["subject"] == "01"]
    assert rows["frame"].tolist() == kept.tolist()
    assert rows["onset_s"].tolist() == (kept * TR_S).tolist()
    onsets = events(root, "01")["onset"]
    inside = [any(onset + 4 <= frame * TR_S < onset + 5 for onset in onsets) for frame in kept]
    assert (rows["state"] != "").tolist() == inside
    labelled = prepare(manifest, profile(root, "labelled", confounds=MOTION, lag_s=4, skip_s=0), jobs=1)
    np.testing.assert_array_equal(values(labelled, "01"), values(store, "01")[np.array(inside)])


def test_without_a_strategy_confounds_change_nothing_but_what_is_known(
    project: Path, study: tuple[pd.DataFrame, Path]
) -> None:
    manifest, root = study
    other = project / "without"
    for file in [*manifest["image"], *manifest["events"]]:
        (other / file).parent.mkdir(parents=True, exist_ok=True)
        (other / file).symlink_to(root / file)
    manifest_only, settings = manifest, {"lag_s": 4, "skip_s": 0}
    one = prepare(manifest, profile(root, "with", **settings), jobs=1)
    for file in [*manifest["image"], *manifest["events"]]:
        (other / file).unlink()
        (other / file).write_bytes((root / file).read_bytes())
    two = prepare(manifest_only, profile(other, "without", **settings), jobs=1)
    mine, theirs = data_of(contents(one.path)), data_of(contents(two.path))
    assert {n: d for n, d in mine.items() if n != "runs.parquet"} == {
        n: d for n, d in theirs.items() if n != "runs.parquet"
    }
    assert "mean_fd_mm" not in two.runs
    assert (one.runs["unsteady_volumes"] == 1).all()
    assert (one.runs["censored_volumes"] == 0).all()


def test_changed_confounds_are_noticed(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, example={"kind": "lsa"}, confounds=MOTION)
    store = prepare(manifest, settings, jobs=1)
    before = values(store, "04")
    table = root / f"{where('04')}_desc-confounds_timeseries.tsv"
    text = table.read_text()
    changed = pd.read_csv(table, sep="\t").assign(trans_y=np.random.default_rng(1).normal(size=T))
    changed.to_csv(table, sep="\t", index=False, na_rep="n/a")
    (store.path / "index.parquet").unlink()
    try:
        assert not np.allclose(values(prepare(manifest, settings, jobs=1), "04"), before)
    finally:
        table.write_text(text)


def test_a_run_whose_confounds_cannot_be_used_is_named(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, confounds={"strategy": ["wm_csf"]}, lag_s=4, skip_s=0)
    with pytest.raises(ValueError, match=r"sub-01_task-faces_desc-confounds_timeseries.tsv: The following keywords"):
        prepare(manifest, settings, jobs=1)


def test_a_store_of_before_has_the_settings_of_now(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, lag_s=4, skip_s=0)
    store = prepare(manifest, settings, jobs=1)
    identity = store.identity
    edit_info(store.path, lambda info: [info["preprocessing"].pop(key) for key in ("confounds", "example")])
    before = {name: (store.path / name).stat().st_mtime_ns for name in store.runs["file"]}
    again = prepare(manifest, settings, jobs=1)
    assert {name: (again.path / name).stat().st_mtime_ns for name in again.runs["file"]} == before
    assert again.identity == identity
    assert "example" not in json.loads((store.path / "store.json").read_text())["preprocessing"]


def test_trials_are_decoded(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, example={"kind": "lss"}, confounds=MOTION)
    store = prepare(manifest, settings, jobs=1)
    results = experiment.finetune(settings, "linear", 1.0, 1).results()
    by_trial = results[results["level"] == "volume"]
    assert set(by_trial["subject"]) == {"03", "04"}
    assert by_trial["score"].mean() > 0.8
    counts = store.index.groupby("subject").size()
    assert by_trial.set_index("subject")["n"].to_dict() == counts[["03", "04"]].to_dict()
    blocks = results[results["level"] == "block"]
    assert blocks["score"].tolist() == by_trial["score"].tolist()
    of_clips = settings.overridden({"finetuning": {"clip": {"length_s": 4, "step_s": 2}}})
    with pytest.raises(ValueError, match=r"a decoder of clips .* one example per trial; prepare volumes"):
        experiment.finetune(of_clips, "linear", 1.0, 1)


def test_pages_know_trials_and_motion(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, example={"kind": "window"}, confounds=MOTION)
    store = prepare(manifest, settings, jobs=1)
    design = quality.designs(settings, manifest)["faces"]
    own = store.index[store.index["subject"] == "01"]
    assert design.of_trials
    assert design.labelled_s.tolist() == own["onset_s"].tolist()
    assert design.n_empty == N_TRIALS - len(own)
    moved = quality.motion_by_unit(store)
    assert moved["unit"].tolist() == [*PEOPLE]
    assert (moved["mean_fd_mm"] == store.runs["mean_fd_mm"]).all()
    assert "is known for 4 subjects" in findings.motion_note(settings, store)
    assert f"of {len(PEOPLE) * N_TRIALS} trials" in findings.kept_note(store)
    results = statistics.only(experiment.finetune(settings, "linear", 1.0, 1).results())
    scored = scores_and_motion(statistics.out_of_fold(results), moved)
    assert scored["subject"].tolist() == ["03", "04"]
    assert "fewer than four held-out subjects" in findings.motion_score_note(settings, scored)


def test_the_series_of_a_run_is_without_confounds(project: Path, study: tuple[pd.DataFrame, Path]) -> None:
    manifest, root = study
    settings = profile(root, example={"kind": "window"}, confounds=MOTION)
    store = prepare(manifest, settings, jobs=1)
    before, after = experiment.series(settings, store, manifest.iloc[0])
    confounds, kept = nuisance(root, "01")
    expected = nilearn_clean(
        smoothed(root, "01", store)[1], confounds=confounds, sample_mask=kept.copy(), high_pass=1 / 128, t_r=TR_S
    )
    assert before.shape == (T, store.mask.sum())
    np.testing.assert_allclose(after, expected, atol=1e-3)  # for figures: the baseline takes float32's digits
