"""Fréchet distance between sets of embeddings, without a matrix square root: of all rows, per clip, and without bias (FAD∞)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from soundmill.errors import UserError
from soundmill.metrics.bootstrap import Influence, SetInfluence

SMALLEST_PIVOT = 1e-9  # relative to the largest; below it a covariance may be rank-deficient
CHUNK = 1024  # rows of a stream that are summed together

SUBSETS = 15  # that FAD∞ is fitted to
SHRINK = 2  # the smallest subset has 1/SHRINK of the clips; distances of smaller ones are not linear in 1/n
EQUAL_SETS = 4  # pairs of sets whose mean distance is the bias
AXES = 32  # principal axes whose correlations are used in permutation tests; all of them would take minutes
AT_ONCE = 512  # exchanges per batch

Stream = Callable[[], Iterable[tuple[str, np.ndarray]]]  # → (clip id, patches [P, d]) of every clip once, in any order


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and scatter Σ(x−μ)(x−μ)ᵀ [d, d] of rows, float64; moments of parts can be added in any order.

    Addition follows Chan, Golub & LeVeque (1979), which is numerically stable: raw squares are never summed.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Moments of rows [n, d]; another shape or non-finite values raise UserError."""
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
            raise UserError("no embeddings to average")
        return total

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise UserError(f"embeddings of size {len(self.mean)} and {len(other.mean)} cannot be pooled: use one embedder per set")
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [d, d]; fewer than two rows raise UserError."""
        return self.scatter / _freedom(self.count)


def _freedom(count: int) -> int:
    if count < 2:
        raise UserError(f"a covariance needs at least 2 embeddings, found {count}: provide more or longer sounds")
    return count - 1


def check_rows(rows: np.ndarray) -> np.ndarray:
    """The rows as float64 [n, d]; another shape, or a non-finite row, which is named, raises UserError."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2:
        raise UserError(f"embeddings must be a matrix [rows, size], found shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(rows)} embeddings are not finite (first: row {bad[0]}); check the sounds and the weights"
        )
    return rows


def _distance(shift: np.ndarray, traces: float, overlap: float) -> float:
    return max(0.0, float(shift @ shift + traces - 2 * overlap))  # negative only by rounding


