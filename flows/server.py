"""The Prefect server: which one the settings name, and one for a single flow where they name none."""

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

START_SECONDS = 600.0  # a busy machine with cold files took more than two minutes
STOP_SECONDS = 5.0


def address() -> str | None:
    """The server that Prefect's settings name, in the environment or in a profile; None: each run starts one of its own."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if not Path(os.environ["PREFECT_HOME"], "profiles.toml").exists():
        return None
    from prefect.settings import PREFECT_API_URL  # takes seconds

    return PREFECT_API_URL.value()


def check(url: str) -> None:
    """UserError with the remedy unless a Prefect server answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
            return
    except urllib.error.HTTPError:
        return  # it wants a login: Prefect's client has it (PREFECT_API_AUTH_STRING)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"no Prefect server at {url} ({reason}); start one with `make server`, or set PREFECT_API_URL") from None


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server on a free port of this machine, wait until it answers, and have this process use it.

    Prefect's own temporary server outlives a flow that is killed with -9; this one ends with the thread that started it, so call it
    from the main one.
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
        except subprocess.TimeoutExpired:  # it waits for connections that this process still has
            process.kill()
            process.wait()


def _send_log() -> None:
    """Have Prefect send the lines of log that it holds back: at the end of this process, it would try for minutes to reach a server
    that is gone."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def app() -> FastAPI:
    """What uvicorn serves: without the services of a lasting server, which would work on the database of `make server` too."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

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
