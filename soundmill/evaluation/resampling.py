"""Resampling by clip: weights of bootstrap replicates and the intervals that come of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from soundmill.errors import UserError

INTERVAL = (2.5, 97.5)  # percentiles
NORMAL = 1.96  # deviations to either end of that interval, of a normal distribution
BLOCK = 25  # replicates whose weights are held at once


def draw(random: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """How often each clip is drawn [N], N times with replacement, at least two rows in all; `lengths` [N] are the clips' rows."""
    if lengths.sum() < 2:
        raise UserError(f"a covariance needs at least 2 embeddings, found {lengths.sum()}: more or longer sounds are needed")
    while True:  # one clip of one row drawn every time has no covariance
        times = np.bincount(random.integers(len(lengths), size=len(lengths)), minlength=len(lengths))
        if times @ lengths > 1:
            return times


def blocks(seed: int, replicates: int, lengths: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Per block of replicates the weights of every set [≤ BLOCK, N]; replicate b depends on (seed, b) alone."""
    for start in range(0, replicates, BLOCK):
        drawn = []
        for replicate in range(start, min(start + BLOCK, replicates)):
            random = np.random.default_rng([seed, replicate])
            drawn.append([draw(random, part) for part in lengths])
        yield [np.stack(column).astype(np.float64) for column in zip(*drawn, strict=True)]


def interval(value: float, resampled: np.ndarray, least: float, most: float, error: float = 0.0) -> dict[str, float]:
    """95 % of the resampled values' spread, moved to the value itself, within what the metric can be.

    A resample holds about 63 % of the clips, some twice, which shifts most metrics of sets by a bias that is no uncertainty; a
    plain percentile interval might not even hold the value. `error` is a standard error beside that of the clips.
    """
    low, middle, high = np.percentile(resampled, (INTERVAL[0], 50, INTERVAL[1]))
    below, above = (np.hypot(end - middle, NORMAL * error) for end in (low, high))
    return {"low": max(least, value - float(below)), "high": min(most, value + float(above))}
