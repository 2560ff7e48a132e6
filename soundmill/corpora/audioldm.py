"""AudioLDM: a root json that lists the json files of every split, each a list of `wav`, `labels` and captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.metadata import csv_columns, read_csv, read_head, read_json
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.rows import Row
from soundmill.corpora.tables import SPLIT_NAMES, CorpusTables, Format
from soundmill.errors import UserError
from soundmill.manifest import escape_path
from soundmill.params import parse_json

FORMAT = Format(
    name="audioldm",
    layout='`dataset_root.json` with `{"metadata": {"path": {dataset: {"train": json, …}}}}`, each json `{"data": [{"wav": …}]}`',
    id="hash of the path, or the YouTube id in the file's name; the file is `wav`, below the corpus",
    caption="every key that contains `caption`",
    label="`labels`, looked up in the class label csv (`mid,display_name`)",
    split="the json's key in the root json",
)

LABEL_COLUMNS = {"mid", "display_name"}
MACHINE_ID = re.compile(r"/[mtg]/[0-9a-z_]+")  # of one of AudioSet's classes


def detect(inventory: Inventory) -> bool:
    """Whether a root json lists the json files of splits."""
    return any(True for _ in _roots(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Rows of an AudioLDM corpus; a json that the root lists and that is not there is named and counted."""
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, tables)), num_shards, tables)


def _roots(inventory: Inventory) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(name, {dataset: {split: path}}) of the root json files."""
    for name in inventory.metadata:
        if name.lower().endswith(b".json") and b'"metadata"' in (head := read_head(inventory, name)):
            try:
                listed = parse_json(head)["metadata"]["path"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(listed, dict) and all(isinstance(splits, dict) for splits in listed.values()):
                yield name, listed


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[Row]:
    # What the root lists starts at the directory that training was run in: manifests are resolved like recordings.
    manifests = FileIndex(Inventory(inventory.root, audio=[AudioFile(name, 0, "") for name in inventory.metadata]))
    roots = list(_roots(inventory))
    if not roots:
        raise inventory.lacks(
            'json with AudioLDM\'s splits (`{"metadata": {"path": {dataset: {"train": …}}}}`)', "put its dataset_root.json there"
        )
    classes = ClassNames.of(inventory)
    for root, listed in roots:
        inventory.opened.add(root)
        for splits in listed.values():
            for key, path in splits.items():
                split = SPLIT_NAMES.get(key.lower())
                if split is None or not isinstance(path, str) or not path:
                    continue
                files = manifests.resolve(path, root.rpartition(b"/")[0]).files
                if len(files) == 1:
                    yield from _read_split(inventory, files[0].raw_path, split, classes, tables)
                else:
                    what = f"{len(files)} files of this name" if files else "is not below the corpus"
                    tables.reject(root, "missing manifest", f"{key}: {path!r:.200}: {what}")
    classes.remark(tables)


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


def _read_split(inventory: Inventory, name: bytes, split: str, classes: ClassNames, tables: CorpusTables) -> Iterator[Row]:
    value = read_json(inventory, name)
    entries = value.get("data") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{escape_path(name)}: expected `{{"data": [{{"wav": …}}, …]}}`, as AudioLDM reads it')
    for number, entry in enumerate(entries):
        at = f"data[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("wav"), str):
            tables.reject(name, "bad entry", f"{at}: no `wav`")
            continue
        labels = classes.call(label.strip() for label in str(entry.get("labels") or "").split(",") if label.strip())
        yield Row(name, at, entry["wav"], captions=list(_captions(entry)), labels=labels, split=split)


def _captions(entry: dict[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        if "caption" in key:
            yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
