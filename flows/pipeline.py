"""The whole pipeline as a Prefect flow: one task per DVC stage, recorded in MLflow; `python -m flows.pipeline` runs it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

# What a person at a terminal reads comes from `tell` below; the same lines and more are in Prefect's own log.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")

import httpx
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows import dvc, lockfile, locks, server
from flows.sweep_table import metrics_in
from soundmill import tracking
from soundmill.errors import UserError
from soundmill.params import did_you_mean

RETRY_DELAY_SECONDS = 10
BROWSER_PORT = 5000  # of `make browse`
MAY_PASS = "MayPass"  # name of a failed state that another try may mend: killed, or locked out; a stage's own error is not

STATES: dict[dvc.Outcome, str] = {"ran": "Ran", "cached": "FromCache", "unchanged": "UpToDate"}  # names of completed states
WORDS = {"Ran": "ran", "FromCache": "done before: taken from the cache", "UpToDate": "up to date"}

StageName = Annotated[str, Field(pattern=r"^[\w@./-]+$", max_length=200)]


def tell(line: str) -> None:
    print(line, flush=True)


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, project: Path, force: bool, wait_seconds: float, extra: dict[str, str]) -> State[Any]:
    """`dvc repro --single-item STAGE`; its lines go to Prefect's log and to the terminal as they come."""
    logger = get_run_logger()

    def say(line: str) -> None:
        logger.info(line)
        tell(f"    {line}")

    try:
        locks.wait_until_free(project, wait_seconds, say)
        mended = lockfile.keep_whole(project)
        if mended:
            say(mended)
        outcome = dvc.repro(project, stage, say, force, extra)
    except dvc.StageFailed as failed:
        return Failed(name=MAY_PASS if failed.passing else None, message="\n".join(failed.lines))
    except UserError as error:
        return Failed(message=str(error))
    finally:
        mended = lockfile.keep_whole(project)
        if mended:
            say(mended)
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
            dvc.check_changes(root, _say)
            return _pipeline(root, stages, force, retries, wait_minutes * 60)
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"pipeline: {error}")
        return Failed(message=str(error))


def _say(line: str) -> None:
    get_run_logger().info(line)
    tell(line)


def _pipeline(root: Path, wanted: list[str], force: bool, retries: int, wait_seconds: float) -> State[Any]:
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
    with tracking.pipeline_run(root, f"pipeline {runtime.flow_run.name or ''}".strip(), tags=tags) as run:
        extra = run.environment
        failure = None
        for number, stage in enumerate(chosen, start=1):
            head = f"[{number:>{len(str(len(chosen)))}}/{len(chosen)}] {stage.name:<{width}}"
            renewed_above = any(done.get(name) not in (None, STATES["unchanged"]) for name in stage.needs)
            if force or stage.name in changed or renewed_above:
                tell(head)
                begun = time.monotonic()
                options = {"retries": retries, "retry_delay_seconds": RETRY_DELAY_SECONDS, "retry_condition_fn": may_pass}
                state = run_stage.with_options(**options)(stage.name, root, force, wait_seconds, extra, return_state=True)
                if state.is_completed():
                    tell(f"    {WORDS[state.name]}, {time.monotonic() - begun:.0f} s")
            else:
                state = note_up_to_date(stage.name, return_state=True)
                tell(f"{head}  up to date")
            if not state.is_completed():
                failure = (stage.name, state.message or "no message")
                break
            done[stage.name] = state.name
            update_progress_artifact(progress, progress=100.0 * number / len(chosen), description=f"{stage.name}: {state.name}")
        run.mirror(root, dvc.metrics_of(root, set(done)))
        scores = read_scores(root)
        run.describe(describe(chosen, done, failure, scores if not failure else {}))
        run.set_tags({"stages_run": " ".join(name for name, state in done.items() if state == "Ran") or "none"})
        if failure:
            message = f"stage {failure[0]} failed:\n{failure[1]}"
            run.fail(message)
        page = run.page(BROWSER_PORT)
    if failure:
        tell(f"\nstage {failure[0]} failed; its own last lines:\n" + "\n".join(f"    {line}" for line in failure[1].splitlines()))
        tell(f"Finished stages and their metrics are kept; mend it and run again: it goes on with {failure[0]}.")
        for line in run.not_recorded:
            _say(line)
        return Failed(message=message)
    create_markdown_artifact(markdown(scores), key="pipeline-scores", description="Scores, each with its baselines")
    for line in summary(root, scores, page, time.monotonic() - started):
        tell(line)
    for line in run.not_recorded:
        _say(line)
    return Completed(message=f"{sum(state == 'Ran' for state in done.values())} of {len(chosen)} stages ran")


def choose(graph: list[dvc.Stage], wanted: list[str]) -> list[dvc.Stage]:
    """The stages named (`train@ddpm_mel`, or `train` for all its variants) with all they need; none named: all."""
    if not wanted:
        return graph
    keep: set[str] = set()
    for name in wanted:
        found = [stage for stage in graph if stage.name == name or stage.name.partition("@")[0] == name]
        if not found:
            names = [stage.name for stage in graph]
            raise UserError(f"no stage {name!r}{did_you_mean(name, names)} (stages: {', '.join(names)})")
        keep.update(*({stage.name} | stage.needs for stage in found))
    return [stage for stage in graph if stage.name in keep]


