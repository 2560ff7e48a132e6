"""Inception score: whether a classifier is sure of each generated sound and finds all of them different (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.divergence import softmax
from soundmill.evaluation.resampling import Influence, Side

SPLITS = 10
FEWEST_IN_SPLIT = 10  # of sounds; with fewer in ten splits one score of all is told


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean KL(p ‖ mean p), p [N, K]; from 1 to K."""
    p = np.asarray(probabilities, dtype=np.float64)
    return float(np.exp(_negative_entropy(p).mean() - _negative_entropy(p.mean(axis=0))))


def influence(logits: np.ndarray) -> Influence:
    """What each sound adds to the score of all."""
    p = softmax(logits)
    mean = np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny)
    return Influence(Side.of(inception_score(p) * (_negative_entropy(p) - p @ np.log(mean))))


def in_splits(logits: np.ndarray, seed: int) -> tuple[float, float, int]:
    """Mean and deviation of the scores of ten parts of the softmaxed logits [N, K], shuffled by the seed, and how many parts.

    A part of few sounds cannot score above their number, so under a hundred sounds there is one part, without deviation.
    """
    if not len(logits) or not logits.shape[1]:
        raise UserError("no logits of generated sounds: an inception score needs a classifier")
    p = softmax(logits)[np.random.default_rng(seed).permutation(len(logits))]
    splits = SPLITS if len(p) >= SPLITS * FEWEST_IN_SPLIT else 1
    scores = [inception_score(part) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores)), splits


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """Σ p·ln p over the last axis, where 0·ln 0 = 0."""
    return (p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
