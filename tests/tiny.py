"""A second encoder, as somebody would add it: fully convolutional, with batch normalisation and noise on its input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models import Encoder
from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.noise import normal
from deeplight_core.routes import Section


class TinySettings(Section):
    noise: float = 0.1
    """SD of what is added to the volumes while training."""


class TinyEncoder(Encoder):
    """Volumes or clips → 6 features: two convolutions, the mean over all places, the mean over frames."""

    name = "tiny"
    Settings = TinySettings
    needs_grid = False

    def __init__(self, shape: tuple[int, int, int], settings: TinySettings) -> None:
        super().__init__(shape, settings)
        self.output_shape = (6,)
        self.first = nn.Conv3d(1, 4, 3, padding=1, bias=False)  # a bias before the normalisation would do nothing
        self.second = nn.Conv3d(4, 6, 3, padding=1)
        self.norm = BatchNorm(4)

    def initialise(self) -> None:
        for convolution in (self.first, self.second):
            nn.init.kaiming_normal_(convolution.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, volumes: Tensor) -> Tensor:
        frames = volumes.flatten(0, -4)[:, None]
        if self.training:
            frames = frames + self.settings.noise * normal(*frames.shape, device=frames.device)
        maps = F.relu(self.norm(self.first(frames)))
        features = torch.tanh(self.second(maps)).mean(dim=(2, 3, 4))
        return features.view(len(volumes), -1, 6).mean(dim=1)
