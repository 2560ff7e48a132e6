"""Digests of values, bytes and single files, equal on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=True)  # made once: `json.dumps` makes one at every call
_BLOCK_BYTES = 1 << 16  # a larger buffer is returned to the kernel after every file, and its pages fault in again


def digest(*parts: Any) -> str:
    """Digest of plain values (numbers, text, bytes, lists, mappings): 32 hex digits of BLAKE2b."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else _JSON.encode(part).encode()
        state.update(len(raw).to_bytes(8, "big") + raw)
    return state.hexdigest()


def short_digest(data: bytes) -> str:
    """Digest of bytes for names that people read: 12 hex digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def uint64(data: bytes) -> int:
    """Digest of bytes as a uniform number below 2^64 (BLAKE2b), for seeds and even distribution."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def hash_order(ids: Iterable[str], *salt: Any) -> list[str]:
    """Ids in the order of their digests: shuffled by `salt`; adding ids keeps the order of the others."""
    return sorted(ids, key=lambda name: (digest(*salt, name), name))


def file_digest(path: Path | str | bytes) -> str:
    """Digest of a file: the first 32 hex digits of its SHA-256, twice as fast as BLAKE2b on most processors."""
    with open(path, "rb") as file:
        return opened_digest(file)


def opened_digest(file: BinaryIO) -> str:
    """`file_digest` of the rest of an open file."""
    state = hashlib.sha256(usedforsecurity=False)
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while count := file.readinto(buffer):
        state.update(buffer[:count])
    return state.hexdigest()[:32]


def bytes_digest(data: bytes | pa.Buffer) -> str:
    """`file_digest` of a file with the content `data`."""
    return hashlib.sha256(data, usedforsecurity=False).hexdigest()[:32]


def signature(path: Path | str) -> list[Any]:
    """Size and modification time of a file, or of every file in a directory; changes when a file is written."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return sorted([entry.name, *_size_and_time(entry.stat())] for entry in os.scandir(path))
    return _size_and_time(status)


def _size_and_time(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def dump_checksummed(values: Any) -> bytes:
    """JSON after a line with the digest of its bytes."""
    text = json.dumps(values).encode()
    return f"{bytes_digest(text)}\n".encode() + text


def load_checksummed(data: bytes) -> Any:
    """The values of `dump_checksummed`; ValueError if any byte has changed."""
    checksum, _, text = data.partition(b"\n")
    if checksum != bytes_digest(text).encode():
        raise ValueError("the content does not match its checksum")
    return json.loads(text)
