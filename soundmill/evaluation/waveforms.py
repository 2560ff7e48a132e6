"""Distances between reconstructions or transformations and their originals, wave by wave.

lsd     log-spectral distance (Gray & Markel 1976): mean over frames of the root mean square over bins of differences in dB;
        STFT of 2048 samples every 512, periodic Hann; what is under 80 dB below the original's maximum counts as that
mrstft  auraloss's MultiResolutionSTFTLoss as it is by default: spectral convergence and log magnitudes at three resolutions
        (Yamamoto et al. 2020)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation import features

if TYPE_CHECKING:
    from auraloss.freq import MultiResolutionSTFTLoss

METRICS = {
    "lsd": "mean over frames of the root mean square over bins of differences in dB, to the original of the same id",
    "mrstft": "spectral convergence and log magnitudes at three resolutions, to the original of the same id",
}
WINDOW, HOP = 2048, 512  # samples; shorter waves are padded by zeros to a window
FLOOR_DB = 80.0  # below the original's maximum
TASK_SIZE = 16  # pairs in one job


@dataclass(frozen=True)
class Pairs:
    """Sounds and their originals, in the same order."""

    ids: tuple[str, ...]
    made: tuple[features.Sound, ...]
    originals: tuple[features.Sound, ...]

    @classmethod
    def of(cls, ids: Iterable[str], made: Mapping[str, features.Sound], originals: Mapping[str, features.Sound]) -> Pairs:
        ids = tuple(ids)
        return cls(ids, tuple(made[clip_id] for clip_id in ids), tuple(originals[clip_id] for clip_id in ids))

    def parts(self) -> list[Pairs]:
        return [
            Pairs(*(part[start : start + TASK_SIZE] for part in (self.ids, self.made, self.originals)))
            for start in range(0, len(self.ids), TASK_SIZE)
        ]


def measure(pairs: Pairs) -> list[dict[str, Any]]:
    """Of each pair its `id`, `lsd` and `mrstft` (neither of an original that is silent), and whether one was `cut`."""
    results = []
    for clip_id, *sounds in zip(pairs.ids, pairs.made, pairs.originals, strict=True):
        (made, made_rate), (original, rate) = (features.read_channels(sound) for sound in sounds)
        pair = {"id": clip_id, "cut": abs(made.shape[1] / made_rate - original.shape[1] / rate) * rate > 1}
        made, original = fit(made, made_rate, original, rate)
        if np.any(original):
            pair |= {"lsd": log_spectral_distance(made, original), "mrstft": multi_resolution_stft(made, original)}
        results.append(pair)
    return results


def fit(made: np.ndarray, made_rate: int, original: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Both waves [C, T] at the original's rate: the mean of channels where their numbers differ, as long as the shorter one."""
    if len(made) != len(original):
        made, original = made.mean(axis=0, keepdims=True), original.mean(axis=0, keepdims=True)
    if made_rate != rate:
        made = np.stack([resample(channel, made_rate, rate) for channel in made])
    length = min(made.shape[1], original.shape[1])
    if not length:
        raise UserError("a wave of no samples has no distance from another one")
    return made[:, :length], original[:, :length]


def log_spectral_distance(made: np.ndarray, original: np.ndarray, bins: slice = slice(None)) -> float:
    """Of two waves [C, T], in dB, over all bins or some; frames of all channels count alike. The original must not be silent."""
    spectra = [_magnitudes(wave) for wave in (made, original)]
    floor = spectra[1].max() * 10 ** (-FLOOR_DB / 20)
    levels = [20 * np.log10(np.maximum(spectrum[:, bins], floor)) for spectrum in spectra]
    return float(np.sqrt(np.square(levels[0] - levels[1]).mean(axis=1)).mean())


def _magnitudes(wave: np.ndarray) -> np.ndarray:
    """|STFT| [C, bins, frames], float64; frames are centred, the ends reflected."""
    import torch

    signal = torch.from_numpy(_padded(wave)).double()
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    return torch.stft(signal, WINDOW, HOP, WINDOW, window, return_complex=True).abs().numpy()


def multi_resolution_stft(made: np.ndarray, original: np.ndarray) -> float:
    """auraloss's default of two waves [C, T]."""
    import torch

    with torch.no_grad():
        return float(_loss()(*(torch.from_numpy(_padded(wave)).double()[None] for wave in (made, original))))


@cache
def _loss() -> MultiResolutionSTFTLoss:
    """Once per process, in float64."""
    from auraloss.freq import MultiResolutionSTFTLoss

    loss = MultiResolutionSTFTLoss()
    for part in loss.stft_losses:
        part.window = part.window.double()
    return loss


def _padded(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, ((0, 0), (0, max(0, WINDOW - wave.shape[1]))))
