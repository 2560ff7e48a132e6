"""Samples of a codec of waves while it trains."""

from __future__ import annotations

from torch import Tensor

from soundmill.audio import figures
from soundmill.audio.tags import CHANGED
from soundmill.models.samples import Samples


def beside_real(real: Tensor, decoded: Tensor, sample_rate: int, step: int) -> Samples:
    """Each real wave and what the codec makes of it, both [N, C, T]."""
    sounds = [(wave.numpy(), sample_rate) for pair in zip(real, decoded, strict=True) for wave in pair]
    titles = ["real", "decoded"] * len(real)
    figure = figures.draw_waves(sounds, titles, 2, f"autoencoder after {step} steps")
    return Samples(figure, titles, sounds, [None, CHANGED] * len(real))
