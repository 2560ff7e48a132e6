"""Rows of a sweep or a bake-off at the same time: each lane has a workspace and GPUs of its own."""

import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import dvc
from soundmill.errors import UserError
from soundmill.params import ExecutionParams, LanesParams, parse_section

T = TypeVar("T")
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Lanes:
    """What the pipelines of all lanes share: a stage that two need runs once, and nothing starts once they are stopped."""

    def __init__(self) -> None:
        self.stopped = False
        self._guard = threading.Lock()
        self._working: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def alone(self, work: str) -> Iterator[None]:
        """Wait until no lane does the same work; then its result is in DVC's cache. UserError if all were stopped meanwhile."""
        with self._guard:
            lock = self._working[work]
        with lock:
            if self.stopped:
                raise UserError("interrupted")
            yield


current: ContextVar[Lanes | None] = ContextVar("lanes", default=None)


def gpus_of(params: LanesParams) -> list[dict[str, str]]:
    """The variables of each lane that show it its own GPUs only; none if `gpus` is 0."""
    if not params.gpus:
        return [{}] * params.number
    wanted = params.number * params.gpus
    names = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else list(map(str, range(wanted)))
    if len(names) < wanted:
        raise UserError(f"execution.lanes: {params.number} of {params.gpus} GPUs each, but {VISIBLE} names only {','.join(names)}")
    return [{VISIBLE: ",".join(names[start : start + params.gpus])} for start in range(0, wanted, params.gpus)]


def run_all(
    names: Sequence[str],
    places: Sequence[Path],
    document: dict[str, Any],
    run: Callable[[int, Path], T],
    ended: Callable[[int, T], Any],
) -> None:
    """Call `run(index, workspace)` for each name, then `ended(index, result)`; with one workspace, one after the other.

    With several, `run` is called in threads, as Prefect tasks. `ended` is always called in this thread.
    """
    free = list(zip(places, gpus_of(parse_section(document, "execution", ExecutionParams).lanes), strict=False))

    def in_lane(index: int, place: Path, gpus: dict[str, str]) -> T:
        with dvc.with_variables(gpus):
            return run(index, place)

    if len(places) == 1:
        for index, _ in enumerate(names):
            ended(index, in_lane(index, *free[0]))
        return
    lanes, waiting, done = Lanes(), list(range(len(names))), queue.SimpleQueue()
    running: dict[int, Any] = {}
    before = current.set(lanes)
    try:
        while waiting or running:
            while waiting and free:
                index, lane = waiting.pop(0), free.pop(0)
                future = _in_lane.submit(names[index], lambda index=index, lane=lane: in_lane(index, *lane))
                running[index] = future, lane
                future.add_done_callback(lambda _, index=index: done.put(index))
            index = done.get()
            future, lane = running.pop(index)
            ended(index, future.result())
            free.append(lane)
    except BaseException:
        lanes.stopped = True
        dvc.interrupt_all()
        raise
    finally:
        current.reset(before)


@task(name="lane", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _in_lane(name: str, run: Callable[[], Any]) -> Any:
    return run()
