"""Sounds through a model: requests in batches, recordings in the model's format, long ones in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soundmill.audio.pieces import Sound, faded, window_starts, windows
from soundmill.audio.resample import resample_blocks, resampled_length
from soundmill.errors import UserError
from soundmill.models.family import Model, Request, Run

OVERLAP_SECONDS = 0.1  # between the windows that a long sound is cut into


def generate_each(model: Model, requests: Sequence[Request], run: Run) -> Iterator[Tensor]:
    """A wave [C, T] for each request, with one batch in memory at a time; UserError if one is not finite."""
    for start in range(0, len(requests), run.batch_size):
        yield from finite(model.generate(requests[start : start + run.batch_size], run), run)


def reconstruct_each(
    model: Model, sounds: Iterable[tuple[str, tuple[np.ndarray, int]]], run: Run, whole: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Reconstruct waves with the model's encoder and decoder: (name, (wave [C, T], its rate)) → (name, wave [C, T]).

    A wave is first converted to the model's rate and channels. One longer than the model's length is cut, or with `whole`
    processed in windows.
    """
    silent = replace(run, progress=lambda n: None)  # progress counts sounds, below
    for name, (wave, rate) in sounds:
        fitted = torch.from_numpy(in_model_format(wave, rate, model))
        fitted = fitted if whole else fitted[:, : model.num_samples]
        yield name, in_windows(lambda part, start: finite(model.reconstruct(part, silent), silent), fitted, model)
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

    Overlaps are crossfaded linearly; yields finished blocks [C, n].
    """
    size, overlap = model.num_samples or length, overlap_of(model)
    cut = windows(blocks, window_starts(length, size, overlap), size)
    return faded(((start, work(part[None], start)[0]) for start, part in cut), overlap, length)


def in_windows(work: Callable[[Tensor, int], Tensor], wave: Tensor, model: Model) -> Tensor:
    """As `stream_windows` for a whole wave [C, T] of any length."""
    return torch.cat(list(stream_windows(work, [wave], wave.shape[1], model)), 1)
