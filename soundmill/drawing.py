"""Matplotlib figures that draw any text literally, without markup."""

import io
import warnings
from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib.text import Text

LONGEST_TITLE = 28  # characters of a label or caption above a picture


class Figure(figure.Figure):
    """Figure without math mode: `$` is drawn as it is, a missing glyph as a box. Ticks of a log axis need plain texts."""

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            super().draw(renderer)


def shorten(text: str, most: int = LONGEST_TITLE) -> str:
    """The text on one line of at most `most` characters, all of them printable."""
    line = " ".join(text[: 100 * most].split())
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def svg(drawn: Figure, salt: str) -> str:
    """The figure as SVG text, always with the same bytes; `salt` makes its ids unique among the figures of a page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]
