from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nilearn.glm.first_level import FirstLevelModel, compute_regressor

from deeplight_core.data.preprocess import Matrices, clean
from deeplight_core.data.trials import Trials, nuisance_matrix, residual_matrix, trials_before, trials_of
from deeplight_core.preparation import PreprocessingSettings

# of nilearn's masker, about its own arguments
pytestmark = pytest.mark.filterwarnings("ignore:.*Generation of a mask has been requested:RuntimeWarning")

T, TR_S, SHAPE = 90, 2.0, (2, 3, 2)
TIMES = np.arange(T) * TR_S
TOLERANCE = 1e-4


def events(*rows: tuple[float, float, str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["onset", "duration", "state"])


def settings(kind: str, **others: Any) -> PreprocessingSettings:
    own = {key: others.pop(key) for key in ("window_s", "hrf") if key in others}
    return PreprocessingSettings.model_validate({"example": {"kind": kind, **own}, **others})


def some_trials(n: int = 6) -> pd.DataFrame:
    random = np.random.default_rng(3)
    onsets = np.sort(random.uniform(3, 150, n))
    return events(*zip(onsets, random.choice([1.0, 2.5], n), random.choice(["a", "b"], n), strict=True))


def series() -> np.ndarray:
    """(X, Y, Z, T): noise and a trend."""
    return 10_000 + 100 * np.random.default_rng(4).normal(size=(*SHAPE, T)) + np.linspace(0, 500, T)


def by_nilearn(
    blocks: pd.DataFrame, number: int, kind: str, hrf: str, drift: dict[str, Any], confounds: np.ndarray | None,
    kept: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The beta map of one trial, from a model made for it."""
    names = [f"trial {i}" if i == number or kind == "lsa" else "all others" for i in range(len(blocks))]
    table = blocks[["onset", "duration"]].assign(trial_type=names)
    affine = np.diag([3.0, 3, 3, 1])
    mask = nib.Nifti1Image(np.ones(SHAPE, np.uint8), affine)
    model = FirstLevelModel(
        t_r=TR_S, hrf_model=hrf, noise_model="ols", signal_scaling=False, mask_img=mask, smoothing_fwhm=None, **drift
    )
    nuisance = None if confounds is None else pd.DataFrame(confounds).add_prefix("c")
    model.fit(nib.Nifti1Image(series(), affine), events=table, confounds=nuisance, sample_masks=kept)
    return model.compute_contrast(f"trial {number}", output_type="effect_size").get_fdata().reshape(-1)


CONFOUNDS = np.random.default_rng(5).normal(size=(T, 4))
CENSORED = np.setdiff1d(np.arange(T), [0, 1, 40, 41, 63])
COSINE = {"drift_model": "cosine", "high_pass": 1 / 128}
SLOWER = {"drift_model": "cosine", "high_pass": 0.01}
LINE = {"drift_model": "polynomial", "drift_order": 1}


@pytest.mark.parametrize(
    ("kind", "hrf", "others", "drift", "confounds", "kept"),
    [
        ("lsa", "spm", {}, COSINE, CONFOUNDS, CENSORED),
        ("lss", "spm", {}, COSINE, CONFOUNDS, CENSORED),
        ("lsa", "glover + derivative", {"high_pass_hz": None}, LINE, None, np.arange(T)),
        ("lss", "glover + derivative + dispersion", {"high_pass_hz": 0.01}, SLOWER, None, CENSORED),
        ("lss", "glover", {"high_pass_hz": None, "detrend": False}, {"drift_model": None}, None, np.arange(T)),
    ],
)  # fmt: skip
def test_betas_are_those_of_a_model_for_each_trial(
    kind: str, hrf: str, others: dict[str, Any], drift: dict[str, Any], confounds: np.ndarray | None, kept: np.ndarray
) -> None:
    blocks, asked = some_trials(), settings(kind, hrf=hrf, **others)
    trials = trials_of(blocks, TIMES, asked, confounds, kept)
    assert trials.numbers.tolist() == list(range(6))
    expected = np.stack([by_nilearn(blocks, i, kind, hrf, drift, confounds, kept) for i in range(6)])
    of_voxels = series().reshape(-1, T).T
    np.testing.assert_allclose(trials.matrix * trials.unit @ of_voxels[kept], expected, rtol=1e-6, atol=1e-6)
    # as they are stored: in SDs of the series without drifts and confounds, times the run's unit
    nuisance = nuisance_matrix(TIMES, asked, confounds)
    coefficients = np.linalg.lstsq(nuisance[kept], of_voxels[kept], rcond=None)[0]
    sd = (of_voxels[kept] - nuisance[kept] @ coefficients).std(axis=0, ddof=1)
    matrices = Matrices(residual_matrix(nuisance, kept), kept, trials.matrix)
    from_baseline = torch.from_numpy(of_voxels - 10_000).float()
    mine, constant, _ = clean(from_baseline, TR_S, asked, 10_000.0, matrices)
    np.testing.assert_allclose(mine.numpy(), expected / sd / trials.unit, atol=TOLERANCE)
    assert not constant.any()


@pytest.mark.parametrize(("duration", "kind"), [(0.0, "lss"), (0.5, "lsa"), (6.0, "lss")])
def test_noise_has_an_sd_of_one_whatever_the_duration(duration: float, kind: str) -> None:
    blocks = some_trials(8).assign(duration=duration)
    trials = trials_of(blocks, TIMES, settings(kind))
    noise = np.random.default_rng(6).normal(size=(T, 4000))
    assert np.median((trials.matrix @ noise).std(axis=1)) == pytest.approx(1, rel=0.03)  # a standard error is 0.011


def window(blocks: pd.DataFrame, kept: np.ndarray | None = None, **others: Any) -> tuple[Trials, list[list[int]]]:
    """The trials, and the frames that each is the mean of."""
    trials = trials_of(blocks, TIMES, settings("window", **others), None, kept)
    frames = np.arange(T) if kept is None else kept
    np.testing.assert_allclose(trials.matrix.sum(axis=1), 1)
    for row in trials.matrix:
        assert len(set(row[row > 0])) == 1
    return trials, [frames[row > 0].tolist() for row in trials.matrix]


def test_a_window_is_the_mean_of_its_volumes() -> None:
    trials, frames = window(events((20, 2, "b"), (10.5, 1, "a")))
    assert frames == [[8, 9], [12, 13, 14]]  # from 14.5 to 18.5 s, and from 24 to 28 s, both ends included
    assert (trials.states.tolist(), trials.onset_s.tolist(), trials.numbers.tolist()) == (
        ["a", "b"],
        [10.5, 20],
        [0, 1],
    )
    counts = {"trials": 2, "trials_nearest": 0, "trials_of_two_states": 0, "trials_outside": 0, "trials_censored": 0}
    assert trials.counts == counts


def test_a_window_without_volumes_takes_the_nearest() -> None:
    trials, frames = window(events((10, 0, "a"), (20.4, 0, "a")), window_s=(5, 5.5))
    assert frames == [[8], [13]]  # 15.25 s is nearer to 16 s, 25.65 s to 26 s
    assert trials.counts["trials_nearest"] == 2


def test_windows_outside_the_run_and_in_censored_volumes_are_dropped() -> None:
    blocks = events((-1, 1, "a"), (-9, 1, "a"), (10, 1, "b"), (50, 1, "b"), (170, 1, "a"), (174, 1, "a"))
    kept = np.setdiff1d(np.arange(T), [7, 8, 9, 27])
    trials, frames = window(blocks, kept)
    assert frames == [[2, 3], [28, 29], [87, 88, 89]]  # 27 is censored: the rest is left; 174 + 8 s is past 180 s
    assert trials.numbers.tolist() == [1, 3, 4]
    assert {reason: n for reason, n in trials.counts.items() if n} == {
        "trials": 6, "trials_outside": 2, "trials_censored": 1,
    }  # fmt: skip


def test_repeated_rows_are_one_trial() -> None:
    once, twice = events((10, 2, "a"), (40, 2, "b")), events((10, 2, "a"), (40, 2, "b"), (40, 2, "b"))
    for kind in ("window", "lsa", "lss"):
        one, other = (trials_of(blocks, TIMES, settings(kind)) for blocks in (once, twice))
        np.testing.assert_array_equal(one.matrix, other.matrix)
        assert one.counts == other.counts


def test_joined_events_are_one_trial() -> None:
    blocks = events((10, 2, "a"), (12, 2, "a"), (40, 2, "b"))
    trials = trials_of(blocks, TIMES, settings("lss", join_s=0))
    expected = trials_of(events((10, 4, "a"), (40, 2, "b")), TIMES, settings("lss"))
    np.testing.assert_array_equal(trials.matrix, expected.matrix)


def test_the_order_of_rows_does_not_matter() -> None:
    blocks = some_trials()
    one, other = (trials_of(b, TIMES, settings("lss")) for b in (blocks, blocks.iloc[::-1]))
    np.testing.assert_allclose(one.matrix, other.matrix)
    assert one.states.tolist() == other.states.tolist() == blocks["state"].tolist()


@pytest.mark.parametrize("kind", ["lsa", "lss"])
def test_trials_without_a_beta_are_dropped_and_stay_in_the_model(kind: str) -> None:
    two_at_once = [(60.0, 2.0, "a"), (60.0, 2.0, "b")]
    late = [(177.5, 2.0, "a"), (400.0, 2.0, "b"), (-30.0, 1.0, "a")]
    good = [(10.0, 2.0, "a"), (100.0, 2.0, "b"), (112.0, 2.0, "a")]
    trials = trials_of(events(*good, *two_at_once, *late), TIMES, settings(kind))
    assert trials.onset_s.tolist() == [10, 100, 112]
    assert trials.counts == {"trials": 8, "trials_of_two_states": 2, "trials_outside": 3, "trials_inseparable": 0}
    alone = trials_of(events(*good), TIMES, settings(kind))
    assert not np.allclose(alone.matrix, trials.matrix)


def test_trials_that_nearly_coincide_have_no_beta_by_lsa() -> None:
    blocks = events((10, 2, "a"), (60.01, 2, "a"), (60.02, 2, "b"), (120, 2, "b"))
    assert trials_of(blocks, TIMES, settings("lsa")).counts["trials_inseparable"] == 2


def test_a_quarter_of_a_trials_response_is_enough() -> None:
    kept = {onset: trials_of(events((10, 2, "a"), (onset, 2, "b")), TIMES, settings("lss")) for onset in (174, 175)}
    assert [trials.counts["trials_outside"] for trials in kept.values()] == [0, 1]  # the run ends at 180 s
    total = np.linalg.norm(compute_regressor((np.array([[0.0], [2.0], [1.0]])), "spm", TIMES)[0])
    shares = [
        np.linalg.norm(compute_regressor(np.array([[float(onset)], [2.0], [1.0]]), "spm", TIMES)[0]) / total
        for onset in kept
    ]
    assert shares[0] > 0.25 > shares[1]


def test_a_trial_that_a_confound_nearly_explains_has_no_beta() -> None:
    own = compute_regressor(np.array([[60.0], [2.0], [1.0]]), "spm", TIMES)[0]
    noise = np.random.default_rng(0).normal(size=own.shape) * own.std()
    blocks = events((10, 2, "a"), (60, 2, "b"), (120, 2, "a"))
    found = [trials_of(blocks, TIMES, settings("lss"), own + share * noise).counts for share in (0.002, 0.2)]
    assert [counts["trials_inseparable"] for counts in found] == [1, 0]


def test_windows_of_two_states_at_once_are_dropped() -> None:
    trials, frames = window(events((10, 2, "a"), (10, 4, "b"), (40, 2, "b")))
    assert frames == [[22, 23, 24]]
    assert trials.counts["trials_of_two_states"] == 2


@pytest.mark.parametrize("kind", ["window", "lsa", "lss"])
def test_events_alone_promise_the_same_trials(kind: str) -> None:
    blocks = events((-30, 1, "a"), (10, 2, "a"), (40, 2, "a"), (40, 2, "b"), (90, 1, "b"), (150, 1, "a"), (400, 2, "a"))
    numbers, states = trials_before(blocks, TIMES, settings(kind))
    trials = trials_of(blocks, TIMES, settings(kind))
    assert numbers.tolist() == trials.numbers.tolist() == [1, 4, 5]
    assert states.tolist() == trials.states.tolist() == ["a", "b", "a"]


def test_trials_in_censored_volumes_have_no_beta() -> None:
    kept = np.setdiff1d(np.arange(T), np.arange(28, 42))  # from 56 to 82 s
    trials = trials_of(events((10, 2, "a"), (56, 2, "b"), (120, 2, "b")), TIMES, settings("lsa"), None, kept)
    assert trials.onset_s.tolist() == [10, 120]
    assert trials.counts["trials_outside"] == 1


def test_a_run_without_trials_gives_none() -> None:
    for kind in ("window", "lsa", "lss"):
        trials = trials_of(events(), TIMES, settings(kind))
        assert trials.matrix.shape == (0, T)
        assert trials.counts["trials"] == 0


def test_more_regressors_than_volumes_are_refused() -> None:
    blocks = events(*((2.0 * i, 1.0, "a") for i in range(40)))
    with pytest.raises(ValueError, match=r"has 127 regressors \(40 trials, .* the run 90 volumes .* example.kind: lss"):
        trials_of(blocks, TIMES, settings("lsa", hrf="spm + derivative + dispersion"), CONFOUNDS)
    assert len(trials_of(blocks, TIMES, settings("lss"), CONFOUNDS).numbers) > 30


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keep: all stores every volume, and example.kind: lss one example per trial"):
        settings("lss", keep="all")
    with pytest.raises(ValueError, match=r"window_s goes from its first to its last second, got \[8.0, 4.0\]"):
        settings("window", window_s=(8, 4))
