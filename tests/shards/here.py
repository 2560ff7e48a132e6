"""Shards made in this process instead of a pool, which takes a second to start, and longer where its processes import torch."""

from collections.abc import Callable
from pathlib import Path

from soundmill.shards import Job, Report
from soundmill.shards.run import run_job


def run_here(
    function: Callable[..., Report], jobs: list[Job], directory: Path, workers: int, progress: Callable[[int], None]
) -> None:
    for job in jobs:
        run_job(function, job, directory)
        progress(job.weight)
