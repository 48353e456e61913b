"""Contents of the data page: designs of runs, maps of states, and the brain under the maps."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.events import label_frames, read_events
from deeplight_core.data.manifest import is_structural
from deeplight_core.data.simulate import planted_path
from deeplight_core.data.store import Store
from deeplight_core.system.sources import at_hand
from deeplight_core.training.examples import of_states

__all__ = [
    "Design",
    "background",
    "designs",
    "planted_contrasts",
    "state_contrasts",
    "trend_share",
    "worst_runs",
]

_VOLUMES_AT_A_TIME = 256


@dataclass(frozen=True)
class Design:
    """What happened in a run.

    blocks : `onset, duration` in seconds and `state`
    labelled_s : (N,) acquisition times of the volumes that have a state
    n_volumes, tr_s : of the run
    n_empty : blocks without any volume
    """

    blocks: pd.DataFrame
    labelled_s: np.ndarray
    n_volumes: int
    tr_s: float
    n_empty: int


def designs(profile: Profile, manifest: pd.DataFrame) -> dict[str, Design]:
    """Task → design of its first training run; structural images have none."""
    found = {}
    runs = manifest[(manifest["split"] == "train") & ~is_structural(manifest)]
    for row in runs.drop_duplicates("task").to_dict("records"):
        task, tr_s, n_volumes = row["task"], row["tr_s"], row["n_volumes"]
        with at_hand(profile.data_root, [row["events"]] if row["events"] else [], None) as folder:
            path = folder / row["events"] if row["events"] else None
            blocks = read_events(path, profile.data.events(task), task).blocks
        labels = label_frames(blocks, n_volumes, tr_s, profile.preprocessing)
        labelled = labels.frames[labels.states != ""]
        found[task] = Design(blocks, labelled * tr_s, n_volumes, tr_s, labels.dropped["blocks_without_volumes"])
    return found


def background(profile: Profile, manifest: pd.DataFrame) -> nib.Nifti1Image | None:
    """The image under the maps: the first run's mean; None, for the MNI template, if the layout is HCP's."""
    from nilearn.image import mean_img

    if profile.data.layout == "hcp":
        return None
    first = manifest["image"].iloc[0]
    with at_hand(profile.data_root, [first], None) as folder:
        return mean_img(folder / first, copy_header=True)


def state_contrasts(store: Store, states: list[tuple[str, str]]) -> dict[str, nib.Nifti1Image]:
    """State → mean of its training volumes minus the mean of the training volumes of all `states`."""
    from deeplight_core.training.loader import Volumes  # here: only this function needs torch

    if not states:
        return {}
    chosen = of_states(store.index, states, "train")
    volumes, sums = Volumes(store, chosen), np.zeros((len(states), store.info["n_voxels"]))
    for numbers in np.array_split(np.arange(len(chosen)), -(-len(chosen) // _VOLUMES_AT_A_TIME)):
        of_state = np.eye(len(states))[chosen.targets[numbers]]
        sums += of_state.T @ volumes.masked(numbers).float().numpy()
    counts = np.bincount(chosen.targets, minlength=len(states))
    mean = sums.sum(axis=0) / counts.sum()
    names = _names(states)
    return {names[k]: store.unmask(sums[k] / counts[k] - mean) for k in counts.nonzero()[0]}


def planted_contrasts(profile: Profile, store: Store, states: list[tuple[str, str]]) -> dict[str, nib.Nifti1Image]:
    """State → its planted activation minus the mean over all `states`; empty where the truth is unknown."""
    paths = [planted_path(profile.data_root, task, state) for task, state in states]
    if profile.simulation is None or not states or not all(path.is_file() for path in paths):
        return {}
    maps = np.stack([nib.load(path).get_fdata().T[store.mask.T] for path in paths])
    return dict(zip(_names(states), map(store.unmask, maps - maps.mean(axis=0)), strict=True))


def _names(states: list[tuple[str, str]]) -> list[str]:
    """Names of states, with their task if several tasks are decoded."""
    several = len({task for task, _ in states}) > 1
    return [f"{task}: {state}" if several else state for task, state in states]


def worst_runs(store: Store, manifest: pd.DataFrame, n: int = 3) -> dict[str, pd.Series]:
    """Title → manifest row, for the n runs with the lowest signal-to-noise ratio; empty for structural images.

    Parameters
    ----------
    manifest : the rows that the store was made from
    """
    if "median_tsnr" not in store.runs:
        return {}
    lowest = store.runs["median_tsnr"].argsort()[:n]
    titles = store.runs["run"] + store.runs["median_tsnr"].map(" (tSNR {:.0f})".format)
    return {titles.iloc[i]: manifest.iloc[i] for i in lowest}


def trend_share(series: np.ndarray) -> float:
    """Share of a voxel's variance that a straight line explains: the median over the voxels of (T, V) that vary."""
    time = np.linspace(-1, 1, len(series))
    centred = series - series.mean(axis=0)
    power = (centred**2).sum(axis=0)
    varies = power > 0
    return float(np.median((time @ centred)[varies] ** 2 / (time @ time) / power[varies]))
