"""Prepared clips in the formats other tools read: audio and manifests side by side, so such a tool can be pointed at the directory.

Every format gets the same samples (16-bit, mono, the project's rate) and as much of captions, labels and splits as it has a place
for. A clip that a format cannot express (no caption, several labels) is left out, counted, and named in `not_exported.tsv`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from soundmill import clips, manifest, shards
from soundmill.errors import UserError
from soundmill.params import did_you_mean

LEFT_OUT = "not_exported.tsv"
CLIPS_PER_TAR = 1000
AUDIOCAPS_CAPTIONS = 5  # caption_1 … caption_5 are columns even where there are fewer


@dataclass(frozen=True)
class Clip:
    """One prepared clip and what is known of it."""

    clip_id: str
    split: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    recording_id: str
    source: str  # recording's path in its corpus, escaped
    start: float  # seconds into the recording
    num_samples: int
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def stem_and_start(self) -> tuple[str, float]:
        """The clip's name taken apart: YouTube id (or another stem) and seconds."""
        stem, _, start = self.clip_id.rpartition("_")
        return stem, float(start)


class NotExpressible(Exception):
    """The format has no place for this clip; the message says why."""


@dataclass
class Export:
    """What came of an export."""

    directory: Path
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)  # clip id, reason


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
        return _Files(self, directory, final)


class _Files(Target):
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
    soundfile.write(path, samples, rate, subtype="PCM_16", format="WAV")


# ---------------------------------------------------------------------------------------------------------------------
# Captioned formats


