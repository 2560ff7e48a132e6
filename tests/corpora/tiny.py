"""Tiny corpora on disk: real sounds under the names that a test wants, and whatever lies beside them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from soundmill.corpora import inventory, registry, terms
from soundmill.corpora.tables import CorpusTables

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` embeds recordings


def sound(number: int, seconds: float = 0.25, rate: int = 8000, kind: str = "WAV") -> bytes:
    """A file with a tone of its own frequency for every number."""
    out = io.BytesIO()
    tone = 0.5 * np.sin(2 * np.pi * (200 + 10 * number) * np.arange(int(seconds * rate)) / rate)
    soundfile.write(out, tone, rate, format=kind)
    return out.getvalue()


def put(root: Path, *recordings: str, **options: Any) -> Path:
    """Write recordings under these names, each with a sound of its own."""
    for number, name in enumerate(recordings):
        write(root, name, sound(number, kind=Path(name).suffix[1:].upper(), **options))
    return root


def write(root: Path, name: str, content: bytes | str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_table(path: Path, cells: list[Any], rows_per_group: int = 4, column: str = "audio", **columns: Any) -> None:
    """A Parquet table with recordings inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {column: pa.array(cells, AUDIO), **{name: pa.array(values) for name, values in columns.items()}}
    pq.write_table(pa.table(arrays), path, row_group_size=rows_per_group)


def cell(number: int) -> dict[str, Any]:
    return {"bytes": sound(number), "path": f"sound {number}.wav"}


def scan(root: Path, name: str = "auto", num_shards: int = 4) -> CorpusTables:
    """What the adapter makes of the corpus; without a name, the one that is detected."""
    return registry.read(name, inventory.list_files(root), num_shards)


def filled(files: inventory.Inventory, name: str = "folder") -> CorpusTables:
    """What the adapter makes of files of which stock is taken, with the terms of each recording."""
    tables = registry.read(name, files, 1)
    terms.fill(tables, files)
    return tables


def detected(root: Path) -> str:
    return registry.detect(inventory.list_files(root, digests=False))


def recordings(tables: CorpusTables, *keys: str) -> dict[str, Any]:
    """Values of the recordings by path."""
    return {row["path"]: tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]] for row in tables.recordings}


def captions(tables: CorpusTables) -> dict[str | None, list[str]]:
    """Captions by the path of their recording; `None` are those without one."""
    paths = {row["recording_id"]: row["path"] for row in tables.recordings}
    result: dict[str | None, list[str]] = {}
    for row in tables.captions:
        result.setdefault(paths.get(row["recording_id"]), []).append(row["caption"])
    return result
