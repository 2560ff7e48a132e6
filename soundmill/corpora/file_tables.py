"""Tables of any name with a column of recordings. What they say is added to what folders and texts beside recordings say."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from soundmill.corpora import unnamed
from soundmill.corpora.audiofolder import CAPTIONS, LABELS, SAMPLED, SPLIT_COLUMNS, class_columns, marked, row_of
from soundmill.corpora.csv_tables import csv_columns, read_csv
from soundmill.corpora.folder import add_texts, layout_of, original_of, remark_layout, words_beside_split
from soundmill.corpora.inventory import LICENCES, AudioFile, Inventory, is_about_corpus
from soundmill.corpora.join import DETECTED, join, name_classes, nearest
from soundmill.corpora.json_entries import JSON
from soundmill.corpora.metadata import first_keys, read_annotations, read_entries, read_head
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.splits import PROTECTED
from soundmill.corpora.tables import (
    BY_MODELS,
    CorpusTables,
    ManifestRow,
    fold_number,
    is_no_description,
    split_of,
    split_of_file,
    whole_number,
)
from soundmill.errors import UserError
from soundmill.manifest import SPLIT_NAMES, escape_path, splits_of_names, words_of_name

_CSV = re.compile(rb"\.(?:csv|tsv)$", re.IGNORECASE)
_FILES = re.compile(
    r"(?:\w+_)?(?:file_?names?|fname|files?|file_?path|path|wav|audio|clip|recording|location)|(?:clip|sound|audio|sample)_?name"
)
_IDS = re.compile(r"id|(?:file|clip|track|sample|recording|audio|sound|song|item|video|youtube|yt)_?id|(?:\w+_)?key|uuid\d?|name")
_SPLITS = re.compile(
    r"(?:\w*_)?(?:(?:data|sub)?(?:set|split)|fold|partition)s?(?:_\w+)?|usage|phase|type|train_?(?:val(?:id)?_?)?test"
)
_FOLDS = re.compile(r"(?:\w+_)?fold(?:_?(?:number|no|id|idx|index))?")
# In names of tables: labels to fill in, recordings found wrong, FSD50K's labels before they were checked.
_NOT_LABELS = re.compile(r"submission|invalid|^collection_(?:dev|eval)\.")
_CREDITS = re.compile(r"(?:\w+_)?(?:licen[cs]e|author|creator|credits?|url|link|uploader)")  # beside which a description is theirs
_STARTS, _ENDS = (re.compile(rf"(?:{words})(?:_\w+)?") for words in ("start|onset|begin", "end|offset"))  # of a part
_YAML = re.compile(rb"\.ya?ml$", re.IGNORECASE)
_LIST_WORDS = {"list", "file", "files", "filelist", "ids", "fold", "split", "captions", "labels", "metadata", "filtered"}

Recording = tuple[bytes, str]  # its raw path, else the table and the row's key
Described = tuple[ManifestRow, Recording]


@dataclass(frozen=True)
class _Table:
    """A table, and its columns: of recordings, labels, splits, folds and classes, and those that are not used."""

    name: bytes
    files: str
    label: str
    split: str
    fold: str
    classes: tuple[str, ...]  # columns of 0 and 1, one for each class
    unused: frozenset[str]
    form: unnamed.Form | None  # None: with named columns


class FileTables:
    """Tables with a column of recordings, and one of captions, labels or splits; lists of a split; lists of unnamed.py."""

    FORMAT = "table"

    def detect(self, inventory: Inventory) -> bool:
        return bool(_tables(inventory, cache(lambda: FileIndex(inventory))))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        tables, rows, index = CorpusTables(), list[ManifestRow](), FileIndex(inventory)
        if not (found := _tables(inventory, lambda: index)):
            raise inventory.lacks("table with a column of recordings, and one of captions, labels or splits", "put one there")
        for table in found:
            before = len(tables.rejected)
            try:
                rows += _rows(inventory, table, tables)
            except UserError as error:  # a stray table must not hide the recordings
                tables.rejected[before:] = [{"path": escape_path(table.name), "reason": "unreadable", "detail": str(error)}]
        layout = layout_of(inventory.audio)
        folders = {file.raw_path: layout.split_and_label(file) for file in inventory.audio}
        described = [(row, _recording(row, index)) for row in rows]
        _settle_splits(described)
        _remark_labels(described, {path: label for path, (_, label) in folders.items() if label}, tables)
        name_classes(rows, inventory, tables)
        join(inventory, rows, num_shards, tables)
        classes, named = {label for _, label in folders.values() if label}, {_spelt(label) for label in tables.labels}
        if not all(map(str.isdecimal, named)) and named.isdisjoint(classes):
            classes = set()  # `train_short_audio` is no class beside those of a table
        originals = {file.raw_path: original_of(file) for file in inventory.audio}
        for row in tables.recordings:
            split, label = folders[row["raw_path"]]
            row["group"] = row["group"] or originals[row["raw_path"]]
            row["split"] = split if split == "test" else row["split"] or split  # FSD50K's `dev` has both others
            if all(one.isdecimal() for one in row["labels"]) and label in classes and (len(classes) > 1 or not tables.captions):
                row["labels"] = [label]
        add_texts(inventory, num_shards, tables, index)
        remark_layout(inventory.audio, layout, [], tables)
        return tables


def _tables(inventory: Inventory, index: Callable[[], FileIndex]) -> list[_Table]:
    """The tables that can be read; not those beside a recording of their name, nor what models say of the recordings."""
    beside, found = {os.path.splitext(file.raw_path)[0] for file in inventory.audio}, []
    for name in sorted(inventory.metadata):
        if name == LICENCES or os.path.splitext(name)[0] in beside:
            continue
        was_opened = name in inventory.opened
        try:
            table = _table(inventory, name, index)
        except UserError as error:
            inventory.remarks[name, "unreadable"] = f"not read: {error}"
            continue
        if table:
            found.append(table)
        elif not was_opened:
            inventory.opened.discard(name)  # so that it is remarked as not read
    return found


def _table(inventory: Inventory, name: bytes, index: Callable[[], FileIndex]) -> _Table | None:
    columns = _columns(inventory, name)
    files, form = [column for pattern in (_FILES, _IDS) for column in columns if pattern.fullmatch(column)], None
    if (
        not files
        and not (is_about_corpus(name) or is_no_description(name))
        and (form := unnamed.detect(inventory, name, index, _is_list(name)))
    ):
        columns, files = ["file", *form.columns], ["file"]
    names = [*columns, escape_path(os.path.basename(name)).lower()]
    if not files or _NOT_LABELS.search(names[-1]) or any(map(BY_MODELS.search, names)):
        return None
    captions = set(filter(CAPTIONS.fullmatch, columns))
    unused = captions & {"description"} if any(map(_CREDITS.fullmatch, columns)) else set()
    if any(map(_STARTS.fullmatch, columns)) and any(map(_ENDS.fullmatch, columns)):
        unused = captions
    labels = [column for column in LABELS if column in columns]
    splits, is_described = list(filter(_SPLITS.fullmatch, columns)), bool(captions - unused or labels or _is_list(name))
    if not (is_described or splits or len(columns) > 3):
        return None
    rows = [row for _, row in islice(_entries(inventory, name, form), SAMPLED)]
    rows = rows[:: len(rows) // DETECTED + 1]
    if len(rows) < 2 and not form and name.lower().endswith(b".json"):  # an object about something, such as package.json
        return None
    label, base = _column_of_labels(rows, labels), os.path.dirname(name)
    of_files, ids = list(filter(_FILES.fullmatch, files)), filter(_IDS.fullmatch, files)
    if not (named := _column_of_files(rows, of_files, base, index())):
        named = _column_of_files(rows, ids, base, index())
        named = "" if named and _is_key(rows, named, label) else named
    if not (named := named or _column_of_most(inventory, _entries(inventory, name, form), of_files, base, index())):
        keys = [str(row[of_files[0]]) for row in rows if of_files and row.get(of_files[0])]
        if keys and inventory.audio and is_described:
            why = f"no row names a recording here (first: {nearest(inventory, keys[0])})"
            inventory.remarks[name, "names"] = f"{escape_path(name)}: {why}"
        return None
    if not label and any("---" in str(row.get("tags")) for row in rows):  # MTG-Jamendo's `genre---rock`
        label = "tags"
    classes = class_columns(rows)
    told = {column: {str(row.get(column) or "").strip() for row in rows} - {""} for column in columns}
    split = _column_of_splits(
        inventory, name, {column: told[column] for column in told if column not in {*labels, *captions, named}}
    )
    fold = next(
        (column for column in filter(_FOLDS.fullmatch, splits) if column != split and any(map(fold_number, told[column]))), ""
    )
    if not (is_described or split or fold or classes or label):
        return None
    return _Table(name, named, label, split, fold, classes, frozenset({*unused, *labels, *splits, split}), form)


def _is_key(rows: list[dict[str, Any]], column: str, label: str) -> bool:
    """Whether a table says which class each number means, and nothing of recordings that are named by numbers."""
    told = [str(row.get(label)) for row in rows]
    return bool(label) and all(whole_number(str(row.get(column))) for row in rows) and len(set(told)) == len(told)


def _column_of_splits(inventory: Inventory, name: bytes, told: dict[str, set[str]]) -> str:
    """The column whose cells all have words for splits and whose name may mean them, else the first that is called so; empty if
    there is none. `told`: the cells of each column."""
    say = {
        column: len(set(splits.values()))
        for column, cells in told.items()
        if (splits := _splits_of_cells(cells)) and all(splits.values())
    }
    named = sorted((column for column in say if _SPLITS.fullmatch(column)), key=lambda column: (column != "split", -say[column]))
    called = [column for column in SPLIT_COLUMNS if told.get(column) and column != "dataset"]  # which may name a source
    if not (named or called):
        what = "columns have words for splits and are not read, as they are not called so; call the one of the splits `split`"
        inventory.remark(name, what, [column for column, count in say.items() if count > 1])
    return next(iter([*named, *called]), "")


def _splits_of_cells(cells: Iterable[str]) -> dict[str, str | None]:
    """The splits that cells of a column name, together if they are all of them, else each alone."""
    written = {cell: cell.encode("utf-8", "replace") for cell in cells}
    splits = splits_of_names(written.values())
    return {cell: splits.get(name) or split_of(name) for cell, name in written.items()}


def _is_list(name: bytes) -> bool:
    """Whether a table is named after a split alone: `test.csv`, `fold1_train.csv`, `splits/valid_ids.csv`."""
    return split_of_file(name) is not None and words_beside_split(os.path.splitext(os.path.basename(name))[0]) <= _LIST_WORDS


def _columns(inventory: Inventory, name: bytes) -> list[str]:
    """Columns, or keys of entries, as `_column` makes them."""
    if _YAML.search(name) and re.match(rb"(?:\w+:\s+)?- (?:annotations|filename):", read_head(inventory, name)):
        return ["filename", "sentence"]
    keys = sorted(first_keys(inventory, name)) if JSON.search(name) else []
    return list(dict.fromkeys(map(_column, csv_columns(inventory, name) if _CSV.search(name) else keys)))


@cache
def _column(name: str) -> str:
    """The name of a column in lower case, with `_` between words: `Class Name` and `class_name` are one."""
    return re.sub(r"[^\w.]+", "_", name.strip().lower()).strip("_")


def _entries(inventory: Inventory, name: bytes, form: unnamed.Form | None) -> Iterator[unnamed.Row]:
    """Rows of a table as (place, values by column in lower case); what is no row has no values."""
    entries: Iterable[tuple[int | str, Any]]
    if form:
        entries = unnamed.read(inventory, name, form)
    elif _YAML.search(name):
        entries = read_annotations(inventory, name)
    else:
        entries = read_csv(inventory, name) if _CSV.search(name) else read_entries(inventory, name)
    for at, values in entries:
        row = {_column(str(column)): value for column, value in values.items()} if isinstance(values, dict) else {}
        # A sound in the JSON of Hugging Face's `datasets` is an object with its path.
        row |= {key: one["path"] for key, one in row.items() if _FILES.fullmatch(key) and isinstance(one, dict) and "path" in one}
        yield at, row


def _column_of_files(rows: list[dict[str, Any]], columns: Iterable[str], base: bytes, index: FileIndex) -> str:
    """The column of whose cells at least half name recordings; empty if there is none, or several that name different ones."""
    found: dict[str, list[tuple[AudioFile, ...]]] = {}
    for column in columns:
        cells = [str(row.get(column) or "").strip() for row in rows]
        named = [index.resolve(cell, base).files if cell else () for cell in cells]
        if 2 * sum(map(bool, named)) >= max(1, sum(map(bool, cells))):
            found[column] = named
    same = all(named == first for first in list(found.values())[:1] for named in found.values())
    return next(iter(found), "") if same else ""


def _column_of_most(inventory: Inventory, entries: Iterable[unnamed.Row], columns: list[str], base: bytes, index: FileIndex) -> str:
    """The first column that names more than half of the recordings: of a corpus of which a part is here; empty if there is none."""
    found: dict[str, set[AudioFile]] = {column: set() for column in columns}
    for _, row in entries if columns else ():
        for column, files in found.items():
            files.update(index.resolve(str(row.get(column) or ""), base).files)
    return next((column for column, files in found.items() if 2 * len(files) > len(inventory.audio)), "")


def _column_of_labels(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """The first column with words, else with anything: `class_name` comes before numbers in `label`."""
    cells = {column: "".join(str(row.get(column) or "") for row in rows) for column in columns}
    with_words = (column for column, text in cells.items() if re.search(r"[^\W\d_]", text))
    return next(with_words, next((column for column, text in cells.items() if text.strip()), ""))


def _rows(inventory: Inventory, table: _Table, tables: CorpusTables) -> list[ManifestRow]:
    rows, cells = list[ManifestRow](), list[str]()  # those of splits
    for at, values in _entries(inventory, table.name, table.form):
        file, label = values.get(table.files), values.get(table.label)
        if not isinstance(file, str) or not file.strip():
            tables.reject(table.name, "bad id", f"line {at}: no `{table.files}`")
            continue
        told = {column: value for column, value in values.items() if column not in table.unused} | {"file_name": file.strip()}
        told[table.label], told["fold"] = label, values.get(table.fold) if table.fold else None
        if table.label == "tags":
            told["labels"] = [tag.rpartition("---")[2] for tag in str(label).split(";")]
        if table.classes:
            told["labels"] = marked(values, table.classes)
        rows.append(row_of(table.name, at, told, {}, tables))
        cells.append(sys.intern(str(values.get(table.split) or "").strip()) if table.split else "")  # a large table repeats a few
    splits = _splits_of_cells({*cells} - {""})
    for row, cell in zip(rows, cells, strict=True):
        row.split = splits.get(cell)
    unknown = [f"{cell!r:.80}" for cell in cells if cell and not splits[cell]]
    inventory.remark(table.name, f"cells of `{table.split}` name no split", unknown)
    return rows


def _recording(row: ManifestRow, index: FileIndex) -> Recording:
    files = index.resolve(row.key, os.path.dirname(row.source)).files
    return (files[0].raw_path, "") if len(files) == 1 else (row.source, row.key)


def _settle_splits(described: list[Described]) -> None:
    """Set missing splits by the names of tables, unless a column of any table gives one for the recording."""
    listed: dict[bytes, set[Recording]] = defaultdict(set)
    for row, recording in described:
        listed[row.source].add(recording)
    stated = {recording for row, recording in described if row.split}
    named, given = _named_splits(listed), dict[Recording, str]()
    for row, recording in described:
        if recording not in stated and row.source in named:
            row.split = named[row.source]
        if row.split:
            given[recording] = min(row.split, given.get(recording, row.split), key=PROTECTED.index)
    for row, recording in described:
        row.split = given.get(recording)


def _named_splits(listed: dict[bytes, set[Recording]]) -> dict[bytes, str]:
    """Splits by the names of tables: of those with a counterpart of another split, and of bare lists of a part (`test.csv`).

    `listed`: the recordings of each table. Of lists of folds, which put most recordings into several splits, those of the first
    count.
    """
    places = {name: os.path.dirname(name) if name.endswith(b"/text") else name for name in sorted(listed)}  # Kaldi's `train/text`
    stems = {name: os.path.splitext(os.path.basename(place))[0] for name, place in places.items()}
    words = {name: re.findall(r"[a-z]{2,}", stem.decode("utf-8", "replace").lower()) for name, stem in stems.items()}
    everything, named = set().union(*listed.values()), {}
    for name, found in words.items():  # a word for a split is the first or the last
        if (split := split_of(stems[name])) and split in (SPLIT_NAMES.get(found[0]), SPLIT_NAMES.get(found[-1])):
            if split == "train" or listed[name] < everything:
                named[name] = split
    others = {name: words_beside_split(stems[name]) for name in named}

    def is_kept(name: bytes, split: str) -> bool:  # a table of another split has otherwise the same, a shorter or a longer name
        pairs = ((other, others[one], others[name]) for one, other in named.items())
        return (split != "train" and _is_list(name)) or any(other != split and (a <= b or b <= a) for other, a, b in pairs)

    named = {name: split for name, split in named.items() if is_kept(name, split)}
    for folder in {os.path.dirname(name) for name in stems}:  # `tr.json`, `te.json`
        alone = {name: stem for name, stem in stems.items() if os.path.dirname(name) == folder and len(words_of_name(stem)) == 1}
        splits_alone = splits_of_names(alone.values())
        named |= {name: splits_alone[stem] for name, stem in alone.items() if stem in splits_alone and not split_of_file(name)}
    splits: dict[Recording, set[str]] = defaultdict(set)
    for name, split in named.items():
        for recording in listed[name]:
            splits[recording].add(split)
    if 2 * sum(len(several) > 1 for several in splits.values()) > len(splits):
        first: dict[bytes, bytes] = {}
        for name in sorted(named, key=lambda name: [int(number) for number in re.findall(rb"\d+", name)]):
            first.setdefault(re.sub(rb"\d+", b"", name), name)
        named = {name: named[name] for name in first.values()}
    return named


def _spelt(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())


def _remark_labels(described: list[Described], class_of: dict[bytes, str], tables: CorpusTables) -> None:
    """Remark recordings to which two tables give different labels, and those whose folder is another of the tables' labels."""
    labels: dict[Recording, dict[bytes, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, recording in described:
        if row.labels:
            labels[recording][row.source].update(map(_spelt, row.labels))
    several = [escape_path(path) for (path, _), told in labels.items() if set().union(*told.values()) not in told.values()]
    tables.remark(several, "recordings have different labels in two tables", "; all of them are used")
    of_recording = {path: set().union(*told.values()) for (path, _), told in labels.items()}
    classes = set().union(*of_recording.values()) & set(class_of.values())
    others = [path for path in of_recording if class_of.get(path) in classes - of_recording[path]]
    tables.remark(
        list(map(escape_path, others)), "recordings have other labels in a table than their folder", "; the table's are used"
    )
