"""Tables that the survey of `soundmill run DIR` read, handed to the stage `scan`, which reads a corpus itself if it has changed."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from soundmill import disk, hashing, shards
from soundmill.corpora.inventory import Inventory
from soundmill.corpora.tables import CorpusTables
from soundmill.shards.code import room_digest

FILE = Path("survey/tables.json")  # in the scratch directory of `scan`, whose next run removes it


def state(inventory: Inventory) -> str | None:
    """Digest of everything that a corpus's tables depend on, except its format; taken before the tables are read.

    None if it has Parquet tables, whose recordings need digests.
    """
    if any(name.lower().endswith(b".parquet") for name in inventory.metadata):
        return None
    audio = [[file.path, file.size] for file in inventory.audio]
    metadata = [[os.fsdecode(name), *inventory.facts(name)] for name in inventory.metadata]
    remarks = list(inventory.remarks.values())
    return hashing.digest(os.fsdecode(bytes(inventory.root)), room_digest(Path(__file__).parent), audio, metadata, remarks)


def pack(before: str, tables: CorpusTables) -> bytes:
    """Serialise the tables of a corpus, with its `state` before they were read."""
    values = {field.name: getattr(tables, field.name) for field in fields(CorpusTables)}
    recordings = [{key: value for key, value in row.items() if key not in ("raw_path", "digest")} for row in tables.recordings]
    values |= {"recordings": recordings, "named": sorted(tables.named)}
    return hashing.dump_checksummed({"state": before, "tables": values})


def save(packed: bytes, work: Path) -> None:
    """Write packed tables to `work`, the scratch directory of `scan`."""
    (work / FILE).parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(work / FILE, lambda path: path.write_bytes(packed))


def load(work: Path, inventory: Inventory, format: str, num_shards: int) -> CorpusTables | None:
    """The tables in `work`, with digests and shards added; None if there are none, or the format or the corpus has changed."""
    try:
        packed = hashing.load_checksummed((work / FILE).read_bytes())
        if packed["state"] != state(inventory) or packed["tables"]["format"] != format:
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
