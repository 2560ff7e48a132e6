"""A job, the work on one shard: its identity, and running it in any process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import disk, hashing
from soundmill.shards.reports import Report, read_report, report_path, write_report

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # of whatever process runs a job
_ATTEMPT = ".attempt-"


@dataclass(frozen=True)
class Job:
    """One shard's work: `function(*args, output)` writes the file (or folder) `output` and returns a Report.

    `name` is the output's file name, `weight` how much work it is, in what the progress bar counts (items, bytes). `key` tells all
    that the shard is made from, beside the stage's parameters and code: content by digest or `signature`, never by name alone.
    """

    name: str
    args: tuple[Any, ...]
    weight: int = 1
    key: str | None = None


def run_job(function: Callable[..., Report], job: Job, directory: Path) -> None:
    """Make `directory / job.name` and its report."""
    options = {"previous": _previous(directory / job.name)} if job.key else {}
    # In a folder of its own: two attempts at one shard (a worker that was thought dead) never write to one file.
    attempt = Path(tempfile.mkdtemp(prefix=job.name + _ATTEMPT, dir=directory))
    try:
        output, final = attempt / job.name, directory / job.name
        report = function(*job.args, output, **options)
        write_report(output, report, job.key)
        # The shard first: a report that is not of the file beside it is taken for none, after a power cut too.
        _put(output, final)
        os.replace(report_path(output), report_path(final))
        if final.is_file():
            disk.start_sync(final)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def attempts(directory: Path, job: Job | None = None) -> list[Path]:
    """What killed workers left, of one job or of all."""
    return list(directory.glob(f"{job.name if job else '*'}{_ATTEMPT}*"))


def remove_attempts(directory: Path) -> None:
    for attempt in attempts(directory):
        shutil.rmtree(attempt, ignore_errors=True)


def _previous(shard: Path) -> Path | None:
    """The shard of the last run, if it is the one that its report speaks of."""
    try:
        return shard if read_report(shard).signature == hashing.signature(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put(source: Path, target: Path) -> None:
    """Move a file or folder into place, over what stands there."""
    if source.is_dir() and target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)
    if source.is_file():  # both were names of one file, as of a shard in which nothing changed: then it does nothing
        source.unlink()
