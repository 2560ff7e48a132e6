"""Listing a recording or a clip as forgotten, with all copies of its sound; and searching for forgotten sounds (docs/lineage.md).

A file in DVC's cache is named by its digest; the cache's directory lists give the file names.
"""

import base64
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import hashing, ledger, manifest, shards, tracking
from soundmill.audio import fingerprint
from soundmill.corpora import duplicates, fingerprint_index, forgotten, inventory
from soundmill.corpora.forgotten import Entry, Forgotten, ForgottenClip
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.holdings import TEXTS, Held, Piece, Project, named, overlap, overlapping, piece_of
from soundmill.params import did_you_mean

WORK = Path("data/.work")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
CLIP_COLUMNS = ("clip_id", "first", "second", "a", "b")  # ids of clips in the tables of soundmill/manifest.py
OF_MIXES = (pa.string(), manifest.MIXED_CATALOG.field(manifest.MIXED).type)  # types of columns that tell what is in a mix
Progress = Callable[[int], object]  # called with the number of bytes just fingerprinted


@dataclass(frozen=True)
class Outcome:
    """The result of `forget`: new entries, entries listed before, and what contains the sounds now."""

    added: list[Entry]
    listed_before: list[Entry]
    held: Held
    marked: list[tracking.RegisteredModel]
    notes: list[str]


def forget(root: Path, things: Sequence[str], reason: str, progress: Progress = lambda n: None) -> Outcome:
    """Add recordings and clips, and all copies of their sound, to the project's list; mark registered models trained on them.

    UserError, and nothing is written, if one of `things` names nothing, or both a clip and a recording.
    """
    if not reason.strip():
        raise UserError("--reason: must not be empty; the list and the quarantine record it")
    ledger.update(root)
    project = Project(root)
    listed = in_force(root)
    pieces = [piece_of_name(project, thing) for thing in things]
    listed_before = [entry for piece in pieces if (entry := _entry_of(listed, piece))]
    unlisted = list(dict.fromkeys(piece for piece in pieces if not _entry_of(listed, piece)))
    new = [describe(project, piece, reason.strip(), None) for piece in unlisted]
    for entry in _copies(project, new, progress):
        piece = piece_of_entry(entry)
        if not any(_covers(other, piece) for other in (*listed.entries, *new)):
            new.append(entry)
    ledger.add(root, [entry.model_dump(mode="json") for entry in new])
    every = [*new, *listed_before]
    digests = {clip.digest for entry in every for clip in entry.clips}
    held = project.held([piece_of_entry(entry) for entry in every], digests=digests)
    models = {(model.name, model.version): model for weights, *_ in held.weights for model in weights.registered}
    marked = list(models.values())
    tracking.mark_forgotten(root, marked, add=_marks(every))
    return Outcome(new, listed_before, held, marked, project.gone)


def in_force(root: Path) -> Forgotten:
    """Everything that binds the checkout at `root`: its own list, and those of the projects that contain it."""
    return forgotten.parse({"forgotten": ledger.in_force(root)}, str(root / ledger.FILE))


def use_again(root: Path, things: Sequence[str]) -> list[Entry]:
    """Remove entries, and the copies listed with them, from the list, and their marks from registered models; returns the entries.

    Each of `things` is the path or id of a recording, or the id of a clip, as in the list. UserError, and nothing is changed, if
    one names no entry, or an entry of a project that contains this checkout.
    """
    entries = in_force(root).entries
    named = [entry for thing in things for entry in _named(entries, thing)]
    copies = {(entry.recording_id, _reason_of_copy(entry)) for entry in named}
    removed = [entry for entry in entries if entry in named or (entry.copy_of, entry.reason) in copies]
    inherited = [entry for entry in removed if not ledger.is_own(root, entry.model_dump(mode="json"))]
    if inherited:
        raise UserError(f"{inherited[0]} is on the list of the project that contains {root}; use --undo there (--project DIR)")
    ledger.remove(root, [entry.model_dump(mode="json") for entry in removed])
    marked = [model for model in Project(root).registered if tracking.FORGOTTEN in model.tags]
    tracking.mark_forgotten(root, marked, remove=_marks(removed))
    return removed


