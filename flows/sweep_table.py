"""The results of a sweep: rows with their intervals and differences to the first row, the paper's numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "fad": "Fréchet distance",
    "mmd": "Kernel distance (MMD)",
    "kl": "KL divergence",
    "label_accuracy": "Label accuracy",
}
PAPER = {"fd": "FD", "kl": "KL", "fad": "FAD"}  # measures of the paper, in the order it prints them
OTHER_DATA = "other data"


@dataclass(frozen=True)
class Outcome:
    """One row of one run: the scores as `evaluate` writes them, or why there are none."""

    row: str
    seed: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Score:
    """One metric of one row.

    `total` of one seed has the bootstrap interval by clip; of several it is their mean with Student's interval over seeds.
    `difference` is to the first row, over the seeds that both have; there is none of a metric that ranks no models, `unranked` says
    why.
    """

    by_seed: dict[int, Estimate]
    total: Estimate
    difference: Estimate | None = None
    unranked: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table; `paper` are the paper's numbers for it, `comparable` whether they were measured as ours were."""

    name: str
    scores: dict[str, Score] = field(default_factory=dict)
    clips: int | None = None
    failures: dict[int, str] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = False


def make_rows(outcomes: Sequence[Outcome], paper: Mapping[str, Mapping[str, float]], protocol: str, files: str | None) -> list[Row]:
    """The table's rows in the order of their first outcome, then what only the paper has.

    The paper's numbers are comparable with ours if `protocol` and the digest `files` of its reference list are those of ours.
    """
    outcomes = of_one_protocol(outcomes)
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    rows: list[Row] = []
    for name in names:
        mine = [outcome for outcome in outcomes if outcome.row == name]
        done = {outcome.seed: outcome.metrics for outcome in mine if outcome.failure is None}
        first = rows[0].scores if rows else {}
        scores = {}
        for metric in metrics_in(done.values()):
            by_seed = {seed: _estimate(metrics, metric) for seed, metrics in done.items() if metrics.get(metric) is not None}
            reasons = [metrics["unranked"][metric] for metrics in done.values() if metric in metrics.get("unranked", {})]
            unranked = reasons[0] if reasons else None
            ranks = metric in first and not (unranked or first[metric].unranked)
            scores[metric] = Score(by_seed, _total(by_seed), _difference(by_seed, first[metric]) if ranks else None, unranked)
        one = next(iter(done.values()), {})
        rows.append(
            Row(
                name,
                scores,
                one.get("counts", {}).get("generated"),
                {outcome.seed: outcome.failure for outcome in mine if outcome.failure is not None},
                paper.get(name, {}),
                files is not None and (one.get("protocol"), one.get("files", {}).get("reference")) == (protocol, files),
            )
        )
    return rows + [Row(name, paper=values) for name, values in paper.items() if name not in names]


