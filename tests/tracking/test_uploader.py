"""Journals reach MLflow once and whole: with the server or the uploader killed, and whatever stages do meanwhile."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundmill import hashing, tracking
from soundmill.tracking import journal
from tests.imports import ROOT
from tests.mlflow_server import Server
from tests.processes import marked, new_mark, wait_for
from tests.tracking.reading import client, files, runs, text

Bring = Callable[[Path], None]
STEPS = 400


def record_training(home: Path, folder: Path, name: str = "train/tiny", model: bool = False) -> Iterator[str]:
    """A training with curves, a picture and a sound every so often, and a model; halts at every picture."""
    folder.mkdir(exist_ok=True)
    with tracking.stage_run(home, name, {"rate": 1}, family="tiny") as run:
        for step in range(STEPS):
            run.log_curve({"loss": 1 / (step + 1), "rate": step}, step)
            if step % 100 == 0:
                (folder / f"{step}.png").write_bytes(b"picture %d" % step)
                (folder / f"{step}.wav").write_bytes(b"sound %d" % step)
                run.log_file(folder / f"{step}.png", "figures/samples")
                run.log_file(folder / f"{step}.wav", "sounds")
                yield f"step {step}"
        run.log_dataset("clips", "abc", 3, "data/clips", "training", {"clip_id": "string"})
        run.log_metrics_tree({"score": 0.5})
        if model:
            (folder / "model").mkdir(exist_ok=True)
            (folder / "model" / "config.json").write_text('{"family": "tiny"}')
            (folder / "model" / "model.safetensors").write_bytes(b"weights")
            run.log_model(folder / "model", "tiny", {"label": ["dog"], "seed": [1]}, np.zeros((1, 80), np.float32))


def check_training(home: Path, name: str = "train/tiny") -> Any:
    """Everything of it is there once; returns its run."""
    mlflow = client(home)
    named = [run for run in mlflow.search_runs(["1"]) if run.info.run_name == name]
    assert len(named) == 1
    run, run_id = named[0], named[0].info.run_id
    assert (run.info.status, run.data.tags.get("incomplete")) == ("FINISHED", None)
    for key in ("loss", "rate"):
        assert sorted(point.step for point in mlflow.get_metric_history(run_id, key)) == list(range(STEPS))
    pictures = [f"figures/samples/{step}.png" for step in range(0, STEPS, 100)]
    sounds = [f"sounds/{step}.wav" for step in range(0, STEPS, 100)]
    assert files(home, run_id) == sorted([*pictures, "metrics.json", *sounds])
    for path in (*pictures, *sounds):
        kind = "picture" if path.endswith("png") else "sound"
        assert text(home, run_id, path) == f"{kind} {Path(path).stem}"
    assert len(run.inputs.dataset_inputs) == 1
    assert not journal.folders(tracking.store(home).journals)
    return run


def test_what_was_sent_is_sent_again_without_harm(home, bring, tmp_path, monkeypatch):
    """Killed after each single batch, before it could note that it was sent."""

    class Killed(BaseException):
        pass

    for _ in record_training(home, tmp_path / "files", model=True):
        pass
    sent: set[tuple[str, Any]] = set()
    advance = journal.Reader.advance

    def killed_once(reader: journal.Reader, **values: Any) -> None:
        if (moment := (reader.id, json.dumps(values))) not in sent:
            sent.add(moment)
            raise Killed
        advance(reader, **values)

    monkeypatch.setattr(journal.Reader, "advance", killed_once)
    kills = 0
    while journal.folders(tracking.store(home).journals):
        try:
            bring(home)
        except Killed:
            kills += 1
    monkeypatch.setattr(journal.Reader, "advance", advance)
    assert kills > 15
    check_training(home)
    mlflow = client(home)
    (version,) = mlflow.search_model_versions("name = 'soundmill-tiny'")
    assert version.tags["family"] == "tiny"
    assert mlflow.get_model_version_by_alias("soundmill-tiny", "newest").version == version.version
    assert len(mlflow.search_logged_models(["1"])) == 1

    mlflow.create_model_version("soundmill-tiny", version.source, tags={"digest": "of other weights", "fad_vggish": "2.5"})
    for fad, best in ((3.0, "2"), (2.0, "1")):
        with tracking.pipeline_run(home, "scored") as run:
            run.log_model_scores(hashing.model_digest(tmp_path / "files" / "model"), "tiny", {"fad_vggish": fad, "kl_tagger": 0.5})
        bring(home)
        assert mlflow.get_model_version("soundmill-tiny", "1").tags["fad_vggish"] == f"{fad:g}"
        assert str(mlflow.get_model_version_by_alias("soundmill-tiny", "best").version) == best
    with tracking.result_run(home, "a listening test", "listening-test", {}) as run:
        run.log_model_scores(hashing.model_digest(tmp_path / "files" / "model"), "tiny", {"mos_quality": 4.25})
    bring(home)
    tags = mlflow.get_model_version("soundmill-tiny", "1").tags
    assert (tags["mos_quality"], tags["fad_vggish"]) == ("4.25", "2")  # ears beside the other scores, which still choose the best
    assert str(mlflow.get_model_version_by_alias("soundmill-tiny", "best").version) == "1"
    assert mlflow.get_experiment("1").tags["mlflow.experiment.primaryMetric.name"] == "fad_vggish"


def upload_here(home: str, temporary: str) -> None:
    tempfile.tempdir = temporary  # MLflow builds a model in a folder there, which remains when the process is killed
    journal.POLL_SECONDS = 0.01
    journal.upload(tracking.store(Path(home)), idle_seconds=0, try_seconds=0)


@pytest.mark.slow
def test_an_uploader_killed_ten_times_loses_and_doubles_nothing(home: Path, bring: Bring, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soundmill.tracking.journal", "soundmill.tracking.mlflow_runs", "mlflow.pyfunc"])
    chance = random.Random(0)
    with tracking.pipeline_run(home, "pipeline") as pipeline:
        os.environ.update(pipeline.environment)  # `home` puts it back
        for name in ("train/tiny", "other"):
            for _ in record_training(home, tmp_path / "files", name, model=name == "train/tiny"):
                pass
        del os.environ[tracking.PARENT]
    for _ in range(10):
        process = context.Process(target=upload_here, args=(str(home), str(tmp_path)))
        process.start()
        process.join(chance.uniform(0.2, 1.2))
        process.kill()
        process.join()
    bring(home)
    for name in ("train/tiny", "other"):
        check_training(home, name)
    assert runs(home)["pipeline"].info.status == "FINISHED"
    assert len(client(home).search_model_versions("name = 'soundmill-tiny'")) == 1
    assert len(client(home).search_logged_models(["1"])) == 1


def test_a_parent_ends_after_the_runs_below_it(home: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking.pipeline_run(home, "pipeline") as pipeline:
        monkeypatch.setenv(tracking.PARENT, pipeline.id)
        stage = tracking.stage_run(home, "train", {})
        run = stage.__enter__()
        run.log_metrics_tree({"loss": 0.5})
    here = journal.Uploader(tracking.store(home))
    assert here.send() == ""
    assert {name: run.info.status for name, run in runs(home).items()} == {"pipeline": "RUNNING", "train": "RUNNING"}
    assert runs(home)["train"].data.metrics == {"loss": 0.5}  # live
    run.log_file(home / "nowhere.png", "figures", "lost.png")  # which says so
    run.log_dataset("x" * 1000, "abc", 3, "data", "training")  # MLflow takes no such name
    stage.__exit__(None, None, None)
    bring(home)
    found = runs(home)
    assert {name: run.info.status for name, run in found.items()} == {"pipeline": "FINISHED", "train": "FINISHED"}
    assert found["train"].data.tags["incomplete"] == "dataset"
    assert found["pipeline"].data.tags["incomplete"] == "train"


def test_a_parent_waits_for_a_run_that_began_and_ended_while_it_was_brought(home, bring, monkeypatch):
    here = journal.Uploader(tracking.store(home))
    pipeline = tracking.pipeline_run(home, "pipeline")
    monkeypatch.setenv(tracking.PARENT, pipeline.__enter__().id)
    write = here.runs.write

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(here.runs, "write", write)
        with tracking.stage_run(home, "train", {}):
            pass
        pipeline.__exit__(None, None, None)
        write(*arguments)

    monkeypatch.setattr(here.runs, "write", meanwhile)
    here.send()
    assert {name: run.info.status for name, run in runs(home).items()} == {"pipeline": "RUNNING"}
    bring(home)
    assert {name: run.info.status for name, run in runs(home).items()} == {"pipeline": "FINISHED", "train": "FINISHED"}


@pytest.mark.slow
def test_an_uploader_that_died_is_replaced_while_a_run_is_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundmill.tracking.runs.RESTART_SECONDS", 0.1)
    mark = new_mark()
    for name, value in mark.items():
        monkeypatch.setenv(name, value)
    with tracking.stage_run(home, "first", {}):
        first = min(wait_for(lambda: marked(mark), pause=0.05))  # it may have started others
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: marked(mark).keys() - {first}, pause=0.05)
    assert tracking.sync(home) == (0, "")
    assert runs(home)["first"].info.status == "FINISHED"


CHILD = """
import os, signal, sys
from pathlib import Path
from soundmill import hashing, tracking

