"""Linear learners on the same examples and splits as the decoders."""

import warnings

import numpy as np
import pandas as pd

from deeplight_core.training.loader import Volumes

__all__ = ["linear_answers", "readout_answers"]


def linear_answers(
    learner: str, train: Volumes, held_out: Volumes, n_states: int = 0, source: Volumes | None = None
) -> np.ndarray:
    """A linear model's answers to the held-out examples, from in-mask voxels; a clip is the mean of its frames.

    Parameters
    ----------
    learner : for states "logistic", "components", "svm" or "decoder", for numbers "ridge".
        "logistic" (L2-regularised multinomial logistic regression, C = 1) and "svm" (one-vs-rest, squared hinge, C = 1)
        are scikit-learn's, on volumes scaled so that a training volume's norm is about 10 and C means the same on every
        grid. "decoder" is nilearn's Decoder: the fifth of the voxels with the largest F value, and linear SVMs averaged
        over up to five folds of the training units, or of a single unit's volumes, which also choose C by accuracy; it
        does not standardise volumes, which are z-scored already. "components" is "logistic" on what volumes have in
        common with the source: their projection on the maps of every source unit's states. "ridge" is ridge regression
        on the same scaled volumes, its penalty chosen over folds of the training units
    n_states : number of columns of an answer, one per state
    source : examples of the source, for "components"

    Returns
    -------
    (N, S) probabilities or, for SVMs, distances from their planes: the largest is the answer; (N, K) numbers
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if learner == "ridge":
        x, x_new = _voxels(train), _voxels(held_out)
        scale = 10 / (x.std() * np.sqrt(x.shape[1]))
        return _ridge(x * scale, x_new * scale, train.examples.targets, train.examples.table["unit"].to_numpy())
    labels = train.examples.targets
    if learner == "decoder":
        classes, found = _nilearn(train, labels, held_out)
    else:
        x, x_new = _voxels(train), _voxels(held_out)
        scale = 10 / (x.std() * np.sqrt(x.shape[1]))
        if learner == "components":
            assert source is not None
            components = _components(source)
            x, x_new = x @ components, x_new @ components
        svm = learner == "svm"
        model = LinearSVC(C=1.0, random_state=0) if svm else LogisticRegression(C=1.0, max_iter=1000)
        model.fit(x * scale, labels)
        found = model.decision_function(x_new * scale) if svm else model.predict_proba(x_new * scale)
        classes = model.classes_
    if found.ndim == 1:  # two classes have one distance
        found = np.stack([-found, found], axis=1)
    answers = np.full((len(found), n_states), found.min() - 1 if learner in ("svm", "decoder") else 0.0)
    answers[:, classes] = found  # a state that was not trained on is never the answer
    return answers


def readout_answers(
    features: np.ndarray, new_features: np.ndarray, targets: np.ndarray, units: np.ndarray, n_states: int = 0
) -> np.ndarray:
    """A linear model's answers to new examples, from any features; its penalty is chosen over folds of the units.

    Features are centred and scaled together, so that the mean example's norm is 10. States: logistic regression whose
    classes weigh the same; numbers: ridge regression, one model per column, fitted to the examples that have it. Where
    a state has a single unit, no folds can be made, and the penalty is scikit-learn's (C = 1).

    Parameters
    ----------
    features, new_features : (N, F) of the training and the new examples
    targets : (N,) labels or (N, K) numbers of the training examples
    units : (N,) the unit of each training example

    Returns
    -------
    (N', S) probabilities or (N', K) numbers
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import StratifiedGroupKFold

    mean = features.mean(axis=0)
    x, x_new = features - mean, new_features - mean
    scale = 10 / max(np.sqrt((x**2).sum(axis=1).mean()), 1e-12)
    x, x_new = _rotated(x * scale, x_new * scale)
    if targets.ndim == 2:
        return _ridge(x, x_new, targets, units)
    few = int(pd.Series(units).groupby(targets).nunique().min())
    if few < 2:
        model = LogisticRegression(class_weight="balanced", max_iter=5000, tol=1e-7)
    else:
        folds = StratifiedGroupKFold(min(5, few)).split(x, targets, units)
        model = LogisticRegressionCV(
            Cs=np.logspace(-4, 2, 7), cv=list(folds), scoring="neg_log_loss", class_weight="balanced", max_iter=5000,
            tol=1e-7, l1_ratios=(0,), use_legacy_attributes=False,
        )  # fmt: skip
    found = model.fit(x, targets).predict_proba(x_new)
    answers = np.zeros((len(found), n_states))
    answers[:, model.classes_] = found
    return answers


