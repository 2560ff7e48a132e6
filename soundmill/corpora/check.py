"""Check a corpus without changing it: which clips have files, which do not, what is ambiguous."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import csv_files, disk, params
from soundmill.corpora import csv_tables, inventory, registry, terms
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.clip_plan import check_rate
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.registry import Directory, ScanParams, UnionPart, directories, named, unite
from soundmill.corpora.resolver import TOLERANCE
from soundmill.corpora.sources import Sources, split
from soundmill.corpora.tables import CorpusTables
from soundmill.decoding import decode
from soundmill.errors import UserError, first_of
from soundmill.manifest import escape_path, naming_stem

if TYPE_CHECKING:
    from rich.console import Console

LISTED = 10  # entries of each kind in the printed report; the JSON has all
UNDESCRIBED = "none; to ask for sounds by name, give each class a folder of its own, or write captions (docs/corpora.md)"
KEPT = "corpus.terms keeps every recording, whatever its terms (allow is null, unknown and ai_refused are keep)"
AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


@dataclass(frozen=True)
class Report:
    """The state of one corpus. Paths are escaped, relative to its directory; in a union their part's name comes first."""

    path: Path | Bucket  # the corpus directory; for a union, the params.yaml that lists its parts
    detected: bool  # the format was detected, not given
    parts: dict[str, str]  # of a union: format by name
    inventory: Inventory
    tables: CorpusTables
    damaged: list[dict[str, str]]  # path, reason, detail: files and rows that the pipeline would quarantine
    inside: int  # matched rows that start inside their recording

    @property
    def coverage(self) -> float | None:
        """Share of the listed clips that have a file; None if nothing is listed."""
        return len(self.tables.matched) / self.listed if self.listed else None

    @property
    def listed(self) -> int:
        """Clips that are matched, missing, or ambiguous without a chosen file."""
        return len(self.tables.matched) + len(self.tables.missing) + self.tables.counts["undecided_clips"]

    @property
    def splits(self) -> str:
        if given := Counter(row["split"] for row in self.tables.recordings if row["split"]):
            return ", ".join(f"{name} {count}" for name, count in sorted(given.items()))
        folds = len({row["fold"] for row in self.tables.recordings if row["fold"] is not None})
        return f"{folds} folds; the highest is test" if folds > 1 else "none given; a stable hash will assign them"

    def counts(self) -> dict[str, int]:
        listed = {"recordings": self.tables.recordings, "captions": self.tables.captions, **self._lists()}
        return {name: len(entries) for name, entries in listed.items()}

    def as_json(self) -> dict[str, Any]:
        return {
            "path": escape_path(bytes(self.path)),
            "format": self.tables.format,
            "detected": self.detected,
            **({"parts": self.parts} if self.parts else {}),
            "coverage": self.coverage,
            "inside": self.inside,
            "undescribed": len(self.tables.named),
            "unusable": len(self.tables.rejected),
            "counts": self.counts(),
            "licences": terms.count_by(self.tables.recordings, "licence"),
            "ai_terms": terms.count_by(self.tables.recordings, "ai_terms"),
            **self._lists(),
            "remarks": self.tables.remarks,
        }

    def _lists(self) -> dict[str, list[dict[str, Any]]]:
        names = ("matched", "missing", "orphans", "collisions", "ambiguous")
        return {name: getattr(self.tables, name) for name in names} | {"damaged": self.damaged}


def check(
    directory: Path | Bucket,
    format: str = registry.AUTO,
    headers: bool = False,
    progress: Callable[[int], None] = lambda n: None,
    follow_links: bool = False,
) -> Report:
    """Check one corpus directory; UserError if the path is not a directory.

    Reads the tags of files, and a recording's header only if a row starts inside it (missing if beyond its end); with `headers`,
    every header: what cannot be decoded is damaged, and its clips are missing. `progress` counts the files opened.
    """
    place = directory_of(directory, format, follow_links)
    return report_of(place.root, [place], read([place], progress), headers, progress)


