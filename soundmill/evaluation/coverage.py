"""Precision, recall, density and coverage of a generated set against a real one, by nearest neighbours.

Precision and recall after Kynkäänniemi et al. (2019), density and coverage after Naeem et al. (2020): the manifold of a set is the
union of balls about its rows, each as far as its k-th nearest row of another clip. Patches of one clip are near each other whatever
the set is like, so they are no neighbours; where a clip is one row, that is the published definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.bootstrap import Influence, Side
from soundmill.evaluation.kernels import BLOCK, by_clip, squared_distances, squared_lengths

NEAREST = 5  # k, of all four
ROUNDING = 1e-9  # of a squared distance, so that a row is within a ball of no radius about itself

Name = Literal["precision", "recall", "density", "coverage"]


def by_neighbours(name: Name, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> tuple[float, Influence]:
    """One of the four metrics of two sets of clips [P, d], and what each clip adds to it, radii staying as they are.

    precision: share of the generated rows that are in a ball about a real row
    recall: share of the real rows that are in a ball about a generated row
    density: balls about real rows that a generated row is in, in k-ths, so it may exceed 1
    coverage: share of the balls about real rows that a generated row is in
    """
    fakes, reals = (np.array([len(rows) for rows in clips]) for clips in (generated, reference))
    fake, real = (np.concatenate(clips, dtype=np.float64) for clips in (generated, reference))
    centre = real.mean(axis=0)  # small numbers have small rounding errors
    fake -= centre
    real -= centre
    if name == "density":
        of_fake, of_real = np.zeros(len(fake)), np.zeros(len(reals))
        for part, inside in _inside(real, _radii(real, _owners(reals)), fake, per="rows"):
            of_fake[part] = inside.sum(axis=0)
            of_real += by_clip(inside.sum(axis=1), reals)
        scale = NEAREST * len(fake)
        value = of_fake.sum() / scale
        sides = Side.of(by_clip(of_fake, fakes) / NEAREST, fakes), Side.of(of_real * (len(real) / scale), reals)
        return float(value), Influence(*sides)
    # Of the one set the clips that reach, of the other the rows that are reached.
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
        alone += by[:, by.sum(axis=0) == 1].sum(axis=1)  # rows that no other clip reaches: without it they were lost
    added = alone * (reaching.sum() / reached.sum())
    sides = {"reached": Side.of(by_clip(hit, reached), reached), "reaching": Side.of(added, reaching)}
    order = ("reached", "reaching") if name == "precision" else ("reaching", "reached")
    return float(hit.mean()), Influence(*(sides[which] for which in order))


def exchanged(
    name: Literal["recall", "coverage"],
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    chosen: np.ndarray,
) -> np.ndarray:
    """Shares [2, B] of real rows that two sets reach, for each exchange of partners (see `scores.Metric.exchanged`).

    What a clip reaches does not depend on who of two partners is whose: recall's balls are about generated rows of both sets
    together, as far as the 2·k-th nearest row of another pair, for there are twice as many.
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
        first, second = np.split((by_clip(inside, lengths) > 0).astype(np.float32), 2)  # whether a clip reaches a row [N, m]
        every = first.sum(axis=0) + second.sum(axis=0)
        hits = chosen @ (first - second) + second.sum(axis=0)  # how many clips of the first set reach a row; whole numbers
        reached += (hits > 0).sum(axis=1), (every - hits > 0).sum(axis=1)
    return reached / len(real)


def _owners(lengths: np.ndarray) -> np.ndarray:
    """Whose every row is [n]; `lengths` are the clips' rows, in order."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _radii(rows: np.ndarray, owner: np.ndarray, nearest: int = NEAREST) -> np.ndarray:
    """Squared distance [n] of every row to its k-th nearest row of another owner."""
    owners = np.bincount(owner)
    if len(rows) - owners.max() < nearest:
        raise UserError(
            f"{np.count_nonzero(owners)} clips are too few for precision, recall, density and coverage: "
            f"every embedding needs {nearest} of other clips beside it"
        )
    radii = []
    step = max(1, BLOCK // len(rows))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        distances = squared_distances(rows[part], rows)
        distances[owner[part, None] == owner] = np.inf
        distances.partition(nearest - 1, axis=1)
        radii.append(distances[:, nearest - 1].copy())  # a view of it would keep all distances
    return np.concatenate(radii)


def _inside(
    centres: np.ndarray, radii: np.ndarray, rows: np.ndarray, per: Literal["centres", "rows"]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Whether a row is in a ball [n, m], float32, for a part of the balls, or of the rows, at a time."""
    squares = [squared_lengths(part) for part in (centres, rows)]
    count, other = (len(centres), len(rows)) if per == "centres" else (len(rows), len(centres))
    step = max(1, BLOCK // other)
    for start in range(0, count, step):
        part, everything = slice(start, start + step), slice(None)
        i, j = (part, everything) if per == "centres" else (everything, part)
        reach = radii[i, None] + ROUNDING * (squares[0][i, None] + squares[1][j])
        yield part, (squared_distances(centres[i], rows[j]) <= reach).astype(np.float32)
