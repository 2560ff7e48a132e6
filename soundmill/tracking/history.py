"""Reading states, scores and registered models of earlier runs, and whether this machine may record any."""

import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundmill.errors import UserError, reason
from soundmill.tracking import mlflow_runs
from soundmill.tracking.journal import sync
from soundmill.tracking.runs import registered_as
from soundmill.tracking.stores import MAX_TAG, STATE_FOLDER, SWITCH, Store, experiment, is_off, recorded_in, store

SYNC_SECONDS = 60.0
SCORES = re.compile(r"(fad|mmd|kl|label_accuracy|mos|preference)_[a-z0-9]+")  # without `_low` and `_high`
MOST_RUNS = 1000  # searched for scores
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD must be of a user who may write there"


def use_last_store(home: Path) -> str:
    """Make this process use the store that last recorded runs of the project, unless MLFLOW_TRACKING_URI names one.

    Returns a line about it for the user; empty if it is the project's own file, contains runs, and is the only store so far.
    """
    recorded = recorded_in(home)
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    if recorded and not configured:
        os.environ["MLFLOW_TRACKING_URI"] = recorded[-1]
    uri = store(home).shown
    others = [other for name in recorded if (other := store(home, name).shown) != uri]
    sync(home, SYNC_SECONDS)
    try:
        client, _ = open_client(home)
        problem = "" if any(_runs(client, page_size=1)) else f"{uri} has no runs; set MLFLOW_TRACKING_URI to use another store"
    except UserError as error:
        problem = str(error)
    if not recorded:
        return problem and f"MLflow: {problem}"
    why = "which MLFLOW_TRACKING_URI names" if configured else "where runs were last recorded"
    lines = [f"MLflow: searching {uri}, {why}", *([problem] if problem else [])]
    lines += [f"not {other}, where runs were also recorded (MLFLOW_TRACKING_URI={other})" for other in others]
    return "; ".join(lines)


@dataclass(frozen=True)
class RecordedState:
    """The state of the project that a run recorded; see `provenance.State`."""

    run_id: str
    name: str
    sha: str
    files: dict[str, bytes] = field(repr=False)  # params.yaml, dvc.lock, uncommitted.diff, not_kept.txt


def read_state(home: Path, run_id: str) -> RecordedState:
    """The state that a run used; for a stage's run, the state of its pipeline. `run_id` may be abbreviated."""
    sync(home, SYNC_SECONDS)
    client, where = open_client(home)
    run = _find_run(client, where, run_id)
    parent = run.data.tags.get("mlflow.parentRunId") if run.data.tags.get("kind") == "stage" else None
    run = client.get_run(parent) if parent else run
    files = {}
    with tempfile.TemporaryDirectory(prefix="soundmill-state-") as place:  # by default, MLflow leaves a directory for each file
        for entry in client.list_artifacts(run.info.run_id, STATE_FOLDER):
            files[Path(entry.path).name] = Path(client.download_artifacts(run.info.run_id, entry.path, place)).read_bytes()
    if not files:
        raise UserError(f"run {run.info.run_id} has no recorded state (its artifacts are deleted, or Soundmill did not record it)")
    return RecordedState(run.info.run_id, run.info.run_name, run.data.tags.get("git_sha", "none"), files)


