"""What `soundmill doctor` says about disks and about servers; tests/tracking/test_team.py asks real ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from soundmill.commands import doctor
from tests.mlflow_server import free_port


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / ".dvc" / "cache"  # on another disk than the project
    cache.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2e9 if place == cache else 50e9))
    assert (doctor._disk(tmp_path).state, doctor._disk(tmp_path).detail) == ("lacking", "2.0 GB free")
    assert doctor._temporary(tmp_path).state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0.5e9))
    temporary = doctor._temporary(tmp_path)
    assert (temporary.state, temporary.remedy) == ("optional", "free some space, or set TMPDIR to another disk")


def test_a_server_that_does_not_answer_is_no_traceback_and_no_password() -> None:
    (finding,) = doctor._compared("MLflow", f"http://team:secret@127.0.0.1:{free_port()}/version", ("", ""), "…")
    assert (finding.name, finding.state) == ("MLflow", "optional")
    assert "secret" not in finding.detail
