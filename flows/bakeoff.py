"""Every family on the same recordings for the same minutes, scored alike, as a Prefect flow; `soundmill bakeoff DIR` starts it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from flows import bakeoff_page, bakeoff_runs, bakeoff_table, checkout, crashed_runs, locks, publishing
from flows.bakeoff_models import Model, Name, choose_models, in_a_line, read_plan
from flows.bakeoff_table import Row
from flows.pipeline import BROWSER_PORT, run_to_end
from flows.scores import shown
from flows.sweep_points import listed, nested_under, numbers
from flows.terminal import tell
from soundmill import tracking
from soundmill.errors import UserError, report_failure
from soundmill.params import Seed

# isort: split
from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State
from pydantic import Field

RESULTS = Path("data/report/bakeoff")
FILES = ("table.md", "table.csv", "table.tex", "table.json")
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
    """Train every family (or `families`) for as many minutes on the same recordings, and score all by the same protocol.

    `overrides` choose the corpus (`corpus=esc corpus.path=DIR`); those of one family's section are for it alone. `extra` are
    folders of anyone's WAV files, each one more row. `plan` is a file of conf/bakeoff. What was done is not done again: a bake-off
    that was killed goes on. `project` is the checkout (default: the directory this runs in).
    """
    home = (project or Path.cwd()).resolve()
    try:
        _check(home, extra)
        chosen = read_plan(home, plan)
        models, rows = choose_models(home, chosen, overrides, families)
        with locks.exclusive_lock(home / RESULTS / "lock"):
            crashed_runs.end_last(home / RESULTS / "flow.run")
            return _bakeoff(home, chosen.title, minutes, models, rows, seeds, extra)
    except UserError as error:
        get_run_logger().error(str(error))
        tell(f"bakeoff: {error}")
        return Failed(message=str(error))


def _check(home: Path, extra: Mapping[str, Path]) -> None:
    """UserError where a folder's name is a family's, or its sounds cannot be opened: better now than after all trainings."""
    from soundmill.listening import material

    for name, folder in extra.items():
        if (home / "conf" / "model" / f"{name}.yaml").exists():
            raise UserError(f"{name}={folder}: {name} is a family; give the folder another name")
        material.open_folder(folder)


def _bakeoff(
    home: Path, title: str, minutes: float, models: list[Model], excluded: list[Row], seeds: list[int], extra: dict[str, Path]
) -> State[Any]:
    results = home / RESULTS
    workspace = checkout.workspace(home, "bakeoff", models[0].document(home, {}, seeds[0]))
    tell(f"bakeoff: {len(models)} families for {minutes:g} minutes each, {len(seeds)} seeds, in {shown(workspace, home)}")
    rows: list[Row] = []
    with tracking.pipeline_run(home, "bakeoff", root=workspace, tags={"kind": "bakeoff"}) as record:
        for number, model in enumerate(models, start=1):
            tell(f"\n== {number}/{len(models)}: {model.family}")
            try:
                with nested_under(record.environment):
                    rows.append(bakeoff_runs.row(workspace, home, results, model, minutes, seeds))
            except Exception as error:  # a family costs its row only
                get_run_logger().exception(model.family)
                rows.append(Row(model.family, why_not=in_a_line(error)))
            if rows[-1].why_not:
                tell(f"== {model.family}: no score: {rows[-1].why_not}")
        begun = time.monotonic()
        variant, rows = _apart(rows, {model.family: model.variant for model in models})
        scored = [row.name for row in rows if not row.why_not]
        _clear(results / "runs", {f"{name}-{seed}" for name in scored for seed in seeds})
        together = [model.family for model in models if model.family in scored and model.variant == variant]
        judged = _judge(workspace, results, together, variant, seeds[0], extra)
        notes = _notes(minutes, seeds, rows, judged)
        seconds, training = bakeoff_runs.took(results, rows, seeds)
        whole = seconds + time.monotonic() - begun
        notes.append(f"It took {whole / 60:.3g} minutes in all, {training / 60:.3g} of them in trainings.")
        rows += [*judged.rows, *excluded]
        _write(results, title, rows, judged.differences, notes)
        (results / bakeoff_page.NAME).unlink(missing_ok=True)  # of other rows
        with report_failure("the page to listen to"):
            heard = {row.name: extra[row.name] for row in judged.rows if not row.why_not}
            bakeoff_page.write(results, workspace, variant, title, rows, judged.differences, notes, seeds[0], heard)
        table = bakeoff_table.markdown(title, rows, judged.differences, notes)
        record.describe(table)
        record.log_metrics_tree({row.name: {metric: score.total.value for metric, score in row.scores.items()} for row in rows})
        for file in [results / name for name in (*FILES, bakeoff_page.NAME)]:
            if file.exists():
                record.log_file(file)
        if (results / publishing.FIGURE).exists():
            record.log_figure(results / publishing.FIGURE, publishing.FIGURE)
        failed = [row for row in rows if row.why_not and row.name in {model.family for model in models}]
        message = f"{len(failed)} of {len(models)} families have no score: {', '.join(row.name for row in failed)}"
        if failed:
            record.fail(message)
        page = record.page(BROWSER_PORT)
    with report_failure("the table and the figure in Prefect"):
        publishing.show_in_prefect(results, "bakeoff", title, bakeoff_table.table(rows), table, page)
    tell(f"\n{table}")
    tell(f"Table    {shown(results / 'table.md', home)} (beside it table.csv, table.tex, table.json)")
    for what, name, remark in (
        ("Figure", publishing.FIGURE, ""),
        ("Page", bakeoff_page.NAME, " (open it in a web browser: all beside the real sounds)"),
    ):
        if (results / name).exists():
            tell(f"{what:<8} {shown(results / name, home)}{remark}")
    tell("Runs     make browse" + (f", then {page}" if page else ""))
    for line in record.not_recorded:
        tell(line)
    if failed:
        tell(f"bakeoff: {message}. Run it again to try them once more; what is done is not done again.")
    tell(bakeoff_table.verdict(rows, judged.differences))
    return Failed(message=message) if failed else Completed(message=f"{len(scored)} families")


# ---------------------------------------------------------------------------------------------------------------------
# All together


def _clear(runs: Path, kept: set[str]) -> None:
    """Remove sounds of other families, seeds and corpora: they come from DVC's cache where they are wanted again."""
    for directory in runs.glob("*"):
        if directory.name not in kept:
            shutil.rmtree(directory)


