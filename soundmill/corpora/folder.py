"""Formats of folders and file names: any directory, where folders give splits and classes and a `.txt` beside a recording its
caption; ESC; the words of Speech Commands (SC09: its ten digits)."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from soundmill.corpora.csv_tables import csv_files_with, read_csv
from soundmill.corpora.inventory import AudioFile, Inventory, composed, is_about_corpus
from soundmill.corpora.join import join
from soundmill.corpora.metadata import MAX_TEXT_BYTES, read_head, read_lines, read_sidecar
from soundmill.corpora.resolver import FileIndex, clip_of_file, folders_of_key, like_words, looks_random, shared_folders, whole_of
from soundmill.corpora.tables import OPENING, CorpusTables, ManifestRow, fold_number, is_no_description, split_of
from soundmill.manifest import CONTAINERS, SPLIT_NAMES, escape_path, is_container, path_text, splits_of_names, words_of_name

_FOLD = re.compile(rb"fold[ _-]?(\d{1,4})", re.IGNORECASE)
# `1 - `, `2.`, `03_` before a name; not of `808 kick` and `2-step`.
_ITEM = re.compile(r"^(?:\d+\s*[-_.)]+\s|\d+[.)](?!\d)|0\d+[-_ ])\s*")
_LISTED = re.compile(r"(\d+)[-_.)\s]+(?=[^\s\d])")  # see `_are_listed`
_ID = re.compile(
    r"(?:actor|speaker|spk|subject|person|user|singer|drummer|player|female|male|session|track|id|dr|p|s)[ .-]?\d+|[a-z]{1,4}0\d+"
)
_HEX = re.compile(r"[0-9a-f]{1,2}")  # folders that divide files by hash or first letter, if some have letters, and others none
_WHOLES = frozenset("all archive collection corpus database dataset library raw set".split())
# One line of several words between a letter and a letter: no events with their times, no settings.
_SENTENCE = re.compile(OPENING + r"\S* [^\t\r\n\0]*[^\d\W][\"'”’!?.)]*")


class Folder:
    """Any directory of recordings."""

    FORMAT = "folder"

    def detect(self, inventory: Inventory) -> bool:
        return bool(inventory.audio)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of a directory tree; `train/dog/x.wav` gives a split and a label, `dog/x.wav` a label, `x.wav` neither."""
        tables, layout = CorpusTables(), layout_of(inventory.audio)
        doubtful = []
        for file in inventory.audio:
            split, label = layout.split_and_label(file)
            clip = clip_of_file(file)
            video, start = clip if clip and clip[1] is not None and looks_random(clip[0]) else (None, 0.0)
            if video and like_words(video):
                doubtful.append(file)
            fold = next((int(match[1]) for match in map(_FOLD.fullmatch, file.folders) if match), None)
            told = {"labels": filter(None, [label]), "fold": fold, "split": split, "group": video or original_of(file)}
            own_id = f"{video}_{start:g}" if video else None
            tables.add_recording(file, num_shards, recording_id=own_id, start_time=start, **told)
        add_texts(inventory, num_shards, tables)
        remark_layout(inventory.audio, layout, doubtful, tables)
        if len(labels := {label for row in tables.recordings for label in row["labels"]}) == 1:
            then = "from their folder; if it is no class, move them out of it"
            tables.remarks.append(f"all recordings with a label have the same, {labels.pop()!r}, {then}")
        return tables


def original_of(file: AudioFile) -> str | None:
    """What a file is an excerpt or version of: the path of the whole."""
    stem = whole_of(file.stem)
    return stem and f"{os.path.dirname(file.path)}/{stem}"


