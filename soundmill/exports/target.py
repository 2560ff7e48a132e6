"""Shared by all exports: clips, the directory being written, and its manifests."""

import gzip
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from soundmill import csv_files, manifest

_HASH = re.compile(r"[0-9a-f]{12}")  # id of a recording whose corpus has no ids
HUGGING_FACE = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class ExportClip:
    clip_id: str
    split: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    group: str  # never divided between splits: the video or Freesound original of the recording, else the recording
    source: str  # escaped path of the recording in its corpus
    start: float  # seconds into the recording
    num_samples: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def stem_and_start(self) -> tuple[str, float]:
        """The two parts of the clip's id: YouTube id (or another stem) and start in seconds."""
        stem, _, start = self.clip_id.rpartition("_")
        return stem, float(start)

    @property
    def video_and_start(self) -> tuple[str, float]:
        """`stem_and_start` for formats with YouTube ids only; a hash stands in for a missing id, cut to 11 characters."""
        stem, start = self.stem_and_start
        video = stem[:11] if _HASH.fullmatch(stem) else stem
        if not manifest.VIDEO_ID.fullmatch(video):
            raise NotExpressible("no YouTube id")
        return video, start


class NotExpressible(Exception):
    """The format cannot hold this clip, for the reason in the message."""


class Target(ABC):
    """A directory being written: `add` gets every clip once, in the order of the shards, then `finish` is called."""

    def __init__(self, directory: Path, final: Path):
        self.directory = directory  # where to write
        self.final = final  # its final path, for manifests with absolute paths

    @abstractmethod
    def add(self, clip: ExportClip, flac: bytes) -> None:
        """Write one clip; NotExpressible if the format cannot hold it."""

    @abstractmethod
    def finish(self) -> None:
        """Write what needs all clips."""


@dataclass(frozen=True)
class Layout:
    """A format of plain audio files: `place` gives a clip's path, `write` writes the manifests at the end."""

    place: Callable[[ExportClip], str]
    write: Callable[[list[tuple[ExportClip, str]], Path, Path], None]  # clips with their paths, directory, final directory
    needs: str = "caption"  # caption | label | nothing

    def __call__(self, directory: Path, final: Path) -> Target:
        return Files(self, directory, final)


class Files(Target):
    def __init__(self, layout: Layout, directory: Path, final: Path):
        super().__init__(directory, final)
        self.layout = layout
        self.placed: list[tuple[ExportClip, str]] = []
        self.taken: set[str] = set()

    def add(self, clip: ExportClip, flac: bytes) -> None:
        if self.layout.needs == "caption" and not clip.captions:
            raise NotExpressible("no caption")
        if self.layout.needs == "label" and len(clip.labels) != 1:
            raise NotExpressible(f"{len(clip.labels)} labels, but the format has one")
        place = self.layout.place(clip)
        if place in self.taken:
            raise NotExpressible(f"another clip has the path {place}")
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
    path.write_bytes(wav.getbuffer())  # libsndfile's error would not mention a full disk


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, compressed if the name ends in `.gz`; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        target: IO[bytes] = gzip.GzipFile("", "wb", mtime=0, fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        for row in rows:
            target.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if target is not raw:
            target.close()


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    csv_files.write(path, list(rows[0]), [list(row.values()) for row in rows])


def by_split(placed: list[tuple[ExportClip, str]]) -> Iterator[tuple[str, list[tuple[ExportClip, str]]]]:
    for split in manifest.SPLITS:
        rows = [(clip, place) for clip, place in placed if clip.split == split]
        if rows:
            yield split, rows


def plain_number(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds
