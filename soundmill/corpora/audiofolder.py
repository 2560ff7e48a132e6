"""Hugging Face: an audiofolder with `metadata.csv`, `.jsonl` or `.parquet`, or Parquet tables with embedded recordings."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import chain, islice
from typing import Any

from soundmill.corpora import sound_tags, sources
from soundmill.corpora.csv_tables import csv_columns, read_csv
from soundmill.corpora.folder import layout_of, split_of_folder
from soundmill.corpora.inventory import AudioFile, Inventory, composed_path
from soundmill.corpora.join import DETECTED, MACHINE_ID, join, name_classes
from soundmill.corpora.json_entries import texts
from soundmill.corpora.metadata import first_keys, read_entries
from soundmill.corpora.resolver import with_slashes, youtube_clip
from soundmill.corpora.statements import about_terms
from soundmill.corpora.tables import MAX_CAPTION, CorpusTables, ManifestRow, fold_number, seconds, split_of, video_id
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES, escape_path
from soundmill.params import parse_json

FORMAT = "audiofolder"

SAMPLED = 40 * DETECTED  # first rows, of which some are looked at
_QUOTED = r"""'[^']*'|"[^"]*\""""
_TEXTS = re.compile(rf"[\[({{]\s*(?:(?:{_QUOTED})[,\s]*)+[\])}}]")
_METADATA = re.compile(rb"(?:^|/)metadata\.(csv|jsonl?|ndjson|parquet)$")
CAPTIONS = re.compile(r"text|captions?|caption_\d+|(?:main|alt)_caption|transcription|transcript|sentence|description|prompt")
_NAMELESS = re.compile(rf"{MACHINE_ID.pattern}|\d+")  # classes without a name
# The first column with a name is used, else the first with a value.
LABELS = (
    "human_labels labels label category class genre class_name class_label label_name classname event_label event_labels "
    "scene_label common_name primary_label species emotion instrument"
).split()
_FLAG = re.compile(
    r"(?:is|has|was|in|not)_.*|.*(?:valid|verified|check|clean|noisy|quality|missing|flag|agree|select|balanced).*|esc10"
    r"|(?:\w+_)?(?:number|count|num|id|idx|index|fold|label|target|gender|sex)"
)
_YES, _MARKS = {"1", "1.0", "true"}, {"1", "1.0", "true", "0", "0.0", "false", "-1"}  # -1: unknown
SPLIT_COLUMNS = ("split", "data_split", "subset", "partition", "set", "dataset")
VIDEOS = ("youtube_id", "ytid", "youtubeid", "video_id")
STARTS = ("start_time", "start_s", "start_seconds", "start")
ORIGINALS = ("fsid", "freesound_id", "src_file", "slice_file_name")  # UrbanSound8K: `{fsID}-{classID}-{occurrence}-{slice}.wav`
_ORIGINAL = re.compile(r"([1-9]\d{0,9})(?:\.0|-\d+-\d+-\d+)?(?:\.[A-Za-z]\w*)?")  # `1.0`: integers in a column with empty cells


