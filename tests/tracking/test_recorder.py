"""Callers of a recorder that are no stages: their lines, paths and silences; and sockets that are no recorder's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soundmill import tracking
from soundmill.tracking import recorder, stores, words, writer

BRACKETS = b"[" * 100_000


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", tracking.SWITCH, tracking.PARENT, "MLFLOW_RUN_ID", "DVC_EXP_NAME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, since MLflow takes seconds to make its tables."""
    path = tmp_path_factory.mktemp("project")
    (path / "params.yaml").write_text("train: {rate: 1e-4}\n")
    return path


class Caller:
    """Speaks to the recorder of a project as a stage does, and says what it likes."""

    def __init__(self, home: Path, name: str):
        os.environ.pop("PYTEST_CURRENT_TEST", None)  # or each test would have a recorder of its own
        self.name = name
        self.scratch = tracking.store(home).scratch
        self.line, self.log = writer._call(tracking.store(home))
        self.line.settimeout(120)
        self.token = uuid.uuid4().hex
        self.spool = self.scratch / "spool" / self.token
        self.spool.mkdir(parents=True)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def say(self, *lines: dict[str, Any] | bytes) -> None:
        for line in lines:
            self.line.sendall((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")

    def opening(self, token: str | None = None) -> dict[str, Any]:
        if token is None:
            self.note = writer._announce(self.scratch, self.token, {"name": self.name})
        return {"op": "open", "token": token or self.token, "name": self.name, "tags": {}, "parent": None}

    def answers(self) -> list[dict[str, Any]]:
        """All that comes back, until the recorder closes the line."""
        return [json.loads(line) for line in self.line.makefile("rb")]


def run_named(home: Path, name: str) -> Any:
    from mlflow import MlflowClient

    uri = tracking.store(home).uri
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    return next(run for run in client.search_runs([experiment]) if run.info.run_name == name)


# --- lines ---------------------------------------------------------------------------------------------------------------


def test_bad_lines_are_refused_and_the_rest_goes_on(home: Path) -> None:
    metric = {"op": "metrics", "values": {"clips": 3.0}, "time": 1}
    bad = {
        "not JSON": b"{",
        "nested too deeply": BRACKETS + b"]" * len(BRACKETS),
        f"longer than {words.MAX_LINE} bytes": b'"' + b"x" * words.MAX_LINE + b'"',
        "no known `op`": {"op": "__init__"},
        "metrics: `values` is missing or of another type": metric | {"values": {"clips": {"deep": [1]}}},
        "metrics: `time` is missing or of another type": metric | {"time": 2**70},
        "tags: `on` is missing or of another type": {"op": "tags", "values": {}, "on": ["parent"]},
        "file: `folder` is missing or of another type": {"op": "file", "path": "x", "folder": "../../x"},
        "end: `status` is missing or of another type": {"op": "end", "status": "GREAT", "reason": ""},
        "open again": {"op": "open", "token": "0" * 32, "name": "x", "tags": {}, "parent": None},
    }
    with Caller(home, "bad lines") as caller:
        caller.say(caller.opening(), *bad.values(), metric, {"op": "end", "status": "FINISHED", "reason": ""})
        answers = caller.answers()
    assert answers[-1] == {"event": "ended", "incomplete": ["bad lines"]}
    said = [answer["message"] for answer in answers if answer["event"] == "warning"]
    assert said == [f"refused: {reason}" for reason in bad]
    assert [line for line in caller.log.read_text().splitlines() if line in said] == said
    run = run_named(home, "bad lines")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"clips": 3.0})


@pytest.mark.parametrize("token", ["../../../kept", "/kept", "", 7, None, "0" * 31])
def test_a_run_without_a_token_of_ours_is_refused(token: object) -> None:
    with pytest.raises(ValueError, match=r"open: `token`"):
        words.check(json.dumps({"op": "open", "token": token, "name": "x", "tags": {}}).encode())


# --- paths ---------------------------------------------------------------------------------------------------------------


