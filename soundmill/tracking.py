"""What came out of every run, in MLflow; the only importer of mlflow.

A stage never waits for tracking and never fails of it: a second process (`main` below) talks to MLflow, and the stage only hands
it lines of JSON and links to files. It also ends the run as KILLED when the stage dies without a word. Runs whose both processes
died are closed by the next one: every process holds a lock on a file of its own for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from soundmill import provenance
from soundmill.errors import UserError

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


@dataclass(frozen=True)
class Store:
    """Where runs are recorded: the SQLite file at the project's root, or what MLFLOW_TRACKING_URI names."""

    uri: str
    artifacts: str | None  # None: the server decides
    scratch: Path  # locks and files on their way; beside the database where that is a file

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))


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


# ---------------------------------------------------------------------------------------------------------------------
# What a stage or a flow holds


class StageRun:
    """One run, as a stage sees it: every method returns at once and none raises, whatever becomes of MLflow.

    Made by `stage_run` and `pipeline_run`; `StageRun()` records nothing.
    """

    def __init__(self, writer: Writer | None = None, stage: str = ""):
        self._writer, self._stage = writer, stage

    @property
    def run_id(self) -> str | None:
        """Id of this run once MLflow has given one; None before, or when tracking is off or down."""
        return self._writer.run_id if self._writer else None

    def log_params(self, params: dict[str, Any]) -> None:
        """Nested parameters, under dotted keys."""
        self._send({"op": "params", "values": {key: str(value)[:MAX_PARAM] for key, value in flatten(params).items()}})

    def log_metrics_tree(self, metrics: dict[str, Any]) -> None:
        """Nested metrics, under dotted keys; numbers become metrics, and the whole tree is kept as `metrics.json`."""
        self._send({"op": "metrics", "values": numbers(metrics), "time": _now()})
        if self._stage:
            values = {f"{self._stage}/{key}": value for key, value in numbers(metrics).items()}
            self._send({"op": "metrics", "values": values, "time": _now(), "on": "parent"})
        self._send_content(json.dumps(metrics, indent=2, sort_keys=True, default=str) + "\n", "metrics.json")

    def log_curve(self, values: dict[str, float], step: int) -> None:
        """One point of each learning curve."""
        if self._writer and self._writer.pending < PENDING_LIMIT:
            self._send({"op": "metrics", "values": numbers(values), "step": int(step), "time": _now()})

    def log_figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure, or the path of a picture, as `figures/<name>` (`.png` where the name has no ending)."""
        target = Path("figures") / (name if Path(name).suffix else f"{name}.png")
        if isinstance(figure, str | os.PathLike):
            self._send_file(Path(figure), str(target.parent), target.name)
        else:
            picture = io.BytesIO()
            figure.savefig(picture, format=target.suffix[1:], bbox_inches="tight")
            self._send_content(picture.getvalue(), target.name, str(target.parent))

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file, or a directory with all in it, as it is now; later changes to it are not recorded."""
        self._send_file(Path(path), folder, Path(path).name)

    def log_text(self, text: str | bytes, name: str, folder: str = "") -> None:
        """Text as a file of the run."""
        self._send_content(text, name, folder)

    def log_dataset(
        self, name: str, digest: str, rows: int, source: str | Path, context: str = "", columns: dict[str, str] | None = None
    ) -> None:
        """The data this run read: `digest` of the table, its number of rows, where it lies, and what for (`training`, …)."""
        dataset = {"name": name, "digest": digest[:36], "rows": int(rows), "source": str(source), "columns": columns or {}}
        for run in ("stage", "parent"):
            self._send({"op": "dataset", **dataset, "context": context, "on": run})

    def log_model(
        self, directory: Path, name: str, inputs: dict[str, list[Any]], outputs: Any, registered_name: str | None = None
    ) -> None:
        """A trained model (a directory of safetensors and JSON, never pickles) with its signature, into the registry.

        `inputs` are example columns of what `soundmill/models/serving.py` takes, `outputs` an example array it gives
        ([N, ...]; the first axis is free).
        """
        if not self._writer:
            return
        example = {"inputs": inputs, "dtype": str(outputs.dtype), "shape": list(outputs.shape)}
        registered = registered_name or f"soundmill-{name}"
        self._send_file(Path(directory), "", "model", {"op": "model", "name": name, "registered": registered, **example})

    def set_tags(self, tags: dict[str, Any]) -> None:
        self._send({"op": "tags", "values": {key: str(value)[:MAX_TAG] for key, value in tags.items()}})

    def describe(self, markdown: str) -> None:
        """The text shown on top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    def _send(self, operation: dict[str, Any]) -> None:
        if self._writer:
            self._writer.send(operation)

    def _send_file(self, path: Path, folder: str, name: str, operation: dict[str, Any] | None = None) -> None:
        if self._writer:
            self._writer.send_file(path, {"op": "file", "folder": folder, **(operation or {})}, name)

    def _send_content(self, content: str | bytes, name: str, folder: str = "", on: str = "stage") -> None:
        if self._writer:
            operation = {"op": "file", "folder": folder, "on": on}
            self._writer.send_content(content.encode() if isinstance(content, str) else content, operation, name)

    def _send_state(self, state: provenance.State, on: str = "stage") -> None:
        self._send(_state_tags(state) | {"on": on})
        for name, content in _state_files(state):
            self._send_content(content, name, STATE_FOLDER, on)


class PipelineRun(StageRun):
    """The parent run of one pipeline: its stages' runs are nested below it."""

    def fail(self, reason: str) -> None:
        """Let this run end as FAILED, with the reason."""
        if self._writer:
            self._writer.outcome = ("FAILED", reason)

    def page(self, port: int) -> str | None:
        """Where MLflow's web page shows this run, for a person; the page itself opens on chat traces otherwise."""
        if not self._writer or not self.run_id:
            return None
        base = self._writer.store.uri if self._writer.store.is_server else f"http://127.0.0.1:{port}"
        return f"{base}/#/experiments/{self._writer.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    @property
    def environment(self) -> dict[str, str]:
        """What the stages' processes need to find this run."""
        return {PARENT: self.run_id} if self.run_id else {}

    def mirror(self, root: Path, metrics: list[Path]) -> None:
        """Record the state the project at `root` is in now: params, dvc.lock, git, and these metrics files.

        DVC skips stages that are up to date, so their results come from the files.
        """
        if not self._writer:
            return
        self._send_state(provenance.capture(root))
        for path in metrics:
            name = metrics_name(path)
            try:
                tree = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                say(f"tracking: {path} is not readable as JSON ({error}); left out")
                continue
            if isinstance(tree, dict):
                values = {f"{name}/{key}": value for key, value in numbers(tree).items()}
                self._send({"op": "metrics", "values": values, "time": _now()})
            self._send_file(path, str(Path("metrics") / Path(name).parent), path.name)


