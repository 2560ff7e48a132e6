"""The whole pipeline as a Prefect flow: one task per DVC stage, recorded in MLflow; `python -m flows.run` runs it."""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO
from uuid import UUID

# flows/terminal.py prints what the terminal shows; Prefect's own log has all lines of the stages too.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import FailedRun, ObjectNotFound
from prefect.states import Completed, Crashed, Failed, State
from pydantic import Field

from flows import dvc, locks, remote, scores, server
from flows.terminal import LOG, Row, duration, tell
from soundmill import disk, hashing, ledger, params, tracking
from soundmill.errors import UserError, fault_of_disk, reason, report_failure
from soundmill.evaluation import protocols
from soundmill.models import registry
from soundmill.params import check_urls, read_yaml

PUSH_DELAYS = [10, 60, 300]  # seconds before each retry of a push

TRANSIENT = "Transient"  # name of a failure that a retry may repair: a killed stage or a locked DVC, never a stage's own error
STATES: dict[dvc.Outcome, str] = {"ran": "Ran", "cached": "FromCache", "unchanged": "UpToDate"}  # names of completed states
WORDS = {"Ran": "ran", "FromCache": "done before: taken from the cache", "UpToDate": "up to date"}
StageName = Annotated[str, Field(pattern=dvc.STAGE_NAME, max_length=200)]


def end_last(path: Path) -> None:
    """Mark the run that `path` names, and its tasks, as crashed unless they have ended; then write this run's id to `path`.

    The caller must hold the lock that only one run at a time can hold, so the last run has ended, even if Prefect says otherwise.
    """
    last = None
    with suppress(OSError, ValueError):
        last = UUID(path.read_text(encoding="utf-8"))
    if last and str(last) != runtime.flow_run.id:
        client, crashed = get_client(sync_client=True), Crashed(message="its process was killed; found by the next run")
        with suppress(ObjectNotFound):  # it was on another server
            if not ((state := client.read_flow_run(last).state) and state.is_final()):
                for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[last]))):
                    if not (task_run.state and task_run.state.is_final()):
                        client.set_task_run_state(task_run.id, crashed, force=True)
                client.set_flow_run_state(last, crashed, force=True)
    disk.write_text(path, runtime.flow_run.id or "")


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


lanes: ContextVar[Lanes | None] = ContextVar("lanes", default=None)  # of this run


class Work:
    """The stages of one pipeline, and how they run. `title` is shown before each stage in lanes."""

    def __init__(
        self, root: Path, stages: Sequence[dvc.Stage], log: TextIO, title: str, force: bool, retries: int, wait_seconds: float
    ):
        self.root, self.stages, self.log = root, stages, log
        self.force, self.retries, self.wait_seconds = force, retries, wait_seconds
        self.environment: dict[str, str] = {}
        self.done: dict[str, str] = {}  # name of the state, by stage
        self.failure: tuple[str, str] | None = None  # the stage, and its message
        self.lanes = lanes.get()
        width, digits = max(len(stage.name) for stage in stages), len(str(len(stages)))
        title = f"{title}: " if self.lanes else ""
        self._heads = {
            stage.name: f"{title}[{number:>{digits}}/{len(stages)}] {stage.name:<{width}}"
            for number, stage in enumerate(stages, start=1)
        }

    def run(self, changed: set[str], environment: dict[str, str], report: Callable[[str, str], None]) -> None:
        """Run the stages that `changed`, or need one with new outputs, until one fails; `report` gets their names and states."""
        self.environment = environment
        renewed: set[str] = set()
        for stage in self.stages:
            name, before = stage.name, dvc.entry_of(self.root, stage.name).get("outs")
            if name not in changed and renewed.isdisjoint(stage.needs):
                tell(f"{self._heads[name]}  {WORDS[STATES['unchanged']]}")
                state = note_up_to_date(name, return_state=True)
            else:
                row, start = Row(self.log, self._heads[name], self.lanes is not None), time.monotonic()
                try:
                    state = run_stage.with_options(retries=self.retries)(name, self, row, return_state=True)
                    row.ended(f"{WORDS.get(state.name, 'failed')}, {duration(time.monotonic() - start)}")
                finally:
                    row.close()
            if not state.is_completed():
                self.failure = name, state.message or "no message"
                return
            self.done[name] = state.name
            if before is None or dvc.entry_of(self.root, name).get("outs") != before:
                renewed.add(name)
            report(name, state.name)

    def digest(self, stage: str) -> str:
        """Digest of what makes a stage's result, except code, which all lanes share."""
        found = next(one for one in self.stages if one.name == stage)
        outs = {name: dvc.entry_of(self.root, name).get("outs") for name in sorted(found.needs)}
        return hashing.digest(dvc.sections(self.root, [stage])[stage], outs, stage)


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_delay_seconds=10,
    retry_condition_fn=lambda task, run, state: state.name == TRANSIENT,
)
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
        with work.lanes.alone(work.digest(stage)) if work.lanes else nullcontext():
            locks.wait_until_free(work.root, work.wait_seconds, notice)
            try:
                outcome = dvc.repro(work.root, stage, say, work.force, work.environment, note=row.note)
            finally:
                if repaired := dvc.keep_lock_intact(work.root):
                    notice(repaired)
    except dvc.StageFailed as failed:
        transient = failed.transient and not (work.lanes and work.lanes.stopped)
        return Failed(name=TRANSIENT if transient else None, message="\n".join(failed.lines))
    except UserError as error:
        return Failed(message=str(error))
    if outcome == "unchanged" and runtime.task_run.run_count > 1:  # an earlier attempt was killed after it had made the outputs
        outcome = "cached"
    return Completed(name=STATES[outcome])


