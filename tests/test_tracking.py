"""Runs recorded in a real MLflow: in a SQLite file, on a real server, and with the server gone; and stages that get killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundmill import provenance, tracking
from soundmill.errors import UserError
from soundmill.tracking import recorder, writer
from tests.mlflow_server import Server, free_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", tracking.SWITCH, tracking.PARENT, "MLFLOW_RUN_ID", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project with a space and an umlaut in its path."""
    path = tmp_path / "mein Pröjekt"
    path.mkdir()
    (path / "params.yaml").write_text("train: {rate: 1e-4, sizes: [1, 2]}\n")
    return path


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    uri = tracking.store(home).uri
    return MlflowClient(uri, uri)


def runs(home: Path) -> dict[str, Any]:
    """By name, the newest of a name."""
    mlflow = client(home)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    return {run.info.run_name: run for run in reversed(found)}


CHILD = """
import os, signal, sys, time
from pathlib import Path
from soundmill import tracking

home, name, then = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with tracking.stage_run(home, name, {"seed": 1}) as run:
    run.log_curve({"loss": 1.0}, 1)
    run._writer.wait_until_open()
    print("open", flush=True)
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "wait":
        sys.stdin.readline()
"""


def child(home: Path, name: str, then: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(home), name, then]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- in a file ---------------------------------------------------------------------------------------------------------


def test_a_stage_records_everything_below_a_parent_that_others_share(home: Path) -> None:
    from matplotlib.figure import Figure

    with tracking.stage_run(home, "segment", {"clip_seconds": 5.0}) as run:
        run.log_metrics_tree({"clips": 3, "by": {"fold 1": np.float64(0.5)}, "note": "text", "flag": True})
    with tracking.stage_run(home, "train/tiny", {"rate": 1e-4, "deep": {"er": None}}, family="tiny") as run:
        for step in range(2500):
            run.log_curve({"loss": 1 / (step + 1)}, step)
        run.log_figure(Figure(), "samples/grid")
        sound = home / "a.wav"
        sound.write_bytes(b"RIFF")
        run.log_file(sound, "audio")
        sound.write_bytes(b"changed afterwards")
        run.log_dataset("clips", digest="abc", rows=3, source="data/clips", context="training", columns={"clip_id": "string"})
        run.describe("# what it is")
    found = runs(home)
    parent = next(run for name, run in found.items() if name.startswith("dvc repro"))
    segment, train = found["segment"], found["train/tiny"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (segment, train)} == {parent.info.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert segment.data.metrics == {"clips": 3.0, "by.fold 1": 0.5, "flag": 1.0}
    assert parent.data.metrics["segment/by.fold 1"] == 0.5
    assert parent.data.params == {"train.rate": "0.0001", "train.sizes": "[1, 2]"}
    assert train.data.params == {"rate": "0.0001", "deep.er": "None"}
    assert train.data.tags["family"] == "tiny"
    assert train.data.tags["mlflow.note.content"] == "# what it is"
    mlflow = client(home)
    curve = mlflow.get_metric_history(train.info.run_id, "loss")
    assert sorted(point.step for point in curve) == list(range(2500))
    (dataset,) = train.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("clips", "abc", "training")
    artifacts = home / "mlartifacts" / train.info.run_id / "artifacts"
    assert (artifacts / "audio" / "a.wav").read_bytes() == b"RIFF"
    assert (artifacts / "figures" / "samples" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert not list((home / "mlflow.db.state" / "spool").iterdir())
    assert not list((home / "mlflow.db.state" / "alive").iterdir())

    (home / "params.yaml").write_text("train: {rate: 2e-4}\n")
    with tracking.stage_run(home, "segment", {"clip_seconds": 5.0}):
        pass
    assert runs(home)["segment"].data.tags["mlflow.parentRunId"] != parent.info.run_id


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(UserError("no such file"), "FAILED", "no such file"), (KeyboardInterrupt(), "KILLED", "interrupted")],
)
def test_a_failing_stage_ends_as_what_it_is(home: Path, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)), tracking.stage_run(home, "segment", {}):
        raise error
    run = runs(home)["segment"]
    assert (run.info.status, run.data.tags["end_reason"]) == (status, reason)


def test_off_records_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.SWITCH, "off")
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_metrics_tree({"clips": 1})
        run.log_model(home, "tiny", {"label": ["dog"]}, np.zeros((1, 2)))
    assert run.run_id is None
    assert [path.name for path in home.iterdir()] == ["params.yaml"]


