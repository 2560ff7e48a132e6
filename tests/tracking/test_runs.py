"""Stages and flows record their runs in a real MLflow, in a SQLite file."""

import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pynvml
import pytest

from soundmill import params, stage, tracking
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.tracking import history, journal
from soundmill.tracking import runs as recording
from tests.flows.tiny import git
from tests.lost_bits import room_in_files
from tests.mlflow_server import free_port
from tests.processes import wait_for
from tests.tracking.reading import client, files, runs

Bring = Callable[[Path], None]


def test_a_stage_records_everything_below_a_parent_that_others_share(home: Path, bring: Bring) -> None:
    from matplotlib.figure import Figure

    with tracking.stage_run(home, "segment", {"clip_seconds": 5.0}) as run:
        run.log_metrics_tree({"clips": 3, "by": {"fold 1": np.float64(0.5), "x//y/": 1}, "note": "text", "flag": True})
    with tracking.stage_run(home, "train/tiny", {"rate": 1e-4, "deep": {"er": None}}, family="tiny") as run:
        for step in range(2500):
            run.log_curve({"loss": 1 / (step + 1)}, step)
        run.log_figure(Figure(), "samples/grid")
        sound = home / "a.wav"
        sound.write_bytes(b"RIFF")
        run.log_file(sound, "audio")
        sound.write_bytes(b"changed afterwards")
        run.log_dataset("clips", digest="abc", rows=3, source="data/clips", context="training", columns={"clip_id": "string"})
        run.describe("# what it is")
    bring(home)
    found = runs(home)
    parent = next(run for name, run in found.items() if name.startswith("dvc repro"))
    segment, train = found["segment"], found["train/tiny"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (segment, train)} == {parent.info.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert segment.data.metrics == {"clips": 3.0, "by.fold 1": 0.5, "by.x/_/y/_": 1.0, "flag": 1.0}
    assert parent.data.metrics == {"stages/segment/clips": 3.0, "stages/segment/flag": 1.0}
    assert parent.data.params == {"train.rate": "0.0001", "train.sizes": "[1, 2]"}
    assert train.data.params == {"rate": "0.0001", "deep.er": "None"}
    assert train.data.tags["family"] == "tiny"
    assert train.data.tags["mlflow.note.content"] == "# what it is"
    curve = client(home).get_metric_history(train.info.run_id, "loss")
    assert sorted(point.step for point in curve) == list(range(2500))
    (dataset,) = train.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("clips", "abc", "training")
    artifacts = home / "mlartifacts" / train.info.run_id / "artifacts"
    assert (artifacts / "audio" / "a.wav").read_bytes() == b"RIFF"
    assert (artifacts / "figures" / "samples" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (home / "mlflow.db.state" / "journals").iterdir() if path.is_dir()] == []

    (home / "params.yaml").write_text("train: {rate: 2e-4}\n")
    with tracking.stage_run(home, "segment", {"clip_seconds": 5.0}):
        pass
    bring(home)
    assert runs(home)["segment"].data.tags["mlflow.parentRunId"] != parent.info.run_id


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(UserError("no such file"), "FAILED", "no such file"), (KeyboardInterrupt(), "KILLED", "interrupted")],
)
def test_a_failing_stage_ends_as_what_it_is(home: Path, bring: Bring, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)), tracking.stage_run(home, "segment", {}):
        raise error
    bring(home)
    run = runs(home)["segment"]
    assert (run.info.status, run.data.tags["end_reason"]) == (status, reason)


def test_off_records_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.SWITCH, "off")
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_metrics_tree({"clips": 1})
        run.log_model(home, "tiny", {"label": ["dog"]}, np.zeros((1, 2)))
    assert run.id is None
    assert sorted(path.name for path in home.iterdir()) == ["dvc.yaml", "mlflow.db", "params.yaml"]


def test_the_model_of_a_rehearsal_is_not_registered(home: Path, monkeypatch: pytest.MonkeyPatch, bring: Bring) -> None:
    monkeypatch.setenv(tracking.TRIAL, "1")
    with tracking.stage_run(home, "train", {}) as run:
        run.log_model(home, "tiny", {"label": ["dog"]}, np.zeros((1, 2)))
    bring(home)
    assert tracking.registered_models(home) == []


def test_an_unwritable_store_stops_no_stage(home, monkeypatch, capsys):
    (home / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/file/mlflow.db")
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_metrics_tree({"clips": 1})
    assert "this run is not recorded; its metrics files are kept" in capsys.readouterr().err
    assert tracking.sync(home) == (0, "")


def test_a_record_that_the_disk_takes_in_part_spoils_none_after_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.stage_run(home, "train/tiny", {}) as run:
        events = run._journal.folder / journal.EVENTS
        run.log_curve({"loss": 1.0}, 0)
        with room_in_files(events.stat().st_size + 20):
            run.log_curve({"loss": 0.5}, 1)
        run.log_curve({"loss": 0.25}, 2)
        recorded = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["step"] for event in recorded if event["op"] == "metrics"] == [0, 2]
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "File too large" in line]
    assert said.endswith("metrics is not recorded")