def _named(entries: Sequence[Entry], thing: str) -> list[Entry]:
    found = [entry for entry in entries if thing in (entry.source, entry.recording_id, str(entry))]
    found = found or [entry for entry in entries if thing in {clip.clip_id for clip in entry.clips} and not entry.is_whole]
    if not found:
        raise UserError(f"{thing}: not forgotten{did_you_mean(thing, [entry.source for entry in entries])}")
    return found


def piece_of_name(project: Project, thing: str) -> Piece:
    pieces = project.find(thing)
    if not pieces:
        raise project.unknown(thing)
    if len(pieces) > 1:
        raise UserError(f"{thing} is both a clip and a recording; use clip:{thing}, or recording:{thing} for all of it")
    return pieces[0]


def piece_of_entry(entry: Entry) -> Piece:
    whole = Piece(entry.recording_id, entry.source)
    return whole if entry.is_whole else replace(whole, start=entry.start, end=entry.end)


def _entry_of(listed: Forgotten, piece: Piece) -> Entry | None:
    return next((entry for entry in listed.entries if _covers(entry, piece)), None)


def _covers(entry: Entry, piece: Piece) -> bool:
    start, end = (0.0, math.inf) if entry.is_whole else (entry.start, entry.end)
    return entry.recording_id == piece.recording_id and start <= piece.start and piece.end <= end


def describe(project: Project, piece: Piece, reason: str, copy_of: str | None) -> Entry:
    """The entry of a piece, with everything that identifies it later."""
    row = project.recordings.get(piece.recording_id)
    clips = {(row["clip_id"], row["digest"]) for table in project.clips.values() for row in overlapping(table, [piece])}
    return Entry(
        recording_id=piece.recording_id,
        source=piece.source,
        digest=row["digest"] if row else None,
        start=None if piece.is_whole else float(piece.start),
        end=None if piece.is_whole else float(piece.end),
        clips=[ForgottenClip(clip_id=clip_id, digest=digest) for clip_id, digest in sorted(clips)],
        fingerprint=encoded(_fingerprint(project, row, piece)) if row else "",
        copy_of=copy_of,
        reason=reason,
    )


def encoded(words: np.ndarray) -> str:
    """A fingerprint in the encoding of an entry."""
    return base64.b64encode(words.astype("<u4").tobytes()).decode()


def _fingerprint(project: Project, row: dict[str, Any], piece: Piece) -> np.ndarray:
    """Fingerprint of a stretch of a recording, uint32 [frames, 2]; empty if its file is missing or cannot be decoded."""
    sources = Sources.of(project.data / "corpus", project.root, project.root)
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as scratch:
        try:
            with sources.open(row["raw_path"], scratch) as path:
                if hashing.file_digest(path) != row["digest"]:
                    raise UserError(f"{row['path']}: the file has changed since it was scanned; scan it again (`dvc repro`)")
                return words_of_file(path, piece.start, piece.end)
        except decode.DecodeError:
            return np.zeros((0, 2), np.uint32)
        except FileNotFoundError:
            project.gone.append(f"{row['path']} is missing: its copies are found only by digest")
            return np.zeros((0, 2), np.uint32)


