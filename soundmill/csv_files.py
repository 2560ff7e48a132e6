"""The one writer of csv: no cell is a formula to a spreadsheet, whatever a corpus or a model says.

Such a text gets an apostrophe before it, as OWASP advises; numbers, and ids such as YouTube's that begin with a dash, stay.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_FORMULA = re.compile(r"'*(?:\s*[=+\-@＝＋－＠]|[\t\r\n])")
_HARMLESS = re.compile(r"[+-]?[\w.]+(?:-[\w.-]*)?|-[\w.-]*|[+-]?\d+(?:\.\d*)?e[+-]?\d+", re.ASCII)


def cell(value: Any) -> Any:
    """A cell as it is written; a carriage return, which Python's csv does not quote, would begin a row."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{value}" if _is_formula(value) else value


def value(written: str) -> str:
    """The text of a cell that `cell` wrote."""
    return written[1:] if written.startswith("'") and _is_formula(written[1:]) else written


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and _HARMLESS.fullmatch(text) is None


def text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and rows as csv."""
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows([[cell(one) for one in row] for row in (columns, *rows)])
    return lines.getvalue()


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(columns, rows), encoding="utf-8", newline="")
