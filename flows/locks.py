"""The locks of a project: DVC's, on the repository and on the paths that a stage uses, and the pipeline's own."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.terminal import duration
from soundmill import disk, dvc_recovery, lifetime
from soundmill.errors import UserError

POLL_SECONDS = 1.0
MOST_MINUTES = 24 * 60  # that a pipeline may wait

Say = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """A process that holds one of DVC's locks."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def holders(root: Path) -> list[Holder]:
    """The processes that run DVC in this project now, by its locks on the repository and on paths."""
    running = {}
    written = 0.0
    with suppress(FileNotFoundError):
        written = (root / lifetime.LOCKS).stat().st_mtime
    for info in lifetime.dvc_locks(root):
        with suppress(psutil.Error, ValueError):  # the second: a negative number, in a damaged lock
            process = psutil.Process(info["pid"])
            # A process that started later has only inherited the number; a zombie stays in a container without init.
            if process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1:
                running[info["pid"]] = Holder(info["pid"], info["cmd"])
    with suppress(OSError), (root / ".dvc/tmp/lock").open("rb") as file:
        if not disk.try_lock(file, shared=True):
            holder = _named_in(root / ".dvc/tmp/lock", "dvc")
            running.setdefault(holder.pid, holder)
    return list(running.values())


def wait_until_free(root: Path, seconds: float, say: Say, find: Callable[[Path], list[Holder]] = holders) -> None:
    """Wait up to `seconds` until nobody runs DVC in this project (or `find` finds nobody), and report who does; then UserError."""
    deadline = time.monotonic() + seconds
    reported: list[Holder] = []
    while busy := find(root):
        names = ", ".join(map(str, busy))
        if time.monotonic() >= deadline:
            waited = f" after {duration(seconds)} of waiting" if seconds else ""
            raise UserError(f"{root} is in use by {names}{waited}; wait for it, or stop it, and run again")
        if busy != reported:
            say(f"waiting for {names} (up to {duration(deadline - time.monotonic())})")
            reported = busy
        time.sleep(POLL_SECONDS)
    if reported:
        say(f"{', '.join(map(str, reported))} has finished; going on")


def repair_unreadable(root: Path, say: Say) -> None:
    """Move away DVC's records of paths if a killed `dvc` left them unreadable, and say so; UserError while one runs here."""
    for path in dvc_recovery.unreadable_locks(root):
        if running := holders(root) or dvc_in(root):
            raise UserError(f"{path} is unreadable, and {running[0]} is running; run again when it has ended")
        with path.with_name("rwlock.lock").open("ab") as guard:  # DVC holds it while it reads and writes them
            disk.lock(guard)
            path.replace(path.with_name("rwlock.unreadable"))
        say(f"{path.relative_to(root)} was unreadable because `dvc` was killed: moved to rwlock.unreadable next to it")


def dvc_in(root: Path) -> list[Holder]:
    """Running `dvc` processes in this checkout, whether or not they hold a lock."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, place = _in_words(process.info["cmdline"] or ()), process.info["cwd"]
        if place and re.search(r"(^|/|-m )dvc( |$)", words) and Path(place).is_relative_to(root.resolve()):
            found.append(Holder(process.pid, words))
    return found


@contextmanager
def only_one(root: Path, seconds: float, say: Say) -> Iterator[None]:
    """Hold the project for one pipeline, or command that changes its lists; UserError names another holder after `seconds`."""
    path = root / ".dvc" / "tmp" / "pipeline.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with path.open("a+") as lock:
        wait_until_free(root, seconds, say, lambda _: [] if disk.try_lock(lock) else [_named_in(path, "a pipeline")])
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        wait_until_free(root, max(deadline - time.monotonic(), 0), say)
        yield


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock file while a command works in a workspace, between its pipelines too; UserError if another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        if not disk.try_lock(lock):
            raise UserError(f"already running, with a lock on {path}; wait for it, or stop it")
        yield


def _named_in(path: Path, program: str) -> Holder:
    """The process whose number a lock file has; `program` if its command line is unknown."""
    pid, command = 0, ""
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        pid = int(path.read_text().split()[0])
        command = _in_words(psutil.Process(pid).cmdline())
    return Holder(pid, command or program)


def _in_words(command: Iterable[str]) -> str:
    """A command line as text that every log can hold."""
    return " ".join(command).encode(errors="surrogateescape").decode(errors="replace")
