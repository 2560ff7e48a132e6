"""A bake-off as a Prefect flow: every family trains for the same time on the same recordings; `soundmill bakeoff DIR` runs it."""

import json
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from flows import bakeoff_runs, publishing, results_table, trials
from flows.bakeoff_models import Model, choose_models, in_a_line, read_plan
from flows.plans import NAME, Name
from flows.results_rows import Difference, Row, not_ranked, without_score
from flows.results_scores import scores_under
from flows.results_table import ResultsTable, in_words
from flows.terminal import tell
from soundmill.errors import UserError, report_failure
from soundmill.params import Seed

# isort: split
from prefect import flow, get_run_logger
from prefect.states import State
from pydantic import Field

RESULTS = Path("data/report/bakeoff")
Minutes = Annotated[float, Field(gt=0, le=60 * 24 * 7)]


@flow(name="bakeoff", persist_result=False)
def bakeoff(
    minutes: Minutes = 20.0,
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
        return Contest(home, chosen.title, minutes, models, excluded, seeds, extra)

    return trials.start("bakeoff", home / RESULTS, planned, Contest.trials)


def named_folders(texts: Sequence[str], here: Path) -> dict[str, Path]:
    """Folders by name, of `NAME=DIR`; relative ones are below `here`."""
    found: dict[str, Path] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not folder or not re.fullmatch(NAME, name):
            raise UserError(f"--extra {text!r}: must be NAME=DIR, with a name of letters, digits, dots and dashes")
        if name in found:
            raise UserError(f"--extra: several folders are named {name}")
        found[name] = (here / folder).resolve()
    return found


def _check(home: Path, extra: Mapping[str, Path], points: Collection[str] = ()) -> None:
    """UserError, before any training, if a folder is named like a family or another row, or its sounds cannot be opened."""
    from soundmill.listening import material

    for name, folder in extra.items():
        if name in points or (home / "conf" / "model" / f"{name}.yaml").exists():
            raise UserError(f"{name}={folder}: {name} is a family, or a row; give the folder another name")
        material.open_folder(folder)


@dataclass
class Contest:
    """A bake-off: who takes part, and what came of it."""

    home: Path
    title: str
    minutes: float
    models: list[Model]
    excluded: list[Row]
    seeds: list[int]
    extra: dict[str, Path]
    rows: dict[str, Row] = field(default_factory=dict)  # by name
    places: dict[str, Path] = field(default_factory=dict)  # row → the workspace that has its clips

    def trials(self) -> trials.Trials:
        tell(f"bakeoff: {len(self.models)} models for {self.minutes:g} minutes each, {len(self.seeds)} seeds")
        names, document = [model.name for model in self.models], self.models[0].document
        return trials.Trials(self.home, "bakeoff", self.home / RESULTS, names, document, self.run, lambda _, row: None, self.finish)

    def run(self, index: int, workspace: Path) -> None:
        model = self.models[index]
        self.places[model.name] = workspace
        tell(f"\n== {index + 1}/{len(self.models)}: {model.name}")
        try:
            row = bakeoff_runs.row(workspace, self.home, self.home / RESULTS, model, self.minutes, self.seeds)
        except Exception as error:  # a failure costs only its row
            get_run_logger().exception(model.name)
            row = without_score(model.name, in_a_line(error))
        if row.why_not:
            tell(f"== {model.name}: no score: {row.why_not}")
        self.rows[model.name] = row

    def finish(self, workspaces: list[Path]) -> tuple[ResultsTable, list[str]]:
        """Compare all rows, and write the table, the figure and the page; also returns the rows without a score."""
        directory, start = self.home / RESULTS, time.monotonic()
        variants = {model.name: model.variant for model in self.models}
        variant, rows = _same_variant([self.rows[name] for name in variants], variants)
        scored = [row.name for row in rows if not row.why_not]
        _remove_others(directory / "runs", {f"{name}-{seed}" for name in scored for seed in self.seeds})
        comparable = [name for name in scored if variants[name] == variant]
        workspace = self.places[comparable[0]] if comparable else workspaces[0]
        comparison = _compare(workspace, directory, comparable, variant, self.seeds[0], self.extra)
        seconds, training = bakeoff_runs.total_seconds(directory, rows, self.seeds)
        total = seconds + time.monotonic() - start
        together = " (the sum over families, which ran at the same time)" if len(workspaces) > 1 else ""
        notes = _notes(self.minutes, self.seeds, comparison)
        notes.append(f"It took {total / 60:.3g} minutes in all, {training / 60:.3g} of them for training{together}.")
        results = results_table.of_bakeoff(self.title, [*rows, *comparison.rows, *self.excluded], comparison.differences, notes)
        publishing.write(directory, results)
        (directory / publishing.PAGE).unlink(missing_ok=True)  # of earlier rows
        with report_failure("the page to listen to"):
            folders = {row.name: self.extra[row.name] for row in comparison.rows if not row.why_not}
            publishing.write_page(directory, workspace, variant, results, rows, self.seeds[0], folders)
        return results, [row.name for row in rows if row.why_not]


# ---------------------------------------------------------------------------------------------------------------------
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


def _same_variant(rows: Sequence[Row], variants: Mapping[str, str]) -> tuple[str, list[Row]]:
    """The clip variant that rows are compared on, and the rows; those of other variants are not ranked."""
    of_scored = [variants[row.name] for row in rows if not row.why_not]
    variant = "default" if "default" in of_scored or not of_scored else of_scored[0]
    return variant, [
        row
        if variants[row.name] == variant
        else not_ranked(row, f"measured against clips of `{variants[row.name]}`, the others of `{variant}`")
        for row in rows
    ]


def _compare(workspace: Path, directory: Path, names: Sequence[str], variant: str, seed: int, extra: dict[str, Path]) -> Comparison:
    """Compare the sounds of one seed of these rows, with the reference clips that their scores have."""
    from soundmill.evaluation import pairwise

    without_scores = [without_score(name, "nothing to compare it with", kind="a folder") for name in extra]
    if not names:
        return Comparison(without_scores)
    runs = {name: directory / "runs" / f"{name}-{seed}" for name in names}
    first = json.loads((runs[names[0]] / "run.json").read_text(encoding="utf-8"))
    embedder = bakeoff_runs.chosen_embedder(first)
    try:
        found = pairwise.compare(
            {name: run / "generated" for name, run in runs.items()},
            extra,
            workspace / "data" / "clips" / variant,
            workspace / "data" / "catalog" / f"{variant}.parquet",
            first["scores"],
            embedder,
            workspace / "data" / "tagger",
            workspace / "data" / ".work" / "bakeoff-embeddings",
        )
    except Exception as error:  # the table is written in any case
        get_run_logger().exception("comparing all rows")
        return Comparison(without_scores, embedder=embedder, fault=in_a_line(error))
    rows = [Row(name, scores_under(embedder, {seed: metrics}), kind="a folder") for name, metrics in found.others.items()]
    rows += [without_score(name, " ".join(why.split()), kind="a folder") for name, why in found.failed.items()]
    return Comparison(rows, [Difference(**one) for one in found.differences], embedder, found.unpaired)


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
