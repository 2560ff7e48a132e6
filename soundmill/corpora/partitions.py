"""Records on disk, partitioned by key, to process a table larger than memory part by part."""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RECORDS = 1 << 18  # in memory at once
PARTS = 1 << 9  # a part is read whole, so beyond PARTS · RECORDS memory grows


class Partitions:
    """Records in PARTS parts of an unnamed file. Threads may add concurrently; read only after all have been added."""

    def __init__(self, scratch: Path, dtype: np.dtype):
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._dtype = dtype
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._runs: list[np.ndarray] = []  # of each write: start and end of its parts in the file, in records

    def add(self, records: np.ndarray, parts: np.ndarray) -> None:
        """Add records [n] to these parts [n]."""
        with self._lock:
            self._waiting.append((records, parts.astype(np.uint16)))
            self._num_waiting += len(records)
            if self._num_waiting >= RECORDS:
                self._write()

    def _write(self) -> None:
        if self._waiting:
            records, parts = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
            order = np.argsort(parts, kind="stable")
            start = int(self._runs[-1][-1]) if self._runs else 0
            self._runs.append(start + np.searchsorted(parts[order], np.arange(PARTS + 1)))
            self._file.write(records.take(order).data)  # 18 times as fast as indexing, which copies field by field
            self._waiting, self._num_waiting = [], 0

    def _finish(self) -> None:
        with self._lock:
            self._write()
            self._file.flush()

    def groups(self, most_parts: int = PARTS) -> Iterator[range]:
        """Ranges of parts with about RECORDS records in all, or of one part."""
        self._finish()
        sizes = sum((np.diff(run) for run in self._runs), np.zeros(PARTS, np.int64)).tolist()
        start, total = 0, 0
        for part, size in enumerate(sizes):
            if part > start and (total + size > RECORDS or part - start == most_parts):
                yield range(start, part)
                start, total = part, 0
            total += size
        yield range(start, PARTS)

    def read(self, parts: range) -> Iterator[np.ndarray]:
        """The records of these parts, about RECORDS at once."""
        self._finish()
        read, total = [], 0
        for run in self._runs:
            start, end = int(run[parts.start]), int(run[parts.stop])
            raw = os.pread(self._file.fileno(), (end - start) * self._dtype.itemsize, start * self._dtype.itemsize)
            read.append(np.frombuffer(raw, dtype=self._dtype))
            total += end - start
            if total >= RECORDS:
                yield np.concatenate(read)
                read, total = [], 0
        if total:
            yield np.concatenate(read)

    def close(self) -> None:
        self._file.close()


def records(dtype: np.dtype, *columns: np.ndarray) -> np.ndarray:
    """A structured array [n] from its columns [n]."""
    rows = np.empty(len(columns[0]), dtype=dtype)
    for name, column in zip(dtype.names, columns, strict=True):
        rows[name] = column
    return rows
