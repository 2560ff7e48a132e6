"""The one unit of work: a Parquet shard. Read it, write it, map over many of them, with progress, in parallel, resumable."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from soundmill.errors import UserError

ROWS_PER_GROUP = 64  # of rows that carry audio: what a reader must hold to reach one clip
TABLE_ROWS_PER_GROUP = 65_536  # of plain rows


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
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, ensure_ascii=True).encode()
        state.update(len(raw).to_bytes(8, "big") + raw)
    return state.hexdigest()


def file_digest(path: Path | str | bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write(temporary)` make a file, then put it in place: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    result = write(temporary)
    sync_file(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)
    return result


class ShardWriter:
    """Write rows of one schema to one Parquet file, in bounded memory; appears whole or not at all.

    The bytes depend on the rows alone: fixed compression, row groups and no timestamps.
    """

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int | None = None):
        has_audio = any(pa.types.is_struct(column.type) or pa.types.is_binary(column.type) for column in schema)
        self.path, self.schema = path, schema
        self.rows_per_group = rows_per_group or (ROWS_PER_GROUP if has_audio else TABLE_ROWS_PER_GROUP)
        self.num_rows = 0
        self._pending: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.partial")
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd", compression_level=3)

    def write(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.num_rows += 1
        if len(self._pending) == self.rows_per_group:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, self.schema), row_group_size=self.rows_per_group)
            self._pending = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            sync_file(self._temporary)
            os.replace(self._temporary, self.path)
            sync_directory(self.path.parent)
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


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a small table whole, checking that its columns are the schema's."""
    _check(path, pq.read_schema(path), schema)
    return pq.read_table(path, columns=columns)


def read_rows(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one shard as mappings, a row group at a time, so memory stays bounded."""
    with pq.ParquetFile(path) as file:
        _check(path, file.schema_arrow, schema)
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).to_pylist()


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
class Job:
    """One shard's work: `function(*args, output)` writes the file `output` and returns a Report.

    `name` is the output's file name, `weight` the number of items in it (what the progress bar counts).
    """

    name: str
    args: tuple[Any, ...]
    weight: int = 1


def map_shards(
    function: Callable[..., Report],
    jobs: list[Job],
    scratch: Path,
    *,
    workers: int,
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Run `function(*job.args, scratch / job.name)` for every job, in `workers` processes; returns the summed Report.

    A finished shard stays in `scratch` with its report beside it, so a killed run resumes with the shards that are missing.
    Reports are added in the order of `jobs`, whatever order they end in. The function must be importable (top level).
    """
    scratch.mkdir(parents=True, exist_ok=True)
    todo = []
    for job in jobs:
        if _report_path(scratch, job).exists() and (scratch / job.name).exists():
            progress(job.weight)
        else:
            todo.append(job)
    if todo:
        _run_jobs(function, todo, scratch, workers, progress)
    total = Report()
    for job in jobs:
        total.add(Report(**json.loads(_report_path(scratch, job).read_text(encoding="utf-8"))))
    return total


def _report_path(scratch: Path, job: Job) -> Path:
    return scratch / f"{job.name}.report.json"


def _run_jobs(
    function: Callable[..., Report], jobs: list[Job], scratch: Path, workers: int, progress: Callable[[int], None]
) -> None:
    # A pool even for one worker: libraries give other last bits on other thread counts, so every worker has one thread.
    # Spawned, not forked: a fork of a process that has run torch or Arrow threads can hang.
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    queue = iter(jobs)
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), die_with_parent, (os.getpid(),)) as pool:
            running = {}
            try:
                for job in queue:
                    running[pool.submit(_run_job, function, job, scratch)] = job
                    if len(running) >= 2 * workers:
                        _collect(running, progress)
                while running:
                    _collect(running, progress)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        names = ", ".join(job.name for job in running.values())
        raise UserError(
            f"a worker process died (out of memory, or killed) while working on one of: {names}. Finished shards are kept: "
            "run it again, with a smaller `execution.workers` if memory was short"
        ) from None
    finally:
        for name, value in threads.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _collect(running: dict[Any, Job], progress: Callable[[int], None]) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        progress(running.pop(future).weight)


def _run_job(function: Callable[..., Report], job: Job, scratch: Path) -> None:
    report = function(*job.args, scratch / job.name)
    text = json.dumps({"counts": report.counts, "quarantine": report.quarantine, "details": report.details})
    write_atomically(_report_path(scratch, job), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, however it dies: no orphan may write beside a rerun."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
