"""The process that talks to MLflow: receives records from every stage that connects and writes them, whatever becomes of the stage.

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
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    owner,
    unfinished,
    unreachable,
    without,
)
from soundmill.tracking.words import MAX_LINE, check

# From one stage to the next DVC takes a second, and longer where it hashes large outputs. A recorder that nobody calls any more
# holds 240 MB and no processor; one that ended too early costs three seconds of processor again: little beside 15 s of hashing.
IDLE_SECONDS = 15.0
HOPELESS_SECONDS = 1200.0  # without a word from MLflow, after the stage is gone
LINE_SECONDS = 30.0  # a caller opens its run and ends each line it begins within it; between two lines a stage may work for days
SEND_SECONDS = 5.0  # a caller that takes no word back for so long gets none any more
MAX_COMPLAINTS = 20  # told of one caller's bad lines
REFUSED = "refused"  # in the log, which is kept where it has this word
KILLED_SECONDS = 3.0  # the most that a killed stage's last words may take, when nobody else needs the recorder
POLL_SECONDS = 0.2
_tables = threading.Lock()  # no exit while they are made
_fluent = threading.Lock()  # what mlflow keeps for the whole process: store and active experiment


class Recorder:
    """Writes the records of one stage or flow to MLflow, after ending the runs that dead ones left open."""

    def __init__(self, where: Store, say: Callable[..., None]):
        from mlflow import MlflowClient

        gc.freeze()  # see main
        gc.enable()
        self.where, self.say = where, say
        self.lost = False  # whether something that this run said is not recorded
        # MLflow makes and upgrades its tables when a client first looks at them: not safe beside another that does.
        with _tables, locked(self.where.scratch, "store"):
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
            with path.open("a") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead.append(path.name)
    return dead


class Down(Exception):
    """This run is not recorded any further, for the reason given."""


class Refused(Exception):
    """This line is not carried out, for the reason given; the next ones are."""


@contextlib.contextmanager
def _alive(scratch: Path, token: str) -> Iterator[None]:
    """Take over a run that a process has announced (see writer.py), and its spool, as the only one who does.

    Others do not end the run as one that nobody records any more. Its note goes when it is recorded to its end; else it stays,
    for whoever reaches MLflow next.
    """
    note, spool = scratch / "alive" / token, scratch / "spool" / token
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(note.open())
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            held.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Down(f"run {token} was not announced, or is taken ({error})") from None
        try:
            yield
        finally:
            shutil.rmtree(spool, ignore_errors=True)
        note.unlink(missing_ok=True)


class Line:
    """The recorder's end of the line to one stage or flow; a thread of its own carries out what comes down it."""

    def __init__(self, connection: socket.socket, where: Store):
        self._connection, self._where = connection, where
        self._connection.settimeout(SEND_SECONDS)
        self._pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._all_read = self._deaf = False
        self._complaints = 0
        self._lost_reason = DIED
        self._mouth = threading.Lock()
        self._killed_at: float | None = None
        self._opened = self._closing = self._refused = False
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
        """One word back to the stage; it may be gone, or not listen."""
        self._last_word = time.monotonic()
        with self._mouth:
            if not self._deaf:
                try:
                    self._connection.sendall(json.dumps({"event": event, **values}).encode() + b"\n")
                except OSError:
                    self._deaf = True

    def _refuse(self, why: object) -> None:
        """Write to the log, which is then kept, and to the stage."""
        self._complaints += 1
        self._refused = True
        if self._complaints <= MAX_COMPLAINTS:
            print(f"{REFUSED}: {why}", file=sys.stderr, flush=True)
            self.say("warning", message=f"{REFUSED}: {why}")

    def _serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        if opening := self._pending.get():
            # Whatever MLflow, its database or the network raise ends tracking and never the stage: nothing narrower would do.
            try:
                token = opening.get("token")
                with _alive(self._where.scratch, token) if token else contextlib.nullcontext():
                    if self._where.is_server and (why := unreachable(self._where.uri)):
                        raise Down(f"tracking server {self._where.uri} is unreachable ({why})")
                    recorder = Recorder(self._where, self.say)
                    incomplete = self._record(recorder, opening) if token else []
            except Down as error:
                self.say("down", message=str(error))
            except Exception as error:
                self.say("down", message=f"tracking store {self._where.uri} cannot be used ({_one_line(error)})")
            else:
                self.say("ended", incomplete=incomplete)
        self._closing = True
        with contextlib.suppress(OSError):  # the other thread may be reading from it: closing alone would not end it
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        """Hand on every good line; what comes down before the run is open is refused with all that follows it."""
        is_open = ended = False
        try:
            for line in self._lines():
                try:
                    word = check(line)
                    if is_open == (word["op"] in ("open", "settle")):
                        raise ValueError(f"{word['op']} {'again' if is_open else 'before open'}")
                except ValueError as error:
                    self._refuse(error)
                    if not is_open:
                        break
                else:
                    is_open, ended = True, word["op"] in ("end", "settle")
                    self._pending.put(word)
        except OSError:
            pass  # the caller is gone; what it said until then is recorded
        finally:
            if is_open and not ended and not self._closing:
                self._killed_at = time.monotonic()
            self._all_read = True
            self._pending.put(None)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines of bounded length and duration, until the caller is gone; the last one of a killed stage may be torn."""
        line, begun = bytearray(), time.monotonic()  # the first one is due from now on
        while True:
            if begun and time.monotonic() - begun > LINE_SECONDS:
                self._lost_reason = f"no whole line came within {LINE_SECONDS:.0f} s"
                return self._refuse(self._lost_reason)
            try:
                part = self._connection.recv(2**16)
            except TimeoutError:
                continue
            if not part:
                return
            *ends, rest = part.split(b"\n")
            for end in ends:
                line += end
                if len(line) > MAX_LINE:
                    self._refuse(f"longer than {MAX_LINE} bytes")
                else:
                    yield bytes(line)
                line, begun = bytearray(), 0.0
            if rest:
                begun = begun or time.monotonic()
                if len(line) <= MAX_LINE:
                    line += rest

    def _record(self, recorder: Recorder, opening: dict[str, Any]) -> list[str]:
        where = self._where
        recorder.open(opening)
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
                except Refused as error:
                    self._refuse(error)
                except Exception as error:
                    recorder.lost = True
                    failures += 1
                    if where.is_server and (why := unreachable(where.uri)):
                        raise Down(f"tracking server {where.uri} is unreachable ({why})") from None
                    if failures == 3:
                        raise Down(f"tracking store {where.uri} fails again and again ({_one_line(error)})") from None
                    self.say("warning", message=f"{batch[0]['op']} could not be recorded: {_one_line(error)}")
            if end:
                recorder.lost = recorder.lost or self._refused
                try:
                    return recorder.end(end["status"], end["reason"])
                except Exception as error:
                    raise Down(f"the run could not be ended in {where.uri} ({_one_line(error)})") from None

    def _take(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """All that waits in the line, and how the run ends if it does; without a word of it, the stage was killed."""
        operations = []
        operation = self._pending.get()
        while operation is not None and operation["op"] != "end":
            operations.append(operation)
            if self._pending.empty() or len(operations) == MAX_METRICS:
                return operations, None
            operation = self._pending.get()
        return operations, operation or {"status": "KILLED", "reason": self._lost_reason}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def serve(listener: socket.socket, where: Store, place: Path) -> None:
    """Record the runs of all who call, until nobody has for IDLE_SECONDS; after a stage that was killed, end at once.

    `place` is the socket's path.

    Nobody's call is lost: who called before `shutdown` is still answered, and who calls later finds no socket and starts another
    recorder.
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
                    lines.append(Line(connection, where))
                else:
                    connection.close()
            else:
                time.sleep(POLL_SECONDS)
        except TimeoutError:
            pass
        except OSError:  # shut down below, and the place may be another recorder's by now
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
            place.unlink(missing_ok=True)  # while it is surely ours: nobody takes the place of one who listens
            listener.shutdown(socket.SHUT_RDWR)
            listener.setblocking(True)  # accept() gives those who called before, then an error
        if any(line.is_hopeless for line in lines):
            os._exit(1)
        if lines and unneeded and not listening:
            with _tables:
                os._exit(0)


def main() -> None:
    """`python -m soundmill.tracking.recorder FD LOG`: serve the socket that a stage has opened, as its standard input says."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the stages: we end after them
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gc.disable()  # until mlflow is imported: a fifth of that time, with no garbage in it; the first stage waits for it
    opened, log = json.load(sys.stdin), Path(sys.argv[2])
    where = Store(**opened["store"] | {"scratch": Path(opened["store"]["scratch"])})
    serve(socket.socket(fileno=int(sys.argv[1])), where, Path(opened["socket"]))
    if REFUSED.encode() not in log.read_bytes():
        log.unlink()


if __name__ == "__main__":
    main()
