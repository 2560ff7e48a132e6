"""The processes that shards' work is done by.

A stage's are forked from its own process, when that has imported what it needs and done nothing else: all is imported once. Later
would be too late: a fork of a process that has run torch's or Arrow's threads can hang. Elsewhere they are forked from a server, a
process started for nothing else. Nothing heavy is imported here: `prepare` comes before all other imports.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

from soundmill import lifetime

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_before: dict[str, str | None] | None = None  # of these, in the environment of a process that is prepared


def prepare() -> None:
    """Before a process that will fork its workers imports anything: libraries read their number of threads when they are loaded.

    Until it forks nobody looks for garbage, which takes a seventh of the time of imports and finds none.
    """
    global _before
    _before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    gc.disable()


def fork_workers(count: int, initializer: Callable[[], None]) -> ProcessPoolExecutor | None:
    """Fork workers from this process, which is then no longer prepared; None where it was not, and may have threads, or for 0."""
    from multiprocessing import active_children, get_context

    global _before
    if _before is None:
        return None
    gc.freeze()  # workers would copy the pages that a collector looks at
    gc.enable()
    pool = None
    if count:
        pool = ProcessPoolExecutor(count, get_context("fork"), initializer)
        try:
            with (
                lifetime.unwatched()
            ):  # the first piece of work has all of them forked, and only then the pool's own thread started
                pool.submit(os.getpid)
        except BaseException:
            for child in active_children():  # some, and then there was no room for another: they would wait for work for ever
                child.kill()
            raise
    _restore(_before)
    _before = None
    return pool


def workers_of_server(count: int, modules: Sequence[str], initializer: Callable[..., None], *given: object) -> ProcessPoolExecutor:
    """Workers of a process whose only work is to import `modules` and be forked; `initializer(*given)` is called in each."""
    start_server(modules)
    from multiprocessing import get_context

    return ProcessPoolExecutor(count, get_context("forkserver"), initializer, given)


def start_server(modules: Sequence[str]) -> None:
    """Start that process, if there is none yet, while this one goes on."""
    from multiprocessing import forkserver, get_context

    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        get_context("forkserver").set_forkserver_preload(["soundmill.preload", *modules])
        forkserver.ensure_running()
    finally:
        _restore(before)


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
