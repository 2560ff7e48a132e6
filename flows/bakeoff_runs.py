"""One row of a bake-off: times its steps, then trains, generates and scores it with every seed."""

import csv
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import dvc
from flows.bakeoff_models import TIMED_STEPS, Model
from flows.results_rows import Row, Training, slope, without_score
from flows.results_scores import scores_under
from flows.scores import read_json
from flows.terminal import tell
from flows.trials import run_pipeline
from soundmill import disk, tracking
from soundmill.errors import UserError
from soundmill.models import registry

IRRELEVANT = ("attribution", "evaluate", "rename", "execution")  # sections that change neither a training nor its sounds


def row(workspace: Path, home: Path, results: Path, model: Model, minutes: float, seeds: Sequence[int]) -> Row:
    """Time a model's steps unless that is done; then train, generate and score it with every seed."""
    name, kind = model.name, registry.family(model.family).title
    steps: dict[str, int] = {}
    measured = {}
    try:
        for stage, share in model.shares.items():
            measured[stage] = measure(workspace, home, results, model, stage, steps, seeds[0])
            steps[stage] = max(1, round(60 * minutes * share / measured[stage]["seconds_per_step"]))
    except UserError as error:
        return without_score(name, str(error), kind=kind)
    trainings = [Training(stage, count, count * measured[stage]["seconds_per_step"] / 60) for stage, count in steps.items()]
    tell(f"== {name}: " + ", ".join(f"{one.stage} {one.steps:,} steps in {one.minutes:.3g} minutes" for one in trainings))
    peak = max(facts["peak_memory_bytes"] for facts in measured.values())
    runs = {}
    for seed in seeds:
        directory = results / "runs" / f"{name}-{seed}"
        try:
            runs[seed] = _run(workspace, model, model.params(home, steps, seed), seed, list(steps), directory)
        except UserError as error:
            return without_score(name, str(error), kind=kind, trainings=trainings, peak_memory_bytes=peak)
    first = runs[seeds[0]]
    return Row(
        name,
        scores_under(chosen_embedder(first), {seed: run["scores"] for seed, run in runs.items()}),
        kind=kind,
        parameters=sum(first["parameters"].values()),
        trainings=[replace(one, slope=slope(first["held_out"][one.stage])) for one in trainings],
        peak_memory_bytes=peak,
        seconds_per_second=first["seconds_per_second"],
    )


