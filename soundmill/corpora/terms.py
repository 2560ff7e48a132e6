"""Terms of recordings: licence, creator, source and use for AI, from `licences.csv` or from what else a corpus brings."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from soundmill.corpora import licences, sound_tags, term_files, term_tables
from soundmill.corpora.inventory import LICENCES, Inventory, composed
from soundmill.corpora.json_entries import NSYNTH, WAVCAPS
from soundmill.corpora.metadata import read_text
from soundmill.corpora.statements import AI_TERMS, MAX_CELL, UNKNOWN, Reader, Statement, clean, combine
from soundmill.corpora.tables import CorpusTables
from soundmill.errors import UserError
from soundmill.manifest import escape_path, youtube_videos
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
        if (
            licence is not None
            and self.allow is not None
            and not (
                licence in self.allow or (licences.is_id(licence) and any(fnmatchcase(licence, pattern) for pattern in self.allow))
            )
        ):
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
            raise UserError(
                f"corpus.terms: no recording is left (first: {found[0]['path']}: {found[0]['detail']}); change corpus.terms, or "
                f"state terms in {LICENCES.decode()} (docs/corpora.md#terms)"
            )
        return found


@dataclass
class _Rows:
    """The rows of `licences.csv`: their terms, shared by all recordings that a row matches."""

    terms: list[dict[str, str | None]] = field(default_factory=list)
    literal: dict[str, int] = field(default_factory=dict)  # glob → number of its last row
    patterns: list[tuple[int, re.Pattern[str]]] = field(default_factory=list)

    def match(self, path: str) -> dict[str, str | None] | None:
        """The terms of the last row that matches a path."""
        number = self.literal.get(path, -1)
        for at, pattern in reversed(self.patterns):
            if at < number or pattern.match(path):
                number = max(at, number)
                break
        return self.terms[number] if number >= 0 else None


def fill(tables: CorpusTables, inventory: Inventory) -> None:
    """Set the terms of a corpus's recordings; UserError, naming file and line, if its `licences.csv` is unusable.

    The last row of `licences.csv` that matches a recording's path decides. Without one, what tables and the file itself say
    comes first; then the texts in the nearest folder that has any; then what is known of the corpus or of YouTube.
    """
    rows = _read(tables, inventory) if LICENCES in inventory.metadata else _Rows()
    reader = Reader()
    of_recording = term_tables.read(tables, inventory, reader)
    of_folder = term_files.read(tables, inventory, reader)
    videos = youtube_videos(tables.recordings)
    beyond: list[str] = []
    for row, stated in tables.with_stated(inventory):
        if (found := rows.match(composed(row["path"]))) is None:
            beyond += [row["path"] for _, values in stated if sound_tags.BEYOND in values]
            own = [*of_recording.get(row["raw_path"], ()), *filter(None, (reader.of(values, found) for found, values in stated))]
            of_video = row["group"] in videos
            # A list of others' sounds comes with terms of the list.
            others = of_video or tables.format == WAVCAPS.FORMAT.name
            beside = [] if others else _nearest(row["raw_path"], of_folder)
            found = combine([own, beside, list(_known(row, of_video, tables.format))])
        row |= found
    if beyond:
        what = f"{len(beyond)} recordings have more tags than are read, so the licence in them is unclear"
        tables.remarks.append(f"{what} (first: {beyond[0][:200]})")
    if reader.too_long:
        what = f"{reader.too_long} texts about terms have more than {MAX_CELL} characters and are left out"
        tables.remarks.append(f"{what} (first: {reader.first_too_long[:200]})")
    if reader.unclear_ai_terms:
        what = f"{reader.unclear_ai_terms} ai_terms are none of {', '.join(AI_TERMS)} and are left out"
        tables.remarks.append(f"{what} (first: {reader.first_unclear[:200]})")


def _nearest(raw_path: bytes, of_folder: Mapping[bytes, list[Statement]]) -> list[Statement]:
    """What is stated in the nearest folder with an entry."""
    folder, found = raw_path, None
    while found is None and folder:
        folder = os.path.dirname(folder)
        found = of_folder.get(folder)
    return found or []


def _known(row: Mapping[str, Any], of_video: bool, corpus: str) -> Iterator[Statement]:
    """What a recording's name says: the address of a YouTube video, the terms of NSynth."""
    if of_video:
        yield Statement("its YouTube id", source_url=f"https://www.youtube.com/watch?v={row['group']}")
    if corpus == NSYNTH.FORMAT.name and NSYNTH.NOTE.fullmatch(os.path.basename(row["raw_path"])):
        yield NSYNTH.STATEMENT


def _read(tables: CorpusTables, inventory: Inventory) -> _Rows:
    name = LICENCES.decode()
    place = escape_path(inventory.metadata[LICENCES])
    rows = _Rows()
    globs = []
    known = Reader()

    def cleaned(text: str) -> str | None:
        return known.once(clean(text)) or None

    reader = csv.reader(io.StringIO(read_text(inventory, LICENCES, strict=True), newline=""), strict=True)
    at = 1
    try:
        for cells in reader:
            at, line = reader.line_num + 1, at
            if line == 1:
                if cells != COLUMNS:
                    raise UserError(f"{place}:1: the header must be {','.join(COLUMNS)} (docs/corpora.md#terms)")
                continue
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
            licence = None if licence in (None, UNKNOWN) else cleaned(licences.spdx(licence))
            ai_terms = None if ai_terms == UNKNOWN else cleaned(ai_terms)
            found = f"{name}:{line}"
            rows.literal[glob] = len(rows.terms)
            globs.append(glob)
            rows.terms.append(
                {
                    "licence": licence,
                    "creator": cleaned(creator),
                    "source_url": cleaned(url),
                    "ai_terms": ai_terms,
                    "terms_found": found,
                }
            )
    except csv.Error as error:
        raise UserError(f"{place}:{at}: not readable as csv: {error}") from None
    if at == 1:
        raise UserError(f"{place}:1: the header must be {','.join(COLUMNS)} (docs/corpora.md#terms)")
    # A path may contain characters that would be wildcards.
    paths = {path for row in tables.recordings if (path := composed(row["path"])) in rows.literal}
    others = [(number, glob) for number, glob in enumerate(globs) if glob not in paths]
    wild = [(number, glob) for number, glob in others if _WILDCARD.search(glob)]
    if len(wild) > MAX_PATTERNS:
        what = f"more than {MAX_PATTERNS} rows have wildcards and are no path of a recording"
        raise UserError(f"{place}: {what} (first: {wild[0][1]:.200}); name the recordings instead")
    rows.patterns = [(number, re.compile(translate(glob))) for number, glob in wild]
    if stray := [glob for _, glob in others if not _WILDCARD.search(glob)]:
        tables.remarks.append(f"{name}: {len(stray)} rows name no recording (first: {escape_path(os.fsencode(stray[0]))[:200]})")
    return rows


def count_by(recordings: Iterable[Mapping[str, Any]], column: str) -> dict[str, int]:
    """Number of recordings by `licence` or `ai_terms`, most first."""
    counts = Counter(row[column] or UNKNOWN for row in recordings)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def table(counts: Mapping[str, int], title: str) -> Table:
    """A table for the console: number of recordings by what `title` names."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title, box=None, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("recordings", justify="right")
    rows = list(counts.items())
    for name, count in rows[:LISTED]:
        grid.add_row(Text(name[:80]), f"{count:,}")
    if rest := rows[LISTED:]:
        grid.add_row(f"{len(rest)} others", f"{sum(count for _, count in rest):,}")
    return grid
