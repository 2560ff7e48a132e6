"""The results of a sweep as a picture: a panel for each metric, with intervals, failures and the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.sweep_table import (
    METRICS,
    OTHER_DATA,
    PAPER,
    Estimate,
    Row,
    Score,
    embedder_of,
    kind_of,
    most_seeds,
    shown_metrics,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME, LONGEST_HEADING = 48, 100  # letters on the figure: rows may be named by labels
OURS, SEED, THEIRS, UNRANKED = "#1c6dd0", "#8fb8ea", "#e8590c", "#868e96"


def draw(title: str, rows: Sequence[Row]) -> Figure:
    """A panel for each metric, a column for each kind of it; the paper's numbers on a scale of their own where data are other."""
    from soundmill.drawing import Figure, shorten

    metrics = shown_metrics(rows)
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
    several = most_seeds(rows) > 1
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
    unranked = any(score.unranked for row in rows if (score := row.scores.get(metric)))
    better = "ranks no models" if unranked else "→ better" if kind == "label_accuracy" else "← better"
    unit = ", %" if kind == "label_accuracy" else ""
    axes.set_xlabel(f"{METRICS[kind]} · {embedder_of(metric)}{unit}   {better}", fontsize=9.5, color=UNRANKED if unranked else OURS)
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

    seeds = most_seeds(rows)
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
