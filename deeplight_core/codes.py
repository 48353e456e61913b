"""What finished autoencoders know: reconstructions, codes, and their errors beside those of simpler models."""

import math

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from deeplight_core.config import Profile
from deeplight_core.data.store import open_store
from deeplight_core.experiment import Training, examples_of, pretraining
from deeplight_core.models.reconstruction import Reconstruction, Variational
from deeplight_core.routes import VARIANTS
from deeplight_core.sweeps import changed, changes
from deeplight_core.training.checkpoint import load_model
from deeplight_core.training.inference import features as encoded
from deeplight_core.training.loader import Volumes

__all__ = [
    "codes",
    "kl_of_units",
    "n_weights",
    "of_report",
    "projections",
    "reconstruction_rows",
    "reconstructions",
    "reference_errors",
    "separation",
]


def of_report(profile: Profile, seed: int = 1) -> dict[str, Training]:
    """The pre-trainings that the page on autoencoders shows: routes and, by the names of changes, codes.

    None for a profile whose transfers have no decoder that starts from an autoencoder.
    """
    started = {VARIANTS[v].route for name in profile.transfers for v in profile.transferred(name).sweep.variants}
    if "autoencoder" not in started:
        return {}
    found = {name: pretraining(profile, seed, name) for name in ("autoencoder", "residual", "multitask", "variational")}
    for change in (name for name in changes(profile) if name.startswith("code")):
        found[change] = pretraining(changed(profile, change), seed, "autoencoder")
    return found


def n_weights(training: Training) -> tuple[int, int]:
    """Numbers of weights of a finished autoencoder: of its encoder, and of encoder and decoder."""
    model, _ = load_model(training.folder)
    assert isinstance(model.head, Reconstruction)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.head.decoder))
    return encoder, encoder + decoder


def reconstructions(training: Training, n: int, epoch: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first n held-out volumes of a finished autoencoder, or all if there are fewer, as they are and reconstructed.

    With them comes their mask.

    Parameters
    ----------
    epoch : of a snapshot (0 = the final weights)

    Returns
    -------
    (n, Z, Y, X) float32 twice, (Z, Y, X) bool
    """
    model, _ = load_model(training.folder)
    head = model.eval().head
    assert isinstance(head, Reconstruction)
    if epoch:
        model.load_state_dict(load_file(training.folder / f"epoch-{epoch}.safetensors"))
    store = open_store(training.profile.store)
    held_out = Volumes(store, examples_of(training, store, training.split.reported))
    volumes = held_out.batch(np.arange(min(n, len(held_out))))["volumes"]
    with torch.inference_mode():
        found = head.reconstruct(model.encoder, volumes)
    return volumes.numpy(), found.numpy(), head.mask.numpy()


def reconstruction_rows(training: Training, n: int = 3, n_epochs: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first n held-out volumes, as they are, after some epochs, and at the end, by title; and their mask."""
    epochs = sorted(int(path.stem.removeprefix("epoch-")) for path in training.folder.glob("epoch-*.safetensors"))
    places = np.unique(np.geomspace(1, max(1, len(epochs)), n_epochs + 1).astype(int)[:-1] - 1)
    shown = [epochs[i] for i in places if i < len(epochs)]
    original, last, mask = reconstructions(training, n)
    rows = {"original": original}
    rows |= {f"after epoch {epoch}": reconstructions(training, n, epoch)[1] for epoch in shown}
    return rows | {"at the end": last}, mask


def reference_errors(training: Training) -> pd.DataFrame:
    """Held-out reconstruction errors of an autoencoder, the mean volume, and PCA with as many components as the code.

    Returns
    -------
    `subject` (the unit) and, as means over its held-out volumes, `autoencoder, mean, pca`; `n_components`
    """
    from sklearn.decomposition import PCA

    model, _ = load_model(training.folder)
    store, units = open_store(training.profile.store), training.split
    train, held_out = (Volumes(store, examples_of(training, store, of)) for of in (units.train, units.reported))
    x, x_new = (data.masked(np.arange(len(data))).float().numpy() for data in (train, held_out))
    n = min(math.prod(model.encoder.output_shape), len(x) - 1)
    pca = PCA(n, svd_solver="randomized" if n < 0.2 * min(x.shape) else "full", random_state=0).fit(x)
    errors = {
        "autoencoder": training.predictions()["score of volume"].to_numpy(),
        "mean": ((x_new - x.mean(axis=0)) ** 2).mean(axis=1),
        "pca": ((x_new - pca.inverse_transform(pca.transform(x_new))) ** 2).mean(axis=1),
    }
    table = pd.DataFrame({"subject": held_out.examples.table["unit"].to_numpy(), **errors})
    return table.groupby("subject", as_index=False).mean().assign(n_components=n)


def codes(training: Training) -> tuple[np.ndarray, pd.DataFrame]:
    """A finished pre-training's features of all its examples, (N, F), and their rows with a column `held_out`."""
    model, _ = load_model(training.folder)
    store = open_store(training.profile.store)
    held_out = {*training.split.reported}
    seen = examples_of(training, store, sorted({*training.units} | held_out))
    found = encoded(model.encoder, Volumes(store, seen)).reshape(len(seen), -1)
    return found, seen.table.assign(held_out=seen.table["unit"].isin(held_out).to_numpy())


def kl_of_units(training: Training) -> np.ndarray:
    """Mean KL divergence, in nats, of every unit (U,) of a finished variational code over its held-out volumes."""
    model, _ = load_model(training.folder)
    head = model.eval().head
    assert isinstance(head, Variational)
    store = open_store(training.profile.store)
    held_out = Volumes(store, examples_of(training, store, training.split.reported))
    volumes = held_out.batch(np.arange(len(held_out)))["volumes"]
    return head.kl_of_units(model.encoder, volumes).numpy()


def projections(features: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Features (N, F) in two dimensions, (N, 2), by PCA and by t-SNE (van der Maaten & Hinton 2008).

    Features that are the same for all, as a dead code's, are all at one place.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if (np.ptp(features, axis=0) == 0).all():  # t-SNE would end the process
        return {title: np.zeros((len(features), 2)) for title in ("PCA", "t-SNE")}
    near = min(30.0, (len(features) - 1) / 3)
    places = TSNE(init="pca", perplexity=near, random_state=seed).fit_transform(features)
    return {"PCA": PCA(2, random_state=seed).fit_transform(features), "t-SNE": places}


def separation(features: np.ndarray, table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Silhouette of classes in features (N, F) of every image, among those trained on or among the held-out ones.

    NaN where a part has a single class, or no more images than classes.

    Parameters
    ----------
    table : the rows of the features, with `unit`, the column of classes and `held_out`

    Returns
    -------
    `unit, held_out, silhouette`, a row for each image
    """
    from sklearn.metrics import silhouette_samples

    found = np.full(len(table), np.nan)
    for held_out in (False, True):
        own = (table["held_out"] == held_out).to_numpy()
        classes = table[label].to_numpy()[own]
        if 1 < len(set(classes)) < len(classes):
            found[own] = silhouette_samples(features[own], classes)
    return table[["unit", "held_out"]].assign(silhouette=found)
