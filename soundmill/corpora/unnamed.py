"""Lists without a header (`dog.wav,A dog barks`) and JSON objects of descriptions by recording.

Nothing says what such a text is, so only clear ones are read: the names are files or ids of recordings, and the texts are short and
repeated (labels) or sentences (captions). Further cells, such as times, scores, authors or links, make a list unclear.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from soundmill.corpora.inventory import MEDIA, Inventory
from soundmill.corpora.json_entries import JSON
from soundmill.corpora.metadata import BROKEN, HEAD_BYTES, LINE_END, first_keys, read_head, read_json, read_lines
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.tables import OPENING
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES

_LIST = re.compile(rb"\.(?:csv|tsv|txt|lst|list)$|(?:^|/)text$", re.IGNORECASE)
_ID = re.compile(r"(?=\w*\d)(?:\w+(?:-\w+)+|\w*[^\W\d_]\w*)")  # LibriSpeech's `19-198-0000`, AISHELL's `BAC009S0002W0122`
_FILE = rf"\S*\.\w+|.*(?:{'|'.join(map(re.escape, sorted(MEDIA)))})"
_NAME = re.compile(rf"#.*|{_FILE}|{_ID.pattern}", re.IGNORECASE)  # a comment, and what looks like a file or an id
_FURTHER = r"[\t|]|\.(?:wav|flac|mp3|ogg)\b|[\s,;]\d*\.\d+$"  # another cell, the name of a file, a score or a time
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")  # Thai, Chinese, Japanese …
_SAMPLED = 400  # lines
_LONGEST_LABEL = 3  # words

Row = tuple[int | str, dict[str, Any]]  # line or key, values by column


@dataclass(frozen=True)
class Form:
    """How to read a list or object: `separator` ends names (empty: a line is a name; None: an object; `[`: an object of lists by
    split); columns of what follows."""

    separator: str | None
    columns: tuple[str, ...]


def detect(inventory: Inventory, name: bytes, index: Callable[[], FileIndex], of_split: bool = False) -> Form | None:
    """How to read a list or an object; None if it is unclear, or if fewer than half of its first names are recordings. A list
    `of_split` may be one line, and its names without extension."""

    def are_files(names: Sequence[str]) -> bool:
        found = sum((of_split or _is_name(one)) and bool(index().resolve(one, os.path.dirname(name)).files) for one in names)
        is_list = len(names) > 1 or of_split or any(map(_ID.fullmatch, names))  # a single line may be a note
        return is_list and 2 * found >= len(names)

    if JSON.search(name):
        with suppress(UserError):  # JSON lines, or damaged
            keys = sorted(first_keys(inventory, name))[:_SAMPLED]
            by_split = bool(keys) and all(key.lower() in SPLIT_NAMES for key in keys)
            described = read_json(inventory, name) if by_split or are_files(keys) else None
            if by_split and isinstance(described, dict):
                names = [one for listed in described.values() for one in (listed if isinstance(listed, list) else [None])]
                if names and all(isinstance(one, str) for one in names) and are_files(names[:: max(1, len(names) // _SAMPLED)]):
                    return Form("[", ("split",))
                described = described if are_files(keys) else None
            return _of_object(described) if isinstance(described, dict) else None
        return None
    head = read_head(inventory, name) if _LIST.search(name) else b""
    lines = LINE_END.split(head.decode("utf-8", "replace"))
    if len(head) >= HEAD_BYTES:
        lines.pop()  # may be cut
    lines = [line for line in lines if line.strip()][:_SAMPLED]
    for separator in ("\t", "|", ";", ",", ":", " ", ""):
        first, text = _cells(lines[0], separator) if lines else ("", "")
        if not (_is_name(first) or (of_split and not separator and are_files([first]))) or bool(text) != bool(separator):
            continue
        names, told = zip(*(_cells(line, separator) for line in lines), strict=True)
        if are_files(names):
            column = "" if _have_further(told, separator) else _column(told)
            return Form(separator, (column,)) if column or not separator else None
    return None


def _have_further(told: Sequence[str], separator: str) -> bool:
    """Whether more than a tenth of the texts look like several cells; a separator before a space or in `1,000` is prose."""
    further = rf"{_FURTHER}|{separator}(?!\s|\d{{3}}\b)" if separator in (";", ",") else _FURTHER
    return 10 * sum(bool(re.search(further, text)) for text in told) > len(told)


def _of_object(described: dict[str, Any]) -> Form | None:
    values = [value for value in described.values() if value is not None]
    if values and all(isinstance(value, dict) for value in values):
        return Form(None, tuple(sorted({key.strip().lower() for value in values for key in value})))
    said = [text for value in values for text in (value if isinstance(value, list) else [value])]
    if not all(isinstance(text, str) for text in said) or _have_further(said, ""):
        return None
    return Form(None, (column,)) if (column := _column(said)) else None


def read(inventory: Inventory, name: bytes, form: Form) -> Iterator[Row]:
    """Rows of a table, with the recording in `file`; none for what is no name of a recording."""
    if form.separator is None:
        for key, value in read_json(inventory, name).items():
            key = key.encode("utf-8", "replace").decode()  # JSON allows lone surrogates, tables do not
            fields = value if isinstance(value, dict) else {form.columns[0]: value}
            yield key, {**{field: fields[field] for field in fields if field.strip().lower() != "file"}, "file": key}
        return
    if form.separator == "[":
        for split, listed in read_json(inventory, name).items():
            yield from ((f"{split}[{at}]", {"file": file, "split": split}) for at, file in enumerate(listed))
        return
    rows, broken = [(at, *_cells(line, form.separator)) for at, line in read_lines(inventory, name)], []
    for (at, file, text), (after, rest, _) in pairwise([*rows, (0, ".x", "")]):
        if form.separator and not _NAME.fullmatch(rest):  # the rest of the text: neither half is one
            broken.append(f"lines {at} and {after}")
            text = ""
        if not form.separator or _NAME.fullmatch(file):
            is_name = _is_name(file) or not (form.separator or file.startswith("#"))
            yield at, {"file": file, form.columns[0]: text} if is_name else {}
    inventory.remark(name, BROKEN, broken)


def _is_name(text: str) -> bool:
    """Whether a text can only be meant as a recording: with the extension of one, or an id."""
    return os.path.splitext(text)[1].lower() in MEDIA or _ID.fullmatch(text) is not None


def _cells(line: str, separator: str) -> tuple[str, str]:
    """The name of a recording and the text after it, each without the quotes of csv."""
    quoted = re.match(r'\s*("(?:[^"]|"")*")', line)
    at = quoted.end() if quoted else 0
    end = line.find(separator, at) if separator else len(line)
    cells = (line[:end], line[end + 1 :]) if end >= 0 else (line, "")
    name, text = (re.sub(r'^"((?:[^"]|"")*)"$', lambda cell: cell[1].replace('""', '"'), cell.strip()) for cell in cells)
    return name, text


def _column(told: Sequence[str]) -> str:
    """What texts are: splits; labels, if they are short and mostly repeated; captions, if most are sentences; empty: unclear."""
    if told and all(text.lower() in SPLIT_NAMES for text in told):
        return "split"
    texts = [text for text in told if re.match(OPENING, text)]  # not numbers, nor JSON
    if (
        2 * len(texts) > len(told)
        and max(len(text.split()) for text in texts) <= _LONGEST_LABEL
        and 2 * len(set(told)) <= len(told)
    ):
        return "labels"
    return "caption" if 2 * sum(" " in text or bool(_UNSPACED.search(text)) for text in texts) > len(told) else ""
