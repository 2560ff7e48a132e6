"""Tables of any name with a column of recordings. What they say is added to what folders and texts beside recordings say."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from soundmill.corpora.audiofolder import CAPTIONS, LABELS, row_of
from soundmill.corpora.folder import add_texts_beside, layout_of, words_beside_split
from soundmill.corpora.inventory import LICENCES, Inventory
from soundmill.corpora.join import DETECTED, join, name_classes
from soundmill.corpora.json_entries import JSON
from soundmill.corpora.metadata import csv_columns, first_keys, read_csv, read_entries
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.splits import PROTECTED
from soundmill.corpora.tables import CorpusTables, ManifestRow, split_of, split_of_file
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES, escape_path

_SAMPLED = 40 * DETECTED  # first rows, of which every 40th is looked at
_CSV = re.compile(rb"\.(?:csv|tsv)$", re.IGNORECASE)
_FILES = re.compile(r"(?:\w+[_ ])?(?:file_?names?|fname|files?|file_?path|path|wav|audio|clip|recording|location)")
_MORE_LABELS = (
    "class_name",
    "class_label",
    "label_name",
    "event_label",
    "event_labels",
    "scene_label",
    "primary_label",
    "species",
    "emotion",
)
_SPLITS = ("split", "subset", "partition", "set")
_BY_MODELS = re.compile(r"(?:^|[\W_])(?:scores?|confidence|prob\w*|pred\w*|results?|logits?|generated|asr|whisper)(?:$|[\W_])")
_CREDITS = re.compile(r"licen[cs]e|author|creator|credits?|source|ur[il]|link")  # of which a description is one
_TIMES = re.compile(r"(?:start|end|onset|offset|begin)(?:[_ ]\w+)?")  # of a part of the recording
_LIST_WORDS = {"list", "lists", "file", "files", "filelist", "id", "ids", "fold", "split"}

Recording = tuple[bytes, str]  # its raw path, else the table and the row's key


@dataclass(frozen=True)
class _Table:
    """A table, the column that names recordings, and those that describe them."""

    name: bytes
    files: str
    captions: frozenset[str]
    label: str
    split: str


class FileTables:
    """Tables with a column of recordings, and one of captions, labels or splits; lists of a split's recordings."""

    FORMAT = "table"

    def detect(self, inventory: Inventory) -> bool:
        return bool(_tables(inventory))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        tables, rows, index = CorpusTables(), list[ManifestRow](), FileIndex(inventory)
        if not (found := _tables(inventory)):
            raise inventory.lacks("table with a column of recordings, and one of captions, labels or splits", "put one there")
        for table in found:
            before = len(tables.rejected)
            try:
                rows += list(_rows(inventory, table, tables))
            except UserError as error:  # a stray table must not hide the recordings
                tables.rejected[before:] = [{"path": escape_path(table.name), "reason": "unreadable", "detail": str(error)}]
        layout = layout_of(inventory.audio)
        folders = {file.raw_path: layout.split_and_label(file) for file in inventory.audio}
        recordings = [_recording(row, index) for row in rows]
        _settle_splits(rows, recordings)
        _drop_repeated_classes(rows, recordings, {path: label for path, (_, label) in folders.items() if label}, tables)
        name_classes(rows, inventory, tables)
        join(inventory, rows, num_shards, tables)
        several = len({label for _, label in folders.values()} - {None}) > 1
        for row in tables.recordings:
            split, label = folders[row["raw_path"]]
            row["split"] = min(filter(None, [row["split"], split]), key=PROTECTED.index, default=None)
            if label and (several or not (tables.captions or row["labels"])) and not _is_no_class(label):
                row["labels"] = list(dict.fromkeys([label, *row["labels"]]))
            add_texts_beside(inventory, row["raw_path"], row["recording_id"], tables)
        return tables


