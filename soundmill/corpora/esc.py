"""ESC-10 (class folders, fold in the file name) and ESC-50 (`meta/esc50.csv` and `audio/`)."""

from __future__ import annotations

import re

from soundmill.corpora.folder import class_label
from soundmill.corpora.inventory import AudioFile, Inventory, csv_columns, read_csv
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.errors import UserError
from soundmill.manifest import escape_path

FORMAT = Format(
    name="esc",
    layout="ESC-10 folders (`001 - Dog bark/1-100032-A.ogg`), or ESC-50's `meta/esc50.csv` and `audio/`",
    id="hash of the relative path; rows by `filename`",
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
    """Rows of ESC-10 or ESC-50: one label each, the fold, and the Freesound original as the group; captions it has none."""
    tables = CorpusTables()
    table = meta_csv(inventory)
    rows = _read_meta(inventory, table, tables) if table else {}
    if not table and not any(is_esc10(file) for file in inventory.audio):
        raise UserError(
            f"corpus.path: {escape_path(bytes(inventory.root))} holds neither a csv with the columns {', '.join(COLUMNS)} "
            "(ESC-50) nor folders like `001 - Dog bark` with files like `1-100032-A.ogg` (ESC-10); "
            "for another layout use `corpus=folder`"
        )
    for file in inventory.audio:
        match = NAME.fullmatch(file.stem)
        fold = int(match["fold"]) if match else None
        if table:
            row = rows.pop(file.name, None)
            labels = [row[0]] if row else []
            fold = row[1] if row else fold
            if row is None:
                tables.count("without_row")
        else:
            labels = [class_label(file.folders[0])] if file.folders else []
        tables.add_recording(file, num_shards, labels=labels, fold=fold, group=match["source"] if match else None)
    tables.count("rows_without_audio", len(rows))
    return tables


def meta_csv(inventory: Inventory) -> bytes | None:
    """The table of ESC-50, by its columns; `esc50.csv` if there are several."""
    found = [name for name in inventory.csv_files() if set(COLUMNS) <= set(csv_columns(inventory, name))]
    return min(found, key=lambda name: (not name.endswith(b"esc50.csv"), name), default=None)


def is_esc10(file: AudioFile) -> bool:
    """Whether a file lies and is named as in ESC-10."""
    return bool(file.folders and FOLDER.fullmatch(file.folders[-1]) and NAME.fullmatch(file.stem))


def _read_meta(inventory: Inventory, name: bytes, tables: CorpusTables) -> dict[bytes, tuple[str, int]]:
    """File name → (label, fold); a name with a slash in it or a fold that is no number is quarantined."""
    rows = {}
    for line, row in read_csv(inventory, name):
        file, fold, category = row["filename"], row["fold"].strip(), row["category"].replace("_", " ").strip().lower()
        if not file or "/" in file:
            tables.reject(name, "bad file name", f"line {line}: {file!r:.80}")
        elif not fold.isdecimal() or len(fold) > 4:
            tables.reject(name, "bad fold", f"line {line}: {fold!r:.80} is no fold's number")
        elif not category:
            tables.reject(name, "empty category", f"line {line}: {file}")
        else:
            rows[file.encode()] = category, int(fold)
    return rows
