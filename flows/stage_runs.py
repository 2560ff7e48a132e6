"""Runs the stages of a pipeline as Prefect tasks, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from flows import dvc, lanes, lockfile, locks
from flows.terminal import Row, Screen, duration, tell
from soundmill import hashing
from soundmill.errors import UserError

RETRY_DELAY_SECONDS = 10
TRANSIENT = "Transient"  # name of a failure that a retry may repair: a killed stage or a locked DVC, never a stage's own error

STATES: dict[dvc.Outcome, str] = {"ran": "Ran", "cached": "FromCache", "unchanged": "UpToDate"}  # names of completed states
WORDS = {"Ran": "ran", "FromCache": "done before: taken from the cache", "UpToDate": "up to date"}


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, work: Work, row: Row) -> State[Any]:
    """`dvc repro --single-item STAGE`; its lines go to Prefect's log and the pipeline's as they arrive."""
    logger = get_run_logger()

    def notice(line: str) -> None:
        logger.info(line)
        row.notice(line)

    def say(line: str) -> None:
        logger.info(line)
        row.line(line)

    try:
        outcome = work.attempt(stage, say, notice, row.note)
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
        screen: Screen,
        title: str = "",
        force: bool = False,
        retries: int = 1,
        wait_seconds: float = 0.0,
    ):
        self.root, self.stages, self.screen = root, stages, screen
        self.force, self.wait_seconds = force, wait_seconds
        self.environment: dict[str, str] = {}
        self.done: dict[str, str] = {}  # name of the state, by stage
        self.failure: tuple[str, str] | None = None  # the stage, and its message
        self._lanes = lanes.current.get()
        self._options = {"retries": retries, "retry_delay_seconds": RETRY_DELAY_SECONDS, "retry_condition_fn": is_transient}
        width, digits = max(len(stage.name) for stage in stages), len(str(len(stages)))
        title = f"{title}: " if title else ""
        self._heads = {
            stage.name: f"{title}[{number:>{digits}}/{len(stages)}] {stage.name:<{width}}"
            for number, stage in enumerate(stages, start=1)
        }

    def run(self, changed: set[str], environment: dict[str, str], report: Callable[[str, str], None]) -> None:
        """Run the stages that `changed`, and those that need one that wrote other outputs than before, up to the first that fails.

        `report` gets each stage's name and state.
        """
        self.environment = environment
        renewed: set[str] = set()
        for stage in self.stages:
            name, before = stage.name, dvc.entry_of(self.root, stage.name).get("outs")
            if name not in changed and renewed.isdisjoint(stage.needs):
                tell(f"{self._heads[name]}  {WORDS[STATES['unchanged']]}")
                state = note_up_to_date(name, return_state=True)
            else:
                state = self._run(name)
            if not state.is_completed():
                self.failure = name, state.message or "no message"
                return
            self.done[name] = state.name
            if before is None or dvc.entry_of(self.root, name).get("outs") != before:
                renewed.add(name)
            report(name, state.name)

    def _run(self, stage: str) -> State[Any]:
        row, start = self.screen.start(self._heads[stage]), time.monotonic()
        try:
            state = run_stage.with_options(**self._options)(stage, self, row, return_state=True)
            row.ended(f"{WORDS.get(state.name, 'failed')}, {duration(time.monotonic() - start)}")
        finally:
            row.close()
        return state

    def attempt(self, stage: str, say: locks.Say, notice: locks.Say, note: Callable[[dict[str, Any]], object]) -> dvc.Outcome:
        """Run one stage; raises StageFailed. `say` gets its lines, `note` its reports, `notice` remarks about it."""
        with self._lanes.alone(self._work_of(stage)) if self._lanes else nullcontext():
            locks.wait_until_free(self.root, self.wait_seconds, notice)
            try:
                return dvc.repro(self.root, stage, say, self.force, self.environment, note=note)
            except dvc.StageFailed as failed:
                failed.transient = failed.transient and not (self._lanes and self._lanes.stopped)
                raise
            finally:
                if repaired := lockfile.keep_intact(self.root):
                    notice(repaired)

    def _work_of(self, stage: str) -> str:
        """Digest of what makes a stage's result, except code, which all lanes share."""
        found = next(one for one in self.stages if one.name == stage)
        outs = {name: dvc.entry_of(self.root, name).get("outs") for name in sorted(found.needs)}
        return hashing.digest(dvc.section(self.root, stage), outs, stage)
