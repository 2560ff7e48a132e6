"""The process that talks to MLflow: receives records from every stage that connects and writes them, whatever becomes of the stage.

One serves all stages of a `dvc repro`, since importing mlflow and opening its store take three seconds of processor.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.tracking.mlflow_runs import MAKING_TABLES, Recorder, Refused
from soundmill.tracking.stores import (
    DIED,
    MAX_METRICS,
    Store,
    owner,
    unreachable,
)
from soundmill.tracking.words import MAX_LINE, check

# From one stage to the next DVC takes a second, and longer where it hashes large outputs. A recorder that nobody calls any more
# holds 240 MB and no processor; one that ended too early costs three seconds of processor again: little beside 15 s of hashing.
IDLE_SECONDS = 15.0
HOPELESS_SECONDS = 1200.0  # without a word from MLflow, after the stage is gone
LINE_SECONDS = 30.0  # a caller opens its run and ends each line it begins within it; between two lines a stage may work for days
SEND_SECONDS = 5.0  # a caller that takes no word back for so long gets none any more
MAX_COMPLAINTS = 20  # told of one caller's bad lines
REFUSED = "refused"  # in the log, which is kept where it has this word
KILLED_SECONDS = 3.0  # the most that a killed stage's last words may take, when nobody else needs the recorder
POLL_SECONDS = 0.2


class Down(Exception):
    """This run is not recorded any further, for the reason given."""


@contextlib.contextmanager
def _alive(scratch: Path, token: str) -> Iterator[None]:
    """Take over a run that a process has announced (see writer.py), and its spool, as the only one who does.

    Others do not end the run as one that nobody records any more. Its note goes when it is recorded to its end; else it stays,
    for whoever reaches MLflow next.
    """
    note, spool = scratch / "alive" / token, scratch / "spool" / token
    with contextlib.ExitStack() as held:
        try:
            if not disk.try_lock(held.enter_context(note.open()), shared=True):
                raise BlockingIOError("its process has ended")
            folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            held.callback(os.close, folder)
            if not disk.try_lock(folder):
                raise BlockingIOError("another recorder has its spool")
        except OSError as error:
            raise Down(f"run {token} was not announced, or is taken ({error})") from None
        try:
            yield
        finally:
            shutil.rmtree(spool, ignore_errors=True)
        note.unlink(missing_ok=True)


class Line:
    """The recorder's end of the line to one stage or flow; a thread of its own carries out what comes down it."""

    def __init__(self, connection: socket.socket, where: Store):
        self._connection, self._where = connection, where
        self._connection.settimeout(SEND_SECONDS)
        self._pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._all_read = self._deaf = False
        self._complaints = 0
        self._lost_reason = DIED
        self._mouth = threading.Lock()
        self._killed_at: float | None = None
        self._opened = self._closing = self._refused = False
        self._last_word = time.monotonic()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_hopeless(self) -> bool:
        """Whether a stage is long gone and its last words are still not recorded."""
        return self._all_read and time.monotonic() - self._last_word > HOPELESS_SECONDS

    @property
    def was_killed(self) -> bool:
        """Whether the stage is gone without having ended its run."""
        return self._killed_at is not None

    @property
    def may_be_cut(self) -> bool:
        """Whether nobody waits for it: killed before its run was open, or KILLED_SECONDS ago. The next recorder ends such a run."""
        return self.was_killed and (not self._opened or time.monotonic() - self._killed_at > KILLED_SECONDS)

    def say(self, event: str, **values: Any) -> None:
        """One word back to the stage; it may be gone, or not listen."""
        self._last_word = time.monotonic()
        with self._mouth:
            if not self._deaf:
                try:
                    self._connection.sendall(json.dumps({"event": event, **values}).encode() + b"\n")
                except OSError:
                    self._deaf = True

    def _refuse(self, why: object) -> None:
        """Write to the log, which is then kept, and to the stage."""
        self._complaints += 1
        self._refused = True
        if self._complaints <= MAX_COMPLAINTS:
            print(f"{REFUSED}: {why}", file=sys.stderr, flush=True)
            self.say("warning", message=f"{REFUSED}: {why}")

    def _serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        if opening := self._pending.get():
            # Whatever MLflow, its database or the network raise ends tracking and never the stage: nothing narrower would do.
            try:
                token = opening.get("token")
                with _alive(self._where.scratch, token) if token else contextlib.nullcontext():
                    if self._where.is_server and (why := unreachable(self._where.uri)):
                        raise Down(f"tracking server {self._where.uri} is unreachable ({why})")
                    recorder = Recorder(self._where, self.say)
                    incomplete = self._record(recorder, opening) if token else []
            except Down as error:
                self.say("down", message=str(error))
            except Exception as error:
                self.say("down", message=f"tracking store {self._where.uri} cannot be used ({_one_line(error)})")
            else:
                self.say("ended", incomplete=incomplete)
        self._closing = True
        with contextlib.suppress(OSError):  # the other thread may be reading from it: closing alone would not end it
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        """Hand on every good line; what comes down before the run is open is refused with all that follows it."""
        is_open = ended = False
        try:
            for line in self._lines():
                try:
                    word = check(line)
                    if is_open == (word["op"] in ("open", "settle")):
                        raise ValueError(f"{word['op']} {'again' if is_open else 'before open'}")
                except ValueError as error:
                    self._refuse(error)
                    if not is_open:
                        break
                else:
                    is_open, ended = True, word["op"] in ("end", "settle")
                    self._pending.put(word)
        except OSError:
            pass  # the caller is gone; what it said until then is recorded
        finally:
            if is_open and not ended and not self._closing:
                self._killed_at = time.monotonic()
            self._all_read = True
            self._pending.put(None)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines of bounded length and duration, until the caller is gone; the last one of a killed stage may be torn."""
        line, begun = bytearray(), time.monotonic()  # the first one is due from now on
        while True:
            if begun and time.monotonic() - begun > LINE_SECONDS:
                self._lost_reason = f"no whole line came within {LINE_SECONDS:.0f} s"
                return self._refuse(self._lost_reason)
            try:
                part = self._connection.recv(2**16)
            except TimeoutError:
                continue
            if not part:
                return
            *ends, rest = part.split(b"\n")
            for end in ends:
                line += end
                if len(line) > MAX_LINE:
                    self._refuse(f"longer than {MAX_LINE} bytes")
                else:
                    yield bytes(line)
                line, begun = bytearray(), 0.0
            if rest:
                begun = begun or time.monotonic()
                if len(line) <= MAX_LINE:
                    line += rest

    def _record(self, recorder: Recorder, opening: dict[str, Any]) -> list[str]:
        where = self._where
        recorder.open(opening)
        self._opened = True
        self.say("opened", run_id=recorder.run_id, experiment_id=recorder.experiment)
        failures = 0
        while True:
            operations, end = self._take()
            work: list[list[dict[str, Any]]] = []  # runs of metrics together, everything else alone
            for operation in operations:
                if work and operation["op"] == "metrics" == work[-1][-1]["op"]:
                    work[-1].append(operation)
                else:
                    work.append([operation])
            for batch in work:
                try:
                    recorder.carry_out(batch)
                    failures = 0
                    self.say("progress")
                except Refused as error:
                    self._refuse(error)
                except Exception as error:
                    recorder.lost = True
                    failures += 1
                    if where.is_server and (why := unreachable(where.uri)):
                        raise Down(f"tracking server {where.uri} is unreachable ({why})") from None
                    if failures == 3:
                        raise Down(f"tracking store {where.uri} fails again and again ({_one_line(error)})") from None
                    self.say("warning", message=f"{batch[0]['op']} could not be recorded: {_one_line(error)}")
            if end:
                recorder.lost = recorder.lost or self._refused
                try:
                    return recorder.end(end["status"], end["reason"])
                except Exception as error:
                    raise Down(f"the run could not be ended in {where.uri} ({_one_line(error)})") from None

    def _take(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """All that waits in the line, and how the run ends if it does; without a word of it, the stage was killed."""
        operations = []
        operation = self._pending.get()
        while operation is not None and operation["op"] != "end":
            operations.append(operation)
            if self._pending.empty() or len(operations) == MAX_METRICS:
                return operations, None
            operation = self._pending.get()
        return operations, operation or {"status": "KILLED", "reason": self._lost_reason}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def serve(listener: socket.socket, where: Store, place: Path) -> None:
    """Record the runs of all who call, until nobody has for IDLE_SECONDS; after a stage that was killed, end at once.

    `place` is the socket's path.

    Nobody's call is lost: who called before `shutdown` is still answered, and who calls later finds no socket and starts another
    recorder.
    """
    listener.settimeout(POLL_SECONDS)
    lines: list[Line] = []
    last_open, idle_seconds = time.monotonic(), IDLE_SECONDS
    listening = True
    while listening or lines:
        try:
            if listening:
                connection, _ = listener.accept()
                if owner(connection) == os.getuid():
                    lines.append(Line(connection, where))
                else:
                    connection.close()
            else:
                time.sleep(POLL_SECONDS)
        except TimeoutError:
            pass
        except OSError:  # shut down below, and the place may be another recorder's by now
            listener.close()
            listening = False
        for line in lines:
            if not line.is_open:
                idle_seconds = 0.0 if line.was_killed else IDLE_SECONDS
        lines = [line for line in lines if line.is_open]
        unneeded = all(line.may_be_cut for line in lines)
        if not unneeded:
            last_open = time.monotonic()
        elif listening and (lines or time.monotonic() - last_open > idle_seconds):
            place.unlink(missing_ok=True)  # while it is surely ours: nobody takes the place of one who listens
            listener.shutdown(socket.SHUT_RDWR)
            listener.setblocking(True)  # accept() gives those who called before, then an error
        if any(line.is_hopeless for line in lines):
            os._exit(1)
        if lines and unneeded and not listening:
            with MAKING_TABLES:
                os._exit(0)


def main() -> None:
    """`python -m soundmill.tracking.recorder FD LOG`: serve the socket that a stage has opened, as its standard input says."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the stages: we end after them
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gc.disable()  # until mlflow is imported: a fifth of that time, with no garbage in it; the first stage waits for it
    opened, log = json.load(sys.stdin), Path(sys.argv[2])
    where = Store(**opened["store"] | {"scratch": Path(opened["store"]["scratch"])})
    serve(socket.socket(fileno=int(sys.argv[1])), where, Path(opened["socket"]))
    if REFUSED.encode() not in log.read_bytes():
        log.unlink()


if __name__ == "__main__":
    main()
