"""The diffusion autoencoder as a `Codec` (components/contracts.py).

On disk it is a directory: `model.safetensors`, and `config.json` with all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from soundmill import hashing
from soundmill import params as strict
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.diffusion import velocity
from soundmill.errors import UserError
from soundmill.models.components.unet1d.codec.network import AutoencoderNet
from soundmill.models.components.unet1d.codec.params import AutoencoderParams
from soundmill.models.components.unet1d.params import SamplingParams
from soundmill.training import weights

KIND = "unet1d"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CERTAIN = -30.0  # ln variance of a posterior: the encoder gives one latent


class DiffusionCodecConfig(BaseModel):
    """What `config.json` says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: str
    params: AutoencoderParams
    mel_spec: MelSpec
    channels: int
    scaling_factor: float  # x0 = scaling_factor · latent
    source: dict[str, Any]  # what came of its training
    digest: str  # of weights and constants


@dataclass
class DiffusionCodec:
    """The nets, in evaluation mode and float32."""

    params: AutoencoderParams
    spec: MelSpec
    channels: int
    net: AutoencoderNet
    scaling_factor: float = 1.0
    digest: str = field(default="")  # once it is saved

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

    def to(self, device: torch.device | str) -> DiffusionCodec:
        self.net.to(device)
        return self

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latent_channels, T / samples_per_latent], scaled, of waves [N, channels, T]."""
        return self.net.encoder(waves) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, decoding: SamplingParams | None = None) -> Tensor:
        """Waves [N, channels, T] of scaled latents; each begins with the same noise."""
        chosen = decoding or self.params.decoding
        latents = latents / self.scaling_factor
        length = latents.shape[2] * self.samples_per_latent
        noise = torch.randn(1, self.channels, length, generator=torch.Generator().manual_seed(chosen.seed))
        start = noise.expand(len(latents), -1, -1).to(latents)
        return velocity.sample(lambda xt, level: self.net(xt, level, latents), start, chosen.num_steps).clamp(-1, 1)

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """As components/contracts.py says: [N, 2, latent_channels, num_samples / samples_per_latent, 1], not scaled."""
        if num_samples % self.params.network.stride:
            raise UserError(f"num_samples {num_samples} must be a multiple of {self.params.network.stride}, the net's stride")
        if num_samples <= self.spec.n_fft // 2:
            raise UserError(f"num_samples {num_samples} must be more than half of n_fft {self.spec.n_fft}")
        padded = np.stack([np.pad(wave[:, :num_samples], ((0, 0), (0, max(0, num_samples - wave.shape[1])))) for wave in waves])
        device = next(self.net.parameters()).device
        with torch.no_grad():
            mean = self.net.encoder(torch.from_numpy(padded.astype(np.float32)).to(device))[..., None].float()
        return torch.stack([mean, torch.full_like(mean, CERTAIN)], 1)


def check_frames(params: AutoencoderParams, spec: MelSpec) -> None:
    """UserError where the encoder does not make as many latents as the net's level has frames."""
    made = spec.hop_length * params.encoder.factor
    if made != params.samples_per_latent:
        raise UserError(
            f"the encoder makes a latent of {made} samples (hop_length · encoder.factor), and level {params.latents_at} of the net "
            f"has a frame of {params.samples_per_latent}: make them equal"
        )
    if spec.peak is not None:
        raise UserError("the encoder takes waves at the level that they have: set its spectrogram's `peak` to null")
    if params.weights.num_samples <= spec.n_fft // 2:
        raise UserError(f"weights.num_samples {params.weights.num_samples} must be more than half of n_fft {spec.n_fft}")


def network(params: AutoencoderParams, spec: dict[str, Any], channels: int = 1) -> AutoencoderNet:
    return AutoencoderNet(params, SpectrogramParams(**spec).spec, channels)


def save(model: DiffusionCodec, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Write the directory (made anew); returns the digest that tells this autoencoder from others. `source`: plain values."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS, {"format": "pt"})
    values = {
        "kind": KIND,
        "params": model.params.model_dump(mode="json"),
        "mel_spec": model.spec.model_dump(mode="json"),
        "channels": model.channels,
        "scaling_factor": model.scaling_factor,
    }
    model.digest = hashing.digest(values, {WEIGHTS: hashing.file_digest(directory / WEIGHTS)})
    weights.write_json(values | {"source": source, "digest": model.digest}, directory / CONFIG)
    return {"digest": model.digest}


def load(directory: Path) -> DiffusionCodec:
    """The autoencoder that `save` wrote; weights of another architecture are a UserError."""
    path = directory / CONFIG
    saved = strict.parse(DiffusionCodecConfig, weights.read_json(path, "autoencoder"), str(path))
    net = weights.fill(AutoencoderNet(saved.params, saved.mel_spec, saved.channels), directory / WEIGHTS)
    return DiffusionCodec(saved.params, saved.mel_spec, saved.channels, net, saved.scaling_factor, saved.digest)
