"""The points of a sweep or the families of a bake-off, several at the same time: each lane has a workspace of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectConcurrentFuture

from flows import checkout, dvc
from flows.slots import Slots, current
from soundmill.params import ExecutionParams, parse_section

T = TypeVar("T")


def workspaces(home: Path, name: str, document: dict[str, Any], count: int) -> list[Path]:
    """A workspace for each lane: as many as can be at work with `execution.slots` of `document`, at most `count`."""
    slots = parse_section(document, "execution", ExecutionParams).slots
    lanes = min(count, max(slots.cpu, slots.gpu))
    return [checkout.workspace(home, f"{name}.lane{lane}" if lane > 1 else name, document) for lane in range(1, lanes + 1)]


def run_all(
    names: Sequence[str],
    places: Sequence[Path],
    document: dict[str, Any],
    run: Callable[[int, Path], T],
    ended: Callable[[int, T], Any],
) -> None:
    """Call `run(index, workspace)` for each name, then `ended(index, result)`; with one workspace, one after the other.

    With several, `run` is called in threads, as Prefect tasks, and all pipelines share the slots of `document`. `ended` is always
    called in this thread.
    """
    if len(places) == 1:
        for index, _ in enumerate(names):
            ended(index, run(index, places[0]))
        return
    slots = Slots(parse_section(document, "execution", ExecutionParams).slots)
    waiting, free = list(range(len(names))), list(places)
    running: dict[int, tuple[PrefectConcurrentFuture[T], Path]] = {}
    before = current.set(slots)
    try:
        while waiting or running:
            changes = slots.changes
            while waiting and free:
                index, place = waiting.pop(0), free.pop(0)
                future = _in_lane.submit(names[index], lambda index=index, place=place: run(index, place))
                running[index] = future, place
                future.add_done_callback(lambda _: slots.tell())
            done = [index for index, (future, _) in running.items() if future.wrapped_future.done()]
            for index in done:
                future, place = running.pop(index)
                ended(index, future.result())
                free.append(place)
            if not done:
                slots.wait(changes)
    except BaseException:
        slots.stop()
        dvc.interrupt_all()
        raise
    finally:
        current.reset(before)


@task(name="lane", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _in_lane(name: str, run: Callable[[], Any]) -> Any:
    return run()
