"""Going back to a recorded run, and a workspace for a person's own data, on a tiny project."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import checkout
from soundmill import params, tracking
from soundmill.errors import UserError
from tests.flows.tiny import dvc_command, git


def run_id_of(project: Path, name: str) -> str:
    from mlflow import MlflowClient

    uri = tracking.store(project).uri
    return next(run.info.run_id for run in MlflowClient(uri, uri).search_runs(["1"]) if run.info.run_name.startswith(name))


@pytest.mark.slow
def test_a_plain_repro_can_be_brought_back(tiny: Path, tmp_path: Path, set_param: Callable[..., None]) -> None:
    set_param("first", number=7)
    (tiny / "first.py").write_text((tiny / "first.py").read_text() + "# an uncommitted change\n")
    (tiny / "notes.txt").write_text("a new file\n")
    assert dvc_command(tiny, "repro").returncode == 0
    run_id = run_id_of(tiny, "dvc repro")
    stage_id = run_id_of(tiny, "evaluate/tiny")

    git(tiny, "checkout", "--", "first.py")
    (tiny / "notes.txt").unlink()
    set_param("first", number=8)
    with_eight = dvc_command(tiny, "repro", SOUNDMILL_TRACKING="off")
    assert with_eight.returncode == 0

    back = tmp_path / "back"
    assert checkout.reproduce(tiny, run_id, back) == []
    assert (back / "data/generated/tiny/a.wav").read_text() == "2 7 "
    assert (back / "first.py").read_text().endswith("# an uncommitted change\n")
    assert (back / "notes.txt").read_text() == "a new file\n"
    assert params.read_yaml(back / "params.yaml")["first"]["number"] == 7
    assert "up to date" in dvc_command(back, "status").stdout
    assert (tiny / "data/generated/tiny/a.wav").read_text() == "2 8 "  # the project itself is as it was

    with pytest.raises(UserError, match="is not empty"):
        checkout.reproduce(tiny, run_id, back)
    shutil.rmtree(tiny / ".dvc" / "cache")
    document = params.read_yaml(tiny / "params.yaml")
    missing = checkout.reproduce(tiny, stage_id, tmp_path / "again")  # a stage's run stands for its pipeline's
    assert [line for line in missing if line.startswith("stage first: its results are not in the cache")]
    assert document["first"]["number"] == 8


@pytest.mark.slow(minutes=1)
def test_a_workspace_has_its_own_outputs_and_follows_the_code(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tiny / "first.py").write_text((tiny / "first.py").read_text() + "# an uncommitted change\n")
    document = params.read_yaml(tiny / "params.yaml")
    document["first"]["number"] = 5
    root = checkout.workspace(tiny, "my-sounds", document)
    assert root == tiny / "workspaces" / "my-sounds"
    assert (root / "first.py").read_text().endswith("# an uncommitted change\n")
    assert dvc_command(root, "repro").returncode == 0
    assert (root / "data/generated/tiny/a.wav").read_text() == "2 5 "
    assert not (tiny / "data/generated").exists()
    assert not (tiny / "dvc.lock").exists()
    assert run_id_of(tiny, "first")  # recorded in the project's store
    assert not (root / "mlflow.db").exists()

    git(tiny, "checkout", "--", "first.py")
    (tiny / "extra.py").write_text("")
    document["evaluate"]["number"] = 6
    assert checkout.workspace(tiny, "my-sounds", document) == root
    assert "an uncommitted change" not in (root / "first.py").read_text()
    assert (root / "extra.py").exists()
    assert (root / "data/generated/tiny/a.wav").read_text() == "2 5 "  # outputs stay until something runs
    (tiny / "extra.py").unlink()
    checkout.workspace(tiny, "my-sounds", document)
    assert not (root / "extra.py").exists()
    assert checkout.run_pipeline(root) == 0
    assert "workspaces/my-sounds/data/generated/tiny" in capfd.readouterr().out
    assert (root / "data/generated/tiny/a.wav").read_text() == "6 5 "
    assert "up to date" not in dvc_command(tiny, "status").stdout  # the project has still run nothing


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b"])
def test_a_workspace_name_stays_inside(tiny: Path, name: str) -> None:
    with pytest.raises(UserError, match="workspace name"):
        checkout.workspace(tiny, name, {})


def test_what_lies_outside_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path / "none"))
    home, back = tmp_path / "home", tmp_path / "deep" / "back"
    home.mkdir()
    back.mkdir(parents=True)
    (tmp_path / "sounds").mkdir()
    (back / "params.yaml").write_text("corpus: {path: ../sounds}\nevaluate: {embedders: [tagger, yamnet]}\n")
    (back / "constraints.txt").write_text("numpy==1\n")
    corpus, weights, packages = checkout._outside(home, back)
    assert "corpus.path ../sounds: not there" in corpus
    assert "give its absolute path" in corpus
    assert "yamnet.tflite" in weights
    assert "constraints.txt" in packages