# ---------------------------------------------------------------------------------------------------------------------
# What a person reads at the end


def read_scores(root: Path) -> dict[str, dict[str, Any]]:
    """`data/metrics/evaluate/<family>.json` of every family that has one."""
    scores = {}
    for path in sorted((root / "data" / "metrics" / "evaluate").glob("*.json")):
        try:
            scores[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            tell(f"{path}: not readable as JSON ({error}); run `dvc repro` to make it again")
    return scores


def rows(scores: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A header, then a row per family and score: the value and its baselines."""
    names: list[str] = []
    for metrics in scores.values():
        for key in metrics_in([metrics]):
            names += [name for name in metrics["baselines"][key] if name not in names]
    order = ["floor", "real", "codec_floor", "codec", "silence", "noise", "chance"]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    table = [["family", "score", "value", *(name.replace("_", " ") for name in names)]]
    for family, metrics in scores.items():
        for key in metrics_in([metrics]):
            baselines, unranked = metrics["baselines"][key], "†" if key in metrics.get("unranked", {}) else ""
            cells = (f"{baselines[name]:.3g}" if name in baselines else "" for name in names)
            table.append([family, key, f"{metrics[key]:.3g}{unranked}", *cells])
    return table


def _unlike(scores: dict[str, dict[str, Any]]) -> list[str]:
    """A line where families were scored by different protocols."""
    protocols = {family: metrics.get("protocol") for family, metrics in scores.items()}
    if len(set(protocols.values())) < 2:
        return []
    said = ", ".join(f"{family} by {protocol}" for family, protocol in protocols.items())
    return [f"  These scores do not compare: {said}; `dvc repro` scores all by the newest"]


def markdown(scores: dict[str, dict[str, Any]]) -> str:
    table = rows(scores)
    if len(table) == 1:
        return "No scores with baselines in data/metrics/evaluate."
    head, *body = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def describe(
    chosen: list[dvc.Stage], done: dict[str, str], failure: tuple[str, str] | None, scores: dict[str, dict[str, Any]]
) -> str:
    """The text on top of the pipeline's page in MLflow."""
    state = {stage.name: WORDS.get(done.get(stage.name, ""), "not reached") for stage in chosen}
    parts = [markdown(scores)] if len(rows(scores)) > 1 else []
    if failure:
        state[failure[0]] = "**failed**"
        parts.append(f"Stage `{failure[0]}` failed:\n\n```\n{failure[1]}\n```")
    parts.append("| stage | |\n|---|---|\n" + "\n".join(f"| {name} | {word} |" for name, word in state.items()))
    return "\n\n".join(parts)


def summary(root: Path, scores: dict[str, dict[str, Any]], page: str | None, seconds: float) -> list[str]:
    """The last lines on the terminal: scores, where the sounds lie, how to look at the run."""
    lines = [""]
    table = rows(scores)
    if len(table) > 1:
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            cells = [
                cell.ljust(width) if index < 2 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [
            "  fad, mmd, kl: lower is better; label_accuracy: higher. Beside it the same score of real clips, the codec, silence",
            *(["  † ranks no models; the report says why"] if any("†" in row[2] for row in table) else []),
            *_unlike(scores),
            "",
        ]
    for family in scores:
        sounds = sorted((root / "data" / "generated" / family).glob("*.wav"))
        if sounds:
            lines.append(f"Sounds   {_shown(sounds[0].parent, root)} (WAV files: {len(sounds)})")
        report = root / "data" / "report" / family / "index.html"
        if report.exists():
            lines.append(f"Report   {_shown(report, root)} (open it in a web browser: the sounds next to real ones)")
    lines.append("Runs     make browse" + (f", then {page}" if page else ""))
    minutes, rest = divmod(round(seconds), 60)
    lines.append(f"Done in {minutes} min {rest:02d} s.")
    return lines


def _shown(path: Path, root: Path) -> Path:
    """As a person would type it from the project, also when the pipeline runs in one of its workspaces."""
    home = root.parents[1] if root.parent.name == tracking.WORKSPACES else root
    return path.relative_to(home)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline", description="Bring the project up to date, recorded and watched."
    )
    parser.add_argument("stages", nargs="*", help="stages, with all they need (default: the whole graph)")
    parser.add_argument("--force", action="store_true", help="run them even if nothing changed")
    parser.add_argument("--retries", type=int, default=1, choices=range(4), help="for stages that are killed or locked out")
    parser.add_argument("--wait-minutes", type=float, default=0, help="how long to wait for somebody else's repro")
    args = parser.parse_args(argv)
    if not Path("dvc.yaml").exists():
        tell("pipeline: no dvc.yaml here; run it from the root of a Soundmill checkout")
        return 1
    return run(args.stages, args.force, args.retries, args.wait_minutes)


def run(stages: list[str], force: bool, retries: int, wait_minutes: float) -> int:
    return run_to_end("pipeline", "stages", lambda: pipeline(stages, force, retries, wait_minutes, return_state=True))


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


if __name__ == "__main__":
    # Prefect finds a flow by its module's name, and `__main__` is not one.
    from flows import pipeline as module

    sys.exit(module.main())
