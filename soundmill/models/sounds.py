"""Sounds through a model: requests in batches, recordings in the model's format, long ones in windows."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, gain_of
from soundmill.audio.pieces import Sound, equal_power, faded, window_starts, windows
from soundmill.audio.resample import resample_blocks, resampled_length
from soundmill.diffusion.paths import Net
from soundmill.errors import UserError
from soundmill.models.family import Model, Request, Run
from soundmill.training.device import autocast, evaluating

OVERLAP_SECONDS = 0.1  # between the windows that a long sound is cut into


def sampled(net: nn.Module, count: int, run: Run, work: Callable[[slice], Tensor]) -> Tensor:
    """What `work` makes of each batch of `count` items with `net`, which is moved to the run's device; on the CPU."""
    net.to(run.device)
    outputs = []
    with torch.no_grad(), evaluating(net):
        for start in range(0, count, run.batch_size):
            outputs.append(work(slice(start, start + run.batch_size)).cpu())
            run.progress(len(outputs[-1]))
    return torch.cat(outputs)


def in_precision(net: Net, run: Run) -> Net:
    """The net evaluated in the run's precision; its outputs are float32."""

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        with autocast(run.device, run.precision):
            return net(xt, t).float()

    return denoise


def generate_each(model: Model, requests: Sequence[Request], run: Run) -> Iterator[Tensor]:
    """A wave [C, T] for each request, with one batch in memory at a time; UserError if one is not finite."""
    for start in range(0, len(requests), run.batch_size):
        yield from finite(model.generate(requests[start : start + run.batch_size], run), run)


def reconstruct_each(
    model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run, whole: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Reconstruct waves with the model's encoder and decoder: (name, (wave [C, T], its rate)) → (name, wave [C, T]).

    A wave is first converted to the model's rate and channels. One longer than the model's length is cut, unless `whole`.
    """
    silent = replace(run, progress=lambda n: None)  # progress counts sounds, below
    for name, (wave, rate) in sounds:
        fitted = torch.from_numpy(in_model_format(wave, rate, model))
        fitted = fitted if whole else fitted[:, : model.num_samples]
        yield name, torch.cat(list(reconstructed(model, [fitted], fitted.shape[1], silent)), 1)
        run.progress(1)


def as_long_as_clip(wave: Tensor, length: int, model: Model) -> Tensor:
    """A wave [C, T] cut to the `length` of its real clip, or padded with silence as the clip is, up to the model's own length."""
    missing = min(length, model.num_samples or length) - wave.shape[1]
    return torch.nn.functional.pad(wave, (0, missing)) if missing > 0 else wave[:, :length]


def finite(waves: Tensor, run: Run) -> Tensor:
    """The waves, unchanged; UserError if a value is not finite."""
    if not torch.isfinite(waves).all():
        raise UserError(
            f"the model's output is not finite with {run.sampling}; choose milder sampling settings, or retrain with `dvc repro`"
        )
    return waves


def in_model_format(wave: np.ndarray, rate: int, model: Model) -> np.ndarray:
    """A wave [C, T] at the model's rate and channel count; if the counts differ, the mean of all channels, repeated."""
    empty = np.zeros((model.channels, 0), np.float32)
    return np.concatenate([empty, *_fitted([wave.T], rate, model)], 1)


def read_in_model_format(sound: Sound, model: Model) -> Iterator[Tensor]:
    """As `in_model_format` for a recording, in blocks [C, n]."""
    return map(torch.from_numpy, _fitted(sound.blocks(), sound.sample_rate, model))


def length_in_model_format(sound: Sound, model: Model) -> int:
    return resampled_length(sound.num_samples, sound.sample_rate, model.sample_rate)


def _fitted(blocks: Iterable[np.ndarray], rate: int, model: Model) -> Iterator[np.ndarray]:
    """Blocks [n, channels] with any channel count as float32 [C, n] at the model's rate and channel count."""

    def with_channels() -> Iterator[np.ndarray]:
        for block in blocks:
            if block.shape[1] != model.channels:
                block = np.repeat(block.mean(1, keepdims=True), model.channels, axis=1)
            yield block[:, 0] if model.channels == 1 else block

    for block in resample_blocks(with_channels(), rate, model.sample_rate, model.channels):
        yield np.ascontiguousarray(block.reshape(len(block), -1).T, np.float32)


def overlap_of(model: Model) -> int:
    """Overlap in samples of windows of the model's length."""
    return 0 if model.num_samples is None else min(round(OVERLAP_SECONDS * model.sample_rate), model.num_samples // 4)


def stream_windows(work: Callable[[Tensor, int], Tensor], blocks: Iterable[Tensor], length: int, model: Model) -> Iterator[Tensor]:
    """Apply `work` ([1, C, T], first sample → [1, C, T]) to blocks [C, n] of a sound, in windows of the model's length.

    Overlaps are crossfaded at equal power; yields finished blocks [C, n].
    """
    size, overlap = model.num_samples or length, overlap_of(model)
    cut = windows(blocks, window_starts(length, size, overlap), size)
    return faded(((start, work(part[None], start)[0]) for start, part in cut), overlap, equal_power)


def reconstructed(model: Model, blocks: Iterable[Tensor], length: int, run: Run) -> Iterator[Tensor]:
    """A sound of any length in blocks [C, n], encoded and decoded; yields blocks [C, n].

    A model by log-mels rebuilds those of each window, and one pass of the vocoder makes the sound: phases of windows do not fit.
    """
    vocoder = model.vocoder_for(run) if hasattr(model, "rebuilt") else None
    if vocoder is None or model.num_samples is None or length <= model.num_samples:
        return stream_windows(lambda part, start: finite(model.reconstruct(part, run), run), blocks, length, model)
    log_mels = _rebuilt(model, vocoder.spec, blocks, length, run)
    vocoder = vocoder.to(run.device)
    pieces = zip(*(vocoder.pieces(one[None].to(run.device)) for one in log_mels), strict=True)
    return _cut((finite(torch.cat([one[0] for one in channels]).cpu(), run).clamp(-1, 1) for channels in pieces), length)


def _rebuilt(model: Any, spec: MelSpec, blocks: Iterable[Tensor], length: int, run: Run) -> Tensor:
    """Log-mels [channels, n_mels, frames] of a sound's windows, joined; if the spec sets the peak, that of the loudest window."""
    hop, overlap, gains = spec.hop_length, overlap_of(model), []
    size = getattr(model, "rebuilt_samples", model.num_samples)

    def rebuild(part: Tensor) -> Tensor:
        gains.append(spec.power * torch.tensor([gain_of(channel.numpy(), spec) for channel in part]).log()[:, None, None])
        return model.rebuilt(part[None], run)[..., : -(-part.shape[1] // hop)] - gains[-1]

    cut = windows(blocks, window_starts(length, size, overlap, hop), size)
    parts = faded(((start // hop, rebuild(part)) for start, part in cut), overlap // hop, torch.lerp)
    log_mels = finite(torch.cat(list(parts), 2), run)
    return (log_mels + torch.stack(gains).amin(0)).clamp_min(math.log(spec.floor))


def _cut(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Blocks [C, n] of the first `length` samples."""
    for block in blocks:
        yield block[:, :length]
        length = max(0, length - block.shape[1])