def test_an_unwritable_store_stops_no_stage(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/file/mlflow.db")
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_metrics_tree({"clips": 1})
    assert "going on without it; metrics files are kept" in capsys.readouterr().err


def test_a_broken_database_stops_no_stage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mlflow.db").write_text("this is no database\n" * 100)
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_metrics_tree({"clips": 1})
    said = capsys.readouterr().err
    assert said.count("going on without it") == 1
    assert "cannot be used" in said


def test_the_store_of_a_workspace_is_the_projects(home: Path) -> None:
    (home / "dvc.yaml").write_text("stages: {}\n")
    workspace = home / tracking.WORKSPACES / "mine"
    workspace.mkdir(parents=True)
    assert tracking.store(workspace) == tracking.store(home)


def test_a_moved_project_records_where_it_is_now(home: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.txt").write_text(name)
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_file(tmp_path / "old.txt")
    moved = tmp_path / "moved"
    home.rename(moved)
    with tracking.stage_run(moved, "segment", {}) as run:
        run.log_file(tmp_path / "new.txt")
    assert not home.exists()
    assert (moved / "mlartifacts" / runs(moved)["segment"].info.run_id / "artifacts" / "new.txt").read_text() == "new"


# --- killed --------------------------------------------------------------------------------------------------------------


def recorders(home: Path) -> list[int]:
    """The processes that record this project's runs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"soundmill.tracking.recorder" in words and os.fsencode(tracking.store(home).scratch) in words[-2]:
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_runs_of_killed_stages_are_closed_and_those_of_living_ones_are_not(home: Path) -> None:
    orphan = child(home, "killed with its recorder", "wait")
    assert orphan.stdout.readline() == "open\n"
    (process,) = recorders(home)
    os.kill(process, signal.SIGKILL)
    orphan.kill()
    orphan.wait()
    assert runs(home)["killed with its recorder"].info.status == "RUNNING"  # nobody was left to say so

    living = child(home, "living", "wait")
    assert living.stdout.readline() == "open\n"
    assert child(home, "killed", "die").wait() == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while runs(home)["killed"].info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    found = runs(home)
    assert found["killed"].info.status == "KILLED"  # by the process that outlived it
    assert found["killed with its recorder"].info.status == "KILLED"  # by the next one
    assert "killed" in found["killed with its recorder"].data.tags["end_reason"]
    assert found["living"].info.status == "RUNNING"
    living.communicate("\n")
    assert runs(home)["living"].info.status == "FINISHED"
    assert len(recorders(home)) == 1
    assert not list((home / "mlflow.db.state" / "spool").iterdir())
    assert not list((home / "mlflow.db.state" / "alive").iterdir())


def test_a_recorder_that_is_killed_stops_no_stage(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.stage_run(home, "segment", {}) as run:
        run._writer.wait_until_open()
        (process,) = recorders(home)
        os.kill(process, signal.SIGKILL)
        run.log_metrics_tree({"clips": 1})
    said = capsys.readouterr().err
    assert said.count("its process ended early") == said.count("going on without it; metrics files are kept") == 1


def test_stages_share_a_recorder_that_holds_nothing_of_theirs(home: Path) -> None:
    first = child(home, "first", "end")
    assert first.communicate() == ("open\n", None)  # which ends when nobody has our pipe any more
    (process,) = recorders(home)
    assert os.getsid(process) == process
    assert child(home, "second", "end").wait() == 0
    assert recorders(home) == [process]
    database = home / "mlflow.db"
    database.unlink()  # and what it has open is another file from now on
    assert child(home, "third", "end").wait() == 0
    assert [name for name in runs(home) if not name.startswith("dvc repro")] == ["third"]
    assert len(recorders(home)) == 2


def test_a_recorder_serves_whoever_it_is_the_same_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(where: Path = home) -> str:
        return writer._identity(tracking.store(where))

    other = tmp_path / "other"
    other.mkdir()
    first = identity()
    monkeypatch.setenv("DVC_STAGE", "segment")
    assert identity() == first
    assert identity(other) != first
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    assert identity() != first
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    (home / "mlflow.db").rename(home / "old.db")
    assert identity() != first


def test_a_call_that_comes_while_the_recorder_ends_is_answered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "IDLE_SECONDS", 0.0)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as line:
        listener.bind("")  # the kernel finds a name
        listener.listen()
        name = listener.getsockname()
        line.connect(name)
        listener.shutdown(socket.SHUT_RDWR)
        line.sendall(b'{"op": "settle"}\n')
        where = tracking.Store(f"http://127.0.0.1:{free_port()}", None, home / "scratch")
        recorder.serve(listener, where, home / "socket")
        assert b"is unreachable" in line.makefile("rb").read()
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as late:
            late.connect(name)


def test_a_stage_that_finds_nothing_to_do_is_no_run_unless_it_fails(home: Path) -> None:
    with tracking.stage_run(home, "scan", {}, begin=False) as run:
        run.log_metrics_tree({"files": 1})
    assert [path.name for path in home.iterdir()] == ["params.yaml"]
    with pytest.raises(UserError), tracking.stage_run(home, "scan", {"path": "x"}, begin=False):
        raise UserError("no such directory")
    failed = runs(home)["scan"]
    assert (failed.info.status, failed.data.params) == ("FAILED", {"path": "x"})
    with tracking.stage_run(home, "scan", {}, begin=False) as run:
        run.begin()
        run.log_metrics_tree({"files": 1})
    assert (runs(home)["scan"].info.status, runs(home)["scan"].data.metrics) == ("FINISHED", {"files": 1.0})


@pytest.mark.slow
def test_two_stages_may_make_a_new_store_at_once(home: Path) -> None:
    children = [child(home, f"stage {number}", "end") for number in range(2)]
    assert [process.wait() for process in children] == [0, 0]
    found = runs(home)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert len({found[f"stage {number}"].data.tags["mlflow.parentRunId"] for number in range(2)}) == 1


# --- on a server, or without -------------------------------------------------------------------------------------------


def test_calls_are_tried_twice_at_most_for_a_few_seconds() -> None:
    assert int(tracking.HTTP["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1
    assert float(tracking.HTTP["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 5
    assert tracking.HTTP["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] == "0"


@pytest.mark.parametrize("kind", ["dead port", "takes calls and never answers"])
def test_a_stage_goes_on_without_the_server(
    home: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind != "dead port":
            silent.listen(100)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(writer, "STUCK_SECONDS", 60.0)
        begun = time.monotonic()
        with tracking.stage_run(home, "train/tiny", {"rate": 1}) as run:
            for step in range(1000):
                run.log_curve({"loss": 1.0}, step)
            run.log_file(home / "params.yaml")
            body = time.monotonic() - begun
    assert body < 5  # a step never waits
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().err
    assert said.count("is unreachable") == said.count("going on without it; metrics files are kept") == 1
    assert run.run_id is None
    assert not [path for path in (home / "mlflow.db.state").rglob("*") if path.parent.name == "spool"]
    (note,) = (home / "mlflow.db.state" / "alive").iterdir()  # for whoever reaches the server next
    assert '"name": "train/tiny"' in note.read_text()


def make_checkpoint(home: Path) -> Path:
    checkpoint = home / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"family": "tiny"}))
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    return checkpoint


def check_model(home: Path, artifacts: Path) -> set[str]:
    """Load the registered model in a fresh process that may not unpickle; returns the names of its files."""
    version = client(home).get_model_version_by_alias("soundmill-tiny", "newest")
    assert version.tags["family"] == "tiny"
    names = {path.name for path in artifacts.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    code = (
        f"import mlflow; mlflow.set_tracking_uri({tracking.store(home).uri!r})\n"
        "m = mlflow.pyfunc.load_model('models:/soundmill-tiny@newest')\n"
        "print(m.metadata.signature.inputs.input_names(), m.metadata.signature.outputs.inputs[0].shape)"
    )
    environment = {**os.environ, **tracking.QUIET, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True)
    assert done.stdout.strip() == "['label', 'seed'] (-1, 80)", done.stderr
    return names


@pytest.mark.slow
def test_a_model_in_the_local_store_outlives_its_stage(home: Path) -> None:
    checkpoint = make_checkpoint(home)
    with tracking.stage_run(home, "train/tiny", {"rate": 1}, family="tiny") as run:
        run.log_model(checkpoint, "tiny", {"label": ["dog"], "seed": [1]}, np.zeros((1, 80), np.float32))
        shutil.rmtree(checkpoint)
    assert {"model.safetensors", "config.json", "serving.py"} <= check_model(home, home / "mlartifacts")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.slow(minutes=1)
def test_a_parent_names_the_stages_that_were_lost(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)

    # The server comes back before the end.
    with tracking.pipeline_run(home, "first") as first:
        monkeypatch.setenv(tracking.PARENT, first.run_id)
        with tracking.stage_run(home, "scan", {}):
            pass
        with tracking.stage_run(home, "cut in two", {}) as run:
            run._writer.wait_until_open()
            server.kill()
            run.log_curve({"loss": 1.0}, 1)
        with tracking.stage_run(home, "lost", {}):
            pass
        monkeypatch.delenv(tracking.PARENT)
        with tracking.stage_run(home, "lost in a plain repro", {}):
            pass
        server.start()
        monkeypatch.setenv(tracking.PARENT, first.run_id)
        with tracking.stage_run(home, "after", {}):
            pass
        monkeypatch.delenv(tracking.PARENT)
    found = runs(home)
    assert found["first"].info.status == "FINISHED"
    assert found["first"].data.tags["incomplete"] == "cut in two, lost"
    assert found["scan"].data.tags.keys() & {"incomplete"} == found["after"].data.tags.keys() & {"incomplete"} == set()
    assert found["cut in two"].data.tags["incomplete"] == "cut in two"
    assert "Not recorded in MLflow: cut in two, lost; their metrics files are kept." in first.not_recorded
    assert "is tagged `incomplete`" in first.not_recorded[-1]

    # The run that stages of a plain `dvc repro` share names the one that was lost until it is recorded.
    for name, incomplete in (("other", "lost in a plain repro"), ("lost in a plain repro", None)):
        with tracking.stage_run(home, name, {}):
            pass
        shared = next(run for name, run in runs(home).items() if name.startswith("dvc repro"))
        assert (shared.info.status, shared.data.tags.get("incomplete")) == ("FINISHED", incomplete)

    # It is still gone at the end, and is back for the next run.
    with tracking.pipeline_run(home, "second") as second:
        monkeypatch.setenv(tracking.PARENT, second.run_id)
        with tracking.stage_run(home, "scan", {}):
            pass
        server.kill()
        with tracking.stage_run(home, "lost again", {}):
            pass
        monkeypatch.delenv(tracking.PARENT)
    assert second.not_recorded[0] == "Not recorded in MLflow: lost again, second; their metrics files are kept."
    assert "is still open there: the next run that reaches MLflow ends it" in second.not_recorded[1]
    server.start()
    assert (runs(home)["second"].info.status, runs(home)["second"].data.tags.get("incomplete")) == ("RUNNING", None)

    # The next one loses it in its own words, and it is back at the end.
    with tracking.pipeline_run(home, "third") as third:
        closed = runs(home)["second"]
        server.kill()
        third.set_tags({"said": "to nobody"})
        third._writer._down.wait(60)
        server.start()
        with tracking.stage_run(home, "other", {}):
            pass
        assert runs(home)["third"].info.status == "RUNNING"  # its process lives
    assert (closed.info.status, closed.data.tags["incomplete"]) == ("FINISHED", "lost again, second")
    assert "MLflow could not be reached" in closed.data.tags["end_reason"]
    left = runs(home)["third"]
    assert (left.info.status, left.data.tags["incomplete"]) == ("FINISHED", "third")
    assert "is tagged `incomplete`" in third.not_recorded[-1]
    assert not list((home / "mlflow.db.state" / "alive").iterdir())


@pytest.mark.slow(minutes=1)
def test_a_server_records_a_model_without_pickles_and_may_die_in_the_middle(
    home: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    checkpoint = make_checkpoint(home)
    with tracking.pipeline_run(home, "pipeline") as pipeline:
        monkeypatch.setenv(tracking.PARENT, pipeline.environment[tracking.PARENT])
        with tracking.stage_run(home, "train/tiny", {"rate": 1}, family="tiny") as run:
            run.log_model(checkpoint, "tiny", {"label": ["dog"], "seed": [1]}, np.zeros((1, 80), np.float32))
            shutil.rmtree(checkpoint)  # a stage moves its outputs on when it is done
    found = runs(home)
    assert found["train/tiny"].data.tags["mlflow.parentRunId"] == found["pipeline"].info.run_id
    logged = check_model(home, tmp_path / "artifacts")
    assert {"model.safetensors", "config.json", "serving.py"} <= logged

    capsys.readouterr()
    begun = time.monotonic()
    with tracking.stage_run(home, "later", {}) as run:
        run._writer.wait_until_open()
        server.kill()
        for step in range(100):
            run.log_curve({"loss": 1.0}, step)
    assert time.monotonic() - begun < 60
    said = capsys.readouterr().err
    assert said.count("is unreachable") == said.count("going on without it") == 1


# --- what is kept --------------------------------------------------------------------------------------------------------


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def test_a_run_brings_back_what_it_was_made_from(home: Path) -> None:
    git(home, "init", "-q")
    (home / ".gitignore").write_text("/mlflow.db*\n/mlartifacts/\n")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "first")
    (home / "dvc.lock").write_text("schema: '2.0'\n")
    (home / "params.yaml").write_text("train: {rate: 3e-4}\n")
    (home / "new.py").write_text("print('new')\n")
    with tracking.stage_run(home, "segment", {}) as run:
        pass
    state = tracking.read_state(home, run.run_id[:12])
    assert len(state.sha) == 40
    assert state.files["params.yaml"] == b"train: {rate: 3e-4}\n"
    assert state.files["dvc.lock"] == b"schema: '2.0'\n"
    assert b"+print('new')" in state.files["uncommitted.diff"]
    assert runs(home)["segment"].data.tags["git_dirty"] == "true"
    with pytest.raises(UserError, match=r"no run 'nonsense'.*the newest:\n  \w{32}  dvc repro"):
        tracking.read_state(home, "nonsense")


def test_state_outside_git_is_params_and_lock_alone(home: Path) -> None:
    state = provenance.capture(home)
    assert (state.sha, state.diff, state.dirty) == ("", b"", False)
    assert state.params == (home / "params.yaml").read_bytes()


def test_what_a_repro_rewrites_is_kept_but_makes_no_other_state(home: Path) -> None:
    git(home, "init", "-q")
    (home / "data").mkdir()
    (home / "data" / "metrics.json").write_text("1")
    (home / "code.py").write_text("a = 1\n")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "first")
    before = provenance.capture(home)
    (home / "data" / "metrics.json").write_text("2")
    (home / "dvc.lock").write_text("schema: '2.0'\n")
    after = provenance.capture(home)
    assert before.identity == after.identity
    assert not after.dirty
    assert b"metrics.json" in after.diff
    (home / "code.py").write_text("a = 2\n")
    edited = provenance.capture(home)
    assert edited.identity != before.identity
    assert edited.dirty
    (home / "big.bin").write_bytes(bytes(provenance.MAX_UNTRACKED_FILE + 1))
    assert provenance.capture(home).left_out == ("big.bin",)


def test_the_diff_restores_new_binary_and_oddly_named_files(home: Path, tmp_path: Path) -> None:
    git(home, "init", "-q")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "first")
    odd = 'a "b" *ä.bin'
    (home / odd).write_bytes(bytes(range(256)))
    (home / "params.yaml").unlink()
    state = provenance.capture(home)
    git(tmp_path, "clone", "-q", str(home), "copy")
    subprocess.run(["git", "apply", "--binary", "-"], cwd=tmp_path / "copy", input=state.diff, check=True)
    assert (tmp_path / "copy" / odd).read_bytes() == bytes(range(256))
    assert not (tmp_path / "copy" / "params.yaml").exists()
    status = subprocess.run(["git", "status", "--short"], cwd=home, capture_output=True, text=True, check=True).stdout
    assert "??" in status  # the project's own index was not touched


def test_names_and_values_that_mlflow_takes() -> None:
    assert tracking.flatten({"a": {"b@c": 1, "d": {}}, "e": [1]}) == {"a.b_c": 1, "a.d": {}, "e": [1]}
    assert tracking.numbers({"a": np.int64(3), "b": "x", "c": None, "d": [1, 2], "e": {"f": True}}) == {"a": 3.0, "e.f": 1.0}
    assert tracking.metrics_name(Path("/x/data/metrics/evaluate/tiny.json")) == "evaluate/tiny"
    assert tracking.metrics_name(Path("elsewhere/scores.json")) == "scores"


def test_status_tells_where_runs_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.status(home) == (True, f"sqlite:///{home}/mlflow.db (made by the first run)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    works, words = tracking.status(home)
    assert not works
    assert "unreachable" in words
