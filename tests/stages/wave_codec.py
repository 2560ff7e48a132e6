"""A codec of waves to throw away: its latents are the samples, in columns of eight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill.models.components.contracts import Kind
from soundmill.params import StageParams

KIND = Kind(StageParams, maker=__name__, component=__name__)


class WaveCodec:
    sample_rate, channels = 16_000, 1

    def to(self, device: torch.device) -> WaveCodec:
        return self

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """[N, 2, 8, num_samples / 8, 1]"""
        padded = np.stack([np.pad(wave[0], (0, num_samples - wave.shape[1])) for wave in waves])
        mean = torch.from_numpy(padded).reshape(len(waves), -1, 8, 1).transpose(1, 2)
        return torch.stack([mean, torch.full_like(mean, -30.0)], 1)


def save(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"kind": "wave_codec", "digest": "waves", "scaling_factor": 2.0}))


def load(directory: Path) -> WaveCodec:
    return WaveCodec()