def _copies(project: Project, entries: list[Entry], progress: Progress) -> list[Entry]:
    """Entries of their copies: other recordings and clips with the same sound, by fingerprint and by file digest.

    Other clips of a forgotten clip's own recording count if they repeat it.
    """
    found: dict[Piece, Entry] = {}  # copy → of what
    whole = {entry.digest: entry for entry in entries if entry.is_whole and entry.digest}
    for row in project.recordings.values():
        if row["digest"] in whole and row["recording_id"] != whole[row["digest"]].recording_id:
            found[Piece(row["recording_id"], row["path"])] = whole[row["digest"]]
    for variant, table in project.clips.items():
        matched: dict[str, tuple[Entry, set[str]]] = {}
        by_id = {row["clip_id"]: row for row in table.to_pylist()}
        for entry, clip_id in clips_like(project.data / "clips" / variant, entries, progress):
            row = by_id[clip_id]
            if row["recording_id"] != entry.recording_id or not (entry.is_whole or overlap(piece_of(row), piece_of_entry(entry))):
                matched.setdefault(row["recording_id"], (entry, set()))[1].add(clip_id)
        for recording_id, (entry, ids) in sorted(matched.items()):
            rows = [row for row in by_id.values() if row["recording_id"] == recording_id]
            if entry.is_whole and len(ids) == len(rows):  # all of its clips have this sound
                found.setdefault(Piece(recording_id, rows[0]["source"]), entry)
            else:
                for row in (row for row in rows if row["clip_id"] in ids):
                    found.setdefault(piece_of(row), entry)
    ordered = sorted(found, key=lambda piece: (piece.recording_id, piece.start, -piece.end))
    return [describe(project, piece, _reason_of_copy(found[piece]), found[piece].recording_id) for piece in ordered]


def _reason_of_copy(original: Entry) -> str:
    return f"a copy of {original}: {original.reason}"


def _marks(entries: list[Entry]) -> list[str]:
    return [" ".join(f"{entry} ({entry.reason})".split()) for entry in entries]


@dataclass(frozen=True)
class Traces:
    """How forgotten sounds are recognised in files."""

    pieces: tuple[Piece, ...]
    ids: frozenset[str]  # of clips cut from them
    digests: frozenset[str]  # of these clips, and of the files of whole recordings
    recordings: frozenset[str]  # ids of those that are forgotten entirely
    sources: frozenset[str]  # their paths in the corpus
    unreadable: list[Path] = field(default_factory=list, compare=False)  # tables that could not be read

    @classmethod
    def of(cls, entries: Iterable[Entry], pieces: Iterable[Piece], ids: Iterable[str] = ()) -> Self:
        """`ids` are further clips, beside those in the entries."""
        entries = list(entries)
        whole = [entry for entry in entries if entry.is_whole]
        clips = [clip for entry in entries for clip in entry.clips]
        return cls(
            tuple(pieces),
            frozenset({clip.clip_id for clip in clips} | {*ids}),
            frozenset({clip.digest for clip in clips} | {entry.digest for entry in whole if entry.digest}),
            frozenset(entry.recording_id for entry in whole),
            frozenset(entry.source for entry in whole),
        )

    def __bool__(self) -> bool:
        return bool(self.ids or self.recordings or self.digests)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return named(self.ids, self.sources)

    def in_table(self, path: Path) -> int:
        """Number of matching rows of a Parquet file; a file that cannot be read is added to `unreadable`."""
        table = self._table(path, (*CLIP_COLUMNS, "digest", "recording_id", "start", "seconds"))
        if table is None or not table.num_columns:
            return 0
        tests = [(name, self.ids) for name in CLIP_COLUMNS] + [("digest", self.digests), ("recording_id", self.recordings)]
        matches = pa.array([False] * table.num_rows, pa.bool_())
        for name, values in tests:
            if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
                matches = pc.or_(matches, pc.is_in(table[name], pa.array(sorted(values), pa.string())).combine_chunks())
        rows = pc.sum(matches).as_py() or 0
        if {"recording_id", "start", "seconds"} <= set(table.column_names) and not rows:
            rows = len(overlapping(table, self.pieces))
        return rows

    def _table(self, path: Path, columns: Iterable[str]) -> pa.Table | None:
        try:
            with shards.open_parquet(path) as file:
                return file.read([name for name in columns if name in file.schema_arrow.names])
        except (UserError, pa.ArrowException, OSError):
            self.unreadable.append(path)
            return None

    def with_mixes(self, paths: Iterable[Path]) -> Self:
        """Also the mixes that have a clip of them, by the Parquet files at `paths`: other files there have only a mix's own id."""
        mixes = set()
        for path in paths:
            table = self._table(path, ("clip_id", "first", "second", manifest.MIXED, "mix"))
            tells = table and table.num_columns > 1 and all(kind in OF_MIXES for kind in table.schema.types)
            for row in table.to_pylist() if tells else ():
                of_mix = {row.get("first"), row.get("second"), *(row.get(manifest.MIXED) or ())}
                mix, parts = (row["mix"], {row["clip_id"]}) if row.get("mix") else (row.get("clip_id"), of_mix)
                if not self.ids.isdisjoint(parts):
                    mixes.add(mix)
        return replace(self, ids=self.ids | mixes)

    def in_text(self, text: str) -> bool:
        return self._names.search(text) is not None

    def in_name(self, path: Path) -> bool:
        """Whether a sound file is named after such a clip (`ID.wav`, `ID-codec.wav`, `Y….wav` of rename.naming: split)."""
        stems = (*self.ids, *map(manifest.split_stem, self.ids))
        return path.stem in stems or any(path.stem.startswith(f"{clip_id}-") for clip_id in self.ids)

    def in_file(self, path: Path) -> str:
        """What a file contains of them, as text; empty if nothing is found."""
        if path.suffix == ".parquet" and (rows := self.in_table(path)):
            return f"trained on {rows} clips of it" if path.name == manifest.TRAINED_ON_FILE else f"{rows} rows of it"
        if path.suffix in TEXTS and self.in_text(path.read_text(encoding="utf-8", errors="replace")):
            return "names it"
        return "a sound named after a clip of it" if path.suffix in SOUNDS and self.in_name(path) else ""


