"""`forgotten.yaml`: recordings and stretches of recordings that a project must not use, and leaving them out.

`soundmill forget` writes it (`soundmill/ledger.py`). `corpus` and `scan` leave out recordings, `segment` every cut that overlaps a
stretch. Recordings are identified by id or by the digest of their file, so renamed copies are left out, too.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from soundmill import manifest, params
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.tables import CorpusTables
from soundmill.params import StageParams

REASON = "forgotten"  # in quarantine

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Stretch = tuple[float, float, str]  # seconds into the recording, and why it is left out


class ForgottenClip(StageParams):
    """A clip of a forgotten recording."""

    clip_id: str = Field(min_length=1, max_length=4096)
    digest: Digest


class Entry(StageParams):
    """A forgotten recording, or a stretch of one."""

    recording_id: str = Field(min_length=1, max_length=4096)
    source: str = Field(min_length=1, max_length=65536, description="its path when it was forgotten, for information")
    digest: Digest | None = Field(description="digest of its file; null if the file was already gone")
    start: float | None = Field(ge=0, description="seconds into the recording; null: all of it")
    end: float | None = Field(gt=0)
    clips: list[ForgottenClip] = Field(description="clips cut from it, of all variants")
    fingerprint: str = Field(description="its fingerprint in Base64 (soundmill/audio/fingerprint.py); empty if it has none")
    copy_of: str | None = Field(description="the recording that this is a copy of")
    reason: str = Field(min_length=1)

    @field_validator("fingerprint")
    @classmethod
    def _is_a_fingerprint(cls, text: str) -> str:
        try:
            size = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            size = -1
        if size % 8:
            raise ValueError("is not Base64 of pairs of 32-bit words")
        return text

    @model_validator(mode="after")
    def _is_a_stretch(self) -> Self:
        if (self.start is None) != (self.end is None) or (self.end is not None and self.end <= self.start):
            raise ValueError("start and end must be seconds with start < end, or both null")
        return self

    @property
    def is_whole(self) -> bool:
        return self.start is None

    @property
    def words(self) -> np.ndarray:
        """Its fingerprint, uint32 [frames, 2]."""
        return np.frombuffer(base64.b64decode(self.fingerprint), "<u4").reshape(-1, 2)

    def __str__(self) -> str:
        return self.source if self.is_whole else f"{self.source} from {self.start:g} to {self.end:g} s"


class _Content(StageParams):
    forgotten: list[Entry]

    @field_validator("forgotten")
    @classmethod
    def _once(cls, entries: list[Entry]) -> list[Entry]:
        places = Counter((entry.recording_id, entry.digest, entry.start, entry.end) for entry in entries)
        if twice := [place for place, count in places.items() if count > 1]:
            raise ValueError(f"{twice[0][0]!r} is listed twice")
        return entries


@dataclass(frozen=True)
class Forgotten:
    """The entries of a project's forgotten.yaml."""

    entries: tuple[Entry, ...]

    @cached_property
    def _whole(self) -> dict[str, Entry]:
        """Entries of whole recordings by id and by digest."""
        whole = [entry for entry in self.entries if entry.is_whole]
        return {name: entry for entry in whole for name in (entry.recording_id, entry.digest) if name}

    def identity(self) -> list[dict[str, Any]]:
        """Everything that affects the stages, as plain values."""
        what = {"recording_id", "digest", "start", "end", "reason"}
        return [entry.model_dump(mode="json", include=what) for entry in self.entries]

    def whole(self, recording_id: str, digest: str) -> Entry | None:
        """The entry that forgets a recording, or None."""
        return self._whole.get(digest) or self._whole.get(recording_id)

    def leave_out_files(self, inventory: Inventory) -> None:
        """Move forgotten files of an inventory to its rejected files."""
        for file in inventory.audio:
            if entry := self._whole.get(file.digest):
                inventory.reject(file.raw_path, REASON, entry.reason)
        inventory.audio = [file for file in inventory.audio if file.digest not in self._whole]

    def leave_out_recordings(self, tables: CorpusTables) -> None:
        """Remove forgotten recordings and their captions from tables: those not recognised by the digest of a file."""
        gone = set()
        for row in tables.recordings:
            if entry := self.whole(row["recording_id"], row["digest"]):
                gone.add(row["recording_id"])
                tables.rejected.append({"path": row["path"], "reason": REASON, "detail": entry.reason})
        left = {row["recording_id"] for row in tables.recordings} - gone
        tables.remove(gone | {name for name in self._whole if name not in left})

    def stretches(self, recordings: Iterable[dict[str, Any]]) -> dict[str, list[Stretch]]:
        """The forgotten stretches of these rows of RECORDINGS, by id, for recordings that have any."""
        by_name: dict[str, list[Stretch]] = {}
        for entry in self.entries:
            for name in {entry.recording_id, entry.digest} - {None} if not entry.is_whole else ():
                by_name.setdefault(name, []).append((entry.start, entry.end, entry.reason))
        names = ((row["recording_id"], row["digest"]) for row in recordings)
        found = {name: sorted({*by_name.get(name, ()), *by_name.get(digest, ())}) for name, digest in names}
        return {recording_id: stretches for recording_id, stretches in found.items() if stretches}


def read(path: Path | None) -> Forgotten:
    """The list at `path`, empty if None; UserError, naming the key, if it is invalid."""
    return Forgotten(()) if path is None else parse(params.read_yaml(path), str(path))


def parse(document: dict[str, Any], where: str) -> Forgotten:
    """The list in the document of a `forgotten.yaml`; UserError, naming `where` and the key, if it is invalid."""
    return Forgotten(tuple(params.parse(_Content, document, where).forgotten))


def reason_of(start: float, end: float, stretches: Iterable[Stretch]) -> str | None:
    """Why the seconds from `start` to `end` are left out; None if they overlap no stretch."""
    return next((why for first, last, why in stretches if min(end, last) - max(start, first) > manifest.OVERLAP_SECONDS), None)
