"""How sweeps and bake-offs run: a file of conf/ has their rows; the pipeline of one after another, then the table of all."""

import os
import queue
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from pydantic import Field, StringConstraints

from flows import checkout, dvc, locks, publishing
from flows.pipeline import Lanes, end_last, pipeline
from flows.pipeline import lanes as running_lanes
from flows.results_table import ResultsTable
from flows.scores import shown
from flows.terminal import tell
from soundmill import params as parameters
from soundmill import shards, tracking
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.params import ExecutionParams, LanesParams, StageParams, choose

T = TypeVar("T")
VISIBLE = "CUDA_VISIBLE_DEVICES"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$"  # of a sweep, a family, a folder of sounds
Name = Annotated[str, StringConstraints(pattern=NAME)]
PointName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,60}$")]  # as MLflow allows in metric names
FAMILY = "{family}"  # in overrides and keys of seeds: every family of the point


class Plan(StageParams):
    """A file of conf/sweep or conf/bakeoff."""

    title: str
    overrides: list[str] = Field(
        [], description="for every point, as in `soundmill params`; `{family}` stands for every family of it"
    )
    points: dict[PointName, list[str]] = Field(description="the rows")


@dataclass(frozen=True)
class Trial:
    """A row of a plan: its overrides, and the params.yaml that they compose."""

    name: str
    overrides: list[str]
    document: dict[str, Any]

    def __str__(self) -> str:
        return self.name


def files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(kind: type[T], folder: Path, name: str, what: str) -> T:
    """One of the plans in a folder; UserError names the file and key of a mistake, or the plans there are."""
    return read_file(kind, choose(files(folder), name, what))


def read_file(kind: type[T], path: Path) -> T:
    return parameters.parse(kind, parameters.read_yaml(path), str(path))


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def of_families(texts: Sequence[str], families: Sequence[str]) -> list[str]:
    """The texts, those with `{family}` once for every family."""
    return [text.replace(FAMILY, family) for text in texts for family in (families if FAMILY in text else [""])]


def refuse_varied(points: Mapping[str, Sequence[str]], families: Sequence[str], extra: Sequence[str], option: str) -> None:
    """UserError if one of the `extra` overrides would make the points alike; `option` chooses among them."""
    varied = {key_of(one) for own in points.values() for one in of_families(own, families)}
    for override in extra:
        if key_of(override) in varied:
            raise UserError(f"{override}: the points differ in {key_of(override)}; choose among them with {option}")


def compose(home: Path, name: str, overrides: Sequence[str], families: Sequence[str]) -> Trial:
    """A row with these overrides. Paths relative to the project (`./` or `../`) become absolute, because it runs in a workspace.

    UserError if the pipeline would refuse its parameters, perhaps after hours of other rows.
    """
    overrides = of_families(overrides, families)
    document = registry.compose(home / "conf", overrides)
    dvc.check_sections(home, document)
    if (home / "conf/model").is_dir():  # a graph of other stages has other sections
        registry.check(document, home)
    paths = []
    for key, value in tracking.flatten(document).items():
        if isinstance(value, str) and (absolute := checkout.with_absolute_paths(value, home)) != value:
            quoted = absolute.replace("\\", "\\\\").replace("'", "\\'")
            paths.append(f"{key}='{quoted}'")
    return Trial(name, overrides + paths, document)


