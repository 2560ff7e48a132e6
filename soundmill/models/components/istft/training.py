"""Training: magnitudes by maximum likelihood, waves against discriminators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.transforms import Spectrogram

from soundmill.audio.mel import MelSpec
from soundmill.models.components.istft.network import ended
from soundmill.models.components.istft.params import edge
from soundmill.models.components.vocoder_adversary import VocoderModule, hinge_discriminator_loss, hinge_generator_loss
from soundmill.models.components.wave_discriminators import Discriminators
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.phases import rebuilt

QUIETEST = 1e-4  # magnitude, below the rounding noise of 16 bits


class LikelihoodModule(TrainingModule):
    """A batch: log-mels of crops [B, n_mels, frames] and their waves [B, frames · hop_length].

    The loss is the mean of −ln p − ln 2 over log-magnitudes, where p is a Laplace distribution. Silence, whose density would grow
    without bound, and bins outside all bands are left out, as are the frames at the ends of a crop, whose windows reach beyond it.
    """

    def __init__(self, params: Any, net: nn.Module, spec: MelSpec):
        super().__init__(net, params, params.steps)
        self.hop, self.ends = spec.hop_length, edge(spec)
        self.spectrogram = Spectrogram(spec.n_fft, spec.win_length, spec.hop_length, power=1.0)

    def loss(self, step: int, batch: Batch) -> Tensor:
        log_mel, wave = batch.values
        inner = slice(self.ends, log_mel.shape[2] - self.ends)
        with torch.autocast(wave.device.type, enabled=False):
            real = self.spectrogram(wave.float())[..., inner]
        median, spread = (values[..., inner] for values in self.net(log_mel.float()))
        counted = (real > QUIETEST) & (median > 0)
        distance = (real.clamp_min(QUIETEST).log() - median.clamp_min(1e-12).log()).abs() / spread + spread.log()
        return torch.where(counted, distance, 0).sum() / counted.sum().clamp_min(1)


class WaveModule(VocoderModule):
    """Trained as HiFi-GAN is, but without weight norms."""

    def __reduce__(self) -> Any:
        return rebuilt, (_module, self.arguments, self.state_dict())


def _module(params: Any, build: Callable[[], nn.Module], *others: Any) -> WaveModule:
    return WaveModule(params, build(), build, *others)


def against_discriminators(params: Any, net: nn.Module, build: Callable[[], nn.Module], spec: MelSpec) -> WaveModule:
    """Hinge, feature maps and log-mels (Siuzdak 2024, sec. 3.3), against HiFi-GAN's discriminators; `build` makes another `net`."""
    discriminators = Discriminators(params.discriminator_width)
    return WaveModule(params, net, build, spec, synthesise, discriminators, hinge_discriminator_loss, hinge_generator_loss)


def synthesise(net: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    """Waves [B, frames · hop_length] of log-mels [B, n_mels, frames]."""
    return net(ended(log_mel))
