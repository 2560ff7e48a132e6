"""Reuse by row: a shard is written item by item, and items with the same key are copied from the last run's shard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill.shards import parquet
from soundmill.shards.reports import Report, read_items


class ItemWriter:
    """Write a shard item by item, copying items from `previous`, the last state of the shard. See soundmill.shards.

    A rejected item is not reused but tried again: its file may have been unreadable only for a moment.
    If nothing changed, `path` becomes a hard link to `previous`.
    """

    def __init__(self, path: Path, schema: pa.Schema, previous: Path | None = None):
        self.report = Report()
        self._path, self._previous = path, previous
        self._reusable = {key: place for key, *place in read_items(previous)} if previous else {}
        self._writer = parquet.ShardWriter(path, schema)
        self._file = parquet.open_parquet(previous) if previous else None
        self._group: tuple[int, pa.Table] | None = None  # the last row group read
        self._start = self._stop = 0  # rows of `previous` to copy next

    def __contains__(self, key: str) -> bool:
        return key in self._reusable

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows + self._stop - self._start

    def copy(self, key: str) -> bool:
        """Copy an item's rows and report from `previous`; False if it has no such item."""
        if key not in self._reusable:
            return False
        start, count, counts, details = self._reusable[key]
        first = self.num_rows
        if count and start != self._stop:
            self._catch_up()
            self._start = self._stop = start
        self._stop += count
        self._add(key, first, Report(counts, details=details))
        return True

    @contextmanager
    def item(self, key: str) -> Iterator[Report]:
        """Make an item: `write` its rows inside the block, and use the yielded report."""
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
        """Copy the pending rows."""
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
        unchanged = (
            self._file is not None and (self._writer.num_rows, self._start) == (0, 0) and self._stop == self._file.metadata.num_rows
        )
        if kind is None and not unchanged:
            self._catch_up()
        if self._file is not None:
            self._file.close()
        self._writer.__exit__(InterruptedError if kind is None and unchanged else kind, *rest)
        if kind is None and unchanged:
            os.link(self._previous, self._path)
