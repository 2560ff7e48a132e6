"""A tiny project with the real stage contract, DVC, git and tracking; and nothing of the tests may touch the checkout's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkouts import HARD_NAME
from tests.flows.tiny import make_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A git and DVC project of two stages, committed."""
    return make_tiny(tmp_path / HARD_NAME)


@pytest.fixture
def tracked(tracked: None, tiny: Path, mlflow_tables: Path) -> None:
    """Runs are recorded, those of the tiny project in a store that has its tables."""
    shutil.copy(mlflow_tables, tiny / "mlflow.db")


@pytest.fixture
def set_param(tiny: Path) -> Callable[..., None]:
    """`set_param("first", number=2)` edits params.yaml."""
    from soundmill import params

    def change(section: str, **values: object) -> None:
        document = params.read_yaml(tiny / "params.yaml")
        document[section] |= values
        params.write_yaml(document, tiny / "params.yaml")

    return change


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on loopback, as the documentation starts it; its API's address."""
    import socket
    import time
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    environment.pop("PREFECT_API_URL", None)
    command = [str(Path(sys.executable).parent / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = (home / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(1200):  # a busy machine takes minutes
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, (home / "server.log").read_text()
                time.sleep(0.5)
        else:
            pytest.fail("the Prefect server did not start:\n" + (home / "server.log").read_text())
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()
