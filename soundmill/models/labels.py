"""Labels as a condition of a net."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundmill.training.loader import Source


def label_weights(labels: Iterable[str], known: Sequence[str]) -> Tensor:
    """[len(known)]: equal shares, summing to 1; all zero for no label (or none that is known)."""
    weights = torch.zeros(len(known))
    for label in set(labels) & set(known):
        weights[known.index(label)] = 1
    return weights / weights.sum().clamp_min(1)


@dataclass(frozen=True)
class Labelled:
    """A source of what another gives, and label weights [b, num_labels] behind it."""

    source: Source
    label_weights: Tensor  # [N, num_labels]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        return *self.source.batch(items, drawn), self.label_weights[items]
