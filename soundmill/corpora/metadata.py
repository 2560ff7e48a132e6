"""Reading the metadata files of an inventory: text, csv, JSON and JSON lines."""

import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from soundmill import csv_files
from soundmill.corpora import buckets
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.resolver import FileIndex
from soundmill.errors import UserError
from soundmill.manifest import VIDEO_ID, escape_path
from soundmill.params import TooDeepError, parse_json

HEAD_BYTES = 1 << 16  # from which formats are detected
KEPT_BYTES = 64 << 20  # of heads in memory; small files are then opened only once
READ_AHEAD = 256  # small objects of a bucket read together: one by one, each would take a round trip
# Byte order marks; UTF-32's begins with UTF-16's.
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_TEXT_BYTES = 1 << 20  # of a caption file or a JSON line
MAX_LACKING = 100_000  # cells that rows may lack, besides one for each byte: every one takes time
MAX_MANIFEST_BYTES = 512 << 20  # of a csv or JSON file, which takes several times as much memory as rows
NOT_UTF_8 = "lines that are not UTF-8, read as Windows-1252"
_TOO_LONG = "rows with more cells than the header; the rest is ignored (text with commas but without quotes?)"
_UNCLOSED = "rows with a quote that is not closed, which are read to the end of their line"
BROKEN = "texts with a line break and without quotes, whose pieces are left out"
_OPEN = "unexpected end of data"  # what csv says of a quote that is not closed
_SAMPLE = 1000  # rows that show what is in which column
_KEYS = ("file", "id", "number")
_PROSE = re.compile(r"[^\W\d_]+[.!?:]?(\s.*)?", re.DOTALL)
LINE_END = re.compile(r"\r\n|\r|\n")
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"\s*")
_LIST = re.compile(r'(?:\[|\{[^\[{]*"data"\s*:\s*\[)\s*(?=\{)')  # the beginning of a list of entries
_KEY = re.compile(r'(?<!\\)("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\s*:')
_TIMES = re.compile(r"\s*-?\d[\d.]*(?:\s*$|[\s,;]+-?\d[\d.]*(?:[\s,;]|$))")  # of an event, or a number alone
_FIRST_TIME = re.compile(r"\s*-?(?:0\b|\d+\.\d|\d+\s*$)")  # otherwise it may be `808 909 drum loop`


def _read_at_most(inventory: Inventory, name: bytes, count: int) -> bytes:
    inventory.opened.add(name)
    if (whole := _whole(inventory, name)) is not None:
        return whole
    with _open_packed(inventory.metadata[name], name) as file:
        return file.read(count)


def _decoded(raw: bytes, whole: bool = True) -> tuple[str, list[int]]:
    """Text in UTF-8, UTF-16 or UTF-32, and the numbers of its lines that are in none of them and were read as Windows-1252.

    ValueError if it has zeros, as what is no text. `whole`: false if the end is cut off, perhaps within a character.
    """
    if encoding := _wide_encoding(raw):
        text = codecs.getincrementaldecoder(encoding)("replace").decode(raw, final=whole)
        if "\0" not in text and (not text or text.strip("\ufffd")):
            return text.removeprefix("\ufeff"), []
    if b"\0" in raw:
        raise ValueError(f"not UTF-8 text (zero byte at {raw.index(0)})")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw, final=whole), []
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
    return "\n".join(lines), others


def _wide_encoding(raw: bytes) -> str | None:
    """The name of UTF-32 or UTF-16, by the byte order mark or, without one, by where the zeros of Latin letters are."""
    for mark, encoding in _WIDE.items():
        if raw.startswith(mark):
            return encoding
    head = raw[:HEAD_BYTES]
    zeros = {encoding: head[at::2].count(0) for encoding, at in (("utf-16-le", 1), ("utf-16-be", 0))}
    return next((encoding for encoding, count in zeros.items() if 4 * count > len(head) and count == sum(zeros.values())), None)


