"""The scores as a chart: each a point with its interval, among its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soundmill.evaluation.score_rows import BETTER, SHARES, TITLES, Row, number, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "generated": "#d6336c",
    "real": "#2b8a3e",
    "floor": "#2b8a3e",
    "codec_floor": "#5c940d",
    "codec": "#1c6dd0",
    "silence": "#868e96",
    "noise": "#b45309",
    "chance": "#868e96",
}
WIDEST_RATIO = 200.0
MARGIN = 0.4  # inches beside a scale
ONE_COLUMN = 4  # scores under each other; more stand in two columns


def draw(metrics: Mapping[str, Any]) -> Figure:
    """Every score as a point with its interval on a horizontal scale, among its baselines."""
    from soundmill.drawing import Figure

    rows = [row for row in rows_of(metrics) if row.value is not None]
    columns = 1 if len(rows) <= ONE_COLUMN else 2
    lines = max(1, -(-len(rows) // columns))
    figure = Figure(figsize=(10 if columns == 1 else 11.5, 1.4 * lines), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    places = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).T.ravel()  # down the columns
    for axes in places[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(places, rows, strict=False):
        _draw_row(axes, row, figure.get_size_inches()[0] / columns)
    return figure


def _draw_row(axes: Axes, row: Row, width: float) -> None:
    """One scale: the baselines below the line, the generated sounds above it."""
    values = [*row.baselines.values(), row.value, *(edge for edge in (row.low, row.high) if edge is not None)]
    scale = _scale_of(row.metric, values)
    if scale == "logarithmic":
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.2, max(values) * 1.2)
    elif scale == "square-root":
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(0, max(*values, 1e-6) * 1.1)
    elif row.metric in SHARES:
        axes.set_xlim(-0.02, 1.02)
    else:
        room = 0.05 * (max(values) - min(values)) or 0.5
        axes.set_xlim(min(values) - room, max(values) + room)
    axes.set_ylim(-1.0, 1.0)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.axhline(0, color="#ced4da", linewidth=3, solid_capstyle="round", zorder=1)

    place = axes.transData.transform
    axes.set_title(f"{TITLES[row.metric]} · {row.judge}", loc="left", fontsize=11, fontweight="bold", color="#343a40")
    better = "ranks no models" if row.unranked else "more is better →" if BETTER[row.metric] == "higher" else "← less is better"
    axes.set_title(f"{better}, {scale} scale", loc="right", fontsize=8.5, color="#c92a2a" if row.unranked else "#868e96")
    last_end = [-np.inf, -np.inf, -np.inf]
    width_of_letter = 7.3 / (width - MARGIN) / 96  # share of the axis, at this font size
    for name, value in sorted(row.baselines.items(), key=lambda item: item[1]):
        x = axes.transAxes.inverted().transform(place((value, 0)))[0]
        text = f"{TITLES[name]} {number(row, value)}"
        half = len(text) * width_of_letter / 2 * 1.1
        level = next((index for index, end in enumerate(last_end) if x - half > end), 0)
        last_end[level] = x + half
        y = -0.34 - 0.3 * level
        axes.plot([value, value], [0, y + 0.1], color=COLOURS[name], linewidth=1.0, alpha=0.6, zorder=1)
        axes.plot([value], [0], marker="o", markersize=8, color=COLOURS[name], zorder=2, clip_on=False)
        axes.text(value, y, text, ha=_side(x), va="center", fontsize=8.5, color=COLOURS[name])
    if row.low is not None and row.high is not None:
        low = max(row.low, axes.get_xlim()[0])
        axes.plot([low, row.high], [0, 0], color=COLOURS["generated"], linewidth=6, alpha=0.35, solid_capstyle="butt", zorder=3)
    axes.plot(
        [row.value], [0], marker="D", markersize=10, color=COLOURS["generated"], markeredgecolor="white", zorder=4, clip_on=False
    )
    x = axes.transAxes.inverted().transform(place((row.value, 0)))[0]
    axes.text(
        row.value, 0.5, f"{row.role} {number(row, row.value)}", ha=_side(x), va="center", fontsize=10, fontweight="bold",
        color=COLOURS["generated"],
    )  # fmt: skip


def _scale_of(metric: str, values: Sequence[float]) -> str:
    """Ratios are what counts in a distance, unless one is nearly zero and would take all the room, or below it."""
    if metric in (*SHARES, "density", "clap_score", "is") or min(values) < 0:
        return "linear"
    return "logarithmic" if min(values) > 0 and max(values) / min(values) <= WIDEST_RATIO else "square-root"


def _side(x: float) -> str:
    return "left" if x < 0.06 else "right" if x > 0.94 else "center"
