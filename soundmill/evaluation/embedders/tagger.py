"""The pipeline's tagger as an embedder; it needs no download."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soundmill.evaluation.embedders.base import Embedder, Embeddings
from soundmill.training.tagger import load_tagger


class TaggerEmbedder(Embedder):
    """Patches of about one second, from the classifier trained on this corpus's training split."""

    def __init__(self, directory: Path):
        self._model = load_tagger(directory)
        self.sample_rate = self._model.spec.sample_rate

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        return Embeddings(*self._model.embed(waves))