def in_tree(directory: Path, traces: Traces) -> Iterator[tuple[Path, str]]:
    """(file, why) of the matching files below a directory; for weights trained on them, (directory, why)."""
    for where, _, names in os.walk(directory):
        for name in sorted(names):
            if why := traces.in_file(path := Path(where, name)):
                yield (path.parent if name == manifest.TRAINED_ON_FILE else path), why


def in_store(directory: Path, traces: Traces, entries: Sequence[Entry], progress: Progress) -> dict[Path, str]:
    """Matching files below a directory of MLflow → why; sounds are also compared by fingerprint."""
    traces = traces.with_mixes(directory.rglob("*.parquet"))
    found = dict(in_tree(directory, traces))
    sounds = [path for path in sorted(directory.rglob("*")) if path.suffix in SOUNDS and path not in found]
    copies = files_like(directory, sounds, entries, progress)
    return found | {directory / name: f"sounds like {entry}, by fingerprint" for entry, name in copies}


def on_server(root: Path, uri: str, traces: Traces) -> tuple[list[str], str]:
    """One sentence for each matching file name of runs on a tracking server, and one about what was not searched."""
    try:
        files = [(run, name) for run, name in tracking.files_of_runs(root) if name.suffix in SOUNDS and traces.in_name(name)]
    except UserError as error:
        return [], f"files of runs at {uri} were not searched: {error}"
    found = [f"{uri}, run {run}: {name}: a sound named after a clip of it; delete it there" for run, name in files]
    return found, f"files of runs at {uri} were searched for sounds only, by name"


