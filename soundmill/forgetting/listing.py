"""Listing a recording or a clip as forgotten, with every other copy of its sound.

Copies are found by the fingerprints that tell duplicates, among the clips of all variants.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import ledger, shards, tracking
from soundmill.corpora import forgotten
from soundmill.corpora.forgotten import Entry, Forgotten, ForgottenClip
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.forgetting.searching import Progress, alike, words_of_file
from soundmill.lineage import Held, Piece, Project, overlap, overlapping, piece_of
from soundmill.params import did_you_mean


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
    ledger.update(root)
    project = Project(root)
    listed = in_force(root)
    wanted = [one(project, thing) for thing in things]
    known = [entry for piece in wanted if (entry := _entry_of(listed, piece))]
    asked = list(dict.fromkeys(piece for piece in wanted if not _entry_of(listed, piece)))
    new = [describe(project, piece, reason.strip(), None) for piece in asked]
    for number, entry in _copies(project, new, progress):
        piece = piece_of_entry(entry)
        if not any(_covers(other, piece) for other in (*listed.entries, *new)):
            new.append(entry.model_copy(update={"reason": _reason_of_copy(new[number])}))
    ledger.add(root, [entry.model_dump(mode="json") for entry in new])
    every = [*new, *known]
    digests = {clip.digest for entry in every for clip in entry.clips}
    held = project.held([piece_of_entry(entry) for entry in every], digests=digests)
    marked = _mark(root, held, every)
    return Outcome(new, known, held, marked, project.gone)


def in_force(root: Path) -> Forgotten:
    """What the checkout at `root` must not use: its own list, and those of the projects that it lies in."""
    return forgotten.parse({"forgotten": ledger.in_force(root)}, str(root / ledger.FILE))


def use_again(root: Path, things: Sequence[str]) -> list[Entry]:
    """Take what these words name, and the copies that were listed with it, out of the list, and their marks off registered models;
    returns the entries.

    A word is the path or id of a recording, or the id of a clip, as the list has it. UserError, and nothing is changed, where a
    word names no entry, or one on the list of a project that this checkout lies in.
    """
    entries = in_force(root).entries
    named = [entry for thing in things for entry in _named(entries, thing)]
    copies = {(entry.recording_id, _reason_of_copy(entry)) for entry in named}
    gone = [entry for entry in entries if entry in named or (entry.copy_of, entry.reason) in copies]
    above = [entry for entry in gone if not ledger.is_own(root, entry.model_dump(mode="json"))]
    if above:
        raise UserError(f"{above[0]} is on the list of the project that {root} lies in; use --undo there (--project DIR)")
    ledger.remove(root, [entry.model_dump(mode="json") for entry in gone])
    marked = [model for model in Project(root).registered if tracking.FORGOTTEN in model.tags]
    tracking.mark_forgotten(root, marked, remove=_marks(gone))
    return gone


def _named(entries: Sequence[Entry], thing: str) -> list[Entry]:
    found = [entry for entry in entries if thing in (entry.source, entry.recording_id, str(entry))]
    found = found or [entry for entry in entries if thing in {clip.clip_id for clip in entry.clips} and not entry.is_whole]
    if not found:
        raise UserError(f"{thing}: not forgotten{did_you_mean(thing, [entry.source for entry in entries])}")
    return found


def one(project: Project, thing: str) -> Piece:
    pieces = project.find(thing)
    if not pieces:
        raise project.unknown(thing)
    if len(pieces) > 1:
        raise UserError(f"{thing} is a clip and a recording; say which: clip:{thing}, or recording:{thing} for all of it")
    return pieces[0]


def piece_of_entry(entry: Entry) -> Piece:
    whole = Piece(entry.recording_id, entry.source)
    return whole if entry.is_whole else replace(whole, start=entry.start, end=entry.end)


def _entry_of(listed: Forgotten, piece: Piece) -> Entry | None:
    """The entry by which a piece is forgotten already."""
    return next((entry for entry in listed.entries if _covers(entry, piece)), None)


def _covers(entry: Entry, piece: Piece) -> bool:
    """Whether a piece is in an entry."""
    start, end = (0.0, math.inf) if entry.is_whole else (entry.start, entry.end)
    return entry.recording_id == piece.recording_id and start <= piece.start and piece.end <= end


def describe(project: Project, piece: Piece, reason: str, copy_of: str | None) -> Entry:
    """The entry of a piece, with all that tells it later."""
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
    """A fingerprint as an entry has it."""
    return base64.b64encode(words.astype("<u4").tobytes()).decode()


def _fingerprint(project: Project, row: dict[str, Any], piece: Piece) -> np.ndarray:
    """Of the seconds of a recording, uint32 [frames, 2]; none where its file cannot be decoded, or is another by now."""
    sources = Sources.of(project.data / "corpus", project.root, project.root)
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as scratch:
        try:
            with sources.open(row["raw_path"], scratch) as path:
                if shards.file_digest(path) != row["digest"]:
                    raise UserError(f"{row['path']}: the file has changed since it was scanned; scan it again (`dvc repro`)")
                return words_of_file(path, piece.start, piece.end)
        except decode.DecodeError:
            return np.zeros((0, 2), np.uint32)
        except FileNotFoundError:
            project.gone.append(f"{row['path']} is missing: its copies are found only by digest")
            return np.zeros((0, 2), np.uint32)


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
        for number, clip_id in alike(project.data / "clips" / variant, entries, progress):
            row, entry = by_id[clip_id], entries[number]
            if row["recording_id"] != entry.recording_id or not (entry.is_whole or overlap(piece_of(row), piece_of_entry(entry))):
                matched.setdefault(row["recording_id"], (number, set()))[1].add(clip_id)
        for recording_id, (number, ids) in sorted(matched.items()):
            its = [row for row in by_id.values() if row["recording_id"] == recording_id]
            if entries[number].is_whole and len(ids) == len(its):  # every clip of it is the sound again
                found.setdefault(Piece(recording_id, its[0]["source"]), number)
            else:
                for row in (row for row in its if row["clip_id"] in ids):
                    found.setdefault(piece_of(row), number)
    return [
        (number, describe(project, piece, entries[number].reason, entries[number].recording_id))
        for piece, number in sorted(found.items(), key=lambda item: (item[0].recording_id, item[0].start, -item[0].end))
    ]


def _reason_of_copy(original: Entry) -> str:
    return f"a copy of {original}: {original.reason}"


def _mark(root: Path, held: Held, entries: list[Entry]) -> list[tracking.RegisteredModel]:
    """Tag the registered models that were trained on any of it."""
    models = {(model.name, model.version): model for weights, *_ in held.weights for model in weights.registered}
    tracking.mark_forgotten(root, list(models.values()), add=_marks(entries))
    return list(models.values())


def _marks(entries: list[Entry]) -> list[str]:
    return [" ".join(f"{entry} ({entry.reason})".split()) for entry in entries]
