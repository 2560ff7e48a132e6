"""AudioSet's machine ids (`/m/0bt9lr`) and the names of its classes (`Dog`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.tables import CorpusTables

LABEL_COLUMNS = {"mid", "display_name"}
MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")


@dataclass
class ClassNames:
    """The names of AudioSet's classes by machine id, as a csv of the corpus has them; and what none of them names."""

    names: dict[str, str]
    nameless: int = 0
    first: str = ""  # of those

    @classmethod
    def of(cls, inventory: Inventory) -> ClassNames:
        names = {}
        for name in inventory.csv_files():
            if LABEL_COLUMNS <= set(csv_columns(inventory, name)):
                names.update((cells["mid"].strip(), cells["display_name"].strip()) for _, cells in read_csv(inventory, name))
        return cls({mid: name for mid, name in names.items() if mid and name})

    def call(self, labels: Iterable[str]) -> list[str]:
        """Labels, machine ids among them by their names; an id that nothing names is no word, and is left out."""
        called = []
        for label in labels:
            if label in self.names:
                called.append(self.names[label])
            elif not MACHINE_ID.fullmatch(label):
                called.append(label)
            else:
                self.nameless += 1
                self.first = self.first or label
        return called

    def remark(self, tables: CorpusTables) -> None:
        """Tell what was left out."""
        if self.nameless:
            tables.count("labels_without_name", self.nameless)
            tables.remarks.append(
                f"{self.nameless} labels are machine ids of AudioSet's classes (first: {self.first}) that nothing here names, and "
                "are left out; put AudioSet's class_labels_indices.csv (`mid,display_name`) into the corpus"
            )
