"""The one unit of work: a Parquet shard. Read it, write it, map over many: in parallel, resumable, redoing only what changed.

**How work is reused.** A shard is made of items (a recording, a clip, a mix), each known by a key: text that says all it is made
from, beside the stage's parameters and code. A shard function that takes part writes through `ItemWriter`:

    def resample_shard(cuts, root, params, output, previous):
        with shards.ItemWriter(output, manifest.CLIPS, previous) as writer:
            for recording in cuts:
                key = shards.digest(recording)
                if not writer.copy(key):                # its rows and its part of the report, as they were made the last time
                    with writer.item(key) as report:
                        writer.write(row)               # any number of times
                        report.count("clips")
        return writer.report

`previous` is the shard of the same name that was finished last under the same parameters and code, or None. The file has the bytes
that it would have without one. `key in writer` tells beforehand what will be copied, where items are better made in batches.

A whole shard is known by its job's key in the same way: where the last one has it, the function is not called at all.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import logging
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soundmill import forking, lifetime
from soundmill.errors import UserError

ROWS_PER_GROUP = 64  # of rows that carry sound: what a reader must hold to reach one clip
TABLE_ROWS_PER_GROUP = 8_192  # of plain rows: what a writer holds at once


_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=True)  # made once: `json.dumps` makes one at every call


def shard_of(key: str | bytes, count: int) -> int:
    """The shard of a recording: a stable hash, so adding recordings moves none of the others."""
    raw = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big") % count


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def digest(*parts: Any) -> str:
    """Digest of plain values (numbers, text, bytes, lists, mappings), equal on every machine."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else _JSON.encode(part).encode()
        state.update(len(raw).to_bytes(8, "big") + raw)
    return state.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows and types; equal ones may differ where nulls are noted differently, never the other way round."""
    return hashlib.blake2b(_streamed(table), digest_size=16).hexdigest()


def _streamed(table: pa.Table) -> pa.Buffer:
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
    buffer = memoryview(bytearray(_DIGEST_BYTES))
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


def seal(values: Any) -> bytes:
    """JSON with the digest of its bytes before it, as `unseal` takes it."""
    text = json.dumps(values).encode()
    return f"{bytes_digest(text)}\n".encode() + text


def unseal(data: bytes) -> Any:
    """What was sealed; ValueError where a byte is another."""
    told, _, text = data.partition(b"\n")
    if told != bytes_digest(text).encode():
        raise ValueError("has other bytes than were written")
    return json.loads(text)


_DIGEST_BYTES = 1 << 16  # read at once: of more, the pages would come anew from the kernel for every file


def file_digests(
    paths: Sequence[bytes],
    cache: Path | None = None,
    workers: int = 1,
    linked: bool = False,
    check: Callable[[bytes], Exception | None] = lambda path: None,
) -> Iterator[str | Exception]:
    """`file_digest` of every file, in order; of an unreadable one the OSError. `check` is asked before a file is read, and what it
    finds wrong stands for the digest.

    With a `cache` (an SQLite file), only files that `stat` tells changed are read: size, times (ctime too, which no program
    sets) and inode count. A file that changed in the last two seconds is not trusted to change its time when it changes again.
    Of `linked` files, which are replaced and never written to, the ctime does not count: every link that comes or goes changes it.
    """
    with closing(_open_cache(cache)) if cache else nullcontext() as store, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            some = paths[start : start + _PATHS_AT_ONCE]
            names = [os.path.abspath(path) for path in some]
            known = _look_up(store, names) if store else {}
            found = [_known_digest(path, known.get(name), linked) for path, name in zip(some, names, strict=True)]
            # Hashing releases the GIL.
            found = [
                pool.submit(_fresh_digest, path, linked, check) if value is None else (check and check(path)) or value
                for path, value in zip(some, found, strict=True)
            ]
            news = []
            for name, value in zip(names, found, strict=True):
                if isinstance(value, Future):
                    value, facts = value.result()
                    if facts:
                        news.append((name, facts, value))
                yield value
            if store and news:
                _note(store, news)


def told_of_file(path: bytes, what: str, make: Callable[[], str], cache: Path | None = None) -> str:
    """What `make()` tells of a file; with a `cache`, kept there as `what` while `stat` tells no change (see file_digests)."""
    if cache is None:
        return make()
    name = os.path.abspath(path) + b"\0" + what.encode()
    with closing(_open_cache(cache)) as store:
        facts, changed = _facts(path)
        known = _look_up(store, [name]).get(name)
        if known and known[0] == facts:
            return known[1]
        text = make()
        if time.time_ns() - changed > 2_000_000_000 and _facts(path)[0] == facts:
            _note(store, [(name, facts, text)])
        return text


_PATHS_AT_ONCE = 500


def _open_cache(path: Path) -> sqlite3.Connection:
    table = "CREATE TABLE IF NOT EXISTS told (path BLOB PRIMARY KEY, facts TEXT, told TEXT, seal TEXT) WITHOUT ROWID"
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
    """path → (facts, what is told of the file), of rows that are as they were written: a database notices few lost bits."""
    query = f"SELECT path, facts, told, seal FROM told WHERE path IN ({','.join('?' * len(names))})"
    try:
        rows = store.execute(query, names).fetchall()
        return {path: (facts, told) for path, facts, told, sealed in rows if sealed == digest(path, facts, told)}
    except (sqlite3.Error, TypeError):  # TypeError: no value that a digest is made of
        return {}


def _note(store: sqlite3.Connection, rows: Iterable[tuple[bytes, str, str]]) -> None:
    with suppress(sqlite3.Error), store:  # no room for it, or damaged: nothing but time is lost
        store.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?)", [(*row, digest(*row)) for row in rows])


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
        value = file_digest(path)
        return value, facts if time.time_ns() - changed > 2_000_000_000 and _facts(path, linked)[0] == facts else None
    except OSError as error:
        return error, None


def _facts(path: bytes, linked: bool = False) -> tuple[str, int]:
    """What tells one state of a file from another, and when it last changed (ns since the epoch)."""
    status = os.stat(path)
    changed = status.st_mtime_ns if linked else max(status.st_mtime_ns, status.st_ctime_ns)
    times = status.st_mtime_ns if linked else f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_size} {times} {status.st_dev} {status.st_ino}", changed


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files_below(directory: Path) -> None:
    """Flush the file system that holds `directory`: of thousands of small files, one by one takes minutes."""
    import ctypes

    handle = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    finally:
        os.close(handle)


def start_sync(path: Path) -> None:
    """Let the kernel begin to write a file to the disk, and do not wait: whoever flushes all later finds less left."""
    import ctypes

    SYNC_FILE_RANGE_WRITE = 2
    start = end = ctypes.c_int64(0)  # the whole file
    with path.open("rb") as file:
        ctypes.CDLL(None).sync_file_range(file.fileno(), start, end, SYNC_FILE_RANGE_WRITE)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write(temporary)` make a file, then put it in place: readers see the old file or the new one, never a part.

    What is no file (`/dev/stdout`, a FIFO) is written to as it is.
    """
    if is_device(path):
        return write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # ranks of a training may write the same file at once
    try:
        result = write(temporary)
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # who writes to an open file is told no name
        raise
    sync_directory(path.parent)
    return result


