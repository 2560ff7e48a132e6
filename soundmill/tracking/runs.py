"""A stage's or flow's handle on its run: its methods return at once and never fail."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soundmill import provenance
from soundmill.errors import told
from soundmill.tracking.stores import (
    INCOMPLETE,
    MAX_PARAM,
    MAX_TAG,
    PARENT,
    PENDING_LIMIT,
    STATE_FOLDER,
    flatten,
    is_off,
    numbers,
    say,
    store,
)
from soundmill.tracking.writer import Writer, settle


class StageRun:
    """One run, as a stage sees it: every method returns at once and none raises, whatever becomes of MLflow.

    Made by `stage_run` and `pipeline_run`; `StageRun()` records nothing.
    """

    def __init__(self, open: Callable[[], None] | None = None, stage: str = ""):
        self._writer: Writer | None = None
        self._open, self._stage = open, stage

    def begin(self) -> None:
        """Open this run, where `stage_run` left it closed (`begin=False`); what is logged before is dropped."""
        if self._open:
            open, self._open = self._open, None
            try:
                open()
            except OSError as error:
                say(f"tracking: {error}: going on without it; metrics files are kept")

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
            with told(f"tracking: {target}"):
                picture = io.BytesIO()
                figure.savefig(picture, format=target.suffix[1:], bbox_inches="tight")
                self._send_content(picture.getvalue(), target.name, str(target.parent))

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file, or a directory with all in it, as it is now; later changes to it are not recorded."""
        self._send_file(Path(path), folder, Path(path).name)

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

    is_open = False  # whether it could not be ended in MLflow

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
    def not_recorded(self) -> list[str]:
        """Once ended: what MLflow does not have of this run, in words; the metrics files have it."""
        if not self._writer or not self._writer.incomplete:
            return []
        names = ", ".join(self._writer.incomplete)
        if not self.run_id:
            return [f"MLflow has no run of this pipeline: {self._writer.store.uri} could not be used."]
        if self.is_open:
            then = (
                f"Its run {self.run_id} is still open there: the next run that reaches MLflow ends it and tags it `{INCOMPLETE}`."
            )
        else:
            then = f"Its run {self.run_id} is tagged `{INCOMPLETE}`."
        return [f"Not recorded in MLflow: {names}; their metrics files are kept.", then]

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
    home: Path, name: str, params: dict[str, Any], root: Path | None = None, family: str | None = None, begin: bool = True
) -> Iterator[StageRun]:
    """Record one stage, nested in the pipeline's run, or in the one that the stages of a plain `dvc repro` share.

    `home` anchors the store; `root` is where the code, params.yaml and dvc.lock lie (the same, but under `dvc exp run --temp`).
    With `begin=False`, nothing is recorded unless the stage calls `begin`, or fails.
    """
    root = root or home

    def open() -> None:
        parent_id = os.environ.get(PARENT)
        state = provenance.capture(root)
        kind = name.partition("/")[0]
        tags = {"kind": "stage", "stage": kind, "mlflow.source.name": f"stages/{kind}.py"} | _state_tags(state)["values"]
        if family:
            tags["family"] = family
        parent = {"id": parent_id} if parent_id else _shared_parent(state, root)
        run._writer = Writer(store(home), {"name": name, "tags": tags, "parent": parent})
        run.log_params(params)
        if not parent_id:
            run._send_state(state, on="parent")

    run = StageRun(None if is_off() else open, name)
    with _ended(run):
        if begin:
            run.begin()
        yield run


@contextmanager
def pipeline_run(home: Path, name: str, root: Path | None = None, tags: dict[str, Any] | None = None) -> Iterator[PipelineRun]:
    """Record one invocation of the pipeline; hand `environment` to the stages' processes, call `mirror` at the end.

    It is nested in the run that the environment names, if it does: that of a sweep.
    """
    from soundmill import params

    root = root or home

    def open() -> None:
        spec = {"name": name, "tags": {"kind": "pipeline", "mlflow.source.name": "flows/pipeline.py", **(tags or {})}}
        parent_id = os.environ.get(PARENT)
        run._writer = Writer(store(home), spec | ({"parent": {"id": parent_id}} if parent_id else {}))
        run._send_state(provenance.capture(root))
        run.log_params(params.read_yaml(root / "params.yaml"))
        run._writer.wait_until_open()

    run = PipelineRun(None if is_off() else open)
    try:
        with _ended(run):
            run.begin()
            yield run
    finally:
        if run._writer and not run._writer.ended:  # MLflow may be back by now
            run.is_open = not settle(run._writer.store)


@contextmanager
def _ended(run: StageRun) -> Iterator[None]:
    """End the run as what happens inside; a failure is recorded in any case."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):
            run.begin()
        if run._writer:
            stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
            reason = "interrupted" if stopped else str(error) or type(error).__name__
            run._writer.end("KILLED" if stopped else "FAILED", reason)
        raise
    if run._writer:
        run._writer.end(*run._writer.outcome)


def _shared_parent(state: provenance.State, root: Path) -> dict[str, Any]:
    """The run that stages of the same code and parameters share when no flow made one."""
    experiment = os.environ.get("DVC_EXP_NAME")
    name = f"dvc exp {experiment}" if experiment else f"dvc repro {state.sha[:7] or 'outside git'}{'+' if state.dirty else ''}"
    identity = provenance.digest_of(state.identity, experiment or "")
    kind = "experiment" if experiment else "repro"
    tags = {"kind": kind, "identity": identity, "mlflow.source.name": "dvc repro", **_state_tags(state)["values"]}
    return {"identity": identity, "name": name, "tags": tags, "params": _params_of(state)}


def _params_of(state: provenance.State) -> dict[str, str]:
    from ruamel.yaml import YAMLError

    from soundmill import params

    try:
        document = params.parse_yaml(state.params)
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


def _now() -> int:
    return time.time_ns() // 1_000_000
