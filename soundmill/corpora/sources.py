"""Where recordings are stored: in files or objects, or in cells of Parquet tables, in one corpus or the parts of a union.

`raw_path` of manifest.RECORDINGS identifies a recording. For a file it is the path relative to the corpus. For a recording embedded
in a table it is the table's path, a zero byte (which no path contains) and the row as ten digits, so that byte order is row order.
In a union, both start with the part's name and a slash.
"""

import bisect
import io
import itertools
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from soundmill import hashing, params
from soundmill.corpora import buckets, sound_tags
from soundmill.corpora.inventory import AudioFile, composed_path
from soundmill.corpora.parquet_pages import extent
from soundmill.corpora.resolver import MAX_KEY
from soundmill.decoding.decode import DecodeError, open_regular
from soundmill.errors import UserError
from soundmill.manifest import escape_path

MAX_BYTES = 256 << 20  # of one embedded recording: a cell is read into memory whole, unlike a file
PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")  # of a part of a union, the first component of its paths
MAX_PLAIN_BYTES = 4 << 20  # of a row group's plain values by its footer; larger groups are read row by row, others ROWS at once
ROWS = 64  # each may repeat the longest text of the group, which is stored once
MOST_UNPACKED = 64  # unpacked to packed size, beyond MAX_BYTES: recordings hardly compress, text ten or twenty times
MAX_VALUES = 4 << 20  # of a column in a row group, or
MOST_VALUES = 8  # to each byte: equal ones take less than a bit
PAGE_HEAD_BYTES = 1 << 14  # read at once of a large column of an object to see the sizes of a page
_MARK = b"\0"
NO_BYTES = ("empty", "no bytes in its cell")


@dataclass(frozen=True)
class EmbeddedFile(AudioFile):
    """A recording in a cell of a Parquet table; `inner_path` is its path in the table."""

    row: int = 0
    row_group: int = 0
    inner_path: str = ""

    @property
    def path(self) -> str:
        return shown(self.raw_path)

    @property
    def shard_key(self) -> bytes:
        """Recordings of one row group share a shard, since they are read together."""
        return b"%s%s%d" % (split(self.raw_path)[0], _MARK, self.row_group)

    @property
    def folders(self) -> list[bytes]:
        return composed_path(split(self.raw_path)[0]).split(b"/")[:-1]

    @property
    def name(self) -> bytes:
        """The file name in the table, else table and row."""
        return (os.path.basename(self.inner_path) or os.path.basename(self.path)).encode("utf-8", "surrogateescape")


def embedded_path(table: bytes, row: int) -> bytes:
    """`raw_path` of the recording in a row of a table."""
    return b"%s%s%010d" % (table, _MARK, row)


def split(raw_path: bytes) -> tuple[bytes, int | None]:
    """(path of the file or table, row in the table or None)."""
    path, mark, row = raw_path.partition(_MARK)
    return path, int(row) if mark else None


def shown(raw_path: bytes) -> str:
    """A printable `raw_path`: escaped, `<table>#<row>` if embedded."""
    path, row = split(raw_path)
    return escape_path(path) + ("" if row is None else f"#{row}")