def directory_of(directory: Path | Bucket, format: str = registry.AUTO, follow_links: bool = False) -> Directory:
    """The directory or bucket as a corpus; UserError if it is no directory."""
    if isinstance(directory, Bucket):
        return Directory("", format, 1.0, directory, follow_links)
    if not directory.is_dir():
        what = "is a file, not a directory" if directory.exists() else "no such directory"
        raise UserError(f"{escape_path(bytes(directory))}: {what}; give the directory of your recordings")
    return Directory("", format, 1.0, directory.resolve(), follow_links)


def check_params(path: Path, headers: bool = False, progress: Callable[[int], None] = lambda n: None) -> Report:
    """Check the corpus, or union, in a params.yaml, as the stage `scan` reads it."""
    given = _section(path)
    places = directories(given, path.resolve().parent)
    report = report_of(path.resolve(), places, read(places, progress), headers, progress)
    if given.terms.keep_all:
        report.tables.remarks.append(KEPT)
    return report


def directories_of(path: Path) -> list[Directory]:
    return directories(_section(path), path.resolve().parent)


def _section(path: Path) -> ScanParams:
    document = params.section(params.read_yaml(path), "corpus", str(path))
    if isinstance(document, dict) and document.get("embedded"):
        raise UserError(f"{path}: this corpus is synthesised by the pipeline; to check your own recordings, give their directory")
    return params.parse(ScanParams, document, f"{path}: corpus")


def read(places: list[Directory], progress: Callable[[int], None] = lambda n: None) -> list[UnionPart]:
    """Read each directory: its inventory, without digests, and its tables with the terms that the stage `scan` finds."""
    parts = []
    for place in places:
        with named(place.name):
            taken = inventory.list_files(place.root, digests=False, follow_links=place.follow_links)
            tables = registry.read(place.format, taken, 1, needs_audio=False)
            unreadable = inventory.read_tags(taken, progress)
            terms.fill(tables, taken)
            tables.remark(list(map(escape_path, unreadable)), "recordings cannot be read, so their tags are not known")
            if inside := sum(not row["digest"] and split(row["raw_path"])[1] is not None for row in tables.recordings):
                tables.remarks.append(f"{inside} recordings are inside Parquet tables; terms in their tags are read only by `scan`")
            parts.append(UnionPart(place.name, place.weight, taken, tables))
    return parts


