"""Codecs of waves for families that diffuse 2-D latents: their latents have a single band, and they need no vocoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill.errors import UserError
from soundmill.models.components.contracts import LatentCodec, OnItsDevice, Vocoder


class WaveCodec(LatentCodec, Protocol):
    latent_rate: float  # latents per second

    def encode(self, waves: Tensor) -> Tensor:
        """Scaled latents [N, latent channels, frames] of waves [N, channels, frames · samples_per_frame]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Waves in [−1, 1] of scaled latents."""


@dataclass(frozen=True)
class Sounding:
    """A `Codec` (components/contracts.py): latents [N, latent channels, frames, 1], scaled; waves of `frames` latents."""

    codec: WaveCodec
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
        """Latents, on the CPU; waves are padded with silence or cut to the length of `frames` latents."""
        codec, length = self.codec.to(self.device), self.frames * self.codec.samples_per_frame
        padded = F.pad(waves, (0, length - waves.shape[2]))
        return torch.cat([codec.encode(wave[None].to(self.device)).cpu() for wave in padded])[..., None]

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, channels, T] in [−1, 1], on the CPU; `seeds` are ignored, as there is no vocoder."""
        codec = self.codec.to(self.device)
        return torch.cat([codec.decode(latent[None, ..., 0].to(self.device)).cpu() for latent in latents])


def sounding(codec: WaveCodec, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Sounding:
    """See components/contracts.py; `grain` is ignored."""
    return Sounding(codec, frames, device)


def padded(waves: Sequence[np.ndarray], num_samples: int, samples_per_frame: int) -> Tensor:
    """Waves [N, channels, num_samples] in float32, padded with silence or cut. UserError unless the length is whole latents."""
    if num_samples % samples_per_frame:
        nearest = num_samples // samples_per_frame * samples_per_frame
        raise UserError(
            f"num_samples {num_samples} must be a multiple of {samples_per_frame}, the samples of a latent: "
            f"{nearest} or {nearest + samples_per_frame}"
        )
    cut = [np.pad(wave[:, :num_samples], ((0, 0), (0, max(0, num_samples - wave.shape[1])))) for wave in waves]
    return torch.from_numpy(np.stack(cut).astype(np.float32))


class NetworkCodec(OnItsDevice):
    """The part of a `LatentCodec` (components/contracts.py) that follows from the sizes of its network."""

    network: Any  # sizes: sample_rate, audio_channels, samples_per_latent, latent_channels
    net: Any
    spec = None  # uses no log-mels

    @property
    def sample_rate(self) -> int:
        return self.network.sample_rate

    @property
    def channels(self) -> int:
        return self.network.audio_channels

    @property
    def samples_per_frame(self) -> int:
        return self.network.samples_per_latent

    @property
    def latent_rate(self) -> float:
        return self.sample_rate / self.samples_per_frame

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of `frames` latents."""
        return self.network.latent_channels, frames, 1
