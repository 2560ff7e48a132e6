"""The processes of one test, known by a variable in their environment, which whatever they start inherits; and their ports."""

import contextlib
import hashlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MARK = "SOUNDMILL_TEST_MARK"
GONE_SECONDS = 30.0  # after a kill, nothing of ours is left


def new_mark() -> dict[str, str]:
    """For the environment of what a test starts."""
    return {MARK: uuid.uuid4().hex}


def marked(mark: dict[str, str]) -> dict[int, str]:
    """The living processes that have this mark, with their command lines."""
    sign = f"{MARK}={mark[MARK]}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"  # and nobody asks after it
            if not ended and sign in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    found.pop(os.getpid(), None)
    return found


def ports(pids: Iterable[int]) -> set[tuple[int, str]]:
    """TCP ports that these processes listen at, each with the number of its socket, which no other process gets."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(link))
    return {(port, inode) for port, inode in _listening() if f"socket:[{inode}]" in sockets}


def still_open(ports: set[int]) -> set[int]:
    """Those of these ports that anybody listens at."""
    return ports & {port for port, _ in _listening()}


def _listening() -> list[tuple[int, str]]:
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [(int(row[1].rpartition(":")[2], 16), row[9]) for row in rows if row[3] == "0A"]


def wait_for(
    what: Callable[[], object], seconds: float = 300.0, pause: float = 0.002, of: subprocess.Popen[str] | None = None
) -> object:
    """What it gives when that is something; it is asked again until then, or until the process `of` which it is asked ends."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert of is None or of.poll() is None, of.communicate()
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(pause)
    return found


def end_process(process: subprocess.Popen[Any]) -> None:
    """Terminate it, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill it and what it started, where it began a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def files_below(directory: Path) -> Iterable[tuple[str, bytes]]:
    """Path and content of every file below it, but those that vanish meanwhile."""
    for path in sorted(Path(folder, name) for folder, _, names in os.walk(directory) for name in names):
        with contextlib.suppress(OSError):
            if path.is_file():
                yield str(path.relative_to(directory)), path.read_bytes()


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file below it."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files_below(directory)}


def assert_nothing_is_left(mark: dict[str, str], listened: set[tuple[int, str]]) -> None:
    """After a kill: no process of the mark and none of its ports, within GONE_SECONDS.

    The uploader ends by itself, when MLflow has what was recorded until then.
    """

    def rest() -> tuple[dict[int, str], set[tuple[int, str]]]:
        ours = {pid: command for pid, command in marked(mark).items() if "-m soundmill.tracking" not in command}
        return ours, listened & set(_listening())

    deadline = time.monotonic() + GONE_SECONDS
    while (left := rest()) != ({}, set()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == ({}, set()), left
