"""A real MLflow server on loopback that a test may kill and start again with the same store."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from soundmill import tracking

START_SECONDS = 600.0  # on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.5)
        pytest.fail((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
