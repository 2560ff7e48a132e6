"""Adversarial training of a vocoder; HiFi-GAN and MelGAN differ in their networks and adversarial losses.

Real clips have the level that their log-mels were computed from: `MelSpec.peak` applies to both. The discriminators are of several
periods and scales as in HiFi-GAN (Kong, Kim & Bae 2020), or of scales only as in MelGAN. Each returns the scores [B, positions] of
a wave [B, 1, T] and its feature maps. At the paper's width of 32, those of periods have 41,105,770 parameters and those of scales
29,618,821, including weight normalisation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from soundmill.audio import mel
from soundmill.audio.mel import MelSpec
from soundmill.training.loader import Batch
from soundmill.training.module import Phase, PhasedModule, Turn, discriminator_loss, feature_loss, generator_loss, rebuilt

Output = tuple[Tensor, list[Tensor]]  # scores, feature maps

PERIODS = (2, 3, 5, 7, 11)  # primes, so that they overlap as little as possible
SCALES = 3  # each at half the rate of the one before
SLOPE = 0.1  # of the leaky ReLUs


class Convolutions(nn.Module):
    """Convolutions and a last one to a single channel; the output of each is a feature map."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, signal: Tensor) -> Output:
        features = []
        for layer in self.layers[:-1]:
            signal = nn.functional.leaky_relu(layer(signal), SLOPE)
            features.append(signal)
        signal = self.layers[-1](signal)
        return signal.flatten(1), [*features, signal]


class PeriodDiscriminator(nn.Module):
    """Convolutions along every `period`-th sample of a wave reshaped to [B, 1, T / period, period]."""

    def __init__(self, period: int, width: int):
        super().__init__()
        self.period = period
        widths = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        strides = [3, 3, 3, 3, 1]
        layers = [
            weight_norm(nn.Conv2d(below, above, (5, 1), (stride, 1), (2, 0)))
            for below, above, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        self.stack = Convolutions([*layers, weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))])

    def forward(self, wave: Tensor) -> Output:
        missing = -wave.shape[2] % self.period
        wave = nn.functional.pad(wave, (0, missing), mode="reflect")
        return self.stack(wave.unflatten(2, (-1, self.period)))


class ScaleDiscriminator(nn.Module):
    """Grouped convolutions of the wave with increasing width."""

    def __init__(self, width: int, norm: Callable[[nn.Module], nn.Module]):
        super().__init__()
        base = 4 * width
        plan = [  # channels in and out, kernel, stride, groups
            (1, base, 15, 1, 1),
            (base, base, 41, 2, 4),
            (base, 2 * base, 41, 2, 16),
            (2 * base, 4 * base, 41, 4, 16),
            (4 * base, 8 * base, 41, 4, 16),
            (8 * base, 8 * base, 41, 1, 16),
            (8 * base, 8 * base, 5, 1, 1),
            (8 * base, 1, 3, 1, 1),
        ]
        self.stack = Convolutions(
            [
                norm(nn.Conv1d(below, above, kernel, stride, kernel // 2, groups=groups))
                for below, above, kernel, stride, groups in plan
            ]
        )

    def forward(self, wave: Tensor) -> Output:
        return self.stack(wave)


class Discriminators(nn.Module):
    """All period and scale discriminators, with separate weights; `width`, a multiple of 4, is 32 in HiFi-GAN's paper."""

    def __init__(self, width: int, periods: Sequence[int] = PERIODS):
        super().__init__()
        self.arguments = width, periods
        self.periods = nn.ModuleList([PeriodDiscriminator(period, width) for period in periods])
        norms = [spectral_norm] + [weight_norm] * (SCALES - 1)  # as in the paper's code: spectral norm for the first, on raw waves
        self.scales = nn.ModuleList([ScaleDiscriminator(width, norm) for norm in norms])
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def __reduce__(self) -> Any:
        return rebuilt, (Discriminators, self.arguments, self.state_dict())

    def forward(self, wave: Tensor) -> list[Output]:
        """Outputs of each discriminator for waves [B, T], always in the same order."""
        wave = wave[:, None]
        outputs = [period(wave) for period in self.periods]
        for number, scale in enumerate(self.scales):
            wave = wave if number == 0 else self.halve(wave)
            outputs.append(scale(wave))
        return outputs


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
