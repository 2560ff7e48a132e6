"""A Prefect server for one flow, where none is given: it ends with the flow's process, however that ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows import dvc
from soundmill.errors import UserError

START_SECONDS = 120.0


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server on a free port of this machine, wait until it answers, and have this process use it.

    To be called from the main thread: the server ends with the thread that started it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = "prefect.server.api.server:create_app"
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", app, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"],
        env=dvc.environment({**settings, "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}),
        stdin=subprocess.DEVNULL,
        preexec_fn=dvc.die_with_us(),
    )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait(url, process)
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise UserError(
        f"Prefect's server did not start ({'no answer' if process.poll() is None else f'it ended with {process.poll()}'}); "
        "start one with `make server`, and set PREFECT_API_URL"
    )
