"""A table of a paper as a Prefect flow: every point of a sweep file goes through the pipeline; `python -m flows.sweep mixup`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from flows import checkout, crashed_runs, dvc, locks, publishing, sweep_figure, sweep_table
from flows.pipeline import BROWSER_PORT, run_to_end
from flows.scores import read_scores
from flows.sweep_points import absolute_paths, listed, nested_under, numbers, run_pipeline
from flows.sweep_table import Outcome, Row
from flows.terminal import tell
from soundmill import params as parameters
from soundmill import tracking
from soundmill.errors import UserError, report_failure
from soundmill.params import Seed, StageParams, did_you_mean

# isort: split
from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State
from pydantic import Field, StringConstraints

FILES = Path("conf/sweep")
RESULTS = Path("sweeps")  # below the project: a folder for each sweep
TARGET = "evaluate"  # the stage that scores; it and all it needs are run
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]
PointName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,60}$")]  # MLflow takes no other metric names
Measure = Annotated[str, StringConstraints(pattern=f"^({'|'.join(sweep_table.PAPER)})$")]


class Seeds(StageParams):
    keys: list[str] = Field(description="parameters that a seed is put into; `{family}` stands for every family of the point")
    values: list[Seed] = Field(min_length=1, description="each point is run with each of them")


class Paper(StageParams):
    source: str = Field(description="which table of which paper")
    protocol: str = Field(description="by which protocol its numbers were measured")
    files: str | None = Field(description="digest of its reference list, as in `files.reference` of our metrics; null: not known")
    rows: dict[PointName, dict[Measure, float]] = Field(description="its numbers, by the name of our row")


class Sweep(StageParams):
    """A file of conf/sweep."""

    title: str
    overrides: list[str] = Field(description="of every point, as after `soundmill params`")
    points: dict[PointName, list[str]] = Field(min_length=1, description="the rows, first the one that others are compared with")
    subsets: str | None = Field(description="a grouping of `evaluate.subsets`: its groups are the rows; null: the points are")
    seeds: Seeds
    paper: Paper | None


@dataclass(frozen=True)
class Run:
    """One point with one seed: what it changes, and params.yaml as that composes."""

    point: str
    seed: int
    overrides: list[str]
    document: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.point}, seed {self.seed}"


def files(home: Path) -> dict[str, Path]:
    """The sweep files of a project, by name."""
    return {path.stem: path for path in sorted((home / FILES).glob("*.yaml"))}


def read(home: Path, name: str) -> Sweep:
    """One sweep file; a mistake in it, or none of that name, raises UserError naming file and key."""
    known = files(home)
    if name not in known:
        names = ", ".join(known) or "none"
        raise UserError(f"no sweep {name!r} in {home / FILES}{did_you_mean(name, list(known))} (there are: {names})")
    path = known[name]
    return parameters.parse(Sweep, parameters.read_yaml(path), str(path))


def plan(home: Path, wanted: Sweep, extra: Sequence[str], points: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every run of a sweep, the first seed of all points first, so that a whole table is there early.

    `extra` are overrides of all points, `points` and `seeds` take the place of the file's (none: the file's). Paths that are
    given relative to the project (`./` or `../`) are made absolute: a point is run elsewhere. An override that cannot be
    composed, or that the points differ in, raises UserError.
    """
    chosen = {point: wanted.points[point] for point in _choose(wanted, points)}
    varied = {_key(override) for overrides in wanted.points.values() for override in overrides}
    for override in extra:
        if _key(override) in varied:
            raise UserError(f"{override}: the points of this sweep differ in {_key(override)}; choose among them with --points")
    values = list(seeds) or wanted.seeds.values
    if len(values) > 1 and not wanted.seeds.keys:
        raise UserError("seeds.keys: empty, so several seeds would be the same run; name the parameters that a seed is put into")
    subsets = [f"evaluate.subsets=[{wanted.subsets}]"] if wanted.subsets else []
    runs = []
    for seed in values:
        for point, own in chosen.items():
            overrides = [*wanted.overrides, *subsets, *extra, *own]
            document = _compose(home, overrides, point)
            families = list(document.get("families") or {})
            keys = dict.fromkeys(key.replace("{family}", family) for key in wanted.seeds.keys for family in families)
            overrides += [f"{key}={seed}" for key in keys] + absolute_paths(document, home)
            runs.append(Run(point, seed, overrides, _compose(home, overrides, point)))
    return runs


