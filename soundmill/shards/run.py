"""Map a function over shards: in parallel, resumable, redoing only what changed."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from soundmill import disk, hashing
from soundmill.errors import UserError
from soundmill.shards import reports
from soundmill.shards.dask import run_on_cluster
from soundmill.shards.jobs import ONE_THREAD, Job, remove_attempts, run_job
from soundmill.shards.reports import Finished, Report


def map_shards(
    function: Callable[..., Report],
    jobs: list[Job],
    directory: Path,
    *,
    workers: int,
    cluster: str | None = None,
    code: Sequence[str] = (),
    progress: Callable[[int], None] = lambda n: None,
) -> Report:
    """Run `function(*job.args, output)` for every job, making `directory / job.name`; returns the summed Report.

    The jobs run in `workers` local processes, or on the workers of the Dask `cluster` at that address, which must see the same
    files and have the same code, including the modules `code` that the function finds by name. If there are GPUs, each local
    process sees one of them, in turn. A finished shard stays in
    `directory` with its report: a killed run resumes with the missing ones. Reports are summed in the order of `jobs`. The function
    must be importable (top level).

    Shards of jobs with keys are kept for the next run: a shard with the same key is reused, and otherwise the function is called
    with `previous`, the existing shard or None. The caller must use another directory for other parameters or code. A shard with
    rejected items is always made again (see ItemWriter).

    Existing shards are checked against their digests before use; damaged ones are rebuilt and listed in the report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_attempts(directory)
    total = Report()
    before = _finished_before(jobs, directory, workers, total)
    finished = {job.name: before[job.name] for job in jobs if job.name in before and _is_done(job, before[job.name])}
    todo = [job for job in jobs if job.name not in finished]
    progress(sum(job.weight for job in jobs) - sum(job.weight for job in todo))
    todo.sort(key=lambda job: -job.weight)  # the longest first, so that workers finish at about the same time
    if todo and cluster:
        run_on_cluster(function, todo, directory, cluster, code, progress)
    elif todo:
        _run_here(function, todo, directory, workers, progress)
    remove_attempts(directory)
    _remove_obsolete(directory, jobs)
    for job in todo:
        finished[job.name] = reports.read_report(directory / job.name)
    reports.write_reports(directory, {job.name: finished[job.name] for job in jobs})
    for job in jobs:
        total.add(finished[job.name].report)
    return total


def _remove_obsolete(directory: Path, jobs: list[Job]) -> None:
    """Remove shards kept for jobs that no longer exist."""
    current = {reports.ALL} | {job.name for job in jobs} | {reports.report_path(Path(job.name)).name for job in jobs}
    for name in os.listdir(directory) if jobs and jobs[0].key else ():
        if name not in current:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _finished_before(jobs: list[Job], directory: Path, workers: int, total: Report) -> dict[str, Finished]:
    """The intact shards in the directory; damaged ones are dropped and listed in `total`."""
    recorded = reports.read_reports(directory)
    intact: dict[str, Finished] = {}
    for job in jobs:
        finished = recorded.get(job.name)
        try:
            signature = hashing.signature(directory / job.name)
            if finished is None or (finished.key, finished.signature) != (job.key, signature):
                finished = reports.read_report(directory / job.name)
            if finished.signature == signature:
                intact[job.name] = finished
        except OSError:
            continue
        except (ValueError, KeyError, TypeError):  # a damaged report
            total.damaged.append(job.name)
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the GIL
        checks = pool.map(lambda name: hashing.is_intact(directory / name, intact[name].digest), intact)
        damaged = [name for name, is_intact in zip(intact, checks, strict=True) if not is_intact]
    for name in damaged:
        del intact[name]
        disk.break_cache_link(directory / name)
        reports.report_path(directory / name).unlink(missing_ok=True)  # so that no item of it is reused
    total.damaged.extend(damaged)
    return intact


def _is_done(job: Job, finished: Finished) -> bool:
    return finished.key == job.key and not (job.key and finished.report.quarantine)


def _run_here(
    function: Callable[..., Report], jobs: list[Job], directory: Path, workers: int, progress: Callable[[int], None]
) -> None:
    # A pool even for one worker: the number of threads changes the last bits of results, so every worker has one thread.
    running: dict[Future[None], Job] = {}
    try:
        with _pool(function.__module__, min(workers, len(jobs))) as pool:
            try:
                for job in jobs:
                    running[pool.submit(run_job, function, job, directory)] = job
                    if len(running) >= 2 * workers:
                        _collect(running, progress)
                while running:
                    _collect(running, progress)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        names = ", ".join(job.name for job in running.values()) or "none"
        raise UserError(
            f"a worker process died (killed, or out of memory) on one of: {names}. Finished shards are kept; "
            "run it again, with fewer `execution.workers` if memory was short"
        ) from None


def _collect(running: dict[Future[None], Job], progress: Callable[[int], None]) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        progress(running.pop(future).weight)


@contextmanager
def _pool(module: str, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each, forked from a server that has imported `module`; each sees one GPU, in turn."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, "pandas"])  # Arrow imports it on first use of a list
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)  # libraries read these when the server loads them
    # A forkserver's worker runs the main module again; runpy warns that it is already imported.
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning:runpy"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    # The server keeps its first environment, but the environment may change between maps.
    turns = context.SimpleQueue() if (gpus := visible_gpus()) else None
    for turn in range(workers if turns else 0):
        turns.put(gpus[turn % len(gpus)])
    with ProcessPoolExecutor(workers, context, _start_worker, (before | ONE_THREAD, turns)) as pool:
        yield pool


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (names := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in names.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _start_worker(environment: dict[str, str], gpus: SimpleQueue[str] | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()  # CUDA reads it on first use
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # the mapping process reports the interrupt
    threading.Thread(target=_die_with_mapper, daemon=True).start()


def _die_with_mapper() -> None:
    """End this worker when the mapping process dies, so that no orphan writes during a rerun."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)
