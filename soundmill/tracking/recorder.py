"""The process that talks to MLflow: takes the words of every stage that calls, and carries them out, whatever becomes of the stage.

One serves all stages of a `dvc repro`, since importing mlflow and opening its store take three seconds of processor.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soundmill.tracking.stores import (
    DIED,
    EXPERIMENT,
    EXPERIMENT_TAGS,
    MAX_METRICS,
    MAX_PARAMS,
    PARENT,
    Store,
    locked,
    owner,
    unreachable,
)

# From one stage to the next DVC takes a second, and longer where it hashes large outputs. A recorder that nobody calls any more
# holds 240 MB and no processor; one that ended too early costs three seconds of processor again: little beside 15 s of hashing.
IDLE_SECONDS = 15.0
HOPELESS_SECONDS = 1200.0  # without a word from MLflow, after the stage is gone
KILLED_SECONDS = 3.0  # the most that a killed stage's last words may take, when nobody else needs the recorder
POLL_SECONDS = 0.2
_tables = threading.Lock()  # no exit while they are made
_fluent = threading.Lock()  # what mlflow keeps for the whole process: store and active experiment


class Recorder:
    """Carries out against MLflow what one stage or flow says."""

    def __init__(self, opening: dict[str, Any], where: Store, say: Callable[..., None]):
        from mlflow import MlflowClient

        gc.freeze()  # see main
        gc.enable()
        self.where, self.process, self.say = where, opening["token"], say
        # MLflow makes and upgrades its tables when a client first looks at them: not safe beside another that does.
        with _tables, locked(self.where.scratch, "store"):
            self.client = MlflowClient(self.where.uri, self.where.uri)
            self.experiment = self._experiment()
            self._close_dead_runs()
            parent = opening.get("parent") or {}
            self.owns_parent = "identity" in parent
            self.parent_id = self._shared_parent(parent) if self.owns_parent else self._given_parent(parent.get("id"))
        tags = {**opening["tags"], "process": self.process}
        if self.parent_id:
            tags["mlflow.parentRunId"] = self.parent_id
        self.run_id = self.client.create_run(self.experiment, tags=tags, run_name=opening["name"]).info.run_id
        self.tags = tags

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        if found and self.where.artifacts and Path(found.artifact_location.removeprefix("file://")) != Path(self.where.artifacts):
            # The project was moved: MLflow keeps absolute paths, and would write to where it once was.
            self.client.rename_experiment(found.experiment_id, f"{name} before the move from {found.artifact_location}")
            found = None
        if found:
            return found.experiment_id
        return self.client.create_experiment(name, artifact_location=self.where.artifacts, tags=EXPERIMENT_TAGS)

    def _shared_parent(self, parent: dict[str, Any]) -> str:
        found = self.client.search_runs([self.experiment], f"tags.identity = '{parent['identity']}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "process", self.process)
            if "end_reason" in found[0].data.tags:
                self.client.delete_tag(run_id, "end_reason")
            return run_id
        tags = {**parent["tags"], "process": self.process}
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=parent["name"]).info.run_id
        self._params(run_id, parent["params"])
        return run_id

    def _given_parent(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            self.experiment = self.client.get_run(run_id).info.experiment_id
        except MlflowException:
            self.say("warning", message=f"{PARENT}={run_id}: no such run in {self.where.uri}; this stage's run stands alone")
            return None
        return run_id

    def _close_dead_runs(self) -> None:
        """End the runs of processes that died: nobody holds the lock on their file any more."""
        for token in dead_tokens(self.where.scratch):
            query = f"tags.process = '{token}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.experiment], query):
                self._end(run.info.run_id, "KILLED", DIED)
            shutil.rmtree(self.where.scratch / "spool" / token, ignore_errors=True)
            (self.where.scratch / "alive" / token).unlink(missing_ok=True)

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
        path, folder = Path(operation["path"]), operation["folder"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)
        shutil.rmtree(path.parent)

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
        path = Path(operation["path"])
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

    def end(self, status: str, reason: str) -> None:
        self._end(self.run_id, status, reason)
        if self.owns_parent and self.parent_id:
            self._end(self.parent_id, status, f"{self.tags.get('stage', 'stage')}: {reason}" if reason else "")

    def _end(self, run_id: str, status: str, reason: str) -> None:
        if reason:
            self.client.set_tag(run_id, "end_reason", reason)
        self.client.set_terminated(run_id, status)


def _requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
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
            found.append(f"{name}=={version(name).partition('+')[0]}")
    return found


def dead_tokens(scratch: Path) -> list[str]:
    """Processes that recorded runs and are gone without having ended them."""
    dead = []
    with locked(scratch, "alive"):
        for path in sorted((scratch / "alive").glob("*")):
            with path.open("a") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead.append(path.name)
    return dead


class Down(Exception):
    """This run is not recorded any further, for the reason given."""


@contextlib.contextmanager
def _alive(scratch: Path, token: str) -> Iterator[None]:
    """Keep others from ending the run of this token as one that nobody records any more; after `Down`, somebody shall."""
    path = scratch / "alive" / token
    with locked(scratch, "alive"):  # whoever looks for the dead must not see the file before it is locked
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    left_open = False
    with file:
        try:
            yield
        except Down:
            left_open = True
            raise
        finally:
            if not left_open:
                path.unlink(missing_ok=True)


class Line:
    """The recorder's end of the line to one stage or flow; a thread of its own carries out what comes down it."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._all_read = False
        self._killed_at: float | None = None
        self._opened = self._closing = False
        self._last_word = time.monotonic()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_hopeless(self) -> bool:
        """Whether a stage is long gone and its last words are still not recorded."""
        return self._all_read and time.monotonic() - self._last_word > HOPELESS_SECONDS

    @property
    def was_killed(self) -> bool:
        """Whether the stage is gone without having ended its run."""
        return self._killed_at is not None

    @property
    def may_be_cut(self) -> bool:
        """Whether nobody waits for it: killed before its run was open, or KILLED_SECONDS ago. The next recorder ends such a run."""
        return self.was_killed and (not self._opened or time.monotonic() - self._killed_at > KILLED_SECONDS)

    def say(self, event: str, **values: Any) -> None:
        """One word back to the stage; it may be gone."""
        self._last_word = time.monotonic()
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps({"event": event, **values}).encode() + b"\n")

    def _serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        if opening := self._pending.get():
            where = Store(**opening["store"] | {"scratch": Path(opening["store"]["scratch"])})
            # Whatever MLflow, its database or the network raise ends tracking and never the stage: nothing narrower would do.
            try:
                if where.is_server and (why := unreachable(where.uri)):
                    raise Down(f"tracking server {where.uri} is unreachable ({why})")
                with _alive(where.scratch, opening["token"]):
                    self._record(opening, where)
            except Down as error:
                self.say("down", message=str(error))
            except Exception as error:
                self.say("down", message=f"tracking store {where.uri} cannot be used ({_one_line(error)})")
            else:
                self.say("ended")
            shutil.rmtree(where.scratch / "spool" / opening["token"], ignore_errors=True)
        self._closing = True
        with contextlib.suppress(OSError):  # the other thread may be reading from it: closing alone would not end it
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        ended = False
        with contextlib.suppress(OSError, ValueError), self._connection.makefile("rb") as stream:
            for line in stream:  # the last one of a killed stage may be torn
                operation = json.loads(line)
                ended = operation["op"] == "end"
                self._pending.put(operation)
        if not ended and not self._closing:
            self._killed_at = time.monotonic()
        self._all_read = True
        self._pending.put(None)

    def _record(self, opening: dict[str, Any], where: Store) -> None:
        recorder = Recorder(opening, where, self.say)
        self._opened = True
        self.say("opened", run_id=recorder.run_id, experiment_id=recorder.experiment)
        failures = 0
        while True:
            operations, end = self._take()
            work: list[list[dict[str, Any]]] = []  # runs of metrics together, everything else alone
            for operation in operations:
                if work and operation["op"] == "metrics" == work[-1][-1]["op"]:
                    work[-1].append(operation)
                else:
                    work.append([operation])
            for batch in work:
                try:
                    recorder.carry_out(batch)
                    failures = 0
                    self.say("progress")
                except Exception as error:
                    failures += 1
                    if where.is_server and (why := unreachable(where.uri)):
                        raise Down(f"tracking server {where.uri} is unreachable ({why})") from None
                    if failures == 3:
                        raise Down(f"tracking store {where.uri} fails again and again ({_one_line(error)})") from None
                    self.say("warning", message=f"{batch[0]['op']} could not be recorded: {_one_line(error)}")
            if end:
                try:
                    recorder.end(end["status"], end["reason"])
                except Exception as error:
                    raise Down(f"the run could not be ended in {where.uri} ({_one_line(error)})") from None
                return

    def _take(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """All that waits in the line, and how the run ends if it does; without a word of it, the stage was killed."""
        operations = []
        operation = self._pending.get()
        while operation is not None and operation["op"] != "end":
            operations.append(operation)
            if self._pending.empty():
                return operations, None
            operation = self._pending.get()
        return operations, operation or {"status": "KILLED", "reason": DIED}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def serve(listener: socket.socket) -> None:
    """Record the runs of all who call, until nobody has for IDLE_SECONDS; after a stage that was killed, end at once.

    Nobody's call is lost: after `shutdown`, who called before is still answered, and who calls later is refused and starts
    another recorder (the name is free once the socket is closed).
    """
    listener.settimeout(POLL_SECONDS)
    lines: list[Line] = []
    last_open, idle_seconds = time.monotonic(), IDLE_SECONDS
    listening = True
    while listening or lines:
        try:
            if listening:
                connection, _ = listener.accept()
                if owner(connection) == os.getuid():
                    lines.append(Line(connection))
            else:
                time.sleep(POLL_SECONDS)
        except TimeoutError:
            pass
        except OSError:
            listener.close()
            listening = False
        for line in lines:
            if not line.is_open:
                idle_seconds = 0.0 if line.was_killed else IDLE_SECONDS
        lines = [line for line in lines if line.is_open]
        unneeded = all(line.may_be_cut for line in lines)
        if not unneeded:
            last_open = time.monotonic()
        elif listening and (lines or time.monotonic() - last_open > idle_seconds):
            listener.shutdown(socket.SHUT_RDWR)
            listener.setblocking(True)  # accept() gives those who called before, then an error
        if any(line.is_hopeless for line in lines):
            os._exit(1)
        if lines and unneeded and not listening:
            with _tables:
                os._exit(0)


def main() -> None:
    """`python -m soundmill.tracking.recorder FD LOG`: serve the socket that a stage has opened."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the stages: we end after them
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gc.disable()  # until mlflow is imported: a fifth of that time, and no garbage found; the first stage waits for it
    serve(socket.socket(fileno=int(sys.argv[1])))
    Path(sys.argv[2]).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
