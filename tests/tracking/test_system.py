"""The machine's use is logged while a training runs, under the names that MLflow's pages know, and never disturbs it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from soundmill import params, stage, tracking
from soundmill.params import StageParams
from soundmill.tracking import runs as recording
from tests.processes import wait_for
from tests.tracking.reading import runs

Bring = Callable[[Path], None]


class Params(StageParams):
    epochs: int


def run(params: Params, ctx: stage.Context, weights: stage.Output) -> dict[str, Any]:
    """Train."""
    with ctx.tracking.system_metrics():
        weights.write_bytes(b"weights")
    return {}


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML of a machine with one GPU that does not tell its load, as a part of a GPU does not."""

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


def test_the_names_and_units_are_those_of_mlflows_own_monitors(one_gpu: None, tmp_path: Path) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

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
        assert ours[name] == pytest.approx(theirs[name], rel=0.5)


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
