"""A project with a store whose tables are made once for all tests, and the uploader called in the test's own process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from soundmill import tracking
from soundmill.tracking import uploader


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make its tables takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def home(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a space and an umlaut in its path."""
    for name in ("MLFLOW_TRACKING_URI", tracking.SWITCH, tracking.PARENT, "MLFLOW_RUN_ID", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "mein Pröjekt"
    path.mkdir()
    (path / "params.yaml").write_text("train: {rate: 1e-4, sizes: [1, 2]}\n")
    shutil.copy(tables, path / "mlflow.db")
    return path


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Bring all finished runs of a project to MLflow, here; no process is started for it."""
    monkeypatch.setattr(uploader, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(uploader, "start", lambda home: None)
    return lambda home: uploader.upload(tracking.store(home), idle_seconds=0, try_seconds=0)
