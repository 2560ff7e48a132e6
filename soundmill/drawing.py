"""Figures that draw any text literally, without markup."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib.text import Text

LONGEST_TITLE = 28  # letters of a label or caption above a picture


class Figure(figure.Figure):
    """matplotlib's, but `$` is not mathematics, and a letter that the font lacks is a box without a warning.

    So tick labels of a logarithmic axis, which are mathematics, must be given as plain text.
    """

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            super().draw(renderer)


def shorten(text: str, most: int = LONGEST_TITLE) -> str:
    """One line of `most` letters at most, of which every one can be drawn."""
    line = " ".join(text[: 100 * most].split())
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def svg(drawn: Figure, salt: str) -> str:
    """The figure as SVG text, equal bytes every time; `salt` keeps the ids within apart from those of other figures on a page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]
