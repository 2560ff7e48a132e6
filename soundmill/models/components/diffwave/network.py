"""DiffWave's network (Kong et al. 2021, section 3 and figure 2): predicts the noise in a wave, given timestep and condition.

| paper | here |
|---|---|
| C, residual channels; N, layers; m, the dilation cycle's length | `channels`; `layers`; `dilation_cycle` |
| t, possibly fractional | `t` [B] |
"""

import math

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.diffwave.params import NetworkParams

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
    """(xt [B, 1, T], t [B], condition) → noise [B, 1, T]; untrained, it predicts zero.

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
