"""The result of every adapter: rows of RECORDINGS and CAPTIONS, and what it rejected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from soundmill import hashing, shards
from soundmill.corpora.inventory import AudioFile
from soundmill.errors import UserError
from soundmill.manifest import VIDEO_ID, escape_path

MAX_TEXT = 1 << 28  # characters of captions and labels that are held of a corpus's tables: those of some two million clips

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """The row of docs/corpora.md on one format: where an adapter finds what it knows of a recording."""

    name: str  # value of corpus.format
    layout: str  # what such a corpus looks like, and so what it is known by
    id: str
    caption: str
    label: str
    split: str


@dataclass
class CorpusTables:
    """Rows in stable order. Captions keep rows whose recording is absent, so that coverage can be computed.

    Paths in the lists are escaped and relative to the corpus; an `origin` is a metadata file and its line or key.
    """

    format: str = ""
    recordings: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    matched: list[dict[str, Any]] = field(default_factory=list)  # listed clips with a file: id, path, start_time, captions
    missing: list[dict[str, Any]] = field(default_factory=list)  # those without: id, youtube_id, start_time, captions, origins
    orphans: list[dict[str, Any]] = field(default_factory=list)  # files that nothing lists: path
    collisions: list[dict[str, Any]] = field(default_factory=list)  # one id, several files (paths) or rows (origins)
    ambiguous: list[dict[str, Any]] = field(default_factory=list)  # what may mean several things, and what was made of it (taken)
    counts: dict[str, int] = field(default_factory=dict)  # further counts of the adapter, for the metrics
    named: set[str] = field(default_factory=set)  # ids of recordings that a manifest lists and says nothing of
    remarks: list[str] = field(default_factory=list)  # what is odd about metadata and was read all the same

    def __post_init__(self) -> None:
        self._ids: dict[str, str] = {}  # recording_id → path
        self._held = 0  # characters

    def count(self, key: str, by: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + by

    def hold(self, texts: Iterable[str], raw_path: bytes) -> None:
        """Count text that a small table may unpack to, or say thousands of times; too much of it is a UserError that names it."""
        self._held += sum(map(len, texts))
        if self._held > MAX_TEXT:
            what = f"captions and labels of more than {MAX_TEXT} characters, which memory may not hold"
            raise UserError(f"{escape_path(raw_path)}: {what}; take it out of the corpus, or divide the corpus")

    def reject(self, raw_path: bytes, reason: str, detail: str = "") -> None:
        self.rejected.append({"path": escape_path(raw_path), "reason": reason, "detail": detail})

    def add_recording(
        self,
        file: AudioFile,
        num_shards: int,
        *,
        recording_id: str | None = None,
        start_time: float = 0.0,
        labels: Iterable[str] = (),
        fold: int | None = None,
        split: str | None = None,
        group: str | None = None,
        corpus: str = "",
        weight: float = 1.0,
    ) -> str:
        """Add one recording and return its id: the one given if it is free, else a hash of the path."""
        recording_id = self.take_id(recording_id, file.raw_path, file.path)
        self.recordings.append(
            {
                "recording_id": recording_id,
                "path": file.path,
                "raw_path": file.raw_path,
                "size": file.size,
                "digest": file.digest,
                "shard": shards.shard_of(file.shard_key, num_shards),
                "start_time": float(start_time),
                "labels": [_clean(label) for label in labels],
                "fold": fold,
                "split": split,
                "group": _clean(group) if group else None,
                "corpus": corpus,
                "weight": float(weight),
            }
        )
        return recording_id

    def take_id(self, recording_id: str | None, raw_path: bytes, path: str) -> str:
        """The id given if it is free, else a hash of the path; that it was not free is a collision."""
        if recording_id in self._ids:
            self.collisions.append({"id": recording_id, "paths": [self._ids[recording_id], path]})
            recording_id = None
        while recording_id is None:
            # Hashed again in the (10⁻⁹ at 500 files) case that another path has it.
            hashed, raw_path = id_of_path(raw_path), raw_path + b"\0"
            recording_id = hashed if hashed not in self._ids else None
        self._ids[recording_id] = path
        return recording_id

    def add_caption(
        self, recording_id: str, caption: str, origin: str, start_time: float | None = None, labels: Iterable[str] = ()
    ) -> None:
        self.captions.append(
            {
                "recording_id": recording_id,
                "start_time": start_time,
                "caption": _clean(caption),
                "labels": [_clean(label) for label in labels],
                "origin": origin,
            }
        )

    def settle(self, corpus: str) -> None:
        """Once all is read: name every recording's corpus, and separate listed clips (`matched`) from the others."""
        self.format = corpus
        described: dict[tuple[str, float | None], dict[str, Any]] = {}
        paths = {row["recording_id"]: row["path"] for row in self.recordings}
        for row in self.captions:
            if (recording_id := row["recording_id"]) in paths:
                clip = described.setdefault(
                    (recording_id, row["start_time"]),
                    {"id": recording_id, "path": paths[recording_id], "start_time": row["start_time"], "captions": 0},
                )
                clip["captions"] += 1
        with_captions = {recording_id for recording_id, _ in described}
        reported = {path for entry in self.collisions + self.ambiguous for path in entry.get("paths", ())}
        self.matched, self.orphans = list(described.values()), []
        for row in self.recordings:
            row["corpus"] = row["corpus"] or corpus
            if (row["labels"] or row["recording_id"] in self.named) and row["recording_id"] not in with_captions:
                self.matched.append({"id": row["recording_id"], "path": row["path"], "start_time": None, "captions": 0})
            elif row["recording_id"] not in with_captions and row["path"] not in reported:
                self.orphans.append({"path": row["path"]})


def id_of_path(raw_path: bytes) -> str:
    """The id of a recording that has none of its own: 12 hex digits of its path's hash."""
    return hashing.short_digest(raw_path)


def _clean(text: str) -> str:
    """One line; half characters, which JSON can say and no file can hold, as `?`."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def whole_number(text: str) -> str:
    """The digits of a whole number, also of one that a table program wrote as `5.0`; empty for anything else."""
    match = re.fullmatch(r"([0-9]{1,18})(?:\.0{1,9})?", text.strip())
    return match[1] if match else ""


def fold_number(text: str) -> int | None:
    """A fold's number of at most four digits, read as `whole_number` does; None for anything else."""
    number = whole_number(text)
    return int(number) if 0 < len(number) <= 4 else None


def video_id(text: str) -> str:
    """A YouTube id, also in the forms in which table programs keep one with a dash before it (`'-0abc`, `="-0abc"`); empty for
    anything else."""
    text = text.strip().lstrip("'=").strip('"')
    return text if VIDEO_ID.fullmatch(text) else ""
