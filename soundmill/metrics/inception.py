"""Inception score (Salimans et al. 2016): high if a classifier is certain of each generated sound and the classes vary."""

from collections.abc import Iterator, Mapping

import numpy as np

from soundmill.errors import UserError
from soundmill.metrics.bootstrap import Influence, SetInfluence
from soundmill.metrics.divergence import names_of, softmax

SPLITS = 10
FEWEST_IN_SPLIT = 10  # sounds; with fewer, all sounds are one split
CHUNK = 256  # sounds whose probabilities are in memory


def influence(logits: Mapping[str, np.ndarray]) -> Influence:
    """Influence of each sound on the score of all sounds together."""
    entropies, sums = _gather(logits, np.zeros(len(logits), int), 1)
    mean = np.maximum(sums[0] / len(logits), np.finfo(np.float64).tiny)
    score = _score(entropies, sums[0])
    return Influence(SetInfluence.of(score * (entropies - np.concatenate([p @ np.log(mean) for p in _probabilities(logits)]))))


def in_splits(logits: Mapping[str, np.ndarray], seed: int) -> tuple[float, float, int]:
    """Mean and standard deviation of the scores of ten splits of the sounds, shuffled by the seed, and the number of splits.

    A score is exp of the mean KL(p ‖ mean p), with p the softmaxed logits [K]; it lies between 1 and K, and cannot exceed the
    number of sounds. With fewer than a hundred sounds there is one split.
    """
    if not len(logits):
        raise UserError("no logits of generated sounds: an inception score needs a classifier")
    splits = SPLITS if len(logits) >= SPLITS * FEWEST_IN_SPLIT else 1
    shuffled = np.random.default_rng(seed).permutation(len(logits))
    part = np.empty(len(logits), int)  # split of each sound
    for number, members in enumerate(np.array_split(shuffled, splits)):
        part[members] = number
    entropies, sums = _gather(logits, part, splits)
    scores = [_score(entropies[part == number], sums[number]) for number in range(splits)]
    return float(np.mean(scores)), float(np.std(scores)), splits


def _score(entropies: np.ndarray, total: np.ndarray) -> float:
    """Score of sounds with these Σ p·ln p [n], whose p sum to `total` [K]."""
    return float(np.exp(entropies.mean() - _negative_entropy(total / len(entropies))))


def _gather(logits: Mapping[str, np.ndarray], part: np.ndarray, splits: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ p·ln p of every sound [N], and the sum of p of each split [splits, K]; `part` [N] is the split of each sound."""
    entropies, sums, start = [], 0, 0
    for p in _probabilities(logits):
        entropies.append(_negative_entropy(p))
        chosen = part[start : start + len(p)] == np.arange(splits)[:, None]
        sums = sums + chosen.astype(np.float64) @ p
        start += len(p)
    return np.concatenate(entropies), sums


def _probabilities(logits: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Softmaxed logits of all sounds in order, in chunks [≤ CHUNK, K]; non-finite logits raise UserError."""
    ids = list(logits)
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        rows = np.stack([logits[clip_id] for clip_id in some])
        bad = [clip_id for clip_id, row in zip(some, rows, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise UserError(f"classifier logits of {names_of(bad)} are not finite; check the sounds and the weights")
        yield softmax(rows)


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """Σ p·ln p over the last axis, with 0·ln 0 = 0."""
    return (p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
