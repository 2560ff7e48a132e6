"""Hugging Face: an audiofolder with `metadata.csv`, `.jsonl` or `.parquet`, or Parquet tables with the recordings inside."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from soundmill import shards
from soundmill.corpora import sources
from soundmill.corpora.audioldm import MACHINE_ID, ClassNames
from soundmill.corpora.folder import layout_of
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.metadata import csv_columns, read_csv, read_head, read_json_lines
from soundmill.corpora.resolver import with_slashes, youtube_clip
from soundmill.corpora.rows import MAX_CAPTION, Row, join
from soundmill.corpora.tables import SPLIT_NAMES, CorpusTables, Format, fold_number, video_id
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import escape_path
from soundmill.params import parse_json

FORMAT = Format(
    name="audiofolder",
    layout="`metadata.{csv,jsonl,parquet}` with `file_name`; or Parquet tables with a column of `{bytes, path}` (`audio`, …)",
    id="`youtube_id` (`ytid`, `video_id`) and `start_time` (`start_s`, `start_seconds`, `start`), else the YouTube id in the "
    "file's name, else a hash of the path; the file is `file_name`",
    caption="`text`, `caption`, `captions`, `caption_1` …, `transcription`, `transcript`, `sentence`, `description`, `prompt`",
    label="`human_labels`, `labels`, `label`, `category`, `class` or `genre`; numbers by the class names in the table's metadata, "
    "AudioSet's ids through `mid,display_name` of its class label csv, if that is there",
    split="`split`, else `is_audioset_eval` (True is test, False train), else a word (train, validation, test) in the name of the "
    "Parquet table or one of its folders, else folders as in `folder`; `fold`; group: `fsID`, `freesound_id`, `src_file`",
)

CAPTIONS = re.compile(r"text|captions?|caption_\d+|transcription|transcript|sentence|description|prompt")
# The first that has a value.
LABELS = ("human_labels", "labels", "label", "category", "class", "genre")
VIDEOS = ("youtube_id", "ytid", "youtubeid", "video_id")
STARTS = ("start_time", "start_s", "start_seconds", "start")
ORIGINALS = ("fsid", "freesound_id", "src_file", "slice_file_name")  # UrbanSound8K: `{fsID}-{classID}-{occurrence}-{slice}.wav`
_ORIGINAL = re.compile(r"([1-9]\d{0,9})(?:\.0|-\d+-\d+-\d+)?(?:\.[A-Za-z]\w*)?")  # of Freesound; 1.0 where others have none
DEEPEST = 4  # folders above those of splits
METADATA = re.compile(rb"(?:^|/)metadata\.(csv|jsonl|parquet)$")


def detect(inventory: Inventory) -> bool:
    """Whether there is a metadata file that names files, or a Parquet table with recordings in it."""
    tables = sources.tables_of(inventory.metadata)
    return any(_names_files(inventory, name) for name in _manifests(inventory)) or any(True for _ in tables)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of a Hugging Face dataset. A table's rows with the same recording are one recording with several captions."""
    tables = CorpusTables()
    manifests = [name for name in _manifests(inventory) if _names_files(inventory, name)]
    embedded: dict[Any, _Embedded] = {}
    rows = [row for name in manifests for row in _rows_of(inventory, name, tables)]
    splits = _splits_of_folders([*inventory.audio, *(AudioFile(name, 0, "") for name in manifests)])
    _split_by_folders(rows, inventory, splits)
    _reject_damaged(inventory, tables)
    names = list(sources.tables_of(inventory.metadata))
    alike = set() if inventory.digests else _with_names_twice(inventory, names)
    for name in names:
        rows.extend(_read_table(inventory, name, name in alike, embedded, tables))
    if not rows and not embedded:
        raise UserError(
            f"corpus.path: neither a metadata.csv, .jsonl or .parquet with `file_name` nor a Parquet table with usable recordings "
            f"below {escape_path(bytes(inventory.root))}; put one there, or choose another corpus.format"
        )
    _name_classes([*rows, *embedded.values()], inventory, tables)
    join(inventory, rows, num_shards, tables)
    for recording in tables.recordings:
        recording["split"] = recording["split"] or splits.get(recording["raw_path"])
    _remark_unread_folders(tables)
    for recording in embedded.values():
        recording.add_to(tables, num_shards)
    return tables


