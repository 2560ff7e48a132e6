"""A sweep as a Prefect flow: runs the pipeline at every point of a sweep file; `soundmill sweep NAME` runs it."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from flows import publishing, results_table, trials
from flows.results import PAPER, Outcome, make_rows
from flows.results_table import ResultsTable
from flows.scores import read_scores
from flows.terminal import tell
from flows.trials import Name, PointName, key_of, of_families, run_pipeline
from soundmill.errors import UserError, reason
from soundmill.hashing import tree_digest
from soundmill.models import registry
from soundmill.params import Seed, StageParams, choose

# isort: split
from prefect import flow, get_run_logger
from prefect.states import State
from pydantic import Field, StringConstraints, model_validator

FILES = Path("conf/sweep")
RESULTS = Path("sweeps")  # in the project, a folder per sweep
TARGET = "evaluate"  # the stage to run, with its dependencies
Measure = Annotated[str, StringConstraints(pattern=f"^({'|'.join(PAPER)})$")]


class Seeds(StageParams):
    keys: list[str] = Field(
        ["mixup.seed", "{family}.train.seed", "{family}.generate.seed"],
        description="parameters that are set to the seed, with `{family}` as well",
    )
    values: list[Seed] = Field([0], min_length=1, description="each point runs with each of them")


class Paper(StageParams):
    source: str = Field(description="which table of which paper")
    protocol: str = Field(description="label of the protocol of its numbers, as `protocol` in our metrics")
    files: str | None = Field(None, description="digest of its reference list, as `files.reference` in our metrics; null: unknown")
    rows: dict[PointName, dict[Measure, float]] = Field(description="its numbers by the name of our row")


class Sweep(trials.Plan):
    """A file of conf/sweep."""

    points: dict[PointName, list[str]] = Field(min_length=1, description="the rows; the others are compared with the first")
    subsets: str | None = Field(None, description="a grouping of `evaluate.subsets`; its groups are the rows (null: points are)")
    seeds: Seeds = Seeds()
    paper: Paper | None = None
    knee: bool = Field(False, description="the points are in order of cost: name the cheapest that is as good as the best")
    start_from: dict[PointName, PointName] = Field({}, description="point → an earlier one, with whose model its training starts")

    @model_validator(mode="after")
    def _starts_are_earlier(self) -> Self:
        places = {name: place for place, name in enumerate(self.points)}
        for name, base in self.start_from.items():
            if base not in places or places[base] >= places.get(name, 0):
                raise ValueError(f"start_from: {name!r} must be a point, and {base!r} one before it")
        return self


@dataclass(frozen=True)
class Run(trials.Trial):
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def read(home: Path, name: str) -> Sweep:
    return trials.read(Sweep, home / FILES, name, "sweep")


def plan(home: Path, definition: Sweep, extra: Sequence[str], points: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every run of a sweep, the first seed of all points first, so that the table is complete early.

    `extra` are overrides of all points; `points` and `seeds` replace the file's unless empty. UserError if an override cannot be
    composed, or sets a parameter in which the points differ.
    """
    for point in points:
        choose(definition.points, point, "point")
    chosen = [point for point in definition.points if not points or point in points]
    for name in chosen:
        if (base := definition.start_from.get(name)) and base not in chosen:
            raise UserError(f"--points: {name!r} starts from the model of {base!r}; choose that too")
    values = list(seeds) or definition.seeds.values
    if len(values) > 1 and not definition.seeds.keys:
        raise UserError("the sweep's seeds.keys: empty, so all seeds would give one run; name the parameters to set to the seed")
    subsets = [f"evaluate.subsets=[{definition.subsets}]"] if definition.subsets else []
    prepared = []
    for point in chosen:
        overrides = [*definition.overrides, *subsets, *extra, *definition.points[point]]
        choices = [override for override in overrides if (home / "conf" / key_of(override)).is_dir()]
        with _about(point):
            families = list(registry.compose(home / "conf", choices).get("families") or {})
        trials.refuse_varied(definition.points, families, extra, "--points")
        with _about(point):
            prepared.append((trials.compose(home, point, overrides, families), of_families(definition.seeds.keys, families)))
    runs = []
    for seed in values:
        for trial, keys in prepared:
            seeded = [*trial.overrides, *(f"{key}={seed}" for key in keys)]
            with _about(trial.name):
                runs.append(Run(trial.name, seeded, registry.compose(home / "conf", seeded), seed))
    if definition.start_from and runs[0].document["execution"]["lanes"]["number"] > 1:
        raise UserError("execution.lanes.number: must be 1, because trainings start from the models of earlier points")
    return runs


@contextmanager
def _about(point: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"point {point!r}: {error}") from None