with tracking.stage_run(Path(sys.argv[1]), "killed", {}) as run:
    run.log_curve({"loss": 1.0}, 1)
    run._journal._file.write(b'{"op": "met')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_itself(program: str, home: Path) -> None:
    """Run a program that ends so; nobody has brought what it recorded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    assert subprocess.run([sys.executable, "-c", program, str(home)], env=environment).returncode == -signal.SIGKILL
    (elsewhere,) = (home / "mlflow.db.state").glob("journals-*")  # a server's own; now let it be the file's
    elsewhere.rename(tracking.store(home).journals)


def test_the_run_of_a_killed_process_is_ended_and_no_other(home: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_itself(CHILD, home)
    (tracking.store(home).journals / "0-unreadable" / journal.EVENTS).mkdir(parents=True)
    with tracking.stage_run(home, "living", {}):
        here = journal.Uploader(tracking.store(home))
        assert "Is a directory" in here.send()
        found = runs(home)
        assert found["living"].info.status == "RUNNING"
    killed = found["killed"]
    assert (killed.info.status, killed.data.metrics) == ("KILLED", {"loss": 1.0})
    assert "the process died" in killed.data.tags["end_reason"]


PIPELINE = """
import os, signal, sys, time
from pathlib import Path
from soundmill import hashing, tracking

