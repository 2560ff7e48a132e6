"""UrbanSound8K: `metadata/UrbanSound8K.csv` and ten folders of audio, one for each fold."""

from __future__ import annotations

from collections.abc import Iterator

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.rows import Row
from soundmill.corpora.tables import CorpusTables, Format, fold_number, whole_number

FORMAT = Format(
    name="urbansound8k",
    layout="`metadata/UrbanSound8K.csv` with `slice_file_name,fsID,start,end,salience,fold,classID,class`; `audio/fold1/*.wav` …",
    id="hash of the path; the file is `slice_file_name`, in the folder of its fold",
    caption="none (made from the label)",
    label="`class`",
    split="`fold` (1 to 10); group: `fsID`, the Freesound original",
)

COLUMNS = {"slice_file_name", "fsid", "fold", "class"}


def detect(inventory: Inventory) -> bool:
    return bool(_tables(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of UrbanSound8K: one label each, the fold as published (never dealt anew), and the Freesound original as the group."""
    names = _tables(inventory)
    if not names:
        raise inventory.lacks(f"csv with the columns {', '.join(sorted(COLUMNS))}", "put UrbanSound8K.csv there")
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, names, tables)), num_shards, tables, unique=True)


def _tables(inventory: Inventory) -> list[bytes]:
    return [name for name in inventory.csv_files() if COLUMNS <= set(csv_columns(inventory, name))]


def _rows(inventory: Inventory, names: list[bytes], tables: CorpusTables) -> Iterator[Row]:
    for name in names:
        for line, cells in read_csv(inventory, name):
            fold, label = fold_number(cells["fold"]), cells["class"].replace("_", " ").strip().lower()
            if fold is None:
                tables.reject(name, "bad fold", f"line {line}: {cells['fold']!r:.80} is no fold's number")
            elif not label:
                tables.reject(name, "empty category", f"line {line}: {cells['slice_file_name']:.80}")
            else:
                key = f"fold{fold}/{cells['slice_file_name'].strip()}"
                yield Row(
                    name, line, key, labels=[label], fold=fold, group=whole_number(cells["fsid"]) or cells["fsid"].strip() or None
                )
