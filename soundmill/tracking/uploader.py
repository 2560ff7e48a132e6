"""Brings the journals of a store to MLflow: one process a store, while runs are recorded and until all of them is there.

It may be killed at any moment. What it did last is done again, and done again changes nothing (mlflow_runs.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.errors import reason
from soundmill.tracking import journal
from soundmill.tracking.stores import HTTP, QUIET, Store, store, unreachable

POLL_SECONDS = 0.5
# From one stage to the next DVC takes a second, and longer where it hashes large outputs; importing mlflow takes three.
IDLE_SECONDS = 15.0
TRY_SECONDS = 60.0  # once no run is written any more and MLflow does not answer; the next run tries again
LONGEST_PAUSE = 10.0
OLD_SECONDS = 60.0
TRIES = 3  # of an event that MLflow refuses while it answers
DIED = "the process died without a word (killed, or out of memory)"
TROUBLE, LOCK, LOG = "trouble.txt", "uploader.lock", "uploader.log"


class Uploader:
    """One look after another at the journals of a store; what each brings is complete on its own."""

    def __init__(self, where: Store):
        from soundmill.tracking.mlflow_runs import Runs

        self.where, self.runs = where, Runs(where)
        self._known: dict[Path, journal.Reader] = {}

    def bring(self) -> str:
        """Send all that is new; returns why MLflow did not take it, where it did not."""
        self._look()
        trouble = ""
        for reader in list(self._known.values()):
            try:
                self._bring(reader)
            except Exception as error:  # whatever MLflow, its database or the network raise: it is tried again
                trouble = reason(error)
                if self.where.is_server and unreachable(self.where.uri):
                    break
        return trouble

    def _look(self) -> None:
        there = journal.folders(self.where.journals)
        self._known = {folder: self._known.get(folder) or journal.Reader(folder) for folder in there}

    def _bring(self, reader: journal.Reader) -> None:
        """One journal as far as it is written."""
        alive = journal.is_alive(reader.folder)  # asked first: where it does not, nothing comes after what is read now
        if "name" not in reader.opening:
            print(f"{reader.folder}: its first line is damaged; removed", flush=True)
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
        self._look()  # runs below this one may have begun since
        if not any(other.parent_id == reader.id for other in self._known.values()):
            end = end or {"status": "KILLED", "reason": DIED, "time": self._last_sign(reader)}
            self._end(reader, end)
            reader.remove()
            del self._known[reader.folder]

    def _open(self, reader: journal.Reader) -> None:
        """Find or make the run, below its parent."""
        if reader.position.run_id:
            return
        experiment = self.runs.experiment(reader.opening["experiment"])
        parent = self._parent(reader, experiment)
        run_id = self.runs.find_or_create(experiment, reader.id, reader.opening, parent)
        reader.advance(run_id=run_id, experiment_id=experiment, parent_run_id=parent)

    def _parent(self, reader: journal.Reader, experiment: str) -> str:
        """MLflow's id of a run's parent, which is open; empty where it has none, or MLflow has not."""
        if not reader.parent_id:
            return ""
        above = self._known.get(reader.folder.with_name(reader.parent_id))
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
        """Write a batch; what MLflow refuses again and again while it answers is named in the runs' tags and left out."""
        position = reader.position
        run_id = position.parent_run_id if events[0].get("on") == "parent" else position.run_id
        if not run_id or ("path" in events[0] and not (reader.folder / events[0]["path"]).exists()):
            return  # sent already: the file goes after that
        for attempt in range(1, TRIES + 1):
            try:
                return self.runs.write(run_id, events, reader.folder)
            except Exception as error:
                if not self.runs.exists(run_id):
                    return  # somebody has deleted it
                if attempt < TRIES:
                    time.sleep(POLL_SECONDS)
                    continue
                print(f"{reader.opening['name']}: {events[0]['op']} was refused: {reason(error)}", flush=True)
        what = f"{events[0]['op']} {Path(events[0].get('path', '')).name}".strip()
        self.runs.note_incomplete(position.run_id, what)
        if position.parent_run_id:
            self.runs.note_incomplete(position.parent_run_id, reader.opening["name"])

    def _last_sign(self, reader: journal.Reader) -> int:
        """When a run that died was last heard of, it or those below it."""
        return max(reader.last_sign(), self.runs.last_end_below(reader.position.experiment_id, reader.position.run_id))

    def _end(self, reader: journal.Reader, end: dict[str, Any]) -> None:
        position, status, why, moment = reader.position, end["status"], end["reason"], end["time"]
        if self.runs.exists(position.run_id):
            self.runs.end(position.run_id, status, why, moment)
        shared = "shared" in (reader.opening["parent"] or {})
        others = [other for other in self._known.values() if other.parent_id == reader.parent_id and other is not reader]
        if shared and not others and self.runs.exists(position.parent_run_id):
            stage = reader.opening["name"]
            self.runs.end(position.parent_run_id, status, f"{stage}: {why}" if why else "", moment)


