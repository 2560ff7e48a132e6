"""The autoencoder's networks: an encoder of waves, and a U-Net conditioned on its latents."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, mel_spectrogram
from soundmill.models.components.unet1d.codec.params import AutoencoderParams, EncoderParams
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM


class AutoencoderNet(nn.Module):
    """Waves [N, channels, T] ↔ latents [N, latent_channels, T / samples_per_latent] in (−1, 1)."""

    def __init__(self, params: AutoencoderParams, spec: MelSpec, channels: int):
        super().__init__()
        latents = {"latent_channels": params.encoder.latent_channels, "latents_at": params.latents_at}
        self.encoder = Encoder(params.encoder, spec, channels)
        self.unet = UNet1d(params.network, NO_TRANSFORM, channels, channels, **latents)

    def forward(self, xt: Tensor, level: Tensor, latents: Tensor) -> Tensor:
        return self.unet(xt, level, latents=latents)


class Encoder(nn.Module):
    """Log-mels of every channel → convolutions → tanh."""

    def __init__(self, params: EncoderParams, spec: MelSpec, channels: int):
        super().__init__()
        self.spec = spec
        width = params.channels
        self.first = nn.Conv1d(channels * spec.n_mels, width, 3, padding=1)
        self.down = nn.Conv1d(width, width, 2 * params.factor + 1, stride=params.factor, padding=params.factor)
        self.blocks = nn.ModuleList(_block(width, params.groups) for _ in range(params.blocks))
        self.last = nn.Conv1d(width, params.latent_channels, 1)

    def forward(self, waves: Tensor) -> Tensor:
        frames = waves.shape[2] // self.spec.hop_length
        with torch.autocast(waves.device.type, enabled=False):
            log_mels = _mels(self.spec, waves.device)(waves.float())[..., :frames].clamp_min(self.spec.floor).log().flatten(1, 2)
        hidden = self.down(self.first(log_mels))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).tanh()


@lru_cache(maxsize=4)
def _mels(spec: MelSpec, device: torch.device) -> nn.Module:
    """Not part of the network: it has nothing to train or to save."""
    return mel_spectrogram(spec).to(device)


def _block(width: int, groups: int) -> nn.Sequential:
    """Two convolutions, each after normalisation and activation."""
    parts = (part for _ in range(2) for part in (nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1)))
    return nn.Sequential(*parts)
