"""Fréchet distance between sets of embeddings, without a matrix square root, and its bootstrap over clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from soundmill.errors import UserError

# Inner products between all rows of both sets are kept up to this many (256 MB); larger sets go through their covariances.
MOST_PRODUCTS = 2**25


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and scatter Σ(x−μ)(x−μ)ᵀ [d, d] of rows seen so far, float64; parts add up in any order.

    Merging follows Chan, Golub & LeVeque (1979), so neither the rows nor their plain squares are ever summed.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Moments of rows [n, d]; not finite or not a matrix raises UserError."""
        rows = check_rows(rows)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    @classmethod
    def over(cls, parts: Iterable[np.ndarray]) -> Moments:
        """Moments of all rows of a stream of [n, d] parts, in O(d²) memory."""
        total = None
        for part in parts:
            total = cls.of(part) if total is None else total + cls.of(part)
        if total is None:
            raise UserError("no embeddings to take a mean of")
        return total

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise UserError(f"embeddings of size {len(self.mean)} and {len(other.mean)} cannot be pooled: one embedder per set")
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [d, d] (ddof 1); fewer than two rows raise UserError."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 embeddings, found {self.count}: more or longer sounds are needed")
        return self.scatter / (self.count - 1)


def check_rows(rows: np.ndarray) -> np.ndarray:
    """The rows as float64 [n, d]; another shape or a number that is not finite raises UserError naming the row."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2:
        raise UserError(f"embeddings must be a matrix [rows, size], found shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(rows)} embeddings are not finite (first: row {bad[0]}); the sound or the weights are at fault"
        )
    return rows


def frechet_distance(first: Moments, second: Moments) -> float:
    """‖μ1−μ2‖² + tr C1 + tr C2 − 2·‖L1ᵀL2‖\\* with Ci = Li·Liᵀ (Dowson & Landau 1982): tr (C1C2)^½ is that nuclear norm."""
    return frechet_of_covariances(first.mean, first.covariance, second.mean, second.covariance)


def frechet_of_covariances(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Fréchet distance of two Gaussians given by means [d] and covariances [d, d]; other shapes raise UserError."""
    mean1, cov1, mean2, cov2 = (np.asarray(value, dtype=np.float64) for value in (mean1, cov1, mean2, cov2))
    _same_size(len(mean1), len(mean2))
    overlap = _nuclear_norm(_factor(cov1) @ _factor(cov2).T)
    return _distance(mean1 - mean2, np.trace(cov1) + np.trace(cov2), overlap)


def frechet_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of rows [n, d]: a set with fewer rows than dimensions is its own factor, A = (X−μ)/√(n−1)."""
    first, second = check_rows(first), check_rows(second)
    _same_size(first.shape[1], second.shape[1])
    factors, traces = [], []
    for rows in (first, second):
        moments = Moments.of(rows)
        covariance = moments.covariance
        traces.append(np.trace(covariance))
        wide = len(rows) < rows.shape[1]
        factors.append((rows - moments.mean) / np.sqrt(len(rows) - 1) if wide else _factor(covariance))
    return _distance(first.mean(axis=0) - second.mean(axis=0), sum(traces), _nuclear_norm(factors[0] @ factors[1].T))


def _distance(shift: np.ndarray, traces: float, overlap: float) -> float:
    return max(0.0, float(shift @ shift + traces - 2 * overlap))  # below zero only by rounding


def _nuclear_norm(matrix: np.ndarray) -> float:
    """Sum of the singular values; of the nearly square factors here a few rows, so no truncation is needed."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum()) if matrix.size else 0.0


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [rank, d] with FᵀF = C; eigenvalues that are zero but for rounding (≤ d·eps·λmax) are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > _smallest(values)
    return (vectors[:, keep] * np.sqrt(values[keep])).T


def _smallest(values: np.ndarray) -> float:
    return len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)


def _same_size(first: int, second: int) -> None:
    if first != second:
        raise UserError(f"embeddings of size {first} and {second} cannot be compared: score both sets with the same embedder")


