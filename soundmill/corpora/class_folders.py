"""Formats of class folders and certain file names: GTZAN's genres, ESC, the words of Speech Commands (SC09: its ten digits)."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from soundmill.corpora.folder import class_label
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_files_with, read_csv, read_lines
from soundmill.corpora.resolver import FileIndex, folders_of_key
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, fold_number
from soundmill.errors import UserError
from soundmill.manifest import escape_path

_GTZAN_NAME = re.compile(r"(?P<genre>[a-z]+)\.(?P<number>\d{5})")


class Gtzan:
    """A folder per genre with files like `blues.00000.wav`."""

    FORMAT = Format(
        name="gtzan",
        layout="`genres_original/blues/blues.00000.wav` … (or `.au`)",
        id="hash of the path",
        caption="none (made from the label)",
        label="the genre, first word of the file's name",
        split="none",
    )

    def detect(self, inventory: Inventory) -> bool:
        """Whether most files are named after the folder of their genre."""
        return 2 * sum(_genre(file) is not None for file in inventory.audio) > len(inventory.audio)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of GTZAN: one label per recording. Its known repetitions are left to the stage `duplicates`."""
        tables = CorpusTables()
        for file in inventory.audio:
            label = _genre(file)
            if label is None:
                tables.count("without_genre")
            tables.add_recording(file, num_shards, labels=[label] if label else [])
        if tables.counts.get("without_genre", 0) == len(inventory.audio):
            raise inventory.lacks("file like `blues/blues.00000.wav`", "put GTZAN's folders of genres there")
        return tables


def _genre(file: AudioFile) -> str | None:
    """The genre of a file whose folder and name are as in GTZAN, else None."""
    match = _GTZAN_NAME.fullmatch(file.stem)
    return match["genre"] if match and file.folders and file.folders[-1] == match["genre"].encode() else None


GTZAN = Gtzan()


# `{fold}-{Freesound id}-{take}` and, in ESC-50, `-{target}`.
_ESC_NAME = re.compile(r"(?P<fold>\d)-(?P<source>\d+)-(?P<take>[A-Z])(?:-(?P<target>\d+))?")
_ESC_FOLDER = re.compile(rb"\d{3} - .+")
_ESC_COLUMNS = ("filename", "fold", "category")


class Esc:
    """ESC-10 (class folders, fold in the file name) and ESC-50 (`meta/esc50.csv` and `audio/`)."""

    FORMAT = Format(
        name="esc",
        layout="ESC-10 folders (`001 - Dog bark/1-100032-A.ogg`), or ESC-50's `meta/esc50.csv` and `audio/`",
        id="hash of the relative path; rows match `filename`, the uppermost of several such files",
        caption="made from the label",
        label="the class: `category`, or the folder",
        split="folds: the highest is test",
    )

    def detect(self, inventory: Inventory) -> bool:
        """Whether there is such a csv, or most files are as in ESC-10."""
        return bool(_meta_csv(inventory)) or 2 * sum(map(_is_esc10, inventory.audio)) > len(inventory.audio)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of ESC-10 or ESC-50: one label, the fold, and the Freesound original as group; no captions."""
        tables = CorpusTables()
        if table := _meta_csv(inventory):
            return _read_esc50(inventory, list(_esc_rows(inventory, table, tables)), num_shards, tables)
        if not any(_is_esc10(file) for file in inventory.audio):
            raise UserError(
                f"corpus.path: {escape_path(bytes(inventory.root))} has neither a csv with the columns {', '.join(_ESC_COLUMNS)} "
                "(ESC-50) nor folders like `001 - Dog bark` with files like `1-100032-A.ogg` (ESC-10); "
                "for another layout use `corpus=folder`"
            )
        for file in inventory.audio:
            # The class is the folder with a class number, else the innermost one.
            label = next(
                (folder for folder in reversed(file.folders) if _ESC_FOLDER.fullmatch(folder)), b"".join(file.folders[-1:])
            )
            fold, source = _fold_and_original(file.stem)
            tables.add_recording(file, num_shards, labels=[class_label(label)] if label else [], fold=fold, group=source)
        return tables


def _read_esc50(inventory: Inventory, rows: list[ManifestRow], num_shards: int, tables: CorpusTables) -> CorpusTables:
    """Join rows with files. Of several files with one name (`audio/16000/` may repeat `audio/`), the uppermost is described; the
    others are recordings of the same fold and group.
    """
    index = FileIndex(inventory)
    first: dict[str, ManifestRow] = {}  # of each name
    twins: dict[AudioFile, ManifestRow] = {}
    for row in rows:
        if first.setdefault(row.key, row) is not row:
            continue
        files = sorted(index.resolve(row.key).files, key=lambda file: (len(file.folders), file.folders, file.name))
        if len(files) > 1:
            twins.update(dict.fromkeys(files[1:], row))
            tables.collisions.append({"id": row.key, "paths": [file.path for file in files]})
            row.group = row.group or row.key  # keeps them in one split
    described = replace(inventory, audio=[file for file in inventory.audio if file not in twins])
    join(described, rows, num_shards, tables, unique=True)
    for file, row in twins.items():
        tables.add_recording(file, num_shards, fold=row.fold, group=row.group)
    for recording in tables.recordings:  # files without a row: fold and original from the name
        fold, source = _fold_and_original(os.fsdecode(os.path.splitext(os.path.basename(recording["raw_path"]))[0]))
        recording["fold"] = fold if recording["fold"] is None else recording["fold"]
        recording["group"] = recording["group"] or source
    return tables


def _fold_and_original(stem: str) -> tuple[int | None, str | None]:
    """(fold, Freesound original) in a file's name."""
    match = _ESC_NAME.fullmatch(stem)
    return (int(match["fold"]), match["source"]) if match else (None, None)


