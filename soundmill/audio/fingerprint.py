"""Fingerprints: the relative movement of neighbouring bands' levels (after Haitsma & Kalker 2002).

A bit per band and frame is whether the band's level rose against that of the next higher band, in the last 64 ms. Gain cancels in
the difference of two bands, any steady filter in the difference of two moments, and a lossy coder keeps both. A second word marks
the bits that are certain: those of bands that are loud enough and move.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import scipy.fft

SAMPLE_RATE = 16_000
WINDOW = 1024  # samples of one spectrum
HOP = 256
FRAMES_PER_SECOND = SAMPLE_RATE / HOP
SMOOTHING = 4  # spectra in one frame: coders shape their noise in time within some 20 ms
LAG = 4  # frames that a level is compared over
BANDS = 33  # of equal width in mel; the lowest 25 end below 3.7 kHz, so that sound once sampled at 8 kHz keeps 24 bits
LOWEST_HZ, HIGHEST_HZ = 100.0, 6800.0
FLOOR_DB = 60.0  # below the loudest band within FLOOR_SECONDS before and after: there coders keep nothing
FLOOR_SECONDS = 10.0
SILENCE = 1e-7  # power of a band of 16-bit noise, some -90 dB of full scale
LOUDEST = 1e6  # where full scale is 1: squares of wilder samples leave float32
CERTAIN_DB = 0.5  # a smaller move may go either way after a coder
BLOCK_FRAMES = 4096  # spectra held at once
MIN_BITS = 192  # certain ones: fewer may agree by chance, or because one drum is like another


def fingerprint(wave: np.ndarray) -> np.ndarray:
    """Fingerprint of mono float32 [T] at 16 kHz: uint32 [frames, 2], one frame every 16 ms, band by band from the lowest bit.

    The first word has the bits, the second those of them that are certain. Sound too short for a frame has none.
    """
    return fingerprint_blocks([wave])


def fingerprint_blocks(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """`fingerprint` of a sound that comes in blocks, in memory that grows by 8 kB a second."""
    return from_energies(np.concatenate([np.zeros((0, BANDS), dtype=np.float32), *_energies(blocks)]))


def from_energies(energies: np.ndarray) -> np.ndarray:
    """`fingerprint` of the energies of a sound's bands, float32 [spectra, BANDS]."""
    count = len(energies) - SMOOTHING + 1
    if count <= LAG:
        return np.zeros((0, 2), dtype=np.uint32)
    smooth = sum(energies[shift : shift + count] for shift in range(1, SMOOTHING)) + energies[:count]
    floor = np.maximum(_loudest_near(smooth.max(axis=1)) * np.float32(10 ** (-FLOOR_DB / 10)), np.float32(SILENCE))[:, None]
    loud = smooth > floor
    loud = loud[:, :-1] & loud[:, 1:]
    level = 10 * np.log10(np.maximum(smooth, floor))
    tilt = level[:, :-1] - level[:, 1:]
    move = tilt[LAG:] - tilt[:-LAG]
    certain = loud[LAG:] & loud[:-LAG] & (np.abs(move) > CERTAIN_DB)
    return np.concatenate([_words(move > 0), _words(certain)], axis=1)


def _loudest_near(peaks: np.ndarray) -> np.ndarray:
    """The greatest of float32 [frames] within FLOOR_SECONDS before and after each."""
    reach = int(FLOOR_SECONDS * FRAMES_PER_SECOND)
    if len(peaks) <= reach:
        return np.full_like(peaks, peaks.max())
    from scipy.ndimage import maximum_filter1d

    return maximum_filter1d(peaks, 2 * reach + 1, mode="nearest")


def _words(bits: np.ndarray) -> np.ndarray:
    """bool [frames, 32] as uint32 [frames, 1]."""
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def _energies(blocks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Energies of the bands, float32 [frames, BANDS], of each spectrum of the sound."""
    edges = _edges()
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    rest = np.zeros(0, dtype=np.float32)
    for block in blocks:
        for start in range(0, len(block), BLOCK_FRAMES * HOP):
            part = np.clip(block[start : start + BLOCK_FRAMES * HOP], -LOUDEST, LOUDEST)
            wave = np.concatenate([rest, part])
            if len(wave) < WINDOW:
                rest = wave
                continue
            frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
            rest = wave[len(frames) * HOP :]
            spectra = scipy.fft.rfft(frames * window)[:, : edges[-1]]
            yield np.add.reduceat(spectra.real**2 + spectra.imag**2, edges[:-1], axis=1)


@functools.cache
def _edges() -> np.ndarray:
    """The first bin of each band, and the one after the last."""
    low, high = (np.log1p(hertz / 700) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    return np.rint(700 * np.expm1(np.linspace(low, high, BANDS + 1)) * WINDOW / SAMPLE_RATE).astype(int)


def num_certain(fingerprint: np.ndarray) -> int:
    """Number of certain bits; below MIN_BITS the sound is too short, too soft or too steady to be recognised."""
    return int(np.bitwise_count(fingerprint[:, 1]).sum())


def similarity(a: np.ndarray, b: np.ndarray, *offsets: int) -> float:
    """Share in [0, 1] of the lesser fingerprint that is in the other, where frame t of `a` is frame t + offset of `b`; the
    largest, of several offsets.

    Certain bits that agree less those that do not: unlike sounds have 0 within chance, one sound before and after a coder 0.6 to 1.
    """
    most = min(num_certain(a), num_certain(b))
    return max(0, *(_agreement(a, b, offset) for offset in offsets)) / most if most >= MIN_BITS else 0.0


def _agreement(a: np.ndarray, b: np.ndarray, offset: int) -> int:
    start, end = max(0, -offset), min(len(a), len(b) - offset)
    if end <= start:
        return 0
    first, second = a[start:end], b[start + offset : end + offset]
    both = first[:, 1] & second[:, 1]
    unlike = (first[:, 0] ^ second[:, 0]) & both
    return int(np.bitwise_count(both).sum()) - 2 * int(np.bitwise_count(unlike).sum())
