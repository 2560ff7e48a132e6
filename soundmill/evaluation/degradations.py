"""Real sounds degraded in known ways: the rungs of the ladder that a model's scores are compared with.

A degraded wave depends only on the wave, the way it is degraded, the clip id and the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy import fft

from soundmill import hashing

VOCODER, VOCODER_HOP = 1024, 256  # samples

Degrade = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]  # wave [T], its sample rate → wave [T]


@dataclass(frozen=True)
class Degradation:
    """One way to degrade a wave; `title` stands in sentences and figures."""

    title: str
    degrade: Degrade


def shuffle_pieces(wave: np.ndarray, rate: int, random: np.random.Generator, seconds: float) -> np.ndarray:
    """The wave's pieces under overlapping Hann windows of this length, in a random order."""
    hop = max(1, round(seconds * rate / 2))
    count = -(-len(wave) // hop) + 1
    padded = np.zeros((count + 1) * hop)
    padded[hop : hop + len(wave)] = wave
    window = 0.5 - 0.5 * np.cos(np.pi * np.arange(2 * hop) / hop)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop] * window
    pieces = pieces[random.permutation(count)].reshape(count, 2, hop)
    shuffled = np.zeros((count + 1, hop))
    shuffled[:-1] += pieces[:, 0]
    shuffled[1:] += pieces[:, 1]
    return shuffled.ravel()[hop : hop + len(wave)]


def randomise_phases(wave: np.ndarray, rate: int, random: np.random.Generator) -> np.ndarray:
    """The same spectrum of the whole wave with random phases."""
    magnitudes = np.abs(fft.rfft(wave.astype(np.float64)))
    phases = random.uniform(0, 2 * np.pi, len(magnitudes))
    return fft.irfft(magnitudes * np.exp(1j * phases), len(wave))


def low_pass(wave: np.ndarray, rate: int, random: np.random.Generator, hertz: float) -> np.ndarray:
    """Butterworth filter of order 8, forwards and backwards; unchanged if the sample rate leaves nothing to remove."""
    from scipy import signal

    if 2 * hertz >= rate:
        return wave
    return signal.sosfiltfilt(signal.butter(8, hertz, fs=rate, output="sos"), wave, padlen=min(100, len(wave) - 1))


def add_noise(wave: np.ndarray, rate: int, random: np.random.Generator, decibels: float) -> np.ndarray:
    """White noise added, this much softer than the whole wave."""
    level = np.sqrt(np.mean(np.square(wave, dtype=np.float64))) * 10 ** (-decibels / 20)
    return wave + level * random.standard_normal(len(wave))


def raise_pitch(wave: np.ndarray, rate: int, random: np.random.Generator, semitones: float) -> np.ndarray:
    """Stretched by a phase vocoder, then played faster."""
    import soxr
    import torch
    from torchaudio.functional import phase_vocoder

    factor, window = 2 ** (semitones / 12), torch.hann_window(VOCODER)
    frames = {"n_fft": VOCODER, "hop_length": VOCODER_HOP, "window": window}
    spectra = torch.stft(torch.tensor(wave, dtype=torch.float32), **frames, pad_mode="constant", return_complex=True)
    advance = torch.linspace(0, np.pi * VOCODER_HOP, VOCODER // 2 + 1)[:, None]
    stretched = torch.istft(phase_vocoder(spectra, 1 / factor, advance), **frames, length=round(len(wave) * factor))
    faster = soxr.resample(stretched.numpy(), factor, 1.0)
    return np.pad(faster, (0, max(0, len(wave) - len(faster))))[: len(wave)]


def quantise(wave: np.ndarray, rate: int, random: np.random.Generator, bits: int) -> np.ndarray:
    """Rounded to this many bits, without dither."""
    steps = 2 ** (bits - 1) - 1
    return np.round(wave * steps) / steps


DEGRADATIONS: Mapping[str, Degradation] = {
    "pieces_200ms": Degradation("pieces of 200 ms", partial(shuffle_pieces, seconds=0.2)),
    "pieces_50ms": Degradation("pieces of 50 ms", partial(shuffle_pieces, seconds=0.05)),
    "random_phases": Degradation("random phases", randomise_phases),
    "low_pass_4khz": Degradation("low-pass at 4 kHz", partial(low_pass, hertz=4_000.0)),
    "noise_20db": Degradation("noise at 20 dB SNR", partial(add_noise, decibels=20.0)),
    "noise_0db": Degradation("noise at 0 dB SNR", partial(add_noise, decibels=0.0)),
    "pitch_2_semitones": Degradation("pitch +2 semitones", partial(raise_pitch, semitones=2.0)),
    "bits_8": Degradation("8-bit samples", partial(quantise, bits=8)),
}


def degrade(kind: str, wave: np.ndarray, rate: int, clip_id: str, seed: int) -> np.ndarray:
    """A mono wave [T], degraded, float32."""
    if not len(wave):
        return wave
    random = np.random.default_rng(int(hashing.digest("spoiled", kind, seed, clip_id), 16))  # another word would change scores
    return DEGRADATIONS[kind].degrade(wave, rate, random).astype(np.float32)


@cache
def code() -> str:
    """Digest of this module: part of a degraded sound's key."""
    return hashing.file_digest(__file__)
