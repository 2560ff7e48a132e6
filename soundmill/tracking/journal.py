"""The journal of a run, which its process writes, and the uploader, which sends it to MLflow: one process per store.

A journal is a directory with `events.jsonl`, which is appended to and locked, and the files that it names. The uploader stores its
progress in `position.json`, and removes the directory when MLflow has everything. It may be killed at any moment: its last action
is repeated, which changes nothing (mlflow_runs.py).
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from soundmill import credentials, disk, terminal
from soundmill.errors import UserError, reason
from soundmill.tracking.mlflow_runs import Runs
from soundmill.tracking.stores import HTTP, MAX_METRICS, QUIET, Store, say, store

EVENTS = "events.jsonl"
COPY_LIMIT = 16 * 2**20  # bytes; larger files are linked
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


class Writer:
    """The journal of a run. What a method wrote survives a kill, and a process that it is pickled for appends to the same file."""

    def __init__(self, journals: Path, opening: dict[str, Any]):
        self.id = f"{time.time_ns()}-{secrets.token_hex(4)}"
        self.folder = journals / self.id
        hidden = journals / f".{self.id}"
        hidden.mkdir(parents=True)
        self._file = (hidden / EVENTS).open("ab", buffering=0)
        disk.lock(self._file)
        self._files = 0
        self.closed = threading.Event()
        self._append({"op": "open", **opening, "time": now()})
        hidden.rename(self.folder)  # visible only when it is locked and has its first line

    def __getstate__(self) -> dict[str, Any]:
        return {"id": self.id, "folder": self.folder}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__ |= values
        self._file = (self.folder / EVENTS).open("ab", buffering=0)
        self._files = max((int(path.name) for path in (self.folder / "files").glob("*")), default=0)
        self.closed = threading.Event()

    def send(self, event: dict[str, Any]) -> None:
        try:
            self._append(event)
        except OSError as error:
            say(f"tracking: {self.folder}: {error.strerror}: {event['op']} is not recorded")

    def _append(self, event: dict[str, Any]) -> None:
        """Append a line, or nothing: a part of one would spoil the next too."""
        before = os.fstat(self._file.fileno()).st_size
        line = memoryview(_line(event))
        try:
            with disk.named(self.folder / EVENTS):
                while line:  # a disk that is nearly full takes a part
                    line = line[self._file.write(line) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(before)
            raise

    def send_file(self, path: Path, event: dict[str, Any], name: str) -> None:
        """Record a snapshot of a file or directory, linked or copied: the stage may move or rewrite it later."""
        copy = partial(shutil.copytree, copy_function=_link_or_copy) if path.is_dir() else _link_or_copy
        self.send_written(lambda target: copy(path, target), event, name, path)

    def send_written(self, write: Callable[[Path], Any], event: dict[str, Any], name: str, what: str | Path) -> None:
        """Record the file that `write` makes; `what` is named if that fails."""
        self._files += 1
        target = self.folder / "files" / str(self._files) / Path(name).name
        try:
            target.parent.mkdir(parents=True)
            write(target)
        except OSError as error:
            say(f"tracking: {what} could not be recorded: {error}")
        else:
            self.send({**event, "path": str(target.relative_to(self.folder))})

    def close(self) -> None:
        self._file.close()
        self.closed.set()


@dataclass(frozen=True)
class Position:
    """How much of a journal MLflow has: its runs there, and the bytes of `events.jsonl` already sent."""

    offset: int = 0
    run_id: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""


class Reader:
    def __init__(self, folder: Path):
        self.folder, self.id = folder, folder.name
        with (folder / EVENTS).open("rb") as file:
            self.opening = _event(file.readline())
        self.position = read_position(folder)

    @property
    def parent_id(self) -> str:
        return (self.opening.get("parent") or {}).get("id", "")

    def batches(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """The events not yet sent, with the offset after each batch: consecutive metrics of a run together, others alone."""
        batch: list[dict[str, Any]] = []
        last: tuple[str, str | None] = ("", None)
        size, offset = 0, self.position.offset
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(offset)
            while (line := file.readline()).endswith(b"\n"):  # an incomplete line was cut off, or is being written
                event = _event(line)
                kind = event["op"], event.get("on")
                if batch and not (kind == last and kind[0] == "metrics" and size + len(event["values"]) <= MAX_METRICS):
                    yield batch, offset
                    batch, size = [], 0
                batch.append(event)
                last = kind
                size += len(event.get("values", ()))
                offset += len(line)
        if batch:
            yield batch, offset

    def advance(self, **values: Any) -> None:
        self.position = Position(**vars(self.position) | values)
        disk.write_text(self.folder / "position.json", json.dumps(vars(self.position)))

    def remove(self) -> None:
        hidden = self.folder.rename(self.folder.with_name(f".{self.id}"))  # atomic: half a journal would be sent again
        shutil.rmtree(hidden)


def read_position(folder: Path) -> Position:
    """How much of a journal MLflow has; if unreadable, nothing: sending events again changes nothing."""
    try:
        return Position(**json.loads((folder / "position.json").read_text()))
    except (OSError, ValueError, TypeError):
        return Position()


def folders(journals: Path) -> list[Path]:
    """All journals of a store, oldest first."""
    return sorted(path for path in journals.glob("[0-9]*-*") if path.is_dir())


def is_alive(folder: Path) -> bool:
    """Whether a journal's process is alive and holds its lock; if not, the journal is complete, or cannot be read."""
    unreadable = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    with suppress(*unreadable), (folder / EVENTS).open("rb") as file:
        return not disk.try_lock(file, shared=True)
    return False


