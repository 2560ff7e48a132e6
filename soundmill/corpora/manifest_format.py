"""The base of formats that differ only in their manifests, and the names of AudioSet's classes, whose machine ids these have."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_files_with, read_csv
from soundmill.corpora.tables import CorpusTables, Format, ManifestRow

MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")
DETECTED = 50  # rows, lines or jsons beside recordings, of which most must be as a format has them


def name_classes(described: Iterable[Any], inventory: Inventory, tables: CorpusTables) -> None:
    """Replace machine ids of AudioSet's classes in `labels` by the names in csv files of the corpus; others are left out."""
    names: dict[str, str] | None = None  # read once there is a label
    nameless: list[str] = []
    for row in described:
        if row.labels and names is None:
            named = csv_files_with(inventory, {"mid", "display_name"})
            cells = (cells for name in named for _, cells in read_csv(inventory, name))
            called = {row["mid"].strip(): row["display_name"].strip() for row in cells}
            names = {mid: name for mid, name in called.items() if mid and name}
        kept = []
        for label in row.labels:
            if label in names or not MACHINE_ID.fullmatch(label):
                kept.append(names.get(label, label))
            else:
                nameless.append(label)
        row.labels = kept
    if nameless:
        tables.count("labels_without_name", len(nameless))
        tables.remarks.append(
            f"{len(nameless)} labels are machine ids of AudioSet classes (first: {nameless[0]}) without a name and are left "
            "out; put AudioSet's class_labels_indices.csv (`mid,display_name`) into the corpus"
        )


class ManifestFormat(ABC):
    """The adapter (`FORMAT`, `detect`, `read`) of one format; subclasses find its manifests and read their rows."""

    FORMAT: Format
    looks: str  # description of its manifests, in errors
    remedy: str  # what to do, in errors
    unique: bool = False  # one row per recording
    needs_rows: bool = False  # manifests without a row are none
    parts: Mapping[str, str] | None = None  # as in join

    def detect(self, inventory: Inventory) -> bool:
        return any(self.is_own(inventory, name) for name in self.manifests(inventory))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Read all manifests; unless `unique`, rows of one file are one recording with several captions."""
        tables, names = CorpusTables(), list(self.manifests(inventory))
        rows = list(self.all_rows(inventory, names, tables))
        if not (rows if self.needs_rows else names):
            raise inventory.lacks(self.looks, self.remedy)
        name_classes(filter(self.is_classed, rows), inventory, tables)
        return join(inventory, rows, num_shards, tables, unique=self.unique, parts=self.parts_of(names))

    def is_classed(self, row: ManifestRow) -> bool:
        """Whether the labels of a row may be machine ids of AudioSet's classes."""
        return False

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether one of its manifests shows the format, for detection: other formats may have such files too."""
        return True

    def parts_of(self, names: Iterable[bytes]) -> Mapping[str, str] | None:
        return self.parts

    def all_rows(self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables) -> Iterator[ManifestRow]:
        for name in names:
            yield from self.rows(inventory, name, tables)

    @abstractmethod
    def manifests(self, inventory: Inventory) -> Iterable[bytes]:
        """Names of its manifests in the inventory."""

    @abstractmethod
    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables) -> Iterator[ManifestRow]:
        """Rows of one manifest; those that describe no recording are quarantined."""