def _manifests(inventory: Inventory) -> list[bytes]:
    return [name for name in inventory.metadata if METADATA.search(name)]


def _names_files(inventory: Inventory, name: bytes) -> bool:
    if name.endswith(b".csv"):
        return "file_name" in csv_columns(inventory, name)
    if name.endswith(b".jsonl"):
        return b'"file_name"' in read_head(inventory, name).partition(b"\n")[0]
    with suppress(DecodeError), sources.open_table(inventory.metadata[name]) as file:
        return "file_name" in file.schema_arrow.names and sources.audio_column(file.schema_arrow) is None
    return False


def _reject_damaged(inventory: Inventory, tables: CorpusTables) -> None:
    """Name the tables that cannot be opened: what was in them is unknown."""
    for name in inventory.metadata:
        if name.lower().endswith(b".parquet"):
            try:
                with sources.open_table(inventory.metadata[name]):
                    pass
            except DecodeError as error:
                inventory.opened.add(name)
                tables.reject(name, error.reason, error.detail)


@dataclass
class _Description:
    """What one row's values say of its recording."""

    captions: list[str]
    labels: list[str]
    split: str | None
    fold: int | None
    clip: tuple[str, float | None] | None  # YouTube id and start
    original: str | None  # of Freesound, of which this may be one of several cuts

    @classmethod
    def of(cls, values: dict[str, Any], names: dict[str, list[str]]) -> _Description:
        values = {column.strip().lower(): value for column, value in values.items()}
        captions = [text for column, value in values.items() if CAPTIONS.fullmatch(column) for text in _texts(value)]
        for column in LABELS:
            if isinstance(several := values.get(column), str):
                listed = _listed(several)
                plural = column in ("human_labels", "labels") and listed == [several]
                values[column] = re.split(r";|,(?=\s*/[mtg]/)", several) if plural else listed
        labels = [classes for column in LABELS if (classes := _classes(values.get(column), names.get(column)))]
        videos = (video for column in VIDEOS if (video := video_id(str(values.get(column)))))
        starts = (start for column in STARTS if (start := _seconds(values.get(column))) is not None)
        video = next(videos, None)
        return cls(
            captions,
            next((classes for classes in labels if not all(map(MACHINE_ID.fullmatch, classes))), labels[0] if labels else []),
            _split_in(values),
            fold_number(str(values.get("fold"))),
            (video, next(starts, None)) if video else None,
            next((match[1] for column in ORIGINALS if (match := _ORIGINAL.fullmatch(str(values.get(column)).strip()))), None),
        )

    def clip_with(self, name: str) -> tuple[str, float | None] | None:
        """The clip of a recording of this name, which may have the start where the columns have the video alone."""
        named = youtube_clip(name, of_video=self.clip is not None)
        return named if self.clip is None or (self.clip[1] is None and named and named[0] == self.clip[0]) else self.clip


@dataclass
class _Embedded:
    """One recording inside a table, and what all its rows say of it."""

    file: sources.EmbeddedFile
    clip: tuple[str, float | None] | None
    split: str | None
    fold: int | None
    original: str | None
    captions: list[tuple[str, str]] = field(default_factory=list)  # text, origin
    labels: dict[str, None] = field(default_factory=dict)

    def add_to(self, tables: CorpusTables, num_shards: int) -> None:
        video, start = self.clip or (None, None)
        recording_id = tables.add_recording(
            self.file,
            num_shards,
            recording_id=f"{video}_{start:g}" if start is not None else video,
            start_time=start or 0.0,
            labels=self.labels,
            fold=self.fold,
            split=self.split,
            group=video or self.original,
        )
        for caption, origin in self.captions:
            tables.add_caption(recording_id, caption, origin)
        if not (self.captions or self.labels):
            tables.named.add(recording_id)


