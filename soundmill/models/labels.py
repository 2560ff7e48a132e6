"""Conditioning on labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundmill.training.loader import Source


def label_weights(labels: Iterable[str], label_names: Sequence[str]) -> Tensor:
    """Weights [len(label_names)] of the labels in `label_names`: equal and summing to 1, or all zero if there are none."""
    weights = torch.zeros(len(label_names))
    for label in set(labels) & set(label_names):
        weights[label_names.index(label)] = 1
    return weights / weights.sum().clamp_min(1)


@dataclass(frozen=True)
class Labelled:
    """A source that appends label weights [b, num_labels] to the batches of another."""

    source: Source
    label_weights: Tensor  # [N, num_labels]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        return *self.source.batch(items, drawn), self.label_weights[items]
