"""Corpus formats by name, in the order of detection; the section `corpus` of params.yaml, which names them for external recordings;
and the union of several corpora as one."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from soundmill import hashing
from soundmill.corpora import audiofolder, buckets, csv_rows, file_tables, folder, json_entries, sources
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.sources import PART_NAME
from soundmill.corpora.tables import CorpusTables
from soundmill.corpora.terms import TermsParams
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import VIDEO_ID, escape_path
from soundmill.params import Seconds, StageParams, did_you_mean, read_yaml

AUTO = "auto"
# Modules or objects with `FORMAT`, `detect(inventory)` and `read(inventory, num_shards)`. The first whose `detect` is true reads a
# corpus; a plain folder is the last.
ADAPTERS: dict[str, Any] = {
    adapter.FORMAT: adapter
    for adapter in (
        audiofolder,
        json_entries.NSYNTH,
        json_entries.AUDIOLDM,
        csv_rows.MusicCaps(),
        json_entries.Panns(),
        csv_rows.CLOTHO,
        json_entries.AMPHION,
        json_entries.Audiocraft(),
        csv_rows.AUDIOCAPS,
        json_entries.TANGO,
        json_entries.WAVCAPS,
        csv_rows.AudioSet(),
        csv_rows.VggSound(),
        folder.Esc(),
        json_entries.StableAudio(),
        csv_rows.LjSpeech(),
        folder.SpeechCommands("sc09", folder.DIGITS),
        folder.SpeechCommands("speech_commands"),
        file_tables.FileTables(),
        folder.Folder(),
    )
}
LAYOUTS = read_yaml(Path(__file__).with_name("layouts.yaml"))  # what a corpus of each format looks like
NAMES = (AUTO, *ADAPTERS)


def read(name: str, inventory: Inventory, num_shards: int, needs_audio: bool = True) -> CorpusTables:
    """Tables of a corpus in this format (`auto`: detect it), in stable order; without recordings a UserError if `needs_audio`."""
    if name == AUTO:
        name = detect(inventory)
    if name not in ADAPTERS:
        raise UserError(f"corpus.format: {name!r} is unknown{did_you_mean(name, NAMES)}; choose one of {', '.join(NAMES)}")
    inventory.opened.clear()  # by detection
    tables = ADAPTERS[name].read(inventory, num_shards)
    if needs_audio and not tables.recordings:
        where = f"{escape_path(bytes(inventory.root))}, read as {name}{_parquet(inventory)}"
        raise UserError(f"corpus.path: no recording in {where}; see docs/corpora.md for the formats")
    tables.remarks += sorted(inventory.remarks.values())
    what = f"tables, lists or texts not read, since they are not part of the format {name}"
    then = "; to use a table, call its columns `file` and `caption` or `label`, or see docs/corpora.md"
    tables.remark(list(map(escape_path, inventory.unread())), what, then)
    if all(map(str.isdecimal, tables.labels)):
        tables.remark(tables.labels, "labels are numbers", ", as are captions made from them; write the classes' names instead")
    tables.settle(name)
    return tables


def detect(inventory: Inventory) -> str:
    """Detect the format of a corpus from its metadata and file names; opens metadata only."""
    for name, adapter in ADAPTERS.items():
        if adapter.detect(inventory):
            return name
    inventory.check_not_empty()
    where = f"{escape_path(bytes(inventory.root))}{_parquet(inventory)}"
    raise UserError(f"no recording in {where}; give the directory of the audio files (`corpus.path`)")


def _parquet(inventory: Inventory) -> str:
    """The part of an error about Parquet tables, if there is nothing else."""
    names = [name for name in inventory.metadata if name.lower().endswith(b".parquet")]
    if inventory.audio or not names:
        return ""
    why = ""
    try:
        sources.open_table(inventory.metadata[names[0]]).close()
    except DecodeError as error:
        why = f": {error}"
    return f" ({len(names)} Parquet tables without a readable column of recordings, first: {escape_path(names[0])}{why})"


UNION = "union"


class PartParams(StageParams):
    """One corpus of a union."""

    format: Literal[NAMES]
    path: str
    weight: float = Field(gt=0, le=1000, description="expected number of draws of each of its clips per epoch of training")


class ScanParams(StageParams):
    format: Literal[(*NAMES, UNION)]
    path: str | None = Field(description="the corpus directory or bucket; a relative one starts at the checkout; null for a union")
    parts: dict[Annotated[str, Field(pattern=rf"^{PART_NAME.pattern}$")], PartParams] = Field(description="corpora of a union")
    embedded: list[str] = Field(max_length=0)
    external: list[str] = Field(min_length=1, max_length=1)
    shards: int = Field(ge=1, le=4096)
    follow_links: bool = Field(description="follow links that leave the corpus; else they are quarantined")
    max_seconds: Seconds = Field(gt=0, description="a large file with a longer duration in its header is quarantined unread")
    terms: TermsParams


@dataclass(frozen=True)
class Directory:
    """A corpus, or a part of a union; `name` is empty without a union."""

    name: str
    format: str
    weight: float
    root: Path | Bucket
    follow_links: bool


def directories(params: ScanParams, home: Path) -> list[Directory]:
    """The corpus, or the parts of a union in the order of their names; relative paths start at `home`."""
    if params.format != UNION:
        if params.parts:
            raise UserError("params.yaml: corpus.parts is for a union only; set corpus.format to union, or corpus.parts to {}")
        return [Directory("", params.format, 1.0, _existing(params.path, home), params.follow_links)]
    if params.path is not None or not params.parts:
        remedy = "set corpus.parts to {name: {format: auto, path: DIR, weight: 1.0}, …} (docs/corpora.md)"
        raise UserError(f"params.yaml: a union has its directories in corpus.parts, and corpus.path is null; {remedy}")
    directories = []
    for name, part in sorted(params.parts.items()):
        with named(name):
            directories.append(Directory(name, part.format, part.weight, _existing(part.path, home), params.follow_links))
    return directories


@contextmanager
def named(part: str) -> Iterator[None]:
    """Prefix errors with the part of the union that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"corpus.parts.{part}: {error}" if part else str(error)) from None


