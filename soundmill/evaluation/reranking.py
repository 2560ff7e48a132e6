"""Of several sounds made for one text, the one that is most like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from soundmill.audio.resample import resample


def best_of(candidates: int) -> Callable[[Sequence[str], Sequence[np.ndarray], int], list[int]]:
    """A choice among waves [C, T], made for `texts` (one each) at some rate: in every group of `candidates` neighbours the place of
    the one that CLAP finds most similar to its text. CLAP is loaded at once: without its weights a UserError, before any work."""
    from soundmill.evaluation.embedders import clap

    embedder = clap.ClapEmbedder(clap.weights())

    def choose(texts: Sequence[str], waves: Sequence[np.ndarray], sample_rate: int) -> list[int]:
        if len(texts) % candidates:
            raise ValueError(f"{len(texts)} sounds cannot be dealt into groups of {candidates}")
        scores = embedder.similarity(texts, [resample(wave.mean(0), sample_rate, embedder.sample_rate) for wave in waves])
        return [int(row.argmax()) + number * candidates for number, row in enumerate(scores.reshape(-1, candidates))]

    return choose
