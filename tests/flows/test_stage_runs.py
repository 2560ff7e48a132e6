"""Stages at the same time in a flow on a real Prefect server: same bytes."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from flows import lockfile
from flows.terminal import LOG
from soundmill import params
from tests.checkouts import copy_project, dvc
from tests.flows.prefect_server import ask, environment
from tests.flows.test_pipeline import pipeline
from tests.flows.tiny import git, make_tiny
from tests.graph import SHRUNK
from tests.processes import contents


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


@pytest.mark.attack
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
