"""How everything here is measured: competitors in turns, each from a cold start; every repetition and the machine noted."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from bench.peers import WORKERS as WORKERS
from soundmill.decoding.decode import ffmpeg_version

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "bench"
LIBRARIES = ("numpy", "scipy", "torch", "torchaudio", "soundfile", "soxr", "pyarrow", "lhotse", "dvc")


@dataclass(frozen=True)
class Target:
    """One promise and what was measured; `value` is a ratio unless `unit` says otherwise."""

    name: str
    value: float
    limit: float
    at_least: bool = True  # else at most
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as it can be told."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],  # of the minute before the start: others who used the machine
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "ffmpeg": ffmpeg_version(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Rounds:
    """Of every competitor and round: wall seconds, and the CPU seconds of its processes, their start and imports included, which
    others who use the machine hardly change."""

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]


def in_turns(competitors: dict[str, Callable[[], float]], repetitions: int) -> Rounds:
    """Run every competitor in every round, so that a slow minute of the machine hits all alike.

    A competitor returns its own seconds: what it prepares and clears away is not counted. Every second round runs backwards.
    """
    PR_SET_CHILD_SUBREAPER = 36  # what outlives a competitor (the process that ours fork their workers from) becomes our child
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource_tracker.ensure_running()  # of this process's own pools: it stays
    others = children()
    rounds = Rounds({name: [] for name in competitors}, {name: [] for name in competitors})
    for number in range(repetitions):
        names = list(competitors)
        for name in names if number % 2 == 0 else reversed(names):
            os.sync()  # what others wrote is not this one's work; a stage flushes the whole file system at its end
            before = _cpu_of_children()
            rounds.seconds[name].append(competitors[name]())
            for child in children() - others:
                os.waitpid(child, 0)
            rounds.cpu_seconds[name].append(_cpu_of_children() - before)
            wall, cpu = rounds.seconds[name][-1], rounds.cpu_seconds[name][-1]
            print(f"round {number + 1}/{repetitions}: {name} {wall:.2f} s, {cpu:.2f} CPU s", flush=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)  # whoever measured may go on with something else, and wait for nobody
    return rounds


def children() -> set[int]:
    """Processes that this one has started, or inherited, and not yet waited for."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended; its children are another's now
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times faster: the median over rounds of the two in the same round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a new interpreter: what an earlier competitor imported, cached or started counts for nobody.

    It and what it starts have one thread each: two processes with two on two cores wait for each other.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def as_a_stage(function: Callable[..., Any], *args: Any) -> Any:
    """`in_fresh_process`, in the environment that stages run in."""
    command = ["sh", "stages/python.sh", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    told = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    added = {name: value for name, value in told.items() if name not in os.environ}
    os.environ.update(added)
    try:
        return in_fresh_process(function, *args)
    finally:
        for name in added:
            del os.environ[name]


def timed(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Steps(Rounds):
    """Of each side's kinds of steps ("soundmill, training step"): seconds of one, and the most memory it takes beyond the net."""

    peak_memory_bytes: dict[str, int]

    def targets(self, package: str) -> list[Target]:
        """No slower than the package, by CPU seconds, and no larger."""
        targets = []
        for what in dict.fromkeys(name.partition(", ")[2] for name in self.seconds):
            ours, theirs = f"soundmill, {what}", f"{package}, {what}"
            of_memory = self.peak_memory_bytes[ours] / self.peak_memory_bytes[theirs]
            targets += [
                Target(f"{what} against {package}", ratio(self.cpu_seconds[theirs], self.cpu_seconds[ours]), 1),
                Target(f"{what}: memory against {package}", of_memory, 1, at_least=False),
            ]
        return targets


def steps_in_turns(
    sides: Callable[..., dict[str, Callable[[], Any]]], kinds: dict[str, int], sizes: tuple, repetitions: int
) -> Steps:
    """`sides(kind, *sizes)` gives each side's work of that kind, so many steps of a net at a time, on the same weights and batch.

    In one process, which must not have imported torch yet; memory is of a new process for each.
    """
    os.environ["OMP_WAIT_POLICY"] = "passive"  # a thread that waits for one that others push aside would count as work
    found = Steps({}, {}, {})
    for what, steps in kinds.items():
        works = {f"{side}, {what}": work for side, work in sides(what, *sizes).items()}
        for name, work in works.items():
            found.peak_memory_bytes[name] = in_fresh_process(_peak_of_side, sides, what, sizes, name.partition(", ")[0])
            found.seconds[name], found.cpu_seconds[name] = [], []
            work()  # the first chooses kernels and takes memory
        for number in range(repetitions):
            for name in works if number % 2 == 0 else reversed(works):
                start, before = time.perf_counter(), time.process_time()
                works[name]()
                found.seconds[name].append((time.perf_counter() - start) / steps)
                found.cpu_seconds[name].append((time.process_time() - before) / steps)
        for name in works:
            print(f"{name}: {statistics.median(found.cpu_seconds[name]):.3g} CPU s", flush=True)
    return found


def _peak_of_side(sides: Callable[..., dict[str, Callable[[], Any]]], what: str, sizes: tuple, side: str) -> int:
    """The most that this process held during two calls of the work, beyond what it held before."""
    work = sides(what, *sizes)[side]

    def twice() -> None:
        work()
        work()

    return peak_memory(twice)


def peak_memory(work: Callable[[], Any]) -> int:
    """The most bytes that this process holds during `work`, beyond what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was made before and left free is not there to be used again
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _memory_bytes("VmRSS")
    work()
    return _memory_bytes("VmHWM") - before


def _memory_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def write(name: str, results: Path, items: int, seconds: dict[str, list[float]], targets: list[Target], **more: Any) -> Path:
    """Write `<results>/<name>.json`: machine, all repetitions, medians, rates (of `items` per run) and targets."""
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    document = {
        "name": name,
        "machine": machine(),
        "items": items,
        "repetitions": max((len(values) for values in seconds.values()), default=1),
        "seconds": seconds,
        "medians": medians,
        "items_per_second": {who: items / median for who, median in medians.items()},
        "targets": [{**asdict(target), "met": target.met} for target in targets],
        **more,
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for target in targets:
        sign, verdict = "≥" if target.at_least else "≤", "met" if target.met else "MISSED"
        print(f"{name}: {target.name} {target.value:.3g}{target.unit} (wanted {sign} {target.limit:g}): {verdict}")
    return path


def parser(description: str | None, **sizes: int) -> argparse.ArgumentParser:
    """The command line of a measurement: where results go, and its sizes (`--clips 400`), to be shrunk in tests."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument("--work", type=Path, help="directory for temporary files (default: the system's)")
    parser.add_argument(
        "--audio", type=Path, help="directory of recordings (default: $SOUNDMILL_BENCH_AUDIO, ../shared/data/esc10, …)"
    )
    for size, default in sizes.items():
        parser.add_argument(f"--{size}", type=int, default=default, help=f"default: {default}")
    return parser


def workplace(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="soundmill-bench-", dir=parent)
