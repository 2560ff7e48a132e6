"""How sweeps and bake-offs run: the pipeline of one row after another in a workspace, then the table of all."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger
from prefect.states import Completed, Failed, State

from flows import crashed_runs, lanes, locks, publishing
from flows.pipeline import pipeline
from flows.results_table import ResultsTable
from flows.scores import shown
from flows.terminal import tell
from soundmill import params as parameters
from soundmill import tracking
from soundmill.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Trials:
    """The rows of a sweep or a bake-off: how they are run, and what comes out."""

    home: Path
    name: str  # of the run in MLflow: `sweep/mixup`, `bakeoff`
    directory: Path  # of the results
    rows: Sequence[str]
    document: dict[str, Any]  # the parameters of the first
    run: Callable[[int, Path], Any]  # a row, by its number, in a workspace
    ended: Callable[[int, Any], Any]  # what came of it
    finish: Callable[[list[Path]], tuple[ResultsTable, list[str]]]  # the table, which is written, and the rows that failed

    def carry_out(self) -> State[Any]:
        """Run the rows in lanes of workspaces, then publish their table; Failed if some failed."""
        kind, _, which = self.name.partition("/")
        places = lanes.workspaces(self.home, self.name.replace("/", "-"), self.document, len(self.rows))  # with the current code
        tell(f"{self.name}: {len(self.rows)} rows in {shown(places[0], self.home)}")
        tags = {"kind": kind, **({kind: which} if which else {})}
        with tracking.pipeline_run(self.home, self.name, root=places[0], tags=tags) as record:
            with nested_under(record.environment):
                lanes.run_all(self.rows, places, self.document, self.run, self.ended)
            results, failed = self.finish(places)
            page = publishing.record(record, self.directory, results)
            message = f"{len(failed)} of {len(self.rows)} rows failed: {'; '.join(failed)}"
            if failed:
                record.fail(message)
        key = re.sub("[^a-z0-9]+", "-", self.name.lower())
        publishing.show(self.home, self.directory, key, results, record, page)
        if failed:
            tell(f"{kind}: {message}. Run it again to retry only these: finished work is kept.")
        if results.verdict:
            tell(results.verdict)
        return Failed(message=message) if failed else Completed(message=f"{len(self.rows)} rows")


def start(kind: str, directory: Path, plan: Callable[[], T], trials: Callable[[T], Trials]) -> State[Any]:
    """Plan trials, then carry them out alone; a mistake in the plan is told before anything runs."""
    try:
        planned = plan()
        with locks.exclusive_lock(directory / "lock"):
            crashed_runs.end_last(directory / "flow.run")
            return trials(planned).carry_out()
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"{kind}: {error}")
        return Failed(message=str(error))


def run_pipeline(workspace: Path, document: dict[str, Any], stages: Sequence[str], name: str) -> str | None:
    """Run these stages in a workspace with these parameters; returns the reason of a failure in one line."""
    with locks.only_one(workspace, 0, tell):  # DVC would record a running stage with the new parameters
        parameters.write_yaml(document, workspace / "params.yaml")
    state = pipeline.with_options(flow_run_name=name)(list(stages), project=workspace, return_state=True)
    if state.is_completed():
        return None
    lines = [line.strip() for line in (state.message or "no message").splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]]))[:400]  # the stage and its last line


@contextmanager
def nested_under(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, so that runs started inside are nested under the run that they name."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def comma_separated(text: str) -> list[str]:
    """Comma-separated words of an argument."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of an argument, at least one."""
    if not comma_separated(text) or not all(part.isdigit() for part in comma_separated(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be comma-separated whole numbers")
    return [int(part) for part in comma_separated(text)]