def detect(inventory: Inventory) -> bool:
    """Whether there is a metadata file with `file_name`, or a Parquet table with recordings."""
    return any(_manifests(inventory)) or any(sources.tables_of(inventory.metadata))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of a Hugging Face dataset. Rows of a table with the same recording are one recording with several captions."""
    tables = CorpusTables()
    manifests = list(_manifests(inventory))
    embedded: dict[Any, _Embedded] = {}
    rows = [row for name in manifests for row in _rows_of(inventory, name, tables)]
    splits = _splits_of_folders([*inventory.audio, *(AudioFile(name, 0, "") for name in manifests)])
    _split_by_folders(rows, inventory, splits)

    def reject(name: bytes, reason: str, detail: str) -> None:
        inventory.opened.add(name)
        tables.reject(name, reason, detail)

    names = list(sources.tables_of(inventory.metadata, reject))
    undigested = set() if inventory.digests else _with_repeated_names(inventory, names)
    for name in names:
        rows.extend(_read_table(inventory, name, name in undigested, embedded, tables))
    if not rows and not embedded:
        for one in tables.rejected[:1]:
            raise UserError(f"{one['path']}: {one['reason']} ({one['detail']}); correct it, or remove it from the corpus")
        looks = "metadata.csv, .jsonl or .parquet with `file_name`, and no Parquet table with usable recordings"
        raise inventory.lacks(looks, "put one there")
    name_classes([*rows, *embedded.values()], inventory, tables)
    join(inventory, rows, num_shards, tables)
    for recording in tables.recordings:
        recording["split"] = recording["split"] or splits.get(recording["raw_path"])
    paths = [(row["path"], row["raw_path"]) for row in tables.recordings if not row["split"]]
    then = (
        " are in folders named after splits that are not read as splits, because there are other folders beside them; if they are "
        "splits, add a column `split`"
    )
    tables.remark([path for path, raw_path in paths if any(map(split_of_folder, raw_path.split(b"/")[:-1]))], "recordings", then)
    for recording in embedded.values():
        recording.add_to(tables, num_shards)
    return tables


def _manifests(inventory: Inventory) -> Iterator[bytes]:
    return (name for name in inventory.metadata if _METADATA.search(name) and _names_files(inventory, name))


def _names_files(inventory: Inventory, name: bytes) -> bool:
    if name.endswith(b".csv"):
        return "file_name" in csv_columns(inventory, name)
    if not name.endswith(b".parquet"):
        return "file_name" in first_keys(inventory, name)
    with suppress(DecodeError), sources.open_table(inventory.metadata[name]) as file:
        return "file_name" in file.schema_arrow.names and sources.audio_column(file.schema_arrow) is None
    return False


@dataclass
class _Embedded:
    """An embedded recording and the descriptions of all its rows."""

    file: sources.EmbeddedFile
    about: Description  # of the first row, without texts, with the split and the clip that all have
    captions: list[tuple[str, str]] = field(default_factory=list)  # text, origin
    labels: list[str] = field(default_factory=list)
    stated: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # row, and columns about terms or tags of the file

    def add_to(self, tables: CorpusTables, num_shards: int) -> None:
        about = self.about
        video, start = about.clip or (None, None)
        own_id = f"{video}_{start:g}" if start is not None else video
        told = {"labels": self.labels, "fold": about.fold, "split": about.split, "group": video or about.original}
        recording_id = tables.add_recording(self.file, num_shards, recording_id=own_id, start_time=start or 0.0, **told)
        if self.stated:
            tables.stated[recording_id] = self.stated
        for caption, origin in self.captions:
            tables.add_caption(recording_id, caption, origin)
        if not (self.captions or self.labels):
            tables.named.add(recording_id)


def _rows_of(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
    """Rows of a metadata file; a damaged one is a UserError, since its other rows are unknown."""
    names: dict[str, list[str]] = {}
    try:
        with ExitStack() as stack:
            if name.endswith(b".csv"):
                entries: Iterable[tuple[int | str, Any]] = read_csv(inventory, name)
            elif name.endswith(b".parquet"):
                inventory.opened.add(name)
                file = stack.enter_context(sources.open_table(inventory.metadata[name]))
                names, entries = sources.class_names(file.schema_arrow), sources.numbered_rows(file)
            else:
                entries = read_entries(inventory, name)
            head = list(islice(entries := iter(entries), SAMPLED))
            classes = class_columns([values for _, values in head[:: len(head) // DETECTED + 1] if isinstance(values, dict)])
            for at, values in chain(head, entries):
                if not isinstance(values, dict):
                    tables.reject(name, "bad entry", f"line {at}: not an object")
                elif not isinstance(values.get("file_name"), str):
                    tables.reject(name, "bad id", f"line {at}: no `file_name`")
                else:
                    told = {"labels": marked(values, classes)} if classes else {}
                    yield row_of(name, at, values | told, names, tables)
    except DecodeError as error:
        raise UserError(f"{escape_path(name)}: {error}; correct it, or remove it from the corpus") from None


def row_of(name: bytes, at: int | str, values: dict[str, Any], names: dict[str, list[str]], tables: CorpusTables) -> ManifestRow:
    """The row of a table about the recording in its cell `file_name`, a text. `names`: of classes."""
    key, about = values["file_name"], Description.of(values, names)
    clip = about.clip and about.clip_with(key)
    told = {"labels": about.labels, "fold": about.fold, "split": about.split, "group": clip[0] if clip else about.original}
    return ManifestRow(name, at, key, _bounded(about, name, at, tables), **told, about=clip, bare=True)


def _read_table(
    inventory: Inventory, name: bytes, digest: bool, embedded: dict[Any, _Embedded], tables: CorpusTables
) -> Iterator[ManifestRow]:
    """Rows whose recording is a file; a table's other recordings are added to `embedded`, digested at least if `digest`."""
    count = 0
    inventory.opened.add(name)
    try:
        with sources.open_table(inventory.metadata[name]) as file:
            names, column = sources.class_names(file.schema_arrow), sources.audio_column(file.schema_arrow)
            if others := [field.name for field in file.schema_arrow if field.name != column and sources.is_audio(field.type)]:
                tables.counts["columns_of_recordings_left_out"] += len(others)
            cells = None
            if inventory.digests or digest:
                what = f"recordings of at most {sources.MAX_BYTES} bytes, {sound_tags.VERSION}"
                cells = parse_json(inventory.cached(name, what, lambda: json.dumps(sources.digest_cells(file))))
            for count, (found, values) in enumerate(sources.embedded_files(name, file, cells), start=1):
                if isinstance(found, sources.EmbeddedFile):
                    _add_embedded(found, values, Description.of(values, names), embedded, tables)
                elif found.reason == "empty" and (inner := values.pop(column)):
                    row = row_of(name, count - 1, {**values, "file_name": inner}, names, tables)
                    row.split = row.split or split_of(name)
                    yield row
                else:
                    shown = sources.shown(sources.embedded_path(name, count - 1))
                    tables.rejected.append({"path": shown, "reason": found.reason, "detail": found.detail})
    except DecodeError as error:
        tables.reject(name, error.reason, f"after {count} rows: {error.detail}")


