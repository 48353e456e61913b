"""Trials as examples: the mean of a window, or a beta, as one matrix per run.

Letters: T frames of the run, K of them not censored, N trials that become examples, P regressors.

A beta is what `nilearn.glm.first_level.FirstLevelModel` estimates with `noise_model="ols"` and `signal_scaling=False`.
As an ordinary least squares estimate is linear in the series, the betas of all trials are a matrix (N, K), and need no
model per trial.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from deeplight_core.data.events import joined
from deeplight_core.preparation import PreprocessingSettings

__all__ = ["Trials", "nuisance_matrix", "residual_matrix", "trials_before", "trials_of"]

_TIME_TOLERANCE_S = 1e-6
_BEFORE_S = 24.0  # trials that begin earlier before the run have no response in it, for nilearn, too
_RESPONSE_S = 32.0  # length of nilearn's haemodynamic responses
_INSIDE = 0.25  # least share (norm) of a trial's response that lies in the run's uncensored frames
_SEPARABLE = 0.01  # least share (norm) of its regressor there that the other regressors leave
_ESTIMABLE = 1e-3  # largest distance from one of a beta's weights times its regressor


class Trials(NamedTuple):
    """The trials of a run that become examples.

    numbers : (N,) their places among all trials of the run, in the order of onsets
    onset_s : (N,) in seconds; states : (N,)
    matrix : (N, K) makes the examples of the clean series
    unit : a beta of the series is the example times this unit times the SD of the voxel's clean series; see `trials_of`
    counts : how many trials there are and how many were dropped, by reason
    """

    numbers: np.ndarray
    onset_s: np.ndarray
    states: np.ndarray
    matrix: np.ndarray
    unit: float
    counts: dict[str, int]


def trials_of(
    blocks: pd.DataFrame,
    times: np.ndarray,
    settings: PreprocessingSettings,
    confounds: np.ndarray | None = None,
    kept: np.ndarray | None = None,
) -> Trials:
    """The trials of a run as examples, by the settings' kind of example.

    Repeated rows of the events are one trial, and so are events that the settings join.

    A window is the mean of the volumes acquired in it, or the volume nearest to its middle if there is none. A beta is
    divided by the SD of the voxel's clean series, without drifts and confounds, and by one number per run, the median
    norm of the betas' weights: noise then has an SD of about one in the median trial, however long trials are.

    Dropped are trials that begin together with one of another state, trials whose window, or most of whose response,
    lies outside the run or in censored frames, and trials whose beta is not separable from the others'. They stay in
    the model of the others.

    Parameters
    ----------
    blocks : `onset, duration` in seconds and `state`
    times : (T,) seconds at which the frames were acquired
    confounds : (T, C) that betas are estimated beside
    kept : (K,) the frames that are not censored, ascending (None = all)

    Raises
    ------
    ValueError
        If a model has more regressors than the run has volumes.
    """
    kept = np.arange(len(times)) if kept is None else kept
    table = _in_order(blocks, settings)
    if settings.example.kind == "window":
        weights, reasons, more = _windows(table, times, settings, kept)
    else:
        nuisance = nuisance_matrix(times, settings, confounds)
        weights, reasons = _betas(table, times, settings, nuisance, kept)
        more = {}
    reasons = np.where(table.duplicated("onset", keep=False), "of_two_states", reasons)
    own = "censored" if settings.example.kind == "window" else "inseparable"
    counts = {"trials": len(table), **more}
    counts |= {f"trials_{name}": int((reasons == name).sum()) for name in ("of_two_states", "outside", own)}
    chosen, unit = np.flatnonzero(reasons == ""), 1.0
    if settings.example.kind != "window" and len(chosen):
        unit = float(np.median(np.linalg.norm(weights[chosen], axis=1)))
    states = table["state"].to_numpy(object)[chosen]
    return Trials(chosen, table["onset"].to_numpy(float)[chosen], states, weights[chosen] / unit, unit, counts)


def trials_before(
    blocks: pd.DataFrame, times: np.ndarray, settings: PreprocessingSettings, kept: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and states (N,) of the trials that events promise, quickly: no model is made for betas.

    Parameters and order as in `trials_of`; trials whose response or beta turns out to be missing still count.
    """
    table = _in_order(blocks, settings)
    if settings.example.kind == "window":
        lost = _windows(table, times, settings, np.arange(len(times)) if kept is None else kept)[1] != ""
    else:
        lost = ~_in_run(table, times)
    numbers = np.flatnonzero(~lost & ~table.duplicated("onset", keep=False).to_numpy())
    return numbers, table["state"].to_numpy(object)[numbers]


def _in_order(blocks: pd.DataFrame, settings: PreprocessingSettings) -> pd.DataFrame:
    """The trials of a run, each once, in the order of their onsets."""
    blocks = blocks if settings.join_s is None else joined(blocks, settings.join_s)
    return blocks.drop_duplicates(["onset", "duration", "state"]).sort_values("onset", kind="stable")


