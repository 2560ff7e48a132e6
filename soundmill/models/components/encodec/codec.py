"""EnCodec as a `LatentCodec` (components/contracts.py).

Latents are the encoder's output before quantisation; decoding rounds them to codes, so a sound that is encoded and decoded is the
library's. Its weights have transformers' names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from soundmill.models.components.contracts import CodecConfig
from soundmill.models.components.encodec import EncodecParams, NetworkParams
from soundmill.models.components.waves.sounding import NetworkCodec, padded
from soundmill.training import checkpoint

NO_VARIANCE = -30.0  # ln; latents have no distribution, and minus infinity does not survive arithmetic


class EncodecConfig(CodecConfig):
    kind: Literal["encodec"]
    network: NetworkParams
    bandwidth: float
    scaling_factor: float = 1.0  # always 1


@dataclass
class EncodecCodec(NetworkCodec):
    """The network, in evaluation mode and float32."""

    network: NetworkParams
    bandwidth: float  # kbit/s
    net: Any  # transformers' EncodecModel
    scaling_factor: float = 1.0
    digest: str = field(default="")  # set when saved

    def config(self, source: dict[str, Any]) -> EncodecConfig:
        return EncodecConfig(kind="encodec", network=self.network, bandwidth=self.bandwidth, source=source, digest=self.digest)

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latent_channels, T / samples_per_frame] of waves [N, channels, T]."""
        return self.net.encoder(waves)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of the codes nearest to latents."""
        quantizer = self.net.quantizer
        return self.net.decoder(quantizer.decode(quantizer.encode(latents, self.bandwidth))).clamp(-1, 1)

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_frame, 1]."""
        mean = self.encode(padded(waves, num_samples, self.samples_per_frame).to(next(self.net.parameters()).device))
        return torch.stack([mean, torch.full_like(mean, NO_VARIANCE)], 1)[..., None]


def network(params: EncodecParams, spec: dict[str, Any], channels: int = 1) -> Any:
    return build(params.network)


def library_config(params: NetworkParams) -> Any:
    """transformers' EncodecConfig of these sizes."""
    from transformers import EncodecConfig as LibraryConfig

    return LibraryConfig(
        num_filters=params.channels,
        upsampling_ratios=params.ratios,
        hidden_size=params.latent_channels,
        codebook_size=params.codebook_size,
        codebook_dim=params.latent_channels,
        target_bandwidths=params.bandwidths,
        use_causal_conv=params.causal,
        use_conv_shortcut=params.conv_shortcut,
        audio_channels=params.audio_channels,
        sampling_rate=params.sample_rate,
    )


def build(params: NetworkParams) -> Any:
    """The network, initialised from torch's global generator; MusicGen's has 56,884,674 parameters, without the codebooks."""
    from transformers import EncodecModel

    return EncodecModel(library_config(params)).eval()


def load(directory: Path) -> EncodecCodec:
    saved = checkpoint.load_config(directory, EncodecConfig, "autoencoder")
    net = checkpoint.load_weights(lambda: build(saved.network), directory / checkpoint.WEIGHTS)
    return EncodecCodec(saved.network, saved.bandwidth, net, digest=saved.digest)
