"""The rows of a sweep or a bake-off: scores, what they cost, and how rows are ranked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flows.results_scores import (
    COPIES,
    Estimate,
    MetricResult,
    copies_in,
    metrics_in,
    near_copies,
    over_seeds,
    result,
    sorted_metrics,
    with_protocols,
)

PAPER = {"fd": "FD", "kl": "KL", "fad": "FAD", "ovl": "OVL", "rel": "REL"}  # the paper's metrics, in the order it prints them
OTHER_DATA = "other data"
BASE = "base"  # row, and key in the metrics, of the model that a fine-tuned one started from
SHARED = ("protocol", "embedders", "counts", "files", "unranked")  # what the metrics of a model say of its base's, too
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
class Row:
    """A preset or combination with its overrides, or a folder of sounds."""

    name: str
    scores: Mapping[str, MetricResult] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)  # reasons, by seed
    clips: int | None = None
    paper: Mapping[str, float] = field(default_factory=dict)  # its numbers
    compares_with: str | None = None  # ending of the keys of our scores that they compare with; None: measured otherwise
    kind: str = ""
    trainings: Sequence[Training] = ()  # in equal minutes
    parameters: int | None = None
    peak_memory_bytes: float | None = None
    seconds_per_second: float | None = None  # to generate a second of sound

    @property
    def why_not(self) -> str | None:
        """Why it has no score."""
        return None if self.scores else next(iter(self.failures.values()), None)

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


@dataclass(frozen=True)
class Outcome:
    """One row with one seed: the scores as `evaluate` writes them, or why there are none."""

    row: str
    seed: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


def without_score(name: str, why: str, **facts: Any) -> Row:
    return Row(name, failures={0: why}, **facts)


def most_seeds(rows: Sequence[Row]) -> int:
    return max((len(score.by_seed) for row in rows for score in row.scores.values()), default=0)


def metrics_of(rows: Sequence[Row]) -> list[str]:
    return sorted_metrics({metric for row in rows for metric in row.scores})


def make_rows(outcomes: Sequence[Outcome], paper: Mapping[str, Mapping[str, float]], protocol: str, files: str | None) -> list[Row]:
    """The bases of fine-tuned models, the rows in the order of their first outcome, then those that only the paper has.

    The paper's numbers compare with ours by the protocol of the label `protocol`, if the digest of its reference list is `files`.
    """
    outcomes = of_one_protocol(outcomes)
    outcomes = [replace(one, metrics=with_protocols(one.metrics)) for one in [*of_bases(outcomes), *outcomes]]
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    rows: list[Row] = []
    for name in names:
        of_row = [outcome for outcome in outcomes if outcome.row == name]
        done = {outcome.seed: outcome.metrics for outcome in of_row if outcome.failure is None}
        scores = {key: score for key in metrics_in(done.values()) if (score := result(done, key))}
        scores |= {key: score for key in copies_in(done.values()) if (score := near_copies(done, key))}
        first = rows[0].scores if rows else {}
        scores = {key: replace(score, difference=_difference(score, first.get(key))) for key, score in scores.items()}
        one = next(iter(done.values()), {})
        rows.append(
            Row(
                name,
                scores,
                failures={outcome.seed: outcome.failure for outcome in of_row if outcome.failure is not None},
                clips=one.get("counts", {}).get("generated"),
                paper=paper.get(name, {}),
                compares_with=_ending(one, protocol) if files and one.get("files", {}).get("reference") == files else None,
            )
        )
    return rows + [Row(name, paper=values) for name, values in paper.items() if name not in names]


def _ending(metrics: Mapping[str, Any], label: str) -> str | None:
    """The ending of the keys of scores by the protocol of that label; None if it was not used."""
    if metrics.get("protocol") == label:
        return ""
    return next((f"@{name}" for name, block in metrics.get("protocols", {}).items() if block["protocol"] == label), None)


def of_bases(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of the models that fine-tuned ones started from: one row if it is the same for all, else one for each.

    Their scores are baselines of the fine-tuned model's, and the copies among their sounds are below `base`.
    """
    found = []
    for outcome in outcomes:
        if BASE in outcome.metrics:
            scores = {key: lines[BASE] for key, lines in outcome.metrics["baselines"].items() if BASE in lines}
            copies = {key: value for key, value in outcome.metrics[BASE].items() if key.startswith(COPIES)}
            found.append((outcome, {**scores, **copies, "baselines": {key: {} for key in scores}}))
    first = {outcome.seed: metrics for outcome, metrics in reversed(found)}
    same = all(metrics == first[outcome.seed] for outcome, metrics in found)
    rows = {}
    for outcome, metrics in found:
        kept = {key: outcome.metrics[key] for key in SHARED if key in outcome.metrics}
        row = BASE if same else f"{BASE} of {outcome.row}"
        rows.setdefault((row, outcome.seed), Outcome(row, outcome.seed, {**kept, **metrics}))
    return list(rows.values())


def of_one_protocol(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes scored by another protocol than the last one's are not comparable, and count as failed."""
    protocols = [outcome.metrics["protocol"] for outcome in outcomes if "protocol" in outcome.metrics]
    return [
        replace(outcome, metrics={}, failure=f"scored by {other}, which does not compare with {protocols[-1]}: score it again")
        if (other := outcome.metrics.get("protocol")) and other != protocols[-1]
        else outcome
        for outcome in outcomes
    ]


def _difference(score: MetricResult, first: MetricResult | None) -> Estimate | None:
    """Paired by seed, which cancels the seed's effect on both rows; None without common seeds, or if a score is not ranked."""
    if first is None or score.unranked or first.unranked:
        return None
    common = [seed for seed in score.by_seed if seed in first.by_seed]
    return over_seeds([score.by_seed[seed].value - first.by_seed[seed].value for seed in common]) if common else None


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


def falling(row: Row) -> list[Training]:
    """The trainings whose held-out loss still falls significantly, by more than MIN_IMPROVEMENT."""
    return [one for one in row.trainings if one.slope and one.slope.high < 0 and one.slope.value < -MIN_IMPROVEMENT]


def flat(row: Row) -> bool:
    """Whether no training's held-out loss can still fall by more than MIN_IMPROVEMENT."""
    return all(one.slope and one.slope.low > -MIN_IMPROVEMENT for one in row.trainings)


# ---------------------------------------------------------------------------------------------------------------------
# Ranking


def not_ranked(row: Row, why: str) -> Row:
    """The row with all its scores left out of the ranking."""
    return replace(row, scores={metric: replace(score, unranked=why) for metric, score in row.scores.items()})


def ranks(row: Row, metric: str) -> bool:
    return metric in row.scores and not row.scores[metric].unranked


def leading(rows: Sequence[Row]) -> str:
    """The metric that rows are ranked by."""
    return next((metric for metric in LEADING if any(ranks(row, metric) for row in rows)), LEADING[0])


def distance(row: Row, metric: str) -> float:
    """A row's score for ranking; infinite if it has none that ranks."""
    return row.scores[metric].total.value if ranks(row, metric) else math.inf


def placed(rows: Sequence[Row]) -> list[Row]:
    """The rows that have both the leading score and a speed."""
    metric = leading(rows)
    return [row for row in rows if ranks(row, metric) and row.seconds_per_second is not None]


def front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front of the leading score and speed, fastest first."""
    metric = leading(rows)
    best, kept = math.inf, []
    for row in sorted(placed(rows), key=lambda row: (row.seconds_per_second, distance(row, metric))):
        if distance(row, metric) < best:
            best = distance(row, metric)
            kept.append(row)
    return kept
