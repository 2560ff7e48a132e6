"""The table of a sweep or a bake-off: its columns, notes and verdict, as text, Markdown, csv, LaTeX and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import TYPE_CHECKING, Any

from flows import results
from flows.scores import markdown_table
from soundmill import csv_files

if TYPE_CHECKING:
    import pandas as pd


def number(metric: str, value: float, signed: bool = False, decimals: int = 1) -> str:
    """Three significant digits; of a share, percent with `decimals`."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.{decimals}f} %" if results.METRICS[results.kind_of(metric)].is_share else f"{value:{sign}.3g}"


def with_interval(metric: str, estimate: results.Estimate, signed: bool = False, decimals: int = 1) -> str:
    """`12.3 (10.1 … 14.5)`."""
    text = number(metric, estimate.value, signed, decimals)
    if not estimate.has_interval:
        return text
    low, high = (number(metric, end, signed, decimals) for end in (estimate.low, estimate.high))
    return f"{text} ({low} … {high})"


def shown_total(score: results.MetricResult, several_seeds: bool) -> results.Estimate:
    """A row's value in a table; a single seed's interval over clips is left out beside intervals over seeds."""
    return results.Estimate(score.total.value) if several_seeds and len(score.by_seed) == 1 else score.total


Columns = Mapping[str, Callable[[results.Row], str]]  # the text of a row's cell, by heading; a column of empty cells is left out


def score_cell(
    metric: str, rows: Sequence[results.Row], decimals: int = 1, baselines: bool = False
) -> Callable[[results.Row], str]:
    """Cells of one metric: `10.2 (8.55 … 11.9)†, codec 6.07`; † marks a score that is not ranked."""
    several = results.most_seeds(rows) > 1

    def cell(row: results.Row) -> str:
        if (score := row.scores.get(metric)) is None:
            return "–"
        text = with_interval(metric, shown_total(score, several), decimals=decimals) + ("†" if score.unranked else "")
        lines = score.baselines.items() if baselines else ()
        return ", ".join([text, *(f"{name} {number(metric, value, decimals=decimals)}" for name, value in lines)])

    return cell


@dataclass(frozen=True)
class ResultsTable:
    """Everything that is published about the rows of a sweep or a bake-off; `document` has more keys of table.json."""

    title: str
    rows: Sequence[results.Row]
    columns: Columns
    differences: pd.DataFrame
    notes: Sequence[str]
    csv: str
    verdict: str = ""
    latex: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        return table(self.rows, self.columns)

    def markdown(self) -> str:
        tables = [markdown_table([list(table), *table.to_numpy()]) for table in (self.table(), self.differences) if len(table)]
        parts = [f"# {self.title}", self.verdict, *tables]
        return "\n\n".join([*filter(None, parts), "\n".join(f"- {note}" for note in self.notes)]) + "\n"

    def files(self) -> dict[str, str]:
        document = {
            "title": self.title,
            **self.document,
            "rows": [asdict(row) | {"why_not": row.why_not} for row in self.rows],
            "notes": list(self.notes),
        }
        files = {"table.md": self.markdown(), "table.csv": self.csv, "table.tex": self.latex}
        files["table.json"] = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        return {name: text for name, text in files.items() if text}


def table(rows: Sequence[results.Row], columns: Columns) -> pd.DataFrame:
    import pandas as pd

    cells = {heading: [cell(row) for row in rows] for heading, cell in columns.items()}
    return pd.DataFrame({heading: texts for heading, texts in cells.items() if any(texts)})


# What both kinds of tables show


def of_sweep(title: str, rows: Sequence[results.Row], source: str | None, by_cost: bool = False) -> ResultsTable:
    """The table of a sweep, with all embedders; `source` names the paper's table; `by_cost`: rows are in order of cost."""
    seeds = {"seeds": lambda row: " ".join(map(str, next(iter(row.scores.values())).by_seed)) if row.scores else ""}
    columns = {
        "": lambda row: row.name,
        **{metric: score_cell(metric, rows, baselines=metric.startswith(results.COPIES)) for metric in results.metrics_of(rows)},
        **(seeds if results.most_seeds(rows) > 1 else {}),
        "clips": lambda row: "" if row.clips is None else str(row.clips),
        "paper": paper_numbers,
        "failed": lambda row: "; ".join(f"seed {seed}: {why}" for seed, why in row.failures.items()),
    }
    remarks = [*notes(rows, source), *(knee(rows) if by_cost else [])]
    return ResultsTable(title, rows, columns, differences(rows), remarks, csv_of_seeds(rows), document={"paper": source})


