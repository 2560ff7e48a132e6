"""A team's servers: MLflow on PostgreSQL and a bucket, with many runs at once from several machines; backup and restore."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soundmill import tracking
from soundmill.commands import doctor
from soundmill.tracking import journal
from soundmill.tracking.stores import HTTP
from tests import buckets
from tests import postgres as postgreses
from tests.buckets import Store
from tests.mlflow_server import Server, free_port
from tests.postgres import Postgres
from tests.processes import wait_for
from tests.tracking.reading import client, text

MACHINES, POINTS = 4, 200
HALF = POINTS // 2
PATIENCE_SECONDS = 900.0
BUCKET = "the-team"


def environment(bucket: Store) -> dict[str, str]:
    """For MLflow's server, which keeps files in the bucket."""
    return {**buckets.ENVIRONMENT, "MLFLOW_S3_ENDPOINT_URL": bucket.url}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgreses.running() as server:
        yield server


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    with buckets.running() as store:
        store.client.create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture(scope="module")
def server(postgres: Postgres, bucket: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLflow's, in two processes."""
    postgres.run("createdb", "mlflow")
    folder, address = tmp_path_factory.mktemp("server"), postgres.url("mlflow", "postgresql+psycopg")
    server = Server(folder, address, f"s3://{BUCKET}/mlflow", environment(bucket), workers=2)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def machines(server: Server, tmp_path: Path, tracked: None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The projects of as many machines, all with the same code and parameters, in an experiment of their own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    homes = [tmp_path / f"machine-{number}" for number in range(MACHINES)]
    for home in homes:
        home.mkdir()
        (home / "params.yaml").write_text("train: {rate: 1e-4}\n")
    return homes


def train(environment: dict[str, str], home: Path, number: int, written: Any, gate: Any, dies_at: int | None) -> None:
    """A run of two curves and a picture; halfway it waits until the test closes the other end of `gate`."""
    os.environ.update(environment)
    os.environ.pop(tracking.SWITCH, None)
    picture = home / f"{number}.png"
    picture.write_text(f"picture {number}")
    with tracking.stage_run(home, f"train/{number}", {"number": number}, system_metrics=False) as run:
        for step in range(POINTS):
            if step == HALF:
                run.log_file(picture, "figures", "picture.png")
                written[number] = step
                gate.poll(None)
            run.log_curve({"loss": number + step / POINTS, "rate": step}, step)
            written[number] = step + 1
            if step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.attack
@pytest.mark.parametrize(("count", "killed", "outage"), [(64, 8, True), (64, 8, False)])
def test_many_runs_at_once_some_of_them_killed(server, postgres, bucket, machines, count, killed, outage):
    """Half of the killed die while all run, half later, after a random step. Both servers may be killed and start again, too."""
    chance = random.Random(0)
    doomed = chance.sample(range(count), killed)
    dies_at = {number: chance.randrange(HALF, POINTS) for number in doomed[: killed // 2]}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    written = context.RawArray("i", count)
    gate, opener = context.Pipe(duplex=False)
    environment = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")}
    runs = [
        context.Process(target=train, args=(environment, machines[number % MACHINES], number, written, gate, dies_at.get(number)))
        for number in range(count)
    ]
    for run in runs:
        run.start()
    wait_for(lambda: min(written) >= HALF, PATIENCE_SECONDS, pause=0.2)
    assert all(run.is_alive() for run in runs)
    if outage:
        wait_for(lambda: stages(machines[0]), PATIENCE_SECONDS, pause=0.5)  # some have arrived
        server.kill()
        postgres.kill()
    for number in doomed[killed // 2 :]:
        runs[number].kill()
        runs[number].join()
    opener.close()
    for run in runs:
        run.join()
    assert [number for number, run in enumerate(runs) if run.exitcode] == sorted(doomed)
    if outage:
        postgres.start()
        server.start()
    for home in machines:
        wait_for(lambda home=home: tracking.sync(home, 60) == (0, ""), PATIENCE_SECONDS, pause=0.5)

    arrived = stages(machines[0])
    assert sorted(run.info.run_name for run in arrived) == sorted(f"train/{number}" for number in range(count))
    assert len({run.data.tags["mlflow.parentRunId"] for run in arrived}) == MACHINES
    mlflow = client(machines[0])
    for run in arrived:
        number, run_id = int(run.data.params["number"]), run.info.run_id
        assert (run.info.status, run.data.tags.get("incomplete")) == ("KILLED" if number in doomed else "FINISHED", None)
        for key in ("loss", "rate"):
            points = sorted((point.step, point.value) for point in mlflow.get_metric_history(run_id, key))
            assert points == [(step, number + step / POINTS if key == "loss" else step) for step in range(written[number])]
        assert text(machines[0], run_id, "figures/picture.png") == f"picture {number}"
    place = f"mlflow/{arrived[0].info.experiment_id}/"
    assert sum(key.startswith(place) and key.endswith("/artifacts/figures/picture.png") for key in bucket.keys(BUCKET)) == count


def stages(home: Path) -> list[Any]:
    """All runs of stages in MLflow, from any machine."""
    mlflow = client(home)
    experiment = mlflow.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    return list(mlflow.search_runs([experiment.experiment_id], "tags.kind = 'stage'", max_results=1000)) if experiment else []


def found(home: Path) -> dict[str, tuple[str, str]]:
    """State and text of each of doctor's findings about tracking."""
    return {one.name: (one.state, f"{one.detail} → {one.remedy}") for one in doctor._tracking(home)}


@pytest.mark.slow
def test_doctor_tries_everything_and_leaves_nothing(server, bucket, machines, monkeypatch):
    before = bucket.keys(BUCKET)
    findings = found(machines[0])
    states = {name: state for name, (state, _) in findings.items()}
    assert states == dict.fromkeys(("tracking", "MLflow", "clocks", "recording"), "ok")
    assert bucket.keys(BUCKET) == before
    experiment = client(machines[0]).get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert [name for name in experiment.tags if name.startswith("doctor")] == []

    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 100)
        patch.setattr("importlib.metadata.version", lambda name: "2.9.1")
        findings = found(machines[0])
    assert findings["clocks"][0] == findings["MLflow"][0] == "optional"
    assert re.search(r" is (99|10[01]) s behind →", findings["clocks"][1])
    assert "3." in findings["MLflow"][1]
    assert "2.9.1 here → install the same version there and here" in findings["MLflow"][1]


@pytest.fixture
def entrance(server: Server, tmp_path: Path) -> Iterator[str]:
    """Address of Caddy before MLflow, with the file and login of deploy/."""
    if not shutil.which("caddy"):
        pytest.skip("needs Caddy: apt-get install caddy")
    address = f"http://127.0.0.1:{free_port()}"
    text = (Path(__file__).resolve().parents[2] / "deploy" / "Caddyfile").read_text()
    text = text.replace("mlflow:5000", server.address.removeprefix("http://")).replace("prefect:4200", "127.0.0.1:1")
    (tmp_path / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    hashed = subprocess.run(["caddy", "hash-password", "--plaintext", "secret"], capture_output=True, text=True, check=True).stdout
    login = {"MLFLOW_USER": "team", "MLFLOW_PASSWORD_HASH": hashed.strip()}
    names = {"MLFLOW_NAME": address, "PREFECT_NAME": f"http://127.0.0.1:{free_port()}", "HOME": str(tmp_path)}
    with (tmp_path / "caddy.log").open("w") as log:
        command = ["caddy", "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"]
        caddy = subprocess.Popen(command, env={**os.environ, **login, **names}, stdout=log, stderr=log)
    try:
        wait_for(lambda: tracking.unreachable(address) is None, pause=0.2)
        yield address
    finally:
        caddy.kill()
        caddy.wait()


@pytest.mark.slow
def test_runs_pass_the_entrance_with_its_password_only(entrance, machines, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", entrance)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "team")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    refused = found(machines[0])
    assert refused["MLflow"][0] == refused["recording"][0] == "optional"
    assert "refuses this login → set MLFLOW_TRACKING_USERNAME and _PASSWORD" in refused["MLflow"][1]
    assert "MLFLOW_TRACKING_PASSWORD must be of a user who may write there" in refused["recording"][1]

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert {state for state, _ in found(machines[0]).values()} == {"ok"}
    with tracking.stage_run(machines[0], "train/one", {}) as run:
        run.log_metrics_tree({"loss": 0.5})
    assert tracking.sync(machines[0], PATIENCE_SECONDS) == (0, "")
    (stage,) = stages(machines[0])
    assert (stage.info.status, stage.data.metrics["loss"]) == ("FINISHED", 0.5)
    with pytest.raises(urllib.request.HTTPError, match="401"):
        urllib.request.urlopen(f"{entrance}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=30)


@pytest.mark.attack
def test_a_file_that_the_bucket_takes_long_for_arrives(server, bucket, machines, tmp_path, monkeypatch):
    """Longer than the time limit of other requests, which is short here, and all its tries together."""
    monkeypatch.setitem(HTTP, journal.TIMEOUT, "2")
    monkeypatch.delenv(journal.TIMEOUT, raising=False)
    (tmp_path / "checkpoint").write_bytes(b"weights")
    with tracking.stage_run(machines[0], "train/large", {}) as run:
        run.log_metrics_tree({"loss": 0.5})
        assert tracking.sync(machines[0], PATIENCE_SECONDS) == (0, "")
        with bucket.gate:
            run.log_file(tmp_path / "checkpoint")
            time.sleep(5 * journal.TRIES)
    assert tracking.sync(machines[0], PATIENCE_SECONDS) == (0, "")
    (stage,) = stages(machines[0])
    assert (stage.info.status, stage.data.tags.get("incomplete")) == ("FINISHED", None)
    assert text(machines[0], stage.info.run_id, "checkpoint") == "weights"


@pytest.mark.attack
def test_a_backup_restored_elsewhere_has_every_run_and_file(server, postgres, bucket, machines, tmp_path, monkeypatch):
    """With the commands of docs/team.md; then the bucket is gone, and doctor says so."""
    with tracking.stage_run(machines[0], "train/kept", {}) as run:
        run.log_metrics_tree({"loss": 0.25})
        (tmp_path / "sound.wav").write_bytes(b"a sound")
        run.log_file(tmp_path / "sound.wav", "sounds")
    assert tracking.sync(machines[0], PATIENCE_SECONDS) == (0, "")
    dump = postgres.run("pg_dump", "--format=custom", "mlflow").stdout
    storage = bucket.client
    storage.create_bucket(Bucket="backup")
    for key in bucket.keys(BUCKET):
        storage.copy_object(Bucket="backup", Key=key, CopySource={"Bucket": BUCKET, "Key": key})
        storage.delete_object(Bucket=BUCKET, Key=key)
    storage.delete_bucket(Bucket=BUCKET)
    state, text_of_finding = found(machines[0])["recording"]
    assert (state, "files of runs cannot be stored in mlflow-artifacts:/" in text_of_finding) == ("optional", True)
    assert "check the server's bucket" in text_of_finding

    (tmp_path / "mlflow.dump").write_bytes(dump)
    postgres.run("createdb", "restored")
    postgres.run("pg_restore", "--exit-on-error", "-d", "restored", tmp_path / "mlflow.dump")
    (tmp_path / "restored").mkdir()
    address = postgres.url("restored", "postgresql+psycopg")
    restored = Server(tmp_path / "restored", address, "s3://backup/mlflow", environment(bucket))
    try:
        restored.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", restored.address)
        (stage,) = stages(machines[0])
        assert (stage.info.run_name, stage.info.status, stage.data.metrics["loss"]) == ("train/kept", "FINISHED", 0.25)
        assert text(machines[0], stage.info.run_id, "sounds/sound.wav") == "a sound"
        assert {state for state, _ in found(machines[0]).values()} == {"ok"}
    finally:
        restored.kill()
        storage.create_bucket(Bucket=BUCKET)