def _rows_of(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[Row]:
    """Rows of a metadata file; one that breaks off fails the run, for what it says of the rest is lost."""
    if name.endswith(b".csv"):
        yield from (row for at, values in read_csv(inventory, name) if (row := _row(name, at, values, {}, tables)))
        return
    if name.endswith(b".jsonl"):
        for at, values in read_json_lines(inventory, name):
            if isinstance(values, dict):
                if row := _row(name, at, values, {}, tables):
                    yield row
            else:
                tables.reject(name, "bad entry", f"line {at}: no object")
        return
    inventory.opened.add(name)
    try:
        with sources.open_table(inventory.metadata[name]) as file:
            names, at = sources.class_names(file.schema_arrow), 0
            for group in range(file.num_row_groups):
                for values in sources.read_rows(file, group):
                    if row := _row(name, at, values, names, tables):
                        yield row
                    at += 1
    except DecodeError as error:
        raise UserError(f"{escape_path(name)}: {error}; mend it, or take it out of the corpus") from None


def _row(name: bytes, at: int, values: dict[str, Any], names: dict[str, list[str]], tables: CorpusTables) -> Row | None:
    key = values.get("file_name")
    if not isinstance(key, str):
        tables.reject(name, "bad id", f"line {at}: no `file_name`")
        return None
    about = _Description.of(values, names)
    clip = about.clip and about.clip_with(key)
    return Row(
        name,
        at,
        key,
        captions=_bounded(about, name, at, tables),
        labels=about.labels,
        split=about.split or (None if METADATA.search(name) else _split_of(name)),
        fold=about.fold,
        group=clip[0] if clip else about.original,
        about=clip,
        bare=True,
    )


def _read_table(
    inventory: Inventory, name: bytes, alike: bool, embedded: dict[Any, _Embedded], tables: CorpusTables
) -> Iterator[Row]:
    """Put a table's recordings into `embedded`; yields rows whose recording is a file that the table names instead.

    `alike`: its recordings are read to tell them apart, though the inventory was taken without digests.
    """
    count = 0
    inventory.opened.add(name)
    try:
        with sources.open_table(inventory.metadata[name]) as file:
            names, column = sources.class_names(file.schema_arrow), sources.audio_column(file.schema_arrow)
            others = [field.name for field in file.schema_arrow if field.name != column and sources.is_audio(field.type)]
            if others:
                tables.count("columns_of_recordings_left_out", len(others))
            cells = parse_json(_digests(inventory, name, file)) if inventory.digests or alike else None
            for count, (file_or_error, values) in enumerate(sources.embedded_files(name, file, cells), start=1):
                if isinstance(file_or_error, DecodeError):
                    inner = values.pop(column)
                    if (
                        file_or_error.reason == "empty"
                        and inner
                        and (row := _row(name, count - 1, {**values, "file_name": inner}, names, tables))
                    ):
                        yield row
                    else:
                        shown = sources.shown(sources.embedded_path(name, count - 1))
                        tables.rejected.append({"path": shown, "reason": file_or_error.reason, "detail": file_or_error.detail})
                else:
                    _add_embedded(file_or_error, _Description.of(values, names), embedded, tables)
    except DecodeError as error:
        tables.reject(name, error.reason, f"after {count} rows: {error.detail}")


def _digests(inventory: Inventory, name: bytes, file: pq.ParquetFile) -> str:
    what = f"recordings of at most {sources.MAX_BYTES} bytes"
    return shards.cached_value(inventory.metadata[name], what, lambda: json.dumps(sources.digest_cells(file)), inventory.cache)


def _with_names_twice(inventory: Inventory, names: list[bytes]) -> set[bytes]:
    """Tables with recordings that only their bytes tell apart: several are called the same, or nothing."""
    tables: dict[Any, bytes] = {}  # that of the first recording of each name
    alike: set[bytes] = set()
    for name in names:
        with suppress(DecodeError), sources.open_table(inventory.metadata[name]) as file:
            for file_or_error, values in sources.embedded_files(name, file, None):
                if not isinstance(file_or_error, DecodeError):
                    called = _called(file_or_error, _Description.of(values, {}))
                    if called in tables:
                        alike |= {tables[called], name}
                    tables.setdefault(called, name)
    return alike


def _called(file: sources.EmbeddedFile, about: _Description) -> tuple[str | None, tuple[str, float | None] | None, str]:
    """(split, clip, name) of a recording, as its table says; a clip's name says no more."""
    clip = about.clip_with(file.inner_path)
    return about.split or _split_of(sources.split(file.raw_path)[0]), clip, "" if clip else file.inner_path


def _add_embedded(file: sources.EmbeddedFile, about: _Description, embedded: dict[Any, _Embedded], tables: CorpusTables) -> None:
    # AudioCaps and the like repeat a recording in every row that captions it. Under two names it is two recordings, as files are:
    # so one whose name no other has need not be read to be told apart.
    split, clip, _ = called = _called(file, about)
    same = (called, file.digest or file.raw_path)
    if same in embedded:
        tables.count("repeated_recordings")
    recording = embedded.setdefault(same, _Embedded(file, clip, split, about.fold, about.original))
    captions = _bounded(about, sources.split(file.raw_path)[0], file.row, tables)
    recording.captions.extend((caption, file.path) for caption in captions)
    recording.labels.update(dict.fromkeys(about.labels))


def _bounded(about: _Description, name: bytes, at: int, tables: CorpusTables) -> list[str]:
    """The captions of a row that are not too long."""
    captions = [caption for caption in about.captions if len(caption) <= MAX_CAPTION]
    for caption in about.captions:
        if len(caption) > MAX_CAPTION:
            tables.reject(name, "caption too long", f"line {at}: {len(caption)} characters")
    tables.hold([*captions, *about.labels], name)
    return captions


def _split_in(values: dict[str, Any]) -> str | None:
    """The split in a row's columns; MusicCaps marks what is for evaluation."""
    split, is_eval = values.get("split"), str(values.get("is_audioset_eval")).strip().lower()
    named = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    return named or {"true": "test", "false": "train"}.get(is_eval)


def _split_of(path: bytes) -> str | None:
    """The split that the last such word of a table's path names (`train-00000-of-00001.parquet`, `bal_train/00.parquet`)."""
    for part in reversed(path.decode("utf-8", "replace").lower().split("/")):
        splits = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part) if word in SPLIT_NAMES}
        if len(splits) == 1:
            return splits.pop()
    return None


