"""Trainings in several processes, on one machine or many: here process trees on loopback, which share a directory; and the job
script of the docs on a Slurm cluster of two nodes here, without root's services: munge and three daemons."""

import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from soundmill.errors import UserError
from soundmill.tracking import StageRun
from soundmill.training import launcher, loader
from soundmill.training.params import HardwareParams
from tests.mlflow_server import free_port
from tests.processes import assert_nothing_is_left, kill_group, marked, new_mark, ports, wait_for
from tests.training import doubling

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a secret of these machines"


@pytest.fixture
def project(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / "shared" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "shared" / name).touch()
    return tmp_path / "shared"


@pytest.fixture
def start(tmp_path):
    """Starts machines: each a process group of its own, with a log."""
    started = []

    def start(name, *words, cwd=ROOT, **variables):
        log = (tmp_path / f"{name}.log").open("wb")
        (tmp_path / "temporary").mkdir(exist_ok=True)  # a machine that is killed leaves its files
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary"), **variables}
        started.append(subprocess.Popen([sys.executable, *words], cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        kill_group(process)


def train(directory, devices, **options):
    directory.mkdir(exist_ok=True)
    doubling.main([str(directory), json.dumps({"hardware": {"devices": devices}, **options})])
    return torch.load(directory / "trained.pt", weights_only=True)


def items_of(directory, *processes):
    """The items of each step in this many processes, those of each in the order of ranks; a step may have run twice."""
    parts = [{} for _ in processes]
    for part, (rank, count) in zip(parts, processes, strict=True):
        for line in (directory / f"items-{rank}-of-{count}").read_text().splitlines():
            step, items = json.loads(line)
            assert part.setdefault(step, items) == items
    return {step: [item for part in parts for item in part.get(step, [])] for step in parts[0]}


def assert_trained_what_one_process_does(directory, alone):
    """Weights, average, curves, scores and kept weights, up to rounding; and the first process alone told of them, live."""
    result, expected = torch.load(directory / "trained.pt", weights_only=True), train(alone, 1)
    for name in ("net", "ema", "best_fad"):
        torch.testing.assert_close(result[name], expected[name])
    for name in ("curve", "valid", "scored"):
        for point, other in zip(result[name], expected[name], strict=True):
            assert point == pytest.approx(other, rel=1e-4)
    assert result["pace"] > 0
    together, single = items_of(directory, (0, 2), (1, 2)), items_of(alone, (0, 1))
    assert together
    assert all(items == single[step] for step, items in together.items() if len(items) == doubling.BATCH)
    told = [json.loads(line) for line in (directory / "told").read_text().splitlines()]
    assert {line[2] for line in told if line[0] == "reported" and "loss/valid" in line[1]} == {20, 40, 60}
    assert {line[1] for line in told if line[0] == "sampled"} == {20, 40}
    assert {path.name for path in (directory / "scratch").glob("step-*")} == {path.name for path in alone.glob("scratch/step-*")}


@pytest.mark.slow(minutes=0.5)
def test_processes_train_what_one_does_after_one_died(project, tmp_path, capfd):
    """Of three, one cannot share the batch of 8."""
    with pytest.raises(UserError, match=r"its process [12] ended \(.*; run it again: it resumes from its last checkpoint"):
        train(project, 3, dies=33)
    assert not active_children()
    train(project, 3)
    assert_trained_what_one_process_does(project, tmp_path / "alone")
    assert "1 more wait, because a batch of 8 cannot be shared evenly by 3" in capfd.readouterr().out
    assert min(step for step in items_of(project, (0, 2), (1, 2))) == 0


@pytest.mark.slow(minutes=0.3)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_launcher_that_ends_leaves_no_process(project, start, number):
    mark = new_mark()
    options = json.dumps({"hardware": {"devices": 2}, "slow": 0.2})
    head = start("head", "-m", "tests.training.doubling", str(project), options, **mark)
    wait_for((project / "items-1-of-2").exists)
    listened = ports(marked(mark))
    head.send_signal(number)
    head.wait()
    assert_nothing_is_left(mark, listened)


# several machines


def machines(project, start, port):
    """What starts a machine that joins, and a head."""
    hardware = {"devices": 1, "nodes": 2, "port": port}

    def head(name, more=None, **options):
        options = json.dumps({"hardware": hardware | (more or {}), **options})
        return start(name, "-m", "tests.training.doubling", str(project), options, cwd=project, SOUNDMILL_JOIN_SECRET=SECRET)

    def other(name="other", **variables):
        variables = {"SOUNDMILL_JOIN_SECRET": SECRET, **variables}
        return start(name, "-m", "soundmill", "join", f"127.0.0.1:{port}", cwd=project, **variables)

    return head, other


def reached(project, step, head):
    assert head.poll() is None
    beside = project / "items-1-of-2"
    return beside.exists() and any(json.loads(line)[0] >= step for line in beside.read_text().splitlines()[:-1])


@pytest.mark.parametrize(
    "head_too", [pytest.param(False, marks=pytest.mark.slow(minutes=1)), pytest.param(True, marks=pytest.mark.attack)]
)
def test_machines_that_are_killed_lose_nothing(project, start, tmp_path, head_too):
    """The head may be, at a random step; the other machine is, at a later one. The head ends alone: weights as by one process."""
    steps = random.Random(20)
    first, second = steps.randrange(8, 20), steps.randrange(28, 45)
    head, other = machines(project, start, free_port())
    joined = other()
    if head_too:
        killed = head("killed", slow=0.1)
        wait_for(lambda: reached(project, first, killed), 1200, 0.02)
        kill_group(killed)
    last = head("last", {"listen": "0.0.0.0"}, slow=0.1)
    wait_for(lambda: reached(project, second, last), 1200, 0.02)
    kill_group(joined)
    assert last.wait(1200) == 0, (tmp_path / "last.log").read_text()
    assert_trained_what_one_process_does(project, tmp_path / "alone")
    log = (tmp_path / "last.log").read_text()
    assert "train/doubling: machines: 2, processes: 2" in log
    assert "train/doubling: machines: 1, processes: 1" in log
    assert "joins train/doubling at" in (tmp_path / "other.log").read_text()


@pytest.mark.attack
def test_other_code_leaves_and_an_error_ends_the_training_on_all_machines_which_wait_for_the_next(project, start, tmp_path):
    head, other = machines(project, start, free_port())
    refused, failing = other("refused", SOUNDMILL_TEST_CODE="other"), head("head", {"min_nodes": 2}, fails=7)
    assert refused.wait(1200) == 1
    assert "runs other software than the head (code other, not )" in (tmp_path / "refused.log").read_text()
    joined = other()
    assert failing.wait(1200) == 1
    assert (tmp_path / "head.log").read_text().splitlines()[-1] == "the loss is no longer a number"
    wait_for(lambda: (tmp_path / "other.log").read_text().endswith("Ctrl-C ends it\n"), 600, 0.1)
    joined.send_signal(signal.SIGINT)
    assert joined.wait(600) == 0


# what is refused

HARDWARE = HardwareParams(accelerator="cpu", devices=1, precision="32", threads=1, nodes=2)


@pytest.fixture
def head(project, monkeypatch):
    """The store of a training that waits for machines, and its port."""
    monkeypatch.setenv(launcher.SECRET, SECRET)
    monkeypatch.setattr(launcher, "_run_agent", lambda *_: pytest.fail("joined"))
    store = launcher.open_store("127.0.0.1", 0)
    told = {"label": "train/x", "directory": str(project)}
    store.set(launcher.STAGE, launcher.sign(SECRET.encode(), json.dumps(told).encode()))
    return store


@pytest.mark.parametrize(
    ("secret", "below", "says"),
    [
        ("a secret of other machines", ".", f"another secret: set {launcher.SECRET} to that of the head"),
        ("", ".", "another secret: set"),
        (SECRET, "elsewhere", r"not in this checkout.* need one shared directory under the same path"),
    ],
)
def test_a_machine_that_may_not_join_is_refused(head, project, monkeypatch, secret, below, says):
    monkeypatch.setenv(launcher.SECRET, secret)
    with pytest.raises(UserError, match=says):
        launcher.take_part("127.0.0.1", head.port, project / below)


def test_torch_unpickles_nothing_that_a_stranger_wrote(head):
    class Inner:
        def get_state(self):
            return b"x" * 32 + b"a pickle", "token"

    with pytest.raises(UserError, match="another secret"):
        launcher.Signed(Inner(), "", SECRET.encode()).get_state()


def test_a_training_that_has_ended_is_not_joined(project, monkeypatch):
    monkeypatch.setattr(launcher, "_run_agent", lambda *_: pytest.fail("joined"))
    stores = [launcher.open_store("127.0.0.1", 0)]
    port = stores[0].port
    stores[0].set(launcher.STAGE, launcher.sign(b"", json.dumps({"label": "train/x", "directory": str(project)}).encode()))
    stores[0].set(launcher.END, "")
    monkeypatch.setattr(launcher, "time", SimpleNamespace(sleep=lambda _: stores.clear()))  # once it has seen the end
    launcher.take_part("127.0.0.1", port, project)
    assert stores == []


@pytest.mark.attack
def test_another_server_is_named(project, start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert start("join", "-m", "soundmill", "join", f"127.0.0.1:{server.getsockname()[1]}", cwd=project).wait(600) == 1


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_head_that_others_can_reach_needs_a_secret(monkeypatch, secret):
    monkeypatch.setenv(launcher.SECRET, secret)
    with pytest.raises(UserError, match=rf"hardware\.listen: .* 0\.0\.0\.0, so {launcher.SECRET} must be a secret of at least 16"):
        launcher.launch(HARDWARE.model_copy(update={"listen": "0.0.0.0"}), "train/x", "none", [], StageRun())


def test_a_store_listens_only_where_it_is_told_and_a_port_in_use_is_named():
    store = launcher.open_store("127.0.0.2", 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", store.port))
    with pytest.raises(UserError, match=rf"hardware\.port: 127\.0\.0\.2:{store.port} cannot be used.*set another port"):
        launcher.open_store("127.0.0.2", store.port)


@pytest.mark.parametrize(("name", "there"), [("torch", "1.0"), ("soundmill/training", "0"), ("device", "cuda")])
def test_a_process_with_other_software_leaves(monkeypatch, tmp_path, name, there):
    store = HashStore()
    mine = {"torch": "2.0", "soundmill/training": "1"}
    store.set(launcher.CODE, json.dumps([{**mine, "device": "cpu", name: there}, ""]))
    monkeypatch.setattr(launcher, "place", launcher.Place({}, HARDWARE, "", 0, 0, tmp_path, meeting=store))
    monkeypatch.setattr(launcher, "rank", 1)
    with pytest.raises(UserError, match=rf"runs other software than the head \({name} .*, not {there}\); use the same checkout"):
        launcher.agree(mine, tmp_path)


def test_features_up_to_copy_gb_are_copied_once(tmp_path, monkeypatch):
    near = tmp_path / "near"
    place = launcher.Place({}, HARDWARE.model_copy(update={"copy_gb": 100e-9}), "", 0, 0, near)
    monkeypatch.setattr(launcher, "place", place)
    for name, size in (("small", 12), ("large", 1200)):
        (tmp_path / name).write_bytes(b"x" * size)
    places = [near / "small", near / "small", tmp_path / "large"]
    assert [loader._near(tmp_path / name) for name in ("small", "small", "large")] == places


def test_the_number_of_machines_is_no_part_of_a_trainings_identity():
    many = HARDWARE.model_copy(update={"nodes": 8, "min_nodes": 2, "listen": "10.0.0.1", "port": 4000, "copy_gb": 1.0})
    assert HARDWARE.model_dump() == many.model_dump()


MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]  # programs of Slurm


def settings(directory: Path, ports: list[int]) -> str:
    host, (controller, *nodes) = socket.gethostname(), ports
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        f"SlurmUser={os.environ.get('USER', 'root')}",
        f"AuthInfo=socket={directory}/munge",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool-%n",
        f"SlurmctldPidFile={directory}/controller.pid",
        f"SlurmdPidFile={directory}/%n.pid",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "ReturnToService=2",
        *(f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}" for number, port in enumerate(nodes, 1)),
        "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    return "\n".join([*lines, ""])


@contextmanager
def cluster(directory: Path, ports: list[int]):
    """The environment in which `sbatch` uses the cluster; `ports` are the controller's and those of two nodes."""
    for name in ("state", "spool-n1", "spool-n2"):
        (directory / name).mkdir(parents=True)
    key = directory / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (directory / "slurm.conf").write_text(settings(directory, ports))
    environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
    munge = [f"--{name}={directory / file}" for name, file in (("socket", "munge"), ("pid-file", "pid"), ("log-file", "munge.log"))]
    munge += [f"--key-file={key}", f"--seed-file={directory / 'seed'}"]
    log = (directory / "log").open("wb")
    daemons = []

    def start(*command: str) -> None:
        daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *munge)
        wait_for((directory / "munge").exists, pause=0.1)
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        wait_for(lambda: subprocess.run(idle, env=environment, capture_output=True, text=True).stdout.strip() == "2", pause=0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait()


@pytest.mark.slow(minutes=2)
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian: slurm-wlm, munge)")
def test_the_job_script_of_the_docs_trains_on_two_nodes(tmp_path):
    script = re.search(r"```sh\n(#!/bin/sh\n#SBATCH.*?)```", (ROOT / "docs/orchestration.md").read_text("utf-8"), re.DOTALL)
    project, port = tmp_path / "project", free_port()
    hardware = {"devices": 1, "nodes": 2, "min_nodes": 2, "port": port, "listen": "0.0.0.0"}
    programs = {  # a training, as a stage of `dvc repro` would run it
        "dvc": ["-m", "tests.training.doubling", str(project), json.dumps({"hardware": hardware})],
        "soundmill": ["-m", "soundmill"],
    }
    (project / ".venv" / "bin").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (project / name).touch()
    for name, arguments in programs.items():
        quoted = " ".join(f"'{argument}'" for argument in [sys.executable, *arguments])
        path = project / ".venv" / "bin" / name
        given = '"$@"' if name == "soundmill" else ""
        path.write_text(f"#!/bin/sh\nexport OMP_NUM_THREADS=1 PYTHONPATH='{ROOT}' TMPDIR='{tmp_path}'\nexec {quoted} {given}\n")
        path.chmod(0o755)
    # No GPUs here; the port is a free one.
    text = script[1].replace("#SBATCH --gpus-per-node=8\n", "").replace("29400", str(port))
    (project / "train.sh").write_text(text)
    with cluster(tmp_path / "slurm", [free_port() for _ in range(3)]) as environment:
        job = ["sbatch", "--wait", "--output=job.log", "--open-mode=append", "train.sh"]
        done = subprocess.run(job, cwd=project, env=environment, capture_output=True, text=True, timeout=1500)
    log = (project / "job.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "train/doubling: machines: 2, processes: 2" in log
    assert "joins train/doubling at" in log
    assert_trained_what_one_process_does(project, tmp_path / "alone")