def test_only_what_lies_in_its_own_spool_is_copied_or_deleted(home: Path) -> None:
    outside = home / "outside" / "secret.txt"
    outside.parent.mkdir()
    outside.write_text("secret")
    with Caller(home, "other") as other, Caller(home, "bad paths") as caller:
        (other.spool / "1").mkdir()
        theirs = other.spool / "1" / "theirs.txt"
        theirs.write_text("theirs")
        places = {name: caller.spool / name for name in ("good", "linked", "link", "fifo", "tree")}
        for name, place in places.items():
            if name != "linked":
                place.mkdir()
        (places["good"] / "note.txt").write_text("note")
        places["linked"].symlink_to(outside.parent)
        (places["link"] / "a").symlink_to(outside)
        os.mkfifo(places["fifo"] / "a")
        (places["tree"] / "a").mkdir()
        (places["tree"] / "a" / "b").symlink_to(outside)
        bad = [
            outside,
            theirs,
            places["linked"] / "secret.txt",
            places["link"] / "a",
            places["fifo"] / "a",
            places["tree"] / "a",
            caller.spool / ".." / other.token / "1" / "theirs.txt",
            caller.spool / "good" / "..",
            caller.spool / "good",
            Path("/proc/self/environ"),
        ]
        model = {"name": "m", "registered": "m", "inputs": {}, "dtype": "float32", "shape": [1, 2]}
        caller.say(
            caller.opening(),
            *({"op": "file", "path": str(path), "folder": ""} for path in bad),
            {"op": "model", "path": str(outside), **model},
            {"op": "file", "path": str(places["good"] / "note.txt"), "folder": "kept"},
            {"op": "end", "status": "FINISHED", "reason": ""},
        )
        answers = caller.answers()
        assert [answer["event"] for answer in answers].count("warning") == len(bad) + 1
        assert answers[-1] == {"event": "ended", "incomplete": ["bad paths"]}
        artifacts = home / "mlartifacts" / run_named(home, "bad paths").info.run_id
        assert [path.relative_to(artifacts / "artifacts") for path in artifacts.rglob("*.txt")] == [Path("kept/note.txt")]
        assert (outside.read_text(), theirs.read_text()) == ("secret", "theirs")
        assert not list(artifacts.rglob("environ"))

        # Nor is a spool removed for the asking: of another run, one never announced, one that is a link.
        with Caller(home, "thief") as thief:
            thief.say(other.opening())
            folder = os.open(other.spool, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)  # as its own line does
            assert "is taken" in thief.answers()[-1]["message"]
            os.close(folder)
    with Caller(home, "thief") as thief:
        thief.spool.rmdir()
        thief.spool.symlink_to(outside.parent)
        thief.say(thief.opening())
        assert "is taken" in thief.answers()[-1]["message"]
    assert (outside.read_text(), theirs.read_text()) == ("secret", "theirs")


# --- silence -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, threading.Thread]]:
    """A recorder in a thread of this process, with little patience; its socket's name."""
    monkeypatch.setattr(recorder, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "LINE_SECONDS", 2.0)
    monkeypatch.setattr(recorder, "SEND_SECONDS", 0.5)
    where = tracking.Store(f"sqlite:///{home}/mlflow.db", str(home / "mlartifacts"), home / "scratch")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        yield listener.getsockname(), threading.Thread(target=recorder.serve, args=(listener, where, home / "socket"), daemon=True)


