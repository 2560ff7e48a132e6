"""StyleGAN2's generator (Karras et al. 2020, arXiv:1912.04958), on mel pictures, and the discriminators of projected GANs (Sauer et
al. 2021, arXiv:2111.01007) on feature maps of frozen networks.

The frozen networks are VGGish, a short-chunk CNN, the project's tagger or random weights. Their maps of four scales are mixed
across channels (CCM) and across scales (CSM), by fixed random weights, and each scale has a discriminator. Pictures are split in
two halves in time, each is projected, and the maps are joined along the mels.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate, pad
from torch.nn.utils.parametrizations import spectral_norm

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.models.projected_gan import SCALES, DiscriminatorParams, GeneratorParams
from soundmill.training import torch_weights
from soundmill.training.seeds import seed_of
from soundmill.training.tagger import load_tagger
from soundmill.training.vggish import Vggish

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
        self.stages = nn.ModuleList()
        for _ in range(params.stages):
            up = StyledConv(channels, channels, w_width, looped, up=True)
            conv = StyledConv(channels, channels, w_width, looped)
            self.stages.append(nn.ModuleList([up, conv, ToPicture(channels, w_width, looped)]))

    @property
    def layers(self) -> int:
        """Number of layers with a style."""
        return 2 * self.params.stages + 2

    def noise(self, count: int, rng: torch.Generator) -> list[Tensor]:
        """Noise [B, 1, rows, columns] for each styled convolution, on the generator's device."""
        scales = [1, *(2 ** (stage + 1) for stage in range(self.params.stages) for _ in range(2))]
        sizes = [(scale * self.params.rows, scale * self.params.columns) for scale in scales]
        return [torch.randn(count, 1, *size, generator=rng, device=rng.device) for size in sizes]

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


COST = "an untrained projector reduces quality"
GROUP = 4  # items per minibatch standard deviation
LABEL_WIDTH = 64  # of the label projection


class Stack(nn.Module):
    """Blocks of layers, each of which halves the resolution; returns their feature maps, finest first."""

    def __init__(self, blocks: Sequence[nn.Module], transposed: bool = False):
        super().__init__()
        self.blocks, self.transposed = nn.ModuleList(blocks), transposed

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.transpose(2, 3) if self.transposed else x
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x.transpose(2, 3) if self.transposed else x)
        return maps


def random(widths: Sequence[int], rng: torch.Generator) -> tuple[Stack, list[int]]:
    """Convolutions with random weights that preserve the scale of activations."""
    pairs = itertools.pairwise([1, *widths])
    return Stack([nn.Sequential(_random_conv(*pair, 3, rng), nn.ReLU(), nn.AvgPool2d(2)) for pair in pairs]), list(widths)


def _cut(layers: nn.Sequential, after: type[nn.Module], transposed: bool = False) -> Stack:
    """Split a network into blocks after each layer of the type `after`."""
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, after):
            blocks.append([])
    return Stack([nn.Sequential(*block) for block in blocks if block], transposed)


class ResidualBlock(nn.Module):
    """A block of the short-chunk CNN with residual connections, halving the resolution (Won et al. 2020, arXiv:2006.00751)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_1, self.bn_1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs)
        self.conv_2, self.bn_2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv_3, self.bn_3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn_2(self.conv_2(self.bn_1(self.conv_1(x)).relu()))
        return (self.bn_3(self.conv_3(x)) + inner).relu()


class ShortChunk(nn.Module):
    """The first four of the six blocks of pjloop-gan's loop-genre classifier, whose maps it projects to; by its names."""

    widths = 64, 64, 128, 128

    def __init__(self) -> None:
        super().__init__()
        self.spec_bn = nn.BatchNorm2d(1)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(ResidualBlock, (1, *self.widths), self.widths)

    def stack(self) -> Stack:
        return Stack([nn.Sequential(self.spec_bn, self.layer1), self.layer2, self.layer3, self.layer4], transposed=True)


