"""What the loop, checkpoints and inference know of a model: an encoder, a head, and the outcome of a batch.

A batch is a dict of tensors: `volumes` (B, …, Z, Y, X), where … is nothing for volumes, T for clips of T frames, (3, T)
for begin-middle-end windows; `targets` as the head wants them; `numbers` (B,), the examples' numbers.
"""

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from deeplight_core.routes import Section

__all__ = ["Batch", "Encoder", "Head", "Mirror", "Model", "Outcome"]

Batch = dict[str, Tensor]


class Outcome(NamedTuple):
    """A model's results for a batch of B examples.

    loss : () what is minimised: the mean of `each`
    each : (B,) each example's own loss
    score : (B, K) the head's measure for each of K targets: right or wrong, an absolute error …; NaN where a target is
        missing
    answer : (B, …) the answers: probabilities, numbers; (B, 0) for none
    """

    loss: Tensor
    each: Tensor
    score: Tensor
    answer: Tensor


class Encoder(nn.Module):
    """Volumes or clips → features. Drawing noise goes through `models.noise`; no file is read.

    Parameters
    ----------
    shape : (X, Y, Z) of the grid, as in NIfTI
    settings : an instance of `Settings`
    """

    name: ClassVar[str]
    """Its key in `ENCODERS`."""
    Settings: ClassVar[type[Section]]
    needs_grid: ClassVar[bool] = True
    """Whether its weights fit one grid only; a fully convolutional encoder takes any."""
    output_shape: tuple[int, ...]
    """Shape of one example's features: (F,) or (C, z, y, x)."""

    def __init__(self, shape: tuple[int, int, int], settings: Any) -> None:
        super().__init__()
        self.shape, self.settings = shape, settings

    @property
    def blocks(self) -> list[str]:
        """Names of its blocks of layers, in the order of the data; the first of them may be transferred alone."""
        return [name for name, _ in self.named_children()]

    def initialise(self) -> None:
        """Draw all weights anew."""
        raise NotImplementedError

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → (B, *output_shape)."""
        raise NotImplementedError

    def trace(self, volumes: Tensor) -> tuple[Tensor, Any]:
        """Features, and whatever the encoder's `mirror` needs beside them, such as the places of pooled maxima."""
        return self(volumes), None

    def mirror(self) -> "Mirror":
        """A new decoder with the encoder's layers in reverse."""
        raise NotImplementedError


class Mirror(nn.Module):
    """Features → volumes; a part of a head."""

    def initialise(self) -> None:
        """Draw all weights anew."""
        raise NotImplementedError

    def forward(self, features: Tensor, context: Any) -> Tensor:
        """(B, *output_shape), and what `Encoder.trace` gave beside them → (B, Z, Y, X)."""
        raise NotImplementedError


class Head(nn.Module):
    """Features → an outcome.

    Parameters
    ----------
    encoder : the encoder that it reads; it takes its sizes, and keeps no reference
    targets : what is decoded, in the order of the answers: [task, state] pairs, names of columns, or nothing
    settings : an instance of `Settings`
    """

    name: ClassVar[str]
    """Its key in `HEADS`."""
    Settings: ClassVar[type[Section]]
    measure: ClassVar[str]
    """The measure in `Outcome.score`: a name in `analysis.measures`."""
    settings: Any
    targets: list[Any]
    scored: list[str]
    """Names of the K targets that `Outcome.score` has a column for."""
    answer_shape: tuple[int, ...]
    """Shape of one example's answer."""

    @property
    def measures(self) -> list[str]:
        """The measure of each of the K targets."""
        return [self.measure] * len(self.scored)

    def initialise(self) -> None:
        """Draw all weights anew."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """(B, *features) → what the loss is computed from."""
        raise NotImplementedError

    def outcome(self, encoder: Encoder, batch: Batch) -> Outcome:
        """The outcome of a batch. The head gets the encoder, since it may need more of it than its features."""
        raise NotImplementedError


class Model(nn.Module):
    """An encoder with a head; all that the loop, checkpoints and inference know."""

    encoder: Encoder
    head: Head

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        encoder.initialise()
        head.initialise()

    @property
    def architecture(self) -> dict[str, Any]:
        """What `models.build` needs to build the same model again; plain JSON."""
        encoder, head = self.encoder, self.head
        settings = [part.settings.model_dump(mode="json") for part in (encoder, head)]
        return {
            "encoder": {"name": encoder.name, "shape": list(encoder.shape), "settings": settings[0]},
            "head": {"name": head.name, "targets": head.targets, "settings": settings[1]},
        }

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, …, Z, Y, X) → the head's output."""
        result: Tensor = self.head(self.encoder(volumes))
        return result

    def loss(self, batch: Batch) -> Outcome:
        """The outcome of a batch."""
        return self.head.outcome(self.encoder, batch)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the encoder."""
        self.encoder.compile(*args, **kwargs)