def _choose(wanted: Sweep, points: Sequence[str]) -> list[str]:
    for point in points:
        if point not in wanted.points:
            raise UserError(f"no point {point!r}{did_you_mean(point, list(wanted.points))} (points: {', '.join(wanted.points)})")
    return [point for point in wanted.points if not points or point in points]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _compose(home: Path, overrides: list[str], point: str) -> dict[str, Any]:
    try:
        return parameters.compose(home / "conf", overrides)
    except UserError as error:
        raise UserError(f"point {point!r}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Running


@flow(name="sweep", flow_run_name="sweep {name}", persist_result=False)
def sweep(
    name: Name,
    overrides: Annotated[list[str], Field(max_length=200)] = [],  # noqa: B006 - Prefect shows it as the form's default
    points: Annotated[list[PointName], Field(max_length=200)] = [],  # noqa: B006
    seeds: Annotated[list[Seed], Field(max_length=100)] = [],  # noqa: B006
    project: Path | None = None,
) -> State[Any]:
    """Run every point of conf/sweep/NAME.yaml, one after the other, and put the scores into one table and one figure.

    `overrides` are of all points; `points` and `seeds` take the place of the file's. A point that fails does not keep the
    others from running. `project` is the checkout (default: the directory this runs in).
    """
    home = (project or Path.cwd()).resolve()
    try:
        wanted = read(home, name)
        runs = plan(home, wanted, overrides, points, seeds)
        with locks.exclusive_lock(home / RESULTS / name / "lock"):
            crashed_runs.end_last(home / RESULTS / name / "flow.run")
            return _sweep(home, name, wanted, runs)
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"sweep: {error}")
        return Failed(message=str(error))


def _sweep(home: Path, name: str, wanted: Sweep, runs: list[Run]) -> State[Any]:
    workspace = checkout.workspace(home, f"sweep-{name}", runs[0].document)  # the code of all points is that of now
    results = home / RESULTS / name
    source = wanted.paper.source if wanted.paper else None
    tell(f"sweep {name}: {wanted.title}; {len(runs)} runs in {_shown(workspace, home)}")
    outcomes: list[Outcome] = []
    failed: list[Run] = []
    with tracking.pipeline_run(home, f"sweep/{name}", root=workspace, tags={"kind": "sweep", "sweep": name}) as record:
        for number, run in enumerate(runs, start=1):
            own = " ".join(override for override in run.overrides if override not in wanted.overrides)
            tell(f"\n== {name} {number}/{len(runs)}: {run} ({own})")
            begun = time.monotonic()
            with nested_under(record.environment):
                finished = _run(workspace, name, wanted, run)
            reasons = [outcome.failure for outcome in finished if outcome.failure]
            tell(f"== {run}: {f'failed: {reasons[0]}' if reasons else 'done'}, {time.monotonic() - begun:.0f} s")
            outcomes += finished
            failed += [run] if reasons else []
            rows = _rows(wanted, outcomes)
            _write(results, wanted.title, rows, source)
        table = sweep_table.markdown(wanted.title, rows, source)
        record.describe(table)
        record.log_metrics_tree({row.name: {metric: score.total.value for metric, score in row.scores.items()} for row in rows})
        for file in ("table.md", "table.csv", "table.json"):
            record.log_file(results / file)
        record.log_figure(results / "figure.png", "figure.png")
        page = record.page(BROWSER_PORT)
        message = f"{len(failed)} of {len(runs)} runs failed: {'; '.join(map(str, failed))}"
        if failed:
            record.fail(message)
    with report_failure("the table and the figure in Prefect"):
        key = f"sweep-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        publishing.show_in_prefect(results, key, wanted.title, sweep_table.table(rows), table, page)
    tell(f"\n{table}")
    tell(f"Table    {_shown(results / 'table.md', home)} (beside it table.csv, with the numbers of each seed)")
    tell(f"Figure   {_shown(results / 'figure.png', home)}")
    tell("Runs     make browse" + (f", then {page}" if page else ""))
    for line in record.not_recorded:
        tell(line)
    if failed:
        tell(f"sweep: {message}. The others are done; run it again to try what failed, nothing else is run a second time.")
        return Failed(message=message)
    return Completed(message=f"{len(runs)} runs")


def _run(workspace: Path, name: str, wanted: Sweep, run: Run) -> list[Outcome]:
    """Bring the workspace to a run's parameters and through the pipeline; its rows, or one that says why there are none."""
    if failure := run_pipeline(workspace, run.document, [TARGET], f"{name}: {run}"):
        return [Outcome(run.point, run.seed, failure=failure)]
    scores = read_scores(workspace)
    return [row for family in run.document["families"] for row in _rows_of(run, wanted, family, scores.get(family))]