@flow(name="sweep", flow_run_name="sweep {name}", persist_result=False)
def sweep(
    name: Name,
    overrides: Annotated[list[str], Field(max_length=200)] = [],  # noqa: B006 - Prefect shows it as the form's default
    points: Annotated[list[PointName], Field(max_length=200)] = [],  # noqa: B006
    seeds: Annotated[list[Seed], Field(max_length=100)] = [],  # noqa: B006
    project: Path | None = None,
) -> State[Any]:
    """Run every point of conf/sweep/NAME.yaml in turn, and collect the scores in one table and one figure.

    `overrides` apply to all points; `points` and `seeds` replace the file's. If a point fails, the others still run. `project` is
    the checkout (default: the current directory).
    """
    home = (project or Path.cwd()).resolve()

    def planned() -> Points:
        definition = read(home, name)
        return Points(home, f"sweep/{name}", home / RESULTS / name, plan(home, definition, overrides, points, seeds), definition)

    return trials.start("sweep", home / RESULTS / name, planned)


@dataclass
class Points(trials.Trials):
    definition: Sweep

    def run(self, index: int, workspace: Path) -> list[Outcome]:
        run, name, start = self.rows[index], self.name.removeprefix("sweep/"), time.monotonic()
        own = " ".join(override for override in run.overrides if override not in self.definition.overrides)
        tell(f"\n== {name} {index + 1}/{len(self.rows)}: {run} ({own})")
        base, is_base = self.definition.start_from.get(run.name), run.name in self.definition.start_from.values()
        shutil.rmtree(self._kept(run.name, run.seed), ignore_errors=True)
        try:
            failure = (base and self._start(run, base)) or run_pipeline(workspace, run.document, [TARGET], f"{name}: {run}")
            if is_base and not failure:
                self._keep(run, workspace)
        except Exception as error:  # a failure costs only its point
            get_run_logger().exception(str(run))
            failure = reason(error)
        if failure:
            rows = [Outcome(run.name, run.seed, failure=failure)]
        else:
            scores = read_scores(workspace)
            rows = [
                row for family in run.document["families"] for row in _rows_of(run, self.definition, family, scores.get(family))
            ]
        reasons = [outcome.failure for outcome in rows if outcome.failure]
        tell(f"== {run}: {f'failed: {reasons[0]}' if reasons else 'done'}, {time.monotonic() - start:.0f} s")
        return rows

    def _kept(self, point: str, seed: int) -> Path:
        return self.directory / "models" / f"{point} {seed}"

    def _keep(self, run: Run, workspace: Path) -> None:
        """Copy its models, because DVC removes them before the next training; DVC compares names alone: they have the digests."""
        for family in run.document["families"]:
            model = workspace / "data" / "models" / family
            shutil.copytree(model, self._kept(run.name, run.seed) / f"{family} {tree_digest(model)[:12]}")

    def _start(self, run: Run, base: str) -> str | None:
        """Make its trainings start from the kept models of `base`; returns why they cannot."""
        for family in run.document["families"]:
            found = next(self._kept(base, run.seed).glob(f"{family} *"), None)
            if found is None:
                return f"there is no model of {base!r} to start from"
            run.document[family]["train"]["start_from"] = str(found)
        return None

    def ended(self) -> None:
        self.finish()

    def finish(self, workspaces: Sequence[Path] = ()) -> tuple[ResultsTable, list[str]]:
        paper, done = self.definition.paper, sorted(self.came.items())
        published = (paper.rows, paper.protocol, paper.files) if paper else ({}, "", None)
        rows = make_rows([outcome for _, outcomes in done for outcome in outcomes], *published)
        results = results_table.of_sweep(self.definition.title, rows, paper.source if paper else None, self.definition.knee)
        publishing.write(self.directory, results)
        return results, [str(self.rows[index]) for index, outcomes in done if any(one.failure for one in outcomes)]


def _rows_of(run: Run, definition: Sweep, family: str, metrics: dict[str, Any] | None) -> list[Outcome]:
    row = run.name if len(run.document["families"]) == 1 else f"{run.name} {family}"
    if metrics is None:
        return [Outcome(row, run.seed, failure=f"data/metrics/evaluate/{family}.json does not exist")]
    if definition.subsets is None:
        return [Outcome(row, run.seed, metrics)]
    groups = metrics.get("subsets", {}).get(definition.subsets, {})
    if not groups:
        return [Outcome(row, run.seed, failure=f"no clip of this corpus belongs to a group of {definition.subsets!r}")]
    prefix = "" if len(definition.points) == 1 and row == run.name else f"{row} "
    return [Outcome(f"{prefix}{group}", run.seed, of_group(metrics, definition.subsets, group)) for group in groups]


def of_group(metrics: dict[str, Any], grouping: str, group: str) -> dict[str, Any]:
    """A group's scores, also by other protocols, in the form of a whole evaluation's."""
    of_all = {key: metrics[key] for key in ("protocol", "files", "embedders")}
    others = {name: of_group(block, grouping, group) for name, block in metrics.get("protocols", {}).items()}
    scored = {name: one for name, one in others.items() if "baselines" in one}
    return {**of_all, **metrics["subsets"][grouping][group], "protocols": scored}
