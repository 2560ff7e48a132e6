"""What all exports share (clips, the directory being written, its manifests); formats with captions, and lhotse, whose supervisions
hold the captions."""

import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from soundmill import csv_files, manifest

_HASH = re.compile(r"[0-9a-f]{12}")  # id of a recording whose corpus has no ids
HUGGING_FACE = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class ExportClip:
    clip_id: str
    split: str
    captions: list[str]
    labels: list[str]
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


@dataclass
class Target(ABC):
    """A directory being written: `add` gets every clip once, in the order of the shards, then `finish` is called."""

    directory: Path  # where to write
    final: Path  # its final path, for manifests with absolute paths

    @abstractmethod
    def add(self, clip: ExportClip, flac: bytes) -> None:
        """Write one clip; NotExpressible if the format cannot hold it."""

    @abstractmethod
    def finish(self) -> None:
        """Write what needs all clips."""


Placed = list[tuple[ExportClip, str]]  # clips with their paths in the directory
Place = Callable[[ExportClip], str]
Write = Callable[[Placed, Path, Path], None]


class Files(Target):
    """Plain audio files at `place`; `write` writes the manifests: clips with their paths, directory, final directory."""

    def __init__(self, place: Place, write: Write, directory: Path, final: Path, needs: str = "caption"):
        super().__init__(directory, final)
        self.place, self.write = place, write
        self.needs = needs  # caption | label | nothing
        self.placed: Placed = []
        self.taken: set[str] = set()

    def add(self, clip: ExportClip, flac: bytes) -> None:
        if self.needs == "caption" and not clip.captions:
            raise NotExpressible("no caption")
        if self.needs == "label" and len(clip.labels) != 1:
            raise NotExpressible(f"{len(clip.labels)} labels, but the format has one")
        place = self.place(clip)
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
        self.write(self.placed, self.directory, self.final)


def _write_wav(path: Path, flac: bytes) -> None:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, subtype="PCM_16", format="WAV")
    path.write_bytes(wav.getbuffer())  # libsndfile's error would not mention a full disk


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    csv_files.write(path, list(rows[0]), [list(row.values()) for row in rows])


def by_split(placed: Placed) -> Iterator[tuple[str, Placed]]:
    for split in manifest.SPLITS:
        if rows := [(clip, place) for clip, place in placed if clip.split == split]:
            yield split, rows


