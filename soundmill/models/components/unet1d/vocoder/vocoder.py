"""The diffusion vocoder for log-mels of one spec: a U-Net on the noisy wave and a transposed convolution of the log-mel."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, of_unit_peak
from soundmill.audio.pieces import equal_power, faded, window_starts
from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Net, on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.models.components.contracts import Saved, VocoderConfig, restore_vocoder
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.unet1d.network import PathModule, UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM, SamplingParams, UNet1dParams
from soundmill.models.components.unet1d.vocoder import DiffusionVocoderParams
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.models.components.waves.source import wave_deviation
from soundmill.training.loader import Batch

LOWEST = -11.512925464970229  # ln 1e-5: lower limit of ln magnitudes
WINDOW_SECONDS, FADE_SECONDS = 10.0, 0.1  # for longer sounds


class VocoderNet(nn.Module):
    """v [N, 1, T] of noisy waves [N, 1, T] at levels [N], given log-mels [N, n_mels, frames]; T is frames · hop_length.

    The channels of a wave are separate items of a batch.
    """

    def __init__(self, params: UNet1dParams, spec: MelSpec):
        super().__init__()
        self.spec, self.stride = spec, params.stride
        padding = max(0, spec.win_length - spec.hop_length) // 2
        window = {"kernel_size": spec.win_length, "stride": spec.hop_length, "padding": padding, "bias": False}
        self.to_wave = nn.ConvTranspose1d(spec.n_mels, 1, **window)
        self.unet = UNet1d(params, NO_TRANSFORM, 2, 1)

    def forward(self, xt: Tensor, level: Tensor, log_mels: Tensor) -> Tensor:
        return self.denoise(xt, level, self.prepare(log_mels))

    def prepare(self, log_mels: Tensor) -> Tensor:
        """The input of `denoise` from log-mels, [N, 1, T], which is the same at every level.

        Log-mels are first converted to magnitudes in bands of unit peak.
        """
        length = log_mels.shape[2] * self.spec.hop_length
        log_mels = of_unit_peak(log_mels, self.spec) / self.spec.power
        wave = self.to_wave(log_mels.clamp_min(LOWEST))[..., :length]
        return F.pad(wave, (0, length - wave.shape[2]))

    def denoise(self, xt: Tensor, level: Tensor, prepared: Tensor) -> Tensor:
        length = xt.shape[2]
        padding = (0, -length % self.stride)  # silence, so that every level has whole frames
        return self.unet(F.pad(xt, padding), level, beside=F.pad(prepared, padding))[..., :length]


class VocoderModule(PathModule):
    """A batch: log-mels [b, n_mels, frames] and their waves [b, frames · hop_length]."""

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        log_mels, waves = batch.values
        return lambda xt, level: self.net(xt, level, log_mels.float()), waves[:, None]


class DiffusionVocoderConfig(VocoderConfig):
    kind: Literal["unet1d"] = "unet1d"
    network: UNet1dParams
    sampling: SamplingParams
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class DiffusionVocoder(Saved):
    """A `Vocoder` (components/contracts.py)."""

    config = DiffusionVocoderConfig

    network: UNet1dParams
    sampling: SamplingParams
    spec: MelSpec
    net: VocoderNet
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @torch.no_grad()
    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] from log-mels [N, n_mels, frames]; all start from the same noise; not clipped."""
        prepared = self.net.prepare(log_mels)
        noise = torch.randn(1, 1, prepared.shape[2], generator=torch.Generator().manual_seed(self.sampling.seed))
        start = scaled(noise.expand_as(prepared).to(prepared), self.sigma_data)
        net = on_unit_variance(lambda xt, level: self.net.denoise(xt, level, prepared), self.sigma_data)
        return sample(solvers.velocity(self.sampling.num_steps), net, start)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """As `vocode`, in crossfaded windows, as the network normalises over its whole input."""
        hop, rate, frames = self.spec.hop_length, self.spec.sample_rate, log_mels.shape[2]
        size = round(WINDOW_SECONDS * rate / hop)
        overlap = min(-(-round(FADE_SECONDS * rate) // hop), size // 4)  # whole frames
        starts = window_starts(frames, size, overlap)
        blocks = ((start * hop, self.vocode(log_mels[..., start : start + size])[:, 0]) for start in starts)
        return (block[:, None] for block in faded(blocks, overlap * hop, equal_power))


def network(params: DiffusionVocoderParams, spec: MelSpec, channels: int) -> VocoderNet:
    return VocoderNet(params.network, spec)


load = partial(restore_vocoder, DiffusionVocoder, network)


def make(params: DiffusionVocoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    trainer = VocoderTrainer.of(params, ctx, clips, mels, catalog)
    weights, net = params.weights, VocoderNet(params.network, trainer.spec)
    model = DiffusionVocoder(params.network, params.sampling, trainer.spec, net)

    def module() -> VocoderModule:
        if weights.unit_variance and not weights.start_from:
            model.sigma_data = wave_deviation(trainer.training_pairs().waves, "vocoder.weights.unit_variance")
        return VocoderModule(net, weights, weights.steps, sigma_data=model.sigma_data)

    return trainer.made(model, load, module, kept=("sigma_data",))