def add_texts(inventory: Inventory, num_shards: int, tables: CorpusTables, index: FileIndex | None = None) -> None:
    """Add the captions in `x.txt` and `x.wav.txt` that a recording `x.wav` does not have, and those of missing recordings.

    Lines that are labels of others are labels of a recording without any, as in IRMAS.
    """
    paired, known, classes = set(), {(row["recording_id"], row["caption"]) for row in tables.captions}, set(tables.labels)
    elsewhere = _texts_elsewhere(inventory, index)
    for row in tables.recordings:
        stem = os.path.splitext(row["raw_path"])[0]
        keys = dict.fromkeys((stem, row["raw_path"], stem + b".normalized"))  # the last is LibriTTS'
        for name in (*(inventory.beside(key, b".txt") for key in keys), *elsewhere.get(row["raw_path"], ())):
            if name:
                paired.add(name)
                text = read_sidecar(inventory, name, tables.reject)  # all of it is one caption
                if text and not row["labels"] and classes.issuperset(lines := [line.strip() for line in text.splitlines()]):
                    row["labels"] = lines
                elif text is not None and not tables.said([text], escape_path(name)):
                    tables.reject(name, "empty caption")
                elif text is not None and (said := (row["recording_id"], " ".join(text.split()))) not in known:
                    known.add(said)
                    tables.add_caption(row["recording_id"], text, escape_path(name))
    join(replace(inventory, audio=[]), _without_recording(inventory, paired), num_shards, tables)


def _texts_elsewhere(inventory: Inventory, index: FileIndex | None) -> dict[bytes, list[bytes]]:
    """Texts by the raw path of the only recording of their name, or of its microphones, from folders of mostly one-line
    sentences: `txt/p225/1.txt` of `wav48/p225/1.wav`."""
    folders = {os.path.dirname(file.raw_path) for file in inventory.audio}
    stems = {composed(whole_of(file.stem) or file.stem) for file in inventory.audio}
    texts: dict[bytes, dict[bytes, tuple[bool, bool]]] = defaultdict(dict)  # by folder: whether each is a sentence, and one line
    for name in sorted(name for name in inventory.metadata if name.lower().endswith(b".txt")):
        folder, stem = os.path.dirname(name), composed(path_text(os.path.splitext(os.path.basename(name))[0]))
        if folder not in folders and stem in stems and not is_no_description(name):
            text = read_head(inventory, name).decode("utf-8", "replace").strip()
            texts[folder][name] = bool(_SENTENCE.fullmatch(text)), len(text.splitlines()) == 1
    if texts:
        index = index or FileIndex(inventory)
    found = defaultdict[bytes, list[bytes]](list)
    for folder, told in texts.items():
        if 2 * sum(is_sentence for is_sentence, _ in told.values()) <= len(told):
            continue
        above = path_text(folder).split("/")
        for name in (name for name, (_, is_line) in told.items() if is_line):
            files = index.resolve(path_text(os.path.splitext(name)[0])).files
            places = {(os.path.dirname(file.raw_path), whole_of(file.stem) or file) for file in files}
            for file in files if len(places) == 1 and (len(above) < 2 or shared_folders(files[0], above)) else ():
                found[file.raw_path].append(name)
    return found


def split_of_folder(folder: bytes) -> str | None:
    """The split that a folder is named after."""
    return SPLIT_NAMES.get(folder.decode("utf-8", "replace").lower())


@dataclass(frozen=True)
class _Layout:
    level: int  # depth of the class folders
    splits: Mapping[tuple[bytes, ...], str] = field(default_factory=dict)  # by the folders down to that of the split
    depth: int = 0  # of the split folders, from 1; 0: no splits
    unused: str = ""  # why the folders at `level` are no classes; empty if they are
    listed: bool = False  # they have the numbers of a list before their names: `2-siren`

    def split_and_label(self, file: AudioFile) -> tuple[str | None, str | None]:
        """(split, label); a file beside the split folders has neither, one in a folder that is no class no label."""
        split = self.splits.get(tuple(file.folders[: self.depth]))
        if self.depth and split is None:
            return None, None
        folders = () if self.unused else file.folders
        label = _class_of(folders[self.level], self.listed) if len(folders) > self.level else None
        return split, None if split and label and SPLIT_NAMES.get(label) == split else label


