"""Waves as a training source, alone or with their log-mels; and what codecs of waves have in common.

For families that diffuse 2-D latents, these have a single band, and need no vocoder.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill import manifest, shards, terminal
from soundmill.audio import figures, mel
from soundmill.audio.mel import MelSpec
from soundmill.audio.tags import CHANGED
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, choose_by_hash, waves_of
from soundmill.models.components.contracts import Saved, Vocoder, WaveCodecParams
from soundmill.models.components.log_mels.source import LogMels
from soundmill.models.components.making import Samples, Splits, fit_crops, size
from soundmill.training.checkpoint import compare
from soundmill.training.device import evaluating, pick_device
from soundmill.training.fitting import Fitted
from soundmill.training.loader import Arrays, Described, gather, start_of
from soundmill.training.module import TrainingModule

WINDOW = 512  # samples of a window of Welch's method
LOWEST = 10 ** (-30 / 20)  # of the deviations per frequency, relative to the highest


@dataclass(frozen=True)
class Pairs:
    """A source of crops of log-mels [b, n_mels, frames] and of their waves [b, frames · hop_length].

    `drawn` in [0, 1) selects the start of each crop. Shorter clips are padded with silence.
    """

    log_mels: LogMels
    waves: Arrays
    frames: int
    spec: MelSpec

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, Tensor]:
        hop, waves = self.spec.hop_length, np.zeros((len(items), self.frames * self.spec.hop_length), np.float32)
        for crop, item, place in zip(waves, items, drawn.tolist(), strict=True):
            start = start_of(place, int(self.log_mels.arrays.shapes[item, 1]), self.frames) * hop
            wave = self.waves.read(item)[start : start + len(crop)]
            crop[: len(wave)] = wave
        return self.log_mels.crops(items, drawn, self.frames, math.log(self.spec.floor)), torch.from_numpy(waves)


@dataclass(frozen=True)
class WaveCrops:
    """A source of crops of waves [b, channels, num_samples]; shorter waves are padded with silence.

    `drawn` in [0, 1) selects the start of each crop.
    """

    waves: Arrays  # [T], or [channels, T]
    num_samples: int

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        pairs = zip(items, drawn.tolist(), strict=True)
        crops = [np.atleast_2d(self.waves.crop(item, place, self.num_samples)) for item, place in pairs]
        return (torch.from_numpy(np.stack(crops).astype(np.float32)),)

    def whole(self) -> Iterator[Tensor]:
        """Each wave as consecutive crops [n, channels, num_samples]; the end of the last one is silence."""
        for item in range(len(self.waves)):
            wave = torch.from_numpy(np.atleast_2d(self.waves.read(item)).astype(np.float32))
            padded = torch.nn.functional.pad(wave, (0, -wave.shape[1] % self.num_samples))
            yield padded.unflatten(1, (-1, self.num_samples)).transpose(0, 1)


def form_of(params: Any, clips: Path, clip_ids: Collection[str], start: Any) -> tuple[int, int]:
    """Channels and sample rate of clips; UserError if those of a model that the training starts from differ."""
    _, (wave, rate) = next(waves_of(clips, set(clip_ids)))
    if start:
        theirs = {"sample_rate": start.sample_rate, "channels": start.channels}
        compare(params.start_from, theirs, {"sample_rate": rate, "channels": len(wave)})
    return len(wave), rate


def deviation_of(params: Any, start: Any, waves: Callable[[], Arrays], family: str) -> Any:
    """The deviation by which `params.unit_variance` of a family asks to divide waves, as measured for `start`, if there is one."""
    if start or not params.unit_variance:
        return start.sigma_data if start else 1.0
    measure = wave_deviation_per_frequency if params.unit_variance == "per_frequency" else wave_deviation
    return measure(waves(), f"{family}.train.unit_variance")


def wave_deviation(waves: Arrays, key: str) -> float:
    """Root mean square of all samples: the standard deviation of waves around zero.

    UserError, which names the parameter `key` that asks for it, if all waves are silent.
    """
    energy = sum(float(np.square(waves.read(item), dtype=np.float64).sum()) for item in range(len(waves)))
    _refuse_silence(energy, waves, key)
    return math.sqrt(energy / sum(math.prod(shape) for shape in waves.shapes.tolist()))


def wave_deviation_per_frequency(waves: Arrays, key: str) -> list[float]:
    """Standard deviations around zero at evenly spaced frequencies from 0 to half the sample rate: [WINDOW // 2 + 1].

    These are the square roots of the power spectral density (Welch 1967), which for white noise are its standard deviation. None is
    more than 30 dB below the highest: at frequencies that recordings lack, division by them would make loud clicks of the two ends
    of a crop. UserError as `wave_deviation`.
    """
    from scipy.signal import welch

    power, total = np.zeros(WINDOW // 2 + 1), 0
    for item in range(len(waves)):
        wave = np.atleast_2d(waves.read(item)).astype(np.float32)
        whole = np.pad(wave, ((0, 0), (0, max(0, WINDOW - wave.shape[1]))))
        _, density = welch(whole, nperseg=WINDOW, detrend=False, return_onesided=False)  # [channels, WINDOW]
        power += wave.shape[1] * density.mean(axis=0)[: len(power)]
        total += wave.shape[1]
    _refuse_silence(power.sum(), waves, key)
    deviations = np.sqrt(power / total)
    return np.maximum(deviations, LOWEST * deviations.max()).tolist()


def _refuse_silence(energy: float, waves: Arrays, key: str) -> None:
    if energy == 0:
        raise UserError(
            f"all {len(waves)} training clips are digital silence: there is nothing to train on, and {key} cannot divide by their "
            "standard deviation, 0; check corpus.path"
        )


def log_mels_of(waves: Arrays, spec: MelSpec, scratch: Path) -> LogMels:
    """Log-mels of gathered waves [T], computed once."""
    items = range(len(waves))

    def index() -> Iterator[Described]:
        for item in items:
            frames = mel.num_frames(spec, int(waves.shapes[item, 0]))
            yield Described(waves.ids[item], (spec.n_mels, frames), f"{waves.path.name} {spec.model_dump_json()}")

    def contents() -> Iterator[tuple[str, np.ndarray]]:
        for item in items:
            yield waves.ids[item], mel.log_mel(waves.read(item).astype(np.float32), spec).astype("<f2")

    return LogMels(gather(index, contents, waves.ids, scratch / "log-mels", f"{waves.path}: the spectrogram of clip"))


def gather_waves(
    clips: Path,
    clip_ids: Sequence[str],
    scratch: Path,
    level: Callable[[np.ndarray], np.ndarray] = lambda wave: wave,
    channels: int | None = None,
) -> Arrays:
    """The waves of `clip_ids`, float16 [T] each, in that order, from the shards below `clips`; `level` sets their level.

    By default the mean of the channels; with `channels`, the channel count of all clips, waves [channels, T].
    """

    def index() -> Iterator[Described]:
        for path in shards.shard_paths(clips):
            for row in shards.read_table(path, manifest.CLIPS, ["clip_id", "num_samples", "digest"]).to_pylist():
                shape = (row["num_samples"],) if channels is None else (channels, row["num_samples"])
                yield Described(row["clip_id"], shape, row["digest"])

    def contents() -> Iterator[tuple[str, np.ndarray]]:
        for clip_id, (wave, _) in waves_of(clips, set(clip_ids)):
            yield clip_id, level(wave.mean(axis=0) if channels is None else wave).astype("<f2")

    return gather(index, contents, clip_ids, scratch / "waves", f"{clips}: clip")


@dataclass(frozen=True)
class Sounding:
    """A `Codec` (components/contracts.py): latents [N, latent channels, frames, 1], scaled; waves of `frames` latents."""

    codec: Any  # encodes waves [N, channels, T] as scaled latents [N, latent channels, frames], and decodes these
    frames: int
    device: torch.device

    def encode(self, waves: Tensor) -> Tensor:
        """Latents, on the CPU; waves are padded with silence or cut to the length of `frames` latents."""
        codec, length = self.codec.to(self.device), self.frames * self.codec.samples_per_frame
        padded = F.pad(waves, (0, length - waves.shape[2]))
        return torch.cat([codec.encode(wave[None].to(self.device)).cpu() for wave in padded])[..., None]

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, channels, T] in [−1, 1], on the CPU; `seeds` are ignored, as there is no vocoder."""
        codec = self.codec.to(self.device)
        return torch.cat([codec.decode(latent[None, ..., 0].to(self.device)).cpu() for latent in latents])


def padded(waves: Sequence[np.ndarray], num_samples: int, samples_per_frame: int) -> Tensor:
    """Waves [N, channels, num_samples] in float32, padded with silence or cut. UserError unless the length is whole latents."""
    if num_samples % samples_per_frame:
        nearest = num_samples // samples_per_frame * samples_per_frame
        raise UserError(
            f"num_samples {num_samples} must be a multiple of {samples_per_frame}, the samples of a latent: "
            f"{nearest} or {nearest + samples_per_frame}"
        )
    cut = [np.pad(wave[:, :num_samples], ((0, 0), (0, max(0, num_samples - wave.shape[1])))) for wave in waves]
    return torch.from_numpy(np.stack(cut).astype(np.float32))


@dataclass(kw_only=True)
class SavedWaveCodec(Saved):
    """What codecs of waves share, and the part of a `LatentCodec` that follows from the sizes in `network`, if it has these."""

    scaling_factor: float = 1.0  # x0 = scaling_factor · latent; 1 for published weights
    digest: str = ""  # set when saved

    @property
    def latent_channels(self) -> int:
        return self.network.latent_channels

    @property
    def samples_per_frame(self) -> int:
        return self.network.samples_per_latent

    @property
    def metrics(self) -> dict[str, float]:
        """How much its latents hold."""
        rate = self.sample_rate / self.samples_per_frame
        return {"latent_rate": rate, "latent_values_per_second": rate * self.latent_channels}

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of `frames` latents."""
        return self.latent_channels, frames, 1

    def sounding(self, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Sounding:
        """See components/contracts.py; `grain` is ignored."""
        return Sounding(self, frames, device)


class NetworkCodec(SavedWaveCodec):
    """A codec whose network states the form of its waves: sample_rate and audio_channels."""

    spec = None  # uses no log-mels

    @property
    def sample_rate(self) -> int:
        return self.network.sample_rate

    @property
    def channels(self) -> int:
        return self.network.audio_channels


SHOWN, SCALING_CLIPS = 4, 64


def check_waves(params: WaveCodecParams, clips: Path, clip_ids: Sequence[str]) -> None:
    """UserError if the first of the clips has other channels or another rate than the codec."""
    _, (wave, rate) = next(waves_of(clips, set(clip_ids)))
    params.check_waves(rate, len(wave), str(clips))


def crops_of(clips: Path, scratch: Path, channels: int | None, num_samples: int, clip_ids: Sequence[str]) -> WaveCrops:
    """A source of crops of the waves of these clips; `channels` as for `gather_waves`."""
    return WaveCrops(gather_waves(clips, clip_ids, scratch, channels=channels), num_samples)


def fit_codec(
    model: Any,
    module: TrainingModule,
    source_of: Callable[[list[str]], WaveCrops],
    splits: Splits,
    params: Any,
    ctx: Any,
    draw: Callable[[int], Samples],
    started_from: str | None,
) -> tuple[Fitted, dict[str, Any]]:
    """Train the net of `model` by `module`, and scale its latents to unit deviation; returns the training, and facts of it."""
    weights, train, parameters = params.weights, list(splits["train"]), size(model.net)
    terminal.say(f"{ctx.name}: {len(train)} clips, {parameters:,} parameters, {weights.steps} steps of {weights.batch_size}")
    fitted = fit_crops(
        module,
        source_of(train),
        source_of,
        splits,
        params,
        ctx,
        lambda crops: draw,
        item_seconds=weights.num_samples / model.sample_rate,
        started_from=started_from,
    )
    model.net.eval()
    model.to(pick_device(params.hardware.accelerator))
    model.scaling_factor = round(1 / deviation(model, source_of(choose_by_hash(train, SCALING_CLIPS))), 6)
    return fitted, fitted.codec_facts(weights, started_from, len(train), parameters)


@torch.no_grad()
def deviation(model: Any, source: WaveCrops) -> float:
    """Standard deviation of the latents of whole clips, by a codec that does not scale them yet."""
    device = next(model.net.parameters()).device
    latents = [model.encode(crops.to(device)).flatten() for crops in source.whole()]
    return max(float(torch.cat(latents).double().std()), 1e-6)


def of_clips(model: Any, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """The first `SHOWN` clips beside what the codec makes of them."""
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN))
    waves = waves.mean(1, keepdim=True) if model.channels == 1 else waves
    return beside_real(model, waves, model.samples_per_frame, device, step)


def beside_real(model: Any, real: Tensor, stride: int, device: torch.device, step: int) -> Samples:
    """Real waves [N, C, T], each with what the codec makes of it; it takes lengths that are multiples of `stride`."""
    padded = F.pad(real, (0, -real.shape[2] % stride))
    model.to(device)
    with evaluating(model.net):
        decoded = model.decode(model.encode(padded.to(device))).cpu()[..., : real.shape[2]]
    sounds = [(wave.numpy(), model.sample_rate) for pair in zip(real, decoded, strict=True) for wave in pair]
    titles = ["real", "decoded"] * len(real)
    figure = figures.draw_waves(sounds, titles, 2, f"autoencoder after {step} steps")
    return Samples(figure, titles, sounds, [None, CHANGED] * len(real))