def _rows_of(run: Run, wanted: Sweep, family: str, metrics: dict[str, Any] | None) -> list[Outcome]:
    row = run.point if len(run.document["families"]) == 1 else f"{run.point} {family}"
    if metrics is None:
        return [Outcome(row, run.seed, failure=f"data/metrics/evaluate/{family}.json is not there")]
    if wanted.subsets is None:
        return [Outcome(row, run.seed, metrics)]
    groups = metrics.get("subsets", {}).get(wanted.subsets, {})
    if not groups:
        return [Outcome(row, run.seed, failure=f"no clip of this corpus belongs to a group of {wanted.subsets!r}")]
    prefix = "" if len(wanted.points) == 1 and row == run.point else f"{row} "
    shared = {key: metrics[key] for key in ("protocol", "files", "embedders")}
    return [Outcome(f"{prefix}{group}", run.seed, {**shared, **scores}) for group, scores in groups.items()]


def _rows(wanted: Sweep, outcomes: Sequence[Outcome]) -> list[Row]:
    theirs = wanted.paper
    return sweep_table.make_rows(
        outcomes, theirs.rows if theirs else {}, theirs.protocol if theirs else "", theirs.files if theirs else None
    )


def _write(results: Path, title: str, rows: list[Row], source: str | None) -> None:
    document = {"title": title, "paper": source, "rows": [asdict(row) for row in rows]}
    contents = {
        "table.md": sweep_table.markdown(title, rows, source),
        "table.csv": sweep_table.csv_text(rows),
        "table.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }
    publishing.write(results, contents)
    publishing.write_figure(results, lambda: sweep_figure.draw(title, rows))


def _shown(path: Path, home: Path) -> Path:
    return path.relative_to(home)


def queue(home: Path, name: str, runs: Sequence[Run]) -> None:
    """Put every run into DVC's queue; the sweep, run afterwards, finds what the queue has done in DVC's cache."""
    dvc.check_changes(home, tell)
    for number, run in enumerate(runs, start=1):
        experiment = re.sub("[^A-Za-z0-9]+", "-", f"sweep {name} {run.point} seed {run.seed}")
        tell(f"[{number}/{len(runs)}] queued {dvc.queue(home, experiment, run.overrides)}")


# ---------------------------------------------------------------------------------------------------------------------
# The command


HELP = """\
Run every point of conf/sweep/NAME.yaml through the pipeline, and put the scores into one table and one figure.

  python -m flows.sweep                                   which sweeps there are
  python -m flows.sweep mixup                             this one, over the embedded corpus
  python -m flows.sweep mixup corpus=esc corpus.path=DIR tango.train.steps=2000 --seeds 0,1,2
  python -m flows.sweep steps --points 10,50              only these rows
  python -m flows.sweep mixup --queue                     by DVC's queue; run the sweep afterwards for the table

Points are run in workspaces/sweep-NAME and share DVC's cache: what two of them have in common is made once, and a sweep
that was stopped goes on where it was. The results are in sweeps/NAME, in MLflow and in Prefect."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a file of conf/sweep, without its ending")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all points, as after `soundmill params`")
    parser.add_argument("--points", type=listed, default=[], metavar="A,B", help="only these points (default: all of the file)")
    parser.add_argument("--seeds", type=numbers, default=[], metavar="0,1,2", help="run each point with each of them")
    parser.add_argument("--queue", action="store_true", help="put the runs into DVC's queue instead of running them")
    args = parser.parse_intermixed_args(argv)
    if not Path("dvc.yaml").exists():
        tell("sweep: no dvc.yaml here; run it from the root of a Soundmill checkout")
        return 1
    try:
        home = Path.cwd()
        if args.name is None:
            for name in files(home):
                tell(f"{name:<12} {read(home, name).title}")
            tell("\n`python -m flows.sweep --help` says how to run them")
            return 0
        runs = plan(home, read(home, args.name), args.overrides, args.points, args.seeds)
        if args.queue:
            queue(home, args.name, runs)
            started = f"PATH={Path(dvc.executable()).parent}:$PATH dvc queue start"  # its worker looks for dvc there
            tell(f"start it with `{started}`, watch it with `dvc queue status`; then run this again without --queue")
            return 0
    except UserError as error:
        tell(f"sweep: {error}")
        return 1
    return run_to_end("sweep", "points", lambda: sweep(args.name, args.overrides, args.points, args.seeds, return_state=True))


if __name__ == "__main__":
    # Prefect finds a flow by its module's name, and `__main__` is not one.
    from flows import sweep as module

    sys.exit(module.main())