@dataclass
class Trials(ABC):
    """The rows of a sweep or a bake-off: how one is run, and what comes out."""

    home: Path
    name: str  # of the run in MLflow: `sweep/table4`, `bakeoff`
    directory: Path  # of the results
    rows: Sequence[Trial]
    came: dict[int, Any] = field(default_factory=dict, kw_only=True)  # of the rows that have ended, by their numbers

    @abstractmethod
    def run(self, index: int, workspace: Path) -> Any:
        """Run a row in a workspace; of several lanes, in a thread."""

    def ended(self) -> None:  # noqa: B027 (only a sweep does something then)
        """Called after each row, in the flow's own thread."""

    @abstractmethod
    def finish(self, workspaces: Sequence[Path]) -> tuple[ResultsTable, list[str]]:
        """Write the table and what belongs to it; also returns the rows that failed."""

    def carry_out(self) -> State[Any]:
        """Run the rows in lanes of workspaces, then publish their table; Failed if some failed."""
        kind, _, which = self.name.partition("/")
        document, names = self.rows[0].document, list(map(str, self.rows))
        lanes = parameters.parse_section(document, "execution", ExecutionParams).lanes
        numbers = range(1, min(len(names), lanes.number) + 1)
        folders = [self.name.replace("/", "-") + (f".lane{number}" if number > 1 else "") for number in numbers]
        places = [checkout.workspace(self.home, folder, document) for folder in folders]  # with the current code
        tell(f"{self.name}: {len(names)} rows in {shown(places[0], self.home)}")
        tags = {"kind": kind, **({kind: which} if which else {})}
        with tracking.pipeline_run(self.home, self.name, root=places[0], tags=tags) as record:
            with nested_under(record.environment):
                self._run_all(list(zip(places, gpus_of(lanes), strict=False)))
            results, failed = self.finish(places)
            page = publishing.record(record, self.directory, results)
            message = f"{len(failed)} of {len(names)} rows failed: {'; '.join(failed)}"
            if failed:
                record.fail(message)
        key = re.sub("[^a-z0-9]+", "-", self.name.lower())
        publishing.show(self.home, self.directory, key, results, record, page)
        if failed:
            tell(f"{kind}: {message}. Run it again to retry only these: finished work is kept.")
        if results.verdict:
            tell(results.verdict)
        return Failed(message=message) if failed else Completed(message=f"{len(names)} rows")

    def _run_all(self, free: list[tuple[Path, dict[str, str]]]) -> None:
        """Run the rows in these workspaces, each with its variables: in one, one after the other; in several, as Prefect tasks."""

        def in_lane(index: int, place: Path, variables: dict[str, str]) -> Any:
            with dvc.with_variables(variables):
                return self.run(index, place)

        if len(free) == 1:
            for index, _ in enumerate(self.rows):
                self.came[index] = in_lane(index, *free[0])
                self.ended()
            return
        lanes, waiting, done = Lanes(), list(range(len(self.rows))), queue.SimpleQueue()
        running: dict[int, Any] = {}
        before = running_lanes.set(lanes)
        try:
            while waiting or running:
                while waiting and free:
                    index, lane = waiting.pop(0), free.pop(0)
                    future = _in_lane.submit(str(self.rows[index]), lambda index=index, lane=lane: in_lane(index, *lane))
                    running[index] = future, lane
                    future.add_done_callback(lambda _, index=index: done.put(index))
                index = done.get()
                future, lane = running.pop(index)
                self.came[index] = future.result()
                self.ended()
                free.append(lane)
        except BaseException:
            lanes.stopped = True
            dvc.interrupt()
            raise
        finally:
            running_lanes.reset(before)


@task(name="lane", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _in_lane(name: str, run: Callable[[], Any]) -> Any:
    return run()


def gpus_of(params: LanesParams) -> list[dict[str, str]]:
    """The variables of each lane that show it its own GPUs only; none if `gpus` is 0."""
    if not params.gpus:
        return [{}] * params.number
    wanted = params.number * params.gpus
    names = shards.visible_gpus()
    if len(names) < wanted:
        raise UserError(f"execution.lanes: {wanted} GPUs are needed, and {len(names)} visible ({VISIBLE}); lower number or gpus")
    return [{VISIBLE: ",".join(names[start : start + params.gpus])} for start in range(0, wanted, params.gpus)]


def start(kind: str, directory: Path, plan: Callable[[], Trials]) -> State[Any]:
    """Plan trials, then carry them out alone; a mistake in the plan is told before anything runs."""
    try:
        planned = plan()
        with locks.exclusive_lock(directory / "lock"):
            end_last(directory / "flow.run")
            return planned.carry_out()
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
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(seeds: str) -> list[int]:
    """Comma-separated whole numbers, at least one."""
    if not comma_separated(seeds) or not all(part.isdecimal() for part in comma_separated(seeds)):
        raise UserError(f"--seeds {seeds!r}: must be comma-separated whole numbers")
    return [int(part) for part in comma_separated(seeds)]
