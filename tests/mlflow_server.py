"""A real MLflow server on loopback that a test may kill and start again with the same store."""

import itertools
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from soundmill import tracking
from tests.processes import kill_group, wait_for

# Below those that the system gives to whoever asks for any; each only once, and apart from those of the tests' other processes.
PORTS = itertools.count(10_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getpid() % 900)


def free_port() -> int:
    for port in PORTS:
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return True
        return False

    wait_for(answers, 600, pause=0.2)  # on a busy machine


class Server:
    """Its log lies in `folder`, and so do database and artifacts, unless they are elsewhere; its address stays the same."""

    def __init__(
        self,
        folder: Path,
        database: str | None = None,
        artifacts: str | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 1,
    ):
        self.folder, self.port = folder, free_port()
        self.database, self.artifacts = database or f"sqlite:///{folder}/server.db", artifacts or f"{folder}/artifacts"
        self.environment, self.workers = environment or {}, workers
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", str(self.workers)]
        stores = ["--backend-store-uri", self.database, "--artifacts-destination", self.artifacts]
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "soundmill", *place]
        environment = {**os.environ, **tracking.QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment}
        environment.pop("MLFLOW_TRACKING_URI", None)
        environment["TMPDIR"] = str(self.folder)  # it passes artifacts on through files there, which a kill leaves behind
        with (self.folder / "server.log").open("w") as log:
            self._process = subprocess.Popen(
                [*command, *stores], env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait_until_healthy(self._process, self.address, self.folder / "server.log")

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            kill_group(self._process)
