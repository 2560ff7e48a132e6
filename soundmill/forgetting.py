"""Forgetting a recording or a clip: listing it with every other copy of its sound, saying what holds it, proving that nothing does.

Copies are found by the fingerprints that tell duplicates, among the clips of all variants.
"""

from __future__ import annotations

import base64
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import manifest, shards, tracking
from soundmill.audio import fingerprint, resample
from soundmill.corpora import duplicates, fingerprint_index, forgotten, inventory, landmarks
from soundmill.corpora.forgotten import Clip, Entry, Forgotten
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.lineage import Held, Piece, Project, overlap, overlapping, piece_of

Progress = Callable[[int], object]  # is told how many more bytes have a fingerprint


@dataclass(frozen=True)
class Outcome:
    """What `forget` did: entries that are new, those that were listed before, and what holds the sound now."""

    added: list[Entry]
    known: list[Entry]
    held: Held
    marked: list[tracking.RegisteredModel]
    notes: list[str]


def forget(root: Path, things: Sequence[str], reason: str, progress: Progress = lambda n: None) -> Outcome:
    """Add recordings and clips to the project's list, and all copies of their sound; mark registered models that know them.

    A word that means nothing, or both a clip and a recording, is a UserError; then nothing is written.
    """
    if not reason.strip():
        raise UserError("--reason: say why; the list and the quarantine keep it")
    project, path = Project(root), root / forgotten.FILE
    listed = forgotten.read(path)
    wanted = [_one(project, thing) for thing in things]
    known = [entry for piece in wanted if (entry := _entry_of(listed, piece))]
    asked = list(dict.fromkeys(piece for piece in wanted if not _entry_of(listed, piece)))
    new = [_describe(project, piece, reason.strip(), None) for piece in asked]
    for number, entry in _copies(project, new, progress):
        piece = _piece(entry)
        if not any(_covers(other, piece) for other in (*listed.entries, *new)):
            new.append(_as_copy(entry, new[number]))
    if new:
        forgotten.write([*listed.entries, *new], path)
    every = [*new, *known]
    held = project.held([_piece(entry) for entry in every], digests={clip.digest for entry in every for clip in entry.clips})
    marked = _mark(root, held, [*new, *known])
    return Outcome(new, known, held, marked, project.gone)


def _one(project: Project, thing: str) -> Piece:
    pieces = project.find(thing)
    if not pieces:
        raise project.unknown(thing)
    if len(pieces) > 1:
        raise UserError(f"{thing} is a clip and a recording; say which: clip:{thing}, or recording:{thing} for all of it")
    return pieces[0]


def _piece(entry: Entry) -> Piece:
    whole = Piece(entry.recording_id, entry.source)
    return whole if entry.is_whole else replace(whole, start=entry.start, end=entry.end)


def _entry_of(listed: Forgotten, piece: Piece) -> Entry | None:
    """The entry by which a piece is forgotten already."""
    return next((entry for entry in listed.entries if _covers(entry, piece)), None)


def _covers(entry: Entry, piece: Piece) -> bool:
    """Whether a piece is in an entry."""
    start, end = (0.0, math.inf) if entry.is_whole else (entry.start, entry.end)
    return entry.recording_id == piece.recording_id and start <= piece.start and piece.end <= end


def _describe(project: Project, piece: Piece, reason: str, copy_of: str | None) -> Entry:
    """The entry of a piece, with all that tells it later."""
    row = project.recordings.get(piece.recording_id)
    clips = {(row["clip_id"], row["digest"]) for table in project.clips.values() for row in overlapping(table, [piece])}
    return Entry(
        recording_id=piece.recording_id,
        source=piece.source,
        digest=row["digest"] if row else None,
        start=None if piece.is_whole else float(piece.start),
        end=None if piece.is_whole else float(piece.end),
        clips=[Clip(clip_id=clip_id, digest=digest) for clip_id, digest in sorted(clips)],
        fingerprint=base64.b64encode(_fingerprint(project, row, piece).astype("<u4").tobytes()).decode() if row else "",
        copy_of=copy_of,
        reason=reason,
    )


def _fingerprint(project: Project, row: dict[str, Any], piece: Piece) -> np.ndarray:
    """Of the seconds of a recording, uint32 [frames, 2]; none where its file cannot be decoded, or is another by now."""
    sources = Sources.of(project.data / "corpus", project.root, project.root)
    rate = fingerprint.SAMPLE_RATE
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as scratch:
        try:
            with sources.open(row["raw_path"], scratch) as path:
                if shards.file_digest(path) != row["digest"]:
                    raise UserError(f"{row['path']}: the file has changed since the corpus was scanned; run it again (`dvc repro`)")
                its_rate, blocks = decode.decode_blocks(path, decode.MAX_SECONDS)
                wave = np.concatenate([np.zeros(0, np.float32), *resample.resample_blocks(blocks, its_rate, rate)])
        except decode.DecodeError:
            return np.zeros((0, 2), np.uint32)
        except FileNotFoundError:
            project.gone.append(f"{row['path']} is not there: copies of it are told by its digests alone")
            return np.zeros((0, 2), np.uint32)
    last = len(wave) if piece.is_whole else round(piece.end * rate)
    return fingerprint.fingerprint(wave[round(piece.start * rate) : last])


