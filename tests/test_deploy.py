"""The files of deploy/ and prefect.yaml agree with the project, and with what MLflow, Prefect, Docker and Caddy read in them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from flows import serve
from soundmill.commands import doctor
from tests import postgres
from tests.imports import ROOT
from tests.mlflow_server import free_port, wait_until_healthy
from tests.postgres import Postgres
from tests.processes import kill_group

DEPLOY = ROOT / "deploy"
CODE = {"conf", "flows", "soundmill", "stages"}
PREFECT = Path(sys.executable).with_name("prefect")
LOGIN = "team:a secret"
FLOW = "from prefect import flow\n\n@flow\ndef counted():\n    return 1\n\ncounted()\n"


def steps() -> list[dict[str, Any]]:
    """The instructions of the Dockerfile, in order."""
    parser = DockerfileParser(fileobj=(DEPLOY / "Dockerfile").open("rb"))
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


def copied(step: dict[str, Any]) -> list[str]:
    return step["value"].split()[:-1] if step["instruction"] == "COPY" else []


def test_what_the_image_copies_exists_and_code_comes_after_the_packages() -> None:
    found = steps()
    sources = [source for step in found for source in copied(step)]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = next(index for index, step in enumerate(found) if "-r pyproject.toml" in step["value"])
    before = {source for step in found[:packages] for source in copied(step)}
    assert before == {"pyproject.toml", "constraints.txt"}
    after = {source for step in found[packages:] for source in copied(step)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    at_root = {name for name in tracked if "/" not in name and name.endswith((".yaml", ".md"))}
    assert after == CODE | at_root
    assert {name.partition("/")[0] for name in tracked if name.endswith(".py")} - after == {"bench", "tests"}


def test_the_extras_that_the_image_and_docs_install_are_the_projects() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [step["value"] for step in steps()] + [(ROOT / "docs" / "team.md").read_text()]
    named = {name for text in texts for name in re.findall(r"--extra (\w+)|\.\[(\w+)\]", text) for name in name if name}
    assert named == {"server", "docker", "kubernetes", "s3"}
    assert all(part in (DEPLOY / "Dockerfile").read_text() for part in ("--extra server $EXTRAS -r", "UV_COMPILE_BYTECODE=1"))
    assert named <= extras.keys()
    assert set(extras["server"]) <= set(extras["test"])


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_setting_of_compose_is_in_the_example_and_every_file_exists() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = set(re.findall(r"^(?:# )?([A-Z_0-9]+)=", (DEPLOY / "team.env.example").read_text(), re.M))
    variables = [pair for service in compose()["services"].values() for pair in service.get("environment", {}).items()]
    passed_on = {name for name, value in variables if value is None}
    assert set(re.findall(r"\$\{(\w+):\?\}", text)) | passed_on == example
    secrets = re.findall(r"^(\w*(?:PASSWORD|LOGIN|KEY)\w*)=(.*)$", (DEPLOY / "team.env.example").read_text(), re.M)
    assert len(secrets) >= 5
    assert {value.strip("'") for _, value in secrets} == {""}  # which compose refuses
    assert "${" not in re.sub(r"\$\{\w+:\?\}", "", text)  # one that is not set is an error
    mounted = [volume for service in compose()["services"].values() for volume in service.get("volumes", [])]
    files = [volume.partition(":")[0] for volume in mounted if volume.startswith(".")]
    assert [name for name in files if not (DEPLOY / name).is_file()] == []
    assert {volume.partition(":")[0] for volume in mounted if not volume.startswith(".")} == compose()["volumes"].keys()
    published = {name for name, service in compose()["services"].items() if "ports" in service}
    assert published == {"entrance"}


def test_mlflow_and_prefect_know_the_variables_that_compose_sets() -> None:
    from mlflow import environment_variables
    from mlflow.cli import cli
    from prefect import settings

    services = compose()["services"]
    assert services["mlflow"]["command"][:2] == ["mlflow", "server"]
    options = {option.envvar for option in cli.commands["server"].params}
    for name in services["mlflow"]["environment"]:
        assert name.startswith("AWS_") or name in options or hasattr(environment_variables, name), name
    for name in services["prefect"]["environment"]:
        assert hasattr(settings, name), name


def test_caddy_reads_its_file(tmp_path: Path) -> None:
    if not shutil.which("caddy"):
        pytest.skip("needs Caddy: apt-get install caddy")
    hashed = subprocess.run(["caddy", "hash-password", "--plaintext", "secret"], capture_output=True, text=True, check=True).stdout
    names = compose()["services"]["entrance"]["environment"]
    values = dict.fromkeys(names, "mlflow.example.org") | {"PREFECT_NAME": "prefect.example.org"}
    values["MLFLOW_PASSWORD_HASH"] = hashed.strip()
    command = ["caddy", "adapt", "--config", DEPLOY / "Caddyfile", "--adapter", "caddyfile"]
    adapted = subprocess.run(command, env={**values, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert adapted.returncode == 0, adapted.stderr
    (server,) = json.loads(adapted.stdout)["apps"]["http"]["servers"].values()
    handlers = {route["match"][0]["host"][0]: json.dumps(route["handle"]) for route in server["routes"]}
    asking = {name: "http_basic" in text for name, text in handlers.items()}
    assert asking == {"mlflow.example.org": True, "prefect.example.org": False}


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_every_flow_is_offered_to_processes_docker_and_kubernetes() -> None:
    pools: dict[str, set[str]] = {}
    for deployment in deployments():
        pools.setdefault(deployment["entrypoint"], set()).add(deployment["work_pool"]["name"])
        path, _, function = deployment["entrypoint"].partition(":")
        assert f"def {function}(" in (ROOT / path).read_text()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        if name := deployment["parameters"].get("name"):
            assert (ROOT / "conf/sweep" / f"{name}.yaml").is_file()
        (schedule,) = deployment["schedules"]
        assert serve.next_times(schedule["cron"], schedule["timezone"])
        assert schedule["active"] is False
    assert set(map(frozenset, pools.values())) == {frozenset({"soundmill", "soundmill-docker", "soundmill-kubernetes"})}
    image = next(step["value"] for step in steps() if step["instruction"] == "WORKDIR")
    pulled = {json.dumps(deployment["pull"]) for deployment in deployments() if "pull" in deployment}
    assert pulled == {json.dumps([{"prefect.deployments.steps.set_working_directory": {"directory": image}}])}


@pytest.fixture
def team(tmp_path: Path) -> Iterator[tuple[Postgres, dict[str, str], Callable[[], subprocess.Popen[bytes]]]]:
    """PostgreSQL, the environment of Prefect's clients, and what starts a Prefect server on it, with a password."""
    with postgres.running() as database:
        database.run("createdb", "prefect")
        port, processes = free_port(), []
        environment = {
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_API_AUTH_STRING": LOGIN,
            "PREFECT_SERVER_API_AUTH_STRING": LOGIN,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url("prefect", "postgresql+asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
            "DO_NOT_TRACK": "1",
            "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
        }

        def start() -> subprocess.Popen[bytes]:
            command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
            with (tmp_path / "prefect.log").open("ab") as log:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
                )
            wait_until_healthy(processes[-1], environment["PREFECT_API_URL"], tmp_path / "prefect.log")
            return processes[-1]

        try:
            yield database, environment, start
        finally:
            for process in processes:
                kill_group(process)