def of_one_protocol(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What was scored by another protocol than the last outcome does not compare, and counts as failed."""
    protocols = [outcome.metrics["protocol"] for outcome in outcomes if "protocol" in outcome.metrics]
    return [
        replace(outcome, metrics={}, failure=f"scored by {other}, which does not compare with {protocols[-1]}: score it again")
        if (other := outcome.metrics.get("protocol")) and other != protocols[-1]
        else outcome
        for outcome in outcomes
    ]


def metrics_in(scored: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys of all metrics of METRICS that have a value and baselines, such as `fad_yamnet`: by metric, then embedder."""
    keys = {
        key
        for metrics in scored
        for key in metrics.get("baselines", {})
        if metrics.get(key) is not None and key in {f"{kind}_{name}" for kind in METRICS for name in metrics.get("embedders", ())}
    }
    return sorted(keys, key=lambda key: (list(METRICS).index(kind_of(key)), key))


def kind_of(metric: str) -> str:
    """`fad` of `fad_yamnet`."""
    return next(kind for kind in METRICS if metric.startswith(f"{kind}_"))


def embedder_of(metric: str) -> str:
    return metric.removeprefix(f"{kind_of(metric)}_")


def _estimate(metrics: Mapping[str, Any], metric: str) -> Estimate:
    return Estimate(metrics[metric], metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high"))


def _total(by_seed: Mapping[int, Estimate]) -> Estimate:
    if len(by_seed) == 1:
        return next(iter(by_seed.values()))
    return over_seeds([estimate.value for estimate in by_seed.values()])


def _difference(by_seed: Mapping[int, Estimate], first: Score) -> Estimate | None:
    """Seed by seed: what the seed does to both rows alike falls out."""
    both = [seed for seed in by_seed if seed in first.by_seed]
    if not both:
        return None
    return over_seeds([by_seed[seed].value - first.by_seed[seed].value for seed in both])


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean with Student's 95 % interval; of one value there is no interval."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean)
    from scipy.stats import t

    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * spread
    return Estimate(mean, mean - half, mean + half)


# ---------------------------------------------------------------------------------------------------------------------
# In words


def number(metric: str, value: float, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %" if kind_of(metric) == "label_accuracy" else f"{value:{sign}.3g}"


def shown(metric: str, estimate: Estimate, signed: bool = False) -> str:
    """`12.3 (10.1 … 14.5)`."""
    if estimate.low is None or estimate.high is None:
        return number(metric, estimate.value, signed)
    low, high = (number(metric, edge, signed) for edge in (estimate.low, estimate.high))
    return f"{number(metric, estimate.value, signed)} ({low} … {high})"


def paper_shown(row: Row) -> str:
    """`FD 24.52, KL 1.37, FAD 1.59 (other data)`."""
    if not row.paper:
        return ""
    numbers = ", ".join(f"{PAPER[key]} {row.paper[key]:g}" for key in PAPER if key in row.paper)
    return numbers if row.comparable else f"{numbers} ({OTHER_DATA})"


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """The scores as a person reads them: text, a line for each row."""
    import pandas as pd

    metrics = shown_metrics(rows)
    several = most_seeds(rows) > 1
    lines = []
    for row in rows:
        line = {"": row.name} | {metric: _cell(row.scores.get(metric), metric, several) for metric in metrics}
        if several:
            line["seeds"] = " ".join(map(str, next(iter(row.scores.values())).by_seed)) if row.scores else ""
        line["clips"] = "" if row.clips is None else str(row.clips)
        if any(other.paper for other in rows):
            line["paper"] = paper_shown(row)
        if any(other.failures for other in rows):
            line["failed"] = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.failures.items())
        lines.append(line)
    return pd.DataFrame(lines)


def _cell(score: Score | None, metric: str, several: bool) -> str:
    if score is None:
        return "–"
    # Beside intervals over seeds, one over clips would be misread.
    total = Estimate(score.total.value) if several and len(score.by_seed) == 1 else score.total
    return shown(metric, total) + ("†" if score.unranked else "")


def differences(rows: Sequence[Row]) -> pd.DataFrame:
    """The differences of the other rows to the first one, as `table`; empty where no row has two seeds in common with it."""
    import pandas as pd

    compared = [row for row in rows if any(score.difference and score.difference.low is not None for score in row.scores.values())]
    return pd.DataFrame(
        {f"less “{rows[0].name}”": row.name}
        | {
            metric: shown(metric, score.difference, signed=True) if (score := row.scores.get(metric)) and score.difference else "–"
            for metric in shown_metrics(rows)
        }
        for row in compared
    )


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    keys = {metric for row in rows for metric in row.scores}
    return sorted(keys, key=lambda key: (list(METRICS).index(kind_of(key)), key))


def most_seeds(rows: Sequence[Row]) -> int:
    return max((len(score.by_seed) for row in rows for score in row.scores.values()), default=0)


def markdown(title: str, rows: Sequence[Row], source: str | None) -> str:
    """The tables of scores and of differences, with remarks; `source` names the paper's table."""
    parts = [f"# {title}", markdown_table(table(rows)), markdown_table(differences(rows))]
    return "\n\n".join([*filter(None, parts), "\n".join(f"- {note}" for note in notes(rows, source))]) + "\n"


def markdown_table(lines: pd.DataFrame) -> str:
    """Cells of text as a table in Markdown; nothing where there are no lines."""
    if lines.empty:
        return ""
    return lines.map(lambda cell: cell.replace("|", "\\|")).to_markdown(index=False, disable_numparse=True)


def notes(rows: Sequence[Row], source: str | None) -> list[str]:
    """Remarks on reading the table."""
    seeds = most_seeds(rows)
    first = rows[0].name if rows else ""
    remarks = ["Fréchet distance, MMD and KL: lower is better; label accuracy: higher."]
    unranked = {metric: score.unranked for row in rows for metric, score in row.scores.items() if score.unranked}
    remarks += [f"† {metric} ranks no models: {reason}." for metric, reason in unranked.items()]
    if seeds > 1:
        remarks.append(
            f"Values are means of up to {seeds} seeds with Student's 95 % interval over them. The differences to “{first}” "
            "are taken seed by seed, with such an interval. Each seed's own value and bootstrap interval are in table.csv."
        )
    elif seeds:
        remarks.append("Intervals are bootstrap 95 % intervals over clips; they do not cover other seeds.")
    counts = {row.clips for row in rows if row.clips is not None}
    if len(counts) > 1:
        remarks.append("Rows rest on different numbers of clips: Fréchet distances of fewer clips are biased upward.")
    theirs = [row for row in rows if row.paper]
    if theirs and source:
        if all(row.comparable for row in theirs):
            remarks.append(f"Paper: {source}, measured by the same protocol on the same files.")
        else:
            remarks.append(
                f"Paper: {source}. “{OTHER_DATA}”: another protocol or other files, so compare the order of rows, not the numbers."
            )
    return remarks


def csv_text(rows: Sequence[Row]) -> str:
    """Every number: a line per row, metric and seed, the totals and differences (seed `all`), and the paper's."""
    import pandas as pd

    lines = []
    for row in rows:
        for metric, score in row.scores.items():
            note = score.unranked or ""
            lines += [(row.name, "score", str(seed), metric, *_ends(estimate), note) for seed, estimate in score.by_seed.items()]
            lines.append((row.name, "score", "all", metric, *_ends(score.total), note))
            if score.difference:
                lines.append((row.name, "difference", "all", metric, *_ends(score.difference), note))
        where = "paper" if row.comparable else f"paper ({OTHER_DATA})"
        lines += [(row.name, where, "", key, float(value), None, None, "") for key, value in row.paper.items()]
        lines += [(row.name, "failed", str(seed), "", None, None, None, reason) for seed, reason in row.failures.items()]
    columns = ["row", "what", "seed", "metric", "value", "low", "high", "note"]
    return pd.DataFrame(lines, columns=columns).to_csv(index=False, lineterminator="\n")


def _ends(estimate: Estimate) -> tuple[float | None, ...]:
    return estimate.value, estimate.low, estimate.high
