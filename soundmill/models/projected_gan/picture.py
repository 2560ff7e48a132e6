"""The mapping between log-mels and the pictures that are generated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from soundmill.audio.mel import MelSpec


class LoopPicture(nn.Module):
    """log_mel [B, n_mels, frames] ↔ picture [B, 1, rows, n_mels], each band of mean 0 and deviation 1 over the training clips.

    A loop goes on at its beginning: the frame at its end is its first one. Of more frames than `rows` the last are cut, and silence
    on the way back, or all are brought to `rows` (`resize`).
    """

    def __init__(self, spec: MelSpec, num_samples: int, rows: int, fit: Literal["cut", "resize"]):
        super().__init__()
        self.spec, self.num_samples, self.rows, self.fit = spec, num_samples, rows, fit
        self.frames = num_samples // spec.hop_length
        self.silence = math.log(spec.floor)
        self.register_buffer("mean", torch.zeros(spec.n_mels))
        self.register_buffer("deviation", torch.ones(spec.n_mels))

    def measure(self, log_mels: Iterable[Tensor]) -> None:
        """Set mean and deviation to those of training clips."""
        count, total, squares = 0, 0.0, 0.0
        for log_mel in log_mels:
            values = log_mel.double()
            count += values.shape[0] * values.shape[2]
            total, squares = total + values.sum((0, 2)), squares + values.square().sum((0, 2))
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp_min(1e-4).sqrt())

    def encode(self, log_mel: Tensor) -> Tensor:
        """Of log-mels with `frames` frames or more."""
        x = (log_mel[:, :, : self.frames] - self.mean[:, None]) / self.deviation[:, None]
        x = x[:, :, : self.rows] if self.fit == "cut" else _in_time(x, self.rows)
        return x.transpose(1, 2)[:, None]

    def decode(self, picture: Tensor) -> Tensor:
        x = picture[:, 0].transpose(1, 2)
        if self.fit == "resize":
            x = _in_time(x, self.frames)
        log_mel = (x * self.deviation[:, None] + self.mean[:, None]).clamp_min(self.silence)
        return pad(log_mel, (0, self.frames - log_mel.shape[2]), value=self.silence)


def _in_time(x: Tensor, size: int) -> Tensor:
    """[B, n_mels, frames] with so many frames, the last beside the first."""
    if x.shape[2] == size:
        return x
    around = torch.cat([x[..., -1:], x, x[..., :1]], 2)
    places = (torch.arange(size, device=x.device) * (x.shape[2] / size)) + 1
    below = places.floor().long()
    return torch.lerp(around[..., below], around[..., below + 1], (places - below).to(x))
