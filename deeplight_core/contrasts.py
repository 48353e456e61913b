"""What finished trainings of temporal contrast know, beside what can be told without them.

Letters: N examples, V in-mask voxels.
"""

import nibabel as nib
import numpy as np
import pandas as pd

from deeplight_core.collect import finished_trainings, sweep_predictions, sweep_results
from deeplight_core.config import Profile, project_root
from deeplight_core.data.store import open_store
from deeplight_core.experiment import Training, examples_of, start_of
from deeplight_core.sweeps import planned
from deeplight_core.system.files import read_table
from deeplight_core.training.loader import Volumes

__all__ = ["contrast_scores", "n_series", "network_map", "of_controls", "of_networks", "of_transfer", "seen_volumes"]

_AT_A_TIME = 256  # examples whose volumes are in memory


def n_series(training: Training) -> tuple[int, int, float]:
    """Numbers of series that a pre-training learns from and is reported on, and the repetition time in seconds."""
    store, split = open_store(training.profile.store), training.split
    n_train, n_reported = (len(examples_of(training, store, units)) for units in (split.train, split.reported))
    return n_train, n_reported, store.info["tr_s"]


def contrast_scores(training: Training) -> pd.DataFrame:
    """Share of held-out windows whose neighbour is found: what was `learnt`, by a `shortcut`, by `voxels`.

    A shortcut is whatever tells the parts of a run apart without any pattern: `shortcut` is a logistic regression,
    trained on the training windows, of the distances between windows in the mean of all voxels and in its slope over
    time. `voxels` learns nothing: it compares the windows' mean volumes (cosine).

    Returns
    -------
    `way, subject, score`, a row for each way and held-out unit
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    store, split = open_store(training.profile.store), training.split
    found = {}
    for name, units in (("train", split.train), ("reported", split.reported)):
        chosen = examples_of(training, store, units)
        found[name] = (*_told(Volumes(store, chosen)), chosen.table["unit"].to_numpy())
    distances = found["train"][0]
    x = np.concatenate([distances, -distances])  # the two windows to choose from, in both orders
    y = np.repeat([1, 0], len(distances))
    linear = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False)).fit(x, y)
    distances, closer, tested = found["reported"]
    right = {
        "learnt": training.predictions()["score of end"].to_numpy(),
        "shortcut": linear.decision_function(distances) > 0,
        "voxels": closer,
    }
    tables = [pd.DataFrame({"way": way, "subject": tested, "score": of}) for way, of in right.items()]
    return pd.concat(tables).groupby(["way", "subject"], sort=False)["score"].mean().reset_index()


def of_controls(profile: Profile) -> pd.DataFrame:
    """What contrast finds as it is and in each finished control: `change, contrast, shortcut, probe`.

    Means over held-out units: of neighbours found by contrast and by the shortcut, and of the target's volumes decoded
    by a linear probe of the encoder's features. The change "random" is the probe of an encoder without training.
    """
    cells, rows = planned(profile, "shortcuts"), []
    untrained = [cell._replace(variant="random-frozen") for cell in cells if not cell.change]
    for cell, decoder in finished_trainings(profile, [*cells, *untrained]).items():
        probe = decoder.results().query("level == 'volume'").groupby("subject")["score"].mean().mean()
        if cell in untrained:
            rows.append({"change": "random", "contrast": np.nan, "shortcut": np.nan, "probe": probe})
            continue
        training = start_of(decoder.profile, cell.variant, cell.seed, cell.fold)
        means = contrast_scores(training).groupby("way")["score"].mean()
        rows.append({"change": cell.change, "contrast": means["learnt"], "shortcut": means["shortcut"], "probe": probe})
    return pd.DataFrame(rows, columns=["change", "contrast", "shortcut", "probe"])


def of_networks(profile: Profile) -> pd.DataFrame:
    """What finished decoders of single networks, and of the whole brain, reach: the rows of `collect.sweep_results`.

    Adds a column `network`, empty for the whole brain.
    """
    results, _ = sweep_results(profile, "networks")
    atlas = profile.controls.networks
    names = {f"network-{key}": name for key, name in atlas.keys.items()} if atlas else {}
    return results.assign(network=results["change"].map({"": "", **names}))


def seen_volumes(profile: Profile) -> dict[str, int]:
    """Variant → number of volumes that its pre-training has encoded, for the finished ones of the sweep."""
    first = profile.sweep.seeds[0]
    found: dict[str, int] = {}
    for variant in ("contrast", "pretrained"):
        if variant in profile.sweep.variants and (training := start_of(profile, variant, first)).finished:
            found[variant] = int(training.results()["seen_volumes"].iloc[0])
    return found


def of_transfer(profile: Profile, name: str) -> tuple[Profile, pd.DataFrame, pd.DataFrame]:
    """One of the profile's transfers: its settings, the results of its sweep, and its predictions with all subjects.

    Both tables are empty if there is no such transfer, or none of its decoders is finished.
    """
    if name not in profile.transfers or not (profile.transferred(name).store / "index.parquet").is_file():
        return profile, pd.DataFrame(), pd.DataFrame()
    own = profile.transferred(name)
    return own, sweep_results(own)[0], sweep_predictions(own, max(own.sweep.fractions))


def network_map(profile: Profile, values: dict[str, float]) -> nib.Nifti1Image:
    """An image of the atlas' grid with each network's value in its voxels, 0 elsewhere."""
    atlas = profile.controls.networks
    assert atlas is not None
    image, table = nib.load(project_root() / atlas.image), read_table(project_root() / atlas.labels)
    numbers, found = np.asarray(image.dataobj), np.zeros(image.shape, np.float32)
    for number, name in zip(table["index"].astype(int), table["name"], strict=True):
        found[numbers == number] = values.get(name, 0.0)
    return nib.Nifti1Image(found, image.affine)


def _told(data: Volumes) -> tuple[np.ndarray, np.ndarray]:
    """How much further the beginning is from the end than the middle is, and whether the middle's volume is closer.

    Returns
    -------
    (N, 2) differences of distances, in the mean of all voxels and in its slope; (N,) bool
    """
    distances, closer = [], []
    for start in range(0, len(data), _AT_A_TIME):
        numbers = np.arange(start, min(start + _AT_A_TIME, len(data)))
        frames = data.masked(numbers).float().cpu().numpy()  # (N, 3, L, V)
        course = frames.mean(axis=3)
        time = np.arange(course.shape[2]) - (course.shape[2] - 1) / 2
        slope = (course @ time) / max(1.0, float(time @ time))
        parts = np.stack([course.mean(axis=2), slope], axis=2)  # (N, 3, 2)
        away = np.abs(parts[:, :2] - parts[:, 2:])
        distances.append(away[:, 0] - away[:, 1])
        mean = frames.mean(axis=2)
        mean /= np.maximum(np.linalg.norm(mean, axis=2, keepdims=True), 1e-12)
        similar = np.einsum("npv,nv->np", mean[:, :2], mean[:, 2])
        closer.append(similar[:, 1] > similar[:, 0])
    return np.concatenate(distances), np.concatenate(closer)
