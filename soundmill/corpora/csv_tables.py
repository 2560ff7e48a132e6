"""Reading the csv files of an inventory: rows whole or broken, with quotes that are not closed, whatever their separator."""

import csv
import functools
import io
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass

from soundmill import csv_files
from soundmill.corpora.inventory import Inventory, composed
from soundmill.corpora.metadata import BROKEN, head_text, read_text
from soundmill.corpora.resolver import FileIndex
from soundmill.errors import UserError
from soundmill.manifest import VIDEO_ID, escape_path

MAX_LACKING = 100_000  # cells that rows may lack, besides one for each byte: every one takes time
_TOO_LONG = "rows with more cells than the header; the rest is ignored (text with commas but without quotes?)"
_UNCLOSED = "rows with a quote that is not closed, which are read to the end of their line"
_REPEATED = "rows that repeat the header and are left out"
_OPEN = "unexpected end of data"  # what csv says of a quote that is not closed
_SAMPLE = 1000  # rows that show what is in which column
_KEYS = ("file", "id", "number")
_BEFORE = re.compile(r'(?:#[^,;\t|\r\n]*[\r\n]+)*(?:"?sep=([,;\t|])"?[\r\n]+)?', re.IGNORECASE)
_PROSE = re.compile(r"[^\W\d_]+[.!?:]?(\s.*)?", re.DOTALL)


def csv_columns(inventory: Inventory, name: bytes) -> list[str]:
    """The header of a csv in lower case; empty if there is none within MAX_TEXT_BYTES."""
    if name not in inventory.columns:
        text, inventory.columns[name] = head_text(inventory, name), []
        with suppress(csv.Error):
            inventory.columns[name] = _header(_records(text))
    return inventory.columns[name]


def csv_files_with(inventory: Inventory, columns: Set[str]) -> Iterator[bytes]:
    """Names of the csv files with these columns."""
    return (name for name in inventory.csv_files() if columns <= set(csv_columns(inventory, name)))


@dataclass(slots=True)
class _Record:
    """A row of a csv, and the numbers of its first and last line."""

    first: int
    last: int
    cells: list[str]
    unclosed: bool = False  # it has a quote that is not closed, so it was read to the end of its line


def _records(text: str, is_file: Callable[[str], bool] = lambda cell: False) -> Iterator[_Record]:
    """Rows of a csv, the header too; the delimiter is the first comma, semicolon or tab of the header, else `|`, or that of Excel's
    line `sep=;` before it. Comments before the header are left out. A quote within quotes may be written `\\"` before text, or `"`
    if the row then has all cells; spaces may stand before quotes.

    A quote that is not closed, or not where a cell ends, is text up to the end of its line, and so is one that is closed only after
    rows of files. csv.Error if a cell is too long.
    """
    before = _BEFORE.match(text)
    header = re.sub(r'"[^"]*"', "", re.match(r"[^\r\n]*", text[before.end() :])[0])
    mark = before if before[1] else re.search(r"([,;\t])", header) or re.search(r"(\|)", header)
    delimiter = mark[1] if mark else ","
    escaped = re.compile(rf'(?:^|{re.escape(delimiter)})"[^"]*\\"[^"\s{delimiter}]')
    lines = list(io.StringIO(text, newline=""))
    if '\\"' in text:  # not in the path of a folder, which ends with a backslash
        lines = [re.sub(r'(?<!\\)\\"', '""', line) if escaped.search(line) else line for line in lines]
    if f'{delimiter} "' in text:
        lines = [re.sub(rf'(?<=[{delimiter}]) +("(?:[^"]|"")*") *(?=[{delimiter}\r\n]|$)', r"\1", line) for line in lines]
    at, num_columns = len(re.findall(r"\r\n?|\n", before[0])), 0
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
            pieces = lines[at].strip("\r\n").split(delimiter)
            more = len(pieces) - num_columns  # of one text with quotes and delimiters inside
            starts = [start for start in range(num_columns) if 0 <= more and pieces[start][:1] == pieces[start + more][-1:] == '"']
            if starts and (more == 0 or len(starts) == 1):
                end = starts[0] + more + 1
                whole = [*pieces[: starts[0]], delimiter.join(pieces[starts[0] : end]), *pieces[end:]]
                if all(cell.startswith('"') == cell.endswith('"') for cell in whole):
                    cells = [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in whole]
            plain = [cell.strip('"') for cell in pieces]
            num_columns = num_columns or len(plain)
            # Without a comma in its text, the quote has no meaning.
            yield _Record(at + 1, at + 1, plain if over and len(plain) == num_columns else cells, unclosed=over)
            at += 1


def read_csv(inventory: Inventory, name: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a csv as (number of its last line, {column: text}); columns in lower case, missing cells are empty.

    A row without a key as other rows have it is a piece of a text with a line break and without quotes: it is left out, and so
    is the other piece, from the row that has it.
    """
    text = read_text(inventory, name)
    index = functools.cache(lambda: FileIndex(inventory))  # seldom needed

    def is_file(key: str) -> bool:
        return bool(index().resolve(key, os.path.dirname(name)).files)

    def is_row(record: _Record) -> bool:
        is_header = len(record.cells) == len(columns) and all(map(str.__eq__, map(_column, record.cells), columns))
        found[_REPEATED] += [f"line {record.last}"] * is_header
        return not is_header

    records, found, lacking = _records(text, is_file), defaultdict(list), 0
    try:
        columns = _header(header := list(itertools.islice(records, 1)))
        found[_UNCLOSED] += [f"line {record.first}" for record in header if record.unclosed]
        repeated = [column for column, count in Counter(filter(None, columns)).items() if count > 1]
        inventory.remark(name, "repeated columns in a header, of which the last is read", repeated)
        for record in _whole_rows(filter(is_row, records), len(columns), is_file, found):
            if columns[-1:] == ["tags"]:  # MTG-Jamendo has a cell for each
                record.cells[len(columns) - 1 :] = [";".join(record.cells[len(columns) - 1 :])]
            lacking += max(0, len(columns) - len(record.cells))
            if lacking > len(text) + MAX_LACKING:
                raise csv.Error(f"{record.last}: the rows up to here lack {lacking} cells of the header's {len(columns)} columns")
            if any(cell.strip() for cell in record.cells[len(columns) :]):
                found[_TOO_LONG].append(f"line {record.last}")
                record.cells[:] = itertools.takewhile(lambda cell: not cell.startswith(" "), record.cells)  # to a piece of text
            row = defaultdict(str, dict.fromkeys(columns, ""))
            row.update(zip(columns, map(csv_files.value, record.cells), strict=False))
            yield record.last, row
    except csv.Error as error:
        raise UserError(f"{escape_path(inventory.metadata[name])}:{error}; correct it, or remove it from the corpus") from None
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
    return [_column(cell) for record in itertools.islice(records, 1) for cell in record.cells]


def _column(cell: str) -> str:
    return composed(cell).strip().lower()
