"""Shared code of the benchmarks: competitors take turns, each from a cold start; results name the machine."""

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from bench.peers import WORKERS as WORKERS
from soundmill import pretrained
from soundmill.decoding.ffmpeg import ffmpeg_version

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "bench"
GIGABYTE = 1e9
T = TypeVar("T")
LIBRARIES = ("numpy", "scipy", "torch", "torchaudio", "soundfile", "soxr", "pyarrow", "lhotse", "dvc")


@dataclass(frozen=True)
class Target:
    """A measured value and its limit; a ratio unless `unit` differs."""

    name: str
    value: float
    limit: float
    at_least: bool = True  # else at most
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def machine() -> dict[str, Any]:
    """Hardware, load and versions that the results depend on."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],  # over the last minute: other use of the machine
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
    """Wall seconds and CPU seconds by competitor and round. CPU seconds include all its processes, with start and imports; other
    processes on the machine hardly affect them."""

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]


def turns(sides: Sequence[T], repetitions: int) -> Iterator[tuple[int, T]]:
    """Every side in every round, with the round's number from 0; every second round is reversed."""
    for number in range(repetitions):
        for side in sides if number % 2 == 0 else reversed(sides):
            yield number, side


def in_turns(competitors: dict[str, Callable[[], float]], repetitions: int) -> Rounds:
    """Run every competitor in every round (see `turns`), so that a slow minute affects all of them.

    A competitor returns its seconds, without preparation and cleaning up.
    """
    PR_SET_CHILD_SUBREAPER = 36  # processes that outlive a competitor (our fork server) become our children
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource_tracker.ensure_running()  # used by this process's pools; not a competitor's
    others = children()
    rounds = Rounds({name: [] for name in competitors}, {name: [] for name in competitors})
    for number, name in turns(list(competitors), repetitions):
        os.sync()  # flush earlier writes first: a stage syncs the whole file system at its end
        before = _cpu_of_children()
        rounds.seconds[name].append(competitors[name]())
        for child in children() - others:
            os.waitpid(child, 0)
        rounds.cpu_seconds[name].append(_cpu_of_children() - before)
        wall, cpu = rounds.seconds[name][-1], rounds.cpu_seconds[name][-1]
        print(f"round {number + 1}/{repetitions}: {name} {wall:.2f} s, {cpu:.2f} CPU s", flush=True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)  # the caller may continue with other work
    return rounds


def children() -> set[int]:
    """Children of this process, started or inherited, that have not been waited for."""
    pids = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended; its children belong to another
            pids |= set(map(int, (task / "children").read_text().split()))
    return pids


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ratio(slower: list[float], faster: list[float]) -> float:
    """Speed-up: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call `function(*args)` in a new interpreter, unaffected by the imports, caches and processes of earlier competitors.

    It and its processes have one thread each: two processes with two threads each on two cores wait for each other.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def in_stage_environment(function: Callable[..., Any], *args: Any) -> Any:
    """`in_fresh_process` with the environment variables of stages."""
    command = ["sh", "stages/python.sh", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    environment = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    added = {name: value for name, value in environment.items() if name not in os.environ}
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
    """Seconds per step and peak memory beyond the net, by side and kind ("soundmill, training step")."""

    peak_memory_bytes: dict[str, int]

    def targets(self, package: str) -> list[Target]:
        """Targets: at most the package's CPU seconds and memory."""
        targets = []
        for what in dict.fromkeys(name.partition(", ")[2] for name in self.seconds):
            ours, theirs = f"soundmill, {what}", f"{package}, {what}"
            memory = self.peak_memory_bytes[ours] / self.peak_memory_bytes[theirs]
            targets += [
                Target(f"{what} against {package}", ratio(self.cpu_seconds[theirs], self.cpu_seconds[ours]), 1),
                Target(f"{what}: memory against {package}", memory, 1, at_least=False),
            ]
        return targets


def steps_in_turns(
    sides: Callable[..., dict[str, Callable[[], Any]]], kinds: dict[str, int], sizes: tuple, repetitions: int
) -> Steps:
    """Time both sides' steps in turns in this process, which must not have imported torch yet; memory in new processes.

    `sides(kind, *sizes)` returns each side's work of that kind, on the same weights and batch; `kinds` has the steps in one call.
    """
    os.environ["OMP_WAIT_POLICY"] = "passive"  # busy waiting would count as work
    measured = Steps({}, {}, {})
    for what, steps in kinds.items():
        works = {f"{side}, {what}": work for side, work in sides(what, *sizes).items()}
        for name, work in works.items():
            measured.peak_memory_bytes[name] = in_fresh_process(_peak_of_side, sides, what, sizes, name.partition(", ")[0])
            measured.seconds[name], measured.cpu_seconds[name] = [], []
            work()  # the first call chooses kernels and allocates memory
        for _, name in turns(list(works), repetitions):
            start, before = time.perf_counter(), time.process_time()
            works[name]()
            measured.seconds[name].append((time.perf_counter() - start) / steps)
            measured.cpu_seconds[name].append((time.process_time() - before) / steps)
        for name in works:
            print(f"{name}: {statistics.median(measured.cpu_seconds[name]):.3g} CPU s", flush=True)
    return measured


def _peak_of_side(sides: Callable[..., dict[str, Callable[[], Any]]], what: str, sizes: tuple, side: str) -> int:
    """Peak memory of two calls of a side's work in this process."""
    work = sides(what, *sizes)[side]

    def twice() -> None:
        work()
        work()

    return peak_memory(twice)


def peak_memory(work: Callable[[], Any]) -> int:
    """Peak memory in bytes that this process adds during `work`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory, so that `work` cannot reuse it
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_bytes("VmRSS")
    work()
    return memory_bytes("VmHWM") - before


def memory_bytes(key: str, process: int | str = "self") -> int:
    """Memory of a process: `VmRSS`, resident, or `VmHWM`, its peak; with mapped files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def peak_megabytes() -> float:
    """Peak memory of this process so far, in units of 2**20 bytes."""
    return memory_bytes("VmHWM") / 2**20


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
        print(f"{name}: {target.name} {target.value:.3g}{target.unit} (target {sign} {target.limit:g}): {verdict}")
    return path


def parser(description: str | None, **sizes: int) -> argparse.ArgumentParser:
    """The command line of a benchmark: directory of results, and sizes (`--clips 400`), which tests reduce."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument("--work", type=Path, help="directory for temporary files (default: the system's)")
    parser.add_argument(
        "--audio", type=Path, help="directory of recordings (default: $SOUNDMILL_BENCH_AUDIO, ../shared/data/esc10, …)"
    )
    for size, default in sizes.items():
        parser.add_argument(f"--{size}", type=int, default=default, help=f"default: {default}")
    return parser


def weights_directory() -> Path:
    """Directory of published weights: $SOUNDMILL_WEIGHTS, else the one beside the checkout."""
    return Path(os.environ.get(pretrained.VARIABLE) or ROOT.parent / "shared" / "models")


def workplace(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="soundmill-bench-", dir=parent)
