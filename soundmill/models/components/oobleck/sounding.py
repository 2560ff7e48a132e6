"""Oobleck for families that diffuse 2-D latents: its latents have a single band, and it needs no vocoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.oobleck.codec import OobleckCodec


@dataclass(frozen=True)
class Sounding:
    """A `Codec` (components/contracts.py): latents [N, channels, frames, 1], scaled; waves of `frames` latents."""

    codec: OobleckCodec
    frames: int
    device: torch.device

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        return self.codec.channels

    @property
    def latent_rate(self) -> float:
        return self.codec.latent_rate

    def encode(self, waves: Tensor) -> Tensor:
        """Posterior means, on the CPU; waves are padded with silence or cut to the length of `frames` latents."""
        codec, length = self.codec.to(self.device), self.frames * self.codec.samples_per_frame
        padded = F.pad(waves, (0, length - waves.shape[2]))
        return torch.cat([codec.encode(wave[None].to(self.device)).cpu() for wave in padded])[..., None]

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, channels, T] in [−1, 1], on the CPU; `seeds` are ignored, as there is no vocoder."""
        codec = self.codec.to(self.device)
        return torch.cat([codec.decode(latent[None, ..., 0].to(self.device)).cpu() for latent in latents])


def sounding(codec: OobleckCodec, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Sounding:
    """See components/contracts.py; `grain` is ignored."""
    return Sounding(codec, frames, device)
