"""A cache of file digests between runs, in SQLite, valid while `stat` shows no change."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path

from soundmill.shards import digests

_PATHS_AT_ONCE = 500


def file_digests(
    paths: Sequence[bytes],
    cache: Path | None = None,
    workers: int = 1,
    linked: bool = False,
    check: Callable[[bytes], Exception | None] = lambda path: None,
) -> Iterator[str | Exception]:
    """`file_digest` of every file, in order; of an unreadable one the OSError. `check` is called before a file is read; an error
    that it returns takes the place of the digest.

    With a `cache` (an SQLite file), only files whose `stat` changed are read: size, times (ctime too, which no program
    sets) and inode count. A file that changed in the last two seconds is not trusted to change its time when it changes again.
    Of `linked` files, which are replaced and never written to, the ctime does not count: every link that comes or goes changes it.
    """
    with closing(_open_cache(cache)) if cache else nullcontext() as store, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            some = paths[start : start + _PATHS_AT_ONCE]
            names = [os.path.abspath(path) for path in some]
            known = _look_up(store, names) if store else {}
            values = [_known_digest(path, known.get(name), linked) for path, name in zip(some, names, strict=True)]
            # Hashing releases the GIL.
            values = [
                pool.submit(_fresh_digest, path, linked, check) if value is None else (check and check(path)) or value
                for path, value in zip(some, values, strict=True)
            ]
            news = []
            for name, value in zip(names, values, strict=True):
                if isinstance(value, Future):
                    value, facts = value.result()
                    if facts:
                        news.append((name, facts, value))
                yield value
            if store and news:
                _note(store, news)


def cached_value(path: bytes, name: str, make: Callable[[], str], cache: Path | None = None) -> str:
    """`make()`, a text that depends on a file; with a `cache`, kept as `name` while `stat` tells no change (see file_digests)."""
    if cache is None:
        return make()
    row = os.path.abspath(path) + b"\0" + name.encode()
    with closing(_open_cache(cache)) as store:
        facts, changed = _facts(path)
        known = _look_up(store, [row]).get(row)
        if known and known[0] == facts:
            return known[1]
        text = make()
        if time.time_ns() - changed > 2_000_000_000 and _facts(path)[0] == facts:
            _note(store, [(row, facts, text)])
        return text


def _open_cache(path: Path) -> sqlite3.Connection:
    table = "CREATE TABLE IF NOT EXISTS known (path BLOB PRIMARY KEY, facts TEXT, value TEXT, seal TEXT) WITHOUT ROWID"
    try:
        store = sqlite3.connect(path, timeout=60)
        store.execute(table)
        if store.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError
    except sqlite3.Error:  # torn by a crash, or on a disk without room: do without what it knew
        path.unlink(missing_ok=True)
        store = sqlite3.connect(":memory:")
        store.execute(table)
    return store


def _look_up(store: sqlite3.Connection, names: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
    """path → (facts, value), of rows that are as they were written: a database notices few lost bits."""
    query = f"SELECT path, facts, value, seal FROM known WHERE path IN ({','.join('?' * len(names))})"
    try:
        rows = store.execute(query, names).fetchall()
        return {path: (facts, value) for path, facts, value, sealed in rows if sealed == digests.digest(path, facts, value)}
    except (sqlite3.Error, TypeError):  # TypeError: no value that a digest is made of
        return {}


def _note(store: sqlite3.Connection, rows: Iterable[tuple[bytes, str, str]]) -> None:
    with suppress(sqlite3.Error), store:  # no room for it, or damaged: nothing but time is lost
        store.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", [(*row, digests.digest(*row)) for row in rows])


def _known_digest(path: bytes, known: tuple[str, str] | None, linked: bool) -> str | OSError | None:
    try:
        return known[1] if known and known[0] == _facts(path, linked)[0] else None
    except OSError as error:
        return error


def _fresh_digest(path: bytes, linked: bool, check: Callable[[bytes], Exception | None]) -> tuple[str | Exception, str | None]:
    """Digest of a file, and the facts to know it by if it can be known by them."""
    try:
        if problem := check(path):
            return problem, None
        facts, changed = _facts(path, linked)
        value = digests.file_digest(path)
        return value, facts if time.time_ns() - changed > 2_000_000_000 and _facts(path, linked)[0] == facts else None
    except OSError as error:
        return error, None


def _facts(path: bytes, linked: bool = False) -> tuple[str, int]:
    """What tells one state of a file from another, and when it last changed (ns since the epoch)."""
    status = os.stat(path)
    changed = status.st_mtime_ns if linked else max(status.st_mtime_ns, status.st_ctime_ns)
    times = status.st_mtime_ns if linked else f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_size} {times} {status.st_dev} {status.st_ino}", changed
