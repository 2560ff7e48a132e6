"""What `python -m stages.NAME` does before the stage itself is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from tests.imports import ROOT

STARTED = """
import sys
from pathlib import Path

sys.argv, sys.orig_argv = {argv!r}, {orig_argv!r}
import gc, os
import stages

children = Path("/proc/self/task").glob("*/children")
assert not any(path.read_text().split() for path in children)
assert not {{"numpy", "pyarrow", "pydantic"}} & set(sys.modules)
print(gc.isenabled(), os.environ.get("OMP_NUM_THREADS"))
"""


def started(argv: list[str], orig_argv: list[str]) -> str:
    """Of a process that has imported `stages` and nothing heavy: whether it collects garbage, its number of threads."""
    code = STARTED.format(argv=argv, orig_argv=orig_argv)
    env = {**os.environ, "OMP_NUM_THREADS": "5"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    return done.stdout.strip()


def test_the_stages_that_map_over_shards_are_known():
    mapping = {path.stem for path in (ROOT / "stages").glob("*.py") if maps(path)}
    assert mapping == stages.MAPPING


def maps(path: Path) -> bool:
    source = path.read_text(encoding="utf-8")
    return "ctx.map_shards" in source or "ctx.make_shards" in source


@pytest.mark.parametrize(
    ("argv", "orig_argv", "prepared"),
    [
        (["-m"], ["python", "-m", "stages.resample", "--clips", "-m"], True),
        (["-m"], ["python", "-X", "utf8", "-m", "stages.spectrogram"], True),
        (["-m"], ["python", "-m", "stages.train"], False),
        (["-m"], ["python", "-m", "other.resample"], False),
        (["-m"], ["python", "-mstages.resample"], False),
        (["run.py"], ["python", "run.py", "-m", "stages.resample"], False),
        ([""], ["python"], False),
    ],
)
def test_a_program_that_maps_is_prepared_to_fork_before_its_imports(argv, orig_argv, prepared):
    assert started(argv, orig_argv) == ("False 1" if prepared else "True 5")
