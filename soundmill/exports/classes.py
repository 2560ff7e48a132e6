"""Formats with one class for each clip."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from soundmill import hashing, shards
from soundmill.exports.target import ExportClip, Files, Layout, NotExpressible, by_split, plain_number, write_json, write_table

FOLDER_CHARACTERS = frozenset("_ .,()&'+-")  # allowed in a folder's name, with letters, marks and digits of any script
LONGEST_NAME = 200  # bytes; file systems allow 255, and a number may follow


def folder_of(label: str) -> str:
    """A label as a folder name, which cannot leave the directory or be hidden."""
    characters = (char if char in FOLDER_CHARACTERS or unicodedata.category(char)[0] in "LMN" else "_" for char in label)
    folder = "".join(characters).strip(" .") or "_"
    if len(folder.encode()) > LONGEST_NAME:
        raise NotExpressible(f"label {label[:40]!r} … of more than {LONGEST_NAME} bytes is too long for a folder name")
    return folder


def _fold(clip: ExportClip, count: int) -> int:
    """The last fold is test, the one before it valid; the others are assigned by a hash of `group`."""
    if clip.split == "test":
        return count
    if clip.split == "valid":
        return count - 1
    return 1 + shards.shard_of(clip.group, count - 2)


def _numbers(placed: list[tuple[ExportClip, str]]) -> dict[str, int]:
    """Number of each label, in alphabetical order."""
    return {label: number for number, label in enumerate(sorted({clip.labels[0] for clip, _ in placed}))}


def write_esc(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    targets = _numbers(placed)
    rows = [
        {
            "filename": Path(place).name,
            "fold": _fold(clip, 5),
            "target": targets[clip.labels[0]],
            "category": clip.labels[0].replace(" ", "_"),
            "esc10": False,
            "src_file": clip.group,
            "take": "A",
        }
        for clip, place in placed
    ]
    write_table(directory / "meta/esc50.csv", rows)


def urbansound_place(clip: ExportClip) -> str:
    return f"audio/fold{_fold(clip, 10)}/{clip.clip_id}.wav"


def write_urbansound(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    targets = _numbers(placed)
    rows = [
        {
            "slice_file_name": Path(place).name,
            "fsID": clip.group,
            "start": plain_number(clip.start),
            "end": plain_number(clip.start + clip.seconds),
            "salience": 1,
            "fold": _fold(clip, 10),
            "classID": targets[clip.labels[0]],
            "class": clip.labels[0].replace(" ", "_"),
        }
        for clip, place in placed
    ]
    write_table(directory / "metadata/UrbanSound8K.csv", rows)


class Gtzan(Files):
    """`genres_original/blues/blues.00000.wav`: a genre and a number; `clips.tsv` maps files to clips."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(Layout(self._place, write_gtzan, needs="label"), directory, final)
        self._count: Counter[str] = Counter()

    def _place(self, clip: ExportClip) -> str:
        genre = clip.labels[0]
        if not re.fullmatch(f"[a-z]{{1,{LONGEST_NAME}}}", genre):
            raise NotExpressible(f"label {genre!r} is not one word of lowercase letters")
        if self._count[genre] > 99_999:
            raise NotExpressible(f"more than 100000 clips of {genre}")
        self._count[genre] += 1
        return f"genres_original/{genre}/{genre}.{self._count[genre] - 1:05d}.wav"


def write_gtzan(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    lines = ["file\tclip_id", *(f"{place}\t{clip.clip_id}" for clip, place in placed)]
    (directory / "clips.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def nsynth_place(clip: ExportClip) -> str:
    return f"nsynth-{clip.split}/audio/{clip.clip_id}.wav"


def write_nsynth(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    """A note for each clip: its label is the instrument's family, its `group` the instrument; pitch and velocity are unknown."""
    families = _numbers(placed)
    for split, rows in by_split(placed):
        notes = {
            clip.clip_id: {
                "note_str": clip.clip_id,
                "instrument_str": clip.group,
                "instrument_family": families[clip.labels[0]],
                "instrument_family_str": clip.labels[0].replace(" ", "_"),
                "qualities_str": [],
                "sample_rate": clip.sample_rate,
            }
            for clip, _ in rows
        }
        write_json(directory / f"nsynth-{split}/examples.json", notes)


class Folder(Files):
    """`train/dog/x.wav`: a folder for each label, with captions as text files."""

    def __init__(self, directory: Path, final: Path):
        super().__init__(Layout(self._place, write_folder, needs="label"), directory, final)
        self._label_of: dict[str, str] = {}

    def _place(self, clip: ExportClip) -> str:
        label = clip.labels[0]
        folder = folder_of(label)
        if len(clip.captions) > 1:
            raise NotExpressible(f"{len(clip.captions)} captions, but the format has one text")
        if self._label_of.setdefault(folder.casefold(), label) != label:  # `Dog` and `dog` are the same folder on some systems
            folder = f"{folder} {hashing.digest(label)[:8]}"
        return f"{clip.split}/{folder}/{clip.clip_id}.wav"


def write_folder(placed: list[tuple[ExportClip, str]], directory: Path, final: Path) -> None:
    """A text file next to each clip with a caption."""
    for clip, place in placed:
        if clip.captions:
            (directory / place).with_suffix(".txt").write_text(clip.captions[0] + "\n", encoding="utf-8")
