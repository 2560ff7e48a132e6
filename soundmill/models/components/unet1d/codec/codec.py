"""The diffusion autoencoder as a `Codec` (components/contracts.py).

On disk: a directory with `model.safetensors` and `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.diffusion import solvers
from soundmill.diffusion.deviation import on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.errors import UserError
from soundmill.models.components.contracts import CodecConfig, OnItsDevice
from soundmill.models.components.unet1d.codec.network import AutoencoderNet
from soundmill.models.components.unet1d.codec.params import AutoencoderParams
from soundmill.models.components.unet1d.params import SamplingParams
from soundmill.training import checkpoint

KIND = "unet1d"
CERTAIN = -30.0  # ln variance of a posterior: the encoder is deterministic


class DiffusionCodecConfig(CodecConfig):
    kind: Literal["unet1d"]
    params: AutoencoderParams
    mel_spec: MelSpec
    channels: int
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class DiffusionCodec(OnItsDevice):
    """The networks, in evaluation mode and float32."""

    params: AutoencoderParams
    spec: MelSpec
    channels: int
    net: AutoencoderNet
    sigma_data: float = 1.0  # standard deviation of the waves, by which the U-Net's input is divided
    scaling_factor: float = 1.0
    digest: str = field(default="")  # set when saved

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def samples_per_latent(self) -> int:
        return self.params.samples_per_latent

    @property
    def latent_rate(self) -> float:
        return self.sample_rate / self.samples_per_latent

    @property
    def latent_channels(self) -> int:
        return self.params.encoder.latent_channels

    def config(self, source: dict[str, Any]) -> DiffusionCodecConfig:
        built = {"params": self.params, "mel_spec": self.spec, "channels": self.channels, "sigma_data": self.sigma_data}
        return DiffusionCodecConfig(kind=KIND, scaling_factor=self.scaling_factor, source=source, digest=self.digest, **built)

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latent_channels, T / samples_per_latent], scaled, of waves [N, channels, T]."""
        return self.net.encoder(waves) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, decoding: SamplingParams | None = None) -> Tensor:
        """Waves [N, channels, T] from scaled latents; all start from the same noise."""
        sampling = decoding or self.params.decoding
        latents = latents / self.scaling_factor
        length = latents.shape[2] * self.samples_per_latent
        noise = torch.randn(1, self.channels, length, generator=torch.Generator().manual_seed(sampling.seed))
        start = noise.expand(len(latents), -1, -1).to(latents)
        net = on_unit_variance(partial(self.net, latents=latents), self.sigma_data)
        return sample(solvers.velocity(sampling.num_steps), net, scaled(start, self.sigma_data)).clamp(-1, 1)

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_latent, 1], not scaled."""
        if num_samples % self.params.network.stride:
            raise UserError(f"num_samples {num_samples} must be a multiple of {self.params.network.stride}, the network's stride")
        if num_samples <= self.spec.n_fft // 2:
            raise UserError(f"num_samples {num_samples} must be more than half of n_fft {self.spec.n_fft}")
        padded = np.stack([np.pad(wave[:, :num_samples], ((0, 0), (0, max(0, num_samples - wave.shape[1])))) for wave in waves])
        device = next(self.net.parameters()).device
        with torch.no_grad():
            mean = self.net.encoder(torch.from_numpy(padded.astype(np.float32)).to(device))[..., None].float()
        return torch.stack([mean, torch.full_like(mean, CERTAIN)], 1)


def network(params: AutoencoderParams, spec: dict[str, Any], channels: int = 1) -> AutoencoderNet:
    return AutoencoderNet(params, SpectrogramParams(**spec).spec, channels)


def load(directory: Path) -> DiffusionCodec:
    saved = checkpoint.load_config(directory, DiffusionCodecConfig, "autoencoder")
    net = checkpoint.load_weights(
        lambda: AutoencoderNet(saved.params, saved.mel_spec, saved.channels), directory / checkpoint.WEIGHTS
    )
    return DiffusionCodec(saved.params, saved.mel_spec, saved.channels, net, saved.sigma_data, saved.scaling_factor, saved.digest)
