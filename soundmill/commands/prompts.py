"""The command that shows what a text-conditioned model does with sets of prompts."""

from pathlib import Path
from typing import Annotated

import typer

from soundmill import terminal
from soundmill.commands.models import Checkpoint, FamilyName, Settings, checkpoint_of
from soundmill.commands.project import Project, progress_bar, project_root, tables, writable_file
from soundmill.errors import UserError
from soundmill.params import MAX_SEED

app = typer.Typer()


@app.command()
def prompts(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET|FILE.yaml…",
            help="Of plain, paraphrases, negation, counts, order, unknown, empty, long, languages (default: all), or files of your "
            "own.",
        ),
    ] = None,
    family: FamilyName = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=100, help="Number of sounds for each prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same sounds.")] = 0,
    settings: Settings = None,
    checkpoint: Checkpoint = None,
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    page: Annotated[
        Path | None, typer.Option(callback=writable_file, help="Write an HTML page with a sound of each prompt to this file.")
    ] = None,
    project: Project = None,
) -> None:
    """Test whether text steers a text-conditioned model, and how it takes paraphrases, negation, counts, order and more.

    Sounds for each prompt are classified by YAMNet: the share classified as asked, next to that with shuffled prompts. In a
    checkout whose test clips have such kinds of sounds, these clips, and these through the model's codec, show what can be reached.
    """
    from soundmill.evaluation import evaluator
    from soundmill.prompts import following, report
    from soundmill.prompts import sets as prompt_sets

    chosen = prompt_sets.load(sets or prompt_sets.NAMES)
    directory, home = checkpoint_of(checkpoint, family, project)
    found = following.follow(directory, chosen, number, seed, home, settings or [], _real(project), progress_bar)
    if json:
        evaluator.write_json(found.document, json)
    report.show(found.document)
    if page:
        report.write(found, page)
        terminal.say(page)


def _real(project: Path | None):
    """The checkout's clips of the variant `default`, if it has them."""
    try:
        real = tables(project_root(project), "default")
    except UserError:
        if project:
            raise
        return None
    return real if real.catalog.is_file() else None
