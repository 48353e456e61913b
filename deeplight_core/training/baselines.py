"""Linear learners on the same volumes and splits as the decoders."""

import warnings

import numpy as np

from deeplight_core.training.loader import Volumes

__all__ = ["linear_predictions"]


def linear_predictions(learner: str, train: Volumes, validation: Volumes) -> np.ndarray:
    """Labels (N,) of the validation volumes from a linear model of the in-mask voxels.

    Parameters
    ----------
    learner : "logistic" (L2-regularised multinomial logistic regression, C = 1) or "svm" (one-vs-rest, squared hinge,
        C = 1), both scikit-learn's on volumes scaled so that a training volume's norm is about 10 and C means the same
        on every grid; or "decoder" (nilearn's Decoder: the fifth of the voxels with the largest F value, linear
        SVMs averaged over up to five folds of the training units, or of the volumes of a single one, which also choose
        C by accuracy; its volumes are z-scored already, so it does not standardise them again)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    labels = train.labels.cpu().numpy()
    if learner == "decoder":
        return _nilearn_predictions(train, labels, validation)
    x, x_new = (d.masked(np.arange(len(d))).float().cpu().numpy() for d in (train, validation))
    scale = 10 / (x.std() * np.sqrt(x.shape[1]))
    models = {"logistic": LogisticRegression(C=1.0, max_iter=1000), "svm": LinearSVC(C=1.0, random_state=0)}
    return np.asarray(models[learner].fit(x * scale, labels).predict(x_new * scale))


def _nilearn_predictions(train: Volumes, labels: np.ndarray, validation: Volumes) -> np.ndarray:
    import nibabel as nib
    from nilearn.decoding import Decoder
    from nilearn.exceptions import MaskWarning
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    store = train.store
    images = []
    for data in (train, validation):
        volumes = np.zeros((len(data), *store.mask.shape[::-1]), np.float32)
        volumes[:, store.mask.T] = data.masked(np.arange(len(data))).float().cpu().numpy()
        images.append(nib.Nifti1Image(volumes.T, store.affine))
    units = train.rows["unit"].to_numpy()
    n_units = len(set(units))
    folds = GroupKFold(min(5, n_units)) if n_units > 1 else StratifiedKFold(5)  # one unit: no other to choose C on
    mask = nib.Nifti1Image(store.mask.astype(np.uint8), store.affine)
    decoder = Decoder(mask=mask, cv=folds, standardize=False, scoring="accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskWarning)  # a mask that covers a part of the brain is meant to,
        warnings.filterwarnings("ignore", "screening_percentile set to '100'")  # and is then used whole
        decoder.fit(images[0], labels, groups=units if n_units > 1 else None)
    return np.asarray(decoder.predict(images[1]))
