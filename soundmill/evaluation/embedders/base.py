"""The protocol of an embedder: a named, pinned network from waves to patch embeddings and class logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Embeddings:
    """Of N waves: per wave its patches [P, D] float32, and clip-level logits [N, K] float32."""

    frames: list[np.ndarray]
    logits: np.ndarray


class Embedder(Protocol):
    """A network that judges sounds; metrics carry its name (`fad_<name>`, `kl_<name>`)."""

    name: str
    sample_rate: int  # of the waves it takes

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        """Embed mono waves [T] float32 in [−1, 1] at `sample_rate`; what else is embedded with a wave changes last bits at most."""
        ...
