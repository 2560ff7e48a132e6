"""Labels as a condition of a net."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill.errors import UserError
from soundmill.training.loader import Source


def label_weights(labels: Iterable[str], known: Sequence[str]) -> Tensor:
    """[len(known)]: equal shares, summing to 1; all zero for no label (or none that is known)."""
    weights = torch.zeros(len(known))
    for label in set(labels) & set(known):
        weights[known.index(label)] = 1
    return weights / weights.sum().clamp_min(1)


def known_labels(clip_labels: Iterable[Iterable[str]], before: Sequence[str], catalog: Path, remedy: str) -> list[str]:
    """The labels of training clips, those that a model knew `before` first; none at all is a UserError that says what to do."""
    found = sorted({label for labels in clip_labels for label in labels})
    if not found:
        raise UserError(f"{catalog}: no training clip has a label; {remedy}")
    return [*before, *(label for label in found if label not in before)]


@dataclass(frozen=True)
class Labelled:
    """A source of what another gives, and label weights [b, num_labels] behind it."""

    source: Source
    label_weights: Tensor  # [N, num_labels]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        return *self.source.batch(items, drawn), self.label_weights[items]