@task(name="up to date", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def note_up_to_date(stage: str) -> State[Any]:
    """Record a stage without running it: it is unchanged, and so are the outputs of all stages that it needs."""
    return Completed(name=STATES["unchanged"], message=f"{stage} did not change")


@task(name="push", retries=len(PUSH_DELAYS), retry_delay_seconds=PUSH_DELAYS, cache_policy=NO_CACHE, persist_result=False)
def push_outputs(project: Path) -> remote.Pushed:
    """Copy the results to DVC's default remote; an artifact has how much and how long."""
    try:
        pushed = remote.push(project)
    except UserError as error:
        if (tries := runtime.task_run.run_count) <= len(PUSH_DELAYS):
            _say(f"Not pushed: {error}; next try in {PUSH_DELAYS[tries - 1]} s")
        raise
    create_markdown_artifact(
        f"| remote | objects | bytes | seconds |\n|---|---|---|---|\n"
        f"| {pushed.remote} | {pushed.objects} | {pushed.size} | {pushed.seconds:.1f} |",
        key="push",
        description=str(pushed),
    )
    return pushed


@flow(name="pipeline", persist_result=False)
def pipeline(
    stages: Annotated[list[StageName], Field(max_length=200)] = [],  # noqa: B006 - Prefect shows it as the form's default
    force: bool = False,
    retries: Annotated[int, Field(ge=0, le=3)] = 1,
    wait_minutes: Annotated[float, Field(ge=0, le=locks.MOST_MINUTES)] = 0,
    push: bool = False,
    project: Path | None = None,
) -> State[Any]:
    """Bring the project up to date, as `dvc repro` does: `stages` and their dependencies (none named: the whole graph).

    `force` runs stages even if nothing changed; `retries` apply to stages that were killed or found DVC locked, never to a stage's
    own error; `wait_minutes` is how long to wait for another `dvc repro`; `push` copies the results to DVC's default remote.
    `project` is the checkout (default: the current directory).
    """
    root = (project or Path.cwd()).resolve()
    try:
        check_urls(document := read_yaml(root / "params.yaml"), "params")
        dvc.check_sections(root, document)
        if push:
            remote.check(root)
        with locks.only_one(root, wait_minutes * 60, _say):
            end_last(root / ".dvc" / "tmp" / "pipeline.run")
            dvc.check_changes(root, _say)
            if added := ledger.update(root):
                _say(f"{ledger.FILE} was out of date; added: {ledger.sources(added)}")
            (root / LOG).parent.mkdir(exist_ok=True)
            with (root / LOG).open("w", encoding="utf-8") as log:
                state = _pipeline(root, stages, force, retries, wait_minutes * 60, log)
            return _pushed(root, state) if push and state.is_completed() else state
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"pipeline: {error}")
        return Failed(message=str(error))


def _pushed(root: Path, built: State[Any]) -> State[Any]:
    """`built` once its results are in the remote; Failed if they cannot get there."""
    state = push_outputs(root, return_state=True)
    if not state.is_completed():
        why = str(state.result(raise_on_failure=False))
        tell(f"Not pushed: {why}\nEverything is built; run it again to push it.")
        return Failed(message=f"built, but not pushed: {why}")
    tell(f"Pushed   {state.result()}")
    return built


def _say(line: str) -> None:
    get_run_logger().info(line)
    tell(line)


