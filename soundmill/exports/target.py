"""Shared by all exports: clips, the directory while it is written, and its manifests."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from soundmill import manifest

_HASH = re.compile(r"[0-9a-f]{12}")  # the id of a recording that brings none
HUGGING_FACE = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Clip:
    """One prepared clip and what is known of it."""

    clip_id: str
    split: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    origin: str  # what never parts: the video or Freesound original that the recording is a piece of, else the recording
    source: str  # recording's path in its corpus, escaped
    start: float  # seconds into the recording
    num_samples: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def stem_and_start(self) -> tuple[str, float]:
        """The clip's name taken apart: YouTube id (or another stem) and seconds."""
        stem, _, start = self.clip_id.rpartition("_")
        return stem, float(start)

    @property
    def video_and_start(self) -> tuple[str, float]:
        """The same for a format that knows YouTube's ids alone: of a recording that has none its hash, cut to their length."""
        stem, start = self.stem_and_start
        video = stem[:11] if _HASH.fullmatch(stem) else stem
        if not manifest.VIDEO_ID.fullmatch(video):
            raise NotExpressible("no YouTube id")
        return video, start


class NotExpressible(Exception):
    """The format has no place for this clip; the message says why."""


class Target(ABC):
    """A directory in the making: gets every clip once, in the order of the shards, then `finish`."""

    def __init__(self, directory: Path, final: Path):
        self.directory = directory  # where to write
        self.final = final  # where it will lie: for manifests that name their files by absolute paths

    @abstractmethod
    def add(self, clip: Clip, flac: bytes) -> None:
        """Take one clip; NotExpressible where the format has no place for it."""

    @abstractmethod
    def finish(self) -> None:
        """Write what can be written only when every clip is known."""


@dataclass(frozen=True)
class Layout:
    """A format of plain audio files: `place` says where a clip lies, `write` makes the manifests when all are there."""

    place: Callable[[Clip], str]
    write: Callable[[list[tuple[Clip, str]], Path, Path], None]  # clips with their places, directory, final directory
    needs: str = "caption"  # caption | label | nothing

    def __call__(self, directory: Path, final: Path) -> Target:
        return Files(self, directory, final)


class Files(Target):
    def __init__(self, layout: Layout, directory: Path, final: Path):
        super().__init__(directory, final)
        self.layout = layout
        self.placed: list[tuple[Clip, str]] = []
        self.taken: set[str] = set()

    def add(self, clip: Clip, flac: bytes) -> None:
        if self.layout.needs == "caption" and not clip.captions:
            raise NotExpressible("no caption")
        if self.layout.needs == "label" and len(clip.labels) != 1:
            raise NotExpressible(f"{len(clip.labels)} labels where the format has one")
        place = self.layout.place(clip)
        if place in self.taken:
            raise NotExpressible(f"another clip lies at {place}")
        self.taken.add(place)
        path = self.directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".flac":
            path.write_bytes(flac)
        else:
            _write_wav(path, flac)
        self.placed.append((clip, place))

    def finish(self) -> None:
        self.layout.write(self.placed, self.directory, self.final)


def _write_wav(path: Path, flac: bytes) -> None:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, subtype="PCM_16", format="WAV")
    path.write_bytes(wav.getbuffer())  # libsndfile's own error does not say that the disk is full


def write_csv(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, compressed if the name says so; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        packed: IO[bytes] = gzip.GzipFile("", "wb", mtime=0, fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if packed is not raw:
            packed.close()


def by_split(placed: list[tuple[Clip, str]]) -> Iterator[tuple[str, list[tuple[Clip, str]]]]:
    for split in manifest.SPLITS:
        rows = [(clip, place) for clip, place in placed if clip.split == split]
        if rows:
            yield split, rows


def plain_number(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds
