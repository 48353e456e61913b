"""One run before its images are read: its events, the examples it will give, and the matrices that make them.

Letters: T frames of the run, K of them not censored, N examples.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.confounds import Confounds, confound_files, read_confounds
from deeplight_core.data.events import Events, Labels, label_frames, read_events
from deeplight_core.data.manifest import start_of
from deeplight_core.data.preprocess import Matrices, confound_matrix
from deeplight_core.data.trials import nuisance_matrix, residual_matrix, trials_before, trials_of
from deeplight_core.preparation import PreprocessingSettings

__all__ = ["Run", "labels_of", "run_of", "source_files"]


@dataclass(frozen=True)
class Run:
    """What becomes of a run.

    labels : of its examples: volumes, or trials, whose frame and block are their numbers within the run
    onset_s : (N,) onsets of trials in seconds; None for volumes
    rows : (N,) which rows of what `preprocess.clean` makes are the examples
    matrices : None if the settings' common matrix is all that the run needs
    facts : what its record says about motion and trials
    """

    events: Events
    labels: Labels
    onset_s: np.ndarray | None
    rows: np.ndarray
    matrices: Matrices | None
    facts: dict[str, Any]


def source_files(root: Any, row: pd.Series) -> list[str]:
    """The files that a run or structural image is made of, relative to the root (a folder or URL)."""
    return [*filter(None, (row["image"], row["events"], row["mask"])), *confound_files(root, row["image"])]


def run_of(row: pd.Series, folder: Path, profile: Profile) -> Run:
    """Read a run's events and confounds, and decide what becomes of it.

    Parameters
    ----------
    row : of the manifest; a run of fMRI
    folder : where its `source_files` are

    Raises
    ------
    ValueError
        If its events or confounds cannot be used.
    """
    settings, n_frames, tr_s = profile.preprocessing, int(row["n_volumes"]), float(row["tr_s"])
    path = folder / row["events"] if row["events"] else None
    events = read_events(path, profile.data.events(row["task"]), row["task"], profile.data.trial_type)
    found = read_confounds(folder, confound_files(folder, row["image"]), row["image"], n_frames, settings.confounds)
    facts = {} if found is None else {
        "mean_fd_mm": found.mean_fd_mm, "unsteady_volumes": found.n_unsteady,
        "censored_volumes": n_frames - len(found.kept), "n_confounds": found.regressors.shape[1],
    }  # fmt: skip
    try:
        return _run(events, found, start_of(row) + np.arange(n_frames) * tr_s, tr_s, settings, facts)
    except ValueError as error:
        raise ValueError(f"{row['image']}: {error}") from error


def _run(
    events: Events, found: Confounds | None, times: np.ndarray, tr_s: float, settings: PreprocessingSettings,
    facts: dict[str, Any],
) -> Run:  # fmt: skip
    n_frames = len(times)
    kept = np.arange(n_frames) if found is None else found.kept
    kept = kept[kept >= settings.drop_volumes]
    regressors = np.empty((n_frames, 0)) if found is None else found.regressors
    plain = len(kept) == n_frames and not regressors.size
    if settings.example.kind == "volume":
        labels = label_frames(events.blocks, n_frames, tr_s, settings, float(times[0]))
        if plain:
            return Run(events, labels, None, labels.frames, None, facts)
        there = np.isin(labels.frames, kept)
        labels = replace(
            labels, frames=labels.frames[there], states=labels.states[there], blocks=labels.blocks[there],
            dropped={**labels.dropped, "labelled_volumes_censored": int((labels.states[~there] != "").sum())},
        )  # fmt: skip
        matrices = Matrices(_confounds_out(tr_s, settings, regressors, kept), kept)
        return Run(events, labels, None, np.searchsorted(kept, labels.frames), matrices, facts)
    trials = trials_of(events.blocks, times, settings, regressors, kept)
    if settings.example.kind == "window":
        cleaning = _confounds_out(tr_s, settings, regressors, kept)
    else:
        cleaning = residual_matrix(nuisance_matrix(times, settings, regressors), kept)
        facts = {**facts, "beta_unit": trials.unit}
    labels = Labels(trials.numbers, trials.states, trials.numbers, trials.counts)
    rows = np.arange(len(trials.numbers))
    return Run(events, labels, trials.onset_s, rows, Matrices(cleaning, kept, trials.matrix), facts)


def _confounds_out(
    tr_s: float, settings: PreprocessingSettings, regressors: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    return confound_matrix(tr_s, settings.detrend, settings.high_pass_hz, regressors, kept)


def labels_of(
    blocks: pd.DataFrame, n_frames: int, tr_s: float, settings: PreprocessingSettings, start_s: float = 0.0
) -> Labels:
    """The examples that a run's events give, before any file of confounds is read.

    No model of trials is made: some of them may turn out to have no beta.

    Parameters
    ----------
    blocks : `onset, duration` in seconds and `state`
    start_s : when the first volume was acquired
    """
    if settings.drop_volumes >= n_frames:
        raise ValueError(f"drop_volumes {settings.drop_volumes} leaves none of its {n_frames} volumes; drop fewer")
    if settings.example.kind == "volume":
        labels = label_frames(blocks, n_frames, tr_s, settings, start_s)
        there = labels.frames >= settings.drop_volumes
        return replace(
            labels, frames=labels.frames[there], states=labels.states[there], blocks=labels.blocks[there]
        )  # fmt: skip
    kept = np.arange(settings.drop_volumes, n_frames)
    numbers, states = trials_before(blocks, start_s + np.arange(n_frames) * tr_s, settings, kept)
    return Labels(numbers, states, numbers)
