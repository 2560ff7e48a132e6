"""Terms of recordings: licence, creator, source and use for AI, from `licences.csv` or from what else a corpus brings: tables,
tags, and texts beside recordings (licence files, a readme, credits, the card of a data set)."""

from __future__ import annotations

import csv
import html
import io
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from soundmill import terminal
from soundmill.corpora import licence_texts, sound_tags, sources, statements
from soundmill.corpora.claims import JoinState, claim_all
from soundmill.corpora.csv_rows import CLOTHO
from soundmill.corpora.csv_tables import csv_columns, read_csv
from soundmill.corpora.inventory import LICENCES, Inventory, composed
from soundmill.corpora.json_entries import NSYNTH, WAVCAPS
from soundmill.corpora.metadata import read_entries, read_head, read_json, read_lines, read_text
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.statements import AI_TERMS, MAX_CELL, NAMES, UNKNOWN, Reader, Statement, clean, combine, is_id
from soundmill.corpora.tables import CorpusTables, ManifestRow
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import TERMS, escape_path, path_text, youtube_videos
from soundmill.params import StageParams

if TYPE_CHECKING:
    from rich.table import Table


COLUMNS = ["glob", "licence", "creator", "source_url", "ai_terms"]
MAX_PATTERNS = 1000  # rows with wildcards, each compared with every recording
LISTED = 20  # rows of a printed table
_WILDCARD = re.compile(r"[*?[]")


