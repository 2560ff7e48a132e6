"""A bake-off as a Prefect flow: every family trains for the same time on the same recordings; `soundmill bakeoff DIR` runs it."""

import csv
import json
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from flows import dvc, publishing, results_table, trials
from flows.results import Difference, Row, Training, chosen_embedder, not_ranked, scores_under, slope, without_score
from flows.results_table import ResultsTable, in_words
from flows.scores import read_json
from flows.terminal import tell
from flows.trials import NAME, Name, run_pipeline
from soundmill import clips, disk, tracking
from soundmill import params as parameters
from soundmill.errors import UserError, reason, report_failure
from soundmill.evaluation import embedders, protocols
from soundmill.models import registry
from soundmill.params import Seed, choose

# isort: split
from prefect import flow, get_run_logger
from prefect.states import State
from pydantic import Field, field_validator

RESULTS = Path("data/report/bakeoff")
IRRELEVANT = ("attribution", "evaluate", "rename", "execution")  # sections that change neither a training nor its sounds
FILE = Path("conf/bakeoff.yaml")
FILES = Path("conf/bakeoff")
SECTIONS = {"train": "{family}.train", "autoencoder": "{family}.autoencoder.weights", "vocoder": "vocoder.weights"}
MODEL = "model="  # the override that chooses a family
CORPUS = "synthetic"  # by default
TIMED_STEPS = 15  # of each training, to estimate how many fit into its minutes
MAX_VALIDATIONS = 20  # per training; not counted in its minutes, and none during the timed steps
WARM_UP_STEPS = 3  # of the timed steps, not counted (soundmill/training/curve.py)
SCHEDULE = re.compile(r"(^|\.)(phase_1_steps|warmup_steps)$")  # parameters that scale with a training's steps


# Who takes part: models, and each training's share of the minutes