def _with_repeated_names(inventory: Inventory, names: list[bytes]) -> set[bytes]:
    """Tables whose recordings have equal or empty names and are distinguished only by their bytes."""
    tables: dict[Any, bytes] = {}  # the table of the first recording with each name
    repeated: set[bytes] = set()
    for name in names:
        with suppress(DecodeError), sources.open_table(inventory.metadata[name]) as file:
            for found, values in sources.embedded_files(name, file, None):
                if isinstance(found, sources.EmbeddedFile):
                    identity = _identity(found, Description.of(values, {}))
                    if identity in tables:
                        repeated |= {tables[identity], name}
                    tables.setdefault(identity, name)
    return repeated


def _identity(file: sources.EmbeddedFile, about: Description) -> tuple[str | None, tuple[str, float | None] | None, str]:
    """(split, clip, name) of a recording in its table; with a clip, the name is empty."""
    clip = about.clip_with(file.inner_path)
    return about.split or split_of(sources.split(file.raw_path)[0]), clip, "" if clip else file.inner_path


def _add_embedded(
    file: sources.EmbeddedFile, values: dict[str, Any], about: Description, embedded: dict[Any, _Embedded], tables: CorpusTables
) -> None:
    # Some datasets, such as AudioCaps, repeat a recording for each caption. Equal bytes with two names are two recordings, as with
    # files: bytes are compared only if names are equal.
    split, clip, _ = identity = _identity(file, about)
    same = (identity, file.digest or file.raw_path)
    if same in embedded:
        tables.counts["repeated_recordings"] += 1
    recording = embedded.setdefault(same, _Embedded(file, replace(about, split=split, clip=clip, captions=[], labels=[])))
    captions = _bounded(about, sources.split(file.raw_path)[0], file.row, tables)
    recording.captions.extend((caption, file.path) for caption in tables.said(captions, file.path))
    recording.labels = list(dict.fromkeys(recording.labels + tables.said(about.labels, file.path, labels=True)))
    if stated := about_terms(values):
        recording.stated.append((file.path, stated))
    if file.tags:
        recording.stated.append((sound_tags.FOUND, parse_json(file.tags)))


