"""What `python -m stages.NAME` does before the stage itself is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stages
from tests.imports import ROOT

CHILDREN = """
import sys
from pathlib import Path

sys.argv, sys.orig_argv = {argv!r}, {orig_argv!r}
import stages

children = Path("/proc/self/task").glob("*/children")
print(sum(len(path.read_text().split()) for path in children), *sorted({{"numpy", "pyarrow", "pydantic"}} & set(sys.modules)))
"""


def started(argv: list[str], orig_argv: list[str]) -> str:
    """How many processes importing `stages` starts, and what heavy it imports."""
    code = CHILDREN.format(argv=argv, orig_argv=orig_argv)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return done.stdout.strip()


def test_the_stages_that_map_over_shards_are_known():
    mapping = {path.stem for path in (ROOT / "stages").glob("*.py") if maps(path)}
    assert mapping == set(stages.WORKERS_IMPORT)


def maps(path: Path) -> bool:
    source = path.read_text(encoding="utf-8")
    return "ctx.map_shards" in source or "ctx.make_shards" in source


@pytest.mark.parametrize(
    ("argv", "orig_argv", "processes"),
    [
        (["-m"], ["python", "-m", "stages.resample", "--clips", "-m"], 2),  # the server, and Python's tracker of semaphores
        (["-m"], ["python", "-X", "utf8", "-m", "stages.spectrogram"], 2),
        (["-m"], ["python", "-m", "stages.train"], 0),
        (["-m"], ["python", "-m", "stages.resample", "--help"], 0),
        (["-m"], ["python", "-m", "other.resample"], 0),
        (["-m"], ["python", "-mstages.resample"], 0),
        (["run.py"], ["python", "run.py", "-m", "stages.resample"], 0),
        ([""], ["python"], 0),
    ],
)
def test_a_program_that_maps_starts_the_server_of_its_workers_before_its_own_imports(argv, orig_argv, processes):
    assert started(argv, orig_argv) == str(processes)


@pytest.mark.parametrize("name", stages.WORKERS_IMPORT)
def test_a_stage_and_what_its_workers_need_can_be_imported_by_the_server(name):
    """Python's fork server says nothing of a module that it cannot import."""
    modules = ["soundmill.preload", f"stages.{name}", *stages.WORKERS_IMPORT[name]]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, check=True, timeout=60)


def test_a_cluster_of_the_environment_needs_no_server(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    assert started(["-m"], ["python", "-m", "stages.resample"]) == "0"
