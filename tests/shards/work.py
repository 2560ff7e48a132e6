"""Functions from shard to shard for tests, found by name in other processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill import shards
from soundmill.shards.run import ONE_THREAD, run_job

SCHEMA = pa.schema([("name", pa.string()), ("data", pa.binary())])


def square(number: int, output: Path) -> shards.Report:
    """Writes `number` and counts its square; files in the scratch directory make it slow, or kill its process."""
    scratch = output.parents[1]
    if (scratch / f"die-once-{number}").exists() or (scratch / f"die-{number}").exists():
        output.write_bytes(b"half a sha")
        (scratch / f"die-once-{number}").unlink(missing_ok=True)
        with (scratch / "deaths").open("a") as deaths:
            deaths.write(f"{number}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if (scratch / "slow").exists():
        time.sleep(0.3)
    shards.write_rows([{"name": str(number), "data": bytes([number]) * number}], output, SCHEMA)
    report = shards.Report()
    report.count("total", number * number)
    report.reject(f"{number}.wav", "odd") if number % 2 else None
    report.details.append(number)
    return report


def jobs(count: int) -> list[shards.Job]:
    return [shards.Job(shards.shard_name(index), (index,)) for index in range(count)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def threads_of_worker(output: Path) -> shards.Report:
    import numpy as np

    np.ones((300, 300)) @ np.ones((300, 300))  # starts the threads of its library, where that has some
    output.touch()
    names = sorted(name for name in ONE_THREAD if os.environ.get(name) == "1")
    return shards.Report(details=[[names, len(os.listdir("/proc/self/task"))]])


def value_of_worker(output: Path) -> shards.Report:
    output.touch()
    return shards.Report(details=[[os.environ.get("SOUNDMILL_WEIGHTS")]])


def gpu_of_worker(place: Path, count: int, output: Path) -> shards.Report:
    """What GPUs a worker sees; it waits until `count` workers are at work."""
    (place / f"worker-{os.getpid()}").touch()
    while len(list(place.glob("worker-*"))) < count:
        time.sleep(0.05)
    output.touch()
    return shards.Report(details=[os.environ.get("CUDA_VISIBLE_DEVICES")])


def run_here(function, jobs, directory, workers, progress, imports=()) -> dict[str, Any]:
    """`soundmill.shards.run._run_here` without processes."""
    values = {}
    for job in jobs:
        values[job.name] = run_job(function, job, directory)
        progress(job.weight)
    return values