@dataclass(frozen=True)
class Sources:
    """The directories or URLs of a corpus by part of a union (empty: the whole corpus); picklable, for worker processes."""

    roots: dict[bytes, bytes]

    @classmethod
    def of(cls, corpus: Path, root: Path, home: Path) -> Self:
        """The directories of the recordings in `corpus/recordings.parquet`: `corpus/audio` if it exists, else `corpus.path` or
        the paths of `corpus.parts`, read here so that a corpus that has moved reruns nothing. `root` has params.yaml; relative
        paths start at `home` (both are in stage.Context).
        """
        beside = corpus / "audio"
        if beside.is_dir():
            return cls({b"": bytes(beside)})
        section = params.section(params.read_yaml(root / "params.yaml"), "corpus", "params.yaml")
        if parts := section.get("parts"):
            return cls({os.fsencode(name): bytes(buckets.root_of(part["path"], home)) for name, part in parts.items()})
        if not section.get("path"):
            raise UserError("params.yaml: corpus.path is not set, and the corpus has no recordings of its own")
        return cls({b"": bytes(buckets.root_of(section["path"], home))})

    def locate(self, raw_path: bytes) -> tuple[bytes, int | None]:
        """(absolute path or URL of the file or table, row in the table or None)."""
        path, row = split(raw_path)
        if (root := self.roots.get(b"")) is None:
            part, _, path = path.partition(b"/")
            if (root := self.roots.get(part)) is None:
                what = f"corpus.parts has no {escape_path(part)!r}"
                raise UserError(f"{shown(raw_path)}: {what}; scan the corpus again (`dvc repro`)")
        return os.path.join(root, path), row

    def open_unchanged(self, wanted: Iterable[tuple[bytes, str]], scratch: Path) -> Iterator[AbstractContextManager[BinaryIO]]:
        """For every recording (raw_path, digest), a context manager that opens its file.

        UserError, naming it, if it has changed since the scan. Objects are in `scratch` around their turn; close the iterator.
        """
        wanted = list(wanted)
        urls = [path for path, row in (self.locate(raw_path) for raw_path, _ in wanted) if row is None and buckets.is_url(path)]
        with closing(buckets.fetch_ahead(urls, scratch)) if urls else nullcontext(iter(())) as copies:
            for raw_path, digest in wanted:
                path, row = self.locate(raw_path)
                copied = next(copies) if row is None and buckets.is_url(path) else None
                yield self._unchanged(raw_path, digest, scratch, copied)

    @contextmanager
    def _unchanged(self, raw_path: bytes, digest: str, scratch: Path, copied: Callable[[], Path] | None) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            try:
                place = _copy(copied) if copied else self.open(raw_path, scratch)
                file = stack.enter_context(open_regular(stack.enter_context(place)))
                actual = hashing.opened_digest(file)
            except DecodeError as error:
                actual = str(error)
            if actual != digest:
                name = shown(raw_path) if copied is None else escape_path(self.locate(raw_path)[0])
                raise UserError(f"{name}: the file has changed since the corpus was scanned; run it again (`dvc repro`)")
            file.seek(0)
            yield file

    @contextmanager
    def open(self, raw_path: bytes, scratch: Path | str | bytes) -> Iterator[bytes]:
        """A path to decode: the file, or a temporary one below `scratch` with the bytes of an object or an embedded recording.

        It is not checked that a file exists; a cell that cannot be read raises DecodeError. Reading a table's recordings in the
        order of `raw_path` reads each row group only once.
        """
        path, row = self.locate(raw_path)
        if row is None and buckets.is_url(path):
            with closing(buckets.fetch_ahead([path], Path(os.fsdecode(scratch)))) as copies, _copy(next(copies)) as copy:
                yield copy
        elif row is None:
            yield path
        else:
            with tempfile.NamedTemporaryFile(prefix=b"embedded-", dir=os.fsencode(scratch)) as file:
                file.write(_cell(path, row))
                file.flush()
                yield file.name


@contextmanager
def _copy(copied: Callable[[], Path]) -> Iterator[bytes]:
    """The path of an object's copy from buckets.fetch_ahead, removed at the end; DecodeError if the object is gone or forbidden."""
    try:
        path = copied()
    except OSError as error:
        raise DecodeError("missing" if isinstance(error, FileNotFoundError) else "unreadable", error.strerror or "") from None
    try:
        yield bytes(path)
    finally:
        path.unlink(missing_ok=True)