def files_of_runs(home: Path) -> Iterator[tuple[str, Path]]:
    """(name and id of the run, path) of all files of runs in the store, also of deleted ones; UserError if it does not answer."""
    client, _ = open_client(home)
    for run in _runs(client, with_deleted=True):
        folders: list[str | None] = [None]
        while folders:
            for entry in client.list_artifacts(run.info.run_id, folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    yield f"{run.info.run_name} ({run.info.run_id})", Path(entry.path)


def _runs(client: Any, page_size: int = 1000, with_deleted: bool = False) -> Iterator[Any]:
    """All runs, newest first."""
    from mlflow.entities import ViewType

    view, token = ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY, None
    experiments = [found.experiment_id for found in client.search_experiments(view)]
    while True:
        page = client.search_runs(experiments, run_view_type=view, max_results=page_size, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _find_run(client: Any, where: Store, run_id: str) -> Any:
    runs = list(_runs(client))
    matching = [run for run in runs if run.info.run_id == run_id] or [run for run in runs if run.info.run_id.startswith(run_id)]
    if run_id and len(matching) == 1:
        return matching[0]
    top = [run for run in runs if "mlflow.parentRunId" not in run.data.tags][:5]
    listed = "".join(f"\n  {run.info.run_id}  {run.info.run_name}" for run in top) or " none yet"
    raise UserError(f"{'no run' if not matching else 'several runs'} {run_id!r} in {where.shown}; the newest:{listed}")


@dataclass(frozen=True)
class ScoredRun:
    """A run with scores, and its parameters (for a stage's run, those of its pipeline)."""

    name: str
    scores: dict[str, float]
    params: dict[str, str] = field(repr=False)


def last_scores(home: Path) -> dict[str, ScoredRun]:
    """The newest scored run of each experiment, by its `experiment.title` in params.yaml; UserError if the store is silent."""
    client, _ = open_client(home)
    existing = client.get_experiment_by_name(experiment())
    runs = client.search_runs([existing.experiment_id], max_results=MOST_RUNS) if existing else []  # newest first
    by_id = {run.info.run_id: run for run in runs}
    found: dict[str, ScoredRun] = {}
    for run in runs:
        pipeline = by_id.get(run.data.tags.get("mlflow.parentRunId"), run) if run.data.tags.get("kind") == "stage" else run
        scores = {name: value for name, value in run.data.metrics.items() if SCORES.fullmatch(name)}
        title = pipeline.data.params.get("experiment.title")  # `dvc exp run`, which composes without us, records no name
        if title and scores:
            found.setdefault(title, ScoredRun(pipeline.info.run_name, scores, pipeline.data.params))
    return found


def open_client(home: Path) -> tuple[Any, Store]:
    """A client of the store; UserError if it does not exist or answer."""
    where = store(home)
    if not (where.database and where.database.is_file()) and (why := where.fault):  # a file may be there only to be read
        raise UserError(f"{why}, {mlflow_runs.ANOTHER_STORE}")
    if where.database and not where.database.exists():
        remedy = f"run `make demo` or `dvc repro`, {mlflow_runs.ANOTHER_STORE}"
        raise UserError(f"{where.shown}: no runs are recorded here yet; {remedy}")
    try:
        client = mlflow_runs.open_client(where)
        mlflow_runs.find_experiment(client, experiment())
    except UserError:
        raise
    except Exception as error:  # of MLflow, its server or the driver of a database
        remedy = LOGIN if where.is_server else "correct MLFLOW_TRACKING_URI, or install what it needs"
        raise UserError(f"{where.shown} refuses to be read: {reason(error)}; {remedy}") from None
    return client, where


def status(home: Path) -> tuple[bool, str]:
    """Whether runs can be recorded and read, and a description of the store; without importing MLflow for a file or a server."""
    where = store(home)
    if is_off():
        return False, f"off ({SWITCH}={os.environ[SWITCH]}); unset it to record runs"
    if why := where.fault:
        return False, why
    try:
        if where.database:
            mlflow_runs.prepare_database(where)
        elif not where.is_server:
            open_client(home)
    except UserError as error:
        return False, str(error)
    new = " (created by the first run)" if where.database and not where.database.exists() else ""
    return True, where.shown + (" answers" if where.is_server else new)


def check_writing(home: Path) -> str:
    """Write, read and delete a tag and a small file in the experiment of the project's runs; returns where files go.

    The experiment is created if missing, as by the first run. UserError says what failed, and the remedy.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client, where = open_client(home)
    name, content = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(1000)
    try:
        experiment_id = mlflow_runs.Runs(where).experiment(experiment())
        client.set_experiment_tag(experiment_id, name, "may write")
        client.delete_experiment_tag(experiment_id, name)
    except Exception as error:  # of MLflow, its server or the network
        raise UserError(f"runs cannot be recorded in {where.shown}: {reason(error)}; {LOGIN}") from None
    place = client.get_experiment(experiment_id).artifact_location
    try:
        files = get_artifact_repository(place, tracking_uri=where.uri)
        with tempfile.TemporaryDirectory(prefix="soundmill-doctor-") as folder:
            (sent := Path(folder) / name).write_bytes(content)
            files.log_artifact(str(sent))
            received = Path(files.download_artifacts(name, tempfile.mkdtemp(dir=folder))).read_bytes()
        files.delete_artifacts(name)
    except Exception as error:
        remedy = "check the server's bucket, its free space, and the server's credentials for it (docs/team.md)"
        raise UserError(f"files of runs cannot be stored in {place}: {reason(error)}; {remedy}") from None
    if received != content:
        raise UserError(f"a file stored in {place} came back with other bytes: check the server's bucket (docs/team.md)")
    return place


MODEL_FOLDER = Path("artifacts/model")  # the checkpoint within the files of a logged model
FORGOTTEN = "forgotten"  # tag of a version trained on forgotten sounds


@dataclass(frozen=True)
class RegisteredModel:
    """One version of a registered model, with facts of its run."""

    name: str
    version: str
    digest: str  # hashing.model_digest of the checkpoint
    directory: Path | None  # the checkpoint; None if the files are on a server, or deleted
    aliases: tuple[str, ...]
    tags: dict[str, str]  # including scores
    run_id: str
    run_name: str  # "" if the run is deleted
    pipeline: str  # the parent run; "" if none
    commit: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def registered_models(home: Path) -> list[RegisteredModel]:
    """All versions of the project's registered models, newest first; UserError if the store does not answer."""
    sync(home, SYNC_SECONDS)
    client, _ = open_client(home)
    from mlflow.exceptions import MlflowException  # takes seconds, so not where no runs are recorded

    versions = []
    for model in client.search_registered_models(f"name LIKE '{registered_as('%')}'"):
        for version in client.search_model_versions(f"name = '{model.name}'"):
            run: dict[str, str] = {}
            with suppress(MlflowException):  # the run may be deleted
                if version.run_id:
                    recorded = client.get_run(version.run_id)
                    run = recorded.data.tags | {"name": recorded.info.run_name}
            versions.append(
                RegisteredModel(
                    model.name,
                    str(version.version),
                    version.tags.get("digest", ""),
                    _directory(client, version),
                    tuple(sorted(alias for alias, number in model.aliases.items() if str(number) == str(version.version))),
                    version.tags,
                    version.run_id or "",
                    run.get("name", ""),
                    run.get("mlflow.parentRunId", ""),
                    run.get("commit", version.tags.get("git_sha", "")),
                )
            )
    return sorted(versions, key=lambda model: (model.name, -int(model.version)))


def _directory(client: Any, version: Any) -> Path | None:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        where = client.get_model_version_download_uri(version.name, version.version)
        directory = mlflow_runs.local_path(where) / MODEL_FOLDER
        if "://" not in where.removeprefix("file://") and directory.is_dir():
            return directory
    return None


def delete_versions(home: Path, models: list[RegisteredModel]) -> None:
    """Delete versions of registered models, but not their files."""
    if not models:
        return
    client, _ = open_client(home)
    for model in models:
        client.delete_model_version(model.name, model.version)


def mark_forgotten(home: Path, models: list[RegisteredModel], add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    """Add lines to the tag FORGOTTEN of versions, each about a forgotten sound that they were trained on, or remove lines."""
    if not models:
        return
    client, _ = open_client(home)
    for model in models:
        current = model.tags.get(FORGOTTEN, "").splitlines()
        if lines := [line for line in dict.fromkeys([*current, *add]) if line not in remove]:
            client.set_model_version_tag(model.name, model.version, FORGOTTEN, "\n".join(lines)[:MAX_TAG])
        elif current:
            client.delete_model_version_tag(model.name, model.version, FORGOTTEN)


def serve(load: Any, predict: Any) -> None:
    """For a models-from-code script: `load(directory)` returns a model, `predict(model, rows)` an array. Nothing is unpickled."""
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Served(PythonModel):
        def load_context(self, context: Any) -> None:
            self.model = load(Path(context.artifacts["model"]))

        def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
            return predict(self.model, model_input)

    mlflow.models.set_model(Served())
