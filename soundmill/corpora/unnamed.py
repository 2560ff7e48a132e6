"""Lists without a header (`dog.wav,A dog barks`) and JSON objects of descriptions by recording.

Nothing says what such a text is, so only clear ones are read: the names are files or ids of recordings, and the texts are short and
repeated (labels) or sentences (captions). Any further column makes a list unclear.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from soundmill.corpora.inventory import MEDIA, Inventory
from soundmill.corpora.json_entries import JSON, texts
from soundmill.corpora.metadata import HEAD_BYTES, first_keys, read_head, read_json, read_lines
from soundmill.corpora.resolver import FileIndex
from soundmill.errors import UserError

_LIST = re.compile(rb"\.(?:csv|tsv|txt|lst|list)$", re.IGNORECASE)
_NOTES = re.compile(
    rb"(?:^|[\W_])(?:logs?|errors?|failed|missing|skipped|sources?|attributions?|credits?|urls?|licen[cs]es?)(?:$|[\W_])",
    re.IGNORECASE,
)
_ID = re.compile(r"\w*\d\w*(?:-\w+)+")  # LibriSpeech's `19-198-0000`
_SAMPLED = 400  # lines
_LONGEST_LABEL = 3  # words

Row = tuple[int | str, dict[str, Any]]  # line or key, values by column


@dataclass(frozen=True)
class Unnamed:
    """What ends the name of a recording (none: a line is a name; `{`: a JSON object), and the columns of what follows it."""

    separator: str
    columns: tuple[str, ...]


def detect(inventory: Inventory, name: bytes, index: Callable[[], FileIndex]) -> Unnamed | None:
    """How to read a list or an object; None if it is unclear, or if fewer than half of its first names are recordings."""

    def are_files(names: Sequence[str]) -> bool:
        found = [_is_name(one) and bool(index().resolve(one, os.path.dirname(name)).files) for one in names]
        return len(names) > 1 and 2 * sum(found) >= len(names)

    if _NOTES.search(os.path.basename(name)):
        return None
    if JSON.search(name):
        with suppress(UserError):  # JSON lines, or damaged
            described = read_json(inventory, name) if are_files(sorted(first_keys(inventory, name))[:_SAMPLED]) else None
            return _of_object(described) if isinstance(described, dict) else None
        return None
    head = read_head(inventory, name) if _LIST.search(name) else b""
    lines = head.decode("utf-8", "replace").splitlines()[: -1 if len(head) >= HEAD_BYTES else None]  # the last may be cut
    for separator in ("\t", "|", ";", ",", " ", ""):
        rows = [_cells(line, separator) for line in lines if line.strip()][:_SAMPLED]
        has_texts = not separator or any(text for _, text in rows)
        if has_texts and rows and _is_name(rows[0][0]) and are_files([first for first, _ in rows]):
            further = separator + r"\S" if separator in (";", ",") else r"[\t|]"
            is_clear = 2 * sum(bool(re.search(further, text)) for _, text in rows) <= len(rows)
            column = _column([text for _, text in rows]) if is_clear else ""
            return Unnamed(separator, (column,)) if column or not separator else None
    return None


def _of_object(described: dict[str, Any]) -> Unnamed | None:
    fields = {str(key).strip().lower() for value in described.values() if isinstance(value, dict) for key in value}
    said = [text for value in described.values() for text in texts(value)]
    if fields and not said:
        return Unnamed("{", tuple(sorted(fields)))
    column = "" if fields else _column(said)
    return Unnamed("{", (column,)) if column else None


def read(inventory: Inventory, name: bytes, form: Unnamed) -> Iterator[Row]:
    """Rows of a table, with the recording in `file`."""
    if form.separator == "{":
        for key, value in read_json(inventory, name).items():
            key = key.encode("utf-8", "replace").decode()  # JSON allows lone surrogates, tables do not
            yield key, {**(value if isinstance(value, dict) else {form.columns[0]: value}), "file": key}
        return
    for at, line in read_lines(inventory, name):
        file, text = _cells(line, form.separator)
        yield at, {"file": file, form.columns[0]: text}


def _is_name(text: str) -> bool:
    """Whether a text can only be meant as a recording: with the extension of one, or an id."""
    return os.path.splitext(text)[1].lower() in MEDIA or _ID.fullmatch(text) is not None


def _cells(line: str, separator: str) -> tuple[str, str]:
    name, _, text = (cell.strip() for cell in (line.partition(separator) if separator else (line, "", "")))
    if re.fullmatch(r'"(?:[^"]|"")*"', text):
        text = text[1:-1].replace('""', '"')
    return name.strip('"'), text


def _column(told: Sequence[str]) -> str:
    """What texts are: `labels` if they are short and mostly repeated, `caption` if most are sentences; empty if neither."""
    words = [len(text.split()) for text in told if re.match(r"[\"'“‘¿¡(]*[^\W\d_]", text)]  # not numbers, nor JSON
    if 2 * len(words) > len(told) and max(words) <= _LONGEST_LABEL and 2 * len(set(told)) <= len(told):
        return "labels"
    return "caption" if 2 * sum(count > 1 for count in words) > len(told) else ""
