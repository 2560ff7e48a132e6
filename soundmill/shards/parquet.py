"""Shards and tables as Parquet files: which shard, and writing and reading them in bounded memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soundmill import hashing
from soundmill.errors import UserError

ROWS_PER_GROUP = 64  # of rows that carry sound: what a reader must hold to reach one clip
TABLE_ROWS_PER_GROUP = 8_192  # of plain rows: what a writer holds at once

# FLAC cannot be made smaller. Fingerprints can, by a third; they are all read in every run, in half the time if they are not.
_AS_THEY_ARE = {"audio.bytes", "fingerprint", "keys", "probes"}


def shard_of(key: str | bytes, count: int) -> int:
    """The shard of a recording: a stable hash, so adding recordings moves none of the others."""
    raw = key.encode() if isinstance(key, str) else key
    return hashing.uint64(raw) % count


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def shard_paths(directory: Path) -> list[Path]:
    """The shards below a directory in stable order; none is an error."""
    paths = sorted(directory.rglob("*.parquet"))
    if not paths:
        raise UserError(f"{directory}: no shards (*.parquet) here; run the stage that makes them: `dvc repro`")
    return paths


def common_metadata(directory: Path, key: bytes) -> bytes:
    """The value of a key in the schema metadata of all shards below a directory; UserError where one lacks it, or two differ."""
    first, *others = shard_paths(directory)
    values = {path: (pq.read_schema(path).metadata or {}).get(key) for path in (first, *others)}
    for path, value in values.items():
        if value is None:
            raise UserError(f"{path}: no {key.decode()} in its metadata; remake {directory}: `dvc repro`")
        if value != values[first]:
            raise UserError(
                f"{path}: another {key.decode()} in its metadata than in {first.name}'s; remake {directory}: `dvc repro`"
            )
    return values[first]


def _column_options(schema: pa.Schema) -> dict[str, Any]:
    """Storage of columns: bytes never as a dictionary, and those of _AS_THEY_ARE not compressed."""
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
    for table in _row_groups(path, schema, columns, chosen):
        yield from table.to_pylist()


def _row_groups(path: Path, schema: pa.Schema, columns: list[str] | None, chosen: list[int] | None) -> Iterator[pa.Table]:
    """The row groups, of the rows that are `chosen` (None: all); a damaged file raises UserError."""
    try:
        with open_parquet(path) as file:
            _check(path, file.schema_arrow, schema)
            first = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                inside = None if chosen is None else [row - first for row in chosen if first <= row < first + size]
                if inside is None or inside:
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    yield table if inside is None else table.take(inside)
                first += size
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); remake it: `dvc repro`") from None


def by_shard(table: pa.Table) -> dict[int, pa.Table]:
    """The rows of every shard (column `shard`), in their order, the shards in theirs; each a table of its own, light to send."""
    numbers = table["shard"].to_numpy()
    if (np.diff(numbers) < 0).any():
        table = table.take(np.argsort(numbers, kind="stable"))
        numbers = table["shard"].to_numpy()
    table = table.combine_chunks()
    present, starts = np.unique(numbers, return_index=True)
    # Copied: a slice is sent with its whole table. Not by `take`: that imports all that Arrow can compute, in 50 ms.
    parts = (table.slice(start, stop - start) for start, stop in itertools.pairwise([*starts, len(numbers)]))
    return {shard: pa.ipc.open_stream(_ipc_stream(part)).read_all() for shard, part in zip(present.tolist(), parts, strict=True)}


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows and types. Equal tables may have different ones if their nulls are encoded differently."""
    return hashing.bytes_digest(_ipc_stream(table))


def _ipc_stream(table: pa.Table) -> pa.Buffer:
    """A table in Arrow's streaming format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()


def _check(path: Path, schema: pa.Schema, wanted: pa.Schema) -> None:
    for column in wanted:
        if column.name not in schema.names or schema.field(column.name).type != column.type:
            have = schema.field(column.name).type if column.name in schema.names else "no such column"
            raise UserError(f"{path}: column {column.name!r} should be {column.type}, found {have}; remake it with `dvc repro`")
