"""First-order bootstrap over clips: intervals from the resampled influences of clips on a metric.

A metric is linearised as a mean over clips of their influences (Hampel 1974), which are resampled. Recomputing the metric of
resampled sets would be wrong: repeated clips make covariances smaller and neighbours nearer, and with few clips the spread is up to
twice that of independent sets (tests/metrics/test_scores.py). It would also cost a matrix decomposition per replicate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

INTERVAL = (2.5, 97.5)  # percentiles
NORMAL = 1.96  # standard deviations from the mean to the ends of that interval, for a normal distribution


@dataclass(frozen=True)
class SetInfluence:
    """Influence of each clip of one set on a metric: sums over its rows [N], of mean zero over all rows, and its row counts [N]."""

    sums: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray, lengths: np.ndarray | None = None) -> SetInfluence:
        """From sums with any mean; without `lengths` each clip is one row."""
        lengths = np.ones(len(sums)) if lengths is None else np.asarray(lengths, dtype=np.float64)
        return cls(sums - lengths * (sums.sum() / lengths.sum()), lengths)


NOTHING = SetInfluence(np.zeros(1), np.ones(1))  # of a set that the metric does not use


@dataclass(frozen=True)
class Influence:
    """Influence of each clip of both sets on a metric."""

    generated: SetInfluence
    reference: SetInfluence = NOTHING

    def __post_init__(self) -> None:
        assert all(np.isfinite(side.sums).all() for side in (self.generated, self.reference))

    def shifts(self, seed: int, replicates: int, progress: Callable[[int], None] = lambda count: None) -> np.ndarray:
        """The shift of the metric in each replicate [replicates]; replicate b depends only on (seed, b)."""
        shifts = np.empty(replicates)
        for number in range(replicates):
            random = np.random.default_rng([seed, number])
            shifts[number] = sum(_resampled_mean(side, random) for side in (self.generated, self.reference))
            progress(1)
        return shifts

    def __mul__(self, factor: float) -> Influence:
        return Influence(*(SetInfluence(factor * side.sums, side.lengths) for side in (self.generated, self.reference)))

    def __sub__(self, other: Influence) -> Influence:
        """Influence on the difference of a metric between two sets with the same clips and the same reference."""
        differences = []
        for sides in ((self.generated, other.generated), (self.reference, other.reference)):
            # Normalised per row of each set, as a clip may have more rows in one of them.
            first, second = (side.sums * (len(side.sums) / side.lengths.sum()) for side in sides)
            differences.append(SetInfluence.of(first - second))
        return Influence(*differences)


def _resampled_mean(side: SetInfluence, random: np.random.Generator) -> float:
    """The mean influence of the rows of clips drawn with replacement; drawn again if no clip has a row."""
    rows, count = 0.0, len(side.sums)
    while not rows:
        times = np.bincount(random.integers(count, size=count), minlength=count)  # how often each clip is drawn
        rows = times @ side.lengths
    return times @ side.sums / rows


def interval(value: float, shifts: np.ndarray, least: float, most: float, error: float = 0.0) -> dict[str, float]:
    """95 % interval about the value, within the metric's range; `error` is a standard error in addition to that of the clips."""
    below, above = (np.hypot(end, NORMAL * error) for end in np.percentile(shifts, INTERVAL))
    return {"low": max(least, value - float(below)), "high": min(most, value + float(above))}
