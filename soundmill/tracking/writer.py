"""The stage's end of the line to the process that talks to MLflow, and how it is found."""

from __future__ import annotations

import contextlib
import errno
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
from typing import Any

from soundmill import provenance
from soundmill.tracking.stores import (
    COPY_LIMIT,
    HTTP,
    MAX_TAG,
    QUIET,
    STUCK_SECONDS,
    Store,
    owner,
    say,
)

# No two stages have these alike, and no library that talks to a store reads them.
OF_ONE_STAGE = re.compile(r"(DVC|SOUNDMILL|PREFECT|GOMP|OMP)_.*|PYTHONUNBUFFERED|PWD|OLDPWD|SHLVL|_")


class Writer:
    """The second process, as the first one sees it: a queue that takes anything at once, and words that come back."""

    def __init__(self, where: Store, spec: dict[str, Any]):
        self.store, self.run_id, self.experiment_id = where, None, None
        self.outcome = ("FINISHED", "")
        self._line, self._log = _call(where)
        token = uuid.uuid4().hex
        self._spool = where.scratch / "spool" / token
        self._spool.mkdir(parents=True)
        self._files = 0
        self._down = threading.Event()
        self._opened = threading.Event()
        self._ended = False
        self._last_word = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._write, daemon=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._sender.start()
        self._listener.start()
        self.send({"op": "open", "token": token, "store": asdict(where) | {"scratch": str(where.scratch)}, **spec})

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
        with contextlib.suppress(OSError), self._line.makefile("rb") as stream:
            for line in stream:
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
                    self._ended = True
        if not self._ended and not self._down.is_set():
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


def _call(where: Store) -> tuple[socket.socket, Path]:
    """A line to the recorder of this store, started where there is none; and the file that what goes wrong with it is written to.

    Its socket has a name and no path: that may be as long as it likes, and nothing is left behind by a recorder that was killed.
    Whoever can bind the name starts the recorder and gives it the listening socket, so there is one, and no call comes too early.
    """
    identity = _identity(where)
    name, log = f"\0soundmill-recorder-{identity}", where.scratch / "recorders" / f"{identity}.log"
    for _ in range(500):
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(name)
        except ConnectionRefusedError:
            line.close()
        else:
            if owner(line) == os.getuid():
                return line, log
            line.close()
            raise OSError("another user's process has taken the recorder's name")
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(name)
                listener.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                time.sleep(0.01)  # it is just beginning, or just ending
            else:
                _start(listener, log)
    raise OSError("the recorder neither answers nor ends")


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


def _start(listener: socket.socket, log: Path) -> None:
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
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
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
