"""The rows of a bake-off: a model's training cost, speed and scores, and how rows are ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.results_table import METRICS, Estimate, MetricResult, ResultRow, near_copies, result

LEADING = ("fad", "mmd")  # rows are ranked by the first that a row has: with fewer than 50 real clips there is no FAD
MIN_IMPROVEMENT = 0.01  # of the held-out loss by twice the steps, to say that more training would help
MIN_LOSSES = 5  # held-out losses needed to estimate a slope


@dataclass(frozen=True)
class Training:
    """One training of a family: the stage, its steps, and their estimated minutes.

    `slope` is the expected relative change of the held-out loss from twice the steps; None if it cannot be estimated.
    """

    stage: str
    steps: int
    minutes: float
    slope: Estimate | None = None


@dataclass(frozen=True)
class ModelRow(ResultRow):
    """A family, or a folder of sounds; `why_not` is why it has no score."""

    kind: str = ""
    why_not: str | None = None
    parameters: int | None = None
    trainings: Sequence[Training] = ()
    peak_memory_bytes: float | None = None
    seconds_per_second: float | None = None  # to generate a second of sound

    @property
    def minutes(self) -> float | None:
        return sum(training.minutes for training in self.trainings) if self.trainings else None


@dataclass(frozen=True)
class Difference:
    """The difference a − b of a metric, with its interval and corrected p; `better` is a name, `neither` or `unranked`."""

    metric: str
    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    better: str


def scores_under(embedder: str, metrics_by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, MetricResult]:
    """The scores under an embedder, from the metrics that `evaluate` wrote for each seed; only those that all seeds have."""
    scores = {}
    first = next(iter(metrics_by_seed.values()))
    for metric in METRICS:
        key = f"{metric}_{embedder}"
        if metric == "memorised" and key not in first:  # only one embedder searches for copies
            key = next((other for name in first.get("embedders", ()) if (other := f"memorised_{name}") in first), key)
        score = near_copies(metrics_by_seed, key) if metric == "memorised" else result(metrics_by_seed, key)
        if score and len(score.by_seed) == len(metrics_by_seed):
            scores[metric] = score
    return scores


def slope(losses: Sequence[tuple[int, float]]) -> Estimate | None:
    """The expected relative change of the held-out loss from twice the steps; `losses` are (step, loss).

    The slope of a line through the last half of them over log2(step), divided by the last loss, with Student's 95 % interval.
    None with fewer than MIN_LOSSES losses, or if the last one is not positive.
    """
    late = losses[len(losses) // 2 :]
    if len(losses) < MIN_LOSSES or losses[-1][1] <= 0:
        return None
    import numpy as np
    from scipy.stats import t

    steps, values = np.array(late).T
    (tilt, _), covariance = np.polyfit(np.log2(steps), values, 1, cov=True)
    half = t.ppf(0.975, len(late) - 2) * covariance[0, 0] ** 0.5
    return Estimate(*(float(end / values[-1]) for end in (tilt, tilt - half, tilt + half)))


def falling(row: ModelRow) -> list[Training]:
    """The trainings whose held-out loss still falls significantly, by more than MIN_IMPROVEMENT."""
    return [one for one in row.trainings if one.slope and one.slope.high < 0 and one.slope.value < -MIN_IMPROVEMENT]


def flat(row: ModelRow) -> bool:
    """Whether no training's held-out loss can still fall by more than MIN_IMPROVEMENT."""
    return all(one.slope and one.slope.low > -MIN_IMPROVEMENT for one in row.trainings)


# ---------------------------------------------------------------------------------------------------------------------
# Ranking


def not_ranked(row: ModelRow, why: str) -> ModelRow:
    """The row with all its scores left out of the ranking."""
    return replace(row, scores={metric: replace(score, unranked=why) for metric, score in row.scores.items()})


def ranks(row: ResultRow, metric: str) -> bool:
    return metric in row.scores and not row.scores[metric].unranked


def leading(rows: Sequence[ModelRow]) -> str:
    """The metric that rows are ranked by."""
    return next((metric for metric in LEADING if any(ranks(row, metric) for row in rows)), LEADING[0])


def distance(row: ResultRow, metric: str) -> float:
    """A row's score for ranking; infinite if it has none that ranks."""
    return row.scores[metric].total.value if ranks(row, metric) else math.inf


def placed(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """The rows that have both the leading score and a speed."""
    metric = leading(rows)
    return [row for row in rows if ranks(row, metric) and row.seconds_per_second is not None]


def front(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """The Pareto front of the leading score and speed, fastest first."""
    metric = leading(rows)
    best, kept = math.inf, []
    for row in sorted(placed(rows), key=lambda row: (row.seconds_per_second, distance(row, metric))):
        if distance(row, metric) < best:
            best = distance(row, metric)
            kept.append(row)
    return kept
