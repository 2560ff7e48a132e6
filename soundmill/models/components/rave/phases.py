"""How RAVE is trained: phase 1 as a variational autoencoder, phase 2 its decoder against discriminators, on augmented crops."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill import terminal
from soundmill.errors import UserError
from soundmill.models.components import rave
from soundmill.models.components.rave.network import Normed, RaveNet
from soundmill.models.components.waves.source import WaveCrops
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch, crop_places
from soundmill.training.module import PhasedModule, hinge_discriminator_loss, hinge_generator_loss, rate_factor
from soundmill.training.seeds import seed_of

LOWEST_HZ, HIGHEST_HZ = 20.0, 2000.0  # of the all-pass filter's poles
RADIUS = 0.99  # of these poles
LEAST_MAGNITUDE = 1e-7  # added to a divisor
LEAST_POWER = 1e-8  # of a bin per sample of the window, added to the mean power of the real signal, which is 0 for silence
SCALE_KERNEL, PERIOD_KERNEL, STRIDE = 15, 5, 4  # of the discriminators
SLOPE = 0.2  # of the leaky ReLUs

FeatureMaps = list[Tensor]  # before the activations; the last map is the scores


class DiscriminatorConv(Normed, nn.Conv2d):
    def __init__(self, below: int, above: int, kernel: int, stride: int):
        super().__init__(below, above, (kernel, 1), (stride, 1), (kernel // 2, 0))
        self.register_parameter("length", None)

    def forward(self, signal: Tensor) -> Tensor:
        return F.conv2d(signal, self.kernel(), self.bias, self.stride, self.padding)


class Discriminator(nn.Module):
    """Convolutions with a stride of four along every `period`-th sample; with period 1, along all samples."""

    def __init__(self, channels: int, layers: int, period: int):
        super().__init__()
        self.period = period
        kernel = SCALE_KERNEL if period == 1 else PERIOD_KERNEL
        widths = [1, *(channels * 2**level for level in range(layers))]
        self.layers = nn.ModuleList(DiscriminatorConv(below, above, kernel, STRIDE) for below, above in pairwise(widths))
        for layer in self.layers:
            layer.norm()
        self.last = DiscriminatorConv(widths[-1], 1, 1, 1)  # no weight norm, as in the published code

    def forward(self, waves: Tensor) -> FeatureMaps:
        signal, maps = F.pad(waves, (0, -waves.shape[2] % self.period)).unflatten(2, (-1, self.period)), []
        for layer in self.layers:
            maps.append(layer(signal))
            signal = F.leaky_relu(maps[-1], SLOPE)
        return [*maps, self.last(signal)]


class Discriminators(nn.Module):
    """All discriminators of phase 2, at several rates (Kumar et al. 2019) and periods (Kong et al. 2020), with separate weights.

    Three scales with 64 channels and four layers have 7,751,619 weights.
    """

    def __init__(self, params: rave.DiscriminatorsParams):
        super().__init__()
        self.scales = nn.ModuleList(Discriminator(params.channels, params.layers, 1) for _ in range(params.scales))
        self.periods = nn.ModuleList(Discriminator(params.channels, params.layers, period) for period in params.periods)

    def forward(self, waves: Tensor) -> list[FeatureMaps]:
        """Feature maps of each discriminator, always in the same order."""
        maps, downsampled = [period(waves) for period in self.periods], waves
        for scale in self.scales:
            maps.append(scale(downsampled))
            downsampled = F.avg_pool1d(downsampled, 2)
        return maps


class RaveModule(PhasedModule):
    """A batch: waves [b, 1, T].

    The generator's learning rate decays over phase 1 and stays in phase 2, over which the discriminators' rate decays.
    """

    def __init__(self, params: rave.WeightsParams, net: RaveNet):
        discriminators = params.discriminators
        adversaries = {"discriminators": (Discriminators(discriminators), discriminators.optimiser)}
        super().__init__(net, adversaries, params, params.steps)
        self.ends = net.receptive_field() if params.valid_signal_crop else (0, 0)  # band frames affected by padding
        left = params.num_samples // net.pqmf.bands - sum(self.ends)
        if left < min(params.scales):
            raise UserError(
                f"weights.valid_signal_crop leaves {max(0, left)} band frames of a crop, fewer than the shortest of weights.scales "
                f"({min(params.scales)}): raise weights.num_samples, or set weights.valid_signal_crop to false"
            )

    def share_of_rate(self, net: str, step: int) -> float:
        first, kept = self.params.phase_1_steps, self.optimised[net]
        if net == "discriminators":
            return rate_factor(max(0, step - first), max(1, self.steps - first), kept)
        return rate_factor(step, first, kept)

    def due(self, step: int) -> Sequence[str]:
        adversarial = self.opposed(step) and step % self.params.discriminator_every == 0
        return ["discriminators" if adversarial else "net"]

    def frozen(self, step: int) -> Sequence[str]:
        return ["net.encoder"] if self.opposed(step) else []

    def opposed(self, step: int) -> bool:
        """Whether a batch is of phase 2."""
        return step >= self.params.phase_1_steps

    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        yield self.oppose(step, batch, *nets) if self.opposed(step) else self.represent(step, batch)

    def represent(self, step: int, batch: Batch) -> Tensor:
        """Phase 1: the spectral distance plus the weighted KL divergence."""
        bands = self.net.pqmf.analysis(batch.values[0])
        mean, deviation = self.net.posterior(bands)
        latents = self._sample(mean, deviation, step)
        decoded = self.net.decoder(latents, self._noise(latents, step) if self.net.pca is not None else None)
        divergence = kl_divergence(mean.float(), deviation.float())
        return self._distance(decoded, bands, batch.values[0]) + self.params.kl.weight(step) * divergence

    def oppose(self, step: int, batch: Batch, name: str) -> Tensor:
        """Phase 2: each batch trains either the discriminators or the generator, which keeps the spectral distance."""
        if step == self.params.phase_1_steps and self.rank == 0:
            terminal.say(f"phase 2 begins at step {step} of {self.steps}: the encoder is frozen")
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        with torch.no_grad(), evaluating(self.net.encoder):
            latents = self._sample(*self.net.posterior(bands), step)
        with torch.set_grad_enabled(name == "net"):
            decoded = self.net.decoder(latents, self._noise(latents, step))
            sounds = self.net.pqmf.synthesis(decoded)
        real_maps, fake_maps = self.discriminators(waves), self.discriminators(sounds)
        if name == "discriminators":
            return hinge_discriminator_loss([maps[-1] for maps in real_maps], [maps[-1] for maps in fake_maps])
        features = features_loss(real_maps, fake_maps, self.params.features)
        adversarial = hinge_generator_loss([maps[-1] for maps in fake_maps])
        return self._distance(decoded, bands, waves, sounds) + adversarial + self.params.features.weight * features

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """The spectral distance with posterior means; adversarial losses are not comparable between steps."""
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        mean, _ = self.net.posterior(bands)
        noisy = self.step > self.params.phase_1_steps or self.net.pca is not None
        noise = self._noise(mean, step) if noisy else None
        return self._distance(self.net.decoder(mean, noise), bands, waves)

    def _distance(self, decoded: Tensor, bands: Tensor, waves: Tensor, sounds: Tensor | None = None) -> Tensor:
        """Spectral distance of decoded from real bands, without their ends (`valid_signal_crop`), plus that of the whole waves."""
        sounds = self.net.pqmf.synthesis(decoded) if sounds is None else sounds
        valid = slice(self.ends[0], bands.shape[2] - self.ends[1])
        band_distance = self._spectral(decoded[..., valid], bands[..., valid])
        return band_distance + self._spectral(sounds, waves)

    def _spectral(self, fake: Tensor, real: Tensor) -> Tensor:
        return distance(fake, real, self.params.scales, self.params.log_epsilon)

    def _sample(self, mean: Tensor, deviation: Tensor, step: int) -> Tensor:
        return mean + deviation * self.noise_like(mean, self.rng("posterior", step))

    def _noise(self, latents: Tensor, step: int) -> Tensor | None:
        all_devices = latents.repeat(self.world_size, 1, 1)
        noise = self.net.draw_noise(all_devices, self.rng("noise", step))
        return None if noise is None else self.share(noise)


def describe_training(minutes: float, clips: int, params: rave.WeightsParams, sample_rate: int) -> list[str]:
    """Lines to print before training: how much sound there is, how often each second is used, and when phase 2 begins."""
    crop = params.num_samples / sample_rate
    times = params.steps * params.batch_size * crop / (60 * minutes)
    sound = f"{minutes:.1f} minutes of sound: {clips} crops of {crop:.2f} s an epoch, one of each clip; in {params.steps} steps of "
    sound += f"{params.batch_size} each second is used {times:.3g} times"
    if params.phase_1_steps == params.steps:
        return [sound, f"phase 1 only, without discriminators: phase_1_steps {params.phase_1_steps} equals steps"]
    phase_2 = f"phase 2 (encoder frozen, against discriminators) begins at step {params.phase_1_steps} of {params.steps}"
    return [sound, phase_2]


def distance(fake: Tensor, real: Tensor, scales: Sequence[int], log_epsilon: float) -> Tensor:
    """Spectral distance of signals [N, channels, T], summed over `scales`, the window lengths; those longer than T are skipped.

    For each, ‖X − Y‖² / ‖X‖² + mean |ln (X + ε) − ln (Y + ε)| of magnitudes X (real) and Y (fake), with a hop of a quarter window
    and ε = `log_epsilon`.
    """
    fitting = [scale for scale in scales if scale <= real.shape[2]]
    if not fitting:
        raise ValueError(f"no window of {list(scales)} fits into {real.shape[2]} samples")
    return torch.stack([_at(magnitudes(fake, scale), magnitudes(real, scale), scale, log_epsilon) for scale in fitting]).sum()


def _at(fake: Tensor, real: Tensor, scale: int, log_epsilon: float) -> Tensor:
    linear = (real - fake).square().mean() / (real.square().mean() + scale * LEAST_POWER)
    return linear + ((real + log_epsilon).log() - (fake + log_epsilon).log()).abs().mean()


def magnitudes(signals: Tensor, scale: int) -> Tensor:
    """Magnitudes [N · channels, scale / 2 + 1, frames] of a Hann-windowed, centred STFT, not normalised."""
    with torch.autocast(signals.device.type, enabled=False):
        flat = signals.float().flatten(0, 1)
        window = torch.hann_window(scale, device=flat.device)
        return torch.stft(flat, scale, scale // 4, window=window, return_complex=True).abs()


def kl_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL divergence of posteriors [N, channels, T] from the standard normal: mean over items and time of Σ μ² + σ² − ln σ² − 1."""
    variance = deviation.square()
    return (mean.square() + variance - variance.log() - 1).sum(1).mean()


