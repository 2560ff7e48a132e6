"""Records in a file on disk, in parts by their keys, so that a table larger than memory is worked on part by part."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RECORDS = 1 << 18  # that are in memory at once
PARTS = 1 << 9  # each is held whole, so more than so many times RECORDS take more memory


class Partitions:
    """Records in PARTS parts of a file without a name. Threads may add at the same time, and read once all have added."""

    def __init__(self, scratch: Path, dtype: np.dtype):
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._dtype = dtype
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._runs: list[np.ndarray] = []  # of each write: where in the file, in records, its parts begin and end

    def add(self, records: np.ndarray, parts: np.ndarray) -> None:
        """Add records [n] to the parts [n] of their numbers."""
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
            self._file.write(records.take(order).data)  # an index in brackets takes records field by field, eighteen times as long
            self._waiting, self._num_waiting = [], 0

    def _finish(self) -> None:
        with self._lock:
            self._write()
            self._file.flush()

    def groups(self, most_parts: int = PARTS) -> Iterator[range]:
        """Parts that are held at once: some RECORDS together, or one part."""
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
        """The records of some parts, some RECORDS at once."""
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
    """A structured array [n] of its fields' columns [n]."""
    rows = np.empty(len(columns[0]), dtype=dtype)
    for name, column in zip(dtype.names, columns, strict=True):
        rows[name] = column
    return rows