def _tables(inventory: Inventory) -> list[_Table]:
    """The tables that can be read; not those beside a recording of their name, nor what models say of the recordings."""
    beside, index, found = {os.path.splitext(file.raw_path)[0] for file in inventory.audio}, None, []
    for name in sorted(inventory.metadata):
        columns = [] if name == LICENCES or os.path.splitext(name)[0] in beside else _columns(inventory, name)
        files = [column for column in columns if _FILES.fullmatch(column)]
        if not files or any(map(_BY_MODELS.search, [*columns, escape_path(name).lower()])):
            continue
        captions = frozenset(filter(CAPTIONS.fullmatch, columns))
        if any(map(_CREDITS.search, columns)):
            captions -= {"description"}
        if any(map(_TIMES.fullmatch, columns)):
            captions = frozenset()
        label, split = (next((one for one in some if one in columns), "") for some in ((*LABELS, *_MORE_LABELS), _SPLITS))
        if not (captions or label or split or _is_list(name)):
            continue
        was_opened, index = name in inventory.opened, index or FileIndex(inventory)
        try:
            rows = [row for _, row in islice(_entries(inventory, name), _SAMPLED)]
        except UserError as error:
            inventory.remarks[name, "unreadable"] = f"not read: {error}"
            continue
        is_card = len(rows) < 2 and not _CSV.search(name)  # an object about something, such as package.json
        if not is_card and (
            named := _columns_of_files(rows[:: max(1, len(rows) // DETECTED)], files, os.path.dirname(name), index)
        ):
            found.append(_Table(name, named, captions, label, split))
        elif not was_opened:
            inventory.opened.discard(name)  # so that it is remarked as not read
    return found


def _is_list(name: bytes) -> bool:
    """Whether a table is named after a split alone: `test.csv`, `fold1_train.csv`, `splits/valid_ids.csv`."""
    return split_of_file(name) is not None and words_beside_split(os.path.splitext(os.path.basename(name))[0]) <= _LIST_WORDS


def _columns(inventory: Inventory, name: bytes) -> list[str]:
    """Columns, or keys of entries, in lower case."""
    if _CSV.search(name):
        return csv_columns(inventory, name)
    return sorted({key.strip().lower() for key in first_keys(inventory, name)}) if JSON.search(name) else []


def _entries(inventory: Inventory, name: bytes) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Rows of a table as (place, values by column in lower case); what is no row has no values."""
    entries: Iterable[tuple[int | str, Any]] = read_csv(inventory, name) if _CSV.search(name) else read_entries(inventory, name)
    for at, values in entries:
        yield at, {str(column).strip().lower(): value for column, value in values.items()} if isinstance(values, dict) else {}


def _columns_of_files(rows: list[dict[str, Any]], columns: list[str], base: bytes, index: FileIndex) -> str:
    """The column of whose cells at least half name recordings; empty if there is none, or several."""
    found = []
    for column in columns:
        cells = [row[column].strip() for row in rows if isinstance(row.get(column), str) and row[column].strip()]
        if cells and 2 * sum(bool(index.resolve(cell, base).files) for cell in cells) >= len(cells):
            found.append(column)
    return found[0] if len(found) == 1 else ""


def _rows(inventory: Inventory, table: _Table, tables: CorpusTables) -> Iterator[ManifestRow]:
    unknown = Counter[str]()
    for at, values in _entries(inventory, table.name):
        file = values.get(table.files)
        if not isinstance(file, str) or not file.strip():
            tables.reject(table.name, "bad id", f"line {at}: no `{table.files}`")
            continue
        told = {"file_name": file.strip(), **{column: values.get(column) for column in table.captions}}
        if table.label:
            label = values.get(table.label)
            if table.label == "event_labels" and isinstance(label, str):  # of DESED
                label = re.split("[,;]", label)
            told |= {"label" if table.label in _MORE_LABELS else table.label: label}
        if row := row_of(table.name, at, told, {}, tables):
            split = str(values[table.split]).strip() if values.get(table.split) and table.split else ""
            row.split = split_of(split.encode("utf-8", "replace"))
            unknown[split] += bool(split) and row.split is None
            yield row
    inventory.remark(
        table.name, f"cells of `{table.split}` name no split", unknown.total(), *[one for one in unknown if unknown[one]][:1]
    )


def _recording(row: ManifestRow, index: FileIndex) -> Recording:
    files = index.resolve(row.key, os.path.dirname(row.source)).files
    return (files[0].raw_path, "") if len(files) == 1 else (row.source, row.key)


def _settle_splits(rows: list[ManifestRow], recordings: list[Recording]) -> None:
    """Set missing splits by the names of tables, unless a column of any table gives one for the recording."""
    listed: dict[bytes, set[Recording]] = defaultdict(set)
    for row, recording in zip(rows, recordings, strict=True):
        listed[row.source].add(recording)
    named = _named_splits(listed)
    stated = {recording for row, recording in zip(rows, recordings, strict=True) if row.split}
    given: dict[Recording, str] = {}
    for row, recording in zip(rows, recordings, strict=True):
        if recording not in stated and row.source in named:
            row.split = named[row.source]
        if row.split:
            given[recording] = min(row.split, given.get(recording, row.split), key=PROTECTED.index)
    for row, recording in zip(rows, recordings, strict=True):
        row.split = given.get(recording)


def _named_splits(listed: dict[bytes, set[Recording]]) -> dict[bytes, str]:
    """Splits that tables are named after, by the name: of several splits, or of one that has a part of the recordings in `listed`.

    Of lists of folds, which put most recordings into several splits, the first fold's. `dev` without `train` is for training.
    """
    stems = {name: os.path.splitext(os.path.basename(name))[0] for name in sorted(listed)}
    words = {name: re.findall(r"[a-z]+", stem.decode("utf-8", "replace").lower()) for name, stem in stems.items()}
    everything, named = set().union(*listed.values()), {}
    for name, found in words.items():  # a word for a split is the first or the last
        if (split := split_of_file(name)) and split in (SPLIT_NAMES.get(found[0]), SPLIT_NAMES.get(found[-1])):
            if split == "train" or listed[name] < everything:
                named[name] = split
    others = {name: words_beside_split(stems[name]) for name in named}

    def has_counterpart(name: bytes) -> bool:
        """Whether a table of another split has otherwise the same name, or a shorter or longer one."""
        return any(
            split != named[name] and (others[name] <= others[one] or others[one] <= others[name]) for one, split in named.items()
        )

    named = {name: split for name, split in named.items() if has_counterpart(name) or (split != "train" and _is_list(name))}
    splits: dict[Recording, set[str]] = defaultdict(set)
    for name, split in named.items():
        for recording in listed[name]:
            splits[recording].add(split)
    if 2 * sum(len(several) > 1 for several in splits.values()) > len(splits):
        first: dict[bytes, bytes] = {}
        for name in sorted(named, key=lambda name: [int(number) for number in re.findall(rb"\d+", name)]):
            first.setdefault(re.sub(rb"\d+", b"", name), name)
        named = {name: named[name] for name in first.values()}
    if set(named.values()) == {"valid", "test"}:
        return {name: "train" if "dev" in words[name] else split for name, split in named.items()}
    return named


def _drop_repeated_classes(
    rows: list[ManifestRow], recordings: list[Recording], class_of: dict[bytes, str], tables: CorpusTables
) -> None:
    """Drop labels of recordings with a class if they are of a table that mostly repeats the classes' names: they may be guesses.

    Remark recordings to which two tables give different labels.
    """
    classes, said = set(class_of.values()), defaultdict[bytes, set[str]](set)
    for row in rows:
        said[row.source] |= {_plain(label) for label in row.labels}
    repeating = {source for source, labels in said.items() if 2 * len(labels & classes) >= len(labels) > 0}
    labels: dict[Recording, dict[bytes, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, recording in zip(rows, recordings, strict=True):
        if row.source in repeating and recording[0] in class_of:
            row.labels = ()
        elif row.labels:
            labels[recording][row.source].update(row.labels)
    several = [escape_path(path) for (path, _), told in labels.items() if len(set(map(frozenset, told.values()))) > 1]
    tables.remark(several, "recordings have different labels in two tables", "; all of them are used")


def _is_no_class(label: str) -> bool:
    """Whether a folder is named by a number of several digits, or by a split and what holds recordings (`train audio`)."""
    name = label.encode()
    return (label.isdecimal() and len(label) > 1) or bool(
        split_of(name) and label not in SPLIT_NAMES and not words_beside_split(name)
    )


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())