def _csv(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, compressed if the name says so; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        packed: IO[bytes] = gzip.GzipFile("", "wb", mtime=0, fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if packed is not raw:
            packed.close()


def _by_split(placed: list[tuple[Clip, str]]) -> Iterator[tuple[str, list[tuple[Clip, str]]]]:
    for split in manifest.SPLITS:
        rows = [(clip, place) for clip, place in placed if clip.split == split]
        if rows:
            yield split, rows


def _numbered(captions: tuple[str, ...], width: int) -> list[str]:
    return [*captions, *[""] * (width - len(captions))]


def _caption_columns(placed: list[tuple[Clip, str]]) -> list[str]:
    most = max(AUDIOCAPS_CAPTIONS, *(len(clip.captions) for clip, _ in placed))
    return [f"caption_{number}" for number in range(1, most + 1)]


def _number(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


def _write_audiocaps(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    names = {"train": "train", "valid": "val", "test": "test"}
    number = 0
    for split, rows in _by_split(placed):
        table = []
        for clip, _ in rows:
            stem, start = clip.stem_and_start
            for caption in clip.captions:
                table.append([number, stem, _number(start), caption])
                number += 1
        _csv(directory / f"{names[split]}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], table)


def _write_tango(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    for split, rows in _by_split(placed):
        lines = (
            {"dataset": "audiocaps", "location": str(final / place), "captions": caption}
            for clip, place in rows
            for caption in clip.captions
        )
        manifest.write_tango_json(lines, directory / f"{split}.json")


def _write_panns(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed)
    names = {"train": "train", "valid": "val", "test": "test"}
    for split, rows in _by_split(placed):
        table = [[Path(place).name, *_numbered(clip.captions, len(columns))] for clip, place in rows]
        _csv(directory / f"{names[split]}.csv", ["file_name", *columns], table)


def _write_clotho(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed)
    for split, rows in _by_split(placed):
        table = [[Path(place).name, *_numbered(clip.captions, len(columns))] for clip, place in rows]
        _csv(directory / f"clotho_captions_{CLOTHO[split]}.csv", ["file_name", *columns], table)


CLOTHO = {"train": "development", "valid": "validation", "test": "evaluation"}


def _write_wavcaps(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    for split, rows in _by_split(placed):
        data = [
            {
                "id": clip.clip_id,
                "title": clip.source,
                "description": ", ".join(clip.labels),
                "author": "",
                "href": "",
                "caption": caption,
                "duration": clip.seconds,
            }
            for clip, _ in rows
            for caption in clip.captions
        ]
        _json(directory / f"{split}.json", {"num_captions_per_audio": 1, "data": data})


def _write_amphion(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    for split, rows in _by_split(placed):
        _json(
            directory / f"{split}.json",
            [
                {"Dataset": "AudioCaps", "Uid": Path(place).stem, "Caption": caption}
                for clip, place in rows
                for caption in clip.captions
            ],
        )


def _amphion_place(clip: Clip) -> str:
    stem, start = clip.stem_and_start
    return f"wav/{stem}_{round(start * 1000)}_{round((start + clip.seconds) * 1000)}.wav"


def _write_musiccaps(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    columns = [
        "ytid",
        "start_s",
        "end_s",
        "audioset_positive_labels",
        "aspect_list",
        "caption",
        "author_id",
        "is_balanced_subset",
        "is_audioset_eval",
    ]
    table = []
    for clip, _ in placed:
        stem, start = clip.stem_and_start
        for caption in clip.captions:
            aspects = str(list(clip.labels))
            table.append(
                [stem, _number(start), _number(start + clip.seconds), "", aspects, caption, "", False, clip.split == "test"]
            )
    _csv(directory / "musiccaps.csv", columns, table)


def _write_audioldm(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    names = {"train": "train", "valid": "val", "test": "test"}
    paths = {}
    for split, rows in _by_split(placed):
        data = []
        for clip, place in rows:
            numbered = {f"caption_{number}": text for number, text in enumerate(clip.captions[1:], start=2)}
            wav = str(Path(place).relative_to("audio"))
            data.append({"wav": wav, "seg_label": "", "labels": ";".join(clip.labels), "caption": clip.captions[0], **numbered})
        paths[names[split]] = f"./metadata/{names[split]}.json"
        _json(directory / paths[names[split]], {"data": data})
    labels = sorted({label for clip, _ in placed for label in clip.labels})
    _csv(
        directory / "metadata/class_labels_indices.csv",
        ["index", "mid", "display_name"],
        [[index, label, label] for index, label in enumerate(labels)],
    )
    paths["class_label_indices"] = "./metadata/class_labels_indices.csv"
    _json(
        directory / "metadata/dataset_root.json",
        {"soundmill": "./audio", "comments": {}, "metadata": {"path": {"soundmill": paths}}},
    )


def _write_audiocraft(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    names = {"train": "train", "valid": "valid", "test": "evaluate"}
    for split, rows in _by_split(placed):
        lines = []
        for clip, place in rows:
            sidecar = {
                "description": clip.captions[0],
                "captions": list(clip.captions),
                "keywords": ", ".join(clip.labels),
                "name": clip.clip_id,
                "duration": clip.seconds,
                "sample_rate": clip.sample_rate,
                "file_extension": "wav",
            }
            _json((directory / place).with_suffix(".json"), sidecar)
            lines.append(
                {
                    "path": str(final / place),
                    "duration": clip.seconds,
                    "sample_rate": clip.sample_rate,
                    "amplitude": None,
                    "weight": None,
                    "info_path": None,
                }
            )
        _lines(directory / "egs" / names[split] / "data.jsonl.gz", lines)


def _write_stable_audio(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    for clip, place in placed:
        pair = {
            "prompt": clip.captions[0],
            "captions": list(clip.captions),
            "labels": list(clip.labels),
            "seconds_total": clip.seconds,
        }
        _json((directory / place).with_suffix(".json"), pair)


HUGGING_FACE = {"train": "train", "valid": "validation", "test": "test"}


def _audiofolder_place(clip: Clip) -> str:
    return f"{HUGGING_FACE[clip.split]}/{clip.clip_id}.wav"


def _write_audiofolder(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    for split, rows in _by_split(placed):
        lines = (
            {"file_name": Path(place).name, "captions": list(clip.captions), "labels": list(clip.labels)} for clip, place in rows
        )
        _lines(directory / HUGGING_FACE[split] / "metadata.jsonl", lines)


def _write_audiofolder_csv(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed)
    for split, rows in _by_split(placed):
        table = [[Path(place).name, ";".join(clip.labels), *_numbered(clip.captions, len(columns))] for clip, place in rows]
        _csv(directory / HUGGING_FACE[split] / "metadata.csv", ["file_name", "labels", *columns], table)


# ---------------------------------------------------------------------------------------------------------------------
# Class formats


def folder_of(label: str) -> str:
    """A label as the name of a folder: nothing in it can leave the directory or hide."""
    return re.sub(r"[^\w .,()&'+-]", "_", label).strip(" .") or "_"


def _fold(clip: Clip, count: int) -> int:
    """The last fold is test and the one before it valid; the rest of the recordings are dealt out by hash."""
    if clip.split == "test":
        return count
    if clip.split == "valid":
        return count - 1
    return 1 + shards.shard_of(clip.recording_id, count - 2)


def _write_esc(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    targets = {label: number for number, label in enumerate(sorted({clip.labels[0] for clip, _ in placed}))}
    rows = [
        [
            Path(place).name,
            _fold(clip, 5),
            targets[clip.labels[0]],
            clip.labels[0].replace(" ", "_"),
            False,
            clip.recording_id,
            "A",
        ]
        for clip, place in placed
    ]
    _csv(directory / "meta/esc50.csv", ["filename", "fold", "target", "category", "esc10", "src_file", "take"], rows)


def _urbansound_place(clip: Clip) -> str:
    return f"audio/fold{_fold(clip, 10)}/{clip.clip_id}.wav"


def _write_urbansound(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    targets = {label: number for number, label in enumerate(sorted({clip.labels[0] for clip, _ in placed}))}
    rows = [
        [
            Path(place).name,
            clip.recording_id,
            _number(clip.start),
            _number(clip.start + clip.seconds),
            1,
            _fold(clip, 10),
            targets[clip.labels[0]],
            clip.labels[0].replace(" ", "_"),
        ]
        for clip, place in placed
    ]
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    _csv(directory / "metadata/UrbanSound8K.csv", columns, rows)


def _folder_place(clip: Clip) -> str:
    return f"{clip.split}/{folder_of(clip.labels[0])}/{clip.clip_id}.wav"


def _write_folder(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    """A caption file beside each sound that has captions."""
    for clip, place in placed:
        if clip.captions:
            (directory / place).with_suffix(".txt").write_text("\n".join(clip.captions) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Packed formats, and lhotse


class WebDataset(Target):
    """Tar files of CLIPS_PER_TAR clips: `<id>.flac`, `<id>.json` (captions, labels, origin) and `<id>.txt` (first caption)."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(directory, final)
        self.counts: Counter[str] = Counter()
        self.open: dict[str, tarfile.TarFile] = {}

    def add(self, clip: Clip, flac: bytes) -> None:
        number, place = divmod(self.counts[clip.split], CLIPS_PER_TAR)
        if place == 0:
            if clip.split in self.open:
                self.open.pop(clip.split).close()
            self.open[clip.split] = tarfile.open(
                self.directory / f"{clip.split}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT
            )
        self.counts[clip.split] += 1
        # A key ends at the first dot of a member's name.
        key = clip.clip_id.replace(".", "p")
        facts = {
            "clip_id": clip.clip_id,
            "captions": list(clip.captions),
            "labels": list(clip.labels),
            "source": clip.source,
            "start": clip.start,
            "seconds": clip.seconds,
            "sample_rate": clip.sample_rate,
        }
        members = {"flac": flac, "json": json.dumps(facts, ensure_ascii=False).encode()}
        if clip.captions:
            members["txt"] = clip.captions[0].encode()
        for suffix, data in members.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode = len(data), 0o644
            self.open[clip.split].addfile(member, io.BytesIO(data))

    def finish(self) -> None:
        for archive in self.open.values():
            archive.close()


PARQUET = pa.schema(
    [
        ("clip_id", pa.string()),
        ("audio", manifest.AUDIO),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
    ]
)


class HuggingFaceParquet(Target):
    """`data/<split>-*.parquet` with the audio embedded, as `datasets.load_dataset(directory)` reads it."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(directory, final)
        self.writers: dict[str, shards.ShardWriter] = {}

    def add(self, clip: Clip, flac: bytes) -> None:
        split = HUGGING_FACE[clip.split]
        if split not in self.writers:
            schema = PARQUET.with_metadata({"huggingface": json.dumps(_FEATURES)})
            self.writers[split] = shards.ShardWriter(self.directory / f"data/{split}-00000-of-00001.parquet", schema)
        self.writers[split].write(
            {
                "clip_id": clip.clip_id,
                "audio": {"bytes": flac, "path": f"{clip.clip_id}.flac"},
                "captions": list(clip.captions),
                "labels": list(clip.labels),
            }
        )

    def finish(self) -> None:
        for writer in self.writers.values():
            writer.__exit__(None, None)


_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "info": {
        "features": {
            "clip_id": _TEXT,
            "audio": {"_type": "Audio"},
            "captions": {"feature": _TEXT, "_type": "List"},
            "labels": {"feature": _TEXT, "_type": "List"},
        }
    }
}


def _write_lhotse(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    """Recordings and supervisions, as lhotse's own recipes name them; one supervision per caption."""
    for split, rows in _by_split(placed):
        recordings, supervisions = [], []
        for clip, place in rows:
            recordings.append(
                {
                    "id": clip.clip_id,
                    "sources": [{"type": "file", "channels": [0], "source": str(final / place)}],
                    "sampling_rate": clip.sample_rate,
                    "num_samples": clip.num_samples,
                    "duration": clip.seconds,
                    "channel_ids": [0],
                }
            )
            for number, caption in enumerate(clip.captions or ("",)):
                supervisions.append(
                    {
                        "id": f"{clip.clip_id}-{number}",
                        "recording_id": clip.clip_id,
                        "start": 0.0,
                        "duration": clip.seconds,
                        "channel": 0,
                        "text": caption,
                        "custom": {"labels": list(clip.labels), "source": clip.source, "source_start": clip.start},
                    }
                )
        _lines(directory / f"soundmill_recordings_{split}.jsonl.gz", recordings)
        _lines(directory / f"soundmill_supervisions_{split}.jsonl.gz", supervisions)


# ---------------------------------------------------------------------------------------------------------------------


def _named(folder: str, suffix: str) -> Callable[[Clip], str]:
    return lambda clip: f"{folder}/{clip.clip_id}{suffix}"


FORMATS: dict[str, Callable[[Path, Path], Target]] = {
    "amphion": Layout(_amphion_place, _write_amphion),
    "audiocaps": Layout(_named("audio", ".wav"), _write_audiocaps),
    "audiocraft": Layout(_named("audio", ".wav"), _write_audiocraft),
    "audiofolder": Layout(_audiofolder_place, _write_audiofolder, needs="nothing"),
    "audiofolder_csv": Layout(_audiofolder_place, _write_audiofolder_csv, needs="nothing"),
    "audiofolder_parquet": HuggingFaceParquet,
    "audioldm": Layout(_named("audio", ".wav"), _write_audioldm),
    "clotho": Layout(lambda clip: f"{CLOTHO[clip.split]}/{clip.clip_id}.wav", _write_clotho),
    "esc": Layout(_named("audio", ".wav"), _write_esc, needs="label"),
    "folder": Layout(_folder_place, _write_folder, needs="label"),
    "lhotse": Layout(_named("audio", ".flac"), _write_lhotse, needs="nothing"),
    "musiccaps": Layout(_named("audio", ".wav"), _write_musiccaps),
    "panns": Layout(lambda clip: f"audio/Y{clip.clip_id}.wav", _write_panns),
    "stable_audio": Layout(lambda clip: f"{clip.split}/{clip.clip_id}.wav", _write_stable_audio),
    "tango": Layout(_named("audio", ".wav"), _write_tango),
    "urbansound8k": Layout(_urbansound_place, _write_urbansound, needs="label"),
    "wavcaps": Layout(_named("audio", ".flac"), _write_wavcaps),
    "webdataset": WebDataset,
}


def export(
    tables: clips.Tables,
    name: str,
    directory: Path,
    sample_rate: int,
    *,
    split: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Export:
    """Write all prepared clips (of one split) to the new directory in the named format; it appears whole or not at all."""
    if name not in FORMATS:
        raise UserError(f"format {name!r} is not known{did_you_mean(name, list(FORMATS))} (formats: {', '.join(FORMATS)})")
    rows = {row["clip_id"]: row for row in clips.find(tables, split=split)}
    if not rows:
        raise UserError(f"{tables.catalog}: no clip" + (f" of the split {split}" if split else "") + " to export")
    final = directory.resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{directory} is not empty; say a new directory, or remove it")
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    target, result = FORMATS[name](partial, final), Export(directory)
    try:
        for found in clips.with_audio(tables, set(rows)):
            row = rows[found["clip_id"]]
            clip = Clip(
                manifest.check_clip_id(row["clip_id"]),
                row["split"],
                tuple(row["captions"]),
                tuple(row["labels"]),
                row["recording_id"],
                row["source"],
                row["start"],
                found["num_samples"],
                sample_rate,
            )
            try:
                target.add(clip, found["audio"]["bytes"])
                result.written += 1
            except NotExpressible as reason:
                result.left_out.append((clip.clip_id, str(reason)))
            progress(1)
        if not result.written:
            reasons = Counter(reason for _, reason in result.left_out)
            raise UserError(
                f"{name}: none of {len(rows)} clips can be expressed ({reasons.most_common(1)[0][0]}); choose another format"
            )
        target.finish()
        if result.left_out:
            lines = ["clip_id\treason", *("\t".join(pair) for pair in sorted(result.left_out))]
            (partial / LEFT_OUT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        for path in partial.rglob("*"):
            if path.is_file():
                shards.sync_file(path)
        if final.exists():
            final.rmdir()
        os.replace(partial, final)
        shards.sync_directory(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result
