"""Listing a recording or a clip as forgotten, with all copies of its sound.

Copies are found among the clips of all variants by the fingerprints used for duplicates.
"""

import base64
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing, ledger, tracking
from soundmill.corpora import forgotten
from soundmill.corpora.forgotten import Entry, Forgotten, ForgottenClip
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.forgetting.leftovers import Progress, clips_like, words_of_file
from soundmill.lineage import Held, Piece, Project, overlap, overlapping, piece_of
from soundmill.params import did_you_mean


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
    for number, entry in _copies(project, new, progress):
        piece = piece_of_entry(entry)
        if not any(_covers(other, piece) for other in (*listed.entries, *new)):
            new.append(entry.model_copy(update={"reason": _reason_of_copy(new[number])}))
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
    """The entry that already covers a piece, or None."""
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


def _copies(project: Project, entries: list[Entry], progress: Progress) -> list[tuple[int, Entry]]:
    """(index of an entry, a copy of it): other recordings and clips with the same sound, by fingerprint and by file digest.

    Other clips of a forgotten clip's own recording count if they repeat it.
    """
    found: dict[Piece, int] = {}
    whole = {entry.digest: number for number, entry in enumerate(entries) if entry.is_whole and entry.digest}
    for row in project.recordings.values():
        if row["digest"] in whole and row["recording_id"] != entries[whole[row["digest"]]].recording_id:
            found[Piece(row["recording_id"], row["path"])] = whole[row["digest"]]
    for variant, table in project.clips.items():
        matched: dict[str, tuple[int, set[str]]] = {}
        by_id = {row["clip_id"]: row for row in table.to_pylist()}
        for number, clip_id in clips_like(project.data / "clips" / variant, entries, progress):
            row, entry = by_id[clip_id], entries[number]
            if row["recording_id"] != entry.recording_id or not (entry.is_whole or overlap(piece_of(row), piece_of_entry(entry))):
                matched.setdefault(row["recording_id"], (number, set()))[1].add(clip_id)
        for recording_id, (number, ids) in sorted(matched.items()):
            rows = [row for row in by_id.values() if row["recording_id"] == recording_id]
            if entries[number].is_whole and len(ids) == len(rows):  # all of its clips have this sound
                found.setdefault(Piece(recording_id, rows[0]["source"]), number)
            else:
                for row in (row for row in rows if row["clip_id"] in ids):
                    found.setdefault(piece_of(row), number)
    return [
        (number, describe(project, piece, entries[number].reason, entries[number].recording_id))
        for piece, number in sorted(found.items(), key=lambda item: (item[0].recording_id, item[0].start, -item[0].end))
    ]


def _reason_of_copy(original: Entry) -> str:
    return f"a copy of {original}: {original.reason}"


def _marks(entries: list[Entry]) -> list[str]:
    return [" ".join(f"{entry} ({entry.reason})".split()) for entry in entries]
