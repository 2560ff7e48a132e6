"""A Prefect server for one flow, where none is given: it ends with the flow's process, however that ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from fastapi import FastAPI
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows import dvc
from soundmill.errors import UserError

START_SECONDS = 120.0
STOP_SECONDS = 5.0


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server on a free port of this machine, wait until it answers, and have this process use it.

    To be called from the main thread: the server ends with the thread that started it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    address = ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", "flows.server:app", *address, "--log-level", "error"],
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
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for connections that this process still has
            process.kill()
            process.wait()


def app() -> FastAPI:
    """What uvicorn serves: without the services of a lasting server, which would work on the database of `make server` too."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success and process.poll() is None:
                return
        time.sleep(0.1)
    raise UserError(
        f"Prefect's server did not start ({'no answer' if process.poll() is None else f'it ended with {process.poll()}'}); "
        "start one with `make server`, and set PREFECT_API_URL"
    )
