"""The diffusion autoencoder as a `Codec` (components/contracts.py)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, SpectrogramParams, mel_filterbank, mel_spectrogram
from soundmill.diffusion import solvers
from soundmill.diffusion.paths import on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.errors import UserError
from soundmill.models.components.contracts import CodecConfig, OnItsDevice
from soundmill.models.components.pca import Pca
from soundmill.models.components.unet1d.codec import AutoencoderParams, EncoderParams
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM, SamplingParams
from soundmill.training import checkpoint

LEAST_POWER = 1e-6  # of a bin, relative to white noise of unit variance


class AutoencoderNet(nn.Module):
    """Waves [N, channels, T] ↔ latents [N, latent_channels, T / samples_per_latent], in (−1, 1) without `pca`.

    With `pca`, the latents start as principal components of log-mels, and the U-Net learns what the best denoiser of Gaussian noise
    with their spectrum lacks.
    """

    def __init__(self, params: AutoencoderParams, spec: MelSpec, channels: int):
        super().__init__()
        latents = {"latent_channels": params.encoder.latent_channels, "latents_at": params.latents_at}
        self.encoder = Encoder(params.encoder, spec, channels)
        self.unet = UNet1d(params.network, NO_TRANSFORM, channels, channels, **latents)
        self.denoiser = GaussianDenoiser(spec, channels) if params.encoder.pca else None
        if params.encoder.pca:
            for last in (self.encoder.last, self.unet.levels.up):
                nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)

    def forward(self, xt: Tensor, level: Tensor, latents: Tensor) -> Tensor:
        v = self.unet(xt, level, latents=latents)
        if self.denoiser is None:
            return v
        learned = v - xt  # the U-Net returns its input plus what its levels add
        return learned + self.denoiser(xt, level, self.encoder.pca.decode(latents))

    @torch.no_grad()
    def start_from_components(self, waves: Iterable[Tensor], sigma_data: float, key: str) -> None:
        """Fit the principal components to waves [N, channels, T] of deviation `sigma_data`.

        UserError, which names the parameter `key`, if the waves are silent.
        """
        self.encoder.sigma_data.fill_(sigma_data)
        self.encoder.pca.fit((self.encoder.of_unit_variance(self.encoder.log_mels(some)) for some in waves), key)


class Encoder(nn.Module):
    """Log-mels of every channel → convolutions → tanh, or, with `pca`, added to the principal components."""

    def __init__(self, params: EncoderParams, spec: MelSpec, channels: int):
        super().__init__()
        self.spec = spec
        width = params.channels
        self.first = nn.Conv1d(channels * spec.n_mels, width, 3, padding=1)
        self.down = nn.Conv1d(width, width, 2 * params.factor + 1, stride=params.factor, padding=params.factor)
        self.blocks = nn.ModuleList(_block(width, params.groups) for _ in range(params.blocks))
        self.last = nn.Conv1d(width, params.latent_channels, 1)
        self.pca = Pca(channels * spec.n_mels, params.factor, params.latent_channels) if params.pca else None
        if params.pca:
            self.register_buffer("sigma_data", torch.ones(()))

    def forward(self, waves: Tensor) -> Tensor:
        log_mels = self.log_mels(waves)
        hidden = self.down(self.first(log_mels))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        if self.pca is None:
            return self.last(hidden).tanh()
        return self.pca.encode(self.of_unit_variance(log_mels)) + self.last(hidden)

    def log_mels(self, waves: Tensor) -> Tensor:
        """[N, channels · n_mels, T / hop_length]."""
        frames = waves.shape[2] // self.spec.hop_length
        with torch.autocast(waves.device.type, enabled=False):
            mels = _mels(self.spec, waves.device)(waves.float())[..., :frames]
            return mels.clamp_min(self.spec.floor).log().flatten(1, 2)

    def of_unit_variance(self, log_mels: Tensor) -> Tensor:
        """Log-mels of the waves divided by `sigma_data`."""
        return log_mels - self.spec.power * self.sigma_data.log()


class GaussianDenoiser(nn.Module):
    """The closed form of v for waves that are Gaussian noise with a known spectrum of power S: a Wiener filter.

    E[x0 | xt] = αS / (α²S + σ²) · xt for every bin of an STFT, so v = ασ(1 − S) / (α²S + σ²) · xt.
    """

    def __init__(self, spec: MelSpec, channels: int):
        super().__init__()
        self.spec, self.channels = spec, channels
        with torch.device("cpu"):  # also where only parameters are counted, on the meta device
            bank = mel_filterbank(spec)
            inside = bank.sum(1).nonzero()[:, 0]  # bins; those outside all bands take the power of the nearest of these
            nearest = inside[(torch.arange(len(bank))[:, None] - inside).abs().argmin(1)]
            shares = bank / bank.sum(1, keepdim=True).clamp_min(1e-12) / bank.sum(0)
            self.register_buffer("shares", shares[nearest], persistent=False)  # [bins, n_mels]
            self.register_buffer("window", torch.hann_window(spec.win_length), persistent=False)

    def forward(self, xt: Tensor, level: Tensor, log_mels: Tensor) -> Tensor:
        """v of xt [N, channels, T] at level [N]; log-mels of x0 [N, channels · n_mels, T / hop_length]."""
        with torch.autocast(xt.device.type, enabled=False):
            waves, angle = xt.float().flatten(0, 1), level.float() * (math.pi / 2)
            stft = {"n_fft": self.spec.n_fft, "hop_length": self.spec.hop_length, "win_length": self.spec.win_length}
            spectrum = torch.stft(waves, **stft, window=self.window, pad_mode="constant", return_complex=True)
            alpha, sigma = (part.repeat_interleave(self.channels)[:, None, None] for part in (angle.cos(), angle.sin()))
            power = self.power(log_mels.float())
            gain = alpha * sigma * (1 - power) / (alpha.square() * power + sigma.square()).clamp_min(1e-12)
            return torch.istft(gain * spectrum, **stft, window=self.window, length=xt.shape[2]).view_as(xt)

    def power(self, log_mels: Tensor) -> Tensor:
        """Power [N · channels, bins, frames + 1] relative to white noise of unit variance; the last frame is repeated."""
        mels = log_mels.unflatten(1, (self.channels, -1)).flatten(0, 1).exp()
        noise = self.window.square().sum()  # mean |STFT|² of white noise; the mean of |STFT| is √(π / 4) of its root
        bins = self.shares @ torch.cat([mels, mels[..., -1:]], 2)
        power = bins / noise if self.spec.power == 2.0 else bins.square() / (noise * math.pi / 4)
        return power.clamp_min(LEAST_POWER)


@lru_cache(maxsize=4)
def _mels(spec: MelSpec, device: torch.device) -> nn.Module:
    """Not part of the network: it has nothing to train or to save."""
    return mel_spectrogram(spec).to(device)


def _block(width: int, groups: int) -> nn.Sequential:
    """Two convolutions, each after normalisation and activation."""
    parts = (part for _ in range(2) for part in (nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1)))
    return nn.Sequential(*parts)


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
        return DiffusionCodecConfig(kind="unet1d", scaling_factor=self.scaling_factor, source=source, digest=self.digest, **built)

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
