"""The decoders that are compared, as data: what each learns with, where its weights start, what is done to them."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One way to get a decoder of the target states.

    title : what figures call it
    learner : DeepLight, or a linear model on the in-mask voxels
    start : DeepLight's first weights: random, those of the pre-training, or those in random order within each tensor
        (the same distribution, no features)
    initialisation : draw random weights so, whatever the profile says
    frozen : train the output layer only
    permuted : train on labels in random order within each run
    """

    title: str
    learner: Literal["deeplight", "logistic", "svm", "decoder"] = "deeplight"
    start: Literal["random", "checkpoint", "shuffled"] = "random"
    initialisation: Literal["glorot", "he"] | None = None
    frozen: bool = False
    permuted: bool = False


VARIANTS = {
    "pretrained": Variant("DeepLight, pre-trained", start="checkpoint"),
    "scratch": Variant("DeepLight, from scratch"),
    "linear": Variant("logistic regression", learner="logistic"),
    "svm": Variant("linear SVM", learner="svm"),
    "decoder": Variant("nilearn Decoder", learner="decoder"),
    "scratch-glorot": Variant("from scratch, Glorot", initialisation="glorot"),
    "scratch-he": Variant("from scratch, He", initialisation="he"),
    "shuffled": Variant("pre-trained, weights shuffled", start="shuffled"),
    "frozen": Variant("pre-trained, encoder frozen", start="checkpoint", frozen=True),
    "pretrained-permuted": Variant("DeepLight, pre-trained; labels permuted", start="checkpoint", permuted=True),
    "scratch-permuted": Variant("DeepLight, from scratch; labels permuted", permuted=True),
    "linear-permuted": Variant("logistic regression; labels permuted", learner="logistic", permuted=True),
}
