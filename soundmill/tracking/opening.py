"""Opening a store of runs: one that moved with its project, of another version of MLflow, or whose experiment was deleted."""

import logging
import os
import sqlite3
from contextlib import closing
from importlib import metadata, resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from soundmill.errors import UserError
from soundmill.tracking.stores import ARTIFACTS, HTTP, QUIET, Store, say

VERSION = "soundmill.mlflow"  # tag of an experiment: the MLflow that last wrote to it
# MLflow stores absolute places of files: of an experiment's runs, and of each of these.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def open_client(where: Store) -> Any:
    """A client of the store; UserError if another version of MLflow wrote its database."""
    if where.database and where.database.exists():
        with closing(sqlite3.connect(where.database, timeout=60)) as database, database:
            _check_version(where, database)
            _mend_places(where, database)
    for key, value in (HTTP | QUIET).items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(where.uri, where.uri)


def find_experiment(client: Any, name: str) -> Any:
    """The experiment of this name, restored if it was deleted; None if there is none."""
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        say(f"MLflow: the experiment {name!r} was deleted; it is restored with its runs")
        found = client.get_experiment(found.experiment_id)
    return found


def local_path(place: str) -> Path:
    """The path of a place in MLflow's database: a file URI, or a path, which MLflow reads like one."""
    return Path(url2pathname(urlsplit(place).path if place.startswith("file:") else place))


def _check_version(where: Store, database: sqlite3.Connection) -> None:
    try:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return  # empty: MLflow makes its tables
        (schema,) = database.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        wrote = database.execute("SELECT value FROM experiment_tags WHERE key = ?", [VERSION]).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{where.database}: not a database of MLflow ({error}); move it away, or set MLFLOW_TRACKING_URI") from None
    known = resources.files("mlflow") / "store" / "db_migrations" / "versions"
    migrations = [entry.name for entry in known.iterdir()]
    if migrations and not any(name.startswith(f"{schema}_") for name in migrations):
        version = max((row[0] for row in wrote), key=_numbers, default="a newer version")
        raise UserError(
            f"{where.database}: written by MLflow {version}, and {metadata.version('mlflow')} is installed; install the version "
            "that wrote it, or set MLFLOW_TRACKING_URI to use another store"
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _mend_places(where: Store, database: sqlite3.Connection) -> None:
    """Say where the files of runs are after the project was moved or copied with them."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if not {table for table, _ in PLACES} <= tables:
        return
    for (old,) in database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
        was = local_path(old or "")
        if was.name != ARTIFACTS or was == where.artifacts or not where.artifacts.is_dir():
            continue
        below = [len(old), old]
        runs = database.execute("SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?", below).fetchall()
        if was.is_dir() and not any((where.artifacts / run).is_dir() for (run,) in runs):
            continue  # the database alone was copied
        for table, column in PLACES:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                [where.artifacts.as_uri(), len(old) + 1, *below],
            )
