"""Contents of the data page: designs of runs, maps of states, and the brain under the maps."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.config import Profile
from deeplight_core.data.manifest import is_structural, start_of
from deeplight_core.data.runs import run_of, source_files
from deeplight_core.data.simulate import planted_path
from deeplight_core.data.store import Store
from deeplight_core.system.sources import at_hand
from deeplight_core.training.examples import of_states

__all__ = [
    "Design",
    "background",
    "designs",
    "motion_by_unit",
    "on_grid",
    "planted_contrasts",
    "state_contrasts",
    "state_names",
    "trend_share",
    "worst_runs",
]

_VOLUMES_AT_A_TIME = 256


@dataclass(frozen=True)
class Design:
    """What happened in a run.

    blocks : `onset, duration` in seconds and `state`
    labelled_s : (N,) acquisition times of the volumes that have a state, or onsets of the trials that are examples
    n_volumes, tr_s : of the run
    n_empty : blocks without any volume, or trials that are no examples
    of_trials : whether examples are trials
    """

    blocks: pd.DataFrame
    labelled_s: np.ndarray
    n_volumes: int
    tr_s: float
    n_empty: int
    of_trials: bool = False


def designs(profile: Profile, manifest: pd.DataFrame) -> dict[str, Design]:
    """Task → design of its first training run; structural images have none."""
    found = {}
    runs = manifest[(manifest["split"] == "train") & ~is_structural(manifest)]
    for _, row in runs.drop_duplicates("task").iterrows():
        tr_s, n_volumes = float(row["tr_s"]), int(row["n_volumes"])
        names = [name for name in source_files(profile.data_root, row) if name not in (row["image"], row["mask"])]
        with at_hand(profile.data_root, names, None) as folder:
            run = run_of(row, folder, profile)
        labels, blocks = run.labels, run.events.blocks
        if run.onset_s is None:
            labelled_s = start_of(row) + labels.frames[labels.states != ""] * tr_s
            n_empty = labels.dropped["blocks_without_volumes"]
        else:
            labelled_s, n_empty = run.onset_s, labels.dropped["trials"] - len(labels.frames)
        found[row["task"]] = Design(blocks, labelled_s, n_volumes, tr_s, n_empty, run.onset_s is not None)
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
    names = state_names(states)
    return {names[k]: store.unmask(sums[k] / counts[k] - mean) for k in counts.nonzero()[0]}


def planted_contrasts(profile: Profile, store: Store, states: list[tuple[str, str]]) -> dict[str, nib.Nifti1Image]:
    """State → its planted activation minus the mean over all `states`; empty where the truth is unknown."""
    paths = [planted_path(profile.data_root, task, state) for task, state in states]
    if profile.simulation is None or not states or not all(path.is_file() for path in paths):
        return {}
    maps = np.stack([on_grid(nib.load(path), store) for path in paths])
    return dict(zip(state_names(states), map(store.unmask, maps - maps.mean(axis=0)), strict=True))


def on_grid(image: nib.Nifti1Image, store: Store) -> np.ndarray:
    """An image's values (V,) in the store's voxels, interpolated linearly where its grid is another one."""
    if image.shape[:3] != store.mask.shape or not np.allclose(image.affine, store.affine):
        from nilearn.image import resample_img

        image = resample_img(
            image, store.affine, store.mask.shape, interpolation="linear", copy_header=True, force_resample=True
        )
    return np.asarray(image.get_fdata().T[store.mask.T])


def state_names(states: list[tuple[str, str]]) -> list[str]:
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


def motion_by_unit(store: Store) -> pd.DataFrame:
    """`unit, split, mean_fd_mm` of every unit whose motion is known: framewise displacement, averaged over its runs."""
    if "mean_fd_mm" not in store.runs:
        return pd.DataFrame(columns=["unit", "split", "mean_fd_mm"])
    whose = store.index.drop_duplicates("file")[["file", "unit", "split"]]
    known = whose.merge(store.runs[["file", "mean_fd_mm"]], on="file").dropna(subset="mean_fd_mm")
    of_unit: Any = known.groupby(["unit", "split"], as_index=False, sort=False)
    return pd.DataFrame(of_unit.agg(mean_fd_mm=("mean_fd_mm", "mean")))


def trend_share(series: np.ndarray) -> float:
    """Share of a voxel's variance that a straight line explains: the median over the voxels of (T, V) that vary."""
    time = np.linspace(-1, 1, len(series))
    centred = series - series.mean(axis=0)
    power = (centred**2).sum(axis=0)
    varies = power > 0
    return float(np.median((time @ centred)[varies] ** 2 / (time @ time) / power[varies]))
