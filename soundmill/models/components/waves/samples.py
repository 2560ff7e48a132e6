"""Clips for a codec of waves, and samples of what it makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.audio import figures
from soundmill.audio.tags import CHANGED
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, waves_of
from soundmill.models.samples import Samples
from soundmill.training.device import evaluating

SHOWN = 4


def check_waves(clips: Path, clip_ids: Sequence[str], channels: int, sample_rate: int) -> None:
    """UserError if the first of the clips has other channels or another rate than the codec."""
    _, (wave, rate) = next(waves_of(clips, set(clip_ids)))
    if (rate, len(wave)) != (sample_rate, channels):
        raise UserError(
            f"{clips} has {len(wave)} channels at {rate} Hz, but autoencoder.network has {channels} at {sample_rate}; "
            "make them agree"
        )


def of_clips(model: Any, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """The first `SHOWN` clips beside what the codec, a `WaveCodec` with a `net`, makes of them."""
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN))
    waves = waves.mean(1, keepdim=True) if model.channels == 1 else waves
    padded = torch.nn.functional.pad(waves, (0, -waves.shape[2] % model.samples_per_frame))
    model.to(device)
    with evaluating(model.net):
        decoded = model.decode(model.encode(padded.to(device))).cpu()[..., : waves.shape[2]]
    return beside_real(waves, decoded, model.sample_rate, step)


def beside_real(real: Tensor, decoded: Tensor, sample_rate: int, step: int) -> Samples:
    """Each real wave and what the codec makes of it, both [N, C, T]."""
    sounds = [(wave.numpy(), sample_rate) for pair in zip(real, decoded, strict=True) for wave in pair]
    titles = ["real", "decoded"] * len(real)
    figure = figures.draw_waves(sounds, titles, 2, f"autoencoder after {step} steps")
    return Samples(figure, titles, sounds, [None, CHANGED] * len(real))