def layout_of(audio: list[AudioFile]) -> _Layout:
    """Where splits and classes are in the folders. Numbers are classes if all have one digit, or if they count from 0 or 1.

    Numbered speakers, sessions and tracks are none, nor are folders of which no split has those of another: songs, speakers.
    """
    layout = _layout_of_names(audio)
    layout = replace(layout, listed=_are_listed({file.folders[layout.level] for file in audio if len(file.folders) > layout.level}))
    told = {(label, split) for split, label in map(layout.split_and_label, audio) if label}
    classes = {label for label, _ in told}
    counted = [set(map(str, range(first, first + len(classes)))) for first in (0, 1)]
    are_numbers = all(map(str.isdecimal, classes)) and any(len(label) > 1 for label in classes)
    are_ids = len(classes) > 1 and 2 * sum(bool(_ID.fullmatch(label)) for label in classes) > len(classes)
    are_digits = all(map(_HEX.fullmatch, classes)) and len(set(map(str.isdecimal, classes))) > 1
    whole = len(classes) == 1 and words_of_name(min(classes).encode()) & (CONTAINERS | _WHOLES)
    if (are_numbers and classes not in counted) or are_ids or are_digits:
        return replace(
            layout, unused="of numbers or of numbered names, not used as classes; if they are classes, name them by words"
        )
    if whole:
        return replace(layout, unused="named like a whole data set, not used as a class; if it is one, name it by its sound")
    if len({split for _, split in told}) > 1 and len(told) == len(classes) > 2:
        return replace(layout, unused="of which no split has those of another, not used as classes; if they are, name them alike")
    return layout


def _are_listed(folders: set[bytes]) -> bool:
    """Whether at least half of the folders begin with a number, these count from 0 or 1 or are padded, and the names differ."""
    numbers = [match[1] for name in folders if (match := _LISTED.match(path_text(name)))]
    differ = len({class_label(name, listed=True) for name in folders}) == len(folders)
    if len(numbers) < 2 or 2 * len(numbers) < len(folders) or not differ:
        return False
    counted = min(map(int, numbers)) <= 1 and max(map(int, numbers)) <= 2 * len(numbers)
    padded = len(set(map(len, numbers))) == 1 and any(number.startswith("0") for number in numbers)
    return counted or padded


@cache
def _class_of(folder: bytes, listed: bool) -> str | None:
    """The class in a folder's name; None of a fold, a numbered container, and a split that holds recordings (`train_audio`)."""
    label = class_label(folder, listed)
    is_split = split_of(folder) and label not in SPLIT_NAMES and not words_beside_split(folder)
    is_part = is_container(folder) and label[-1].isdecimal()  # `Part1`, `wav48`
    return None if is_split or is_part or _FOLD.fullmatch(label.encode()) else label


def _layout_of_names(audio: list[AudioFile]) -> _Layout:
    """Folders give splits if all in one folder have words for several; else those named after splits, if no others are beside
    them, or if they name several and outnumber the others."""
    inside = defaultdict[tuple[bytes, ...], set[bytes]](set)
    for folders in {tuple(file.folders) for file in audio}:
        for level, folder in enumerate(folders):
            inside[folders[:level]].add(folder)
    exact = {above: {name: split for name in names if (split := split_of_folder(name))} for above, names in inside.items()}
    found = {above: splits for above, names in inside.items() if (splits := splits_of_names(names) or exact[above])}
    depth = 1 + min(map(len, found), default=0)
    splits = {(*above, name): split for above, names in found.items() if len(above) < depth for name, split in names.items()}
    described = [file for file in audio if tuple(file.folders[:depth]) in splits]
    above, *others = {path[:-1] for path in splits} or {()}
    beside = {_folder_beside(file, above) for file in audio if tuple(file.folders[:depth]) not in splits} - {None}
    outnumber = len(set(splits.values())) > 1 and len(splits) > len(beside)
    if others and len(described) == len(audio):  # `dog/train`, `cat/train`
        inner, outer = _class_level(audio, depth), _class_level(audio, 0)
        return _Layout(inner if outer >= depth or all(len(file.folders) > inner for file in audio) else outer, splits, depth)
    if not splits or any(parent[: depth - 1] != above for parent in found) or (beside and not outnumber):
        return _Layout(_class_level(audio, 0))
    return _Layout(_class_level(described, depth), splits, depth)


def words_beside_split(name: bytes) -> set[str]:
    """The words in a name, in lower case, but for those for splits and for what holds recordings."""
    return words_of_name(name) - SPLIT_NAMES.keys() - CONTAINERS