class BakeOff(trials.Plan):
    """conf/bakeoff.yaml, or a file of conf/bakeoff."""

    points: dict[Name, list[str]] = Field({}, description="the rows, each with its `model=FAMILY` ({}: a row for every family)")
    families: dict[Name, list[str]] = Field(description="overrides for one family")

    @field_validator("points")
    @classmethod
    def _each_is_of_a_family(cls, points: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, overrides in points.items():
            models = [override.partition("=")[2] for override in overrides if trials.key_of(override) == "model"]
            if len(models) != 1 or not re.fullmatch(trials.NAME, models[0]):
                raise ValueError(f"{name}: names no family, or several; give one, as `model=FAMILY`")
        return points


@dataclass(frozen=True)
class Model(trials.Trial):
    """A family, or a combination, in a bake-off, without steps and seed; and each training's share of the minutes."""

    family: str
    shares: dict[str, float]

    @property
    def variant(self) -> str:
        return self.document["families"][self.family]["clips"]

    def params(self, home: Path, steps: dict[str, int], seed: int, timed: str | None = None) -> dict[str, Any]:
        """The content of params.yaml with these steps per training; schedules counted in steps are scaled with them.

        `timed` names the training that only times its steps: its schedules are scaled to the steps after the warm-up, and its
        sample grid is as small as possible.
        """
        own = [f"{self.family}.generate.seed={seed}"]
        for stage, count in steps.items():
            section = SECTIONS[stage].format(family=self.family)
            values = parameters.section(self.document, section, "params.yaml")
            own += [
                f"{section}.steps={count}",
                f"{section}.seed={seed}",
                f"{section}.validate_every_steps={max(TIMED_STEPS, count // MAX_VALIDATIONS)}",
            ]
            if "epochs" in values:
                own.append(f"{section}.epochs=null")
            if stage == timed and "grid" in values:  # drawing samples would take longer than the steps
                own += [f"{section}.grid.columns=1", f"{section}.grid.rows=1"]
            if values["steps"]:  # null if the training is counted in epochs
                uncounted = WARM_UP_STEPS if stage == timed else 0
                share = (count - uncounted) / values["steps"]
                own += [
                    f"{section}.{key}={max(1, uncounted + round(value * share))}"
                    for key, value in tracking.flatten(values).items()
                    if value and SCHEDULE.search(key)
                ]
        return registry.compose(home / "conf", [*self.overrides, *own])


def read_plan(home: Path, name: str = "") -> BakeOff:
    """The plan of conf/bakeoff.yaml; with a name, that of conf/bakeoff/NAME.yaml, after the overrides of the first."""
    shared = trials.read_file(BakeOff, home / FILE)
    if not name:
        return shared
    named = trials.read(BakeOff, home / FILES, name, "bake-off")
    families = {
        family: [*shared.families.get(family, []), *named.families.get(family, [])] for family in shared.families | named.families
    }
    return named.model_copy(update={"overrides": [*shared.overrides, *named.overrides], "families": families})


def rows_of(home: Path, plan: BakeOff, chosen: Sequence[str] = ()) -> dict[str, tuple[str, list[str]]]:
    """The family of each row and its other overrides; `chosen` names families or rows (none: all). An unknown one: UserError."""
    points = plan.points or {family: [MODEL + family] for family in trials.files(home / "conf" / "model")}
    rows = {}
    for name, point in points.items():
        (family,) = (override.removeprefix(MODEL) for override in point if override.startswith(MODEL))
        rows[name] = family, [override for override in point if not override.startswith(MODEL)]
    known = dict.fromkeys([*rows, *(family for family, _ in rows.values())])
    for name in chosen:
        choose(known, name, "family or row")
    return {name: row for name, row in rows.items() if not chosen or {name, row[0]} & set(chosen)}


def choose_models(home: Path, plan: BakeOff, extra: Sequence[str], families: Sequence[str]) -> tuple[list[Model], list[Row]]:
    """The models that can take part, and rows with reasons for the others; `families` names families or points (none: all).

    An override in `extra` of one family's section applies to it alone. UserError if a family is unknown or none can take part.
    """
    all_families = list(trials.files(home / "conf" / "model"))
    rows = rows_of(home, plan, families)
    if chosen := [override for override in extra if override.startswith(MODEL)]:
        raise UserError(
            f"{chosen[0]}: a bake-off sets `model` for each family; choose families with --families A,B (make: FAMILIES=A,B)"
        )
    # A family's defaults may name another corpus.
    corpus = [] if any(override.startswith("corpus=") for override in extra) else [f"corpus={CORPUS}"]
    models, excluded = [], []
    for name, (family, combined) in rows.items():
        trials.refuse_varied({row: own for row, (_, own) in rows.items()}, [family], extra, "--families")
        others = {other for other in all_families if other != family}
        own = [override for override in extra if others.isdisjoint(trials.key_of(override).split("."))]
        overrides = [MODEL + family, *corpus, *plan.families.get(family, []), *plan.overrides, *combined, *own]
        try:
            trial = trials.compose(home, name, overrides, [family])
            protocols.check_weights(trial.document["evaluate"]["protocols"])
            trainings = trial.document["families"][family].get("trainings")
            if trainings is None:
                raise UserError("does not generate sound from a request")
            model = Model(**vars(trial), family=family, shares=_shares(trial.document, family, trainings))
            model.params(home, dict.fromkeys(model.shares, TIMED_STEPS), 0)
        except Exception as error:  # a mistake in one family's parameters must not stop the others
            excluded.append(without_score(name, reason(error)))
            continue
        models.append(model)
    if not models:
        raise UserError("no family can take part:" + "".join(f"\n  {row.name}: {row.why_not}" for row in excluded))
    return models, excluded


def _shares(document: dict[str, Any], family: str, trainings: dict[str, float]) -> dict[str, float]:
    """Each training's share of the minutes; components that are loaded, absent or of a closed form leave theirs to the others."""
    shares = {stage: share for stage, share in trainings.items() if share > 0 and _is_trained(document, family, stage)}
    if not shares:
        raise UserError("nothing to train: its components are loaded, or of a closed form")
    return {stage: share / sum(shares.values()) for stage, share in shares.items()}


def _is_trained(document: dict[str, Any], family: str, stage: str) -> bool:
    if stage == "vocoder" and family not in document["vocoder_families"]:
        return False
    section = SECTIONS[stage].format(family=family)
    steps = parameters.section(document, section, "params.yaml").get("steps", 0)  # null if counted in epochs
    closed_form = 1 if stage == "autoencoder" else 0  # one step: a codec's principal components alone
    return steps is None or steps > closed_form


@flow(name="bakeoff", persist_result=False)
def bakeoff(
    minutes: Annotated[float, Field(gt=0, le=60 * 24 * 7)] = 20.0,
    overrides: Annotated[list[str], Field(max_length=200)] = [],  # noqa: B006 - Prefect shows it as the form's default
    families: Annotated[list[Name], Field(max_length=50)] = [],  # noqa: B006
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=20)] = [0],  # noqa: B006
    extra: dict[Name, Path] = {},  # noqa: B006
    plan: Annotated[str, Field(max_length=60)] = "",
    project: Path | None = None,
) -> State[Any]:
    """Train every family (or `families`) for the same time on the same recordings, and score all by the same protocol.

    `overrides` choose the corpus (`corpus=esc corpus.path=DIR`); those of one family's section apply to it alone. `extra` are
    folders of WAV files, each one more row. `plan` is a file of conf/bakeoff. A killed bake-off resumes: finished work is not
    repeated. `project` is the checkout (default: the current directory).
    """
    home = (project or Path.cwd()).resolve()

    def planned() -> Contest:
        chosen = read_plan(home, plan)
        _check(home, extra, chosen.points)
        models, excluded = choose_models(home, chosen, overrides, families)
        tell(f"bakeoff: {len(models)} models for {minutes:g} minutes each, {len(seeds)} seeds")
        return Contest(home, "bakeoff", home / RESULTS, models, chosen.title, minutes, excluded, seeds, extra)

    return trials.start("bakeoff", home / RESULTS, planned)


