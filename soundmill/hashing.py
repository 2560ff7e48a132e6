"""All digests of the project: two hashes, BLAKE2b of plain values and SHA-256 of files, equal on every machine.

Keys of rows, ids and checkpoints on disk hold their values, so these must never change (tests/test_hashing.py). Digests of files
are cached in SQLite: an entry is valid while `stat` shows no change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    import pyarrow as pa


_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=True)  # made once: `json.dumps` makes one at every call
_BATCH = 500  # paths
_SETTLED_NS = 2_000_000_000  # a file that changed less long ago may change again without a new time
_TABLE = "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, value TEXT, checksum TEXT) WITHOUT ROWID"
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


def listed(path: Path) -> list[tuple[str, Path]]:
    """(digest, path) of the files that a list of a directory in DVC's cache names; none for another file, or a damaged list."""
    try:
        entries = json.loads(path.read_bytes()) if path.suffix == ".dir" else []
        return [(entry["md5"], Path(entry["relpath"])) for entry in entries if re.fullmatch("[0-9a-f]{32}", entry["md5"])]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def prompt_of(clip_id: str, captions: Sequence[str]) -> str:
    """The caption that a sound for a clip is asked for: one of several at random, the same everywhere; "" if there is none."""
    return hash_order(captions, "prompt", clip_id)[0] if captions else ""


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


def file_digests(
    paths: Sequence[bytes],
    cache: Path | None = None,
    workers: int = 1,
    linked: bool = False,
    check: Callable[[bytes], Exception | None] = lambda path: None,
    about: tuple[str, Callable[[BinaryIO], str]] | None = None,
) -> Iterator[str | Exception]:
    """`file_digest` of every file, in order; the OSError of one that cannot be read. `check` is called before a file is read; an
    error that it returns takes the place of the digest. `about`: a name, which is part of the cache's key, and a function of an
    open file whose text, if any, follows the digest after a line break.

    With a `cache` (an SQLite file), only files whose `stat` changed are read: size, inode, device, mtime, and ctime, which no
    program can set. A digest is not cached if the file changed in the last two seconds. ctime does not count for `linked` files,
    which are replaced and never written to: every hard link added or removed changes it.
    """
    seen = [_seen(path, linked) for path in paths]
    suffix = b"\0" + about[0].encode() if about else b""
    rows = [(os.path.abspath(path) + suffix, state) for path, (state, _) in zip(paths, seen, strict=True)]

    def read(number: int) -> str | Exception:
        try:
            if problem := check(paths[number]):
                return problem
            if not about:
                return file_digest(paths[number])
            with open(paths[number], "rb") as file:
                value = opened_digest(file)
                return f"{value}\n{text}" if (text := about[1](file)) else value
        except OSError as error:
            return error

    # Hashing releases the GIL.
    values = cached_values(rows, read, cache, workers, lambda number: _is_settled(paths[number], seen[number], linked))
    for path, value in zip(paths, values, strict=True):
        yield (isinstance(value, str) and check(path)) or value


def cached_value(path: bytes, name: str, make: Callable[[], str], cache: Path | None = None) -> str:
    """`make()`, a text that depends on a file; with a `cache`, kept as `name` while `stat` shows no change (see file_digests)."""
    if cache is None:
        return make()
    row, seen = os.path.abspath(path) + b"\0" + name.encode(), _seen(path)
    (text,) = cached_values([(row, seen[0])], lambda _: make(), cache, keep=lambda _: _is_settled(path, seen))
    return text


def cached_values(
    rows: Sequence[tuple[bytes, str]],
    make: Callable[[int], str | Exception],
    cache: Path | None = None,
    workers: int = 1,
    keep: Callable[[int], bool] = lambda number: True,
) -> Iterator[str | Exception]:
    """`make(number)`, a text for each row (name, state), in order, or the exception that it returns.

    With a `cache`, a text is kept under the row's name while the row has the same state, if `keep(number)` says so once it is made.
    """
    with closing(_open_cache(cache)) if cache else nullcontext() as store, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            cached = _look_up(store, [name for name, _ in batch]) if store else {}
            known = [cached[name][1] if name in cached and cached[name][0] == state else None for name, state in batch]
            made = pool.map(make, (number for number, value in enumerate(known, start) if value is None))
            new = []
            for number, value in enumerate(known, start):
                if value is None:
                    value = next(made)
                    if store and isinstance(value, str) and keep(number):
                        new.append((*rows[number], value))
                yield value
            if new:
                with suppress(sqlite3.Error), store:  # a full disk or a damaged cache costs only time
                    store.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [(*row, digest(*row)) for row in new])


