"""Hugging Face: an audiofolder with `metadata.csv`, `.jsonl` or `.parquet`, or Parquet tables with the recordings inside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from soundmill import shards
from soundmill.audio.decode import DecodeError
from soundmill.corpora import sources
from soundmill.corpora.inventory import Inventory, csv_columns, read_csv, read_head, read_json_lines
from soundmill.corpora.resolver import youtube_clip
from soundmill.corpora.rows import MAX_CAPTION, Row, join
from soundmill.corpora.tables import SPLIT_NAMES, CorpusTables, Format
from soundmill.errors import UserError
from soundmill.manifest import VIDEO_ID, escape_path

FORMAT = Format(
    name="audiofolder",
    layout="`metadata.{csv,jsonl,parquet}` with `file_name`; or Parquet tables with a column of `{bytes, path}` (`audio`, …)",
    id="`youtube_id` and `start_time`, else the YouTube id in the file's name, else a hash of the path; the file is `file_name`",
    caption="`text`, `caption`, `captions`, `caption_1` …, `transcription`, `transcript`, `sentence`, `description`, `prompt`",
    label="`labels`, `label`, `category`, `class` or `genre`; numbers by the class names in the table's metadata",
    split="`split`, else a word (train, validation, test) in the name of the table or one of its folders, or the file's; `fold`",
)

CAPTIONS = re.compile(r"text|captions?|caption_\d+|transcription|transcript|sentence|description|prompt")
LABELS = ("labels", "label", "category", "class", "genre")  # the first that has a value
METADATA = re.compile(rb"(?:^|/)metadata\.(csv|jsonl|parquet)$")


def detect(inventory: Inventory) -> bool:
    """Whether there is a metadata file that names files, or a Parquet table with recordings in it."""
    return any(_names_files(inventory, name) for name in _manifests(inventory)) or any(True for _ in _tables(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of a Hugging Face dataset. A table's rows with the same recording are one recording with several captions."""
    tables = CorpusTables()
    manifests = [name for name in _manifests(inventory) if _names_files(inventory, name)]
    embedded: dict[Any, _Embedded] = {}
    rows = [row for name in manifests for row in _rows_of(inventory, name, tables)]
    _reject_damaged(inventory, tables)
    for name in _tables(inventory):
        rows.extend(_read_table(inventory, name, embedded, tables))
    if not rows and not embedded:
        raise UserError(
            f"corpus.path: neither a metadata.csv, .jsonl or .parquet with `file_name` nor a Parquet table with usable recordings "
            f"below {escape_path(bytes(inventory.root))}; put one there, or choose another corpus.format"
        )
    join(inventory, rows, num_shards, tables)
    for recording in tables.recordings:
        recording["split"] = recording["split"] or _split_of(recording["raw_path"])
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


def _tables(inventory: Inventory) -> Iterator[bytes]:
    """Parquet tables with recordings in them."""
    for name in inventory.metadata:
        if name.lower().endswith(b".parquet"):
            with suppress(DecodeError), sources.open_table(inventory.metadata[name]) as file:
                if sources.audio_column(file.schema_arrow):
                    yield name


def _reject_damaged(inventory: Inventory, tables: CorpusTables) -> None:
    """Name the tables that cannot be opened: of what was in them nobody can tell more."""
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

    @classmethod
    def of(cls, values: dict[str, Any], names: dict[str, list[str]]) -> _Description:
        values = {column.strip().lower(): value for column, value in values.items()}
        captions = [text for column, value in values.items() if CAPTIONS.fullmatch(column) for text in _texts(value)]
        if isinstance(several := values.get("labels"), str):  # a csv has no lists
            values["labels"] = several.split(";")
        labels = next((found for column in LABELS if (found := _classes(values.get(column), names.get(column)))), [])
        split, fold, video = values.get("split"), values.get("fold"), values.get("youtube_id")
        return cls(
            captions,
            labels,
            SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None,
            int(fold) if str(fold).isdecimal() and len(str(fold)) <= 4 else None,
            (video, _seconds(values.get("start_time"))) if isinstance(video, str) and VIDEO_ID.fullmatch(video) else None,
        )


@dataclass
class _Embedded:
    """One recording inside a table, and what all its rows say of it."""

    file: sources.EmbeddedFile
    clip: tuple[str, float | None] | None
    split: str | None
    fold: int | None
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
            group=video,
        )
        for caption, origin in self.captions:
            tables.add_caption(recording_id, caption, origin)


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
    return Row(
        name,
        at,
        key,
        captions=_bounded(about, name, at, tables),
        labels=about.labels,
        split=about.split or _split_of(key.encode("utf-8", "replace")) or _split_of(name),
        fold=about.fold,
        group=about.clip[0] if about.clip else None,
        about=about.clip,
        bare=True,
    )


def _read_table(inventory: Inventory, name: bytes, embedded: dict[Any, _Embedded], tables: CorpusTables) -> Iterator[Row]:
    """Put a table's recordings into `embedded`; yields rows whose recording is a file that the table names instead."""
    count = 0
    inventory.opened.add(name)
    try:
        with sources.open_table(inventory.metadata[name]) as file:
            names, column = sources.class_names(file.schema_arrow), sources.audio_column(file.schema_arrow)
            others = [field.name for field in file.schema_arrow if field.name != column and sources.is_audio(field.type)]
            if others:
                tables.count("columns_of_recordings_left_out", len(others))
            cells = json.loads(_digests(inventory, name, file)) if inventory.digests else None
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
    return shards.told_of_file(inventory.metadata[name], what, lambda: json.dumps(sources.digest_cells(file)), inventory.cache)


def _add_embedded(file: sources.EmbeddedFile, about: _Description, embedded: dict[Any, _Embedded], tables: CorpusTables) -> None:
    clip = about.clip or youtube_clip(file.inner_path)
    split = about.split or _split_of(sources.split(file.raw_path)[0])
    # AudioCaps and the like repeat a recording in every row that captions it.
    same = (file.digest or clip or file.raw_path, clip, split)
    if same in embedded:
        tables.count("repeated_recordings")
    recording = embedded.setdefault(same, _Embedded(file, clip, split, about.fold))
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


def _split_of(path: bytes) -> str | None:
    """The split that the last telling part of a path names (`data/train-00000-of-00001.parquet`, `validation/x.wav`)."""
    for part in reversed(path.decode("utf-8", "replace").lower().split("/")):
        found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part) if word in SPLIT_NAMES}
        if len(found) == 1:
            return found.pop()
    return None


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _classes(value: Any, names: list[str] | None) -> list[str]:
    """Labels as text: a name, the class that a number stands for, or several of either."""
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or item is None:
            continue
        if isinstance(item, int) and names and 0 <= item < len(names):
            item = names[item]
        if text := str(item).replace("_", " ").strip():
            found.append(text[:MAX_CAPTION])
    return found


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds < 1e6 else None
