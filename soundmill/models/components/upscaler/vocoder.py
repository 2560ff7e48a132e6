"""The upscaler of mel pictures, trained on spectrograms made small, and Griffin-Lim for what it enlarges."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import GriffinLimParams, Saved, VocoderConfig, restore_vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.upscaler import NetworkParams, UpscalerParams
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule

resized = partial(interpolate, mode="bicubic", antialias=True, align_corners=False)  # pictures [B, 1, H, W], as PIL does it


class UpscalerNet(nn.Module):
    """Log-mels [B, n_mels, frames] that were a small picture to the same with its lost detail; untrained, it adds none."""

    def __init__(self, params: NetworkParams, spec: MelSpec):
        super().__init__()
        self.params, self.spec = params, spec
        times, channels = -(-spec.n_mels // params.height), params.channels
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
        inner = [layer for _ in range(params.layers) for layer in (nn.ReLU(), convolution(channels, channels))]
        last = convolution(channels, times**2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(convolution(1, channels), *inner, nn.ReLU(), last, nn.PixelShuffle(times))

    def picture(self, log_mel: Tensor) -> Tensor:
        """[B, 1, n_mels, frames], 1 at each clip's maximum."""
        return ((log_mel - log_mel.amax((1, 2), keepdim=True)) * self.params.exponent).exp()[:, None]

    def small(self, picture: Tensor) -> Tensor:
        seconds = picture.shape[3] * self.spec.hop_length / self.spec.sample_rate
        return resized(picture, (self.params.height, max(1, round(seconds * self.params.columns_per_second))))

    def enlarged(self, picture: Tensor) -> Tensor:
        """A picture after it was small. The net sees it from −1 to 1, and adds to the bicubic one."""
        small, size = self.small(picture), picture.shape[2:]
        low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
        stretched = 2 * (small - low) / (high - low).clamp_min(1e-6) - 1
        return resized(small, size) + (high - low) / 2 * resized(self.layers(stretched).float(), size)

    def forward(self, log_mel: Tensor) -> Tensor:
        picture = self.enlarged(self.picture(log_mel))[:, 0].clamp_min(torch.finfo(torch.float32).tiny)
        level = log_mel.amax((1, 2), keepdim=True)
        return (picture.log() / self.params.exponent + level).clamp_min(math.log(self.spec.floor))


class UpscalerConfig(VocoderConfig):
    kind: Literal["upscaler"] = "upscaler"
    network: NetworkParams
    griffin_lim: GriffinLimParams


@dataclass
class Upscaler(Saved):
    """A `Vocoder` (components/contracts.py) of log-mels that were a small picture."""

    config = UpscalerConfig

    network: NetworkParams
    spec: MelSpec
    net: UpscalerNet
    griffin_lim: GriffinLimParams

    @torch.no_grad()
    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        return GriffinLim(self.spec, self.griffin_lim).vocode(self.net(log_mels), seed)

    @torch.no_grad()
    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        return GriffinLim(self.spec, self.griffin_lim).pieces(self.net(log_mels))


class UpscalerModule(TrainingModule):
    """A batch: log-mels of crops, and their waves. The net sees what comes back from a small picture, as a family makes it.

    The loss is the mean absolute error of its pictures, as a share of that of bicubic ones: a net that is of no use has 1 or more.
    """

    def loss(self, step: int, batch: Batch) -> Tensor:
        real = self.net.picture(batch.values[0].float())
        bicubic = resized(self.net.small(real), real.shape[2:])
        return (self.net.enlarged(bicubic) - real).abs().mean() / (bicubic - real).abs().mean().clamp_min(1e-6)


def network(params: Any, spec: MelSpec, channels: int) -> nn.Module:
    return UpscalerNet(params.network, spec)


load = partial(restore_vocoder, Upscaler, network)


def make(params: UpscalerParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer, weights = VocoderTrainer.of(params, ctx, clips, mels, catalog), params.weights
    model = Upscaler(params.network, trainer.spec, UpscalerNet(params.network, trainer.spec), params)
    return trainer.made(model, load, lambda: UpscalerModule(model.net, weights, weights.steps))