def metrics_name(path: Path) -> str:
    """`evaluate/ddpm_mel` for `…/data/metrics/evaluate/ddpm_mel.json`."""
    parts = path.with_suffix("").parts
    start = max((index + 1 for index, part in enumerate(parts) if part == "metrics"), default=len(parts) - 1)
    return "/".join(parts[start:]) or path.stem


@contextmanager
def stage_run(
    home: Path, name: str, params: dict[str, Any], root: Path | None = None, family: str | None = None
) -> Iterator[StageRun]:
    """Record one stage, nested in the pipeline's run, or in the one that the stages of a plain `dvc repro` share.

    `home` anchors the store; `root` is where the code, params.yaml and dvc.lock lie (the same, but under `dvc exp run --temp`).
    """
    parent_id = os.environ.get(PARENT)
    root = root or home
    state = None if _is_off() else provenance.capture(root)
    spec: dict[str, Any] = {"name": name, "tags": {"kind": "stage", "stage": name.partition("/")[0]}}
    spec["tags"]["mlflow.source.name"] = f"stages/{name.partition('/')[0]}.py"
    if family:
        spec["tags"]["family"] = family
    if state:
        spec["tags"] |= _state_tags(state)["values"]
        spec["parent"] = {"id": parent_id} if parent_id else _shared_parent(state, root)
    with _run(StageRun, home, spec, stage=name) as run:
        run.log_params(params)
        if state and not parent_id:
            run._send_state(state, on="parent")
        yield run


@contextmanager
def pipeline_run(home: Path, name: str, root: Path | None = None, tags: dict[str, Any] | None = None) -> Iterator[PipelineRun]:
    """Record one invocation of the pipeline; hand `environment` to the stages' processes, call `mirror` at the end."""
    from soundmill import params

    root = root or home
    spec: dict[str, Any] = {"name": name, "tags": {"kind": "pipeline", "mlflow.source.name": "flows/pipeline.py", **(tags or {})}}
    with _run(PipelineRun, home, spec) as run:
        if run._writer:
            run._send_state(provenance.capture(root))
            run.log_params(params.read_yaml(root / "params.yaml"))
            run._writer.wait_until_open()
        yield run


