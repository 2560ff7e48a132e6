"""The results of a bake-off as a table in several forms, and as a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.bakeoff_rows import Difference, ModelRow, distance, falling, flat, front, leading, ranks
from flows.results_table import BASELINES, METRICS, Column, ResultsTable, score_column, table
from soundmill import csv_files

if TYPE_CHECKING:
    import pandas as pd


def results(title: str, rows: Sequence[ModelRow], differences: Sequence[Difference], notes: Sequence[str]) -> ResultsTable:
    """The table to publish, best row first."""
    rows, text = ordered(rows), verdict(rows, differences)
    return ResultsTable(
        title,
        rows,
        columns(rows),
        differences_table(differences),
        notes,
        csv_text(rows),
        text,
        latex(rows),
        {"verdict": text, "differences": [asdict(one) for one in differences]},
    )


def verdict(rows: Sequence[ModelRow], differences: Sequence[Difference]) -> str:
    """Which family is best for quality and for speed, and whether more training would likely help, in words."""
    metric = leading(rows)
    title = METRICS[metric].short_title
    scored = [row for row in rows if ranks(row, metric) and row.trainings]
    if not scored:
        return "No family has a ranked score." if any(row.scores for row in rows) else "No family has a score."
    best = min(scored, key=lambda row: distance(row, metric))
    better_than = {({one.a, one.b} - {best.name}).pop() for one in differences if one.metric == metric and one.better == best.name}
    others = [row.name for row in scored if row is not best]
    unsure = [name for name in others if name not in better_than]
    if not others:
        evidence = "the only one with a ranked score"
    elif not unsure:
        evidence = "significantly better than all others"
    else:
        evidence = f"not significantly better than {listed(unsure)}"
    words = [f"For quality choose {best.name}: {title} {distance(best, metric):.3g}, {evidence}."]
    if pareto := front(scored):
        fastest = pareto[0]
        if fastest is best:
            words.append("It is also the fastest.")
        else:
            words.append(
                f"For speed choose {fastest.name}: {fastest.seconds_per_second:.2g} s per second of sound, "
                f"{title} {distance(fastest, metric):.3g}."
            )
    if trainings := falling(best):
        lower = listed([f"{-one.slope.value:.0%} in {one.stage}" for one in trainings])
        words.append(f"More minutes would likely help {best.name}: twice as many should lower its held-out loss by {lower}.")
    elif flat(best):
        words.append(f"More minutes would hardly help {best.name}: its held-out loss no longer falls.")
    else:
        words.append(f"The held-out loss of {best.name} does not show whether more minutes would help.")
    helped = [row.name for row in scored if row is not best and falling(row)]
    if helped:
        words.append(f"They would likely help {listed(helped)} too.")
    return " ".join(words)


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def ordered(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """The best row first; those without a ranked score last."""
    metric = leading(rows)
    return sorted(rows, key=lambda row: distance(row, metric))


def columns(rows: Sequence[ModelRow]) -> list[Column]:
    metrics = [metric for metric in METRICS if any(metric in row.scores for row in rows)]
    scores = [score_column(METRICS[metric].short_title, metric, rows, decimals=0, baselines=True) for metric in metrics]

    def steps(row: ModelRow) -> str:
        return ", ".join(f"{one.stage} {one.steps:,} in {one.minutes:.3g}" for one in row.trainings) or "–"

    def or_dash(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    def memory(row: ModelRow) -> str:
        return "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f} GiB"

    return [
        Column("family", lambda row: row.name),
        Column("parameters", lambda row: or_dash(row.parameters, ",")),
        Column("minutes", lambda row: or_dash(row.minutes, ".3g")),
        *scores,
        Column("s per s of sound", lambda row: or_dash(row.seconds_per_second, ".2g")),
        Column("steps", steps),
        Column("peak memory", memory),
        Column("kind", lambda row: row.kind),
        Column("no score because", lambda row: row.why_not or "", optional=True),
    ]


def unranked_notes(rows: Sequence[ModelRow]) -> list[str]:
    """A note for each reason why scores are not ranked."""
    titles: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for metric, score in row.scores.items():
            if score.unranked:
                titles.setdefault(score.unranked, {}).setdefault(row.name, []).append(METRICS[metric].short_title)
    return [
        "† not ranked: " + "; ".join(f"{', '.join(of_row)} of {name}" for name, of_row in by_row.items()) + f": {reason}."
        for reason, by_row in titles.items()
    ]


def differences_table(differences: Sequence[Difference]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "score": METRICS[one.metric].short_title,
            "of": one.a,
            "less that of": one.b,
            "difference": f"{one.value:+.3g} ({one.low:+.3g} … {one.high:+.3g})",
            "p": f"{one.p:.2g}",
            "better": one.better,
        }
        for one in differences
    )


def latex(rows: Sequence[ModelRow]) -> str:
    """For the package booktabs; without steps and reasons."""
    narrow = [column for column in columns(rows) if column.heading not in ("steps", "no score because")]
    style = table(rows, narrow).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return (
        style.to_latex(hrules=True, column_format="l" + "r" * (len(narrow) - 2) + "l")
        .replace("…", r"\dots{}")
        .replace("–", "--")
        .replace("†", r"$^\dagger$")
    )


def csv_text(rows: Sequence[ModelRow]) -> str:
    """All numbers, a line per row."""
    import pandas as pd

    facts = ["family", "kind", "parameters", "minutes", "steps", "peak_memory_bytes", "seconds_per_second"]
    ends = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high", *(f"_{name}" for name in BASELINES))]
    lines = pd.DataFrame(map(_numbers, rows), columns=[*facts, *ends, "unranked", "why_not"], dtype=object)  # keeps whole numbers
    return csv_files.of_frame(lines)


def _numbers(row: ModelRow) -> dict[str, Any]:
    steps = sum(one.steps for one in row.trainings) or None
    unranked = " ".join(metric for metric, score in row.scores.items() if score.unranked) or None
    line = {**vars(row), "family": row.name, "minutes": row.minutes, "steps": steps, "unranked": unranked}
    for metric, score in row.scores.items():
        line |= {metric: score.total.value, f"{metric}_low": score.total.low, f"{metric}_high": score.total.high}
        line |= {f"{metric}_{name}": value for name, value in score.baselines.items()}
    return line