def named_folders(texts: Sequence[str], here: Path) -> dict[str, Path]:
    """Folders by name, of `NAME=DIR`; relative ones are below `here`."""
    found: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not folder or not re.fullmatch(NAME, name):
            raise UserError(f"--extra {text!r}: must be NAME=DIR, with a name of letters, digits, dots and dashes")
        if name in found:
            raise UserError(f"--extra: several folders are named {name}; give each its own name")
        found[name] = (here / folder).resolve()
    return found


def _check(home: Path, extra: Mapping[str, Path], points: Collection[str] = ()) -> None:
    """UserError, before any training, if a folder is named like a family or another row, or its sounds cannot be opened."""
    from soundmill.listening import material

    for name, folder in extra.items():
        if name in points or (home / "conf" / "model" / f"{name}.yaml").exists():
            raise UserError(f"--extra {name}={folder}: {name} is a family or another row; give the folder another name")
        material.open_folder(folder)


@dataclass
class Contest(trials.Trials):
    title: str
    minutes: float
    excluded: list[Row]
    seeds: list[int]
    extra: dict[str, Path]
    places: dict[str, Path] = field(default_factory=dict)  # row → the workspace that has its clips

    def run(self, index: int, workspace: Path) -> Row:
        model = self.rows[index]
        self.places[model.name] = workspace
        tell(f"\n== {index + 1}/{len(self.rows)}: {model}")
        try:
            row = _row(workspace, self.home, self.directory, model, self.minutes, self.seeds)
        except Exception as error:  # a failure costs only its row
            get_run_logger().exception(model.name)
            row = without_score(model.name, reason(error))
        if row.why_not:
            tell(f"== {model}: no score: {row.why_not}")
        return row

    def finish(self, workspaces: Sequence[Path]) -> tuple[ResultsTable, list[str]]:
        """Compare all rows, and write the table, the figure and the page; also returns the rows without a score."""
        directory, start = self.directory, time.monotonic()
        variants = {model.name: model.variant for model in self.rows}
        embedder, rows = _same_embedder([self.came[index] for index, _ in enumerate(self.rows)], directory / "runs", self.seeds)
        variant, rows = _same_variant(rows, variants)
        scored = [row.name for row in rows if not row.why_not]
        _remove_others(directory / "runs", {f"{name}-{seed}" for name in scored for seed in self.seeds})
        comparable = [name for name in scored if variants[name] == variant]
        data = (self.places[comparable[0]] if comparable else workspaces[0]) / "data"
        tables = clips.Tables.of(data, variant)
        sounds = {name: directory / "runs" / f"{name}-{self.seeds[0]}" for name in scored}
        comparison = _compare(data, tables, {name: sounds[name] for name in comparable}, embedder, self.seeds[0], self.extra)
        seconds, training = total_seconds(directory, rows, self.seeds)
        total = seconds + time.monotonic() - start
        together = " (the sum over families, which ran at the same time)" if len(workspaces) > 1 else ""
        notes = _notes(self.minutes, self.seeds, comparison)
        notes.append(f"It took {total / 60:.3g} minutes in all, {training / 60:.3g} of them for training{together}.")
        results = results_table.of_bakeoff(self.title, [*rows, *comparison.rows, *self.excluded], comparison.differences, notes)
        publishing.write(directory, results)
        (directory / publishing.PAGE).unlink(missing_ok=True)  # of earlier rows
        if sounds:
            with report_failure("the page to listen to"):
                folders = {row.name: self.extra[row.name] for row in comparison.rows if not row.why_not}
                publishing.write_page(directory, tables, results, sounds, folders)
        return results, [row.name for row in rows if row.why_not]