class Table(pq.ParquetFile):
    """A Parquet table from outside; the sizes of pages are compared with its footer before they are unpacked."""

    def __init__(self, path: bytes, place: BinaryIO | str, **options: Any):
        # No read-ahead: a row group may be larger than memory, so only a page is held.
        super().__init__(place, pre_buffer=False, buffer_size=1 << 20, **options)
        self._path, self._place = path, place

    def columns_of(self, group: int, names: Sequence[str] = ()) -> list[pq.ColumnChunkMetaData]:
        """The columns of a row group, or those with these names or below them."""
        about = self.metadata.row_group(group)
        columns = map(about.column, range(about.num_columns))
        return [one for one in columns if not names or {one.path_in_schema, one.path_in_schema.partition(".")[0]} & set(names)]

    def batches(self, group: int, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """These columns of a row group in batches of `rows`; DecodeError if one would unpack to an implausible size."""
        for column in self.columns_of(group, names):
            with suppress(ValueError, OSError), self._pages(column.total_compressed_size) as pages:  # damage shows in reading
                _check_sizes(group, column, *extent(pages, column))
        yield from self.iter_batches(batch_size=rows, row_groups=[group], columns=list(names), use_threads=False)

    def _pages(self, size: int) -> AbstractContextManager[BinaryIO]:
        """The table's bytes: of a bucket, those that reading fetches next, or of a large column the heads of its pages alone."""
        if isinstance(self._place, str):
            return open_regular(self._path)
        return nullcontext(self._place) if size <= buckets.BLOCK_BYTES else buckets.open_file(self._path, PAGE_HEAD_BYTES)


@contextmanager
def _readable() -> Iterator[None]:
    """DecodeError, on one line, for what pyarrow says of a damaged table."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        said = re.sub(r"/proc/self/fd/\d+", "it", str(error))
        raise DecodeError("unreadable table", " ".join(said.split())[:200]) from None


def open_table(path: bytes) -> Table:
    """A Parquet table from outside, opened by descriptor so that its name never matters, or by ranges; else DecodeError."""
    try:
        file = buckets.open_file(path) if buckets.is_url(path) else open_regular(path)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or "no such object") from None
    with nullcontext(file) if buckets.is_url(path) else file:
        with _readable():
            place = file if buckets.is_url(path) else f"/proc/self/fd/{file.fileno()}"
            table = Table(path, place)
            about = table.metadata
            repeated = [column for column in map(about.schema.column, range(about.num_columns)) if column.max_repetition_level]
            if texts := [column.path for column in repeated if column.physical_type == "BYTE_ARRAY"]:
                # A text that a list repeats is stored once.
                table = Table(path, place, read_dictionary=texts, metadata=about)
        if about.num_rows > file.seek(0, io.SEEK_END):
            raise DecodeError("unreadable table", f"{about.num_rows} rows declared, more than its bytes")
        if about.num_rows != sum(about.row_group(group).num_rows for group in range(about.num_row_groups)):
            raise DecodeError("unreadable table", "its row groups have more or fewer rows than it")
        if len(set(table.schema_arrow.names)) < len(table.schema_arrow.names):
            raise DecodeError("unreadable table", "two columns have the same name")
        for group in range(about.num_row_groups):
            for one in table.columns_of(group):
                _check_sizes(group, one, one.total_compressed_size, one.total_uncompressed_size, one.num_values)
        return table


def tables_of(metadata: Mapping[bytes, bytes], reject: Callable[[bytes, str, str], None] = lambda *_: None) -> Iterator[bytes]:
    """Names of the Parquet tables with embedded recordings in `metadata` of an inventory; those that are none are rejected."""
    for name, path in metadata.items():
        if name.lower().endswith(b".parquet"):
            try:
                with open_table(path) as file:
                    has_audio = audio_column(file.schema_arrow) is not None
            except DecodeError as error:
                reject(name, error.reason, error.detail)
            else:
                yield from [name] * has_audio


def _check_sizes(group: int, column: pq.ColumnChunkMetaData, packed: int, plain: int, values: int) -> None:
    """DecodeError if a column would unpack to an implausible size, by these sizes of its pages or by its footer."""
    what, declared = f"{column.path_in_schema} of row group {group}", column.total_uncompressed_size
    if plain > max(declared, MAX_PLAIN_BYTES):
        raise DecodeError("unreadable table", f"{what} has {plain} bytes, its footer says {declared}")
    if max(plain, declared) > max(MAX_BYTES, MOST_UNPACKED * packed):
        raise DecodeError("too large", f"{what} unpacks from {packed} to {max(plain, declared)} bytes")
    if max(values, column.num_values) > max(MAX_VALUES, MOST_VALUES * packed):
        raise DecodeError("too large", f"{what} unpacks from {packed} bytes to {max(values, column.num_values)} values")


def audio_column(schema: pa.Schema) -> str | None:
    """The column of Hugging Face's `Audio` type (a struct of `bytes` and optionally `path`), `audio` if there are several."""
    columns = [field.name for field in schema if is_audio(field.type)]
    return min(columns, key=lambda name: name != "audio", default=None)


def is_audio(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    return "bytes" in types and (pa.types.is_binary(types["bytes"]) or pa.types.is_large_binary(types["bytes"]))


def read_rows(file: Table, group: int) -> Iterator[dict[str, Any]]:
    """Plain values of one row group; recordings are `{"path": …}` if they have paths. A damaged table raises DecodeError."""
    schema = file.schema_arrow
    column = audio_column(schema)
    # Parquet reads a dot in a name as a path into a struct.
    paths = {field.name: field.name for field in schema if _is_plain(field.type) and "." not in field.name}
    if column and schema.field(column).type.get_field_index("path") >= 0:
        paths[column] = f"{column}.path"
    columns = list(paths.values())
    with _readable():
        if not columns:
            yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
            return
        size = sum(column.total_uncompressed_size for column in file.columns_of(group, columns))
        rows = ROWS if size <= MAX_PLAIN_BYTES else 1
        for batch in file.batches(group, columns, rows):
            chosen = batch.select(list(paths))
            if (size := sum(map(_text_bytes, chosen.columns))) > MAX_BYTES:
                raise DecodeError("too large", f"{rows} rows of row group {group} have {size} bytes of text")
            yield from chosen.to_pylist()


def numbered_rows(file: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """`read_rows` of all row groups, from number 0."""
    return enumerate(row for group in range(file.num_row_groups) for row in read_rows(file, group))


def _text_bytes(array: pa.Array) -> int:
    """Bytes of the texts of an array, those in lists each as often as it is there."""
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
    if pa.types.is_dictionary(array.type) and _is_text(array.type.value_type):
        return pc.sum(pc.cast(pc.binary_length(array.dictionary), pa.int64()).take(array.indices)).as_py() or 0
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    return pc.sum(pc.binary_length(array)).as_py() or 0 if _is_text(array.type) else 0


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column holds text, numbers, booleans or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (_is_text, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def read_cells(file: Table, group: int) -> Iterator[pa.Buffer | None]:
    """The embedded recordings of one row group, one at a time; None for a null."""
    if (column := audio_column(file.schema_arrow)) is None:
        raise DecodeError("unreadable table", "no column of recordings")
    with _readable():
        for batch in file.batches(group, [f"{column}.bytes"], 1):
            yield from (value.as_buffer() for value in batch.column(column).field("bytes"))


def _absent_cells(file: Table, group: int) -> Iterable[int]:
    """Rows of a row group without bytes. The column is read only if some rows have bytes and others do not."""
    of_bytes, *_ = file.columns_of(group, [f"{audio_column(file.schema_arrow)}.bytes"])
    statistics = of_bytes.statistics
    absent = statistics.null_count if statistics is not None and statistics.has_null_count else 0
    if absent in (0, file.metadata.row_group(group).num_rows):
        return range(absent)
    return (number for number, data in enumerate(read_cells(file, group)) if data is None)


def check_cell(data: pa.Buffer | None) -> pa.Buffer:
    """The bytes of a recording; DecodeError if there are none or too many."""
    if data is None:
        raise DecodeError(*NO_BYTES)
    if data.size == 0:
        raise DecodeError("empty", "zero bytes")
    if data.size > MAX_BYTES:
        raise DecodeError("too large", f"{data.size} bytes in one cell, at most {MAX_BYTES} allowed; store it as a file")
    return data


class _Cursor:
    """A position in a table: the next row and the rest of its row group."""

    def __init__(self, path: bytes, identity: tuple[int | bytes, ...]):
        self.identity = identity
        self._file = open_table(path)
        sizes = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._group, self._next, self._cells = -1, 0, iter(())

    def read(self, row: int) -> pa.Buffer | None:
        if row >= self._starts[-1]:
            raise DecodeError("missing", f"the table has {self._starts[-1]} rows")
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._group, self._next, self._cells = group, self._starts[group], read_cells(self._file, group)
        for data in self._cells:
            self._next += 1
            if self._next > row:
                return data
        self._group = -1
        raise DecodeError("unreadable table", f"row group {group} ends before row {row}")

    def close(self) -> None:
        self._cells = iter(())
        self._file.close()


_open = threading.local()  # one cursor per thread: consecutive recordings share a row group


def _cell(path: bytes, row: int) -> pa.Buffer:
    try:
        # The cells of a table in a bucket are recognised by their digests only, without a request for each.
        status = None if buckets.is_url(path) else os.stat(path)
    except OSError as error:
        raise DecodeError("missing", error.strerror or "") from None
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) if status else (path,)
    cursor = getattr(_open, "cursor", None)
    if cursor is None or cursor.identity != identity:
        if cursor:
            cursor.close()
        _open.cursor = None
        cursor = _open.cursor = _Cursor(path, identity)
    return check_cell(cursor.read(row))


def digest_cells(file: Table) -> list[list[Any]]:
    """[size, digest, tags] of every recording in a table, or [reason, detail] if it cannot be used."""
    cells: list[list[Any]] = []
    for group in range(file.num_row_groups):
        end = len(cells) + file.metadata.row_group(group).num_rows
        problem = ["unreadable table", f"row group {group} ends before its last row"]
        try:
            for data in itertools.islice(read_cells(file, group), end - len(cells)):
                try:
                    size = check_cell(data).size
                    cells.append([size, hashing.bytes_digest(data), sound_tags.read(pa.BufferReader(data))])
                except DecodeError as error:
                    cells.append([error.reason, error.detail])
        except DecodeError as error:
            problem = [error.reason, error.detail]
        cells.extend(problem for _ in range(end - len(cells)))
    return cells


def embedded_files(
    table: bytes, file: Table, cells: list[list[Any]] | None
) -> Iterator[tuple[EmbeddedFile | DecodeError, dict[str, Any]]]:
    """The recordings embedded in an opened table (`table` in the corpus), each with the plain values of its row.

    `cells` is the result of digest_cells. An unusable cell gives a DecodeError, and its path under the column of recordings. With
    `cells` None, only nulls are detected, and sizes are averages of the row group. Raises DecodeError if the rest of the table is
    damaged.
    """
    column = audio_column(file.schema_arrow)
    row, end = 0, 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        end += about.num_rows
        absent = set() if cells is not None else {row + number for number in _absent_cells(file, group)}
        for values in itertools.islice(read_rows(file, group), end - row):
            inner = ((values.pop(column, None) or {}).get("path") or "")[:MAX_KEY]  # kept for every row
            size, digest, *tags = cells[row] if cells is not None else (about.total_byte_size // about.num_rows, "")
            if row in absent:
                size, digest = NO_BYTES
            if isinstance(size, int):
                yield EmbeddedFile(embedded_path(table, row), size, digest, "".join(tags), row, group, inner), values
            else:
                yield DecodeError(size, digest), {**values, column: inner}
            row += 1
        if row != end:
            raise DecodeError("unreadable table", f"row group {group} ends before its last row")


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Class names of integer columns, which `datasets` stores in the metadata of a table."""
    try:
        features = params.parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        classes = {column: (feature.get("feature") or feature).get("names") for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    lists = ((column, names) for column, names in classes.items() if isinstance(names, list))
    return {column: names for column, names in lists if all(isinstance(name, str) for name in names)}
