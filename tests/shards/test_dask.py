"""A map over shards on a real Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from soundmill import shards
from soundmill.errors import UserError
from soundmill.shards import run
from tests.shards.work import contents, jobs, square


@contextmanager
def scheduler(directory):
    cluster = Cluster(directory)
    try:
        cluster.start_scheduler()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with scheduler(tmp_path_factory.mktemp("scheduler")) as cluster:
        cluster.start_two_workers()
        yield cluster.address


@pytest.mark.slow
def test_a_cluster_without_workers_or_without_scheduler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "WORKERLESS_SECONDS", 0.5)
    monkeypatch.setattr(run, "CONNECT_SECONDS", 1.0)
    with (
        scheduler(tmp_path) as cluster,
        pytest.raises(UserError, match=r"the scheduler at tcp://127\.0\.0\.1:\d+.*start some"),
    ):
        shards.map_shards(square, jobs(3), tmp_path / "work", workers=1, cluster=cluster.address)
    with pytest.raises(UserError, match=r"execution\.dask: no Dask scheduler answers at"):
        shards.map_shards(square, jobs(3), tmp_path / "work", workers=1, cluster="tcp://127.0.0.1:1")


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_also_when_a_worker_is_killed_in_a_shard(two_workers, tmp_path):
    here = shards.map_shards(square, jobs(9), tmp_path / "here", workers=2)
    there = tmp_path / "there"
    there.mkdir()
    (there / "die-once-4").touch()
    ticks: list[int] = []
    report = shards.map_shards(square, jobs(9), there, workers=1, cluster=two_workers, progress=ticks.append)
    assert (there / "deaths").read_text() == "4\n"
    assert report == here
    assert contents(there) == contents(tmp_path / "here")
    assert sum(ticks) == 9
    assert not list(there.glob("*.attempt-*"))


@pytest.mark.slow
def test_a_shard_that_kills_three_workers_is_named_and_the_rest_resumes(two_workers, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "die-2").touch()
    with pytest.raises(UserError, match=r"shard-00002\.parquet: 3 workers died on this"):
        shards.map_shards(square, jobs(5), work, workers=1, cluster=two_workers)
    assert (work / "deaths").read_text() == "2\n" * 3
    (work / "die-2").unlink()
    done = {path: path.stat().st_mtime_ns for path in work.glob("*.parquet")}
    assert shards.map_shards(square, jobs(5), work, workers=1, cluster=two_workers).details == list(range(5))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


@pytest.mark.slow
def test_a_scheduler_that_dies_is_named_and_finished_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CONNECT_SECONDS", 2.0)
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        cluster.start_two_workers()
        work = tmp_path / "work"
        work.mkdir()
        (work / "slow").touch()

        def kill_after_three(_: int) -> None:
            if len(list(work.glob("*.report.json"))) >= 3 and cluster.processes[0].poll() is None:
                os.killpg(cluster.processes[0].pid, signal.SIGKILL)

        with pytest.raises(UserError, match=r"the scheduler at tcp://127\.0\.0\.1:\d+.*start it and"):
            shards.map_shards(square, jobs(20), work, workers=1, cluster=cluster.address, progress=kill_after_three)
    finally:
        cluster.stop()
    assert shards.map_shards(square, jobs(20), work, workers=2).details == list(range(20))


@pytest.mark.slow
def test_workers_with_other_code_are_refused(two_workers, tmp_path, monkeypatch):
    """Of what the function imports, and of what it finds by name."""
    codec, identity = "soundmill.models.components.mel_autoencoder", run.code_identity
    for name, message in (("Python", r"3\.\d+\.\d+"), (codec.replace(".", "/"), r"\w+")):
        monkeypatch.setattr(run, "code_identity", lambda *modules, name=name: identity(*modules) | {name: "2.7"})
        with pytest.raises(UserError, match=rf"worker tcp://.*: runs other software \({name} {message}, not 2\.7\); restart it"):
            shards.map_shards(square, jobs(2), tmp_path / "work", workers=1, cluster=two_workers, code=[codec])


WORKERS = "--nworkers 2 --nthreads 1 --host 127.0.0.1 --no-dashboard --memory-limit 0 --local-directory spill".split()


@dataclass
class Cluster:
    """A Dask scheduler and its workers, each a process of its own."""

    directory: Path
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start_scheduler(self) -> None:
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")

    def start_two_workers(self) -> None:
        self._start("worker", *WORKERS)

    def _start(self, *arguments: str) -> None:
        # Two paths: to find the tests' modules here, and under the names that pytest gives them.
        paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
        log = (self.directory / "log").open("ab")
        command = [Path(sys.executable).with_name("dask"), *arguments, "--scheduler-file", self.directory / "scheduler.json"]
        env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(self.directory)}  # it is killed, and takes nothing away
        self.processes.append(
            subprocess.Popen(command, cwd=self.directory, env=env, stdout=log, stderr=log, start_new_session=True)
        )

    @property
    def address(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, ValueError):
                return json.loads((self.directory / "scheduler.json").read_text())["address"]
            time.sleep(0.1)
        raise AssertionError((self.directory / "log").read_text())

    def stop(self) -> None:
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
