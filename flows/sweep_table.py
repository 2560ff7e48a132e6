"""The rows of a sweep: one per point or group of prompts, with differences to the first row and the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flows.results_table import (
    COPIES,
    Column,
    Estimate,
    MetricResult,
    ResultRow,
    ResultsTable,
    copies_in,
    metrics_in,
    most_seeds,
    near_copies,
    over_seeds,
    result,
    score_column,
    sorted_metrics,
    with_interval,
)
from soundmill import csv_files

if TYPE_CHECKING:
    import pandas as pd

PAPER = {"fd": "FD", "kl": "KL", "fad": "FAD"}  # the paper's metrics, in the order it prints them
OTHER_DATA = "other data"
BASE = "base"  # row, and key in the metrics, of the model that a fine-tuned one started from
SHARED = ("protocol", "embedders", "counts", "files", "unranked")  # what the metrics of a model say of its base's, too


@dataclass(frozen=True)
class Outcome:
    """One row of one run: the scores as `evaluate` writes them, or why there are none."""

    row: str
    seed: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class SweepRow(ResultRow):
    """`paper` has the paper's numbers, `comparable` whether they were measured as ours were; `failures` reasons by seed."""

    clips: int | None = None
    failures: Mapping[int, str] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = False


def make_rows(
    outcomes: Sequence[Outcome], paper: Mapping[str, Mapping[str, float]], protocol: str, files: str | None
) -> list[SweepRow]:
    """The bases of fine-tuned models, the rows in the order of their first outcome, then those that only the paper has.

    The paper's numbers are comparable with ours if `protocol` and the digest `files` of its reference list equal ours.
    """
    outcomes = of_one_protocol(outcomes)
    outcomes = [*of_bases(outcomes), *outcomes]
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    rows: list[SweepRow] = []
    for name in names:
        of_row = [outcome for outcome in outcomes if outcome.row == name]
        done = {outcome.seed: outcome.metrics for outcome in of_row if outcome.failure is None}
        scores = {key: score for key in metrics_in(done.values()) if (score := result(done, key))}
        scores |= {key: score for key in copies_in(done.values()) if (score := near_copies(done, key))}
        first = rows[0].scores if rows else {}
        scores = {key: replace(score, difference=_difference(score, first.get(key))) for key, score in scores.items()}
        one = next(iter(done.values()), {})
        rows.append(
            SweepRow(
                name,
                scores,
                one.get("counts", {}).get("generated"),
                {outcome.seed: outcome.failure for outcome in of_row if outcome.failure is not None},
                paper.get(name, {}),
                files is not None and (one.get("protocol"), one.get("files", {}).get("reference")) == (protocol, files),
            )
        )
    return rows + [SweepRow(name, paper=values) for name, values in paper.items() if name not in names]


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


# ---------------------------------------------------------------------------------------------------------------------
# As a table


def results(title: str, rows: Sequence[SweepRow], source: str | None, by_cost: bool = False) -> ResultsTable:
    """The table to publish; `source` names the paper's table; `by_cost`: the rows are in order of cost, and the knee is named."""
    return ResultsTable(
        title,
        rows,
        columns(rows),
        differences(rows),
        [*notes(rows, source), *(knee(rows) if by_cost else [])],
        csv_text(rows),
        document={"paper": source},
    )


def columns(rows: Sequence[SweepRow]) -> list[Column]:
    def seeds(row: SweepRow) -> str:
        return " ".join(map(str, next(iter(row.scores.values())).by_seed)) if row.scores else ""

    return [
        Column("", lambda row: row.name),
        *(score_column(metric, metric, rows, baselines=metric.startswith(COPIES)) for metric in metrics_of(rows)),
        *([Column("seeds", seeds)] if most_seeds(rows) > 1 else []),
        Column("clips", lambda row: "" if row.clips is None else str(row.clips)),
        Column("paper", paper_numbers, optional=True),
        Column("failed", lambda row: "; ".join(f"seed {seed}: {why}" for seed, why in row.failures.items()), optional=True),
    ]


