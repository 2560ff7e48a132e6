"""DiffWave as a vocoder: from log-mels of any spec to sound, in as many steps as its noise schedule has.

On disk it is a directory: `model.safetensors`, and `config.json` with all else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.audio.mel import MelSpec, SpectrogramParams, of_unit_peak
from soundmill.diffusion.aligned import aligned_timesteps, ancestral
from soundmill.diffusion.schedules import alpha_bar_to_betas, linear
from soundmill.models.components.contracts import VOCODER_WEIGHTS, VocoderConfig, read_vocoder, save_vocoder
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import DiffWaveParams, NetworkParams, NoiseParams, SamplingParams
from soundmill.training import weights

# The published mels: 20·log10 of a magnitude, less 20, of the 100 dB below which is [0, 1].
TOP_DB, RANGE_DB = 20.0, 100.0


class DiffWaveConfig(VocoderConfig):
    kind: Literal["diffwave"]
    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams


@dataclass
class DiffWave:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32."""

    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams
    spec: MelSpec
    net: DiffWaveNet

    def to(self, device: torch.device | str) -> DiffWave:
        self.net.to(device)
        return self

    @torch.no_grad()
    def vocode(self, log_mels: Tensor) -> Tensor:
        """Waves [N, 1, frames · hop_length] in [−1, 1] of log-mels [N, n_mels, frames]; each from the same noise."""
        betas, timesteps = schedule(self.noise, self.sampling)
        prepared = self.net.prepare(conditioner(log_mels, self.spec))
        rngs = [torch.Generator().manual_seed(self.sampling.seed) for _ in log_mels]
        shape = (1, log_mels.shape[2] * self.spec.hop_length)
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(log_mels.device)
        return ancestral(lambda xt, t: self.net.denoise(xt, t, prepared), noise, betas, timesteps, rngs)


def schedule(noise: NoiseParams, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The betas [N] to sample by, and the net's timestep [N] at each."""
    table = alpha_bar_of(noise)
    if sampling.betas == "trained":
        return alpha_bar_to_betas(table), torch.arange(len(table), dtype=torch.float64)
    betas = torch.tensor(sampling.betas, dtype=torch.float64)
    return betas, aligned_timesteps(betas, table)


def alpha_bar_of(noise: NoiseParams) -> Tensor:
    return linear(noise.num_timesteps, noise.beta_start, noise.beta_end)


def conditioner(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """Log-mels (ln) as the published net takes them: decibels of bands of unit peak and a window of unit energy, scaled and
    held to [0, 1].
    """
    decibels = 20 / spec.power / math.log(10) * of_unit_peak(log_mels, spec)
    energy = 10 * math.log10(3 / 8 * spec.win_length)  # Σ w² of a Hann window
    return ((decibels - energy - TOP_DB + RANGE_DB) / RANGE_DB).clamp(0, 1)


def network(params: DiffWaveParams, spec: dict[str, Any]) -> DiffWaveNet:
    return DiffWaveNet(params.network, SpectrogramParams(**spec).spec)


def save(model: DiffWave, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """As contracts.py says; `source`: plain values."""
    parts = {"network": model.network, "noise": model.noise, "sampling": model.sampling}
    return save_vocoder(directory, DiffWaveConfig(kind="diffwave", mel_spec=model.spec, source=source, **parts), model.net)


def load(directory: Path, spec: MelSpec | None) -> DiffWave:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = read_vocoder(directory, DiffWaveConfig, spec)
    net = weights.fill(DiffWaveNet(saved.network, saved.mel_spec), directory / VOCODER_WEIGHTS)
    return DiffWave(saved.network, saved.noise, saved.sampling, saved.mel_spec, net)