def in_cache(cache: Path, traces: Traces) -> dict[Path, str]:
    objects = [Path(where, name) for where, _, names in os.walk(cache / "files" / "md5") for name in names]
    found: dict[Path, str] = {}
    tables, texts = [], []
    for path in (path for path in objects if path.suffix != ".dir"):
        with path.open("rb") as file:
            start = file.read(1024)
        if start.startswith(b"PAR1"):
            tables.append(path)
        elif b"\0" not in start:
            texts.append(path)
    traces = traces.with_mixes(tables)
    found |= {path: f"{rows} rows of it" for path in tables if (rows := traces.in_table(path))}
    found |= {path: "names it" for path in sorted(texts) if traces.in_text(path.read_text("utf-8", errors="replace"))}
    for path in objects:
        entries = [(path.parents[1] / digest[:2] / digest[2:], name) for digest, name in hashing.listed(path)]
        weights = {name.parent for target, name in entries if name.name == manifest.TRAINED_ON_FILE and target in found}
        for target, name in entries:
            if not target.exists():
                continue
            if name.suffix in SOUNDS and traces.in_name(name):
                found[target] = "a sound named after a clip of it"
            elif name.suffix == ".safetensors" and weights & {name.parent, *name.parents}:
                found[target] = "weights trained on it"
    return found


def scratch(root: Path) -> list[Path]:
    """Scratch directories of running or killed stages; their content is not searched."""
    return [path for path in sorted((root / WORK).glob("*/*")) if path.is_dir() and path.name != "kept"]


def kept(root: Path, traces: Traces) -> Iterator[tuple[Path, str]]:
    """(shard, why) of the matching shards kept for a stage's next run."""
    traces = traces.with_mixes((root / WORK).glob("*/kept/**/*.parquet"))
    for directory in sorted((root / WORK).glob("*/kept")):
        for path, why in in_tree(directory, traces):
            if path.suffix == ".parquet":  # other files there are reports, which may name rejected recordings
                yield path, why


def words_of_file(path: Path, start: float = 0.0, end: float = math.inf) -> np.ndarray:
    """Fingerprint of the seconds from `start` to `end` of a file, uint32 [frames, 2]; DecodeError if it cannot be decoded."""
    rate = fingerprint.SAMPLE_RATE
    wave = decode.read_mono(path, rate, decode.MAX_SECONDS)
    return fingerprint.fingerprint(wave[round(start * rate) : len(wave) if math.isinf(end) else round(end * rate)])


def clips_like(clips: Path, entries: Sequence[Entry], progress: Progress) -> list[tuple[Entry, str]]:
    """(entry, clip id) of the clips below `clips` that have the fingerprint of an entry."""
    jobs = [shards.Job(path.name, (path,), path.stat().st_size) for path in shards.shard_paths(clips)]
    return _search(entries, jobs, duplicates.fingerprint_shard, progress)


def _search(
    entries: Sequence[Entry], jobs: list[shards.Job], function: Callable[..., shards.Report], progress: Progress
) -> list[tuple[Entry, str]]:
    """Fingerprint the sounds of the jobs, and find those that match an entry."""
    words = {number: entry.words for number, entry in enumerate(entries) if entry.fingerprint}
    if not words or not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as name:
        scratch = Path(name)
        shards.map_shards(function, jobs, scratch / "prints", workers=min(os.cpu_count() or 1, len(jobs)), progress=progress)
        tables = [shards.read_table(scratch / "prints" / job.name, manifest.FINGERPRINTS) for job in jobs]
        searched = pa.concat_tables(tables)
        sought = list(words), [fingerprint_index.landmark_table(words.values())]
        among = searched["clip_id"].to_pylist(), [searched.select(fingerprint_index.COLUMNS.names)]
        found = sorted((number, name) for number, name, _ in fingerprint_index.matches(scratch, sought, among))
        return [(entries[number], name) for number, name in found]


def files_like(root: Path, paths: Iterable[Path], entries: Sequence[Entry], progress: Progress) -> list[tuple[Entry, str]]:
    """(entry, path relative to `root`) of the files that have the fingerprint of an entry."""
    files = [inventory.AudioFile(bytes(path.relative_to(root)), path.stat().st_size, "") for path in paths]
    batches = [files[start : start + duplicates.FILES_PER_JOB] for start in range(0, len(files), duplicates.FILES_PER_JOB)]
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(root), batch), sum(file.size for file in batch))
        for number, batch in enumerate(batches)
    ]
    return _search(entries, jobs, duplicates.fingerprint_files, progress)
