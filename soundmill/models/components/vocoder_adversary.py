"""Training a vocoder against discriminators of waves: HiFi-GAN and MelGAN differ in their nets and in what these are told.

What it hears of real clips is what their log-mels were made of: `MelSpec.peak` holds for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from soundmill.audio import mel
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.training import phases
from soundmill.training.loader import Batch
from soundmill.training.phases import Phase, PhasedModule, Turn, feature_loss, rebuilt

Synthesise = Callable[[nn.Module, Tensor, int], Tensor]  # net, log-mels [B, n_mels, frames], hop → waves [B, frames · hop]
Scores = Sequence[Tensor]  # of each discriminator


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
    """A batch: crops of clips, made anew from their log-mels by `synthesise`, beside what they were.

    `params` has `steps`, `optimiser`, `feature_weight` and `mel_weight`. `build` makes another `net`, without norms. `told` and
    `fooled` are the losses of the discriminators and of the net: least squares or hinge.
    """

    def __init__(
        self,
        params: Any,
        net: nn.Module,
        build: Callable[[], nn.Module],
        spec: MelSpec,
        synthesise: Synthesise,
        discriminator: nn.Module,
        told: Callable[[Scores, Scores], Tensor] = phases.discriminator_loss,
        fooled: Callable[[Scores], Tensor] = phases.generator_loss,
    ):
        super().__init__(net, {"discriminator": (discriminator, params.optimiser)}, params, params.steps)
        self.log_mel, self.synthesise, self.told, self.fooled = LogMel(spec), synthesise, told, fooled
        self.arguments = params, build, spec, synthesise, discriminator, told, fooled

    def __reduce__(self) -> Any:
        return rebuilt, (_with_norms, self.arguments, self.state_dict())

    def phases(self) -> list[Phase]:
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The weighted error of log-mels, or unweighted where it is not trained on: what discriminators say does not compare."""
        log_mel, real = batch.values
        made = self.synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        return (self.params.mel_weight or 1.0) * self._spectral(made, real)

    def _spectral(self, made: Tensor, real: Tensor) -> Tensor:
        return (self.log_mel(made) - self.log_mel(real)).abs().mean()

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        log_mel, real = batch.values
        made = self.synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        of_real, of_made = self.discriminator(real), self.discriminator(made.detach())
        yield self.told([scores for scores, _ in of_real], [scores for scores, _ in of_made])

        of_real, of_made = self.discriminator(real), self.discriminator(made)
        features = feature_loss([maps for _, maps in of_real], [maps for _, maps in of_made])
        fooled = self.fooled([scores for scores, _ in of_made])
        yield fooled + self.params.feature_weight * features + self.params.mel_weight * self._spectral(made, real)


def hinge_discriminator_loss(real: Scores, made: Scores) -> Tensor:
    """Hinge (Lim & Ye 2017), summed over discriminators: scores of what is real go above 1, of what is made below −1."""
    return torch.stack([relu(1 - mine).mean() + relu(1 + its).mean() for mine, its in zip(real, made, strict=True)]).sum()


def hinge_generator_loss(made: Scores) -> Tensor:
    return torch.stack([-its.mean() for its in made]).sum()


def check_hop(rates: Sequence[int], spec: MelSpec) -> None:
    """UserError where a net makes another number of samples of a frame than the spec has."""
    made = math.prod(rates)
    if made != spec.hop_length:
        raise UserError(
            f"vocoder.network.rates {rates} make {made} samples of a frame, and hop_length of its spectrogram is "
            f"{spec.hop_length}; make them agree"
        )


def check_crop(frames: int, spec: MelSpec) -> None:
    """UserError where a crop is shorter than what the centred transform mirrors at its ends."""
    if frames * spec.hop_length <= spec.n_fft // 2:
        raise UserError(
            f"vocoder.weights.crop_frames {frames} of {spec.hop_length} samples must be more than half of n_fft {spec.n_fft}"
        )


def _with_norms(params: Any, build: Callable[[], nn.Module], *others: Any) -> VocoderModule:
    return VocoderModule(params, with_norms(build()), build, *others)


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


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