def written(folder: Path) -> int | None:
    """Bytes of a journal's events so far; None if its process has ended, or the journal was sent, or is unreadable."""
    with suppress(OSError):
        return (folder / EVENTS).stat().st_size if is_alive(folder) else None
    return None


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(credentials.hide_in(event)).encode() + b"\n"


def _event(line: bytes) -> dict[str, Any]:
    """The event of a line, which a full disk or a power cut may have cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return {"op": "unreadable"}


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A snapshot; large files (checkpoints, which are never modified) are linked instead of copied."""
    with suppress(OSError):
        if os.path.getsize(source) > COPY_LIMIT:
            return os.link(source, target)
    shutil.copyfile(source, target)


class Uploader:
    """Sends new events from the journals of a store, one pass at a time."""

    def __init__(self, where: Store):
        self.where, self.runs = where, Runs(where)
        self._readers: dict[Path, Reader] = {}

    def send(self) -> str:
        """Send all new events; returns the error if that failed, otherwise an empty text."""
        trouble = self._find_journals()
        for reader in list(self._readers.values()):
            try:
                self._send(reader)
            except Exception as error:  # anything that MLflow, its database or the network raise: tried again later
                trouble = reason(error)
                if self.where.fault:
                    break
        return trouble

    def _find_journals(self) -> str:
        """Find new journals; returns the error if one cannot be read, which holds up none of the others."""
        found, trouble = {}, ""
        for folder in folders(self.where.journals):
            try:
                found[folder] = self._readers.get(folder) or Reader(folder)
            except OSError as error:
                trouble = reason(error)
        self._readers = found
        return trouble

    def _send(self, reader: Reader) -> None:
        alive = is_alive(reader.folder)  # checked first: if not, no line follows those read below
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
                last_line = (reader.folder / EVENTS).stat().st_mtime_ns // 1_000_000
                end = {"status": "KILLED", "reason": DIED, "time": max(last_line, last_below)}
            self._end(reader, end)
            reader.remove()
            del self._readers[reader.folder]

    def _open(self, reader: Reader) -> None:
        if reader.position.run_id:
            return
        experiment = self.runs.experiment(reader.opening["experiment"])
        parent = self._parent(reader, experiment)
        run_id = self.runs.find_or_create(experiment, reader.id, reader.opening, parent)
        reader.advance(run_id=run_id, experiment_id=experiment, parent_run_id=parent)

    def _parent(self, reader: Reader, experiment: str) -> str:
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

    def _write(self, reader: Reader, events: list[dict[str, Any]]) -> None:
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

    def _end(self, reader: Reader, end: dict[str, Any]) -> None:
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
    while folders(where.journals):  # again for a run that started while this process ended and held the lock
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
            if why := where.fault:
                raise UserError(why)
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
        moment, left = time.monotonic(), folders(where.journals)
        if left:
            last_use = moment
        if not trouble or any(map(is_alive, left)):
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


def start(home: Path) -> subprocess.Popen[bytes] | None:
    """Start the uploader of the project at `home` unless one runs, and return it; it outlives this process."""
    where = store(home)
    if not folders(where.journals):
        return None
    with (where.journals / LOCK).open("a") as file:
        if not disk.try_lock(file):
            return None
    (where.journals / TROUBLE).unlink(missing_ok=True)  # of an earlier uploader
    environment = {**HTTP, **QUIET, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if environment[TIMEOUT] == HTTP[TIMEOUT]:  # which this process may have set for itself
        environment[TIMEOUT] = TIMEOUT_SECONDS
    environment.pop("MLFLOW_RUN_ID", None)
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    with (where.journals / LOG).open("wb") as output:
        command = [sys.executable, "-P", "-m", "soundmill.tracking", str(home.resolve())]
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = subprocess.Popen(command, cwd="/", env=environment, start_new_session=True, **streams)
    threading.Thread(target=process.wait, daemon=True).start()  # reaps it if this process lives longer
    return process


def waiting(home: Path) -> tuple[int, str]:
    """Number of runs that are not completely in MLflow, and the uploader's error, if any."""
    journals = store(home).journals
    return _behind(journals, {folder: written(folder) for folder in folders(journals)})


def sync(home: Path, seconds: float = 600.0) -> tuple[int, str]:
    """Wait at most `seconds` until MLflow has all written so far, or is silent; returns how many runs it lacks, and why."""
    journals, uploader = store(home).journals, None
    with suppress(OSError):  # a project that is read-only
        (journals / TROUBLE).unlink(missing_ok=True)  # of an earlier uploader
    sizes = {folder: written(folder) for folder in folders(journals)}
    deadline = time.monotonic() + seconds
    while (state := _behind(journals, sizes))[0] and not state[1] and time.monotonic() < deadline:
        if uploader is None or uploader.poll() is not None:  # else it may not have come to its lock yet
            try:
                uploader = start(home)
            except OSError as error:
                return state[0], str(error)
        time.sleep(0.1)
    return state


def _behind(journals: Path, sizes: dict[Path, int | None]) -> tuple[int, str]:
    """Number of journals whose first bytes, as many as `written` returned (None: all), MLflow lacks; and the uploader's error."""
    behind = (size is None or read_position(folder).offset < size for folder, size in sizes.items() if folder.exists())
    left, why = sum(behind), ""
    with suppress(OSError):
        why = (journals / TROUBLE).read_text(encoding="utf-8")
    return left, why if left else ""
