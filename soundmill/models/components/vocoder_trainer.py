"""Training a vocoder on the corpus's training clips, also against discriminators, and measuring it beside Griffin-Lim.

HiFi-GAN and MelGAN differ in their networks and adversarial losses. Real clips have the level that their log-mels were computed
from: `MelSpec.peak` applies to both. The discriminators are of several periods and scales as in HiFi-GAN (Kong, Kim & Bae 2020), or
of scales only as in MelGAN. Each returns the scores [B, positions] of a wave [B, 1, T] and its feature maps. At the paper's width
of 32, those of periods have 41,105,770 parameters and those of scales 29,618,821, including weight normalisation.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from soundmill import terminal
from soundmill.audio import figures, mel
from soundmill.audio.log_mels import read_spec
from soundmill.audio.mel import MelSpec
from soundmill.audio.tags import CHANGED
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components.contracts import AdversaryParams, Vocoder, save_vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.log_mels.source import LogMels, gather_log_mels
from soundmill.models.components.making import MadeComponent, Samples, Splits, fit_crops, size, started
from soundmill.models.components.waves.source import Pairs, gather_waves
from soundmill.training import module as modules
from soundmill.training.device import pick_device, use_threads
from soundmill.training.fitting import Fitted
from soundmill.training.loader import Batch

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


class PeriodDiscriminator(Convolutions):
    """Convolutions along every `period`-th sample of a wave reshaped to [B, 1, T / period, period]."""

    def __init__(self, period: int, width: int):
        widths = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        strides = [3, 3, 3, 3, 1]
        layers = [
            weight_norm(nn.Conv2d(below, above, (5, 1), (stride, 1), (2, 0)))
            for below, above, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        super().__init__([*layers, weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))])
        self.period = period

    def forward(self, wave: Tensor) -> Output:
        missing = -wave.shape[2] % self.period
        wave = nn.functional.pad(wave, (0, missing), mode="reflect")
        return super().forward(wave.unflatten(2, (-1, self.period)))


class ScaleDiscriminator(Convolutions):
    """Grouped convolutions of the wave with increasing width."""

    def __init__(self, width: int, norm: Callable[[nn.Module], nn.Module]):
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
        layers = [
            norm(nn.Conv1d(below, above, kernel, stride, kernel // 2, groups=groups))
            for below, above, kernel, stride, groups in plan
        ]
        super().__init__(layers)


class Discriminators(nn.Module):
    """All period and scale discriminators, with separate weights; `width`, a multiple of 4, is 32 in HiFi-GAN's paper."""

    def __init__(self, width: int, periods: Sequence[int] = PERIODS):
        super().__init__()
        self.periods = nn.ModuleList([PeriodDiscriminator(period, width) for period in periods])
        norms = [spectral_norm] + [weight_norm] * (SCALES - 1)  # as in the paper's code: spectral norm for the first, on raw waves
        self.scales = nn.ModuleList([ScaleDiscriminator(width, norm) for norm in norms])
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, wave: Tensor) -> list[Output]:
        """Outputs of each discriminator for waves [B, T], always in the same order."""
        wave = wave[:, None]
        outputs = [period(wave) for period in self.periods]
        for number, scale in enumerate(self.scales):
            wave = wave if number == 0 else self.halve(wave)
            outputs.append(scale(wave))
        return outputs


