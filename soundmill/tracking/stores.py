"""Where runs are recorded, whether that is reachable, and names and limits that all runs share."""

import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from soundmill import credentials, hashing, terminal

TRIAL = "SOUNDMILL_TRIAL"  # set for rehearsals: their models are not registered
PARENT = "SOUNDMILL_PARENT_RUN_ID"  # id of the parent's journal; not MLFLOW_RUN_ID, which mlflow reads
SWITCH = "SOUNDMILL_TRACKING"  # `off`: record nothing
EXPERIMENT = "soundmill"
WORKSPACES = "workspaces"  # checkouts below this directory record into their project

SQLITE = "sqlite:///"
SQLITE_QUOTED = "sqlite+pysqlite:///file:"  # with the driver's name, MLflow does not take the rest for a path to create
OWN = f"{SQLITE}mlflow.db"  # below the project's root
ARTIFACTS = "mlartifacts"  # directory beside the database
RECORDED_IN = "recorded_in.txt"  # lists the stores of the project's runs, latest last, if any is not its own file

PROBE_SECONDS = 3.0
# MLflow's defaults, 120 s and 7 retries, take 248 s per call if the server is down. The uploader itself tries again, after checking
# what has arrived: a request repeated by MLflow could create two runs.
HTTP = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
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
MAX_METRICS, MAX_PARAMS, MAX_KEY, MAX_PARAM, MAX_TAG = 1000, 100, 250, 6000, 8000  # MLflow's limits, per call and per value
_AS_PATH = re.compile(r"(?<![^/])\.{0,2}(?=/|$)|^\.\.")  # what MLflow refuses in a key: `a//b`, `a/`, `a/./b`, `../a`
STATE_FOLDER = "state"  # artifacts of a parent run, for `read_state`
JOURNAL = "journal"  # tag of every run: the id of its journal
INCOMPLETE = "incomplete"  # tag of a run: events that MLflow rejected, or runs below it with this tag

say = partial(terminal.say, error=True)


@dataclass(frozen=True)
class Store:
    """Where runs are recorded: the SQLite file at the project's root, or MLFLOW_TRACKING_URI."""

    uri: str
    scratch: Path  # next to the database, if that is a file
    database: Path | None = None  # the SQLite file; None for another store

    @property
    def shown(self) -> str:
        """The address without credentials, to show or store."""
        return credentials.hide(self.uri)

    @property
    def fault(self) -> str:
        """Why no run can be recorded there, as far as a quick look shows, and the remedy; empty if one can."""
        kind, in_memory = urlsplit(self.uri).scheme, not urlsplit(self.uri).path.strip("/")
        if self.is_server and (why := unreachable(self.uri)):
            return f"{self.shown} is unreachable ({why}); start it"
        is_nothing = (kind.startswith("sqlite") and in_memory) or kind == "file" or (not kind and self.uri != "databricks")
        if os.path.isdir(self.database) if self.database else is_nothing:
            return f"{self.shown}: MLflow keeps runs neither in a directory of files nor in memory; use sqlite:////PATH/mlflow.db"
        place = self.database and (self.database if os.path.exists(self.database) else self.database.parent)
        writable = not place or os.access(place, os.W_OK)
        return "" if writable else f"{place} {'is not writable; make it so' if place.exists() else 'does not exist; make it'}"

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    def browser(self, port: int) -> str:
        """Address of MLflow's web page: the server, or `make browse` at this port."""
        return self.shown if self.is_server else f"http://127.0.0.1:{port}"

    @property
    def artifacts(self) -> Path | None:
        """Directory of the files of runs; None: the server decides."""
        return self.database and self.database.parent / ARTIFACTS

    @property
    def journals(self) -> Path:
        """Directory of the journals of runs that this store does not completely have yet; one per store."""
        name = "journals" if self.database else f"journals-{hashing.short_digest(self.shown.encode())}"
        return self.scratch / name


def store(home: Path, uri: str | None = None) -> Store:
    """The tracking store of the project at `home`; `uri` overrides MLFLOW_TRACKING_URI."""
    home = project_of(home)
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI", "")).strip() or OWN
    if uri.startswith((SQLITE, SQLITE_QUOTED)):
        quoted = uri.startswith(SQLITE_QUOTED)
        path = unquote(uri.removeprefix(SQLITE_QUOTED).partition("?")[0]) if quoted else uri.removeprefix(SQLITE)
        database = home / path  # an absolute path replaces `home`
        # SQLAlchemy ends a path at `?`.
        uri = f"{SQLITE_QUOTED}{quote(str(database))}?uri=true" if "?" in str(database) else f"{SQLITE}{database}"
        return Store(uri, database.with_name(f"{database.name}.state"), database)
    return Store(uri, home / "mlflow.db.state")


def project_of(home: Path) -> Path:
    """The project of a checkout: the one that contains a workspace, else the checkout itself."""
    home = home.resolve()
    is_workspace = home.parent.name == WORKSPACES and (home.parents[1] / "dvc.yaml").exists()
    return home.parents[1] if is_workspace else home


def remember(home: Path) -> None:
    """Record the store of a project's runs, for shells without MLFLOW_TRACKING_URI; passwords are removed."""
    uri = store(home).uri
    where = OWN if uri == store(home, OWN).uri else credentials.hide(uri)
    if where != [OWN, *recorded_in(home)][-1]:
        path = store(home, OWN).scratch / RECORDED_IN
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{where}\n")


def recorded_in(home: Path) -> list[str]:
    """The stores of a project's runs, latest last; empty if there was only its own file."""
    path = store(home, OWN).scratch / RECORDED_IN
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.is_file() else []
    return list(dict.fromkeys(reversed(lines)))[::-1]


def experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def is_off() -> bool:
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no")


def unreachable(uri: str) -> str | None:
    """Why the tracking server does not answer within PROBE_SECONDS; None if it does."""
    address = re.sub(r"//[^/]*@", "//", credentials.hide(uri))  # urllib would take a password for a part of the host
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it answers, perhaps asking for a login: MLflow has the credentials
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def browser_command(port: int) -> list[str]:
    """The command that serves the runs in MLFLOW_BACKEND_STORE_URI to a web browser, on this machine only."""
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "soundmill", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--workers", "1", "--uvicorn-opts", "--log-level warning"]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping, by dotted keys that MLflow accepts; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = re.sub(r"[^\w\-. /:]", "_", f"{prefix}{key}")
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[_AS_PATH.sub("_", name)[:MAX_KEY].rstrip("/")] = value
    return flat


def numbers(tree: dict[str, Any]) -> dict[str, float]:
    """The numeric leaves of a nested mapping, by dotted keys."""
    flat = {}
    for key, value in flatten(tree).items():
        number = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
        if isinstance(number, bool | int | float):
            flat[key] = float(number)
    return flat
