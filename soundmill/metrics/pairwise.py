"""Metrics of all pairs of embeddings of two sets.

KID (Bińkowski et al. 2018) and MMD, or KAD (Chung et al. 2025), are unbiased maximum mean discrepancies.

Precision and recall follow Kynkäänniemi et al. (2019), density and coverage Naeem et al. (2020): the manifold of a set is the union
of balls around its rows, whose radius is the distance of the k-th nearest row of another clip. Patches of the same clip do not
count as neighbours, as they are close in any set. If every clip is one row, this is the published definition.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from soundmill.errors import UserError
from soundmill.metrics.bootstrap import Influence, SetInfluence

SUBSETS = 100  # KID is their mean
SUBSET = 1000  # rows of each, at most half of the smaller set
MEDIAN_ROWS = 2000  # of a set, at most, for the median distance
BLOCK = 2**21  # values of a kernel, or distances, in memory
NEAREST = 5  # k of precision, recall, density and coverage
ROUNDING = 1e-9  # relative tolerance of a squared distance: a row is inside a ball of zero radius around itself

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [n, d], [m, d] → [n, m]
ByNeighbours = Literal["precision", "recall", "density", "coverage"]


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(xᵀy/d + 1)³, KID's kernel."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(bandwidth: float, epsilon: float = 0.0) -> Kernel:
    """exp(−‖x−y‖² / (2σ² + ε)) with σ the bandwidth."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squared_distances(x, y) / (2 * bandwidth**2 + epsilon))

    return kernel


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """‖x−y‖² [n, m] of all rows, never negative."""
    squares = -2 * x @ y.T
    squares += squared_lengths(x)[:, None]
    squares += squared_lengths(y)
    return np.maximum(squares, 0, out=squares)


def squared_lengths(x: np.ndarray) -> np.ndarray:
    """‖x‖² [n] of all rows, without copying them."""
    return np.einsum("nd,nd->n", x, x)


def median_distance(rows: np.ndarray, seed: int) -> float:
    """Median distance between rows [n, d] of one set, or of a seeded subset if there are many; 0 if there is but one row."""
    random = np.random.default_rng(seed)
    if len(rows) > MEDIAN_ROWS:
        rows = rows[np.sort(random.choice(len(rows), MEDIAN_ROWS, replace=False))]
    pairs = np.triu_indices(len(rows), 1)
    return float(np.sqrt(np.median(squared_distances(rows, rows)[pairs]))) if len(pairs[0]) else 0.0


def bandwidth(reference: np.ndarray, seed: int) -> float:
    """The median distance of the reference's rows [n, d]; zero raises UserError."""
    median = median_distance(reference, seed)
    if not median > 0:
        raise UserError(
            "at least half of the reference's embeddings are equal, so MMD has no bandwidth; use other metrics for this set"
        )
    return median


