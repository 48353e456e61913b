"""Networks whose published weights have seen medical volumes: MedicalNet (Chen et al. 2019), SFCN (Peng et al. 2021).

MedicalNet is a 3D ResNet-18 that has learnt to segment 23 data sets of CT and MR images. Its last two stages have
dilated convolutions instead of strides, and its shortcuts no weights. SFCN has learnt age from T1-weighted images of UK
Biobank that lie in MNI152 at 1 mm: five convolutions with pooling, and one of 1 × 1 × 1. Layers are written out here so
that the weights fit (both MIT; see `training.published`); segmentation and classifier are left out, features are means
over places.

What deviates: MedicalNet's background is the mean of the brain, where the original draws noise around it, and
gradients flow through its shortcuts, where the original stops them. SFCN's dropout belongs to the head's settings.

Letters: B batch, X, Y, Z, N, C channels, F features.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.batchnorm import BatchNorm
from deeplight_core.models.convolution import Conv3d
from deeplight_core.models.natural import Natural, ResNet
from deeplight_core.routes import MedicalNetSettings, SFCNSettings

__all__ = ["SFCN", "MedicalNet", "SimpleNetwork"]

_LEAST = 1e-6  # of what values are divided by: an empty volume has neither mean nor SD
_POOLED = 5  # layers


class SimpleNetwork(nn.Module):
    """SFCN without its classifier: convolution, normalisation, pooling (but not in the last layer), ReLU.

    Pooling also takes what is left at the end of an axis, so that any grid will do; in the original's, nothing is.

    Parameters
    ----------
    widths : channels of the six convolutions
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise((1, *widths))):
            convolution = Conv3d(n_in, n_out, *((3, 1, 1) if i < _POOLED else (1,)))
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last_3d)
            assert convolution.bias is not None
            # The normalisation takes it away again, so its gradient is rounding, which Adam would make large.
            convolution.bias.register_hook(torch.zeros_like)
            self.layers.append(nn.Sequential(convolution, BatchNorm(n_out)))

    @property
    def blocks(self) -> list[str]:
        """The convolutions, each with its normalisation."""
        return [f"layers.{i}" for i in range(len(self.layers))]

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) → (N, F)."""
        for i, layer in enumerate(self.layers):
            maps = layer(maps)
            maps = F.relu(F.max_pool3d(maps, 2, ceil_mode=True) if i < _POOLED else maps, inplace=True)
        return maps.flatten(2).mean(dim=2)


class MedicalNet(Natural):
    """MedicalNet's ResNet-18 on whole volumes: z-scored by what is brighter than black; the rest is 0."""

    name = "medicalnet"
    Settings = MedicalNetSettings

    def __init__(self, shape: tuple[int, int, int], settings: MedicalNetSettings) -> None:
        super().__init__(shape, settings)
        self.network = ResNet(settings.widths, kind="medical")
        self.output_shape = (settings.widths[-1],)

    def encoded(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, F)."""
        return self.network(self._resized(volumes)).float()

    def _scaled(self, images: Tensor) -> Tensor:
        shown = self._shown(images)
        places, seen = tuple(range(1, shown.dim())), shown > 0
        n = seen.sum(places, keepdim=True).clamp_min(1)
        centred = torch.where(seen, shown - shown.sum(places, keepdim=True) / n, 0)
        return centred / (centred.square().sum(places, keepdim=True) / n).sqrt().clamp_min(_LEAST)


class SFCN(Natural):
    """SFCN on whole volumes, divided by their means, of which it sees the middle.

    Raises
    ------
    ValueError
        If the middle is larger than the grid.
    """

    name = "sfcn"
    Settings = SFCNSettings

    def __init__(self, shape: tuple[int, int, int], settings: SFCNSettings) -> None:
        super().__init__(shape, settings)
        resized = self._new_size(shape)
        if settings.crop and any(n > there for n, there in zip(settings.crop, resized, strict=True)):
            raise ValueError(
                f"sfcn looks at the middle {settings.crop} of a grid of {tuple(resized)} voxels, which is smaller; "
                "change size or crop of routes: {sfcn: {encoder: …}}"
            )
        self.network = SimpleNetwork(settings.widths)
        self.output_shape = (settings.widths[-1],)

    @torch.no_grad()
    def initialise(self) -> None:
        """As the others; biases 0."""
        super().initialise()
        for layer in self.network.layers:
            nn.init.zeros_(layer[0].bias)

    def encoded(self, volumes: Tensor) -> Tensor:
        """(B, Z, Y, X) → (B, F)."""
        maps = self._resized(volumes).movedim((2, 3, 4), (4, 3, 2))  # its kernels have x first
        for axis, n in enumerate(self.settings.crop or (), 2):
            maps = maps.narrow(axis, (maps.shape[axis] - n) // 2, n)
        return self.network(maps.contiguous(memory_format=torch.channels_last_3d)).float()

    def _scaled(self, images: Tensor) -> Tensor:
        shown = self._shown(images)
        return shown / shown.mean(tuple(range(1, shown.dim())), keepdim=True).clamp_min(_LEAST)
