"""Commands that score folders of sounds: evaluate and compare."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from soundmill import terminal
from soundmill.commands.project import Project, progress_bar, project_if_any, writable_file
from soundmill.errors import UserError, reason, report_failure
from soundmill.params import MAX_SEED

app = typer.Typer()

# Not `protocols.NAMES`: the help is shown without importing the evaluation.
PROTOCOLS = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "evaluation/protocols").glob("*.yaml")))
Protocol = Annotated[
    str | None,
    typer.Option(help=f"{PROTOCOLS} (TANGO and AudioLDM use audioldm_eval-16k), or a .yaml file."),
]
Embedders = Annotated[
    list[str] | None,
    typer.Option(
        "--embedder",
        help="Instead of a protocol: all metrics with this embedder (default: yamnet); repeatable. "
        "`soundmill weights list` names them.",
    ),
]
ScoreSeed = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of resamples, subsets, noise (default: the protocol's).")
]
Unpaired = Annotated[bool, typer.Option("--unpaired", help="Ignore equal names: leave out paired metrics.")]
Ladder = Annotated[
    list[str],
    typer.Option(metavar="METRIC", help="Metrics to measure on real sounds spoiled in known ways, too; repeatable. `none`: none."),
]
Cache = Annotated[Path | None, typer.Option(help="Directory of cached embeddings (default: in the user's cache).")]
NOT_SCORES = ("json", "report", "card", "cache", "workers")  # options that change no score
Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")]


@app.command()
def evaluate(
    context: typer.Context,
    generated: Annotated[Path, typer.Argument(help="Folder of generated sounds, in any format, with subfolders.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to compare with.")],
    protocol: Protocol = None,
    embedder: Embedders = None,
    training: Annotated[Path | None, typer.Option(help="Folder of training sounds: look for copies of them.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Prompts for the CLAP score: a csv with the columns id and caption.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Write the result to this file, with scores at its top level: fad_yamnet …"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write an HTML page (index.html) into this directory, with the numbers as csv and LaTeX."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Write what a paper needs into this directory: tables, protocol, digests, figures, command (card.md)."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="For the card: sounds made per prompt, of which one was kept.")
    ] = None,
    unpaired: Unpaired = False,
    paired: Annotated[
        bool, typer.Option("--paired", help="Sounds reconstruct the reference sounds of the same names: add lsd and mrstft.")
    ] = False,
    ladder: Ladder = ("fad", "fd"),
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Score any folder of generated sounds against a folder of real ones: FAD, FD, KL, IS, KID and more, by named protocols.

    A sound's id is its path without suffix: `rain/7.wav` is `rain/7`. If both folders hold the same ids, the sounds are pairs and
    paired metrics (KL) are measured; if they share no id, these are left out; if only some ids match,
    the error names the missing ones. A file that cannot be decoded stops the run: no subset is ever scored.

    Every score has baselines: the same measurement of silence, white noise and real sounds. If silence or noise scores as well as
    real sound, the metric is marked unfit and ranks no models. A second run, or another metric, reuses the embeddings.
    `soundmill weights list` shows the embedders' weights.
    """
    from soundmill.evaluation import evaluator, folder_report, folders
    from soundmill.evaluation import report as reports

    if paired and unpaired:
        raise UserError("--paired and --unpaired exclude each other; give one")
    setup = scoring_setup(protocol, embedder, seed, cache, workers, project)
    setup = replace(setup, ladder=_metrics(ladder))
    for directory in filter(None, (report, card)):
        folder_report.prepare(directory)
    candidates = candidates or folders.about(generated).candidates
    evaluation = evaluator.evaluate(setup, generated, reference, unpaired, training, captions, paired)
    if json:
        evaluator.write_json(evaluation.metrics, json)
    with report_failure("the table of scores"):
        folder_report.show(evaluation.metrics)
    if report:
        try:
            folder_report.write(evaluation, report)
        except Exception as error:
            raise UserError(f"{report}: the page could not be written ({reason(error)}); the scores above are complete") from error
        terminal.say(f"{report / 'index.html'}")
    if card:
        reports.write_card(card, folder_report.title(evaluation), evaluation.metrics, _again(context), candidates)
        terminal.say(f"{card / reports.CARD}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one model's sounds.")],
    b: Annotated[Path, typer.Argument(help="Folder of the other model's sounds, with the same ids.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to compare both with.")],
    protocol: Protocol = None,
    embedder: Embedders = None,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    unpaired: Unpaired = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Test whether one of two models is better: the difference of each score, its interval, and a paired test.

    Both folders must hold sounds with the same ids (the same prompts), which are resampled together. With `--unpaired` the
    reference's names are ignored.
    """
    from soundmill.evaluation import evaluator, folder_report

    comparison = evaluator.compare(scoring_setup(protocol, embedder, seed, cache, workers, project), a, b, reference, unpaired)
    if json:
        evaluator.write_json(comparison, json)
    with report_failure("the table of differences"):
        folder_report.show_comparison(comparison, a, b)


def _again(context: typer.Context) -> str:
    """The command as it was given, without its outputs."""
    import shlex

    words = ["soundmill", context.info_name or ""]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in NOT_SCORES or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        option = [parameter.opts[0]] if parameter.param_type_name == "option" else []
        if value is True:
            words += option
        else:
            words += [word for one in (value if isinstance(value, list | tuple) else [value]) for word in (*option, str(one))]
    return shlex.join(words)


def _metrics(names: list[str]) -> list[str]:
    from soundmill.evaluation import protocols

    try:
        return [] if names == ["none"] else [protocols.check_metric(name) for name in names]
    except ValueError as error:
        raise UserError(f"--ladder: {error}") from None


def scoring_setup(
    protocol: str | None,
    embedder: list[str] | None,
    seed: int | None,
    cache: Path | None,
    workers: int | None,
    project: Path | None,
):
    import os

    from soundmill.evaluation import evaluator, protocols
    from soundmill.evaluation.library import Setup

    if protocol and embedder:
        raise UserError("--protocol and --embedder exclude each other: a protocol names its embedders; give one of them")
    chosen = protocols.load(protocol) if protocol else protocols.load("project").with_embedders(embedder or ["yamnet"])
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    root = project_if_any(project)
    tagger = root / "data" / "tagger" if root and (root / "data" / "tagger").is_dir() else None
    return Setup(chosen, cache or evaluator.user_cache(), workers or os.cpu_count() or 1, tagger, progress_bar)
