"""One training on several machines: here they are process trees on loopback, which share a directory."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from soundmill import hashing, shards
from soundmill.errors import UserError
from soundmill.training import joining, nodes, shipping
from soundmill.training.loader import Arrays
from soundmill.training.params import HardwareParams
from tests.processes import wait_for
from tests.training import doubling

ROOT = Path(__file__).resolve().parents[2]


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

    def start(name, *command, cwd=ROOT):
        log = (tmp_path / f"{name}.log").open("wb")
        (tmp_path / "temporary").mkdir(exist_ok=True)  # a machine that is killed leaves its files
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)


def kill(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def doubled(project):
    return torch.load(project / "trained.pt", weights_only=True)


def alone(directory):
    directory.mkdir()
    doubling.train(directory, HardwareParams(accelerator="cpu", devices=1, precision="32", threads=1))
    return doubled(directory)


def items_of(project, *processes):
    """The items of each step in this many processes, those of each in the order of ranks; a step may have run twice."""
    parts = [{} for _ in processes]
    for number, (rank, count) in enumerate(processes):
        for line in (project / f"items-{rank}-of-{count}").read_text().splitlines():
            step, items = json.loads(line)
            assert parts[number].setdefault(step, items) == items
    return {step: [item for part in parts for item in part.get(step, [])] for step in parts[0]}


@pytest.mark.parametrize(
    "head_too", [pytest.param(False, marks=pytest.mark.slow(minutes=1)), pytest.param(True, marks=pytest.mark.attack)]
)
def test_machines_that_are_killed_lose_nothing(project, start, tmp_path, head_too):
    """The head may be, at a random step; the other machine is, at a later one. The head ends alone: weights as by one process."""
    steps = random.Random(20)
    first, second = steps.randrange(8, 20), steps.randrange(28, 45)
    hardware = {"devices": 1, "nodes": 2, "min_nodes": 2, "port": free_port()}
    other = start("other", "-m", "soundmill", "join", f"127.0.0.1:{hardware['port']}", cwd=project)

    def reached(step):
        beside = project / "items-1-of-2"
        return beside.exists() and any(json.loads(line)[0] >= step for line in beside.read_text().splitlines()[:-1])

    def head(name, **more):
        options = json.dumps({"hardware": hardware | more, "slow": 0.1})
        return start(name, "-m", "tests.training.doubling", str(project), options)

    if head_too:
        one = head("killed")
        wait_for(lambda: reached(first), 1200, 0.02)
        kill(one)
    last = head("last", min_nodes=1)
    wait_for(lambda: reached(second), 1200, 0.02)
    kill(other)
    assert last.wait(1200) == 0, (tmp_path / "last.log").read_text()

    result, expected = doubled(project), alone(tmp_path / "alone")
    torch.testing.assert_close(result["net"], expected["net"])
    torch.testing.assert_close(result["ema"], expected["ema"])
    assert result["step"] == doubling.STEPS
    assert result["pace"] > 0
    torch.testing.assert_close(result["best_fad"], expected["best_fad"])
    for name in ("curve", "valid", "scored"):
        for point, other_point in zip(result[name], expected[name], strict=True):
            assert point == pytest.approx(other_point, rel=1e-4)
    together, single = items_of(project, (0, 2), (1, 2)), items_of(tmp_path / "alone", (0, 1))
    assert all(items == single[step] for step, items in together.items() if len(items) == doubling.BATCH)
    assert all(items == single[step] for step, items in items_of(project, (0, 1)).items())
    told = [json.loads(line) for line in (project / "told").read_text().splitlines()]
    curves = {
        what: sorted({line[2] for line in told if line[0] == "reported" and what in line[1]})
        for what in ("loss/train", "loss/valid", "score/fad")
    }
    assert curves == {"loss/train": [*range(5, 61, 5)], "loss/valid": [20, 40, 60], "score/fad": [20, 40, 60]}
    assert sorted({line[1] for line in told if line[0] == "sampled"}) == [20, 40]
    kept = {path.name for path in (project / "scratch").glob("step-*")}
    assert kept == {path.name for path in (tmp_path / "alone" / "scratch").glob("step-*")}
    log = (tmp_path / "last.log").read_text()
    assert "train/doubling: machines: 2, processes: 2" in log
    assert "train/doubling: machines: 1, processes: 1" in log
    assert "joins train/doubling at" in (tmp_path / "other.log").read_text()


@pytest.mark.slow(minutes=1)
def test_a_head_alone_trains_what_one_process_does_and_closes_its_port(project, tmp_path):
    port = free_port()
    doubling.train(project, HardwareParams(accelerator="cpu", devices=3, precision="32", threads=1, nodes=2, port=port))
    torch.testing.assert_close(doubled(project)["net"], alone(tmp_path / "alone")["net"])
    socket.create_server(("127.0.0.1", port)).close()  # fails while anything listens there
    assert items_of(project, (0, 2), (1, 2)) == items_of(tmp_path / "alone", (0, 1))  # of three, one cannot share the batch of 8


@pytest.mark.attack
def test_an_error_of_the_training_ends_it_on_all_machines_and_they_wait_for_the_next(project, start, tmp_path):
    port = free_port()
    other = start("other", "-m", "soundmill", "join", f"127.0.0.1:{port}", cwd=project)
    options = json.dumps({"hardware": {"devices": 1, "nodes": 2, "min_nodes": 2, "port": port}, "fails": 7})
    head = start("head", "-m", "tests.training.doubling", str(project), options)
    assert head.wait(1200) == 1
    assert (tmp_path / "head.log").read_text().splitlines()[-1] == "the loss is no longer a number"
    wait_for(lambda: (tmp_path / "other.log").read_text().count("waits for a training") == 2, 600, 0.1)
    other.send_signal(signal.SIGINT)
    assert other.wait(600) == 0


# joining


@pytest.fixture
def head(project):
    """A training that waits for machines: its store, its description, and its address."""
    file = project / "data" / nodes.FILE
    file.parent.mkdir()
    file.write_bytes(b"a training")
    modules = [doubling.__name__]
    code = shards.code_identity(*modules)
    digest = hashing.file_digest(file)
    site = nodes.Site("1", "train/x", str(project), str(file), digest, modules, code, "cpu", 1, 2, 1, 0.0)
    port = free_port()
    stores = [nodes._open_store(port)]

    def describe(over=False, **changed):
        if over:
            stores.clear()
            return None
        stores[0].set(nodes.SITE, json.dumps(asdict(replace(site, **changed))))
        return "127.0.0.1", port

    return describe


def test_a_port_in_use_is_named(head):
    _, port = head()
    with pytest.raises(UserError, match=rf"hardware\.port: {port} is in use on this machine.*set another port"):
        nodes._open_store(port)


def test_a_machine_without_the_shared_directory_is_refused(head, project, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"which is not in this checkout.*: all machines need one shared directory under the same path"
    ):
        nodes.take_part(*head(), tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"does not see .*other/training\.pickle.* shared directory under the same path; mount it here"
    ):
        nodes.take_part(*head(file=str(project / "other" / nodes.FILE)), project)
    monkeypatch.setattr(nodes, "SHARED_SECONDS", 0.1)
    with pytest.raises(UserError, match="as the head wrote it"):
        nodes.take_part(*head(digest="0"), project)


def test_a_machine_with_other_software_is_refused(head, project):
    code = {**shards.code_identity(doubling.__name__), "torch": "1.0", "soundmill/training": "0"}
    with pytest.raises(
        UserError, match=r"runs other software than the head \(.*torch 2.*, not 1\.0.*\); use the same checkout and"
    ):
        nodes.take_part(*head(code=code), project)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_the_gpus_of_the_head_is_refused(head, project):
    with pytest.raises(UserError, match=r"the head trains on 4 cuda of each machine \(hardware\.devices\), and torch finds 0 here"):
        nodes.take_part(*head(device="cuda", devices=4), project)


def test_a_training_that_has_ended_is_not_joined(head, project, monkeypatch):
    host, port = head()
    store = TCPStore(host, port, is_master=False, wait_for_workers=False)
    store.set(nodes.END, "null")
    monkeypatch.setattr(nodes, "_check", lambda *_: pytest.fail("joined"))
    timer = threading.Timer(1.0, head, kwargs={"over": True})
    timer.start()
    nodes.take_part(host, port, project)
    timer.join()


@pytest.mark.slow(minutes=0.4)
def test_another_server_is_named(project):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} does not answer as a training does; give the machine that runs"):
            joining.join("127.0.0.1", port, project)


def test_a_head_that_cannot_be_reached_is_named(project):
    with pytest.raises(UserError, match=r"nowhere\.invalid:29400 cannot be reached .*open the port in its firewall"):
        joining.join("nowhere.invalid", 29400, project)


# what a process gets


def test_features_up_to_copy_gb_are_copied_once_and_larger_ones_read_in_place(tmp_path):
    (tmp_path / "near").mkdir()
    for name in ("small", "large"):
        np.arange(6 if name == "small" else 600, dtype="<f2").tofile(tmp_path / f"{name}.f16")
    arrays = [Arrays(tmp_path / f"{name}.f16", ["a"], np.array([[6]]), np.zeros(1, np.int64)) for name in ("small", "large")]
    shipping.write(tmp_path / "pickle", (arrays, arrays[0]))
    for _ in range(2):
        (small, large), again = shipping.read(tmp_path / "pickle", tmp_path / "near", 100e-9)
        assert [one.path.parent for one in (small, again, large)] == [tmp_path / "near", tmp_path / "near", tmp_path]
        assert small.read(0).tolist() == large.read(0).tolist() == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in (tmp_path / "near").iterdir()] == ["small.f16"]


def test_the_number_of_machines_is_no_part_of_a_trainings_identity():
    few = HardwareParams(accelerator="cpu", devices=2, precision="32", threads=1)
    many = few.model_copy(update={"nodes": 8, "min_nodes": 2, "port": 4000, "copy_gb": 1.0})
    assert few.model_dump() == many.model_dump()
    with pytest.raises(ValueError, match="min_nodes 3 is more than nodes 2"):
        HardwareParams(accelerator="cpu", devices=1, precision="32", threads=1, nodes=2, min_nodes=3)