def read_text(inventory: Inventory, name: bytes, strict: bool = False) -> str:
    """Text of a metadata file, unpacked if `.gz`; UserError, naming it, if unreadable. `strict`: only UTF-8, even with zeros."""
    path = escape_path(inventory.metadata[name])
    try:
        raw = _read_at_most(inventory, name, MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise UserError(f"{path}: more than {MAX_MANIFEST_BYTES >> 20} MiB; split it into several files")
        text, others = (raw.decode("utf-8-sig"), []) if strict else _decoded(raw)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {said}; make it readable, or remove it from the corpus") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; save it as UTF-8, or remove it from the corpus") from None
    inventory.remark(name, NOT_UTF_8, [f"line {number}" for number in others])
    return text


def read_sidecar(inventory: Inventory, name: bytes, reject: Callable[[bytes, str, str], None]) -> str | None:
    """The text beside a recording, stripped; None if it cannot be read: it is rejected, and only this recording has no caption."""
    try:
        raw = _read_at_most(inventory, name, MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            return reject(name, "caption too long", f"over {MAX_TEXT_BYTES} bytes")
        text, others = _decoded(raw)
    except OSError as error:
        return reject(name, "unreadable caption", error.strerror or "")
    except ValueError as error:
        return reject(name, "unreadable caption", str(error))
    if others:
        inventory.recoded[escape_path(name)] = None
        inventory.remark(b"", "texts that are not UTF-8, read as Windows-1252", inventory.recoded)
    lines = list(filter(str.strip, text.split("\n")))
    is_table = len(lines) > 1 and min(counts := [line.strip().count("\t") for line in lines]) == max(counts) > 1
    if is_table or (_FIRST_TIME.match(text.partition("\n")[0]) and all(map(_TIMES.match, lines))):
        return reject(name, "times or numbers", "no caption; write captions, or a csv with a column of labels")
    return text.strip()


def _head_text(inventory: Inventory, name: bytes) -> str:
    """Text of the first MAX_TEXT_BYTES of a csv or list; UserError, naming it, if it cannot be read."""
    try:
        with buckets.open_file(inventory.metadata[name]) as file:
            return _utf_8(file.read(MAX_TEXT_BYTES)).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{escape_path(name)}: {error.strerror}; make it readable, or remove it from the corpus") from None


def _utf_8(head: bytes) -> bytes:
    """The first bytes of a text in UTF-8 without byte order mark; as they are if it is no text."""
    try:
        return _decoded(head, whole=False)[0].encode()
    except ValueError:
        return head


def csv_columns(inventory: Inventory, name: bytes) -> list[str]:
    """The header of a csv in lower case; empty if there is none within MAX_TEXT_BYTES."""
    if name not in inventory.columns:
        text, inventory.columns[name] = _head_text(inventory, name), []
        with suppress(csv.Error):
            inventory.columns[name] = _header(_records(text))
    return inventory.columns[name]


def csv_files_with(inventory: Inventory, columns: Set[str]) -> Iterator[bytes]:
    """Names of the csv files with these columns."""
    return (name for name in inventory.csv_files() if columns <= set(csv_columns(inventory, name)))


def head_lines(inventory: Inventory, name: bytes) -> list[str]:
    """The first lines of a list; the last may be cut."""
    return LINE_END.split(_head_text(inventory, name))


def read_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, str]]:
    """Non-empty lines of a list as (number, text); encodings as for csv."""
    return ((number, line) for number, line in enumerate(LINE_END.split(read_text(inventory, name)), start=1) if line.strip())


@dataclass(slots=True)
class _Record:
    """A row of a csv, and the numbers of its first and last line."""

    first: int
    last: int
    cells: list[str]
    unclosed: bool = False  # it has a quote that is not closed, so it was read to the end of its line


