"""A chart of the ladder: one column per score, one line per rung, and where the model stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soundmill.evaluation.chart import COLOURS, set_scale
from soundmill.evaluation.ladder import REAL, RUNGS, Climbed
from soundmill.evaluation.score_rows import BETTER, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from soundmill.drawing import Figure

COLUMNS = 4
# Inches: width of the names and of a column, height of a rung, space above and below the columns.
NAMES, COLUMN, LINE, ABOVE, BELOW = 1.75, 2.6, 0.27, 0.75, 0.15
HEARD, DEAF = "#1c6dd0", "#868e96"
ROOM = 0.22  # for numbers beside the dots, relative to the scale


def draw(climbs: Sequence[Climbed]) -> Figure:
    """At most COLUMNS scores side by side, the others below."""
    from soundmill.drawing import Figure

    rungs = [rung for rung in RUNGS if any(rung in one.rungs for one in climbs)]
    columns = min(COLUMNS, len(climbs))
    lines = -(-len(climbs) // columns)
    width, height = NAMES + COLUMN * columns, lines * (ABOVE + LINE * len(rungs) + BELOW)
    figure = Figure(figsize=(width, height))
    for index, one in enumerate(climbs):
        line, column = divmod(index, columns)
        left, bottom = NAMES + COLUMN * column, height - (line + 1) * (ABOVE + LINE * len(rungs) + BELOW) + BELOW
        place = left / width, bottom / height, (COLUMN - 0.3) / width, LINE * len(rungs) / height
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
    _make_room(axes, scale, left=min(values) < one.rungs[REAL])
    axes.set_ylim(len(rungs) - 0.5, -0.5)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
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


def _make_room(axes: Axes, scale: str, left: bool) -> None:
    """Widen the scale for numbers on the right of dots, and on the left if there are any."""
    low, high = axes.get_xlim()
    if scale == "logarithmic":
        axes.set_xlim(low / (high / low) ** (ROOM * left), high * (high / low) ** ROOM)
    else:
        axes.set_xlim(low - ROOM * left * (high - low), high + ROOM * (high - low))
