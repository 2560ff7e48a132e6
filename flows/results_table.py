"""A table of results, of a sweep or a bake-off: rows with scores over seeds, and the table as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    title: str
    short_title: str
    higher_is_better: bool = False
    is_share: bool = False  # shown in percent


METRICS = {
    "fad": Metric("Fréchet distance", "FAD"),
    "mmd": Metric("Kernel distance (MMD)", "MMD"),
    "kl": Metric("KL divergence", "KL"),
    "label_accuracy": Metric("Label accuracy", "requested class", higher_is_better=True, is_share=True),
    "recall": Metric("Recall", "recall", higher_is_better=True, is_share=True),
    "coverage": Metric("Coverage", "coverage", higher_is_better=True, is_share=True),
    "memorised": Metric("Near-copies", "near-copies", is_share=True),
}
SUMMARISED = ("fad", "mmd", "kl", "label_accuracy")  # the metrics of tables that show all embedders
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


@dataclass(frozen=True)
class ResultRow:
    """One row: its scores by metric."""

    name: str
    scores: Mapping[str, MetricResult] = field(default_factory=dict)


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


def most_seeds(rows: Sequence[ResultRow]) -> int:
    return max((len(score.by_seed) for row in rows for score in row.scores.values()), default=0)


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


def embedder_of(metric: str) -> str:
    """`yamnet` for `fad_yamnet`."""
    return metric.removeprefix(f"{kind_of(metric)}_")


# ---------------------------------------------------------------------------------------------------------------------
# As text


def number(metric: str, value: float, signed: bool = False, decimals: int = 1) -> str:
    """Three significant digits; of a share, percent with `decimals`."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.{decimals}f} %" if METRICS[kind_of(metric)].is_share else f"{value:{sign}.3g}"


def with_interval(metric: str, estimate: Estimate, signed: bool = False, decimals: int = 1) -> str:
    """`12.3 (10.1 … 14.5)`."""
    text = number(metric, estimate.value, signed, decimals)
    if not estimate.has_interval:
        return text
    low, high = (number(metric, end, signed, decimals) for end in (estimate.low, estimate.high))
    return f"{text} ({low} … {high})"


def shown_total(score: MetricResult, several_seeds: bool) -> Estimate:
    """A row's value in a table; a single seed's interval over clips is left out beside intervals over seeds."""
    return Estimate(score.total.value) if several_seeds and len(score.by_seed) == 1 else score.total


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Any], str]  # the text of a row's cell
    optional: bool = False  # left out if all its cells are empty


def score_column(heading: str, metric: str, rows: Sequence[ResultRow], decimals: int = 1, baselines: bool = False) -> Column:
    """A column of one metric: `10.2 (8.55 … 11.9)†, codec 6.07`; † marks a score that is not ranked."""
    several = most_seeds(rows) > 1

    def cell(row: ResultRow) -> str:
        if (score := row.scores.get(metric)) is None:
            return "–"
        text = with_interval(metric, shown_total(score, several), decimals=decimals) + ("†" if score.unranked else "")
        lines = score.baselines.items() if baselines else ()
        return ", ".join([text, *(f"{name} {number(metric, value, decimals=decimals)}" for name, value in lines)])

    return Column(heading, cell)


@dataclass(frozen=True)
class ResultsTable:
    """Everything that is published about the rows of a sweep or a bake-off; `document` has more keys of table.json."""

    title: str
    rows: Sequence[ResultRow]
    columns: Sequence[Column]
    differences: pd.DataFrame
    notes: Sequence[str]
    csv: str
    verdict: str = ""
    latex: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        return table(self.rows, self.columns)

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.verdict, markdown_table(self.table()), markdown_table(self.differences)]
        return "\n\n".join([*filter(None, parts), "\n".join(f"- {note}" for note in self.notes)]) + "\n"

    def files(self) -> dict[str, str]:
        """Contents by file name."""
        document = {"title": self.title, **self.document, "rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}
        files = {"table.md": self.markdown(), "table.csv": self.csv, "table.tex": self.latex}
        files["table.json"] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        return {name: text for name, text in files.items() if text}


def table(rows: Sequence[ResultRow], columns: Sequence[Column]) -> pd.DataFrame:
    """Cells of text, a line per row."""
    import pandas as pd

    cells = {column.heading: [column.cell(row) for row in rows] for column in columns}
    empty = [column.heading for column in columns if column.optional and not any(cells[column.heading])]
    return pd.DataFrame({heading: texts for heading, texts in cells.items() if heading not in empty})


def markdown_table(lines: pd.DataFrame) -> str:
    """Cells of text as a Markdown table; empty if there are no lines."""
    if lines.empty:
        return ""
    return lines.map(lambda cell: cell.replace("|", "\\|")).to_markdown(index=False, disable_numparse=True)
