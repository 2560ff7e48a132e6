"""Reports about finished shards, stored next to them; and reuse by row: items with a known key are copied from the last shard."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from soundmill import disk, hashing, terminal
from soundmill.shards import parquet


@dataclass
class Report:
    """The report of the work on one shard: counts to be summed, rejected material, and anything small in `details`."""

    counts: dict[str, int] = field(default_factory=dict)
    quarantine: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    details: list[Any] = field(default_factory=list)  # JSON values
    items: list[Any] = field(default_factory=list)  # JSON values that the next run needs to reuse the shard; not summed
    damaged: list[str] = field(default_factory=list, compare=False)  # names of kept shards whose content had changed

    def count(self, key: str, by: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + by

    def reject(self, path: str, reason: str, detail: str = "") -> None:
        self.quarantine.append({"path": path, "reason": reason, "detail": detail})

    @property
    def quarantined_for(self) -> dict[str, int]:
        """How many items were rejected for each reason, by a key for the metrics."""
        return dict(sorted(Counter(row["reason"].replace(" ", "_") for row in self.quarantine).items()))

    @property
    def main_reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in Counter(row["reason"] for row in self.quarantine).most_common(3))

    def add(self, other: Self) -> None:
        for key, value in other.counts.items():
            self.count(key, value)
        self.quarantine.extend(other.quarantine)
        self.details.extend(other.details)


@dataclass(frozen=True)
class Finished:
    """A finished shard: the key of its job, the signature and digest of the file, and its report."""

    key: str | None
    signature: Any
    digest: str
    report: Report


def report_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.report.json")


def write_report(shard: Path, report: Report, key: str | None = None) -> None:
    """Write the report of a finished shard, with its key, signature and digest, next to it."""
    finished = Finished(key, hashing.signature(shard), hashing.tree_digest(shard), report)
    with disk.named(report_path(shard)):
        report_path(shard).write_bytes(hashing.dump_checksummed(vars(finished) | {"report": vars(report)}))


def read_report(shard: Path) -> Finished:
    """The report of a shard; OSError, ValueError, KeyError or TypeError if it is missing or damaged."""
    values = hashing.load_checksummed(report_path(shard).read_bytes())
    return Finished(values["key"], values["signature"], values["digest"], Report(**values["report"]))


def report_damaged(where: str | Path, names: Sequence[str]) -> None:
    """Print which kept files were damaged and are rebuilt, if any."""
    if names:
        listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        terminal.say(f"{where}: {len(names)} damaged and rebuilt ({listed}); check the disk")


class ItemWriter:
    """Write a shard item by item, copying items from `previous`, the last state of the shard. See soundmill.shards.

    A rejected item is not reused but tried again: its file may have been unreadable only for a moment.
    If nothing changed, `path` becomes a hard link to `previous`.
    """

    def __init__(self, path: Path, schema: pa.Schema, previous: Path | None = None):
        self.report = Report()
        self._path, self._previous = path, previous
        # Key → first row, number of rows, counts, details.
        self._reusable = {key: place for key, *place in read_report(previous).report.items} if previous else {}
        self._writer = parquet.ShardWriter(path, schema)
        self._file = parquet.open_parquet(previous) if previous else None
        self._group: tuple[int, pa.Table] | None = None  # the last row group read
        self._start = self._stop = 0  # rows of `previous` to copy next

    def __contains__(self, key: str) -> bool:
        return key in self._reusable

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows + self._stop - self._start

    def new(self, items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any, Report]]:
        """Those of the items (key, anything) to be made, each with its report; `write` its rows before asking for the next.

        Of the others, rows and report are copied from `previous`.
        """
        for key, item in items:
            first = self.num_rows
            if key in self:
                start, count, counts, details = self._reusable[key]
                if count and start != self._stop:
                    self._catch_up()
                    self._start = self._stop = start
                self._stop += count
                report = Report(counts, details=details)
            else:
                self._catch_up()
                report = Report()
                yield key, item, report
            self.report.add(report)
            if not report.quarantine:
                self.report.items.append([key, first, self.num_rows - first, report.counts, report.details])

    def write(self, row: dict[str, Any]) -> None:
        self._writer.write(row)

    def _catch_up(self) -> None:
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

    def __enter__(self) -> Self:
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
