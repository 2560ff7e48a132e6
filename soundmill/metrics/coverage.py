"""Precision, recall, density and coverage of a generated set against a real one, by nearest neighbours.

Precision and recall follow Kynkäänniemi et al. (2019), density and coverage Naeem et al. (2020): the manifold of a set is the union
of balls around its rows, whose radius is the distance of the k-th nearest row of another clip. Patches of the same clip do not
count as neighbours, as they are close in any set. If every clip is one row, this is the published definition.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from soundmill.errors import UserError
from soundmill.metrics.bootstrap import Influence, SetInfluence
from soundmill.metrics.kernels import BLOCK, by_clip, squared_distances, squared_lengths

NEAREST = 5  # k of all four metrics
ROUNDING = 1e-9  # relative tolerance of a squared distance: a row is inside a ball of zero radius around itself

Name = Literal["precision", "recall", "density", "coverage"]


def by_neighbours(name: Name, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> tuple[float, Influence]:
    """One of the four metrics of two sets of clips [P, d], and each clip's influence on it at fixed radii.

    precision: share of generated rows inside a ball around a real row
    recall: share of real rows inside a ball around a generated row
    density: number of balls around real rows that a generated row is inside, divided by k; it may exceed 1
    coverage: share of balls around real rows with a generated row inside
    """
    fakes, reals = (np.array([len(rows) for rows in clips]) for clips in (generated, reference))
    fake, real = (np.concatenate(clips, dtype=np.float64) for clips in (generated, reference))
    centre = real.mean(axis=0)  # centring reduces rounding errors
    fake -= centre
    real -= centre
    if name == "density":
        of_fake, of_real = np.zeros(len(fake)), np.zeros(len(reals))
        for part, inside in _inside(real, _radii(real, _owners(reals)), fake, per="rows"):
            of_fake[part] = inside.sum(axis=0)
            of_real += by_clip(inside.sum(axis=1), reals)
        scale = NEAREST * len(fake)
        value = of_fake.sum() / scale
        sides = SetInfluence.of(by_clip(of_fake, fakes) / NEAREST, fakes), SetInfluence.of(of_real * (len(real) / scale), reals)
        return float(value), Influence(*sides)
    # The clips of one set reach rows of the other: its balls contain them (coverage: its rows are in their balls).
    if name == "coverage":
        parts = _inside(real, _radii(real, _owners(reals)), fake, per="centres")
        reaching, reached = fakes, reals
    elif name == "precision":
        parts = _inside(real, _radii(real, _owners(reals)), fake, per="rows")
        reaching, reached = reals, fakes
    else:
        parts = _inside(fake, _radii(fake, _owners(fakes)), real, per="rows")
        reaching, reached = fakes, reals
    hit, alone = np.zeros(reached.sum()), np.zeros(len(reaching))
    for part, inside in parts:
        by = by_clip(inside.T if name == "coverage" else inside, reaching) > 0  # [clips, rows]
        hit[part] = by.any(axis=0)
        alone += by[:, by.sum(axis=0) == 1].sum(axis=1)  # rows that only this clip reaches
    lost = alone * (reaching.sum() / reached.sum())
    sides = {"reached": SetInfluence.of(by_clip(hit, reached), reached), "reaching": SetInfluence.of(lost, reaching)}
    order = ("reached", "reaching") if name == "precision" else ("reaching", "reached")
    return float(hit.mean()), Influence(*(sides[which] for which in order))


def exchanged(
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
    fake, real = (np.concatenate(clips, dtype=np.float64) for clips in ([*a, *b], reference))
    centre = real.mean(axis=0)
    fake -= centre
    real -= centre
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
    step = max(1, BLOCK // len(rows))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
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
    step = max(1, BLOCK // other)
    for start in range(0, count, step):
        part, everything = slice(start, start + step), slice(None)
        i, j = (part, everything) if per == "centres" else (everything, part)
        reach = radii[i, None] + ROUNDING * (squares[0][i, None] + squares[1][j])
        yield part, (squared_distances(centres[i], rows[j]) <= reach).astype(np.float32)