class LogMel(nn.Module):
    """Differentiable `mel.log_mel` of waves [B, T] whose peak is already set."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.mel = mel.mel_spectrogram(spec)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            return self.mel(wave.float()).clamp_min(self.spec.floor).log()


class VocoderModule(modules.PhasedModule):
    """A batch: log-mels and waves of crops; `model.synthesise` generates waves from the log-mels.

    The adversarial losses are hinge losses or least squares; `model.net` is trained with or without weight norms.
    """

    def __init__(
        self, params: AdversaryParams, model: Any, periods: Sequence[int] = PERIODS, norms: bool = True, hinge: bool = True
    ):
        net = with_norms(model.net) if norms else model.net
        discriminators = Discriminators(params.discriminator_width, periods)
        super().__init__(net, {"discriminator": (discriminators, params.optimiser)}, params, params.steps)
        self.log_mel, self.synthesise = LogMel(model.spec), model.synthesise
        self.discriminator_loss, self.generator_loss = modules.discriminator_loss, modules.generator_loss
        if hinge:
            self.discriminator_loss, self.generator_loss = modules.hinge_discriminator_loss, modules.hinge_generator_loss

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
        features = modules.feature_loss([maps for _, maps in real_outputs], [maps for _, maps in fake_outputs])
        adversarial = self.generator_loss([scores for scores, _ in fake_outputs])
        yield adversarial + self.params.feature_weight * features + self.params.mel_weight * self._spectral(fake, real)


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def with_norms(net: nn.Module) -> nn.Module:
    """Apply weight normalisation (Salimans & Kingma 2016), as in training."""
    for layer in convolutions(net):
        weight_norm(layer)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """Fold weight normalisation into the kernels, if there is any."""
    for layer in filter(parametrize.is_parametrized, convolutions(net)):
        parametrize.remove_parametrizations(layer, "weight")
    return net


MEASURED_CLIPS = 16  # held-out clips, at most
SILENCE = 0.1  # nepers above the floor that still count as silence
Level = Callable[[np.ndarray, MelSpec], np.ndarray]
SHOWN_CLIPS = 3


@dataclass(frozen=True)
class VocoderTrainer:
    """A vocoder's parameters (`weights`, `hardware`, Griffin-Lim's), and its training data.

    A `model` below is a `Vocoder` whose `net` is trained.
    """

    params: Any
    ctx: Any
    clips: Path
    mels: Path
    spec: MelSpec
    splits: Splits
    level: Level

    @classmethod
    def of(cls, params: Any, ctx: Any, clips: Path, mels: Path, catalog: Path, level: Level = mel.levelled) -> Self:
        """`level` makes the wave [T] to train on from a clip's."""
        spec = read_spec(mels)
        params.check_spec(spec)
        use_threads(params.hardware.threads)
        if params.weights.kind == "train":
            torch.manual_seed(params.weights.seed)
        return cls(params, ctx, clips, mels, spec, read_weights(catalog), level)

    def made(
        self, model: Any, load: Callable[[Path, None], Any], module: Callable[[], modules.TrainingModule], kept: Sequence[str] = ()
    ) -> MadeComponent:
        """Train `module()`, whose net is that of `model`, from `weights.start_from` if that names one.

        Copies the attributes `kept` of that, too. UserError as `params.check_start`.
        """
        weights, spec, ctx = self.params.weights, self.spec, self.ctx
        clips, seconds = len(self.splits["train"]), weights.crop_frames * spec.hop_length / spec.sample_rate
        terminal.say(
            f"{ctx.name}: {clips} clips, {size(model.net):,} parameters, {weights.steps} steps of {weights.batch_size} crops of "
            f"{seconds:g} s"
        )
        start, started_from = started(self.params, ctx, partial(load, spec=None), mel_spec=spec)
        if start:
            model.net.load_state_dict(start.net.state_dict())
            for name in kept:
                setattr(model, name, getattr(start, name))
        fitted = fit_crops(
            module(),
            self.training_pairs(),
            self._pairs,
            self.splits,
            self.params,
            ctx,
            lambda pairs: self._draw(model, pairs.log_mels),
            item_seconds=seconds,
            started_from=started_from,
        )
        without_norms(model.net).eval()
        facts = {**fitted.facts, "use": weights.use, "steps": weights.steps, "clips": clips}
        return self.result(model, facts | ({"started_from": started_from} if started_from else {}), fitted)

    def result(self, model: Any, facts: Mapping[str, Any], fitted: Fitted | None = None) -> MadeComponent:
        """The vocoder for its stage to publish; `facts` are for its config, and `fitted` is None if it was loaded."""
        split = "valid" if self.splits["valid"] else "train"
        chosen = choose_by_hash(list(self.splits[split]), MEASURED_CLIPS)
        log_mels = gather_log_mels(self.mels, chosen, self.ctx.scratch)
        ways = {"l1_db": model, "griffin_lim_l1_db": GriffinLim(self.spec, self.params)}
        measured = measure(ways, log_mels, pick_device(self.params.hardware.accelerator))
        metrics = {
            "parameters": size(model.net),
            "measured_clips": len(chosen),
            **{f"{split}_{key}": value for key, value in measured.items()},
        }
        save = partial(save_vocoder, model, source={"kind": self.params.weights.kind, **facts})
        return MadeComponent(save, metrics, self._draw(model, log_mels), fitted)

    def training_pairs(self) -> Pairs:
        """Log-mels and waves of the training clips; UserError if all are silent."""
        pairs = self._pairs(list(self.splits["train"]))
        log_mels, quietest = pairs.log_mels, np.float16(math.log(self.spec.floor)) + SILENCE
        if not any((log_mels.arrays.read(item) > quietest).any() for item in range(len(log_mels))):
            raise UserError(
                f"{self.mels}: all {len(log_mels)} training clips are silent, no band rises above spectrogram floor "
                f"{self.spec.floor:g}: there is nothing to train a vocoder on; check corpus.path, or take Griffin-Lim "
                "(`vocoder=griffin_lim`)"
            )
        return pairs

    def _pairs(self, clip_ids: Sequence[str]) -> Pairs:
        waves = gather_waves(self.clips, clip_ids, self.ctx.scratch / self.level.__name__, partial(self.level, spec=self.spec))
        log_mels = gather_log_mels(self.mels, clip_ids, self.ctx.scratch)
        return Pairs(log_mels, waves, self.params.weights.crop_frames, self.spec)

    def _draw(self, model: Any, log_mels: LogMels) -> Callable[[int], Samples]:
        ways = {"by the vocoder": model, "by Griffin-Lim": GriffinLim(self.spec, self.params)}
        return partial(samples, ways, log_mels, pick_device(self.params.hardware.accelerator))


