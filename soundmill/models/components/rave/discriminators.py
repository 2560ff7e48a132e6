"""The discriminators of phase 2, of waves at several rates (Kumar et al. 2019) and periods (Kong et al. 2020).

Each returns its feature maps of a wave [N, 1, T], the last of which are the scores. Three scales with 64 channels and four layers
have 7,751,619 weights.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.models.components.rave.norms import Normed
from soundmill.models.components.rave.params import DiscriminatorsParams

FeatureMaps = list[Tensor]  # before the activations; the last map is the scores

SCALE_KERNEL, PERIOD_KERNEL, STRIDE = 15, 5, 4
SLOPE = 0.2  # of the leaky ReLUs


class DiscriminatorConv(Normed, nn.Conv2d):
    def __init__(self, below: int, above: int, kernel: int, stride: int):
        super().__init__(below, above, (kernel, 1), (stride, 1), (kernel // 2, 0))
        self.register_parameter("length", None)

    def forward(self, signal: Tensor) -> Tensor:
        return F.conv2d(signal, self.kernel(), self.bias, self.stride, self.padding)


class Discriminator(nn.Module):
    """Convolutions with a stride of four along every `period`-th sample; with period 1, along all samples."""

    def __init__(self, channels: int, layers: int, period: int):
        super().__init__()
        self.period = period
        kernel = SCALE_KERNEL if period == 1 else PERIOD_KERNEL
        widths = [1, *(channels * 2**level for level in range(layers))]
        self.layers = nn.ModuleList(DiscriminatorConv(below, above, kernel, STRIDE) for below, above in pairwise(widths))
        for layer in self.layers:
            layer.norm()
        self.last = DiscriminatorConv(widths[-1], 1, 1, 1)  # no weight norm, as in the published code

    def forward(self, waves: Tensor) -> FeatureMaps:
        signal, maps = F.pad(waves, (0, -waves.shape[2] % self.period)).unflatten(2, (-1, self.period)), []
        for layer in self.layers:
            maps.append(layer(signal))
            signal = F.leaky_relu(maps[-1], SLOPE)
        return [*maps, self.last(signal)]


class Discriminators(nn.Module):
    """All scale and period discriminators, with separate weights."""

    def __init__(self, params: DiscriminatorsParams):
        super().__init__()
        self.scales = nn.ModuleList(Discriminator(params.channels, params.layers, 1) for _ in range(params.scales))
        self.periods = nn.ModuleList(Discriminator(params.channels, params.layers, period) for period in params.periods)

    def forward(self, waves: Tensor) -> list[FeatureMaps]:
        """Feature maps of each discriminator, always in the same order."""
        maps, downsampled = [period(waves) for period in self.periods], waves
        for scale in self.scales:
            maps.append(scale(downsampled))
            downsampled = F.avg_pool1d(downsampled, 2)
        return maps
