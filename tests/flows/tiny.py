"""Makes a tiny project of two stages with the real stage contract, git and DVC; and runs their commands in it."""

import os
import subprocess
import sys
from pathlib import Path

from soundmill import ledger

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
execution: {workers: 1, devices: null, dask: null, lanes: {number: 1, gpus: 0}}
families: {tiny: {}}
first: {number: 1, fail: false, seconds: 0.0}
evaluate: {number: 2, fail: false, seconds: 0.0}
"""


REST = {"start": None, "end": None, "clips": [], "fingerprint": "", "copy_of": None, "reason": "asked for"}
DOG, CAT, COW = (  # of the list of what is forgotten
    {"recording_id": name, "source": f"{name}.wav", "digest": digit * 32, **REST}
    for name, digit in (("dog", "a"), ("cat", "b"), ("cow", "c"))
)


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc_command(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command, env = [DVC, *arguments], with_dvc(**variables)
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)


def with_dvc(**variables: str) -> dict[str, str]:
    """The environment in which `dvc` and its stages' `python` are those of the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **variables}


def with_list(root: Path) -> Path:
    """The project, with an empty list of what is forgotten."""
    ledger.write([], root / ledger.FILE)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "A list")
    return root


def forgotten_in(root: Path) -> list[str]:
    return [entry["recording_id"] for entry in ledger.read(root / ledger.FILE)]


def hold(root: Path, stage: str) -> None:
    """Have a stage of the tiny project work until the file `go` is there."""
    code = (root / f"{stage}.py").read_text()
    waiting = 'while not __import__("pathlib").Path("go").exists(): time.sleep(0.1)'
    (root / f"{stage}.py").write_text(code.replace("time.sleep(params.seconds)", waiting))


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
    (root / ".dvc" / "tmp").mkdir(parents=True)  # as `dvc init` makes it, which takes two seconds
    for name in ("config", "tmp/btime"):
        (root / ".dvc" / name).touch()
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".dvcignore").write_text("# Patterns of files that DVC should ignore\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "A tiny project")
    return root