def _bounded(about: Description, name: bytes, at: int, tables: CorpusTables) -> list[str]:
    """The captions of a row; those that are too long are rejected."""
    captions = [caption for caption in about.captions if len(caption) <= MAX_CAPTION]
    for caption in about.captions:
        if len(caption) > MAX_CAPTION:
            tables.reject(name, "caption too long", f"line {at}: {len(caption)} characters")
    tables.hold([*captions, *about.labels], name)
    return captions


def _splits_of_folders(files: Iterable[AudioFile]) -> dict[bytes, str]:
    """Splits by raw path from folder names, as in the format `folder`, else from the words that begin the names of all files."""
    files = list(files)
    layout = layout_of([file for file in files if file.folders])
    if splits := {file.raw_path: split for file in files if (split := layout.split_and_label(file)[0])}:
        return splits
    names = {file.raw_path: file.name.lower() for file in files if not _METADATA.search(file.raw_path)}
    splits = {raw_path: SPLIT_NAMES.get(re.split(rb"[^a-z]", name, maxsplit=1)[0].decode()) for raw_path, name in names.items()}
    return splits if None not in splits.values() and len(set(splits.values())) > 1 else {}


def _split_by_folders(rows: list[ManifestRow], inventory: Inventory, splits: dict[bytes, str]) -> None:
    """Set missing splits of rows from the folders in their keys, else those of the manifest. `splits`: of files and manifests."""
    places = [
        composed_path(os.path.normpath(os.path.join(os.path.dirname(row.source), with_slashes(row.key).encode("utf-8", "replace"))))
        for row in rows
    ]
    files = {composed_path(file.raw_path): file.raw_path for file in inventory.audio}
    # If files were moved, the paths in the manifest still have the published splits.
    named = {} if files.keys() >= set(places) else _splits_of_folders(AudioFile(place, 0, "") for place in places)
    for row, place in zip(rows, places, strict=True):
        found = splits.get(files[place]) if place in files else named.get(place)
        row.split = row.split or found or splits.get(row.source)


@dataclass
class Description:
    """Description of a recording by one row."""

    captions: list[str]
    labels: list[str]
    split: str | None
    fold: int | None
    clip: tuple[str, float | None] | None  # YouTube id and start
    original: str | None  # number of the Freesound original

    @classmethod
    def of(cls, values: dict[str, Any], names: dict[str, list[str]]) -> Description:
        values = {column.strip().lower(): value for column, value in values.items()}
        captions = [text for column, value in values.items() if CAPTIONS.fullmatch(column) for text in texts(_listed(value))]
        for column in LABELS:
            if isinstance(several := values.get(column), str):
                listed = _listed(several)
                plural = column in ("human_labels", "labels", "event_labels") and listed == [several]
                between = r";|,(?!\s)|,(?=\s*/[mtg]/)"  # of FSD50K, DESED; not in `Domestic animals, pets`
                values[column] = re.split(between, several) if plural else listed
        labels = [classes for column in LABELS if (classes := _classes(values.get(column), names.get(column)))]
        videos = (video for column in VIDEOS if (video := video_id(str(values.get(column)))))
        starts = (start for column in STARTS if (start := seconds(values.get(column))) is not None)
        video = next(videos, None)
        told = (value.strip().lower() for column in SPLIT_COLUMNS if isinstance(value := values.get(column), str))
        split = next(filter(None, map(SPLIT_NAMES.get, told)), None)
        return cls(
            captions,
            next((classes for classes in labels if not all(map(_NAMELESS.fullmatch, classes))), labels[0] if labels else []),
            split or {"true": "test", "false": "train"}.get(str(values.get("is_audioset_eval")).strip().lower()),  # of MusicCaps
            fold_number(str(values.get("fold"))),
            (video, next(starts, None)) if video else None,
            next((match[1] for column in ORIGINALS if (match := _ORIGINAL.fullmatch(str(values.get(column)).strip()))), None),
        )

    def clip_with(self, name: str) -> tuple[str, float | None] | None:
        """The clip of a recording with this name, which may add the start if the columns have only the video."""
        named = youtube_clip(name, of_video=self.clip is not None)
        return named if self.clip is None or (self.clip[1] is None and named and named[0] == self.clip[0]) else self.clip


