"""The whole pipeline as a Prefect flow: one task per DVC stage, recorded in MLflow; `python -m flows.run` runs it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

# What a person at a terminal reads comes from flows/terminal.py; all lines of the stages are in Prefect's own log too.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows import crashed_runs, dvc, lockfile, locks, server, summary
from flows.scores import closing_lines, markdown, read_scores, shown
from flows.terminal import LOG, Screen, duration, tell
from soundmill import ledger, tracking
from soundmill.errors import UserError, report_failure
from soundmill.params import did_you_mean

RETRY_DELAY_SECONDS = 10
BROWSER_PORT = 5000  # of `make browse`
MAY_PASS = "MayPass"  # name of a failed state that another try may mend: killed, or locked out; a stage's own error is not

STATES: dict[dvc.Outcome, str] = {"ran": "Ran", "cached": "FromCache", "unchanged": "UpToDate"}  # names of completed states
WORDS = {"Ran": "ran", "FromCache": "done before: taken from the cache", "UpToDate": "up to date"}

StageName = Annotated[str, Field(pattern=r"^[\w@./-]+$", max_length=200)]


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, project: Path, force: bool, wait_seconds: float, extra: dict[str, str], screen: Screen) -> State[Any]:
    """`dvc repro --single-item STAGE`; its lines go to Prefect's log and to the pipeline's as they come."""
    logger = get_run_logger()

    def notice(line: str) -> None:
        logger.info(line)
        screen.notice(line)

    def say(line: str) -> None:
        logger.info(line)
        screen.line(line)

    try:
        locks.wait_until_free(project, wait_seconds, notice)
        mended = lockfile.keep_whole(project)
        if mended:
            notice(mended)
        outcome = dvc.repro(project, stage, say, force, extra)
    except dvc.StageFailed as failed:
        return Failed(name=MAY_PASS if failed.passing else None, message="\n".join(failed.lines))
    except UserError as error:
        return Failed(message=str(error))
    finally:
        mended = lockfile.keep_whole(project)
        if mended:
            notice(mended)
    return Completed(name=STATES[outcome])


@task(name="up to date", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def note_up_to_date(stage: str) -> State[Any]:
    """A stage that `dvc status` finds unchanged, with all it needs: recorded, not run."""
    return Completed(name=STATES["unchanged"], message=f"{stage} did not change")


def may_pass(task: Any, task_run: Any, state: State[Any]) -> bool:
    return state.name == MAY_PASS


@flow(name="pipeline", persist_result=False)
def pipeline(
    stages: Annotated[list[StageName], Field(max_length=200)] = [],  # noqa: B006 - Prefect shows it as the form's default
    force: bool = False,
    retries: Annotated[int, Field(ge=0, le=3)] = 1,
    wait_minutes: Annotated[float, Field(ge=0, le=24 * 60)] = 0,
    project: Path | None = None,
) -> State[Any]:
    """Bring the project up to date, as `dvc repro` does: `stages` and all they need (none named: the whole graph).

    `force` runs them even if nothing changed; `retries` are for stages that were killed or locked out, never for a stage's own
    error; `wait_minutes` is how long to wait for somebody else's repro. `project` is the checkout (default: the directory
    this runs in).
    """
    root = (project or Path.cwd()).resolve()
    try:
        with locks.only_one(root, wait_minutes * 60, _say):
            crashed_runs.end_last(root / ".dvc" / "tmp" / "pipeline.run")
            dvc.check_changes(root, _say)
            if added := ledger.update(root):
                _say(f"{ledger.FILE} was out of date; added: {ledger.sources(added)}")
            (root / LOG).parent.mkdir(exist_ok=True)
            with (root / LOG).open("w", encoding="utf-8") as log:
                return _pipeline(root, stages, force, retries, wait_minutes * 60, Screen(log))
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"pipeline: {error}")
        return Failed(message=str(error))


def _say(line: str) -> None:
    get_run_logger().info(line)
    tell(line)


def _pipeline(root: Path, wanted: list[str], force: bool, retries: int, wait_seconds: float, screen: Screen) -> State[Any]:
    mended = lockfile.keep_whole(root)
    if mended:
        _say(mended)
    chosen = choose(dvc.stages(root), wanted)
    changed = dvc.changed(root)
    progress = create_progress_artifact(0.0, key="pipeline-progress", description=f"{len(chosen)} stages")
    done: dict[str, str] = {}
    started = time.monotonic()
    width = max(len(stage.name) for stage in chosen)
    tags = {"prefect_flow_run": runtime.flow_run.id or ""}
    name = runtime.flow_run.name if os.environ.get(tracking.PARENT) else None  # a sweep names its points
    with tracking.pipeline_run(root, name, tags=tags, first=list(summary.changed_parameters(root))) as run:
        extra = run.environment
        failure = None
        for number, stage in enumerate(chosen, start=1):
            head = f"[{number:>{len(str(len(chosen)))}}/{len(chosen)}] {stage.name:<{width}}"
            renewed_above = any(done.get(name) not in (None, STATES["unchanged"]) for name in stage.needs)
            if force or stage.name in changed or renewed_above:
                begun = time.monotonic()
                options = {"retries": retries, "retry_delay_seconds": RETRY_DELAY_SECONDS, "retry_condition_fn": may_pass}
                with screen.stage(head):
                    state = run_stage.with_options(**options)(
                        stage.name, root, force, wait_seconds, extra, screen, return_state=True
                    )
                how = WORDS.get(state.name, "failed")
                screen.ended(f"{how}, {duration(time.monotonic() - begun)}")
            else:
                state = note_up_to_date(stage.name, return_state=True)
                tell(f"{head}  {WORDS[state.name]}")
            if not state.is_completed():
                failure = (stage.name, state.message or "no message")
                break
            done[stage.name] = state.name
            update_progress_artifact(progress, progress=100.0 * number / len(chosen), description=f"{stage.name}: {state.name}")
        scores = read_scores(root)
        whole = scores if not failure else {}
        with report_failure("the page of this run in MLflow"):
            run.describe(f"{summary.markdown(root, whole)}\n\n{describe(chosen, done, failure)}")
            summary.record(run, root, whole)
        run.mirror(root, dvc.metrics_of(root, set(done)))
        run.set_tags({"stages_run": " ".join(name for name, state in done.items() if state == "Ran") or "none"})
        if failure:
            message = f"stage {failure[0]} failed:\n{failure[1]}"
            run.fail(message)
        page = run.page(BROWSER_PORT)
        link = page or run.browser(BROWSER_PORT)
        create_link_artifact(link, "The run in MLflow (`make browse`)", key="mlflow", description=f"[{link}]({link})")
    if failure:
        lines = "\n".join(f"    {line}" for line in failure[1].splitlines())
        its_end = f"Stage `{failure[0]}` failed; its last lines:\n\n{lines}"
        last = failure[1].splitlines()[-1].strip()
        create_markdown_artifact(its_end, key="failed-stage", description=f"`{failure[0]}`: {last}")  # a card shows its first line
        tell(f"\nstage {failure[0]} failed; its own last lines:\n" + "\n".join(f"    {line}" for line in failure[1].splitlines()))
        tell(f"Finished stages and their metrics are kept; mend it and run again: it goes on with {failure[0]}.")
        tell(f"Log      {shown(root / LOG, root)}")
        for line in run.not_recorded:
            _say(line)
        return Failed(message=message)
    create_markdown_artifact(markdown(scores), key="pipeline-scores", description="Scores, each with its baselines")
    for line in closing_lines(root, scores, page):
        tell(line)
    tell(f"Log      {shown(root / LOG, root)}\nDone in {duration(time.monotonic() - started)}.")
    for line in run.not_recorded:
        _say(line)
    return Completed(message=f"{sum(state == 'Ran' for state in done.values())} of {len(chosen)} stages ran")


def choose(graph: list[dvc.Stage], wanted: list[str]) -> list[dvc.Stage]:
    """The stages named (`train@ddpm_mel`, or `train` for all its variants) with all they need; none named: all."""
    if not wanted:
        return graph
    keep: set[str] = set()
    for name in wanted:
        matching = [stage for stage in graph if stage.name == name or stage.name.partition("@")[0] == name]
        if not matching:
            names = [stage.name for stage in graph]
            raise UserError(f"no stage {name!r}{did_you_mean(name, names)} (stages: {', '.join(names)})")
        keep.update(*({stage.name} | stage.needs for stage in matching))
    return [stage for stage in graph if stage.name in keep]


def describe(chosen: list[dvc.Stage], done: dict[str, str], failure: tuple[str, str] | None) -> str:
    """The stages on the pipeline's page in MLflow."""
    state = {stage.name: WORDS.get(done.get(stage.name, ""), "not reached") for stage in chosen}
    parts = []
    if failure:
        state[failure[0]] = "**failed**"
        parts.append(f"Stage `{failure[0]}` failed:\n\n```\n{failure[1]}\n```")
    parts.append("| stage | |\n|---|---|\n" + "\n".join(f"| {name} | {word} |" for name, word in state.items()))
    return "\n\n".join(parts)


def run_to_end(name: str, parts: str, flow: Callable[[], State]) -> int:
    """Run a flow against the server of PREFECT_API_URL, or one of its own for as long as it takes; returns the exit status."""
    url = server.address()
    tell(f"Prefect server {url}" if url else "Starting Prefect (its own server, on this machine, for this run) …")
    try:
        if url:
            server.check(url)
        with nullcontext() if url else server.own_server():
            state = flow()
        if isinstance(error := state.result(raise_on_failure=False), httpx.HTTPError):
            raise error
    except UserError as error:
        tell(f"{name}: {error}")
        return 1
    except KeyboardInterrupt:
        tell(f"{name}: interrupted; finished {parts} are kept, run it again to go on")
        return 130
    except httpx.HTTPError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logging.raiseExceptions = False  # or Prefect tells of every line of log that it could not send, until the very end
        tell(f"{name}: Prefect's server is gone ({reason}); finished {parts} are kept, run it again to go on")
        return 1
    return 0 if state.is_completed() else 1
