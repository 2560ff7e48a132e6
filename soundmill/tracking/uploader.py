"""Sends the journals of a store to MLflow: one process per store, until MLflow has everything.

It may be killed at any moment: its last action is repeated, which changes nothing (mlflow_runs.py).
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from soundmill import disk, terminal
from soundmill.errors import reason
from soundmill.tracking import journal
from soundmill.tracking.stores import HTTP, QUIET, Store, store, unreachable

POLL_SECONDS = 0.5
# Between stages DVC takes a second, or longer to hash large outputs; importing mlflow takes three.
IDLE_SECONDS = 15.0
TRY_SECONDS = 60.0  # after the last run, while MLflow does not answer; the next run tries again
LONGEST_PAUSE = 10.0
OLD_SECONDS = 60.0
# MLflow's server answers when a file is in its bucket, which takes minutes for a checkpoint of gigabytes.
TIMEOUT, TIMEOUT_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", "900"
TRIES = 3  # per event that MLflow rejects
DIED = "the process died (killed, or out of memory)"
TROUBLE, LOCK, LOG = "trouble.txt", "uploader.lock", "uploader.log"


class Uploader:
    """Sends new events from the journals of a store, one pass at a time."""

    def __init__(self, where: Store):
        from soundmill.tracking.mlflow_runs import Runs

        self.where, self.runs = where, Runs(where)
        self._readers: dict[Path, journal.Reader] = {}

    def send(self) -> str:
        """Send all new events; returns the error if that failed, otherwise an empty text."""
        self._find_journals()
        trouble = ""
        for reader in list(self._readers.values()):
            try:
                self._send(reader)
            except Exception as error:  # anything that MLflow, its database or the network raise: tried again later
                trouble = reason(error)
                if self.where.is_server and unreachable(self.where.uri):
                    break
        return trouble

    def _find_journals(self) -> None:
        folders = journal.folders(self.where.journals)
        self._readers = {folder: self._readers.get(folder) or journal.Reader(folder) for folder in folders}

    def _send(self, reader: journal.Reader) -> None:
        alive = journal.is_alive(reader.folder)  # checked first: if not, no line follows those read below
        if "name" not in reader.opening:
            terminal.say(f"{reader.folder}: the first line is damaged; the journal is removed")
            reader.remove()
            return
        self._open(reader)
        end: dict[str, Any] = {}
        for events, offset in reader.batches():
            if events[0]["op"] == "end":
                end = events[0]
                break
            self._write(reader, events)
            reader.advance(offset=offset)
            for event in events:
                if "path" in event:
                    shutil.rmtree((reader.folder / event["path"]).parent, ignore_errors=True)
        if not end and alive:
            return
        self._find_journals()  # runs below this one may have started since
        if not any(other.parent_id == reader.id for other in self._readers.values()):
            if not end:  # dead: it ends when it, or a run below it, was last active
                last_below = self.runs.last_end_below(reader.position.experiment_id, reader.position.run_id)
                last_line = (reader.folder / journal.EVENTS).stat().st_mtime_ns // 1_000_000
                end = {"status": "KILLED", "reason": DIED, "time": max(last_line, last_below)}
            self._end(reader, end)
            reader.remove()
            del self._readers[reader.folder]

    def _open(self, reader: journal.Reader) -> None:
        if reader.position.run_id:
            return
        experiment = self.runs.experiment(reader.opening["experiment"])
        parent = self._parent(reader, experiment)
        run_id = self.runs.find_or_create(experiment, reader.id, reader.opening, parent)
        reader.advance(run_id=run_id, experiment_id=experiment, parent_run_id=parent)

    def _parent(self, reader: journal.Reader, experiment: str) -> str:
        """MLflow's id of a run's open parent; empty if it has none, or MLflow does not have it."""
        if not reader.parent_id:
            return ""
        above = self._readers.get(reader.folder.with_name(reader.parent_id))
        if above:
            self._open(above)
            return above.position.run_id
        if shared := reader.opening["parent"].get("shared"):
            run_id = self.runs.find_or_create(experiment, reader.parent_id, shared)
            self.runs.log_params(run_id, shared["params"])
            self.runs.reopen(run_id)
            return run_id
        run = self.runs.find(experiment, reader.parent_id)
        return run.info.run_id if run else ""

    def _write(self, reader: journal.Reader, events: list[dict[str, Any]]) -> None:
        """Write a batch. Events that MLflow keeps rejecting are left out, and a tag of the runs names them."""
        position = reader.position
        run_id = position.parent_run_id if events[0].get("on") == "parent" else position.run_id
        if not run_id or ("path" in events[0] and not (reader.folder / events[0]["path"]).exists()):
            return  # already sent: files are removed only after that
        for attempt in range(1, TRIES + 1):
            try:
                return self.runs.write(run_id, events, reader.folder)
            except Exception as error:
                if not self.runs.exists(run_id):
                    return  # the user has deleted the run
                if attempt < TRIES:
                    time.sleep(POLL_SECONDS)
                    continue
                terminal.say(f"{reader.opening['name']}: {events[0]['op']} was rejected: {reason(error)}")
        what = f"{events[0]['op']} {Path(events[0].get('path', '')).name}".strip()
        self.runs.note_incomplete(position.run_id, what)
        if position.parent_run_id:
            self.runs.note_incomplete(position.parent_run_id, reader.opening["name"])

    def _end(self, reader: journal.Reader, end: dict[str, Any]) -> None:
        position, status, why, moment = reader.position, end["status"], end["reason"], end["time"]
        if self.runs.exists(position.run_id):
            self.runs.end(position.run_id, status, why, moment)
        shared = "shared" in (reader.opening["parent"] or {})
        others = [other for other in self._readers.values() if other.parent_id == reader.parent_id and other is not reader]
        if shared and not others and self.runs.exists(position.parent_run_id):
            stage = reader.opening["name"]
            self.runs.end(position.parent_run_id, status, f"{stage}: {why}" if why else "", moment)


class Replaced(Exception):
    """The database file was replaced while this process had it open."""


def upload(where: Store, idle_seconds: float = IDLE_SECONDS, try_seconds: float = TRY_SECONDS) -> None:
    """Send all journals to MLflow until there was none for `idle_seconds`; does nothing if another process does this.

    While MLflow does not answer, it is tried again as long as runs are active, and `try_seconds` longer.
    """
    while journal.folders(where.journals):  # again for a run that started while this process ended and held the lock
        with (where.journals / LOCK).open("a") as file:
            if not disk.try_lock(file):
                return
            for path in where.journals.glob(".*"):  # left by a process killed while it created or removed a journal
                if path.is_dir() and path.stat().st_mtime < time.time() - OLD_SECONDS:
                    shutil.rmtree(path)
            if _upload(where, idle_seconds, try_seconds):
                return


def _upload(where: Store, idle_seconds: float, try_seconds: float) -> str:
    """`upload` with the lock held; returns the error if journals are left, otherwise an empty text."""
    uploader, database, trouble = None, None, ""
    last_use = last_active = time.monotonic()
    pause = POLL_SECONDS
    while True:
        try:
            if where.is_server and (why := unreachable(where.uri)):
                raise ConnectionError(f"{where.shown} is unreachable ({why})")
            if uploader is None:
                uploader, database = Uploader(where), _identity(where.database)
            elif database != _identity(where.database):
                raise Replaced
            trouble = uploader.send()
        except Replaced:
            raise
        except Exception as error:
            trouble = reason(error)
        if trouble:
            (where.journals / TROUBLE).write_text(trouble, encoding="utf-8")
        else:
            (where.journals / TROUBLE).unlink(missing_ok=True)
        moment, left = time.monotonic(), journal.folders(where.journals)
        if left:
            last_use = moment
        if not trouble or any(map(journal.is_alive, left)):
            last_active = moment
        if moment - last_active >= try_seconds and trouble:
            return trouble
        if moment - last_use >= idle_seconds and not left:
            return ""
        pause = min(2 * pause, LONGEST_PAUSE) if trouble else POLL_SECONDS
        time.sleep(pause)


def _identity(database: Path | None) -> tuple[int, int] | None:
    if not database or not database.exists():
        return None
    about = database.stat()
    return about.st_dev, about.st_ino


def start(home: Path) -> None:
    """Start the uploader of the project at `home` unless one runs; it outlives this process."""
    where = store(home)
    if not journal.folders(where.journals):
        return
    with (where.journals / LOCK).open("a") as file:
        if not disk.try_lock(file):
            return
    (where.journals / TROUBLE).unlink(missing_ok=True)  # of an earlier uploader
    environment = {**HTTP, **QUIET, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if environment[TIMEOUT] == HTTP[TIMEOUT]:  # which this process may have set for itself
        environment[TIMEOUT] = TIMEOUT_SECONDS
    environment.pop("MLFLOW_RUN_ID", None)
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    with (where.journals / LOG).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "soundmill.tracking", str(home.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # reaps it if this process lives longer


def waiting(home: Path) -> tuple[int, str]:
    """Number of runs that are not completely in MLflow, and the uploader's error, if any."""
    journals = store(home).journals
    return _behind(journals, {folder: journal.written(folder) for folder in journal.folders(journals)})


def sync(home: Path, seconds: float = 600.0) -> tuple[int, str]:
    """Wait until MLflow has everything written so far, for at most `seconds`, or until it does not answer.

    Returns the number of runs that are not completely sent, and why.
    """
    journals = store(home).journals
    (journals / TROUBLE).unlink(missing_ok=True)  # of an earlier uploader
    sizes = {folder: journal.written(folder) for folder in journal.folders(journals)}
    deadline = time.monotonic() + seconds
    while (state := _behind(journals, sizes))[0] and not state[1] and time.monotonic() < deadline:
        start(home)
        time.sleep(0.1)
    return state


def _behind(journals: Path, sizes: dict[Path, int | None]) -> tuple[int, str]:
    """Number of journals whose first bytes, as many as `written` returned (None: all), MLflow lacks; and the uploader's error."""
    behind = (size is None or journal.read_position(folder).offset < size for folder, size in sizes.items() if folder.exists())
    left, why = sum(behind), ""
    with suppress(FileNotFoundError):
        why = (journals / TROUBLE).read_text(encoding="utf-8")
    return left, why if left else ""