@pytest.mark.attack
def test_prefect_on_postgresql_has_all_deployments_and_runs_after_a_kill_and_in_a_backup(team, tmp_path, monkeypatch) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

    database, environment, start = team
    server = start()

    def prefect(*arguments: str | Path) -> str:
        done = subprocess.run([PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    own = json.loads((DEPLOY / "kubernetes-pool.json").read_text())
    theirs = json.loads(prefect("work-pool", "get-default-base-job-template", "--type", "kubernetes"))
    assert own["variables"]["properties"].pop("gpus")["default"] == "0"
    pod = own["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod.pop("volumes")[0] == {"name": "checkout", "persistentVolumeClaim": {"claimName": "soundmill"}}
    assert pod.pop("securityContext") == {"fsGroup": 1000}
    (container,) = pod["containers"]
    assert container.pop("volumeMounts")[0] == {"name": "checkout", "mountPath": "/soundmill"}
    assert container.pop("envFrom") == [{"secretRef": {"name": "soundmill", "optional": True}}]
    assert container["resources"]["limits"].pop("nvidia.com/gpu") == "{{ gpus }}"
    assert own == theirs

    pools = {"soundmill": ["process"], "soundmill-docker": ["docker"]}
    pools["soundmill-kubernetes"] = ["kubernetes", "--base-job-template", str(DEPLOY / "kubernetes-pool.json")]
    for name, kind in pools.items():
        prefect("work-pool", "create", name, "--type", *kind)
    prefect("deploy", "--all")
    (tmp_path / "counted.py").write_text(FLOW)
    subprocess.run([sys.executable, tmp_path / "counted.py"], env=environment, check=True, capture_output=True)

    def check() -> None:
        url, auth = environment["PREFECT_API_URL"], tuple(LOGIN.split(":"))
        found = httpx.post(f"{url}/deployments/filter", json={}, auth=auth, timeout=60).json()
        wanted = sorted((one["entrypoint"], one["work_pool"]["name"]) for one in deployments())
        assert sorted((one["entrypoint"], one["work_pool_name"]) for one in found) == wanted
        in_containers = [one for one in found if one["work_pool_name"] != "soundmill"]
        assert {one["job_variables"]["env"]["MLFLOW_TRACKING_URI"] for one in in_containers} == {"https://mlflow.example.org"}
        (run,) = httpx.post(f"{url}/flow_runs/filter", json={}, auth=auth, timeout=60).json()
        assert run["state_type"] == "COMPLETED"

    check()
    kill_group(server)
    database.kill()
    database.start()
    start()
    check()
    for name in ("PREFECT_HOME", "PREFECT_API_URL"):
        monkeypatch.setenv(name, environment[name])
    with temporary_settings({PREFECT_API_AUTH_STRING: LOGIN}):
        found = [(one.name, one.state) for one in doctor._prefect(ROOT)]
        assert found == [(name, "ok") for name in ("Prefect", "Prefect", "clocks")]
    with temporary_settings({PREFECT_API_AUTH_STRING: "team:wrong"}):
        refused = doctor._prefect(ROOT)
    assert refused.state == "optional"
    assert "refuses our login; set PREFECT_API_AUTH_STRING" in refused.detail

    (tmp_path / "prefect.dump").write_bytes(database.run("pg_dump", "--format=custom", "prefect").stdout)
    database.run("createdb", "restored")
    database.run("pg_restore", "--exit-on-error", "-d", "restored", tmp_path / "prefect.dump")
    counts = "select (select count(*) from deployment), (select count(*) from flow_run where state_type = 'COMPLETED')"
    assert database.run("psql", "-d", "restored", "-tAc", counts).stdout.decode().strip() == f"{len(deployments())}|1"
