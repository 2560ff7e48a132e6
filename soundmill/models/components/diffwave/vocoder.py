"""DiffWave's network and training (Kong et al. 2021), and a vocoder for log-mels of any spec made of it.

| paper | here |
|---|---|
| C, residual channels; N, layers; m, the dilation cycle's length | `channels`; `layers`; `dilation_cycle` |
| t, possibly fractional | `t` [B] |

Its prior may be noise with the spectral envelope of the log-mel, as in SpecGrad (Koizumi et al. 2022). Here the waves are divided
by the envelope (`whitened`), noise and loss are DiffWave's, and the result is multiplied by the envelope (`filtered`): the same
process in other coordinates. With an envelope of 1 it is DiffWave.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from soundmill.audio import mel
from soundmill.audio.invert import mel_to_linear
from soundmill.audio.mel import MelSpec, mel_filterbank, of_unit_peak
from soundmill.audio.pieces import pieces
from soundmill.diffusion.paths import Discrete, Net, alpha_bar_to_betas, error, linear
from soundmill.diffusion.solvers import aligned_timesteps, ancestral_step
from soundmill.models.components.contracts import Saved, VocoderConfig, restore_vocoder
from soundmill.models.components.diffwave import DiffWaveParams, NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.making import MadeComponent
from soundmill.models.components.vocoder_trainer import VocoderTrainer
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams
from soundmill.training.seeds import noise_at

RANGE = 1e-3  # of a frame's envelope: 60 dB; a lower floor would amplify the leakage of the window


def envelope(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """The factor of each bin that gives white noise of unit variance these log-mels: [N, bins, frames] of [N, n_mels, frames].

    Bins outside all bands have the factor of the nearest band.
    """
    magnitude = mel_to_linear(log_mels, spec)
    covered = mel_filterbank(spec).sum(1).nonzero()[:, 0]
    bins = torch.arange(magnitude.shape[1]).clamp(int(covered[0]), int(covered[-1])).to(magnitude.device)
    of_noise = torch.hann_window(spec.win_length).square().sum().sqrt()
    if spec.power == 1.0:
        of_noise = of_noise * math.sqrt(math.pi) / 2  # the mean of a Rayleigh distribution, whose mean square is 1
    factors = magnitude[:, bins] / of_noise.to(magnitude)
    return torch.maximum(factors, RANGE * factors.amax(1, keepdim=True))


def filtered(waves: Tensor, factors: Tensor, spec: MelSpec) -> Tensor:
    """Waves [N, T] whose STFT is multiplied by `factors` [N, bins, 1 + T // hop_length]."""
    window = torch.hann_window(spec.win_length, device=waves.device)
    sizes = {"n_fft": spec.n_fft, "hop_length": spec.hop_length, "win_length": spec.win_length, "window": window}
    padding = "reflect" if waves.shape[1] > spec.n_fft // 2 else "constant"
    bins = torch.stft(waves, **sizes, pad_mode=padding, return_complex=True)
    return torch.istft(bins * factors, **sizes, length=waves.shape[1])


def whitened(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """The wave [T], with mean and peak as in `spec`, divided by the envelope of its log-mel."""
    samples, log_mels = torch.from_numpy(mel.levelled(wave, spec)), torch.from_numpy(mel.log_mel(wave, spec))
    return filtered(samples[None], 1 / envelope(log_mels[None], spec), spec)[0].numpy()


EMBEDDING, WIDTH = 128, 512  # embedding of timesteps (equation 9) and labels; timesteps after their layers
SLOPE = 0.4  # of the upsampler's leaky ReLUs


class TimestepEmbedding(nn.Module):
    """Timesteps [B] → [B, 512]; a fractional timestep interpolates between the sinusoids of its two neighbours."""

    def __init__(self) -> None:
        super().__init__()
        half = EMBEDDING // 2
        # In float32, as with the published weights: the last angle at t = 49, 490,000, has an error of up to 0.03.
        self.register_buffer("frequencies", 10.0 ** (torch.arange(half) * 4.0 / (half - 1)), persistent=False)
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        return self.layers(torch.lerp(self._waves(t.floor()), self._waves(t.ceil()), (t - t.floor())[:, None]))

    def _waves(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class Upsampler(nn.Module):
    """Mels [B, n_mels, frames] → [B, n_mels, frames · hop_length], by two transposed convolutions over time and adjacent bands."""

    def __init__(self, hop_length: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(1, 1, (3, 2 * stride), (1, stride), (1, stride // 2)) for stride in strides(hop_length)
        )

    def forward(self, mel: Tensor) -> Tensor:
        mel = mel[:, None]
        for layer in self.layers:
            # Padding cuts half a stride at both ends; an odd stride leaves one more sample at the end.
            mel = nn.functional.leaky_relu(layer(mel)[..., : mel.shape[3] * layer.stride[1]], SLOPE)
        return mel[:, 0]


def strides(hop_length: int) -> tuple[int, int]:
    """The two factors of a hop that are closest to each other, the larger first: 16 and 16 for the published 256."""
    smaller = max(factor for factor in range(1, math.isqrt(hop_length) + 1) if hop_length % factor == 0)
    return hop_length // smaller, smaller


class ResidualLayer(nn.Module):
    """A gated dilated convolution; returns the residual output and the skip output, both [B, C, T].

    The condition [B, `conditions`, T or 1] is added before the gate; with `conditions` 0 there is none.
    """

    def __init__(self, channels: int, dilation: int, conditions: int):
        super().__init__()
        self.timestep = nn.Linear(WIDTH, channels)
        self.dilated = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.condition = nn.Conv1d(conditions, 2 * channels, 1) if conditions else None
        self.out = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, wave: Tensor, timestep: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        gated = self.dilated(wave + self.timestep(timestep)[:, :, None])
        if self.condition is not None:
            gated += self.condition(condition)
        gate, content = gated.chunk(2, 1)
        residual, skip = self.out(gate.sigmoid() * content.tanh()).chunk(2, 1)
        return (wave + residual).mul_(math.sqrt(0.5)), skip


class DiffWaveNet(nn.Module):
    """(xt [B, 1, T], t [B], condition) → noise [B, 1, T]; untrained, it predicts zero (section 3 and figure 2).

    The condition is mels of `spec` in [0, 1], [B, n_mels, T / hop_length], or label weights or vectors of captions [B, `weights`],
    or None if the network has neither.
    """

    def __init__(self, params: NetworkParams, spec: MelSpec | None = None, weights: int | None = None):
        super().__init__()
        channels = params.channels
        self.embedding = TimestepEmbedding()
        self.upsampler = Upsampler(spec.hop_length) if spec else None
        self.labels = nn.Embedding(weights, EMBEDDING) if weights is not None else None
        conditions = spec.n_mels if spec else 0 if weights is None else EMBEDDING
        self.first = nn.Conv1d(1, channels, 1)
        self.layers = nn.ModuleList(
            ResidualLayer(channels, 2 ** (layer % params.dilation_cycle), conditions) for layer in range(params.layers)
        )
        self.skip = nn.Conv1d(channels, channels, 1)
        self.last = nn.Conv1d(channels, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, xt: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.denoise(xt, t, self.prepare(condition))

    def prepare(self, condition: Tensor | None) -> Tensor | None:
        """The part of the condition that is the same at every timestep, for `denoise`."""
        if self.upsampler is not None:
            return self.upsampler(condition)
        return condition if self.labels is None else (condition @ self.labels.weight)[:, :, None]

    def denoise(self, xt: Tensor, t: Tensor, prepared: Tensor | None) -> Tensor:
        timestep, wave, total = self.embedding(t), self.first(xt).relu(), 0.0
        for layer in self.layers:
            wave, skip = layer(wave, timestep, prepared)
            total += skip
        return self.last(self.skip(total / math.sqrt(len(self.layers))).relu())


# The published mels: 20·log10 of a magnitude, minus 20, with the 100 dB below that scaled to [0, 1].
TOP_DB, RANGE_DB = 20.0, 100.0
PIECE_SAMPLES = 1 << 16  # per network call; 30 layers of 64 channels use 64 MB per second of 22.05 kHz
STEPS_AT_ONCE = 200  # nested generators; Python allows a thousand frames
UPSAMPLED = 2  # receptive field of the upsampler on either side, in frames


class DiffWaveConfig(VocoderConfig):
    kind: Literal["diffwave"] = "diffwave"
    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams


@dataclass
class DiffWave(Saved):
    """A `Vocoder` (components/contracts.py)."""

    config = DiffWaveConfig

    network: NetworkParams
    noise: NoiseParams
    sampling: SamplingParams
    spec: MelSpec
    net: DiffWaveNet

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
        clip = 1.0 if self.noise.prior == "standard" else None
        for piece in pieces(blocks, size, seen):
            first, count = piece.start - piece.before, piece.values.shape[2]
            with torch.no_grad():
                t = torch.full((len(log_mels),), timestep, device=log_mels.device)
                predicted = self.net.denoise(piece.values, t, self._prepared(log_mels, first // hop, count // hop))
                noise = self._noise(log_mels, step, piece.start, piece.count) if step else None
                yield ancestral_step(piece.inner(piece.values), piece.inner(predicted), betas, step, noise, clip)

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


def network(params: DiffWaveParams, spec: MelSpec, channels: int) -> DiffWaveNet:
    return DiffWaveNet(params.network, spec)


load = partial(restore_vocoder, DiffWave, network)


class DiffWaveModule(TrainingModule):
    """Learns the noise in crops of waves (algorithm 1).

    A batch: log-mels [b, n_mels, frames] of `spec` and their waves [b, T]; or waves [b, 1, T], and label weights or vectors of
    captions, if there are. With `prior: mel` these waves are whitened; others are divided by `sigma_data`. `params` are
    `TrainingParams` with a `loss`.
    """

    def __init__(
        self,
        params: TrainingParams,
        net: DiffWaveNet,
        noise: NoiseParams,
        steps: int,
        spec: MelSpec | None = None,
        sigma_data: float = 1.0,
    ):
        super().__init__(net, params, steps)
        self.spec, self.sigma_data = spec, sigma_data
        self.register_buffer("table", alpha_bar_of(noise), persistent=False)

    def loss(self, step: int, batch: Batch) -> Tensor:
        if self.spec:
            log_mels, waves = batch.values
            x0, condition = waves[:, None], conditioner(log_mels.float(), self.spec)
        else:
            x0, condition = (*batch.values, None)[:2]
        x0, rng = x0 / self.sigma_data, self.rng("noise", step)
        t = self.share(torch.randint(len(self.table), (len(x0) * self.world_size,), generator=rng, device=self.device))
        noise = self.noise_like(x0, rng)
        return noise_loss(lambda xt, t: self.net(xt, t, condition), self.table, x0, t, noise, self.params.loss).mean()


def noise_loss(net: Net, table: Tensor, x0: Tensor, t: Tensor, noise: Tensor, kind: str) -> Tensor:
    """Error [B] of the noise that `net(xt, t)` predicts, `l1` or `l2`; x0, noise [B, 1, T], t [B] whole, table: alpha_bar [T].

    Predicting zero gives a mean l1 of √(2/π).
    """
    errors = error(Discrete(table), lambda xt, t: net(xt, t.float()), x0, t, noise).abs()
    return (errors if kind == "l1" else errors.square()).flatten(1).mean(1)


def make(params: DiffWaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    level = whitened if params.noise.prior == "mel" else mel.levelled
    trainer = VocoderTrainer.of(params, ctx, clips, mels, catalog, level)
    schedule(params.noise, params.sampling)  # raises before the training if they do not fit
    net = DiffWaveNet(params.network, trainer.spec)
    model = DiffWave(params.network, params.noise, params.sampling, trainer.spec, net)
    return trainer.made(model, load, lambda: DiffWaveModule(params.weights, net, params.noise, params.weights.steps, trainer.spec))
