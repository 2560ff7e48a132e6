"""Fréchet distance between sets of embeddings, without a matrix square root: of all rows, by clip, without bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.bootstrap import Influence, Side

SMALLEST_PIVOT = 1e-9  # part of the largest; under it a covariance may have no full rank
CHUNK = 1024  # rows of a stream that are added up at once

SIZES = 15  # of subsets that FAD∞ is fitted to
SHRINK = 2  # the smallest of them has this part of the clips: farther down distances no longer follow a line in 1/n
EQUAL_SETS = 4  # pairs of sets whose mean distance is the bias
AXES = 32  # in which sets vary most, whose correlations count where clips are exchanged: those of all would take minutes
AT_ONCE = 512  # exchanges

Stream = Callable[[], Iterable[tuple[str, np.ndarray]]]  # (clip id, patches [P, d]) of every clip once, in any order


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
        return cls._of_checked(check_rows(rows))

    @classmethod
    def _of_checked(cls, rows: np.ndarray) -> Moments:
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
    def freedom(self) -> int:
        """What the scatter is divided by for a covariance, n − 1; fewer than two rows raise UserError."""
        return _freedom(self.count)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [d, d] (ddof 1); fewer than two rows raise UserError."""
        return self.scatter / self.freedom


def _freedom(count: int) -> int:
    if count < 2:
        raise UserError(f"a covariance needs at least 2 embeddings, found {count}: more or longer sounds are needed")
    return count - 1


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


