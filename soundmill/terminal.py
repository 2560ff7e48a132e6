"""All that is printed: names and messages of others are text, never commands to the terminal, and credentials are left out."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from soundmill import credentials

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE = "SOUNDMILL_PIPE"  # variable: where a stage that a flow runs writes its lines and reports
_REPORT = "\x1e"  # begins a line of JSON (RFC 7464)

_COLORS = {"red": 31, "green": 32, "yellow": 33}


def plain(text: str) -> str:
    """A text for a terminal or a log: characters that move the cursor, change the direction or do not show are escaped."""
    text = credentials.hide(text)
    if text.isascii() and text.isprintable():
        return text
    shown = {char for char in text if char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"}
    return "".join(char if char in shown else char.encode("unicode_escape").decode() for char in text)


def say(text: object = "", error: bool = False, color: str | None = None, end: str = "\n") -> None:
    """Print a line, on a terminal in a color; `error`: to the standard error output."""
    stream, line = sys.stderr if error else sys.stdout, plain(str(text))
    line = f"\x1b[{_COLORS[color]}m{line}\x1b[0m" if color and stream.isatty() else line
    print(line + end, file=stream, end="", flush=True)  # written at once: lanes are threads


def report(**facts: Any) -> None:
    """Tell the flow, if one runs this stage, what a program needs of it: the share that is done, the seconds left, a warning."""
    if PIPE in os.environ:
        print(f"{_REPORT}{json.dumps(facts)}\n", end="", flush=True)


def reported(line: str) -> dict[str, Any] | None:
    """What a line of a stage reports; None for one to read."""
    if not line.startswith(_REPORT):
        return None
    with suppress(ValueError):  # several processes may write at the same time
        return json.loads(line[1:])
    return {}


def warn(line: str) -> None:
    """Print a line that needs attention, in a flow too."""
    say(line)
    report(warning=plain(line))


def join_flow() -> None:
    """Print to the flow that runs this stage, if one does: what `dvc` says of it is not the stage's."""
    with suppress(KeyError, OSError):
        pipe = os.open(os.environ[PIPE], os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(pipe, stream)
        os.close(pipe)
    report(began=True)


def console(**options: Any) -> Console:
    """A console for tables and trees, whose texts are shown as `say` shows them."""
    from rich.console import Console

    class Plain(Console):
        def render(self, *arguments: Any, **named: Any) -> Any:
            for segment in super().render(*arguments, **named):
                yield segment if segment.control else segment._replace(text=plain(segment.text))

    return Plain(**options)


def table(first: str, *others: str, bold: str | None = None) -> Table:
    """An empty table for the console: a column of names, others to the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    grid = Table(escape(first), box=box.SIMPLE, pad_edge=False)
    for name in others:
        grid.add_column(name, justify="right", no_wrap=True, style="bold" if name == bold else "")
    return grid
