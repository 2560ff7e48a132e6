"""Maximum mean discrepancy of two sets of embeddings: KID (Bińkowski et al. 2018) and MMD, called KAD (Chung et al. 2025).

Unbiased: no embedding is compared with itself, and neither are the copies of it that resampling makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from soundmill.errors import UserError

SUBSETS = 100  # whose mean and deviation KID is
SUBSET = 1000  # rows in one, at most half of the smaller set
MEDIAN_ROWS = 2000  # of the reference, whose distances the bandwidth is the median of
BLOCK = 2**22  # values of a kernel held at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [n, d], [m, d] → [n, m]


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(xᵀy/d + 1)³, KID's kernel."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(bandwidth: float) -> Kernel:
    """exp(−‖x−y‖² / 2σ²) with σ the bandwidth."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(x, y) / (2 * bandwidth**2))

    return kernel


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖x−y‖² [n, m] of all rows, never below zero."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.maximum(squares, 0, out=squares)


def median_distance(reference: np.ndarray, seed: int) -> float:
    """Median distance of two rows [n, d] of the reference, of a seeded part of them where there are many; zero raises UserError."""
    random = np.random.default_rng(seed)
    if len(reference) > MEDIAN_ROWS:
        reference = reference[np.sort(random.choice(len(reference), MEDIAN_ROWS, replace=False))]
    pairs = np.triu_indices(len(reference), 1)
    found = float(np.sqrt(np.median(squared_distances(reference, reference)[pairs]))) if len(pairs[0]) else 0.0
    if not found > 0:
        raise UserError(
            "half of the reference's embeddings or more are alike, so MMD has no bandwidth; use other metrics for this set"
        )
    return found


def discrepancy(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """Unbiased squared MMD of rows [n, d] and [m, d] (Gretton et al. 2012, eq. 3); it may be negative."""
    if min(len(x), len(y)) < 2:
        raise UserError(f"a discrepancy needs at least 2 embeddings in each set, found {len(x)} and {len(y)}")
    within = []
    for rows in (x, y):
        values = kernel(rows, rows)
        within.append((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return float(sum(within) - 2 * kernel(x, y).mean())


def in_subsets(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, int]:
    """KID: mean and deviation of the discrepancy of seeded subsets, and the rows of one, always fewer than there are."""
    size = min(SUBSET, min(len(x), len(y)) // 2)
    if size < 2:
        raise UserError(f"KID needs at least 4 embeddings in each set, found {len(x)} and {len(y)}")
    found = []
    for number in range(SUBSETS):
        random = np.random.default_rng([seed, number])
        chosen = [rows[random.choice(len(rows), size, replace=False)] for rows in (x, y)]
        found.append(discrepancy(*chosen, polynomial))
    return float(np.mean(found)), float(np.std(found)), size


class Resampled:
    """The discrepancy under weights of the clips: what the kernel says of two clips is summed over their rows once."""

    def __init__(self, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], kernel: Kernel):
        sets = [np.concatenate(clips) for clips in (generated, reference)]
        if min(map(len, sets)) < 2:
            raise UserError(f"MMD needs at least 2 embeddings in each set, found {len(sets[0])} and {len(sets[1])}")
        self._lengths = [np.array([len(rows) for rows in clips]) for clips in (generated, reference)]
        self._within = [_summed(rows, rows, *[lengths] * 2, kernel) for rows, lengths in zip(sets, self._lengths, strict=True)]
        self._own = [by_clip(_own(rows, kernel), lengths) for rows, lengths in zip(sets, self._lengths, strict=True)]
        self._between = _summed(*sets, *self._lengths, kernel)

    def __call__(self, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Squared MMD [B] under weights [B, N] of the clips of both sets; rows are compared with others only."""
        total, counts = 0.0, []
        for weights, sums, own, lengths in zip((generated, reference), self._within, self._own, self._lengths, strict=True):
            counts.append(weights @ lengths)
            pairs = counts[-1] ** 2 - weights**2 @ lengths
            total = total + (((weights @ sums) * weights).sum(axis=1) - weights**2 @ own) / pairs
        return total - 2 * ((generated @ self._between) * reference).sum(axis=1) / (counts[0] * counts[1])


def by_clip(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums [N, …] over the rows of each clip of values [n, …]; `lengths` [N] are the clips' rows, in order."""
    from scipy.sparse import csr_array

    starts = np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(len(values), np.float32 if values.dtype == np.float32 else np.float64)
    return csr_array((ones, np.arange(len(values)), starts), shape=(len(lengths), len(values))) @ values


def _own(rows: np.ndarray, kernel: Kernel) -> np.ndarray:
    """k(x, x) of every row [n]."""
    return np.concatenate([np.diagonal(kernel(part, part)) for part in np.array_split(rows, len(rows) // 64 + 1)])


def _summed(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Σ k(x, y) over the rows of every two clips [N, M], a block of rows at a time; `of_x`, `of_y` are the clips' rows."""
    owner = np.repeat(np.arange(len(of_x)), of_x)
    sums = np.zeros((len(of_x), len(of_y)))
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        values = by_clip(kernel(y, x[start : start + step]), of_y)
        np.add.at(sums, owner[start : start + step], values.T)
    return sums