@contextmanager
def _run(kind: type[Any], home: Path, spec: dict[str, Any], stage: str = "") -> Iterator[Any]:
    try:
        writer = None if _is_off() else Writer(store(home), spec)
    except OSError as error:
        say(f"tracking: {error}: going on without it; metrics files are kept")
        writer = None
    try:
        yield kind(writer, stage)
    except BaseException as error:
        if writer:
            stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
            reason = "interrupted" if stopped else str(error) or type(error).__name__
            writer.end("KILLED" if stopped else "FAILED", reason)
        raise
    if writer:
        writer.end(*writer.outcome)


def _is_off() -> bool:
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "false", "no")


def _shared_parent(state: provenance.State, root: Path) -> dict[str, Any]:
    """The run that stages of the same code and parameters share when no flow made one."""
    experiment = os.environ.get("DVC_EXP_NAME")
    name = f"dvc exp {experiment}" if experiment else f"dvc repro {state.sha[:7] or 'outside git'}{'+' if state.dirty else ''}"
    identity = provenance.digest_of(state.identity, experiment or "")
    kind = "experiment" if experiment else "repro"
    tags = {"kind": kind, "identity": identity, "mlflow.source.name": "dvc repro", **_state_tags(state)["values"]}
    return {"identity": identity, "name": name, "tags": tags, "params": _params_of(state)}


def _params_of(state: provenance.State) -> dict[str, str]:
    from ruamel.yaml import YAML, YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(state.params)
    except YAMLError:
        return {}
    return {key: str(value)[:MAX_PARAM] for key, value in flatten(document).items()} if isinstance(document, dict) else {}


def _state_tags(state: provenance.State) -> dict[str, Any]:
    values = {"git_sha": state.sha or "none", "git_dirty": str(state.dirty).lower(), "dvc_lock_digest": state.lock_digest or "none"}
    return {"op": "tags", "values": values | ({"mlflow.source.git.commit": state.sha} if state.sha else {})}


def _state_files(state: provenance.State) -> Iterator[tuple[str, bytes]]:
    yield "params.yaml", state.params
    yield "dvc.lock", state.lock
    yield "uncommitted.diff", state.diff
    yield "not_kept.txt", "".join(f"{name}\n" for name in state.left_out).encode("utf-8", "surrogateescape")


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


def _now() -> int:
    return time.time_ns() // 1_000_000


# ---------------------------------------------------------------------------------------------------------------------
# The stage's end of the line


class Writer:
    """The second process, as the first one sees it: a queue that takes anything at once, and words that come back."""

    def __init__(self, where: Store, spec: dict[str, Any]):
        self.store, self.run_id, self.experiment_id = where, None, None
        self.outcome = ("FINISHED", "")
        token = uuid.uuid4().hex
        self._spool = where.scratch / "spool" / token
        self._files = 0
        self._down = threading.Event()
        self._opened = threading.Event()
        self._ended = False
        self._last_word = time.monotonic()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with locked(where.scratch, "alive"):  # whoever cleans up must not see the file before it is locked
            alive = where.scratch / "alive" / token
            alive.parent.mkdir(parents=True, exist_ok=True)
            self._alive = alive.open("w")
            fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._spool.mkdir(parents=True)
        self._log = (self._spool / "log.txt").open("w+", encoding="utf-8", errors="replace")
        environment = {**HTTP, **QUIET, **os.environ}
        environment.pop("MLFLOW_RUN_ID", None)
        package = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from soundmill import tracking; tracking.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._spool,
            env=environment,
            pass_fds=[self._alive.fileno()],  # the lock lasts until both processes are gone
        )
        self._sender = threading.Thread(target=self._write, daemon=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._sender.start()
        self._listener.start()
        self.send({"op": "open", "token": token, "store": asdict(where) | {"scratch": str(where.scratch)}, **spec})

    @property
    def pending(self) -> int:
        return self._queue.qsize()

    def send(self, operation: dict[str, Any]) -> None:
        if not self._down.is_set():
            self._queue.put(json.dumps(operation))

    def send_file(self, path: Path, operation: dict[str, Any], name: str) -> None:
        """A file or directory, linked (or copied, across file systems) as it is now: the stage may move or remake it."""
        if self._down.is_set():
            return
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
        self.send({**operation, "path": str(target)})

    def send_content(self, content: bytes, operation: dict[str, Any], name: str) -> None:
        if self._down.is_set():
            return
        target = self._place(name)
        try:
            target.parent.mkdir(parents=True)
            target.write_bytes(content)
        except OSError as error:
            say(f"tracking: {name} could not be recorded: {error}")
            return
        self.send({**operation, "path": str(target)})

    def _place(self, name: str) -> Path:
        self._files += 1
        return self._spool / str(self._files) / Path(name).name

    def wait_until_open(self) -> None:
        """Until the run has its id, or it is clear that it will have none."""
        while not self._opened.wait(0.05):
            if self._down.is_set() or time.monotonic() - self._last_word > STUCK_SECONDS:
                return

    def end(self, status: str, reason: str) -> None:
        """End the run and wait until all is written, as long as the writer gets on with it."""
        self.send({"op": "end", "status": status, "reason": reason[:MAX_TAG]})
        self._queue.put(None)
        self._last_word = time.monotonic()
        while self._listener.is_alive() and time.monotonic() - self._last_word < STUCK_SECONDS:
            self._listener.join(0.1)
        if self._listener.is_alive():
            self._say_down(f"{self.store.uri} took nothing for {STUCK_SECONDS:.0f} s")
            self._process.kill()
        self._process.wait()
        self._log.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._spool)
            (self.store.scratch / "alive" / self._spool.name).unlink()
        self._alive.close()

    def _write(self) -> None:
        pipe: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        with contextlib.suppress(OSError):
            while (line := self._queue.get()) is not None:
                pipe.write(line.encode() + b"\n")
                if self._queue.empty():
                    pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._last_word = time.monotonic()
            event = json.loads(line)
            if event["event"] == "opened":
                self.run_id, self.experiment_id = event["run_id"], event["experiment_id"]
                self._opened.set()
            elif event["event"] == "warning":
                say(f"tracking: {event['message']}")
            elif event["event"] == "down":
                self._say_down(event["message"])
            elif event["event"] == "ended":
                self._ended = True
        if not self._ended and not self._down.is_set():
            self._log.seek(0)
            lines = [line for line in self._log.read().splitlines() if line.strip() and " INFO " not in line]
            self._say_down(f"its process ended early ({lines[-1] if lines else 'no message'})")

    def _say_down(self, message: str) -> None:
        if not self._down.is_set():
            self._down.set()
            self._opened.set()
            say(f"tracking: {message}: going on without it; metrics files are kept")