def bootstrap_frechet(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], replicates: Iterable[int], seed: int
) -> np.ndarray:
    """Fréchet distances [len(replicates)] of sets resampled by clip, both sides; clips are matrices [patches, d].

    Replicate number b depends on (seed, b) alone, so the work can be split anywhere. A replicate is a weight per clip; what
    it costs is one symmetric eigenvalue problem of the smaller side of √C1·√C2, never a singular value decomposition.
    """
    sets = [_Resampled(generated), _Resampled(reference)]
    _same_size(sets[0].rows.shape[1], sets[1].rows.shape[1])
    size = sets[0].rows.shape[1]
    counts = [len(part.rows) for part in sets]
    products = None
    if min(counts) < size and counts[0] * counts[1] <= MOST_PRODUCTS:
        products = sets[0].rows @ sets[1].rows.T
    distances = []
    for replicate in replicates:
        random = np.random.default_rng([seed, replicate])
        for part in sets:
            part.resample(random)
        first, second = sets
        overlap = _overlap_of_products(products, first, second) if products is not None else _overlap_of_covariances(first, second)
        distances.append(_distance(first.resampled_mean - second.resampled_mean, first.trace + second.trace, overlap))
    return np.array(distances)


class _Resampled:
    """One set of clips, centred once, under the weights of a bootstrap replicate."""

    def __init__(self, clips: Sequence[np.ndarray]):
        self.clip_of_row = np.repeat(np.arange(len(clips)), [len(clip) for clip in clips])
        rows = check_rows(np.concatenate(clips))
        Moments.of(rows[:2]).covariance  # noqa: B018 - the error for fewer than two rows
        self.num_clips = len(clips)
        self.mean = rows.mean(axis=0)
        self.rows = rows - self.mean
        self.squares = np.einsum("nd,nd->n", self.rows, self.rows)

    def resample(self, random: np.random.Generator) -> None:
        count = 0
        while count < 2:  # one clip of one patch drawn every time has no covariance
            times = np.bincount(random.integers(self.num_clips, size=self.num_clips), minlength=self.num_clips)
            weights = times[self.clip_of_row].astype(np.float64)
            count = weights.sum()
        self.drawn = np.flatnonzero(weights)
        self.weights = weights[self.drawn]
        self.count = count
        self.shift = self.weights @ self.rows[self.drawn] / count
        self.resampled_mean = self.mean + self.shift
        self.trace = float((self.weights @ self.squares[self.drawn] - count * self.shift @ self.shift) / (count - 1))

    def covariance(self) -> np.ndarray:
        scaled = self.half_rows()
        return scaled.T @ scaled

    def half_rows(self) -> np.ndarray:
        """A [drawn, d] with AᵀA the resampled covariance."""
        return (self.rows[self.drawn] - self.shift) * np.sqrt(self.weights / (self.count - 1))[:, None]


def _overlap_of_products(products: np.ndarray, first: _Resampled, second: _Resampled) -> float:
    """‖A1·A2ᵀ‖\\* from the inner products of all rows: centred on the resampled means, scaled by the weights."""
    part = products[np.ix_(first.drawn, second.drawn)]
    columns = first.weights @ part / first.count
    rows = part @ second.weights / second.count
    middle = first.weights @ rows / first.count
    part = part - columns - rows[:, None] + middle
    part *= np.sqrt(first.weights / (first.count - 1))[:, None]
    part *= np.sqrt(second.weights / (second.count - 1))
    gram = part @ part.T if part.shape[0] <= part.shape[1] else part.T @ part
    return _sum_of_roots(gram)


def _overlap_of_covariances(first: _Resampled, second: _Resampled) -> float:
    """tr (C1C2)^½ as the root eigenvalues of F1·C2·F1ᵀ, F1 the data where it has fewer rows than dimensions."""
    if len(second.drawn) < len(first.drawn):
        first, second = second, first
    wide = len(first.drawn) < first.rows.shape[1]
    half = first.half_rows() if wide else _factor(first.covariance())
    return _sum_of_roots(half @ second.covariance() @ half.T)


def _sum_of_roots(gram: np.ndarray) -> float:
    values = np.linalg.eigvalsh(gram)
    return float(np.sqrt(values[values > _smallest(values)]).sum()) if len(values) else 0.0
