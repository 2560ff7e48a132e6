"""Map a function over shards: in local processes or on a Dask cluster, resumable, redoing only what changed."""

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from soundmill import disk, hashing
from soundmill.errors import UserError
from soundmill.shards.code import code_identity, differences
from soundmill.shards.reports import Finished, Report, read_report, report_path, write_report

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # in every process that runs a job
_ATTEMPT = ".attempt-"


@dataclass(frozen=True)
class Job:
    """The work on one shard: `function(*job.args, output)` writes the file (or directory) `output` and returns a Report.

    `name` is the output's file name; `weight` is the amount of work in the units of the progress bar (items, bytes). `key` covers
    everything that the shard is made from except the stage's parameters and code: content by digest or `signature`, not by name.
    """

    name: str
    args: tuple[Any, ...]
    weight: int = 1
    key: str | None = None


def run_job(function: Callable[..., Any], job: Job, directory: Path | None) -> Any:
    """Make the shard of a job in a directory; without one, the function's value."""
    if directory is None:
        return function(*job.args)
    options = {"previous": _previous(directory / job.name)} if job.key else {}
    # In a separate directory: two attempts at one shard (a worker taken for dead) never write to the same file.
    attempt = Path(tempfile.mkdtemp(prefix=job.name + _ATTEMPT, dir=directory))
    try:
        output, final = attempt / job.name, directory / job.name
        report = function(*job.args, output, **options)
        write_report(output, report, job.key)
        # The shard first: a report that does not match the file next to it is ignored, also after a power cut.
        if output.is_dir() and final.is_dir():
            shutil.rmtree(final)
        os.replace(output, final)
        output.unlink(missing_ok=True)  # os.replace does nothing if both are links to one file, as for an unchanged shard
        os.replace(report_path(output), report_path(final))
        if final.is_file():
            disk.start_sync(final)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def attempts(directory: Path, job: Job | None = None) -> list[Path]:
    """Directories that killed workers left, of one job or of all."""
    return list(directory.glob(f"{job.name if job else '*'}{_ATTEMPT}*"))


def remove_attempts(directory: Path) -> None:
    for attempt in attempts(directory):
        shutil.rmtree(attempt, ignore_errors=True)


def _previous(shard: Path) -> Path | None:
    """The shard of the last run, if its report matches it."""
    try:
        return shard if read_report(shard).signature == hashing.signature(shard) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
    process sees one of them, in turn. A finished shard stays in `directory` with its report: a killed run resumes with the missing
    ones. Reports are summed in the order of `jobs`. The function must be importable (top level).

    Shards of jobs with keys are kept for the next run: a shard with the same key is reused, and otherwise the function is called
    with `previous`, the existing shard or None. The caller must use another directory for other parameters or code. A shard with
    rejected items is always made again (see ItemWriter).

    Existing shards are checked against their digests before use; damaged ones are rebuilt and listed in the report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_attempts(directory)
    total = Report()
    before = _finished_before(jobs, directory, workers, total)
    finished = {
        job.name: found
        for job in jobs
        if (found := before.get(job.name)) and found.key == job.key and not (job.key and found.report.quarantine)
    }
    todo = [job for job in jobs if job.name not in finished]
    progress(sum(job.weight for job in jobs) - sum(job.weight for job in todo))
    todo.sort(key=lambda job: -job.weight)  # the longest first, so that workers finish at about the same time
    if todo and cluster:
        run_on_cluster(function, todo, directory, cluster, code, progress)
    elif todo:
        _run_here(function, todo, directory, workers, progress)
    remove_attempts(directory)
    kept = {job.name for job in jobs} | {report_path(Path(job.name)).name for job in jobs}
    for name in set(os.listdir(directory)) - kept if jobs and jobs[0].key else ():  # of jobs that no longer exist
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for job in todo:
        finished[job.name] = read_report(directory / job.name)
    for job in jobs:
        total.add(finished[job.name].report)
    return total


def _finished_before(jobs: list[Job], directory: Path, workers: int, total: Report) -> dict[str, Finished]:
    """The intact shards in the directory; damaged ones are dropped and listed in `total`."""
    intact: dict[str, Finished] = {}
    for job in jobs:
        try:
            finished = read_report(directory / job.name)
            if finished.signature == hashing.signature(directory / job.name):
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
        report_path(directory / name).unlink(missing_ok=True)  # so that no item of it is reused
    total.damaged.extend(damaged)
    return intact


def map_values(
    function: Callable[..., Any],
    jobs: list[Job],
    *,
    workers: int,
    progress: Callable[[int], None] = lambda n: None,
    imports: Sequence[str] = (),
) -> list[Any]:
    """What `function(*job.args)` returns for every job, in order, made in processes as those of `map_shards`; nothing is kept.

    The modules `imports`, which the function imports when it runs, are imported once for all processes.
    """
    values = _run_here(function, sorted(jobs, key=lambda job: -job.weight), None, workers, progress, imports) if jobs else {}
    return [values[job.name] for job in jobs]