def _in_run(table: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Which trials may have a response in the run."""
    onsets = table["onset"].to_numpy(float)
    return np.asarray((onsets >= times[0] - _BEFORE_S) & (onsets <= times[-1]))


def _windows(
    table: pd.DataFrame, times: np.ndarray, settings: PreprocessingSettings, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Weights (n, K) of all trials, why they are dropped (n), and how many take the nearest volume."""
    tr_s = times[1] - times[0]
    first_s, last_s = settings.example.window_s
    weights, reasons, n_nearest = np.zeros((len(table), len(kept))), np.full(len(table), "", object), 0
    for i, onset in enumerate(table["onset"]):
        start, end = onset + first_s - _TIME_TOLERANCE_S, onset + last_s + _TIME_TOLERANCE_S
        if start < times[0] - tr_s or end > times[-1] + tr_s:
            reasons[i] = "outside"
            continue
        chosen = np.flatnonzero((times >= start) & (times <= end))
        if not len(chosen):
            chosen, n_nearest = np.array([np.abs(times - (start + end) / 2).argmin()]), n_nearest + 1
        weights[i] = np.isin(kept, chosen)
        if not weights[i].any():
            reasons[i] = "censored"
            continue
        weights[i] /= weights[i].sum()
    return weights, reasons, {"trials_nearest": n_nearest}


def nuisance_matrix(times: np.ndarray, settings: PreprocessingSettings, confounds: np.ndarray | None) -> np.ndarray:
    """The regressors (T, P) of no interest, as nilearn's models have them: confounds, drifts and a constant.

    Drifts are cosines up to the settings' cut-off, or without a filter a straight line, if they ask for detrending.
    """
    from nilearn.glm.first_level import make_first_level_design_matrix

    drift: dict[str, object] = {"drift_model": "polynomial", "drift_order": 1} if settings.detrend else {}
    if settings.high_pass_hz is not None:
        drift = {"drift_model": "cosine", "high_pass": settings.high_pass_hz}
    regressors = confounds if confounds is not None and confounds.size else None
    return np.asarray(make_first_level_design_matrix(times, **{"drift_model": None, **drift}, add_regs=regressors))


def residual_matrix(nuisance: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The (K, T) matrix that leaves of a series what the nuisance (T, P) does not explain in the frames kept (K,)."""
    from scipy.linalg import orth

    axes = orth(nuisance[kept])
    matrix = np.zeros((len(kept), len(nuisance)))
    matrix[:, kept] = np.eye(len(kept)) - axes @ axes.T
    return matrix


def _betas(
    table: pd.DataFrame, times: np.ndarray, settings: PreprocessingSettings, nuisance: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, K) of all trials' betas, and why trials are dropped (n)."""
    from scipy.linalg import orth

    onsets, durations = table["onset"].to_numpy(float), table["duration"].to_numpy(float)
    weights, reasons = np.zeros((len(table), len(kept))), np.full(len(table), "outside", object)
    there = np.flatnonzero(_in_run(table, times))
    separate, hrf = settings.example.kind == "lss", settings.example.hrf
    own = [_regressors(onsets[[i]], durations[[i]], times, hrf)[kept] for i in there]
    n_regressors = nuisance.shape[1] + (2 if separate else len(own)) * (own[0].shape[1] if own else 0)
    if n_regressors >= len(kept):
        raise ValueError(
            f"the model has {n_regressors} regressors ({len(own)} trials, the rest drifts and confounds) and the run "
            f"{len(kept)} volumes that are not censored; take example.kind: {'window' if separate else 'lss'}, an hrf "
            "without derivatives, or fewer confounds"
        )
    axes = orth(nuisance[kept])

    def inverted(regressors: list[np.ndarray]) -> np.ndarray:
        """The weights of all coefficients in a model of these regressors and the nuisance (Frisch, Waugh & Lovell)."""
        together = np.hstack(regressors)
        return np.linalg.pinv(together - axes @ (axes.T @ together))

    in_one = inverted(own) if own and not separate else np.empty(0)
    total = _regressors(onsets[there], durations[there], times, hrf)[kept] if own else np.empty(0)
    whole = {d: _whole_response(d, times[1] - times[0], hrf) for d in {*durations[there]}}
    for place, i in enumerate(there):
        regressor = own[place][:, 0]
        if separate:
            others = there[there != i]
            rest = total - own[place]  # of the response; its derivatives are made orthogonal to it
            if rest.shape[1] > 1 and len(others):
                rest = _regressors(onsets[others], durations[others], times, hrf)[kept]
            weights[i] = inverted([own[place], rest] if len(others) else [own[place]])[0]
        else:
            weights[i] = in_one[place * own[0].shape[1]]
        inside, left = np.linalg.norm(regressor), 1 / max(float(np.linalg.norm(weights[i])), 1e-300)
        if inside < _INSIDE * whole[durations[i]]:
            continue
        separable = abs(weights[i] @ regressor - 1) < _ESTIMABLE and left > _SEPARABLE * inside
        reasons[i] = "" if separable else "inseparable"
    return weights, reasons


def _regressors(onsets: np.ndarray, durations: np.ndarray, times: np.ndarray, hrf: str) -> np.ndarray:
    """The regressor of some events together, and its derivatives (T, 1 to 3)."""
    from nilearn.glm.first_level import compute_regressor

    return np.asarray(compute_regressor((onsets, durations, np.ones(len(onsets))), hrf, times)[0])


def _whole_response(duration_s: float, tr_s: float, hrf: str) -> float:
    """The norm of a trial's regressor in a run that ends after its response."""
    times = np.arange(0, duration_s + _RESPONSE_S + 2 * tr_s, tr_s)
    return float(np.linalg.norm(_regressors(np.zeros(1), np.array([duration_s]), times, hrf)[:, 0]))
