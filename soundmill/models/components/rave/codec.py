"""RAVE as a `Codec` (components/contracts.py): encodes waves to the principal components of its posterior, and decodes them.

First a variational autoencoder is trained (phase 1), then its decoder adversarially with a frozen encoder (phase 2); then the
principal components and the rank of its latents are found.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill import terminal
from soundmill.audio import figures
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, durations_of, read_weights, waves_of
from soundmill.models.components import rave
from soundmill.models.components.contracts import CodecConfig, restore_codec, save_codec
from soundmill.models.components.making import MadeComponent, fit_crops, held_out, size, starting
from soundmill.models.components.pca import Components, components
from soundmill.models.components.rave.network import Normed, RaveNet
from soundmill.models.components.waves.source import SavedWaveCodec, WaveCrops, crops_of, of_clips, padded
from soundmill.training.device import evaluating, pick_device, use_threads
from soundmill.training.loader import Batch, crop_places
from soundmill.training.module import Phase, PhasedModule, Turn, hinge_discriminator_loss, hinge_generator_loss, rate_factor
from soundmill.training.seeds import seed_of

EDIT = re.compile(r"(\d{1,6})=([+*]?)([+-]?\d{1,12}(?:\.\d{0,12})?(?:e[+-]?\d{1,2})?)", re.IGNORECASE)
LARGEST = torch.finfo(torch.float32).max


class Edit(NamedTuple):
    """A manual edit of latents before decoding."""

    dimension: int  # 0: the component with the largest variance
    how: Literal["", "+", "*"]
    value: float


def parse_edits(texts: Sequence[str], count: int) -> list[Edit]:
    """Parse `0=1.5` (set), `0=+0.5` (add) or `0=*2` (multiply) for one of `count` latents; UserError for anything else."""
    edits = []
    for text in texts:
        match = EDIT.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"--latent {text[:100]!r}: write DIM=VALUE to set a latent, DIM=+VALUE to add to it, DIM=*VALUE to scale it"
            )
        if int(match[1]) >= count:
            raise UserError(f"--latent {text[:100]!r}: this model has latents 0 to {count - 1}, ordered by variance")
        value = float(match[3])
        if abs(value) > LARGEST:
            raise UserError(f"--latent {text[:100]!r}: {value:g} is beyond {LARGEST:.3g}; latents have unit deviation")
        edits.append(Edit(int(match[1]), match[2], value))
    return edits


def edited(latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Latents [N, count, T] with the edits applied in order."""
    result = latents.clone()
    for dimension, how, value in edits:
        if how == "":
            result[:, dimension] = value
        elif how == "+":
            result[:, dimension] += value
        else:
            result[:, dimension] *= value
    return result


class RaveConfig(CodecConfig):
    kind: Literal["rave"] = "rave"
    network: rave.NetworkParams
    sample_rate: int
    phase: Literal[1, 2]  # in which the weights were trained
    fidelity: float
    rank: int  # number of components kept
    scaling_factor: float = 1.0  # always 1: the components have unit deviation


@dataclass
class RaveCodec(SavedWaveCodec):
    """Latents are the first `rank` principal components, with unit deviation."""

    config, spec = RaveConfig, None  # uses no log-mels

    network: rave.NetworkParams
    sample_rate: int
    net: RaveNet
    phase: int
    fidelity: float
    rank: int
    scaling_factor: float = 1.0
    digest: str = field(default="")  # set when saved
    channels: int = 1

    @property
    def latent_channels(self) -> int:
        return self.rank

    @property
    def metrics(self) -> dict[str, float]:
        return {"phase": self.phase, "rank": self.rank, **super().metrics}

    @property
    def noisy(self) -> bool:
        """Whether the decoder uses its noise branch, if it has one."""
        return self.phase == 2 or self.network.pca

    @torch.no_grad()
    def components(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all principal components [N, latent_channels, ⌈T / samples_per_frame⌉] of waves [N, 1, T]."""
        if waves.shape[1] != 1:
            raise ValueError(f"waves of {waves.shape[1]} channels, but this codec takes one: give their mean")
        whole = F.pad(waves, (0, -waves.shape[2] % self.samples_per_frame))
        mean, deviation = self.net.posterior(self.net.pqmf.analysis(whole))
        scaled_rotation = self.net.rotation / self.net.spread[:, None]
        return self.net.components_of(mean.float()), scaled_rotation.square() @ deviation.float().square()

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, rank, ⌈T / samples_per_frame⌉] of waves [N, 1, T]."""
        return self.components(waves)[0][:, : self.rank]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, T] in [−1, 1] from latents; every item gets the same random components left out and the same noise."""
        rng = torch.Generator().manual_seed(seed)
        count, rank, length = latents.shape
        left_out = torch.randn(1, self.network.latent_channels - rank, length, generator=rng).expand(count, -1, -1)
        components = torch.cat([latents.float(), left_out.to(latents)], 1)
        noise = self.net.draw_noise(components[:1].cpu(), rng) if self.noisy else None
        noise = None if noise is None else noise.expand(count, -1, -1, -1).to(components)
        bands = self.net.decoder(self.net.latents_of(components), noise)
        return self.net.pqmf.synthesis(bands).clamp(-1, 1)

    def edit(self, waves: Tensor, edits: Sequence[Edit], seed: int = 0) -> Tensor:
        """Encode waves [N, 1, T], edit the latents and decode them; same length."""
        return self.decode(edited(self.encode(waves), edits), seed)[..., : waves.shape[2]]

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, rank, num_samples / samples_per_frame, 1]."""
        whole = padded(waves, num_samples, self.samples_per_frame)
        mean, variance = self.components(whole.to(self.net.center.device))
        return torch.stack([mean[:, : self.rank], variance[:, : self.rank].log()], 1)[..., None]


