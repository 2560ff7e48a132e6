"""DiffWave as a vocoder for log-mels of any spec.

On disk: a directory with `model.safetensors` and `config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.audio.mel import MelSpec, SpectrogramParams, of_unit_peak
from soundmill.audio.pieces import pieces
from soundmill.diffusion.schedules import alpha_bar_to_betas, linear
from soundmill.diffusion.solvers import aligned_timesteps, ancestral_step
from soundmill.models.components.contracts import OnItsDevice, VocoderConfig, read_vocoder
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import DiffWaveParams, NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave.prior import envelope, filtered
from soundmill.training import checkpoint
from soundmill.training.seeds import noise_at

# The published mels: 20·log10 of a magnitude, minus 20, with the 100 dB below that scaled to [0, 1].
TOP_DB, RANGE_DB = 20.0, 100.0
PIECE_SAMPLES = 1 << 16  # per network call; 30 layers of 64 channels use 64 MB per second of 22.05 kHz
STEPS_AT_ONCE = 200  # nested generators; Python allows a thousand frames
UPSAMPLED = 2  # receptive field of the upsampler on either side, in frames


class DiffWaveConfig(VocoderConfig):
    kind: Literal["diffwave"]
    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams


@dataclass
class DiffWave(OnItsDevice):
    """A `Vocoder` (components/contracts.py): the network, in evaluation mode and float32."""

    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams
    spec: MelSpec
    net: DiffWaveNet

    def config(self, source: dict[str, Any]) -> DiffWaveConfig:
        return DiffWaveConfig(
            kind="diffwave", network=self.network, noise=self.noise, sampling=self.sampling, mel_spec=self.spec, source=source
        )

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] in [−1, 1] from log-mels [N, n_mels, frames]; all start from the same noise."""
        return torch.cat(list(self.pieces(log_mels)), 2)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """As `vocode`, piece by piece. A piece takes a step as soon as its neighbours within the receptive field have taken the
        previous one, so no step needs the whole sound in memory, except after every `STEPS_AT_ONCE` steps."""
        hop = self.spec.hop_length
        betas, timesteps = schedule(self.noise, self.sampling)
        size = max(1, PIECE_SAMPLES // hop) * hop
        starts = range(0, log_mels.shape[2] * hop, size)
        blocks = (self._noise(log_mels, "start", first, min(size, starts.stop - first)) for first in starts)
        for taken, step in enumerate(reversed(range(len(betas)))):
            if taken and taken % STEPS_AT_ONCE == 0:
                blocks = list(blocks)
            blocks = self._step(blocks, log_mels, betas, step, float(timesteps[step]), size)
        return blocks if self.noise.prior == "standard" else self._coloured(blocks, log_mels, size)

    def _step(
        self, blocks: Iterable[Tensor], log_mels: Tensor, betas: Tensor, step: int, timestep: float, size: int
    ) -> Iterator[Tensor]:
        hop = self.spec.hop_length
        seen = -(-self.network.context // hop) * hop  # whole frames
        for piece in pieces(blocks, size, seen):
            first, count = piece.start - piece.before, piece.values.shape[2]
            with torch.no_grad():
                t = torch.full((len(log_mels),), timestep, device=log_mels.device)
                predicted = self.net.denoise(piece.values, t, self._prepared(log_mels, first // hop, count // hop))
                noise = self._noise(log_mels, step, piece.start, piece.count) if step else None
                yield ancestral_step(piece.inner(piece.values), piece.inner(predicted), betas, step, noise, self._clip)

    @property
    def _clip(self) -> float | None:
        return 1.0 if self.noise.prior == "standard" else None

    def _coloured(self, blocks: Iterable[Tensor], log_mels: Tensor, size: int) -> Iterator[Tensor]:
        """White waves with the envelope of the log-mels."""
        hop = self.spec.hop_length
        log_mels = torch.cat([log_mels, log_mels[..., -1:]], 2)  # a frame at the end of the last sample, too
        for piece in pieces(blocks, size, -(-self.spec.n_fft // hop) * hop):
            first, count = (piece.start - piece.before) // hop, piece.values.shape[2] // hop
            factors = envelope(log_mels[..., first : first + count + 1], self.spec)
            yield piece.inner(filtered(piece.values[:, 0], factors, self.spec)[:, None]).clamp(-1, 1)

    def _prepared(self, log_mels: Tensor, first: int, count: int) -> Tensor:
        """The prepared condition of `count` frames, computed with the upsampler's context around them."""
        before = min(first, UPSAMPLED)
        around = log_mels[..., first - before : first + count + UPSAMPLED]
        prepared = self.net.prepare(conditioner(around, self.spec))
        return prepared[..., before * self.spec.hop_length :][..., : count * self.spec.hop_length]

    def _noise(self, log_mels: Tensor, step: int | str, first: int, length: int) -> Tensor:
        return noise_at(first, length, 1, self.sampling.seed, step).expand(len(log_mels), -1, -1).to(log_mels.device)


def schedule(noise: NoiseParams, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The betas [N] of sampling, and the network's timestep [N] for each."""
    table = alpha_bar_of(noise)
    if sampling.betas == "trained":
        return alpha_bar_to_betas(table), torch.arange(len(table), dtype=torch.float64)
    betas = torch.tensor(sampling.betas, dtype=torch.float64)
    return betas, aligned_timesteps(betas, table)


def alpha_bar_of(noise: NoiseParams) -> Tensor:
    return linear(noise.num_timesteps, noise.beta_start, noise.beta_end)


def conditioner(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """Log-mels (ln) in the published format: decibels with bands of unit peak and a window of unit energy, scaled and clipped to
    [0, 1].
    """
    decibels = 20 / spec.power / math.log(10) * of_unit_peak(log_mels, spec)
    energy = 10 * math.log10(3 / 8 * spec.win_length)  # Σ w² of a Hann window
    return ((decibels - energy - TOP_DB + RANGE_DB) / RANGE_DB).clamp(0, 1)


def network(params: DiffWaveParams, spec: dict[str, Any]) -> DiffWaveNet:
    return DiffWaveNet(params.network, SpectrogramParams(**spec).spec)


def load(directory: Path, spec: MelSpec | None) -> DiffWave:
    saved = read_vocoder(directory, DiffWaveConfig, spec)
    net = checkpoint.load_weights(lambda: DiffWaveNet(saved.network, saved.mel_spec), directory / checkpoint.WEIGHTS)
    return DiffWave(saved.network, saved.noise, saved.sampling, saved.mel_spec, net)
