"""Checkouts of the project as it is now, each a git repository of its own, and DVC in them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from soundmill import tracking
from tests.flows.tiny import git

BIN = Path(sys.executable).parent
HARD_NAME = "a chéckout%20'&+=z"  # of a directory: what shells, URIs and DVC's files read otherwise
HARDEST_NAME = f"{HARD_NAME}?#"


def track(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record runs, each in its project's own store, whatever the shell says."""
    for name in (tracking.SWITCH, tracking.PARENT, "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_EXP_NAME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is put back too: MLflow itself sets its address
        monkeypatch.delenv(name)


def copy_project(root: Path, copy: Path) -> Path:
    """The project's files, but for data and dvc.lock, committed in a new repository at `copy`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file() and not name.startswith(("data/", "dvc.lock")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        git(copy, *words)
    return copy


def dvc(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "dvc", *arguments], cwd=checkout, capture_output=True, text=True, timeout=3600)


def repro(checkout: Path, *targets: str) -> set[str]:
    """Run the graph, or it up to these targets; returns the names of the stages that ran."""
    done = dvc(checkout, "repro", *targets)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return set(re.findall(r"Running stage '(\S+)'", done.stdout))
