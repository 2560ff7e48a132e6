"""The base of formats that differ only in their manifests, and the names of AudioSet's classes, whose machine ids these have."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_files_with, read_csv
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format

MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")
DETECTED = 50  # rows, lines or jsons beside recordings, of which most must be as a format has them


@dataclass
class ClassNames:
    """Names of AudioSet's classes by machine id, from the csv files of a corpus; counts ids without a name."""

    inventory: Inventory
    nameless: int = 0  # labels with such ids
    first: str = ""  # the first of them

    @cached_property
    def names(self) -> dict[str, str]:
        """Name by machine id; read once there is a label."""
        names = {}
        for name in csv_files_with(self.inventory, {"mid", "display_name"}):
            rows = read_csv(self.inventory, name)
            names.update((cells["mid"].strip(), cells["display_name"].strip()) for _, cells in rows)
        return {mid: name for mid, name in names.items() if mid and name}

    def call(self, labels: Iterable[str]) -> list[str]:
        """Labels with machine ids replaced by names; ids without a name are dropped."""
        names = []
        for label in labels:
            if label in self.names:
                names.append(self.names[label])
            elif not MACHINE_ID.fullmatch(label):
                names.append(label)
            else:
                self.nameless += 1
                self.first = self.first or label
        return names

    def remark(self, tables: CorpusTables) -> None:
        """Report the labels that were dropped."""
        if self.nameless:
            tables.count("labels_without_name", self.nameless)
            tables.remarks.append(
                f"{self.nameless} labels are machine ids of AudioSet classes (first: {self.first}) without a name and are left "
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
        """Whether a corpus has a manifest of this format."""
        return any(self.is_own(inventory, name) for name in self.manifests(inventory))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Read all manifests; unless `unique`, rows of one file are one recording with several captions."""
        tables, classes = CorpusTables(), ClassNames(inventory)
        names = list(self.manifests(inventory))
        rows = list(self.all_rows(inventory, names, tables, classes))
        if not (rows if self.needs_rows else names):
            raise inventory.lacks(self.looks, self.remedy)
        classes.remark(tables)
        parts = self.parts_of(names)
        return self.completed(join(inventory, rows, num_shards, tables, unique=self.unique, parts=parts), inventory, parts)

    def is_own(self, inventory: Inventory, name: bytes) -> bool:
        """Whether one of its manifests shows the format, for detection: other formats may have such files too."""
        return True

    def parts_of(self, names: Iterable[bytes]) -> Mapping[str, str] | None:
        return self.parts

    def completed(self, tables: CorpusTables, inventory: Inventory, parts: Mapping[str, str] | None) -> CorpusTables:
        """With what folders, not manifests, say of the recordings."""
        return tables

    def all_rows(
        self, inventory: Inventory, names: Iterable[bytes], tables: CorpusTables, classes: ClassNames
    ) -> Iterator[ManifestRow]:
        for name in names:
            yield from self.rows(inventory, name, tables, classes)

    @abstractmethod
    def manifests(self, inventory: Inventory) -> Iterable[bytes]:
        """Names of its manifests in the inventory."""

    @abstractmethod
    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        """Rows of one manifest; those that describe no recording are quarantined."""
