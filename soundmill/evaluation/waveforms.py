"""Distances between the waves of reconstructions and their originals.

lsd     log-spectral distance (Gray & Markel 1976): mean over frames of the root mean square over bins of differences in dB;
        STFT of 2048 samples, hop 512, periodic Hann window; levels are raised to at least 80 dB below the original's maximum
mrstft  auraloss's MultiResolutionSTFTLoss with its default settings: spectral convergence and log magnitudes at three resolutions
        (Yamamoto et al. 2020)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from soundmill.audio.resample import resample
from soundmill.errors import UserError
from soundmill.evaluation import features

if TYPE_CHECKING:
    from auraloss.freq import MultiResolutionSTFTLoss

METRICS = ("lsd", "mrstft")
WINDOW, HOP = 2048, 512  # samples; shorter waves are padded with zeros to a window
FLOOR_DB = 80.0  # below the original's maximum
TASK_SIZE = 16  # pairs in one job

Pair = tuple[str, features.Sound, features.Sound]  # id, reconstruction, original


def measure(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """The `id` of each pair, its `lsd` and `mrstft` (unless the original is silent), and whether a wave was `cut`."""
    results = []
    for clip_id, *sounds in pairs:
        (generated, generated_rate), (original, rate) = (features.read_channels(sound) for sound in sounds)
        pair = {"id": clip_id, "cut": abs(generated.shape[1] / generated_rate - original.shape[1] / rate) * rate > 1}
        generated, original = fit(generated, generated_rate, original, rate)
        if np.any(original):
            pair |= {"lsd": log_spectral_distance(generated, original), "mrstft": multi_resolution_stft(generated, original)}
        results.append(pair)
    return results


def fit(generated: np.ndarray, generated_rate: int, original: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Both waves [C, T] at the original's rate and cut to the shorter one; mixed to mono if their channels differ."""
    if len(generated) != len(original):
        generated, original = generated.mean(axis=0, keepdims=True), original.mean(axis=0, keepdims=True)
    generated = resample(generated, generated_rate, rate)
    length = min(generated.shape[1], original.shape[1])
    if not length:
        raise UserError("an empty wave has no distance from another wave")
    return generated[:, :length], original[:, :length]


def log_spectral_distance(generated: np.ndarray, original: np.ndarray, bins: slice = slice(None)) -> float:
    """In dB, of two waves [C, T], over these bins; the mean is over frames and channels. The original must not be silent."""
    spectra = [_magnitudes(wave) for wave in (generated, original)]
    floor = spectra[1].max() * 10 ** (-FLOOR_DB / 20)
    levels = [20 * np.log10(np.maximum(spectrum[:, bins], floor)) for spectrum in spectra]
    return float(np.sqrt(np.square(levels[0] - levels[1]).mean(axis=1)).mean())


def _magnitudes(wave: np.ndarray) -> np.ndarray:
    """|STFT| [C, bins, frames] float64; frames are centred, the ends reflected."""
    import torch

    signal = torch.from_numpy(_padded(wave)).double()
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    return torch.stft(signal, WINDOW, HOP, WINDOW, window, return_complex=True).abs().numpy()


def multi_resolution_stft(generated: np.ndarray, original: np.ndarray) -> float:
    """auraloss's loss of two waves [C, T] with its default settings."""
    import torch

    with torch.no_grad():
        return float(_loss()(*(torch.from_numpy(_padded(wave)).double()[None] for wave in (generated, original))))


@cache
def _loss() -> MultiResolutionSTFTLoss:
    """Created once per process, in float64."""
    from auraloss.freq import MultiResolutionSTFTLoss

    loss = MultiResolutionSTFTLoss()
    for part in loss.stft_losses:
        part.window = part.window.double()
    return loss


def _padded(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, ((0, 0), (0, max(0, WINDOW - wave.shape[1]))))
