"""Bootstrap over clips, to first order: intervals from resampled influences of the clips on a metric.

A metric is taken as a mean over clips of what each adds (its influence, Hampel 1974), and that is resampled. Computing the metric
of resampled sets would be wrong: repeated clips make covariances smaller and neighbours nearer, and the spread is up to twice that
of independent sets where clips are few (tests/evaluation/test_scores.py). It would also cost a matrix decomposition per replicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

INTERVAL = (2.5, 97.5)  # percentiles
NORMAL = 1.96  # deviations to either end of that interval, of a normal distribution


@dataclass(frozen=True)
class Side:
    """What each clip of one set adds to a metric: the sum over its rows [N], of mean zero over all rows, and its rows [N]."""

    sums: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray, lengths: np.ndarray | None = None) -> Side:
        """Sums of any mean; without lengths each clip is one row."""
        lengths = np.ones(len(sums)) if lengths is None else np.asarray(lengths, dtype=np.float64)
        return cls(sums - lengths * (sums.sum() / lengths.sum()), lengths)


NOTHING = Side(np.zeros(1), np.ones(1))  # a set that the metric does not look at


@dataclass(frozen=True)
class Influence:
    """What each clip of both sets adds to a metric."""

    generated: Side
    reference: Side = NOTHING

    def __post_init__(self) -> None:
        assert all(np.isfinite(side.sums).all() for side in (self.generated, self.reference))

    def moved(self, seed: int, replicates: int) -> Iterator[float]:
        """By how much the metric moves in each replicate; replicate b depends on (seed, b) alone."""
        sides = (self.generated, self.reference)
        for number in range(replicates):
            drawn = _draw(seed, number, sides)
            yield float(sum(times @ side.sums / (times @ side.lengths) for times, side in zip(drawn, sides, strict=True)))

    def __sub__(self, other: Influence) -> Influence:
        """What each clip adds to the difference of a metric of two sets of the same clips, to the same reference."""
        sides = zip((self.generated, self.reference), (other.generated, other.reference), strict=True)
        return Influence(*(_difference(*parts) for parts in sides))


def _difference(first: Side, second: Side) -> Side:
    """Per row of each set, since a clip may have more rows in one of them."""
    means = [side.sums * (len(side.sums) / side.lengths.sum()) for side in (first, second)]
    return Side.of(means[0] - means[1])


def _draw(seed: int, replicate: int, sides: Sequence[Side]) -> list[np.ndarray]:
    """Times that each clip of each side is drawn [N], N times with replacement, until a row is among them."""
    random = np.random.default_rng([seed, replicate])
    drawn = []
    for side in sides:
        rows, count = 0.0, len(side.sums)
        while not rows:
            times = np.bincount(random.integers(count, size=count), minlength=count)
            rows = times @ side.lengths
        drawn.append(times)
    return drawn


def interval(value: float, moved: np.ndarray, least: float, most: float, error: float = 0.0) -> dict[str, float]:
    """95 % interval about the value, within what the metric can be; `error` is a standard error beside that of the clips."""
    below, above = (np.hypot(end, NORMAL * error) for end in np.percentile(moved, INTERVAL))
    return {"low": max(least, value - float(below)), "high": min(most, value + float(above))}
