"""Normalising clips by peak, or by loudness (ITU-R BS.1770-4, pyloudnorm)."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

FULL_SCALE = 32767 / 32768  # the largest 16-bit sample
BLOCK_SECONDS = 0.4  # of BS.1770; a shorter clip is one block

Outcome = Literal["changed", "silent", "limited"]


def integrated_loudness(wave: np.ndarray, sample_rate: int) -> float:
    """Gated loudness in LUFS of a wave [C, T], C at most 5; -inf where no block rises above -70 LUFS.

    A wave shorter than a block of 0.4 s is measured in one block of its own length.
    """
    import pyloudnorm

    num_samples = wave.shape[1]
    if not num_samples:
        return -math.inf
    block, overlap = BLOCK_SECONDS, 0.75
    if num_samples < block * sample_rate:
        block, overlap = num_samples / sample_rate, 0.0
        if block * sample_rate > num_samples:  # by rounding; pyloudnorm rejects it
            block = math.nextafter(block, 0)
    meter = pyloudnorm.Meter(sample_rate, block_size=block, overlap=overlap)
    return float(meter.integrated_loudness(wave.T.astype(np.float64)))


def level(wave: np.ndarray, sample_rate: int, target: Literal["peak"] | float) -> tuple[np.ndarray, Outcome]:
    """Scale a wave float32 [C, T] to the target, peak at full scale or loudness in LUFS; returns the wave and the outcome.

    Silence is unchanged. The gain is limited so that the wave does not clip.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    measured = integrated_loudness(wave, sample_rate) if target != "peak" and peak > 0 else 0.0
    if peak == 0 or measured == -math.inf:
        return wave, "silent"
    most = FULL_SCALE / peak
    if target == "peak":
        return wave * np.float32(most), "changed"
    gain = 10 ** ((target - measured) / 20)
    return wave * np.float32(min(gain, most)), "limited" if gain > most else "changed"


def matching_gains(sounds: Sequence[tuple[np.ndarray, int]], target: float, lowest: float, max_gain: float) -> list[float]:
    """Gains in dB that bring sounds (wave [C, T], C at most 2, and rate) to one loudness on two loudspeakers.

    The loudness is `target` LUFS, or the highest that all sounds reach without clipping, but not below `lowest`. Gains are limited
    to `max_gain` dB and so that nothing clips; silence gets 0 dB.
    """
    measured = [integrated_loudness(np.broadcast_to(wave, (2, wave.shape[1])), rate) for wave, rate in sounds]
    peaks = [float(np.abs(wave).max(initial=0.0)) for wave, _ in sounds]
    room = [20 * math.log10(FULL_SCALE / peak) if peak else math.inf for peak in peaks]
    reachable = [loudness + room for loudness, room in zip(measured, room, strict=True) if loudness > -math.inf]
    common = max(lowest, min([target, *reachable]))
    return [
        min(common - loudness, room, max_gain) if loudness > -math.inf else 0.0
        for loudness, room in zip(measured, room, strict=True)
    ]
