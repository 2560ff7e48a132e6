"""A linear probe on embeddings: to which of the real clips' classes does a sound belong?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.evaluation import features

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

L2 = 0.1  # weight of ½‖W‖² relative to the summed cross entropy, for embeddings of unit mean variance
FOLDS = 5
MAX_ITERATIONS = 500
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression on embeddings that are centred and divided by one scale for all dimensions."""

    mean: np.ndarray  # [d]
    scale: float
    model: LogisticRegression

    def predict(self, embeddings: Iterable[tuple[str, np.ndarray]]) -> dict[str, str]:
        """The class of each embedding [d], by id."""
        rows = dict(embeddings)
        classes = self.model.predict((np.stack([*rows.values()]) - self.mean) / self.scale).tolist() if rows else []
        return dict(zip(rows, classes, strict=True))


def fit(embeddings: np.ndarray, labels: Sequence[str]) -> Probe:
    """Fit to embeddings [n, d]; the loss is convex, so no seed is needed. Fewer than two classes raise UserError."""
    from sklearn.linear_model import LogisticRegression

    if (count := len(set(labels))) < 2:
        raise UserError(f"a probe needs clips of at least two classes, found {sorted(set(labels))}")
    rows = np.asarray(embeddings, dtype=np.float64)
    mean = rows.mean(axis=0)
    scale = float(np.sqrt(rows.var(axis=0).mean())) or 1.0
    strength = (2 if count == 2 else 1) / L2  # of two classes it has one vector of weights, their difference
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    return Probe(mean, scale, model.fit((rows - mean) / scale, labels))


def folds(groups: Sequence[str], labels: Sequence[str], seed: int) -> list[int]:
    """The fold of every clip: clips of one group share it, and the groups of each class are distributed evenly."""
    label_of = dict(zip(reversed(groups), reversed(labels), strict=True))
    ordered = sorted(label_of, key=lambda name: (label_of[name], hashing.digest("fold", seed, name), name))
    fold_of = {group: index % FOLDS for index, group in enumerate(ordered)}
    return [fold_of[group] for group in groups]


@dataclass(frozen=True)
class Guesses:
    """Classes predicted by probes, by id; real clips and the codec's by the probe of the other folds.

    Sounds too short for a patch of the embedder have none; if that leaves under two classes of real clips, no sound has one.
    """

    generated: Mapping[str, str]
    real: Mapping[str, str]
    codec: Mapping[str, str]


def guess(clips: Sequence[tuple[str, str, int]], real: features.View, generated: features.View, codec: features.View) -> Guesses:
    """Fit probes to real clips (id, label, fold) and classify all sounds; no clip is classified by a probe fitted to its fold."""
    label_of = {clip_id: label for clip_id, label, _ in clips}
    fold_of = {clip_id: fold for clip_id, _, fold in clips}
    means, codec_means = dict(real.means()), dict(codec.means())
    if len({label_of[clip_id] for clip_id in means}) < 2:
        return Guesses({}, {}, {})
    of_real: dict[str, str] = {}
    of_codec: dict[str, str] = {}
    for fold in sorted(set(fold_of.values())):
        others = [clip_id for clip_id in means if fold_of[clip_id] != fold]
        if len({label_of[clip_id] for clip_id in others}) < 2:
            continue
        model = fit(np.stack([means[clip_id] for clip_id in others]), [label_of[clip_id] for clip_id in others])
        for rows, guesses in ((means, of_real), (codec_means, of_codec)):
            guesses |= model.predict((clip_id, row) for clip_id, row in rows.items() if fold_of.get(clip_id) == fold)
    model = fit(np.stack(list(means.values())), [label_of[clip_id] for clip_id in means])
    return Guesses(model.predict(generated.means()), of_real, of_codec)


def label_accuracy(
    guesses: Guesses, clips: Sequence[tuple[str, str, int]], requested: Mapping[str, str], codec: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Whether each sound is in the requested class (id → 1 or 0), and baselines of the mean: real clips, the codec's, chance."""
    label_of = {clip_id: label for clip_id, label, _ in clips}
    of = {clip_id: float(guesses.generated[clip_id] == label) for clip_id, label in requested.items()}
    baselines = {"chance": max(Counter(requested.values()).values()) / len(requested)}
    by_role = {"real": guesses.real, "codec": {name: guesses.codec[name] for name in codec if name in guesses.codec}}
    for role, guessed in by_role.items():
        if guessed:
            baselines[role] = float(np.mean([label == label_of[clip_id] for clip_id, label in guessed.items()]))
    return of, baselines
