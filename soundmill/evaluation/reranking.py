"""Of several sounds generated for one text, keep the one that CLAP finds most similar to it."""

from collections.abc import Callable, Sequence

import numpy as np

from soundmill.audio.resample import resample


def best_of(candidates: int) -> Callable[[Sequence[str], Sequence[np.ndarray], int], list[int]]:
    """A function (texts, waves [C, T] generated for them, sample rate) → the index of the best wave in each group of `candidates`.

    CLAP is loaded immediately, so missing weights raise UserError before anything is generated.
    """
    from soundmill.evaluation.embedders import clap

    embedder = clap.ClapEmbedder(clap.weights())

    def choose(texts: Sequence[str], waves: Sequence[np.ndarray], sample_rate: int) -> list[int]:
        if len(texts) % candidates:
            raise ValueError(f"{len(texts)} sounds cannot be split into groups of {candidates}")
        scores = embedder.similarity(texts, [resample(wave.mean(0), sample_rate, embedder.sample_rate) for wave in waves])
        return [int(row.argmax()) + number * candidates for number, row in enumerate(scores.reshape(-1, candidates))]

    return choose
