"""A-weighted pressure levels, and mixes of two sounds at equal level (Tokozume et al. 2018; TANGO §2.3)."""

import math

import numpy as np

WINDOW_SECONDS = 0.128  # 2048 samples at 16 kHz
FLOOR_DB = -80.0


def a_weighting(frequency: np.ndarray) -> np.ndarray:
    """Power gain of the A curve at frequencies in Hz (IEC 61672-1, annex E): 1 at 1 kHz, 0 at 0 Hz."""
    square = np.asarray(frequency, np.float64) ** 2
    amplitude = (
        12194.217**2
        * square**2
        / ((square + 20.598997**2) * np.sqrt((square + 107.65265**2) * (square + 737.86223**2)) * (square + 12194.217**2))
    )
    return amplitude**2 * 10**0.2


def window_length(sample_rate: int) -> int:
    """The power of two nearest to 128 ms: 2048 at 16 kHz, 4096 at 44.1 kHz."""
    return 2 ** max(4, round(math.log2(WINDOW_SECONDS * sample_rate)))


def pressure_level(wave: np.ndarray, sample_rate: int) -> float:
    """A-weighted level in dB of a wave [T]: the maximum over half-overlapping Hann windows of 10·log10 Σ A-weighted power, at least
    -80 dB. The last, partial window is zero-padded.
    """
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
    """(p·x1 + (1 - p)·x2) / √(p² + (1 - p)²) of waves [T1], [T2] → [max(T1, T2)] float32; the shorter is zero-padded.

    The root preserves the power of uncorrelated sounds of equal power; a mix of loud sounds can exceed 1.
    """
    mixed = np.zeros(max(len(first), len(second)), np.float64)
    mixed[: len(first)] += ratio * np.asarray(first, np.float64)
    mixed[: len(second)] += (1 - ratio) * np.asarray(second, np.float64)
    return (mixed / math.hypot(ratio, 1 - ratio)).astype(np.float32)


def join_captions(first: str, second: str) -> str:
    """`first and second`, the second starting in lower case, as in TANGO."""
    return f"{first} and {second[:1].lower()}{second[1:]}"
