"""Models: an encoder of `ENCODERS` with a head of `HEADS`.

An encoder turns volumes into features, a head features into an outcome: the loss, the score, the answer. The same
encoder can be pre-trained in every way, and a transfer takes all of its weights and none of the head's. A paper is a
file, to be read from top to bottom, which opens with what the paper leaves open. A new encoder or head is a class
with a `name`, entered here; the battery of tests demands the rest.
"""

from typing import Any

from deeplight_core.models.autoencoder import ConvEncoder, ResidualEncoder
from deeplight_core.models.clips import ClipEncoder
from deeplight_core.models.contrast import Contrast
from deeplight_core.models.deeplight import SliceEncoder
from deeplight_core.models.deeplight3d import VolumeEncoder
from deeplight_core.models.heads import Classes, Numbers, Phenotypes
from deeplight_core.models.medical import SFCN, MedicalNet
from deeplight_core.models.natural import R3D18, EfficientNetLite0, ResNet18
from deeplight_core.models.protocol import Batch, Encoder, Head, Mirror, Model, Outcome
from deeplight_core.models.reconstruction import Reconstruction, Variational

__all__ = ["ENCODERS", "HEADS", "Batch", "Encoder", "Head", "Mirror", "Model", "Outcome", "build"]

ENCODERS: dict[str, type[Encoder]] = {
    kind.name: kind
    for kind in (
        SliceEncoder,
        VolumeEncoder,
        ConvEncoder,
        ResidualEncoder,
        ClipEncoder,
        ResNet18,
        EfficientNetLite0,
        R3D18,
        MedicalNet,
        SFCN,
    )
}
HEADS: dict[str, Any] = {
    kind.name: kind
    for kind in (
        Classes,
        Numbers,
        Phenotypes,
        Reconstruction,
        Variational,
        Contrast,
    )
}


def build(architecture: dict[str, Any]) -> Model:
    """A new model with random weights.

    Parameters
    ----------
    architecture : `{"encoder": {"name", "shape", "settings"}, "head": {"name", "targets", "settings"}}`, as
        `Model.architecture` gives it

    Raises
    ------
    ValueError
        If it names an encoder or head that does not exist, or a setting that these lack.
    """
    parts: dict[str, Any] = {}
    for part, known in (("encoder", ENCODERS), ("head", HEADS)):
        name = architecture[part]["name"]
        if name not in known:
            raise ValueError(f"there is no {part} {name!r}; there are {', '.join(known)}")
        parts[part] = known[name], known[name].Settings.model_validate(architecture[part]["settings"])
    (encoder_of, encoder_settings), (head_of, head_settings) = parts["encoder"], parts["head"]
    encoder = encoder_of(tuple(architecture["encoder"]["shape"]), encoder_settings)
    return Model(encoder, head_of(encoder, architecture["head"]["targets"], head_settings))
