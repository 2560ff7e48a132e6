"""Terms in the tables, JSON files and lists of a corpus, whatever its format: rows with a licence, creator or address.

Rows are matched with files as captions are (`join.py`), so a name with several meanings states no licence.
"""

import html
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soundmill.corpora import sources
from soundmill.corpora.csv_rows import CLOTHO
from soundmill.corpora.inventory import LICENCES, Inventory
from soundmill.corpora.join import JoinState, claim_all
from soundmill.corpora.json_entries import WAVCAPS
from soundmill.corpora.metadata import csv_columns, read_csv, read_entries, read_head, read_json, read_lines
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.statements import NAMES, UNKNOWN, Reader, Statement, clean
from soundmill.corpora.tables import CorpusTables, ManifestRow
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import escape_path

# Names of columns and keys with the path, name or id of a recording, in lower case; the first that a file has is used.
KEYS = ("file_name", "filename", "fname", "slice_file_name", "path", "file", "audio", "wav", "track_id", "id", "sound_id", "name")
_IN_JSON = re.compile(rb'"(?:%s)"\s*:' % "|".join(sorted(NAMES)).encode(), re.IGNORECASE)
_LINES = re.compile(rb"\.(?:jsonl|ndjson)(?:\.gz)?$", re.IGNORECASE)
_OF_ONE = re.compile(rb"(?:\.info)?\.json$", re.IGNORECASE)  # JSON beside a recording, of its name; yt-dlp's is `.info.json`
_NUMBERED = re.compile(r"([1-9]\d{0,9})__.+")  # Freesound's names of downloads: `{id}__{user}__{title}`
_JAMENDO_LIST = re.compile(rb"(?:^|/)audio_licen[cs]es\.txt$")  # of MTG-Jamendo
_JAMENDO_TRACK = re.compile(r"track_0*([1-9]\d{0,9})")
# By format: the word in a table's name for the folder of its recordings, and all such words.
_PARTS = {CLOTHO.FORMAT.name: (CLOTHO.part_of, CLOTHO.SPLITS), WAVCAPS.FORMAT.name: (WAVCAPS.part, WAVCAPS.parts)}


_Entry = tuple[int | str, list[str], Statement]  # what a table says of one recording: line or key, names, terms


def read(tables: CorpusTables, inventory: Inventory, reader: Reader) -> dict[bytes, list[Statement]]:
    """Statements by raw path of the recording, tables in the order of their names; unreadable tables become remarks."""
    part_of, parts = _PARTS.get(tables.format, (lambda name: "", {}))
    index: FileIndex | None = None
    numbered: dict[str, list[bytes]] = defaultdict(list)
    rows: list[ManifestRow] = []
    statements: list[Statement] = []
    for name in sorted(inventory.metadata):
        try:
            for entry in _entries(inventory, name, reader):
                if index is None:
                    index = FileIndex(inventory)
                    for file in inventory.audio:
                        if match := _NUMBERED.fullmatch(file.stem):
                            numbered[match[1]].append(file.raw_path)
                if row := _row(name, entry, index, numbered, part_of(name)):
                    rows.append(row)
                    statements.append(entry[2])
        except UserError as error:
            tables.remarks.append(f"{error}; the terms in it that come later are unknown")
    found: dict[bytes, list[Statement]] = defaultdict(list)
    if index is not None:
        state = JoinState(CorpusTables())
        claim_all(inventory, rows, state, dict(parts or {}), index)
        for number, raw_path in sorted(state.owners.items()):
            found[raw_path].append(statements[number])
        _add_ambiguous(found, rows, statements, state, tables)
    return found


def _add_ambiguous(
    found: dict[bytes, list[Statement]],
    rows: list[ManifestRow],
    statements: list[Statement],
    state: JoinState,
    tables: CorpusTables,
) -> None:
    """Of rows that may mean several recordings: their licence makes that of each unknown, and a refusal holds for each."""
    by_origin: dict[str, list[Statement]] = defaultdict(list)
    for row, statement in zip(rows, statements, strict=True):
        by_origin[row.origin].append(statement)
    raw_of = {row["path"]: row["raw_path"] for row in tables.recordings}
    open_ = [entry for entry in state.tables.ambiguous if entry["taken"] is None]
    for entry in open_:
        raw_paths = [raw_of[path] for path in entry["paths"] if path in raw_of]
        for one in (statement for origin in entry["origins"] for statement in by_origin[origin]):
            for raw_path in raw_paths:
                licence = UNKNOWN if one.licence and not any(other.licence for other in found[raw_path]) else None
                ai_terms = "refused" if one.ai_terms == "refused" else None
                if licence or ai_terms:
                    found[raw_path].append(Statement(one.found, licence, ai_terms=ai_terms))
    if open_:
        what = f"{len(open_)} names in rows with terms have several meanings, so their licence is not taken"
        tables.remarks.append(f"{what} (first: {open_[0]['id'][:80]}, {open_[0]['origins'][0][:200]})")


