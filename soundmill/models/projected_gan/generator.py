"""StyleGAN2's generator (Karras et al. 2020, arXiv:1912.04958), on mel pictures."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, pad

from soundmill.models.projected_gan.params import GeneratorParams

SLOPE = 0.2  # of the leaky ReLUs
MAPPING_RATE = 0.01  # relative learning rate of the mapping (appendix B)


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate (Karras et al. 2018, sec. 4.1)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class Mapping(nn.Module):
    """Latents z [B, z_width], and optional label embeddings, to styles w [B, w_width]."""

    def __init__(self, params: GeneratorParams, label_width: int):
        super().__init__()
        widths = [params.z_width + label_width, *[params.w_width] * params.mapping_layers]
        self.layers = nn.ModuleList([EqualLinear(before, after, rate=MAPPING_RATE) for before, after in itertools.pairwise(widths)])

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = _unit(z) if label is None else torch.cat([_unit(z), _unit(label)], 1)
        for layer in self.layers:
            x = _activate(layer(x))
        return x


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def _activate(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, SLOPE) * math.sqrt(2)


class ModulatedConv(nn.Module):
    """A convolution modulated by each item's style and demodulated to unit variance (sec. 2.2).

    Scaling inputs and outputs is equivalent to scaling the weights, and needs no separate weights per item.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, w_width: int, demodulate: bool = True, up: bool = False, looped: bool = False
    ):
        super().__init__()
        self.up, self.looped = up, looped
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(w_width, inputs, bias=1.0)
        self.scale, self.demodulate = 1 / math.sqrt(inputs * kernel**2), demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.modulation(w)
        x, weight = x * style[:, :, None, None], self.weight * self.scale
        x = self._twice_convolved(x, weight) if self.up else self._convolved(x, weight)
        return x * self.norms(style)[:, :, None, None] if self.demodulate else x

    def norms(self, style: Tensor) -> Tensor:
        """Demodulation factors [B, outputs] for styles [B, inputs]."""
        energies = (self.weight * self.scale).square().sum((2, 3))
        return torch.rsqrt(style.square() @ energies.T + 1e-8)

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = weight.shape[-1] // 2
        return conv2d(_around(x, padding), weight, padding=(0, padding)) if self.looped else conv2d(x, weight, padding=padding)

    def _twice_convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """A convolution of `_twice(x)` except at its edges: filtering afterwards needs a quarter of the multiplications."""
        x = conv_transpose2d(_around(x, 1) if self.looped else x, weight.transpose(0, 1).flip(2, 3), stride=2)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 4
        x = conv2d(x, (taps[:, None] * taps).expand(x.shape[1], 1, -1, -1), groups=x.shape[1], padding=1)
        return x[:, :, 2:-2] if self.looped else x


class StyledConv(nn.Module):
    """A modulated convolution, noise of a learned strength, bias, leaky ReLU; `up` doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, w_width: int, looped: bool, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, w_width, up=up, looped=looped)
        self.noise = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return _activate(self.conv(x, w) + self.noise * noise + self.bias[:, None, None])


def _around(x: Tensor, rows: int) -> Tensor:
    """Circular padding by `rows` at both ends of the time axis."""
    return pad(x, (0, 0, rows, rows), mode="circular")


def _twice(x: Tensor) -> Tensor:
    """Upsample by 2 with the filter 1 3 3 1 (bilinear)."""
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ToPicture(nn.Module):
    """Projects the features of a resolution to one channel and adds them to the upsampled picture."""

    def __init__(self, inputs: int, w_width: int, looped: bool):
        super().__init__()
        self.conv = ModulatedConv(inputs, 1, 1, w_width, demodulate=False)
        self.bias, self.looped = nn.Parameter(torch.zeros(1)), looped

    def forward(self, x: Tensor, w: Tensor, picture: Tensor | None) -> Tensor:
        detail = self.conv(x, w) + self.bias[:, None, None]
        if picture is None:
            return detail
        return detail + (_twice(_around(picture, 1))[:, :, 2:-2] if self.looped else _twice(picture))


class Generator(nn.Module):
    """Pictures [B, 1, frames, n_mels] from styles, one [B, w_width] for each layer.

    At the paper's sizes it has 21,754,254 weights; optional labels add an embedding each and inputs of the mapping.
    A `looped` picture is circular in time: convolutions pad with the other end. The paper's pictures end before their loop and are
    zero-padded.
    """

    def __init__(self, params: GeneratorParams, num_labels: int = 0, looped: bool = False):
        super().__init__()
        self.params = params
        channels, w_width = params.channels, params.w_width
        self.labels = nn.Embedding(num_labels, params.z_width) if num_labels else None
        self.mapping = Mapping(params, params.z_width if num_labels else 0)
        self.constant = nn.Parameter(torch.randn(1, channels, params.rows, params.columns))
        self.first = StyledConv(channels, channels, w_width, looped)
        self.first_picture = ToPicture(channels, w_width, looped)
        self.stages = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        StyledConv(channels, channels, w_width, looped, up=True),
                        StyledConv(channels, channels, w_width, looped),
                        ToPicture(channels, w_width, looped),
                    ]
                )
                for _ in range(params.stages)
            ]
        )

    @property
    def layers(self) -> int:
        """Number of layers with a style."""
        return 2 * self.params.stages + 2

    def sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of the noise of each styled convolution."""
        scales = [1, *(2 ** (stage + 1) for stage in range(self.params.stages) for _ in range(2))]
        return [(scale * self.params.rows, scale * self.params.columns) for scale in scales]

    def noise(self, count: int, rng: torch.Generator) -> list[Tensor]:
        """Noise [B, 1, rows, columns] for each styled convolution, on the generator's device."""
        return [torch.randn(count, 1, *size, generator=rng, device=rng.device) for size in self.sizes()]

    def styles(self, z: Tensor, label_weights: Tensor | None = None) -> Tensor:
        """Styles w [B, w_width] from latents z [B, z_width] and label weights [B, num_labels]."""
        label = None if self.labels is None else label_weights @ self.labels.weight
        return self.mapping(z, label)

    def forward(self, w: Tensor, noise: list[Tensor]) -> Tensor:
        """Pictures from styles [B, layers, w_width]."""
        x = self.constant.expand(len(w), -1, -1, -1)
        x = self.first(x, w[:, 0], noise[0])
        picture = self.first_picture(x, w[:, 1], None)
        for number, (up, conv, to_picture) in enumerate(self.stages):
            x = up(x, w[:, 2 * number + 1], noise[2 * number + 1])
            x = conv(x, w[:, 2 * number + 2], noise[2 * number + 2])
            picture = to_picture(x, w[:, 2 * number + 3], picture)
        return picture
