"""Griffin-Lim as a vocoder: no weights, any spec (fast Griffin-Lim, Perraudin et al. 2013)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from soundmill.audio.invert import mel_to_wave
from soundmill.audio.mel import MelSpec
from soundmill.audio.pieces import equal_power, faded, window_starts
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.training.seeds import seed_of

WINDOW_SECONDS, FADE_SECONDS = 30.0, 0.1  # for longer sounds
SEED = 0  # of the initial phases, which are the same for every clip, real or generated


@dataclass(frozen=True)
class GriffinLim:
    """A `Vocoder` (components/contracts.py). It runs on the CPU."""

    spec: MelSpec
    params: GriffinLimParams

    def to(self, device: Any) -> Self:
        return self

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] on the CPU."""
        num_samples = log_mels.shape[2] * self.spec.hop_length
        iterations, momentum = self.params.griffin_lim_iterations, self.params.griffin_lim_momentum
        # Frames are centred in their windows: without an extra frame, the last one would fade out.
        log_mels = torch.cat([log_mels, log_mels[..., -1:]], 2).cpu()
        speckle_seed = seed_of(seed, "grain") if self.params.griffin_lim_grain == "speckle" else None
        return mel_to_wave(log_mels, self.spec, num_samples, iterations, momentum, SEED, speckle_seed)[:, None]

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` in crossfaded windows, as phases depend on one another."""
        hop, rate, frames = self.spec.hop_length, self.spec.sample_rate, log_mels.shape[2]
        size, overlap = -(-round(WINDOW_SECONDS * rate) // hop), -(-round(FADE_SECONDS * rate) // hop)
        starts = window_starts(frames, size, overlap)
        blocks = ((start * hop, self.vocode(log_mels[..., start : start + size])) for start in starts)
        return faded(blocks, overlap * hop, equal_power)
