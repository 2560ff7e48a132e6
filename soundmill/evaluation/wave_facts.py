"""Facts about a sound that no score shows: whether it is silent, clipped, or a duplicate."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from soundmill import hashing

SILENT_PEAK = 10 ** (-60 / 20)  # −60 dBFS
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.001  # of the samples at full scale; a single peak is not clipping


@dataclass(frozen=True, slots=True)
class WaveFacts:
    """Facts about one sound; `digest` is that of its 16-bit samples."""

    num_samples: int
    silent: bool
    clipped: bool
    digest: str


def wave_facts(wave: np.ndarray) -> WaveFacts:
    """Facts about one wave [T] in [−1, 1]."""
    from soundmill.audio.flac import to_pcm16

    level = np.abs(wave)
    return WaveFacts(
        num_samples=len(wave),
        silent=bool(level.max(initial=0.0) <= SILENT_PEAK),
        clipped=bool((level >= FULL_SCALE).mean() > CLIPPED_SHARE) if len(wave) else False,
        digest=hashing.digest(to_pcm16(wave).tobytes()),
    )


def shares(sounds: Iterable[WaveFacts]) -> dict[str, float]:
    """Shares of sounds that are silent, clipped, or equal to another one sample by sample."""
    sounds = list(sounds)
    distinct = len({sound.digest for sound in sounds})
    total = max(len(sounds), 1)
    return {
        "silent": sum(sound.silent for sound in sounds) / total,
        "clipped": sum(sound.clipped for sound in sounds) / total,
        "duplicate": (len(sounds) - distinct) / total,
    }
