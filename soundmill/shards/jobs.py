"""A job, the work on one shard: its identity, and how to run it in any process."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import disk, hashing
from soundmill.shards.reports import Report, read_report, report_path, write_report

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # in every process that runs a job
_ATTEMPT = ".attempt-"


@dataclass(frozen=True)
class Job:
    """The work on one shard: `function(*job.args, output)` writes the file (or directory) `output` and returns a Report.

    `name` is the output's file name; `weight` is the amount of work in the units of the progress bar (items, bytes). `key` covers
    everything that the shard is made from except the stage's parameters and code: content by digest or `signature`, not by name.
    """

    name: str
    args: tuple[Any, ...]
    weight: int = 1
    key: str | None = None


def run_job(function: Callable[..., Report], job: Job, directory: Path) -> None:
    """Make `directory / job.name` and its report."""
    options = {"previous": _previous(directory / job.name)} if job.key else {}
    # In a separate directory: two attempts at one shard (a worker taken for dead) never write to the same file.
    attempt = Path(tempfile.mkdtemp(prefix=job.name + _ATTEMPT, dir=directory))
    try:
        output, final = attempt / job.name, directory / job.name
        report = function(*job.args, output, **options)
        write_report(output, report, job.key)
        # The shard first: a report that does not match the file next to it is ignored, also after a power cut.
        _put(output, final)
        os.replace(report_path(output), report_path(final))
        if final.is_file():
            disk.start_sync(final)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def attempts(directory: Path, job: Job | None = None) -> list[Path]:
    """Directories that killed workers left, of one job or of all."""
    return list(directory.glob(f"{job.name if job else '*'}{_ATTEMPT}*"))


def remove_attempts(directory: Path) -> None:
    for attempt in attempts(directory):
        shutil.rmtree(attempt, ignore_errors=True)


def _previous(shard: Path) -> Path | None:
    """The shard of the last run, if its report matches it."""
    try:
        return shard if read_report(shard).signature == hashing.signature(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put(source: Path, target: Path) -> None:
    """Move a file or directory into place, replacing what is there."""
    if source.is_dir() and target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)
    if source.is_file():  # os.replace does nothing if both are links to one file, as for an unchanged shard
        source.unlink()
