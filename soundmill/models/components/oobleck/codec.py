"""Oobleck as a `LatentCodec` (components/contracts.py); its weights have diffusers' names."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from soundmill.models.components.contracts import CodecConfig
from soundmill.models.components.oobleck import NetworkParams, OobleckParams
from soundmill.models.components.waves.sounding import NetworkCodec, padded
from soundmill.training import checkpoint


class OobleckConfig(CodecConfig):
    kind: Literal["oobleck"]
    network: NetworkParams


@dataclass
class OobleckCodec(NetworkCodec):
    """The network, in evaluation mode and float32."""

    network: NetworkParams
    net: Any  # diffusers' AutoencoderOobleck
    scaling_factor: float = 1.0  # x0 = scaling_factor · latent; 1 for published weights
    digest: str = field(default="")  # set when saved

    def config(self, source: dict[str, Any]) -> OobleckConfig:
        return OobleckConfig(
            kind="oobleck", network=self.network, scaling_factor=self.scaling_factor, source=source, digest=self.digest
        )

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Scaled posterior means [N, latent_channels, T / samples_per_frame] of waves [N, channels, T]."""
        return self.net.encode(waves).latent_dist.mean.float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of scaled latents."""
        return self.net.decode(latents / self.scaling_factor).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_frame, 1]."""
        device = next(self.net.parameters()).device
        found = self.net.encode(padded(waves, num_samples, self.samples_per_frame).to(device)).latent_dist
        return torch.stack([found.mean.float(), found.logvar.float()], 1)[..., None]


def network(params: OobleckParams, spec: dict[str, Any], channels: int = 1) -> Any:
    return build(params.network)


def build(params: NetworkParams) -> Any:
    """The network, initialised from torch's global generator; at Stable Audio Open's sizes it has 156,112,514 parameters."""
    from diffusers import AutoencoderOobleck

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)
        return AutoencoderOobleck(
            encoder_hidden_size=2 * params.latent_channels,  # mean and deviation of each latent
            downsampling_ratios=params.ratios,
            channel_multiples=params.multiples,
            decoder_channels=params.channels,
            decoder_input_channels=params.latent_channels,
            audio_channels=params.audio_channels,
            sampling_rate=params.sample_rate,
        )


def load(directory: Path) -> OobleckCodec:
    saved = checkpoint.load_config(directory, OobleckConfig, "autoencoder")
    net = checkpoint.load_weights(lambda: build(saved.network), directory / checkpoint.WEIGHTS)
    return OobleckCodec(saved.network, net, saved.scaling_factor, saved.digest)
