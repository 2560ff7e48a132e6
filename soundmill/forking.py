"""The process that workers are forked from.

Workers are not forked from the process that maps: a fork of one that has run torch or Arrow threads can hang. They are forked from
one that has imported what they need and done nothing else. Nothing heavy is imported here, so that it can be started first of all.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start_server(modules: Sequence[str]) -> None:
    """Start it, if there is none yet, to import `modules` while this process goes on."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # read by libraries when they are loaded
    try:
        CONTEXT.set_forkserver_preload(["soundmill.preload", *modules])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
