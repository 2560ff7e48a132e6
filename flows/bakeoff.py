"""A bake-off as a Prefect flow: every family trains for the same time on the same recordings; `soundmill bakeoff DIR` runs it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from flows import bakeoff_figure, bakeoff_page, bakeoff_rows, bakeoff_runs, bakeoff_table, crashed_runs, lanes, locks, publishing
from flows.bakeoff_models import Model, choose_models, in_a_line, read_plan
from flows.bakeoff_rows import Difference, ModelRow
from flows.pipeline import run_to_end
from flows.scores import shown
from flows.sweep_points import NAME, Name, listed, nested_under, numbers
from flows.terminal import tell
from soundmill import tracking
from soundmill.errors import UserError, report_failure, show_what_the_terminal_can
from soundmill.params import Seed, check_urls

# isort: split
from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State
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
    try:
        _check(home, extra)
        chosen = read_plan(home, plan)
        models, excluded = choose_models(home, chosen, overrides, families)
        with locks.exclusive_lock(home / RESULTS / "lock"):
            crashed_runs.end_last(home / RESULTS / "flow.run")
            return _bakeoff(home, chosen.title, minutes, models, excluded, seeds, extra)
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"bakeoff: {error}")
        return Failed(message=str(error))


def _check(home: Path, extra: Mapping[str, Path]) -> None:
    """UserError, before any training, if a folder is named like a family or its sounds cannot be opened."""
    from soundmill.listening import material

    for name, folder in extra.items():
        if (home / "conf" / "model" / f"{name}.yaml").exists():
            raise UserError(f"{name}={folder}: {name} is a family; give the folder another name")
        material.open_folder(folder)


def _bakeoff(
    home: Path,
    title: str,
    minutes: float,
    models: list[Model],
    excluded: list[ModelRow],
    seeds: list[int],
    extra: dict[str, Path],
) -> State[Any]:
    directory = home / RESULTS
    document = models[0].document(home, {}, seeds[0])
    workspaces = lanes.workspaces(home, "bakeoff", document, len(models))
    tell(f"bakeoff: {len(models)} families for {minutes:g} minutes each, {len(seeds)} seeds, in {shown(workspaces[0], home)}")
    by_family: dict[str, ModelRow] = {}
    places: dict[str, Path] = {}  # family → the workspace that has its clips

    def work(index: int, workspace: Path) -> ModelRow:
        model = models[index]
        places[model.family] = workspace
        tell(f"\n== {index + 1}/{len(models)}: {model.family}")
        try:
            row = bakeoff_runs.row(workspace, home, directory, model, minutes, seeds)
        except Exception as error:  # a failure costs only the row of this family
            get_run_logger().exception(model.family)
            row = ModelRow(model.family, why_not=in_a_line(error))
        if row.why_not:
            tell(f"== {model.family}: no score: {row.why_not}")
        return row

    def ended(index: int, row: ModelRow) -> None:
        by_family[models[index].family] = row

    with tracking.pipeline_run(home, "bakeoff", root=workspaces[0], tags={"kind": "bakeoff"}) as record:
        with nested_under(record.environment):
            lanes.run_all([model.family for model in models], workspaces, document, work, ended)
        start = time.monotonic()
        variant, rows = _same_variant(
            [by_family[model.family] for model in models], {model.family: model.variant for model in models}
        )
        scored = [row.name for row in rows if not row.why_not]
        failed = [row.name for row in rows if row.why_not]
        _remove_others(directory / "runs", {f"{name}-{seed}" for name in scored for seed in seeds})
        comparable = [model.family for model in models if model.family in scored and model.variant == variant]
        workspace = places[comparable[0]] if comparable else workspaces[0]
        comparison = _compare(workspace, directory, comparable, variant, seeds[0], extra)
        seconds, training = bakeoff_runs.total_seconds(directory, rows, seeds)
        total = seconds + time.monotonic() - start
        all_rows = [*rows, *comparison.rows, *excluded]
        notes = _notes(minutes, seeds, rows, comparison)
        together = " (the sum over families, which ran at the same time)" if len(workspaces) > 1 else ""
        notes.append(f"It took {total / 60:.3g} minutes in all, {training / 60:.3g} of them for training{together}.")
        results = bakeoff_table.results(title, all_rows, comparison.differences, notes)
        publishing.write(directory, results, lambda: bakeoff_figure.draw(title, all_rows))
        (directory / publishing.PAGE).unlink(missing_ok=True)  # of earlier rows
        with report_failure("the page to listen to"):
            folders = {row.name: extra[row.name] for row in comparison.rows if not row.why_not}
            bakeoff_page.write(directory, workspace, variant, results, rows, seeds[0], folders)
        page = publishing.record(record, directory, results)
        message = f"{len(failed)} of {len(models)} families have no score: {', '.join(failed)}"
        if failed:
            record.fail(message)
    publishing.show(home, directory, "bakeoff", results, record, page)
    if failed:
        tell(f"bakeoff: {message}. Run it again to retry them; finished work is not repeated.")
    tell(results.verdict)
    return Failed(message=message) if failed else Completed(message=f"{len(scored)} families")


# ---------------------------------------------------------------------------------------------------------------------
# All rows together


def _remove_others(runs: Path, kept: set[str]) -> None:
    """Remove the sounds of other families, seeds and corpora; DVC's cache can restore them."""
    for directory in runs.glob("*"):
        if directory.name not in kept:
            shutil.rmtree(directory)