def measure(
    workspace: Path, home: Path, results: Path, model: Model, stage: str, earlier: dict[str, int], seed: int
) -> dict[str, float]:
    """`seconds_per_step` and `peak_memory_bytes` of a training, from a few steps; kept, so that a rerun trains as many.

    The `earlier` trainings that it needs are done with their own steps, so that the model's run finds them in DVC's cache.
    """
    family, target = model.family, f"{stage}@{model.family}"
    document = model.params(home, {**earlier, stage: TIMED_STEPS}, seed, timed=stage)
    read = {section: content for section, content in document.items() if section not in IRRELEVANT}
    read[family] = {section: content for section, content in read[family].items() if section != "generate"}
    path = _measured(results, model.name, stage)
    kept = read_json(path)
    if kept.get("params") == read:
        return kept["measured"]
    with dvc.with_variables({tracking.TRIAL: "1"}):
        measured, took = _timed(
            workspace, document, target, f"bakeoff: {model.name}, timing {stage}", family, earlier, stage, "seconds_per_step"
        )
    if "seconds_per_step" not in measured:
        raise UserError(f"{target}: a step could not be timed")
    kept = {"params": read, "measured": measured, "took": took}
    disk.write_atomically(path, lambda file: file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8"))
    return measured


def _run(
    workspace: Path, model: Model, document: dict[str, Any], seed: int, stages: Sequence[str], directory: Path
) -> dict[str, Any]:
    """Train, generate and score with one seed; results and sounds are copied to `directory`, as the next seed replaces them.

    For results from DVC's cache, the recorded times are those of the run that made them.
    """
    family, before = model.family, read_json(directory / "run.json")
    read = {name: content for name, content in document.items() if name not in IRRELEVANT}
    if before.get("params") != read:
        before = {}
    known = "seconds_per_second" if before.get("seconds_per_second") is None else ""
    made, took = _timed(
        workspace, document, f"evaluate@{family}", f"bakeoff: {model.name}, seed {seed}", family, stages, "generate", known
    )
    data = workspace / "data"
    kept = {
        "params": read,
        "embedders": document["evaluate"]["embedders"],
        "scores": read_json(data / "metrics" / "evaluate" / f"{family}.json"),
        "parameters": {stage: read_json(data / "metrics" / stage / f"{family}.json").get("parameters", 0) for stage in stages},
        "seconds_per_second": made.get("seconds_per_second") or before.get("seconds_per_second"),
        "held_out": {stage: _held_out(data / "plots" / "loss" / f"{stage}_{family}.csv") for stage in stages},
        "took": max(before.get("took", took), took, key=lambda one: one["training"]),
    }
    for name in ("generated", "codec"):
        shutil.rmtree(directory / name, ignore_errors=True)
        if (data / name / family).is_dir():
            shutil.copytree(data / name / family, directory / name)
    (directory / "report").mkdir(parents=True, exist_ok=True)
    for name in ("scores.json", "sounds.csv"):
        shutil.copyfile(data / "report" / family / name, directory / "report" / name)
    disk.write_atomically(directory / "run.json", lambda path: path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8"))
    return kept


def _timed(
    workspace: Path,
    document: dict[str, Any],
    target: str,
    name: str,
    family: str,
    trainings: Iterable[str],
    stage: str,
    wanted: str,
) -> tuple[dict[str, float], dict[str, float]]:
    """Run a family's `target`; returns what `stage` measured of itself, and the seconds that all and its `trainings` took.

    If the stage came from DVC's cache, or was resumed, so that what is `wanted` was not measured, it runs again.
    """
    costs = {one: _cost(workspace, one, family) for one in (*trainings, stage)}
    for cost in costs.values():
        cost.unlink(missing_ok=True)
    start = time.monotonic()
    if why := run_pipeline(workspace, document, [target], name):
        raise UserError(why)
    if wanted and not read_json(costs[stage]).get(wanted):
        dvc.repro(workspace, f"{stage}@{family}", tell, force=True)
    training = sum(read_json(costs[one]).get("seconds", 0.0) for one in trainings)
    return read_json(costs[stage]), {"seconds": time.monotonic() - start, "training": training}


def _cost(workspace: Path, stage: str, family: str) -> Path:
    return workspace / "data" / ".work" / f"{stage}-{family}" / "cost.json"


def _measured(results: Path, row: str, stage: str) -> Path:
    return results / "measured" / f"{row}-{stage}.json"


def _held_out(curve: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation of the held-out clips."""
    with curve.open(encoding="utf-8", newline="") as file:
        return [(int(point["step"]), float(point["loss/valid"])) for point in csv.DictReader(file) if point.get("loss/valid")]


def total_seconds(results: Path, rows: Sequence[Row], seeds: Sequence[int]) -> tuple[float, float]:
    """Seconds for timing, training, generating and scoring these rows, and for training alone, as recorded when each was done."""
    files = [results / "runs" / f"{row.name}-{seed}" / "run.json" for row in rows for seed in seeds]
    files += [_measured(results, row.name, training.stage) for row in rows for training in row.trainings]
    took = [read_json(file).get("took", {}) for file in files]
    return sum(one.get("seconds", 0.0) for one in took), sum(one.get("training", 0.0) for one in took)


def chosen_embedder(run: dict[str, Any]) -> str:
    """The embedder that rows are compared by: the first of `evaluate.embedders` that was used and is not trained on this corpus.

    Predictors of ratings are passed over: they have no distances.
    """
    from soundmill.evaluation import embedders

    used = [name for name in run["embedders"] if isinstance(run["scores"]["embedders"].get(name), dict)]
    usable = [name for name in used if not embedders.find(name).ratings]
    return next((name for name in usable if name != "tagger"), "tagger")