def test_a_process_that_a_run_is_pickled_for_adds_to_it(home: Path) -> None:
    with tracking.stage_run(home, "train/tiny", {}) as run:
        run.log_curve({"loss": 1.0}, 0)
        (sound := home / "a.wav").write_bytes(b"RIFF")
        for step in (1, 2):  # a process is started anew
            other = pickle.loads(pickle.dumps(run))
            other.log_curve({"loss": 0.5}, step)
            other.log_file(sound, "audio")
        events = [json.loads(line) for line in (run._journal.folder / journal.EVENTS).read_text().splitlines()]
        assert [event["step"] for event in events if event["op"] == "metrics"] == [0, 1, 2]
        places = {event["path"] for event in events if event.get("folder") == "audio"}
        assert len(places) == 2
        assert all((run._journal.folder / place).exists() for place in places)
        assert journal.is_alive(run._journal.folder)
    assert not journal.is_alive(run._journal.folder)


def test_what_a_broken_database_does_not_take_is_kept(home: Path, mlflow_tables: Path, bring: Bring, monkeypatch) -> None:
    (home / "mlflow.db").write_text("this is no database\n" * 100)
    with tracking.pipeline_run(home, "p" * 300) as run:
        run.log_metrics_tree({"clips": 1})
    started: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(journal, "start", lambda home: started.append(home) or SimpleNamespace(poll=lambda: None))
        assert (tracking.sync(home, 0.3)[0], started) == (1, [home])  # one uploader, which has not come to its lock yet
    bring(home)
    count, why = tracking.waiting(home)
    assert (count, "database" in why) == (1, True)
    assert "Not in MLflow yet: 1 run (" in run.not_recorded[0]
    assert "`soundmill sync`" in run.not_recorded[0]
    shutil.copy(mlflow_tables, home / "mlflow.db")
    bring(home)
    assert (tracking.waiting(home), run.not_recorded) == ((0, ""), [])
    assert runs(home)["p" * 250].data.metrics == {"clips": 1.0}


def test_the_store_of_a_workspace_is_the_projects(home: Path) -> None:
    workspace = home / tracking.WORKSPACES / "mine"
    workspace.mkdir(parents=True)
    assert tracking.store(workspace) == tracking.store(home)


def test_a_moved_project_records_where_it_is_now(home: Path, tmp_path: Path, bring: Bring) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.txt").write_text(name)
    with tracking.stage_run(home, "segment", {}) as run:
        run.log_file(tmp_path / "old.txt")
    bring(home)
    with tracking.stage_run(home, "left over", {}):
        pass
    moved = tmp_path / "moved"
    home.rename(moved)
    with tracking.stage_run(moved, "segment", {}) as run:
        run.log_file(tmp_path / "new.txt")
    bring(moved)
    found = runs(moved)
    assert files(moved, found["segment"].info.run_id) == ["new.txt"]
    assert (moved / "mlartifacts" / found["segment"].info.run_id / "artifacts" / "new.txt").read_text() == "new"
    assert found["left over"].info.status == "FINISHED"


def test_a_stage_that_finds_nothing_to_do_is_no_run_unless_it_fails(home: Path, bring: Bring) -> None:
    with tracking.stage_run(home, "scan", {}, start=False) as run:
        run.log_metrics_tree({"files": 1})
    assert not (home / "mlflow.db.state").exists()
    with pytest.raises(UserError), tracking.stage_run(home, "scan", {"path": "x"}, start=False):
        raise UserError("no such directory")
    bring(home)
    failed = runs(home)["scan"]
    assert (failed.info.status, failed.data.params) == ("FAILED", {"path": "x"})
    with tracking.stage_run(home, "scan", {}, start=False) as run:
        run.start()
        run.log_metrics_tree({"files": 1})
    bring(home)
    assert (runs(home)["scan"].info.status, runs(home)["scan"].data.metrics) == ("FINISHED", {"files": 1.0})


def test_runs_are_read_to_the_last_page(home: Path, bring: Bring) -> None:
    for name in ("scan", "segment", "resample"):
        with tracking.stage_run(home, name, {}):
            pass
    bring(home)
    names = [run.info.run_name for run in history._runs(client(home), page_size=1)]
    assert [name for name in names if name in ("scan", "segment", "resample")] == ["resample", "segment", "scan"]


