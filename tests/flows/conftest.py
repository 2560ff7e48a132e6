"""A tiny project with the real stage contract, DVC, git and tracking; and nothing of the tests may touch the checkout's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DVC = str(Path(sys.executable).parent / "dvc")

STAGE = '''
"""Writes the number it is given, or fails, or waits, as its parameters say."""
import time
from soundmill import stage
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output  # noqa: F401


class Params(StageParams):
    number: int
    fail: bool
    seconds: float


def run(params: Params, ctx: Context, __PORTS__written: Output):
    print(f"working on {params.number}")
    time.sleep(params.seconds)
    if params.fail:
        raise UserError("the number is wrong; give another one")
    written.write_text(f"{params.number} {__READ__}")
    ctx.tracking.log_curve({"loss": 0.5}, 1)
    return {"number": params.number, "nested": {"share": 0.25}}


stage.main(run, section=__SECTION__)
'''

GRAPH = """
stages:
  first:
    cmd: python first.py --written data/first.txt --metrics data/metrics/first.json
    deps: [first.py]
    params: [first]
    outs: [data/first.txt]
    metrics: [data/metrics/first.json: {cache: false}]
  evaluate:
    foreach: ${families}
    do:
      cmd: >-
        python evaluate.py --name evaluate/${key} --read data/first.txt --written data/generated/${key}/a.wav
        --metrics data/metrics/evaluate/${key}.json
      deps: [evaluate.py, data/first.txt]
      params: [evaluate]
      outs: ["data/generated/${key}"]
      metrics: ["data/metrics/evaluate/${key}.json": {cache: false}]
"""

PARAMS = """
execution: {workers: 1}
families: {tiny: {}}
first: {number: 1, fail: false, seconds: 0.0}
evaluate: {number: 2, fail: false, seconds: 0.0}
"""


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc_command(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **variables}
    return subprocess.run([DVC, *arguments], cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tiny project's own store, whatever the shell says."""
    for name in ("MLFLOW_TRACKING_URI", "SOUNDMILL_TRACKING", "SOUNDMILL_PARENT_RUN_ID", "MLFLOW_RUN_ID", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A git and DVC project of two stages, committed; its path has a space in it."""
    return make_tiny(tmp_path / "a project")


def make_tiny(root: Path) -> Path:
    root.mkdir()
    for section, ports, read in (("first", "", "''"), ("evaluate", "read: Input, ", "read.read_text()")):
        code = STAGE.replace("__SECTION__", repr(section)).replace("__PORTS__", ports).replace("__READ__", read)
        (root / f"{section}.py").write_text(code.lstrip())
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text(
        "__pycache__/\n/mlflow.db*\n/mlartifacts/\n/workspaces/\n/.prefect/\n/data/*\n!/data/metrics/\n"
    )
    git(root, "init", "-q", "-b", "main")
    assert dvc_command(root, "init", "-q").returncode == 0
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "A tiny project")
    return root


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
        for _ in range(240):
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
