"""Runs the stages of a pipeline as Prefect tasks: each once those it needs have ended and its CPU threads or GPUs are free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed, State

from flows import dvc, lockfile, locks
from flows.slots import Slots, Taken, share_of
from flows.terminal import Row, Screen, duration, tell
from soundmill import hashing
from soundmill.errors import UserError
from soundmill.params import ExecutionParams

RETRY_DELAY_SECONDS = 10
TRANSIENT = "Transient"  # name of a failure that a retry may repair: a killed stage or a locked DVC, never a stage's own error

STATES: dict[dvc.Outcome, str] = {"ran": "Ran", "cached": "FromCache", "unchanged": "UpToDate"}  # names of completed states
WORDS = {"Ran": "ran", "FromCache": "done before: taken from the cache", "UpToDate": "up to date"}


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, work: Work, taken: Taken, row: Row) -> State[Any]:
    """`dvc repro --single-item STAGE`; its lines go to Prefect's log and the pipeline's as they arrive."""
    logger = get_run_logger()

    def notice(line: str) -> None:
        logger.info(line)
        row.notice(line)

    def say(line: str) -> None:
        logger.info(line)
        row.line(line)

    try:
        outcome = work.attempt(stage, taken.environment, say, notice)
    except dvc.StageFailed as failed:
        return Failed(name=TRANSIENT if failed.transient else None, message="\n".join(failed.lines))
    except UserError as error:
        return Failed(message=str(error))
    if outcome == "unchanged" and runtime.task_run.run_count > 1:  # an earlier attempt was killed after it had made the outputs
        outcome = "cached"
    return Completed(name=STATES[outcome])


@task(name="up to date", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def note_up_to_date(stage: str) -> State[Any]:
    """Record a stage without running it: it is unchanged, and so are the outputs of all stages that it needs."""
    return Completed(name=STATES["unchanged"], message=f"{stage} did not change")


def is_transient(task: Any, task_run: Any, state: State[Any]) -> bool:
    return state.name == TRANSIENT


class Work:
    """The stages of one pipeline, and how they run. `title` is shown before each stage if other pipelines run at the same time."""

    def __init__(
        self,
        root: Path,
        stages: Sequence[dvc.Stage],
        execution: ExecutionParams,
        slots: Slots,
        screen: Screen,
        title: str = "",
        force: bool = False,
        retries: int = 1,
        wait_seconds: float = 0.0,
    ):
        self.root, self.stages, self.slots, self.screen = root, stages, slots, screen
        self.force, self.wait_seconds = force, wait_seconds
        self.entries = lockfile.Entries(root)
        self.environment: dict[str, str] = {}
        self.done: dict[str, str] = {}  # name of the state, by stage
        self.renewed: set[str] = set()  # stages with other outputs than before
        self.failures: dict[str, str] = {}  # message, by stage
        self._options = {"retries": retries, "retry_delay_seconds": RETRY_DELAY_SECONDS, "retry_condition_fn": is_transient}
        sections = dvc.sections(root, stages)
        self._shares = {name: share_of(section, execution) for name, section in sections.items()}
        self._results = {
            stage.name: hashing.digest({name: sections.get(name) for name in sorted(stage.needs | {stage.name})}, stage.name)
            for stage in stages
        }
        width, digits = max(len(stage.name) for stage in stages), len(str(len(stages)))
        title = f"{title}: " if title else ""
        self._heads = {
            stage.name: f"{title}[{number:>{digits}}/{len(stages)}] {stage.name:<{width}}"
            for number, stage in enumerate(stages, start=1)
        }

    def run(self, changed: set[str], environment: dict[str, str], report: Callable[[str, str], None]) -> None:
        """Run the stages that `changed`, and those that depend on outputs that did; fills `done`, `renewed` and `failures`.

        When a stage fails, no other starts, and those that run are waited for. `report` gets each stage's name and state.
        """
        self.environment = environment
        names = {stage.name for stage in self.stages}
        waiting = list(self.stages)
        running: dict[str, tuple[PrefectConcurrentFuture[Any], Row, float]] = {}  # with the time at which it started
        try:
            while running or (waiting and not self.failures and not self.slots.stopped):
                changes, moved = self.slots.changes, False
                for name in [name for name, (future, _, _) in running.items() if future.wrapped_future.done()]:
                    future, row, start = running.pop(name)
                    future.wait()
                    row.ended(f"{WORDS.get(future.state.name, 'failed')}, {duration(time.monotonic() - start)}")
                    self._end(name, future.state, report)
                    moved = True
                for stage in [] if self.failures or self.slots.stopped else list(waiting):
                    needs = stage.needs & names
                    if not needs <= self.done.keys():
                        continue
                    if stage.name not in changed and self.renewed.isdisjoint(needs):
                        tell(f"{self._heads[stage.name]}  {WORDS[STATES['unchanged']]}")
                        self._end(stage.name, note_up_to_date(stage.name, return_state=True), report)
                        moved = True
                    elif taken := self.slots.take(self._results[stage.name], self._shares[stage.name]):
                        running[stage.name] = self._start(stage.name, taken)
                    else:
                        continue
                    waiting.remove(stage)
                if not moved:
                    self.slots.wait(changes)
        except BaseException:
            self.slots.stop()
            dvc.interrupt_all()
            for _, row, _ in running.values():
                row.close()
            raise
        self.entries.sort([stage.name for stage in self.stages])
        if self.slots.stopped:
            raise UserError("interrupted")

    def _end(self, stage: str, state: State[Any], report: Callable[[str, str], None]) -> None:
        if state.is_completed():
            self.done[stage] = state.name
            if state.name != STATES["unchanged"] and self.entries.renewed(stage):
                self.renewed.add(stage)
            report(stage, state.name)
        else:
            self.failures[stage] = state.message or "no message"

    def attempt(self, stage: str, variables: dict[str, str], say: locks.Say, notice: locks.Say) -> dvc.Outcome:
        """Run one stage, while others may run in other threads; raises StageFailed.

        `say` gets the lines of the stage, `notice` remarks about it.
        """
        if self.slots.stopped:
            raise UserError("interrupted")
        locks.wait_until_free(self.root, self.wait_seconds, notice)
        variables = self.environment | variables
        damages = self.entries.damages
        try:
            with self.entries.written_by(stage, notice):
                outcome = dvc.repro(self.root, stage, say, self.force, variables)
            if self.entries.damages > damages:  # its entry may be lost or truncated: DVC finds the outputs and writes it again
                with self.entries.written_by(stage, notice):
                    dvc.repro(self.root, stage, say, False, variables)
        except dvc.StageFailed as failed:
            self.entries.damages += failed.transient
            failed.transient = self.entries.damages > damages and not self.slots.stopped
            raise
        return outcome

    def _start(self, stage: str, taken: Taken) -> tuple[PrefectConcurrentFuture[Any], Row, float]:
        row = self.screen.start(self._heads[stage], stage)
        future = run_stage.with_options(**self._options).submit(stage, self, taken, row)
        future.add_done_callback(lambda _: self.slots.give_back(taken))
        return future, row, time.monotonic()
