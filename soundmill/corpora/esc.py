"""ESC-10 (class folders, fold in the file name) and ESC-50 (`meta/esc50.csv` and `audio/`)."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from soundmill.corpora.folder import class_label
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_files_with, read_csv
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, fold_number
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="esc",
    layout="ESC-10 folders (`001 - Dog bark/1-100032-A.ogg`), or ESC-50's `meta/esc50.csv` and `audio/`",
    id="hash of the relative path; rows match `filename`, the uppermost of several such files",
    caption="made from the label",
    label="the class: `category`, or the folder",
    split="folds: the highest is test",
)
# `{fold}-{Freesound id}-{take}` and, in ESC-50, `-{target}`.
NAME = re.compile(r"(?P<fold>\d)-(?P<source>\d+)-(?P<take>[A-Z])(?:-(?P<target>\d+))?")
FOLDER = re.compile(rb"\d{3} - .+")
COLUMNS = ("filename", "fold", "category")


def detect(inventory: Inventory) -> bool:
    return bool(meta_csv(inventory)) or 2 * sum(map(is_esc10, inventory.audio)) > len(inventory.audio)


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of ESC-10 or ESC-50: one label, the fold, and the Freesound original as group; no captions."""
    tables = CorpusTables()
    if table := meta_csv(inventory):
        return _read_esc50(inventory, list(_rows(inventory, table, tables)), num_shards, tables)
    if not any(is_esc10(file) for file in inventory.audio):
        raise UserError(
            f"corpus.path: {escape_path(bytes(inventory.root))} has neither a csv with the columns {', '.join(COLUMNS)} "
            "(ESC-50) nor folders like `001 - Dog bark` with files like `1-100032-A.ogg` (ESC-10); "
            "for another layout use `corpus=folder`"
        )
    for file in inventory.audio:
        # The class is the folder with a class number, else the innermost one.
        label = next((folder for folder in reversed(file.folders) if FOLDER.fullmatch(folder)), b"".join(file.folders[-1:]))
        fold, source = _parsed(file.stem)
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
        fold, source = _parsed(os.fsdecode(os.path.splitext(os.path.basename(recording["raw_path"]))[0]))
        recording["fold"] = fold if recording["fold"] is None else recording["fold"]
        recording["group"] = recording["group"] or source
    return tables


def _parsed(stem: str) -> tuple[int | None, str | None]:
    """(fold, Freesound original) in a file's name."""
    match = NAME.fullmatch(stem)
    return (int(match["fold"]), match["source"]) if match else (None, None)


def meta_csv(inventory: Inventory) -> bytes | None:
    """The csv of ESC-50, by its columns; `esc50.csv` if there are several."""
    return min(csv_files_with(inventory, set(COLUMNS)), key=lambda name: (not name.endswith(b"esc50.csv"), name), default=None)


def is_esc10(file: AudioFile) -> bool:
    """Whether folder and name of a file are as in ESC-10."""
    return bool(file.folders and FOLDER.fullmatch(file.folders[-1]) and NAME.fullmatch(file.stem))


def _rows(inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
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
            source = _parsed(os.path.splitext(file)[0])[1]
            yield ManifestRow(name, line, file, labels=[category], fold=fold, group=source)
