"""audiocraft: manifests of JSON lines with `path`, `duration`, `sample_rate`, and a json beside each recording."""

import os
from collections.abc import Iterator
from typing import Any

from soundmill.corpora.folder_names import SPLIT_NAMES
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.join import join
from soundmill.corpora.json_entries import JSON
from soundmill.corpora.metadata import first_keys, read_entries, read_json
from soundmill.corpora.resolver import FileIndex
from soundmill.corpora.rows import ManifestRow
from soundmill.corpora.tables import CorpusTables, Format, keyword_in
from soundmill.errors import UserError

FORMAT = Format(
    name="audiocraft",
    layout="`data.jsonl(.gz)` of `path,duration,sample_rate,…`; beside every recording a `.json` with `description`, `keywords` …",
    id="hash of the path, or the YouTube id in the file's name; the file is `path`, anywhere below the corpus",
    caption="`description` of the json beside the recording: a text or a list of texts",
    label="`genre` of that json, else its `keywords`",
    split="the folder or name of the manifest: train, valid, evaluate (and generate) are train, valid, test",
)

SPLITS = {**SPLIT_NAMES, "evaluate": "test", "generate": "test"}
KEYS = {"path", "duration", "sample_rate"}


def detect(inventory: Inventory) -> bool:
    """Whether a file of JSON lines starts like an audiocraft manifest."""
    return any(True for _ in _manifests(inventory))


def read(inventory: Inventory, num_shards: int) -> CorpusTables:
    """Tables of an audiocraft corpus. Manifests give recordings and splits, the json beside a recording its description."""
    tables = CorpusTables()
    return join(inventory, list(_rows(inventory, tables)), num_shards, tables)


def _manifests(inventory: Inventory) -> Iterator[bytes]:
    return (name for name in filter(JSON.search, inventory.metadata) if KEYS <= first_keys(inventory, name))


def _rows(inventory: Inventory, tables: CorpusTables) -> Iterator[ManifestRow]:
    index = FileIndex(inventory)
    manifests = list(_manifests(inventory))
    if not manifests:
        raise inventory.lacks(f"manifest of JSON lines with {', '.join(sorted(KEYS))}", "put audiocraft's data.jsonl.gz there")
    for name in manifests:
        split = keyword_in(name, SPLITS)
        for line, entry in read_entries(inventory, name):
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                tables.reject(name, "bad entry", f"{line}: no `path`")
                continue
            files = index.resolve(entry["path"], name.rpartition(b"/")[0]).files
            about = _sidecar(inventory, files[0].raw_path, tables) if len(files) == 1 else {}
            labels = _tags(about.get("genre")) or _tags(about.get("keywords"))
            captions = _texts(about.get("captions")) or _texts(about.get("description"))
            yield ManifestRow(name, line, entry["path"], captions=captions, labels=labels, split=split, bare=True)


def _sidecar(inventory: Inventory, raw_path: bytes, tables: CorpusTables) -> dict[str, Any]:
    """The json beside a recording; empty if there is none or it cannot be read."""
    name = inventory.beside(os.path.splitext(raw_path)[0], b".json")
    if name is None:
        return {}
    try:
        value = read_json(inventory, name)
    except UserError as error:
        tables.reject(name, "unreadable caption", str(error))
        return {}
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text.strip()]


def _tags(value: Any) -> list[str]:
    """Tags in a list or a comma-separated text."""
    texts = value.split(",") if isinstance(value, str) else _texts(value)
    return [text.strip().lower() for text in texts if text.strip()]
