"""MelGAN as a vocoder."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import VocoderConfig, restore_vocoder
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.melgan import MelGanParams, NetworkParams
from soundmill.models.components.vocoder_trainer import VocoderModule, VocoderTrainer
from soundmill.models.components.vocoding import FrameVocoder

SLOPE = 0.2  # of the leaky ReLUs
ENDS = 7  # kernel size of the first and the last convolution


class Residual(nn.Module):
    """A dilated convolution and a pointwise one, with a pointwise convolution as shortcut."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.wide = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.narrow = nn.Conv1d(channels, channels, 1)
        self.past = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.wide(_mirrored(leaky_relu(x, SLOPE), self.dilation))
        return self.past(x) + self.narrow(leaky_relu(inner, SLOPE))


class MelGanNet(nn.Module):
    """Log-mels [B, n_mels, frames] to waves [B, frames · product of rates] in [−1, 1] (Kumar et al. 2019, fig. 1)."""

    def __init__(self, params: NetworkParams, n_mels: int):
        super().__init__()
        widths = [params.channels * 2**level for level in reversed(range(len(params.rates) + 1))]
        self.first = nn.Conv1d(n_mels, widths[0], ENDS)
        self.stages = nn.ModuleList()
        for (before, after), rate in zip(pairwise(widths), params.rates, strict=True):
            up = nn.ConvTranspose1d(before, after, 2 * rate, rate, math.ceil(rate / 2), output_padding=rate % 2)
            residuals = [Residual(after, 3**layer) for layer in range(params.residual_layers)]
            self.stages.append(nn.ModuleList([up, *residuals]))
        self.last = nn.Conv1d(widths[-1], 1, ENDS)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.first(_mirrored(log_mel, ENDS // 2))
        for up, *residuals in self.stages:
            x = up(leaky_relu(x, SLOPE))
            for residual in residuals:
                x = residual(x)
        return self.last(_mirrored(leaky_relu(x, SLOPE), ENDS // 2)).tanh()[:, 0]


def _mirrored(x: Tensor, size: int) -> Tensor:
    """Reflection padding by `size` at both ends, or replication padding if x is too short."""
    return pad(x, (size, size), "reflect" if x.shape[2] > size else "replicate")


class MelGanConfig(VocoderConfig):
    kind: Literal["melgan"] = "melgan"
    network: NetworkParams


class MelGan(FrameVocoder):
    config = MelGanConfig


def network(params: MelGanParams, spec: MelSpec, channels: int) -> nn.Module:
    return MelGanNet(params.network, spec.n_mels)


load = partial(restore_vocoder, MelGan, network)


def make(params: MelGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    """Train with hinge, feature matching and optional log-mel losses, and three scale discriminators (Kumar et al. 2019, 2.3)."""
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    model = MelGan(params.network, trainer.spec, MelGanNet(params.network, trainer.spec.n_mels))
    return trainer.made(model, load, lambda: VocoderModule(weights, model, periods=()))
