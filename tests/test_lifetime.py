"""`dvc` killed by -9 at any moment of a stage, which then ends at once and puts nothing in place; and stages started by hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from soundmill import lifetime
from tests.processes import assert_nothing_is_left, contents, marked, new_mark, ports, wait_for
from tests.tracking.reading import client

# The stage `resample` of a project of its own: imports that take a while, and work that does.
STAGE = '''
"""Imports what takes a while, then keeps two workers busy, then writes a number."""
import time

import pandas
import pyarrow.parquet
import scipy.signal

from soundmill import shards, stage
from soundmill.params import StageParams
from soundmill.stage import Context, Output


class Params(StageParams):
    seconds: float


def busy(seconds: float, output) -> shards.Report:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    output.touch()
    return shards.Report()


def run(params: Params, ctx: Context, written: Output):
    print("working", flush=True)
    ctx.make_shards(busy, [shards.Job(str(number), (params.seconds,)) for number in range(2)], "busy")
    written.write_text("made")
    return {"seconds": params.seconds}


if __name__ == "__main__":
    stage.main(run, section="resample")
'''

GRAPH = """
stages:
  resample:
    cmd: sh stages/python.sh -m stages.resample --written data/written.txt --metrics data/metrics.json
    params: [resample]
    outs: [data/written.txt]
    metrics: [data/metrics.json: {cache: false}]
"""

COMMAND = "sh stages/python.sh -m stages.resample --written data/written.txt --metrics data/metrics.json".split()

SECONDS = 2.0  # of work

# As shells that do not become the last command that they run, but wait for it.
WAITING_SHELL = '#!/bin/sh\nsh "$@"\nexit $?\n'


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project of that stage, started as the real ones are; its path has a space in it."""
    project = tmp_path_factory.mktemp("killed") / "a project"
    (project / "stages").mkdir(parents=True)
    for name in ("__init__.py", "python.sh"):
        shutil.copy(root / "stages" / name, project / "stages" / name)
    (project / "stages" / "resample.py").write_text(STAGE.lstrip())
    (project / "dvc.yaml").write_text(GRAPH)
    write_params(project, SECONDS)
    shell = project / "shell"
    shell.write_text(WAITING_SHELL)
    shell.chmod(0o755)
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (project / ".venv" / "bin" / "python").chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run([Path(sys.executable).parent / "dvc", "init", "-q"], cwd=project, check=True)
    return project


def write_params(project: Path, seconds: float) -> None:
    (project / "params.yaml").write_text(
        f"execution: {{workers: 2, devices: null, dask: null, lanes: {{number: 1, gpus: 0}}}}\nresample: {{seconds: {seconds}}}\n"
    )


def environment(root: Path, **more: str) -> dict[str, str]:
    ours = ("MLFLOW_", "SOUNDMILL_", "DVC_", "SHELL")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", "SHELL": "/bin/sh", **more}


