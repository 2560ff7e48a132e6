"""Discriminators of projected GANs (Sauer et al. 2021, arXiv:2111.01007): one for each scale of frozen feature maps."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm

from soundmill.training.phases import rebuilt

SLOPE = 0.2  # of the leaky ReLUs
GROUP = 4  # items per minibatch standard deviation
LABEL_WIDTH = 64  # of the label projection


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


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017): pushes real logits above 1 and generated ones below −1; 2 if all logits are 0."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    return -fake.mean()
