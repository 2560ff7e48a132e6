"""The mapping between log-mels and generated pictures."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from soundmill.audio.mel import MelSpec


class LoopPicture(nn.Module):
    """log_mel [B, n_mels, frames] ↔ picture [B, 1, rows, n_mels], each band with mean 0 and deviation 1 over the training clips.

    A loop is circular: the frame at its end is its first one. If there are more frames than `rows`, the last ones are cut (and
    decoded as silence), or all are resized to `rows` (`resize`).
    """

    def __init__(self, spec: MelSpec, num_samples: int, rows: int, fit: Literal["cut", "resize"]):
        super().__init__()
        self.spec, self.num_samples, self.rows, self.fit = spec, num_samples, rows, fit
        self.frames = num_samples // spec.hop_length
        self.filled = min(rows, self.frames) if fit == "cut" else self.frames  # frames that are not decoded as silence
        self.silence = math.log(spec.floor)
        self.register_buffer("mean", torch.zeros(spec.n_mels))
        self.register_buffer("deviation", torch.ones(spec.n_mels))

    def measure(self, log_mels: Iterable[Tensor]) -> None:
        """Set mean and deviation from the training clips."""
        count, total, squares = 0, 0.0, 0.0
        for log_mel in log_mels:
            values = log_mel.double()
            count += values.shape[0] * values.shape[2]
            total, squares = total + values.sum((0, 2)), squares + values.square().sum((0, 2))
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp_min(1e-4).sqrt())

    def encode(self, log_mel: Tensor) -> Tensor:
        """Pictures from log-mels with at least `frames` frames."""
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
    """[B, n_mels, frames] resized to `size` frames, treated as circular."""
    if x.shape[2] == size:
        return x
    padded = torch.cat([x[..., -1:], x, x[..., :1]], 2)
    positions = (torch.arange(size, device=x.device) * (x.shape[2] / size)) + 1
    below = positions.floor().long()
    return torch.lerp(padded[..., below], padded[..., below + 1], (positions - below).to(x))