def _splits_of_folders(files: Iterable[AudioFile]) -> dict[bytes, str]:
    """Splits by raw path, of files in folders named after splits, by the rule of `folder`: `train` is a word for a class, too.

    Where there are such folders in several (`en/train`, `de/train`), all of these must have them.
    """
    files = list(files)
    if not any(_is_split(folder) for file in files for folder in file.folders):
        return _splits_of_words(files)
    files = [file for file in files if file.folders]
    for depth in range(min(DEEPEST, max(len(file.folders) for file in files))):
        parts: dict[tuple[bytes, ...], list[AudioFile]] = defaultdict(list)
        for file in files:
            parts[tuple(file.folders[:depth])].append(file)
        layouts = {part: layout_of(inside) for part, inside in parts.items()}
        if all(layout.above is not None and len(layout.above) >= depth for layout in layouts.values()):
            splits = {file.raw_path: layouts[part].split_and_label(file)[0] for part, inside in parts.items() for file in inside}
            return {raw_path: split for raw_path, split in splits.items() if split}
    return _splits_of_words(files)


def _splits_of_words(files: list[AudioFile]) -> dict[bytes, str]:
    """Splits by raw path, where words in the names of all folders side by side name some (`train-clean-100`, `test-clean`), or,
    of files, the first words of all their names (`train_1.wav`, `test_1.wav`)."""
    files = [file for file in files if not METADATA.search(file.raw_path)]
    if not files:
        return {}
    for depth in range(min(DEEPEST, min(len(file.folders) for file in files))):
        of_folder = {folder: _split_of(folder) for folder in {file.folders[depth] for file in files}}
        if None not in of_folder.values() and len(set(of_folder.values())) > 1:
            return {file.raw_path: of_folder[file.folders[depth]] for file in files}
    words = {file.raw_path: re.split(rb"[^a-z]", file.name.lower(), maxsplit=1)[0].decode() for file in files}
    splits = {raw_path: SPLIT_NAMES.get(word) for raw_path, word in words.items()}
    return splits if None not in splits.values() and len(set(splits.values())) > 1 else {}


