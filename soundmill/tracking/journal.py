"""A run on disk: a directory with `events.jsonl`, which its process appends to and holds a lock on, and the files that it names.

The uploader (uploader.py) reads it and notes in `position.json` how far it is in MLflow; the directory goes when all of it is.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.tracking.stores import MAX_METRICS, say

EVENTS = "events.jsonl"
COPY_LIMIT = 16 * 2**20  # bytes; what is bigger is linked


class Writer:
    """The journal of a run of this process: its lines are with the kernel when a method returns, so a kill loses none."""

    def __init__(self, journals: Path, opening: dict[str, Any]):
        self.id = f"{time.time_ns()}-{secrets.token_hex(4)}"
        self.folder = journals / self.id
        begun = journals / f".{self.id}"
        begun.mkdir(parents=True)
        self._file = (begun / EVENTS).open("ab", buffering=0)
        disk.lock(self._file)
        self._files = 0
        self.closed = threading.Event()
        self._file.write(_line({"op": "open", **opening, "time": now()}))
        begun.rename(self.folder)  # nobody sees it before it is locked and begun

    def send(self, event: dict[str, Any]) -> None:
        try:
            self._file.write(_line(event))
        except OSError as error:
            say(f"tracking: {self.folder}: {error.strerror}: this is not recorded: {event['op']}")

    def send_file(self, path: Path, event: dict[str, Any], name: str) -> None:
        """A file or directory as it is now, linked or copied: the stage may move or remake it."""
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
        self.send({**event, "path": str(target.relative_to(self.folder))})

    def send_content(self, content: bytes, event: dict[str, Any], name: str) -> None:
        target = self._place(name)
        try:
            target.parent.mkdir(parents=True)
            target.write_bytes(content)
        except OSError as error:
            say(f"tracking: {name} could not be recorded: {error}")
            return
        self.send({**event, "path": str(target.relative_to(self.folder))})

    def _place(self, name: str) -> Path:
        self._files += 1
        return self.folder / "files" / str(self._files) / Path(name).name

    def close(self) -> None:
        self._file.close()
        self.closed.set()


@dataclass(frozen=True)
class Position:
    """How far a journal is in MLflow: its runs there, and the bytes of `events.jsonl` that need not be sent again."""

    offset: int = 0
    run_id: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""


class Reader:
    """A journal, as the uploader reads it."""

    def __init__(self, folder: Path):
        self.folder, self.id = folder, folder.name
        with (folder / EVENTS).open("rb") as file:
            self.opening = _event(file.readline())
        self.position = read_position(folder)

    @property
    def parent_id(self) -> str:
        return (self.opening.get("parent") or {}).get("id", "")

    def last_sign(self) -> int:
        """When the last line came, in milliseconds since 1970."""
        return (self.folder / EVENTS).stat().st_mtime_ns // 1_000_000

    def batches(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """What is not in MLflow yet, and where each batch ends: neighbouring metrics of a run together, everything else alone."""
        batch: list[dict[str, Any]] = []
        last: tuple[str, str | None] = ("", None)
        size, offset = 0, self.position.offset
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(offset)
            while (line := file.readline()).endswith(b"\n"):  # a line without an end was cut, or is being written
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
        """Note that this much is in MLflow, and drop files that nobody needs any more."""
        self.position = Position(**vars(self.position) | values)
        disk.write_atomically(self.folder / "position.json", lambda path: path.write_text(json.dumps(vars(self.position))))

    def remove(self) -> None:
        gone = self.folder.rename(self.folder.with_name(f".{self.id}"))  # at once: half a journal would be brought again
        shutil.rmtree(gone)


def read_position(folder: Path) -> Position:
    """How far a journal is in MLflow; from the beginning where nothing can be read, which does no harm."""
    try:
        return Position(**json.loads((folder / "position.json").read_text()))
    except (OSError, ValueError, TypeError):
        return Position()


def folders(journals: Path) -> list[Path]:
    """All journals of a store, the oldest first."""
    return sorted(path for path in journals.glob("[0-9]*-*") if path.is_dir())


def is_alive(folder: Path) -> bool:
    """Whether a journal's process lives: it holds the lock. Where not, no line will come any more."""
    with suppress(FileNotFoundError), (folder / EVENTS).open("rb") as file:
        return not disk.try_lock(file, shared=True)
    return False


def written(folder: Path) -> int | None:
    """Bytes of a journal's events so far, while its process lives; None when it has ended, or is in MLflow by now."""
    with suppress(FileNotFoundError):
        return (folder / EVENTS).stat().st_size if is_alive(folder) else None
    return None


def is_behind(folder: Path, size: int | None) -> bool:
    """Whether MLflow lacks something of what `written` said; of a run that has ended, that is anything of it."""
    return folder.exists() and (size is None or read_position(folder).offset < size)


def is_id(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f-]{1,64}", text))


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _event(line: bytes) -> dict[str, Any]:
    """The event of a line; a full disk or a power cut may have left half of one."""
    try:
        return json.loads(line)
    except ValueError:
        return {"op": "unreadable"}


def _link_or_copy(source: str, target: str) -> None:
    """A snapshot; big files (checkpoints, which are made whole and never written again) are linked rather than copied."""
    if os.path.getsize(source) <= COPY_LIMIT:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