def _copies(project: Project, entries: list[Entry], progress: Progress) -> list[tuple[int, Entry]]:
    """(number of the entry, a copy of it): other recordings and clips with the same sound, by fingerprint and by file digest.

    Of the recording of a forgotten clip, other clips that repeat it.
    """
    found: dict[Piece, int] = {}
    whole = {entry.digest: number for number, entry in enumerate(entries) if entry.is_whole and entry.digest}
    for row in project.recordings.values():
        if row["digest"] in whole and row["recording_id"] != entries[whole[row["digest"]]].recording_id:
            found[Piece(row["recording_id"], row["path"])] = whole[row["digest"]]
    for variant, table in project.clips.items():
        matched: dict[str, tuple[int, set[str]]] = {}
        by_id = {row["clip_id"]: row for row in table.to_pylist()}
        for number, clip_id in _alike(project.data / "clips" / variant, entries, progress):
            row, entry = by_id[clip_id], entries[number]
            if row["recording_id"] != entry.recording_id or not (entry.is_whole or overlap(piece_of(row), _piece(entry))):
                matched.setdefault(row["recording_id"], (number, set()))[1].add(clip_id)
        for recording_id, (number, ids) in sorted(matched.items()):
            its = [row for row in by_id.values() if row["recording_id"] == recording_id]
            if entries[number].is_whole and len(ids) == len(its):  # every clip of it is the sound again
                found.setdefault(Piece(recording_id, its[0]["source"]), number)
            else:
                for row in (row for row in its if row["clip_id"] in ids):
                    found.setdefault(piece_of(row), number)
    return [
        (number, _describe(project, piece, entries[number].reason, entries[number].recording_id))
        for piece, number in sorted(found.items(), key=lambda item: (item[0].recording_id, item[0].start, -item[0].end))
    ]


def _as_copy(entry: Entry, original: Entry) -> Entry:
    """A copy's entry, whose reason names what it is a copy of."""
    return entry.model_copy(update={"reason": f"a copy of {original}: {original.reason}"})


def _alike(clips: Path, entries: Sequence[Entry], progress: Progress) -> list[tuple[int, str]]:
    """(number of an entry, id of a clip) of clips below `clips` that are the same sound by fingerprint."""
    paths = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), path.stat().st_size) for path in paths]
    return _search(entries, jobs, duplicates.fingerprint_shard, progress)


def _search(
    entries: Sequence[Entry], jobs: list[shards.Job], function: Callable[..., shards.Report], progress: Progress
) -> list[tuple[int, str]]:
    """Fingerprint what the jobs name and look for the entries' sounds among them."""
    words = {f"forgotten {number}": entry.words for number, entry in enumerate(entries) if entry.fingerprint}
    if not words or not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as name:
        scratch = Path(name)
        shards.map_shards(function, jobs, scratch / "prints", workers=min(os.cpu_count() or 1, len(jobs)), progress=progress)
        tables = [shards.read_table(scratch / "prints" / job.name, manifest.FINGERPRINTS) for job in jobs]
        theirs = pa.concat_tables(tables)
        # Looked up are the forgotten alone, among the others alone: no clip has a space in its id.
        marks = [landmarks.landmarks(its) | {"keys": b""} for its in words.values()]
        kind = pa.schema([(column, pa.binary()) for column in duplicates.INDEXED])
        ids = pa.chunked_array([pa.array(words), theirs["clip_id"].combine_chunks()])
        owners = pa.chunked_array([pa.array(["forgotten"] * len(words) + ["other"] * theirs.num_rows)])
        with fingerprint_index.Index(scratch, ids, owners) as index:
            index.add(0, pa.Table.from_pylist(marks, kind))
            empty = pa.array([b""] * theirs.num_rows, pa.binary())
            column = theirs.schema.get_field_index("probes")
            if theirs.num_rows:
                index.add(len(words), theirs.set_column(column, "probes", empty).select(duplicates.INDEXED))
            pairs = [(a, b) if a in words else (b, a) for a, b, _ in index.pairs(fingerprint_index.THRESHOLD)]
    return sorted((int(mine.rpartition(" ")[2]), other) for mine, other in pairs)


