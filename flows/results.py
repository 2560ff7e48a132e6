"""The rows of a sweep or a bake-off: scores over seeds and clips with their intervals, what they cost, and how rows are ranked."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

PAPER = {"fd": "FD", "kl": "KL", "fad": "FAD", "ovl": "OVL", "rel": "REL"}  # the paper's metrics, in the order it prints them
OTHER_DATA = "other data"
BASE = "base"  # row, and key in the metrics, of the model that a fine-tuned one started from
SHARED = ("protocol", "embedders", "counts", "files", "unranked")  # what the metrics of a model say of its base's, too
LEADING = ("fad", "mmd")  # rows are ranked by the first that a row has: with fewer than 50 real clips there is no FAD
MIN_IMPROVEMENT = 0.01  # of the held-out loss by twice the steps, to say that more training would help
MIN_LOSSES = 5  # held-out losses needed to estimate a slope

Difference = Mapping[str, Any]  # of two rows, as evaluation.pairwise.PairwiseResult describes it


# Scores, from the metrics that `evaluate` writes


@dataclass(frozen=True)
class Metric:
    title: str
    short_title: str
    higher_is_better: bool = False
    is_share: bool = False  # shown in percent


METRICS = {
    "fad": Metric("Fréchet distance", "FAD"),
    "fd": Metric("Fréchet distance of clips", "FD"),
    "mmd": Metric("Kernel distance (MMD)", "MMD"),
    "kl": Metric("KL divergence", "KL"),
    "label_accuracy": Metric("Label accuracy", "requested class", higher_is_better=True, is_share=True),
    "recall": Metric("Recall", "recall", higher_is_better=True, is_share=True),
    "coverage": Metric("Coverage", "coverage", higher_is_better=True, is_share=True),
    "memorised": Metric("Near-copies", "near-copies", is_share=True),
}
SUMMARISED = ("fad", "fd", "mmd", "kl", "label_accuracy")  # the metrics of tables that show all embedders
COPIES = "memorised_"  # keys of the search for copies of training clips
BASELINES = ("codec", "floor", "real")  # kept with a score


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class MetricResult:
    """One metric of one row.

    With one seed, `total` has the bootstrap interval over clips; with several, it is their mean with Student's interval over seeds.
    `difference` is the one to the first row over common seeds. `unranked` is the reason why the score must not rank models.
    """

    total: Estimate
    by_seed: Mapping[int, Estimate] = field(default_factory=dict)
    difference: Estimate | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    unranked: str | None = None


def with_protocols(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The scores by other protocols beside the project's own, by keys such as `fad_vggish@audioldm_eval-16k`."""
    merged = {**metrics}
    for name, block in metrics.get("protocols", {}).items():
        for part in ("embedders", "baselines", "unranked"):
            merged[part] = {**merged.get(part, {}), **{f"{key}@{name}": value for key, value in block.get(part, {}).items()}}
        scored = [(key, end) for key in block["baselines"] for end in ("", "_low", "_high") if f"{key}{end}" in block]
        merged |= {f"{key}@{name}{end}": block[f"{key}{end}"] for key, end in scored}
    return merged


def result(metrics_by_seed: Mapping[int, Mapping[str, Any]], key: str) -> MetricResult | None:
    """A score such as `fad_yamnet` from the metrics that `evaluate` wrote for each seed; None if no seed has it.

    A share of near-copies has that of real sounds as a baseline, and of one seed Wilson's interval.
    """
    scored = {seed: metrics for seed, metrics in metrics_by_seed.items() if metrics.get(key) is not None}
    if not scored:
        return None
    by_seed = {seed: Estimate(one[key], one.get(f"{key}_low"), one.get(f"{key}_high")) for seed, one in scored.items()}
    total = next(iter(by_seed.values())) if len(by_seed) == 1 else over_seeds([one.value for one in by_seed.values()])
    if METRICS[kind_of(key)].is_share and total.has_interval:  # Student's knows no bounds
        total = replace(total, low=max(total.low, 0.0), high=min(total.high, 1.0))
    of_first = next(iter(scored.values())).get("baselines", {}).get(key, {})
    baselines = {name: of_first[name] for name in BASELINES if name in of_first}
    if key.startswith(COPIES):
        first = next(iter(metrics_by_seed.values()))
        if len(metrics_by_seed) == 1:
            total = wilson(total.value, first.get("counts", {}).get("generated"))
        if f"{key}_real" in first:
            baselines["real"] = first[f"{key}_real"]
    reasons = [metrics["unranked"][key] for metrics in metrics_by_seed.values() if key in metrics.get("unranked", {})]
    return MetricResult(total, by_seed, baselines=baselines, unranked=reasons[0] if reasons else None)


def wilson(share: float, count: int | None) -> Estimate:
    """A share of `count` clips with Wilson's 95 % interval (1927), which is valid for 0 and 100 % too."""
    if not count:
        return Estimate(share)
    from scipy.stats import binomtest

    return Estimate(share, *map(float, binomtest(round(share * count), count).proportion_ci(method="wilson")))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean with Student's 95 % interval; a single value has no interval."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean)
    from scipy.stats import sem, t

    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return Estimate(mean, mean - half, mean + half)


