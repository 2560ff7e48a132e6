"""How much of the generated set looks real and how much of the real set was reached, by nearest neighbours.

Precision and recall after Kynkäänniemi et al. (2019), density and coverage after Naeem et al. (2020): the manifold of a set is the
union of balls about its rows, each as far as its k-th nearest row of another clip. Patches of one clip are near each other whatever
the set is like, so they are no neighbours; where a clip is one row, that is the published definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.kernels import BLOCK, by_clip, squared_distances

NEAREST = 5  # k, of all four
ROUNDING = 1e-9  # of a squared distance, so that a row is within a ball of no radius about itself

Name = Literal["precision", "recall", "density", "coverage"]


class Manifolds:
    """One of the four metrics of two sets of clips [P, d], and the same under weights of the clips; radii are those of all clips.

    precision: share of the generated rows that are in a ball about a real row
    recall: share of the real rows that are in a ball about a generated row
    density: real balls that a generated row is in, a k-th of them, so it may exceed 1
    coverage: share of the real balls that a generated row is in
    """

    def __init__(self, name: Name, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]):
        self._name = name
        self._lengths = [np.array([len(rows) for rows in clips]) for clips in (generated, reference)]
        sets = [np.concatenate(clips) for clips in (generated, reference)]
        centre = sets[1].mean(axis=0)  # small numbers have small rounding errors
        fake, real = (rows - centre for rows in sets)
        fakes, reals = self._lengths
        if name == "recall":
            self._hits = _hits(fake, _radii(fake, fakes), real, fakes, per="centres")
        elif name == "coverage":
            self._hits = _hits(real, _radii(real, reals), fake, fakes, per="rows")
        else:
            self._hits = _hits(real, _radii(real, reals), fake, reals, per="centres")
        if name == "density":
            self._hits = by_clip(self._hits.T, fakes).T
        else:
            np.minimum(self._hits, 1, out=self._hits)

    def __call__(self, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The metric [B] under weights [B, N] of the clips of both sets."""
        if self._name == "density":
            balls = ((reference @ self._hits) * generated).sum(axis=1)
            return balls / (NEAREST * (generated @ self._lengths[0]))
        # Of the one set the clips that reach, of the other the rows that may be reached.
        reaching, reached, lengths = (
            (reference, generated, self._lengths[0]) if self._name == "precision" else (generated, reference, self._lengths[1])
        )
        hit = (reaching > 0).astype(np.float32) @ self._hits > 0  # [B, rows]
        return (reached * by_clip(hit.T.astype(np.float32), lengths).T).sum(axis=1) / (reached @ lengths)


def _radii(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Squared distance [n] of every row to its k-th nearest row of another clip; `lengths` are the clips' rows, in order."""
    if len(rows) - lengths.max() < NEAREST:
        raise UserError(
            f"{len(lengths)} clips are too few for precision, recall, density and coverage: "
            f"every embedding needs {NEAREST} of other clips beside it"
        )
    owner = np.repeat(np.arange(len(lengths)), lengths)
    found = []
    step = max(1, BLOCK // len(rows))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        distances = squared_distances(rows[part], rows)
        distances[owner[part, None] == owner] = np.inf
        found.append(np.partition(distances, NEAREST - 1, axis=1)[:, NEAREST - 1])
    return np.concatenate(found)


def _hits(
    centres: np.ndarray, radii: np.ndarray, rows: np.ndarray, lengths: np.ndarray, per: Literal["centres", "rows"]
) -> np.ndarray:
    """In how many balls of each clip every row is [N, m], or, per rows, how many rows of each clip every ball holds [N, n]."""
    squares = [(part**2).sum(axis=1) for part in (centres, rows)]
    balls = per == "centres"
    count = len(rows) if balls else len(centres)
    found = np.empty((len(lengths), count), np.float32)
    step = max(1, BLOCK // (len(centres) if balls else len(rows)))
    for start in range(0, count, step):
        part, everything = slice(start, start + step), slice(None)
        i, j = (everything, part) if balls else (part, everything)
        reach = radii[i, None] + ROUNDING * (squares[0][i, None] + squares[1][j])
        inside = (squared_distances(centres[i], rows[j]) <= reach).astype(np.float32)
        found[:, part] = by_clip(inside if balls else inside.T, lengths)
    return found
