"""Reading the metadata files of an inventory: text, csv, JSON and JSON lines."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from soundmill.corpora import buckets
from soundmill.corpora.inventory import Inventory
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.manifest import escape_path
from soundmill.params import TooDeepError, parse_json

HEAD_BYTES = 1 << 16  # from which formats are detected
KEPT_BYTES = 64 << 20  # of heads in memory; small files are then opened only once
READ_AHEAD = 256  # small objects of a bucket read together: one by one, each would take a round trip
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE  # byte order marks
MAX_TEXT_BYTES = 1 << 20  # of a caption file or a JSON line
MAX_MANIFEST_BYTES = 512 << 20  # of a csv or JSON file, which takes several times as much memory as rows
REPEATED_KEYS = "objects with a repeated key, whose last value is used"
MAX_UNPACKED_BYTES = MAX_MANIFEST_BYTES  # of a compressed manifest
_LINE_END = re.compile(r"\r\n|\r|\n")


def _read_at_most(inventory: Inventory, name: bytes, count: int) -> bytes:
    inventory.opened.add(name)
    if (whole := _whole(inventory, name)) is not None:
        return whole
    with buckets.open_file(inventory.metadata[name]) as file:
        return file.read(count)


def _read_manifest(inventory: Inventory, name: bytes) -> bytes:
    path = escape_path(inventory.metadata[name])
    try:
        raw = _read_at_most(inventory, name, MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable, or remove it from the corpus") from None
    if len(raw) > MAX_MANIFEST_BYTES:
        raise UserError(f"{path}: more than {MAX_MANIFEST_BYTES >> 20} MiB; split it into several files")
    return raw


def read_text(inventory: Inventory, name: bytes) -> str:
    """Text of a metadata file (UTF-8, with or without byte order mark); UserError, naming it, if it is not UTF-8."""
    try:
        return _read_manifest(inventory, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        path, line = escape_path(inventory.metadata[name]), error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def read_sidecar(inventory: Inventory, name: bytes) -> str:
    """The text beside a recording, stripped; DecodeError if it cannot be read, so that only this recording loses its caption."""
    try:
        raw = _read_at_most(inventory, name, MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise decode.DecodeError("unreadable caption", error.strerror or "") from None
    if len(raw) > MAX_TEXT_BYTES:
        raise decode.DecodeError("caption too long", f"over {MAX_TEXT_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise decode.DecodeError("unreadable caption", f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def _read_table(inventory: Inventory, name: bytes) -> str:
    """Text of a csv or list in UTF-16 or UTF-8; lines that are not UTF-8 are read as Windows-1252."""
    raw = _read_manifest(inventory, name)
    if raw.startswith(UTF_16) and "\0" not in (text := raw.decode("utf-16", "replace")):
        return text
    if b"\0" in raw:
        path = escape_path(inventory.metadata[name])
        raise UserError(f"{path}: not UTF-8 text (zero byte at {raw.index(0)}); save it as UTF-8, or remove it from the corpus")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    lines, others = [], []
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            others.append(number)
            # Five bytes are undefined in Windows-1252.
            lines.append(line.decode("cp1252", "surrogateescape").encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    inventory.remark(name, "lines that are not UTF-8, read as Windows-1252", len(others), f"line {others[0]}")
    return "\n".join(lines)


def _head_text(inventory: Inventory, name: bytes) -> str:
    """Text of the first MAX_TEXT_BYTES of a csv or list; UserError, naming it, if it cannot be read."""
    try:
        with buckets.open_file(inventory.metadata[name]) as file:
            head = file.read(MAX_TEXT_BYTES)
    except OSError as error:
        raise UserError(f"{escape_path(name)}: {error.strerror}; make it readable, or remove it from the corpus") from None
    return head.decode("utf-16" if head.startswith(UTF_16) else "utf-8-sig", "replace")


def csv_columns(inventory: Inventory, name: bytes) -> list[str]:
    """The header of a csv in lower case; empty if there is none within MAX_TEXT_BYTES."""
    if name not in inventory.columns:
        try:
            inventory.columns[name] = _header(_reader(_head_text(inventory, name)))
        except csv.Error:
            inventory.columns[name] = []
    return inventory.columns[name]


def head_lines(inventory: Inventory, name: bytes) -> list[str]:
    """The first lines of a list; the last may be cut."""
    return _LINE_END.split(_head_text(inventory, name))


def read_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, str]]:
    """Non-empty lines of a list as (number, text); encodings as for csv."""
    return ((number, line) for number, line in enumerate(_LINE_END.split(_read_table(inventory, name)), start=1) if line.strip())


def read_csv(inventory: Inventory, name: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv as (number of its last line, {column: text}); columns in lower case, missing cells are empty."""
    text = _read_table(inventory, name)
    reader = _reader(text)
    too_long, swallowing = [], []
    try:
        columns = _header(reader)
        repeated = [column for number, column in enumerate(columns) if column and column in columns[:number]]
        inventory.remark(name, "repeated columns in a header, of which the last is read", len(repeated), *repeated[:1])
        at = reader.line_num
        for cells in reader:
            at, first = reader.line_num, at + 1
            if cells:
                if at > first and _swallows_rows(cells, columns, reader.dialect.delimiter):
                    swallowing.append(first)
                if len(cells) > len(columns):
                    too_long.append(reader.line_num)
                cells += [""] * (len(columns) - len(cells))
                yield reader.line_num, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise UserError(f"{escape_path(inventory.metadata[name])}:{reader.line_num}: not readable as csv: {error}") from None
    if too_long:
        what = "rows with more cells than the header; the rest is ignored (text with commas but without quotes?)"
        inventory.remark(name, what, len(too_long), f"line {too_long[0]}")
    if swallowing:
        what = "quoted texts that contain lines like rows, which are read as text (unclosed quote?)"
        inventory.remark(name, what, len(swallowing), f"line {swallowing[0]}")


