"""AudioLDM: a root json lists the json files of each split, whose entries have `wav`, `labels` and captions."""

from collections.abc import Iterator
from typing import Any

from soundmill.corpora.class_names import ClassNames
from soundmill.corpora.folder_names import SPLIT_NAMES
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.json_entries import JsonEntries
from soundmill.corpora.metadata import read_head
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format
from soundmill.params import parse_json

FORMAT = Format(
    name="audioldm",
    layout='`dataset_root.json` with `{"metadata": {"path": {dataset: {"train": json, …}}}}`, each json `{"data": [{"wav": …}]}`',
    id="hash of the path, or the YouTube id in the file's name; the file is `wav`, below the corpus",
    caption="every key that contains `caption`",
    label="`labels`, looked up in the class label csv (`mid,display_name`)",
    split="the json's key in the root json",
)
ENTRIES = JsonEntries(
    FORMAT,
    keys=("wav",),
    file=("wav",),
    captions=".*caption.*",
    looks='json with AudioLDM\'s splits (`{"metadata": {"path": {dataset: {"train": …}}}}`)',
    remedy="its dataset_root.json",
    labels="labels",
    label_separator=",",
)


def detect(inventory: Inventory) -> bool:
    """Whether a root json lists the json files of splits."""
    return any(True for _ in _roots(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of an AudioLDM corpus; a listed json that is missing is quarantined."""
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


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[ManifestRow]:
    # Paths in the root json are relative to the directory of training, so they are resolved like recordings.
    manifests = FileIndex(Inventory(inventory.root, audio=[AudioFile(name, 0, "") for name in inventory.metadata]))
    roots = list(_roots(inventory))
    if not roots:
        raise inventory.lacks(ENTRIES.looks, f"put {ENTRIES.remedy} there")
    classes = ClassNames(inventory)
    for root, listed in roots:
        inventory.opened.add(root)
        for splits in listed.values():
            for key, path in splits.items():
                split = SPLIT_NAMES.get(key.lower())
                if split is None or not isinstance(path, str) or not path:
                    continue
                files = manifests.resolve(path, root.rpartition(b"/")[0]).files
                if len(files) == 1:
                    yield from ENTRIES.rows(inventory, files[0].raw_path, tables, classes, split=split)
                else:
                    what = f"{len(files)} files of this name" if files else "is not below the corpus"
                    tables.reject(root, "missing manifest", f"{key}: {path!r:.200}: {what}")
    classes.remark(tables)
