"""Commands that score folders of sounds: evaluate and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from soundmill.commands.project import Project, progress_bar, project_root, writable_file
from soundmill.errors import UserError, reason, report_failure

app = typer.Typer()

Protocol = Annotated[
    str | None,
    typer.Option(
        help="The protocol: audioldm_eval-16k (as TANGO and AudioLDM), fadtk-vggish, google-fad, project, or a .yaml file."
    ),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--embedder",
        help="In place of a protocol: every metric by this embedder. yamnet (the default), vggish, panns_cnn14_16k, "
        "panns_cnn14_32k, clap or tagger; may be given several times.",
    ),
]
ScoreSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Of resamples, subsets and noise (default: the protocol's).")]
Unpaired = Annotated[bool, typer.Option("--unpaired", help="Equal names mean nothing: leave out metrics of pairs.")]
Cache = Annotated[Path | None, typer.Option(help="Directory of embeddings that were made before (default: in the user's cache).")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")]


@app.command()
def evaluate(
    generated: Annotated[Path, typer.Argument(help="Folder of generated sounds, in any format and with sub-folders.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to measure them against.")],
    protocol: Protocol = None,
    embedder: Judges = None,
    training: Annotated[
        Path | None, typer.Option(help="Folder of the sounds that were trained on: are generated ones copies of them?")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Prompts for the CLAP score: a csv with the columns id and caption.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Write the result to this file; scores are at its top level: fad_yamnet …"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page to look at (index.html) into this directory, with the numbers as csv and LaTeX."),
    ] = None,
    unpaired: Unpaired = False,
    paired: Annotated[
        bool, typer.Option("--paired", help="Sounds are reconstructions of the reference's of the same names: adds lsd and mrstft.")
    ] = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Score any folder of generated sounds against a folder of real ones: FAD, FD, KL, IS, KID and more, by named protocols.

    A sound's id is its path without suffix: `rain/7.wav` is `rain/7`. Where both folders hold the same ids the sounds are pairs,
    and metrics of pairs (KL) are measured; where they have none in common those are left out; anything between is an error that
    names what is missing. A file that cannot be decoded ends the run: no part of a set is ever scored alone.

    Beside every score stand its baselines: the same measurement of silence, of white noise and of real sounds. Where silence
    or noise is as good as real sound, the metric is marked unfit and ranks no models. A second run, or another metric, embeds
    nothing anew. `soundmill weights list` tells the embedders' weights.
    """
    from soundmill.evaluation import evaluator, folder_report

    if paired and unpaired:
        raise UserError("--paired and --unpaired: equal names mean the same sound, or nothing; give one of them")
    setup = _scoring(protocol, embedder, seed, cache, workers, project)
    if report:
        folder_report.prepare(report)
    evaluation = evaluator.evaluate(setup, generated, reference, unpaired, training, captions, paired)
    if json:
        evaluator.write_json(evaluation.metrics, json)
    with report_failure("the table of scores"):
        folder_report.show(evaluation.metrics)
    if report:
        try:
            folder_report.write(evaluation, report)
        except Exception as error:
            raise UserError(f"{report}: the page could not be written ({reason(error)}); the scores above are whole") from error
        typer.echo(f"{report / 'index.html'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one model's sounds.")],
    b: Annotated[Path, typer.Argument(help="Folder of another's, of the same ids.")],
    reference: Annotated[Path, typer.Argument(help="Folder of real sounds to measure both against.")],
    protocol: Protocol = None,
    embedder: Judges = None,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    unpaired: Unpaired = False,
    seed: ScoreSeed = None,
    cache: Cache = None,
    workers: Workers = None,
    project: Project = None,
) -> None:
    """Tell whether one of two models is really better: the difference of each score, its interval, and a paired test.

    Both folders must hold sounds of the same ids (the same prompts), which are resampled together. `--unpaired` says that the
    reference's names mean nothing.
    """
    from soundmill.evaluation import evaluator, folder_report

    comparison = evaluator.compare(_scoring(protocol, embedder, seed, cache, workers, project), a, b, reference, unpaired)
    if json:
        evaluator.write_json(comparison, json)
    with report_failure("the table of differences"):
        folder_report.show_comparison(comparison, a, b)


def _scoring(
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
        raise UserError("--protocol and --embedder: a protocol says itself who judges; give one of them")
    chosen = protocols.load(protocol) if protocol else protocols.load("project").judged_by(embedder or ["yamnet"])
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    try:
        tagger = project_root(project) / "data" / "tagger"
    except UserError:
        tagger = None
    return Setup(
        chosen,
        cache or evaluator.user_cache(),
        workers or os.cpu_count() or 1,
        tagger if tagger and tagger.is_dir() else None,
        progress_bar,
    )