@dataclass(frozen=True)
class Judged:
    """What comes of looking at all rows together: rows of others' folders, and which differences are real."""

    rows: Sequence[Row] = ()
    differences: Sequence[bakeoff_table.Difference] = ()
    embedder: str = ""
    unpaired: Sequence[str] = ()  # families that made sounds for other requests than most
    fault: str = ""  # why nothing could be looked at together


def _apart(rows: Sequence[Row], variants: Mapping[str, str]) -> tuple[str, list[Row]]:
    """The variant of clips that rows are compared over, and the rows, those measured against other clips out of the ranking."""
    of_scored = [variants[row.name] for row in rows if not row.why_not]
    variant = "default" if "default" in of_scored or not of_scored else of_scored[0]
    return variant, [
        row
        if variants[row.name] == variant
        else bakeoff_table.apart(row, f"measured against clips of `{variants[row.name]}`, the others of `{variant}`")
        for row in rows
    ]


def _judge(workspace: Path, results: Path, scored: Sequence[str], variant: str, seed: int, extra: dict[str, Path]) -> Judged:
    """Of the first seed's sounds of these families, against the real clips that their own scores have."""
    from soundmill.evaluation import pairwise

    lonely = [Row(name, "a folder", why_not="nothing to compare it with") for name in extra]
    if not scored:
        return Judged(lonely)
    runs = {name: results / "runs" / f"{name}-{seed}" for name in scored}
    first = json.loads((runs[scored[0]] / "run.json").read_text(encoding="utf-8"))["scores"]
    embedder = bakeoff_runs.chosen_embedder(first)
    try:
        found = pairwise.compare(
            {name: its / "generated" for name, its in runs.items()},
            extra,
            workspace / "data" / "clips" / variant,
            workspace / "data" / "catalog" / f"{variant}.parquet",
            first,
            embedder,
            workspace / "data" / "tagger",
            workspace / "data" / ".work" / "bakeoff-embeddings",
        )
    except Exception as error:  # the table of what was trained is there in any case
        get_run_logger().exception("all rows together")
        return Judged(lonely, embedder=embedder, fault=in_a_line(error))
    rows = [Row(name, "a folder", scores=bakeoff_table.scores_of([metrics], embedder)) for name, metrics in found.others.items()]
    rows += [Row(name, "a folder", why_not=" ".join(why.split())) for name, why in found.failed.items()]
    return Judged(rows, [bakeoff_table.Difference(**one) for one in found.differences], embedder, found.unpaired)