def frechet_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of rows [n, d] (see `Gathered.distance`)."""
    sets = [Gathered.of(rows, np.ones(len(rows), int)) for rows in (first, second)]
    return sets[0].distance(sets[1])


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


@dataclass(frozen=True)
class Gathered:
    """A set of clips, read once in O(d²) memory: rows of each clip [N], and a Gaussian's mean [d] and covariance.

    The covariance is a matrix [d, d], or where there are fewer rows than dimensions A [n, d] with AᵀA the covariance, the centred
    rows over √(n−1) in the order of the clips.
    """

    lengths: np.ndarray
    count: int
    mean: np.ndarray
    covariance: np.ndarray | None
    half: np.ndarray | None

    @classmethod
    def of(cls, rows: np.ndarray, lengths: np.ndarray) -> Gathered:
        """Of rows [n, d] that are in memory; fewer than two, or what is not finite, raise UserError."""
        rows = check_rows(rows)
        if len(rows) >= rows.shape[1]:
            return cls.of_moments(Moments._of_checked(rows), lengths)
        freedom = _freedom(len(rows))
        mean = rows.mean(axis=0)
        return cls(lengths, len(rows), mean, None, (rows - mean) / np.sqrt(freedom))

    @classmethod
    def of_moments(cls, moments: Moments, lengths: np.ndarray) -> Gathered:
        return cls(lengths, moments.count, moments.mean, moments.covariance, None)

    @classmethod
    def over(cls, stream: Stream, ids: Sequence[str]) -> Gathered:
        """The clips of these ids, counted in their order; fewer than two rows raise UserError."""
        lengths = dict.fromkeys(ids, 0)
        held: list[tuple[list[tuple[str, int]], np.ndarray]] = []  # until there are as many rows as dimensions
        total, moments = 0, None
        for whose, rows in _chunks((clip_id, patches) for clip_id, patches in stream() if clip_id in lengths):
            lengths.update(whose)
            total += len(rows)
            if moments is None:
                held.append((whose, rows))
                if total >= rows.shape[1]:
                    moments, held = Moments.over(part for _, part in held), []
            else:
                moments += Moments.of(rows)
        counted = np.array([lengths[clip_id] for clip_id in ids])
        if moments is not None:
            return cls.of_moments(moments, counted)
        if not held:
            raise UserError("no embeddings to take a mean of")
        of_clip: dict[str, np.ndarray] = {}
        for whose, rows in held:
            parts = np.split(rows, np.cumsum([length for _, length in whose])[:-1])
            of_clip.update(zip((clip_id for clip_id, _ in whose), parts, strict=True))
        return cls.of(np.concatenate([of_clip[clip_id] for clip_id in ids]), counted)

    def factor(self) -> np.ndarray:
        """F [r, d] with FᵀF the covariance: the centred rows themselves where they are fewer than dimensions."""
        return self.half if self.half is not None else _factor(self.covariance)

    def _any_factor(self) -> np.ndarray:
        """As `factor`, by Cholesky, which takes a tenth of the time of eigenvalues, where no pivot is near rounding errors."""
        if self.covariance is not None:
            try:
                lower = np.linalg.cholesky(self.covariance)
                pivots = np.diagonal(lower) ** 2
                if pivots.min() > SMALLEST_PIVOT * pivots.max():
                    return lower.T
            except np.linalg.LinAlgError:
                pass
        return self.factor()

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float(np.trace(self.covariance) if self.half is None else np.vdot(self.half, self.half))

    def distance(self, other: Gathered) -> float:
        """‖μ1−μ2‖² + tr C1 + tr C2 − 2·‖F1·F2ᵀ‖\\* with Ci = FiᵀFi (Dowson & Landau 1982): tr (C1C2)^½ is that nuclear norm."""
        _same_size(len(self.mean), len(other.mean))
        overlap = _nuclear_norm(self._any_factor() @ other._any_factor().T)
        return _distance(self.mean - other.mean, self.trace + other.trace, overlap)

    def spectrum(self) -> np.ndarray:
        """Eigenvalues of the covariance that are not zero [r]."""
        factor = self.factor()
        return np.linalg.eigvalsh(factor @ factor.T) if self.half is not None else (factor**2).sum(axis=1)


def _chunks(clips: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[list[tuple[str, int]], np.ndarray]]:
    """The stream's rows in parts of about CHUNK, each with the clips' ids and row counts: one small product per clip is slow."""
    owners: list[tuple[str, int]] = []
    rows: list[np.ndarray] = []
    waiting = 0
    for clip_id, patches in clips:
        owners.append((clip_id, len(patches)))
        rows.append(patches)
        waiting += len(patches)
        if waiting >= CHUNK:
            yield owners, np.concatenate(rows)
            owners, rows, waiting = [], [], 0
    if rows:
        yield owners, np.concatenate(rows)


def influence(
    generated: Gathered, reference: Gathered, streams: tuple[Stream, Stream], ids: tuple[Sequence, Sequence]
) -> Influence:
    """What each clip adds to the distance, by one more pass over each stream, in O(d²) memory.

    Row x of the first set adds 2·(μ1−μ2)ᵀ(x−μ1) + (x−μ1)ᵀ(1−T)(x−μ1) less the mean of that, T the optimal map from the first
    Gaussian to the second. With Ci = FiᵀFi and F1·F2ᵀ = P·diag(σ)·Qᵀ, and c the coordinates of x−μ1 by F1, the term of T is
    Σ σ·(Pᵀc)²: no inverse of a covariance is needed.
    """
    sides = (generated, reference)
    factors = [side.factor() for side in sides]
    left, values, right = np.linalg.svd(factors[0] @ factors[1].T, full_matrices=False)
    shift = generated.mean - reference.mean
    influences = []
    for side, factor, vectors, sign, stream, names in zip(sides, factors, (left, right.T), (1, -1), streams, ids, strict=True):
        if side.half is not None:  # rows are their own coordinates
            centred = side.half * np.sqrt(side.count - 1)
            moved = 2 * sign * centred @ shift + (centred**2).sum(axis=1) - (side.count - 1) * (vectors**2 @ values)
            sums = np.bincount(np.repeat(np.arange(len(names)), side.lengths), moved, minlength=len(names))
        else:
            place = {clip_id: index for index, clip_id in enumerate(names)}
            coordinates = (factor / (factor**2).sum(axis=1, keepdims=True)).T @ vectors
            sums = np.zeros(len(names))
            for owners, rows in _chunks(stream()):
                centred = rows - side.mean
                moved = 2 * sign * centred @ shift + (centred**2).sum(axis=1) - (centred @ coordinates) ** 2 @ values
                owner = np.repeat([place[clip_id] for clip_id, _ in owners], [length for _, length in owners])
                sums += np.bincount(owner, moved, minlength=len(names))
        influences.append(Side.of(sums, side.lengths))
    return Influence(*influences)


def exchanged(streams: tuple[Stream, Stream, Stream], ids: Sequence[str], chosen: np.ndarray) -> np.ndarray:
    """Fréchet distances [2, B] of two sets of partners from a reference, for each exchange of them (see `scores.Metric.exchanged`).

    They are taken in the principal axes of all three sets together, which know nothing of who of two partners is whose, and there
    covariances are as they are among the first `AXES` and diagonal among the rest. `streams` are of both sets and the reference,
    `ids` those of both sets. Memory is O(d² + N·(d + AXES²)) beside the exchanges.
    """
    moments = [Moments.over(rows for _, rows in _chunks(stream())) for stream in streams]
    every, real = moments[0] + moments[1] + moments[2], moments[2]
    axes = np.linalg.eigh(every.scatter)[1][:, ::-1]
    mine, partners = (_sums_by_clip(stream, ids, every.mean, axes) for stream in streams[:2])
    total, mean, covariance = (mine + partners).sum(axis=0), (real.mean - every.mean) @ axes, axes.T @ real.covariance @ axes
    distances = []
    for start in range(0, len(chosen), AT_ONCE):
        first = chosen[start : start + AT_ONCE] @ (mine - partners) + partners.sum(axis=0)
        distances.append([_from_sums(sums, mean, covariance) for sums in (first, total - first)])
    return np.concatenate(distances, axis=1)


def _from_sums(sums: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Fréchet distances [B] of sets, of each of which there are the sums of `_sums_by_clip`, from a Gaussian."""
    size, head = len(mean), min(AXES, len(mean))
    counts, totals, squares, products = np.split(sums, [1, 1 + size, 1 + 2 * size], axis=1)
    counts = np.maximum(counts, 1)  # a set of clips without a row is a point
    means, freedom = totals / counts, np.maximum(counts - 1, 1)
    variances = np.maximum(squares - counts * means**2, 0) / freedom
    of_head = products.reshape(-1, head, head) - counts[..., None] * means[:, :head, None] * means[:, None, :head]
    factor = _factor(covariance[:head, :head])
    overlaps = np.sqrt(np.maximum(np.linalg.eigvalsh(factor @ (of_head / freedom[..., None]) @ factor.T), 0)).sum(axis=1)
    overlaps += np.sqrt(variances[:, head:] * np.maximum(np.diagonal(covariance)[head:], 0)).sum(axis=1)
    return ((means - mean) ** 2).sum(axis=1) + variances.sum(axis=1) + np.trace(covariance) - 2 * overlaps


