"""Conditioning on labels, or on captions as vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.family import Request, Run
from soundmill.training.loader import Source


def label_weights(labels: Iterable[str], label_names: Sequence[str]) -> Tensor:
    """Weights [len(label_names)] of the labels in `label_names`: equal and summing to 1, or all zero if there are none."""
    weights = torch.zeros(len(label_names))
    for label in set(labels) & set(label_names):
        weights[label_names.index(label)] = 1
    return weights / weights.sum().clamp_min(1)


def conditions_of(
    requests: Sequence[Request], labels: Sequence[str], text: TextConfig | None, texts: Texts | None, width: int | None, run: Run
) -> Tensor:
    """[N, conditions]: vectors of captions `width` wide, if there is a `text` encoder, or label weights; zero: no condition."""
    if text:
        states = text_states.states_of(text, texts, [request.caption for request in requests], run)
        return text_states.vectors(states, width)
    return torch.stack([label_weights(request.labels, labels) for request in requests])


@dataclass(frozen=True)
class Labelled:
    """A source that appends label weights [b, num_labels] to the batches of another."""

    source: Source
    label_weights: Tensor  # [N, num_labels]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        return *self.source.batch(items, drawn), self.label_weights[items]
