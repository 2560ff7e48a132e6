"""Recording a run from a stage or flow: methods write to the run's journal and never fail."""

import io
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from soundmill import hashing, provenance
from soundmill.errors import reason, report_failure
from soundmill.tracking import journal, stores

RESTART_SECONDS = 30.0
BROWSER_PORT = 5000  # of `make browse`, as in commands/runs.py


class StageRun:
    """One run; no method waits for MLflow or raises. `stage_run` and `pipeline_run` create it; `StageRun()` records nothing."""

    def __init__(self, open: Callable[[], None] | None = None, stage: str = "", disk: Path | None = None):
        self._journal: journal.Writer | None = None
        self._open, self._stage, self._disk = open, stage, disk
        self._fills_parent = False  # not if a pipeline does so, with `mirror`
        self._outcome = ("FINISHED", "")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def start(self) -> None:
        """Start recording, if `stage_run` did not (`start=False`); anything logged before is dropped."""
        if self._open and not stores.is_off():
            open, self._open = self._open, None
            try:
                open()
            except OSError as error:
                stores.say(f"tracking: {error}: this run is not recorded; its metrics files are kept")

    @property
    def id(self) -> str | None:
        """Id of this run's journal, which is its tag `journal` in MLflow; None if tracking is off."""
        return self._journal.id if self._journal else None

    def log_params(self, params: dict[str, Any]) -> None:
        self._send({"op": "params", "values": _texts(params)})

    def log_metrics_tree(self, metrics: dict[str, Any]) -> None:
        """Log nested metrics: numbers as metrics with dotted keys, and everything as the file `metrics.json`."""
        self._send({"op": "metrics", "values": stores.numbers(metrics), "time": journal.now()})
        if self._fills_parent:
            self._send({"op": "metrics", "values": _of_stage(self._stage, metrics), "time": journal.now(), "on": "parent"})
        self._send_content(json.dumps(metrics, indent=2, sort_keys=True, default=str) + "\n", "metrics.json")

    def log_curve(self, values: dict[str, float], step: int) -> None:
        self._send({"op": "metrics", "values": stores.numbers(values), "step": int(step), "time": journal.now()})

    def system_metrics(self) -> AbstractContextManager[None]:
        """While the block runs, log the use of this machine, unless `stage_run` was told not to."""
        return watched(self.log_curve, self._disk) if self._journal and self._disk else nullcontext()

    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as `figures/<name>.png`."""
        target = Path("figures") / f"{name}.png"
        with report_failure(f"tracking: {target}"):
            picture = io.BytesIO()
            figure.savefig(picture, format="png", bbox_inches="tight")
            self._send_content(picture.getvalue(), target.name, str(target.parent))

    def log_file(self, path: Path, folder: str = "", name: str = "") -> None:
        """Log a snapshot of a file or directory, by its own name or another."""
        self._send_file(Path(path), folder, name or Path(path).name)

    def log_dataset(
        self, name: str, digest: str, rows: int, source: str | Path, context: str = "", columns: dict[str, str] | None = None
    ) -> None:
        """Log the data that this run read: digest of the table, number of rows, path, and purpose (`training`, …)."""
        dataset = {"name": name, "digest": digest[:36], "rows": int(rows), "source": str(source), "columns": columns or {}}
        for run in ("stage", "parent"):
            self._send({"op": "dataset", **dataset, "context": context, "on": run})

    def log_model(self, directory: Path, name: str, inputs: dict[str, list[Any]], outputs: Any) -> None:
        """Register a trained model (a directory of safetensors and JSON, never pickles) with its signature.

        `inputs` are example columns for `soundmill/models/serving.py`, `outputs` an example of its result ([N, ...], N is free).
        """
        if not self._journal or os.environ.get(stores.TRIAL):
            return
        example = {"inputs": inputs, "dtype": str(outputs.dtype), "shape": list(outputs.shape)}
        identity = {"registered": registered_as(name), "digest": hashing.model_digest(directory)}
        self._send_file(directory, "", "model", {"op": "model", "name": name, **identity, **example})

    def log_model_scores(self, digest: str, name: str, scores: dict[str, float]) -> None:
        """Tag the registered versions of a model with this hashing.model_digest with their scores; the best becomes `@best`."""
        self._send({"op": "scored", "registered": registered_as(name), "digest": digest, "values": scores})

    def log_model_attribution(self, digest: str, name: str, table: Path, tags: dict[str, str]) -> None:
        """Log the table of credits; add it and tags to the registered versions of a model with this hashing.model_digest."""
        identity = {"registered": registered_as(name), "digest": digest}
        of_versions = {key: value[: stores.MAX_TAG] for key, value in tags.items()}
        self._send_file(table, "", table.name, {"op": "attributed", **identity, "tags": of_versions})

    def set_tags(self, tags: dict[str, Any]) -> None:
        self._send({"op": "tags", "values": {key: str(value)[: stores.MAX_TAG] for key, value in tags.items()}})

    def describe(self, markdown: str) -> None:
        self.set_tags({"mlflow.note.content": markdown})

    def _send(self, operation: dict[str, Any]) -> None:
        if self._journal:
            self._journal.send(operation)

    def _send_file(self, path: Path, folder: str, name: str, operation: dict[str, Any] | None = None) -> None:
        if self._journal:
            self._journal.send_file(path, {"op": "file", "folder": folder, **(operation or {})}, name)

    def _send_content(self, content: str | bytes, name: str, folder: str = "", on: str = "stage") -> None:
        if self._journal:
            operation = {"op": "file", "folder": folder, "on": on}
            data = content.encode() if isinstance(content, str) else content
            self._journal.send_written(lambda target: target.write_bytes(data), operation, name, name)

    def _send_state(self, state: provenance.State, on: str = "stage") -> None:
        for name in state.left_out:
            if name.endswith(provenance.SECRET) or not state.sha:
                stores.say(f"tracking: {name}; {'its changes are' if state.sha else 'it is'} not recorded")
        self._send(_state_tags(state) | {"on": on})
        not_kept = "".join(f"{name}\n" for name in state.left_out).encode("utf-8", "surrogateescape")
        files = {"params.yaml": state.params, "dvc.lock": state.lock, "uncommitted.diff": state.diff, "not_kept.txt": not_kept}
        for name, content in files.items():
            self._send_content(content, name, stores.STATE_FOLDER, on)


class PipelineRun(StageRun):
    """The parent run of a pipeline, above the runs of its stages."""

    home = Path()

    def fail(self, reason: str) -> None:
        self._outcome = ("FAILED", reason)

    @property
    def browser(self) -> str:
        """Address of MLflow's web page: its server, or `make browse`."""
        return stores.store(self.home).browser(BROWSER_PORT)

    @property
    def page(self) -> str | None:
        """Address of this run's page in MLflow while it is recorded; None until MLflow has the run."""
        if not self._journal:
            return None
        position = journal.read_position(self._journal.folder)
        if not position.run_id:
            return None
        # Otherwise the page opens with chat traces.
        return f"{self.browser}/#/experiments/{position.experiment_id}/runs/{position.run_id}?workflowType=machine_learning"

    @property
    def not_recorded(self) -> list[str]:
        """Lines about runs that MLflow does not have yet, and why; empty if it answers."""
        count, trouble = journal.waiting(self.home) if self._journal else (0, "")
        if not trouble:
            return []
        runs = "1 run" if count == 1 else f"{count} runs"
        return [f"Not in MLflow yet: {runs} ({trouble}). Nothing is lost: the next run, or `soundmill sync`, sends them."]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables by which the stages' processes find this run."""
        return {stores.PARENT: self.id} if self.id else {}

    def mirror(self, root: Path, metrics: list[Path]) -> None:
        """Record the project's state at `root`, and these metrics files, as DVC runs no stage that is up to date."""
        if not self._journal:
            return
        self._send_state(provenance.capture(root))
        for path in metrics:
            name = metrics_name(path)
            try:
                tree = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                stores.say(f"tracking: {path} is not readable as JSON ({error}); not recorded")
                continue
            if isinstance(tree, dict):
                self._send({"op": "metrics", "values": _of_stage(name, tree), "time": journal.now()})
            self._send_file(path, str(Path("metrics") / Path(name).parent), path.name)


