"""The pipeline's tagger as an embedder; it needs no download."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Declaration, Embeddings


class TaggerEmbedder:
    """Patches of about one second, from the classifier trained on this corpus's training split."""

    name = "tagger"
    channels = 1

    def __init__(self, directory: Path):
        from soundmill.training.tagger import load_tagger

        self._model = load_tagger(directory)
        self.sample_rate = self._model.spec.sample_rate

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames, logits = self._model.embed(list(waves))
        return Embeddings([np.asarray(part, np.float32) for part in frames], np.asarray(logits, np.float32))


class TaggerDeclaration(Declaration):
    """Its weights are the output of the stage `tagger`."""

    origin = "trained by the pipeline's stage `tagger`"
    missing = "the stage `tagger` has not run"

    def path(self, tagger: Path | None) -> Path:
        if tagger is None:
            raise UserError("tagger: no data/tagger here; run in a checkout whose pipeline has trained it, or use another embedder")
        return tagger

    def digest(self, tagger: Path | None) -> str:
        return hashing.file_digest(self.path(tagger) / "model.safetensors")

    def unavailable(self) -> None:
        return None


EMBEDDERS = {"tagger": TaggerDeclaration(TaggerEmbedder, gpu=False)}
