"""Opens a store of runs, and writes the events of journals to it; writing an event again changes nothing.

A store may have moved with its project, be of another version of MLflow, or have a deleted experiment.
"""

import json
import logging
import os
import sqlite3
from contextlib import closing, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from soundmill.errors import UserError
from soundmill.tracking.stores import ARTIFACTS, HTTP, INCOMPLETE, JOURNAL, MAX_KEY, MAX_PARAMS, MAX_TAG, QUIET, Store, say

NOTE = "mlflow.note.content"  # the description on the page of a run or an experiment
EXPERIMENT_NOTE = "One run per pipeline, with a run per stage below it. `soundmill reproduce RUN_ID` restores one."
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # the web page opens with runs, not with chat traces
    NOTE: EXPERIMENT_NOTE,
}
PRIMARY = "mlflow.experiment.primaryMetric.name"  # tag of an experiment: the score that ranks its runs and models
# Beginnings of the scores of which more is better.
HIGHER = tuple("label_accuracy precision recall density coverage is_ clap_score content_ production_ mos_ preference_".split())
LOGGED = "artifacts"  # where MLflow puts the files of a logged model, beside its own
PACKAGES = ("accelerate", "diffusers", "numpy", "pyarrow", "pydantic", "ruamel.yaml", "safetensors", "torch", "torchaudio")
ANOTHER_STORE = "or set MLFLOW_TRACKING_URI to use another store"  # the last remedy
LOCKED_SECONDS = 60.0  # to wait for another program
VERSION = "soundmill.mlflow"  # tag of an experiment: the MLflow that last wrote to it
# MLflow stores absolute places of files: of an experiment's runs, and of each of these.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def prepare_database(where: Store) -> None:
    """If the store is a file, have it say where its files are now; UserError if it is damaged, locked, or not this MLflow's."""
    if where.database and where.database.exists():
        try:
            with closing(sqlite3.connect(where.database, timeout=LOCKED_SECONDS)) as database, database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
                if "alembic_version" in tables:  # else it is empty: MLflow makes its tables
                    _check_version(where, database, tables)
                if tables.issuperset(table for table, _ in PLACES):
                    _mend_places(where, database)
        except sqlite3.OperationalError as error:  # in use, or read-only
            raise UserError(f"{where.database}: {error}; wait for what uses it, or make it writable") from None
        except sqlite3.DatabaseError as error:
            fault = f"no database of MLflow ({error})"
            raise UserError(f"{where.database}: {fault}; move it away, {ANOTHER_STORE}") from None


def open_client(where: Store) -> Any:
    """A client of the store; UserError as by `prepare_database`."""
    prepare_database(where)
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


def _check_version(where: Store, database: sqlite3.Connection, tables: set[str]) -> None:
    if "experiment_tags" not in tables:
        raise sqlite3.DatabaseError("it has the tables of another program")
    (schema,) = database.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
    wrote = database.execute("SELECT value FROM experiment_tags WHERE key = ?", [VERSION]).fetchall()
    known = Path(find_spec("mlflow").origin).with_name("store") / "db_migrations" / "versions"  # without importing it
    migrations = [entry.name for entry in known.iterdir()]
    if migrations and not any(name.startswith(f"{schema}_") for name in migrations):
        version = max((row[0] for row in wrote), key=_numbers, default="a newer version")
        why = f"written by MLflow {version}, and {metadata.version('mlflow')} is installed"
        raise UserError(f"{where.database}: {why}; install the version that wrote it, {ANOTHER_STORE}")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _mend_places(where: Store, database: sqlite3.Connection) -> None:
    """Say where the files of runs are after the project was moved or copied with them."""
    for (old,) in database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
        was = local_path(old or "")
        if was.name != ARTIFACTS or was == where.artifacts or not where.artifacts.is_dir():
            continue
        below = [len(old), old]
        runs = database.execute("SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?", below).fetchall()
        if was.is_dir() and not any((where.artifacts / run).is_dir() for (run,) in runs):
            continue  # the database alone was copied
        for table, column in PLACES:
            statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            database.execute(statement, [where.artifacts.as_uri(), len(old) + 1, *below])


