"""Reports of work on shards, kept beside the finished shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundmill import disk, hashing

ALL = "reports.json"  # what all reports say but for their items, which only who makes the shard again wants to know


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


@dataclass(frozen=True)
class Finished:
    """What is kept of a finished shard: the key of its job, signature and digest of the file, and its report."""

    key: str | None
    signature: Any
    digest: str
    report: Report


def report_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.report.json")


def write_report(shard: Path, report: Report, key: str | None = None) -> None:
    """Put the report of a finished shard, and what the shard is known by, beside it."""
    finished = Finished(key, hashing.signature(shard), hashing.tree_digest(shard), report)
    report_path(shard).write_bytes(hashing.dump_checksummed(vars(finished) | {"report": vars(report)}))


def read_report(shard: Path) -> Finished:
    """OSError, ValueError, KeyError or TypeError where there is none, or none that can be trusted."""
    values = hashing.load_checksummed(report_path(shard).read_bytes())
    return Finished(values["key"], values["signature"], values["digest"], Report(**values["report"]))


def read_items(shard: Path) -> list[Any]:
    """The items that a finished shard's report names; of `ItemWriter`: [key, first row, number of rows, counts, details]."""
    return read_report(shard).report.items


def read_reports(directory: Path) -> dict[str, Finished]:
    """Of the last run, of every shard. To open thousands of files takes longer than what is in them."""
    try:
        rows = hashing.load_checksummed((directory / ALL).read_bytes())
        return {name: Finished(key, signature, value, Report(**report)) for name, (key, signature, value, report) in rows.items()}
    except (OSError, ValueError, TypeError):
        return {}


def write_reports(directory: Path, finished: dict[str, Finished]) -> None:
    """Note those that the next run may take as they are: with a key, and nothing rejected."""
    rows = {
        name: [
            shard.key,
            shard.signature,
            shard.digest,
            {name: value for name, value in vars(shard.report).items() if name != "items"},
        ]
        for name, shard in finished.items()
        if shard.key and not shard.report.quarantine
    }
    if rows:
        disk.write_atomically(directory / ALL, lambda path: path.write_bytes(hashing.dump_checksummed(rows)))


def report_damaged(where: str | Path, names: Sequence[str]) -> None:
    """Tell the person of kept files that are made anew, if any."""
    if names:
        listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        print(f"{where}: {len(names)} damaged, so made anew ({listed}); look after the disk", flush=True)