def plain_number(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


# Keys that audiocraft's MusicDataset requires; null is allowed.
AUDIOCRAFT_UNKNOWN = ("title", "artist", "key", "bpm", "genre", "moods", "instrument")
WITH_VAL = {"train": "train", "valid": "val", "test": "test"}  # names of the splits in several formats
CAPTIONS = 5  # caption_1 … caption_5 are always columns


def _captions(placed: Placed, least: int = CAPTIONS, none: str = "") -> dict[str, dict[str, str]]:
    """The columns `caption_1` … of each clip, as many as the clip with most captions has; `none` where there is no text."""
    columns = [f"caption_{number}" for number in range(1, max(least, *(len(clip.captions) for clip, _ in placed)) + 1)]
    return {clip.clip_id: {name: text or none for name, text in zip_longest(columns, clip.captions)} for clip, _ in placed}


def video_place(clip: ExportClip) -> str:
    video, start = clip.video_and_start
    return f"audio/{video}_{plain_number(start)}.wav"


def write_audiocaps(placed: Placed, directory: Path, final: Path) -> None:
    numbers = count()
    for split, rows in by_split(placed):
        table = []
        for clip, _ in rows:
            video, start = clip.video_and_start
            window = {"youtube_id": video, "start_time": plain_number(start)}
            table += [{"audiocap_id": next(numbers), **window, "caption": caption} for caption in clip.captions]
        write_table(directory / f"{WITH_VAL[split]}.csv", table)


def write_tango(placed: Placed, directory: Path, final: Path) -> None:
    for split, rows in by_split(placed):
        said = [(str(final / place), caption) for clip, place in rows for caption in clip.captions]
        lines = ({"dataset": "audiocaps", "location": location, "captions": caption} for location, caption in said)
        manifest.write_lines(directory / f"{split}.json", lines)


def write_panns(placed: Placed, directory: Path, final: Path) -> None:
    captions = _captions(placed)
    for split, rows in by_split(placed):
        table = [{"file_name": Path(place).name, **captions[clip.clip_id]} for clip, place in rows]
        write_table(directory / f"{WITH_VAL[split]}.csv", table)


def write_clotho(placed: Placed, directory: Path, final: Path) -> None:
    captions = _captions(placed)
    for split, rows in by_split(placed):
        table = [{"file_name": Path(place).name, **captions[clip.clip_id]} for clip, place in rows]
        write_table(directory / f"clotho_captions_{CLOTHO[split]}.csv", table)
        # aac-datasets also requires the metadata table.
        known = ({"file_name": Path(place).name, "keywords": ";".join(clip.labels)} for clip, place in rows)
        origins = [dict.fromkeys(CLOTHO_METADATA, "") | of_clip for of_clip in known]
        write_table(directory / f"clotho_metadata_{CLOTHO[split]}.csv", origins)


CLOTHO_METADATA = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
CLOTHO = {"train": "development", "valid": "validation", "test": "evaluation"}


def write_wavcaps(placed: Placed, directory: Path, final: Path) -> None:
    for split, rows in by_split(placed):
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
        write_json(directory / f"{split}.json", {"num_captions_per_audio": 1, "data": data})


def write_amphion(placed: Placed, directory: Path, final: Path) -> None:
    for split, rows in by_split(placed):
        said = [(Path(place).stem, caption) for clip, place in rows for caption in clip.captions]
        write_json(directory / f"{split}.json", [{"Dataset": "AudioCaps", "Uid": uid, "Caption": caption} for uid, caption in said])


def amphion_place(clip: ExportClip) -> str:
    stem, start = clip.stem_and_start
    return f"wav/{stem}_{round(start * 1000)}_{round((start + clip.seconds) * 1000)}.wav"


def write_musiccaps(placed: Placed, directory: Path, final: Path) -> None:
    table = []
    for clip, _ in placed:
        video, start = clip.video_and_start
        about = {
            "ytid": video,
            "start_s": plain_number(start),
            "end_s": plain_number(start + clip.seconds),
            "audioset_positive_labels": "",
            "aspect_list": str(clip.labels),
            "caption": "",
            "author_id": "",
            "is_balanced_subset": False,
            "is_audioset_eval": clip.split == "test",
        }
        table += [about | {"caption": caption} for caption in clip.captions]
    write_table(directory / "musiccaps.csv", table)


def write_audioldm(placed: Placed, directory: Path, final: Path) -> None:
    labels = sorted({label for clip, _ in placed for label in clip.labels})
    # AudioLDM splits labels at commas and looks up each; it replaces a clip with an unknown label by another clip.
    codes = {label: f"/soundmill/{index}" for index, label in enumerate(labels)}
    paths = {}
    for split, rows in by_split(placed):
        data = []
        for clip, place in rows:
            numbered = {f"caption_{number}": text for number, text in enumerate(clip.captions[1:], start=2)}
            wav = str(Path(place).relative_to("audio"))
            classes = {"labels": ",".join(codes[label] for label in clip.labels)} if clip.labels else {}
            data.append({"wav": wav, "seg_label": "", **classes, "caption": clip.captions[0], **numbered})
        paths[WITH_VAL[split]] = f"./metadata/{WITH_VAL[split]}.json"
        write_json(directory / paths[WITH_VAL[split]], {"data": data})
    rows = [[index, code, label] for index, (label, code) in enumerate(codes.items())]
    csv_files.write(directory / "metadata/class_labels_indices.csv", ["index", "mid", "display_name"], rows)
    paths["class_label_indices"] = "./metadata/class_labels_indices.csv"
    root = {"soundmill": "./audio", "comments": {}, "metadata": {"path": {"soundmill": paths}}}
    write_json(directory / "metadata/dataset_root.json", root)


def write_audiocraft(placed: Placed, directory: Path, final: Path) -> None:
    names = {"train": "train", "valid": "valid", "test": "evaluate"}
    for split, rows in by_split(placed):
        lines = []
        for clip, place in rows:
            sidecar = {
                "description": clip.captions[0],
                "captions": clip.captions,
                "keywords": clip.labels,
                "name": clip.clip_id,
                **dict.fromkeys(AUDIOCRAFT_UNKNOWN),
                "duration": clip.seconds,
                "sample_rate": clip.sample_rate,
                "file_extension": "wav",
            }
            write_json((directory / place).with_suffix(".json"), sidecar)
            about = {"path": str(final / place), "duration": clip.seconds, "sample_rate": clip.sample_rate}
            lines.append(about | dict.fromkeys(("amplitude", "weight", "info_path")))
        manifest.write_lines(directory / "egs" / names[split] / "data.jsonl.gz", lines)


def write_stable_audio(placed: Placed, directory: Path, final: Path) -> None:
    for clip, place in placed:
        said = {"prompt": clip.captions[0], "captions": clip.captions, "labels": clip.labels}
        write_json((directory / place).with_suffix(".json"), said | {"seconds_total": clip.seconds})


def audiofolder_place(clip: ExportClip) -> str:
    return f"{HUGGING_FACE[clip.split]}/{clip.clip_id}.wav"


def audiofolder_csv_place(clip: ExportClip) -> str:
    if any(";" in label for label in clip.labels):
        raise NotExpressible("a label contains `;`, which separates labels")
    return audiofolder_place(clip)


# `datasets` infers the types of a split's columns from its first rows and requires the same types in all splits: if any clip has a
# text, clips without one get an empty one. In CSV that is a space, because pandas reads an empty cell as a number.


def write_audiofolder(placed: Placed, directory: Path, final: Path) -> None:
    no_caption = [""] if any(clip.captions for clip, _ in placed) else []
    no_label = [""] if any(clip.labels for clip, _ in placed) else []
    for split, rows in by_split(placed):
        lines = (
            {"file_name": Path(place).name, "captions": clip.captions or no_caption, "labels": clip.labels or no_label}
            for clip, place in rows
        )
        manifest.write_lines(directory / HUGGING_FACE[split] / "metadata.jsonl", lines)


def write_audiofolder_csv(placed: Placed, directory: Path, final: Path) -> None:
    no_label = " " if any(clip.labels for clip, _ in placed) else ""
    captions = _captions(placed, least=1, none=" " if any(clip.captions for clip, _ in placed) else "")
    for split, rows in by_split(placed):
        table = [
            {"file_name": Path(place).name, "labels": ";".join(clip.labels) or no_label, **captions[clip.clip_id]}
            for clip, place in rows
        ]
        write_table(directory / HUGGING_FACE[split] / "metadata.csv", table)


def write_lhotse(placed: Placed, directory: Path, final: Path) -> None:
    """Recordings and supervisions, named as in lhotse's recipes; one supervision per caption."""
    for split, rows in by_split(placed):
        recordings, supervisions = [], []
        for clip, place in rows:
            channels = list(range(clip.channels))
            recordings.append(
                {
                    "id": clip.clip_id,
                    "sources": [{"type": "file", "channels": channels, "source": str(final / place)}],
                    "sampling_rate": clip.sample_rate,
                    "num_samples": clip.num_samples,
                    "duration": clip.seconds,
                    "channel_ids": channels,
                }
            )
            for number, caption in enumerate(clip.captions or [""]):
                supervisions.append(
                    {
                        "id": f"{clip.clip_id}-{number}",
                        "recording_id": clip.clip_id,
                        "start": 0.0,
                        "duration": clip.seconds,
                        "channel": channels if len(channels) > 1 else 0,
                        "text": caption,
                        "custom": {"labels": clip.labels, "source": clip.source, "source_start": clip.start},
                    }
                )
        manifest.write_lines(directory / f"soundmill_recordings_{split}.jsonl.gz", recordings)
        manifest.write_lines(directory / f"soundmill_supervisions_{split}.jsonl.gz", supervisions)
