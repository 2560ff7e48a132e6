"""The stage's end of the line to the process that talks to MLflow, and how it is found."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from soundmill import disk, provenance
from soundmill.tracking.stores import (
    COPY_LIMIT,
    HTTP,
    MAX_TAG,
    QUIET,
    STUCK_SECONDS,
    Store,
    owner,
    say,
    socket_folder,
    unfinished,
    without,
)
from soundmill.tracking.words import MAX_LINE

CALLS = 500  # tries, 10 ms apart, to reach a recorder that begins or ends
# No two stages have these alike, and no library that talks to a store reads them.
OF_ONE_STAGE = re.compile(r"(DVC|SOUNDMILL|PREFECT|GOMP|OMP)_.*|PYTHONUNBUFFERED|PWD|OLDPWD|SHLVL|_")


class Writer:
    """The second process, as the first one sees it: a queue that takes anything at once, and words that come back."""

    def __init__(self, where: Store, spec: dict[str, Any]):
        self.store, self.run_id, self.experiment_id = where, None, None
        self.outcome = ("FINISHED", "")
        self.incomplete: list[str] = []  # once ended: the runs whose records were lost, of this one and below it
        self._name = spec["name"]
        token = uuid.uuid4().hex
        self._note = _announce(where.scratch, token, spec)
        self._line, self._log = _call(where)
        self._spool = where.scratch / "spool" / token
        self._spool.mkdir(parents=True)
        self._files = 0
        self._down = threading.Event()
        self._opened = threading.Event()
        self.ended = False
        self._last_word = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._write, daemon=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._sender.start()
        self._listener.start()
        self.send({"op": "open", "token": token, **spec})

    @property
    def pending(self) -> int:
        return self._queue.qsize()

    def send(self, operation: dict[str, Any]) -> None:
        if not self._down.is_set():
            self._queue.put(json.dumps(operation))

    def send_file(self, path: Path, operation: dict[str, Any], name: str) -> None:
        """A file or directory, linked (or copied, across file systems) as it is now: the stage may move or remake it."""
        if self._down.is_set():
            return
        target = self._place(name)
        try:
            if path.is_dir():
                shutil.copytree(path, target, copy_function=_link_or_copy)
            else:
                target.parent.mkdir(parents=True)
                _link_or_copy(str(path), str(target))
        except OSError as error:
            say(f"tracking: {path} could not be recorded: {error}")
            return
        self.send({**operation, "path": str(target)})

    def send_content(self, content: bytes, operation: dict[str, Any], name: str) -> None:
        if self._down.is_set():
            return
        target = self._place(name)
        try:
            target.parent.mkdir(parents=True)
            target.write_bytes(content)
        except OSError as error:
            say(f"tracking: {name} could not be recorded: {error}")
            return
        self.send({**operation, "path": str(target)})

    def _place(self, name: str) -> Path:
        self._files += 1
        return self._spool / str(self._files) / Path(name).name

    def wait_until_open(self) -> None:
        """Until the run has its id, or it is clear that it will have none."""
        while not self._opened.wait(0.05):
            if self._down.is_set() or time.monotonic() - self._last_word > STUCK_SECONDS:
                return

    def end(self, status: str, reason: str) -> None:
        """End the run and wait until all is written, as long as the writer gets on with it."""
        self.send({"op": "end", "status": status, "reason": reason[:MAX_TAG]})
        self._queue.put(None)
        self._last_word = time.monotonic()
        while self._listener.is_alive() and time.monotonic() - self._last_word < STUCK_SECONDS:
            self._listener.join(0.1)
        if self._listener.is_alive():
            self._say_down(f"{self.store.uri} took nothing for {STUCK_SECONDS:.0f} s")
        else:
            shutil.rmtree(self._spool, ignore_errors=True)
        if not self.ended:
            below = without(unfinished(self.store.scratch), {"id": self.run_id}) if self.run_id else set()
            self.incomplete = sorted(below | {self._name})
            ending = {"status": status, "reason": reason[:MAX_TAG], "time": time.time_ns() // 1_000_000}
            with contextlib.suppress(OSError):
                self._note.write(json.dumps(ending) + "\n")
        with contextlib.suppress(OSError):
            self._note.close()  # from now on, whoever reaches MLflow may end a run that is still open there
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            with self._line.makefile("wb") as stream:
                while (line := self._queue.get()) is not None:
                    stream.write(line.encode() + b"\n")
                    if self._queue.empty():
                        stream.flush()
            self._line.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        # Whoever answers with anything else is no recorder.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError), self._line.makefile("rb") as stream:
            while line := stream.readline(MAX_LINE):
                self._last_word = time.monotonic()
                event = json.loads(line)
                if event["event"] == "opened":
                    self.run_id, self.experiment_id = event["run_id"], event["experiment_id"]
                    self._opened.set()
                elif event["event"] == "warning":
                    say(f"tracking: {event['message']}")
                elif event["event"] == "down":
                    self._say_down(event["message"])
                elif event["event"] == "ended":
                    self.incomplete, self.ended = list(event["incomplete"]), True
        if not self.ended and not self._down.is_set():
            self._say_down(f"its process ended early ({self._last_words()})")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            text = self._log.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if line.strip() and " INFO " not in line]
            return lines[-1] if lines else "no message"
        return "no message"

    def _say_down(self, message: str) -> None:
        if not self._down.is_set():
            self._down.set()
            self._opened.set()
            say(f"tracking: {message}: going on without it; metrics files are kept")


def settle(where: Store) -> bool:
    """Have the runs of processes that are gone ended now rather than by the next run; whether MLflow could be reached."""
    said = b""
    with contextlib.suppress(OSError):
        line, _ = _call(where)
        with line:
            line.settimeout(STUCK_SECONDS)
            line.sendall(b'{"op": "settle"}\n')
            while len(said) < MAX_LINE and (part := line.recv(4096)):
                said += part
    return b'"event": "ended"' in said


def _announce(scratch: Path, token: str, spec: dict[str, Any]) -> IO[str]:
    """Note on disk that a run begins, for whoever finds it unfinished; the lock on it lasts as long as this process."""
    shared = (spec.get("parent") or {}).get("identity")
    parent = {"identity": shared} if shared else spec.get("parent") or {}
    path = scratch / "alive" / token
    path.parent.mkdir(parents=True, exist_ok=True)
    new = scratch / f"{token}.new"
    file = new.open("w", encoding="utf-8", buffering=1)
    file.write(json.dumps({"name": spec["name"], "parent": parent}) + "\n")
    disk.try_lock(file, shared=True)
    new.rename(path)  # nobody sees it before it is locked
    return file


def _call(where: Store) -> tuple[socket.socket, Path]:
    """A line to the recorder of this store, started where there is none; and the file that what goes wrong with it is written to.

    Its socket is reached through the open folder, so the folder's path may be of any length. Whoever has the folder's lock makes
    the socket, starts the recorder and gives it the listening end, so there is one, and no call comes too early.
    """
    identity = _identity(where)
    log = where.scratch / "recorders" / f"{identity}.log"
    with socket_folder() as (path, folder):
        name = f"/proc/self/fd/{folder}/{identity}"
        for _ in range(CALLS):
            try:
                if line := _connect(name):
                    return line, log
                if not disk.try_lock(folder):
                    raise BlockingIOError
                if line := _connect(name):
                    return line, log
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(identity, dir_fd=folder)  # of a recorder that was killed
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(name)
                    listener.listen()
                    _start(listener, where, path / identity, log)
            except BlockingIOError:
                time.sleep(0.01)  # it is just beginning, or as many wait as it takes
            finally:
                disk.unlock(folder)
    raise OSError("the recorder neither answers nor ends")


def _connect(name: str) -> socket.socket | None:
    """The line, or None where nobody listens; BlockingIOError where more wait than are let in."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.setblocking(False)
        line.connect(name)
        line.setblocking(True)
        if owner(line) != os.getuid():
            raise OSError("another user's process has taken the recorder's name")
    except (ConnectionRefusedError, FileNotFoundError):
        line.close()
        return None
    except OSError:
        line.close()
        raise
    return line


