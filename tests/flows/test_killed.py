"""A flow killed by -9 while it starts and at work: its server, its `dvc` and its stage end with it, and its runs are KILLED."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import locks
from flows.terminal import LOG
from tests.flows.test_pipeline import runs
from tests.processes import assert_nothing_is_left, contents, marked, new_mark, ports, wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def flow(
    tiny: Path, tracked: None, tmp_path: Path, set_param: Callable[..., None]
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A flow whose first stage works for a minute, with a server of its own, and the mark of its processes."""
    set_param("first", seconds=60.0)
    mark = new_mark()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    variables = {**kept, **mark, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "flows.run", "first"]
    process = subprocess.Popen(command, cwd=tiny, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process, mark
    process.kill()
    process.wait()


def kill(flow: subprocess.Popen[str], mark: dict[str, str], project: Path) -> None:
    assert flow.poll() is None, flow.stdout.read()
    before, listened = contents(project / "data"), ports(marked(mark))
    flow.kill()
    flow.wait()
    assert_nothing_is_left(mark, listened)
    assert contents(project / "data") == before


@pytest.mark.attack
def test_a_flow_killed_while_its_server_starts(flow: tuple[subprocess.Popen[str], dict[str, str]], tiny: Path) -> None:
    process, mark = flow
    wait_for(lambda: any("flows.server" in command for command in marked(mark).values()), pause=0.05)
    kill(process, mark, tiny)


@pytest.mark.slow(minutes=0.4)
def test_a_flow_killed_at_work(flow: tuple[subprocess.Popen[str], dict[str, str]], tiny: Path) -> None:
    process, mark = flow
    wait_for(lambda: "working" in (tiny / LOG).read_text() if (tiny / LOG).exists() else False)
    assert ports(pid for pid, command in marked(mark).items() if "flows.server" in command)
    assert locks.holders(tiny)
    kill(process, mark, tiny)
    assert locks.holders(tiny) == []
    wait_for(lambda: {run.info.status for run in runs(tiny)} == {"KILLED"}, seconds=30, pause=0.5)
