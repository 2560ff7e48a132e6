"""Scores over seeds and clips, each with its interval, from the metrics that `evaluate` writes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


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
    """A score such as `fad_yamnet` from the metrics that `evaluate` wrote for each seed; None if no seed has it."""
    scored = {seed: metrics for seed, metrics in metrics_by_seed.items() if metrics.get(key) is not None}
    if not scored:
        return None
    by_seed = {
        seed: Estimate(metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high")) for seed, metrics in scored.items()
    }
    total = next(iter(by_seed.values())) if len(by_seed) == 1 else over_seeds([one.value for one in by_seed.values()])
    baselines = next(iter(scored.values())).get("baselines", {}).get(key, {})
    reasons = [metrics["unranked"][key] for metrics in metrics_by_seed.values() if key in metrics.get("unranked", {})]
    return MetricResult(
        total,
        by_seed,
        baselines={name: baselines[name] for name in BASELINES if name in baselines},
        unranked=reasons[0] if reasons else None,
    )


def near_copies(metrics_by_seed: Mapping[int, Mapping[str, Any]], key: str) -> MetricResult | None:
    """As `result` for a share of near-copies, with that of real sounds as a baseline; of one seed it has Wilson's interval."""
    score = result(metrics_by_seed, key)
    if score is None:
        return None
    first = next(iter(metrics_by_seed.values()))
    count = first.get("counts", {}).get("generated")
    total = wilson(score.total.value, count) if len(metrics_by_seed) == 1 else score.total
    real = {"real": first[f"{key}_real"]} if f"{key}_real" in first else {}
    return replace(score, total=total, baselines={**score.baselines, **real})


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


def scores_under(embedder: str, metrics_by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, MetricResult]:
    """The scores under an embedder, and those by other protocols, from the metrics that `evaluate` wrote for each seed.

    Only those that all seeds have.
    """
    scores = {}
    metrics_by_seed = {seed: with_protocols(metrics) for seed, metrics in metrics_by_seed.items()}
    first = next(iter(metrics_by_seed.values()))
    others = {key: key for key in metrics_in(metrics_by_seed.values()) if "@" in key}
    for metric, key in {**{metric: f"{metric}_{embedder}" for metric in METRICS}, **others}.items():
        if metric == "memorised" and key not in first:  # only one embedder searches for copies
            key = next((other for name in first.get("embedders", ()) if (other := f"memorised_{name}") in first), key)
        score = near_copies(metrics_by_seed, key) if metric == "memorised" else result(metrics_by_seed, key)
        if score and len(score.by_seed) == len(metrics_by_seed):
            scores[metric] = score
    return scores


def metrics_in(scored: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of all SUMMARISED metrics that have a value and baselines, such as `fad_yamnet`: by metric, then embedder."""
    keys: set[str] = set()
    for metrics in scored:
        summarised = {f"{kind}_{name}" for kind in SUMMARISED for name in metrics.get("embedders", ())}
        keys |= {key for key in metrics.get("baselines", {}) if key in summarised and metrics.get(key) is not None}
    return sorted_metrics(keys)


def copies_in(scored: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of the shares of near-copies of training clips, such as `memorised_tagger` and `memorised_fingerprint`."""
    keys = {key for metrics in scored for key in metrics if key.startswith(COPIES) and not key.endswith("_real")}
    return sorted(keys)


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
