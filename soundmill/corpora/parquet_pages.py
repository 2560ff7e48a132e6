"""The headers of a Parquet column's pages, which pyarrow does not show: how large the column unpacks, before it does."""

from typing import Any, BinaryIO

import pyarrow.parquet as pq

_DEEPEST = 64  # of values in a page's header; Thrift reads none that are deeper
_LONGEST = 1 << 40  # of a text, far beyond any file


def extent(file: BinaryIO, column: pq.ColumnChunkMetaData) -> tuple[int, int, int]:
    """(bytes as stored, unpacked, values) of the pages of a column, by their own headers; ValueError if one is damaged."""
    at = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
    end = at + column.total_compressed_size
    packed, plain, values = 0, 0, 0
    while at < end:
        file.seek(at)
        header = _struct(file)
        sizes = header.get(2), header.get(3)
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise ValueError("a page without a size")
        about = header.get(5) or header.get(8) or {}  # of a page of values, in both versions; a dictionary has none
        count = about.get(1) if isinstance(about, dict) else 0
        packed, plain, values = packed + sizes[1], plain + sizes[0], values + (max(0, count) if isinstance(count, int) else 0)
        at = file.tell() + sizes[1]
    return packed, plain, values


def _struct(file: BinaryIO, depth: int = 0) -> dict[int, Any]:
    """The fields of a struct in Thrift's compact protocol, by number."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _integer(file)
        kind = head & 15
        fields[number] = kind == 1 if kind in (1, 2) else _value(file, kind, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> Any:
    """A value of a kind of Thrift's; of texts, numbers with a point and collections nothing."""
    if depth > _DEEPEST:
        raise ValueError("a damaged page header")
    if kind in (4, 5, 6):
        return _integer(file)
    if kind == 12:
        return _struct(file, depth + 1)
    if kind in (1, 2, 3):  # one byte, as within a list
        _byte(file)
    elif kind == 7:
        _skip(file, 8)
    elif kind == 8:
        _skip(file, _varint(file))
    elif kind in (9, 10):
        head = _byte(file)
        for _ in range(head >> 4 if head >> 4 < 15 else _varint(file)):
            _value(file, head & 15, depth + 1)
    elif kind == 11:
        count = _varint(file)
        kinds = _byte(file) if count else 0
        for _ in range(count):
            _value(file, kinds >> 4, depth + 1)
            _value(file, kinds & 15, depth + 1)
    else:
        raise ValueError("a damaged page header")
    return None


def _integer(file: BinaryIO) -> int:
    number = _varint(file)
    return (number >> 1) ^ -(number & 1)


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a damaged page header")


def _skip(file: BinaryIO, count: int) -> None:
    if count:
        file.seek(min(count, _LONGEST) - 1, 1)
        _byte(file)


def _byte(file: BinaryIO) -> int:
    if byte := file.read(1):
        return byte[0]
    raise ValueError("a page header that is cut off")