def _nuclear_norm(matrix: np.ndarray) -> float:
    """Sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum()) if matrix.size else 0.0


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [rank, d] with FᵀF = C; eigenvalues up to d·eps·λmax, which are rounding errors, are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    keep = values > len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    return (vectors[:, keep] * np.sqrt(values[keep])).T


def _same_size(first: int, second: int) -> None:
    if first != second:
        raise UserError(f"embeddings of size {first} and {second} cannot be compared: score both sets with the same embedder")


@dataclass(frozen=True)
class Gathered:
    """The Gaussian of a set of clips, read once in O(d²) memory."""

    lengths: np.ndarray  # rows of each clip [N]
    count: int  # of rows
    mean: np.ndarray  # [d]
    covariance: np.ndarray | None  # [d, d]; None if there are fewer rows than dimensions
    half: np.ndarray | None  # in that case A [n, d] with AᵀA = covariance: the centred rows over √(n−1), in the order of the clips

    @classmethod
    def of(cls, rows: np.ndarray, lengths: np.ndarray) -> Gathered:
        """From rows [n, d] in memory; fewer than two or non-finite rows raise UserError."""
        rows = check_rows(rows)
        if len(rows) >= rows.shape[1]:
            return cls.of_moments(Moments.of(rows), lengths)
        freedom = _freedom(len(rows))
        mean = rows.mean(axis=0)
        return cls(lengths, len(rows), mean, None, (rows - mean) / np.sqrt(freedom))

    @classmethod
    def of_moments(cls, moments: Moments, lengths: np.ndarray) -> Gathered:
        return cls(lengths, moments.count, moments.mean, moments.covariance, None)

    @classmethod
    def over(cls, stream: Stream, ids: Sequence[str]) -> Gathered:
        """From the clips with these ids; fewer than two rows raise UserError."""
        lengths = dict.fromkeys(ids, 0)
        chunks: list[tuple[list[tuple[str, int]], np.ndarray]] = []  # kept until there are as many rows as dimensions
        total, moments = 0, None
        for owners, rows in _chunks((clip_id, patches) for clip_id, patches in stream() if clip_id in lengths):
            lengths.update(owners)
            total += len(rows)
            if moments is None:
                chunks.append((owners, rows))
                if total >= rows.shape[1]:
                    moments, chunks = Moments.over(part for _, part in chunks), []
            else:
                moments += Moments.of(rows)
        counted = np.array([lengths[clip_id] for clip_id in ids])
        if moments is not None:
            return cls.of_moments(moments, counted)
        if not chunks:
            raise UserError("no embeddings to average")
        by_clip: dict[str, np.ndarray] = {}
        for owners, rows in chunks:
            parts = np.split(rows, np.cumsum([length for _, length in owners])[:-1])
            by_clip.update(zip((clip_id for clip_id, _ in owners), parts, strict=True))
        return cls.of(np.concatenate([by_clip[clip_id] for clip_id in ids]), counted)

    def factor(self) -> np.ndarray:
        """F [r, d] with FᵀF the covariance, by eigenvalues; the scaled rows themselves if they are fewer than dimensions."""
        return self.half if self.half is not None else _factor(self.covariance)

    @cached_property
    def _any_factor(self) -> np.ndarray:
        """As `factor`; by Cholesky, in a tenth of the time, if no pivot is near rounding errors."""
        if self.covariance is not None:
            with suppress(np.linalg.LinAlgError):
                lower = np.linalg.cholesky(self.covariance)
                pivots = np.diagonal(lower) ** 2
                if pivots.min() > SMALLEST_PIVOT * pivots.max():
                    return lower.T
        return self.factor()

    @property
    def trace(self) -> float:
        return float(np.trace(self.covariance) if self.half is None else np.vdot(self.half, self.half))

    def distance(self, other: Gathered) -> float:
        """‖μ1−μ2‖² + tr C1 + tr C2 − 2·‖F1·F2ᵀ‖\\* with Ci = FiᵀFi (Dowson & Landau 1982): tr (C1C2)^½ is that nuclear norm."""
        _same_size(len(self.mean), len(other.mean))
        overlap = _nuclear_norm(self._any_factor @ other._any_factor.T)
        return _distance(self.mean - other.mean, self.trace + other.trace, overlap)

    def spectrum(self) -> np.ndarray:
        """Non-zero eigenvalues of the covariance [r]."""
        factor = self.factor()
        return np.linalg.eigvalsh(factor @ factor.T) if self.half is not None else (factor**2).sum(axis=1)


def _chunks(clips: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[list[tuple[str, int]], np.ndarray]]:
    """The stream's rows in chunks of about CHUNK, each with (clip id, number of rows): one small product per clip would be slow."""
    owners: list[tuple[str, int]] = []
    rows: list[np.ndarray] = []
    buffered = 0
    for clip_id, patches in clips:
        owners.append((clip_id, len(patches)))
        rows.append(patches)
        buffered += len(patches)
        if buffered >= CHUNK:
            yield owners, np.concatenate(rows)
            owners, rows, buffered = [], [], 0
    if rows:
        yield owners, np.concatenate(rows)