def _records(text: str, is_file: Callable[[str], bool] = lambda cell: False) -> Iterator[_Record]:
    """Rows of a csv, the header too; the delimiter is the first comma, semicolon or tab in the first line.

    A quote that is not closed, or not where a cell ends, is text up to the end of its line, and so is one that is closed only after
    rows of files. csv.Error if a cell is too long.
    """
    header = re.sub(r'"[^"]*"', "", re.match(r"[^\r\n]*", text)[0])
    mark = re.search(r"[,;\t]", header)
    delimiter = mark[0] if mark else ","
    lines = list(io.StringIO(text, newline=""))
    at, num_columns = 0, 0
    while at < len(lines):
        reader, start = csv.reader(map(lines.__getitem__, range(at, len(lines))), delimiter=delimiter, strict=True), at
        try:
            for cells in reader:
                end = start + reader.line_num
                inside = [line.split(delimiter) for cell in cells for line in cell.splitlines()[1:]] if end > at + 1 else []
                rows = (row for row in inside if len(row) >= max(2, num_columns - 1) and not _is_spaced(row))
                if any(_kind(cell) == "file" or is_file(cell) for row in rows for cell in row):
                    raise csv.Error(_OPEN)
                if cells:
                    yield _Record(at + 1, end, cells)
                    num_columns = num_columns or len(cells)
                at = end
        except csv.Error as problem:
            over = start + reader.line_num > at + 1 or str(problem) == _OPEN
            try:
                cells = next(csv.reader([lines[at]], delimiter=delimiter))
            except csv.Error as error:
                raise csv.Error(f"{at + 1}: not readable as csv: {error}") from None
            plain = [cell.strip('"\r\n') for cell in lines[at].split(delimiter)]
            num_columns = num_columns or len(plain)
            # Without a comma in its text, the quote has no meaning.
            yield _Record(at + 1, at + 1, plain if over and len(plain) == num_columns else cells, unclosed=over)
            at += 1


