"""Formats that tell one class a clip."""

from __future__ import annotations

import re
from pathlib import Path

from soundmill import shards
from soundmill.exports.target import (
    Clip,
    plain_number,
    write_csv,
)


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


def write_esc(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
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
    write_csv(directory / "meta/esc50.csv", ["filename", "fold", "target", "category", "esc10", "src_file", "take"], rows)


def urbansound_place(clip: Clip) -> str:
    return f"audio/fold{_fold(clip, 10)}/{clip.clip_id}.wav"


def write_urbansound(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    targets = {label: number for number, label in enumerate(sorted({clip.labels[0] for clip, _ in placed}))}
    rows = [
        [
            Path(place).name,
            clip.recording_id,
            plain_number(clip.start),
            plain_number(clip.start + clip.seconds),
            1,
            _fold(clip, 10),
            targets[clip.labels[0]],
            clip.labels[0].replace(" ", "_"),
        ]
        for clip, place in placed
    ]
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    write_csv(directory / "metadata/UrbanSound8K.csv", columns, rows)


def folder_place(clip: Clip) -> str:
    return f"{clip.split}/{folder_of(clip.labels[0])}/{clip.clip_id}.wav"


def write_folder(placed: list[tuple[Clip, str]], directory: Path, final: Path) -> None:
    """A caption file beside each sound that has captions."""
    for clip, place in placed:
        if clip.captions:
            (directory / place).with_suffix(".txt").write_text("\n".join(clip.captions) + "\n", encoding="utf-8")