class TermsParams(StageParams):
    """What the terms of a recording must be."""

    allow: Annotated[list[str], Field(min_length=1)] | None = Field(description="patterns of licences to keep; null: all")
    unknown: Literal["keep", "quarantine"] = Field(description="recordings without a known licence")
    ai_refused: Literal["keep", "quarantine"] = Field(description="recordings whose creators refuse the use for generative AI")

    @property
    def keep_all(self) -> bool:
        """Whether no recording can break these terms."""
        return self.allow is None and self.unknown == self.ai_refused == "keep"

    def broken_by(self, row: Mapping[str, Any]) -> str:
        """Why these terms forbid a recording (row of manifest.RECORDINGS); empty if they do not."""
        licence = row["licence"]
        if licence in (None, UNKNOWN) and self.unknown == "quarantine":
            return "no known licence, and corpus.terms.unknown is quarantine"
        allowed = self.allow is None or licence is None or licence in self.allow
        if not allowed and not (is_id(licence) and any(fnmatchcase(licence, pattern) for pattern in self.allow)):
            what = "an unclear licence" if licence == UNKNOWN else f"licence {licence:.200}"
            return f"{what}, which corpus.terms.allow does not have ({row['terms_found']})"
        if row["ai_terms"] == "refused" and self.ai_refused == "quarantine":
            return f"use for AI refused, and corpus.terms.ai_refused is quarantine ({row['terms_found']})"
        return ""

    def refused(self, recordings: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Rows of manifest.REFUSED: recordings that break these terms, and those that are the same file; UserError if all do."""
        rows = list(recordings)
        whys = {row["recording_id"]: why for row in rows if (why := self.broken_by(row))}
        same = {row["digest"]: row for row in reversed(rows) if row["recording_id"] in whys and row["digest"]}
        found = []
        for row in rows:
            why, other = whys.get(row["recording_id"]), same.get(row["digest"])
            if why or other:
                why = why or f"the same file as {other['path']}: {whys[other['recording_id']]}"
                found.append({"recording_id": row["recording_id"], "path": row["path"], "detail": why})
        if found and len(found) == len(rows):
            first, remedy = found[0], f"change corpus.terms, or state terms in {LICENCES.decode()} (docs/corpora.md#terms)"
            raise UserError(f"corpus.terms: no recording is left (first: {first['path']}: {first['detail']}); {remedy}")
        return found


def fill(tables: CorpusTables, inventory: Inventory) -> None:
    """Set the terms of a corpus's recordings; UserError, naming file and line, if its `licences.csv` is unusable.

    The last row of `licences.csv` that matches a recording's path decides. Without one, what tables and the file itself say
    comes first; then the texts in the nearest folder that has any; then what is known of the corpus or of YouTube.
    """
    stated_for = _read(tables, inventory) if LICENCES in inventory.metadata else lambda path: None
    reader = Reader()
    of_recording = _read_tables(tables, inventory, reader)
    of_folder = licence_texts.read_texts(tables, inventory)
    videos = youtube_videos(tables.recordings)
    beyond: list[str] = []
    for row, stated in tables.with_stated(inventory):
        if (found := stated_for(composed(row["path"]))) is None:
            beyond += [row["path"] for _, values in stated if sound_tags.BEYOND in values]
            own = [*of_recording.get(row["raw_path"], ()), *filter(None, (reader.of(values, found) for found, values in stated))]
            of_video = row["group"] in videos
            # A list of others' sounds comes with terms of the list.
            others = of_video or tables.format == WAVCAPS.FORMAT
            beside = [] if others else _nearest(row["raw_path"], of_folder)
            known = []  # from its name
            if of_video:
                known.append(Statement("its YouTube id", source_url=f"https://www.youtube.com/watch?v={row['group']}"))
            if tables.format == NSYNTH.FORMAT and NSYNTH.NOTE.fullmatch(os.path.basename(row["raw_path"])):
                known.append(NSYNTH.STATEMENT)
            found = combine([own, beside, known])
        row |= found
    tables.remark(beyond, "recordings have more tags than are read, so the licence in them is unclear")
    tables.remark(reader.too_long, f"texts about terms have more than {MAX_CELL} characters and are left out")
    tables.remark(reader.unclear_ai_terms, f"ai_terms are none of {', '.join(AI_TERMS)} and are left out")


def _nearest(raw_path: bytes, of_folder: Mapping[bytes, list[Statement]]) -> list[Statement]:
    """What is stated in the nearest folder with an entry."""
    folder, found = raw_path, None
    while found is None and folder:
        folder = os.path.dirname(folder)
        found = of_folder.get(folder)
    return found or []


def _read(tables: CorpusTables, inventory: Inventory) -> Callable[[str], dict[str, str | None] | None]:
    """The terms for a path by `licences.csv`: those of the last row that matches it, shared by all recordings of that row."""
    name = LICENCES.decode()
    place = escape_path(inventory.metadata[LICENCES])
    terms: list[dict[str, str | None]] = []  # of each row
    literal: dict[str, int] = {}  # glob → number of its last row
    globs = []

    def cleaned(text: str) -> str | None:
        return sys.intern(clean(text)) or None

    reader = csv.reader(io.StringIO(read_text(inventory, LICENCES, strict=True), newline=""), strict=True)
    at = 1
    try:
        if next(reader, None) != COLUMNS:
            raise UserError(f"{place}:1: the header must be {','.join(COLUMNS)} (docs/corpora.md#terms)")
        at = reader.line_num + 1
        for cells in reader:
            at, line = reader.line_num + 1, at
            if not cells:
                continue
            if len(cells) != len(COLUMNS):
                raise UserError(f"{place}:{line}: {len(cells)} cells, must be {len(COLUMNS)}: {', '.join(COLUMNS)}")
            if long := [column for column, cell in zip(COLUMNS, cells, strict=True) if len(cell) > MAX_CELL]:
                raise UserError(f"{place}:{line}: {long[0]} has more than {MAX_CELL} characters; shorten it")
            glob, licence, creator, url, ai_terms = composed(cells[0]), *cells[1:]
            if not glob:
                raise UserError(f"{place}:{line}: glob is empty; give a path, or * for all recordings")
            licence, ai_terms = cleaned(licence), cleaned(ai_terms) or UNKNOWN
            if ai_terms not in AI_TERMS:
                raise UserError(f"{place}:{line}: ai_terms is {ai_terms[:40]!r}, must be empty or one of {', '.join(AI_TERMS)}")
            licence = None if licence in (None, UNKNOWN) else cleaned(statements.spdx(licence))
            ai_terms = None if ai_terms == UNKNOWN else cleaned(ai_terms)
            literal[glob] = len(terms)
            globs.append(glob)
            values = licence, cleaned(creator), cleaned(url), ai_terms, f"{name}:{line}"
            terms.append(dict(zip(TERMS, values, strict=True)))
    except csv.Error as error:
        raise UserError(f"{place}:{at}: not readable as csv: {error}") from None
    # A path may contain characters that would be wildcards.
    paths = {path for row in tables.recordings if (path := composed(row["path"])) in literal}
    others = [(number, glob) for number, glob in enumerate(globs) if glob not in paths]
    wild = [(number, glob) for number, glob in others if _WILDCARD.search(glob)]
    if len(wild) > MAX_PATTERNS:
        what = f"more than {MAX_PATTERNS} rows have wildcards and are no path of a recording"
        raise UserError(f"{place}: {what} (first: {wild[0][1]:.200}); name the recordings instead")
    patterns = [(number, re.compile(translate(glob))) for number, glob in wild]
    if stray := [glob for _, glob in others if not _WILDCARD.search(glob)]:
        first = escape_path(stray[0].encode("utf-8", "surrogateescape"))
        tables.remarks.append(f"{name}: {len(stray)} rows name no recording (first: {first:.200})")

    def match(path: str) -> dict[str, str | None] | None:
        number = max([literal.get(path, -1), *(number for number, pattern in patterns if pattern.match(path))])
        return terms[number] if number >= 0 else None

    return match


def count_by(recordings: Iterable[Mapping[str, Any]], column: str) -> dict[str, int]:
    """Number of recordings by `licence` or `ai_terms`, most first."""
    counts = Counter(row[column] or UNKNOWN for row in recordings)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def table(counts: Mapping[str, int], title: str) -> Table:
    """A table for the console: number of recordings by what `title` names."""
    from rich.text import Text

    grid = terminal.table(title, "recordings")
    rows = list(counts.items())
    for name, count in rows[:LISTED]:
        grid.add_row(Text(name[:80]), f"{count:,}")
    if rest := rows[LISTED:]:
        grid.add_row(f"{len(rest)} others", f"{sum(count for _, count in rest):,}")
    return grid


# Names of columns and keys with the path, name or id of a recording, in lower case; the first that a file has is used.
KEYS = ("file_name", "filename", "fname", "slice_file_name", "path", "file", "audio", "wav", "track_id", "id", "sound_id", "name")
_IN_JSON = re.compile(rb'"(?:%s)"\s*:' % "|".join(sorted(NAMES)).encode(), re.IGNORECASE)
_LINES = re.compile(rb"\.(?:jsonl|ndjson)(?:\.gz)?$", re.IGNORECASE)
_OF_ONE = re.compile(rb"(?:\.info)?\.json$", re.IGNORECASE)  # JSON beside a recording, of its name; yt-dlp's is `.info.json`
_NUMBERED = re.compile(r"([1-9]\d{0,9})__.+")  # Freesound's names of downloads: `{id}__{user}__{title}`
_JAMENDO_LIST = re.compile(rb"(?:^|/)audio_licen[cs]es\.txt$")  # of MTG-Jamendo
_JAMENDO_TRACK = re.compile(r"track_0*([1-9]\d{0,9})")
# By format: the word in a table's name for the folder of its recordings, and all such words.
_PARTS = {CLOTHO.FORMAT: (CLOTHO.part_of, CLOTHO.SPLITS), WAVCAPS.FORMAT: (WAVCAPS.part, WAVCAPS.parts)}
_Entry = tuple[int | str, list[str], Statement]  # what a table says of one recording: line or key, names, terms


def _read_tables(tables: CorpusTables, inventory: Inventory, reader: Reader) -> dict[bytes, list[Statement]]:
    """Statements by raw path of the recording, tables in the order of their names; unreadable tables become remarks."""
    part_of, parts = _PARTS.get(tables.format, (lambda name: "", {}))
    index: FileIndex | None = None
    numbered: dict[str, list[bytes]] = defaultdict(list)
    rows: list[ManifestRow] = []
    stated: list[Statement] = []
    for name in sorted(inventory.metadata.keys() - {LICENCES}):
        try:
            for entry in _entries(inventory, name, reader):
                if index is None:
                    index = FileIndex(inventory)
                    for file in inventory.audio:
                        if match := _NUMBERED.fullmatch(file.stem):
                            numbered[match[1]].append(file.raw_path)
                if row := _row(name, entry, index, numbered, part_of(name)):
                    rows.append(row)
                    stated.append(entry[2])
        except UserError as error:
            tables.remarks.append(f"{error}; the terms in it that come later are unknown")
    found: dict[bytes, list[Statement]] = defaultdict(list)
    if index is not None:
        state = JoinState(CorpusTables())
        claim_all(inventory, rows, state, dict(parts or {}), index)
        for number, raw_path in sorted(state.owners.items()):
            found[raw_path].append(stated[number])
        _add_ambiguous(found, rows, stated, state, tables)
    return found


def _add_ambiguous(
    found: dict[bytes, list[Statement]], rows: list[ManifestRow], stated: list[Statement], state: JoinState, tables: CorpusTables
) -> None:
    """Of rows that may mean several recordings: their licence makes that of each unknown, and a refusal holds for each."""
    by_origin: dict[str, list[Statement]] = defaultdict(list)
    for row, statement in zip(rows, stated, strict=True):
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
    places = [f"{entry['id'][:80]}, {entry['origins'][0][:200]}" for entry in open_]
    tables.remark(places, "names in rows with terms have several meanings, so their licence is not taken")


def _row(name: bytes, entry: _Entry, index: FileIndex, numbered: Mapping[str, list[bytes]], part: str) -> ManifestRow | None:
    """A row with the first key that a file has."""
    folder, (at, keys, _) = os.path.dirname(name), entry
    if _OF_ONE.search(name):
        beside = index.at(path_text(_OF_ONE.sub(b"", os.path.basename(name))), folder)
        if len(beside) == 1 and at == "":
            return ManifestRow(name, at, path_text(beside[0].raw_path), part=part, at_root=True)
    for key in keys:
        if index.has_name_of(key) or index.resolve(key, folder).files:
            return ManifestRow(name, at, key, part=part)
        if len(named := numbered.get(key, ())) == 1:
            return ManifestRow(name, at, path_text(named[0]), part=part, at_root=True)
    return None


def _entries(inventory: Inventory, name: bytes, reader: Reader) -> Iterator[_Entry]:
    """What a metadata file says of recordings; nothing if it is no such table."""
    shown, lower = escape_path(name), name.lower()
    if lower.endswith((b".csv", b".tsv")):
        if not NAMES.isdisjoint(columns := csv_columns(inventory, name)) and not set(KEYS).isdisjoint(columns):
            yield from _of_rows(read_csv(inventory, name), shown, reader)
    elif _JAMENDO_LIST.search(lower):
        yield from _jamendo(read_lines(inventory, name), shown, reader)
    elif lower.endswith(b".parquet"):
        yield from _of_rows(_parquet(inventory, name), shown, reader)
    elif ((has_lines := _LINES.search(lower)) or lower.endswith(b".json")) and _IN_JSON.search(read_head(inventory, name)):
        rows = read_entries(inventory, name) if has_lines else _objects(read_json(inventory, name))
        yield from _of_rows(rows, shown, reader)


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
        if name := next((name for name in ("data", "results") if isinstance(value.get(name), list)), None):
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
