"""AudioSet's machine ids (`/m/0bt9lr`) and the names of its classes (`Dog`)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from soundmill.corpora.inventory import Inventory
from soundmill.corpora.metadata import csv_columns, read_csv
from soundmill.corpora.tables import CorpusTables

LABEL_COLUMNS = {"mid", "display_name"}
MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")


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
        for name in self.inventory.csv_files():
            if LABEL_COLUMNS <= set(csv_columns(self.inventory, name)):
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