def _pipeline(root: Path, names: list[str], force: bool, retries: int, wait_seconds: float, log: TextIO) -> State[Any]:
    if repaired := dvc.keep_lock_intact(root):
        _say(repaired)
    chosen = select(dvc.stages(root), names)
    for name, section in dvc.sections(root, [stage.name for stage in chosen]).items():
        if name.startswith("evaluate@"):
            protocols.check_weights(section.get("protocols") or [])
    name = runtime.flow_run.name if os.environ.get(tracking.PARENT) else None  # a sweep names the runs of its points
    work = Work(root, chosen, log, runtime.flow_run.name or "", force, retries, wait_seconds)
    own = {stage.name for stage in chosen}
    changed = own if force else own & dvc.changed(root).keys()
    if changed and (root / "conf/model").is_dir():  # a graph of other stages has other sections
        registry.check(read_yaml(root / "params.yaml"), root)  # now, not when their stages begin
    progress = create_progress_artifact(0.0, key="pipeline-progress", description=f"{len(chosen)} stages")

    def report(stage: str, state: str) -> None:
        update_progress_artifact(progress, progress=100.0 * len(work.done) / len(chosen), description=f"{stage}: {state}")

    pipeline_start = time.monotonic()
    tags = {"prefect_flow_run": runtime.flow_run.id or ""}
    with tracking.pipeline_run(root, name, tags=tags, first=list(scores.changed_parameters(root))) as run:
        work.run(changed, run.environment, report)
        done, failure = work.done, work.failure
        found = {family: scored for family, scored in scores.read_scores(root).items() if f"evaluate@{family}" in own}
        complete = found if not failure else {}
        with report_failure("the page of this run in MLflow"):
            run.describe(f"{scores.summary(root, complete)}\n\n{describe(chosen, done, failure)}")
            scores.record(run, root, complete)
        run.mirror(root, dvc.metrics_of(root, set(done)))
        run.set_tags({"stages_run": " ".join(name for name, state in done.items() if state == "Ran") or "none"})
        if failure:
            message = f"stage {failure[0]} failed:\n{failure[1]}"
            run.fail(message)
        page = run.page
        link = page or run.browser
        create_link_artifact(link, "The run in MLflow (`make browse`)", key="mlflow", description=f"[{link}]({link})")
    if failure:
        _show_failure(root, *failure)
        for line in run.not_recorded:
            _say(line)
        return Failed(message=message)
    create_markdown_artifact(scores.markdown(found), key="pipeline-scores", description="Scores, each with its baselines")
    closing = [f"Log      {scores.shown(root / LOG, root)}", f"Done in {duration(time.monotonic() - pipeline_start)}."]
    tell("\n".join([*scores.closing_lines(root, found, page), *closing]))
    for line in run.not_recorded:
        _say(line)
    return Completed(message=f"{sum(state == 'Ran' for state in done.values())} of {len(chosen)} stages ran")


def select(graph: list[dvc.Stage], names: list[str]) -> list[dvc.Stage]:
    """The stages named (`train@ddpm_mel`, or `train` for all its variants) with their dependencies; none named: all."""
    if not names:
        return graph
    keep: set[str] = set()
    for name in names:
        matching = [stage for stage in graph if stage.name == name or stage.name.partition("@")[0] == name]
        if not matching:
            params.choose({stage.name: stage for stage in graph}, name, "stage")
        keep.update(*({stage.name} | stage.needs for stage in matching))
    return [stage for stage in graph if stage.name in keep]


def _show_failure(root: Path, stage: str, message: str) -> None:
    lines = "\n".join(f"    {line}" for line in message.splitlines())
    card = f"`{stage}`: {message.splitlines()[-1].strip()}"
    create_markdown_artifact(f"Stage `{stage}` failed; its last lines:\n\n{lines}", key="failed-stage", description=card)
    tell(
        f"\nstage {stage} failed; its last lines:\n{lines}\n"
        f"Finished stages and their metrics are kept. Fix the error and run again, to continue with {stage}.\n"
        f"Log      {scores.shown(root / LOG, root)}"
    )


def describe(chosen: list[dvc.Stage], done: dict[str, str], failure: tuple[str, str] | None) -> str:
    """The stages, for the pipeline's page in MLflow."""
    state = {stage.name: WORDS.get(done.get(stage.name, ""), "not reached") for stage in chosen}
    parts = []
    if failure:
        state[failure[0]] = "**failed**"
        parts.append(f"Stage `{failure[0]}` failed:\n\n```\n{failure[1]}\n```")
    parts.append("| stage | |\n|---|---|\n" + "\n".join(f"| {name} | {word} |" for name, word in state.items()))
    return "\n\n".join(parts)


def run_to_end(name: str, parts: str, flow: Callable[[], State]) -> int:
    """Run a flow with the configured Prefect server, or else a temporary one; returns the exit status."""
    url = server.address()
    tell(f"Prefect server {url}" if url else "Starting Prefect (a local server for this run) …")
    try:
        with server.use(url) if url else server.own_server():
            state = flow()
        if isinstance(error := state.result(raise_on_failure=False), httpx.HTTPError | OSError):
            raise error
        if isinstance(error, Exception) and not isinstance(error, FailedRun):  # of what failed otherwise, the flow has told
            tell(f"{name}: {reason(error)}; finished {parts} are kept")
    except UserError as error:
        tell(f"{name}: {error}")
        return 1
    except KeyboardInterrupt:
        tell(f"{name}: interrupted; finished {parts} are kept, run it again to continue")
        return 130
    except httpx.HTTPError as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        logging.raiseExceptions = False  # otherwise Prefect reports every log line that it could not send, until the end
        tell(f"{name}: Prefect's server is gone ({why}); finished {parts} are kept, run it again to continue")
        return 1
    except OSError as error:
        tell(f"{name}: {fault_of_disk(error, Path.cwd())}: finished {parts} are kept")
        return 1
    return 0 if state.is_completed() else 1
