"""The autoencoder of log-mels that latents come from: diffusers' AutoencoderKL, and its constants.

On disk it is a directory: `model.safetensors` in diffusers' own names, and `config.json` with all else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from soundmill import hashing
from soundmill import params as strict
from soundmill.audio.mel import MelSpec, levelled, log_mel
from soundmill.errors import UserError
from soundmill.models.components.mel_autoencoder.params import AutoencoderNetParams, AutoencoderParams
from soundmill.training import weights

KIND = "mel_autoencoder"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def network(params: AutoencoderParams, spec: dict[str, Any]) -> Any:
    return build_autoencoder(params.network)


def build_autoencoder(params: AutoencoderNetParams) -> Any:
    """The net over pictures [B, 1, frames, n_mels], initialised from torch's global generator; attention in its middle only.

    55,376,873 parameters at AudioLDM's sizes.
    """
    from diffusers import AutoencoderKL

    levels = len(params.widths)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=params.widths,
        layers_per_block=params.blocks,
        latent_channels=params.latent_channels,
        norm_num_groups=params.groups,
    )


class AutoencoderConfig(BaseModel):
    """What `config.json` says: how the net is built, what it was made for, and what goes in and comes out of it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: Literal["mel_autoencoder"]
    network: AutoencoderNetParams
    mel_spec: MelSpec
    mean: float  # of log-mels: the net sees (log_mel − mean) / deviation
    deviation: float
    scaling_factor: float  # x0 = scaling_factor · latent
    residual: list[float]  # deviation, band by band, of real log-mels from rebuilt ones
    source: dict[str, Any]  # `kind`: train | load, and what came of it
    digest: str  # of weights and constants


@dataclass
class Autoencoder:
    """The net, in evaluation mode and float32, and what `config.json` says of it."""

    network: AutoencoderNetParams
    spec: MelSpec
    net: nn.Module
    mean: float
    deviation: float
    scaling_factor: float
    residual: list[float] = field(default_factory=list)  # of each band; once it is measured
    digest: str = ""  # once it is saved

    @property
    def factor(self) -> int:
        return self.network.factor

    @property
    def samples_per_frame(self) -> int:
        return self.spec.hop_length

    @property
    def silence(self) -> float:
        """The log-mel of silence."""
        return math.log(self.spec.floor)

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """(channels, frames, bands) of the latent of a log-mel of so many frames."""
        return self.network.latent_channels, frames // self.factor, self.spec.n_mels // self.factor

    def to(self, device: torch.device | str) -> Autoencoder:
        self.net.to(device)
        return self

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def channels(self) -> int:
        return 1

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """As components/contracts.py says, of their log-mels: num_samples / hop_length frames."""
        per_latent = self.spec.hop_length * self.factor
        if num_samples % per_latent:
            raise UserError(f"num_samples {num_samples} must be a multiple of {per_latent}, hop_length · {self.factor}")
        log_mels = torch.from_numpy(np.stack([padded_log_mel(wave, self.spec, num_samples) for wave in waves]))
        device = next(self.net.parameters()).device
        return torch.stack(self.encode(log_mels.to(device)), 1)

    @torch.no_grad()
    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and ln variance of the posterior, [B, channels, frames / factor, n_mels / factor], of log-mels [B, n_mels, frames].

        `frames` must be a multiple of `factor`. Neither is scaled.
        """
        posterior = self.net.encode(to_picture(log_mel, self.mean, self.deviation)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Log-mels [B, n_mels, frames], not below the spec's floor, of scaled latents [B, channels, frames / factor, bands]."""
        picture = self.net.decode(x0 / self.scaling_factor).sample.float()
        return (picture[:, 0].transpose(1, 2) * self.deviation + self.mean).clamp_min(self.silence)


def padded_log_mel(wave: np.ndarray, spec: MelSpec, num_samples: int) -> np.ndarray:
    """Log-mel float32 [n_mels, num_samples / hop_length] of a wave [channels, T], of which the end is cut or silence follows it.

    Its level is set first, so that silence is zero.
    """
    mono = levelled(wave.mean(0), spec)[:num_samples]
    mono = np.pad(mono, (0, num_samples - len(mono)))
    return log_mel(mono, spec.model_copy(update={"peak": None}))[:, : num_samples // spec.hop_length]


def to_picture(log_mel: Tensor, mean: float, deviation: float) -> Tensor:
    """What the net sees, [B, 1, frames, n_mels], of log-mels [B, n_mels, frames]."""
    return ((log_mel - mean) / deviation).transpose(1, 2)[:, None]


def sample_posterior(mean: Tensor, log_variance: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """x0: a draw of the posterior by standard normal `noise`, scaled."""
    return scaling_factor * (mean + (0.5 * log_variance).exp() * noise)


def check_shape(network: AutoencoderNetParams, spec: MelSpec) -> None:
    """UserError where the net cannot halve the spec's bands as often as it must."""
    if spec.n_mels % network.factor:
        raise UserError(
            f"mel spec: n_mels {spec.n_mels} must be a multiple of {network.factor}: the autoencoder halves it "
            f"{len(network.widths) - 1} times"
        )


def save(model: Autoencoder, directory: Path, source: dict[str, Any]) -> str:
    """Write the directory (made anew); returns the digest that tells this autoencoder from others. `source`: plain values."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS, {"format": "pt"})
    values = {
        "kind": KIND,
        "network": model.network.model_dump(mode="json"),
        "mel_spec": model.spec.model_dump(mode="json"),
        "mean": model.mean,
        "deviation": model.deviation,
        "scaling_factor": model.scaling_factor,
        "residual": model.residual,
    }
    model.digest = hashing.digest(values, {WEIGHTS: hashing.file_digest(directory / WEIGHTS)})
    weights.write_json(values | {"source": source, "digest": model.digest}, directory / CONFIG)
    return model.digest


def config(directory: Path) -> AutoencoderConfig:
    """What a directory that `save` wrote says of itself; UserError where it is none."""
    path = directory / CONFIG
    return strict.parse(AutoencoderConfig, weights.read_json(path, "autoencoder"), str(path))


def load(directory: Path) -> Autoencoder:
    """The autoencoder that `save` wrote; weights of another architecture are a UserError."""
    saved = config(directory)
    net = weights.fill(build_autoencoder(saved.network), directory / WEIGHTS)
    constants = {name: getattr(saved, name) for name in ("mean", "deviation", "scaling_factor", "residual", "digest")}
    return Autoencoder(saved.network, saved.mel_spec, net, **constants)