def _folder_beside(file: AudioFile, above: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
    """The first folder of a file that is not on the path to the splits; None if there is none."""
    folders = tuple(file.folders)
    return next((folders[: end + 1] for end in range(len(folders)) if folders[: end + 1] != above[: end + 1]), None)


def _class_level(audio: list[AudioFile], level: int) -> int:
    """Depth of class folders, from `level` on. Folds and containers are skipped, and so is a single folder above a container or
    several folders that have all files."""
    while names := {file.folders[level] for file in audio if len(file.folders) > level}:
        is_above = len(names) == 1 and _forks(audio, level + 1)
        if not is_above and not all(map(is_container, names)) and not all(map(_FOLD.fullmatch, names)):
            break
        level += 1
    return level


def _forks(audio: list[AudioFile], level: int) -> bool:
    """Whether at a depth, from `level` on, all recordings are in folders, and in more than one or in a container."""
    at_depth = list(map(set, zip(*(file.folders for file in audio), strict=False)))[level:]
    return any(len(names) > 1 or all(map(is_container, names)) for names in at_depth)


def remark_layout(audio: list[AudioFile], layout: _Layout, doubtful: list[AudioFile], tables: CorpusTables) -> None:
    if not layout.depth:
        unused = [file for file in audio if any(map(split_of_folder, file.folders))]
        what = (
            " are in folders named after splits that are not read as splits, because they are in several folders or have other "
            "folders beside them; put all recordings into train, valid or test, and the classes below these"
        )
    else:
        unused = [file for file in audio if layout.split_and_label(file)[0] is None]
        what = " are beside the folders of splits: without label, and for training; put them into these, or remove them"
    first = layout.depth if layout.level >= layout.depth else 0
    passed = audio[0].folders[first : layout.level] if audio else []
    if lone := [folder for folder in passed if not is_container(folder) and not _FOLD.fullmatch(folder)]:
        then = "; the labels are the folders in it" if layout.split_and_label(audio[0])[1] else ""
        tables.remarks.append(f"all recordings are in {escape_path(b'/'.join(lone))}, which is not used as a class{then}")
    named, _, then = layout.unused.partition(";")
    inside = [file.path for file in audio if named and not tables.labels and len(file.folders) > layout.level]
    tables.remark(inside, f"recordings are in folders {named}", f";{then}")
    tables.remark([file.path for file in unused], "recordings", what)
    then = " are named like a clip of a YouTube video (id and start) and read as such, but like words; rename them if they are none"
    tables.remark([file.path for file in doubtful], "recordings", then)


def class_label(folder: bytes, listed: bool = False) -> str:
    """The class in a folder's name: `001 - Dog bark` and `dog_bark_wav` both give "dog bark", `2-siren` "siren" if `listed`."""
    name = escape_path(folder)
    words = (_LISTED if listed else _ITEM).sub("", name).replace("_", " ").strip().lower()
    return re.sub(r" (?:wavs?|mp3|flac)$", "", " ".join(words.split())) or name


def _without_recording(inventory: Inventory, paired: set[bytes]) -> Iterator[ManifestRow]:
    """Captions without a recording: one-line texts in folders with other captions. Longer texts may be anything."""
    folders, stems = {os.path.dirname(name) for name in paired}, {os.path.splitext(file.raw_path)[0] for file in inventory.audio}
    for name in sorted(inventory.metadata.keys() - paired):
        key, extension = os.path.splitext(name)
        is_other = is_about_corpus(name) or os.path.splitext(key)[0] in stems  # `x.original.txt` beside `x.wav`
        if extension.lower() == b".txt" and os.path.dirname(name) in folders and not is_other:
            text = read_head(inventory, name, MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
            if len(text.splitlines()) == 1 and "\0" not in text:
                inventory.opened.add(name)
                yield ManifestRow(name, 1, path_text(key), captions=[text])


# `{fold}-{Freesound id}-{take}` and, in ESC-50, `-{target}`.
_ESC_NAME = re.compile(r"(?P<fold>\d)-(?P<source>\d+)-(?P<take>[A-Z])(?:-(?P<target>\d+))?")
_ESC_FOLDER = re.compile(rb"\d{3} - .+")
_ESC_COLUMNS = ("filename", "fold", "category")


class Esc:
    """ESC-10 (class folders, fold in the file name) and ESC-50 (`meta/esc50.csv` and `audio/`)."""

    FORMAT = "esc"

    def detect(self, inventory: Inventory) -> bool:
        """Whether there is such a csv, or most files are as in ESC-10."""
        return bool(_meta_csv(inventory)) or 2 * sum(map(_is_esc10, inventory.audio)) > len(inventory.audio)

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Tables of ESC-10 or ESC-50: one label, the fold, and the Freesound original as group; no captions."""
        tables = CorpusTables()
        if table := _meta_csv(inventory):
            return _read_esc50(inventory, list(_esc_rows(inventory, table, tables)), num_shards, tables)
        if not any(_is_esc10(file) for file in inventory.audio):
            looks = "file like `001 - Dog bark/1-100032-A.ogg` (ESC-10)"
            raise inventory.lacks(f"csv with the columns {', '.join(_ESC_COLUMNS)} (ESC-50), and no {looks}", "put one there")
        for file in inventory.audio:
            # The class is the folder with a class number, else the innermost one.
            label = next(filter(_ESC_FOLDER.fullmatch, reversed(file.folders)), b"".join(file.folders[-1:]))
            fold, source = _fold_and_original(file.stem)
            tables.add_recording(file, num_shards, labels=[class_label(label)] if label else [], fold=fold, group=source)
        return tables


def _read_esc50(inventory: Inventory, rows: list[ManifestRow], num_shards: int, tables: CorpusTables) -> CorpusTables:
    """Join rows with files; of several with one name (`audio/16000/…`) the uppermost, the others get its fold and group."""
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
        fold, source = _fold_and_original(path_text(os.path.splitext(os.path.basename(recording["raw_path"]))[0]))
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
    return bool(file.folders and _ESC_FOLDER.fullmatch(file.folders[-1]) and _ESC_NAME.fullmatch(file.stem))


def _esc_rows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
    """One row per line; names with a slash and bad folds are quarantined."""
    for line, row in read_csv(inventory, name):
        file, fold, category = row["filename"], fold_number(row["fold"]), row["category"].replace("_", " ").strip().lower()
        if not file or "/" in file:
            tables.reject(name, "bad file name", f"line {line}: {file!r:.80}")
        elif fold is None:
            tables.reject(name, "bad fold", f"line {line}: {row['fold']!r:.80} is not a fold number")
        else:
            source = _fold_and_original(os.path.splitext(file)[0])[1]
            yield ManifestRow(name, line, file, labels=[category], fold=fold, group=source)


NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_\d+")
NO_WORD = re.compile(rb"_.*_")  # `_background_noise_`; `_silence_` and `_unknown_` of the separate test set
LISTS = {b"validation_list.txt": "valid", b"testing_list.txt": "test"}
DIGITS = frozenset({"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"})


@dataclass(frozen=True)
class SpeechCommands:
    """The adapter for all words, or only `words`."""

    FORMAT: str
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
            (True, f"recordings of other words than those of {self.FORMAT}, which are left out"),
        ):
            others = [file.path for file in inventory.audio if file not in word_of and bool(_word(file)) is of_word]
            inventory.remark(b"", what, others)
        parts = {word: word for word in word_of.values()}
        join(replace(inventory, audio=list(word_of)), rows, num_shards, tables, unique=True, parts=parts)
        files = {file.raw_path: file for file in word_of}
        of_folder = {file.raw_path: split_of(os.path.dirname(os.path.dirname(file.raw_path))) for file in word_of}
        has_test = "test" in of_folder.values()  # `speech_commands_test_set_v0.02`
        rest = "train" if lists or has_test else None
        for recording in tables.recordings:  # label and group come from folder and name
            file = files[recording["raw_path"]]
            name = NAME.fullmatch(file.stem)
            recording["labels"] = [word_of[file]]
            recording["group"] = name["speaker"] if name else None
            recording["split"] = recording["split"] or (has_test and of_folder[file.raw_path]) or rest
        return tables

    def _has(self, word: str) -> bool:
        return self.words is None or word in self.words


def _word(file: AudioFile) -> str | None:
    folder = b"".join(file.folders[-1:])
    return None if not folder or NO_WORD.fullmatch(folder) or is_container(folder) else class_label(folder)


def _rows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
    for line, key in read_lines(inventory, name):
        *folders, _ = folders_of_key(key)
        if folders:
            word = class_label(folders[-1].encode("utf-8", "surrogateescape"))
            yield ManifestRow(name, line, key.strip(), labels=[word], split=LISTS[os.path.basename(name)], part=word, bare=True)
        else:
            tables.reject(name, "bad path", f"line {line}: {key!r:.80} is not a path like `yes/0a7c2a8d_nohash_0.wav`")
