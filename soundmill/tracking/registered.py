"""Versions of registered models: their files, their runs, and tags; and serving them from code."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundmill.tracking.history import SYNC_SECONDS, open_client
from soundmill.tracking.opening import local_path
from soundmill.tracking.runs import registered_as
from soundmill.tracking.stores import MAX_TAG
from soundmill.tracking.uploader import sync

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


def registered_models(home: Path) -> list[RegisteredModel]:
    """All versions of the project's registered models, newest first; UserError if the store does not answer."""
    from mlflow.exceptions import MlflowException

    sync(home, SYNC_SECONDS)
    client, _ = open_client(home)
    versions = []
    for model in client.search_registered_models(f"name LIKE '{registered_as('%')}'"):
        aliases: dict[str, list[str]] = {}
        for alias, version in model.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
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
                    tuple(sorted(aliases.get(str(version.version), []))),
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

    try:
        where = client.get_model_version_download_uri(version.name, version.version)
    except MlflowException:
        return None
    if "://" in where.removeprefix("file://"):
        return None
    directory = local_path(where) / MODEL_FOLDER
    return directory if directory.is_dir() else None


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