def _link_or_copy(source: str, target: str) -> None:
    """A snapshot; big files (checkpoints, which are made whole and never written again) are linked rather than copied."""
    if os.path.getsize(source) <= COPY_LIMIT:
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Only one process at a time does `what`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{what}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# The process that talks to MLflow


class Recorder:
    """Carries out what comes down the line, against MLflow; one per stage or flow, in a process of its own."""

    def __init__(self, opening: dict[str, Any]):
        from mlflow import MlflowClient

        self.where = Store(**opening["store"] | {"scratch": Path(opening["store"]["scratch"])})
        self.process = opening["token"]
        # MLflow makes and upgrades its tables when a client first looks at them: not safe beside another that does.
        with locked(self.where.scratch, "store"):
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
            emit("warning", message=f"{PARENT}={run_id}: no such run in {self.where.uri}; this stage's run stands alone")
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

        package = Path(__file__).resolve().parent
        path = Path(operation["path"])
        mlflow.set_tracking_uri(self.where.uri)
        mlflow.set_experiment(experiment_id=self.experiment)  # a model is stored with the active experiment, not with its run's
        outputs = Schema([TensorSpec(numpy.dtype(operation["dtype"]), (-1, *operation["shape"][1:]))])
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

    def clean_up(self) -> None:
        """Remove what the stage would have removed, had it lived."""
        shutil.rmtree(self.where.scratch / "spool" / self.process, ignore_errors=True)
        (self.where.scratch / "alive" / self.process).unlink(missing_ok=True)

    def end(self, status: str, reason: str) -> None:
        self._end(self.run_id, status, reason)
        if self.owns_parent and self.parent_id:
            self._end(self.parent_id, status, f"{self.tags.get('stage', 'stage')}: {reason}" if reason else "")

    def _end(self, run_id: str, status: str, reason: str) -> None:
        if reason:
            self.client.set_tag(run_id, "end_reason", reason)
        self.client.set_terminated(run_id, status)


DIED = "the process died without a word (killed, or out of memory)"


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


_events: IO[str] | None = None


def emit(event: str, **values: Any) -> None:
    """One word back to the stage; it may be gone."""
    if _events:
        with contextlib.suppress(OSError):
            print(json.dumps({"event": event, **values}), file=_events, flush=True)


