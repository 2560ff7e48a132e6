"""Data stages over a bucket, and over the same files on disk, by one process and by two; `python -m bench.scale_out data`."""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import measure, recordings
from bench.measure import Target, in_fresh_process, ratio
from bench.project import Project

STAGES = ("segment", "resample")  # they read the recordings in the processes of their shards
PROCESSES = (1, 2)
SHARDS = 16
BUCKET = "bench"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


def data(args: argparse.Namespace) -> None:
    cpu_seconds: dict[str, list[float]] = {}  # of the busiest process
    with measure.workplace(args.work) as name, server() as url:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=url)
        work = Path(name)
        found, what = recordings.find(args.audio, work)
        recordings.repeat(found, args.clips, work / "files")
        in_fresh_process(upload, work / "files", url)
        places = {"disk": str(work / "files"), "bucket": f"s3://{BUCKET}"}

        def run(place: str, processes: int) -> float:
            who = f"{place}, {processes}"
            target = work / f"{place}-{processes}-{len(cpu_seconds.setdefault(who, []))}"
            seconds, cpu = in_fresh_process(run_stages, places[place], processes, target)
            cpu_seconds[who].append(cpu)
            return seconds

        competitors = {
            f"{place}, {count}": lambda place=place, count=count: run(place, count) for place in places for count in PROCESSES
        }
        rounds = measure.in_turns(competitors, args.repetitions)
    targets = [
        Target(
            f"data stages over a {place}{how}, two processes against one", ratio(times[f"{place}, 1"], times[f"{place}, 2"]), 1.7
        )
        for place in places
        # The second is what the first comes to if each process has a core to itself, also on a busy machine.
        for how, times in (("", rounds.seconds), (" by CPU seconds of the busier process", cpu_seconds))
    ]
    measure.write(
        "scale_out_data", args.results, args.clips, rounds.seconds, targets, recordings=what, cpu_seconds_of_busiest=cpu_seconds
    )


def run_stages(path: str, processes: int, target: Path) -> tuple[float, float]:
    """Wall seconds of STAGES from the first shard to the last, and CPU seconds of the busiest process, without starting it."""
    settings = ["corpus=folder", f"corpus.path='{path}'", f"corpus.shards={SHARDS}"]
    project = Project.make(target, settings, processes)
    project.run("scan", "corpus")
    seconds, busiest = 0.0, 0.0
    for stage in STAGES:
        seconds += project.run(stage, "clips.default")
        busiest += project.busiest(stage)
    return seconds, busiest


def upload(files: Path, url: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(files.iterdir()):
        client.upload_file(str(path), BUCKET, path.name)


@contextmanager
def server() -> Iterator[str]:
    """Moto's S3 server in a process of its own, on loopback; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()