def of_bakeoff(
    title: str, rows: Sequence[results.Row], found: Sequence[results.Difference], remarks: Sequence[str]
) -> ResultsTable:
    """The table of a bake-off under one embedder, best row first; `found` are the differences between rows."""
    rows = sorted(rows, key=lambda row: results.distance(row, results.leading(rows)))
    words, columns = verdict(rows, found), costs(rows)
    document = {"verdict": words, "differences": found}
    remarks, lines = [*remarks, *why_unranked(rows)], csv_of_rows(rows)
    return ResultsTable(title, rows, columns, tests(found), remarks, lines, words, latex(rows, columns), document)


def costs(rows: Sequence[results.Row]) -> Columns:
    """The columns of a bake-off: scores between what they cost."""

    def or_dash(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return {
        "family": lambda row: row.name,
        "parameters": lambda row: or_dash(row.parameters, ","),
        "minutes": lambda row: or_dash(row.minutes, ".3g"),
        **{results.heading_of(metric): score_cell(metric, rows, decimals=0, baselines=True) for metric in results.metrics_of(rows)},
        "s per s of sound": lambda row: or_dash(row.seconds_per_second, ".2g"),
        "steps": lambda row: ", ".join(f"{one.stage} {one.steps:,} in {one.minutes:.3g}" for one in row.trainings) or "–",
        "peak memory": lambda row: "–" if (used := row.peak_memory_bytes) is None else f"{used / 2**30:.2f} GiB",
        "kind": lambda row: row.kind,
        "no score because": lambda row: row.why_not or "",
    }


def paper_numbers(row: results.Row) -> str:
    """`FD 24.52, KL 1.37, FAD 1.59 (other data)`."""
    if not row.paper:
        return ""
    numbers = ", ".join(f"{results.PAPER[key]} {row.paper[key]:g}" for key in results.PAPER if key in row.paper)
    return numbers if row.compares_with is not None else f"{numbers} ({results.OTHER_DATA})"


def differences(rows: Sequence[results.Row]) -> pd.DataFrame:
    """Differences of the other rows to the first one; empty if no row shares two seeds with it."""
    import pandas as pd

    def cell(score: results.MetricResult | None, metric: str) -> str:
        return with_interval(metric, score.difference, signed=True) if score and score.difference else "–"

    compared = [row for row in rows if any(score.difference and score.difference.has_interval for score in row.scores.values())]
    return pd.DataFrame(
        {f"less “{rows[0].name}”": row.name} | {metric: cell(row.scores.get(metric), metric) for metric in results.metrics_of(rows)}
        for row in compared
    )


def csv_of_seeds(rows: Sequence[results.Row]) -> str:
    """All numbers: a line per row, metric and seed; totals and differences have the seed `all`."""
    lines = []
    for row in rows:
        for metric, score in row.scores.items():
            note = score.unranked or ""
            lines += [(row.name, "score", str(seed), metric, *astuple(estimate), note) for seed, estimate in score.by_seed.items()]
            lines.append((row.name, "score", "all", metric, *astuple(score.total), note))
            if score.difference:
                lines.append((row.name, "difference", "all", metric, *astuple(score.difference), note))
        where = "paper" if row.compares_with is not None else f"paper ({results.OTHER_DATA})"
        lines += [(row.name, where, "", key, float(value), None, None, "") for key, value in row.paper.items()]
        lines += [(row.name, "failed", str(seed), "", None, None, None, reason) for seed, reason in row.failures.items()]
    return csv_files.text(["row", "what", "seed", "metric", "value", "low", "high", "note"], lines)


def tests(differences: Sequence[results.Difference]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "score": results.METRICS[one["metric"]].short_title,
            "of": one["a"],
            "less that of": one["b"],
            "difference": f"{one['value']:+.3g} ({one['low']:+.3g} … {one['high']:+.3g})",
            "p": f"{one['p']:.2g}",
            "better": one["better"],
        }
        for one in differences
    )


def latex(rows: Sequence[results.Row], columns: Columns) -> str:
    """For the package booktabs; without steps and reasons."""
    narrow = {heading: cell for heading, cell in columns.items() if heading not in ("steps", "no score because")}
    lines = table(rows, narrow)
    style = lines.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return (
        style.to_latex(hrules=True, column_format="l" + "r" * (lines.shape[1] - 2) + "l")
        .replace("…", r"\dots{}")
        .replace("–", "--")
        .replace("†", r"$^\dagger$")
    )


def csv_of_rows(rows: Sequence[results.Row]) -> str:
    facts = ["family", "kind", "parameters", "minutes", "steps", "peak_memory_bytes", "seconds_per_second"]
    ends = [
        f"{metric}{end}"
        for metric in {**results.METRICS, **dict.fromkeys(results.metrics_of(rows))}
        for end in ("", "_low", "_high", *(f"_{name}" for name in results.BASELINES))
    ]
    headings = [*facts, *ends, "unranked", "why_not"]
    return csv_files.text(headings, ([numbers.get(heading) for heading in headings] for numbers in map(_numbers, rows)))


