"""A pseudo-quadrature mirror filter bank (Nguyen 1994): splits a wave into `bands` signals at 1 / `bands` of its rate, and back."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENUATION_DB = 100.0
SEARCHED = (0.9, 1.5)  # range of the cut-off search, in units of pi / (2 bands)


class Pqmf(nn.Module):
    """Near-perfect reconstruction: no delay, and an error about 60 dB below the signal. Computed in polyphase form.

    `ahead` is the lookahead in frames of `bands` samples: of analysis ahead[0], of synthesis ahead[1].
    """

    def __init__(self, bands: int):
        super().__init__()
        self.bands = bands
        filters = filter_bank(bands)
        reach = filters.shape[1] // 2
        back, forth = -(-reach // bands), max(0, -(-(reach - bands + 1) // bands))  # frames that a filter reaches into
        self.ahead = forth, back
        self.register_buffer("forward_taps", _polyphase(filters, back, back + forth + 1))
        self.register_buffer(
            "backward_taps", _polyphase(bands * filters, back, back + forth + 1).permute(1, 0, 2).flip(2).contiguous()
        )

    def analysis(self, waves: Tensor) -> Tensor:
        """Bands [N, bands, T / bands] of waves [N, 1, T]; T is a multiple of `bands`."""
        with torch.autocast(waves.device.type, enabled=False):
            frames = F.pad(fold(waves.float(), self.bands), (self.ahead[1], self.ahead[0]))
            bands = F.conv1d(frames, self.forward_taps)
            return bands * flips(self.bands, bands.shape[2]).to(bands)

    def synthesis(self, bands: Tensor) -> Tensor:
        """Waves [N, 1, T] of bands [N, bands, T / bands]."""
        with torch.autocast(bands.device.type, enabled=False):
            bands = bands.float() * flips(self.bands, bands.shape[2]).to(bands)
            return unfold(F.conv1d(F.pad(bands, (self.ahead[0], self.ahead[1])), self.backward_taps))


def fold(waves: Tensor, bands: int) -> Tensor:
    """[N, 1, T] as frames of `bands` samples [N, bands, T / bands]."""
    return waves.reshape(waves.shape[0], -1, bands).transpose(1, 2)


def unfold(frames: Tensor) -> Tensor:
    return frames.transpose(1, 2).reshape(frames.shape[0], 1, -1)


def flips(bands: int, frames: int, first: int = 0) -> Tensor:
    """−1 where an odd band has an odd frame, counted from `first`, else 1: undoes the spectral inversion of the odd bands."""
    odd = torch.arange(bands)[:, None] * (torch.arange(frames) + first)[None]
    return 1.0 - 2.0 * (odd % 2)


def _polyphase(filters: np.ndarray, back: int, frames: int) -> Tensor:
    """Taps [bands, bands, frames] over folded samples, of filters [bands, 2 · reach + 1] around 0."""
    bands, reach = len(filters), filters.shape[1] // 2
    at = (back - np.arange(frames))[None, :] * bands - np.arange(bands)[:, None] + reach
    inside = (at >= 0) & (at < filters.shape[1])
    return torch.from_numpy(np.where(inside, filters[:, at.clip(0, filters.shape[1] - 1)], 0.0).astype(np.float32))


@lru_cache(maxsize=4)
def filter_bank(bands: int) -> np.ndarray:
    """Analysis filters [bands, taps], an odd number of taps centred on time 0; synthesis uses them time-reversed, times `bands`."""
    taps = prototype(bands)
    time = np.arange(len(taps)) - len(taps) // 2
    band = np.arange(bands)[:, None]
    phase = np.where(band % 2, -1, 1) * math.pi / 4
    return 2 * taps * np.cos((2 * band + 1) * math.pi / (2 * bands) * time + phase)


def prototype(bands: int) -> np.ndarray:
    """A Kaiser-windowed low pass; its cut-off minimises its autocorrelation at multiples of 2 · bands samples.

    For 16 bands 377 taps, cut off at 0.1075 rad.
    """
    from scipy.optimize import minimize_scalar

    def leaking(cutoff: float) -> float:
        taps = low_pass(cutoff)
        autocorrelation = np.convolve(taps, taps, "full")[len(taps) - 1 :: 2 * bands]
        return float(np.abs(autocorrelation[1:]).max())

    # The number of taps jumps with the cut-off, so search a grid first and refine between the neighbours of its minimum.
    grid = math.pi / (2 * bands) * np.linspace(*SEARCHED, 121)
    place = int(np.clip(np.argmin([leaking(cutoff) for cutoff in grid]), 1, len(grid) - 2))
    found = minimize_scalar(leaking, bounds=grid[[place - 1, place + 1]], method="bounded", options={"xatol": 1e-9})
    return low_pass(found.x)


def low_pass(cutoff: float) -> np.ndarray:
    """A low pass with unit gain at 0, whose pass band and transition band are both `cutoff` rad wide."""
    from scipy.signal import firwin, kaiserord

    count, beta = kaiserord(ATTENUATION_DB, cutoff / math.pi)
    return firwin(count | 1, cutoff, window=("kaiser", beta), scale=True, fs=2 * math.pi)