def _reader(text: str) -> Any:
    """A csv reader; the delimiter is the first comma, semicolon or tab in the header."""
    header = re.sub(r'"[^"]*"', "", re.match(r"[^\r\n]*", text)[0])
    mark = re.search(r"[,;\t]", header)
    return csv.reader(io.StringIO(text, newline=""), delimiter=mark[0] if mark else ",")


def _header(reader: Iterator[list[str]]) -> list[str]:
    return [column.strip().lower() for column in next(reader, [])]


def _swallows_rows(cells: list[str], columns: list[str], delimiter: str) -> bool:
    """Whether a cell contains a line with as many cells as a row: an unclosed quote turns the following rows into text."""
    lines = itertools.chain.from_iterable(cell.splitlines()[1:] for cell in cells)
    return len(columns) > 1 and any(line.count(delimiter) >= len(columns) - 1 for line in lines)


def read_head(inventory: Inventory, name: bytes, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a metadata file, decompressed if its name ends in `.gz`; empty if it cannot be read."""
    if (whole := _whole(inventory, name)) is not None:
        return whole[:size]
    if size == HEAD_BYTES and name in inventory.heads:
        return inventory.heads[name]
    try:
        with buckets.open_file(inventory.metadata[name]) as file:
            head = file.read(size)
        if name.lower().endswith(b".gz"):
            head = zlib.decompressobj(wbits=31).decompress(head, size)
    except (OSError, zlib.error):
        return b""
    if size == HEAD_BYTES and inventory.kept_bytes + len(head) <= KEPT_BYTES:
        inventory.heads[name] = head
        inventory.kept_bytes += len(head)
    return head


def _whole(inventory: Inventory, name: bytes) -> bytes | None:
    """All bytes of a file, if `read_head` has kept them."""
    if name in inventory.objects and name not in inventory.heads:
        _read_ahead(inventory, name)
    head = inventory.heads.get(name)
    return head if head is not None and len(head) < HEAD_BYTES and not name.lower().endswith(b".gz") else None


def _read_ahead(inventory: Inventory, name: bytes) -> None:
    """Keep this small object of a bucket and those of its kind that follow it; none if it is not small."""
    extension = os.path.splitext(name)[1]
    following = inventory.following(name, 4 * READ_AHEAD)
    alike = (other for other in following if other.endswith(extension) and 0 < inventory.objects[other].size < HEAD_BYTES)
    names = list(itertools.islice(alike, READ_AHEAD))
    if names[:1] != [name] or extension.lower() == b".gz":
        return
    if inventory.kept_bytes > KEPT_BYTES:
        inventory.heads.clear()
        inventory.kept_bytes = 0
    heads = buckets.read_all([inventory.metadata[other] for other in names], HEAD_BYTES)
    inventory.heads |= zip(names, heads, strict=True)
    inventory.kept_bytes += sum(map(len, heads))


def begins_with(inventory: Inventory, name: bytes, keys: set[str]) -> bool:
    """Whether the first line of a file is a JSON object with these keys, or one nested too deep, which its reader rejects."""
    line = read_head(inventory, name).lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")[0]
    try:
        first = parse_json(line)
    except TooDeepError:
        return all(b'"%s"' % key.encode() in line for key in keys)
    except ValueError:
        return False
    return isinstance(first, dict) and keys <= set(first)


def read_json(inventory: Inventory, name: bytes) -> Any:
    """The value of a JSON file; UserError, naming it, if it is invalid."""
    path = escape_path(inventory.metadata[name])
    repeated: list[str] = []
    try:
        value = parse_json(read_text(inventory, name), object_pairs_hook=lambda pairs: _object(pairs, repeated))
        inventory.remark(name, REPEATED_KEYS, len(repeated), *repeated[:1])
        return value
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}; correct it, or remove it from the corpus") from None


def read_json_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, Any]]:
    """Values of a JSON lines file, compressed or not, as (line number, value); UserError, naming the line, if one is invalid."""
    inventory.opened.add(name)
    path = escape_path(inventory.metadata[name])
    number, total = 0, 0
    repeated: list[str] = []
    try:
        with _open_packed(inventory.metadata[name], name) as file:
            while line := file.readline(MAX_TEXT_BYTES + 1):
                number, total = number + 1, total + len(line)
                if len(line) > MAX_TEXT_BYTES or total > MAX_UNPACKED_BYTES:
                    raise UserError(f"{path}:{number}: a line over {MAX_TEXT_BYTES} bytes, or too much text; is it JSON lines?")
                if line.strip():
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    yield number, parse_json(text, object_pairs_hook=lambda pairs: _object(pairs, repeated))
        inventory.remark(name, REPEATED_KEYS, len(repeated), *repeated[:1])
    except (ValueError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}:{number}: not readable as JSON lines: {error}; correct it, or remove it from the corpus") from None


def _object(pairs: list[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated.append(next(f"{key!r:.80}" for key in value if keys.count(key) > 1))
    return value


def _open_packed(path: bytes, name: bytes) -> IO[bytes]:
    file = buckets.open_file(path)
    return gzip.open(file) if name.lower().endswith(b".gz") else file
