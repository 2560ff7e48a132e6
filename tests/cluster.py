"""A real Dask cluster on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

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
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
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
