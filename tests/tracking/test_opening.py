"""A store that is not as it was left: moved, copied, of another version, its experiment deleted."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest

from soundmill import tracking
from soundmill.errors import UserError
from soundmill.tracking import history
from tests.commands.running import soundmill
from tests.tracking.reading import client, runs, text
from tests.tracking.test_registered import register

Bring = Callable[[Path], None]


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_files_of_runs_are_found_after_the_project_moved_or_was_copied(home, bring, tmp_path, monkeypatch, how):
    register(home, bring)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow has set in this process
    run_id = runs(home)["train/tiny"].info.run_id
    how(home, there := tmp_path / "other place%41?")
    if how is shutil.copytree:  # what the copy shows is its own
        shutil.rmtree(home / "mlartifacts")
    assert tracking.read_state(there, run_id).files["params.yaml"] == (there / "params.yaml").read_bytes()
    (model,) = tracking.registered_models(there)
    assert model.directory
    assert model.directory.is_relative_to(there)
    assert text(there, run_id, "listen/another.wav") == ""
    with tracking.stage_run(there, "later", {}) as run:
        run.log_file(there / "params.yaml")
    bring(there)
    later = runs(there)["later"].info
    assert (later.experiment_id, text(there, later.run_id, "params.yaml")) == (
        runs(there)["train/tiny"].info.experiment_id,
        (there / "params.yaml").read_text(),
    )


def test_a_database_alone_that_was_copied_leaves_the_files_where_they_are(home, bring, tmp_path, monkeypatch):
    register(home, bring)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (copy := tmp_path / "copy").mkdir()
    shutil.copy(home / "mlflow.db", copy)
    (copy / "mlartifacts").mkdir()
    assert tracking.read_state(copy, runs(home)["train/tiny"].info.run_id).files


def test_a_deleted_experiment_is_restored_in_one_line(home: Path, bring: Bring, capfd: pytest.CaptureFixture) -> None:
    (home / "dvc.yaml").write_text("stages: {}\n")
    with tracking.stage_run(home, "before", {}):
        pass
    bring(home)
    mlflow = client(home)
    mlflow.delete_experiment(mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    with tracking.stage_run(home, "after", {}):
        pass
    bring(home)  # the uploader restores it
    assert {"before", "after"} <= set(runs(home))
    mlflow.delete_experiment(mlflow.get_experiment_by_name(tracking.EXPERIMENT).experiment_id)
    capfd.readouterr()
    assert tracking.scores_page(home, 5000).startswith("http://127.0.0.1:5000/#/experiments/")
    assert capfd.readouterr().err.count("\n") == 1
    assert "before" in {run.name for run in history.last_scores(home).values()} | set(runs(home))


def test_a_database_of_a_newer_mlflow_is_named(home: Path, bring: Bring) -> None:
    (home / "dvc.yaml").write_text("stages: {}\n")
    with tracking.stage_run(home, "before", {}):
        pass
    bring(home)
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.execute("UPDATE experiment_tags SET value = '99.1.0' WHERE key = 'soundmill.mlflow'")
    with pytest.raises(UserError, match=rf"mlflow.db: written by MLflow 99.1.0, and {metadata.version('mlflow')} is"):
        tracking.scores_page(home, 5000)
    (home / "mlflow.db").write_text("no database")
    with pytest.raises(UserError, match="not a database of MLflow"):
        tracking.scores_page(home, 5000)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("sqlite:////nonexistent/dir/x.db", "/nonexistent/dir does not exist"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns is a directory of files"),
        ("mlruns", "mlruns is a directory of files"),
    ],
)
def test_a_store_that_cannot_be_is_not_said_to_have_all_runs(home, monkeypatch, uri, why):
    (home / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.status(home)[0] is False
    done = soundmill("sync", "--project", str(home), cwd=home)
    assert (done.returncode, why in done.stderr) == (1, True), done.stderr