def _of_stage(name: str, metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a stage for its parent run: only the outermost ones, named so that they sort after the scores."""
    return stores.numbers({f"stages/{name}/{key}": value for key, value in metrics.items() if not isinstance(value, dict)})


def registered_as(name: str) -> str:
    return f"soundmill-{name}"


def metrics_name(path: Path) -> str:
    """`evaluate/ddpm_mel` for `…/data/metrics/evaluate/ddpm_mel.json`."""
    parts = path.with_suffix("").parts
    start = max((index + 1 for index, part in enumerate(parts) if part == "metrics"), default=len(parts) - 1)
    return "/".join(parts[start:]) or path.stem


def stage_run(
    home: Path,
    name: str,
    params: dict[str, Any],
    root: Path | None = None,
    family: str | None = None,
    start: bool = True,
    system_metrics: bool = True,
) -> AbstractContextManager[StageRun]:
    """Record one stage, below the pipeline's run, or below the run that the stages of a plain `dvc repro` share.

    `home` has the store, `root` the code, params.yaml and dvc.lock; they differ only under `dvc exp run --temp`.
    With `start=False`, nothing is recorded unless the stage calls `start` or fails; with `system_metrics=False`, nothing about the
    machine.
    """
    root = root or home

    def open() -> None:
        parent_id = _given_parent()
        state = provenance.capture(root)
        kind = name.partition("/")[0]
        tags = {"kind": "stage", "stage": kind, "mlflow.source.name": f"stages/{kind}.py"} | _state_tags(state)["values"]
        if family:
            tags["family"] = family
        _begin(run, home, name, tags, {"id": parent_id} if parent_id else _shared_parent(home, state), params)
        run._fills_parent = not parent_id
        if not parent_id:
            run._send_state(state, on="parent")

    run = StageRun(open, name, root if system_metrics else None)
    return _recorded(run, home, start)


def pipeline_run(
    home: Path, name: str | None = None, root: Path | None = None, tags: dict[str, Any] | None = None, first: Sequence[str] = ()
) -> AbstractContextManager[PipelineRun]:
    """Record one invocation of the pipeline; pass `environment` to the stages' processes, and call `mirror` at the end.

    The default name consists of families, corpus and commit: `ddpm_mel · my-sounds · 7f3a2c`. The run is below the one that the
    environment names, if any: that of a sweep. The parameters `first` are listed before the others.
    """
    from soundmill import params

    root = root or home

    def open() -> None:
        parent_id = _given_parent()
        document, state = params.read_yaml(root / "params.yaml"), provenance.capture(root)
        families, corpus = ", ".join(document.get("families") or ["pipeline"]), corpus_name(document)
        what = {"family": families, "corpus": corpus, "mlflow.source.name": "flows/pipeline.py"}
        title = name or f"{families} · {corpus} · {_commit(state)}"
        listed = _texts(document)
        listed = {key: listed[key] for key in first if key in listed} | listed
        _begin(run, home, title, {"kind": "pipeline", **what, **(tags or {})}, parent_id and {"id": parent_id}, listed)
        run._send_state(state)

    run = PipelineRun(open)
    run.home = home
    return _recorded(run, home)


def result_run(
    home: Path, name: str, kind: str, tags: dict[str, Any], parent: str | None = None
) -> AbstractContextManager[StageRun]:
    """Record a result that is not from a stage, such as that of a listening test; optionally below the run of the id `parent`."""

    def open() -> None:
        source = {"kind": kind, "mlflow.source.name": f"soundmill {kind}"}
        _begin(run, home, name, source | tags, parent and {"id": parent}, {})

    run = StageRun(open)
    return _recorded(run, home)


def _begin(run: StageRun, home: Path, name: str, tags: dict[str, str], parent: Any, params: dict[str, Any]) -> None:
    opening = {"name": name, "tags": tags, "parent": parent, "params": _texts(params), "experiment": stores.experiment()}
    run._journal = journal.Writer(stores.store(home).journals, opening)
    try:
        stores.remember(home)
        journal.start(home)
    except OSError as error:  # a thread tries to start it again
        stores.say(f"tracking: {error}: the run is recorded, and sent to MLflow later")
    closed = run._journal.closed

    def restart_uploader() -> None:
        while not closed.wait(RESTART_SECONDS):  # if it has died, so that MLflow shows the active run live
            with suppress(OSError):
                journal.start(home)

    threading.Thread(target=restart_uploader, daemon=True).start()


def _given_parent() -> str | None:
    parent_id = os.environ.get(stores.PARENT)
    if parent_id and not re.fullmatch(r"[0-9a-f-]{1,64}", parent_id):
        stores.say(f"tracking: {stores.PARENT}={parent_id}: not the id of a journal; this run has no parent")
        return None
    return parent_id


@contextmanager
def _recorded(run: StageRun, home: Path, start: bool = True) -> Iterator[Any]:
    """End the run with the outcome of the block; a failure is always recorded."""
    try:
        if start:
            run.start()
        yield run
    except BaseException as error:
        if isinstance(error, Exception):
            run.start()
        stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
        run._outcome = ("KILLED", "interrupted") if stopped else ("FAILED", str(error) or type(error).__name__)
        raise
    finally:
        if run._journal:
            status, reason = run._outcome
            run._send({"op": "end", "status": status, "reason": reason[: stores.MAX_TAG], "time": journal.now()})
            run._journal.close()
            with suppress(OSError):
                journal.start(home)  # in case it was killed


def _shared_parent(home: Path, state: provenance.State) -> dict[str, Any]:
    """The run that stages of this checkout with the same code and parameters share if no flow created one."""
    from ruamel.yaml import YAMLError

    from soundmill import params

    experiment = os.environ.get("DVC_EXP_NAME")
    name = f"dvc exp {experiment}" if experiment else f"dvc repro {_commit(state)}"
    identity = hashing.digest(state.identity, experiment or "", socket.gethostname(), str(home.resolve()))
    kind = "experiment" if experiment else "repro"
    tags = {"kind": kind, "mlflow.source.name": "dvc repro", **_state_tags(state)["values"]}
    document = None
    with suppress(YAMLError):
        document = params.parse_yaml(state.params)
    listed = _texts(document) if isinstance(document, dict) else {}
    return {"id": identity, "shared": {"name": name, "tags": tags, "params": listed}}


def _texts(params: dict[str, Any]) -> dict[str, str]:
    return {key: str(value)[: stores.MAX_PARAM] for key, value in stores.flatten(params).items()}


def corpus_name(document: dict[str, Any]) -> str:
    """The name of the corpus in params.yaml: its directory, its parts, or the embedded corpora."""
    corpus = document.get("corpus") or {}
    names = [Path(corpus["path"]).name] if corpus.get("path") else list(corpus.get("parts") or corpus.get("embedded") or [])
    return "+".join(names) or "no corpus"


def _commit(state: provenance.State) -> str:
    return f"{state.sha[:7]}{'+' if state.dirty else ''}" if state.sha else "outside git"


def _state_tags(state: provenance.State) -> dict[str, Any]:
    lock = hashing.bytes_digest(state.lock) if state.lock else "none"
    values = {"git_sha": state.sha or "none", "git_dirty": str(state.dirty).lower(), "dvc_lock_digest": lock}
    source = {"mlflow.source.git.commit": state.sha} if state.sha else {}
    return {"op": "tags", "values": values | {"commit": _commit(state)} | source}


# Curves of this machine's use, named as by MLflow's own monitor, which needs MLflow imported in the training's process.
SYSTEM_SECONDS = 10.0  # between points, as in MLflow


@contextmanager
def watched(log: Callable[[dict[str, float], int], None], place: Path) -> Iterator[None]:
    """While the block runs, log a point every SYSTEM_SECONDS, or one if it takes less; the disk is that of `place`. Never fails."""
    ended = threading.Event()

    def watch() -> None:
        try:
            import psutil

            gpus, network = _gpus(), psutil.net_io_counters()
            psutil.cpu_percent()  # each call measures since the one before
            step, last = 0, False
            while not last:
                last = ended.wait(SYSTEM_SECONDS)
                if not last or step == 0:
                    log(_of_machine(place, network) | _of_gpus(gpus), step)
                step += 1
        except Exception as error:  # whatever the system refuses: the training goes on
            stores.say(f"tracking: no more system metrics: {reason(error)}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _of_machine(place: Path, network_before: Any) -> dict[str, float]:
    import psutil

    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(place)), psutil.net_io_counters()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": 100 * memory.used / memory.total,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_usage_megabytes": disk.used / 1e6,
        "system/disk_available_megabytes": disk.free / 1e6,
    }
    if network and network_before:  # a container may have none
        values["system/network_receive_megabytes"] = (network.bytes_recv - network_before.bytes_recv) / 1e6
        values["system/network_transmit_megabytes"] = (network.bytes_sent - network_before.bytes_sent) / 1e6
    return values


def _gpus() -> list[Any]:
    """NVML's handles of all NVIDIA GPUs of the machine; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _of_gpus(gpus: list[Any]) -> dict[str, float]:
    import pynvml

    values: dict[str, float] = {}
    for index, gpu in enumerate(gpus):
        name = f"system/gpu_{index}"
        with suppress(pynvml.NVMLError):  # each may be unsupported, as the load is on a partitioned GPU
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            values[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
            values[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(pynvml.NVMLError):
            values[f"{name}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        with suppress(pynvml.NVMLError):
            power = pynvml.nvmlDeviceGetPowerUsage(gpu)
            values[f"{name}_power_usage_watts"] = power / 1000
            values[f"{name}_power_usage_percentage"] = 100 * power / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return values
