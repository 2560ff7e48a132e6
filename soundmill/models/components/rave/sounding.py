"""RAVE for families that diffuse 2-D latents: its latents have a single band, and it needs no vocoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.rave.codec import RaveCodec


@dataclass(frozen=True)
class Sounding:
    """A `Codec` (components/contracts.py): latents [N, rank, frames, 1], scaled; mono waves of `frames` latents."""

    codec: RaveCodec
    frames: int
    device: torch.device
    channels: int = 1

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def latent_rate(self) -> float:
        return self.codec.latent_rate

    @property
    def num_samples(self) -> int:
        return self.frames * self.codec.samples_per_latent

    def encode(self, waves: Tensor) -> Tensor:
        """Posterior means, on the CPU; waves are padded with silence or cut to `num_samples`."""
        codec, padded = self.codec.to(self.device), F.pad(waves, (0, self.num_samples - waves.shape[2]))
        return torch.cat([codec.encode(wave[None].to(self.device)).cpu() for wave in padded])[..., None]

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, 1, num_samples] in [−1, 1], on the CPU; `seeds` are ignored, as there is no vocoder."""
        codec = self.codec.to(self.device)
        return torch.cat([codec.decode(latent[None, ..., 0].to(self.device)).cpu() for latent in latents])


def sounding(codec: RaveCodec, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Sounding:
    """See components/contracts.py; `grain` is ignored."""
    return Sounding(codec, frames, device)
