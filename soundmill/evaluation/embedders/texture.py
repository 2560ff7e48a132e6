"""Texture statistics: an embedder without weights, which nothing has been trained for.

Statistics of the envelopes of cochlear bands, from which listeners recognise textures (McDermott & Simoncelli 2011, Neuron 71,
926–940): moments of each band, correlations between bands, power and phase of modulations. The published set has about 1,500
numbers; here bands are twice as wide, only their level and variation are kept by band, and all else is averaged over groups of
bands or over all of them. Each kind is divided by a fixed unit, about its standard deviation among environmental recordings. Why:
docs/decisions.md.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import fft

from soundmill.evaluation.embedders.base import Embedder, Embeddings

SAMPLE_RATE = 16_000
WINDOW, HOP = 32_000, 16_000  # samples
MARGIN = 1_280  # samples before and after a window, where it is faded
LENGTH = WINDOW + 2 * MARGIN
AT_ONCE = 16  # windows: bounds memory if a sound is long
QUIETEST = 2**-16  # root mean square of a sound; softer ones are not amplified to the level of the others

BANDS, LOWEST, HIGHEST = 16, 50.0, 8_000.0  # Hz
EXPONENT = 0.3  # compression of the envelopes
FLOOR = 1e-3  # of an envelope, relative to the sound's root mean square
RATE = 400  # of the envelopes, Hz
FRAMES, MARGIN_FRAMES = LENGTH * RATE // SAMPLE_RATE, MARGIN * RATE // SAMPLE_RATE
MODULATIONS = (1, 2, 4, 8, 16, 32, 64)  # centres, Hz
SHALLOWEST = 0.01  # relative deviation of an envelope; weaker modulation is none
DISTANCES = (1, 2, 4)  # of correlated bands
GROUPS = 4  # of neighbouring bands, whose statistics are averaged

# Each kind of statistic: its unit, and how many there are.
UNITS = {"level": 16.0, "variation": 1.5, "skew": 1.0, "modulation": 1.0, "correlation": 0.25, "across": 0.25, "phase": 0.15}
COUNTS = {
    "level": BANDS,
    "variation": BANDS,
    "skew": GROUPS,
    "modulation": GROUPS * len(MODULATIONS),
    "correlation": GROUPS * len(DISTANCES),
    "across": len(DISTANCES) * len(MODULATIONS),
    "phase": 2 * (len(MODULATIONS) - 1),
}
SIZE = sum(COUNTS.values())


class TextureEmbedder(Embedder):
    """Statistics of windows of two seconds every second."""

    sample_rate = SAMPLE_RATE

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        return Embeddings([statistics(wave) for wave in waves], np.zeros((len(waves), 0), np.float32))


def statistics(wave: np.ndarray) -> np.ndarray:
    """[P, SIZE] float32 of a wave [T], in units of UNITS; they depend neither on its level nor on its sign. P = 0 if T = 0."""
    if not len(wave):
        return np.zeros((0, SIZE), np.float32)
    cut = windows(wave)
    parts = [of_envelopes(envelopes(cut[start : start + AT_ONCE])) for start in range(0, len(cut), AT_ONCE)]
    rows = [np.concatenate([of[kind].reshape(-1, COUNTS[kind]) / unit for kind, unit in UNITS.items()], axis=1) for of in parts]
    return np.concatenate(rows).astype(np.float32)


def windows(wave: np.ndarray) -> np.ndarray:
    """Windows with their margins [P, LENGTH] of the wave at a root mean square of 1, reflected at its ends.

    An incomplete last window is dropped; a shorter wave is padded with zeros.
    """
    wave = np.asarray(wave, np.float32)
    wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    level = np.sqrt(np.mean(np.square(wave, dtype=np.float64)))
    padded = np.pad(wave / np.float32(max(level, QUIETEST)), MARGIN, mode="reflect", reflect_type="odd")
    return np.lib.stride_tricks.sliding_window_view(padded, LENGTH)[::HOP]


def envelopes(segments: np.ndarray) -> np.ndarray:
    """Compressed envelopes [P, BANDS, 2 · RATE] float64 of windows with their margins."""
    spectra = fft.rfft(segments * _fades())
    compressed = np.empty((len(segments), BANDS, FRAMES))
    for band, (first, gains) in enumerate(_filters()):
        size = fft.next_fast_len(max(2 * len(gains), FRAMES))  # samples of the band's envelope, enough for its bandwidth
        band_only = fft.ifft(spectra[:, first : first + len(gains)] * gains, size) * np.float32(2 * size / LENGTH)
        powers = np.square(band_only.real) + np.square(band_only.imag)
        slow = fft.rfft((powers + np.float32(FLOOR**2)) ** np.float32(EXPONENT / 2))[:, : FRAMES // 2]
        compressed[:, band] = fft.irfft(slow, FRAMES) * (FRAMES / size)
    return np.maximum(compressed[:, :, MARGIN_FRAMES:-MARGIN_FRAMES], FLOOR**EXPONENT)


def of_envelopes(envelopes: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics [P, …] of compressed envelopes [P, BANDS, T] by kind.

    level        mean of each band, dB
    variation    standard deviation of each band over its mean, octaves
    skew         third standardised moment, by group
    modulation   share of each octave in the power of a band's modulation, octaves, by group
    correlation  of the envelopes of bands at each distance, by group
    across       correlation of one octave of modulation in bands at each distance (C1), over all bands
    phase        correlation of an octave of modulation, its phase doubled, with the next octave (C2), real and imaginary part, over
                 all bands; the imaginary part has opposite signs for sounds that swell and that decay
    """
    mean = envelopes.mean(axis=2)
    centred = envelopes / mean[..., None] - 1
    variance = np.square(centred).mean(axis=2) + SHALLOWEST**2
    frames = envelopes.shape[2]
    octaves = _octaves(frames)
    # Spectra [P, BANDS, bins] under a Hann window; their squares add up to the variance.
    taper = np.sqrt(2 / 3) * (1 - np.cos(2 * np.pi * np.arange(frames) / frames)) * (np.sqrt(2) / frames)
    spectra = fft.rfft((centred * taper).astype(np.float32))[:, :, : frames // 2]
    powers = _products(spectra, 0) @ np.square(octaves).T + SHALLOWEST**2 / len(MODULATIONS)
    signals = fft.ifft(spectra[:, :, None] * octaves, axis=3)  # analytic, of each octave
    slow, fast = signals[:, :, :-1], signals[:, :, 1:]
    doubled = np.square(slow) / np.maximum(np.abs(slow), np.finfo(np.float32).tiny)
    phases = (doubled * fast.conj()).sum(axis=3) * signals.shape[3] / np.sqrt(powers[:, :, :-1] * powers[:, :, 1:])
    phases = phases.mean(axis=1)
    correlations = [_by_group(_correlations(_products(centred, far).mean(axis=2), variance, far)) for far in DISTANCES]
    across = [_correlations(_products(spectra, far) @ np.square(octaves).T, powers, far).mean(axis=1) for far in DISTANCES]
    return {
        "level": 20 / EXPONENT * np.log10(mean),
        "variation": np.log2(variance) / 2,
        "skew": _by_group((centred**3).mean(axis=2) / variance**1.5),
        "modulation": _by_group(np.log2(powers / powers.sum(axis=2, keepdims=True))),
        "correlation": np.stack(correlations, axis=1),
        "across": np.stack(across, axis=1),
        "phase": np.stack([phases.real, phases.imag], axis=1),
    }


def _by_group(values: np.ndarray) -> np.ndarray:
    """[P, GROUPS, …] averages of values [P, bands, …]."""
    return np.stack([part.mean(axis=1) for part in np.array_split(values, GROUPS, axis=1)], axis=1)


def _products(values: np.ndarray, distance: int) -> np.ndarray:
    """Real parts of the products of two bands this far apart."""
    return (values[:, distance:] * values[:, : values.shape[1] - distance].conj()).real


def _correlations(products: np.ndarray, variances: np.ndarray, distance: int) -> np.ndarray:
    return products / np.sqrt(variances[:, distance:] * variances[:, :-distance])


@cache
def _fades() -> np.ndarray:
    rise = np.square(np.sin(np.pi / 2 * (np.arange(MARGIN) + 0.5) / MARGIN))
    return np.concatenate([rise, np.ones(WINDOW), rise[::-1]]).astype(np.float32)


def _erb_numbers(hertz: np.ndarray | float) -> np.ndarray:
    """Glasberg & Moore (1990)."""
    return 21.4 * np.log10(1 + 0.00437 * np.asarray(hertz))


@cache
def _filters() -> list[tuple[int, np.ndarray]]:
    """(first bin, gains) of half-cosines on the ERB scale, each from the centre of the band below to that of the band above."""
    edges = np.linspace(_erb_numbers(LOWEST), _erb_numbers(HIGHEST), BANDS + 2)
    bins = _erb_numbers(np.arange(LENGTH // 2 + 1) * SAMPLE_RATE / LENGTH)
    filters = []
    for centre in edges[1:-1]:
        offsets = (bins - centre) / (edges[1] - edges[0])
        inside = np.flatnonzero(np.abs(offsets) < 1)
        filters.append((int(inside[0]), np.cos(np.pi / 2 * offsets[inside]).astype(np.float32)))
    return filters


@cache
def _octaves(frames: int) -> np.ndarray:
    """Gains [MODULATIONS, bins] of half-cosines, each from the centre of the octave below to that of the octave above."""
    hertz = np.arange(1, frames // 2) * RATE / frames
    offsets = np.clip(np.log2(hertz) - np.log2(MODULATIONS)[:, None], -1, 1)
    return np.pad(np.cos(np.pi / 2 * offsets), ((0, 0), (1, 0))).astype(np.float32)  # nothing of the mean
