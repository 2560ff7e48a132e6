"""What every adapter makes of a corpus: rows of RECORDINGS and CAPTIONS, and what it could not use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from soundmill import shards
from soundmill.corpora.inventory import AudioFile
from soundmill.manifest import escape_path

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


@dataclass
class CorpusTables:
    """Rows in stable order. Captions keep rows whose recording is absent, so that coverage can be told."""

    recordings: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    collisions: list[str] = field(default_factory=list)  # paths of recordings whose id another one has
    counts: dict[str, int] = field(default_factory=dict)  # what else the adapter found, for the metrics

    def __post_init__(self) -> None:
        self._ids: set[str] = set()

    def count(self, key: str, by: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + by

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
        if recording_id in self._ids:
            self.collisions.append(file.path)
            recording_id = None
        recording_id = recording_id or self._hash_id(file.raw_path)
        self._ids.add(recording_id)
        self.recordings.append(
            {
                "recording_id": recording_id,
                "path": file.path,
                "raw_path": file.raw_path,
                "size": file.size,
                "digest": file.digest,
                "shard": shards.shard_of(file.raw_path, num_shards),
                "start_time": float(start_time),
                "labels": list(labels),
                "fold": fold,
                "split": split,
                "group": group,
                "corpus": corpus,
                "weight": float(weight),
            }
        )
        return recording_id

    def _hash_id(self, raw_path: bytes) -> str:
        """12 hex digits of the path's hash; hashed again in the (10⁻⁹ at 500 files) case that another path has them."""
        while (found := hashlib.blake2b(raw_path, digest_size=6).hexdigest()) in self._ids:
            raw_path += b"\0"
        return found

    def add_caption(
        self, recording_id: str, caption: str, origin: str, start_time: float | None = None, labels: Iterable[str] = ()
    ) -> None:
        self.captions.append(
            {
                "recording_id": recording_id,
                "start_time": start_time,
                "caption": " ".join(caption.split()),
                "labels": list(labels),
                "origin": origin,
            }
        )