def influence(
    generated: Gathered, reference: Gathered, streams: tuple[Stream, Stream], ids: tuple[Sequence, Sequence]
) -> Influence:
    """Influence of each clip on the distance, by one more pass over each stream, in O(d²) memory.

    Row x of the first set contributes 2·(μ1−μ2)ᵀ(x−μ1) + (x−μ1)ᵀ(1−T)(x−μ1) minus its mean, where T is the optimal transport map
    from the first Gaussian to the second. With Ci = FiᵀFi, F1·F2ᵀ = P·diag(σ)·Qᵀ, and c the coordinates of x−μ1 in F1, the term
    with T is Σ σ·(Pᵀc)², so no covariance is inverted.
    """
    sides = (generated, reference)
    factors = [side.factor() for side in sides]
    left, values, right = np.linalg.svd(factors[0] @ factors[1].T, full_matrices=False)
    shift = generated.mean - reference.mean
    influences = []
    for side, factor, vectors, sign, stream, names in zip(sides, factors, (left, right.T), (1, -1), streams, ids, strict=True):
        if side.half is not None:  # the rows are the factor, so each is its own coordinate
            centred = side.half * np.sqrt(side.count - 1)
            changes = 2 * sign * centred @ shift + (centred**2).sum(axis=1) - (side.count - 1) * (vectors**2 @ values)
            sums = np.bincount(np.repeat(np.arange(len(names)), side.lengths), changes, minlength=len(names))
        else:
            place = {clip_id: index for index, clip_id in enumerate(names)}
            coordinates = (factor / (factor**2).sum(axis=1, keepdims=True)).T @ vectors
            sums = np.zeros(len(names))
            for owners, rows in _chunks(stream()):
                centred = rows - side.mean
                changes = 2 * sign * centred @ shift + (centred**2).sum(axis=1) - (centred @ coordinates) ** 2 @ values
                owner = np.repeat([place[clip_id] for clip_id, _ in owners], [length for _, length in owners])
                sums += np.bincount(owner, changes, minlength=len(names))
        influences.append(SetInfluence.of(sums, side.lengths))
    return Influence(*influences)


def exchanged(streams: tuple[Stream, Stream, Stream], ids: Sequence[str], chosen: np.ndarray) -> np.ndarray:
    """Fréchet distances [2, B] of two sets from a reference, for each exchange of clips (see `scores.Exchanged`).

    They are computed in the principal axes of all three sets together, which do not depend on the exchange. Covariances are full
    among the first `AXES` and diagonal among the others. `streams` are of both sets and the reference; `ids` [N] are those of both
    sets. Memory is O(d² + N·(d + AXES²)) in addition to the exchanges.
    """
    moments = [Moments.over(rows for _, rows in _chunks(stream())) for stream in streams]
    pooled, real = moments[0] + moments[1] + moments[2], moments[2]
    axes = np.linalg.eigh(pooled.scatter)[1][:, ::-1]
    own, partners = (_sums_by_clip(stream, ids, pooled.mean, axes) for stream in streams[:2])
    total, mean, covariance = (own + partners).sum(axis=0), (real.mean - pooled.mean) @ axes, axes.T @ real.covariance @ axes
    distances = []
    for start in range(0, len(chosen), AT_ONCE):
        first = chosen[start : start + AT_ONCE] @ (own - partners) + partners.sum(axis=0)
        distances.append([_from_sums(sums, mean, covariance) for sums in (first, total - first)])
    return np.concatenate(distances, axis=1)


