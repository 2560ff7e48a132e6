"""A map over shards gives the same bytes with any number of workers, also of a real Dask cluster, and ends with its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import distributed
import pytest

from soundmill import shards
from soundmill.errors import UserError
from soundmill.shards import run
from soundmill.shards.run import ONE_THREAD
from tests.processes import kill_group
from tests.shards.work import contents, gpu_of_worker, jobs, square, value_of_worker


def test_map_gives_the_same_bytes_and_report_with_any_number_of_workers(tmp_path):
    ticks: list[int] = []
    one = shards.map_shards(square, jobs(7), tmp_path / "one", workers=1, progress=ticks.append)
    two = shards.map_shards(square, jobs(7), tmp_path / "two", workers=2)
    assert one == two
    assert one.counts == {"total": sum(n * n for n in range(7))}
    assert one.details == list(range(7))
    assert [row["path"] for row in one.quarantine] == ["1.wav", "3.wav", "5.wav"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(ticks) == 7


def test_a_worker_has_one_thread_and_the_mapping_process_its_own_environment(tmp_path):
    code = """
import json, os, sys
from pathlib import Path
from soundmill import shards
from tests.shards import work as t

if __name__ == "__main__":
    jobs = [shards.Job(f"job-{number}", ()) for number in range(4)]
    threads = shards.map_shards(t.threads_of_worker, jobs, Path(sys.argv[1]), workers=2).details
    print(json.dumps([threads, os.environ["OPENBLAS_NUM_THREADS"], os.environ.get("OMP_NUM_THREADS")]))
"""
    env = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "7"}
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    threads, openblas, openmp = json.loads(done.stdout)
    assert all(names == sorted(ONE_THREAD) for names, _ in threads)
    assert max(count for _, count in threads) <= 2  # Arrow has one from its import on
    assert (openblas, openmp) == ("7", None)


def test_workers_have_the_environment_of_now(tmp_path, monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("SOUNDMILL_WEIGHTS", value)
        report = shards.map_shards(value_of_worker, [shards.Job("job", ())], tmp_path / value, workers=2)
        assert report.details == [[value]]


def test_each_worker_sees_one_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert shards.visible_gpus() == ["4", "7"]
    two = [shards.Job(str(number), (tmp_path, 2)) for number in range(2)]
    assert sorted(shards.map_shards(gpu_of_worker, two, tmp_path / "seen", workers=2).details) == ["4", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shards.visible_gpus() == []


def test_an_interrupt_is_told_by_the_mapping_process_alone(tmp_path):
    """Each of the three workers has begun by then: Python would tell of one that is interrupted while it starts."""
    code = """
import os, signal, sys
from pathlib import Path
from soundmill import shards
from tests.shards import work as t

if __name__ == "__main__":
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    place = Path(sys.argv[1])
    jobs = [shards.Job(f"job-{number}", (place, 3)) for number in range(9)]
    try:
        shards.map_shards(t.gpu_of_worker, jobs, place, workers=3, progress=lambda n: n and os.killpg(0, signal.SIGINT))
    except KeyboardInterrupt:
        print("interrupted")
"""
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "work")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


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
    with scheduler(tmp_path) as cluster, pytest.raises(UserError, match=r"the scheduler at tcp://127\.0\.0\.1:\d+.*start some"):
        shards.map_shards(square, jobs(3), tmp_path / "work", workers=1, cluster=cluster.address)
    monkeypatch.setattr(run, "CONNECT_SECONDS", 1.0)
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
    with distributed.Client(two_workers) as client:  # a worker ends the shard that it was at when the map failed
        while any(client.run(lambda dask_worker: len(dask_worker.state.executing) + len(dask_worker.state.ready)).values()):
            time.sleep(0.05)
    done = {path: path.stat().st_mtime_ns for path in work.glob("*.parquet")}
    assert shards.map_shards(square, jobs(5), work, workers=1, cluster=two_workers).details == list(range(5))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


@pytest.mark.slow
def test_a_scheduler_that_dies_is_named_and_finished_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CONNECT_SECONDS", 30.0)
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
        words = [Path(sys.executable).with_name("dask"), *arguments, "--scheduler-file", self.directory / "scheduler.json"]
        env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(self.directory)}  # it is killed, and takes nothing away
        self.processes.append(subprocess.Popen(words, cwd=self.directory, env=env, stdout=log, stderr=log, start_new_session=True))

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
            kill_group(process)
