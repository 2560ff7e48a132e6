"""The scores of a result and of its single sounds as tables: CSV with full numbers, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from soundmill import csv_files
from soundmill.evaluation.ladder import RUNGS, Climbed, climbed
from soundmill.evaluation.library import rounded
from soundmill.evaluation.score_rows import TITLES, ScoreRow, baselines_of, interval, number, rows_of, shown

if TYPE_CHECKING:
    import pandas as pd

SYMBOLS = str.maketrans({"…": "--", "–": "--", "→": r"$\to$", "∞": r"$\infty$", "‖": r"$\|$", "−": "$-$", "†": r"$^\dagger$"})
DAGGER = "† ranks no models"


def csv(metrics: Mapping[str, Any]) -> str:
    """One row per score, one column per baseline."""
    import pandas as pd

    rows = rows_of(metrics)
    names = baselines_of(rows)
    columns = ["score", "metric", "embedder", "value", "low", "high", *names, "ranks", "note", "protocol", "generated", "reference"]
    counts, others = metrics["counts"], metrics.get("protocols", {})
    labels = {row.key: others.get(row.key.partition("@")[2], metrics)["protocol"] for row in rows}
    lines = [
        [
            *(row.key, row.metric, row.embedder, row.value, row.low, row.high),
            *(row.baselines.get(name) for name in names),
            *(row.value is not None and not row.unranked, row.note, labels[row.key], counts["generated"], counts["reference"]),
        ]
        for row in rows
    ]
    return csv_files.of_frame(pd.DataFrame(lines, columns=columns))


def sounds(of: Mapping[str, Mapping[str, float]]) -> str:
    """CSV with one row per sound (`id`) and one column per score that single sounds have."""
    import pandas as pd

    values = {key: {clip_id: rounded(value) for clip_id, value in by_id.items()} for key, by_id in sorted(of.items())}
    table = pd.DataFrame({key: pd.Series(by_id, dtype=float) for key, by_id in values.items()})
    return csv_files.of_frame(table.sort_index(), "id")


def markdown(metrics: Mapping[str, Any]) -> str:
    """Markdown table; – is a missing value, † a score that ranks no models, for the reason in `note`."""
    rows = rows_of(metrics)
    table = texts(rows, named="key")
    if any(row.note for row in rows):
        table["note"] = [row.note.replace("|", "\\|") for row in rows]
    return _markdown(table)


def latex(metrics: Mapping[str, Any]) -> str:
    """LaTeX table for a paper; needs the package booktabs."""
    rows = rows_of(metrics)
    table, counts = texts(rows, named="title"), metrics["counts"]
    width, text = len(table.columns), _latex(table, named=2)
    foot = f"protocol {metrics['protocol']}, $n={counts['generated']}$ against {counts['reference']}".replace("_", r"\_")
    feet = [foot, *([DAGGER] if any(row.unranked for row in rows) else [])]
    lines = "".join(rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {line}}} \\" + "\n" for line in feet)
    return text.replace(r"\end{tabular}", lines + r"\end{tabular}").translate(SYMBOLS)


def ladder(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Rungs by scores, with formatted values; (…) is a rung that the metric is deaf to, – one that was not measured."""
    import pandas as pd

    climbs = climbed(metrics)
    rungs = [rung for rung in RUNGS if any(rung in one.rungs for one in climbs)]

    def cell(one: Climbed, rung: str) -> str:
        if rung not in one.rungs:
            return "–"
        text = number(one.metric, one.rungs[rung])
        return f"({text})" if rung in one.deaf_to else text

    columns = {one.title: [*(cell(one, rung) for rung in rungs), number(one.metric, one.value)] for one in climbs}
    return pd.DataFrame({"sounds": [*(RUNGS[rung] for rung in rungs), "generated"], **columns})


def ladder_markdown(metrics: Mapping[str, Any]) -> str:
    return _markdown(ladder(metrics))


def latex_files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The tables of scores and, if there is one, of the ladder as LaTeX, by file name."""
    return {"scores.tex": latex(metrics), **({"ladder.tex": ladder_latex(metrics)} if climbed(metrics) else {})}


def ladder_latex(metrics: Mapping[str, Any]) -> str:
    """LaTeX table; needs the package booktabs."""
    return _latex(ladder(metrics), named=1).translate(SYMBOLS)


def _markdown(table: pd.DataFrame) -> str:
    """The first column and notes to the left, numbers to the right."""
    align = ["left", *("left" if name == "note" else "right" for name in table.columns[1:])]
    return table.to_markdown(index=False, disable_numparse=True, colalign=align) + "\n"


def _latex(table: pd.DataFrame, named: int) -> str:
    """The first `named` columns to the left, numbers to the right."""
    text = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return text.to_latex(hrules=True, column_format="l" * named + "r" * (len(table.columns) - named))


def texts(rows: list[ScoreRow], named: str) -> pd.DataFrame:
    """The table with formatted values; rows are named by their `key`, or by `title` and embedder."""
    import pandas as pd

    columns = {"score": [row.key for row in rows]}
    if named == "title":
        columns = {"metric": [TITLES[row.metric] for row in rows], "embedder": [_embedder(row) for row in rows]}
    columns |= {"value": [shown(row) for row in rows], "95 %": [interval(row) for row in rows]}
    for name in baselines_of(rows):
        columns[TITLES[name]] = [number(row.metric, row.baselines[name]) if name in row.baselines else "–" for row in rows]
    return pd.DataFrame(columns)


def _embedder(row: ScoreRow) -> str:
    return row.embedder if row.role == "generated" else f"{row.embedder}, {row.role}"
