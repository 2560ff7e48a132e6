"""Mapping over shards on the workers of a Dask cluster."""

import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path

from soundmill.errors import UserError
from soundmill.shards.code import code_identity, differences
from soundmill.shards.jobs import ONE_THREAD, Job, attempts, run_job
from soundmill.shards.reports import Report

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
