"""All that is printed: names and messages of others are text, never commands to the terminal, and credentials are left out."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from soundmill import credentials

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {"red": 31, "green": 32, "yellow": 33}


def plain(text: str) -> str:
    """A text for a terminal or a log: characters that move the cursor, change the direction or do not show are escaped."""
    text = credentials.hide(text)
    return text if text.isascii() and text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs":
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


def say(text: object = "", error: bool = False, color: str | None = None, end: str = "\n") -> None:
    """Print a line, on a terminal in a color; `error`: to the standard error output."""
    stream, line = sys.stderr if error else sys.stdout, plain(str(text))
    print(f"\x1b[{_COLORS[color]}m{line}\x1b[0m" if color and stream.isatty() else line, file=stream, end=end, flush=True)


def console(**options: Any) -> Console:
    """A console for tables and trees, whose texts are shown as `say` shows them."""
    from rich.console import Console

    class Plain(Console):
        def render(self, *arguments: Any, **named: Any) -> Any:
            for segment in super().render(*arguments, **named):
                yield segment if segment.control else segment._replace(text=plain(segment.text))

    return Plain(**options)
