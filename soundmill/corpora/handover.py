"""Tables that the survey of `soundmill run DIR` read, handed to the stage `scan`, which reads a corpus itself if it has changed."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from soundmill import disk, hashing, shards
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.tables import CorpusTables
from soundmill.shards.code import room_digest

FILE = Path("survey/tables.json")  # in the scratch directory of `scan`, whose next run removes it


def state(inventory: Inventory) -> list[Any] | None:
    """Everything a corpus's tables depend on except its format; None if it has Parquet tables, whose recordings need digests."""
    if any(name.lower().endswith(b".parquet") for name in inventory.metadata):
        return None
    audio = [[file.path, file.size] for file in inventory.audio]
    metadata = [[os.fsdecode(name), *_facts(path)] for name, path in inventory.metadata.items()]
    return [os.fspath(inventory.root), room_digest(Path(__file__).parent), audio, metadata]


def _facts(path: bytes) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def pack(before: list[Any], tables: CorpusTables) -> bytes:
    """Serialise tables of a corpus, with its `state` before they were read."""
    values = {field.name: getattr(tables, field.name) for field in fields(CorpusTables)}
    recordings = [{key: value for key, value in row.items() if key not in ("raw_path", "digest")} for row in tables.recordings]
    values |= {"recordings": recordings, "named": sorted(tables.named)}
    return hashing.dump_checksummed({"state": before, "tables": values})


def save(packed: bytes, work: Path) -> None:
    """Write them to `work`, the scratch directory of `scan`."""
    (work / FILE).parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(work / FILE, lambda path: path.write_bytes(packed))


def load(work: Path, inventory: Inventory, format: str, num_shards: int) -> CorpusTables | None:
    """The tables in `work`, with digests and shards added; None if there are none, or the format or the corpus has changed."""
    try:
        packed = hashing.load_checksummed((work / FILE).read_bytes())
        if packed["tables"]["format"] != format or packed["state"] != state(inventory):
            return None
    except (OSError, ValueError):
        return None
    tables = CorpusTables(**packed["tables"])
    tables.named = set(tables.named)
    files = {file.path: file for file in inventory.audio}
    for row in tables.recordings:
        file = files[row["path"]]
        row |= {"raw_path": file.raw_path, "digest": file.digest, "shard": shards.shard_of(file.shard_key, num_shards)}
    return tables
