"""Error of a vocoder: log-mels of the sounds it makes against those it was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from soundmill.audio import figures, mel
from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.log_mels.source import LogMels

DRAWN_CLIPS = 3


def measure(ways: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device) -> tuple[dict[str, float], list[np.ndarray]]:
    """By name of the way: mean error in dB of the log-mels of the sounds it makes; and pictures of some clips [n_mels, frames]:
    as they were, and by each way."""
    errors: dict[str, list[float]] = {key: [] for key in ways}
    pictures = []
    for item in range(len(log_mels)):
        real = log_mels.arrays.read(item)
        made = {key: _heard(real, vocoder.to(device), device) for key, vocoder in ways.items()}
        for key, its in made.items():
            errors[key].append(float(np.abs(its - real.astype(np.float32)).mean()))
        if item < DRAWN_CLIPS:
            pictures += [real, *made.values()]
    decibels = 20 / next(iter(ways.values())).spec.power / math.log(10)
    return {key: decibels * float(np.mean(its)) for key, its in errors.items()}, pictures


def draw(pictures: Sequence[np.ndarray], clip_ids: Sequence[str], ways: Sequence[str], spec: MelSpec, heading: str) -> Any:
    """A figure of `measure`'s pictures, `ways` as people read them."""
    frames = min(picture.shape[1] for picture in pictures)
    columns = 1 + len(ways)
    titles = [title for clip_id in clip_ids[: len(pictures) // columns] for title in (clip_id, *ways)]
    return figures.draw_log_mels(np.stack([picture[:, :frames] for picture in pictures]), titles, spec, columns, heading)


def _heard(log_mel: np.ndarray, vocoder: Vocoder, device: torch.device) -> np.ndarray:
    """The log-mel [n_mels, frames] of the mono wave that is made of one."""
    with torch.no_grad():
        wave = vocoder.vocode(torch.from_numpy(log_mel.astype(np.float32))[None].to(device))[0].mean(0).cpu().numpy()
    as_it_is = vocoder.spec.model_copy(update={"peak": None})  # a wave of another level is an error
    return mel.log_mel(wave, as_it_is)[:, : log_mel.shape[1]]
