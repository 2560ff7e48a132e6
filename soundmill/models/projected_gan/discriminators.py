"""Discriminators of projected GANs (Sauer et al. 2021, arXiv:2111.01007) on feature maps of frozen networks.

The networks are VGGish, the project's tagger or random weights. Their maps of four scales are mixed across channels (CCM) and
across scales (CSM), by fixed random weights, and each scale has a discriminator. Pictures are split in two halves in time, each is
projected, and the maps are joined along the mels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.models.projected_gan.params import SCALES, DiscriminatorParams
from soundmill.training import torch_weights
from soundmill.training.module import rebuilt
from soundmill.training.seeds import seed_of
from soundmill.training.tagger import load_tagger
from soundmill.training.vggish import Vggish

COST = "an untrained projector reduces quality"
SLOPE = 0.2  # of the leaky ReLUs
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
    blocks = []
    for before, after in zip([1, *widths], widths, strict=False):
        conv = nn.Conv2d(before, after, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, generator=rng)
        nn.init.zeros_(conv.bias)
        blocks.append(nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2)))
    return Stack(blocks), list(widths)


def _cut(layers: nn.Sequential, after: type[nn.Module], transposed: bool = False) -> Stack:
    """Split a network into blocks after each layer of the type `after`."""
    blocks: list[list[nn.Module]] = [[]]
    for layer in layers:
        blocks[-1].append(layer)
        if isinstance(layer, after):
            blocks.append([])
    return Stack([nn.Sequential(*block) for block in blocks if block], transposed)


class Mixing(nn.Module):
    """Random 1×1 convolutions: each scale to `widths` channels, then from the coarsest up, each upsampled and added."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int], rng: torch.Generator):
        super().__init__()
        finer = [widths[0], *widths[:-1]]
        self.across_channels = nn.ModuleList([_random_1x1(*pair, rng) for pair in zip(channels, widths, strict=True)])
        self.across_scales = nn.ModuleList([_random_1x1(*pair, rng) for pair in zip(widths, finer, strict=True)])
        self.widths = finer

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mixed maps, twice as large as the inputs, finest first."""
        mixed = [mix(one) for mix, one in zip(self.across_channels, maps, strict=True)]
        outputs: list[Tensor] = []
        for scale in reversed(range(len(mixed))):
            x = mixed[scale] + outputs[0] if outputs else mixed[scale]
            x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            outputs.insert(0, self.across_scales[scale](x))
        return outputs


def _random_1x1(inputs: int, outputs: int, rng: torch.Generator) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
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

    def train(self, mode: bool = True) -> Projector:
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
    if name == "tagger":  # its four blocks, with pooling added to the last; its input is [mels, time]
        blocks = _cut(load_tagger(tagger_directory).net.trunk, nn.AvgPool2d, transposed=True)
        blocks.blocks[-1].append(nn.AvgPool2d(2))
        return blocks, [next(layer for layer in block if isinstance(layer, nn.Conv2d)).out_channels for block in blocks.blocks]
    return random(params.random_widths, rng)


class DownBlock(nn.Module):
    """A separable convolution under spectral norm, batch norm, leaky ReLU and pooling by 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)),
            spectral_norm(nn.Conv2d(inputs, outputs, 1, bias=False)),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(SLOPE),
            nn.AvgPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Discriminator(nn.Module):
    """Logits [B, positions] of feature maps [B, inputs, H, W]. `widths` are the channels between the blocks."""

    def __init__(self, inputs: int, widths: Sequence[int], num_labels: int = 0):
        super().__init__()
        self.first = nn.Identity() if inputs == widths[0] else spectral_norm(nn.Conv2d(inputs, widths[0], 3, padding=1))
        self.blocks = nn.Sequential(*[DownBlock(before, after) for before, after in itertools.pairwise(widths)])
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
        self.arguments = inputs, widths, num_labels
        self.of_projector = nn.ModuleList(
            [
                nn.ModuleList([Discriminator(given, widths[scale:], num_labels) for scale, given in enumerate(each)])
                for each in inputs
            ]
        )

    def __reduce__(self) -> Any:
        return rebuilt, (Discriminators, self.arguments, self.state_dict())

    def forward(self, maps: Sequence[Sequence[Tensor]], label_weights: Tensor | None = None) -> Tensor:
        """Logits [B, positions of all scales], summed over projectors."""
        logits = [
            torch.cat([discriminator(one, label_weights) for discriminator, one in zip(discriminators, each, strict=True)], 1)
            for discriminators, each in zip(self.of_projector, maps, strict=True)
        ]
        return torch.stack(logits).sum(0)
