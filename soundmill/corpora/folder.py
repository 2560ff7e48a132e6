"""Any directory of recordings: folders give splits and classes, a `.txt` beside a recording its caption."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from soundmill.corpora.inventory import AudioFile, Inventory, is_about_corpus
from soundmill.corpora.join import join
from soundmill.corpora.metadata import MAX_TEXT_BYTES, read_head, read_sidecar
from soundmill.corpora.resolver import clip_of_file, like_words, looks_random
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.manifest import CONTAINERS, SPLIT_NAMES, escape_path

FORMAT = Format(
    name="folder",
    layout="any tree of recordings",
    id="`{ytid}_{start}` names, else a hash of the relative path",
    caption="`x.txt` or `x.wav.txt` beside `x.wav`; else made from the label",
    label='first-level folders (`001 - Dog bark` → "dog bark"), or those below the splits; a single folder that '
    "only holds folders is skipped",
    split="folders named `train`, `valid`, `test` above the classes, if they outnumber the folders beside them; else assigned",
)


def detect(inventory: Inventory) -> bool:
    return bool(inventory.audio)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of a directory tree; `train/dog/x.wav` gives a split and a label, `dog/x.wav` a label, `x.wav` neither."""
    tables = CorpusTables()
    layout = layout_of(inventory.audio)
    paired: set[bytes] = set()
    doubtful = []
    for file in inventory.audio:
        split, label = layout.split_and_label(file)
        clip = clip_of_file(file)
        video = clip if clip and clip[1] is not None and looks_random(clip[0]) else None
        if video and like_words(video[0]):
            doubtful.append(file)
        recording_id = f"{video[0]}_{video[1]:g}" if video else None
        recording_id = tables.add_recording(
            file,
            num_shards,
            recording_id=recording_id,
            start_time=video[1] if video else 0.0,
            labels=[label] if label else [],
            split=split,
            group=video[0] if video else None,
        )
        for key in dict.fromkeys((os.path.splitext(file.raw_path)[0], file.raw_path)):
            if name := inventory.beside(key, b".txt"):
                paired.add(name)
                _read_sidecar(inventory, name, recording_id, tables)
    absent = list(_without_recording(inventory, paired))
    join(replace(inventory, audio=[]), absent, num_shards, tables)
    _remark(inventory.audio, layout, doubtful, tables)
    return tables


@dataclass(frozen=True)
class _Layout:
    above: tuple[bytes, ...] | None  # path of the folder that contains the split folders; None: no splits
    level: int  # depth of the class folders

    def split_and_label(self, file: AudioFile) -> tuple[str | None, str | None]:
        """(split, label); a file beside the split folders has neither."""
        split = None if self.above is None else _split_below(file, self.above)
        if self.above is not None and split is None:
            return None, None
        return split, class_label(file.folders[self.level]) if len(file.folders) > self.level else None


def layout_of(audio: list[AudioFile]) -> _Layout:
    """Find the folders of splits and classes.

    `train` may also be a class. Folders named after splits are splits if there are no other folders beside them, or if they name
    several splits and outnumber the other folders.
    """
    parents = {parent for file in audio if (parent := _above_split(file)) is not None}
    above = min(parents, key=len, default=None)
    if above is None or any(parent[: len(above)] != above for parent in parents):
        return _Layout(None, _class_level(audio, 0))
    inside = [file for file in audio if _split_below(file, above)]
    named = {file.folders[len(above)] for file in inside}
    beside = {_folder_beside(file, above) for file in audio if not _split_below(file, above)} - {None}
    if beside and not (len({split_of_folder(folder) for folder in named}) > 1 and len(named) > len(beside)):
        return _Layout(None, _class_level(audio, 0))
    return _Layout(above, _class_level(inside, len(above) + 1))


def split_of_folder(folder: bytes) -> str | None:
    """The split that a folder is named after."""
    return SPLIT_NAMES.get(folder.decode("utf-8", "replace").lower())


def _above_split(file: AudioFile) -> tuple[bytes, ...] | None:
    """The folders above a file's first split folder."""
    return next((tuple(file.folders[:level]) for level, folder in enumerate(file.folders) if split_of_folder(folder)), None)


