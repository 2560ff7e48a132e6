"""The Prefect server: the one that the settings name, or else one for a single flow."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows import dvc
from soundmill import lifetime
from soundmill.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

START_SECONDS = 600.0  # a busy machine with a cold file cache took more than two minutes
STOP_SECONDS = 5.0


def address() -> str | None:
    """The server that Prefect's settings name, in the environment or in a profile; None: each run starts one."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if not Path(os.environ["PREFECT_HOME"], "profiles.toml").exists():
        return None
    from prefect.settings import PREFECT_API_URL  # importing it takes seconds

    return PREFECT_API_URL.value()


def login() -> tuple[str, str]:
    """Name and password for the server that Prefect's settings name; empty if it asks for none."""
    from prefect.settings import PREFECT_API_AUTH_STRING

    name, _, password = (PREFECT_API_AUTH_STRING.value() or "").partition(":")
    return name, password


def check(url: str) -> None:
    """UserError with the remedy unless a Prefect server answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
            return
    except urllib.error.HTTPError:
        return  # it needs a login, which Prefect's client sends (PREFECT_API_AUTH_STRING)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"no Prefect server at {url} ({reason}); start one with `make server`, or set PREFECT_API_URL") from None


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server on a free local port, wait until it answers, and have this process use it.

    Prefect's temporary server outlives a flow killed with -9. This one ends with the thread that starts it, so call it from the
    main one.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    place = ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", "flows.server:app", *place, "--log-level", "error"],
        env=dvc.environment({**settings, "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}),
        stdin=subprocess.DEVNULL,
        preexec_fn=lifetime.with_this_process(),
    )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait(url, process)
        with temporary_settings({PREFECT_API_URL: url}):
            yield
            _send_log()
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for open connections of this process
            process.kill()
            process.wait()


def _send_log() -> None:
    """Have Prefect send its buffered log lines; at exit it would try for minutes to reach a server that is gone."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def app() -> FastAPI:
    """What uvicorn serves: a server without background services, which would also process the database of `make server`."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success and process.poll() is None:
                return
        time.sleep(0.1)
    raise UserError(
        f"Prefect's server did not start ({'no answer' if process.poll() is None else f'exit status {process.poll()}'}); "
        "start one with `make server`, and set PREFECT_API_URL"
    )
