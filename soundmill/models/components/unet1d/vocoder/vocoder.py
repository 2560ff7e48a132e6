"""The diffusion vocoder for log-mels of one spec.

On disk: a directory with `model.safetensors` and `config.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.audio.pieces import equal_power, faded, window_starts
from soundmill.diffusion import solvers
from soundmill.diffusion.deviation import on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.models.components.contracts import OnItsDevice, VocoderConfig, read_vocoder
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.params import DiffusionVocoderParams
from soundmill.training import checkpoint

KIND = "unet1d"
WINDOW_SECONDS, FADE_SECONDS = 10.0, 0.1  # for longer sounds


class DiffusionVocoderConfig(VocoderConfig):
    kind: Literal["unet1d"]
    network: UNet1dParams
    sampling: SamplingParams
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class DiffusionVocoder(OnItsDevice):
    """A `Vocoder` (components/contracts.py): the network, in evaluation mode and float32."""

    network: UNet1dParams
    sampling: SamplingParams
    spec: MelSpec
    net: VocoderNet
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    def config(self, source: dict[str, Any]) -> DiffusionVocoderConfig:
        parts = {"network": self.network, "sampling": self.sampling, "sigma_data": self.sigma_data}
        return DiffusionVocoderConfig(kind=KIND, mel_spec=self.spec, source=source, **parts)

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


def network(params: DiffusionVocoderParams, spec: dict[str, Any]) -> VocoderNet:
    return VocoderNet(params.network, SpectrogramParams(**spec).spec)


def load(directory: Path, spec: MelSpec | None) -> DiffusionVocoder:
    saved = read_vocoder(directory, DiffusionVocoderConfig, spec)
    net = checkpoint.load_weights(lambda: VocoderNet(saved.network, saved.mel_spec), directory / checkpoint.WEIGHTS)
    return DiffusionVocoder(saved.network, saved.sampling, saved.mel_spec, net, saved.sigma_data)
