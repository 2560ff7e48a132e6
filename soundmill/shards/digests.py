"""Digests of values, files and tables, equal on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=True)  # made once: `json.dumps` makes one at every call
_BLOCK_BYTES = 1 << 16  # read at once: of more, the pages would come anew from the kernel for every file


def digest(*parts: Any) -> str:
    """Digest of plain values (numbers, text, bytes, lists, mappings), equal on every machine."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else _JSON.encode(part).encode()
        state.update(len(raw).to_bytes(8, "big") + raw)
    return state.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows and types; equal ones may differ where nulls are noted differently, never the other way round."""
    return hashlib.blake2b(stream(table), digest_size=16).hexdigest()


def stream(table: pa.Table) -> pa.Buffer:
    """A table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()


def file_digest(path: Path | str | bytes) -> str:
    """The first 128 bits of a file's SHA-256, for which processors have instructions: BLAKE2b takes twice as long."""
    with open(path, "rb") as file:
        return opened_digest(file)


def opened_digest(file: BinaryIO) -> str:
    """`file_digest` of what is left to read of an opened file."""
    state = hashlib.sha256(usedforsecurity=False)
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while count := file.readinto(buffer):
        state.update(buffer[:count])
    return state.hexdigest()[:32]


def bytes_digest(data: bytes | pa.Buffer) -> str:
    """`file_digest` of a file that holds `data`."""
    return hashlib.sha256(data, usedforsecurity=False).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """`file_digest` of a file; of a folder, a digest of its files' names and contents."""
    if path.is_dir():
        return digest([[name, file_digest(path / name)] for name in sorted(os.listdir(path))])
    return file_digest(path)


def is_whole(path: Path, known: str) -> bool:
    """Whether a file or folder still has the content of this digest. A bit that a disk lost changes neither size nor time."""
    try:
        return content_digest(path) == known
    except OSError:  # the disk says so itself
        return False


def signature(path: Path | str) -> list[Any]:
    """Tells a file from any other of its name, and from itself after somebody wrote to it: size and time; a folder by its files."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return sorted([entry.name, *_size_and_time(entry.stat())] for entry in os.scandir(path))
    return _size_and_time(status)


def _size_and_time(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def seal(values: Any) -> bytes:
    """JSON with the digest of its bytes before it, as `unseal` takes it."""
    text = json.dumps(values).encode()
    return f"{bytes_digest(text)}\n".encode() + text


def unseal(data: bytes) -> Any:
    """What was sealed; ValueError where a byte is another."""
    sealed, _, text = data.partition(b"\n")
    if sealed != bytes_digest(text).encode():
        raise ValueError("has other bytes than were written")
    return json.loads(text)