# A row: times its steps, then trains, generates and scores with every seed


def _row(workspace: Path, home: Path, results: Path, model: Model, minutes: float, seeds: Sequence[int]) -> Row:
    """Time a model's steps unless that is done; then train, generate and score it with every seed."""
    facts: dict[str, Any] = {"kind": registry.family(model.family).title}
    steps: dict[str, int] = {}
    measured = {}
    try:
        for stage, share in model.shares.items():
            measured[stage] = measure(workspace, home, results, model, stage, steps, seeds[0])
            steps[stage] = max(1, round(60 * minutes * share / measured[stage]["seconds_per_step"]))
        trainings = [Training(stage, count, count * measured[stage]["seconds_per_step"] / 60) for stage, count in steps.items()]
        facts |= {"trainings": trainings, "peak_memory_bytes": max(one["peak_memory_bytes"] for one in measured.values())}
        said = ", ".join(f"{one.stage} {one.steps:,} steps in {one.minutes:.3g} minutes" for one in trainings)
        tell(f"== {model}: {said}")
        places = {seed: results / "runs" / f"{model}-{seed}" for seed in seeds}
        runs = {
            seed: _run(workspace, model, model.params(home, steps, seed), seed, list(steps), place)
            for seed, place in places.items()
        }
    except UserError as error:
        return without_score(model.name, str(error), **facts)
    first = runs[seeds[0]]
    scores = scores_under(chosen_embedder(list(runs.values())), {seed: run["scores"] for seed, run in runs.items()})
    facts["trainings"] = [replace(one, slope=slope(first["held_out"][one.stage])) for one in trainings]
    size = sum(first["parameters"].values())
    return Row(model.name, scores, **facts, parameters=size, seconds_per_second=first["seconds_per_second"])


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
        name = f"bakeoff: {model.name}, timing {stage}"
        measured, took = _timed(workspace, document, target, name, earlier, stage, "seconds_per_step")
    if "seconds_per_step" not in measured:
        raise UserError(f"{target}: a step could not be timed")
    kept = {"params": read, "measured": measured, "took": took}
    disk.write_text(path, json.dumps(kept, indent=2) + "\n")
    return measured