def read_csv(inventory: Inventory, name: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv as (number of its last line, {column: text}); columns in lower case, missing cells are empty.

    A row without a key as other rows have it is a piece of a text with a line break and without quotes: it is left out, and so
    is the other piece, from the row that has it.
    """
    path = escape_path(inventory.metadata[name])
    text = read_text(inventory, name)
    index = functools.cache(lambda: FileIndex(inventory))  # seldom needed

    def is_file(key: str) -> bool:
        return bool(index().resolve(key, os.path.dirname(name)).files)

    records, found, lacking = _records(text, is_file), defaultdict(list), 0
    try:
        columns = _header(header := list(itertools.islice(records, 1)))
        found[_UNCLOSED] += [f"line {record.first}" for record in header if record.unclosed]
        repeated = [column for column, count in Counter(filter(None, columns)).items() if count > 1]
        inventory.remark(name, "repeated columns in a header, of which the last is read", repeated)
        for record in _whole_rows(records, len(columns), is_file, found):
            lacking += max(0, len(columns) - len(record.cells))
            if lacking > len(text) + MAX_LACKING:
                raise csv.Error(f"{record.last}: the rows up to here lack {lacking} cells of the header's {len(columns)} columns")
            if len(record.cells) > len(columns):
                found[_TOO_LONG].append(f"line {record.last}")
            row = defaultdict(str, dict.fromkeys(columns, ""))
            row.update(zip(columns, map(csv_files.value, record.cells), strict=False))
            yield record.last, row
    except csv.Error as error:
        raise UserError(f"{path}:{error}; correct it, or remove it from the corpus") from None
    for what, lines in found.items():
        inventory.remark(name, what, lines)


def _whole_rows(
    records: Iterator[_Record], num_columns: int, is_file: Callable[[str], bool], found: dict[str, list[str]]
) -> Iterator[_Record]:
    """The rows, without those that are pieces of a text, and without the other pieces."""
    head: list[_Record] = []
    problem: csv.Error | None = None
    try:
        head.extend(itertools.islice(records, _SAMPLE))
    except csv.Error as error:
        problem = error  # the rows before it are used
    kinds = _kinds([record.cells for record in head], num_columns)
    keyed = any(kinds)
    looks = Counter(_look(cell) for record in head for cell in record.cells)
    spaced = 2 * sum(_is_spaced(record.cells) for record in head) > len(head)
    last: _Record | None = None  # held back until the next is known
    to_next = False

    def completes(cells: list[str]) -> bool:
        """Whether these cells and the last row's are one row, divided within a cell."""
        return last is not None and len(last.cells) + len(cells) - 1 == num_columns and (spaced or not _is_spaced(cells))

    def is_piece(cells: list[str]) -> bool:
        like_prose = _is_spaced(cells) and not spaced and len(cells) <= num_columns
        # Numbers may follow a broken text, where rows also have the name of a file or video.
        keys = set(_KEYS) - {"number"} if {"file", "id"} & set(kinds) and completes(cells) else {*_KEYS, "word"}
        for cell in (cell for cell, kind in zip(cells, kinds, strict=False) if kind in keys and _kind(cell) == kind):
            if not like_prose or _kind(cell) != "file" or looks[_look(cell)] > 1 or is_file(cell):
                return False
        short = len(cells) < num_columns and _kind(cells[0]) not in ("", "file")
        prose = kinds[0] in _KEYS and bool(_PROSE.fullmatch(cells[0].strip()))
        return keyed and (short or prose or like_prose) and not is_file(cells[0])

    for record in itertools.chain(head, records):
        if record.unclosed:
            found[_UNCLOSED].append(f"line {record.first}")
        if not record.unclosed and is_piece(record.cells):
            to_next = not kinds[0]  # the rest of a text in the first column is in the next row
            if last and not (kinds[-1] and _kind(last.cells[-1]) == kinds[-1]):
                found[BROKEN].append(f"lines {last.first} and {record.last}")
                if completes(record.cells):
                    last.cells = [*last.cells[:-1], "", *record.cells[1:]]
                else:  # the text has commas
                    last.cells = [cell if kind else "" for cell, kind in zip(last.cells, kinds, strict=False)]
            continue
        if to_next:
            found[BROKEN].append(f"lines {record.first - 1} and {record.last}")
            record.cells[0], to_next = "", False
        if last:
            yield last
        last = record
    if last:
        yield last
    if problem:
        raise problem


def _kinds(rows: list[list[str]], num_columns: int) -> list[str]:
    """What a third of the cells of each column look like, if that is a key; without keys, where single words are; else empty."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)  # of the columns that rows have: a header may have millions
    for at, cell in itertools.chain.from_iterable(enumerate(row[:num_columns]) for row in rows):
        counts[at][_kind(cell)] += bool(cell.strip())
    keys = {at: next((kind for kind in _KEYS if 3 * one[kind] >= max(1, one.total())), "") for at, one in counts.items()}
    if not any(keys.values()):
        keys = {at: "word" if 2 * one["word"] > one.total() else "" for at, one in counts.items()}
    return [keys.get(at, "") for at in range(num_columns)]


def _kind(cell: str) -> str:
    """What a key looks like: a file, a number, a YouTube id, a word or several; empty if it is."""
    cell = cell.strip()
    if not cell:
        return ""
    if re.search(r"\.[A-Za-z]\w{0,4}$", cell):
        return "file"
    if re.fullmatch(r"\d+(\.\d+)?", cell):
        return "number"
    return "id" if VIDEO_ID.fullmatch(cell.lstrip("'=").strip('"')) else "words" if " " in cell else "word"


def _look(name: str) -> tuple[str, bool]:
    """What files of one table have in common: the extension, and whether there are spaces in the name."""
    return os.path.splitext(name.strip())[1].lower(), " " in name.strip()


def _is_spaced(cells: list[str]) -> bool:
    """Whether a space follows a comma, as in prose."""
    return any(cell[:1] == " " for cell in cells[1:])


def _header(records: Iterable[_Record]) -> list[str]:
    return [column.strip().lower() for record in itertools.islice(records, 1) for column in record.cells]


def read_head(inventory: Inventory, name: bytes, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a metadata file in UTF-8, decompressed if its name ends in `.gz`; empty if it cannot be read."""
    return _utf_8(_raw_head(inventory, name, size))


def _raw_head(inventory: Inventory, name: bytes, size: int) -> bytes:
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


def first_keys(inventory: Inventory, name: bytes) -> set[str]:
    """Keys of the first entry of a JSON file; all keys in its head if it is a list, or the entry is long, broken or too deep."""
    text = read_head(inventory, name).decode("utf-8", "replace").lstrip()
    value: Any = {}
    if not _LIST.match(text):
        with suppress(RecursionError, ValueError):
            value = _DECODER.raw_decode(text)[0]
    return set(value or map(parse_json, _KEY.findall(text))) if isinstance(value, dict) and text.startswith(("{", "[")) else set()


def read_json(inventory: Inventory, name: bytes) -> Any:
    """The value of a JSON file; UserError, naming it, if it is invalid."""
    text = read_text(inventory, name)
    try:
        with _objects(inventory, name) as made:
            return parse_json(text, object_pairs_hook=made)
    except ValueError as error:
        path = escape_path(inventory.metadata[name])
        raise UserError(f"{path}: not readable as JSON: {error}; correct it, or remove it from the corpus") from None


def read_entries(inventory: Inventory, name: bytes) -> Iterator[tuple[int | str, Any]]:
    """Entries (line or index, value) of JSON lines, a list or its `data`, whatever the name; UserError, naming the line."""
    if _has_lines(inventory, name):
        yield from read_json_lines(inventory, name)
        return
    path, text = escape_path(inventory.metadata[name]), read_text(inventory, name)
    at, line = _BLANK.match(text).end(), 1
    line += text.count("\n", 0, at)
    try:
        with _objects(inventory, name) as made:
            decoder = json.JSONDecoder(object_pairs_hook=made)
            while at < len(text):
                value, end = decoder.raw_decode(text, at)
                items = value.get("data") if isinstance(value, dict) else value
                if isinstance(items, list):
                    place = "data" if isinstance(value, dict) else ""
                    yield from ((f"{place}[{number}]", item) for number, item in enumerate(items))
                else:
                    yield line, value
                end = _BLANK.match(text, end).end()
                at, line = end, line + text.count("\n", at, end)
    except (ValueError, RecursionError) as error:
        line, said = getattr(error, "lineno", line), error if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path}:{line}: not readable as JSON: {said}; correct it, or remove it from the corpus") from None


