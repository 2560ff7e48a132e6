"""The server of `make server` and a schedule on it, as a person has them; and what others can do with the server."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows import run, serve
from flows.terminal import LOG
from soundmill.errors import UserError
from tests.flows.prefect_server import PrefectServer, ask, environment, proxy, request
from tests.flows.tiny import dvc_command, hold
from tests.processes import end_process, wait_for

SCHEDULE = "* * * * * */10"  # with Prefect's sixth field, of seconds
pytestmark = pytest.mark.slow(minutes=0.8)


@pytest.fixture
def server(tiny: Path, tmp_path: Path) -> Iterator[PrefectServer]:
    """Of the tiny project, with a login of its own; started by the test."""
    server = PrefectServer(tiny, tmp_path)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running(module: str, *arguments: str, project: Path, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is there until it is stopped; Prefect leaves a folder behind."""
    with log.open("w") as file:
        command, environment = [sys.executable, "-m", module, *arguments], {**os.environ, **variables}
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        end_process(process)
        shutil.rmtree(Path(tempfile.gettempdir()) / "runner_storage", ignore_errors=True)


def scheduled(server: PrefectServer) -> list[dict[str, Any]]:
    """The runs that are due, oldest first."""
    found = ask(server.address, "flow_runs/filter", server.login, sort="EXPECTED_START_TIME_ASC", limit=200)
    return [run for run in found if datetime.fromisoformat(run["expected_start_time"]) < datetime.now().astimezone()]


def test_a_schedule_fires_by_itself_and_runs_wait_for_each_other_even_if_the_server_restarts(tiny, server, tmp_path):
    """The first run works until the file `go` is there; until then the second is due, and the server was away."""
    hold(tiny, "first")
    server.environment["PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS"] = "3"  # at a time, so that no more are late than needed
    server.start()
    variables = {**server.environment, "PREFECT_API_URL": server.address, "SOUNDMILL_TRACKING": "off", "TZ": "Asia/Kathmandu"}
    log = tmp_path / "serve.log"
    with running("flows.serve", "--cron", SCHEDULE, project=tiny, log=log, **variables) as schedule:
        wait_for(lambda: schedule.poll() is not None or ((tiny / LOG).exists() and "working on 1" in (tiny / LOG).read_text()), 600)
        assert schedule.poll() is None, log.read_text()
        assert "Asia/Kathmandu" in log.read_text()
        assert log.read_text().count("+0545") == 3
        server.stop()
        server.start()
        first, *due = wait_for(lambda: runs if len(runs := scheduled(server)) >= 2 else None, pause=0.5)
        assert first["state_type"] == "RUNNING"
        assert {run["state_type"] for run in due} <= {"SCHEDULED", "PENDING"}
        (tiny / "go").touch()

        def done() -> list[dict[str, Any]]:
            ended = [run for run in scheduled(server) if run["end_time"]]
            return ended if len(ended) >= 2 else []

        first, second = wait_for(done, pause=0.5)[:2]
    assert [first["state_type"], second["state_type"]] == ["COMPLETED", "COMPLETED"], log.read_text()
    assert first["auto_scheduled"]
    assert second["auto_scheduled"]
    assert first["end_time"] <= second["start_time"]
    assert first["end_time"] > second["expected_start_time"]
    assert dvc_command(tiny, "status").stdout.strip() == "Data and pipelines are up to date."


def test_the_next_times_are_those_of_a_clock_in_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = serve.next_times("0 3 * * *", "America/Los_Angeles")
    assert len(times) == 3
    assert all(re.fullmatch(r"\w+ [\d-]+ 03:00:00 P[DS]T", time) for time in times)
    with pytest.raises(UserError, match=r"--cron '0 3 \* \*' .*give five fields"):
        serve.next_times("0 3 * *", "UTC")
    with pytest.raises(UserError, match="--timezone 'Mars/Olympus'"):
        serve.next_times("0 3 * * *", "Mars/Olympus")
    for active in (True, False):
        (plan,) = serve.deployment(Path(), "0 3 * * *", "America/Los_Angeles", 0, 1, active=active).schedules
        assert (plan.schedule.timezone, plan.active) == ("America/Los_Angeles", active)


