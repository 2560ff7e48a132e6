"""The base of formats that differ only in the columns or keys of their manifests."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from soundmill.corpora.class_names import ClassNames
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format


class ManifestFormat(ABC):
    """The adapter (`FORMAT`, `detect`, `read`) of one format; subclasses find its manifests and read their rows."""

    FORMAT: Format
    looks: str  # description of its manifests, in errors
    remedy: str  # what to add, in errors
    unique: bool  # one row per recording
    parts: Mapping[str, str] | None = None  # as in join

    def detect(self, inventory: Inventory) -> bool:
        """Whether a corpus has a manifest of this format."""
        return any(True for _ in self.manifests(inventory))

    def read(self, inventory: Inventory, num_shards: int) -> CorpusTables:
        """Read all manifests; unless `unique`, rows of one file are one recording with several captions."""
        tables = CorpusTables()
        names = list(self.manifests(inventory))
        if not names:
            raise inventory.lacks(self.looks, f"put {self.remedy} there")
        classes = ClassNames(inventory)
        rows = [row for name in names for row in self.rows(inventory, name, tables, classes)]
        classes.remark(tables)
        return join(inventory, rows, num_shards, tables, unique=self.unique, parts=self.parts)

    @abstractmethod
    def manifests(self, inventory: Inventory) -> Iterator[bytes]:
        """Names of its manifests in the inventory."""

    @abstractmethod
    def rows(self, inventory: Inventory, name: bytes, tables: CorpusTables, classes: ClassNames) -> Iterator[ManifestRow]:
        """Rows of one manifest; those that describe no recording are quarantined."""