def _rotated(x: np.ndarray, x_new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the axes of the training examples: at most N features; models with an L2 penalty answer the same."""
    if x.shape[1] <= len(x):
        return x, x_new
    axes = np.linalg.svd(x, full_matrices=False)[2].T
    return x @ axes, x_new @ axes


def _voxels(data: Volumes) -> np.ndarray:
    """(N, V) float32."""
    values = data.masked(np.arange(len(data))).float().cpu().numpy()
    return np.asarray(values.reshape(len(values), -1, values.shape[-1]).mean(axis=1))


def _components(source: Volumes) -> np.ndarray:
    """(V, K) orthonormal: what the source's states look like in its units, without each unit's mean."""
    table = source.examples.table
    maps = []
    for unit in sorted(set(table["unit"])):
        of_unit = np.flatnonzero(table["unit"] == unit)
        targets = source.examples.targets[of_unit]
        values = source.masked(of_unit).float().cpu().numpy()
        values = values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)
        means = np.stack([values[targets == target].mean(axis=0) for target in np.unique(targets)])
        maps.append(means - means.mean(axis=0))
    _, sizes, components = np.linalg.svd(np.concatenate(maps), full_matrices=False)
    return np.asarray(components[sizes > 1e-5 * sizes[0]].T)


def _ridge(x: np.ndarray, x_new: np.ndarray, numbers: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(N, K), from one model per column, fitted to the examples that have it."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    answers = []
    for values in numbers.T:
        known = np.isfinite(values)
        n_units = len(set(units[known]))
        if n_units < 2:
            raise ValueError(f"ridge regression needs at least 2 training units with a number, there is {n_units}")
        folds = GroupKFold(min(5, n_units)).split(x[known], groups=units[known])
        model = RidgeCV(np.logspace(-2, 5, 15), cv=list(folds), scoring="neg_mean_squared_error")
        answers.append(model.fit(x[known], values[known]).predict(x_new))
    return np.stack(answers, axis=1)


def _nilearn(train: Volumes, labels: np.ndarray, held_out: Volumes) -> tuple[np.ndarray, np.ndarray]:
    """The classes, and the held-out examples' distances from their planes."""
    import nibabel as nib
    from nilearn.decoding import Decoder
    from nilearn.exceptions import MaskWarning
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    store = train.store
    images = []
    for data in (train, held_out):
        volumes = np.zeros((len(data), *store.mask.shape[::-1]), np.float32)
        volumes[:, store.mask.T] = _voxels(data)
        images.append(nib.Nifti1Image(volumes.T, store.affine))
    units = train.examples.table["unit"].to_numpy()
    n_units = len(set(units))
    folds = GroupKFold(min(5, n_units)) if n_units > 1 else StratifiedKFold(5)  # one unit: no other to choose C on
    mask = nib.Nifti1Image(store.mask.astype(np.uint8), store.affine)
    decoder = Decoder(mask=mask, cv=folds, standardize=False, scoring="accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)  # a mask may cover a part of the brain only,
        warnings.filterwarnings("ignore", "screening_percentile set to '100'")  # and is then used whole
        decoder.fit(images[0], labels, groups=units if n_units > 1 else None)
    return np.asarray(decoder.classes_), np.asarray(decoder.decision_function(images[1]))
