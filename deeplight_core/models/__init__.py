"""The models, one file per paper; `MODELS` maps the name in a checkpoint to the class."""

from deeplight_core.models.deeplight import DeepLight

__all__ = ["MODELS"]
MODELS = {"deeplight": DeepLight}
