"""What codecs of waves have in common that are one network of a library."""

from typing import Any, Self

import torch


class NetworkCodec:
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

    def to(self, device: torch.device | str) -> Self:
        self.net.to(device)
        return self