def _existing(path: str | None, home: Path) -> Path | Bucket:
    """The directory or bucket at corpus.path; UserError if it is none. A bucket is not looked up."""
    remedy = "set it to the directory of your recordings: `make run CORPUS=DIR`, or `soundmill params corpus=auto corpus.path=DIR`"
    if not path:
        raise UserError(f"params.yaml: corpus.path is not set; {remedy}")
    if buckets.is_url(path):
        return buckets.root_of(path, home)
    root = home / path
    try:
        root.stat()
    except OSError as error:
        what = "no such directory" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"corpus.path: {root}: {what}; {remedy}") from None
    if not root.is_dir():
        raise UserError(f"corpus.path: {root} is a file, not a directory; {remedy}")
    return root.resolve()


@dataclass(frozen=True)
class UnionPart:
    """One corpus of a union, read by its adapter. `name` is the first component of its paths; see sources.PART_NAME."""

    name: str
    weight: float  # expected number of draws of each of its clips per epoch of training
    inventory: Inventory
    tables: CorpusTables


def unite(parts: Iterable[UnionPart]) -> tuple[Inventory, CorpusTables]:
    """The union of corpora as one corpus (docs/corpora.md); their order changes nothing. A part without a name is the whole corpus.

    Recordings keep their shards, groups and, except in collisions, ids.
    """
    parts = list(parts)
    if not parts[0].name:
        return parts[0].inventory, parts[0].tables
    inventory, tables = Inventory(Path()), CorpusTables()
    for part in sorted(parts, key=lambda part: part.name):
        ids = _add_recordings(part, tables)
        for row in part.tables.captions:
            # Ids of missing recordings are prefixed, so that they do not match another part's: no id has a slash.
            owner = ids.get(row["recording_id"]) or f"{part.name}/{row['recording_id']}"
            tables.captions.append({**row, "recording_id": owner, "origin": f"{part.name}/{row['origin']}"})
        tables.named |= {ids[name] for name in part.tables.named}
        _add_reports(part, inventory, tables)
    tables.settle(UNION)
    return inventory, tables


def _add_recordings(part: UnionPart, tables: CorpusTables) -> dict[str, str]:
    """Add a part's recordings; returns id in the part → id in the union."""
    splits = _splits(part.tables.recordings)
    starts = {row["recording_id"]: row["start_time"] for row in tables.recordings}
    ids = {}
    for row in part.tables.recordings:
        own_id, path, raw_path = row["recording_id"], f"{part.name}/{row['path']}", part.name.encode() + b"/" + row["raw_path"]
        # Files with one path in two corpora have the same hash but are different recordings.
        recording_id = None if own_id == hashing.short_digest(row["raw_path"]) else own_id
        if VIDEO_ID.fullmatch(own_id) and starts.get(own_id, row["start_time"]) != row["start_time"]:
            recording_id = f"{own_id}_{row['start_time']:g}"  # another part of the video, as within one corpus
        ids[own_id] = tables.take_id(recording_id, raw_path, path)
        of_union = {"recording_id": ids[own_id], "path": path, "raw_path": raw_path, "split": splits.get(own_id)}
        tables.recordings.append({**row, **of_union, "corpus": part.name, "weight": row["weight"] * part.weight})
    return ids


def _splits(recordings: list[dict[str, Any]]) -> dict[str, str]:
    """Given splits by recording id; without any, or if all are train, those by fold, as in splits.assign."""
    given = {row["recording_id"]: row["split"] for row in recordings if row["split"]}
    folds = {row["recording_id"]: row["fold"] for row in recordings if row["fold"] is not None}
    if set(given.values()) - {"train"} or len(set(folds.values())) < 2:
        return given
    last = max(folds.values())
    return given | {recording_id: "test" if fold == last else "train" for recording_id, fold in folds.items()}


def _add_reports(part: UnionPart, inventory: Inventory, tables: CorpusTables) -> None:
    tables.rejected.extend(_below(part.name, row) for row in part.tables.rejected)
    inventory.rejected.extend(_below(part.name, row) for row in part.inventory.rejected)
    for report in ("missing", "collisions", "ambiguous"):
        getattr(tables, report).extend(_below(part.name, entry) for entry in getattr(part.tables, report))
    tables.remarks.extend(f"{part.name}: {remark}" for remark in part.tables.remarks)
    tables.counts.update(part.tables.counts)
    inventory.ignored.update(part.inventory.ignored)
    inventory.num_files += part.inventory.num_files


def _below(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a report, its paths and origins prefixed with the name of the part."""
    entry = dict(entry)
    for key in ("path", "taken"):
        if isinstance(entry.get(key), str) and (key == "path" or entry[key] in entry.get("paths", ())):
            entry[key] = f"{name}/{entry[key]}"
    for key in ("paths", "origins"):
        if key in entry:
            entry[key] = [f"{name}/{value}" for value in entry[key]]
    return entry