def features_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]], params: rave.FeaturesParams) -> Tensor:
    """Unweighted feature matching: mean absolute difference of feature maps, averaged over maps and discriminators."""
    pairs = [pair for maps in zip(real, fake, strict=True) for pair in list(zip(*maps, strict=True))[params.skip :]]
    differences = [(x - y).abs().mean() / (x.abs().mean() + LEAST_MAGNITUDE if params.relative else 1) for x, y in pairs]
    return torch.stack(differences).mean()


def draw_crops(seed: int, batch_size: int, step: int) -> Tensor:
    """Random numbers for each crop of a whole batch, [batch_size, 4] in [0, 1), float64.

    In order: start of the crop, whether to mangle its phases, the filter's frequency, and the seed of the noise.
    """
    rng = torch.Generator().manual_seed(seed_of(seed, "augmentation", step))
    augmentations = torch.rand(batch_size, 3, generator=rng, dtype=torch.float64)
    return torch.cat([crop_places(seed, batch_size, step).double()[:, None], augmentations], 1)


@dataclass(frozen=True)
class AugmentedCrops:
    """A source of crops [b, channels, num_samples]; `drawn` as from `draw_crops`. `augmentation` None: unchanged crops.

    As in its authors' rave/dataset.py: random phase mangling, and dequantisation.
    """

    crops: WaveCrops
    sample_rate: int
    augmentation: rave.AugmentationParams | None

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        (waves,) = self.crops.batch(items, drawn[:, 0])
        if self.augmentation is not None:
            for wave, (_, mangled, frequency, noise) in zip(waves.numpy(), drawn.tolist(), strict=True):
                if mangled < self.augmentation.phase_mangle:
                    wave[:] = phase_mangled(wave, LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** frequency, self.sample_rate)
                if (bits := self.augmentation.dequantise_bits) is not None:
                    wave += np.random.default_rng(int(noise * 2**53)).random(wave.shape, np.float32) * np.float32(2.0**-bits)
        return (waves,)


def phase_mangled(wave: np.ndarray, hertz: float, sample_rate: int) -> np.ndarray:
    """A wave [channels, T] through a two-pole all-pass filter at `hertz`: changes the phases, keeps the magnitudes."""
    from scipy.signal import lfilter

    poles = [1.0, -2 * RADIUS * np.cos(2 * np.pi * hertz / sample_rate), RADIUS**2]
    return lfilter(poles[::-1], poles, wave)
