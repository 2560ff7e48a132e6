"""What a sweep found: rows with their intervals and differences to the first row, the paper's numbers beside them, one figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {"fad": "Fréchet distance", "kl": "KL divergence", "label_accuracy": "Label accuracy"}
PAPER = {"fd": "FD", "kl": "KL", "fad": "FAD"}  # measures of the paper, in the order it prints them
OTHER_DATA = "other data"
LONGEST_NAME, LONGEST_HEADING = 48, 100  # letters on the figure: rows may be named by labels
OURS, SEED, THEIRS = "#1c6dd0", "#8fb8ea", "#e8590c"


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
    `difference` is to the first row, over the seeds that both have.
    """

    by_seed: dict[int, Estimate]
    total: Estimate
    difference: Estimate | None = None


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
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    rows: list[Row] = []
    for name in names:
        mine = [outcome for outcome in outcomes if outcome.row == name]
        done = {outcome.seed: outcome.metrics for outcome in mine if outcome.failure is None}
        first = rows[0].scores if rows else {}
        scores = {}
        for metric in metrics_in(done.values()):
            by_seed = {seed: _estimate(metrics, metric) for seed, metrics in done.items() if metric in metrics}
            scores[metric] = Score(by_seed, _total(by_seed), _difference(by_seed, first[metric]) if metric in first else None)
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


def metrics_in(scored: Any) -> list[str]:
    """Keys of all metrics that have a ruler, such as `fad_yamnet`: by metric, then embedder."""
    found = {key for metrics in scored for key in metrics.get("ruler", {}) if key in metrics}
    return sorted(found, key=lambda key: (list(METRICS).index(kind_of(key)), key))


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