def test_a_run_brings_back_what_it_was_made_from(home: Path, bring: Bring, tmp_path: Path, monkeypatch) -> None:
    git(home, "init", "-q")
    (home / ".gitignore").write_text("/mlflow.db*\n/mlartifacts/\n")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "first")
    (home / "dvc.lock").write_text("schema: '2.0'\n")
    (home / "params.yaml").write_text("train: {rate: 3e-4}\n")
    (home / "new.py").write_text("print('new')\n")
    with tracking.stage_run(home, "segment", {}):
        pass
    bring(home)
    segment = runs(home)["segment"]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    state = tracking.read_state(home, segment.info.run_id[:12])
    assert not list((tmp_path / "temporary").iterdir())
    assert len(state.sha) == 40
    assert state.files["params.yaml"] == b"train: {rate: 3e-4}\n"
    assert state.files["dvc.lock"] == b"schema: '2.0'\n"
    assert b"+print('new')" in state.files["uncommitted.diff"]
    assert segment.data.tags["git_dirty"] == "true"
    with pytest.raises(UserError, match=r"no run 'nonsense'.*the newest:\n  \w{32}  dvc repro"):
        tracking.read_state(home, "nonsense")


def test_names_and_values_that_mlflow_takes() -> None:
    assert tracking.flatten({"a": {"b@c": 1, "d": {}}, "e": [1]}) == {"a.b_c": 1, "a.d": {}, "e": [1]}
    odd = "rock//metal", "dog/", "/cat", "a/./b", "../up", "..", "", "rock/metal"
    assert list(tracking.flatten(dict.fromkeys(odd))) == ["rock/_/metal", "dog/_", "_/cat", "a/_/b", "_/up", "_", "rock/metal"]
    numbers = recording.stores.numbers({"a": np.int64(3), "b": "x", "c": None, "d": [1, 2], "e": {"f": True}})
    assert numbers == {"a": 3.0, "e.f": 1.0}
    assert recording.metrics_name(Path("/x/data/metrics/evaluate/tiny.json")) == "evaluate/tiny"
    assert recording.metrics_name(Path("elsewhere/scores.json")) == "scores"


def test_status_tells_where_runs_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.status(home) == (True, tracking.store(home).uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    works, words = tracking.status(home)
    assert (works, "unreachable" in words) == (False, True)


class Params(StageParams):
    epochs: int


def run(params: Params, ctx: stage.Context, weights: stage.Output) -> dict[str, Any]:
    """Train."""
    with ctx.tracking.system_metrics():
        weights.write_bytes(b"weights")
    return {}


def test_the_names_and_units_are_those_of_mlflows_own_monitors(tmp_path: Path, monkeypatch) -> None:
    """On a machine with one GPU that does not tell its load, as a part of a GPU does not."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    def unsupported(gpu: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    calls = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=2e9, total=8e9),
        "nvmlDeviceGetUtilizationRates": unsupported,
        "nvmlDeviceGetPowerUsage": lambda gpu: 60_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 240_000,
    }
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
    disk, memory = psutil.disk_usage(str(tmp_path)), psutil.virtual_memory()  # that of `/` may be another disk
    monkeypatch.setattr(psutil, "disk_usage", lambda place: disk)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    points: list[dict[str, float]] = []
    with recording.watched(lambda values, step: points.append(values), tmp_path):
        pass
    theirs: dict[str, float] = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor(), GPUMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
    (ours,) = points
    assert ours.keys() == theirs.keys()
    same = [name for name in ours if "gpu" in name]
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert "system/gpu_0_utilization_percentage" not in ours
    for name in ("system/system_memory_usage_megabytes", "system/disk_available_megabytes"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.1)


def test_points_come_until_the_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SYSTEM_SECONDS", 0.01)
    steps: list[int] = []
    with recording.watched(lambda values, step: steps.append(step), tmp_path):
        wait_for(lambda: len(steps) >= 3)
    count = len(steps)
    assert steps == list(range(count))
    time.sleep(0.1)
    assert len(steps) == count


def test_a_fault_is_said_and_the_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(psutil, "disk_usage", lambda place: (_ for _ in ()).throw(OSError("no such disk")))
    with recording.watched(lambda values, step: None, tmp_path):
        pass
    assert "tracking: no more system metrics: OSError: no such disk" in capsys.readouterr().err


@pytest.mark.parametrize("on", [True, False])
def test_the_key_turns_it_off_and_no_output_contains_it(home, bring, monkeypatch, on):
    monkeypatch.chdir(home)
    execution = {"workers": 1, "devices": None, "dask": None, "lanes": {"number": 1, "gpus": 0}, "system_metrics": on}
    params.write_yaml({"execution": execution, "train": {"epochs": 1}}, home / "params.yaml")
    stage.main(run, "train", ["--weights", "weights", "--metrics", "metrics.json"])
    bring(home)
    found = runs(home)["train"].data.metrics
    assert any(name.startswith("system/") for name in found) == on
    assert json.loads((home / "metrics.json").read_text()) == {}
    assert tracking.waiting(home) == (0, "")
