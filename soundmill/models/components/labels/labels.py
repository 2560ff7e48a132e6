"""Labels as a condition of a net."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def label_weights(labels: Iterable[str], known: Sequence[str]) -> Tensor:
    """[len(known)]: equal shares, summing to 1; all zero for no label (or none that is known)."""
    weights = torch.zeros(len(known))
    for label in set(labels) & set(known):
        weights[known.index(label)] = 1
    return weights / weights.sum().clamp_min(1)