def _run_here(
    function: Callable[..., Any],
    jobs: list[Job],
    directory: Path | None,
    workers: int,
    progress: Callable[[int], None],
    imports: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the jobs in local processes; returns what `run_job` gives, by name."""
    # A pool even for one worker: the number of threads changes the last bits of results, so every worker has one thread.
    running: dict[Future[Any], Job] = {}
    values: dict[str, Any] = {}

    def collect() -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            values[running[future].name] = future.result()
            progress(running.pop(future).weight)

    try:
        with _pool([function.__module__, *imports], min(workers, len(jobs))) as pool:
            try:
                for job in jobs:
                    running[pool.submit(run_job, function, job, directory)] = job
                    if len(running) >= 2 * workers:
                        collect()
                while running:
                    collect()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        names = ", ".join(job.name for job in running.values()) or "none"
        raise UserError(
            f"a worker process died (killed, or out of memory) on one of: {names}. Finished shards are kept; "
            "run it again, with fewer `execution.workers` if memory was short"
        ) from None
    return values


@contextmanager
def _pool(modules: Sequence[str], workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each, forked from a server that imported the first map's `modules`; each sees one GPU, in turn."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, "pandas"])  # Arrow imports pandas on first use of a list
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


CONNECT_SECONDS = 5.0
WORKERLESS_SECONDS = 30.0  # a cluster may be starting, or replacing dead workers
DEATHS = 3  # workers that died on one shard; then the map fails


@dataclass(frozen=True)
class _Site:
    """What a worker must share with the process that sends it jobs."""

    start: Path  # working directory, for relative paths
    token: str  # name of a file next to the shards, which only a worker with the same file system sees
    modules: tuple[str, ...]
    code: dict[str, str]


def run_on_cluster(
    function: Callable[..., Report],
    jobs: list[Job],
    directory: Path,
    address: str,
    modules: Sequence[str],
    progress: Callable[[int], None],
) -> None:
    import asyncio

    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are reported below, without tracebacks
    start = f"start some that share this directory and environment: `dask worker {address} --nworkers N --nthreads 1`"
    try:
        asyncio.run(_reach(address))  # a Client that cannot connect keeps trying in the background
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    # MemoryError: another server's greeting, read as a length. TypeError: tls without certificates.
    except (OSError, ValueError, MemoryError, TypeError) as error:
        raise UserError(
            f"execution.dask: no Dask scheduler answers at {address} ({error}); start one (`dask scheduler`), or set "
            "execution.dask to null and unset DASK_SCHEDULER_ADDRESS, to use local processes"
        ) from None
    directory = directory.resolve()
    with client, client.as_current(), tempfile.NamedTemporaryFile(dir=directory, prefix=".site-") as token:
        names = (function.__module__, *modules)
        site = _Site(Path.cwd(), os.path.basename(token.name), names, code_identity(*names))
        queue, running = jobs[::-1], {}
        last_seen = time.monotonic()  # workers
        try:
            while queue or running:
                if client.status != "running":
                    raise distributed.CancelledError
                try:
                    slots = sum(client.nthreads().values())
                except OSError:  # it stopped after the check of the client's status
                    raise distributed.CancelledError from None
                if slots:
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > WORKERLESS_SECONDS:
                    raise UserError(f"execution.dask: the scheduler at {address} has no workers; {start}")
                while queue and len(running) < 2 * slots:
                    job = queue.pop()
                    key = f"{job.name}-{uuid.uuid4().hex}"
                    future = client.submit(_run_on_worker, function, job, directory, site, key=key, pure=False)
                    running[key] = future, job
                with suppress(TimeoutError):
                    futures = [future for future, _ in running.values()]
                    distributed.wait(futures, timeout=1.0, return_when="FIRST_COMPLETED") if futures else time.sleep(0.5)
                for key in [key for key, (future, _) in running.items() if future.done()]:
                    future, job = running.pop(key)
                    # The result, None, is not fetched: it may be lost with its worker although the shard is finished.
                    if future.status == "finished":
                        progress(job.weight)
                    elif future.status == "lost" or isinstance(future.exception(), distributed.KilledWorker):
                        queue.append(job)  # another job may have killed its worker; DEATHS counts its own kills
                    else:
                        raise future.exception()
        except (ImportError, RuntimeError) as error:
            cause = error if isinstance(error, ImportError) else error.__cause__  # the scheduler unpickles tasks, too
            if not isinstance(cause, ImportError):
                raise
            raise UserError(
                f"execution.dask: the scheduler or a worker at {address} cannot import {cause.name}; start the scheduler in this "
                f"environment (`dask scheduler`), and the workers: `dask worker {address} --nworkers N --nthreads 1`"
            ) from None
        except (distributed.CancelledError, distributed.comm.CommClosedError):
            raise UserError(
                f"execution.dask: the scheduler at {address} is gone; start it and run again: finished shards are kept"
            ) from None
        finally:
            if client.status == "running":
                client.cancel([future for future, _ in running.values()])


async def _reach(address: str) -> None:
    import distributed

    security = distributed.Security().get_connection_args("client")
    comm = await distributed.comm.connect(address, timeout=CONNECT_SECONDS, **security)
    await comm.close()


def _run_on_worker(function: Callable[..., Report], job: Job, directory: Path, site: _Site) -> None:
    import distributed

    worker = distributed.get_worker()
    if worker.state.nthreads != 1 or any(os.environ.get(name) != "1" for name in ONE_THREAD):
        raise UserError(
            f"worker {worker.address}: has several threads, which change the last bits of results; start it with "
            f"`dask worker --nthreads 1` (and with its nanny, which sets {', '.join(ONE_THREAD)} to 1)"
        )
    if not (directory / site.token).exists():
        raise UserError(f"worker {worker.address}: does not see {directory}; workers need a shared file system")
    if differing := differences(site.code, *site.modules):
        raise UserError(f"worker {worker.address}: runs other software ({differing}); restart it in this checkout's environment")
    if len(attempts(directory, job)) >= DEATHS:
        raise UserError(
            f"{job.name}: {DEATHS} workers died on this shard (out of memory?); the other shards are kept. "
            "Give workers more memory, or remove its recordings"
        )
    with chdir(site.start):
        run_job(function, job, directory)