def network(params: rave.RaveParams, spec: MelSpec, channels: int) -> RaveNet:
    """The network as trained, so that the parameters of weight normalisation count."""
    return RaveNet(params.network).with_norms()


load = partial(restore_codec, RaveCodec, lambda saved, spec, channels: RaveNet(saved.network))


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

    def phases(self) -> list[Phase]:
        every = self.params.discriminator_every
        turns = Turn("discriminators", lambda step: step % every == 0), Turn("net", lambda step: step % every != 0)
        return [
            Phase((Turn("net"),), self.represent, steps=self.params.phase_1_steps),
            Phase(turns, self.oppose, frozen=("net.encoder",)),
        ]

    def represent(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """Phase 1: the spectral distance plus the weighted KL divergence."""
        bands = self.net.pqmf.analysis(batch.values[0])
        mean, deviation = self.net.posterior(bands)
        latents = self._sample(mean, deviation, step)
        decoded = self.net.decoder(latents, self._noise(latents, step) if self.net.pca is not None else None)
        divergence = kl_divergence(mean.float(), deviation.float())
        yield self._distance(decoded, bands, batch.values[0]) + self.params.kl.weight(step) * divergence

    def oppose(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """Phase 2: each batch trains either the discriminators or the generator, which keeps the spectral distance."""
        if step == self.params.phase_1_steps and self.rank == 0:
            terminal.say(f"phase 2 begins at step {step} of {self.steps}: the encoder is frozen")
        (waves,) = batch.values
        bands = self.net.pqmf.analysis(waves)
        with torch.no_grad(), evaluating(self.net.encoder):
            latents = self._sample(*self.net.posterior(bands), step)
        for name in nets:
            with torch.set_grad_enabled(name == "net"):
                decoded = self.net.decoder(latents, self._noise(latents, step))
                sounds = self.net.pqmf.synthesis(decoded)
            real_maps, fake_maps = self.discriminators(waves), self.discriminators(sounds)
            if name == "discriminators":
                yield hinge_discriminator_loss([maps[-1] for maps in real_maps], [maps[-1] for maps in fake_maps])
            else:
                features = features_loss(real_maps, fake_maps, self.params.features)
                adversarial = hinge_generator_loss([maps[-1] for maps in fake_maps])
                yield self._distance(decoded, bands, waves, sounds) + adversarial + self.params.features.weight * features

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


def phase_of(params: rave.WeightsParams, facts: dict[str, Any]) -> int:
    """The phase in which the used weights were trained; `facts` are those of `Fitted`."""
    used = params.use if isinstance(params.use, int) else facts["weights"][params.use]["step"]
    return 2 if used > params.phase_1_steps else 1


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


LEAST_SPREAD = 1e-6  # deviation of a latent that is constant
COMPONENT_CLIPS = 1024  # at most, for the principal components
FIDELITIES = (0.8, 0.9, 0.95, 0.99)  # whose ranks are reported
LOWEST_HZ, HIGHEST_HZ = 20.0, 2000.0  # of the all-pass filter's poles
RADIUS = 0.99


def make(params: rave.RaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, weights = read_weights(catalog), params.weights
    use_threads(params.hardware.threads)
    _, (_, rate) = next(waves_of(clips, set(splits["train"])))
    if not weights.steps:
        return _taken(params, rate, ctx, clips, list(splits["valid"] or splits["train"]))

    source_of = partial(crops_of, clips, ctx.scratch, None, weights.num_samples)
    torch.manual_seed(weights.seed)
    net = RaveNet(params.network)
    model = RaveCodec(params.network, rate, net, 2, params.fidelity, params.network.latent_channels)
    started_from = _start(net, params, rate, ctx) if weights.start_from else None
    module = RaveModule(weights, net.with_norms())
    if params.network.pca and not started_from:
        net.start_from_components(source_of(list(splits["train"])).whole(), "autoencoder.network.pca")
    parameters, discriminator_parameters = size(net), size(module.discriminators)
    train = list(splits["train"])
    minutes = sum(durations_of(clips, train).values()) / 60
    terminal.say(f"{ctx.name}: {parameters:,} parameters, discriminators {discriminator_parameters:,}")
    for line in describe_training(minutes, len(train), weights, rate):
        terminal.say(f"{ctx.name}: {line}")
    draw = partial(of_clips, model, clips, held_out(splits, weights) or train, pick_device(params.hardware.accelerator))
    fitted = fit_crops(
        module,
        AugmentedCrops(source_of(train), rate, weights.augmentation),
        lambda clip_ids: AugmentedCrops(source_of(clip_ids), rate, None),
        splits,
        params,
        ctx,
        lambda crops: draw,
        item_seconds=weights.num_samples / rate,
        started_from=started_from,
        draw_items=draw_crops,
    )
    net.without_norms().eval()
    model.to(pick_device(params.hardware.accelerator))
    model.phase = phase_of(weights, fitted.facts)
    # The encoder is frozen since the end of phase 1 and nothing is averaged, so these components stay valid.
    latent_components = components(means(model, source_of(choose_by_hash(train, COMPONENT_CLIPS))))
    fit_latents(model, latent_components)
    _show_fidelity(latent_components, ctx)
    terminal.say(
        f"{ctx.name}: {model.rank} of {params.network.latent_channels} latents keep {params.fidelity:.0%} of their variance"
    )
    facts = fitted.codec_facts(weights, started_from, len(train), parameters)
    metrics = {
        "parameters": parameters,
        "discriminator_parameters": discriminator_parameters,
        "minutes": round(minutes, 2),
        **model.metrics,
        **{f"rank_{fidelity:g}": latent_components.rank(fidelity) for fidelity in FIDELITIES},
    }
    return MadeComponent(partial(save_codec, model, source=facts), metrics, draw, fitted)


def _taken(params: rave.RaveParams, rate: int, ctx: Any, clips: Path, shown: Sequence[str]) -> MadeComponent:
    """The codec `weights.start_from`."""
    model = load(params.check_start(ctx.home, sample_rate=rate))
    draw = partial(of_clips, model, clips, shown, pick_device(params.hardware.accelerator))
    source = {"taken_from": params.weights.start_from}
    return MadeComponent(partial(save_codec, model, source=source), {"parameters": size(model.net), **model.metrics}, draw)


def _start(net: RaveNet, params: rave.RaveParams, rate: int, ctx: Any) -> str:
    """Load the weights of the codec `weights.start_from`; returns their digest."""
    where = params.check_start(ctx.home, sample_rate=rate)
    net.load_state_dict(load(where).net.state_dict())
    net.center.zero_(), net.rotation.copy_(torch.eye(len(net.rotation))), net.spread.fill_(1)
    return starting(where, params, ctx)


@torch.no_grad()
def means(model: RaveCodec, source: WaveCrops) -> Iterator[Tensor]:
    """Posterior means [latent_channels, frames] of the first crop of each clip, on the CPU."""
    for item in range(len(source.waves)):
        (waves,) = source.batch(np.array([item]), np.zeros(1))
        yield model.net.posterior(model.net.pqmf.analysis(waves.to(model.net.center.device)))[0][0].cpu()


def fit_latents(model: RaveCodec, latent_components: Components) -> None:
    """Set a codec's principal components, its rank by its fidelity, and the scale of the kept components to unit deviation.

    Components left out are drawn from the standard normal, the prior of the KL divergence.
    """
    model.rank = latent_components.rank(model.fidelity)
    model.net.center.copy_(latent_components.mean), model.net.rotation.copy_(latent_components.rotation)
    deviations = latent_components.variances.sqrt().clamp_min(LEAST_SPREAD)
    model.net.spread.fill_(1)[: model.rank].copy_(deviations[: model.rank])


def _show_fidelity(latent_components: Components, ctx: Any) -> None:
    """Log the share of variance by the number of latents, as a curve and a figure."""

    def draw() -> None:
        points = [(count, share) for count, share in enumerate(latent_components.kept.tolist(), 1)]
        for count, share in points:
            ctx.tracking.log_curve({"fidelity": share}, count)
        ctx.tracking.log_figure(figures.draw_curves({"share of variance": points}, "fidelity by number of latents"), "fidelity")

    ctx.show("the fidelity", draw)


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