def discrepancy(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """Unbiased squared MMD of rows [n, d] and [m, d] (Gretton et al. 2012, eq. 3); it may be negative."""
    _check_sizes(x, y)
    within = []
    for rows in (x, y):
        values = kernel(rows, rows)
        within.append((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return float(sum(within) - 2 * kernel(x, y).mean())


def in_subsets(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, int]:
    """KID: mean and standard deviation of the discrepancy of seeded subsets, and the rows of a subset."""
    size = min(SUBSET, min(len(x), len(y)) // 2)
    if size < 2:
        raise UserError(f"KID needs at least 4 embeddings in each set, found {len(x)} and {len(y)}")
    values = []
    for number in range(SUBSETS):
        random = np.random.default_rng([seed, number])
        chosen = [rows[random.choice(len(rows), size, replace=False)] for rows in (x, y)]
        values.append(discrepancy(*chosen, polynomial))
    return float(np.mean(values)), float(np.std(values)), size


def discrepancy_by_clip(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], kernel: Kernel
) -> tuple[float, Influence]:
    """The discrepancy of all rows of two sets of clips [P, d], and each clip's influence; computed in blocks of the kernel."""
    sets = [np.concatenate(clips, dtype=np.float64) for clips in (generated, reference)]
    _check_sizes(*sets)
    value, influences = 0.0, []
    for rows, others in (sets, sets[::-1]):
        count = len(rows)
        within, own = _row_sums(rows, rows, kernel), _own(rows, kernel)
        value += float((within - own).sum()) / (count * (count - 1))
        between = _row_sums(rows, others, kernel)
        influences.append(2 * (within - own) / (count - 1) - 2 * between / len(others))
    value -= 2 * float(between.sum()) / (len(sets[0]) * len(sets[1]))
    lengths = [np.array([len(rows) for rows in clips]) for clips in (generated, reference)]
    return value, Influence(*(SetInfluence.of(by_clip(rows, of), of) for rows, of in zip(influences, lengths, strict=True)))


def discrepancies_exchanged(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], reference: Sequence[np.ndarray], kernel: Kernel, chosen: np.ndarray
) -> np.ndarray:
    """Discrepancies [2, B] of two sets from a reference, for each exchange of clips (see `scores.Exchanged`)."""
    lengths = np.array([len(rows) for clips in (a, b) for rows in clips])
    generated, real = (np.concatenate(clips, dtype=np.float64) for clips in ([*a, *b], reference))
    first = np.concatenate([chosen, 1 - chosen], axis=1).T
    members = np.concatenate([first, 1 - first], axis=1)  # [2·N, 2·B]: 1 if a clip is in a set
    owner, counts = np.repeat(np.arange(len(lengths)), lengths), np.maximum(lengths @ members, 2)
    within = -by_clip(_own(generated, kernel), lengths) @ members
    for part in _parts(len(generated), len(generated)):
        to_clips = by_clip(kernel(generated, generated[part]), lengths).T  # [rows of the part, 2·N]
        within += ((to_clips @ members) * members[owner[part]]).sum(axis=0)
    between = by_clip(_row_sums(generated, real, kernel), lengths) @ members
    of_real = _row_sums(real, real, kernel).sum() - _own(real, kernel).sum()
    values = within / (counts * (counts - 1)) - 2 * between / (counts * len(real)) + of_real / (len(real) * (len(real) - 1))
    return values.reshape(2, -1)


def by_neighbours(name: ByNeighbours, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> tuple[float, Influence]:
    """One of the four metrics of two sets of clips [P, d], and each clip's influence on it at fixed radii.

    precision: share of generated rows inside a ball around a real row
    recall: share of real rows inside a ball around a generated row
    density: number of balls around real rows that a generated row is inside, divided by k; it may exceed 1
    coverage: share of balls around real rows with a generated row inside
    """
    fakes, reals = (np.array([len(rows) for rows in clips]) for clips in (generated, reference))
    fake, real = _centred(generated, reference)
    centres, lengths, rows = (fake, fakes, real) if name == "recall" else (real, reals, fake)
    parts = _inside(centres, _radii(centres, _owners(lengths)), rows, per="centres" if name == "coverage" else "rows")
    if name == "density":
        of_fake, of_real = np.zeros(len(fake)), np.zeros(len(reals))
        for part, inside in parts:
            of_fake[part] = inside.sum(axis=0)
            of_real += by_clip(inside.sum(axis=1), reals)
        scale = NEAREST * len(fake)
        value = of_fake.sum() / scale
        sides = SetInfluence.of(by_clip(of_fake, fakes) / NEAREST, fakes), SetInfluence.of(of_real * (len(real) / scale), reals)
        return float(value), Influence(*sides)
    # The clips of one set reach rows of the other: its balls contain them (coverage: its rows are in their balls).
    reaching, reached = (reals, fakes) if name == "precision" else (fakes, reals)
    hit, alone = np.zeros(reached.sum()), np.zeros(len(reaching))
    for part, inside in parts:
        by = by_clip(inside.T if name == "coverage" else inside, reaching) > 0  # [clips, rows]
        hit[part] = by.any(axis=0)
        alone += by[:, by.sum(axis=0) == 1].sum(axis=1)  # rows that only this clip reaches
    lost = SetInfluence.of(alone * (reaching.sum() / reached.sum()), reaching)
    gained = SetInfluence.of(by_clip(hit, reached), reached)
    return float(hit.mean()), Influence(gained, lost) if name == "precision" else Influence(lost, gained)


def neighbours_exchanged(
    name: Literal["recall", "coverage"],
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    chosen: np.ndarray,
) -> np.ndarray:
    """Shares [2, B] of real rows that two sets reach, for each exchange of clips (see `scores.Exchanged`).

    The rows that a clip reaches must not depend on the exchange: recall's radii are computed in both sets together, to the 2·k-th
    nearest row of another pair, as there are twice as many rows.
    """
    lengths = np.array([len(rows) for clips in (a, b) for rows in clips])
    fake, real = _centred([*a, *b], reference)
    if name == "coverage":
        radii = _radii(real, _owners(np.array([len(rows) for rows in reference])))
        parts = (inside.T for _, inside in _inside(real, radii, fake, per="centres"))
    else:
        radii = _radii(fake, np.repeat(np.tile(np.arange(len(a)), 2), lengths), 2 * NEAREST)
        parts = (inside for _, inside in _inside(fake, radii, real, per="rows"))
    reached = np.zeros((2, len(chosen)))
    for inside in parts:
        first, second = np.split((by_clip(inside, lengths) > 0).astype(np.float32), 2)  # [N, m]: 1 if a clip reaches a row
        total = first.sum(axis=0) + second.sum(axis=0)
        hits = chosen @ (first - second) + second.sum(axis=0)  # [B, m]: how many clips of the first set reach a row, exact integers
        reached += (hits > 0).sum(axis=1), (total - hits > 0).sum(axis=1)
    return reached / len(real)


def _centred(generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All rows of both sets relative to the mean of the reference's, which reduces rounding errors."""
    centre = np.concatenate(reference, dtype=np.float64).mean(axis=0)
    return [np.concatenate(clips, dtype=np.float64) - centre for clips in (generated, reference)]


def by_clip(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums [N, …] of values [n, …] over the rows of each clip; `lengths` [N] are the clips' numbers of rows, in order."""
    from scipy.sparse import csr_array

    starts = np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(len(values), np.float32 if values.dtype == np.float32 else np.float64)
    return csr_array((ones, np.arange(len(values)), starts), shape=(len(lengths), len(values))) @ values


def _own(rows: np.ndarray, kernel: Kernel) -> np.ndarray:
    """k(x, x) for every row [n]."""
    return np.concatenate([np.diagonal(kernel(part, part)) for part in np.array_split(rows, len(rows) // 64 + 1)])


def _row_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Σ k(x, y) over all rows of y, for every row of x [n]."""
    return np.concatenate([kernel(x[part], y).sum(axis=1) for part in _parts(len(x), len(y))])


def _parts(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of a matrix with this many columns, of BLOCK values each."""
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, count, step))


def _check_sizes(x: np.ndarray, y: np.ndarray) -> None:
    if min(len(x), len(y)) < 2:
        raise UserError(f"a discrepancy needs at least 2 embeddings in each set, found {len(x)} and {len(y)}")


def _owners(lengths: np.ndarray) -> np.ndarray:
    """Index of each row's clip [n]; `lengths` are the clips' numbers of rows, in order."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _radii(rows: np.ndarray, owner: np.ndarray, nearest: int = NEAREST) -> np.ndarray:
    """Squared distance [n] of every row to the k-th nearest row of another owner."""
    owners = np.bincount(owner)
    if len(rows) - owners.max() < nearest:
        raise UserError(
            f"{np.count_nonzero(owners)} clips are too few for precision, recall, density and coverage: "
            f"every embedding needs {nearest} embeddings of other clips"
        )
    radii = []
    for part in _parts(len(rows), len(rows)):
        distances = squared_distances(rows[part], rows)
        distances[owner[part, None] == owner] = np.inf
        distances.partition(nearest - 1, axis=1)
        radii.append(distances[:, nearest - 1].copy())  # a view would keep all distances in memory
    return np.concatenate(radii)


def _inside(
    centres: np.ndarray, radii: np.ndarray, rows: np.ndarray, per: Literal["centres", "rows"]
) -> Iterator[tuple[slice, np.ndarray]]:
    """[n, m] float32: 1 if a row is inside a ball; for a slice of the balls or of the rows at a time."""
    squares = [squared_lengths(part) for part in (centres, rows)]
    count, other = (len(centres), len(rows)) if per == "centres" else (len(rows), len(centres))
    for part in _parts(count, other):
        i, j = (part, slice(None)) if per == "centres" else (slice(None), part)
        reach = radii[i, None] + ROUNDING * (squares[0][i, None] + squares[1][j])
        yield part, (squared_distances(centres[i], rows[j]) <= reach).astype(np.float32)
