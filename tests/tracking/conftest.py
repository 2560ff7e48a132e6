"""A project with a store whose tables are made once for all tests, and the uploader called in the test's own process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from soundmill import tracking
from soundmill.tracking import journal
from tests.checkouts import HARDEST_NAME


@pytest.fixture
def home(tmp_path: Path, mlflow_tables: Path, tracked: None) -> Path:
    """A project with a store."""
    path = tmp_path / HARDEST_NAME
    path.mkdir()
    (path / "params.yaml").write_text("train: {rate: 1e-4, sizes: [1, 2]}\n")
    (path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(mlflow_tables, path / "mlflow.db")
    return path


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Bring all finished runs of a project to MLflow, here; no process is started for it."""
    monkeypatch.setattr(journal, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(journal, "start", lambda home: None)
    return lambda home: journal.upload(tracking.store(home), idle_seconds=0, try_seconds=0)
