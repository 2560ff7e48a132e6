"""Train HiFi-GAN on the training clips.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646). What it hears of real clips is what their
log-mels were made of: `MelSpec.peak` holds for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from soundmill.audio import mel
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.hifigan.discriminators import Discriminators
from soundmill.models.components.hifigan.params import HifiGanParams, TrainedParams
from soundmill.models.components.hifigan.vocoder import HifiGan, build_vocoder, load, synthesise
from soundmill.models.components.vocoder_making import Making
from soundmill.training.loader import Batch
from soundmill.training.module import Fitted
from soundmill.training.phases import Phase, PhasedModule, Turn, discriminator_loss, feature_loss, generator_loss


class LogMel(nn.Module):
    """`mel.log_mel` of waves [B, T] that are already at their peak, with a gradient."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.mel = mel.mel_spectrogram(spec)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            return self.mel(wave.float()).clamp_min(self.spec.floor).log()


class VocoderModule(PhasedModule):
    """A batch: crops of clips, made anew from their log-mels, beside what they were."""

    def __init__(self, params: TrainedParams, net: nn.Module, spec: MelSpec):
        discriminator = Discriminators(params.discriminator_width)
        super().__init__(net, {"discriminator": (discriminator, params.optimiser)}, params, params.steps)
        self.log_mel = LogMel(spec)

    def phases(self) -> list[Phase]:
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The weighted error of log-mels: what discriminators say is not comparable between steps."""
        log_mel, real = batch.values
        return self.params.mel_weight * self._spectral(synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length), real)

    def _spectral(self, made: Tensor, real: Tensor) -> Tensor:
        return (self.log_mel(made) - self.log_mel(real)).abs().mean()

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        log_mel, real = batch.values
        made = synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        of_real, of_made = self.discriminator(real), self.discriminator(made.detach())
        yield discriminator_loss([scores for scores, _ in of_real], [scores for scores, _ in of_made])

        of_real, of_made = self.discriminator(real), self.discriminator(made)
        features = feature_loss([maps for _, maps in of_real], [maps for _, maps in of_made])
        fooled = generator_loss([scores for scores, _ in of_made])
        yield fooled + self.params.feature_weight * features + self.params.mel_weight * self._spectral(made, real)


def train(params: HifiGanParams, making: Making) -> tuple[HifiGan, Fitted, dict[str, Any]]:
    """The trained vocoder, its training, and facts of it."""
    wanted, spec = params.weights, making.spec
    check_crop(wanted.crop_frames, spec)
    torch.manual_seed(wanted.seed)
    net = start_anew(build_vocoder(params.network, spec.n_mels, spec.sample_rate))
    model = HifiGan(params.network, spec, net)
    started_from = making.begin(model, load, ("network",))
    with_norms(net)
    fitted, facts = making.train(VocoderModule(wanted, net, spec), model, started_from)
    without_norms(net).eval()
    return model, fitted, facts


def check_crop(frames: int, spec: MelSpec) -> None:
    """UserError where a crop is shorter than what the centred transform mirrors at its ends."""
    if frames * spec.hop_length <= spec.n_fft // 2:
        raise UserError(
            f"vocoder.weights.crop_frames {frames} of {spec.hop_length} samples must be more than half of n_fft {spec.n_fft}"
        )


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def start_anew(net: nn.Module) -> nn.Module:
    """The net with torch's own first weights: transformers' fit 512 channels, and a narrow net would begin in silence."""
    for layer in convolutions(net):
        layer.reset_parameters()
    return net


def with_norms(net: nn.Module) -> nn.Module:
    """The net with length and direction of its kernels apart (Salimans & Kingma 2016), as it is trained."""
    for layer in convolutions(net):
        weight_norm(layer)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """The net with its kernels as they are."""
    for layer in convolutions(net):
        parametrize.remove_parametrizations(layer, "weight")
    return net