def test_it_ends_whatever_its_callers_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def pour(line: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                line.sendall(b"x" * 2**16)

    def drip(line: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.1):
                line.sendall(b" ")

    with served(home, monkeypatch) as (name, thread), contextlib.ExitStack() as held:
        scratch = home / "scratch"
        lines = []
        for beginning in (b"", b'{"op": "op', BRACKETS, BRACKETS + b"\n", b"\n", b'{"op": "end"}\n', b"", b""):
            line = held.enter_context(socket.socket(socket.AF_UNIX))
            line.connect(name)
            line.sendall(beginning)
            lines.append(line)
        # A run that is open and gets half a line; its caller takes no word back.
        token = "ab" * 16
        (scratch / "spool" / token).mkdir(parents=True)
        held.enter_context(writer._announce(scratch, token, {"name": "half"}))
        opening = {"op": "open", "token": token, "name": "half", "tags": {}}
        lines[-1].sendall(json.dumps(opening).encode() + b"\n" + b"{}\n" * 3000 + b'{"op": "me')
        others = [threading.Thread(target=pour, args=lines[-2:-1]), threading.Thread(target=drip, args=lines[:1])]
        for other in others:
            other.start()
        thread.start()
        thread.join(60)
        stop.set()
        assert not thread.is_alive()
        for other in others:
            other.join(10)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        run = run_named(home, "half")
        assert (run.info.status, run.data.tags["end_reason"]) == ("KILLED", "no whole line came within 2 s")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_call_is_not_answered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(home, monkeypatch) as (name, thread):
        end, mine = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                line = socket.socket(socket.AF_UNIX)
                line.connect(name)
                line.sendall(b'{"op": "settle"}\n')
                line.settimeout(20)
                mine.sendall(b"<" + line.recv(100) + b">")
            except OSError as error:
                mine.sendall(f"<{error}>".encode() if isinstance(error, TimeoutError) else b"<>")
            finally:
                os._exit(0)
        time.sleep(0.3)
        thread.start()
        os.waitpid(child, 0)
        assert end.recv(1000) == b"<>"
        thread.join(20)
        assert not thread.is_alive()


# --- the socket ----------------------------------------------------------------------------------------------------------


def test_the_socket_lies_in_a_folder_of_this_user_alone_however_deep(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = home / "mlflow.db"
    home = tmp_path.joinpath(*["a deep directory"] * 12)  # longer than any socket's path may be
    home.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(writer, "STUCK_SECONDS", 60.0)
    (home / "mlflow.db").write_bytes(tables.read_bytes() if tables.exists() else b"")
    identity = writer._identity(tracking.store(home))
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(f"\0soundmill-recorder-{identity}")  # any process of this machine may
        squatter.listen()
        with tracking.stage_run(home, "segment", {}) as run:
            run._writer.wait_until_open()
            (folder,) = home.glob("soundmill-*")
            assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, os.getuid())
            (place,) = folder.iterdir()
            assert stat.S_ISSOCK(place.lstat().st_mode)
        squatter.settimeout(0)
        with pytest.raises(BlockingIOError):
            squatter.accept()
    assert run_named(home, "segment").info.status == "FINISHED"


def test_a_folder_that_is_not_ours_alone_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / f"soundmill-{os.getuid()}"

    def refused() -> bool:
        with tracking.stage_run(home, "segment", {}) as run:
            pass
        said = capsys.readouterr().err
        return run.run_id is None and f"{folder} is not a directory of this user alone; remove it" in said

    folder.mkdir()
    folder.chmod(0o755)
    assert refused()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert refused()
    folder.unlink()
    folder.write_text("")
    assert refused()
    folder.unlink()
    if os.getuid() == 0:
        folder.mkdir(0o700)
        os.chown(folder, 65534, 65534)
        assert refused()


def test_one_that_answers_with_anything_but_words_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/another.db")
    with stores.socket_folder() as (_, folder), socket.socket(socket.AF_UNIX) as false:
        false.bind(f"/proc/self/fd/{folder}/{writer._identity(tracking.store(home))}")
        false.listen()

        def answer() -> None:
            line, _ = false.accept()
            with line, contextlib.suppress(OSError):
                line.sendall(BRACKETS + b"\n")
                line.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with tracking.stage_run(home, "segment", {}) as run:
            run._writer.wait_until_open()
        thread.join(10)
    assert run.run_id is None
    assert capsys.readouterr().err.count("going on without it") == 1


def test_a_call_waits_for_nobody_who_holds_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CALLS", 20)
    with stores.socket_folder() as (_, folder):
        fcntl.flock(folder, fcntl.LOCK_EX)
        begun = time.monotonic()
        with tracking.stage_run(home, "segment", {}) as run:
            pass
    assert run.run_id is None
    assert time.monotonic() - begun < 5
