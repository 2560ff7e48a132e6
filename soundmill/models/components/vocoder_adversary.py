"""Adversarial training of a vocoder; HiFi-GAN and MelGAN differ in their networks and adversarial losses.

Real clips have the level that their log-mels were computed from: `MelSpec.peak` applies to both.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from soundmill.audio import mel
from soundmill.audio.mel import MelSpec
from soundmill.training.loader import Batch
from soundmill.training.module import Phase, PhasedModule, Turn, discriminator_loss, feature_loss, generator_loss, rebuilt

Synthesise = Callable[[nn.Module, Tensor, int], Tensor]  # net, log-mels [B, n_mels, frames], hop → waves [B, frames · hop]
Scores = Sequence[Tensor]  # one tensor per discriminator


class LogMel(nn.Module):
    """Differentiable `mel.log_mel` of waves [B, T] whose peak is already set."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.mel = mel.mel_spectrogram(spec)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            return self.mel(wave.float()).clamp_min(self.spec.floor).log()


class VocoderModule(PhasedModule):
    """A batch: log-mels and waves of crops; `synthesise` generates waves from the log-mels.

    `params` has `steps`, `optimiser`, `feature_weight` and `mel_weight`. `build` makes a new `net` without weight normalisation.
    `discriminator_loss` and `generator_loss` are the adversarial losses: least squares or hinge.
    """

    def __init__(
        self,
        params: Any,
        net: nn.Module,
        build: Callable[[], nn.Module],
        spec: MelSpec,
        synthesise: Synthesise,
        discriminator: nn.Module,
        discriminator_loss: Callable[[Scores, Scores], Tensor] = discriminator_loss,
        generator_loss: Callable[[Scores], Tensor] = generator_loss,
    ):
        super().__init__(net, {"discriminator": (discriminator, params.optimiser)}, params, params.steps)
        self.log_mel, self.synthesise = LogMel(spec), synthesise
        self.discriminator_loss, self.generator_loss = discriminator_loss, generator_loss
        self.arguments = params, build, spec, synthesise, discriminator, discriminator_loss, generator_loss

    def __reduce__(self) -> Any:
        return rebuilt, (_with_norms, self.arguments, self.state_dict())

    def phases(self) -> list[Phase]:
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The weighted log-mel error (unweighted if its weight is 0); adversarial losses are not comparable between steps."""
        log_mel, real = batch.values
        fake = self.synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        return (self.params.mel_weight or 1.0) * self._spectral(fake, real)

    def _spectral(self, fake: Tensor, real: Tensor) -> Tensor:
        return (self.log_mel(fake) - self.log_mel(real)).abs().mean()

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        log_mel, real = batch.values
        fake = self.synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        real_outputs, fake_outputs = self.discriminator(real), self.discriminator(fake.detach())
        yield self.discriminator_loss([scores for scores, _ in real_outputs], [scores for scores, _ in fake_outputs])

        real_outputs, fake_outputs = self.discriminator(real), self.discriminator(fake)
        features = feature_loss([maps for _, maps in real_outputs], [maps for _, maps in fake_outputs])
        adversarial = self.generator_loss([scores for scores, _ in fake_outputs])
        yield adversarial + self.params.feature_weight * features + self.params.mel_weight * self._spectral(fake, real)


def _with_norms(params: Any, build: Callable[[], nn.Module], *others: Any) -> VocoderModule:
    return VocoderModule(params, with_norms(build()), build, *others)


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def with_norms(net: nn.Module) -> nn.Module:
    """Apply weight normalisation (Salimans & Kingma 2016), as in training."""
    for layer in convolutions(net):
        weight_norm(layer)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """Fold weight normalisation into the kernels."""
    for layer in convolutions(net):
        parametrize.remove_parametrizations(layer, "weight")
    return net
