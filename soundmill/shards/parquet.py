"""Shards and tables as Parquet files: assigning rows to shards, and writing and reading in bounded memory."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soundmill import disk, hashing
from soundmill.errors import UserError

ROWS_PER_GROUP = 64  # of rows with audio: a reader must load these to reach one clip
TABLE_ROWS_PER_GROUP = 8_192  # of other rows: a writer holds these at once

OPTIONAL = b"optional"  # in the metadata of a schema: columns that older files lack, which are read as null

# FLAC does not compress. Fingerprints would shrink by a third, but every run reads all of them, twice as fast uncompressed.
_UNCOMPRESSED = {"audio.bytes", "fingerprint", "keys", "probes"}


def shard_of(key: str | bytes, count: int) -> int:
    """The shard of a recording, by a stable hash: adding recordings moves no others."""
    raw = key.encode() if isinstance(key, str) else key
    return hashing.uint64(raw) % count


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def shard_paths(directory: Path) -> list[Path]:
    """The shards below a directory in a stable order; UserError if there are none."""
    paths = sorted(directory.rglob("*.parquet"))
    if not paths:
        raise UserError(f"{directory}: contains no shards (*.parquet); run the stage that writes them: `dvc repro`")
    return paths


def common_metadata(directory: Path, key: bytes) -> bytes:
    """The value of a key in the schema metadata of all shards below a directory; UserError if one lacks it or two differ."""
    values = {}
    for path in shard_paths(directory):
        with _readable(path):
            values[path] = (pq.read_schema(path).metadata or {}).get(key)
    first = next(iter(values))
    for path, value in values.items():
        if value is None:
            raise UserError(f"{path}: no {key.decode()} in its metadata; rebuild {directory} with `dvc repro`")
        if value != values[first]:
            raise UserError(
                f"{path}: its metadata has another {key.decode()} than {first.name}; rebuild {directory} with `dvc repro`"
            )
    return values[first]


def _column_options(schema: pa.Schema) -> dict[str, Any]:
    """Storage of columns: bytes never as a dictionary, and those of _UNCOMPRESSED not compressed."""
    dictionary, compression = [], {}

    def add(path: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for child in kind:
                add(f"{path}.{child.name}", child.type)
        elif pa.types.is_list(kind):
            add(f"{path}.list.element", kind.value_type)
        else:
            compression[path] = "none" if path in _UNCOMPRESSED else "zstd"
            if not pa.types.is_binary(kind):
                dictionary.append(path)

    for column in schema:
        add(column.name, column.type)
    level = {path: 1 for path, name in compression.items() if name == "zstd"}  # 3 writes half as fast and saves 1 % on log-mels
    return {"compression": compression, "compression_level": level, "use_dictionary": dictionary}


class ShardWriter:
    """Write rows of one schema to one Parquet file, atomically and in bounded memory.

    The bytes depend only on the rows: compression and row groups are fixed, and there are no timestamps. The file is not synced
    here; a stage syncs all its outputs when it publishes them.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int | None = None):
        has_sound = any("audio" in column.name or pa.types.is_binary(column.type) for column in schema if column.name != "raw_path")
        self.path, self.schema = path, schema
        self.rows_per_group = rows_per_group or (ROWS_PER_GROUP if has_sound else TABLE_ROWS_PER_GROUP)
        self.num_rows = 0
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []  # they precede `_rows`
        self._pending = 0  # rows in both
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.partial")
        with disk.named(path):
            self._writer = pq.ParquetWriter(self._temporary, schema, **_column_options(schema))

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._count(1)

    def write_table(self, table: pa.Table) -> None:
        """Write many rows; the file is the same as with `write` for each."""
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
            # One chunk: Parquet's pages end where chunks do, so the bytes would depend on how the rows arrived.
            with disk.named(self.path):
                self._writer.write_table(pa.concat_tables(self._tables).combine_chunks(), row_group_size=self.rows_per_group)
            self._tables, self._pending = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
            with disk.named(self.path):
                self._writer.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)  # if it could not be written


def write_rows(rows: Iterable[dict[str, Any]], path: Path, schema: pa.Schema) -> int:
    """Write rows to one shard or table; returns their number."""
    with ShardWriter(path, schema) as writer:
        for row in rows:
            writer.write(row)
    return writer.num_rows


def open_parquet(path: Path | str) -> pq.ParquetFile:
    """Open a shard or table. Without Arrow's pre-buffering, which is for object storage, small files open twice as fast."""
    with _readable(path):
        return pq.ParquetFile(path, pre_buffer=False)


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a small table, checking its columns against the schema."""
    with _readable(path), open_parquet(path) as file:  # `pq.read_table` takes twice as long for a small table
        _check(path, file.schema_arrow, schema)
        table = file.read(columns, use_threads=False)  # for a small table, starting threads takes as long as reading
        return _completed(table, schema, columns)


def read_tables(paths: Iterable[Path], schema: pa.Schema, columns: list[str] | None, rows_at_once: int) -> Iterator[list[pa.Table]]:
    """`read_table` of every path, in order, in batches of tables with about `rows_at_once` rows in all."""
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
    path: Path, schema: pa.Schema, columns: list[str] | None = None, rows: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of one shard as mappings, one row group at a time, so memory stays bounded.

    `rows` are the numbers of the rows to read (None: all); row groups without any of them are not read. UserError if the file is
    damaged.
    """
    selected = None if rows is None else sorted(set(rows))
    with _readable(path), open_parquet(path) as file:
        _check(path, file.schema_arrow, schema)
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = None if selected is None else [row - first for row in selected if first <= row < first + size]
            if inside is None or inside:
                table = _completed(file.read_row_group(group, columns=columns, use_threads=False), schema, columns)
                yield from (table if inside is None else table.take(inside)).to_pylist()
            first += size


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """UserError with the remedy if the file is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); rebuild it with `dvc repro`") from None


def rows_below(directory: Path, schema: pa.Schema, columns: list[str]) -> Iterator[dict[str, Any]]:
    """`read_rows` of all shards below a directory."""
    for path in shard_paths(directory):
        yield from read_rows(path, schema, columns)


def by_shard(table: pa.Table) -> dict[int, pa.Table]:
    """Shard number → its rows (column `shard`), in order; each table is a copy, so that pickling it sends no other rows."""
    numbers = table["shard"].to_numpy()
    present, sizes = np.unique(numbers, return_counts=True)
    rows_of = np.split(np.argsort(numbers, kind="stable"), np.cumsum(sizes)[:-1])
    table = table.combine_chunks()
    return {shard: table.take(rows) for shard, rows in zip(present.tolist(), rows_of, strict=False)}  # no shard: one empty part


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows and types. Equal tables may have different ones if their nulls are encoded differently."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashing.bytes_digest(sink.getvalue())


def _optional(schema: pa.Schema) -> list[str]:
    return (schema.metadata or {}).get(OPTIONAL, b"").decode().split()


def _completed(table: pa.Table, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
    """A table as read, with the optional columns that its file lacks as nulls."""
    for name in _optional(schema):
        if name not in table.column_names and (columns is None or name in columns):
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    return table


def _check(path: Path, schema: pa.Schema, expected: pa.Schema) -> None:
    optional = _optional(expected)
    for column in expected:
        if column.name in optional and column.name not in schema.names:
            continue
        if column.name not in schema.names or schema.field(column.name).type != column.type:
            found = schema.field(column.name).type if column.name in schema.names else "no such column"
            raise UserError(f"{path}: column {column.name!r} must be {column.type}, found {found}; rebuild it with `dvc repro`")
