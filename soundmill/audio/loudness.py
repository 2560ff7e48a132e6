"""Clips brought to one loudness: by their peak, or by ITU-R BS.1770-4 as pyloudnorm measures it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

FULL_SCALE = 32767 / 32768  # the highest sample of 16 bits
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
        if block * sample_rate > num_samples:  # by rounding, which pyloudnorm refuses
            block = math.nextafter(block, 0)
    meter = pyloudnorm.Meter(sample_rate, block_size=block, overlap=overlap)
    return float(meter.integrated_loudness(wave.T.astype(np.float64)))


def level(wave: np.ndarray, sample_rate: int, target: Literal["peak"] | float) -> tuple[np.ndarray, Outcome]:
    """A wave float32 [C, T] at the target: its peak at full scale, or its loudness at so many LUFS; and what became of it.

    Silence has no loudness and stays as it is. A gain that would take the peak beyond full scale is limited to what does not.
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