def _is_split(folder: bytes) -> bool:
    return folder.decode("utf-8", "replace").lower() in SPLIT_NAMES


def _split_by_folders(rows: list[Row], inventory: Inventory, splits: dict[bytes, str]) -> None:
    """Give rows without a split that of the folders they name, else of their manifest's. `splits`: of files and manifests."""
    places = [
        os.path.normpath(os.path.join(os.path.dirname(row.source), with_slashes(row.key).encode("utf-8", "replace")))
        for row in rows
    ]
    files = {file.raw_path for file in inventory.audio}
    # Files may have been put elsewhere than the manifest says, which still has their published splits.
    named = {} if files.issuperset(places) else _splits_of_folders(AudioFile(place, 0, "") for place in places)
    for row, place in zip(rows, places, strict=True):
        row.split = row.split or (splits if place in files else named).get(place) or splits.get(row.source)


def _remark_unread_folders(tables: CorpusTables) -> None:
    without = [row for row in tables.recordings if not row["split"]]
    unread = [row["path"] for row in without if any(map(_is_split, row["raw_path"].split(b"/")[:-1]))]
    if unread:
        tables.remarks.append(
            f"{len(unread)} recordings (first: {unread[0]}) lie in folders named after splits that are not read as such, for other "
            "folders lie beside them; if they are splits, say so in a column `split`"
        )


def _name_classes(described: Iterable[Row | _Embedded], inventory: Inventory, tables: CorpusTables) -> None:
    """Call AudioSet's machine ids among labels by their names."""
    classes = ClassNames.of(inventory)
    for about in described:
        kept = classes.call(about.labels)
        about.labels = dict.fromkeys(kept) if isinstance(about, _Embedded) else kept
    classes.remark(tables)


def _texts(value: Any) -> list[str]:
    return [text for text in _listed(value) if isinstance(text, str) and text.strip()]


def _listed(value: Any) -> list[Any]:
    """A list, also one of texts that a csv's cell has as JSON or as Python prints it; anything else alone in one."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for read in (parse_json, _printed):
            with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                items = read(value)
                if isinstance(items, list) and all(isinstance(item, str) for item in items):
                    return items
    return [value]


def _printed(text: str) -> Any:
    """What Python prints so; ValueError where it prints it otherwise: `['a' 'b']`, as numpy prints it, would be one text."""
    value = ast.literal_eval(text)
    if str(value) != text:
        raise ValueError(text)
    return value


def _classes(value: Any, names: list[str] | None) -> list[str]:
    """Labels as text: a name, the class that a number stands for, or several of either."""
    classes = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or item is None:
            continue
        if isinstance(item, int) and names and 0 <= item < len(names):
            item = names[item]
        text = str(item).strip()
        if text := text if MACHINE_ID.fullmatch(text) else text.replace("_", " ").strip():
            classes.append(text[:MAX_CAPTION])
    return classes


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds < 1e6 else None
