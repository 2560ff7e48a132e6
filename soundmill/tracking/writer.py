"""The stage's end of the line to the process that talks to MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from soundmill.tracking.stores import (
    COPY_LIMIT,
    HTTP,
    MAX_TAG,
    QUIET,
    STUCK_SECONDS,
    Store,
    locked,
    say,
)


class Writer:
    """The second process, as the first one sees it: a queue that takes anything at once, and words that come back."""

    def __init__(self, where: Store, spec: dict[str, Any]):
        self.store, self.run_id, self.experiment_id = where, None, None
        self.outcome = ("FINISHED", "")
        token = uuid.uuid4().hex
        self._spool = where.scratch / "spool" / token
        self._files = 0
        self._down = threading.Event()
        self._opened = threading.Event()
        self._ended = False
        self._last_word = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with locked(where.scratch, "alive"):  # whoever cleans up must not see the file before it is locked
            alive = where.scratch / "alive" / token
            alive.parent.mkdir(parents=True, exist_ok=True)
            self._alive = alive.open("w")
            fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._spool.mkdir(parents=True)
        self._log = (self._spool / "log.txt").open("w+", encoding="utf-8", errors="replace")
        environment = {**HTTP, **QUIET, **os.environ}
        environment.pop("MLFLOW_RUN_ID", None)
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from soundmill.tracking import recorder; recorder.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._spool,
            env=environment,
            pass_fds=[self._alive.fileno()],  # the lock lasts until both processes are gone
        )
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
            self._process.kill()
        self._process.wait()
        self._log.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._spool)
            (self.store.scratch / "alive" / self._spool.name).unlink()
        self._alive.close()

    def _write(self) -> None:
        pipe: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        with contextlib.suppress(OSError):
            while (line := self._queue.get()) is not None:
                pipe.write(line.encode() + b"\n")
                if self._queue.empty():
                    pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
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
            self._log.seek(0)
            lines = [line for line in self._log.read().splitlines() if line.strip() and " INFO " not in line]
            self._say_down(f"its process ended early ({lines[-1] if lines else 'no message'})")

    def _say_down(self, message: str) -> None:
        if not self._down.is_set():
            self._down.set()
            self._opened.set()
            say(f"tracking: {message}: going on without it; metrics files are kept")


def _link_or_copy(source: str, target: str) -> None:
    """A snapshot; big files (checkpoints, which are made whole and never written again) are linked rather than copied."""
    if os.path.getsize(source) <= COPY_LIMIT:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