def measure(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device) -> dict[str, float]:
    """Mean absolute log-mel error in dB, by name of the vocoder."""
    errors: dict[str, list[float]] = {key: [] for key in vocoders}
    for item in range(len(log_mels)):
        real = log_mels.arrays.read(item)
        for key, vocoder in vocoders.items():
            fake = _log_mel_of(vocoder, _wave(real, vocoder, device), real.shape[1])
            errors[key].append(float(np.abs(fake - real.astype(np.float32)).mean()))
    decibels = 20 / next(iter(vocoders.values())).spec.power / math.log(10)
    return {key: decibels * float(np.mean(values)) for key, values in errors.items()}


def samples(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device, step: int) -> Samples:
    """Log-mels of some clips and of each vocoder's output, and the vocoded sounds."""
    pictures, titles, sounds, named, made = [], [], [], [], []
    for item, clip_id in enumerate(log_mels.arrays.ids[:SHOWN_CLIPS]):
        real = log_mels.arrays.read(item)
        pictures.append(real.astype(np.float32))
        titles.append(clip_id)
        for name, vocoder in vocoders.items():
            wave = _wave(real, vocoder, device)
            pictures.append(_log_mel_of(vocoder, wave, real.shape[1]))
            titles.append(name)
            sounds.append((wave, vocoder.spec.sample_rate))
            named.append(f"{clip_id} {name}")
            made.append(None if isinstance(vocoder, GriffinLim) else CHANGED)
    frames = min(picture.shape[1] for picture in pictures)
    spec = next(iter(vocoders.values())).spec
    columns, heading = 1 + len(vocoders), f"vocoder after {step} steps"
    figure = figures.draw_log_mels(np.stack([picture[:, :frames] for picture in pictures]), titles, spec, columns, heading)
    return Samples(figure, named, sounds, made)


def _wave(log_mel: np.ndarray, vocoder: Vocoder, device: torch.device) -> np.ndarray:
    """The mono wave [T] vocoded from a log-mel [n_mels, frames]."""
    with torch.no_grad():
        return vocoder.to(device).vocode(torch.from_numpy(log_mel.astype(np.float32))[None].to(device))[0].mean(0).cpu().numpy()


def _log_mel_of(vocoder: Vocoder, wave: np.ndarray, frames: int) -> np.ndarray:
    spec = vocoder.spec.model_copy(update={"peak": None})  # so that a wrong level counts as an error
    return mel.log_mel(wave, spec)[:, :frames]