def _sums_by_clip(stream: Stream, ids: Sequence[str], centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Sums [N, 1 + 2d + AXES²] of 1, x, x² and, of the first `AXES`, xxᵀ over each clip's rows x, in axes about a centre."""
    place = {clip_id: index for index, clip_id in enumerate(ids)}
    sums: list[np.ndarray | None] = [None] * len(ids)
    for clip_id, patches in stream():
        rows = (check_rows(patches) - centre) @ axes
        head = rows[:, :AXES]
        sums[place[clip_id]] = np.concatenate([[len(rows)], rows.sum(axis=0), (rows**2).sum(axis=0), (head.T @ head).ravel()])
    return np.array(sums)


@dataclass(frozen=True)
class Extrapolated:
    """FAD∞: the line that distances of subsets follow in 1/n, where n is infinite, with its standard error and R²."""

    value: float
    error: float
    r2: float


def without_bias(stream: Stream, ids: Sequence[str], reference: Gathered, seed: int) -> Extrapolated:
    """Fréchet distance extrapolated to infinitely many generated embeddings (Chong & Forsyth 2020; Gui et al. 2024).

    Subsets of clips are drawn without replacement: subsets with replacement tend to the distance of the set that is at hand,
    whose bias would stay. The reference is the same for all, so the bias that comes of its own size stays too.
    """
    if len(ids) < 2 * SHRINK:
        raise UserError(f"FAD∞ is fitted to subsets of clips; {len(ids)} clips are too few, at least {2 * SHRINK} are needed")
    parts = np.linspace(1, SHRINK, SIZES)
    counts, distances = [], []
    for number, part in enumerate(parts):
        chosen = np.random.default_rng([seed, number]).permutation(len(ids))[: round(len(ids) / part)]
        subset = Gathered.over(stream, [ids[index] for index in sorted(chosen)])
        counts.append(subset.count)
        distances.append(subset.distance(reference))
    inverse, distances = 1 / np.array(counts), np.array(distances)
    design = np.stack([np.ones(SIZES), inverse], axis=1)
    solution = np.linalg.lstsq(design, distances, rcond=None)[0]
    rest = float(((distances - design @ solution) ** 2).sum())
    total = float(((distances - distances.mean()) ** 2).sum())
    error = np.sqrt(rest / (SIZES - 2) * np.linalg.inv(design.T @ design)[0, 0])
    return Extrapolated(float(solution[0]), float(error), 1 - rest / total if total else 1.0)


def by_clip(stream: Stream, reference: Gathered) -> Mapping[str, float]:
    """Fréchet distance of every clip alone from the reference, of those with two patches and more (Gui et al. 2024), by id."""
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
    """Fréchet distance of two sets of so many rows of one Gaussian whose covariance has these eigenvalues: what is bias alone.

    Mean of a few seeded pairs, in O(r²) memory: of n rows only the mean is drawn, and a factor of their Wishart matrix, where
    n > r by Bartlett (1933).
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
    """A with AᵀA of the Wishart distribution with unit scale [size, size]."""
    if freedom < size:
        return random.standard_normal((freedom, size))
    factor = np.triu(random.standard_normal((size, size)), 1)
    factor[np.diag_indices(size)] = np.sqrt(random.chisquare(freedom - np.arange(size)))
    return factor
