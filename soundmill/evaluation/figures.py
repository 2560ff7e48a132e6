"""The charts of a result as pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from soundmill.evaluation import chart, ladder_chart
from soundmill.evaluation.ladder import climbed
from soundmill.page.sounds import attempt

if TYPE_CHECKING:
    from soundmill.drawing import Figure


def draw(metrics: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """PNGs by file name, the same charts as SVG by name (`scores`, and `ladder` if there is one), and what could not be drawn."""
    charts: dict[str, Callable[[], Figure]] = {"scores": partial(chart.draw, metrics)}
    if climbs := climbed(metrics):
        charts["ladder"] = partial(ladder_chart.draw, climbs)
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