class Replaced(Exception):
    """The database is another file than the one that this process has open."""


def upload(where: Store, idle_seconds: float = IDLE_SECONDS, try_seconds: float = TRY_SECONDS) -> None:
    """Bring all journals to MLflow, and end when none was there for `idle_seconds`; where another process does it, do nothing.

    Where MLflow does not answer it is tried again as long as runs are written, and `try_seconds` longer.
    """
    while journal.folders(where.journals):  # one that began while this ended found the lock taken: looked for once more
        with (where.journals / LOCK).open("a") as file:
            if not disk.try_lock(file):
                return
            for path in where.journals.glob(".*"):  # of a process that was killed when it began or removed one
                if path.is_dir() and path.stat().st_mtime < time.time() - OLD_SECONDS:
                    shutil.rmtree(path)
            if _upload(where, idle_seconds, try_seconds):
                return


def _upload(where: Store, idle_seconds: float, try_seconds: float) -> str:
    """As `upload`; returns why some journals are left, where they are."""
    uploader, database, trouble = None, None, ""
    last_use = last_hope = time.monotonic()
    pause = POLL_SECONDS
    while True:
        try:
            if where.is_server and (why := unreachable(where.uri)):
                raise ConnectionError(f"{where.uri} is unreachable ({why})")
            if uploader is None:
                uploader, database = Uploader(where), _identity(where.database)
            elif database != _identity(where.database):
                raise Replaced
            trouble = uploader.bring()
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
            last_hope = moment
        if moment - last_hope >= try_seconds and trouble:
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
    """Start the uploader of the project at `home` where none runs; nobody waits for it, and it outlives this process."""
    where = store(home)
    if not journal.folders(where.journals):
        return
    with (where.journals / LOCK).open("a") as file:
        if not disk.try_lock(file):
            return
    (where.journals / TROUBLE).unlink(missing_ok=True)  # of an earlier one
    environment = {**HTTP, **QUIET, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
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
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie if we outlive it


def waiting(home: Path) -> tuple[int, str]:
    """How many runs are not in MLflow as far as they are written, and why, where an uploader has met trouble."""
    journals = store(home).journals
    return _behind(journals, {folder: journal.written(folder) for folder in journal.folders(journals)})


def sync(home: Path, seconds: float = 600.0) -> tuple[int, str]:
    """Wait until all that is written by now is in MLflow, at most so long or until it does not answer.

    Returns how many runs are not, and why.
    """
    journals = store(home).journals
    (journals / TROUBLE).unlink(missing_ok=True)  # of an earlier time
    wanted = {folder: journal.written(folder) for folder in journal.folders(journals)}
    give_up = time.monotonic() + seconds
    while (state := _behind(journals, wanted))[0] and not state[1] and time.monotonic() < give_up:
        start(home)
        time.sleep(0.1)
    return state


def _behind(journals: Path, wanted: dict[Path, int | None]) -> tuple[int, str]:
    left = sum(journal.is_behind(folder, size) for folder, size in wanted.items())
    why = ""
    with suppress(FileNotFoundError):
        why = (journals / TROUBLE).read_text(encoding="utf-8")
    return left, why if left else ""
