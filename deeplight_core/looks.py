"""What networks for photographs see of a store's volumes, and whom their decoders are told of."""

import numpy as np
import pandas as pd
import torch

from deeplight_core.config import Profile
from deeplight_core.data.store import open_store
from deeplight_core.experiment import Training
from deeplight_core.models.natural import EfficientNetLite0, ResNet18
from deeplight_core.training.checkpoint import load_model
from deeplight_core.training.examples import of_anything
from deeplight_core.training.loader import Volumes

__all__ = ["people", "slices_of"]


def slices_of(training: Training, number: int = 0) -> np.ndarray:
    """The slices (S, H, W), grey from 0 to 1, that a finished pre-training on photographs sees of one volume."""
    encoder = load_model(training.folder)[0].encoder
    assert isinstance(encoder, ResNet18 | EfficientNetLite0)
    store = open_store(training.profile.store)
    data = Volumes(store, of_anything(store.index.head(number + 1), [*store.index["task"].unique()]))
    with torch.inference_mode():
        images = encoder.images(data.batch(np.array([number]))["volumes"])[0]
    mean, sd = encoder.scaling
    return (images * sd + mean).numpy()


def people(profile: Profile) -> pd.DataFrame:
    """A row for each unit of the target's tasks, with the columns that are decoded."""
    index = open_store(profile.store).index
    rows = index[index["task"].isin(profile.data.tasks("target"))].drop_duplicates("unit")
    return rows[["unit", *profile.data.columns("target")]].reset_index(drop=True)