@dataclass(frozen=True)
class Comparison:
    """All rows compared: rows of `extra` folders, and the differences between families."""

    rows: Sequence[ModelRow] = ()
    differences: Sequence[Difference] = ()
    embedder: str = ""
    unpaired: Sequence[str] = ()  # families whose sounds answer other requests than most
    fault: str = ""  # why nothing could be compared


def _same_variant(rows: Sequence[ModelRow], variants: Mapping[str, str]) -> tuple[str, list[ModelRow]]:
    """The clip variant that rows are compared on, and the rows; those of other variants are not ranked."""
    of_scored = [variants[row.name] for row in rows if not row.why_not]
    variant = "default" if "default" in of_scored or not of_scored else of_scored[0]
    return variant, [
        row
        if variants[row.name] == variant
        else bakeoff_rows.not_ranked(row, f"measured against clips of `{variants[row.name]}`, the others of `{variant}`")
        for row in rows
    ]


def _compare(
    workspace: Path, directory: Path, families: Sequence[str], variant: str, seed: int, extra: dict[str, Path]
) -> Comparison:
    """Compare the sounds of one seed of these families, with the reference clips that their scores have."""
    from soundmill.evaluation import pairwise

    without_scores = [ModelRow(name, kind="a folder", why_not="nothing to compare it with") for name in extra]
    if not families:
        return Comparison(without_scores)
    runs = {name: directory / "runs" / f"{name}-{seed}" for name in families}
    first = json.loads((runs[families[0]] / "run.json").read_text(encoding="utf-8"))
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
    rows = [
        ModelRow(name, bakeoff_rows.scores_under(embedder, {seed: metrics}), kind="a folder")
        for name, metrics in found.others.items()
    ]
    rows += [ModelRow(name, kind="a folder", why_not=" ".join(why.split())) for name, why in found.failed.items()]
    return Comparison(rows, [Difference(**one) for one in found.differences], embedder, found.unpaired)


def _notes(minutes: float, seeds: Sequence[int], rows: Sequence[ModelRow], comparison: Comparison) -> list[str]:
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
    notes += bakeoff_table.unranked_notes(rows)
    if comparison.unpaired:
        names = bakeoff_table.listed(comparison.unpaired)
        notes.append(f"{names} generated sounds for other clips than the rest, so no paired test includes them.")
    if comparison.fault:
        notes.append(f"The models could not be compared: {comparison.fault}.")
    return notes if comparison.embedder else notes[:1]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(argv: list[str] | None = None) -> int:
    show_what_the_terminal_can()
    parser = argparse.ArgumentParser(prog="python -m flows.bakeoff", description="Run a bake-off; `soundmill bakeoff` calls this.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of all families, as in `soundmill params`")
    parser.add_argument("--minutes", type=float, default=20.0, help="training minutes per family")
    parser.add_argument("--families", type=listed, default=[], metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seeds", type=numbers, default=[0], metavar="0,1,2", help="run each family with each of these seeds")
    parser.add_argument(
        "--extra", type=_folder, action="append", default=[], metavar="NAME=DIR", help="a folder of WAV files as one more row"
    )
    parser.add_argument("--plan", default="", metavar="NAME", help="a file of conf/bakeoff, without .yaml")
    args = parser.parse_intermixed_args(argv)
    names = [name for name, _ in args.extra]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"--extra: several folders are named {', '.join(repeated)}")
    options = args.minutes, args.overrides, args.families, args.seeds, dict(args.extra), args.plan

    def checked() -> State[Any]:
        check_urls(args.overrides, "parameters")  # before Prefect records them
        return bakeoff(*options, return_state=True)

    return run_to_end("bakeoff", "families", checked)


def _folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and folder and re.fullmatch(NAME, name)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=DIR, with a name of letters, digits, dots and dashes")
    return name, Path(folder).resolve()


if __name__ == "__main__":
    # Prefect imports a flow by its module's name, which `__main__` is not.
    from flows import bakeoff as module

    sys.exit(module.main())