class Mixing(nn.Module):
    """Random 1×1 convolutions: each scale to `widths` channels, then from the coarsest up, each upsampled and added."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int], rng: torch.Generator):
        super().__init__()
        finer = [widths[0], *widths[:-1]]
        self.across_channels = nn.ModuleList([_random_conv(*pair, 1, rng) for pair in zip(channels, widths, strict=True)])
        self.across_scales = nn.ModuleList([_random_conv(*pair, 1, rng) for pair in zip(widths, finer, strict=True)])
        self.widths = finer

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mixed maps, twice as large as the inputs, finest first."""
        mixed = [mix(one) for mix, one in zip(self.across_channels, maps, strict=True)]
        outputs: list[Tensor] = []
        for scale in reversed(range(len(mixed))):
            x = mixed[scale] + outputs[0] if outputs else mixed[scale]
            outputs.insert(0, self.across_scales[scale](_twice(x)))
        return outputs


def _random_conv(inputs: int, outputs: int, kernel: int, rng: torch.Generator) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, generator=rng)
    nn.init.zeros_(conv.bias)
    return conv


class Projector(nn.Module):
    """Pictures [B, 1, frames, n_mels] to mixed maps of four scales; frozen and always in evaluation mode."""

    def __init__(self, net: Stack, channels: Sequence[int], widths: Sequence[int], rng: torch.Generator):
        super().__init__()
        self.net, self.mixing = net, Mixing(channels, widths, rng)
        self.channels = self.mixing.widths
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        return self

    def forward(self, picture: Tensor) -> list[Tensor]:
        halves = torch.cat(picture.chunk(2, 2))
        return self.mixing([torch.cat(one.chunk(2), 3) for one in self.net(halves)])


class Unprojected(nn.Module):
    """No projector: the picture itself, in halves, at the sizes of the other projectors' maps."""

    channels = (1,) * SCALES

    def forward(self, picture: Tensor) -> list[Tensor]:
        sizes = [torch.cat(picture.chunk(2, 2), 3)]
        while len(sizes) < SCALES:
            sizes.append(avg_pool2d(sizes[-1], 2))
        return sizes


Chosen = tuple[nn.ModuleList, list[str]]  # projectors, and the names of those actually used


def choose(params: DiscriminatorParams, tagger_directory: Path, seed: int, report: Callable[[str], None] = print) -> Chosen:
    """The projectors that the parameters name; if weights are unavailable, `missing` decides, and `report` gets a message."""
    nets, names = [], []
    for number, requested in enumerate(params.projectors):
        name, reason = requested, None
        if requested == "vggish":
            reason = pretrained.unavailable(pretrained.VGGISH)
        elif requested == "short_chunk" and not (params.short_chunk and Path(params.short_chunk).is_file()):
            reason = "set projected_gan.train.discriminators.short_chunk to the file of its weights, in pjloop-gan's layout"
        elif requested == "tagger" and not (tagger_directory / "config.json").is_file():
            reason = f"{tagger_directory}: no tagger here; `dvc repro tagger` trains it"
        if reason:
            if params.missing == "fail":
                raise UserError(
                    f"projector {requested!r}: {reason}; or set projected_gan.train.discriminators.missing to `random`: {COST}"
                )
            report(f"projector {requested!r}: {reason}. Using random weights; {COST}")
            name = "random"
        rng = torch.Generator().manual_seed(seed_of(seed, "projector", number))
        if name == "none":
            nets.append(Unprojected())
        else:
            nets.append(Projector(*_net(name, params, tagger_directory, rng), params.mixed_widths, rng))
        names.append(name)
    return nn.ModuleList(nets), names