def is_device(path: Path) -> bool:
    """Whether a path to write to is something else than a file, or one of the system's names for what is open already."""
    open_already = re.fullmatch(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+", os.path.abspath(path))
    return open_already is not None or (path.exists() and not (path.is_file() or path.is_dir()))


# FLAC cannot be made smaller. Fingerprints can, by a third; they are all read in every run, in half the time if they are not.
_AS_THEY_ARE = {"audio.bytes", "fingerprint", "keys", "probes"}


def _column_options(schema: pa.Schema) -> dict[str, Any]:
    """How columns are stored: bytes never as a dictionary, and those of _AS_THEY_ARE not compressed."""
    dictionary, compression = [], {}

    def add(path: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for child in kind:
                add(f"{path}.{child.name}", child.type)
        elif pa.types.is_list(kind):
            add(f"{path}.list.element", kind.value_type)
        else:
            compression[path] = "none" if path in _AS_THEY_ARE else "zstd"
            if not pa.types.is_binary(kind):
                dictionary.append(path)

    for column in schema:
        add(column.name, column.type)
    level = {path: 1 for path, name in compression.items() if name == "zstd"}  # 3: half as fast to write, for 1 % less of a log-mel
    return {"compression": compression, "compression_level": level, "use_dictionary": dictionary}


class ShardWriter:
    """Write rows of one schema to one Parquet file, in bounded memory; appears whole or not at all.

    The bytes depend on the rows alone: fixed compression, row groups and no timestamps. Nobody waits for the disk here: what a
    stage wrote is flushed at once when it is published.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int | None = None):
        has_sound = any("audio" in column.name or pa.types.is_binary(column.type) for column in schema if column.name != "raw_path")
        self.path, self.schema = path, schema
        self.rows_per_group = rows_per_group or (ROWS_PER_GROUP if has_sound else TABLE_ROWS_PER_GROUP)
        self.num_rows = 0
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []  # before the rows
        self._pending = 0  # rows in both
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.partial")
        self._writer = pq.ParquetWriter(self._temporary, schema, **_column_options(schema))

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._count(1)

    def write_table(self, table: pa.Table) -> None:
        """Write many rows at once; the file is the same as if they had come one by one."""
        table = table.select(self.schema.names).cast(self.schema)
        while table.num_rows:
            part = table.slice(0, self.rows_per_group - self._pending)
            self._gather()
            self._tables.append(part)
            self._count(part.num_rows)
            table = table.slice(part.num_rows)

    def _count(self, rows: int) -> None:
        self.num_rows += rows
        self._pending += rows
        if self._pending == self.rows_per_group:
            self._flush()

    def _gather(self) -> None:
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, self.schema))
            self._rows = []

    def _flush(self) -> None:
        self._gather()
        if self._tables:
            # One chunk: Parquet's pages would end where chunks do, and with them the bytes depend on how the rows came.
            self._writer.write_table(pa.concat_tables(self._tables).combine_chunks(), row_group_size=self.rows_per_group)
            self._tables, self._pending = [], 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def write_rows(rows: Iterable[dict[str, Any]], path: Path, schema: pa.Schema) -> int:
    """Write rows to one shard or table; returns their number."""
    with ShardWriter(path, schema) as writer:
        for row in rows:
            writer.write(row)
    return writer.num_rows


def shard_paths(directory: Path) -> list[Path]:
    """The shards below a directory in stable order; none is an error."""
    paths = sorted(directory.rglob("*.parquet"))
    if not paths:
        raise UserError(f"{directory}: no shards (*.parquet) here; run the stage that makes them: `dvc repro`")
    return paths


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """A shard or table to read from. Arrow's reading ahead, made for object storage, takes as long as all else of a small file."""
    return pq.ParquetFile(path, pre_buffer=False)


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a small table whole, checking that its columns are the schema's."""
    with open_parquet(path) as file:  # `pq.read_table` takes twice as long: of a small table, most of it for finding out what it is
        _check(path, file.schema_arrow, schema)
        return file.read(columns, use_threads=False)  # of a small one, waking threads takes as long as reading


def read_tables(paths: Iterable[Path], schema: pa.Schema, columns: list[str] | None, rows_at_once: int) -> Iterator[list[pa.Table]]:
    """`read_table` of every path, in order, as many together as have some `rows_at_once`, for whoever takes long over each."""
    tables: list[pa.Table] = []
    rows = 0
    for path in paths:
        tables.append(read_table(path, schema, columns))
        rows += tables[-1].num_rows
        if rows >= rows_at_once:
            yield tables
            tables, rows = [], 0
    if tables:
        yield tables


def read_rows(
    path: Path, schema: pa.Schema, columns: list[str] | None = None, wanted: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of one shard as mappings, a row group at a time, so memory stays bounded.

    `wanted`: the numbers of the rows to read, where not all are; row groups that have none of them are not touched.
    """
    chosen = None if wanted is None else sorted(set(wanted))
    with open_parquet(path) as file:
        _check(path, file.schema_arrow, schema)
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = None if chosen is None else [row - first for row in chosen if first <= row < first + size]
            if inside is None or inside:
                table = file.read_row_group(group, columns=columns, use_threads=False)
                yield from (table if inside is None else table.take(inside)).to_pylist()
            first += size


def by_shard(table: pa.Table) -> dict[int, pa.Table]:
    """The rows of every shard (column `shard`), in their order, the shards in theirs; each a table of its own, light to send."""
    numbers = table["shard"].to_numpy()
    if (np.diff(numbers) < 0).any():
        table = table.take(np.argsort(numbers, kind="stable"))
        numbers = table["shard"].to_numpy()
    table = table.combine_chunks()
    found, starts = np.unique(numbers, return_index=True)
    # Copied: a slice is sent with its whole table. Not by `take`: that imports all that Arrow can compute, in 50 ms.
    parts = (table.slice(start, stop - start) for start, stop in itertools.pairwise([*starts, len(numbers)]))
    return {shard: pa.ipc.open_stream(_streamed(part)).read_all() for shard, part in zip(found.tolist(), parts, strict=True)}


def _check(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    for column in wanted:
        if column.name not in found.names or found.field(column.name).type != column.type:
            have = found.field(column.name).type if column.name in found.names else "no such column"
            raise UserError(f"{path}: column {column.name!r} should be {column.type}, found {have}; remake it with `dvc repro`")


@dataclass
class Report:
    """What the work on one shard says of itself: counts to be added up, rejected material, anything small in `details`."""

    counts: dict[str, int] = field(default_factory=dict)
    quarantine: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    details: list[Any] = field(default_factory=list)  # JSON values
    items: list[Any] = field(default_factory=list)  # JSON values: what the next run needs to know to reuse this shard; not added up
    damaged: list[str] = field(default_factory=list, compare=False)  # kept shards, by name, that were not as they had been written

    def count(self, key: str, by: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + by

    def reject(self, path: str, reason: str, detail: str = "") -> None:
        self.quarantine.append({"path": path, "reason": reason, "detail": detail})

    def add(self, other: Report) -> None:
        for key, value in other.counts.items():
            self.count(key, value)
        self.quarantine.extend(other.quarantine)
        self.details.extend(other.details)


class ItemWriter:
    """Write a shard item by item; what `previous`, the shard's last state, has of the same key is copied. See this module's top.

    An item that was rejected is not reused but looked at again: its file may have been unreadable for a moment only.
    Where nothing changed at all, `path` becomes a link to `previous`.
    """

    def __init__(self, path: Path, schema: pa.Schema, previous: Path | None = None):
        self.report = Report()
        self._path, self._previous = path, previous
        self._known = {key: place for key, *place in read_items(previous)} if previous else {}
        self._writer = ShardWriter(path, schema)
        self._file = open_parquet(previous) if previous else None
        self._group: tuple[int, pa.Table] | None = None  # the last one read
        self._start = self._stop = 0  # rows of `previous` that come next, not yet copied

    def __contains__(self, key: str) -> bool:
        return key in self._known

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows + self._stop - self._start

    def copy(self, key: str) -> bool:
        """Take over an item's rows and report; False where there is nothing to take."""
        if key not in self._known:
            return False
        start, count, counts, details = self._known[key]
        first = self.num_rows
        if count and start != self._stop:
            self._catch_up()
            self._start = self._stop = start
        self._stop += count
        self._add(key, first, Report(counts, details=details))
        return True

    @contextmanager
    def item(self, key: str) -> Iterator[Report]:
        """Make an item: `write` its rows inside; what happens is told to the report that this gives."""
        self._catch_up()
        first, report = self.num_rows, Report()
        yield report
        self._add(key, first, report)

    def write(self, row: dict[str, Any]) -> None:
        self._writer.write(row)

    def _add(self, key: str, first: int, report: Report) -> None:
        self.report.add(report)
        if not report.quarantine:
            self.report.items.append([key, first, self.num_rows - first, report.counts, report.details])

    def _catch_up(self) -> None:
        """Copy the rows that wait to be."""
        first = 0
        for group in range(self._file.num_row_groups if self._start < self._stop else 0):
            size = self._file.metadata.row_group(group).num_rows
            start, stop = max(self._start, first), min(self._stop, first + size)
            if start < stop:
                if self._group is None or self._group[0] != group:
                    self._group = group, self._file.read_row_group(group, use_threads=False)
                self._writer.write_table(self._group[1].slice(start - first, stop - start))
            first += size
        self._start = self._stop

    def __enter__(self) -> ItemWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        whole = (
            self._file is not None and (self._writer.num_rows, self._start) == (0, 0) and self._stop == self._file.metadata.num_rows
        )
        if kind is None and not whole:
            self._catch_up()
        if self._file is not None:
            self._file.close()
        self._writer.__exit__(InterruptedError if kind is None and whole else kind, *rest)
        if kind is None and whole:
            os.link(self._previous, self._path)


def write_report(shard: Path, report: Report, key: str | None = None) -> None:
    """Put what is said of a finished shard, and what it is known by, beside it."""
    told = _Told(key, signature(shard), content_digest(shard), report)
    report_path(shard).write_bytes(seal(vars(told) | {"report": vars(report)}))


def read_items(shard: Path) -> list[Any]:
    """The items that a finished shard's report names; of `ItemWriter`: [key, first row, number of rows, counts, details]."""
    return unseal(report_path(shard).read_bytes())["report"]["items"]


def report_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.report.json")


@dataclass(frozen=True)
class Job:
    """One shard's work: `function(*args, output)` writes the file (or folder) `output` and returns a Report.

    `name` is the output's file name, `weight` how much work it is, in what the progress bar counts (items, bytes). `key` tells all
    that the shard is made from, beside the stage's parameters and code: content by digest or `signature`, never by name alone.
    """

    name: str
    args: tuple[Any, ...]
    weight: int = 1
    key: str | None = None


def map_shards(
    function: Callable[..., Report],
    jobs: list[Job],
    directory: Path,
    *,
    workers: int,
    pool: ProcessPoolExecutor | None = None,
    cluster: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Run `function(*job.args, output)` for every job, making `directory / job.name`; returns the summed Report.

    The work is done by `workers` processes here, which are those of `pool` where there is one, or by the workers of the Dask
    `cluster` at that address, which must see the same files. A finished shard stays in `directory` with its report beside it: a
    killed run resumes with what is missing. Reports are added in the order of `jobs`, whatever order they end in. The function must
    be importable (top level).

    The shards of jobs with keys are for the next run too: one that lies there under the same key stays as it is, and where the key
    is another the function is called with `previous`, what lies there, or None. Whoever gives the directory answers for it that
    parameters and code are the same. A shard that something was rejected from is made again in any case (see ItemWriter).

    What lies there is read and held to its digest before it is used; what is damaged is made from nothing, and named in the report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _forget_attempts(directory)
    total = Report()
    lying = _lying(jobs, directory, workers, total)
    reports = {job.name: lying[job.name] for job in jobs if job.name in lying and _is_finished(job, lying[job.name])}
    todo = [job for job in jobs if job.name not in reports]
    progress(sum(job.weight for job in jobs) - sum(job.weight for job in todo))
    todo.sort(key=lambda job: -job.weight)  # what takes longest first, so that workers end at about the same time
    if todo and cluster:
        _run_on_cluster(function, todo, directory, cluster, progress)
    elif todo:
        _run_here(function, todo, directory, workers, pool, progress)
    _forget_attempts(directory)
    _forget(directory, jobs)
    for job in todo:
        reports[job.name] = _read_report(directory / job.name)
    _write_reports(directory, jobs, reports)
    for job in jobs:
        total.add(reports[job.name].report)
    return total


_REPORTS = "reports.json"  # what all reports say but for their items, which only who makes the shard again wants to know


@dataclass(frozen=True)
class _Told:
    """What is kept of a finished shard: the key of its job, signature and digest of the file, and what `report` says of it."""

    key: str | None
    facts: Any
    digest: str
    report: Report


def _read_reports(directory: Path) -> dict[str, _Told]:
    """Of the last run, of every shard. To open thousands of files takes longer than what is in them."""
    try:
        found = unseal((directory / _REPORTS).read_bytes())
        return {name: _Told(key, facts, value, Report(**report)) for name, (key, facts, value, report) in found.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _write_reports(directory: Path, jobs: list[Job], reports: dict[str, _Told]) -> None:
    found = {
        job.name: [told.key, told.facts, told.digest, {name: value for name, value in vars(told.report).items() if name != "items"}]
        for job in jobs
        if job.key and not (told := reports[job.name]).report.quarantine
    }
    if found:
        write_atomically(directory / _REPORTS, lambda path: path.write_bytes(seal(found)))


_ATTEMPT = ".attempt-"


def _forget_attempts(directory: Path) -> None:
    """Remove what killed workers left."""
    for attempt in directory.glob(f"*{_ATTEMPT}*"):
        shutil.rmtree(attempt, ignore_errors=True)


def _forget(directory: Path, jobs: list[Job]) -> None:
    """Drop the shards that were kept for jobs which there are no more."""
    known = {_REPORTS} | {job.name for job in jobs} | {report_path(Path(job.name)).name for job in jobs}
    for name in os.listdir(directory) if jobs and jobs[0].key else ():
        if name not in known:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lying(jobs: list[Job], directory: Path, workers: int, total: Report) -> dict[str, _Told]:
    """What lies there for jobs and is as it was written; what is damaged is dropped, and named in `total`."""
    known = _read_reports(directory)
    found: dict[str, _Told] = {}
    for job in jobs:
        told = known.get(job.name)
        try:
            now = signature(directory / job.name)
            if told is None or (told.key, told.facts) != (job.key, now):
                told = _read_report(directory / job.name)
            if told.facts == now:
                found[job.name] = told
        except OSError:
            continue
        except (ValueError, KeyError, TypeError):  # a report that tells nothing
            total.damaged.append(job.name)
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the GIL
        whole = pool.map(lambda name: is_whole(directory / name, found[name].digest), found)
        torn = [name for name, right in zip(found, whole, strict=True) if not right]
    for name in torn:
        del found[name]
        distrust(directory / name)
        report_path(directory / name).unlink(missing_ok=True)  # so nothing is taken from it
    total.damaged.extend(torn)
    return found


def say_damaged(where: str | Path, names: Sequence[str]) -> None:
    """Tell the person of kept files that are made anew, if any."""
    if names:
        listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        print(f"{where}: {len(names)} damaged, so made anew ({listed}); look after the disk", flush=True)


def distrust(path: Path) -> None:
    """Touch a damaged file or the files of a folder, and let them be written to.

    They may be links to DVC's cache, which would hand them out again: it trusts what nobody may write to, and else size and time.
    """
    for file in path.iterdir() if path.is_dir() else [path]:
        with suppress(OSError):
            file.chmod(0o644)
            os.utime(file)


def _is_finished(job: Job, told: _Told) -> bool:
    return told.key == job.key and not (job.key and told.report.quarantine)


def _read_report(shard: Path) -> _Told:
    values = unseal(report_path(shard).read_bytes())
    return _Told(values["key"], values["facts"], values["digest"], Report(**values["report"]))


def _run_job(function: Callable[..., Report], job: Job, directory: Path) -> None:
    options = {"previous": _previous(directory / job.name)} if job.key else {}
    # In a folder of its own: two attempts at one shard (a worker that was thought dead) never write to one file.
    attempt = Path(tempfile.mkdtemp(prefix=job.name + _ATTEMPT, dir=directory))
    try:
        output, final = attempt / job.name, directory / job.name
        report = function(*job.args, output, **options)
        write_report(output, report, job.key)
        # The shard first: a report that is not of the file beside it is taken for none, after a power cut too.
        _put(output, final)
        os.replace(report_path(output), report_path(final))
        if final.is_file():
            start_sync(final)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def signature(path: Path | str) -> list[Any]:
    """Tells a file from any other of its name, and from itself after somebody wrote to it: size and time; a folder by its files."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return sorted([entry.name, *_size_and_time(entry.stat())] for entry in os.scandir(path))
    return _size_and_time(status)


def _size_and_time(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def _previous(shard: Path) -> Path | None:
    """The shard of the last run, if it is the one that its report speaks of."""
    try:
        return shard if _read_report(shard).facts == signature(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put(source: Path, target: Path) -> None:
    """Move a file or folder into place, over what stands there."""
    if source.is_dir() and target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)
    if source.is_file():  # both were names of one file, as of a shard in which nothing changed: then it does nothing
        source.unlink()


def _run_here(
    function: Callable[..., Report],
    jobs: list[Job],
    directory: Path,
    workers: int,
    pool: ProcessPoolExecutor | None,
    progress: Callable[[int], None],
) -> None:
    # A pool even for one worker: libraries give other last bits on other thread counts, so every worker has one thread.
    queue = iter(jobs)
    running: dict[Future[None], Job] = {}
    try:
        with nullcontext(pool) if pool else _pool_of_server(function, min(workers, len(jobs))) as pool:
            try:
                for job in queue:
                    running[pool.submit(_run_job, function, job, directory)] = job
                    if len(running) >= 2 * workers:
                        _collect(running, progress)
                while running:
                    _collect(running, progress)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        names = ", ".join(job.name for job in running.values()) or "none"
        raise UserError(
            f"a worker process died (out of memory, or killed) while working on one of: {names}. Finished shards are kept: "
            "run it again, with a smaller `execution.workers` if memory was short"
        ) from None


def fork_pool(workers: int) -> ProcessPoolExecutor | None:
    """Workers for `map_shards`, forked from this process now; None for 0, and where it may have threads (see forking.py)."""
    return forking.fork_workers(workers, _start_worker)


def _pool_of_server(function: Callable[..., Report], workers: int) -> ProcessPoolExecutor:
    environment = {**os.environ, **forking.ONE_THREAD}  # the server's is of when it started
    return forking.workers_of_server(workers, [getattr(function, "__module__", __name__)], _start_worker, environment)


def _start_worker(environment: dict[str, str] | None = None) -> None:
    if environment:
        os.environ.clear()
        os.environ.update(environment)
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # the mapping process says that it was interrupted
    threading.Thread(target=_die_with_mapper, daemon=True).start()
    lifetime.die_with_parent(os.getppid())  # at once, whatever work holds that thread up; it knows if they died before this line
    forgo_pandas()


def _die_with_mapper() -> None:
    """End this worker when the process that maps dies, however it dies: no orphan may write beside a rerun."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def forgo_pandas() -> None:
    """Let pyarrow not import pandas (half a second) at the first list it is given, to see whether it is one of its series.

    It asks once. For processes in which none is; where pandas is needed (`to_pandas`) it is imported then.
    """
    sys.meta_path.insert(0, _NoPandas)
    pa.array([0])
    sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """Finds nothing else, and of pandas that it is not there."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def _collect(running: dict[Any, Job], progress: Callable[[int], None]) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        progress(running.pop(future).weight)


CONNECT_SECONDS = 5.0
WORKERLESS_SECONDS = 30.0  # a cluster may be starting, or replacing what died
DEATHS = 3  # workers that died of one shard: no fourth


@dataclass(frozen=True)
class _Site:
    """What a cluster's worker must have in common with the process that sent it work."""

    start: Path  # relative paths start here
    token: str  # name of a file beside the shards: who sees it sees the same disk
    facts: dict[str, str]


def _run_on_cluster(
    function: Callable[..., Report],
    jobs: list[Job],
    directory: Path,
    address: str,
    progress: Callable[[int], None],
) -> None:
    import asyncio

    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said below, without tracebacks
    start = f"start some where this directory and this environment are: `dask worker {address} --nworkers N --nthreads 1`"
    try:
        asyncio.run(_reach(address))  # a Client that finds nobody goes on trying behind our back
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    # MemoryError: another server's greeting, taken for a length. TypeError: tls without certificates.
    except (OSError, ValueError, MemoryError, TypeError) as error:
        raise UserError(
            f"execution.dask: no Dask scheduler answers at {address} ({error}); start one (`dask scheduler`), or set "
            "execution.dask to null, and DASK_SCHEDULER_ADDRESS to nothing, to work with processes of this machine"
        ) from None
    directory = directory.resolve()
    with client, client.as_current(), tempfile.NamedTemporaryFile(dir=directory, prefix=".site-") as token:
        site = _Site(Path.cwd(), os.path.basename(token.name), software(function))
        queue, running = jobs[::-1], {}
        last_seen = time.monotonic()  # workers
        try:
            while queue or running:
                if client.status != "running":
                    raise distributed.CancelledError
                slots = sum(client.nthreads().values())
                if slots:
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > WORKERLESS_SECONDS:
                    raise UserError(f"execution.dask: the scheduler at {address} has no workers; {start}")
                while queue and len(running) < 2 * slots:
                    job = queue.pop()
                    key = f"{job.name}-{uuid.uuid4().hex}"
                    future = client.submit(_run_on_worker, function, job, directory, site, key=key, pure=False)
                    running[key] = future, job
                with suppress(TimeoutError):
                    futures = [future for future, _ in running.values()]
                    distributed.wait(futures, timeout=1.0, return_when="FIRST_COMPLETED") if futures else time.sleep(0.5)
                for key in [key for key, (future, _) in running.items() if future.done()]:
                    future, job = running.pop(key)
                    # The result itself, None, is not fetched: it may have died with its worker, when the shard is there.
                    if future.status == "finished":
                        progress(job.weight)
                    elif future.status == "lost" or isinstance(future.exception(), distributed.KilledWorker):
                        queue.append(job)  # it stood in line at workers that others killed; of its own deaths there is a count
                    else:
                        raise future.exception()
        except (ImportError, RuntimeError) as error:
            absent = error if isinstance(error, ImportError) else error.__cause__  # the scheduler unpacks tasks too
            if not isinstance(absent, ImportError):
                raise
            raise UserError(
                f"execution.dask: the scheduler or a worker at {address} cannot import {absent.name}; start the scheduler in this "
                f"environment (`dask scheduler`), and the workers: `dask worker {address} --nworkers N --nthreads 1`"
            ) from None
        except (distributed.CancelledError, distributed.comm.CommClosedError):
            raise UserError(
                f"execution.dask: the scheduler at {address} is gone; finished shards are kept: start it, and run again"
            ) from None
        finally:
            if client.status == "running":
                client.cancel([future for future, _ in running.values()])


async def _reach(address: str) -> None:
    import distributed

    security = distributed.Security().get_connection_args("client")
    comm = await distributed.comm.connect(address, timeout=CONNECT_SECONDS, **security)
    await comm.close()


def _run_on_worker(function: Callable[..., Report], job: Job, directory: Path, site: _Site) -> None:
    import distributed

    worker = distributed.get_worker()
    if worker.state.nthreads != 1 or any(os.environ.get(name) != "1" for name in forking.ONE_THREAD):
        raise UserError(
            f"worker {worker.address}: has several threads, and with them results have other last bits; start it by "
            f"`dask worker` with --nthreads 1 (and with its nanny, which sets {', '.join(forking.ONE_THREAD)} to 1)"
        )
    if not (directory / site.token).exists():
        raise UserError(f"worker {worker.address}: does not see {directory} as it is here; workers need a file system in common")
    found = software(function)
    differing = [name for name in site.facts if name in found and found[name] != site.facts[name]]
    if differing:
        names = ", ".join(f"{name} {found[name]}, not {site.facts[name]}" for name in differing[:5])
        raise UserError(f"worker {worker.address}: has other software ({names}); restart it in this checkout's environment")
    if sum(name.startswith(job.name + _ATTEMPT) for name in os.listdir(directory)) >= DEATHS:
        raise UserError(
            f"{job.name}: {DEATHS} workers died while they worked on this shard (out of memory?); the others are kept. "
            "Give workers more memory, or take its recordings out"
        )
    with chdir(site.start):
        _run_job(function, job, directory)


def software(function: Callable[..., Any]) -> dict[str, str]:
    """What the bytes that `function` makes depend on beside its arguments: this library, the files beside its own (a stage keeps
    rows by what they are made from, and another stage's file made that), Python and packages; and ffmpeg, where the function's
    module has imported `soundmill.decoding.decode`: lossy formats decode bit-equal for one version only."""
    module = function.__module__
    decode = sys.modules.get("soundmill.decoding.decode")
    decodes = decode is not None and any(value is decode for value in function.__globals__.values())
    return {
        **_packages(),  # first: it names this library too, once installed, by a version that no edit changes
        "soundmill": _source_digest(Path(__file__).parents[1]),
        module: _source_digest(Path(inspect.getfile(function)).parent),
        **({"ffmpeg": decode.installed_version()} if decodes else {}),
    }


# Each is found once in a process, because a process goes on with the code that it has loaded.


@cache
def _source_digest(directory: Path) -> str:
    return digest([[path.name, file_digest(path)] for path in sorted(directory.rglob("*.py"))])


@cache
def _packages() -> dict[str, str]:
    """Name → version of all that is installed, and of Python; from the names of the directories, which takes a millisecond."""
    ending = ".dist-info"
    names = [name for entry in sys.path if os.path.isdir(entry) for name in os.listdir(entry) if name.endswith(ending)]
    found = dict(name.removesuffix(ending).rsplit("-", 1) for name in sorted(names, reverse=True) if "-" in name)
    return {"Python": platform.python_version(), **found}
