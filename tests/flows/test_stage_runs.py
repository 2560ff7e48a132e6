"""Stages at the same time in a flow on a real Prefect server: same bytes, failures, interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from flows import lockfile
from flows.terminal import LOG
from soundmill import params
from tests.checkouts import copy_project, dvc
from tests.flows.test_pipeline import ask, environment, pipeline, read
from tests.flows.tiny import git, make_tiny
from tests.graph import SHRUNK
from tests.processes import assert_nothing_is_left, contents, marked, new_mark, wait_for

ADDED = """
  NAME:
    cmd: COMMAND && echo NAME > data/NAME.txt
    outs: [data/NAME.txt]
"""


def add_stage(project: Path, name: str, command: str) -> None:
    """A stage that needs no other."""
    with (project / "dvc.yaml").open("a") as graph:
        graph.write(ADDED.replace("NAME", name).replace("COMMAND", command))


def two_slots(project: Path) -> None:
    document = params.read_yaml(project / "params.yaml")
    document["execution"]["slots"] = {"cpu": 2, "gpu": 0}
    params.write_yaml(document, project / "params.yaml")


def outputs(data: Path) -> dict[str, str]:
    """Digests of what stages wrote."""
    return {name: digest for name, digest in contents(data).items() if not name.startswith((".work/", LOG.name))}


@pytest.mark.slow(minutes=1)
def test_two_at_a_time_leave_the_bytes_of_one_at_a_time(tmp_path: Path, prefect_server: str) -> None:
    made = {}
    for slots in (1, 2):
        project = make_tiny(tmp_path / f"{slots} at a time")
        document = params.read_yaml(project / "params.yaml")
        document |= {"families": {"a": {}, "b": {}}, "evaluate": {"number": 2, "fail": False, "seconds": 2.0}}
        document["execution"]["slots"]["cpu"] = slots
        params.write_yaml(document, project / "params.yaml")
        done = pipeline(project, tmp_path, prefect_server)
        assert done.returncode == 0, done.stdout + done.stderr
        (flow_run,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
        tasks = ask(prefect_server, "task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
        times = {task["name"]: [datetime.fromisoformat(task[key]) for key in ("start_time", "end_time")] for task in tasks}
        assert times.keys() == {"first", "evaluate@a", "evaluate@b"}
        assert times["first"][1] <= min(times["evaluate@a"][0], times["evaluate@b"][0])
        overlap = max(times["evaluate@a"][0], times["evaluate@b"][0]) < min(times["evaluate@a"][1], times["evaluate@b"][1])
        assert overlap == (slots == 2)
        made[slots] = outputs(project / "data"), (project / "dvc.lock").read_text()
    assert made[1] == made[2]


@pytest.mark.slow(minutes=0.5)
def test_when_a_stage_fails_those_that_run_finish_and_no_other_starts(
    tiny: Path, tmp_path: Path, prefect_server: str, set_param: Callable[..., None]
) -> None:
    two_slots(tiny)
    set_param("first", fail=True)
    add_stage(tiny, "running", f"until grep -q 'first. failed' {LOG}; do sleep 0.1; done")
    add_stage(tiny, "waiting", "true")
    done = pipeline(tiny, tmp_path, prefect_server)
    assert done.returncode == 1
    assert "stage first failed; its last lines:" in done.stdout
    assert "to continue with first." in done.stdout
    assert (tiny / "data/running.txt").exists()
    assert not (tiny / "data/waiting.txt").exists()
    assert set(params.read_yaml(tiny / "dvc.lock")["stages"]) == {"running"}
    (flow_run,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    tasks = ask(prefect_server, "task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
    assert {(task["name"], task["state_name"]) for task in tasks} == {("first", "Failed"), ("running", "Ran")}


@pytest.mark.slow(minutes=0.5)
def test_an_interrupt_stops_all_stages(tiny: Path, tmp_path: Path, prefect_server: str, set_param: Callable[..., None]) -> None:
    two_slots(tiny)
    set_param("first", seconds=60.0)
    add_stage(tiny, "running", "sleep 60")
    mark = new_mark()
    variables = environment(tmp_path, prefect_server) | mark
    command = [sys.executable, "-m", "flows.run"]
    flow = subprocess.Popen(
        command, cwd=tiny, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for(lambda: b"working on 1" in read(tiny / LOG) and any("sleep 60" in line for line in marked(mark).values()), pause=0.1)
    os.killpg(flow.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    said, _ = flow.communicate(timeout=120)
    assert flow.returncode == 130, said
    assert "interrupted; finished stages are kept" in said
    assert "Traceback" not in said
    assert_nothing_is_left(mark, set())


@pytest.mark.slow(minutes=4)
def test_the_graph_two_stages_at_a_time(built_graph: Path, root: Path, tmp_path: Path, prefect_server: str) -> None:
    """The real stages, also with two processes to generate: the bytes that `dvc repro` makes, one stage after the other.

    Another machine pulls what was pushed, and has the same results and reports.
    """
    copy = copy_project(root, tmp_path / "a checkout")
    changed = [*SHRUNK, "execution.workers=1", "execution.slots.cpu=2", "execution.devices=2"]
    params.write_yaml(params.compose(copy / "conf", changed), copy / "params.yaml")
    assert dvc(copy, "remote", "add", "--default", "store", str(tmp_path / "store")).returncode == 0
    command, variables = [sys.executable, "-m", "flows.run", "--push"], environment(tmp_path, prefect_server)
    done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lockfile.fault_of(copy / "dvc.lock") is None
    assert params.read_yaml(copy / "dvc.lock")["stages"] == params.read_yaml(built_graph / "dvc.lock")["stages"]

    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "results")
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(copy), str(other))
    pulled = dvc(other, "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert (other / "data/report/ddpm_mel/index.html").is_file()
    assert outputs(other / "data") == outputs(copy / "data")
    assert outputs(copy / "data") == outputs(built_graph / "data")
