"""CPU, memory, disk, network and GPUs of this machine as curves, named as by MLflow's own monitor: its pages show them.

MLflow's monitor needs MLflow imported in the training's process, and a run that MLflow already has. This one needs neither.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from soundmill.errors import reason
from soundmill.tracking.stores import say

SECONDS = 10.0  # between points, as in MLflow


@contextmanager
def watched(log: Callable[[dict[str, float], int], None], place: Path) -> Iterator[None]:
    """While the block runs, log a point every SECONDS, or one if it takes less; the disk is that of `place`. Never fails."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(log, place, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(log: Callable[[dict[str, float], int], None], place: Path, ended: threading.Event) -> None:
    try:
        import psutil

        gpus, network = _gpus(), psutil.net_io_counters()
        psutil.cpu_percent()  # each call measures since the one before
        step, last = 0, False
        while not last:
            last = ended.wait(SECONDS)
            if not last or step == 0:
                log(_of_machine(place, network) | _of_gpus(gpus), step)
            step += 1
    except Exception as error:  # whatever the system refuses: the training goes on
        say(f"tracking: no more system metrics: {reason(error)}")


def _of_machine(place: Path, network_before: Any) -> dict[str, float]:
    import psutil

    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(place)), psutil.net_io_counters()
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": 100 * memory.used / memory.total,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_usage_megabytes": disk.used / 1e6,
        "system/disk_available_megabytes": disk.free / 1e6,
    }
    if network and network_before:  # a container may have none
        values["system/network_receive_megabytes"] = (network.bytes_recv - network_before.bytes_recv) / 1e6
        values["system/network_transmit_megabytes"] = (network.bytes_sent - network_before.bytes_sent) / 1e6
    return values


def _gpus() -> list[Any]:
    """NVML's handles of all NVIDIA GPUs of the machine; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _of_gpus(gpus: list[Any]) -> dict[str, float]:
    import pynvml

    values: dict[str, float] = {}
    for index, gpu in enumerate(gpus):
        name = f"system/gpu_{index}"
        with suppress(pynvml.NVMLError):  # each may be unsupported, as the load is on a partitioned GPU
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            values[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
            values[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(pynvml.NVMLError):
            values[f"{name}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        with suppress(pynvml.NVMLError):
            power = pynvml.nvmlDeviceGetPowerUsage(gpu)
            values[f"{name}_power_usage_watts"] = power / 1000
            values[f"{name}_power_usage_percentage"] = 100 * power / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return values
