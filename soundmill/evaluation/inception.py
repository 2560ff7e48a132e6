"""Inception score: whether a classifier is sure of each generated sound and finds all of them different (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.divergence import softmax

SPLITS = 10
FEWEST_IN_SPLIT = 10  # of sounds; with fewer in ten splits one score of all is told


def inception_score(probabilities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """exp of the mean KL(p ‖ mean p), p [N, K]; under weights [B, N] of the rows one score each, [B]. From 1 to K."""
    p = np.asarray(probabilities, dtype=np.float64)
    weights = np.ones((1, len(p))) if weights is None else weights
    share = weights / weights.sum(axis=1, keepdims=True)
    mean = share @ p
    return np.exp(share @ _negative_entropy(p) - _negative_entropy(mean))


def in_splits(logits: np.ndarray, seed: int) -> tuple[float, float, int]:
    """Mean and deviation of the scores of ten parts of the softmaxed logits [N, K], shuffled by the seed, and how many parts.

    A part of few sounds cannot score above their number, so under a hundred sounds there is one part, without deviation.
    """
    if not len(logits) or not logits.shape[1]:
        raise UserError("no logits of generated sounds: an inception score needs a classifier")
    p = softmax(logits)[np.random.default_rng(seed).permutation(len(logits))]
    splits = SPLITS if len(p) >= SPLITS * FEWEST_IN_SPLIT else 1
    scores = [float(inception_score(part)[0]) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores)), splits


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """Σ p·ln p over the last axis, where 0·ln 0 = 0."""
    return (p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