def class_columns(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns of 0 and 1, or False and True, that stand for a class each; not splits and flags such as `is_valid`.

    They are called so (`dog_presence`), at least five and most of the table, or at least three of which each row has one, or beside
    which there are only the recordings.
    """
    columns = {column: [str(row.get(column)).strip().lower() for row in rows] for column in dict.fromkeys(chain(*rows))}
    if not columns.keys().isdisjoint(LABELS):
        return ()
    marks = [column for column, told in columns.items() if _MARKS.issuperset(told) and not _FLAG.fullmatch(column)]
    marks = [column for column in marks if column not in SPLIT_NAMES]
    present = [column for column in marks if column.endswith("_presence")]
    ones = [sum(columns[column][at] in _YES for column in marks) for at in range(len(rows))]
    used = sum(not _YES.isdisjoint(columns[column]) for column in marks)
    most = 2 * len(marks) > len(columns) if len(marks) > 4 else len(marks) > 2 and len(marks) + 1 == len(columns)
    if (most and used) or (len(marks) > 2 and used > 1 and set(ones) == {1}):
        return tuple(marks)
    return tuple(present if len(present) > 2 else ())


def marked(values: dict[str, Any], classes: Iterable[str]) -> list[str]:
    """The classes whose columns have a 1; of SONYC's, the names without numbers."""
    names = (column for column in classes if str(values.get(column)).strip().lower() in _YES)
    return [re.sub(r"^[\dx_]+(.*)_presence$", r"\1", name) for name in names]


def _listed(value: Any) -> list[Any]:
    """A list, also one in a cell as JSON, Python's literal, perhaps with nan, tuple or set, or numpy's `['a' 'b']`; anything else
    as a list of one item."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for read in (parse_json, _literals):
            with suppress(ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
                items = read(value)
                # numpy's `['a' 'b']` would be read as one text
                if read is parse_json or str(items).replace(" ", "") == value.replace(" ", ""):
                    return items
    if isinstance(value, str) and _TEXTS.fullmatch(value):
        return [text[1:-1] for text in re.findall(_QUOTED, value)]
    return [value]


def _literals(text: str) -> list[Any]:
    """The items of a list as Python prints it, which `literal_eval` does not read with nan."""
    items = ast.parse(text, mode="eval").body.elts
    return [math.nan if getattr(item, "id", "") == "nan" else ast.literal_eval(item) for item in items]


def _classes(value: Any, names: list[str] | None) -> list[str]:
    """Labels as text: names, or numbers of classes."""
    classes = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and item.is_integer():
            item = int(item)  # a column with empty cells
        is_endless = isinstance(item, float) and not math.isfinite(item)
        if isinstance(item, bool) or is_endless or not isinstance(item, str | int | float | Decimal):
            continue
        if isinstance(item, int) and names and 0 <= item < len(names):
            item = names[item]
        text = re.sub(r"^Sound_(?=[A-Z])", "", str(item).strip())  # Kaggle's `Sound_Guitar`
        if text := text if MACHINE_ID.fullmatch(text) else text.replace("_", " ").strip():
            classes.append(text[:MAX_CAPTION])
    return classes
