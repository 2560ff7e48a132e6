"""Formats with captions, and lhotse, whose supervisions hold the captions."""

from pathlib import Path

from soundmill import csv_files, manifest
from soundmill.exports.target import (
    HUGGING_FACE,
    ExportClip,
    NotExpressible,
    by_split,
    plain_number,
    write_json,
    write_lines,
)

# Keys that audiocraft's MusicDataset requires; null is allowed.
AUDIOCRAFT_UNKNOWN = ("title", "artist", "key", "bpm", "genre", "moods", "instrument")
WITH_VAL = {"train": "train", "valid": "val", "test": "test"}  # names of the splits in several formats
AUDIOCAPS_CAPTIONS = 5  # caption_1 … caption_5 are always columns


def _numbered(captions: tuple[str, ...], width: int) -> list[str]:
    return [*captions, *[""] * (width - len(captions))]


def _caption_columns(placed: list[tuple[ExportClip, str]], least: int = AUDIOCAPS_CAPTIONS) -> list[str]:
    most = max(least, *(len(clip.captions) for clip, _ in placed))
    return [f"caption_{number}" for number in range(1, most + 1)]


def video_place(clip: ExportClip) -> str:
    video, start = clip.video_and_start
    return f"audio/{video}_{plain_number(start)}.wav"


def write_audiocaps(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    number = 0
    for split, rows in by_split(placed):
        table = []
        for clip, _ in rows:
            video, start = clip.video_and_start
            for caption in clip.captions:
                table.append([number, video, plain_number(start), caption])
                number += 1
        csv_files.write(directory / f"{WITH_VAL[split]}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], table)


def write_tango(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    for split, rows in by_split(placed):
        lines = (
            {"dataset": "audiocaps", "location": str(final / place), "captions": caption}
            for clip, place in rows
            for caption in clip.captions
        )
        manifest.write_tango_json(lines, directory / f"{split}.json")


def write_panns(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed)
    for split, rows in by_split(placed):
        table = [[Path(place).name, *_numbered(clip.captions, len(columns))] for clip, place in rows]
        csv_files.write(directory / f"{WITH_VAL[split]}.csv", ["file_name", *columns], table)


def write_clotho(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed)
    for split, rows in by_split(placed):
        table = [[Path(place).name, *_numbered(clip.captions, len(columns))] for clip, place in rows]
        csv_files.write(directory / f"clotho_captions_{CLOTHO[split]}.csv", ["file_name", *columns], table)
        # aac-datasets also requires the metadata table.
        origins = [[Path(place).name, ";".join(clip.labels), *[""] * (len(CLOTHO_METADATA) - 2)] for clip, place in rows]
        csv_files.write(directory / f"clotho_metadata_{CLOTHO[split]}.csv", list(CLOTHO_METADATA), origins)


CLOTHO_METADATA = ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
CLOTHO = {"train": "development", "valid": "validation", "test": "evaluation"}


def write_wavcaps(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
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


def write_amphion(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    for split, rows in by_split(placed):
        write_json(
            directory / f"{split}.json",
            [
                {"Dataset": "AudioCaps", "Uid": Path(place).stem, "Caption": caption}
                for clip, place in rows
                for caption in clip.captions
            ],
        )


def amphion_place(clip: ExportClip) -> str:
    stem, start = clip.stem_and_start
    return f"wav/{stem}_{round(start * 1000)}_{round((start + clip.seconds) * 1000)}.wav"


def write_musiccaps(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
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
        video, start = clip.video_and_start
        for caption in clip.captions:
            aspects = str(list(clip.labels))
            table.append(
                [
                    video,
                    plain_number(start),
                    plain_number(start + clip.seconds),
                    "",
                    aspects,
                    caption,
                    "",
                    False,
                    clip.split == "test",
                ]
            )
    csv_files.write(directory / "musiccaps.csv", columns, table)


def write_audioldm(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
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
    csv_files.write(
        directory / "metadata/class_labels_indices.csv",
        ["index", "mid", "display_name"],
        [[index, code, label] for index, (label, code) in enumerate(codes.items())],
    )
    paths["class_label_indices"] = "./metadata/class_labels_indices.csv"
    write_json(
        directory / "metadata/dataset_root.json",
        {"soundmill": "./audio", "comments": {}, "metadata": {"path": {"soundmill": paths}}},
    )


def write_audiocraft(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    names = {"train": "train", "valid": "valid", "test": "evaluate"}
    for split, rows in by_split(placed):
        lines = []
        for clip, place in rows:
            sidecar = {
                "description": clip.captions[0],
                "captions": list(clip.captions),
                "keywords": list(clip.labels),
                "name": clip.clip_id,
                **dict.fromkeys(AUDIOCRAFT_UNKNOWN),
                "duration": clip.seconds,
                "sample_rate": clip.sample_rate,
                "file_extension": "wav",
            }
            write_json((directory / place).with_suffix(".json"), sidecar)
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
        write_lines(directory / "egs" / names[split] / "data.jsonl.gz", lines)


def write_stable_audio(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    for clip, place in placed:
        pair = {
            "prompt": clip.captions[0],
            "captions": list(clip.captions),
            "labels": list(clip.labels),
            "seconds_total": clip.seconds,
        }
        write_json((directory / place).with_suffix(".json"), pair)


def audiofolder_place(clip: ExportClip) -> str:
    return f"{HUGGING_FACE[clip.split]}/{clip.clip_id}.wav"


def audiofolder_csv_place(clip: ExportClip) -> str:
    if any(";" in label for label in clip.labels):
        raise NotExpressible("a label contains `;`, which separates labels")
    return audiofolder_place(clip)


# `datasets` infers the types of a split's columns from its first rows and requires the same types in all splits: if any clip has a
# text, clips without one get an empty one. In CSV that is a space, because pandas reads an empty cell as a number.


def write_audiofolder(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    no_caption = [""] if any(clip.captions for clip, _ in placed) else []
    no_label = [""] if any(clip.labels for clip, _ in placed) else []
    for split, rows in by_split(placed):
        lines = (
            {"file_name": Path(place).name, "captions": list(clip.captions) or no_caption, "labels": list(clip.labels) or no_label}
            for clip, place in rows
        )
        write_lines(directory / HUGGING_FACE[split] / "metadata.jsonl", lines)


def write_audiofolder_csv(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    columns = _caption_columns(placed, least=1)
    no_label = " " if any(clip.labels for clip, _ in placed) else ""
    no_caption = " " if any(clip.captions for clip, _ in placed) else ""
    for split, rows in by_split(placed):
        table = [
            [Path(place).name, ";".join(clip.labels) or no_label]
            + [caption or no_caption for caption in _numbered(clip.captions, len(columns))]
            for clip, place in rows
        ]
        csv_files.write(directory / HUGGING_FACE[split] / "metadata.csv", ["file_name", "labels", *columns], table)


def write_lhotse(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
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
            for number, caption in enumerate(clip.captions or ("",)):
                supervisions.append(
                    {
                        "id": f"{clip.clip_id}-{number}",
                        "recording_id": clip.clip_id,
                        "start": 0.0,
                        "duration": clip.seconds,
                        "channel": channels if len(channels) > 1 else 0,
                        "text": caption,
                        "custom": {"labels": list(clip.labels), "source": clip.source, "source_start": clip.start},
                    }
                )
        write_lines(directory / f"soundmill_recordings_{split}.jsonl.gz", recordings)
        write_lines(directory / f"soundmill_supervisions_{split}.jsonl.gz", supervisions)