def _net(name: str, params: DiscriminatorParams, tagger_directory: Path, rng: torch.Generator) -> tuple[Stack, list[int]]:
    """Blocks of a projector, and the channels of their maps."""
    if name == "vggish":  # its convolutions up to each of its four pooling layers
        net, path = Vggish(), pretrained.path(pretrained.VGGISH)
        torch_weights.load_state(net, torch_weights.read_checkpoint(path), path)
        return _cut(net.features, nn.MaxPool2d), [64, 128, 256, 512]
    if name == "short_chunk":
        net, path = ShortChunk(), Path(params.short_chunk)
        state = torch_weights.read_state(path, "pjloop-gan", "model_state_dict")
        torch_weights.load_state(net, {key: state[key] for key in net.state_dict() if key in state}, path, "give its own file")
        return net.stack(), [*net.widths]
    if name == "tagger":  # its four blocks, with pooling added to the last; its input is [mels, time]
        blocks = _cut(load_tagger(tagger_directory).net.trunk, nn.AvgPool2d, transposed=True)
        blocks.blocks[-1].append(nn.AvgPool2d(2))
        return blocks, [next(layer for layer in block if isinstance(layer, nn.Conv2d)).out_channels for block in blocks.blocks]
    return random(params.random_widths, rng)


def _down_block(inputs: int, outputs: int) -> nn.Sequential:
    """A separable convolution under spectral norm, batch norm, leaky ReLU and pooling by 2."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)),
        spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False)),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE),
        nn.AvgPool2d(2),
    )


class Discriminator(nn.Module):
    """Logits [B, positions] of feature maps [B, inputs, H, W]. `widths` are the channels between the blocks."""

    def __init__(self, inputs: int, widths: Sequence[int], num_labels: int = 0):
        super().__init__()
        self.first = nn.Identity() if inputs == widths[0] else spectral_norm(nn.Conv2d(inputs, widths[0], 3, padding=1))
        self.blocks = nn.Sequential(*[_down_block(before, after) for before, after in itertools.pairwise(widths)])
        outputs = LABEL_WIDTH if num_labels else 1
        self.head = spectral_norm(nn.Conv2d(widths[-1] + 1, outputs, 4, bias=False))
        self.labels = nn.Linear(num_labels, LABEL_WIDTH, bias=False) if num_labels else None

    def forward(self, maps: Tensor, label_weights: Tensor | None = None) -> Tensor:
        logits = self.head(with_deviation(self.blocks(self.first(maps))))
        if self.labels is not None:  # projection discriminator (Miyato & Koyama 2018)
            logits = (logits * self.labels(label_weights)[:, :, None, None]).sum(1, keepdim=True) / math.sqrt(LABEL_WIDTH)
        return logits.flatten(1)


def with_deviation(x: Tensor) -> Tensor:
    """Append the minibatch standard deviation over `GROUP` items: [B, C + 1, H, W] (Karras et al. 2018, section 3)."""
    group = math.gcd(len(x), GROUP)
    deviation = x.unflatten(0, (group, -1)).var(0, unbiased=False).add(1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


class Discriminators(nn.Module):
    """One discriminator per projector and scale; the finest maps are halved most often.

    `inputs` are the channels of each projector's maps. `widths` are the channels of all scales and of the common last maps: each
    halving goes to the next. The logits of two projectors are added.
    """

    def __init__(self, inputs: Sequence[Sequence[int]], widths: Sequence[int], num_labels: int = 0):
        super().__init__()
        self.of_projector = nn.ModuleList()
        for each in inputs:
            scales = [Discriminator(given, widths[scale:], num_labels) for scale, given in enumerate(each)]
            self.of_projector.append(nn.ModuleList(scales))

    def forward(self, maps: Sequence[Sequence[Tensor]], label_weights: Tensor | None = None) -> Tensor:
        """Logits [B, positions of all scales], summed over projectors."""
        logits = [
            torch.cat([discriminator(one, label_weights) for discriminator, one in zip(discriminators, each, strict=True)], 1)
            for discriminators, each in zip(self.of_projector, maps, strict=True)
        ]
        return torch.stack(logits).sum(0)
