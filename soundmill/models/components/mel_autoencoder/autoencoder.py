"""The autoencoder of log-mels: diffusers' AutoencoderKL, alone or on top of principal components, and its constants.

Its weights have diffusers' names, below `residual.` if there are components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, levelled, log_mel
from soundmill.errors import UserError
from soundmill.models.components.contracts import CodecConfig, OnItsDevice
from soundmill.models.components.mel_autoencoder import AutoencoderNetParams, AutoencoderParams
from soundmill.models.components.pca import Pca
from soundmill.training import checkpoint

CONSTANTS = ("mean", "deviation", "scaling_factor", "residual")
LOG_VARIANCE = -8.0  # of the posterior, before training with principal components, whose own variance is 1


def network(params: AutoencoderParams, spec: dict[str, Any], channels: int = 1) -> Any:
    return build_autoencoder(params.network)


def build_autoencoder(params: AutoencoderNetParams) -> Any:
    """The network on images [B, 1, frames, n_mels], initialised from torch's global generator; attention only in the middle block.

    It has 55,376,873 parameters at AudioLDM's sizes.
    """
    from diffusers import AutoencoderKL

    levels = len(params.widths)
    net = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=params.widths,
        layers_per_block=params.blocks,
        latent_channels=params.latent_channels,
        norm_num_groups=params.groups,
    )
    return PcaAutoencoder(net, params) if params.pca else net


class PcaAutoencoder(nn.Module):
    """An AutoencoderKL that learns what the principal components of patches lack; it is called like an AutoencoderKL.

    A patch has `factor` frames and `factor` bands. Untrained, the posterior's mean is the components of each patch, of unit
    variance, and the decoder inverts them.
    """

    def __init__(self, residual: Any, params: AutoencoderNetParams):
        super().__init__()
        self.residual, self.factor = residual, params.factor
        self.pca = Pca(params.factor, params.factor, params.latent_channels)
        for last in (residual.quant_conv, residual.decoder.conv_out):
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        residual.quant_conv.bias.data[params.latent_channels :] = LOG_VARIANCE

    def rows(self, picture: Tensor) -> Tensor:
        """Rows of patches [B · n_mels / factor, factor, frames] of pictures [B, 1, frames, n_mels]."""
        return picture[:, 0].transpose(1, 2).unflatten(1, (-1, self.factor)).flatten(0, 1)

    def encode(self, picture: Tensor) -> Any:
        encoded = self.residual.encode(picture)
        components = self.pca.encode(self.rows(picture)).unflatten(0, (len(picture), -1))  # [B, bands, channels, frames]
        encoded.latent_dist.mean = encoded.latent_dist.mean + components.permute(0, 2, 3, 1)
        return encoded

    def decode(self, latents: Tensor) -> Any:
        decoded = self.residual.decode(latents)
        rows = self.pca.decode(latents.permute(0, 3, 1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))
        decoded.sample = decoded.sample + rows.flatten(1, 2).transpose(1, 2)[:, None]
        return decoded


class AutoencoderConfig(CodecConfig):
    """Architecture, mel spec and standardisation of the log-mels."""

    kind: Literal["mel_autoencoder"]
    network: AutoencoderNetParams
    mel_spec: MelSpec
    mean: float  # of log-mels: the network's input is (log_mel − mean) / deviation
    deviation: float
    residual: list[float]  # standard deviation of the reconstruction error per band


@dataclass
class Autoencoder(OnItsDevice):
    """The network, in evaluation mode and float32, and the content of `config.json`."""

    network: AutoencoderNetParams
    spec: MelSpec
    net: nn.Module
    mean: float
    deviation: float
    scaling_factor: float
    residual: list[float] = field(default_factory=list)  # per band; set by `measure`
    digest: str = ""  # set when saved

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
        """Shape (channels, frames, bands) of the latent of a log-mel of `frames` frames."""
        return self.network.latent_channels, frames // self.factor, self.spec.n_mels // self.factor

    def config(self, source: dict[str, Any]) -> AutoencoderConfig:
        named = {name: getattr(self, name) for name in (*CONSTANTS, "network", "digest")}
        return AutoencoderConfig(kind="mel_autoencoder", mel_spec=self.spec, source=source, **named)

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def channels(self) -> int:
        return 1

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py, of their log-mels: num_samples / hop_length frames."""
        per_latent = self.spec.hop_length * self.factor
        if num_samples % per_latent:
            raise UserError(f"num_samples {num_samples} must be a multiple of {per_latent}, hop_length · {self.factor}")
        log_mels = torch.from_numpy(np.stack([padded_log_mel(wave, self.spec, num_samples) for wave in waves]))
        device = next(self.net.parameters()).device
        return torch.stack(self.encode(log_mels.to(device)), 1)

    @torch.no_grad()
    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and ln variance of the posterior, [B, channels, frames / factor, n_mels / factor], of log-mels [B, n_mels, frames].

        `frames` must be a multiple of `factor`. The results are not scaled.
        """
        posterior = self.net.encode(to_picture(log_mel, self.mean, self.deviation)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Log-mels [B, n_mels, frames], at least the spec's floor, from scaled latents [B, channels, frames / factor, bands]."""
        picture = self.net.decode(x0 / self.scaling_factor).sample.float()
        return (picture[:, 0].transpose(1, 2) * self.deviation + self.mean).clamp_min(self.silence)


def padded_log_mel(wave: np.ndarray, spec: MelSpec, num_samples: int) -> np.ndarray:
    """Log-mel float32 [n_mels, num_samples / hop_length] of a wave [channels, T], cut or padded with silence to `num_samples`.

    The level is that of the whole wave: it is set before cutting or padding.
    """
    mono = levelled(wave.mean(0), spec)[:num_samples]
    mono = np.pad(mono, (0, num_samples - len(mono)))
    return log_mel(mono, spec.model_copy(update={"peak": None}))[:, : num_samples // spec.hop_length]


def to_picture(log_mel: Tensor, mean: float, deviation: float) -> Tensor:
    """The network's input [B, 1, frames, n_mels] from log-mels [B, n_mels, frames]."""
    return ((log_mel - mean) / deviation).transpose(1, 2)[:, None]


def sample_posterior(mean: Tensor, log_variance: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """x0: a scaled sample of the posterior from standard normal `noise`."""
    return scaling_factor * (mean + (0.5 * log_variance).exp() * noise)


def load(directory: Path) -> Autoencoder:
    saved = checkpoint.load_config(directory, AutoencoderConfig, "autoencoder")
    net = checkpoint.load_weights(lambda: build_autoencoder(saved.network), directory / checkpoint.WEIGHTS)
    constants = {name: getattr(saved, name) for name in CONSTANTS}
    return Autoencoder(saved.network, saved.mel_spec, net, digest=saved.digest, **constants)