def _mark(root: Path, held: Held, entries: list[Entry]) -> list[tracking.RegisteredModel]:
    """Tag the registered models that were trained on any of it."""
    models = {(model.name, model.version): model for weights, *_ in held.weights for model in weights.registered}
    if models:
        tracking.mark_forgotten(root, list(models.values()), "; ".join(f"{entry} ({entry.reason})" for entry in entries))
    return list(models.values())


def check(root: Path, progress: Progress = lambda n: None) -> tuple[list[str], list[str]]:
    """(what still holds a forgotten sound, a sentence each; what could not be looked at), by id, digest and fingerprint.

    In the project and in the workspaces of its sweeps and bake-offs, which nothing makes anew before these run again.
    """
    listed = forgotten.read(root / forgotten.FILE)
    found, gone = _holding(Project(root), listed, progress)
    for workspace in sorted(path for path in (root / tracking.WORKSPACES).glob("*") if (path / "data").is_dir()):
        its, lost = _holding(Project(workspace, is_workspace=True), listed, progress)
        name = workspace.relative_to(root)
        found += [f"{name}/{sentence}; delete {name}, or run its sweep or bake-off again" for sentence in its]
        gone += [f"{name}: {sentence}" for sentence in lost]
    return found, list(dict.fromkeys(gone))


def _holding(project: Project, listed: Forgotten, progress: Progress) -> tuple[list[str], list[str]]:
    found: list[str] = []
    for row in project.recordings.values():
        if entry := listed.whole(row["recording_id"], row["digest"]):
            found.append(f"data/corpus: recording {row['path']} is {entry}")
    pieces = [_piece(entry) for entry in listed.entries]
    digests = {clip.digest for entry in listed.entries for clip in entry.clips}
    known = pa.array(sorted(digests), pa.string())
    named = {None, *(entry.recording_id for entry in listed.entries)}
    for table in project.clips.values():
        pieces += [piece_of(row) for row in table.filter(pc.is_in(table["digest"], known)).to_pylist()]
    for _, table in project.tables():  # where its seconds may be a loop's, an entry has the right ones
        rows = table.filter(pc.is_in(table["digest"], known)).to_pylist()
        pieces += [piece_of(row) for row in rows if row["recording_id"] not in named]
    held = project.held(dict.fromkeys(pieces), {clip.clip_id for entry in listed.entries for clip in entry.clips}, digests)
    found += [f"data/clips/{variant}: clip {row['clip_id']}" for variant, rows in held.clips.items() for row in rows]
    found += [f"data/mixes: {mix}" for mix in held.mixes]
    loops = project.loops_of({entry.recording_id for entry in listed.entries if entry.is_whole})
    found += [f"{path}: {rows} loops of it" for path, rows in loops.items()]
    found += [
        f"{path}: {rows} rows of it" for path, rows in held.shards.items() if not path.startswith(("data/clips", "data/mixes"))
    ]
    for weights, part, clips, mixes in held.weights:
        if weights.registered and all(tracking.FORGOTTEN in model.tags for model in weights.registered) and not weights.is_of_graph:
            project.gone.append(f"{weights.name}: marked in MLflow, but there it still is; delete it where nobody needs it")
            continue
        where = f"{weights.name}/{part}" if part else weights.name
        found.append(f"{where}: trained on {clips} clips of it" + (f", and on {mixes} mixes" if mixes else ""))
    found += [f"{path}: a sound named after a clip of it{_remedy(path)}" for path in held.files]
    found += [f"{path}: names it{_remedy(path)}" for path in held.reports]
    said = {row["clip_id"] for rows in held.clips.values() for row in rows}
    for variant in project.clips:
        for number, clip_id in _alike(project.data / "clips" / variant, listed.entries, progress):
            if clip_id not in said:
                found.append(f"data/clips/{variant}: clip {clip_id} sounds like {listed.entries[number]}, by fingerprint")
    found += _sounds_alike(project, listed, set(held.files), progress)
    return found, project.gone


def _sounds_alike(project: Project, listed: Forgotten, said: Iterable[str], progress: Progress) -> list[str]:
    """WAVs that the graph made which sound like an entry, but for those of which something was `said`."""
    paths = [path for path in project.sounds() if str(path.relative_to(project.root)) not in said]
    files = [inventory.AudioFile(bytes(path.relative_to(project.root)), path.stat().st_size, "") for path in paths]
    batches = [files[start : start + duplicates.FILES_PER_JOB] for start in range(0, len(files), duplicates.FILES_PER_JOB)]
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(project.root), batch), sum(file.size for file in batch))
        for number, batch in enumerate(batches)
    ]
    alike = _search(listed.entries, jobs, duplicates.fingerprint_files, progress)
    return [f"{path}: sounds like {listed.entries[number]}, by fingerprint{_remedy(path)}" for number, path in alike]


def _remedy(path: str) -> str:
    """What no stage makes anew."""
    return "; delete data/report/bakeoff, or run the bake-off again" if path.startswith("data/report/bakeoff/") else ""