def _notes(minutes: float, seeds: Sequence[int], rows: Sequence[Row], judged: Judged) -> list[str]:
    notes = [
        f"Each family trained for {minutes:g} minutes by the time of a step here, in steps that `measured/` fixes; shared "
        "stages and the tagger are not counted. A family that is built for longer training is at a disadvantage.",
        f"Scores are under {judged.embedder}; of FAD, MMD, KL and near-copies lower is better. Near-copies are closer to a "
        "training clip than real test clips mostly are; their interval is Wilson's.",
        "p is of a paired permutation test over the same requests, corrected for the number of tests (Holm). One is called better "
        "where p is below 0.05 and the interval leaves out zero.",
        "Intervals are bootstrap 95 % intervals over clips; they do not cover other seeds."
        if len(seeds) == 1
        else f"Values are means of {len(seeds)} seeds with Student's 95 % interval over them; differences are of the first seed.",
    ]
    notes += bakeoff_table.unranked(rows)
    if judged.unpaired:
        notes.append(f"{bakeoff_table.listed(judged.unpaired)} made sounds for other clips than the rest: no test pairs them.")
    if judged.fault:
        notes.append(f"The models could not be compared: {judged.fault}.")
    return notes if judged.embedder else notes[:1]


def _write(results: Path, title: str, rows: list[Row], differences: Sequence[bakeoff_table.Difference], notes: list[str]) -> None:
    document = {
        "title": title,
        "verdict": bakeoff_table.verdict(rows, differences),
        "rows": [asdict(row) for row in rows],
        "differences": [asdict(one) for one in differences],
        "notes": notes,
    }
    contents = {
        "table.md": bakeoff_table.markdown(title, rows, differences, notes),
        "table.csv": bakeoff_table.csv_text(rows),
        "table.tex": bakeoff_table.latex(rows),
        "table.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }
    publishing.write(results, contents)
    publishing.write_figure(results, lambda: bakeoff_table.draw(title, rows))


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.bakeoff", description="What `soundmill bakeoff` starts.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all families, as after `soundmill params`")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each family")
    parser.add_argument("--families", type=listed, default=[], metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seeds", type=numbers, default=[0], metavar="0,1,2", help="run each family with each of them")
    parser.add_argument("--extra", type=_folder, action="append", default=[], metavar="NAME=DIR", help="WAV files as one more row")
    parser.add_argument("--plan", default="", metavar="NAME", help="a file of conf/bakeoff, without its ending")
    args = parser.parse_intermixed_args(argv)
    names = [name for name, _ in args.extra]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        parser.error(f"--extra: several folders are called {', '.join(repeated)}")
    call: Callable[[], State[Any]] = lambda: bakeoff(  # noqa: E731
        args.minutes, args.overrides, args.families, args.seeds, dict(args.extra), args.plan, return_state=True
    )
    return run_to_end("bakeoff", "families", call)


def _folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and folder and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", name)):
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=DIR, a name of letters, digits, dots and dashes")
    return name, Path(folder).resolve()


if __name__ == "__main__":
    # Prefect finds a flow by its module's name, and `__main__` is not one.
    from flows import bakeoff as module

    sys.exit(module.main())
