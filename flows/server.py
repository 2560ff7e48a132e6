"""A Prefect server for one flow, where none is given: it ends with the flow's process, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from flows import dvc
from soundmill.errors import UserError


class OwnServer(SubprocessASGIServer):
    """The server that Prefect's clients start where they are told of none, and find if it is started; Prefect's own stays behind
    when they are killed."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        app = "prefect.server.api.server:create_app"
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        return subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", app, *where, "--log-level", "error", "--lifespan", "on"],
            env={**os.environ, **marks, **settings},
            preexec_fn=dvc.die_with_us(),
        )


def start() -> None:
    """Start it and wait until it answers; to be called from the main thread, since it ends with the thread that started it."""
    try:
        OwnServer().start()
    except RuntimeError as error:
        raise UserError(
            f"Prefect's server did not start ({error}); start one with `make server`, and set PREFECT_API_URL"
        ) from None