def _run(
    workspace: Path, model: Model, document: dict[str, Any], seed: int, stages: Sequence[str], directory: Path
) -> dict[str, Any]:
    """Train, generate and score with one seed; sounds go to `directory`, and times are of the run that made the results."""
    family, before = model.family, read_json(directory / "run.json")
    read = {name: content for name, content in document.items() if name not in IRRELEVANT}
    if before.get("params") != read:
        before = {}
    known = "seconds_per_second" if before.get("seconds_per_second") is None else ""
    name = f"bakeoff: {model.name}, seed {seed}"
    made, took = _timed(workspace, document, f"evaluate@{family}", name, stages, "generate", known)
    data = workspace / "data"
    scores = data / "metrics" / "evaluate" / f"{family}.json"
    if any(isinstance(why, str) and not embedders.unavailable(one) for one, why in read_json(scores).get("embedders", {}).items()):
        dvc.repro(workspace, f"evaluate@{family}", tell, force=True)  # its weights came after the scores
    kept = {
        "params": read,
        "embedders": document["evaluate"]["embedders"],
        "scores": read_json(scores),
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
    disk.write_text(directory / "run.json", json.dumps(kept, indent=2) + "\n")
    return kept


def _timed(
    workspace: Path, document: dict[str, Any], target: str, name: str, trainings: Iterable[str], stage: str, wanted: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Run a family's `target`; returns what `stage` measured of itself, and the seconds that all and its `trainings` took.

    If the stage came from DVC's cache, or was resumed, so that what is `wanted` was not measured, it runs again.
    """
    family = target.partition("@")[2]
    costs = {one: workspace / "data/.work" / f"{one}-{family}" / "cost.json" for one in (*trainings, stage)}
    for cost in costs.values():
        cost.unlink(missing_ok=True)
    start = time.monotonic()
    if why := run_pipeline(workspace, document, [target], name):
        raise UserError(why)
    if wanted and not read_json(costs[stage]).get(wanted):
        dvc.repro(workspace, f"{stage}@{family}", tell, force=True)
    training = sum(read_json(costs[one]).get("seconds", 0.0) for one in trainings)
    return read_json(costs[stage]), {"seconds": time.monotonic() - start, "training": training}


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


# All rows together


def _remove_others(runs: Path, kept: set[str]) -> None:
    """Remove the sounds of other families, seeds and corpora; DVC's cache can restore them."""
    for directory in runs.glob("*"):
        if directory.name not in kept:
            shutil.rmtree(directory)


@dataclass(frozen=True)
class Comparison:
    """All rows compared: rows of `extra` folders, and the differences between rows."""

    rows: Sequence[Row] = ()
    differences: Sequence[Difference] = ()
    embedder: str = ""
    unpaired: Sequence[str] = ()  # rows whose sounds answer other requests than most
    fault: str = ""  # why nothing could be compared


def _same_embedder(rows: Sequence[Row], runs: Path, seeds: Sequence[int]) -> tuple[str, list[Row]]:
    """The embedder that rows are compared by, and the rows with its scores; one may lack those of another, for want of weights."""
    found = {row.name: {seed: read_json(runs / f"{row.name}-{seed}" / "run.json") for seed in seeds} for row in rows if row.scores}
    embedder = chosen_embedder([run for of_row in found.values() for run in of_row.values()])
    scores = {name: scores_under(embedder, {seed: run["scores"] for seed, run in own.items()}) for name, own in found.items()}
    return embedder, [replace(row, scores=scores.get(row.name, row.scores)) for row in rows]


def _same_variant(rows: Sequence[Row], variants: Mapping[str, str]) -> tuple[str, list[Row]]:
    """The clip variant that rows are compared on, and the rows; those of other variants are not ranked."""
    of_scored = [variants[row.name] for row in rows if not row.why_not]
    variant = "default" if "default" in of_scored or not of_scored else of_scored[0]

    def compared(row: Row) -> Row:
        own = variants[row.name]
        return row if own == variant else not_ranked(row, f"measured against clips of `{own}`, the others of `{variant}`")

    return variant, list(map(compared, rows))


def _compare(
    data: Path, tables: clips.Tables, runs: Mapping[str, Path], embedder: str, seed: int, extra: dict[str, Path]
) -> Comparison:
    """Compare the sounds of one seed of these rows, with the reference clips that their scores have."""
    from soundmill.evaluation import pairwise

    without_scores = [without_score(name, "nothing to compare it with", kind="a folder") for name in extra]
    if not runs:
        return Comparison(without_scores)
    first = read_json(next(iter(runs.values())) / "run.json")
    try:
        sounds, cache = {name: run / "generated" for name, run in runs.items()}, data / ".work" / "bakeoff-embeddings"
        found = pairwise.compare(sounds, extra, tables.clips, tables.catalog, first["scores"], embedder, data / "tagger", cache)
    except Exception as error:  # the table is written in any case
        get_run_logger().exception("comparing all rows")
        return Comparison(without_scores, embedder=embedder, fault=reason(error))
    rows = [Row(name, scores_under(embedder, {seed: metrics}), kind="a folder") for name, metrics in found.others.items()]
    rows += [without_score(name, " ".join(why.split()), kind="a folder") for name, why in found.failed.items()]
    return Comparison(rows, found.differences, embedder, found.unpaired)


def _notes(minutes: float, seeds: Sequence[int], comparison: Comparison) -> list[str]:
    notes = [
        f"Each family trained for {minutes:g} minutes, by the time of a step on this machine; `measured/` fixes the steps. "
        "Shared stages and the tagger are not counted. Families designed for longer training are at a disadvantage.",
        f"Scores are under {comparison.embedder}; FAD, MMD, KL and near-copies: lower is better. Near-copies are closer to a "
        "training clip than most real test clips are; their interval is Wilson's.",
        "p is from a paired permutation test over the same requests, corrected for the number of tests (Holm). One is better if p "
        "is below 0.05 and the interval excludes zero.",
        "Intervals are bootstrap 95 % intervals over clips; they do not cover other seeds."
        if len(seeds) == 1
        else f"Values are means of {len(seeds)} seeds with Student's 95 % interval over seeds; differences are of the first seed.",
    ]
    if comparison.unpaired:
        names = in_words(comparison.unpaired)
        notes.append(f"{names} generated sounds for other clips than the rest, so no paired test includes them.")
    if comparison.fault:
        notes.append(f"The models could not be compared: {comparison.fault}.")
    return notes if comparison.embedder else notes[:1]