def _has_lines(inventory: Inventory, name: bytes) -> bool:
    """Whether each line of a file in UTF-8 is a JSON value, by the first that is not empty."""
    head = _raw_head(inventory, name, HEAD_BYTES)
    text = _utf_8(head).decode("utf-8", "replace").lstrip()
    if _wide_encoding(head) or _LIST.match(text) or text.startswith("["):
        return False
    line, end, _ = text.partition("\n")
    try:
        parse_json(line)
    except TooDeepError:
        return True
    except ValueError:
        return not end and len(head) >= HEAD_BYTES  # a long line
    return True


def read_json_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, Any]]:
    """Values of a JSON lines file, compressed or not, as (line number, value); UserError, naming the line, if one is invalid."""
    inventory.opened.add(name)
    path = escape_path(inventory.metadata[name])
    number, total = 0, 0
    others: list[str] = []  # lines that are not UTF-8
    try:
        with _objects(inventory, name) as made, _open_packed(inventory.metadata[name], name) as file:
            while line := file.readline(MAX_TEXT_BYTES + 1):
                number, total = number + 1, total + len(line)
                if len(line) > MAX_TEXT_BYTES or total > MAX_MANIFEST_BYTES:
                    raise UserError(f"{path}:{number}: a line over {MAX_TEXT_BYTES} bytes, or too much text; is it JSON lines?")
                text, recoded = _decoded(line)
                others += [f"line {number}"] * bool(recoded)
                if text.strip():
                    yield number, parse_json(text, object_pairs_hook=made)
    except (ValueError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}:{number}: not readable as JSON lines: {error}; correct it, or remove it from the corpus") from None
    inventory.remark(name, NOT_UTF_8, others)


@contextmanager
def _objects(inventory: Inventory, name: bytes) -> Iterator[Callable[[list[tuple[str, Any]]], dict[str, Any]]]:
    """What makes objects of a JSON file from their pairs; those with a repeated key are remarked at the end."""
    repeated: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            repeated.append(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r:.80}")
        return value

    yield made
    inventory.remark(name, "objects with a repeated key, whose last value is used", repeated)


def _open_packed(path: bytes, name: bytes) -> IO[bytes]:
    file = buckets.open_file(path)
    return gzip.open(file) if name.lower().endswith(b".gz") else file