def main() -> None:
    """Read operations from standard input until the end, or until the stage is gone."""
    import signal

    global _events
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the stage, and sent to us with it: we end after it
    _events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between our words
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            pending.put(json.loads(line))
        pending.put(None)

    threading.Thread(target=read, daemon=True).start()
    opening = pending.get()
    if opening is None:
        return
    uri = opening["store"]["uri"]
    if uri.startswith(("http://", "https://")) and (why := unreachable(uri)):
        emit("down", message=f"tracking server {uri} is unreachable ({why})")
        return
    # Whatever MLflow, its database or the network raise ends tracking and never the stage: nothing narrower would do.
    try:
        recorder = Recorder(opening)
    except Exception as error:
        emit("down", message=f"tracking store {uri} cannot be used ({_one_line(error)})")
        return
    emit("opened", run_id=recorder.run_id, experiment_id=recorder.experiment)
    _record(recorder, pending)


def _record(recorder: Recorder, pending: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    failures = 0
    while True:
        operations, end = _take(pending)
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
                emit("progress")
            except Exception as error:
                failures += 1
                uri = recorder.where.uri
                if recorder.where.is_server and (why := unreachable(uri)):
                    emit("down", message=f"tracking server {uri} is unreachable ({why})")
                    return
                if failures == 3:
                    emit("down", message=f"tracking store {uri} fails again and again ({_one_line(error)})")
                    return
                emit("warning", message=f"{batch[0]['op']} could not be recorded: {_one_line(error)}")
        if end:
            try:
                recorder.end(end["status"], end["reason"])
            except Exception as error:
                emit("down", message=f"the run could not be ended in {recorder.where.uri} ({_one_line(error)})")
                return
            emit("ended")
            if end["reason"] == DIED:
                recorder.clean_up()
            return


def _take(pending: queue.SimpleQueue[dict[str, Any] | None]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """All that waits in the line, and how the run ends if it does; without a word of it, the stage was killed."""
    operations = []
    operation = pending.get()
    while operation is not None and operation["op"] != "end":
        operations.append(operation)
        if pending.empty():
            return operations, None
        operation = pending.get()
    return operations, operation or {"status": "KILLED", "reason": DIED}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def serve(load: Any, predict: Any) -> None:
    """What a models-from-code script calls: `load(directory)` gives a model, `predict(model, rows)` an array."""
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Served(PythonModel):
        def load_context(self, context: Any) -> None:
            self.model = load(Path(context.artifacts["model"]))

        def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
            return predict(self.model, model_input)

    mlflow.models.set_model(Served())


# ---------------------------------------------------------------------------------------------------------------------
# Reading back


@dataclass(frozen=True)
class RecordedState:
    """What a run kept of the project: see `provenance.State`."""

    run_id: str
    name: str
    sha: str
    files: dict[str, bytes] = field(repr=False)  # params.yaml, dvc.lock, uncommitted.diff, not_kept.txt


def read_state(home: Path, run_id: str) -> RecordedState:
    """The state a run was made from; of a stage's run, its pipeline's. `run_id` may be its first characters."""
    client, where = _client(home)
    run = _find_run(client, where, run_id)
    parent = run.data.tags.get("mlflow.parentRunId")
    run = client.get_run(parent) if parent else run
    files = {}
    for entry in client.list_artifacts(run.info.run_id, STATE_FOLDER):
        files[Path(entry.path).name] = Path(client.download_artifacts(run.info.run_id, entry.path)).read_bytes()
    if not files:
        raise UserError(f"run {run.info.run_id} kept no state (its artifacts are gone, or it was made by other means)")
    return RecordedState(run.info.run_id, run.info.run_name, run.data.tags.get("git_sha", "none"), files)


def _find_run(client: Any, where: Store, run_id: str) -> Any:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=10_000)
    found = [run for run in runs if run.info.run_id == run_id] or [run for run in runs if run.info.run_id.startswith(run_id)]
    if run_id and len(found) == 1:
        return found[0]
    top = [run for run in runs if "mlflow.parentRunId" not in run.data.tags][:5]
    known = "".join(f"\n  {run.info.run_id}  {run.info.run_name}" for run in top) or " none yet"
    raise UserError(f"{'no run' if not found else 'several runs'} {run_id!r} in {where.uri}; the newest:{known}")


def _client(home: Path) -> tuple[Any, Store]:
    where = store(home)
    if where.is_server and (why := unreachable(where.uri)):
        raise UserError(f"tracking server {where.uri} is unreachable ({why}); start it, or unset MLFLOW_TRACKING_URI")
    if where.uri.startswith("sqlite:///") and not Path(where.uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{where.uri}: no runs are recorded here yet; `make demo` or `dvc repro` records some")
    for key, value in (HTTP | QUIET).items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return MlflowClient(where.uri, where.uri), where


def status(home: Path) -> tuple[bool, str]:
    """Whether tracking works, and where it goes, in words; quick, and without importing mlflow."""
    if _is_off():
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
