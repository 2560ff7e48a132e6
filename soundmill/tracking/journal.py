"""The journal of a run: a directory with `events.jsonl`, which the run's process appends to and locks, and the files it names.

The uploader (uploader.py) reads it, stores its progress in `position.json`, and removes the directory when MLflow has everything.
"""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import credentials, disk
from soundmill.tracking.stores import MAX_METRICS, say

EVENTS = "events.jsonl"
COPY_LIMIT = 16 * 2**20  # bytes; larger files are linked


class Writer:
    """The journal of a run of this process. When a method returns, the kernel has its line, so a kill loses none.

    A process that it is pickled for appends to the same file.
    """

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

        def copy(target: Path) -> None:
            if path.is_dir():
                shutil.copytree(path, target, copy_function=_link_or_copy)
            else:
                _link_or_copy(str(path), str(target))

        self._send_with(copy, event, name, path)

    def send_content(self, content: bytes, event: dict[str, Any], name: str) -> None:
        self._send_with(lambda target: target.write_bytes(content), event, name, name)

    def _send_with(self, write: Callable[[Path], Any], event: dict[str, Any], name: str, what: str | Path) -> None:
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
    """A journal, read by the uploader."""

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
        disk.write_atomically(self.folder / "position.json", lambda path: path.write_text(json.dumps(vars(self.position))))

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
    """Whether a journal's process is alive and holds its lock; if not, the journal is complete."""
    with suppress(FileNotFoundError), (folder / EVENTS).open("rb") as file:
        return not disk.try_lock(file, shared=True)
    return False


def written(folder: Path) -> int | None:
    """Bytes of a journal's events so far; None if its process has ended, or the journal is gone because it was sent."""
    with suppress(FileNotFoundError):
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


def _link_or_copy(source: str, target: str) -> None:
    """A snapshot; large files (checkpoints, which are never modified) are linked instead of copied."""
    if os.path.getsize(source) <= COPY_LIMIT:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