def _split_below(file: AudioFile, above: tuple[bytes, ...]) -> str | None:
    """The split of a file, from its folder directly below `above`."""
    folders = file.folders
    return split_of_folder(folders[len(above)]) if len(folders) > len(above) and tuple(folders[: len(above)]) == above else None


def _folder_beside(file: AudioFile, above: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
    """The first folder of a file that is not on the path to the splits; None if there is none."""
    folders = tuple(file.folders)
    return next((folders[: end + 1] for end in range(len(folders)) if folders[: end + 1] != above[: end + 1]), None)


def _class_level(audio: list[AudioFile], level: int) -> int:
    """The depth of class folders, from `level` on. A single folder is skipped if it is a container, or if all recordings are in
    several folders below it."""
    while len(names := {file.folders[level].lower() for file in audio if len(file.folders) > level}) == 1:
        if not (names <= CONTAINERS or _parts_below(audio, level + 1)):
            break
        level += 1
    return level


def _parts_below(audio: list[AudioFile], level: int) -> bool:
    """Whether all recordings are in folders at this depth or deeper, and in more than one."""
    while all(len(file.folders) > level for file in audio):
        if len({file.folders[level] for file in audio}) > 1:
            return True
        level += 1
    return False


def _remark(audio: list[AudioFile], layout: _Layout, doubtful: list[AudioFile], tables: CorpusTables) -> None:
    if layout.above is None:
        unused = [file for file in audio if _above_split(file) is not None]
        what = (
            "are in folders named after splits that are not read as splits, because they are in several folders or have other "
            "folders beside them; put all recordings into train, valid or test, and the classes below these"
        )
    else:
        unused = [file for file in audio if layout.split_and_label(file)[0] is None]
        what = (
            "are beside the folders of splits: they have no label and are used for training; put them into train, valid or test, "
            "or remove them from the corpus"
        )
    skipped = (0 if layout.above is None else len(layout.above) + 1, layout.level)
    lone = [folder for folder in audio[0].folders[slice(*skipped)] if folder.lower() not in CONTAINERS] if audio else []
    if lone and len(audio[0].folders) > layout.level:
        tables.remarks.append(
            f"all recordings are in {escape_path(b'/'.join(lone))}, which is not used as a class; the labels are the folders in it"
        )
    for files, sentence in (
        (unused, what),
        (
            doubtful,
            "are named like a clip of a YouTube video (id and start) and read as such, though the id looks like words; rename them "
            "if they are not",
        ),
    ):
        if files:
            tables.remarks.append(f"{len(files)} recordings (first: {files[0].path}) {sentence}")


def class_label(folder: bytes) -> str:
    """The class in a folder's name: `001 - Dog bark` and `dog_bark` both give "dog bark"."""
    name = escape_path(folder)
    words = re.sub(r"^\d+\s*[-_.)]+\s*|^\d+\s+", "", name).replace("_", " ").strip().lower()
    return " ".join(words.split()) or name


def _without_recording(inventory: Inventory, paired: set[bytes]) -> Iterator[ManifestRow]:
    """Captions without a recording: one-line texts in folders with other captions. Longer texts may be anything."""
    folders = {os.path.dirname(name) for name in paired}
    for name in sorted(inventory.metadata.keys() - paired):
        key, extension = os.path.splitext(name)
        if extension.lower() == b".txt" and os.path.dirname(name) in folders and not is_about_corpus(name):
            if line := _only_line(inventory, name):
                inventory.opened.add(name)
                yield ManifestRow(name, 1, os.fsdecode(key), captions=[line])


def _only_line(inventory: Inventory, name: bytes) -> str | None:
    text = read_head(inventory, name, MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
    return text if len(text.splitlines()) == 1 and "\0" not in text else None


def _read_sidecar(inventory: Inventory, name: bytes, recording_id: str, tables: CorpusTables) -> None:
    """Add the whole text as one caption; what is not text is quarantined."""
    if (text := read_sidecar(inventory, name, tables.reject)) is None:
        return
    if tables.said([text], escape_path(name)):
        tables.add_caption(recording_id, text, escape_path(name))
    else:
        tables.reject(name, "empty caption")