def _open_cache(path: Path) -> sqlite3.Connection:
    try:
        store = sqlite3.connect(path, timeout=60)
        store.execute(_TABLE)
        if store.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError
    except sqlite3.Error as error:  # damaged by a crash, or no space left: start with an empty one
        with suppress(OSError):  # a project that is read-only
            if "locked" not in str(error):  # by another process, for longer than the timeout
                path.unlink(missing_ok=True)
        store = sqlite3.connect(":memory:")
        store.execute(_TABLE)
    return store


def _look_up(store: sqlite3.Connection, names: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
    """path → (state, value). Rows with a wrong checksum are left out: SQLite does not notice a lost bit in a value."""
    query = f"SELECT path, state, value, checksum FROM files WHERE path IN ({','.join('?' * len(names))})"
    try:
        rows = store.execute(query, names).fetchall()
        return {path: (state, value) for path, state, value, checksum in rows if checksum == digest(path, state, value)}
    except (sqlite3.Error, TypeError):  # TypeError: damage may turn text into a type that has no digest
        return {}


def _seen(path: bytes, linked: bool = False) -> tuple[str, int]:
    """What distinguishes one state of a file from another, and when it last changed (ns since the epoch); "", 0 without one."""
    try:
        status = os.stat(path)
    except OSError:
        return "", 0
    changed = status.st_mtime_ns if linked else max(status.st_mtime_ns, status.st_ctime_ns)
    times = status.st_mtime_ns if linked else f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_size} {times} {status.st_dev} {status.st_ino}", changed


def _is_settled(path: bytes, seen: tuple[str, int], linked: bool = False) -> bool:
    """Whether a file is as it was seen before it was read, and had not changed shortly before that."""
    return time.time_ns() - seen[1] > _SETTLED_NS and _seen(path, linked) == seen


def files_digest(directory: Path, files: Sequence[Path], cache: Path | None = None, workers: int = 1, linked: bool = False) -> str:
    """Digest of paths below `directory` and contents of files, in this order; OSError of an unreadable one. See `file_digests`."""
    contents = _contents(files, cache, workers, linked)
    return digest([[path.relative_to(directory).as_posix(), value] for path, value in zip(files, contents, strict=True)])


def tree_digest(path: Path, cache: Path | None = None, workers: int = 1) -> str:
    """`file_digest` of a file, or `files_digest` of a directory without `.gitignore`, as `linked`; OSError of an unreadable one."""
    if path.is_file():
        return _contents([path], cache, workers, linked=True)[0]
    names = sorted(
        os.path.relpath(os.path.join(where, name), path)
        for where, _, files in os.walk(path, onerror=_raise)
        for name in files
        if name != ".gitignore"
    )
    return files_digest(path, [path / name for name in names], cache, workers, linked=True)


def is_intact(path: Path, expected: str) -> bool:
    """Whether a file or directory still has this `tree_digest`. A bit that a disk loses changes neither size nor time."""
    try:
        return tree_digest(path) == expected
    except OSError:  # a disk may also report the loss
        return False


def model_digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's file names and contents, which identifies versions in the model registry."""
    state = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path.name != ".gitignore"):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        state.update(f"{path.relative_to(directory)} {content}\n".encode())
    return state.hexdigest()


def _contents(paths: Sequence[Path], cache: Path | None, workers: int, linked: bool) -> list[str]:
    contents = []
    for value in file_digests([os.fsencode(path) for path in paths], cache, workers, linked):
        if isinstance(value, Exception):
            raise value
        contents.append(value)
    return contents


def _raise(error: OSError) -> NoReturn:
    raise error
