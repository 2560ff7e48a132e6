"""The pipeline's own tagger as an embedder: needs no download, and its metrics carry its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soundmill.evaluation.embedders.base import Embeddings


class TaggerEmbedder:
    """Patches of about a second from the classifier trained on this corpus's real training split."""

    name = "tagger"

    def __init__(self, directory: Path):
        from soundmill.training.tagger import load_tagger

        self._model = load_tagger(directory)
        self.sample_rate = self._model.spec.sample_rate

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames, logits = self._model.embed(list(waves))
        return Embeddings([np.asarray(part, np.float32) for part in frames], np.asarray(logits, np.float32))