def records(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table as a person reads it: a dictionary of text for each row, all with the same keys."""
    metrics = _metrics(rows)
    several = _most_seeds(rows) > 1
    table = []
    for row in rows:
        record = {"": row.name}
        for metric in metrics:
            score = row.scores.get(metric)
            # Beside intervals over seeds, one over clips would be misread.
            alone = score and several and len(score.by_seed) == 1
            record[metric] = "–" if not score else number(metric, score.total.value) if alone else shown(metric, score.total)
        if several:
            record["seeds"] = " ".join(map(str, next(iter(row.scores.values())).by_seed)) if row.scores else ""
        record["clips"] = "" if row.clips is None else str(row.clips)
        if any(other.paper for other in rows):
            record["paper"] = paper_shown(row)
        if any(other.failures for other in rows):
            record["failed"] = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.failures.items())
        table.append(record)
    return table


def differences(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How far the other rows are from the first one, as `records`; empty where no row has two seeds in common with it."""
    told = [row for row in rows if any(score.difference and score.difference.low is not None for score in row.scores.values())]
    return [
        {f"less “{rows[0].name}”": row.name}
        | {
            metric: shown(metric, row.scores[metric].difference, signed=True) if metric in row.scores else "–"
            for metric in _metrics(rows)
        }
        for row in told
    ]


def _metrics(rows: Sequence[Row]) -> list[str]:
    found = {metric for row in rows for metric in row.scores}
    return sorted(found, key=lambda key: (list(METRICS).index(kind_of(key)), key))


def _most_seeds(rows: Sequence[Row]) -> int:
    return max((len(score.by_seed) for row in rows for score in row.scores.values()), default=0)


def markdown(title: str, rows: Sequence[Row], source: str | None) -> str:
    """The tables of scores and of differences, with a word on how to read them; `source` names the paper's table."""
    parts = [f"# {title}", _markdown_table(records(rows)), _markdown_table(differences(rows))]
    return "\n\n".join([*filter(None, parts), "\n".join(f"- {note}" for note in notes(rows, source))]) + "\n"


def _markdown_table(table: Sequence[Mapping[str, str]]) -> str:
    """Cells padded, so that it can be read as it stands, too."""
    if not table:
        return ""
    lines = [list(table[0]), *([cell.replace("|", "\\|") for cell in record.values()] for record in table)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def notes(rows: Sequence[Row], source: str | None) -> list[str]:
    """How the table must be read."""
    seeds = _most_seeds(rows)
    first = rows[0].name if rows else ""
    said = ["Fréchet distance and KL: lower is better; label accuracy: higher."]
    if seeds > 1:
        said.append(
            f"Values are means of up to {seeds} seeds with Student's 95 % interval over them. The differences to “{first}” "
            "are taken seed by seed, with such an interval. Each seed's own value and bootstrap interval are in table.csv."
        )
    elif seeds:
        said.append("Intervals are bootstrap 95 % intervals over clips; they do not tell what another seed would have given.")
    counts = {row.clips for row in rows if row.clips is not None}
    if len(counts) > 1:
        said.append("Rows rest on different numbers of clips: Fréchet distances of fewer clips are biased upward.")
    theirs = [row for row in rows if row.paper]
    if theirs and source:
        if all(row.comparable for row in theirs):
            said.append(f"Paper: {source}, measured by the same protocol on the same files.")
        else:
            said.append(
                f"Paper: {source}. “{OTHER_DATA}”: another protocol or other files, so compare the order of rows, not the numbers."
            )
    return said


def csv_text(rows: Sequence[Row]) -> str:
    """Every number: a line per row, metric and seed, the totals and differences (seed `all`), and the paper's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "what", "seed", "metric", "value", "low", "high"])
    for row in rows:
        for metric, score in row.scores.items():
            for seed, estimate in score.by_seed.items():
                writer.writerow([row.name, "score", seed, metric, *_cells(estimate)])
            writer.writerow([row.name, "score", "all", metric, *_cells(score.total)])
            if score.difference:
                writer.writerow([row.name, "difference", "all", metric, *_cells(score.difference)])
        for key, value in row.paper.items():
            writer.writerow([row.name, "paper" if row.comparable else f"paper ({OTHER_DATA})", "", key, value, "", ""])
        for seed, reason in row.failures.items():
            writer.writerow([row.name, "failed", seed, reason, "", "", ""])
    return text.getvalue()


def _cells(estimate: Estimate) -> list[Any]:
    return ["" if cell is None else repr(float(cell)) for cell in (estimate.value, estimate.low, estimate.high)]


# ---------------------------------------------------------------------------------------------------------------------
# As a picture


def draw(title: str, rows: Sequence[Row]) -> Figure:
    """A panel for each metric, a column for each kind of it; the paper's numbers on a scale of their own where data are other."""
    from soundmill.drawing import Figure, shorten

    metrics = _metrics(rows)
    kinds = list(dict.fromkeys(kind_of(metric) for metric in metrics))
    embedders = sorted({embedder_of(metric) for metric in metrics})
    across, down = max(len(kinds), 1), max(len(embedders), 1)
    figure = Figure(figsize=(2.0 + 3.6 * across, 1.1 + (1.3 + 0.42 * len(rows)) * down), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(shorten(title, LONGEST_HEADING), fontsize=13, fontweight="bold", x=0.01, ha="left")
    panels = figure.subplots(down, across, squeeze=False)
    for line, embedder in zip(panels, embedders or [""], strict=True):
        for axes, kind in zip(line, kinds or [""], strict=True):
            metric = f"{kind}_{embedder}"
            if metric in metrics:
                _draw_panel(axes, rows, metric, names=axes is line[0])
            else:
                axes.set_axis_off()
    _legend(figure, rows)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], metric: str, names: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    from soundmill.drawing import shorten

    kind = kind_of(metric)
    factor = 100 if kind == "label_accuracy" else 1
    several = _most_seeds(rows) > 1
    for index, row in enumerate(rows):
        score = row.scores.get(metric)
        if score:
            _draw_score(axes, index, score, factor, several)
        elif row.failures:
            axes.text(
                0.5, index, "failed", transform=axes.get_yaxis_transform(), ha="center", va="center", color="#868e96", fontsize=9
            )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    shown = [shorten(row.name, LONGEST_NAME) for row in rows]
    axes.set_yticks(range(len(rows)), shown if names else [""] * len(rows), fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    better = "→ better" if kind == "label_accuracy" else "← better"
    unit = ", %" if kind == "label_accuracy" else ""
    axes.set_xlabel(f"{METRICS[kind]} · {embedder_of(metric)}{unit}   {better}", fontsize=9.5, color=OURS)
    theirs = [(index, row) for index, row in enumerate(rows) if kind in row.paper]
    same = [(index, row.paper[kind]) for index, row in theirs if row.comparable]
    other = [(index, row.paper[kind]) for index, row in theirs if not row.comparable]
    _draw_paper(axes, same)
    if other:
        above = axes.twiny()
        _draw_paper(above, other)
        above.margins(x=0.12)
        above.xaxis.set_major_locator(MaxNLocator(5))
        above.set_xlabel(f"{PAPER[kind]} in the paper ({OTHER_DATA})", fontsize=9.5, color=THEIRS)
        above.tick_params(axis="x", labelsize=8.5, colors=THEIRS)
        for side in ("left", "right", "bottom"):
            above.spines[side].set_visible(False)
        above.spines["top"].set_color(THEIRS)


def _draw_score(axes: Axes, index: int, score: Score, factor: float, several: bool) -> None:
    if several:
        step = min(0.12, 0.5 / len(score.by_seed))
        for place, estimate in enumerate(score.by_seed.values()):
            y = index - 0.12 - step * (len(score.by_seed) - 1 - place)
            _draw_estimate(axes, y, estimate, factor, color=SEED, marker="o", size=3.5, width=1.2)
    total = Estimate(score.total.value) if several and len(score.by_seed) == 1 else score.total
    _draw_estimate(axes, index + (0.06 if several else 0), total, factor, color=OURS, marker="D", size=6.5, width=3)


def _draw_estimate(
    axes: Axes, y: float, estimate: Estimate, factor: float, color: str, marker: str, size: float, width: float
) -> None:
    if estimate.low is not None and estimate.high is not None:
        ends = [factor * estimate.low, factor * estimate.high]
        axes.plot(ends, [y, y], color=color, linewidth=width, alpha=0.55, solid_capstyle="butt", zorder=2)
    axes.plot([factor * estimate.value], [y], marker=marker, markersize=size, color=color, markeredgecolor="white", zorder=3)


def _draw_paper(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    for index, value in points:
        axes.plot([value], [index + 0.26], marker="s", markersize=6, color=THEIRS, markerfacecolor="none", zorder=3)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    seeds = _most_seeds(rows)
    meaning = f"mean of {seeds} seeds, 95 % over seeds" if seeds > 1 else "score, bootstrap 95 % over clips"
    entries = [Line2D([], [], color=OURS, marker="D", linewidth=3, markeredgecolor="white", label=meaning)]
    if seeds > 1:
        entries.append(Line2D([], [], color=SEED, marker="o", markersize=4, label="each seed, bootstrap 95 % over clips"))
    theirs = {row.comparable for row in rows if row.paper}
    if theirs:
        text = f"paper ({OTHER_DATA}: scale above)" if False in theirs else "paper, same protocol and files"
        square = {"marker": "s", "linestyle": "none", "markerfacecolor": "none"}
        entries.append(Line2D([], [], color=THEIRS, label=text, **square))
    figure.legend(handles=entries, loc="outside lower left", ncols=len(entries), fontsize=9, frameon=False)
