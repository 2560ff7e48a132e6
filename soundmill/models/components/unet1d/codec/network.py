"""The autoencoder's networks: an encoder of waves, and a U-Net conditioned on its latents."""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, mel_filterbank, mel_spectrogram
from soundmill.models.components.pca import Pca
from soundmill.models.components.unet1d.codec.params import AutoencoderParams, EncoderParams
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM

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