def chosen_embedder(runs: Sequence[Mapping[str, Any]]) -> str:
    """The first of `evaluate.embedders` that all runs used, not trained on this corpus, with distances, which ratings have not."""
    from soundmill.evaluation import embedders

    asked = runs[0]["embedders"] if runs else []
    used = [name for name in asked if all(isinstance(run["scores"]["embedders"].get(name), dict) for run in runs)]
    usable = [name for name in used if not embedders.find(name).ratings]
    return next((name for name in usable if name != "tagger"), "tagger")


def scores_under(embedder: str | None, metrics_by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, MetricResult]:
    """The scores in the metrics that `evaluate` wrote for each seed, by their keys.

    With an embedder, only its own, by metric, and those by other protocols, as far as all seeds have them.
    """
    metrics_by_seed = {seed: with_protocols(metrics) for seed, metrics in metrics_by_seed.items()}
    found = metrics_in(metrics_by_seed.values())
    copies = {key for metrics in metrics_by_seed.values() for key in metrics if key.startswith(COPIES)}
    keys = {key: key for key in [*found, *sorted(key for key in copies if not key.endswith("_real"))]}
    if embedder:
        first = next(iter(metrics_by_seed.values()))
        keys = {metric: f"{metric}_{embedder}" for metric in METRICS} | {key: key for key in found if "@" in key}
        searched = [key for name in (embedder, *first.get("embedders", ())) if (key := f"{COPIES}{name}") in first]
        keys["memorised"] = next(iter(searched), f"{COPIES}{embedder}")  # only one embedder searches for copies
    scores = {name: score for name, key in keys.items() if (score := result(metrics_by_seed, key))}
    return {name: score for name, score in scores.items() if not embedder or len(score.by_seed) == len(metrics_by_seed)}


def metrics_in(scored: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of all SUMMARISED metrics that have a value and baselines, such as `fad_yamnet`: by metric, then embedder."""
    keys: set[str] = set()
    for metrics in scored:
        summarised = {f"{kind}_{name}" for kind in SUMMARISED for name in metrics.get("embedders", ())}
        keys |= {key for key in metrics.get("baselines", {}) if key in summarised and metrics.get(key) is not None}
    return sorted_metrics(keys)


def sorted_metrics(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda key: (list(METRICS).index(kind_of(key)), key))


def kind_of(metric: str) -> str:
    """`fad` for `fad_yamnet`, and for `fad`."""
    return next(kind for kind in METRICS if metric == kind or metric.startswith(f"{kind}_"))


def heading_of(metric: str) -> str:
    """`FAD` for `fad`, and `FAD vggish@audioldm_eval-16k` for the score by another protocol."""
    return f"{METRICS[kind_of(metric)].short_title} {embedder_of(metric)}".strip()


def embedder_of(metric: str) -> str:
    """`yamnet` for `fad_yamnet`; nothing for `fad`."""
    return metric.removeprefix(kind_of(metric)).removeprefix("_")


# Rows


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
        return None if self.scores else next(iter(self.failures.values()), None)

    @property
    def minutes(self) -> float | None:
        return sum(training.minutes for training in self.trainings) if self.trainings else None


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
    outcomes = [*of_bases(outcomes), *outcomes]
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    rows: list[Row] = []
    for name in names:
        of_row = [outcome for outcome in outcomes if outcome.row == name]
        done = {outcome.seed: outcome.metrics for outcome in of_row if outcome.failure is None}
        first = rows[0].scores if rows else {}
        scores = scores_under(None, done)
        scores = {key: replace(score, difference=_difference(score, first.get(key))) for key, score in scores.items()}
        one = next(iter(done.values()), {})
        endings = {block["protocol"]: f"@{name}" for name, block in one.get("protocols", {}).items()} | {one.get("protocol"): ""}
        same_files = files and one.get("files", {}).get("reference") == files
        rows.append(
            Row(
                name,
                scores,
                failures={outcome.seed: outcome.failure for outcome in of_row if outcome.failure is not None},
                clips=one.get("counts", {}).get("generated"),
                paper=paper.get(name, {}),
                compares_with=endings.get(protocol) if same_files else None,
            )
        )
    return rows + [Row(name, paper=values) for name, values in paper.items() if name not in names]


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
    None with fewer than MIN_LOSSES losses, or if the last one is not positive, one is not finite, or all are of one step.
    """
    late = losses[len(losses) // 2 :]
    fits = len({step for step, _ in late}) > 1 and all(math.isfinite(loss) for _, loss in late)
    if len(losses) < MIN_LOSSES or not fits or losses[-1][1] <= 0:
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


# Ranking


def not_ranked(row: Row, why: str) -> Row:
    return replace(row, scores={metric: replace(score, unranked=why) for metric, score in row.scores.items()})


def ranks(row: Row, metric: str) -> bool:
    return metric in row.scores and not row.scores[metric].unranked


def leading(rows: Sequence[Row]) -> str:
    """The metric that rows are ranked by."""
    return next((metric for metric in LEADING if any(ranks(row, metric) for row in rows)), LEADING[0])


def distance(row: Row, metric: str) -> float:
    """A row's score for ranking; infinite if it has none that ranks."""
    return row.scores[metric].total.value if ranks(row, metric) else math.inf


def front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front of the leading score and speed, fastest first."""
    metric = leading(rows)
    placed = [row for row in rows if ranks(row, metric) and row.seconds_per_second is not None]
    best, kept = math.inf, []
    for row in sorted(placed, key=lambda row: (row.seconds_per_second, distance(row, metric))):
        if distance(row, metric) < best:
            best = distance(row, metric)
            kept.append(row)
    return kept