home = Path(sys.argv[1])
with tracking.pipeline_run(home) as run:
    os.environ[tracking.PARENT] = run.id
    time.sleep(0.5)
    with tracking.stage_run(home, "train/x", {}) as stage:
        time.sleep(0.5)
        stage.log_curve({"loss": 1.0}, 1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_pipeline_took_as_long_as_its_stages(home: Path, bring: Bring) -> None:
    kill_itself(PIPELINE, home)
    here = journal.Uploader(tracking.store(home))
    here.send()
    here.send()  # the pipeline, after its stage
    found = runs(home)
    stage = found.pop("train/x")
    (pipeline,) = found.values()
    assert {stage.info.status, pipeline.info.status} == {"KILLED"}
    assert pipeline.info.end_time == stage.info.end_time >= pipeline.info.start_time + 1000


def test_a_run_that_begins_while_the_uploader_ends_is_not_left(home: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["second"])
    once = journal._upload

    def ends(*arguments: Any) -> str:
        why = once(*arguments)
        for name in names:  # it has ended, and holds the lock
            with tracking.stage_run(home, name, {}):
                pass
        return why

    monkeypatch.setattr(journal, "_upload", ends)
    with tracking.stage_run(home, "first", {}):
        pass
    bring(home)
    assert {"first", "second"} <= runs(home).keys()


def test_an_uploader_does_not_write_to_a_database_that_is_gone(home: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = iter([(1, 1), (1, 2)])
    monkeypatch.setattr(journal, "_identity", lambda database: next(identities))
    with tracking.stage_run(home, "first", {}), pytest.raises(journal.Replaced):
        bring(home)


@pytest.mark.attack
def test_a_server_killed_in_the_middle_of_a_training_has_all_of_it_in_the_end(home, tmp_path, monkeypatch):
    """With the uploader that stages start themselves; and the model that it registers can be loaded."""
    server = Server(tmp_path)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        with tracking.pipeline_run(home, "pipeline") as pipeline:
            monkeypatch.setenv(tracking.PARENT, pipeline.id)
            for moment in record_training(home, tmp_path / "files", model=True):
                if moment == "step 100":
                    assert tracking.sync(home, 60) == (0, "")  # live
                    assert runs(home)["train/tiny"].data.metrics["rate"] == 100
                    server.kill()
            monkeypatch.delenv(tracking.PARENT)
        count, why = tracking.sync(home, 60)
        assert (count, "is unreachable" in why) == (2, True)
        assert "Not in MLflow yet: 2 runs" in pipeline.not_recorded[0]
        server.start()
        give_up = time.monotonic() + 60
        while tracking.sync(home, 60)[0] and time.monotonic() < give_up:
            time.sleep(0.1)
        parent = runs(home)["pipeline"]
        assert parent.info.status == "FINISHED"
        assert check_training(home).data.tags["mlflow.parentRunId"] == parent.info.run_id
        check_model(home, tmp_path / "artifacts")
    finally:
        server.kill()


def check_model(home: Path, artifacts: Path) -> None:
    """Load the registered model in a fresh process that may not unpickle."""
    version = client(home).get_model_version_by_alias("soundmill-tiny", "newest")
    assert version.tags["family"] == "tiny"
    names = {path.name for path in artifacts.rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "serving.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    code = (
        f"import mlflow; mlflow.set_tracking_uri({tracking.store(home).uri!r})\n"
        "m = mlflow.pyfunc.load_model('models:/soundmill-tiny@newest')\n"
        "print(m.metadata.signature.inputs.input_names(), m.metadata.signature.outputs.inputs[0].shape)"
    )
    environment = {**os.environ, **tracking.QUIET, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "TMPDIR": str(artifacts.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True)
    assert done.stdout.strip() == "['label', 'seed'] (-1, 80)", done.stderr