def _meta_csv(inventory: Inventory) -> bytes | None:
    """The csv of ESC-50, by its columns; `esc50.csv` if there are several."""
    return min(csv_files_with(inventory, set(_ESC_COLUMNS)), key=lambda name: (not name.endswith(b"esc50.csv"), name), default=None)


def _is_esc10(file: AudioFile) -> bool:
    """Whether folder and name of a file are as in ESC-10."""
    return bool(file.folders and _ESC_FOLDER.fullmatch(file.folders[-1]) and _ESC_NAME.fullmatch(file.stem))


def _esc_rows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
    """One row per line; names with a slash, bad folds and empty categories are quarantined."""
    for line, row in read_csv(inventory, name):
        file, fold, category = row["filename"], fold_number(row["fold"]), row["category"].replace("_", " ").strip().lower()
        if not file or "/" in file:
            tables.reject(name, "bad file name", f"line {line}: {file!r:.80}")
        elif fold is None:
            tables.reject(name, "bad fold", f"line {line}: {row['fold']!r:.80} is not a fold number")
        elif not category:
            tables.reject(name, "empty category", f"line {line}: {file}")
        else:
            source = _fold_and_original(os.path.splitext(file)[0])[1]
            yield ManifestRow(name, line, file, labels=[category], fold=fold, group=source)


ESC = Esc()


NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_\d+")
NO_WORD = re.compile(rb"_.*_")  # `_background_noise_`; `_silence_` and `_unknown_` of the separate test set
LISTS = {b"validation_list.txt": "valid", b"testing_list.txt": "test"}
DIGITS = frozenset({"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"})


@dataclass(frozen=True)
class SpeechCommands:
    """The adapter for all words, or only `words`."""

    FORMAT: Format
    words: frozenset[str] | None = None

    def detect(self, inventory: Inventory) -> bool:
        """Whether most files have such names and folders, all of them in folders of `words`."""
        spoken = [word for file in inventory.audio if (word := _word(file)) and NAME.fullmatch(file.stem)]
        return 2 * len(spoken) > len(inventory.audio) and (self.words is None or self.words >= set(spoken))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of words: one label per recording, the speaker as the group; with lists, all other files are for training.

        Recordings of other words, or of none, are left out and counted in a remark.
        """
        tables = CorpusTables()
        lists = sorted(name for name in inventory.metadata if os.path.basename(name) in LISTS)
        rows = [row for name in lists for row in _rows(inventory, name, tables) if self._has(row.part)]
        word_of = {file: word for file in inventory.audio if (word := _word(file)) and self._has(word)}
        if not word_of and not rows:
            raise inventory.lacks("file like `yes/0a7c2a8d_nohash_0.wav`", "put Speech Commands' folders of words there")
        for of_word, what in (
            (False, "recordings that are not words, as in `_background_noise_`, which are left out"),
            (True, f"recordings of other words than those of {self.FORMAT.name}, which are left out"),
        ):
            others = [file.path for file in inventory.audio if file not in word_of and bool(_word(file)) is of_word]
            inventory.remark(b"", what, len(others), *others[:1])
        parts = {word: word for word in word_of.values()}
        join(replace(inventory, audio=list(word_of)), rows, num_shards, tables, unique=True, parts=parts)
        files = {file.raw_path: file for file in word_of}
        for recording in tables.recordings:  # label and group come from folder and name
            file = files[recording["raw_path"]]
            name = NAME.fullmatch(file.stem)
            recording["labels"] = [word_of[file]]
            recording["group"] = name["speaker"] if name else None
            recording["split"] = recording["split"] or ("train" if lists else None)
        return tables

    def _has(self, word: str) -> bool:
        return self.words is None or word in self.words


def _word(file: AudioFile) -> str | None:
    """The word in a file's folder."""
    folder = b"".join(file.folders[-1:])
    return class_label(folder) if folder and not NO_WORD.fullmatch(folder) else None


def _rows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
    for line, key in read_lines(inventory, name):
        *folders, _ = folders_of_key(key)
        if folders:
            word = class_label(os.fsencode(folders[-1]))
            yield ManifestRow(name, line, key.strip(), labels=[word], split=LISTS[os.path.basename(name)], part=word, bare=True)
        else:
            tables.reject(name, "bad path", f"line {line}: {key!r:.80} is not a path like `yes/0a7c2a8d_nohash_0.wav`")


SPEECH_COMMANDS = SpeechCommands(
    Format(
        name="speech_commands",
        layout="one folder per word, with files `{speaker}_nohash_{number}.wav`; `validation_list.txt`, `testing_list.txt`",
        id="hash of the path; the lists' lines are paths",
        caption="none (made from the label)",
        label="the word: the innermost folder; recordings in `_background_noise_` are left out and counted",
        split="the lists give valid and test, the rest is train; without lists none; group: the speaker",
    )
)
SC09 = SpeechCommands(
    Format(
        name="sc09",
        layout="`speech_commands` with only the ten digits",
        id="as `speech_commands`",
        caption="none (made from the label)",
        label="as `speech_commands`; `corpus.format: sc09` leaves other words out and counts them",
        split="as `speech_commands`",
    ),
    DIGITS,
)