def report_of(
    path: Path | Bucket,
    places: list[Directory],
    parts: list[UnionPart],
    headers: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Check what `read` returned; clips beyond the end of their recording are moved to `missing`. `path` is for the report."""
    united = bool(places[0].name)
    files, tables = unite(parts)
    # In a union, a recording gets another id if an earlier part has its id.
    own_ids: dict[bytes, str] = {}
    for part in parts:
        below = part.name.encode() + b"/" if united else b""
        own_ids |= {below + row["raw_path"]: row["recording_id"] for row in part.tables.recordings}
    row_of = {row["recording_id"]: row for row in tables.recordings}

    def starts_inside(clip: dict[str, Any]) -> bool:
        start = clip["start_time"]
        return start is not None and start > row_of[clip["id"]]["start_time"] + TOLERANCE

    clips = defaultdict(list)  # listed clips by recording_id
    for clip in tables.matched:
        clips[clip["id"]].append(clip)
    late = {clip["id"] for clip in filter(starts_inside, tables.matched)}  # recordings that may be too short for a clip
    probed = [row for row in tables.recordings if headers or row["recording_id"] in late]
    damaged = files.rejected + tables.rejected
    lost: dict[tuple[str, float | None], dict[str, Any]] = {}  # clips of damaged recordings, or beyond the end of theirs
    sources = Sources({place.name.encode(): bytes(place.root) for place in places})
    for row, seconds in zip(probed, probe(sources, (row["raw_path"] for row in probed), progress), strict=True):
        broken = isinstance(seconds, decode.DecodeError)
        if broken:
            damaged.append({"path": row["path"], "reason": seconds.reason, "detail": seconds.detail})
        for clip in clips[row["recording_id"]]:
            start = clip["start_time"]
            if broken or (start is not None and start - row["start_time"] >= seconds):
                lost[clip["id"], start] = _as_missing(row, own_ids[row["raw_path"]], start)
    if lost:
        _move_to_missing(lost, tables, parts)
    inside = sum(map(starts_inside, tables.matched))
    formats = {part.name: part.tables.format for part in parts} if united else {}
    return Report(path, all(place.format == registry.AUTO for place in places), formats, files, tables, damaged, inside)


def probe(
    sources: Sources, raw_paths: Iterable[bytes], progress: Callable[[int], None] = lambda n: None
) -> list[float | decode.DecodeError]:
    """Length in seconds of each recording by its header, or its DecodeError, in the order of `raw_paths`."""

    def seconds(raw_path: bytes) -> float | decode.DecodeError:
        try:
            with sources.open(raw_path, scratch) as path:
                header = decode.probe(path, decode.MAX_SECONDS)
            check_rate(header.sample_rate)
            return header.num_frames / header.sample_rate
        except decode.DecodeError as error:
            return error

    results = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(seconds, raw_paths):
            results.append(result)
            progress(1)
    return results


def _as_missing(recording: dict[str, Any], own_id: str, start: float | None) -> dict[str, Any]:
    """An entry of `missing` for a clip, without captions; `own_id` is the recording's id in its own part of a union."""
    video = recording["group"] if naming_stem(own_id) == recording["group"] else None
    start = recording["start_time"] if start is None and video else start
    entry = {"id": video or recording["path"], "youtube_id": video, "start_time": start}
    return {**entry, "captions": [], "origins": [], "audiocap_ids": []}


def _move_to_missing(lost: dict[tuple[str, float | None], dict[str, Any]], tables: CorpusTables, parts: list[UnionPart]) -> None:
    origins = {row["origin"] for row in tables.captions if (row["recording_id"], row["start_time"]) in lost}
    numbers = {origin: number for part in parts for origin, number in _numbers(origins, part).items()}
    for row in tables.captions:
        if entry := lost.get((row["recording_id"], row["start_time"])):
            entry["captions"].append(row["caption"])
            entry["origins"].append(row["origin"])
            entry["audiocap_ids"].append(numbers.get(row["origin"], ""))
    described = {clip["id"] for clip in tables.matched}
    tables.matched = [clip for clip in tables.matched if (clip["id"], clip["start_time"]) not in lost]
    tables.missing.extend(lost.values())
    # File referenced only beyond its end.
    undescribed = described - {clip["id"] for clip in tables.matched}
    reported = {path for entry in tables.collisions + tables.ambiguous for path in entry.get("paths", ())}
    paths = [row["path"] for row in tables.recordings if row["recording_id"] in undescribed]
    tables.orphans.extend({"path": path} for path in paths if path not in reported)


def _numbers(origins: set[str], part: UnionPart) -> dict[str, str]:
    """AudioCaps' row ids by origin (`train.csv:12`)."""
    tables = {origin.rpartition(":")[0] for origin in origins}
    below = f"{part.name}/" if part.name else ""
    return {
        f"{below}{escape_path(name)}:{line}": cells["audiocap_id"]
        for name in part.inventory.csv_files()
        if below + escape_path(name) in tables and "audiocap_id" in csv_tables.csv_columns(part.inventory, name)
        for line, cells in csv_tables.read_csv(part.inventory, name)
        if f"{below}{escape_path(name)}:{line}" in origins
    }


def write_missing(report: Report, path: Path) -> int:
    """Write one csv row per caption of a missing clip, with AudioCaps' columns if it is YouTube's; returns their number."""
    of_video = [bool(entry["youtube_id"]) for entry in report.tables.missing]
    columns = AUDIOCAPS_COLUMNS + (() if all(of_video) else ("id", "origin")) if any(of_video) else ("id", "caption", "origin")
    rows = []
    for entry in report.tables.missing:
        start = entry["start_time"]
        of_clip = {**entry, "start_time": "" if start is None else f"{start:.10g}"}
        for number, caption, origin in zip(*(entry[name] or [""] for name in ("audiocap_ids", "captions", "origins")), strict=True):
            cells = {**of_clip, "audiocap_id": number, "caption": caption, "origin": origin}
            rows.append([cells[column] for column in columns])
    disk.write_text(path, csv_files.text(columns, rows))
    return len(rows)


def check_outside(path: Path, places: list[Path | Bucket]) -> None:
    """UserError if a file would be written into the corpus."""
    if any(path.resolve().is_relative_to(place.resolve()) for place in places if isinstance(place, Path)):
        raise UserError(f"{path}: lies in the corpus and would be read as one of its tables; write it elsewhere")


def show(report: Report, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    tables = report.tables
    if report.parts:
        about = "of " + ", ".join(f"{name} ({format})" for name, format in report.parts.items())
    else:
        source = "detected" if report.detected else "as given"
        about = f"({source}: {registry.LAYOUTS[tables.format]})"
    _say(console, f"corpus    {escape_path(bytes(report.path))}")
    _say(console, f"format    {tables.format} {about}")
    covered = UNDESCRIBED if report.coverage is None else f"{100 * report.coverage:.1f} %"
    of = f"{len(tables.matched)} of {report.listed} listed clips have a file"
    _say(console, f"coverage  {covered}" + (f" ({of})" if report.coverage is not None else ""))
    if report.inside:
        used = "used if a clip starts within 0.5 s of them or contains their window"
        _say(console, f"          {report.inside:,} of them start inside a longer file: {used}", "yellow")
    _say(console, f"labels    {first_of(tables.labels, LISTED) or 'none'}\nsplits    {report.splits}")
    if tables.named:
        _say(console, f"          {len(tables.named):,} of them have no caption or label", "yellow")
    if tables.rejected:
        _say(console, f"          {len(tables.rejected):,} rows or texts cannot be used: see damaged", "yellow")
    meanings = {
        "recordings": "possible recordings",
        "captions": "with or without a file",
        "matched": "listed clips with their file",
        "missing": "listed clips without a file",
        "orphans": "files without a row",
        "collisions": "ids of several files or rows",
        "ambiguous": "names with several meanings",
        "damaged": "unusable files and rows",
    }
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(justify="left")
    grid.add_column(justify="right")
    for name, count in report.counts().items():
        bad = count and name in ("missing", "collisions", "ambiguous", "damaged")
        grid.add_row(name, Text(f"{count:,}", style="yellow" if bad else ""), Text(meanings[name], style="dim"))
    console.print(grid)
    console.print(terms.table(terms.count_by(tables.recordings, "licence"), "licence"))
    if set(ai_terms := terms.count_by(tables.recordings, "ai_terms")) - {terms.UNKNOWN}:
        console.print(terms.table(ai_terms, "AI terms"))
    missing = []
    for entry in tables.missing[:LISTED]:
        start = entry["start_time"] if entry["id"] == entry["youtube_id"] else None
        missing.append(f"{entry['id']}{'' if start is None else f' at {start:g} s'}  {(entry['origins'] or [''])[0]}")
    lines = {
        "missing": missing,
        "orphans": [entry["path"] for entry in tables.orphans[:LISTED]],
        "collisions": [f"{entry['id']}  {_listed(entry)}" for entry in tables.collisions[:LISTED]],
        "ambiguous": [
            f"{entry['id']}  {entry['reason']}: {_listed(entry)}" + (f"; taken: {entry['taken']}" if entry["taken"] else "")
            for entry in tables.ambiguous[:LISTED]
        ],
        "damaged": [f"{row['path']}  {row['reason']}: {row['detail']}" for row in report.damaged[:LISTED]],
    }
    counts = report.counts()
    for name, shown in lines.items():
        if shown:
            _say(console, f"\n{name}" + (f" (the first {LISTED} of {counts[name]:,})" if counts[name] > LISTED else ""), "bold")
            for line in shown:
                _say(console, f"  {line}")
    for remark in tables.remarks:
        _say(console, f"\n{remark}", "yellow")
    if any(counts[name] > LISTED for name in lines):
        to_download = "; --missing FILE.csv lists what to download" if tables.missing else ""
        _say(console, f"\n--json FILE lists all of them{to_download}", "dim")


def _say(console: Console, text: str, style: str = "") -> None:
    """Print one line literally: no markup, no wrapping."""
    console.print(text, style=style, soft_wrap=True, markup=False, emoji=False, highlight=False)


def _listed(entry: dict[str, Any]) -> str:
    names = entry.get("paths") or entry.get("origins") or []
    return first_of(names, 4)