def metrics_of(rows: Sequence[SweepRow]) -> list[str]:
    return sorted_metrics({metric for row in rows for metric in row.scores})


def paper_numbers(row: SweepRow) -> str:
    """`FD 24.52, KL 1.37, FAD 1.59 (other data)`."""
    if not row.paper:
        return ""
    numbers = ", ".join(f"{PAPER[key]} {row.paper[key]:g}" for key in PAPER if key in row.paper)
    return numbers if row.comparable else f"{numbers} ({OTHER_DATA})"


def differences(rows: Sequence[SweepRow]) -> pd.DataFrame:
    """Differences of the other rows to the first one; empty if no row shares two seeds with it."""
    import pandas as pd

    def cell(score: MetricResult | None, metric: str) -> str:
        return with_interval(metric, score.difference, signed=True) if score and score.difference else "–"

    compared = [row for row in rows if any(score.difference and score.difference.has_interval for score in row.scores.values())]
    return pd.DataFrame(
        {f"less “{rows[0].name}”": row.name} | {metric: cell(row.scores.get(metric), metric) for metric in metrics_of(rows)}
        for row in compared
    )


def notes(rows: Sequence[SweepRow], source: str | None) -> list[str]:
    """How to read the table."""
    seeds = most_seeds(rows)
    first = rows[0].name if rows else ""
    remarks = ["Fréchet distance, MMD and KL: lower is better; label accuracy: higher."]
    if any(metric.startswith(COPIES) for metric in metrics_of(rows)):
        remarks.append(f"{COPIES}…: share of near-copies of training clips; real: of held-out real sounds, which are none.")
    unranked = {metric: score.unranked for row in rows for metric, score in row.scores.items() if score.unranked}
    remarks += [f"† {metric} is not ranked: {reason}." for metric, reason in unranked.items()]
    if seeds > 1:
        remarks.append(
            f"Values are means of up to {seeds} seeds with Student's 95 % interval over seeds. Differences to “{first}” are paired "
            "by seed, with the same kind of interval. table.csv has each seed's value and bootstrap interval."
        )
    elif seeds:
        remarks.append("Intervals are bootstrap 95 % intervals over clips; they do not cover other seeds.")
    if len({row.clips for row in rows if row.clips is not None}) > 1:
        remarks.append("Rows have different numbers of clips: Fréchet distances of fewer clips are biased upward.")
    from_paper = [row for row in rows if row.paper]
    if from_paper and source:
        if all(row.comparable for row in from_paper):
            remarks.append(f"Paper: {source}, measured by the same protocol on the same files.")
        else:
            remarks.append(
                f"Paper: {source}. “{OTHER_DATA}”: another protocol or other files; compare the order of rows, not numbers."
            )
    return remarks


def knee(rows: Sequence[SweepRow]) -> list[str]:
    """The cheapest row whose distance is as good as the best one's: its interval reaches down to that; rows in order of cost."""
    metric = next((name for name in metrics_of(rows) if name.startswith(("fad_", "mmd_"))), None)
    scored = [row for row in rows if metric in row.scores and not row.scores[metric].unranked]
    if len(scored) < 2:
        return []
    best = min(scored, key=lambda row: row.scores[metric].total.value)
    lowest = best.scores[metric].total.value
    first = next(row for row in scored if row is best or _reaches(row.scores[metric].total, lowest))
    last = " It is also the most costly: more may be better still." if first is scored[-1] else ""
    return [
        f"Knee: “{first.name}” is the cheapest whose {metric} cannot be told from the best, {lowest:.3g} of “{best.name}”.{last}"
    ]


def _reaches(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.low <= value


def csv_text(rows: Sequence[SweepRow]) -> str:
    """All numbers: a line per row, metric and seed; totals and differences have the seed `all`."""
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
    headings = ["row", "what", "seed", "metric", "value", "low", "high", "note"]
    return csv_files.of_frame(pd.DataFrame(lines, columns=headings))


def _ends(estimate: Estimate) -> tuple[float | None, ...]:
    return estimate.value, estimate.low, estimate.high