class Runs:
    """The runs of a store. MLflow stores equal points of a metric once, and params, tags and files by name."""

    def __init__(self, where: Store):
        self.where, self.client = where, open_client(where)
        from mlflow import entities

        self.entities = entities
        self._experiments: dict[str, str] = {}

    def experiment(self, name: str) -> str:
        """Id of the experiment of this name, which is created if missing."""
        if name in self._experiments:
            return self._experiments[name]
        if existing := find_experiment(self.client, name):
            created = existing.experiment_id
        else:
            artifacts = self.where.artifacts
            created = self.client.create_experiment(name, artifacts.as_uri() if artifacts else None, EXPERIMENT_TAGS)
        if self.where.database:
            self.client.set_experiment_tag(created, VERSION, metadata.version("mlflow"))
        self._experiments[name] = created
        return created

    def find(self, experiment: str, journal: str) -> Any:
        found = self.client.search_runs([experiment], f"tags.{JOURNAL} = '{journal}'", max_results=1)
        return found[0] if found else None

    def find_or_create(self, experiment: str, journal: str, opening: dict[str, Any], parent: str = "") -> str:
        """Id of a journal's run, which is created if missing."""
        if run := self.find(experiment, journal):
            return run.info.run_id
        tags = {**opening["tags"], JOURNAL: journal} | ({"mlflow.parentRunId": parent} if parent else {})
        return self.client.create_run(experiment, opening.get("time"), tags, opening["name"][:MAX_KEY]).info.run_id

    def exists(self, run_id: str) -> bool:
        """Whether a run exists; raises the client's error if MLflow does not answer."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def reopen(self, run_id: str) -> None:
        """Set a run that several stages share to RUNNING again."""
        self.client.update_run(run_id, status="RUNNING")
        if "end_reason" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "end_reason")

    def end(self, run_id: str, status: str, reason: str, moment: int) -> None:
        if reason:
            self.client.set_tag(run_id, "end_reason", reason[:MAX_TAG])
        self.client.set_terminated(run_id, status, moment)

    def last_end_below(self, experiment: str, run_id: str) -> int:
        """End of the last run below it, in milliseconds since 1970; 0 if none has ended."""
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        found = self.client.search_runs([experiment], below, max_results=1, order_by=["attributes.end_time DESC"])
        return found[0].info.end_time or 0 if found else 0

    def note_incomplete(self, run_id: str, what: str) -> None:
        named = self.client.get_run(run_id).data.tags.get(INCOMPLETE, "")
        if what not in (names := list(filter(None, named.split(", ")))):
            self.client.set_tag(run_id, INCOMPLETE, ", ".join([*names, what])[:MAX_TAG])

    def write(self, run_id: str, events: list[dict[str, Any]], folder: Path) -> None:
        """Write several metrics, or one event of another kind, with its file below `folder`."""
        if events[0]["op"] == "metrics":
            made = self.entities.Metric
            points = [made(key, value, one["time"], one.get("step", 0)) for one in events for key, value in one["values"].items()]
            self.client.log_batch(run_id, metrics=points)
        else:
            (event,) = events
            getattr(self, f"_{event['op']}")(run_id, event, folder)

    def _open(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        self.log_params(run_id, event.get("params") or {})

    def _params(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        self.log_params(run_id, event["values"])

    def log_params(self, run_id: str, values: dict[str, str]) -> None:
        params = [self.entities.Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MAX_PARAMS])

    def _tags(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        values = dict(event["values"])
        if note := values.get(NOTE):  # it may link to files of the run
            experiment_id = self.client.get_run(run_id).info.experiment_id
            values[NOTE] = note.replace("{run_id}", run_id).replace("{experiment_id}", experiment_id)
        self.client.log_batch(run_id, tags=[self.entities.RunTag(key, value) for key, value in values.items()])

    def _file(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        path, target = folder / event["path"], event["folder"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), f"{target}/{path.name}" if target else path.name)
        else:
            self.client.log_artifact(run_id, str(path), target or None)

    def _dataset(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        schema = {"mlflow_colspec": [{"type": kind, "name": name, "required": True} for name, kind in event["columns"].items()]}
        dataset = self.entities.Dataset(
            name=event["name"],
            digest=event["digest"],
            source_type="local",
            source=json.dumps({"uri": event["source"]}),
            schema=json.dumps(schema) if event["columns"] else None,
            profile=json.dumps({"num_rows": event["rows"]}),
        )
        tags = [self.entities.InputTag("mlflow.data.context", event["context"])] if event["context"] else []
        self.client.log_inputs(run_id, datasets=[self.entities.DatasetInput(dataset, tags)])

    def _model(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        """Log and register a model, unless an earlier attempt did."""
        import mlflow
        import numpy
        import pandas
        from mlflow.models import Model, ModelSignature, infer_signature
        from mlflow.types import Schema, TensorSpec

        run = self.client.get_run(run_id)
        tags = {key: run.data.tags[key] for key in (JOURNAL, "git_sha", "dvc_lock_digest", "family") if key in run.data.tags}
        tags["digest"] = event["digest"]
        query = f"name = '{event['registered']}' and tags.{JOURNAL} = '{tags[JOURNAL]}'"
        versions = self.client.search_model_versions(query)
        if not versions:
            package = Path(__file__).resolve().parents[1]
            mlflow.set_tracking_uri(self.where.uri)
            # MLflow stores a model in the active experiment, not in that of its run.
            mlflow.set_experiment(experiment_id=run.info.experiment_id)
            for partial in self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
                self.client.delete_logged_model(partial.model_id)  # the uploader was killed while logging it
            pinned = []
            for package_name in PACKAGES:
                with suppress(metadata.PackageNotFoundError):
                    pinned.append(f"{package_name}=={metadata.version(package_name).partition('+')[0]}")
            outputs = Schema([TensorSpec(numpy.dtype(event["dtype"]), (-1, *event["shape"][1:]))])
            Model.log(
                artifact_path=None,
                name=event["name"],
                flavor=mlflow.pyfunc,
                run_id=run_id,
                tags=tags,
                python_model=str(package / "models" / "serving.py"),
                artifacts={"model": (folder / event["path"]).absolute().as_uri()},
                code_paths=[str(package)],
                signature=ModelSignature(infer_signature(pandas.DataFrame(event["inputs"])).inputs, outputs),
                pip_requirements=pinned,
                registered_model_name=event["registered"],
                await_registration_for=0,
            )
            versions = self.client.search_model_versions(query)
        self.client.set_registered_model_alias(event["registered"], "newest", str(versions[0].version))

    def _scored(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        """Tag the versions of a registered model that have these weights with their scores, and the best version as `best`."""
        name, values = event["registered"], event["values"]
        experiment = self.client.get_experiment(self.client.get_run(run_id).info.experiment_id)
        first = rank_by(self.client, experiment, sorted(values))
        versions = self.client.search_model_versions(f"name = '{name}'")
        for version in versions:
            if version.tags.get("digest") == event["digest"]:
                for key, value in values.items():
                    version.tags[key] = f"{value:g}"
                    self.client.set_model_version_tag(name, version.version, key, version.tags[key])
        scored = [version for version in versions if first in version.tags]
        if scored:
            sign = -1 if first.startswith(HIGHER) else 1
            best = min(scored, key=lambda version: (sign * float(version.tags[first]), -int(version.version)))
            self.client.set_registered_model_alias(name, "best", str(best.version))

    def _attributed(self, run_id: str, event: dict[str, Any], folder: Path) -> None:
        """Store a table of credits with the run and above the checkpoint of the versions with these weights, and tag them."""
        table = str(folder / event["path"])
        self.client.log_artifact(run_id, table)
        for version in self.client.search_model_versions(f"name = '{event['registered']}'"):
            if version.tags.get("digest") == event["digest"]:
                self.client.log_model_artifact(version.source.removeprefix("models:/"), table, LOGGED)
                for key, value in event["tags"].items():
                    self.client.set_model_version_tag(event["registered"], version.version, key, value)


def rank_by(client: Any, experiment: Any, scores: list[str]) -> str | None:
    """The score that ranks runs: that of the experiment's tag, else the first FAD, which the tag then names, or the first MMD."""
    name = experiment.tags.get(PRIMARY)
    if not name and (name := next((score for score in scores if score.startswith("fad_")), None)):
        client.set_experiment_tag(experiment.experiment_id, PRIMARY, name)
    return name or next((score for score in scores if score.startswith("mmd_")), None)