def repro(project: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).parent / "dvc", "repro", "--force"]
    return subprocess.Popen(command, cwd=project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stage_begins(dvc: subprocess.Popen[bytes]) -> bool:
    """Whether the shell of the stage's command has been started."""
    assert dvc.poll() is None, dvc.stdout.read().decode()
    with suppress(OSError):  # of one that has just ended
        children = Path(f"/proc/{dvc.pid}/task/{dvc.pid}/children").read_text().split()
        return any(b"stages.resample" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)
    return False


def kill(project: Path, dvc: subprocess.Popen[bytes], mark: dict[str, str]) -> None:
    """`kill -9` of `dvc`: nothing that it started is left a little later, and nothing has been put in place."""
    assert dvc.poll() is None, dvc.stdout.read().decode()
    listened = ports(marked(mark))
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    before = contents(project / "data")
    assert_nothing_is_left(mark, listened)
    after = {name: digest for name, digest in contents(project / "data").items() if not name.startswith(".work/")}
    assert after == {name: digest for name, digest in before.items() if not name.startswith(".work/")}
    assert "written.txt" not in after


SLOW_KILLS = [("waiting", 0.0), ("waiting", 0.1), ("waiting", 1.5), ("bash", 0.0), ("bash", 0.3)]  # shell, seconds until the kill


@pytest.mark.parametrize(
    ("shell", "delay"), [("waiting", 0.6), *(pytest.param(*kill, marks=pytest.mark.slow) for kill in SLOW_KILLS)]
)
def test_a_stage_dies_with_dvc_from_its_exec_on(project: Path, root: Path, shell: str, delay: float) -> None:
    """Under a shell that waits for the stage, which is then no child of `dvc`, and under one that becomes it."""
    executable = str(project / "shell") if shell == "waiting" else shutil.which(shell)
    if not executable:
        pytest.skip(f"needs {shell}")
    mark = new_mark()
    dvc = repro(project, environment(root, SHELL=executable, SOUNDMILL_TRACKING="off", **mark))
    wait_for(lambda: stage_begins(dvc), pause=0.0005)
    time.sleep(delay)
    kill(project, dvc, mark)


@pytest.mark.slow
def test_a_stage_killed_at_work_takes_its_workers_along_and_its_run_is_ended(project, root, mlflow_tables):
    shutil.copy(mlflow_tables, project / "mlflow.db")
    write_params(project, 600.0)
    mark = new_mark()
    dvc = repro(project, environment(root, **mark))
    wait_for(lambda: b"working" in dvc.stdout.readline())
    wait_for(lambda: sum("multiprocessing.forkserver" in command for command in marked(mark).values()) == 3)  # with two workers
    wait_for(lambda: recorded(project) == ["RUNNING"], pause=0.5)
    kill(project, dvc, mark)
    write_params(project, SECONDS)
    wait_for(lambda: recorded(project) == ["KILLED"], pause=0.5)

    whole = repro(project, environment(root))
    said = whole.communicate()[0].decode()
    assert whole.returncode == 0, said
    assert (project / "data" / "written.txt").read_text() == "made"
    wait_for(lambda: sorted(recorded(project)) == ["FINISHED", "KILLED"], pause=0.5)


def recorded(project: Path) -> list[str]:
    """How the stage's runs ended."""
    return [run.info.status for run in client(project).search_runs(["1"], "tags.kind = 'stage'")]


def test_a_stage_whose_dvc_was_killed_before_its_first_line_does_nothing(project: Path, root: Path) -> None:
    """The lock that such a `dvc` leaves names a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    (project / lifetime.LOCKS).write_text(json.dumps({"write": {"/x": {"pid": gone.pid, "cmd": "dvc repro"}}}))
    shutil.rmtree(project / "data", ignore_errors=True)
    variables = environment(root, DVC_ROOT=str(project), SOUNDMILL_TRACKING="off")
    done = subprocess.run(COMMAND, cwd=project, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the `dvc` that started this stage was killed; run it again" in done.stderr
    assert not (project / "data" / "written.txt").exists()
    (project / lifetime.LOCKS).write_text("{}")


@pytest.mark.slow
def test_a_stage_started_by_hand_outlives_its_shell(project: Path, root: Path) -> None:
    shutil.rmtree(project / "data", ignore_errors=True)
    mark = new_mark()
    line = " ".join(COMMAND) + " & wait"
    shell = subprocess.Popen(["sh", "-c", line], cwd=project, env=environment(root, SOUNDMILL_TRACKING="off", **mark))
    wait_for(lambda: any("-m stages.resample" in command and "sh -c" not in command for command in marked(mark).values()))
    shell.kill()
    shell.wait()
    wait_for(lambda: not marked(mark), pause=0.1)
    assert (project / "data" / "written.txt").read_text() == "made"


def test_a_lock_of_dvc_that_is_being_rewritten_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / lifetime.LOCKS
    assert lifetime.dvc_locks(tmp_path) == []
    path.parent.mkdir(parents=True)
    path.write_text('{"write": {"/x": {"pi')
    writer = threading.Timer(0.1, path.write_text, [json.dumps({"read": {"/y": [{"pid": 7, "cmd": "dvc repro"}]}})])
    writer.start()
    assert [info["pid"] for info in lifetime.dvc_locks(tmp_path)] == [7]
    writer.join()
