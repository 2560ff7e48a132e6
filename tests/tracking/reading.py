"""What MLflow has of a project's runs."""

import tempfile
from pathlib import Path
from typing import Any

from soundmill import tracking


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    uri = tracking.store(home).uri
    return MlflowClient(uri, uri)


def runs(home: Path) -> dict[str, Any]:
    """By name, the newest of a name."""
    mlflow = client(home)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    return {run.info.run_name: run for run in reversed(found)}


def files(home: Path, run_id: str, folder: str = "") -> list[str]:
    """Paths of a run's artifacts, in all folders."""
    entries = client(home).list_artifacts(run_id, folder)
    below = [name for entry in entries if entry.is_dir for name in files(home, run_id, entry.path)]
    return sorted([entry.path for entry in entries if not entry.is_dir] + below)


def text(home: Path, run_id: str, path: str) -> str:
    """Content of one of a run's artifacts."""
    with tempfile.TemporaryDirectory() as place:
        return Path(client(home).download_artifacts(run_id, path, place)).read_text(encoding="utf-8")
