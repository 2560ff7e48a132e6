"""Lists without a header (`dog.wav, a dog barks`) and JSON objects of descriptions by recording: what their cells mean."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.json_entries import JSON, texts
from soundmill.corpora.metadata import first_keys, read_json, read_lines, read_records
from soundmill.corpora.resolver import FileIndex
from soundmill.manifest import SPLIT_NAMES

_LIST = re.compile(rb"\.(?:csv|tsv|txt|lst|list)$", re.IGNORECASE)
_SAMPLED = 400  # lines
_LONGEST_LABEL = 3  # words

Row = tuple[int | str, dict[str, Any]]  # line or key, values by column


@dataclass(frozen=True)
class Unnamed:
    """Where the name of a recording ends, and what follows it."""

    separator: str  # a comma (also csv's others), a bar, a space; none: the line is a name; `{`: a JSON object
    columns: tuple[str, ...]  # of each cell: `labels`, `split`, `caption_1` …, or nothing
    together: bool = False  # all cells are of the only column


def detect(inventory: Inventory, name: bytes, index: Callable[[], FileIndex]) -> Unnamed | None:
    """What a list or an object is, of whose first names at least half are recordings; None: neither."""

    def are_files(names: list[str]) -> bool:
        found = [bool(one and index().resolve(one, os.path.dirname(name)).files) for one in map(str.strip, names)]
        return any(found) and 2 * sum(found) >= len(found)

    if JSON.search(name):
        described = read_json(inventory, name) if are_files(sorted(first_keys(inventory, name))[:_SAMPLED]) else None
        if not isinstance(described, dict):
            return None
        fields = {key for value in described.values() if isinstance(value, dict) for key in value}
        said = [text for value in described.values() for text in texts(value)]
        return None if fields and said else Unnamed("{", tuple(sorted(fields)) or (_column(said, 1),))
    for separator in (",", "|", " ", "") if _LIST.search(name) else ():
        rows = [cells for _, cells in islice(_rows(inventory, name, separator, head=True), _SAMPLED)]
        told, names = [cells for _, *cells in rows if cells], [first for first, *_ in rows]
        if are_files(names[:1]) and are_files(names) and (told or not separator):
            if len(set(map(len, told))) > 1:
                return Unnamed(separator, (_column([cell for cells in told for cell in cells], 1),), together=True)
            columns = [_column(cells, at) for at, cells in enumerate(zip(*told, strict=True), start=1)]
            if columns.count("") > 1:  # start and end: the texts are of parts
                columns = ["" if column.startswith("caption") else column for column in columns]
            return Unnamed(separator, tuple(columns))
    return None


def read(inventory: Inventory, name: bytes, form: Unnamed) -> Iterator[Row]:
    """Rows of a table, with the recording in `file`."""
    if form.separator == "{":
        for key, value in read_json(inventory, name).items():
            yield key, {**(value if isinstance(value, dict) else {form.columns[0]: value}), "file": key}
        return
    for at, (first, *cells) in _rows(inventory, name, form.separator):
        values: dict[str, Any] = {"file": first}
        if form.together:
            cells = [cells if form.columns == ("labels",) else ", ".join(cells)]
        for column, cell in zip(form.columns, cells, strict=False):
            values[column] = [*values.get("labels", []), cell] if column == "labels" and not form.together else cell
        yield at, values


def _rows(inventory: Inventory, name: bytes, separator: str, head: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of all rows that are not empty, or of the first; the last of these may be cut."""
    if separator == ",":
        rows = read_records(inventory, name, head)
    else:
        lines = read_lines(inventory, name, head)
        rows = ((at, line.split(separator, 1 if separator == " " else -1) if separator else [line]) for at, line in lines)
    return ((at, [cell.strip() for cell in cells]) for at, cells in rows)


def _column(cells: Iterable[str], number: int) -> str:
    """What cells are: splits; labels, if they are short and mostly repeated; else captions, if most begin with a letter."""
    cells = [cell for cell in cells if cell]
    if cells and all(cell.lower() in SPLIT_NAMES for cell in cells):
        return "split"
    short = sum(len(cell.split()) <= _LONGEST_LABEL and not re.match(r"-?\d*\.\d", cell) for cell in cells)
    if 10 * short >= 9 * len(cells) > 0 and 2 * len(set(cells)) <= len(cells):
        return "labels"
    return f"caption_{number}" if 2 * sum(bool(re.match(r"\W*[^\W\d_]", cell)) for cell in cells) > len(cells) else ""
