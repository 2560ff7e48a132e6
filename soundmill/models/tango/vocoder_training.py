"""Train the vocoder on the training clips, and say how close the sounds it makes come to the log-mels they are made of.

Losses, sizes and rates are those of HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646). What it hears of real clips is what their
log-mels were made of: `MelSpec.peak` holds for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from soundmill import manifest, shards
from soundmill.audio import figures, mel
from soundmill.audio.invert import mel_to_wave
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.catalog import waves_of
from soundmill.models.params import GriffinLimParams
from soundmill.models.tango.discriminators import Discriminators
from soundmill.models.tango.params import TrainedVocoderParams, VocoderParams
from soundmill.models.tango.vocoder import Vocoder, build_vocoder, synthesise
from soundmill.training.adversarial import AdversarialModule, discriminator_loss, feature_loss, generator_loss
from soundmill.training.loader import Arrays, Batch, Described, LogMels, Order, gather, gather_log_mels, start_of
from soundmill.training.module import fit_averaged, use_threads
from soundmill.training.seeds import seed_of

MEASURED_CLIPS = 16  # held-out ones, at most
DRAWN_CLIPS = 3
GRIFFIN_LIM_SEED = 0


@dataclass(frozen=True)
class Pairs:
    """A source of crops of log-mels [b, n_mels, frames] and the waves they are of [b, frames · hop_length].

    Drawn in [0, 1) is where. A shorter clip is followed by silence.
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


