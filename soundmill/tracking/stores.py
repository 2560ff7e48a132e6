"""Where runs are recorded, whether that can be reached, and the words and limits that both processes share."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill import disk

PARENT = "SOUNDMILL_PARENT_RUN_ID"  # not MLFLOW_RUN_ID, which mlflow itself consumes
SWITCH = "SOUNDMILL_TRACKING"  # `off`: record nothing
EXPERIMENT = "soundmill"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the web page opens with runs, not with chat traces
    "mlflow.note.content": "One run per pipeline, with a run per stage below it. `soundmill reproduce RUN_ID` goes back to one.",
}
WORKSPACES = "workspaces"  # checkouts below this directory record into the project they were made from

PROBE_SECONDS = 3.0
STUCK_SECONDS = 120.0  # a writer that finishes nothing for so long is given up
COPY_LIMIT = 16 * 2**20  # bytes
PENDING_LIMIT = 100_000  # lines waiting for a slow server; beyond it, curve points are dropped
# MLflow's own are 120 s and 7 retries with growing pauses: 248 s a call when the server is gone.
HTTP = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
MAX_METRICS, MAX_PARAMS, MAX_KEY, MAX_PARAM, MAX_TAG = 1000, 100, 250, 6000, 5000  # MLflow's limits, per call and per value
STATE_FOLDER = "state"  # artifacts of a parent run that `read_run` brings back
DIED = "the process died without a word (killed, or out of memory)"
ENDED_LATER = "ended later than its process: MLflow could not be reached, or the recorder was killed"
INCOMPLETE = "incomplete"  # tag of a run: names of the stages (or of itself) whose records were lost


@dataclass(frozen=True)
class Store:
    """Where runs are recorded: the SQLite file at the project's root, or what MLFLOW_TRACKING_URI names."""

    uri: str
    artifacts: str | None  # None: the server decides
    scratch: Path  # locks and files on their way; beside the database where that is a file

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The SQLite file, where it is one."""
        return Path(self.uri.removeprefix("sqlite:///").partition("?")[0]) if self.uri.startswith("sqlite:///") else None


def store(home: Path) -> Store:
    """The tracking store of the project at `home`."""
    home = home.resolve()
    if home.parent.name == WORKSPACES and (home.parents[1] / "dvc.yaml").exists():
        home = home.parents[1]
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database = database if database.is_absolute() else home / database
        return Store(f"sqlite:///{database}", str(database.parent / "mlartifacts"), database.with_name(f"{database.name}.state"))
    return Store(uri, None, home / "mlflow.db.state")


def is_off() -> bool:
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no")


def unreachable(uri: str) -> str | None:
    """Why the tracking server does not answer within PROBE_SECONDS; None when it does."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # somebody is there, behind a login perhaps: MLflow has the credentials
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def status(home: Path) -> tuple[bool, str]:
    """Whether tracking works, and where it goes, in words; quick, and without importing mlflow."""
    if is_off():
        return False, f"off ({SWITCH}={os.environ[SWITCH]})"
    where = store(home)
    if where.is_server:
        why = unreachable(where.uri)
        return (False, f"{where.uri} is unreachable ({why})") if why else (True, f"{where.uri} answers")
    if where.uri.startswith("sqlite:///"):
        database = Path(where.uri.removeprefix("sqlite:///"))
        folder = database if database.exists() else database.parent
        if not os.access(folder, os.W_OK):
            return False, f"{folder} is not writable"
        return True, f"{where.uri}" + ("" if database.exists() else " (made by the first run)")
    return True, where.uri


def browser_command(home: Path, port: int) -> list[str]:
    """The command that shows the runs in a web browser, on this machine only."""
    where = store(home)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--backend-store-uri", where.uri, "--workers", "1"]


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Only one process at a time does `what`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{what}.lock").open("a") as file:
        disk.lock(file)
        yield


def unfinished(scratch: Path) -> dict[str, dict[str, Any]]:
    """What is known of every run that is not recorded to its end, by token: its name, its parent, and how it ended, if it did.

    The file of a run has a line from its beginning, and a second one where its process ended and the records did not.
    """
    notes: dict[str, dict[str, Any]] = {}
    for path in sorted((scratch / "alive").glob("*")):
        notes[path.name] = note = {"name": "?", "parent": {}}
        with suppress(OSError, ValueError, TypeError, RecursionError):
            for line in path.read_text(encoding="utf-8").splitlines():
                note |= json.loads(line)
    return notes


def without(notes: dict[str, dict[str, Any]], parent: dict[str, str]) -> set[str]:
    """Names of the unfinished runs below this parent."""
    return {note["name"] for note in notes.values() if note["parent"] == parent}


@contextmanager
def socket_folder() -> Iterator[tuple[Path, int]]:
    """Where recorders' sockets lie, open: a directory that this user alone can enter. OSError if it is anything else."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(runtime if os.path.isdir(runtime) else tempfile.gettempdir()) / f"soundmill-{os.getuid()}"
    with suppress(FileExistsError):
        path.mkdir(0o700)
    refusal = f"{path} is not a directory of this user alone; remove it, or set XDG_RUNTIME_DIR to another place"
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OSError(f"{refusal} ({error.strerror})") from None
    try:
        status = os.fstat(folder)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise OSError(refusal)
        yield path, folder
    finally:
        os.close(folder)


def owner(connection: socket.socket) -> int:
    """User id of the process at the other end of a Unix socket."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping under dotted keys that MLflow accepts; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = re.sub(r"[^\w\-. /:]", "_", f"{prefix}{key}")
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name[:MAX_KEY]] = value
    return flat


def numbers(tree: dict[str, Any]) -> dict[str, float]:
    """The numeric leaves of a nested mapping, under dotted keys."""
    flat = {}
    for key, value in flatten(tree).items():
        number = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
        if isinstance(number, bool | int | float):
            flat[key] = float(number)
    return flat


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
