"""Map a function over shards: in parallel, resumable, redoing only what changed."""

from __future__ import annotations

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

    The work is done by `workers` processes here, or by the workers of the Dask `cluster` at that address, which must see the same
    files and have the same code: the function's, and that of the modules `code`, which it finds by name. A finished shard stays in
    `directory` with its report beside it: a killed run resumes with what is missing. Reports are added in the order of `jobs`,
    whatever order they end in. The function must be importable (top level).

    The shards of jobs with keys are for the next run too: one that lies there under the same key stays as it is, and where the key
    is another the function is called with `previous`, what lies there, or None. Whoever gives the directory answers for it that
    parameters and code are the same. A shard that something was rejected from is made again in any case (see ItemWriter).

    What lies there is read and held to its digest before it is used; what is damaged is made from nothing, and named in the report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_attempts(directory)
    total = Report()
    before = _finished_before(jobs, directory, workers, total)
    finished = {job.name: before[job.name] for job in jobs if job.name in before and _is_done(job, before[job.name])}
    todo = [job for job in jobs if job.name not in finished]
    progress(sum(job.weight for job in jobs) - sum(job.weight for job in todo))
    todo.sort(key=lambda job: -job.weight)  # what takes longest first, so that workers end at about the same time
    if todo and cluster:
        run_on_cluster(function, todo, directory, cluster, code, progress)
    elif todo:
        _run_here(function, todo, directory, workers, progress)
    remove_attempts(directory)
    _remove_strangers(directory, jobs)
    for job in todo:
        finished[job.name] = reports.read_report(directory / job.name)
    reports.write_reports(directory, {job.name: finished[job.name] for job in jobs})
    for job in jobs:
        total.add(finished[job.name].report)
    return total


def _remove_strangers(directory: Path, jobs: list[Job]) -> None:
    """Drop the shards that were kept for jobs which there are no more."""
    known = {reports.ALL} | {job.name for job in jobs} | {reports.report_path(Path(job.name)).name for job in jobs}
    for name in os.listdir(directory) if jobs and jobs[0].key else ():
        if name not in known:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _finished_before(jobs: list[Job], directory: Path, workers: int, total: Report) -> dict[str, Finished]:
    """The shards that lie there as they were written; what is damaged is dropped, and named in `total`."""
    known = reports.read_reports(directory)
    whole: dict[str, Finished] = {}
    for job in jobs:
        finished = known.get(job.name)
        try:
            signature = hashing.signature(directory / job.name)
            if finished is None or (finished.key, finished.signature) != (job.key, signature):
                finished = reports.read_report(directory / job.name)
            if finished.signature == signature:
                whole[job.name] = finished
        except OSError:
            continue
        except (ValueError, KeyError, TypeError):  # a report that cannot be trusted
            total.damaged.append(job.name)
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the GIL
        intact = pool.map(lambda name: hashing.is_intact(directory / name, whole[name].digest), whole)
        torn = [name for name, right in zip(whole, intact, strict=True) if not right]
    for name in torn:
        del whole[name]
        disk.break_cache_link(directory / name)
        reports.report_path(directory / name).unlink(missing_ok=True)  # so nothing is taken from it
    total.damaged.extend(torn)
    return whole


def _is_done(job: Job, finished: Finished) -> bool:
    return finished.key == job.key and not (job.key and finished.report.quarantine)


def _run_here(
    function: Callable[..., Report], jobs: list[Job], directory: Path, workers: int, progress: Callable[[int], None]
) -> None:
    # A pool even for one worker: libraries give other last bits on other thread counts, so every worker has one thread.
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
            f"a worker process died (out of memory, or killed) while working on one of: {names}. Finished shards are kept: "
            "run it again, with a smaller `execution.workers` if memory was short"
        ) from None


def _collect(running: dict[Future[None], Job], progress: Callable[[int], None]) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        progress(running.pop(future).weight)


@contextmanager
def _pool(module: str, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each, forked from a server that has imported `module`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, "pandas"])  # which Arrow imports at the first list that it is given
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)  # libraries read it when the server loads them
    # A worker runs the program's main module anew, as every forkserver's does; that it is imported already is meant.
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning:runpy"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    # The server keeps the environment that it started with, while another map may follow a change of it.
    with ProcessPoolExecutor(workers, context, _start_worker, (before | ONE_THREAD,)) as pool:
        yield pool


def _start_worker(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # the mapping process says that it was interrupted
    threading.Thread(target=_die_with_mapper, daemon=True).start()


def _die_with_mapper() -> None:
    """End this worker when the process that maps dies, however it dies: no orphan may write beside a rerun."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)