def _from_sums(sums: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Fréchet distances [B] from a Gaussian of sets given by their sums (see `_sums_by_clip`)."""
    size, head = len(mean), min(AXES, len(mean))
    counts, totals, squares, products = np.split(sums, [1, 1 + size, 1 + 2 * size], axis=1)
    counts = np.maximum(counts, 1)  # a set without rows counts as a point
    means, freedom = totals / counts, np.maximum(counts - 1, 1)
    variances = np.maximum(squares - counts * means**2, 0) / freedom
    of_head = products.reshape(-1, head, head) - counts[..., None] * means[:, :head, None] * means[:, None, :head]
    factor = _factor(covariance[:head, :head])
    overlaps = np.sqrt(np.maximum(np.linalg.eigvalsh(factor @ (of_head / freedom[..., None]) @ factor.T), 0)).sum(axis=1)
    overlaps += np.sqrt(variances[:, head:] * np.maximum(np.diagonal(covariance)[head:], 0)).sum(axis=1)
    return ((means - mean) ** 2).sum(axis=1) + variances.sum(axis=1) + np.trace(covariance) - 2 * overlaps


def _sums_by_clip(stream: Stream, ids: Sequence[str], centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Sums [N, 1 + 2d + AXES²] over each clip's rows x of 1, x, x² and (first `AXES`) xxᵀ; x is centred and rotated to `axes`."""
    sums: dict[str, np.ndarray] = {}
    for clip_id, patches in stream():
        rows = (check_rows(patches) - centre) @ axes
        head = rows[:, :AXES]
        sums[clip_id] = np.concatenate([[len(rows)], rows.sum(axis=0), (rows**2).sum(axis=0), (head.T @ head).ravel()])
    return np.array([sums[clip_id] for clip_id in ids])


def without_bias(stream: Stream, ids: Sequence[str], reference: Gathered, seed: int) -> tuple[float, float, float]:
    """FAD∞: Fréchet distance extrapolated to infinitely many generated embeddings (Chong & Forsyth 2020; Gui et al. 2024).

    Returns the intercept of a line fitted to the distances of subsets over 1/n, its standard error and R². Subsets of clips are
    drawn without replacement; with replacement they would converge to the distance of the set at hand, including its bias. The
    bias due to the size of the reference remains.
    """
    if len(ids) < 2 * SHRINK:
        raise UserError(f"FAD∞ is fitted to subsets of clips and needs at least {2 * SHRINK} clips, found {len(ids)}")
    parts = np.linspace(1, SHRINK, SUBSETS)
    counts, distances = [], []
    for number, part in enumerate(parts):
        chosen = np.random.default_rng([seed, number]).permutation(len(ids))[: round(len(ids) / part)]
        subset = Gathered.over(stream, [ids[index] for index in sorted(chosen)])
        counts.append(subset.count)
        distances.append(subset.distance(reference))
    inverse, distances = 1 / np.array(counts), np.array(distances)
    design = np.stack([np.ones(SUBSETS), inverse], axis=1)
    solution = np.linalg.lstsq(design, distances, rcond=None)[0]
    residual = float(((distances - design @ solution) ** 2).sum())
    total = float(((distances - distances.mean()) ** 2).sum())
    error = np.sqrt(residual / (SUBSETS - 2) * np.linalg.inv(design.T @ design)[0, 0])
    return float(solution[0]), float(error), 1 - residual / total if total else 1.0


def by_clip(stream: Stream, reference: Gathered) -> Mapping[str, float]:
    """Fréchet distance of each clip from the reference, by id, for clips with at least two patches (Gui et al. 2024)."""
    factor = reference.factor()
    trace = reference.trace
    distances = {}
    for clip_id, patches in stream():
        if len(patches) > 1:
            rows = np.asarray(patches, dtype=np.float64)
            _same_size(rows.shape[1], len(reference.mean))
            mean = rows.mean(axis=0)
            half = (rows - mean) / np.sqrt(len(rows) - 1)
            distances[clip_id] = _distance(mean - reference.mean, (half**2).sum() + trace, _nuclear_norm(half @ factor.T))
    return dict(sorted(distances.items()))


def of_equal_sets(spectrum: np.ndarray, counts: tuple[int, int], seed: int) -> float:
    """The bias: Fréchet distance of two sets of `counts` rows from one Gaussian whose covariance has these eigenvalues.

    Mean over a few seeded pairs, in O(r²) memory: instead of n rows, their mean and a factor of their Wishart matrix are drawn (by
    Bartlett's decomposition (1933) if n > r).
    """
    random = np.random.default_rng(seed)
    roots = np.sqrt(np.maximum(spectrum, 0))
    distances = []
    for _ in range(EQUAL_SETS):
        means = [random.standard_normal(len(roots)) * roots / np.sqrt(count) for count in counts]
        factors = [_wishart_factor(len(roots), count - 1, random) * (roots / np.sqrt(count - 1)) for count in counts]
        traces = sum((factor**2).sum() for factor in factors)
        distances.append(_distance(means[0] - means[1], traces, _nuclear_norm(factors[0] @ factors[1].T)))
    return float(np.mean(distances))


def _wishart_factor(size: int, freedom: int, random: np.random.Generator) -> np.ndarray:
    """A with AᵀA [size, size] Wishart distributed with unit scale."""
    if freedom < size:
        return random.standard_normal((freedom, size))
    factor = np.triu(random.standard_normal((size, size)), 1)
    factor[np.diag_indices(size)] = np.sqrt(random.chisquare(freedom - np.arange(size)))
    return factor
