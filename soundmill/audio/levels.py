"""Levels of sounds: peak, loudness (ITU-R BS.1770-4, pyloudnorm), A-weighted pressure; mixes of two at equal pressure.

The mixes are those of Tokozume et al. 2018 and TANGO §2.3.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

FULL_SCALE = 32767 / 32768  # the largest 16-bit sample
BLOCK_SECONDS = 0.4  # of BS.1770; a shorter clip is one block

Outcome = Literal["changed", "silent", "limited"]


def integrated_loudness(wave: np.ndarray, sample_rate: int) -> float:
    """Gated LUFS of a wave [C, T], C at most 5, in one block if shorter than 0.4 s; -inf if no block rises above -70 LUFS."""
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
    """Scale float32 [C, T] to full scale or LUFS, never so that it clips; returns it (silence unchanged) and the outcome."""
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

    It is `target` LUFS, or what all reach without clipping, but not below `lowest`; gains are at most `max_gain`, 0 for silence.
    """
    measured = [integrated_loudness(np.broadcast_to(wave, (2, wave.shape[1])), rate) for wave, rate in sounds]
    peaks = [float(np.abs(wave).max(initial=0.0)) for wave, _ in sounds]
    room = [20 * math.log10(FULL_SCALE / peak) if peak else math.inf for peak in peaks]
    pairs = list(zip(measured, room, strict=True))
    common = max(lowest, min([target, *(loudness + room for loudness, room in pairs if loudness > -math.inf)]))
    return [min(common - loudness, room, max_gain) if loudness > -math.inf else 0.0 for loudness, room in pairs]


WINDOW_SECONDS = 0.128  # 2048 samples at 16 kHz
FLOOR_DB = -80.0


def a_weighting(frequency: np.ndarray) -> np.ndarray:
    """Power gain of the A curve at frequencies in Hz (IEC 61672-1, annex E): 1 at 1 kHz, 0 at 0 Hz."""
    square = np.asarray(frequency, np.float64) ** 2
    middle = np.sqrt((square + 107.65265**2) * (square + 737.86223**2))
    amplitude = 12194.217**2 * square**2 / ((square + 20.598997**2) * middle * (square + 12194.217**2))
    return amplitude**2 * 10**0.2


def window_length(sample_rate: int) -> int:
    """The power of two nearest to 128 ms: 2048 at 16 kHz, 4096 at 44.1 kHz."""
    return 2 ** max(4, round(math.log2(WINDOW_SECONDS * sample_rate)))


def pressure_level(wave: np.ndarray, sample_rate: int) -> float:
    """A-weighted dB of a wave [T], at least -80: the maximum over half-overlapping Hann windows, the last zero-padded."""
    size = window_length(sample_rate)
    hop = size // 2
    wave = np.asarray(wave, np.float64)
    count = 1 + max(0, math.ceil((len(wave) - size) / hop))
    wave = np.pad(wave, (0, (count - 1) * hop + size - len(wave)))
    weights = a_weighting(np.fft.rfftfreq(size, 1 / sample_rate))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    loudest = 0.0
    for start in range(0, count, 256):  # in pieces, for bounded memory
        frames = np.lib.stride_tricks.sliding_window_view(wave, size)[start * hop : (start + 256) * hop : hop]
        loudest = max(loudest, float((np.abs(np.fft.rfft(frames * window)) ** 2 @ weights).max()))
    return max(FLOOR_DB, 10 * math.log10(loudest)) if loudest > 0 else FLOOR_DB


def mix_ratio(first_level: float, second_level: float) -> float:
    """Share p of the first sound, from the two levels in dB: 1/2 when equal, 1/11 when the first is 20 dB louder."""
    return 1 / (1 + 10 ** ((first_level - second_level) / 20))


def mix(first: np.ndarray, second: np.ndarray, ratio: float) -> np.ndarray:
    """(p·x1 + (1 - p)·x2) / √(p² + (1 - p)²) of waves [..., T1], [..., T2] → [..., max(T1, T2)] float32.

    The shorter is zero-padded. The root preserves the power of uncorrelated sounds of equal power; a mix of loud sounds can
    exceed 1.
    """
    mixed = np.zeros((*first.shape[:-1], max(first.shape[-1], second.shape[-1])), np.float64)
    mixed[..., : first.shape[-1]] += ratio * np.asarray(first, np.float64)
    mixed[..., : second.shape[-1]] += (1 - ratio) * np.asarray(second, np.float64)
    return (mixed / math.hypot(ratio, 1 - ratio)).astype(np.float32)


def join_captions(first: str, second: str) -> str:
    """`first and second`, the second starting in lower case, as in TANGO."""
    return f"{first} and {second[:1].lower()}{second[1:]}"