class LogMel(nn.Module):
    """`mel.log_mel` of waves [B, T] that are already at their peak, with a gradient."""

    def __init__(self, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("bank", torch.tensor(mel.mel_filterbank(spec)), persistent=False)
        self.register_buffer("window", torch.hann_window(spec.win_length), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        spec = self.spec
        with torch.autocast(wave.device.type, enabled=False):
            transform = torch.stft(
                wave.float(), spec.n_fft, spec.hop_length, spec.win_length, self.window, center=True, return_complex=True
            )
            power = transform.real.square() + transform.imag.square()
            # The root has no gradient at zero; what is added is far below any floor.
            spectrum = (power + 1e-14).sqrt() if spec.power == 1.0 else power
            return (self.bank.T @ spectrum).clamp_min(spec.floor).log()


class VocoderModule(AdversarialModule):
    """A batch: crops of clips, made anew from their log-mels, beside what they were."""

    def __init__(self, params: TrainedVocoderParams, net: nn.Module, spec: MelSpec):
        super().__init__(net, Discriminators(params.discriminator_width), params, params.steps)
        self.log_mel = LogMel(spec)

    def losses(self, step: int, batch: Batch) -> Iterator[Tensor]:
        log_mel, real = batch.values
        made = synthesise(self.net, log_mel.float(), self.log_mel.spec.hop_length)
        of_real, of_made = self.discriminator(real), self.discriminator(made.detach())
        yield discriminator_loss([scores for scores, _ in of_real], [scores for scores, _ in of_made])

        of_real, of_made = self.discriminator(real), self.discriminator(made)
        spectral = (self.log_mel(made) - self.log_mel(real)).abs().mean()
        features = feature_loss([maps for _, maps in of_real], [maps for _, maps in of_made])
        fooled = generator_loss([scores for scores, _ in of_made])
        yield fooled + self.params.feature_weight * features + self.params.mel_weight * spectral


def train(
    params: VocoderParams, ctx: Any, spec: MelSpec, clips: Path, mels: Path, weights_of_clips: Mapping[str, float]
) -> tuple[Vocoder, list[dict[str, float]], dict[str, Any]]:
    """The trained vocoder, its curve, and facts of the training; `weights_of_clips` as `Order` takes them."""
    wanted, clip_ids = params.weights, list(weights_of_clips)
    check_crop(wanted.crop_frames, spec)
    log_mels = gather_log_mels(mels, clip_ids, ctx.scratch)
    pairs = Pairs(log_mels, gather_waves(clips, clip_ids, spec, ctx.scratch), wanted.crop_frames, spec)
    use_threads(params.hardware.threads)
    torch.manual_seed(wanted.seed)
    net = build_vocoder(params.network, spec.n_mels, spec.sample_rate)
    parameters = sum(weight.numel() for weight in net.parameters())
    print(
        f"{ctx.name}: {len(log_mels)} clips, {parameters:,} parameters, {wanted.steps} steps of {wanted.batch_size} crops of "
        f"{wanted.crop_frames * spec.hop_length / spec.sample_rate:g} s",
        flush=True,
    )
    with_norms(net)
    module = VocoderModule(wanted, net, spec)
    points, facts = fit_averaged(
        module,
        pairs,
        Order(wanted.seed, weights_of_clips, wanted.batch_size),
        partial(places, wanted.seed, wanted.batch_size),
        params.hardware,
        ctx,
    )
    facts |= {"steps": wanted.steps, "clips": len(log_mels), "parameters": parameters}
    return Vocoder(params.network, spec, without_norms(net).eval()), points, facts


def check_crop(frames: int, spec: MelSpec) -> None:
    """UserError where a crop is shorter than what the centred transform mirrors at its ends."""
    if frames * spec.hop_length <= spec.n_fft // 2:
        raise UserError(
            f"vocoder.weights.crop_frames {frames} of {spec.hop_length} samples must be more than half of n_fft {spec.n_fft}"
        )


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def with_norms(net: nn.Module) -> nn.Module:
    """The net with length and direction of its kernels apart (Salimans & Kingma 2016), as it is trained."""
    for layer in convolutions(net):
        layer.reset_parameters()  # transformers' start fits 512 channels, and a narrow net would begin in silence
        weight_norm(layer)
    return net


def without_norms(net: nn.Module) -> nn.Module:
    """The net with its kernels as they are."""
    for layer in convolutions(net):
        parametrize.remove_parametrizations(layer, "weight")
    return net


def gather_waves(clips: Path, clip_ids: Sequence[str], spec: MelSpec, scratch: Path) -> Arrays:
    """The waves of `clip_ids`, in that order, from the shards below `clips`, as the spec's log-mels are made of them."""

    def index() -> Iterator[Described]:
        for path in shards.shard_paths(clips):
            for row in shards.read_table(path, manifest.CLIPS, ["clip_id", "num_samples", "digest"]).to_pylist():
                yield Described(row["clip_id"], (row["num_samples"],), row["digest"])

    def contents() -> Iterator[tuple[str, np.ndarray]]:
        for clip_id, wave in waves_of(clips, set(clip_ids)):
            yield clip_id, mel.levelled(wave, spec).astype("<f2")

    return gather(index, contents, clip_ids, scratch / "waves", f"{clips}: clip")


def places(seed: int, batch_size: int, step: int) -> Tensor:
    """Where in its clip each crop of a whole batch begins, in [0, 1)."""
    return torch.rand(batch_size, generator=torch.Generator().manual_seed(seed_of(seed, "crop", step)))


def by_griffin_lim(log_mel: Tensor, spec: MelSpec, params: GriffinLimParams) -> Tensor:
    """Waves [B, frames · hop_length] for log-mels [B, n_mels, frames]."""
    num_samples = log_mel.shape[2] * spec.hop_length
    return mel_to_wave(log_mel, spec, num_samples, params.griffin_lim_iterations, params.griffin_lim_momentum, GRIFFIN_LIM_SEED)


def heard(log_mel: np.ndarray, spec: MelSpec, to_wave: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The log-mel [n_mels, frames] of the wave that is made of one."""
    wave = to_wave(torch.from_numpy(log_mel.astype(np.float32))[None])[0].cpu().numpy()
    as_it_is = spec.model_copy(update={"peak": None})  # a wave of another level is an error
    return mel.log_mel(wave, as_it_is)[:, : log_mel.shape[1]]


def measure(model: Vocoder, log_mels: LogMels, params: VocoderParams) -> tuple[dict[str, float], list[np.ndarray]]:
    """Mean error in dB of the log-mels of the sounds made, `l1_db`, and of Griffin-Lim's, `griffin_lim_l1_db`; and pictures of
    some clips [n_mels, frames] in threes: as they were, by the vocoder, by Griffin-Lim."""
    device, spec = next(model.net.parameters()).device, model.spec
    ways = {
        "l1_db": lambda log_mel: model.to_wave(log_mel.to(device)),
        "griffin_lim_l1_db": lambda log_mel: by_griffin_lim(log_mel, spec, params),
    }
    errors: dict[str, list[float]] = {key: [] for key in ways}
    pictures = []
    for item in range(len(log_mels)):
        real = log_mels.arrays.read(item)
        made = {key: heard(real, spec, to_wave) for key, to_wave in ways.items()}
        for key, its in made.items():
            errors[key].append(float(np.abs(its - real.astype(np.float32)).mean()))
        if item < DRAWN_CLIPS:
            pictures += [real, *made.values()]
    decibels = 20 / spec.power / math.log(10)
    return {key: decibels * float(np.mean(its)) for key, its in errors.items()}, pictures


def draw(pictures: Sequence[np.ndarray], clip_ids: Sequence[str], spec: MelSpec, heading: str) -> Any:
    """A figure of `measure`'s pictures."""
    frames = min(picture.shape[1] for picture in pictures)
    titles = [title for clip_id in clip_ids[: len(pictures) // 3] for title in (clip_id, "by the vocoder", "by Griffin-Lim")]
    return figures.draw_log_mels(np.stack([picture[:, :frames] for picture in pictures]), titles, spec, 3, heading)
