"""The figure of a bake-off: the leading score against speed, with the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.bakeoff_rows import ModelRow, distance, front, leading, placed
from flows.results_table import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONT_COLOR, OTHER_COLOR, FLOOR_COLOR = "#1c6dd0", "#868e96", "#2b8a3e"


def draw(title: str, rows: Sequence[ModelRow]) -> Figure:
    """The leading score over the seconds that a second of sound takes; axes are logarithmic where all values are positive."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    from soundmill.drawing import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    metric, points, best = leading(rows), placed(rows), front(rows)
    axes.step([row.seconds_per_second for row in best], [distance(row, metric) for row in best], where="post", color="#adb5bd")
    for row in points:
        total = row.scores[metric].total
        color = FRONT_COLOR if row in best else OTHER_COLOR
        if total.has_interval:
            axes.plot([row.seconds_per_second] * 2, [total.low, total.high], color=color, linewidth=1.5)
        axes.plot(row.seconds_per_second, total.value, "o", color=color)
        axes.annotate(row.name, (row.seconds_per_second, total.value), xytext=(7, 4), textcoords="offset points", fontsize=9)
    if points:
        axes.set_xscale("log")
        floor = next((row.scores[metric].baselines["floor"] for row in points if "floor" in row.scores[metric].baselines), None)
        totals = [row.scores[metric].total for row in points]
        values = [floor, *(value for total in totals for value in (total.value, total.low, total.high))]
        if all(value > 0 for value in values if value is not None):  # an unbiased MMD may be negative
            axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(plain)
                axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))  # labels of all minor ticks would overlap
                axis.set_minor_formatter(plain)
        if floor is not None:
            axes.axhline(floor, color=FLOOR_COLOR, linewidth=1, linestyle="--")
            axes.annotate(
                "real sounds", (0.01, floor), xycoords=("axes fraction", "data"), fontsize=9, color=FLOOR_COLOR, va="bottom"
            )
    axes.margins(0.2)
    axes.set_xlabel("seconds to generate a second of sound (lower is faster)")
    axes.set_ylabel(f"{METRICS[metric].short_title} (lower is better)")
    axes.set_title(textwrap.fill(title, 60), loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
