"""The charts of a result: each score with its interval among its baselines, and where the model stands on the ladder."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from soundmill.evaluation.ladder import REAL, RUNGS, Climbed, climbed
from soundmill.evaluation.score_rows import BASELINE_COLOURS, BETTER, SHARES, TITLES, ScoreRow, number, rows_of
from soundmill.page.sounds import attempt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from soundmill.drawing import Figure


COLOURS = {"generated": "#d6336c", **BASELINE_COLOURS}
WIDEST_RATIO = 200.0
ONE_COLUMN = 4  # scores; more are drawn in two columns

# Of the chart of scores, in inches: the figure's width by columns, height of a score, space above (title) and beside a scale, gap
# between labels.
WIDTHS, LINE, ABOVE, BESIDE, GAP = {1: 10.0, 2: 11.5}, 1.6, 0.45, 0.4, 0.08
MOST_COLUMNS = 4  # of the chart of the ladder
# In inches: width of the names and of a column, height of a rung, space above and below the columns.
NAMES, COLUMN, RUNG, HEAD, BELOW = 1.75, 2.6, 0.27, 0.75, 0.15
HEARD, DEAF = "#1c6dd0", "#868e96"
ROOM = 0.22  # for numbers beside the dots, relative to the scale


def draw(metrics: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """PNGs by file name, the same charts as SVG by name (`scores`, and `ladder` if there is one), and what could not be drawn."""
    charts: dict[str, Callable[[], Figure]] = {"scores": partial(draw_scores, metrics)}
    if climbs := climbed(metrics):
        charts["ladder"] = partial(draw_ladder, climbs)
    pictures, svgs, faults = {}, {}, []
    for name, drawing in charts.items():
        if drawn := attempt("no chart", partial(_draw, drawing, name), faults):
            pictures[f"{name}.png"], svgs[name] = drawn
    return pictures, svgs, faults


def _draw(drawing: Callable[[], Figure], salt: str) -> tuple[bytes, str]:
    from soundmill.drawing import svg

    figure, png = drawing(), io.BytesIO()
    text = svg(figure, salt)
    figure.savefig(png, dpi=150, facecolor="white", metadata={"Software": None})
    return png.getvalue(), text


def draw_scores(metrics: Mapping[str, Any]) -> Figure:
    from soundmill.drawing import Figure

    rows = [row for row in rows_of(metrics) if row.value is not None]
    columns = 1 if len(rows) <= ONE_COLUMN else 2
    lines = max(1, -(-len(rows) // columns))
    width, height = WIDTHS[columns], LINE * lines
    figure = Figure(figsize=(width, height))
    scale = (width - 2 * BESIDE * columns) / columns
    places = figure.subplots(lines, columns, squeeze=False).T.ravel()  # down the columns
    figure.subplots_adjust(
        left=BESIDE / width,
        right=1 - BESIDE / width,
        bottom=0,
        top=1 - ABOVE / height,
        wspace=2 * BESIDE / scale,
        hspace=ABOVE / (LINE - ABOVE),
    )
    for axes in places[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(places, rows, strict=False):
        _draw_row(axes, row, scale)
    return figure


def _draw_row(axes: Axes, row: ScoreRow, width: float) -> None:
    """One scale `width` inches wide: baselines below the line, the generated sounds above it."""
    values = [*row.baselines.values(), row.value, *(edge for edge in (row.low, row.high) if edge is not None)]
    scale = set_scale(axes, row.metric, values)
    axes.set_ylim(-1.2, 0.7)
    _bare(axes)
    axes.axhline(0, color="#ced4da", linewidth=3, solid_capstyle="round", zorder=1)

    above = partial(axes.annotate, xy=(0, 1), xycoords="axes fraction", textcoords="offset points", annotation_clip=False)
    embedder, _, protocol = row.embedder.partition(" ")  # "(label)" of another protocol
    above(f"{TITLES[row.metric]} · {embedder}", xytext=(0, 14), fontsize=11, fontweight="bold", color="#343a40")
    better = "† ranks no models" if row.unranked else "more is better →" if BETTER[row.metric] == "higher" else "← less is better"
    above(
        f"{better}, {scale} scale {protocol}".strip(), xytext=(0, 1), fontsize=8.5, color="#c92a2a" if row.unranked else "#868e96"
    )

    ordered = sorted(row.baselines.items(), key=lambda item: item[1])
    below = partial(axes.text, 0, -0.48, ha="center", va="top", fontsize=8.5)
    texts = [below(f"{TITLES[name]}\n{number(row.metric, value)}", color=COLOURS[name]) for name, value in ordered]
    for text, (name, value), x in zip(texts, ordered, _beside(texts, [value for _, value in ordered], width), strict=True):
        text.set_x(x)
        axes.plot([value, value, x], [0, -0.2, -0.44], color=COLOURS[name], linewidth=1.0, alpha=0.6, zorder=1, clip_on=False)
        axes.plot([value], [0], marker="o", markersize=8, color=COLOURS[name], zorder=2, clip_on=False)
    if row.low is not None and row.high is not None:
        low = max(row.low, axes.get_xlim()[0])
        axes.plot([low, row.high], [0, 0], color=COLOURS["generated"], linewidth=6, alpha=0.35, solid_capstyle="butt", zorder=3)
    axes.plot(
        [row.value], [0], marker="D", markersize=10, color=COLOURS["generated"], markeredgecolor="white", zorder=4, clip_on=False
    )
    text = axes.text(
        row.value, 0.45, f"{row.role} {number(row.metric, row.value)}", ha="center", va="center", fontsize=10, fontweight="bold",
        color=COLOURS["generated"],
    )  # fmt: skip
    text.set_x(_beside([text], [row.value], width)[0])


def _bare(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.set_yticks([])


def _beside(texts: Sequence[Text], values: Sequence[float], width: float) -> list[float]:
    """Places of texts on a scale `width` inches wide: without overlap, by least squares close to their ascending values."""
    from scipy.optimize import isotonic_regression

    if not texts:
        return []
    axes = texts[0].axes
    share = [text.get_window_extent().width / axes.figure.dpi / width for text in texts]
    gap = GAP / width
    offsets = np.cumsum([0, *((a + b) / 2 + gap for a, b in pairwise(share))])
    to_share = axes.transData + axes.transAxes.inverted()
    preferred = to_share.transform([(value, 0) for value in values])[:, 0] - offsets
    placed = np.clip(isotonic_regression(preferred).x, share[0] / 2, 1 - share[-1] / 2 - offsets[-1]) + offsets
    return to_share.inverted().transform([(x, 0) for x in placed])[:, 0].tolist()


def set_scale(axes: Axes, metric: str, values: Sequence[float]) -> str:
    """Set the horizontal scale and its limits for these values; returns its name.

    Logarithmic for distances, square-root if one is almost zero, linear for shares and negative values.
    """
    low, high = min(values), max(values)
    if metric in SHARES:
        axes.set_xlim(-0.02, 1.02)
    elif metric in ("density", "clap_score", "is") or low < 0:
        room = 0.05 * (high - low) or 0.5
        axes.set_xlim(low - room, high + room)
    elif low > 0 and high / low <= WIDEST_RATIO:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * 1.2)
        return "logarithmic"
    else:
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(0, max(high, 1e-6) * 1.1)
        return "square-root"
    return "linear"


def draw_ladder(climbs: Sequence[Climbed]) -> Figure:
    """At most MOST_COLUMNS scores side by side, the others below."""
    from soundmill.drawing import Figure

    rungs = [rung for rung in RUNGS if any(rung in one.rungs for one in climbs)]
    columns = min(MOST_COLUMNS, len(climbs))
    lines = -(-len(climbs) // columns)
    width, height = NAMES + COLUMN * columns, lines * (HEAD + RUNG * len(rungs) + BELOW)
    figure = Figure(figsize=(width, height))
    for index, one in enumerate(climbs):
        line, column = divmod(index, columns)
        left, bottom = NAMES + COLUMN * column, height - (line + 1) * (HEAD + RUNG * len(rungs) + BELOW) + BELOW
        place = left / width, bottom / height, (COLUMN - 0.3) / width, RUNG * len(rungs) / height
        axes = figure.add_axes(place)
        _draw_column(axes, one, rungs)
        if column == 0:
            for position, rung in enumerate(rungs):
                axes.annotate(
                    RUNGS[rung], (0, position), xycoords=("axes fraction", "data"), xytext=(-10, 0), textcoords="offset points",
                    ha="right", va="center", fontsize=9, color=COLOURS["real"] if rung == REAL else "#343a40",
                )  # fmt: skip
    return figure


def _draw_column(axes: Axes, one: Climbed, rungs: Sequence[str]) -> None:
    """Dots of the rungs from top to bottom; hollow if the metric is deaf to them."""
    values = [*one.rungs.values(), one.value]
    scale = set_scale(axes, one.metric, values)
    # Widened for numbers on the right of dots, and on the left if there are any.
    (low, high), left = axes.get_xlim(), ROOM * (min(values) < one.rungs[REAL])
    if scale == "logarithmic":
        axes.set_xlim(low / (high / low) ** left, high * (high / low) ** ROOM)
    else:
        axes.set_xlim(low - left * (high - low), high + ROOM * (high - low))
    axes.set_ylim(len(rungs) - 0.5, -0.5)
    _bare(axes)
    for position in range(len(rungs)):
        axes.axhline(position, color="#e9ecef", linewidth=1.0, zorder=0)
    axes.axvline(one.rungs[REAL], color=COLOURS["real"], linewidth=1.2, zorder=1)
    axes.axvline(one.value, color=COLOURS["generated"], linewidth=2.0, zorder=1)
    for position, rung in enumerate(rungs):
        if rung not in one.rungs:
            axes.annotate("–", (0.5, position), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=DEAF)
            continue
        value, heard = one.rungs[rung], rung == REAL or one.heard(rung)
        colour = COLOURS["real"] if rung == REAL else HEARD if heard else DEAF
        axes.plot([one.rungs[REAL], value], [position] * 2, color=colour, linewidth=1.6, alpha=0.5, zorder=2)
        axes.plot(
            [value], [position], marker="o", markersize=7, color=colour, markerfacecolor=colour if heard else "white", zorder=3
        )
        side = -1 if value < one.rungs[REAL] else 1  # away from the line of the real sounds
        axes.annotate(
            number(one.metric, value), (value, position), xytext=(7 * side, 0), textcoords="offset points", va="center",
            ha="left" if side == 1 else "right", fontsize=8.5, color=colour, zorder=4,
        ).set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})  # fmt: skip
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(one.title, (0, 1), xytext=(0, 32), fontsize=11, fontweight="bold", color="#343a40", **above)
    better = "more is better →" if BETTER[one.metric] == "higher" else "← less is better"
    axes.annotate(f"{better}, {scale} scale", (0, 1), xytext=(0, 19), fontsize=8, color=DEAF, **above)
    label = axes.annotate(
        f"generated {number(one.metric, one.value)}", (one.value, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
        textcoords="offset points", ha="center", fontsize=9, fontweight="bold", color=COLOURS["generated"], annotation_clip=False,
    )  # fmt: skip
    half = label.get_window_extent().width / 2
    at = axes.transData.transform((one.value, 0))[0] - axes.bbox.x0
    label.xyann = (max(0, half - at) * 72 / axes.figure.dpi, 4)  # not into the column to the left
