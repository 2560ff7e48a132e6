"""A mel autoencoder combined with a vocoder as a `Codec` (components/contracts.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundmill.models.components import vocoding
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder

GRAIN_SEED = 0


@dataclass(frozen=True)
class MelCodec:
    """Latents [N, channels, frames / factor, n_mels / factor], scaled; mono waves of `frames` · hop_length samples."""

    autoencoder: Autoencoder
    vocoder: Vocoder
    frames: int  # of the log-mels; shorter ones are padded with silence, longer ones cut
    grain: float  # share of the noise lost in reconstruction that decoding adds back
    device: torch.device
    channels: int = 1

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.spec.sample_rate

    @property
    def latent_rate(self) -> float:
        spec = self.autoencoder.spec
        return spec.sample_rate / (spec.hop_length * self.autoencoder.factor)

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.spec.hop_length

    def encode(self, waves: Tensor) -> Tensor:
        """Scaled posterior means, on the CPU."""
        autoencoder = self.autoencoder.to(self.device)
        means = [autoencoder.posterior([wave], self.num_samples)[:, 0].cpu() for wave in waves.numpy()]
        return torch.cat(means) * autoencoder.scaling_factor

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, 1, num_samples] in [−1, 1] on the CPU."""
        return vocoding.to_waves(self.vocoder, self.to_log_mels(latents), self.device, seeds=seeds)

    def to_log_mels(self, latents: Tensor) -> Tensor:
        """Log-mels [N, n_mels, frames] with grain, on the CPU; decoded one by one to limit memory."""
        autoencoder = self.autoencoder.to(self.device)
        log_mels = torch.cat([autoencoder.decode(latent[None].to(self.device)).cpu() for latent in latents])
        return with_grain(log_mels, autoencoder, self.grain)


def sounding(autoencoder: Autoencoder, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> MelCodec:
    """See components/contracts.py."""
    if vocoder is None:
        raise ValueError("log-mels need a vocoder")
    return MelCodec(autoencoder, vocoder, frames, grain, device)


def with_grain(log_mels: Tensor, autoencoder: Autoencoder, grain: float) -> Tensor:
    """Add noise to log-mels [N, n_mels, frames]: in each band `grain` times the deviation of the reconstruction error.

    An autoencoder decodes to the expected log-mel, without the speckle of a real one, and Griffin-Lim turns smooth log-mels into
    tones. Every sound gets the same noise, as it gets the same initial phases.
    """
    if not grain:
        return log_mels
    generator = torch.Generator().manual_seed(GRAIN_SEED)
    noise = torch.randn(log_mels.shape[1:], generator=generator) * torch.tensor(autoencoder.residual)[:, None]
    return (log_mels + grain * noise).clamp_min(autoencoder.silence)
