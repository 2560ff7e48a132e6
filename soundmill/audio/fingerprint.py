"""Fingerprints: the relative movement of neighbouring bands' levels (after Haitsma & Kalker 2002).

One bit per band and frame: whether the band's level rose relative to the next higher band within the last 64 ms. The difference
of two bands cancels gain, the difference in time cancels steady filters, and lossy codecs preserve both. A second word marks the
certain bits: those of bands that are loud enough and change enough.
"""

import functools
from collections.abc import Iterable

import numpy as np
import scipy.fft

SAMPLE_RATE = 16_000
WINDOW = 1024  # samples per spectrum
HOP = 256
FRAMES_PER_SECOND = SAMPLE_RATE / HOP
SMOOTHING = 4  # spectra per frame: codecs shape noise in time within about 20 ms
LAG = 4  # frames between the compared levels
BANDS = 33  # of equal width in mel; the lowest 25 end below 3.7 kHz, so that 24 bits survive resampling to 8 kHz
LOWEST_HZ, HIGHEST_HZ = 100.0, 6800.0
FLOOR_DB = 60.0  # below the loudest band within FLOOR_SECONDS, where codecs keep nothing
FLOOR_SECONDS = 10.0
SILENCE = 1e-7  # power of a band of 16-bit noise, about -90 dBFS
LOUDEST = 1e6  # full scale is 1; squares of larger samples overflow float32
CERTAIN_DB = 0.5  # a codec may reverse a smaller change
BLOCK_FRAMES = 4096  # spectra in memory at once
MIN_BITS = 192  # certain bits; fewer may agree by chance, or between similar drum hits


def fingerprint(wave: np.ndarray) -> np.ndarray:
    """Fingerprint of mono float32 [T] at 16 kHz: uint32 [frames, 2], a frame every 16 ms, the lowest band in the lowest bit.

    The first word has the bits, the second marks the certain ones. Too short a sound has no frames.
    """
    return fingerprint_blocks([wave])


def fingerprint_blocks(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """`fingerprint` of a sound in blocks; memory grows by 8 kB per second of sound."""
    return from_energies(np.concatenate([np.zeros((0, BANDS), dtype=np.float32), *_energies(blocks)]))


def from_energies(energies: np.ndarray) -> np.ndarray:
    """`fingerprint` of band energies, float32 [spectra, BANDS]."""
    count = len(energies) - SMOOTHING + 1
    if count <= LAG:
        return np.zeros((0, 2), dtype=np.uint32)
    smooth = sum(energies[shift : shift + count] for shift in range(1, SMOOTHING)) + energies[:count]
    peaks, reach = smooth.max(axis=1), int(FLOOR_SECONDS * FRAMES_PER_SECOND)
    loudest = np.full_like(peaks, peaks.max())
    if len(peaks) > reach:
        from scipy.ndimage import maximum_filter1d

        loudest = maximum_filter1d(peaks, 2 * reach + 1, mode="nearest")  # within FLOOR_SECONDS of each frame
    floor = np.maximum(loudest * np.float32(10 ** (-FLOOR_DB / 10)), np.float32(SILENCE))[:, None]
    loud = smooth > floor
    loud = loud[:, :-1] & loud[:, 1:]
    level = 10 * np.log10(np.maximum(smooth, floor))
    tilt = level[:, :-1] - level[:, 1:]
    move = tilt[LAG:] - tilt[:-LAG]
    certain = loud[LAG:] & loud[:-LAG] & (np.abs(move) > CERTAIN_DB)
    return np.concatenate([_words(move > 0), _words(certain)], axis=1)


def _words(bits: np.ndarray) -> np.ndarray:
    """bool [frames, 32] as uint32 [frames, 1]."""
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def _energies(blocks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Band energies, float32 [frames, BANDS], of the spectra of a sound."""
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
    """Number of certain bits; below MIN_BITS a sound is too short, soft or steady to be recognised."""
    return int(np.bitwise_count(fingerprint[:, 1]).sum())


def similarity(a: np.ndarray, b: np.ndarray, *offsets: int) -> float:
    """Share in [0, 1] of the smaller fingerprint found in the other, with frame t of `a` at frame t + offset of `b`; the maximum
    over the offsets.

    Counts certain bits that agree minus those that do not: about 0 for different sounds, 0.6 to 1 for a sound and its coded copy.
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
