"""Frozen feature networks of the discriminators (VGGish, the project's tagger or random weights), and feature mixing.

Projected GANs (Sauer et al. 2021, arXiv:2111.01007): maps of four scales are mixed across channels (CCM) and across scales (CSM),
by fixed random weights. Pictures are split in two halves in time, each is projected, and the maps are joined along the mels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from soundmill import pretrained
from soundmill.errors import UserError
from soundmill.models.projected_gan.params import SCALES, DiscriminatorParams, ProjectorName
from soundmill.training import torch_weights
from soundmill.training.seeds import seed_of
from soundmill.training.tagger import load_tagger
from soundmill.training.vggish import Vggish

COST = "an untrained projector reduces quality"


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


def vggish(path: Path) -> tuple[Stack, list[int]]:
    """VGGish's convolutions up to each of its four pooling layers: 64, 128, 256, 512 channels."""
    net = Vggish()
    torch_weights.load_state(net, torch_weights.read_checkpoint(path), path)
    return _cut(net.features, nn.MaxPool2d), [64, 128, 256, 512]


def tagger(directory: Path) -> tuple[Stack, list[int]]:
    """The tagger's four blocks, with pooling added to the last; its input is [mels, time]."""
    net = load_tagger(directory).net
    blocks = _cut(net.trunk, nn.AvgPool2d, transposed=True)
    blocks.blocks[-1].append(nn.AvgPool2d(2))
    widths = [next(layer for layer in block if isinstance(layer, nn.Conv2d)).out_channels for block in blocks.blocks]
    return blocks, widths


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


@dataclass(frozen=True)
class Chosen:
    """The projectors of a training; `names` are those actually used."""

    nets: nn.ModuleList
    names: tuple[str, ...]


def choose(params: DiscriminatorParams, tagger_directory: Path, seed: int, report: Callable[[str], None] = print) -> Chosen:
    """The projectors that the parameters name; if weights are unavailable, `missing` decides, and `report` gets a message."""
    nets, names = [], []
    for number, requested in enumerate(params.projectors):
        name = requested
        if reason := _lacking(requested, tagger_directory):
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
    return Chosen(nn.ModuleList(nets), tuple(names))


def _lacking(name: ProjectorName, tagger_directory: Path) -> str | None:
    if name == "vggish":
        return pretrained.unavailable(pretrained.VGGISH)
    if name == "tagger" and not (tagger_directory / "config.json").is_file():
        return f"{tagger_directory}: no tagger here; `dvc repro tagger` trains it"
    return None


def _net(name: str, params: DiscriminatorParams, tagger_directory: Path, rng: torch.Generator) -> tuple[Stack, list[int]]:
    if name == "vggish":
        return vggish(pretrained.path(pretrained.VGGISH))
    if name == "tagger":
        return tagger(tagger_directory)
    return random(params.random_widths, rng)