@pytest.mark.parametrize("minutes", ["1441", "-1", "nan"])
@pytest.mark.parametrize("command", [run, serve])
def test_a_wait_that_every_run_would_refuse_is_refused_at_once(command, minutes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command.main([f"--wait-minutes={minutes}"])
    assert f"--wait-minutes {minutes}: give 0 to 1440" in capsys.readouterr().err


ATTACKERS = {
    "no password": {"login": ""},
    "wrong password": {"login": "tests:guessed"},
    "foreign page": {"login": "", "Origin": "https://evil.example"},
    "foreign page that knows the password": {"Origin": "https://evil.example"},
    "page of another local server": {"Origin": "http://127.0.0.1:3000"},
    "page without an origin": {"Origin": "null"},
    "foreign name for this machine": {"Host": "evil.example"},
    "foreign name with the right port": {"Host": "evil.example:PORT", "Origin": "http://evil.example:PORT"},
}


def answer(asked: urllib.request.Request) -> tuple[int, Any]:
    for _ in range(10):  # while its SQLite is busy
        try:
            with urllib.request.urlopen(asked, timeout=60) as found:
                return found.status, found.headers
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return error.code, error.headers
            time.sleep(1)
    raise TimeoutError


@pytest.fixture(scope="module")
def target(prefect_server: str) -> dict[str, Any]:
    flow = ask(prefect_server, "flows/", name="target")["id"]
    return ask(prefect_server, "deployments/", name="target", flow_id=flow)


@pytest.mark.parametrize("attacker", [*ATTACKERS, None])
def test_only_who_has_the_password_and_no_page_of_another_site_can_have_the_server_run_something(prefect_server, target, attacker):
    port = prefect_server.split(":")[2].partition("/")[0]
    who = {key: value.replace("PORT", port) for key, value in ATTACKERS.get(attacker, {}).items()}
    script = {"prefect.deployments.steps.run_shell_script": {"script": "touch attacked"}}
    evil = {"name": "evil", "flow_id": target["flow_id"], "job_variables": {"command": "touch attacked"}}
    place = f"deployments/{target['id']}"
    attempts = {("PATCH", place): {"pull_steps": [script]}, ("POST", f"{place}/create_flow_run"): {}}
    attempts |= {("POST", "deployments/"): evil, ("POST", "deployments/filter"): {}, ("GET", "admin/settings"): None}
    found = [answer(request(prefect_server, path, method=method, body=body, **who)) for (method, path), body in attempts.items()]
    if attacker:
        assert {status for status, _ in found} <= {401, 403}
        preflight = request(prefect_server, "deployments/", method="OPTIONS", **who | {"Access-Control-Request-Method": "POST"})
        for _, headers in [*found, answer(preflight)]:
            assert "Access-Control-Allow-Origin" not in headers
    else:
        assert [status for status, _ in found] == [204, 201, 201, 200, 200]


def test_the_login_is_the_projects_own_and_a_flow_of_another_project_is_told(tiny, server, prefect_server, tmp_path, alone):
    server.start()
    assert (tiny / "prefect.toml").stat().st_mode & 0o777 == 0o600
    assert len(server.login) > 40
    assert dvc_command(tiny, "status").returncode == 0
    variables = {**environment(tmp_path, None), "PREFECT_API_URL": server.address, "SOUNDMILL_TRACKING": "off"}
    command = [sys.executable, "-m", "flows.run"]
    with proxy() as (proxies, asked):
        done = subprocess.run(command, cwd=tiny, env={**variables, **proxies}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert asked == []
    (run,) = ask(server.address, "flow_runs/filter", server.login)
    assert run["state_type"] == "COMPLETED"
    variables["PREFECT_API_URL"] = prefect_server
    done = subprocess.run([*command, "--force"], cwd=tiny, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "refuses our login; set PREFECT_API_AUTH_STRING" in done.stdout


def test_a_worker_runs_what_is_started_from_the_servers_page(checkout: Path, tiny: Path, tmp_path: Path) -> None:
    """With the commands of docs/orchestration.md, in the checkout that the server belongs to."""
    server = PrefectServer(checkout, tmp_path)
    variables = {**server.environment, "PREFECT_API_URL": server.address, "SOUNDMILL_TRACKING": "off"}

    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        server.start()
        prefect("work-pool", "create", "soundmill", "--type", "process")
        prefect("deploy", "--name", "pipeline/on-demand")
        log = tmp_path / "worker.log"
        with running("prefect", "worker", "start", "--pool", "soundmill", project=checkout, log=log, **variables):
            prefect("deployment", "run", "pipeline/on-demand", "--param", f"project={json.dumps(str(tiny))}")
            (run,) = wait_for(lambda: [run for run in scheduled(server) if run["end_time"]], pause=0.5)
        assert run["state_type"] == "COMPLETED", log.read_text()
        assert (tiny / "data/generated/tiny/a.wav").is_file()
    finally:
        server.stop()