def _numbers(row: results.Row) -> dict[str, Any]:
    steps = sum(one.steps for one in row.trainings) or None
    unranked = " ".join(metric for metric, score in row.scores.items() if score.unranked) or None
    line = {**vars(row), "family": row.name, "minutes": row.minutes, "steps": steps, "unranked": unranked, "why_not": row.why_not}
    for metric, score in row.scores.items():
        line |= {metric: score.total.value, f"{metric}_low": score.total.low, f"{metric}_high": score.total.high}
        line |= {f"{metric}_{name}": value for name, value in score.baselines.items()}
    return line


# In words


def notes(rows: Sequence[results.Row], source: str | None) -> list[str]:
    """How to read the table."""
    seeds = results.most_seeds(rows)
    first = rows[0].name if rows else ""
    remarks = ["Fréchet distance, MMD and KL: lower is better; label accuracy: higher."]
    if any(metric.startswith(results.COPIES) for metric in results.metrics_of(rows)):
        remarks.append(f"{results.COPIES}…: share of near-copies of training clips; real: of held-out real sounds, which are none.")
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
        if all(row.compares_with is not None for row in from_paper):
            remarks.append(f"Paper: {source}, measured by the same protocol on the same files.")
        else:
            remarks.append(
                f"Paper: {source}. “{results.OTHER_DATA}”: another protocol or other files; compare the order of rows, not numbers."
            )
    return remarks


def knee(rows: Sequence[results.Row]) -> list[str]:
    """The cheapest row whose distance is as good as the best one's: its interval reaches down to that; rows in order of cost."""
    metric = next((name for name in results.metrics_of(rows) if name.startswith(("fad_", "mmd_"))), None)
    scored = [row for row in rows if results.ranks(row, metric)]
    if len(scored) < 2:
        return []
    best = min(scored, key=lambda row: results.distance(row, metric))
    lowest = results.distance(best, metric)
    lows = {row.name: row.scores[metric].total.low for row in scored}
    first = next(row for row in scored if row is best or (lows[row.name] is not None and lows[row.name] <= lowest))
    last = " It is also the most costly: more may be better still." if first is scored[-1] else ""
    return [
        f"Knee: “{first.name}” is the cheapest whose {metric} cannot be told from the best, {lowest:.3g} of “{best.name}”.{last}"
    ]


def verdict(rows: Sequence[results.Row], differences: Sequence[results.Difference]) -> str:
    """Which family is best for quality and for speed, and whether more training would likely help, in words."""
    metric = results.leading(rows)
    title = results.METRICS[metric].short_title
    scored = [row for row in rows if results.ranks(row, metric) and row.trainings]
    if not scored:
        return "No family has a ranked score." if any(row.scores for row in rows) else "No family has a score."
    best = min(scored, key=lambda row: results.distance(row, metric))
    won = [one for one in differences if (one["metric"], one["better"]) == (metric, best.name)]
    better_than = {({one["a"], one["b"]} - {best.name}).pop() for one in won}
    others = [row.name for row in scored if row is not best]
    unsure = [name for name in others if name not in better_than]
    if not others:
        evidence = "the only one with a ranked score"
    elif not differences:
        evidence = f"not tested against {in_words(others)}"
    elif not unsure:
        evidence = "significantly better than all others"
    else:
        evidence = f"not significantly better than {in_words(unsure)}"
    words = [f"For quality choose {best.name}: {title} {results.distance(best, metric):.3g}, {evidence}."]
    if pareto := results.front(scored):
        fastest = pareto[0]
        if fastest is best:
            words.append("It is also the fastest.")
        else:
            words.append(
                f"For speed choose {fastest.name}: {fastest.seconds_per_second:.2g} s per second of sound, "
                f"{title} {results.distance(fastest, metric):.3g}."
            )
    if trainings := results.falling(best):
        lower = in_words([f"{-one.slope.value:.0%} in {one.stage}" for one in trainings])
        words.append(f"More minutes would likely help {best.name}: twice as many should lower its held-out loss by {lower}.")
    elif all(one.slope and one.slope.low > -results.MIN_IMPROVEMENT for one in best.trainings):
        words.append(f"More minutes would hardly help {best.name}: its held-out loss no longer falls.")
    else:
        words.append(f"The held-out loss of {best.name} does not show whether more minutes would help.")
    helped = [row.name for row in scored if row is not best and results.falling(row)]
    if helped:
        words.append(f"They would likely help {in_words(helped)} too.")
    return " ".join(words)


def in_words(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def why_unranked(rows: Sequence[results.Row]) -> list[str]:
    """A note for each reason why scores are not ranked."""
    titles: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for metric, score in row.scores.items():
            if score.unranked:
                titles.setdefault(score.unranked, {}).setdefault(row.name, []).append(results.heading_of(metric))
    return [
        "† not ranked: " + "; ".join(f"{', '.join(of_row)} of {name}" for name, of_row in by_row.items()) + f": {reason}."
        for reason, by_row in titles.items()
    ]