def _row(name: bytes, entry: _Entry, index: FileIndex, numbered: Mapping[str, list[bytes]], part: str) -> ManifestRow | None:
    """A row with the first key that a file has."""
    folder, (at, keys, _) = os.path.dirname(name), entry
    if _OF_ONE.search(name):
        beside = index.at(os.fsdecode(_OF_ONE.sub(b"", os.path.basename(name))), folder)
        if len(beside) == 1 and at == "":
            return ManifestRow(name, at, os.fsdecode(beside[0].raw_path), part=part, at_root=True)
    for key in keys:
        if index.has_name_of(key) or index.resolve(key, folder).files:
            return ManifestRow(name, at, key, part=part)
        if len(named := numbered.get(key, ())) == 1:
            return ManifestRow(name, at, os.fsdecode(named[0]), part=part, at_root=True)
    return None


def _entries(inventory: Inventory, name: bytes, reader: Reader) -> Iterator[_Entry]:
    """What a metadata file says of recordings; nothing if it is no such table."""
    shown, lower = escape_path(name), name.lower()
    if name == LICENCES:
        return
    if lower.endswith((b".csv", b".tsv")):
        if not NAMES.isdisjoint(columns := csv_columns(inventory, name)) and not set(KEYS).isdisjoint(columns):
            yield from _of_rows(read_csv(inventory, name), shown, reader)
    elif _JAMENDO_LIST.search(lower):
        yield from _jamendo(read_lines(inventory, name), shown, reader)
    elif lower.endswith(b".parquet"):
        yield from _of_rows(_parquet(inventory, name), shown, reader)
    elif (_LINES.search(lower) or lower.endswith(b".json")) and _IN_JSON.search(read_head(inventory, name)):
        if _LINES.search(lower):
            yield from _of_rows(read_entries(inventory, name), shown, reader)
        else:
            yield from _of_rows(_objects(read_json(inventory, name)), shown, reader)


def _of_rows(rows: Iterable[tuple[int | str, Any]], shown: str, reader: Reader) -> Iterator[_Entry]:
    """Entries of rows: line or key ("": the whole file), values."""
    for at, values in rows:
        where = f"{shown}:{clean(str(at))[:80]}" if at != "" else shown
        if isinstance(values, dict) and (statement := reader.of(values, where)):
            yield at, list(_keys({str(name).strip().lower(): value for name, value in values.items()})), statement


def _keys(values: Mapping[str, Any]) -> Iterator[str]:
    for name in KEYS:
        value = values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            continue
        if name == "track_id" and (match := _JAMENDO_TRACK.fullmatch(value.strip())):
            path = f"{int(match[1]) % 100:02d}/{match[1]}"
            yield from (path, f"{path}.low")
        else:
            yield value
            if (plain := html.unescape(value).strip()) != value:
                yield plain


def _objects(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, object) of a JSON value: a list, also as `data` or `results`; an object with one for each recording; or of one."""
    if isinstance(value, dict):
        name = next((name for name in ("data", "results") if isinstance(value.get(name), list)), None)
        if name is not None:
            yield from ((f"{name}[{number}]", one) for number, one in enumerate(value[name]))
        elif NAMES.isdisjoint(map(str.lower, value)):
            yield from ((key, {KEYS[0]: key, **one}) for key, one in value.items() if isinstance(one, dict))
        else:
            yield "", value
    elif isinstance(value, list):
        yield from ((f"[{number}]", one) for number, one in enumerate(value))


def _parquet(inventory: Inventory, name: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table that names files; the adapter reads those of tables with recordings inside."""
    try:
        with sources.open_table(inventory.metadata[name]) as file:
            columns = {column.strip().lower() for column in file.schema_arrow.names}
            if sources.audio_column(file.schema_arrow) or NAMES.isdisjoint(columns) or columns.isdisjoint(KEYS):
                return
            yield from sources.numbered_rows(file)
    except DecodeError as error:
        raise UserError(f"{escape_path(name)}: {error}") from None


def _jamendo(lines: Iterable[tuple[int, str]], shown: str, reader: Reader) -> Iterator[_Entry]:
    """MTG-Jamendo's list: the path of a track, a line with its address, a line with its licence."""
    path, at, link = "", 0, ""
    for number, line in lines:
        line = line.strip()
        if re.fullmatch(r"\d{2}/\d+\.mp3", line):
            path, at, link = line, number, ""
        elif path and (match := re.search(r"from Jamendo: (https?://\S+)$", line)):
            link = match[1]
        elif path and (match := re.search(r"\blicen[cs]e: (https?://\S+)$", line)):
            if statement := reader.of({"licence": match[1], "url": link}, f"{shown}:{at}"):
                yield at, [path, f"{path.removesuffix('.mp3')}.low.mp3"], statement
            path = ""
