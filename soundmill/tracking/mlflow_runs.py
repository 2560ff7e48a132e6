"""What a stage or flow records, written to MLflow; and the runs that dead ones left open, ended."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.tracking.stores import (
    DIED,
    ENDED_LATER,
    EXPERIMENT,
    EXPERIMENT_TAGS,
    INCOMPLETE,
    MAX_METRICS,
    MAX_PARAMS,
    MAX_TAG,
    PARENT,
    Store,
    locked,
    unfinished,
    without,
)

MAKING_TABLES = threading.Lock()  # no exit meanwhile
_fluent = threading.Lock()  # what mlflow keeps for the whole process: store and active experiment


class Refused(Exception):
    """This line is not carried out, for the reason given; the next ones are."""


class Recorder:
    """Writes the records of one stage or flow to MLflow, after ending the runs that dead ones left open."""

    def __init__(self, where: Store, say: Callable[..., None]):
        from mlflow import MlflowClient

        gc.freeze()  # see main of recorder.py
        gc.enable()
        self.where, self.say = where, say
        self.lost = False  # whether something that this run said is not recorded
        # MLflow makes and upgrades its tables when a client first looks at them: not safe beside another that does.
        with MAKING_TABLES, locked(self.where.scratch, "store"):
            self.client = MlflowClient(self.where.uri, self.where.uri)
            self.experiment = self._experiment()
            self._close_dead_runs()

    def open(self, opening: dict[str, Any]) -> None:
        """Begin the run."""
        self.process, self.name, parent = opening["token"], opening["name"], opening.get("parent") or {}
        self.shared = {"identity": parent["identity"]} if "identity" in parent else None
        with locked(self.where.scratch, "store"):
            self.parent_id = self._shared_parent(parent) if self.shared else self._given_parent(parent.get("id"))
        tags = {**opening["tags"], "process": self.process}
        if self.parent_id:
            tags["mlflow.parentRunId"] = self.parent_id
        self.run_id = self.client.create_run(self.experiment, tags=tags, run_name=opening["name"]).info.run_id
        self.tags = tags

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self.client.get_experiment_by_name(name)
        if (
            experiment
            and self.where.artifacts
            and Path(experiment.artifact_location.removeprefix("file://")) != Path(self.where.artifacts)
        ):
            # The project was moved: MLflow keeps absolute paths, and would write to where it once was.
            self.client.rename_experiment(experiment.experiment_id, f"{name} before the move from {experiment.artifact_location}")
            experiment = None
        if experiment:
            return experiment.experiment_id
        return self.client.create_experiment(name, artifact_location=self.where.artifacts, tags=EXPERIMENT_TAGS)

    def _shared_parent(self, parent: dict[str, Any]) -> str:
        runs = self.client.search_runs([self.experiment], f"tags.identity = '{parent['identity']}'", max_results=1)
        if runs:
            run_id = runs[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "process", self.process)
            if "end_reason" in runs[0].data.tags:
                self.client.delete_tag(run_id, "end_reason")
            return run_id
        tags = {**parent["tags"], "process": self.process}
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=parent["name"]).info.run_id
        self._params(run_id, parent["params"])
        return run_id

    def _given_parent(self, run_id: str | None) -> str | None:
        if run_id is None:
            return None
        if not (run := self._run(run_id)):
            self.say("warning", message=f"{PARENT}={run_id}: no such run in {self.where.uri}; this stage's run stands alone")
            return None
        self.experiment = run.info.experiment_id
        return run_id

    def _run(self, run_id: str) -> Any:
        """What MLflow has of a run; None if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _close_dead_runs(self) -> None:
        """End the runs of processes that are gone and could not do it: nobody holds the lock on their file any more.

        First each is named by its parent, so that a parent which is itself among them does not end without that.
        """
        dead, notes = dead_tokens(self.where.scratch), unfinished(self.where.scratch)
        dead = [token for token in dead if token in notes and "waits" not in notes[token]]
        waiting = []  # for a run that stages share and that none of them could make yet
        for token in dead:
            parent = notes[token]["parent"]
            parents = self._parent_ids(parent)
            waiting += [token] if "identity" in parent and not parents else []
            for run_id in parents:
                self._name_missing(run_id, {notes[token]["name"]})
        for token in dead:
            note = notes[token]
            query = f"tags.process = '{token}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.experiment], query):
                self._name_missing(run.info.run_id, {note["name"]} | without(notes, {"id": run.info.run_id}))
                if "status" in note:
                    self._end(run.info.run_id, note["status"], note["reason"] or ENDED_LATER, note["time"])
                else:
                    self._end(run.info.run_id, "KILLED", DIED)
            shutil.rmtree(self.where.scratch / "spool" / token, ignore_errors=True)
            path = self.where.scratch / "alive" / token
            if token in waiting:
                with path.open("a", encoding="utf-8") as file:
                    file.write('{"waits": true}\n')
            else:
                path.unlink(missing_ok=True)

    def _parent_ids(self, parent: dict[str, str]) -> list[str]:
        """The run that a note names as parent, by its id, or by the identity of what its stages ran on."""
        if "identity" in parent:
            query = f"tags.identity = '{parent['identity']}'"
            return [run.info.run_id for run in self.client.search_runs([self.experiment], query, max_results=1)]
        return [parent["id"]] if "id" in parent else []

    def _name_missing(self, run_id: str, missing: set[str], recorded: str = "") -> set[str]:
        """Add `missing` to a run's tag of missing records, and remove `recorded`; returns all names in the tag."""
        if not (run := self._run(run_id)):
            return missing
        named = set(filter(None, run.data.tags.get(INCOMPLETE, "").split(", ")))
        names = (named | missing) - {recorded}
        if names and names != named:
            self.client.set_tag(run_id, INCOMPLETE, ", ".join(sorted(names))[:MAX_TAG])
        elif named and not names:
            self.client.delete_tag(run_id, INCOMPLETE)
        return names

    def carry_out(self, operations: list[dict[str, Any]]) -> None:
        """Do these in order; neighbouring metrics go in one call."""
        from mlflow.entities import Metric

        points: dict[str, list[Any]] = {}
        for operation in operations:
            run_id = self.parent_id if operation.get("on") == "parent" else self.run_id
            if run_id is None:
                continue
            if operation["op"] == "metrics":
                step, moment = operation.get("step", 0), operation["time"]
                points.setdefault(run_id, []).extend(Metric(key, value, moment, step) for key, value in operation["values"].items())
            else:
                getattr(self, f"_do_{operation['op']}")(run_id, operation)
        for run_id, metrics in points.items():
            for start in range(0, len(metrics), MAX_METRICS):
                self.client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])

    def _do_params(self, run_id: str, operation: dict[str, Any]) -> None:
        self._params(run_id, operation["values"])

    def _params(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + MAX_PARAMS])

    def _do_tags(self, run_id: str, operation: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in operation["values"].items()])

    def _do_file(self, run_id: str, operation: dict[str, Any]) -> None:
        path, folder = self._spooled(operation["path"]), operation["folder"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)
        shutil.rmtree(path.parent)

    def _spooled(self, named: str) -> Path:
        """A file or directory in a place of its own in this run's spool: it is read and its place removed, and nothing else is."""
        spool = self.where.scratch / "spool" / self.process
        parts = Path(named).relative_to(spool).parts if Path(named).is_relative_to(spool) else ()
        path = Path(os.path.realpath(self.where.scratch), "spool", self.process, *parts)
        if len(parts) != 2 or ".." in parts or os.path.realpath(path) != str(path):
            raise Refused(f"{named!r} is not in the spool of this run")
        for entry in [path, *path.rglob("*")]:
            if not stat.S_ISREG(mode := entry.lstat().st_mode) and not stat.S_ISDIR(mode):
                raise Refused(f"{named!r} has in it what is neither a file nor a directory")
        return path

    def _do_dataset(self, run_id: str, operation: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        schema = {"mlflow_colspec": [{"type": kind, "name": name, "required": True} for name, kind in operation["columns"].items()]}
        dataset = Dataset(
            name=operation["name"],
            digest=operation["digest"],
            source_type="local",
            source=json.dumps({"uri": operation["source"]}),
            schema=json.dumps(schema) if operation["columns"] else None,
            profile=json.dumps({"num_rows": operation["rows"]}),
        )
        tags = [InputTag("mlflow.data.context", operation["context"])] if operation["context"] else []
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def _do_model(self, run_id: str, operation: dict[str, Any]) -> None:
        import mlflow
        import numpy
        import pandas
        from mlflow.models import Model, ModelSignature, infer_signature
        from mlflow.types import Schema, TensorSpec

        package = Path(__file__).resolve().parents[1]
        path = self._spooled(operation["path"])
        outputs = Schema([TensorSpec(numpy.dtype(operation["dtype"]), (-1, *operation["shape"][1:]))])
        with _fluent:
            mlflow.set_tracking_uri(self.where.uri)
            mlflow.set_experiment(experiment_id=self.experiment)  # a model is stored with the active experiment, not with its run's
            logged = Model.log(
                artifact_path=None,
                name=operation["name"],
                flavor=mlflow.pyfunc,
                run_id=run_id,
                python_model=str(package / "models" / "serving.py"),
                artifacts={"model": str(path)},
                code_paths=[str(package)],
                signature=ModelSignature(infer_signature(pandas.DataFrame(operation["inputs"])).inputs, outputs),
                pip_requirements=_requirements(),
                registered_model_name=operation["registered"],
                await_registration_for=0,
            )
        if logged.registered_model_version is not None:
            version = str(logged.registered_model_version)
            self.client.set_registered_model_alias(operation["registered"], "newest", version)
            for key in ("git_sha", "dvc_lock_digest", "family"):
                if key in self.tags:
                    self.client.set_model_version_tag(operation["registered"], version, key, self.tags[key])
        shutil.rmtree(path.parent)

    def end(self, status: str, reason: str) -> list[str]:
        """End the run, and the parent that stages share; returns the names of what is missing of it or below it."""
        with locked(self.where.scratch, "store"):
            notes = unfinished(self.where.scratch)
            notes.pop(self.process, None)
            missing = without(notes, {"id": self.run_id}) | ({self.name} if self.lost else set())
            missing = self._name_missing(self.run_id, missing)
            if self.parent_id:
                others = without(notes, self.shared) if self.shared else set()
                self._name_missing(self.parent_id, others | ({self.name} if missing else set()), "" if missing else self.name)
                for token, note in notes.items():
                    if not missing and "waits" in note and (note["parent"], note["name"]) == (self.shared, self.name):
                        (self.where.scratch / "alive" / token).unlink(missing_ok=True)
        self._end(self.run_id, status, reason)
        if self.shared and self.parent_id:
            self._end(self.parent_id, status, f"{self.tags.get('stage', 'stage')}: {reason}" if reason else "")
        return sorted(missing)

    def _end(self, run_id: str, status: str, reason: str, moment: int | None = None) -> None:
        if reason:
            self.client.set_tag(run_id, "end_reason", reason)
        self.client.set_terminated(run_id, status, moment)


def _requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    pinned = []
    for name in (
        "diffusers",
        "numpy",
        "pyarrow",
        "pydantic",
        "pytorch-lightning",
        "ruamel.yaml",
        "safetensors",
        "torch",
        "torchaudio",
    ):
        with contextlib.suppress(PackageNotFoundError):
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
    return pinned


def dead_tokens(scratch: Path) -> list[str]:
    """Processes that recorded runs and are gone without having ended them."""
    dead = []
    with locked(scratch, "alive"):
        for path in sorted((scratch / "alive").glob("*")):
            with path.open("a") as file:
                dead += [path.name] if disk.try_lock(file) else []
    return dead
