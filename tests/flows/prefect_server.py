"""A Prefect server on loopback that a test may stop and start again with the same database, and what a test asks it."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from soundmill.tracking.browser_app import never_proxied
from tests.imports import ROOT
from tests.mlflow_server import free_port, wait_until_healthy
from tests.processes import end_process

LOGIN = "tests:a secret"  # of the server that all tests share


def environment(tmp_path: Path, server: str | None) -> dict[str, str]:
    """For a flow that uses a server, with the login of the tests, or starts one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    there = {"PREFECT_API_URL": server, "PREFECT_API_AUTH_STRING": LOGIN} if server else {}
    return {**kept, **there, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}


def request(server: str, path: str, login: str = LOGIN, method: str | None = None, body: Any = None, **headers: str) -> Any:
    sent = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(f"{server}/{path}", data, {**(sent if login else {}), **headers}, method=method)


def ask(server: str, path: str, login: str = LOGIN, **body: Any) -> Any:
    for patience in range(10):  # its SQLite is busy at times, and then it says 503
        try:
            with urllib.request.urlopen(request(server, path, login, body=body), timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 503 or patience == 9:
                raise
            time.sleep(1)


class PrefectServer:
    """That of `make server` in the project at `root`; its log lies in `folder`, and its database in `folder`/prefect."""

    def __init__(self, root: Path, folder: Path, **variables: str):
        never_proxied()
        self.root, self.log, self.port = root, folder / "server.log", free_port()
        self.address = f"http://127.0.0.1:{self.port}/api"
        self.environment = {**environment(folder, None), **variables}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def login(self) -> str:
        return tomllib.loads((self.root / "prefect.toml").read_text())["api"]["auth_string"]

    def start(self) -> None:
        command = [sys.executable, "-m", "flows.server", "--port", str(self.port)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=self.root, env=self.environment, stdout=log, stderr=log)
        wait_until_healthy(self._process, self.address, self.log)

    def stop(self) -> None:
        if self._process:
            end_process(self._process)


@contextmanager
def proxy() -> Iterator[tuple[dict[str, str], list[str]]]:
    """The variables that name a proxy, which answers nothing, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            asked.append(self.requestline)
            self.send_error(502)

        do_GET = do_POST = do_PUT = do_PATCH = do_CONNECT = do

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        kinds = {name: "socks5" if "all" in name.lower() else "http" for name in names}
        yield {"NO_PROXY": "example.org", **{name: f"{kinds[name]}://127.0.0.1:{server.server_port}" for name in names}}, asked
        server.shutdown()
