"""The diffusion autoencoder as a `Codec` (components/contracts.py)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec, check_sample_rate, mel_filterbank, mel_spectrogram
from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Net, on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, read_weights, waves_of
from soundmill.models.components.contracts import CodecConfig, restore_codec, save_codec
from soundmill.models.components.making import MadeComponent, Samples, held_out, size, started
from soundmill.models.components.pca import Pca
from soundmill.models.components.unet1d.codec import AutoencoderParams, EncoderParams
from soundmill.models.components.unet1d.network import PathModule, UNet1d, convolutions
from soundmill.models.components.unet1d.params import NO_TRANSFORM, SamplingParams
from soundmill.models.components.waves.source import SavedWaveCodec, beside_real, crops_of, fit_codec, padded, wave_deviation
from soundmill.training.device import pick_device, use_threads
from soundmill.training.loader import Batch

LEAST_POWER = 1e-6  # of a bin, relative to white noise of unit variance


class AutoencoderNet(nn.Module):
    """Waves [N, channels, T] ↔ latents [N, latent_channels, T / samples_per_frame], in (−1, 1) without `pca`.

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
        learned = v if self.unet.gated else v - xt  # without a gain, the U-Net returns its input plus what its levels add
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
        self.blocks = nn.ModuleList(convolutions(width, params.groups) for _ in range(params.blocks))
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


CERTAIN = -30.0  # ln variance of a posterior: the encoder is deterministic


class DiffusionCodecConfig(CodecConfig):
    kind: Literal["unet1d"] = "unet1d"
    params: AutoencoderParams
    mel_spec: MelSpec
    channels: int
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class DiffusionCodec(SavedWaveCodec):
    config = DiffusionCodecConfig

    params: AutoencoderParams
    spec: MelSpec
    channels: int
    net: AutoencoderNet
    sigma_data: float = 1.0  # standard deviation of the waves, by which the U-Net's input is divided

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def samples_per_frame(self) -> int:
        return self.params.samples_per_latent

    @property
    def latent_channels(self) -> int:
        return self.params.encoder.latent_channels

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latent_channels, T / samples_per_frame], scaled, of waves [N, channels, T]."""
        return self.net.encoder(waves) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor, decoding: SamplingParams | None = None) -> Tensor:
        """Waves [N, channels, T] from scaled latents; all start from the same noise."""
        sampling = decoding or self.params.decoding
        latents = latents / self.scaling_factor
        length = latents.shape[2] * self.samples_per_frame
        noise = torch.randn(1, self.channels, length, generator=torch.Generator().manual_seed(sampling.seed))
        start = noise.expand(len(latents), -1, -1).to(latents)
        net = on_unit_variance(partial(self.net, latents=latents), self.sigma_data)
        return sample(solvers.velocity(sampling.num_steps), net, scaled(start, self.sigma_data)).clamp(-1, 1)

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_frame, 1], not scaled."""
        whole = padded(waves, num_samples, self.params.network.stride)
        if num_samples <= self.spec.n_fft // 2:
            raise UserError(f"num_samples {num_samples} must be more than half of n_fft {self.spec.n_fft}")
        with torch.no_grad():
            mean = self.net.encoder(whole.to(next(self.net.parameters()).device))[..., None].float()
        return torch.stack([mean, torch.full_like(mean, CERTAIN)], 1)


network = AutoencoderNet


load = partial(restore_codec, DiffusionCodec, lambda saved, spec, channels: AutoencoderNet(saved.params, spec, channels))


SHOWN = 4


class AutoencoderModule(PathModule):
    """A batch: waves [b, channels, T]; encoder and U-Net are trained jointly."""

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        (waves,) = batch.values
        latents = self.net.encoder(waves)
        return lambda xt, level: self.net(xt, level, latents), waves


def make(params: AutoencoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, spec, weights = read_weights(catalog), read_spec(mels), params.weights
    params.check_spec(spec)
    use_threads(params.hardware.threads)
    _, (wave, rate) = next(waves_of(clips, set(splits["train"])))
    check_sample_rate(spec, rate, str(clips))

    source_of = partial(crops_of, clips, ctx.scratch, len(wave), weights.num_samples)
    torch.manual_seed(weights.seed)
    net = AutoencoderNet(params, spec, len(wave))
    model = DiffusionCodec(params, spec, len(wave), net)
    module = AutoencoderModule(net, weights, weights.steps)
    start, started_from = started(params, ctx, load, mel_spec=spec)
    if start:
        module.start_from(start.net.state_dict(), weights.start_from)
        model.sigma_data = start.sigma_data
    train = list(splits["train"])
    if weights.unit_variance and not started_from:
        model.sigma_data = wave_deviation(source_of(train).waves, "autoencoder.weights.unit_variance")
    module.sigma_data = model.sigma_data
    if params.encoder.pca and not started_from:
        net.start_from_components(source_of(train).whole(), model.sigma_data, "autoencoder.encoder.pca")
    draw = partial(samples, model, clips, held_out(splits, weights) or train, pick_device(params.hardware.accelerator))
    fitted, facts = fit_codec(model, module, source_of, splits, params, ctx, draw, started_from)
    metrics = {"parameters": size(net), "scaling_factor": model.scaling_factor, **model.metrics}
    return MadeComponent(partial(save_codec, model, source=facts), metrics, draw, fitted)


def samples(model: DiffusionCodec, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """Real clips and their reconstructions."""
    stride = model.params.network.stride
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN))
    waves = waves[..., : max(stride, min(waves.shape[2], 4 * model.params.weights.num_samples) // stride * stride)]
    waves = torch.nn.functional.pad(waves, (0, -waves.shape[2] % stride))
    return beside_real(model, waves, stride, device, step)