def _identity(where: Store) -> str:
    """Equal for stages that one recorder can serve: what it has loaded, opened or read is what they would have it be."""
    package = Path(__file__).parent
    code = [part for path in sorted(package.glob("*.py")) for part in (path.name, path.read_bytes())]
    database = ""
    if where.database:
        with where.database.open("ab") as file:  # made now, if it is not there: another of its name is another store
            status = os.fstat(file.fileno())
            database = f"{status.st_dev} {status.st_ino}"
    environment = [f"{key}={value}" for key, value in sorted(os.environ.items()) if not OF_ONE_STAGE.fullmatch(key)]
    store = [where.uri, where.artifacts or "", str(where.scratch), database]
    parts = [str(package), *code, sys.executable, sys.version, *store, *environment]
    return provenance.digest_of(*(part if isinstance(part, bytes) else os.fsencode(part) for part in parts))


def _start(listener: socket.socket, where: Store, place: Path, log: Path) -> None:
    """Start the recorder: nobody waits for it and it holds nobody's terminal or pipe, for it outlives the stage."""
    environment = {**HTTP, **QUIET, **os.environ}
    environment.pop("MLFLOW_RUN_ID", None)
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    environment["CUDA_VISIBLE_DEVICES"] = ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "soundmill.tracking.recorder", str(listener.fileno()), str(log)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    with process.stdin as pipe:  # not on its command line, which everybody may read: the address may have a password in it
        pipe.write(json.dumps({"store": asdict(where) | {"scratch": str(where.scratch)}, "socket": str(place)}).encode())
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie if we outlive it


def _link_or_copy(source: str, target: str) -> None:
    """A snapshot; big files (checkpoints, which are made whole and never written again) are linked rather than copied."""
    if os.path.getsize(source) <= COPY_LIMIT:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
